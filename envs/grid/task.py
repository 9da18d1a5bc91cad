"""The definition of a MiniGrid task, read from an environment of the package and its wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit, TransformAction
from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door
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
from neoteny.envs.grid.tables import EMPTY, WALL, check_package, code_of, which
from neoteny.envs.grid.transforms import meanings, order_of, users_parts
from neoteny.envs.observations import ObservationSpec
from neoteny.envs.user_code import is_users, users_members

TEXT = 96
"""Largest length of a mission, in characters, as in the package's FlatObsWrapper."""

LARGEST_VIEW = 9
"""Largest side of the view, in cells; the table of visible cells grows with four to the power of it."""


LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz ,")
"""Characters that FlatObsWrapper shows."""

CONSTANTS = "width", "height", "max_steps", "see_through_walls", "agent_view_size", "actions", "action_space"
METHODS = frozenset(name for name in dir(MiniGridEnv) if callable(getattr(MiniGridEnv, name)))
IS_WALL = which(lambda thing: thing.type == "wall")


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
        check_package()
        self.env: Any = env
        self.rules: Rules = rules_of(env)
        self.constants = _constants(env)
        if env.actions is not Actions:
            raise UncoveredError(f"{type(env).__name__} has its own actions")
        if not isinstance(env.action_space, Discrete):
            raise UncoveredError(f"its actions are {env.action_space}")
        self.limit = env.max_steps
        self.layout: int | None = None
        self.whole = self.onehot = self.text = False
        self.actions = list(range(env.action_space.n))
        self.order: np.ndarray | None = None
        self.users = is_users(type(env)) or bool(users_members(env))
        """Whether a part of it is a user's."""
        self._read(layers[::-1])
        if not set(self.actions) <= set(map(int, Actions)):
            raise UncoveredError(f"{type(env).__name__} has {env.action_space.n} actions")
        assert space.shape is not None
        self.shape = space.shape

    def unlike(self, other: GridTask) -> str:
        """What differs from another environment of the same task; empty if nothing does."""
        one, two = (
            {
                **dict(zip(CONSTANTS, task.constants)),
                "the limit of steps": task.limit,
                "the fixed layout": task.layout,
                "the meaning of actions": task.actions,
                "the order of observations": None if task.order is None else task.order.tolist(),
            }
            for task in (self, other)
        )
        return next((name for name in one if one[name] != two[name]), "")

    def draw(self, seed: int) -> tuple[np.ndarray, list[int]]:
        """Draw a layout from the package's generator.

        Returns:
            As :meth:`read`.

        Raises:
            UncoveredError: the tables do not hold the layout.
        """
        self.env.gen_obs = _no_observation  # it is not needed, and slower than most generators
        try:
            self.env.reset(seed=seed)
        finally:
            was = vars(self.env).pop("gen_obs", None)
        if was is not _no_observation:
            raise UncoveredError("its layouts set gen_obs")
        return self.read()

    def read(self) -> tuple[np.ndarray, list[int]]:
        """Read the layout of the environment, just after its reset.

        Returns:
            Codes of the cells, a wall for everything outside the grid, and the mission's characters, uint8;
            and the list of the agent's place, the carried code and the data of the rules.

        Raises:
            UncoveredError: the tables do not hold the layout.
        """
        env = self.env
        if (now := _constants(env)) != self.constants:
            names = [name for name, one, two in zip(CONSTANTS, now, self.constants) if one != two]
            raise UncoveredError(f"its layouts change {', '.join(names)}")
        if type(env.grid) is not Grid or vars(env.grid).keys() != {"width", "height", "grid"}:
            raise UncoveredError(f"its {type(env.grid).__name__} is not MiniGrid's own")
        if (env.grid.width, env.grid.height) != (env.width, env.height):
            raise UncoveredError(f"its grid is {env.grid.width} by {env.grid.height} cells in some layouts")
        if own := vars(env).keys() & METHODS:
            raise UncoveredError(f"its layouts set {', '.join(sorted(own))}")
        codes = np.array([code_of(each) if each else EMPTY for each in env.grid.grid], np.uint8)
        cells = codes.reshape(env.height, env.width).T.ravel()
        cell, direction = cell_of(env, env.agent_pos), int(env.agent_dir)
        if direction not in range(4) or direction != env.agent_dir:
            raise UncoveredError(f"the agent's direction is {env.agent_dir}")
        if self.users:
            doors = [id(thing) for thing in env.grid.grid if type(thing) is Door]
            if len(set(doors)) < len(doors):
                raise UncoveredError("one door is in several cells")
            if _leads_out(env, cells, cell):
                raise UncoveredError("no walls enclose the agent")
        row = np.concatenate((cells, np.array([WALL], np.uint8), self._mission()))
        return row, [4 * cell + direction, code_of(env.carrying), *self.rules.data(env)]

    def _mission(self) -> np.ndarray:
        """The characters of the mission, (TEXT,) uint8; cut where they are not shown."""
        mission = str(self.env.mission).lower()
        if self.text and self.users and not (len(mission) <= TEXT and LETTERS.issuperset(mission)):
            raise UncoveredError(f"FlatObsWrapper cannot show the mission {mission!r}")
        letters = mission.encode("ascii", "replace")[:TEXT]
        return np.frombuffer(letters.ljust(TEXT, b"\0"), np.uint8)

    def _read(self, layers: list[Any]) -> None:
        """Read what wrappers do, from the innermost."""
        chosen = type(self.rules).observe is not Rules.observe
        inner: gym.Space | None = None
        rearranged: list[gym.ObservationWrapper] = []
        plain = gym.ObservationWrapper.reset, gym.ObservationWrapper.step
        for layer in layers:
            own = users_parts(layer)
            self.users |= bool(own)
            match layer:
                case _ if own.keys() - {"func", "observation"} or ("observation" in own and not inner):
                    raise UncoveredError(f"{type(layer).__name__} cannot be expressed by tables")
                case OrderEnforcing() | PassiveEnvChecker():
                    pass
                case TimeLimit():
                    self.limit = min(self.limit, layer._max_episode_steps)
                case FixedLayout():
                    self.layout = layer.layout
                case TransformAction():
                    self.actions = meanings(layer, self.actions)
                case FullyObsWrapper():
                    self.whole, self.onehot = True, False
                case OneHotPartialObsWrapper() if not self.whole:
                    self.onehot = True
                case ImgObsWrapper():
                    chosen, inner = True, layer.observation_space
                case FlatObsWrapper() if layer.maxStrLen == TEXT:
                    self.text = chosen = True
                    inner = layer.observation_space
                case gym.ObservationWrapper() if inner and (type(layer).reset, type(layer).step) == plain:
                    rearranged.append(layer)
                case _:
                    raise UncoveredError(f"{type(layer).__name__} cannot be expressed by tables")
        if not chosen:
            raise UncoveredError("its observations are not an array")
        if rearranged:
            assert inner is not None
            self.order = order_of(rearranged, inner)


def _no_observation() -> None:
    pass


def _constants(env: Any) -> tuple[Any, ...]:
    """What is the same in all layouts of a task, by ``CONSTANTS``."""
    size = env.width, env.height
    return (*size, env.max_steps, env.see_through_walls, env.agent_view_size, env.actions, env.action_space)


def _leads_out(env: Any, cells: np.ndarray, start: int) -> bool:
    """Whether no walls lie between the agent and the edge of the grid, over which the package stumbles."""
    is_wall = IS_WALL[cells].reshape(env.width, env.height)
    edge = np.ones_like(is_wall)
    edge[1:-1, 1:-1] = False
    if is_wall[edge].all():
        return False
    reached, before = np.zeros_like(is_wall), 0
    reached.flat[start] = True
    while before < (before := int(reached.sum())):
        reached[1:] |= reached[:-1]
        reached[:-1] |= reached[1:]
        reached[:, 1:] |= reached[:, :-1]
        reached[:, :-1] |= reached[:, 1:]
        reached &= ~is_wall
    return bool((reached & edge).any())


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
