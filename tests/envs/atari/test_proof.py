"""Atari games as users make them do the same in ale-py's vector environment, or are stepped one by one."""

import functools
import sys
import types

import ale_py
import gymnasium as gym
import pytest
from gymnasium.wrappers import FrameStackObservation

from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.atari.engine import AtariConfig, AtariEngine
from neoteny.envs.atari.game import Screen, ale, make_game
from neoteny.envs.config import ENGINES, WrappedTask
from neoteny.envs.engine import UncoveredError
from neoteny.envs.single.engine import SingleEngine
from neoteny.envs.tasks import is_shipped

pytestmark = pytest.mark.slow

ale()


class Bright(Screen):
    def step(self, action):
        observation, *rest = super().step(action)
        return 255 - observation, *rest


class Generous(ale_py.AtariEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 1, *rest


class LateStack(FrameStackObservation):
    def step(self, action):
        return super().step(action)


def stacked(screen, stack=FrameStackObservation):
    return stack(screen, 4, padding_type="zero")


def generous_game():
    spec = gym.spec("ALE/Pong-v5")
    options = spec.kwargs | {"obs_type": "grayscale", "frameskip": 1, "full_action_space": True}
    env = Generous(**options)
    env.spec = gym.make("ALE/Pong-v5", **{k: v for k, v in options.items() if k != "game"}).spec
    return env


def sticky():
    """A game with a setting of its emulator that its wrappers do not show."""
    env = make_game("Breakout")
    env.unwrapped.ale.setFloat("repeat_action_probability", 0.9)
    return env


def hard():
    """A game whose emulator is set at each reset."""
    env = make_game("Breakout")
    env.unwrapped._game_difficulty = 1
    return env


def patched_step():
    env = make_game("Pong")
    step = env.unwrapped.step
    env.unwrapped.step = lambda action: step(0)
    return env


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: stacked(Bright(make_game("Pong").env.env)), "is not a frame stack of a Screen"),
        (lambda: stacked(make_game("Pong").env, LateStack), "LateStack is not a frame stack"),
        (lambda: stacked(Screen(generous_game())), "has no Generous"),
        (patched_step, "AtariEnv has another step"),
        (sticky, "does something else"),
        (hard, "does something else"),
    ],
)
def test_games_that_are_not_what_their_wrappers_say_are_stepped_one_by_one(make, reason):
    with pytest.raises(UncoveredError, match=reason):
        AtariConfig().covers(lambda k, seed: make(), 0, 0)


def test_a_users_game_in_the_shipped_wrappers_is_played_and_covered(capsys):
    stream = Stream(lambda k, seed: make_game("Pong"), Schedule(), ENGINES, 1)
    assert isinstance(stream.engine, AtariEngine)
    stream.close()
    stream = Stream(lambda k, seed: hard(), Schedule(), ENGINES, 1)
    assert isinstance(stream.engine, SingleEngine)
    (line,) = capsys.readouterr().out.splitlines()
    assert "one by one: ale-py's vector environment does something else" in line


def test_shipped_games_are_not_played_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.ModuleType("mine"))
    task = StreamConfig("atari", games=("Pong",))._task()
    assert isinstance(task, functools.partial)
    assert is_shipped(task)
    assert is_shipped(StreamConfig("atari-cora")._task())
    assert not is_shipped(WrappedTask(task, lambda env: env, "mine:same"))
    assert not is_shipped(StreamConfig("CartPole-v1")._task())
