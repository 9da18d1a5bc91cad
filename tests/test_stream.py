"""Streams against a slow reference that steps each sub-environment by itself."""

import copy
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoteny.envs import Schedule, Stream, StreamConfig, stream
from neoteny.envs.audit import fingerprint
from neoteny.envs.stream import episode_seed, registered_streams

PERIOD, STEPS = 50, 30
STREAMS = registered_streams()


class Reference:
    """One sub-environment of a stream, by the definition."""

    def __init__(self, stream, index):
        self.stream, self.index, self.episode, self.steps = stream, index, -1, 0
        self.enter(stream.schedule.task_at(0))

    def enter(self, task):
        self.task = task
        self.env = self.stream.make_task(task, self.stream.seed)
        self.observation = self.reset()

    def reset(self):
        self.episode += 1
        self.total, self.length = 0.0, 0
        return self.env.reset(seed=episode_seed(self.stream.seed, self.task, self.index, self.episode))[0]

    def step(self, action):
        """Observation, reward, terminated, truncated, final observation, (return, length) or None."""
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


def rollout(id, num_envs, seed, steps=STEPS, device=None):
    """Everything a stream returns under fixed random actions, a list over steps."""
    stream = StreamConfig(id, PERIOD).make(num_envs, seed, device)
    actions = np.random.default_rng(0).integers(stream.single_action_space.n, size=(steps, num_envs))
    out = [(stream.reset()[0], None, None, None, {"task": stream.task})]
    out += [stream.step(action) for action in actions]
    return stream, actions, out


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("id", STREAMS)
def test_stream_equals_the_reference(id, num_envs):
    steps = 2 * -(-PERIOD // num_envs) + 5
    stream, actions, out = rollout(id, num_envs, seed=3, steps=steps)
    references = [Reference(stream, i) for i in range(num_envs)]
    switches = [t for t in range(steps) if t * num_envs // PERIOD != (t + 1) * num_envs // PERIOD]
    assert len(switches) >= 2
    for i, reference in enumerate(references):
        np.testing.assert_array_equal(out[0][0][i], reference.observation)
    for t in range(steps):
        observation, reward, terminated, truncated, info = out[t + 1]
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
            elif "_episode_return" in info:
                assert not info["_episode_return"][i]
        if t in switches:
            assert (terminated | truncated).all()
            assert info["task"] == switches.index(t)


@pytest.mark.parametrize("id", STREAMS)
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
    tasks=st.integers(1, 7),
    order=st.sampled_from(["cycle", "random"]),
    jitter=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 5),
)


@given(SCHEDULES)
def test_schedules_agree_with_stepping_and_visit_every_task_once_a_cycle(schedule):
    visits = 3 * schedule.tasks
    starts = [schedule.start_of(visit) for visit in range(visits + 1)]
    assert starts[0] == 0
    assert all(abs(start - i * schedule.period) <= schedule.period / 2 for i, start in enumerate(starts))
    tasks = []
    for visit, (start, end) in enumerate(itertools.pairwise(starts)):
        assert start <= end
        assert {schedule.visit_at(step) for step in range(start, end)} <= {visit}
        tasks.append({schedule.task_at(step) for step in range(start, end)})
    if schedule.jitter == 0:
        cycles = zip(*[iter(tasks)] * schedule.tasks)
        assert all(sorted(cycle, key=min) == [{task} for task in range(schedule.tasks)] for cycle in cycles)
    if schedule.order == "cycle":
        assert all(task <= {i % schedule.tasks} for i, task in enumerate(tasks))


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
    ],
)
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=r"at least|never recur"):
        Schedule(**bad)


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


def test_a_task_with_other_spaces_is_refused():
    @stream("Mixed-v0", period=4)
    def mixed(k, seed):
        return gym.make(("CartPole-v1", "Acrobot-v1")[k])

    mixed_stream = StreamConfig("Mixed-v0").make(2)
    mixed_stream.reset()
    mixed_stream.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"share their spaces.*observation_space of task 1"):
        mixed_stream.step(np.zeros(2, dtype=int))
    del gym.registry["Mixed-v0"]


class Audited:
    """Streams of two tasks that each hide a mistake."""

    @staticmethod
    def ignores_k(k, seed):
        return gym.make("CartPole-v1")

    @staticmethod
    def identity_permutation(k, seed):
        order = [0, 1, 2, 3]
        env = gym.make("CartPole-v1")
        return gym.wrappers.TransformObservation(env, lambda obs: obs[order], env.observation_space)

    @staticmethod
    def physics_of_a_copy(k, seed):
        env = gym.make("CartPole-v1")
        copy.copy(env.unwrapped).gravity = 9.8 * (k + 1)
        return env

    @staticmethod
    def changes_at_random(k, seed):
        env = gym.make("CartPole-v1")
        env.unwrapped.gravity = float(np.random.default_rng().uniform(5, 50))
        return env


def two_switches(task, **options):
    stream = Stream(task, Schedule(period=8, tasks=2), num_envs=2, **options)
    stream.reset()
    for _ in range(8):
        *_, info = stream.step(np.zeros(2, dtype=int))
    return info


@pytest.mark.parametrize("mistake", ["ignores_k", "identity_permutation", "physics_of_a_copy"])
def test_the_audit_catches_a_switch_that_changes_nothing(mistake):
    with pytest.raises(ValueError, match="changed nothing: task 1 does just what task 0 did"):
        two_switches(getattr(Audited, mistake))
    assert "fingerprint" not in two_switches(getattr(Audited, mistake), audit=False)


def test_the_audit_catches_a_task_that_does_not_recur_as_it_was():
    with pytest.raises(ValueError, match="task 0 is not what it was"):
        two_switches(Audited.changes_at_random)


@pytest.mark.parametrize("id", STREAMS)
def test_fingerprints_tell_tasks_apart_and_are_reproducible(id):
    stream = StreamConfig(id).make(1, seed=5)
    tasks = range(getattr(stream.schedule, "tasks", None) or 5)
    prints = [[fingerprint(stream.make_task(k, 5)) for k in tasks] for _ in range(2)]
    assert prints[0] == prints[1]
    assert len({task.rollout for task in prints[0]}) == len(tasks)


@pytest.mark.parametrize("id", ["cartpole-rotations", "grid-layouts"])
def test_the_audit_does_not_disturb_the_stream(id):
    with_audit, without = (StreamConfig(id, PERIOD, audit=audit).make(2, seed=1) for audit in (True, False))
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


def test_runs_share_no_episode_seed():
    seeds = [episode_seed(run, 0, env, 0) for run in range(100) for env in range(64)]
    assert len(set(seeds)) == len(seeds)
