"""Replay memory: samples are what was lived through, and a killed run finds what it counted on."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.runners.disk.checkpoint import KEEP, load_checkpoint, save_checkpoint
from neoteny.runners.replay import PROTECTED, ReplayMemory
from neoteny.runners.run import FAILED_SAVES

ACTIONS = gym.spaces.Discrete(5)
Step = namedtuple("Step", "observation action reward terminated truncated following task")


def space(stack):
    return gym.spaces.Box(0, 255, (stack, 2, 3) if stack > 1 else (2, 3), np.uint8)


class History:
    """One environment whose every frame is another, and who remembers all of it."""

    def __init__(self, number, stack, rng):
        self.stack, self.rng = stack, rng
        self.frames = self.attempt = 0
        self.number = number
        self.steps = []
        self.begin()

    def begin(self):
        self.past = [np.zeros((2, 3), np.uint8)] * (self.stack - 1) + [self.frame()]

    def frame(self):
        self.frames += 1
        marks = self.frames % 200, self.frames // 200, self.number, self.attempt, 0, 0
        return (np.array(marks, np.uint8) + 1).reshape(2, 3)  # none has zeros, as what is missing does

    @property
    def observation(self):
        return np.stack(self.past) if self.stack > 1 else self.past[-1]

    def step(self, terminated, truncated, task):
        before = self.observation
        self.past = [*self.past[1:], self.frame()] if self.stack > 1 else [self.frame()]
        action, reward = self.rng.randrange(5), self.rng.uniform(-2, 2)
        self.steps.append(Step(before, action, reward, terminated, truncated, self.observation, task))
        if terminated or truncated:
            self.begin()
        return self.steps[-1]


def add(memory, histories, ends, task=0):
    """One step of all environments; 1 terminates an episode, 2 truncates, 3 does both."""
    steps = [history.step(bool(end & 1), bool(end & 2), task) for history, end in zip(histories, ends)]
    fields = [torch.as_tensor(np.array(values)) for values in zip(*steps)]
    memory.add(*fields[:-1], task)


def expected(history, first, n_step, gamma):
    """By its definition, one transition of ``history.steps`` from number ``first``."""
    total, discount = 0.0, 1.0
    for step in history.steps[first : first + n_step]:
        total += discount * step.reward
        discount *= gamma
        if step.terminated or step.truncated:
            break
    return history.steps[first], total, 0.0 if step.terminated else discount, step.following


def assert_holds(memory, histories, n_step=1, gamma=0.9):
    """Every place that can be sampled is a transition that was made, or is said to be none."""
    oldest, end = memory.bounds(n_step)
    for env, history in enumerate(histories):
        places, number = {}, 0
        for index, step in enumerate(history.steps):
            places[number] = index
            number += 1 + (step.truncated and not step.terminated)
        assert int(memory.head[env]) == number
        assert int(oldest[env]) == max(0, number - memory.kept)
        sampled = torch.arange(int(oldest[env]), int(end[env]))
        batch = memory.gather(torch.full_like(sampled, env), sampled, n_step, gamma)
        for place, row in zip(sampled.tolist(), zip(*batch)):
            observation, action, total, discount, following, weight = row
            assert weight == (place in places)
            if weight:
                step, *rest = expected(history, places[place], n_step, gamma)
                assert np.array_equal(observation, step.observation)
                assert (int(action), float(total), float(discount)) == (
                    step.action, pytest.approx(rest[0], abs=1e-5), pytest.approx(rest[1], abs=1e-6),
                )  # fmt: skip
                if discount:
                    assert np.array_equal(following, rest[2])


def made(capacity, count, stack, **options):
    memory = ReplayMemory(capacity, count, space(stack), ACTIONS, stack, **options)
    memory.open()
    return memory


ENDS = st.lists(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3]), min_size=3, max_size=3), max_size=40)


@settings(deadline=None)
@given(ENDS, st.integers(3, 30), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.randoms(), st.booleans())
def test_every_sample_is_what_was_lived_through(sequence, capacity, stack, n_step, rng, on_disk):
    with tempfile.TemporaryDirectory() as folder:
        memory = made(capacity, 3, stack, folder=Path(folder) / "replay" if on_disk else None)
        histories = [History(env, stack, rng) for env in range(3)]
        for ends in sequence:
            add(memory, histories, ends)
        if min(len(sequence), memory.kept) >= n_step:
            assert_holds(memory, histories, n_step)


def test_a_switch_ends_all_episodes_and_nothing_is_stacked_across_it():
    memory, histories = made(40, 2, 4), [History(env, 4, random.Random(env)) for env in range(2)]
    for step in range(12):
        switch = step % 4 == 3
        add(memory, histories, [2, 2] if switch else [0, 0], task=step // 4)
    assert_holds(memory, histories, n_step=3)
    first = memory.gather(torch.tensor([0]), torch.tensor([5])).observations[0]  # 4 steps and a last frame
    assert not first[:3].any()
    assert first[3].all()
    assert memory.tasks() == {0: pytest.approx(1 / 3), 1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3)}


def test_episodes_that_do_not_go_on_are_cut():
    memory, histories = made(40, 3, 4), [History(env, 4, random.Random(env)) for env in range(3)]
    for ends in ([0, 0, 0], [0, 0, 0], [0, 1, 2]):
        add(memory, histories, ends)
    memory.cut()
    histories[0].steps[-1] = histories[0].steps[-1]._replace(truncated=True)  # the others have just ended
    histories[0].begin()
    for _ in range(3):
        add(memory, histories, [0, 0, 0])
    assert_holds(memory, histories, n_step=2)
    made(40, 3, 4).cut()  # where there is nothing yet


def test_the_latest_observations():
    memory, histories = made(8, 2, 1), [History(env, 1, random.Random(env)) for env in range(2)]
    for _ in range(9):
        add(memory, histories, [0, 0])
    latest = memory.latest(5).numpy()
    own = [history.steps[-1 - back].observation for history in histories for back in range(3)]
    assert np.array_equal(latest, own)
    assert len(memory.latest(100)) == 8


def test_samples_are_uniform_and_reproducible():
    memory, histories = made(50, 2, 1), [History(env, 1, random.Random(env)) for env in range(2)]
    with pytest.raises(RuntimeError, match="1-step transitions need more than 0 steps"):
        memory.sample(1)
    for _ in range(40):
        add(memory, histories, [0, 0])
    torch.manual_seed(0)
    drawn = memory.sample(50_000)
    seen, counts = drawn.observations.flatten(1).unique(dim=0, return_counts=True)
    assert len(seen) == 50
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    torch.manual_seed(0)  # PyTorch's own random numbers, which checkpoints hold
    assert all(torch.equal(one, other) for one, other in zip(drawn, memory.sample(50_000)))
    torch.manual_seed(0)
    assert torch.equal(
        memory.sample(50_000, normalize=lambda returns: returns / 2).returns, drawn.returns / 2
    )


def test_a_million_atari_transitions_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("neoteny.runners.memory.free_memory", lambda device: None)
    frames = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    for folder in (None, tmp_path):
        memory = ReplayMemory(
            1_000_000, 8, frames, gym.spaces.Discrete(18), 4, "cpu", folder, 1_000_000 // 64
        )
        assert memory.size < 7.5e9
        assert memory.size / 1e6 <= 1.05 * 84 * 84 + 32


def test_the_slack_outlasts_what_a_run_puts_up_with():
    assert PROTECTED >= FAILED_SAVES  # the newest checkpoint, though all after it failed
    assert PROTECTED >= KEEP + 1  # the older one, though one between them failed


STEPS = st.lists(
    st.tuples(st.just("add"), st.integers(0, 6))
    | st.tuples(st.sampled_from(["save", "save", "fail", "kill", "kill and damage"]), st.just(0)),
    max_size=40,
)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), STEPS, st.sampled_from([1, 3]), st.randoms())
def test_what_a_killed_run_finds_is_what_its_checkpoint_counted_on(capacity, interval, steps, stack, rng):
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder), capacity, interval, stack, rng)
        for step, count in steps:
            if step == "add":
                model.add(count)
            elif step == "kill":
                model.kill()
            elif step == "kill and damage":
                model.kill(damage=True)
            else:
                model.checkpoint(written=step == "save")
            if model.memory.added:
                assert_holds(model.memory, model.histories)


class Model:
    """A run of two environments; frames of a later attempt differ from those of an earlier one."""

    def __init__(self, folder, capacity, interval, stack=1, rng=None, ends=(0, 0, 0, 1, 2)):
        self.folder, self.capacity, self.interval, self.stack = folder, capacity, interval, stack
        self.rng, self.ends, self.number = rng or random.Random(0), ends, 0
        self.saved = []  # of the checkpoints kept: state and histories
        self.histories = [History(env, stack, self.rng) for env in range(2)]
        self.begin()

    def begin(self):
        self.memory = made(
            self.capacity, 2, self.stack, folder=self.folder / "replay", interval=self.interval
        )
        self.failed = self.pending = 0

    def add(self, count):
        for _ in range(count):
            ends = [self.rng.choice(self.ends) for _ in range(2)]
            pending = self.pending + 1 + (2 in ends)
            if pending > self.memory.interval:
                before = (
                    [list(history.steps) for history in self.histories],
                    [history.past for history in self.histories],
                )
                with pytest.raises(RuntimeError, match="between two checkpoints, not for more"):
                    add(self.memory, self.histories, ends)
                for history, steps, past in zip(self.histories, *before):
                    history.steps, history.past = steps, past
                return
            add(self.memory, self.histories, ends)
            self.pending = pending

    def checkpoint(self, written):
        self.memory.flush()
        self.pending = 0
        if written:
            histories = [(list(history.steps), history.past) for history in self.histories]
            self.saved = [*self.saved, (self.memory.state_dict(), histories)][-KEEP:]
        self.failed = 0 if written else self.failed + 1
        if self.failed == FAILED_SAVES:  # the run ends, and is started again
            self.kill()

    def kill(self, damage=False):
        if damage:
            self.saved = self.saved[:-1]
        self.begin()
        self.number += 1
        state, histories = self.saved[-1] if self.saved else (None, [([], None)] * 2)
        for history, (steps, past) in zip(self.histories, histories):
            history.steps, history.attempt = list(steps), self.number
            history.past = past
            if past is None:
                history.begin()
        if state is not None:
            self.memory.load_state_dict(state)


@pytest.mark.parametrize(
    ("checkpoints", "ending"),
    [
        (["save", "fail", "fail"], "kill"),
        (["save", "save"], "kill and damage"),
        (["save", "fail", "save"], "kill and damage"),
        (["save", "save", "fail"], "kill and damage"),
    ],
)
def test_full_intervals_leave_the_checkpoints_whole(checkpoints, ending, tmp_path):
    model = Model(tmp_path, 20, 8, stack=4, ends=(0,))
    for what in ["save"] * 8 + checkpoints:
        model.add(4)
        model.checkpoint(written=what == "save")
    model.add(4)
    model.kill(damage=ending != "kill")
    assert_holds(model.memory, model.histories)
    assert model.memory.added == 4 * (8 + checkpoints.index("save") + 1)


def test_it_asks_for_a_checkpoint_in_time(tmp_path):
    model = Model(tmp_path, 20, 32, ends=(2,))
    asked = []
    for _ in range(8):
        model.add(1)
        asked.append(model.memory.due)
    assert asked == [False] * 6 + [True] * 2
    model.checkpoint(written=True)
    assert not model.memory.due
    assert not made(20, 2, 1).due


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_older_checkpoint_can_be_restored_too(on_disk, tmp_path, capsys):
    folder = tmp_path / "replay" if on_disk else None
    memory, histories = (
        made(20, 2, 4, folder=folder, interval=8),
        [History(0, 4, random), History(1, 4, random)],
    )
    for first in range(0, 40, 4):
        kept = [list(history.steps) for history in histories]
        for _ in range(4):
            add(memory, histories, [0, 0])
        memory.flush()
        newest = save_checkpoint(tmp_path / "checkpoint", first + 4, {"memory": memory.state_dict()})
    add(memory, histories, [0, 0])
    (newest / "state.json").unlink()
    again = made(20, 2, 4, folder=folder, interval=8)
    again.load_state_dict(load_checkpoint(tmp_path / "checkpoint")["memory"])
    assert "it is set aside" in capsys.readouterr().err
    for history, steps in zip(histories, kept):
        history.steps = steps
    assert_holds(again, histories)


def test_too_many_steps_between_checkpoints_are_refused_before_any_is_written(tmp_path):
    memory, histories = (
        made(20, 2, 1, folder=tmp_path, interval=4),
        [History(0, 1, random), History(1, 1, random)],
    )
    for _ in range(2):
        add(memory, histories, [0, 0])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="room for 2 steps of each environment between two checkpoints"):
        add(memory, histories, [0, 0])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    memory.flush()
    add(memory, histories, [0, 0])
    memory.cut()  # takes a place too
    with pytest.raises(RuntimeError, match="room for 2 steps"):
        add(memory, histories, [0, 0])


WRITER = """
import json, sys
import gymnasium as gym, numpy as np, torch
from pathlib import Path
from neoteny.runners.replay import ReplayMemory

