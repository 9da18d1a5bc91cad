"""The audit: tasks are compared by values before training; at a switch a run is warned and goes on."""

import copy
import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest

from neoteny.agents import ppo
from neoteny.configs.cli import launch
from neoteny.configs.flags import with_flags
from neoteny.envs import Schedule, Stream, stream
from neoteny.envs.audit import Fingerprint, compare, fingerprint
from neoteny.envs.auditor import neighbours
from neoteny.envs.config import ENGINES, StreamConfig
from neoteny.envs.tasks import SpacesError
from tests.events import texts


def pole(gravity=9.8, **options):
    env = gym.make("CartPole-v1", **options)
    env.unwrapped.gravity = gravity
    return env


def paid(function):
    """CartPole whose reward of 1.0 is replaced."""
    return gym.wrappers.TransformReward(gym.make("CartPole-v1"), function)


class Late(gym.Wrapper):
    """Another reward from a step of each episode on."""

    def __init__(self, env, after, reward):
        super().__init__(env)
        self.after, self.worth = after, reward

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        return observation, self.worth if self.steps > self.after else reward, *rest


class NothingChanges:
    """Tasks 0 and 1 are the same to an agent, though a bit, a type or a number may differ."""

    @staticmethod
    def ignores_k(k, seed):
        return pole()

    @staticmethod
    def identity_permutation(k, seed):
        order = [0, 1, 2, 3]
        env = pole()
        return gym.wrappers.TransformObservation(env, lambda seen: seen[order], env.observation_space)

    @staticmethod
    def physics_of_a_copy(k, seed):
        env = pole()
        copy.copy(env.unwrapped).gravity = 9.8 * (k + 1)
        return env

    @staticmethod
    def a_parameter_that_nobody_reads(k, seed):
        env = pole()
        env.unwrapped.number_of_the_task = k
        return env

    @staticmethod
    def negative_zero(k, seed):
        return paid(lambda reward: (-1.0) ** k * 0.0)

    @staticmethod
    def negative_zeros_in_observations(k, seed):
        env = pole()
        return gym.wrappers.TransformObservation(
            env, lambda seen: (-1) ** k * (seen * 0), env.observation_space
        )

    @staticmethod
    def whole_number(k, seed):
        return paid((int, float)[k])

    @staticmethod
    def truth_value(k, seed):
        return paid((bool, float)[k])

    @staticmethod
    def shorter_float(k, seed):
        return paid((np.float32, np.float64)[k])

    @staticmethod
    def array(k, seed):
        return paid((np.array, float)[k])

    @staticmethod
    def rarely_met(k, seed):
        return Late(pole(), 400, (1.0, 5.0)[k])


def two_tasks(task, period=8, **options):
    return Stream(task, Schedule(period=period, tasks=2), ENGINES, num_envs=2, **options)


def advance(stream, steps):
    return [stream.step(np.zeros(2, dtype=int))[-1] for _ in range(steps)]


NOTHING = [name for name in vars(NothingChanges) if not name.startswith("_")]


@pytest.mark.parametrize("name", NOTHING)
def test_tasks_that_are_the_same_to_an_agent_are_refused_before_training(name):
    audited = two_tasks(getattr(NothingChanges, name))
    with pytest.raises(
        ValueError, match=r"changed nothing: task 1 behaves exactly as task 0.*--stream\.audit warn"
    ):
        audited.reset()


@pytest.mark.parametrize("name", ["ignores_k", "rarely_met"])
def test_warn_lets_them_through_and_off_does_not_look(name):
    task = getattr(NothingChanges, name)
    warned = two_tasks(task, audit="warn")
    warned.reset()
    assert "changed nothing: task 1 behaves exactly as task 0" in str(warned)
    infos = advance(warned, 6)
    assert ["audit" in info for info in infos] == [False] * 4 + [True] + [False]
    assert "task 1 behaves exactly as task 0" in infos[4]["audit"]
    unaudited = two_tasks(task, audit="off")
    unaudited.reset()
    assert not any({"audit", "fingerprint"} & info.keys() for info in advance(unaudited, 6))
    with pytest.raises(ValueError, match="must be one of on, warn, off, not False"):
        two_tasks(task, audit=False)


def test_a_difference_after_hundreds_of_steps_is_found_and_not_doubted_at_the_switch():
    def rare(k, seed):  # longer than the rollout at a switch
        return Late(gym.make("MountainCar-v0", max_episode_steps=400), 300, (1.0, 5.0)[k])

    late = two_tasks(rare)
    late.reset()
    infos = advance(late, 6)
    assert infos[0]["fingerprint"].same_as(infos[4]["fingerprint"])
    assert not any("audit" in info for info in infos)


