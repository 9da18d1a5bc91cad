"""Streams against a slow reference that steps each sub-environment by itself."""

import dataclasses
import importlib.util
import itertools
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoteny.agents.ppo import Args
from neoteny.configs.cli import cli, override
from neoteny.configs.ppo import PRESETS
from neoteny.envs import Schedule, Stream, StreamConfig, stream, wrappers
from neoteny.envs.atari.engine import AtariEngine
from neoteny.envs.audit import fingerprint
from neoteny.envs.config import ENGINES
from neoteny.envs.grid.engine import GridEngine
from neoteny.envs.normalizer import Normalizer
from neoteny.envs.registry import registered_streams
from neoteny.envs.seeds import episode_seed
from neoteny.envs.single.engine import SingleConfig
from neoteny.envs.single.episodes import EpisodeLog
from tests.seeds import emulator_seeds, layout_seeds

PERIOD, STEPS = 50, 30
LACKING = () if importlib.util.find_spec("Box2D") else ("lunarlander-",)


def distinct_streams():
    """Streams that differ in more than the period; those of Atari are in tests/envs/atari, but for one."""
    found = {}
    for id in registered_streams():
        kwargs = gym.spec(id).kwargs
        found.setdefault((kwargs["task"], kwargs["schedule"].tasks, kwargs["schedule"].drift_fraction), id)
    others = ("atari-", "minatar-chain", *LACKING)  # the chain has games that the other streams have
    return [id for id in found.values() if not id.startswith(others)]


def param(id, *flags):
    """A test's parameters: a stream's id and perhaps flags."""
    marks = pytest.mark.slow if id == "atari" else ()
    return pytest.param(
        id, *flags, marks=marks, id="-".join((id, *(name for each in flags for name in each)))
    )


IDS = distinct_streams()
STREAMS = [param(id) for id in IDS]


class Reference:
    """One sub-environment of a stream, by the definition."""

    def __init__(self, stream, index):
        self.stream, self.index, self.episode, self.steps = stream, index, -1, 0
        self.games = {}
        self.enter(stream.schedule.task_at(0))

    def enter(self, task):
        schedule = self.stream.schedule
        self.task, self.visit = task, schedule.visit_at(self.steps)
        self.env = self.games.get(task) or self.stream.make_task(task, self.stream.seed)
        if isinstance(self.stream.engine, AtariEngine):  # whose emulators stay
            self.games[task] = self.env
        self.path = {}
        if self.visit and schedule.drift_fraction:
            old = self.stream.make_task(schedule.task_of(self.visit - 1), self.stream.seed).unwrapped
            new = self.env.unwrapped
            self.path = {
                name: (getattr(old, name), getattr(new, name))
                for name, value in (vars(old) | vars(new)).items()
                if type(value) in (int, float) and hasattr(new, name)
            }
        self.observation = self.reset()

    def move(self):
        """Where the change is gradual, set what is on its way from the old task to the new."""
        schedule = self.stream.schedule
        begun, end = (schedule.start_of(self.visit + i) for i in (0, 1))
        progress = (
            min(1.0, (self.steps - begun) / (schedule.drift_fraction * (end - begun)))
            if schedule.drift_fraction
            else 1.0
        )
        for name, (old, new) in self.path.items():
            if old != new:
                setattr(self.env.unwrapped, name, new if progress == 1 else old + progress * (new - old))

    def reset(self):
        self.episode += 1
        self.total, self.length = 0.0, 0
        self.move()
        seed = episode_seed(self.stream.seed, self.task, self.index, self.episode)
        if isinstance(self.stream.engine, GridEngine):  # which is where this episode begins too
            seed = layout_seeds(self.stream.engine)[self.index]
        if isinstance(self.stream.engine, AtariEngine):
            seed = emulator_seeds(self.stream.engine)[self.index]
        return self.env.reset(seed=seed)[0]

    def step(self, action):
        """Observation, reward, terminated, truncated, final observation, (return, length) or None."""
        self.move()
        self.steps += self.stream.num_envs
        final, reward, terminated, truncated, _ = self.env.step(action)
        self.total, self.length = self.total + reward, self.length + 1
        episode = (self.total, self.length) if terminated or truncated else None
        observation, next_task = final, self.stream.schedule.task_at(self.steps)
        if next_task != self.task:
            truncated = truncated or not terminated
            self.enter(next_task)
            observation = self.observation
        elif terminated or truncated:
            observation = self.reset()
        return observation, reward, terminated, truncated, final, episode


