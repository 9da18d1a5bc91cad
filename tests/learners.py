"""Small networks with their optimizers and methods, which tests train step by step."""

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.optim import AdamConfig, Learner, MethodConfig, Methods, build_methods, heads
from neoteny.runners.replay import Batch as Transitions
from tests.simple_networks import conv_net, sequential


class Net(nn.Module):
    """A network with one part, as methods want it."""

    def __init__(self, net: nn.Sequential, *shape: int) -> None:
        super().__init__()
        self.net, self.example = net, torch.zeros(1, *shape)

    def encode(self, observations: Tensor) -> Tensor:
        return observations

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)

    def parts(self) -> dict[str, nn.Module]:
        return {"net": self.net}


def tiny() -> Net:
    return Net(sequential(linear=nn.Linear(2, 3), act=nn.ReLU(), head=nn.Linear(3, 2)), 2)


def convolutional() -> Net:
    return Net(conv_net(), 2, 5, 5)


def learner_of(new: Callable[[], nn.Module] = tiny, config: Any = None, target: bool = False) -> Learner:
    network = new()
    optimizer = (config or AdamConfig()).build(network, 1e-2, exclude=heads(network))
    followed = copy.deepcopy(network).requires_grad_(False) if target else None
    return Learner(network, optimizer, new, followed)


def seen_batch(observations: Tensor) -> Any:
    return SimpleNamespace(observations=observations)


def step(methods: Methods, observations: Tensor, loss: Callable[[Tensor], Tensor] = Tensor.sum) -> None:
    """A gradient step as agents make it."""
    learner, batch = methods.learner, seen_batch(observations)
    outputs = loss(learner.network(observations))
    learner.optimizer.zero_grad()
    (outputs + methods.penalty(batch)).backward()
    methods.add_gradients(batch)
    learner.optimizer.step()
    methods.after_step()
    methods.between_steps(batch)


def set_(parameter: Tensor, values: Any) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values))


def state_of(*parts: Any) -> list[Any]:
    return copy.deepcopy([part.state_dict() for part in parts])


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """All that nested dicts and sequences hold, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = {path: type(value)}
        for key, item in items:
            found |= leaves(item, f"{path}/{key}")
        return found
    return {path: value}


def same(now: Any, then: Any) -> bool:
    return torch.equal(now, then) if isinstance(now, Tensor) else now == then


def assert_same(now: Any, then: Any) -> None:
    now, then = leaves(now), leaves(then)
    assert list(now) == list(then)
    assert not [path for path, value in now.items() if not same(value, then[path])]


class Trained:
    """An agent with its optimizer and methods, and batches for it."""

    def __init__(
        self,
        name: str,
        stream: Any,
        methods: Sequence[MethodConfig] = (),
        optim: Any = None,
        shared: bool = False,
        network: NetworkConfig | None = None,
        **args: Any,
    ) -> None:
        network = network or NetworkConfig(hidden=(6, 5))
        module = ppo if name == "ppo" else dqn
        self.name, self.stream = name, stream
        self.args = module.Args(**args)

        def new_network() -> nn.Module:
            if name == "ppo":
                return ppo.ActorCritic(stream, network, shared)
            return dqn.QNetwork(stream, network, dueling=shared)

        self.network = new_network()
        self.optimizer = (optim or AdamConfig()).build(self.network, 1e-2, exclude=heads(self.network))
        self.target = copy.deepcopy(self.network).requires_grad_(False) if name == "dqn" else None
        learner = Learner(self.network, self.optimizer, new_network, self.target)
        self.methods = build_methods(methods, learner)

    def batch(self, size: int = 12) -> Any:
        space, rewards = self.stream.single_observation_space, torch.randn(3, size)
        seen = [torch.randn(size, *space.shape) for _ in range(2)]
        if space.shape[0] > 4 and len(space.shape) == 3:
            seen = [torch.randint(0, 3, (size, *space.shape), dtype=torch.uint8) for _ in range(2)]
        actions = torch.randint(0, int(self.stream.single_action_space.n), (size,))
        if self.name == "ppo":
            return ppo.Batch(seen[0], actions, -rewards[0].abs(), rewards[1], rewards[2])
        return Transitions(seen[0], actions, rewards[0], torch.rand(size), seen[1], torch.ones(size))

    def update(self, batch: Any, methods: Methods | None = None) -> None:
        methods = methods or self.methods
        learner = methods.learner
        if self.name == "ppo":
            ppo.update(learner.network, learner.optimizer, methods, batch, self.args)
        else:
            dqn.update(learner.network, learner.target, learner.optimizer, methods, batch, self.args)
        methods.between_steps(batch)
        if learner.target is not None:
            dqn.update_target(learner.target, learner.network, 0.1)
