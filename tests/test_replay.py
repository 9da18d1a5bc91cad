"""Replay memory: it holds the newest transitions, and a killed run finds those of its checkpoint again."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.runners.checkpoint import KEEP, load_checkpoint, save_checkpoint
from neoteny.runners.replay import PROTECTED, ReplayMemory
from neoteny.runners.run import FAILED_SAVES

FIELDS = {"frames": ((2, 3), np.uint8), "actions": ((), np.int64), "rewards": ((), np.float32)}


def transitions(numbers):
    """Transitions whose every field tells which they are."""
    numbers = np.asarray(numbers, dtype=np.int64)
    frames = (numbers[:, None, None] * 7 + np.arange(6).reshape(2, 3)).astype(np.uint8)
    return {"frames": frames, "actions": numbers, "rewards": (numbers / 2).astype(np.float32)}


def assert_holds(memory, numbers):
    """The memory holds exactly the newest of these transitions."""
    assert memory.counter == len(numbers)
    assert len(memory) == min(len(numbers), memory.capacity)
    first = len(numbers) - len(memory)
    found = memory.gather(torch.arange(first, len(numbers)))
    for name, expected in transitions(numbers[first:]).items():
        assert np.array_equal(found[name].numpy(), expected)
        assert found[name].numpy().dtype == expected.dtype
    for outside in (first - 1, len(numbers)):
        with pytest.raises(IndexError, match="holds transitions"):
            memory.gather(torch.tensor([outside]))


def test_the_newest_are_held_as_they_were_added(tmp_path):
    memory = ReplayMemory(tmp_path / "replay", 10, 0, FIELDS)
    numbers = []
    for count in (1, 3, 0, 7, 10, 2, 9):
        new = range(len(numbers), len(numbers) + count)
        memory.add(**transitions(new))
        numbers += new
        assert_holds(memory, numbers)


def test_tensors_are_added_like_arrays_and_batches_of_stacks_are_gathered(tmp_path):
    memory = ReplayMemory(tmp_path, 10, 0, FIELDS)
    memory.add(**{name: torch.from_numpy(values) for name, values in transitions(range(8)).items()})
    assert_holds(memory, list(range(8)))
    found = memory.gather(torch.tensor([[0, 1, 2], [5, 6, 7]]))
    assert found["frames"].shape == (2, 3, 2, 3)
    assert found["actions"].tolist() == [[0, 1, 2], [5, 6, 7]]
    found["actions"].zero_()
    assert_holds(memory, list(range(8)))  # what is gathered is a copy


def test_samples_are_uniform_and_reproducible(tmp_path):
    memory = ReplayMemory(tmp_path, 50, 10, FIELDS)
    with pytest.raises(RuntimeError, match="nothing to sample"):
        memory.sample_indices(1)
    for first in range(0, 120, 10):
        memory.flush()
        memory.add(**transitions(range(first, first + 10)))
    drawn = memory.sample_indices(50_000, torch.Generator().manual_seed(0))
    counts = drawn.bincount()
    assert counts[:70].sum() == 0
    assert (counts[70:] - 1000).abs().max() < 5 * 1000**0.5
    assert len(counts) == 120
    assert torch.equal(drawn, memory.sample_indices(50_000, torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    assert torch.equal(drawn, memory.sample_indices(50_000))  # PyTorch's own, which checkpoints hold


def test_the_slack_outlasts_what_a_run_puts_up_with():
    assert PROTECTED >= FAILED_SAVES  # the newest checkpoint, though all after it failed
    assert PROTECTED >= KEEP + 1  # the older one, though one between them failed


STEPS = st.lists(
    st.tuples(st.just("add"), st.integers(0, 6))
    | st.tuples(st.sampled_from(["save", "save", "fail", "kill", "kill and damage"]), st.just(0)),
    max_size=40,
)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), STEPS)
def test_what_a_killed_run_finds_is_what_its_checkpoint_counted_on(capacity, interval, steps):
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder), capacity, interval)
        for step, count in steps:
            if step == "add":
                model.add(count)
            elif step == "kill":
                model.kill()
            elif step == "kill and damage":
                model.kill(damage=True)
            else:
                model.checkpoint(written=step == "save")
            assert_holds(model.memory, model.numbers)


class Model:
    """A run whose transitions are a list; each life's differ from those that an earlier one added there."""

    def __init__(self, folder, capacity, interval):
        self.arguments = folder, capacity, interval, FIELDS
        self.memory = ReplayMemory(*self.arguments)
        self.numbers = []
        self.made = self.failed = self.flushed = 0
        self.saved = []  # of the checkpoints kept: state, numbers, most transitions there were since then

    def add(self, count):
        new = list(range(self.made, self.made + count))
        if len(self.numbers) + count - self.flushed > self.memory.interval:
            with pytest.raises(RuntimeError, match=r"more than the .* has room for"):
                self.memory.add(**transitions(new))
            return
        self.memory.add(**transitions(new))
        self.made += count
        self.numbers += new
        self.saved = [(*rest, max(reached, len(self.numbers))) for *rest, reached in self.saved]

    def checkpoint(self, written):
        self.memory.flush()
        self.flushed = len(self.numbers)
        if written:
            state = json.loads(json.dumps(self.memory.state_dict()))
            self.saved = [*self.saved, (state, list(self.numbers), len(self.numbers))][-KEEP:]
        self.failed = 0 if written else self.failed + 1
        if self.failed == FAILED_SAVES:  # the run ends, and is started again
            self.kill()

    def kill(self, damage=False):
        if damage:
            self.saved = self.saved[:-1]
        state, numbers, reached = self.saved[-1] if self.saved else (None, [], 0)
        self.memory = ReplayMemory(*self.arguments)
        self.failed = self.flushed = 0
        self.numbers = list(numbers)
        if state is None:
            return
        oldest = max(0, len(numbers) - self.memory.capacity)
        if oldest + self.memory.slots >= reached:
            self.memory.load_state_dict(state)
        else:
            assert damage  # the newest checkpoint can always be restored
            with pytest.raises(ValueError, match="are not in the files"):
                self.memory.load_state_dict(state)
            self.numbers, self.saved = [], []  # refused; the user starts over
        self.flushed = len(self.numbers)


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
    model = Model(tmp_path, 10, 4)
    for what in ["save"] * 8 + checkpoints:
        model.add(4)
        model.checkpoint(written=what == "save")
    model.add(4)
    model.kill(damage=ending != "kill")
    assert_holds(model.memory, model.numbers)
    assert model.memory.counter == 4 * (8 + checkpoints.index("save") + 1)