def configured(id, **flags):
    """The config of a stream with many switches; of Atari's, two games and no audit, which takes long."""
    if id == "atari":
        flags = {"games": ("Breakout", "Pong"), "audit": "off"} | flags
    return StreamConfig(id, PERIOD, **flags)


def rollout(id, num_envs, seed, steps=STEPS, device=None):
    """Everything a stream returns under fixed random actions, a list over steps."""
    stream = configured(id, audit="off").make(num_envs, seed, device)
    actions = np.random.default_rng(0).integers(stream.single_action_space.n, size=(steps, num_envs))
    out = [(stream.reset()[0], None, None, None, {"task": stream.task})]
    out += [stream.step(action) for action in actions]
    return stream, actions, out


SCHEDULE_FLAGS = [
    {"jitter": 0.6},
    {"tasks": (2, 0), "order": "random"},
    {"tasks": (0, 1), "task_id": "onehot"},
]
# Every stream as it is, and of each engine one with each of the flags.
WITH_FLAGS = [
    *(param(id, {}) for id in IDS),
    *(param(id, flags) for id in ("cartpole-gravity", "grid-layouts") for flags in SCHEDULE_FLAGS),
]


@pytest.mark.parametrize(("id", "flags"), [case for case in WITH_FLAGS if "task_id" not in case.values[1]])
def test_stream_equals_the_reference(id, flags):
    assert_equals_the_reference(configured(id, **flags), num_envs=3)


@pytest.mark.parametrize("id", ["cartpole-gravity", "grid-goals", "grid-layouts"])
def test_stream_of_one_environment_equals_the_reference(id):
    assert_equals_the_reference(configured(id), num_envs=1)


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in IDS if id.startswith("grid-")])
def test_stream_by_the_package_equals_the_reference(id):
    assert_equals_the_reference(configured(id, engine="single"), num_envs=2)