def test_a_goal_that_single_random_actions_do_not_reach_is_found_by_repeated_ones():
    class Paid(gym.Wrapper):
        def __init__(self, env, worth):
            super().__init__(env)
            self.worth = worth

        def step(self, action):
            observation, reward, terminated, *rest = self.env.step(action)
            return observation, self.worth if terminated else reward, terminated, *rest

    made = [Paid(gym.make("MountainCar-v0", max_episode_steps=1000), worth) for worth in (100.0, -100.0)]
    found = compare(*made, steps=16_384)
    assert found.difference == "reward"


@pytest.mark.parametrize(
    ("second", "difference", "steps"),
    [
        (lambda: pole(), "", 300),
        (lambda: pole(gravity=9.9), "observation", 1),
        (lambda: paid(lambda reward: 2 * reward), "reward", 1),
        (lambda: Late(pole(), 7, np.nan), "reward", 8),
        (lambda: pole(max_episode_steps=9), "end of an episode", 9),
    ],
)
def test_the_first_difference_is_named(second, difference, steps):
    assert compare(pole(), second(), steps=300) == (difference, steps)


def test_numbers_that_are_not_are_equal():
    assert not compare(Late(pole(), 3, np.nan), Late(pole(), 3, np.nan), 300).difference


def test_without_enough_time_tasks_are_not_called_the_same():
    found = compare(pole(), pole(), steps=10**9, seconds=0.05)
    assert (found.difference, 0 < found.steps < 10**9) == ("", True)


@pytest.mark.parametrize(
    ("schedule", "pairs"),
    [
        (Schedule(), []),
        (Schedule(8), [(0, 1)]),
        (Schedule(8, 1), []),
        (Schedule(8, (2, 2)), []),
        (Schedule(8, 3), [(0, 1), (1, 2), (2, 0)]),
        (Schedule(8, (3, 1, 1)), [(3, 1), (1, 3)]),
        (Schedule(8, 3, "random"), [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)]),
    ],
)
def test_tasks_that_follow_one_another_are_compared(schedule, pairs):
    assert neighbours(schedule) == pairs


@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("audit", ["on", "warn", "off"])
def test_tasks_with_other_spaces_are_refused_before_training_whatever_the_audit(tasks, audit):
    def mixed(k, seed):
        return gym.make(("CartPole-v1", "Acrobot-v1", "CartPole-v1")[k])

    with pytest.raises(SpacesError, match=r"share their spaces.*observation_space of task 1") as error:
        Stream(mixed, Schedule(8, tasks), ENGINES, num_envs=2, audit=audit).reset()
    assert "\n" not in str(error.value)


def test_recurring_tasks_are_all_compared_not_only_the_first_two():
    same = Stream(lambda k, seed: pole(9.8 + max(k, 2)), Schedule(8, (0, 5, 6, 3)), ENGINES, num_envs=2)
    same.reset()
    same = Stream(lambda k, seed: pole(9.8 + min(k, 2)), Schedule(8, 4), ENGINES, num_envs=2)
    with pytest.raises(ValueError, match="task 3 behaves exactly as task 2"):
        same.reset()


def test_a_task_that_does_not_recur_as_it_was_is_told_at_its_next_visit():
    rng = np.random.default_rng(0)
    random = two_tasks(lambda k, seed: pole(rng.uniform(5, 50)))
    random.reset()
    infos = advance(random, 10)
    assert "task 0 has changed since its last visit" in infos[8]["audit"]


def test_later_tasks_that_change_nothing_are_told_and_a_checkpoint_keeps_it():
    def task(k, seed):
        return pole(9.8 + min(k, 2))

    one, two = (Stream(task, Schedule(8), ENGINES, num_envs=2) for _ in range(2))
    one.reset()
    advance(one, 12)  # the switch to task 3 has just been made
    two.load_state_dict(one.state_dict())
    told = [advance(each, 1)[0]["audit"] for each in (one, two)]
    assert told[0] == told[1]
    assert "task 3 behaves exactly as task 2" in told[0]


def test_an_audit_that_fails_at_a_switch_does_not_end_the_run():
    class Broken(gym.Wrapper):
        def step(self, action):
            if action == 1:
                raise RuntimeError("a joint broke")
            return self.env.step(action)

    one = Stream(lambda k, seed: (Broken if k == 2 else gym.Wrapper)(pole(9.8 + k)), Schedule(8), ENGINES, 2)
    one.reset()
    infos = advance(one, 9)  # with action 0 alone
    assert "task 2 could not be audited: RuntimeError: a joint broke" in infos[8]["audit"]