def test_the_older_checkpoint_can_be_restored_too(tmp_path, capsys):
    memory = ReplayMemory(tmp_path / "replay", 20, 8, FIELDS)
    for first in range(0, 80, 8):
        memory.add(**transitions(range(first, first + 8)))
        memory.flush()
        newest = save_checkpoint(tmp_path / "checkpoint", first + 8, {"memory": memory.state_dict()})
    memory.add(**transitions(range(80, 88)))
    (newest / "state.json").unlink()
    again = ReplayMemory(tmp_path / "replay", 20, 8, FIELDS)
    again.load_state_dict(load_checkpoint(tmp_path / "checkpoint")["memory"])
    assert "it is set aside" in capsys.readouterr().err
    assert_holds(again, list(range(72)))


def test_too_many_transitions_between_checkpoints_are_refused_before_any_is_written(tmp_path):
    memory = ReplayMemory(tmp_path, 10, 4, FIELDS)
    memory.add(**transitions(range(4)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="5 transitions since the last checkpoint are more than the 4 "):
        memory.add(**transitions([4]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    memory.flush()
    memory.add(**transitions([4]))


WRITER = """
import json, sys
import numpy as np
from pathlib import Path
from neoteny.runners.replay import ReplayMemory

assert "torch" not in sys.modules  # it would take longer to import than all else takes here
folder, life, state = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
fields = {"frames": ((84, 84), np.uint8), "lives": ((), np.int64)}
slack = ReplayMemory(folder / "slack", 300, 120, fields)
none = ReplayMemory(folder / f"none{life}", 300, 0, fields)
if state:
    slack.load_state_dict(state)
for update in range(1, 100_000):
    for memory in (slack, none):
        numbers = np.arange(memory.counter, memory.counter + 4)
        frames = np.broadcast_to((numbers + life)[:, None, None], (4, 84, 84)).astype(np.uint8)
        memory.add(frames=frames, lives=np.full(4, life))
    if update % 30 == 0:
        for memory in (slack, none):
            memory.flush()
        print(json.dumps([slack.state_dict(), none.state_dict()]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_with_slack_a_killed_process_loses_nothing_and_without_the_loss_is_found(tmp_path):
    fields = {"frames": ((84, 84), np.uint8), "lives": ((), np.int64)}
    moments = random.Random(0)
    state, lives, lost = None, [], []
    for life in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(life), json.dumps(state)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(moments.randint(4, 6))]
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=moments.uniform(0.0, 0.05))
        writer.kill()
        lines += writer.communicate()[0].splitlines(keepends=True)
        state, without = json.loads([line for line in lines if line.endswith("\n")][-1])

        memory = ReplayMemory(tmp_path / "slack", 300, 120, fields)
        memory.load_state_dict(state)
        lives += [life] * (memory.counter - len(lives))
        numbers = torch.arange(memory.counter - len(memory), memory.counter)
        found = memory.gather(numbers)
        assert found["lives"].tolist() == lives[-300:]
        expected = (numbers + found["lives"]).to(torch.uint8)[:, None, None]
        assert torch.equal(found["frames"], expected.expand(-1, 84, 84))

        memory = ReplayMemory(tmp_path / f"none{life}", 300, 0, fields)
        numbers = np.arange(without["counter"] - 300, without["counter"])
        frames = np.load(tmp_path / f"none{life}" / "frames.npy", mmap_mode="r")[numbers % 300]
        lost.append((frames != (numbers + life).astype(np.uint8)[:, None, None]).any((1, 2)).sum())
        if lost[-1]:
            with pytest.raises(ValueError, match=r"of the checkpoint's 300 transitions are not in the files"):
                memory.load_state_dict(without)
    assert sum(lost) > 0  # one of them may have been killed as soon as it had told of its checkpoint


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 4, FIELDS),
        (10, -1, FIELDS),
        (10, 4, {}),
        (10, 4, {"../frames": ((), np.uint8)}),
        (10, 4, {"_index": ((), np.uint8)}),
        (10, 4, {"frames": ((), object)}),
        (10, 4, {"frames": ((), ">f4")}),
        (10, 4, {"frames": ((), "U3")}),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(arguments, tmp_path):
    with pytest.raises(ValueError, match=r"no memory has|cannot be"):
        ReplayMemory(tmp_path / "replay", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"frames": np.zeros((4, 2, 2), np.uint8)},
        {"frames": np.zeros((3, 2, 3), np.uint8)},
        {"frames": np.zeros((4, 2, 3), np.float32)},
        {"actions": np.array(0)},
        {"actions": None},
        {"dones": np.zeros(4)},
    ],
)
def test_what_is_no_batch_of_transitions_is_refused(changed, tmp_path):
    memory = ReplayMemory(tmp_path, 10, 0, FIELDS)
    batch = {name: values for name, values in (transitions(range(4)) | changed).items() if values is not None}
    with pytest.raises(ValueError, match=r"must be|a transition has frames, actions, rewards, not"):
        memory.add(**batch)
    with pytest.raises(ValueError, match="do not fit"):
        memory.add(**transitions(range(11)))
    assert_holds(memory, [])


@pytest.mark.parametrize("layout", [(11, 4, FIELDS), (10, 5, FIELDS), (13, 3, FIELDS)])
def test_another_layout_is_refused_and_the_files_stay(layout, tmp_path):
    memory = ReplayMemory(tmp_path, 10, 4, FIELDS)
    memory.add(**transitions(range(4)))
    state = memory.state_dict()
    with pytest.raises(ValueError, match=r"frames.npy holds uint8 \(22, 2, 3\)|its layout was"):
        ReplayMemory(tmp_path, *layout).load_state_dict(state)
    again = ReplayMemory(tmp_path, 10, 4, FIELDS)
    again.load_state_dict(state)
    assert_holds(again, list(range(4)))


def test_other_fields_are_another_layout(tmp_path):
    state = ReplayMemory(tmp_path, 10, 4, FIELDS).state_dict()
    with pytest.raises(ValueError, match=r"actions.npy holds int64 \(22,\), not int32 \(22,\)"):
        ReplayMemory(tmp_path, 10, 4, {**FIELDS, "actions": ((), np.int32)})
    with pytest.raises(ValueError, match=r"dones.npy is missing"):
        ReplayMemory(tmp_path, 10, 4, {**FIELDS, "dones": ((), bool)})
    fewer = ReplayMemory(tmp_path, 10, 4, {"frames": FIELDS["frames"]})
    with pytest.raises(ValueError, match="its layout was"):
        fewer.load_state_dict(state)


def test_files_made_anew_are_not_taken_for_those_of_a_checkpoint(tmp_path):
    memory = ReplayMemory(tmp_path / "replay", 10, 4, FIELDS)
    memory.add(**transitions(range(3)))
    shutil.rmtree(tmp_path / "replay")
    with pytest.raises(ValueError, match="3 of the checkpoint's 3 transitions are not in the files"):
        ReplayMemory(tmp_path / "replay", 10, 4, FIELDS).load_state_dict(memory.state_dict())


@pytest.mark.parametrize("name", [*FIELDS, "_index"])
def test_damaged_files_are_refused_and_left_alone(name, tmp_path):
    ReplayMemory(tmp_path, 10, 4, FIELDS)
    path = tmp_path / f"{name}.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"0", whole[:100], b"", b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.npy is damaged"):
            ReplayMemory(tmp_path, 10, 4, FIELDS)
        assert path.read_bytes() == damaged
    for position in range(128):  # of the header
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|holds"):
            ReplayMemory(tmp_path, 10, 4, FIELDS)


def test_a_file_of_objects_is_never_unpickled(tmp_path):
    ReplayMemory(tmp_path, 10, 4, FIELDS)
    np.save(tmp_path / "actions.npy", np.array([object] * 22), allow_pickle=True)
    with pytest.raises(ValueError, match=r"actions.npy holds object \(22,\), not int64 \(22,\)"):
        ReplayMemory(tmp_path, 10, 4, FIELDS)


def test_what_a_killed_process_had_not_finished_is_made_anew(tmp_path):
    ReplayMemory(tmp_path, 10, 4, FIELDS)
    (tmp_path / "_index.npy").unlink()  # it is made last
    (tmp_path / "frames.npy").write_bytes(b"half")
    (tmp_path / ".tmp_rewards.npy").write_bytes(b"half")
    assert_holds(ReplayMemory(tmp_path, 10, 4, FIELDS), [])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted([*FIELDS, "_index"])


def test_more_than_the_disk_has_is_refused_with_the_figures(tmp_path, monkeypatch):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    capacity = 2 * free // 8
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes and [\d,]+ are free") as error:
        ReplayMemory(tmp_path, capacity, 0, {"actions": ((), np.int64)})
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_the_room_is_taken_at_the_start(tmp_path, monkeypatch):
    fields = {"frames": ((84, 84), np.uint8)}
    ReplayMemory(tmp_path / "whole", 100, 0, fields)
    assert (tmp_path / "whole" / "frames.npy").stat().st_blocks * 512 >= 100 * 84 * 84

    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        ReplayMemory(tmp_path / "full", 100, 0, fields)
    assert list((tmp_path / "full").iterdir()) == []