folder, history, state = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
frames, actions = gym.spaces.Box(0, 255, (84, 84), np.uint8), gym.spaces.Discrete(9)
slack = ReplayMemory(300, 4, frames, actions, folder=folder / "slack", interval=120)
none = ReplayMemory(300, 4, frames, actions, folder=folder / f"none{history}")
for memory in (slack, none):
    memory.open()
if state:
    slack.load_state_dict(state | {name: torch.tensor(state[name]) for name in ("head", "age")})
ended = torch.zeros(4, dtype=torch.bool)
for update in range(1, 100_000):
    for memory in (slack, none):
        values = memory.head + torch.arange(4) + history
        now, then = ((values + i).to(torch.uint8)[:, None, None].expand(-1, 84, 84) for i in (0, 1))
        memory.add(now, torch.full((4,), history), torch.zeros(4), ended, ended, then)
    if update % 30 == 0:
        for memory in (slack, none):
            memory.flush()
        states = [memory.state_dict() for memory in (slack, none)]
        print(json.dumps(states, default=torch.Tensor.tolist), flush=True)
"""


def _state(state):
    return state | {name: torch.tensor(state[name]) for name in ("head", "age")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_loses_nothing_with_slack(tmp_path):
    frames, actions = gym.spaces.Box(0, 255, (84, 84), np.uint8), gym.spaces.Discrete(9)
    moments = random.Random(0)
    state, histories, lost = None, [], []
    for history in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(history), json.dumps(state)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(moments.randint(4, 6))]
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=moments.uniform(0.0, 0.05))
        writer.kill()
        lines += writer.communicate()[0].splitlines(keepends=True)
        state, without = json.loads([line for line in lines if line.endswith("\n")][-1])

        memory = ReplayMemory(300, 4, frames, actions, folder=tmp_path / "slack", interval=120)
        memory.open()
        memory.load_state_dict(_state(state))
        histories += [history] * (memory.added - len(histories))
        places = torch.arange(memory.added - 75, memory.added)
        for env in range(4):
            batch = memory.gather(torch.full_like(places, env), places)
            assert batch.actions.tolist() == histories[-75:]
            values = (places + env + batch.actions).to(torch.uint8)[:, None, None]
            assert torch.equal(batch.observations, values.expand(-1, 84, 84))

        memory = ReplayMemory(300, 4, frames, actions, folder=tmp_path / f"none{history}")
        memory.open()
        try:
            memory.load_state_dict(_state(without))
            lost.append(0)
        except ValueError as error:
            assert "of the checkpoint's 300 places are not in the files" in str(error)  # noqa: PT017
            lost.append(1)
    assert sum(lost) > 0  # one of them may have been killed right after its checkpoint was reported


@pytest.mark.parametrize(
    "arguments",
    [
        (1, 2, space(1), ACTIONS, 1),
        (10, 0, space(1), ACTIONS, 1),
        (10, 2, space(1), ACTIONS, 4),
        (10, 2, space(1), ACTIONS, 0),
        (10, 2, gym.spaces.Dict({}), ACTIONS, 1),
        (10, 2, gym.spaces.Text(3), ACTIONS, 1),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(arguments, tmp_path):
    with pytest.raises(ValueError, match=r"no replay memory can have|holds arrays|are not stacks"):
        ReplayMemory(*arguments, folder=tmp_path / "replay")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", [(22, 8, 1), (20, 16, 1), (20, 8, 2)])
def test_another_layout_is_refused_and_the_files_stay(layout, tmp_path):
    model = Model(tmp_path, 20, 8, ends=(0,))
    model.add(4)
    model.checkpoint(written=True)
    capacity, interval, stack = layout
    other = ReplayMemory(
        capacity, 2, space(stack), ACTIONS, stack, folder=tmp_path / "replay", interval=interval
    )

    def go_on():
        other.open()
        other.load_state_dict(model.saved[-1][0])

    with pytest.raises(ValueError, match=r"frames.npy holds uint8 \(\d+, 2, 3\), not|its layout was"):
        go_on()
    model.kill()
    assert_holds(model.memory, model.histories)


def test_files_made_anew_are_not_taken_for_those_of_a_checkpoint(tmp_path):
    model = Model(tmp_path, 20, 8, ends=(0,))
    model.add(3)
    shutil.rmtree(tmp_path / "replay")
    again = made(20, 2, 1, folder=tmp_path / "replay", interval=8)
    with pytest.raises(ValueError, match="6 of the checkpoint's 6 places are not in the files"):
        again.load_state_dict(model.memory.state_dict())


FIELDS = ("frames", "actions", "rewards", "ends", "ages", "tasks", "index")


@pytest.mark.parametrize("name", FIELDS)
def test_damaged_files_are_refused_and_left_alone(name, tmp_path):
    made(10, 2, 1, folder=tmp_path)
    path = tmp_path / f"{name}.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"0", whole[:100], b"", b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.npy is damaged"):
            made(10, 2, 1, folder=tmp_path)
        assert path.read_bytes() == damaged
    for position in range(128):  # of the header
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|holds"):
            made(10, 2, 1, folder=tmp_path)
    path.unlink()
    if name != "index":
        with pytest.raises(ValueError, match=f"{name}.npy is missing"):
            made(10, 2, 1, folder=tmp_path)


def test_a_file_of_objects_is_never_unpickled(tmp_path):
    memory = made(10, 2, 1, folder=tmp_path)
    np.save(tmp_path / "actions.npy", np.array([object] * 2 * memory.places), allow_pickle=True)
    with pytest.raises(ValueError, match=r"actions.npy holds object \(14,\), not int64 \(14,\)"):
        made(10, 2, 1, folder=tmp_path)


def test_what_a_killed_process_had_not_finished_is_made_anew(tmp_path):
    made(10, 2, 1, folder=tmp_path)
    (tmp_path / "index.npy").unlink()  # it is made last
    (tmp_path / "frames.npy").write_bytes(b"half")
    (tmp_path / ".tmp_rewards.npy").write_bytes(b"half")
    made(10, 2, 1, folder=tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(FIELDS)


def test_too_large_a_memory_is_refused(tmp_path):
    huge = gym.spaces.Box(0, 255, (1 << 20,), np.uint8)
    for folder in (None, tmp_path / "replay"):
        with pytest.raises(ValueError, match=r"needs [\d,]{17,} bytes and [\d,]+ are free (on|in)"):
            ReplayMemory(1 << 28, 2, huge, ACTIONS, folder=folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_the_room_is_taken_at_the_start(tmp_path, monkeypatch):
    frames = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    ReplayMemory(100, 1, frames, ACTIONS, folder=tmp_path / "whole").open()
    assert (tmp_path / "whole" / "frames.npy").stat().st_blocks * 512 >= 100 * 84 * 84

    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        ReplayMemory(100, 1, frames, ACTIONS, folder=tmp_path / "full").open()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_and_for_one(tmp_path):
    for folder in (None, tmp_path / "replay"):
        memory = ReplayMemory(20, 2, space(4), ACTIONS, 4, device="cuda", folder=folder)
        memory.open()
        histories = [History(env, 4, random.Random(env)) for env in range(2)]
        for step in range(15):
            add(memory, histories, [0, 2 * (step % 5 == 4)])
        batch = memory.sample(16, 2)
        assert all(tensor.device.type == "cuda" for tensor in batch)