def assert_equals_the_reference(config, num_envs):
    stream = config.make(num_envs, seed=4)
    steps = 3 * -(-PERIOD // num_envs) + 5
    actions = np.random.default_rng(0).integers(stream.single_action_space.n, size=(steps, num_envs))
    first, _ = stream.reset()
    references = [Reference(stream, i) for i in range(num_envs)]
    tasks = [stream.schedule.task_at(t * num_envs) for t in range(steps + 1)]
    assert len(set(tasks)) > 1
    for i, reference in enumerate(references):
        np.testing.assert_array_equal(first[i], reference.observation)
    for t in range(steps):
        observation, reward, terminated, truncated, info = stream.step(actions[t])
        for i, reference in enumerate(references):
            task = reference.task
            obs, rew, term, trunc, final, episode = reference.step(actions[t, i])
            np.testing.assert_array_equal(observation[i], obs)
            assert (reward[i], terminated[i], truncated[i], info["task"]) == (rew, term, trunc, task)
            if term or trunc:
                assert info["_final_obs"][i]
                np.testing.assert_array_equal(info["final_obs"][i], final)
            if episode:
                assert info["_episode_return"][i]
                assert (info["episode_return"][i], info["episode_length"][i]) == pytest.approx(episode)
                assert str(info["episode_length"].dtype).removeprefix("torch.") == "int64"
            elif "_episode_return" in info:
                assert not info["_episode_return"][i]
        assert info["task"] == tasks[t]
        if tasks[t] != tasks[t + 1]:
            assert (terminated | truncated).all()


@pytest.mark.parametrize("id", [id for id in IDS if id != "atari"])  # whose seeds are tested with its threads
def test_same_seed_same_stream_other_seed_other_stream(id):
    a, b, c = (rollout(id, 2, seed)[2] for seed in (1, 1, 2))
    for step_a, step_b in zip(a, b):
        np.testing.assert_array_equal(step_a[0], step_b[0])
    if id.startswith("grid-layouts"):  # in the first task, the empty room, every seed is the same
        a, c = a[PERIOD // 2 :], c[PERIOD // 2 :]
    assert any((step_a[0] != step_c[0]).any() for step_a, step_c in zip(a, c))


@pytest.mark.parametrize("id", STREAMS)
def test_spaces_are_equal_in_every_task(id):
    stream = StreamConfig(id).make(1)
    spaces = {
        (str(env.observation_space), str(env.action_space))
        for env in (stream.make_task(k, 0) for k in range(getattr(stream.schedule, "tasks", None) or 6))
    }
    assert len(spaces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("id", STREAMS)
def test_tensors_hold_what_the_arrays_hold(id):
    arrays, tensors = rollout(id, 2, seed=1)[2], rollout(id, 2, seed=1, device="cpu")[2]
    for (obs, reward, *_), (t_obs, t_reward, *_) in zip(arrays, tensors):
        assert t_obs.dtype == torch.as_tensor(obs).dtype
        np.testing.assert_array_equal(obs, t_obs.numpy())
        if reward is not None:
            assert t_reward.dtype == torch.float32
            np.testing.assert_array_equal(reward.astype(np.float32), t_reward.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_stream_lives_on_the_gpu():
    observation, reward, terminated, *_ = rollout("grid-layouts", 2, seed=1, device="cuda")[2][-1]
    assert observation.is_cuda
    assert reward.is_cuda
    assert terminated.is_cuda


def test_reset_starts_the_stream_over():
    stream, actions, first = rollout("cartpole-rotations", 3, seed=1)
    assert stream.task > 0
    observation, info = stream.reset()
    np.testing.assert_array_equal(observation, first[0][0])
    assert info == {"task": 0}
    for action, step in zip(actions, first[1:]):
        np.testing.assert_array_equal(stream.step(action)[0], step[0])


SCHEDULES = st.builds(
    Schedule,
    period=st.integers(1, 60),
    tasks=st.integers(1, 7) | st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(tuple),
    order=st.sampled_from(["cycle", "random"]),
    jitter=st.sampled_from([0.0, 0.3, 0.9]),
    drift_fraction=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 5),
)


@given(SCHEDULES)
def test_schedules_agree_with_stepping_and_visit_every_task_once_a_cycle(schedule):
    length = len(schedule.cycle)
    visits = 3 * length
    starts = [schedule.start_of(visit) for visit in range(visits + 1)]
    assert starts[0] == 0
    assert all(abs(start - i * schedule.period) <= schedule.period / 2 for i, start in enumerate(starts))
    tasks = [schedule.task_of(visit) for visit in range(visits)]
    for cycle in zip(*[iter(tasks)] * length):
        assert sorted(cycle) == sorted(schedule.cycle)
    if schedule.order == "cycle":
        assert tuple(tasks) == 3 * schedule.cycle
    for visit, (start, end) in enumerate(itertools.pairwise(starts)):
        assert start <= end
        progress = [schedule.progress_at(step) for step in range(start, end)]
        assert progress == sorted(progress)
        assert all(0 <= p <= 1 for p in progress)
        if visit and schedule.drift_fraction and progress and tasks[visit] != tasks[visit - 1]:
            assert progress[0] == 0
        else:
            assert set(progress) <= {1.0}
        for step in range(start, end):
            assert (schedule.visit_at(step), schedule.task_at(step)) == (visit, tasks[visit])


@given(SCHEDULES, st.lists(st.integers(1, 8), min_size=2, max_size=3, unique=True))
def test_the_task_at_a_step_does_not_depend_on_the_number_of_environments(schedule, nums):
    common = int(np.lcm.reduce(nums))
    by_stepping = []
    for num_envs in nums:
        steps, seen = 0, {}
        while steps < 200:
            seen[steps] = schedule.task_at(steps)
            steps += num_envs
        by_stepping.append([seen[step] for step in range(0, 200, common)])
    assert all(tasks == by_stepping[0] for tasks in by_stepping)


def test_random_orders_and_jitter_depend_on_the_seed_and_vary():
    orders = {
        tuple(Schedule(10, 5, "random", seed=seed).task_at(10 * (5 * cycle + i)) for i in range(5))
        for seed in range(3)
        for cycle in range(3)
    }
    assert len(orders) > 6
    starts = [Schedule(1000, jitter=0.5, seed=1).start_of(visit) - 1000 * visit for visit in range(1, 200)]
    assert -250 <= min(starts) < -200
    assert 200 < max(starts) <= 250
    assert abs(np.mean(starts)) < 40


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (Schedule(), "one task for ever"),
        (Schedule(20_000), "ever new tasks, each for 20,000 steps"),
        (
            Schedule(50, 3, "random", 0.5),
            "3 tasks in random order, each for 50 steps, give or take 25 % at each end",
        ),
        (
            Schedule(50, (4, 1), drift_fraction=0.5),
            "tasks 4, 1 in cycles, each for 50 steps, the change gradual over the first 50 %",
        ),
    ],
)
def test_a_schedule_is_one_line(schedule, line):
    assert str(schedule) == line


@pytest.mark.parametrize(
    "bad",
    [
        {"period": 0},
        {"period": 5, "tasks": 0},
        {"period": 5, "jitter": 1.0},
        {"period": 5, "order": "random"},
        {"period": 5, "tasks": ()},
        {"period": 5, "tasks": (0, -1)},
        {"period": 5, "drift_fraction": 1.5},
    ],
)
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=r"at least|never recur|from 0"):
        Schedule(**bad)


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_a_stream_follows_jitter_and_random_order(num_envs):
    config = StreamConfig("grid-layouts", period=40, order="random", jitter=0.6)
    stream = config.make(num_envs, seed=2)
    stream.reset()
    tasks = [stream.task]
    for step in range(0, 400, num_envs):
        before = stream.schedule.task_at(step)
        *_, truncated, info = stream.step(np.zeros(num_envs, dtype=int))
        assert info["task"] == before
        assert (stream.task != before) == (stream.schedule.task_at(step + num_envs) != before)
        if stream.task != before:
            assert truncated.all()
            tasks.append(stream.task)
    assert set(tasks) == set(range(5))


