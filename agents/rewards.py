"""Rewards as the agents learn from them; logged returns stay those of the environments."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

RewardNormalization = Literal["none", "keep", "reset"]


def learned_rewards(rewards: Tensor, scale: float, clip: bool) -> Tensor:
    """Rewards (N,), or their signs with ``clip``, times ``scale``. A NaN stays a NaN, which ends the run."""
    if clip:
        rewards = rewards.sign().where(rewards.isfinite(), rewards * 0)  # sign makes 0 of a NaN
    return scale * rewards


class RewardNormalizer:
    """Divides rewards by the size of the returns so far, so that values are of the order of 1.

    The size is the root mean square of the discounted returns G <- reward + gamma * G since the start of each
    episode, over all steps so far and all sub-environments. Gymnasium's ``NormalizeReward`` (Engstrom et al.,
    2020) divides by their standard deviation instead, which is close to 0 where all returns are equal, as in
    an endless task with a constant reward.

    Args:
        mode: ``none`` leaves rewards as they are, ``keep`` keeps the statistics across a switch of the task,
            ``reset`` starts them anew with each task.
        num_envs: N, the number of sub-environments.
        gamma: discount factor.
        device: of the statistics.
    """

    def __init__(
        self, mode: RewardNormalization, num_envs: int, gamma: float, device: torch.device | str = "cpu"
    ) -> None:
        self.mode, self.gamma, self.task, self.count = mode, gamma, 0, 0
        self.returns = torch.zeros(num_envs, device=device)
        self.mean_square = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def scale(self) -> Tensor:
        """The number that rewards are divided by, (); 1 until a reward differs from 0."""
        return self.mean_square.sqrt().where(self.mean_square > 0, 1.0)

    def observe(self, rewards: Tensor, done: Tensor, task: int) -> None:
        """Update the statistics with one step: rewards (N,), whether it ended the episodes (N,), its task."""
        if self.mode == "none":
            return
        if self.mode == "reset" and task != self.task:
            self.mean_square.zero_()
            self.count = 0
        self.task = task
        torch.add(rewards, self.returns, alpha=self.gamma, out=self.returns)
        self.count += 1
        self.mean_square.lerp_(self.returns.square().mean(dtype=torch.float64), 1 / self.count)
        self.returns.masked_fill_(done, 0.0)

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards, or discounted sums of rewards, of any shape, divided by :attr:`scale`."""
        return rewards if self.mode == "none" else rewards / self.scale.float()

    def metrics(self) -> dict[str, float]:
        """The scale, for TensorBoard; empty if nothing is normalized."""
        return {} if self.mode == "none" else {"charts/reward_scale": float(self.scale)}

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the returns of the running episodes; empty if nothing is normalized."""
        if self.mode == "none":
            return {}
        names = ("task", "returns", "mean_square", "count")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the statistics."""
        for name in self.state_dict():
            if isinstance(state[name], Tensor):
                getattr(self, name).copy_(state[name])
            else:
                setattr(self, name, state[name])
