import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoteny.agents.activations import Abs
from neoteny.optim import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    Event,
    Learner,
    Method,
    MethodConfig,
    Methods,
    MuonConfig,
    orthogonalize,
)
from neoteny.optim.orthogonal import raw_weight
from neoteny.runners.probes.plasticity import NextTask, learn, plasticity
from tests.simple_networks import sequential

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Bare(nn.Module):
    """A network that sees observations as they are."""

    example = torch.zeros(1, 6)

    def encode(self, observations: Tensor) -> Tensor:
        return observations

    def parts(self) -> dict[str, nn.Module]:
        return {"net": self}


class TwoParts(Bare):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.actor, self.critic = (
            sequential(
                linear1=nn.Linear(6, width),
                act1=nn.ReLU(),
                linear2=nn.Linear(width, width),
                act2=nn.ReLU(),
                head=nn.Linear(width, outputs),
            )
            for outputs in (3, 1)
        )

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(observations), self.critic(observations)

    def parts(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic}


def adam(agent: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(agent.parameters(), lr=3e-3)


def without_methods(agent: nn.Module, optimizer: torch.optim.Optimizer) -> Methods:
    return Methods((), Learner(agent, optimizer, TwoParts))


def measured(agent: nn.Module, optimizer: torch.optim.Optimizer, **changes) -> dict[str, float]:
    values = plasticity(without_methods(agent, optimizer), INPUTS, adam, **changes)
    return {tag.removeprefix("plasticity/"): value.item() for tag, value in values.items()}


def test_the_fraction_by_hand():
    class Constant(Bare):
        """An output that is one number: only the mean of the changes can be learned."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([5.0]))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bias.expand(len(inputs), 1)

    agent = Constant()
    changes = {"net": torch.tensor([[1.0], [3.0]])}  # gap 5 at first, 1 at best
    methods = without_methods(agent, torch.optim.SGD(agent.parameters(), lr=0.5))
    fractions = learn(methods, torch.zeros(2, 1), changes, steps=1)
    assert fractions["net"].item() == pytest.approx(0.8)
    assert agent.bias.item() == pytest.approx(7.0)


def test_the_fraction_of_the_next_task_by_hand():
    agent = Bare()
    agent.bias = nn.Parameter(torch.tensor([5.0]))
    agent.forward = lambda inputs: agent.bias.expand(len(inputs), 1)
    methods = without_methods(agent, torch.optim.SGD(agent.parameters(), lr=0.5))
    # Loss 5 at first, and 1 after a step to the best constant.
    next_task = NextTask(torch.zeros(2, 1), torch.tensor([[6.0], [8.0]]), F.mse_loss)
    fractions = learn(methods, next_task.observations, {}, 1, next_task)
    assert fractions["net"].item() == pytest.approx(0.8)
    assert agent.bias.item() == pytest.approx(7.0)


def test_the_change_is_as_large_as_outputs_differ():
    class Free(Bare):
        """Outputs that are numbers of their own."""

        def __init__(self, outputs: list[float]) -> None:
            super().__init__()
            self.outputs = nn.Parameter(torch.tensor([outputs]).T)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outputs.clone()

    for outputs, size in (([0.0, 0.2], 1.0), ([10.0, 18.0], 4.0)):
        agent = Free(outputs)
        methods = without_methods(agent, torch.optim.SGD(agent.parameters(), lr=0.5))
        fractions = learn(methods, torch.zeros(2, 1), {"net": torch.tensor([[1.0], [-1.0]])}, steps=1)
        # The gradient of the mean of squares is the error itself, so that a step goes half of the way.
        moved = agent.outputs.detach().flatten() - torch.tensor(outputs)
        assert moved.tolist() == pytest.approx([0.5 * size, -0.5 * size])
        assert fractions["net"].item() == pytest.approx(0.75)


def test_a_dead_network_has_no_plasticity_and_a_fresh_one_has():
    torch.manual_seed(1)
    agent = TwoParts()
    for net in agent.parts().values():
        nn.init.constant_(net.linear1.bias, -100.0)
    values = measured(agent, adam(agent))
    assert values["fraction_eliminated"] < 0.05
    assert values["fraction_eliminated_new_optimizer"] < 0.05
    assert 0.5 < values["fresh"] <= 1.0
    assert values["lost"] == pytest.approx(values["fresh"] - values["fraction_eliminated"])
    for part in ("actor", "critic"):
        assert values[f"fraction_eliminated/{part}"] < 0.05
        assert values[f"fresh/{part}"] > 0.5


@pytest.mark.slow
def test_a_fresh_network_has_lost_nothing():
    lost = []
    for seed in range(20):
        torch.manual_seed(100 + seed)
        agent = TwoParts()
        lost.append(measured(agent, adam(agent), seed=seed, steps=50)["lost"])
    values = torch.tensor(lost)
    assert abs(values.mean()) < 2.5 * values.std() / 20**0.5
    assert values.std() < 0.1  # else anything would be within noise


def test_the_state_of_the_optimizer_counts():
    torch.manual_seed(1)
    agent = TwoParts()
    optimizer = adam(agent)
    for parameter in agent.parameters():  # second moments of enormous gradients: steps of almost nothing
        optimizer.state[parameter] = {
            "step": torch.tensor(1e6),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.full_like(parameter, 1e12),
        }
    values = measured(agent, optimizer)
    assert values["fraction_eliminated"] < 0.01
    assert values["fraction_eliminated_new_optimizer"] > 0.5


def test_the_gap_does_not_depend_on_what_the_outputs_were():
    torch.manual_seed(1)
    agent = TwoParts()
    shifted = copy.deepcopy(agent)
    with torch.no_grad():
        shifted.critic.head.bias += 100.0
    assert measured(shifted, adam(shifted)) == pytest.approx(measured(agent, adam(agent)), abs=0.02)


@dataclass(frozen=True)
class WatchfulConfig(MethodConfig):
    """A method that acts on everything: a penalty, after steps, and between them."""

    name: ClassVar[str] = "watchful"

    def build(self, learner: Learner) -> Method:
        return Watchful(learner)


class Watchful(Method):
    every = 2

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.batches: list[Tensor] = []
        self.began_at: list[int] = []
        self.sizes = torch.zeros(())

    def watches(self) -> list:
        return [layer for layer in self.learner.layers(connected=True) if not layer.is_head]

    def penalty(self, batch: Any) -> Tensor:
        self.batches.append(batch.observations)
        return 1e-3 * sum(weight.square().sum() for weight in self.learner.network.parameters())

    def after_step(self, seen: Any) -> None:
        self.sizes = self.sizes + sum(activations.abs().mean() for activations in seen.activations.values())

    def on(self, event: Event) -> dict[str, float]:
        self.began_at.append(event.steps)
        with torch.no_grad():
            for layer in self.watches():
                layer.weight.mul_(0.999)
        return {"acted": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"began_at": list(self.began_at), "batches": len(self.batches), "sizes": self.sizes.clone()}


def orthogonal_parts() -> TwoParts:
    """The same, its first layers kept orthogonal."""
    network = TwoParts()
    for part in network.parts().values():
        orthogonalize(part.linear1)
        part.act1 = Abs()
    return network


CASES = {
    "adamo": (AdamOConfig(iso=1.0), (), TwoParts),
    "muon": (MuonConfig(), (), TwoParts),
    "watchful": (AdamConfig(), (WatchfulConfig(),), TwoParts),
    "isometry": (AdamConfig(), (METHODS["isometry"](),), TwoParts),
    "orthogonal": (AdamConfig(), (METHODS["reorthogonalize"](every=2),), orthogonal_parts),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_disturbed(case, mode):
    torch.manual_seed(1)
    config, method_configs, new_network = CASES[case]
    agent = new_network()

    def new_optimizer(agent: nn.Module) -> torch.optim.Optimizer:
        return config.build(agent, 1e-3)

    optimizer = new_optimizer(agent)
    methods = Methods(method_configs, Learner(agent, optimizer, new_network))
    learn(methods, INPUTS, {"actor": torch.ones(64, 3), "critic": torch.ones(64, 1)}, steps=3)

    def state() -> dict[str, Any]:
        moments, acted = optimizer.state_dict()["state"], methods.state_dict()
        tensors = {"agent": agent.state_dict(), "moments": moments, "acted": acted.pop("methods")}
        return {**tensors, **acted}

    before, groups = copy.deepcopy((state(), optimizer.state_dict()["param_groups"]))
    gradients = [parameter.grad.clone() for parameter in agent.parameters()]
    random_state = torch.get_rng_state()
    with mode():
        values = plasticity(methods, INPUTS, new_optimizer, steps=20)
    assert all(value.isfinite() for value in values.values())
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == groups
    assert before["steps"] == 3
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(agent.parameters(), gradients))
    # Watched layers are still observed, of this network alone.
    agent(INPUTS)
    assert len(methods.seen.activations) == (4 if case == "watchful" else 0)


def test_methods_act_on_copies_and_new_networks():
    built: list[Watchful] = []

    @dataclass(frozen=True)
    class Listed(WatchfulConfig):
        def build(self, learner: Learner) -> Method:
            built.append(Watchful(learner))
            return built[-1]

    torch.manual_seed(1)
    agent = TwoParts()
    methods = Methods((Listed(),), Learner(agent, adam(agent), TwoParts))
    learn(methods, INPUTS, {"actor": torch.ones(64, 3), "critic": torch.ones(64, 1)}, steps=3)
    copies, deepcopy = [], copy.deepcopy

    def kept(value: Any, *memo: Any) -> Any:
        copies.append(deepcopy(value, *memo))
        return copies[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "deepcopy", kept)
        plasticity(methods, INPUTS, adam, steps=5)
    as_it_is, restarted = (made for made in copies if isinstance(made, Methods))
    original, fresh = built
    assert original.began_at == [2]
    for made in (as_it_is.methods["watchful"], restarted.methods["watchful"]):
        assert made.began_at == [2, 4, 6, 8]
        assert len(made.batches) == 3 + 5
        assert torch.equal(made.batches[-1], INPUTS)
        assert made.sizes > original.sizes > 0
    assert fresh.began_at == [2, 4]
    assert len(fresh.batches) == 5
    assert fresh.sizes > 0
    learners = [method.learner for method in (original, as_it_is.methods["watchful"], fresh)]
    learners += [restarted.methods["watchful"].learner]
    assert len({id(learner.network) for learner in learners}) == 4
    for learner in learners:
        assert not learner.problem()  # optimizer and network belong together
        assert all(layer.module in set(learner.network.modules()) for layer in learner.layers())
    steps = [next(iter(learner.optimizer.state.values()))["step"].item() for learner in learners]
    assert steps == [3, 8, 5, 5]


def test_a_penalty_and_an_event_count_in_what_is_learned():
    class Held(Method):
        every = 1

        def __init__(self, learner: Learner) -> None:
            self.learner = learner

    class Pulling(Held):
        every = 0

        def penalty(self, batch: Any) -> Tensor:
            return self.learner.network.bias.square().sum()

    class Undoing(Held):
        def on(self, event: Event) -> dict[str, float]:
            with torch.no_grad():
                self.learner.network.bias.fill_(5.0)
            return {}

    class Constant(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([5.0]))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bias.expand(len(inputs), 1)

    changes = {"net": torch.tensor([[1.0], [3.0]])}
    # The loss's gradient is -4 at first, the penalty's is 10, with the learning rate of 0.5.
    for kind, expected in ((Held, 7.0), (Pulling, 2.0), (Undoing, 5.0)):

        @dataclass(frozen=True)
        class Config(MethodConfig):
            name: ClassVar[str] = "held"

            def build(self, learner: Learner, kind=kind) -> Method:
                return kind(learner)

        agent = Constant()
        learner = Learner(agent, torch.optim.SGD(agent.parameters(), lr=0.5), Constant)
        fraction = learn(Methods((Config(),), learner), torch.zeros(2, 1), changes, steps=1)["net"].item()
        assert agent.bias.item() == pytest.approx(expected)
        assert fraction == pytest.approx(1 - ((expected - 7.0) ** 2 + 1) / 5)


def test_copies_of_orthogonal_layers_have_raw_weights_of_their_own():
    torch.manual_seed(1)
    agent = orthogonal_parts()
    methods = Methods((METHODS["reorthogonalize"](every=2),), Learner(agent, adam(agent), orthogonal_parts))
    before = raw_weight(agent.actor.linear1).clone()
    copied = copy.deepcopy(methods)
    learn(copied, INPUTS, {"actor": torch.ones(64, 3), "critic": torch.ones(64, 1)}, steps=2)
    assert torch.equal(raw_weight(agent.actor.linear1), before)
    raw = raw_weight(copied.learner.network.actor.linear1)
    sigma = torch.linalg.svdvals(raw.detach())
    torch.testing.assert_close(sigma, torch.ones_like(sigma), atol=1e-5, rtol=0)
    assert not torch.allclose(raw, before, atol=1e-3)


def test_equal_seeds_are_equal_tasks():
    torch.manual_seed(1)
    agent = TwoParts()
    optimizer = adam(agent)
    first = measured(agent, optimizer, seed=3, steps=10)
    torch.manual_seed(2)
    assert measured(agent, optimizer, seed=3, steps=10) == first
    assert measured(agent, optimizer, seed=4, steps=10) != first


def test_a_diverged_network_gives_nan():
    agent = TwoParts()
    nn.init.constant_(agent.actor.head.weight, float("nan"))
    values = measured(agent, adam(agent), steps=3)
    assert values["fraction_eliminated/actor"] != values["fraction_eliminated/actor"]
    assert values["fresh/actor"] == values["fresh/actor"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    agent = TwoParts().cuda()
    learner = Learner(agent, adam(agent), lambda: TwoParts().cuda())
    values = plasticity(Methods((), learner), INPUTS.cuda(), adam)
    assert all(value.is_cuda and value.isfinite() for value in values.values())