def test_an_ordinary_environment_is_a_stream_that_never_switches():
    stream = StreamConfig("CartPole-v1").make(2, seed=0)
    assert isinstance(stream, Stream)
    assert stream.schedule == Schedule()
    with pytest.raises(ValueError, match="never switches"):
        StreamConfig("CartPole-v1", period=10).make(2)


@pytest.mark.parametrize("id", ["grid-layout", "no-such-module:Stream-v0", "CartPole-v99"])
def test_unknown_streams_are_refused_in_one_sentence(id):
    with pytest.raises(ValueError, match="there is no stream") as error:
        StreamConfig(id).make(2)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("id", STREAMS)
def test_fingerprints_tell_tasks_apart_and_are_reproducible(id):
    stream = StreamConfig(id).make(1, seed=5)
    tasks = range(getattr(stream.schedule, "tasks", None) or 5)
    prints = [[fingerprint(stream.make_task(k, 5)) for k in tasks] for _ in range(2)]
    assert prints[0] == prints[1]
    assert len({task.rollout for task in prints[0]}) == len(tasks)


@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_the_audit_does_not_disturb_the_stream(id):
    with_audit, without = (StreamConfig(id, PERIOD, audit=audit).make(2, seed=1) for audit in ("on", "off"))
    np.testing.assert_array_equal(with_audit.reset()[0], without.reset()[0])
    for _ in range(STEPS):
        for a, b in zip(with_audit.step(np.ones(2, dtype=int))[:4], without.step(np.ones(2, dtype=int))[:4]):
            np.testing.assert_array_equal(a, b)


def test_memory_does_not_grow_with_switches():
    stream = StreamConfig("cartpole-gravity", period=2).make(2, seed=0)
    stream.reset()
    for _ in range(50):
        stream.step(np.zeros(2, dtype=int))
    assert stream.task == 50
    assert len(stream.fingerprints) == 1


def test_reset_with_another_seed_is_another_stream():
    stream = StreamConfig("cartpole-rotations", PERIOD).make(2, seed=1)
    other = StreamConfig("cartpole-rotations", PERIOD).make(2, seed=2)
    stream.reset()
    np.testing.assert_array_equal(stream.reset(seed=2)[0], other.reset()[0])
    for _ in range(STEPS):
        action = np.ones(2, dtype=int)
        np.testing.assert_array_equal(stream.step(action)[0], other.step(action)[0])


def advance(stream, steps, seed=0):
    """What the stream returns under random actions, a list over steps."""
    rng = np.random.default_rng(seed)
    return [
        stream.step(rng.integers(stream.single_action_space.n, size=stream.num_envs)) for _ in range(steps)
    ]


