"""Rewards as the agents learn from them; logged returns stay those of the environments."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from neoteny.runners.disk.exit_codes import check_numbers


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How rewards are changed for training; logged returns are those of the environments."""

    normalizer: Literal["none", "keep", "reset"] = "keep"
    """Divide rewards by the running size of returns, which a switch keeps or resets."""
    clip: bool = False
    """Train on the sign of each reward."""
    scale: float = 1.0
    """Multiply rewards by this factor."""

    def __post_init__(self) -> None:
        check_numbers(self, ("scale",), prefix="rewards.")

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        if self.normalizer == "none":
            return {}
        return {"scale": f"--rewards.normalizer {self.normalizer} divides rewards by their scale"}


class RewardTransform:
    """Rewards as an agent learns from them.

    The normalizer divides them by the size of the returns so far, so that values are of the order of 1. The
    size is the root mean square of the discounted returns G <- reward + gamma * G since the start of each
    episode, over all steps so far and all sub-environments. Gymnasium's ``NormalizeReward`` (Engstrom et al.,
    2020) divides by their standard deviation instead, which is close to 0 where all returns are equal, as in
    an endless task with a constant reward.

    Args:
        config: flags.
        num_envs: N, the number of sub-environments.
        gamma: discount factor.
        device: of the statistics.
    """

    def __init__(
        self, config: RewardConfig, num_envs: int, gamma: float, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.gamma, self.task = config, gamma, 0
        self.is_normalized = config.normalizer != "none"
        self.returns = torch.zeros(num_envs, device=device)
        self.mean_square = torch.zeros((), dtype=torch.float64, device=device)
        self.count = torch.zeros_like(self.mean_square)  # of steps in it

    @property
    def scale(self) -> Tensor:
        """The number that rewards are divided by, (); 1 until a reward differs from 0."""
        return self.mean_square.sqrt().where(self.mean_square > 0, 1.0)

    def enter(self, task: int) -> None:
        """Enter the task of the next step: if it is another one, statistics may be reset."""
        if self.config.normalizer == "reset" and task != self.task:
            self.mean_square.zero_()
            self.count.zero_()
        self.task = task

    def observe(self, rewards: Tensor, done: Tensor) -> Tensor:
        """Clip and scale the rewards of a step, (N,), and update the statistics with them.

        Args:
            rewards: (N,), of the environments. A NaN stays a NaN, which ends the run.
            done: whether the step ended the episodes, (N,).

        Returns:
            The rewards to store, (N,): to be normalized when they are learned from.
        """
        if self.config.clip:
            rewards = rewards.sign().where(rewards.isfinite(), rewards * 0)  # sign makes 0 of a NaN
        if self.config.scale != 1:
            rewards = self.config.scale * rewards
        if self.is_normalized:
            torch.add(rewards, self.returns, alpha=self.gamma, out=self.returns)
            self.count.add_(1.0)
            mean = self.returns.square().mean(dtype=torch.float64)
            self.mean_square.lerp_(mean, self.count.reciprocal())
            self.returns.masked_fill_(done, 0.0)
        return rewards

    def normalize(self, rewards: Tensor) -> Tensor:
        """Divide rewards, or discounted sums of rewards, of any shape, by :attr:`scale`."""
        return rewards / self.scale.float() if self.is_normalized else rewards

    def begin_episodes(self) -> None:
        """Begin new episodes in all sub-environments, where the running ones could not be resumed."""
        self.returns.zero_()

    def statistics(self) -> dict[str, Tensor]:
        """The scale, (), for TensorBoard; empty if nothing is normalized."""
        return {"charts/reward_scale": self.scale} if self.is_normalized else {}

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the returns of the running episodes; empty if nothing is normalized."""
        if not self.is_normalized:
            return {}
        names = ("task", "returns", "mean_square", "count")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the statistics."""
        if self.is_normalized:
            self.task = state["task"]
            for name in ("returns", "mean_square", "count"):
                getattr(self, name).copy_(torch.as_tensor(state[name]))
