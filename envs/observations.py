"""What observations are, and what a stream makes of them before an agent sees them.

There are four kinds. *Codes* are the cells of MiniGrid, numbers of objects, colours and states. *Pictures*
and *planes* are images for convolutions, channels first or last: pictures of uint8 up to 255, planes of bool
or of uint8 up to the largest value of their space, such as the planes of a board game. All else are
*vectors*, whatever their shape.

What is a picture or a plane is known from the type of its numbers, and which axis holds the channels from the
shape; where that does not tell, a flag must. Codes are only what MiniGrid itself makes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from neoteny.envs.normalizer import Normalizer

Kind = Literal["codes", "pictures", "planes", "vectors"]
Channels = Literal["first", "last"]

CODES = (11, 6, 4)
"""How many objects, colours and states a cell of MiniGrid can hold."""

REMEDY = "--stream.wrap gymnasium.wrappers:FlattenObservation makes vectors of them"


@dataclasses.dataclass(frozen=True)
class ObservationSpec:
    """What an observation is.

    Args:
        space: of one observation.
        kind: see the module.
        channels: which of the last three axes of codes, pictures and planes holds the channels. Images of two
            axes have one channel, and of four are stacks of images.
        high: what is scaled to 1 in pictures and planes, their lowest value being 0; else the space says so.
    """

    space: Box
    kind: Kind
    channels: Channels = "last"
    high: float | None = None

    @property
    def channel_axis(self) -> int:
        """The axis of features or channels, counted from the end."""
        return -3 if self.kind in ("pictures", "planes") and self.channels == "first" else -1

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """What is scaled to 0 and to 1, each of the shape of an observation, float32."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.space.low, self.space.high))
        return (low, high) if self.high is None else (low, np.full_like(high, self.high))

    def check(self, observations: np.ndarray) -> str:
        """What is odd about some observations, (B, ...), of this kind, in one line; empty if nothing is.

        Raises:
            ValueError: they are not of this kind.
        """
        if self.kind == "codes" and (observations[..., :3] >= CODES).any():
            raise ValueError(
                f"observations are no codes of MiniGrid, which are below {CODES}: --stream.observations says "
                f"what they are, codes, pictures, planes or vectors"
            )
        high, highest = float(self.bounds[1].max()), float(observations.max())
        if self.kind in ("pictures", "planes") and highest <= high / 16:
            return (
                f"warning: no observation of the first {len(observations)} was above {highest:g}, but "
                f"{high:g}, the highest value of their space, is what is scaled to 1"
            )
        return ""

    def __str__(self) -> str:
        """One line."""
        shape = " x ".join(map(str, self.space.shape)) or "one number"
        if self.kind == "vectors":
            return f"vectors of {math.prod(self.space.shape)} numbers"
        if self.kind == "codes" or len(self.space.shape) == 2:
            return f"{self.kind}, {shape}"
        return f"{self.kind}, {shape}, channels {self.channels}"


def read_observations(
    space: gym.Space, kind: Kind | Literal["auto"] = "auto", channels: Channels | Literal["auto"] = "auto"
) -> ObservationSpec:
    """What observations of a space are, as flags say it or as can be known.

    Raises:
        ValueError: they are no arrays, or cannot be what a flag says, or it cannot be known which axis holds
            the channels.
    """
    if not isinstance(space, Box):
        raise ValueError(f"observations must be arrays of numbers, a Box, not {space}; {REMEDY}")
    if kind == "auto" and (space.dtype not in (np.uint8, np.bool_) or len(space.shape) not in (2, 3, 4)):
        kind = "vectors"
    elif kind == "auto":
        kind = "pictures" if space.dtype == np.uint8 and space.high.max() == 255 else "planes"
    if kind == "vectors":
        if channels != "auto":
            raise ValueError(f"--stream.channels does nothing: observations are vectors, of {space}")
        return ObservationSpec(space, "vectors")
    if kind == "codes":
        if space.dtype != np.uint8 or len(space.shape) != 3 or space.shape[2] != 3 or channels == "first":
            raise ValueError(f"codes of MiniGrid are (H, W, 3) of uint8, not {space}")
        return ObservationSpec(space, "codes")
    if len(space.shape) not in (2, 3, 4) or not space.is_bounded():
        raise ValueError(f"{kind} have two to four axes and a lowest and a highest value, unlike {space}")
    if channels == "auto":
        channels = _channels(space.shape[-3:])
    return ObservationSpec(space, kind, channels)


