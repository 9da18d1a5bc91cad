"""The kinds of observations, and how a stream preprocesses them for the agent.

There are four kinds. *Codes* are MiniGrid's cells: numbers of objects, colours and states. *Pictures* and
*planes* are images for convolutions, channels first or last: pictures are uint8 up to 255; planes, such as
those of a board game, are bool or uint8 up to a smaller largest value. Everything else is *vectors*, whatever
its shape.

Pictures and planes are recognized by their dtype and bounds, the channel axis by the shape; where the shape
is ambiguous, a flag is required. Only observations made by MiniGrid itself are taken for codes.
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
from neoteny.envs.transfer import to_device

Kind = Literal["codes", "pictures", "planes", "vectors"]
Channels = Literal["first", "last"]

CODES = (11, 6, 4)
"""Number of objects, colours and states in MiniGrid's encoding of a cell."""

REMEDY = "--stream.wrap gymnasium.wrappers:FlattenObservation turns them into vectors"


@dataclasses.dataclass(frozen=True)
class ObservationSpec:
    """Kind, channel axis and bounds of an observation.

    Args:
        space: of one observation.
        kind: see the module.
        channels: whether the channels of codes, pictures and planes are the first or the last of their last
            three axes. Images with two axes have one channel; those with four are stacks of images.
        high: the value of pictures and planes that is scaled to 1, if not the upper bound of the space.
    """

    space: Box
    kind: Kind
    channels: Channels = "last"
    high: float | None = None

    @property
    def channel_axis(self) -> int:
        """The axis of features or channels, as a negative index."""
        return -3 if self.kind in ("pictures", "planes") and self.channels == "first" else -1

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The values that are scaled to 0 and to 1, each of the shape of an observation, float32."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.space.low, self.space.high))
        return (low, high) if self.high is None else (low, np.full_like(high, self.high))

    def check(self, observations: np.ndarray) -> str:
        """Check observations, (B, ...), against this kind.

        Returns:
            A warning in one line if they look suspicious, else an empty string.

        Raises:
            ValueError: they are not of this kind.
        """
        if self.kind == "codes" and (observations[..., :3] >= CODES).any():
            raise ValueError(
                f"observations are not MiniGrid's codes, which are below {CODES}: set --stream.observations "
                f"to pictures, planes or vectors"
            )
        if self.kind not in ("pictures", "planes"):
            return ""
        high, highest = float(self.bounds[1].max()), float(observations.max())
        if highest > high / 16:
            return ""
        return (
            f"warning: none of the first {len(observations)} observations was above {highest:g}, but "
            f"{high:g}, the highest value of their space, is scaled to 1"
        )

    def __str__(self) -> str:
        """Describe it in one line."""
        shape = " x ".join(map(str, self.space.shape)) or "one number"
        if self.kind == "vectors":
            return f"vectors of {math.prod(self.space.shape)} numbers"
        if self.kind == "codes" or len(self.space.shape) == 2:
            return f"{self.kind}, {shape}"
        return f"{self.kind}, {shape}, channels {self.channels}"


def read_observations(
    space: gym.Space, kind: Kind | Literal["auto"] = "auto", channels: Channels | Literal["auto"] = "auto"
) -> ObservationSpec:
    """The kind of the observations of a space: as flags say, else derived from dtype, bounds and shape.

    Raises:
        ValueError: they are not arrays, contradict a flag, or the channel axis is ambiguous.
    """
    if not isinstance(space, Box):
        raise ValueError(f"observations must be arrays of numbers, a Box, not {space}; {REMEDY}")
    if kind == "auto" and (space.dtype not in (np.uint8, np.bool_) or len(space.shape) not in (2, 3, 4)):
        kind = "vectors"
    elif kind == "auto":
        kind = "pictures" if space.dtype == np.uint8 and space.high.max() == 255 else "planes"
    if kind == "vectors":
        if channels != "auto":
            raise ValueError(f"--stream.channels has no effect: observations are vectors, of {space}")
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
    """Whether an image of this shape has its channels first or last.

    Two equal sides are height and width; without these, an axis of at most four is the channels.
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
        f"the channels of observations of shape {tuple(shape)} may be their first or their last axis: set "
        f"--stream.channels first or last, or --stream.observations vectors"
    )


def zeros(space: gym.Space, *shape: int) -> Tensor:
    """Zeros for a batch of elements of an array space, (*shape, ...), in the space's dtype."""
    return torch.from_numpy(np.zeros((*shape, *space.shape), space.dtype))  # type: ignore[misc]


class Preprocessing:
    """Turns raw observations into the agent's: optional normalization and a one-hot task id.

    Args:
        raw: the kind of raw observations.
        normalizer: normalize by a running mean and variance, which a switch keeps or resets.
        tasks: numbers of the recurring tasks if a one-hot task id shall be appended, to vectors as numbers or
            to images as channels; else empty.
        device: the agent's.

    Raises:
        ValueError: the observations cannot be normalized, or no task id can be appended.
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
        self.loaded = False  # whether the normalizer's statistics were loaded
        self.reset_at_switch = normalizer == "reset"
        if normalizer != "none":
            self.spec = _normalized(self.spec)
            self.normalizer = Normalizer(self.spec.space.shape, self.device)
        if self.tasks:
            self.spec = _with_task_id(self.spec, len(self.tasks))

    def __call__(self, observations: Tensor, task: int, learn: bool = False) -> Tensor:
        """Preprocess observations (B, ...) of a task; with ``learn`` the normalizer is updated first."""
        if self.normalizer is None and not self.tasks:
            return observations
        seen = to_device(observations, self.device)
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
        """Reset the normalizer, unless its statistics were loaded: they belong to the policy."""
        if self.normalizer is not None and not self.loaded:
            self.normalizer.reset()

    def switch(self) -> None:
        """Reset the normalizer after a switch, if it is to be."""
        if self.normalizer is not None and self.reset_at_switch:
            self.normalizer.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state of the normalizer."""
        return {} if self.normalizer is None else self.normalizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the normalizer."""
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state)
            self.loaded = True


def _normalized(spec: ObservationSpec) -> ObservationSpec:
    """The spec of normalized observations."""
    space = spec.space
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"a normalizer needs observations of floating-point numbers, not {space}")
    clip = Normalizer.clip
    return dataclasses.replace(spec, space=Box(-clip, clip, space.shape, np.float32))


def _with_task_id(spec: ObservationSpec, tasks: int) -> ObservationSpec:
    """The spec of observations with an appended one-hot task id."""
    space, axis = spec.space, spec.channel_axis
    if len(space.shape) != 1 and (spec.kind == "vectors" or len(space.shape) == 2):
        raise ValueError(f"a task id is appended to vectors and images with channels, not to {space}")
    shape = list(space.shape)
    shape[axis] = tasks
    low, high = np.zeros(shape, space.dtype), np.full(shape, _one(spec), space.dtype)
    low, high = np.concatenate((space.low, low), axis), np.concatenate((space.high, high), axis)
    return dataclasses.replace(spec, space=Box(low, high, dtype=space.dtype.type))


def _one(spec: ObservationSpec) -> float:
    """The raw value of a 1 in a one-hot task id, which the agent's network scales to 1."""
    if spec.kind == "vectors":
        return 1.0
    return 255.0 if spec.kind == "codes" else float(spec.bounds[1].max())
