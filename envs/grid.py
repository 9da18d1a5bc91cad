"""MiniGrid streams: the layout changes, the rules stay.

Observations are MiniGrid's egocentric image (7, 7, 3) of object, colour and state codes as uint8; all seven
actions are kept, so every task has the same spaces.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers the environments)
from minigrid.wrappers import ImgObsWrapper

from neoteny.envs.stream import stream, task_rng

LAYOUTS = ("Empty-8x8", "SimpleCrossingS9N1", "LavaCrossingS9N1", "DoorKey-5x5", "FourRooms")
LAYOUTS_SMALL = ("Empty-8x8", "DoorKey-5x5", "LavaCrossingS9N1")
DOORKEY_SIZES = ("DoorKey-5x5", "DoorKey-6x6", "DoorKey-8x8")


def make_grid(name: str) -> gym.Env:
    """``MiniGrid-<name>-v0`` with the image alone as its observation."""
    return ImgObsWrapper(gym.make(f"MiniGrid-{name}-v0", disable_env_checker=True))


class FixedLayout(gym.Wrapper):
    """Every episode starts from the layout that ``layout`` seeds, whatever seed the reset is given."""

    def __init__(self, env: gym.Env, layout: int) -> None:
        super().__init__(env)
        self.layout = layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode in the layout."""
        return self.env.reset(seed=self.layout, options=options)


@stream("grid-layouts", period=100_000, tasks=len(LAYOUTS))
def grid_layouts(k: int, seed: int) -> gym.Env:
    """Five families in cycles, from an empty room to four rooms; each episode draws a new layout."""
    return make_grid(LAYOUTS[k])


@stream("grid-layouts-small", period=40_000, tasks=len(LAYOUTS_SMALL))
def grid_layouts_small(k: int, seed: int) -> gym.Env:
    """Three of the families in shorter cycles, for a laptop."""
    return make_grid(LAYOUTS_SMALL[k])


@stream("grid-doorkey", period=100_000, tasks=len(DOORKEY_SIZES))
def grid_doorkey(k: int, seed: int) -> gym.Env:
    """Fetch the key, open the door, reach the goal, in rooms of growing size, in cycles."""
    return make_grid(DOORKEY_SIZES[k])


@stream("grid-crossings", period=40_000)
def grid_crossings(k: int, seed: int) -> gym.Env:
    """One family (SimpleCrossingS9N2), one fixed layout a task: a new maze at each switch."""
    return FixedLayout(make_grid("SimpleCrossingS9N2"), layout=int(task_rng(seed, k).integers(2**31)))
