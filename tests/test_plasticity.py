import copy

import pytest
import torch
from torch import Tensor, nn

from neoteny.optim import AdamOConfig, MuonConfig
from neoteny.runners.plasticity import learn, plasticity
from tests.simple_networks import sequential

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class TwoParts(nn.Module):
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

    def parts(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic}


def adam(agent: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(agent.parameters(), lr=3e-3)


def measured(agent: nn.Module, optimizer: torch.optim.Optimizer, **changes) -> dict[str, float]:
    values = plasticity(agent, optimizer, INPUTS, TwoParts, adam, **changes)
    return {tag.removeprefix("plasticity/"): value.item() for tag, value in values.items()}


def test_the_fraction_by_hand():
    class Constant(nn.Module):
        """An output that is one number: only the mean of the changes can be learned."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([5.0]))

        def parts(self) -> dict[str, nn.Module]:
            return {"net": self}

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bias.expand(len(inputs), 1)

    agent = Constant()
    changes = {"net": torch.tensor([[1.0], [3.0]])}  # gap 5 at first, 1 at best
    fractions = learn(agent, torch.optim.SGD(agent.parameters(), lr=0.5), torch.zeros(2, 1), changes, steps=1)
    assert fractions["net"].item() == pytest.approx(0.8)
    assert agent.bias.item() == pytest.approx(7.0)


def test_the_change_is_as_large_as_outputs_differ():
    class Free(nn.Module):
        """Outputs that are numbers of their own."""

        def __init__(self, outputs: list[float]) -> None:
            super().__init__()
            self.outputs = nn.Parameter(torch.tensor([outputs]).T)

        def parts(self) -> dict[str, nn.Module]:
            return {"net": self}

        def forward(self, inputs: Tensor) -> Tensor:
            return self.outputs.clone()

    for outputs, size in (([0.0, 0.2], 1.0), ([10.0, 18.0], 4.0)):
        agent = Free(outputs)
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.5)
        fractions = learn(
            agent, optimizer, torch.zeros(2, 1), {"net": torch.tensor([[1.0], [-1.0]])}, steps=1
        )
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


@pytest.mark.parametrize("config", [AdamOConfig(iso=1.0), MuonConfig()], ids=["adamo", "muon"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_disturbed(config, mode):
    torch.manual_seed(1)
    agent = TwoParts()

    def new_optimizer(agent: nn.Module) -> torch.optim.Optimizer:
        return config.build(agent, 1e-3)

    optimizer = new_optimizer(agent)
    learn(agent, optimizer, INPUTS, {"actor": torch.ones(64, 3), "critic": torch.ones(64, 1)}, steps=3)
    before = copy.deepcopy((agent.state_dict(), optimizer.state_dict()))
    gradients = [parameter.grad.clone() for parameter in agent.parameters()]
    state = torch.get_rng_state()
    with mode():
        values = plasticity(agent, optimizer, INPUTS, TwoParts, new_optimizer, steps=20)
    assert all(value.isfinite() for value in values.values())
    assert torch.equal(torch.get_rng_state(), state)
    for now, then in zip(
        (agent.state_dict(), optimizer.state_dict()["state"]), (before[0], before[1]["state"])
    ):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(agent.parameters(), gradients))


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
    values = plasticity(agent, adam(agent), INPUTS.cuda(), lambda: TwoParts().cuda(), adam)
    assert all(value.is_cuda and value.isfinite() for value in values.values())
