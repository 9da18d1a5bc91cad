"""On a GPU the host never waits within `update`."""

import copy

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.optim import (
    AdamConfig,
    AdamOConfig,
    Learner,
    MethodConfig,
    MuonConfig,
    OptimConfig,
    build_methods,
    heads,
)
from neoteny.optim.continual_backprop import ContinualBackpropConfig
from neoteny.optim.spectrum import IsometryConfig
from neoteny.runners.replay import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

METHODS: tuple[MethodConfig, ...] = (IsometryConfig(), ContinualBackpropConfig())


class Training:
    """An agent with random minibatches of grid images, one `update` at a time."""

    def __init__(self, name: str, optim: OptimConfig, methods: tuple[MethodConfig, ...] = ()) -> None:
        torch.manual_seed(1)
        spaces: gym.vector.VectorEnv = gym.vector.VectorEnv()
        spaces.single_observation_space = gym.spaces.Box(0, 255, (7, 7, 3), "uint8")
        spaces.single_action_space = gym.spaces.Discrete(7)
        kind = ppo.ActorCritic if name == "ppo" else dqn.QNetwork

        def new_agent() -> nn.Module:
            return kind(spaces, NetworkConfig((32,))).cuda()

        self.agent = new_agent()
        self.target = copy.deepcopy(self.agent).requires_grad_(False) if name == "dqn" else None
        self.optimizer = optim.build(self.agent, 1e-3, exclude=heads(self.agent))
        self.methods = build_methods(methods, Learner(self.agent, self.optimizer, new_agent, self.target))
        observations = torch.randint(2, (64, 7, 7, 3), dtype=torch.uint8, device="cuda")
        actions = torch.randint(7, (64,), device="cuda")
        numbers = torch.randn(3, 64, device="cuda")
        self.batch = (
            ppo.Batch(observations, actions, -numbers[0].abs(), *numbers[1:])
            if name == "ppo"
            else Batch(observations, actions, *numbers[:2], observations, torch.ones_like(numbers[0]))
        )

    def update(self) -> Tensor:
        parts = (self.optimizer, self.methods, self.batch)
        if self.target is None:
            return ppo.update(self.agent, *parts, ppo.Args())
        return dqn.update(self.agent, self.target, *parts, dqn.Args())


ARMS = {
    "adam": (AdamConfig(), ()),
    "adamo": (AdamOConfig(iso=0.1, iso_every=1), ()),
    "muon": (MuonConfig(), ()),
    "methods": (AdamConfig(), METHODS),
}


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", ["ppo", "dqn"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_host_never_waits_for_the_device(name, arm):
    training = Training(name, *ARMS[arm])
    for _ in range(3):
        training.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            training.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
