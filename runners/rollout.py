"""The steps that PPO learns from: those of a rollout, and minibatches of them."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from neoteny.envs import Stream
from neoteny.envs.observations import zeros
from neoteny.runners.memory import check_memory

OTHERS = 6 * 4 + 1 + 2 * 8
"""Bytes of a step besides observation and action: six floats, a flag, and its number in a permutation."""


class Batch(NamedTuple):
    """Transitions to train on, (B, ...)."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor  # under the policy that collected the rollout
    advantages: Tensor
    returns: Tensor  # regression targets of the value function


class Rollout(NamedTuple):
    """T steps of N sub-environments, (T, N, ...)."""

    t: Tensor  # (1,), number of steps so far
    observations: Tensor  # (T + 1, N, ...): before each step and after the last one
    actions: Tensor
    log_probs: Tensor
    values: Tensor  # of the observations before each step
    rewards: Tensor
    done: Tensor  # whether the step ended its episode, by termination or truncation
    final_values: Tensor  # value of the final observation where an episode was truncated, else 0
    advantages: Tensor
    returns: Tensor  # advantages + values

    @classmethod
    def zeros(cls, num_steps: int, stream: Stream, device: torch.device) -> Rollout:
        """An empty buffer for ``num_steps`` steps of a stream; ValueError if the memory is too small."""
        shape = (num_steps, stream.num_envs)
        spaces = stream.single_observation_space, stream.single_action_space
        step = sum(math.prod(space.shape or ()) * np.dtype(space.dtype).itemsize for space in spaces)
        of_step = "--num-steps and --num-envs make a rollout that"
        check_memory(of_step, (num_steps + 1) * stream.num_envs * (step + OTHERS), device)
        observations = zeros(stream.single_observation_space, num_steps + 1, stream.num_envs).to(device)
        if observations.dtype in (torch.uint16, torch.uint32, torch.uint64):
            observations = observations.float()  # PyTorch has few operations for these types
        actions = zeros(stream.single_action_space, *shape).to(device)
        log_probs, values, rewards, *later = (torch.zeros(shape, device=device) for _ in range(6))
        done = torch.zeros(shape, dtype=torch.bool, device=device)
        t = torch.full((1,), num_steps, device=device)
        return cls(t, observations, actions, log_probs, values, rewards, done, *later)

    def begin(self) -> None:
        """Begin anew with the observations after the last step."""
        self.observations[0] = self.observations[-1]
        self.final_values.zero_()
        self.t.zero_()

    @property
    def observation(self) -> Tensor:
        """The observations before the current step, (N, ...)."""
        row = self.row()
        return self.observations[row] if isinstance(row, int) else self.observations.index_select(0, row)[0]

    def row(self) -> Tensor | int:
        """Index of the current step: a number, which is faster, where to read it takes no time."""
        is_read = self.t.is_cpu and not torch.compiler.is_compiling()
        return self.t.item() if is_read else self.t  # type: ignore[return-value]

    def add(self, **fields: Tensor) -> None:
        """Store fields of the current step, (N, ...)."""
        row = self.row()
        if isinstance(row, int):
            for name, value in fields.items():
                getattr(self, name)[row] = value
            return
        for name, value in fields.items():
            field: Tensor = getattr(self, name)
            field.index_copy_(0, row, value[None].to(field.dtype))

    def advance(self, observation: Tensor) -> None:
        """End the current step with the observations after it, (N, ...)."""
        self.t.add_(1)
        self.add(observations=observation)

    def observed(self) -> dict[str, Tensor]:
        """What depends on the environments, by name; it is finite if they are."""
        return {name: getattr(self, name) for name in ("observations", "rewards", "final_values")}

    def flat(self) -> Batch:
        """All transitions as a batch of T * N, in the memory of the rollout."""
        fields = (self.observations[:-1], self.actions, self.log_probs, self.advantages, self.returns)
        return Batch(*(field.flatten(0, 1) for field in fields))


Rows = TypeVar("Rows", bound=NamedTuple)


def select(batch: Rows, chosen: Tensor) -> Rows:
    """The chosen rows of a tuple of tensors (B, ...), by their numbers, (b,)."""
    # Ten times as fast as indexing. The compiler knows constructors of tuples, but not all of their methods.
    return type(batch)(*[field.index_select(0, chosen) for field in batch])