def test_a_wider_box_of_a_later_task_is_known_before_its_visit():
    def task(k, seed):
        env = pole(9.8 + k)
        return env if k < 3 else gym.wrappers.FrameStackObservation(env, 2)

    one = Stream(task, Schedule(8), ENGINES, num_envs=2)
    one.reset()
    advance(one, 10)
    assert one.misfit_before(23) == ""
    assert "observation_space of task 3" in one.misfit_before(24)


def test_fingerprints_of_bytes_are_replaced_by_those_of_values():
    old = Fingerprint("spaces", {}, 64 * "0")
    assert not old.comparable()
    assert fingerprint(pole()).comparable()
    one, two = (StreamConfig("cartpole-gravity", period=8).make(2) for _ in range(2))
    one.reset()
    advance(one, 2)
    state = one.state_dict()
    state["fingerprints"]["0"]["rollout"] = 64 * "0"
    two.load_state_dict(state)
    assert "audit" not in advance(two, 3)[2]


def stale(k, seed):
    return pole(9.8 + min(k, 2))


def grows(k, seed):
    return pole(9.8 + k) if k < 2 else gym.wrappers.FrameStackObservation(pole(), 2)


def same(k, seed):
    return pole()


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train on one of the streams from a command line; returns the exit code."""
    for name, task, tasks in (("Stale-v0", stale, None), ("Grows-v0", grows, None), ("Same-v0", same, 2)):
        stream(name, period=96, tasks=tasks)(task)

    def trained(id, flags=""):
        words = "--num-envs 2 --num-steps 16 --epochs 1 --minibatches 2 --network.hidden 8 --probes.every 0"
        words += f" --total-steps 512 --checkpoint-every 64 --runs-dir {tmp_path} --stream.id {id}"
        monkeypatch.setattr("sys.argv", ["ppo.py", *with_flags(words.split(), flags.split())])
        try:
            launch(ppo.main, ppo.Args, {})
        except SystemExit as exit:
            return exit.code
        return 0

    yield trained
    for name in ("Stale-v0", "Grows-v0", "Same-v0"):
        del gym.registry[name]


def test_a_run_ends_with_its_own_code_and_a_checkpoint_before_a_task_of_other_spaces(train, tmp_path, capsys):
    assert train("Grows-v0", "--checkpoint-every 0") == 65
    errors = capsys.readouterr().err
    assert "observation_space of task 2" in errors
    assert "the checkpoint at step 160 is intact" in errors  # the next update ends at the switch, 192
    assert [path.name for path in tmp_path.rglob("step_*")] == ["step_000000000160"]
    assert train("Grows-v0") == 65
    assert "observation_space of task 2" in capsys.readouterr().err
    assert train("Grows-v0", "--overwrite --note short --total-steps 160") == 0  # it ends before


def test_a_switch_that_changes_nothing_is_told_once_and_is_on_the_board_each_time(train, tmp_path, capsys):
    assert train("Stale-v0") == 0
    errors = capsys.readouterr().err
    assert errors.count("warning: step 288: the switch changed nothing") == 1
    assert errors.count("the switch changed nothing") == 1
    assert [step for step, _ in texts(tmp_path, "stream/audit")] == [288, 384, 480]


def test_the_audit_may_change_when_a_run_goes_on(train, tmp_path, capsys):
    assert train("Same-v0") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "--stream.audit warn lets it through" in errors
    assert not list(tmp_path.iterdir())
    assert train("Same-v0", "--stream.audit warn") == 0
    assert "task 1 behaves exactly as task 0" in capsys.readouterr().out
    (summary,) = tmp_path.rglob("summary.json")
    summary.unlink()  # as if it had been stopped
    assert train("Same-v0", "--stream.audit off") == 0
    assert ", exactly" in capsys.readouterr().out
    assert json.loads(summary.with_name("args.json").read_text())["stream"]["audit"] == "off"


def test_a_fingerprint_holds_rewards():
    one, same, other = (
        fingerprint(
            gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward, scale=scale: scale * reward)
        )
        for scale in (1.0, 1.0, 2.0)
    )
    assert one.same_as(same)
    assert not one.same_as(other)


def test_a_switch_is_told_in_words():
    old = Fingerprint("two buttons", {"gravity": 9.8, "length": 0.5}, "a" * 40)
    heavier = Fingerprint("two buttons", {"gravity": 19.6, "length": 0.5, "wind": 1}, "b" * 40)
    assert heavier.changes(old) == "gravity 9.8 -> 19.6, wind absent -> 1"
    other = dataclasses.replace(old, rollout="b" * 40)
    assert other.changes(old) == "observations, rewards or ends, by no parameter of the simulator"
    assert old.changes(old) == "nothing that 256 steps show"
    wider = dataclasses.replace(old, spaces="three buttons", rollout="c" * 40)
    assert wider.changes(old) == "spaces two buttons -> three buttons"
