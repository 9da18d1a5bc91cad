"""A single game of MinAtar as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from neoteny.envs.minatar.games import Definition, Games

CPU = torch.device("cpu")

COLOURS = np.array(
    [
        *((0, 0, 0), (66, 133, 244), (234, 67, 53), (120, 80, 80), (251, 188, 4), (52, 168, 83)),
        *((171, 71, 188), (0, 172, 193), (255, 112, 67), (158, 157, 36), (240, 240, 240)),
    ],
    np.uint8,
)
"""Of an empty cell, then of each channel of a game, (11, 3)."""


class MinAtar(gym.Env):
    """One game: the rules of MinAtar (Young and Tian, 2019), stepped by the same code as many on tensors.

    Args:
        game, options: as in :class:`neoteny.envs.minatar.games.Definition`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self.definition = Definition(game, **options)
        self.render_mode = render_mode
        self.observation_space = self.definition.space
        self.action_space = Discrete(len(self.definition.actions))
        self.games = Games(self.definition, 1, CPU)

    @property
    def lifelong_state(self) -> int:
        """The last action, which the next episode may begin with."""
        return int(self.games.last_action)

    @lifelong_state.setter
    def lifelong_state(self, action: int) -> None:
        self.games.last_action.fill_(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode, of a seed that is drawn if none is given."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        with torch.inference_mode():
            self.games.reset(torch.ones(1, dtype=torch.bool), torch.tensor([number]))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Make a step."""
        with torch.inference_mode():
            results = self.games.step(torch.tensor([int(action)]))
        reward, terminated, truncated = (result.item() for result in results)
        return self._observation(), reward, bool(terminated), bool(truncated), {}

    def render(self) -> NDArray[np.uint8]:
        """A picture of the board, (10, 10, 3), uint8; of several channels in a cell the last is shown."""
        planes = self._observation()[..., self.definition.places]
        shown = (planes * np.arange(1, planes.shape[-1] + 1)).max(-1)
        return COLOURS[shown]

    def _observation(self) -> NDArray[np.bool_]:
        with torch.inference_mode():
            return self.games.observe()[0].numpy()
