"""Environments that are odd in a way that was once wrong in silence, or ended a run."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import NormalizeReward

from neoteny.envs import Schedule, Stream
from neoteny.envs.audit import compare, fingerprint, parameters
from neoteny.envs.auditor import Auditor
from neoteny.envs.checks import BrokenEnvironmentError, try_out
from neoteny.envs.config import ENGINES
from neoteny.envs.control.streams import cartpole_physics
from neoteny.envs.tasks import SpacesError, is_shipped


class Walk(gym.Env):
    """Counts its steps in public attributes, from the constructor on; an episode has ten."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, gravity=1.0, **own):
        self.gravity, self.t = gravity, 0
        vars(self).update(own)

    def look(self):
        return np.array([self.t, self.gravity], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), self.gravity, self.t >= 10, False, {}


def test_a_gradual_change_leaves_what_an_environment_counts_alone():
    """A number that both tasks begin with is no parameter on its way from one to the other."""
    stream = Stream(lambda k, seed: Walk(1.0 + k), Schedule(100, 2, drift_fraction=1.0), ENGINES, 2)
    stream.reset()
    infos = [stream.step(np.zeros(2, int))[-1] for _ in range(100)]
    ended = [step for step, info in enumerate(infos, start=1) if info.get("_episode_return", [False])[0]]
    assert ended == list(range(10, 101, 10))


@pytest.mark.parametrize("value", [np.complex64(1j), np.timedelta64(3, "s"), np.longdouble(1), True, "text"])
def test_parameters_are_numbers_that_can_be_written(value):
    assert parameters(Walk(odd=value)) == {"gravity": 1.0, "t": 0}
    assert parameters(Walk(odd=np.int16(3)))["odd"] == 3


def test_a_text_is_no_end_of_an_episode():
    """The text "False" is true."""

    class Says(Walk):
        def step(self, action):
            observation, reward, terminated, *rest = super().step(action)
            return observation, reward, str(terminated), *rest

    with pytest.raises(BrokenEnvironmentError, match="returned terminated 'False', which is not one value"):
        try_out(Says())


def test_a_task_that_looks_like_a_shipped_one_is_tried():
    @functools.wraps(cartpole_physics)
    def task(k, seed):
        return NormalizeReward(gym.make("CartPole-v1"))

    assert task.__module__ == cartpole_physics.__module__
    assert is_shipped(cartpole_physics)
    assert not is_shipped(task)
    assert "the reward of step" in Stream(task, Schedule(), ENGINES, 1).unrepeatable


def test_tasks_that_share_a_buffer_are_told_apart():
    buffer = np.zeros(2, np.float32)

    class Shares(Walk):
        def look(self):
            buffer[:] = super().look()
            return buffer

    assert compare(Shares(1.0), Shares(2.0), 20).difference == "observation"


def test_a_fingerprint_takes_negative_zero_for_zero():
    """What is compared at a switch is as blind to it as what is compared before training."""
    zeros = [0.0, -0.0, 0]

    class Zeros(Walk):
        def look(self):
            return np.full(2, self.zero, np.float32)

        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, self.zero, *rest

    one, *others = [fingerprint(Zeros(zero=zero)) for zero in zeros]
    assert all(one.same_as(other) for other in others)
    assert not one.same_as(fingerprint(Zeros(zero=1)))


@pytest.mark.parametrize("mode", ["on", "warn", "off"])
def test_the_audit_itself_refuses_other_spaces(mode):
    def task(k, seed):
        return gym.make(("CartPole-v1", "Acrobot-v1", "CartPole-v1")[k])

    first = task(0, 0)
    auditor = Auditor(task, (first.observation_space, first.action_space), mode)
    with pytest.raises(SpacesError, match="observation_space of task 1"):
        auditor.begin(Schedule(8, 3))


@pytest.mark.parametrize(("gradual", "steps"), [(0.0, [256]), (0.5, [128, 128])])
def test_rollouts_at_a_switch_make_256_steps_together(gradual, steps, monkeypatch):
    """Also where the change is gradual, and a copy of the new task with the old parameters is tried."""
    made = []

    def count(env, steps):
        made.append(steps)
        return fingerprint(env, steps)

    monkeypatch.setattr("neoteny.envs.auditor.fingerprint", count)
    stream = Stream(lambda k, seed: Walk(1.0 + k), Schedule(20, 2, drift_fraction=gradual), ENGINES, 2)
    stream.reset()
    made.clear()
    for _ in range(10):
        stream.step(np.zeros(2, int))
    assert made == steps
