import math

import torch

from neoteny.agents.rewards import learned_rewards


def test_rewards_are_scaled_or_clipped_by_hand():
    rewards = torch.tensor([-3.0, 0.0, 0.5])
    assert learned_rewards(rewards, 2.0, clip=False).tolist() == [-6.0, 0.0, 1.0]
    assert learned_rewards(rewards, 2.0, clip=True).tolist() == [-2.0, 0.0, 2.0]


def test_what_is_not_finite_is_not_hidden_by_clipping():
    clipped = learned_rewards(torch.tensor([math.nan, math.inf, -math.inf, 4.0]), 1.0, clip=True)
    assert clipped.isfinite().tolist() == [False, False, False, True]
