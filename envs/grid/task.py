"""The definition of a MiniGrid task, read from an environment of the package and its wrappers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit, TransformAction
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import (
    FlatObsWrapper,
    FullyObsWrapper,
    ImgObsWrapper,
    OneHotPartialObsWrapper,
    RGBImgObsWrapper,
    RGBImgPartialObsWrapper,
)

from neoteny.envs.engine import UncoveredError
from neoteny.envs.grid.rules import Rules, cell_of, rules_of
from neoteny.envs.grid.tables import EMPTY, WALL, code_of
from neoteny.envs.observations import ObservationSpec

TEXT = 96
"""Largest length of a mission, in characters, as in the package's FlatObsWrapper."""

LARGEST_VIEW = 9
"""Largest side of the view, in cells; the table of visible cells grows with four to the power of it."""


class FixedLayout(gym.Wrapper):
    """Every episode starts from the layout of seed ``layout``, whatever seed is given to ``reset``."""

    def __init__(self, env: gym.Env, layout: int) -> None:
        super().__init__(env)
        self.layout = layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode in the fixed layout."""
        return self.env.reset(seed=self.layout, options=options)


class GridTask:
    """The definition of one task, read from an environment and its wrappers.

    Args:
        env: a MiniGrid environment in wrappers that select the image, the full grid, one-hot codes or the
            flat vector with the mission, rearrange entries of observations, remap actions, fix the layout or
            limit the length of episodes.

    Raises:
        UncoveredError: it is not a MiniGrid environment, or a wrapper does something else.
    """

    def __init__(self, env: gym.Env) -> None:
        layers, space = [], env.observation_space
        while isinstance(env, gym.Wrapper):
            layers.append(env)
            env = env.env
        if not isinstance(env, MiniGridEnv):
            raise UncoveredError(f"{type(env).__name__} is not a MiniGrid environment")
        if env.agent_view_size > LARGEST_VIEW:
            raise UncoveredError(f"its view is {env.agent_view_size} cells wide")
        if any(np.any(getattr(layer.action_space, "start", 0)) for layer in (*layers, env)):
            raise UncoveredError("its actions are not numbered from 0")
        self.env: Any = env
        self.rules: Rules = rules_of(env)
        self.limit = env.max_steps
        self.layout: int | None = None
        self.whole = self.onehot = self.text = False
        self.actions = list(range(env.action_space.n))  # type: ignore[attr-defined]
        self.order: np.ndarray | None = None
        chosen = type(self.rules).observe is not Rules.observe
        rearranged: list[Callable[[np.ndarray], np.ndarray]] = []
        plain = gym.ObservationWrapper.reset, gym.ObservationWrapper.step
        for layer in reversed(layers):
            match layer:
                case OrderEnforcing() | PassiveEnvChecker():
                    pass
                case TimeLimit():
                    self.limit = min(self.limit, layer._max_episode_steps)
                case FixedLayout():
                    self.layout = layer.layout
                case TransformAction():
                    meanings = range(layer.action_space.n)  # type: ignore[attr-defined]
                    self.actions = [self.actions[int(layer.func(action))] for action in meanings]
                case FullyObsWrapper():
                    self.whole = True
                case OneHotPartialObsWrapper() if not self.whole:
                    self.onehot = True
                case ImgObsWrapper():
                    chosen = True
                case FlatObsWrapper() if layer.maxStrLen == TEXT:
                    self.text = chosen = True
                case gym.ObservationWrapper() if chosen and (type(layer).reset, type(layer).step) == plain:
                    rearranged.append(layer.observation)
                case _:
                    raise UncoveredError(f"{type(layer).__name__} cannot be expressed by tables")
        if not chosen:
            raise UncoveredError("its observations are not an array")
        assert space.shape is not None
        self.shape = space.shape
        if rearranged:
            inner = next(layer for layer in layers if isinstance(layer, ImgObsWrapper | FlatObsWrapper))
            self.order = _order(rearranged, inner.observation_space)

    def draw(self, seed: int) -> tuple[np.ndarray, list[int]]:
        """Draw a layout from the package's generator.

        Returns:
            Codes of the cells, a wall for everything outside the grid, and the mission's characters, uint8;
            and the list of the agent's place, the carried code and the data of the rules.
        """
        env = self.env
        env.gen_obs = lambda: None  # not needed, and slower than most generators
        env.reset(seed=seed)
        del env.gen_obs
        codes = [EMPTY if thing is None else code_of(thing) for thing in env.grid.grid]
        cells = np.array(codes, np.uint8).reshape(env.height, env.width).T.ravel()
        mission = env.mission.lower().encode("ascii", "replace")
        if len(mission) > TEXT:
            raise UncoveredError(f"a mission of {len(mission)} characters")
        row = np.concatenate(
            (cells, np.array([WALL], np.uint8), np.frombuffer(mission.ljust(TEXT, b"\0"), np.uint8))
        )
        place = 4 * cell_of(env, env.agent_pos) + int(env.agent_dir)
        return row, [place, EMPTY, *self.rules.data(env)]


def _order(rearranged: list[Callable[[np.ndarray], np.ndarray]], space: gym.Space) -> np.ndarray:
    """Index of the inner observation's entry for each outer entry; UncoveredError if values are changed."""
    assert space.shape is not None

    def outer(observation: np.ndarray) -> np.ndarray:
        for function in rearranged:
            observation = function(observation)
        return observation

    try:
        # Pass each entry's own index through the wrappers, one byte at a time.
        number = np.arange(math.prod(space.shape)).reshape(space.shape)
        low, high = (outer((number >> shift).astype(np.uint8)).astype(int) for shift in (0, 8))
        order = low + (high << 8)
        trial = np.random.default_rng(0).integers(0, 256, space.shape, np.uint8)
        fine = np.array_equal(outer(trial), trial.ravel()[order]) and outer(trial).dtype == np.uint8
    except Exception as error:
        raise UncoveredError(f"its observations cannot be expressed by tables: {error}") from error
    if not fine:
        raise UncoveredError("its observations are not only rearranged")
    return order.ravel()


def observation_spec(env: gym.Env) -> ObservationSpec | None:
    """The kind of MiniGrid's images: codes, pictures or planes, by wrapper; ``None`` for anything else."""
    space, image = env.observation_space, env
    while isinstance(image, gym.Wrapper) and not isinstance(image, ImgObsWrapper):
        image = image.env
    if not isinstance(image, ImgObsWrapper) or image.observation_space != space or not isinstance(space, Box):
        return None
    inner = image.env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, RGBImgObsWrapper | RGBImgPartialObsWrapper):
            return ObservationSpec(space, "pictures")
        if isinstance(inner, OneHotPartialObsWrapper):  # its space wrongly says 255
            return ObservationSpec(space, "planes", high=1.0)
        inner = inner.env
    own = getattr(type(inner), "gen_obs", None) is not MiniGridEnv.gen_obs
    if own or space.shape[2:] != (3,) or space.dtype != np.uint8:
        return None
    return ObservationSpec(space, "codes")