def assert_same_steps(one, two):
    for (*arrays, info), (*others, other_info) in zip(one, two, strict=True):
        for a, b in zip(arrays, others):
            np.testing.assert_array_equal(a, b)
        assert info.keys() == other_info.keys()
        for key in ("final_obs", "episode_return", "episode_length", "task"):
            if key in info:
                np.testing.assert_array_equal(info[key], other_info[key])


# That of Atari is in tests/envs/atari: emulators take long to start.
@pytest.mark.parametrize(("id", "flags"), [case for case in WITH_FLAGS if case.values[0] != "atari"])
def test_a_restored_stream_goes_on_as_if_never_stopped(id, flags):
    config, seed = configured(id, **flags or {"audit": "off"}), 4
    stream, restored = config.make(3, seed), config.make(3, seed + 7)
    stream.reset()
    for steps in (1, 16, 10):
        last = advance(stream, steps, seed=steps)[-1][0]
        restored.load_state_dict(stream.state_dict())
        np.testing.assert_array_equal(restored.observation, last)
        assert (restored.steps, restored.task, restored.seed) == (stream.steps, stream.task, seed)
        assert_same_steps(advance(stream, 20), advance(restored, 20))


@pytest.mark.parametrize("replay", [True, False])
def test_a_checkpoint_has_the_actions_of_running_episodes_but_without_replay(replay, capsys, monkeypatch):
    monkeypatch.setattr("neoteny.envs.single.engine.LONG", 30)
    config = StreamConfig("MountainCar-v0", engine="single", single=SingleConfig(replay=replay))
    lived = config.make(2)  # whose episodes have 200 steps
    lived.reset()
    for steps in (20, 40):
        advance(lived, 20)
        episodes = lived.engine.state_dict()["running"]
        assert [len(episode["actions"]) for episode in episodes] == [steps * replay] * 2
    assert ("an episode has 40 steps so far: each checkpoint holds" in capsys.readouterr().err) == replay


def test_a_resume_replays_the_steps_of_running_episodes(monkeypatch):
    config = StreamConfig("MountainCar-v0", engine="single")
    lived, resumed = config.make(2), config.make(2)
    lived.reset()
    advance(lived, 40)
    kind, made = type(gym.make("MountainCar-v0").unwrapped), []
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self, action: (made.append(action), step(self, action))[1])
    resumed.load_state_dict(lived.state_dict())
    assert len(made) == 2 * 40
    assert resumed.exact


@pytest.mark.parametrize(
    ("replay", "reason"),
    [
        (True, "the replay of task 0 gave other observations than before"),
        (False, "--stream.single.no-replay"),
    ],
)
def test_what_replay_cannot_restore_goes_on_with_new_episodes(replay, reason):
    @stream("Forgetful-v0", period=100)
    def stateless(k, seed):
        env = gym.make("CartPole-v1")
        env.unwrapped.gravity = next(gravities)
        return env

    gravities = itertools.count(10.0)
    config = StreamConfig("Forgetful-v0", audit="off")
    one = config.make(2)
    one.reset()
    advance(one, 5)
    state = one.state_dict()
    two = dataclasses.replace(config, single=SingleConfig(replay=replay)).make(2)
    two.reset()
    assert two.exact
    two.load_state_dict(state)
    first = two.observation
    assert not two.exact
    assert any(reason in message for message in two.inexact)
    assert (two.steps, two.task) == (one.steps, one.task)
    np.testing.assert_array_equal(two.engine.episodes, state["engine"]["episodes"] + 1)
    assert not two.returns.any()
    assert not two.lengths.any()
    env = gym.make("CartPole-v1")
    for i in range(2):
        seed = episode_seed(0, 0, i, int(two.engine.episodes[i]))
        np.testing.assert_array_equal(first[i], env.reset(seed=seed)[0])
    advance(two, 60)
    assert two.task == 1
    assert two.reset()[0].shape == (2, 4)
    assert two.exact
    del gym.registry["Forgetful-v0"]


