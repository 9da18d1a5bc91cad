"""Sizes are compared with what is free before anything is allocated."""

import pytest
import torch
from torch import nn

from neoteny.optim.orthogonal import orthogonalize
from neoteny.runners import memory
from neoteny.runners.memory import check_memory, check_minibatch, checked_weights, free_memory


@pytest.fixture
def free(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_000)


def test_what_is_free_is_known_or_not(monkeypatch):
    assert free_memory(torch.device("cpu")) is None or free_memory(torch.device("cpu")) > 0
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    check_memory("all", 10**30)


def test_a_size_is_refused_above_what_is_free(free):
    check_memory("a rollout", 1_000)
    with pytest.raises(
        ValueError, match=r"^a rollout needs 1,001 bytes and 1,000 are free in the memory of cpu$"
    ):
        check_memory("a rollout", 1_001)


def test_weights_are_refused_before_they_are_filled(free, monkeypatch):
    filled = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: filled.append(self.weight.numel()))
    with checked_weights():
        nn.Linear(7, 8)  # 16 bytes for each of 56 weights
    with pytest.raises(ValueError, match=r"a weight of 9 x 7 .* needs 1,008 bytes"), checked_weights():
        nn.Linear(7, 9)
    assert filled == [56]
    nn.Linear(7, 9)  # the check is over


def test_weights_that_no_address_space_holds_are_refused():
    with pytest.raises(ValueError, match="do not fit in the memory"), checked_weights():
        nn.Linear(10**9, 10**9)
    with pytest.raises(RuntimeError, match="another"), checked_weights():
        raise RuntimeError("another")


class Agent(nn.Module):
    """Five inputs, four hidden units, one output."""

    def __init__(self, is_orthogonal):
        super().__init__()
        first = nn.Linear(5, 4)
        self.layers = nn.Sequential(
            orthogonalize(first) if is_orthogonal else first, nn.ReLU(), nn.Linear(4, 1)
        )
        self.example = torch.zeros(1, 5)

    def forward(self, observations):
        return self.layers(observations)


def test_a_minibatch_is_refused_by_its_activations(free):
    agent = Agent(is_orthogonal=False)
    check_minibatch(agent, 8, "--batch-size")  # 14 numbers and their gradients, 112 bytes a sample
    with pytest.raises(ValueError, match=r"^a minibatch of 9 \(--batch-size\) needs 1,008 bytes"):
        check_minibatch(agent, 9, "--batch-size")


def test_weights_that_are_computed_are_no_activations(free):
    check_minibatch(Agent(is_orthogonal=True), 8, "--batch-size")