def _channels(shape: Sequence[int]) -> Channels:
    """Whether the channels of an image of this shape are its first axis or its last.

    Two sides of the same length are height and width; else the channels are few.
    """
    if len(shape) == 2:
        return "last"
    first, middle, last = shape
    square_if_first, square_if_last = middle == last, first == middle
    if square_if_first != square_if_last:
        return "first" if square_if_first else "last"
    if first != last and min(first, last) <= 4:
        return "first" if first < last else "last"
    raise ValueError(
        f"the channels of observations of shape {tuple(shape)} may be their first axis or their last: say "
        f"which, --stream.channels first or last, or take them as --stream.observations vectors"
    )


class Preprocessing:
    """What the agent sees of raw observations: they may be normalized, and carry the number of the task.

    Args:
        raw: what raw observations are.
        normalizer: by a running mean and variance, which are kept at a switch or start anew.
        tasks: numbers of the recurring tasks, if the agent is told which is on, as a one-hot vector that is
            appended to vectors, or as channels to images.
        device: the agent's.

    Raises:
        ValueError: they cannot be normalized, or nothing can be appended.
    """

    def __init__(
        self,
        raw: ObservationSpec,
        normalizer: Literal["none", "keep", "reset"] = "none",
        tasks: Sequence[int] = (),
        device: torch.device | str | None = None,
    ) -> None:
        self.device = torch.device(device or "cpu")
        self.spec = raw
        self.tasks = list(tasks)
        self.normalizer: Normalizer | None = None
        self.reset_at_switch = normalizer == "reset"
        if normalizer != "none":
            self.spec = _normalized(self.spec)
            self.normalizer = Normalizer(self.spec.space.shape, self.device)
        if self.tasks:
            self.spec = _with_task_id(self.spec, len(self.tasks))

    def __call__(self, observations: Tensor, task: int, learn: bool = False) -> Tensor:
        """Observations (B, ...) of a task, as the agent sees them; the normalizer may learn from them."""
        if self.normalizer is None and not self.tasks:
            return observations
        seen = observations.to(self.device)
        if self.normalizer is not None:
            if learn:
                self.normalizer.update(seen)
            seen = self.normalizer(seen)
        if self.tasks:
            axis = self.spec.channel_axis
            shape = list(seen.shape)
            shape[axis] = len(self.tasks)
            onehot = torch.zeros(shape, dtype=seen.dtype, device=seen.device)
            onehot.select(axis, self.tasks.index(task)).fill_(_one(self.spec))
            seen = torch.cat((seen, onehot), dim=axis)
        return seen

    def reset(self) -> None:
        """Forget what was seen."""
        if self.normalizer is not None:
            self.normalizer.reset()

    def switch(self) -> None:
        """Another task is on."""
        if self.reset_at_switch:
            self.reset()

    def state_dict(self) -> dict[str, Any]:
        """What the normalizer has seen."""
        return {} if self.normalizer is None else self.normalizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state)


def _normalized(spec: ObservationSpec) -> ObservationSpec:
    """Of normalized observations."""
    space = spec.space
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"a normalizer needs observations of floating-point numbers, not {space}")
    clip = Normalizer.clip
    return dataclasses.replace(spec, space=Box(-clip, clip, space.shape, np.float32))


def _with_task_id(spec: ObservationSpec, tasks: int) -> ObservationSpec:
    """Of observations to which a one-hot number of so many tasks is appended."""
    space, axis = spec.space, spec.channel_axis
    if len(space.shape) != 1 and (spec.kind == "vectors" or len(space.shape) == 2):
        raise ValueError(f"a task id is appended to vectors and images with channels, not to {space}")
    shape = list(space.shape)
    shape[axis] = tasks
    low, high = np.zeros(shape, space.dtype), np.full(shape, _one(spec), space.dtype)
    low, high = np.concatenate((space.low, low), axis), np.concatenate((space.high, high), axis)
    return dataclasses.replace(spec, space=Box(low, high, dtype=space.dtype.type))


def _one(spec: ObservationSpec) -> float:
    """What is a 1 of a one-hot task id in an observation: the agent sees it as 1."""
    if spec.kind == "vectors":
        return 1.0
    return 255.0 if spec.kind == "codes" else float(spec.bounds[1].max())