def test_what_episodes_share_is_restored():
    def walk(k, seed):
        return wrappers.drift(gym.make("CartPole-v1"), {"gravity": wrappers.RandomWalk(0.5)}, seed=seed)

    one, two = (Stream(walk, Schedule(), ENGINES, num_envs=2, seed=3) for _ in range(2))
    one.reset()
    advance(one, 100)
    two.load_state_dict(one.state_dict())
    gravities = [env.env.unwrapped.gravity for env in two.engine.envs.envs]
    assert gravities == [env.env.unwrapped.gravity for env in one.engine.envs.envs]
    assert gravities[0] != 9.8
    assert_same_steps(advance(one, 40), advance(two, 40))


class Impulsive(gym.ActionWrapper):
    """Changes the action it is given in its place."""

    def action(self, action):
        action *= 0.5
        return action


def pendulum(k, seed):
    env = wrappers.drift(gym.make("Pendulum-v1", max_episode_steps=20), {"g": wrappers.RandomWalk(0.5)}, 1)
    return Impulsive(env)


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str, np.ndarray, torch.Tensor)


@pytest.mark.parametrize("steps", [0, 19, 20, 57])
def test_the_state_is_plain_and_restores_continuous_actions(steps):
    one, two = (Stream(pendulum, Schedule(), ENGINES, 2, seed=1, normalizer="keep") for _ in range(2))
    one.reset()
    actions = np.random.default_rng(0).uniform(-2, 2, (100, 2, 1))  # float64, where the space has float32
    before = actions.copy()
    for action in actions[:steps]:
        one.step(action)
    np.testing.assert_array_equal(actions, before)
    state = one.state_dict()
    assert is_plain(state)
    for episode in state["engine"]["running"]:
        assert episode["actions"].shape == (steps % 20, 1)
        assert episode["actions"].dtype == np.float32
        assert episode["lifelong"] == [{"step": steps // 20 * 20, "g": pytest.approx(10, abs=30)}]
    two.load_state_dict(state)
    np.testing.assert_array_equal(two.observation, one.observation)
    assert_same_steps(map(one.step, actions[steps:]), map(two.step, actions[steps:]))


@given(st.lists(st.sets(st.integers(0, 2)), max_size=400), st.booleans())
def test_the_log_holds_the_actions_of_each_running_episode(ended, reload):
    log, expected = EpisodeLog(gym.spaces.MultiDiscrete([9] * 3)), [[] for _ in range(3)]
    for env in range(3):
        log.begin(env, 0, 7, [])
    for step, envs in enumerate(ended):
        log.append(np.arange(3) + step)
        for env in range(3):
            expected[env].append(env + step)
        for env in envs:
            log.begin(env, step, step, [step])
            expected[env].clear()
        if reload and step % 90 == 89:
            log.load(log.running())
    for env, episode in enumerate(log.running()):
        assert episode.actions.tolist() == expected[env]
        assert episode.actions.dtype == np.int64
    longest = max(map(len, expected))
    assert len(log.actions._actions) <= max(64, 4 * longest, longest + 128 if reload else 0)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_what_a_stream_returned_is_the_agents_own(device):
    one, two = (StreamConfig("cartpole-gravity", period=20).make(2, device=device) for _ in range(2))
    returned = [one.reset()[0], two.reset()[0]]
    for one_step, two_step in zip(advance(one, 25), advance(two, 25)):
        returned += [one_step[0]]
        kept = one_step[0].copy() if device is None else one_step[0].clone()
        assert (kept == two_step[0]).all()
    assert all((a != b).any() for a, b in itertools.combinations(returned[2:], 2))
    state = one.state_dict()
    returned[-1][:] = 0
    one.observation[:] = 0
    np.testing.assert_array_equal(one.state_dict()["engine"]["observations"], state["engine"]["observations"])
    assert one.observation.any()


@pytest.mark.parametrize("flags", [{}, {"normalizer": "reset"}, {"tasks": (0, 1), "task_id": "onehot"}])
def test_a_stream_holds_what_it_returned_last(flags):
    stream = StreamConfig("cartpole-gravity", period=20, **flags).make(2, device="cpu")
    assert torch.equal(stream.reset()[0], stream.observation)
    for _ in range(15):
        ((observation, *_),) = advance(stream, 1)
        assert torch.equal(observation, stream.observation)
        assert observation.dtype == stream.observation.dtype


def test_what_is_no_array_is_refused():
    with pytest.raises(ValueError, match="observations must be arrays of numbers, a Box, not Dict"):
        Stream(lambda k, seed: gym.make("MiniGrid-Empty-5x5-v0"), Schedule(), ENGINES, 1)
    cartpole = StreamConfig("CartPole-v1").make(2)
    cartpole.reset()
    with pytest.raises(ValueError, match=r"actions of shape \(3,\)"):
        cartpole.step(np.zeros(3, int))
    with pytest.raises(TypeError, match="float64"):
        cartpole.step(np.zeros(2))


class Gradual:
    """CartPole whose gravity is 10, 20, 30, ..."""

    @staticmethod
    def task(k, seed):
        env = gym.make("CartPole-v1")
        env.unwrapped.gravity = 10.0 * (k + 1)
        return env


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_gradual_change_moves_the_simulator_step_by_step(num_envs):
    one = Stream(Gradual.task, Schedule(period=8, drift_fraction=0.5), ENGINES, num_envs)
    one.reset()
    seen = []
    for _ in range(24 // num_envs):
        one.step(np.zeros(num_envs, dtype=int))
        if one.steps % 8:  # else the environment has just been replaced
            seen += [{env.env.unwrapped.gravity for env in one.engine.envs.envs}]
    path = [10] * 7 + [10, 12.5, 15, 17.5, 20, 20, 20] + [20, 22.5, 25, 27.5, 30, 30, 30]
    by_step = {
        1: path,
        2: [g for i in range(0, 24, 8) for g in ([10] * 3, [10, 15, 20], [20, 25, 30])[i // 8]],
    }
    assert seen == [{gravity} for gravity in by_step[num_envs]]


def test_a_task_that_comes_twice_in_a_row_stays_what_it_has_become():
    schedule = Schedule(period=8, tasks=(0, 1, 1), drift_fraction=1.0)
    one = Stream(Gradual.task, schedule, ENGINES, num_envs=1)
    one.reset()
    gravities = []
    for _ in range(23):
        two = Stream(Gradual.task, schedule, ENGINES, num_envs=1)
        two.load_state_dict(one.state_dict())
        assert_same_steps(advance(one, 1), advance(two, 1))
        gravities.append(one.engine.envs.envs[0].env.unwrapped.gravity)
        assert two.engine.envs.envs[0].env.unwrapped.gravity == gravities[-1]
    assert set(gravities[:8]) == {10.0}
    assert gravities[8:15] == sorted(gravities[8:15])
    assert gravities[14] in (17.5, 18.75)  # a reset sets what the step to come has
    assert set(gravities[16:]) == {20.0}


def test_a_gradual_change_is_audited_at_its_ends():
    rotations = StreamConfig("cartpole-rotations", period=8, drift_fraction=1.0).make(2)
    with pytest.raises(ValueError, match="task 0 cannot turn gradually into task 1"):
        rotations.reset()
    gravity = StreamConfig("cartpole-gravity", period=8, drift_fraction=1.0).make(2)
    gravity.reset()
    *_, info = advance(gravity, 5)[-1]
    assert info["fingerprint"].parameters["gravity"] != 9.8
    assert gravity.audit_seconds > 0


@pytest.mark.slow
def test_spawned_workers_give_the_same_bits():
    assert_workers_give_the_same_bits()


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("flags", [{"drift_fraction": 1.0}, {"normalizer": "keep"}])
def test_forked_workers_give_the_same_bits(flags):
    assert_workers_give_the_same_bits(**flags)


def assert_workers_give_the_same_bits(**flags):
    config = StreamConfig("cartpole-gravity", period=40, **flags)
    here, there = (
        config.make(2, seed=1),
        dataclasses.replace(config, single=SingleConfig(workers=2)).make(2, seed=1),
    )
    np.testing.assert_array_equal(here.reset()[0], there.reset()[0])
    assert_same_steps(advance(here, 45), advance(there, 45))
    state = there.state_dict()
    there.load_state_dict(here.state_dict())
    here.load_state_dict(state)
    assert_same_steps(advance(here, 10), advance(there, 10))
    there.close()


def test_a_normalizer_knows_the_first_observations_of_episodes_that_replace_others():
    config = StreamConfig(
        "cartpole-gravity", normalizer="keep", engine="single", single=SingleConfig(replay=False)
    )
    one, two = (config.make(2, 1, "cpu") for _ in range(2))
    one.reset()
    advance(one, 5)
    two.load_state_dict(one.state_dict())
    assert not two.exact
    assert [int(stream.statistics()["count"]) for stream in (one, two)] == [12, 14]


def test_noise_on_what_was_constant_is_not_blown_up():
    normalizer = Normalizer((2,), "cpu")
    normalizer.update(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert normalizer(torch.tensor([[1 + 2**-17, 0.5], [2.0, -20.0]])).tolist() == [
        [pytest.approx(2**-17 * 1e4), 0.5], [10.0, -10.0]
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_the_normalizer_knows_what_was_seen(policy):
    plain = StreamConfig("cartpole-gravity", period=30).make(3, seed=1)
    normal = StreamConfig("cartpole-gravity", period=30, normalizer=policy).make(3, seed=1, device="cpu")

    def expected(observations):
        so_far = np.concatenate(seen).astype(np.float64)
        return np.clip((observations - so_far.mean(0)) / np.maximum(so_far.std(0), 1e-4), -10, 10)

    seen = [plain.reset()[0]]
    np.testing.assert_allclose(normal.reset()[0], expected(seen[0]), rtol=1e-4, atol=1e-5)
    for step, (one, two) in enumerate(zip(advance(plain, 25), advance(normal, 25)), start=1):
        if "final_obs" in one[4]:  # by the statistics of the task that ended
            last = expected(one[4]["final_obs"])
            np.testing.assert_allclose(two[4]["final_obs"], last, rtol=1e-4, atol=1e-5)
        if step % 10 == 0 and policy == "reset":
            seen.clear()
        seen.append(one[0])
        np.testing.assert_allclose(two[0], expected(one[0]), rtol=1e-4, atol=1e-5)
        assert two[0].dtype == torch.float32
        assert normal.observation_space.contains(two[0].numpy())


def test_task_id_onehot():
    output = StreamConfig("cartpole-gravity", period=6, tasks=(3, 1), task_id="onehot").make(2)
    assert output.single_observation_space.shape == (6,)
    np.testing.assert_array_equal(
        output.reset()[0][:, 4:], [[0, 1]] * 2
    )  # task 3, the second of two in order
    for step, (observation, *_, info) in enumerate(advance(output, 6), start=1):
        mark = [[0, 1]] if step // 3 % 2 == 0 else [[1, 0]]
        np.testing.assert_array_equal(observation[:, 4:], mark * 2)
        assert output.observation_space.contains(observation)
        if step % 3 == 0:  # the old task's
            np.testing.assert_array_equal(info["final_obs"][:, 4:], [mark[0][::-1]] * 2)
    grid = StreamConfig("grid-layouts", period=6, task_id="onehot").make(2, device="cpu")
    observation = grid.reset()[0]
    assert observation.shape == (2, 7, 7, 3 + 5)
    assert (observation[..., 3] == 255).all()
    assert (observation[..., 4:] == 0).all()
    with pytest.raises(ValueError, match="needs recurring tasks"):
        StreamConfig("cartpole-gravity", task_id="onehot").make(2)
    with pytest.raises(ValueError, match="floating-point"):
        StreamConfig("grid-layouts", normalizer="keep").make(2)
    with pytest.raises(ValueError, match="has tasks 0 to 4"):
        StreamConfig("grid-layouts", tasks=(0, 5)).make(2)


def test_only_what_was_typed_is_imported(tmp_path, monkeypatch):
    (tmp_path / "typed_streams.py").write_text(
        "import gymnasium as gym\nfrom neoteny.envs import stream\n\n"
        "@stream('Typed-v0', period=20)\n"
        "def typed(k, seed):\n    return gym.make('CartPole-v1')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="import typed_streams first"):
        StreamConfig("typed_streams:Typed-v0").make(2)
    from_a_file = {"stream": {"id": "typed_streams:Typed-v0"}}
    with pytest.raises(ValueError, match="import typed_streams first"):
        override(Args(), from_a_file)
    assert "typed_streams" not in sys.modules
    args = cli(Args, PRESETS, ["--stream.id", "typed_streams:Typed-v0"])
    assert args.stream.make(2).schedule.period == 20
    assert override(Args(), from_a_file).stream == args.stream
    del gym.registry["Typed-v0"]
