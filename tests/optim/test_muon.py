"""Muon and AdamW as one optimizer: torch's own steps, bit for bit, and an optimizer like any other."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from neoteny.optim import MuonAdamW, MuonO
from tests.simple_networks import backward, isometry_gradient

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]
MUON = {"momentum": 0.9, "ns_steps": 4}
ADAMW = {"betas": (0.8, 0.95), "eps": 1e-5, "fused": True}
BOTH = {"lr": 1e-2, "weight_decay": 0.1}


def network(device: str = "cpu") -> nn.Sequential:
    """Convolution, a tall and a wide matrix and a head, always the same."""
    torch.manual_seed(0)
    torso = (nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh())
    return nn.Sequential(*torso, nn.Linear(12, 3)).to(device)


def split(module: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Hidden matrices and the others, by name."""
    named = list(module.named_parameters())
    matrices = [(name, param) for name, param in named if name in ("2.weight", "4.weight")]
    return matrices, [(name, param) for name, param in named if name not in ("2.weight", "4.weight")]


def optimizer(module: nn.Module, **options: object) -> MuonAdamW:
    matrices, others = split(module)
    groups = [{"params": matrices, "kind": "muon"}, {"params": others, "kind": "adamw"}]
    return MuonAdamW(groups, **{**BOTH, **MUON, **ADAMW, **options})


def pair(module: nn.Module, **options: object) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """What torch has for it: two optimizers."""
    matrices, others = split(module)
    return (
        torch.optim.Muon(matrices, **BOTH, **MUON, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, **{**BOTH, **ADAMW, **options}),
    )


def train(module: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...], steps: range) -> None:
    for step in steps:
        backward(module, step)
        for each in optimizers:
            each.step()


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, p), q in zip(left.named_parameters(), right.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [True, None])
def test_it_steps_as_torchs_two_optimizers_bit_for_bit(device: str, fused: bool | None) -> None:
    ours, theirs = network(device), network(device)
    one, two = (optimizer(ours, fused=fused),), pair(theirs, fused=fused)
    for each in (*one, *two):
        assert all(group["lr"] == 1e-2 for group in each.param_groups)
    for round in range(3):
        train(ours, one, range(5 * round, 5 * round + 5))
        train(theirs, two, range(5 * round, 5 * round + 5))
        assert_same(ours, theirs)
        for each in (*one, *two):
            for group in each.param_groups:
                group["lr"] *= 0.3
    ours_state = {id_: one[0].state[param] for id_, param in ours.named_parameters()}
    for name, param in theirs.named_parameters():
        state = next(each.state[param] for each in two if param in each.state)
        assert state.keys() == ours_state[name].keys()
        assert all(torch.equal(state[key], ours_state[name][key]) for key in state)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    ours, theirs = network(), network()
    for module, optimizers in ((ours, (optimizer(ours),)), (theirs, pair(theirs))):
        for step in range(4):
            backward(module, step)
            if step % 2:
                module[2].weight.grad = module[6].bias.grad = None
            for each in optimizers:
                each.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_continue_bit_for_bit(clone: Callable) -> None:
    module = network()
    original = optimizer(module)
    train(module, (original,), range(3))
    other, copied = clone((module, original))
    assert type(copied) is MuonAdamW
    train(module, (original,), range(3, 6))
    train(other, (copied,), range(3, 6))
    assert_same(module, other)


def test_a_schedule_and_a_closure_act_as_on_any_optimizer() -> None:
    module = network()
    one = optimizer(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 - step)
    assert one.step(lambda: backward(module, 0)) == backward(network(), 0)
    schedule.step()
    before = copy.deepcopy(module)
    one.step()
    assert_same(module, before)


def test_a_group_added_later_is_stepped_with_options_of_its_own() -> None:
    layer, extra = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    one = MuonAdamW([{"params": layer.parameters(), "kind": "muon"}], weight_decay=0.0)
    one.add_param_group({"params": extra.parameters(), "kind": "muon", "lr": 0.0})
    before = copy.deepcopy((layer, extra))
    nn.Sequential(layer, extra)(torch.randn(8, 4)).square().mean().backward()
    one.step()
    assert not torch.equal(layer.weight, before[0].weight)
    assert torch.equal(extra.weight, before[1].weight)


REFUSED = {
    "the kind of a parameter group must be 'muon' or 'adamw', not None": {},
    "not 'sgd'": {"kind": "sgd"},
    r"Muon steps matrices, but parameter bias has shape \(4,\)": {"kind": "muon"},
    "lr must be finite and not negative": {"kind": "adamw", "lr": float("nan")},
    "weight_decay must be finite": {"kind": "adamw", "weight_decay": -1.0},
    "eps must be finite": {"kind": "adamw", "eps": float("inf")},
    r"betas must lie in \[0, 1\)": {"kind": "adamw", "betas": (0.9, 1.0)},
    r"momentum must lie in \[0, 1\)": {"kind": "adamw", "momentum": 1.0},
    r"ns_steps must lie in \[1, 100\)": {"kind": "adamw", "ns_steps": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_bad_group_is_refused_and_changes_nothing(message: str) -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=message):
        MuonAdamW([{"params": layer.named_parameters(), **REFUSED[message]}])
    one = MuonAdamW([{"params": nn.Linear(2, 2).named_parameters(), "kind": "adamw"}])
    with pytest.raises(ValueError, match=message):
        one.add_param_group({"params": layer.named_parameters(), **REFUSED[message]})
    assert len(one.param_groups) == 1


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="complex parameters: number 0"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(2, 2, dtype=torch.cfloat))], "kind": "muon"}])
    table = nn.Embedding(4, 2, sparse=True)
    one = MuonAdamW([{"params": table.parameters(), "kind": "adamw"}])
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        one.step()


class TestMuonO:
    def groups(self, matrix: nn.Parameter, kernel: nn.Parameter, bias: nn.Parameter) -> list[dict[str, Any]]:
        return [
            {"params": [matrix], "kind": "muon"},
            {"params": [kernel], "kind": "adamw"},
            {"params": [bias], "kind": "adamw", "iso": 0.0},
        ]

    def parameters(self) -> list[nn.Parameter]:
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(*shape)) for shape in ((6, 4), (5, 2, 3, 3), (5,))]

    def test_a_step_is_the_pull_and_then_muons(self) -> None:
        ours, theirs = self.parameters(), self.parameters()
        gradients = [torch.randn_like(parameter) for parameter in ours]
        optimizer = MuonO(self.groups(*ours), lr=1e-2, iso=0.05, iso_scale=2.0)
        plain = self.groups(*theirs)
        plain[2].pop("iso")
        reference = MuonAdamW(plain, lr=1e-2, weight_decay=0.0)
        for _ in range(2):
            with torch.no_grad():
                for parameter in theirs[:2]:
                    parameter.sub_(1e-2 * 0.05 * isometry_gradient(parameter, 2.0).view_as(parameter))
            for pair, gradient in zip(zip(ours, theirs), gradients):
                pair[0].grad, pair[1].grad = gradient.clone(), gradient.clone()
            optimizer.step()
            reference.step()
            for mine, other in zip(ours, theirs):
                torch.testing.assert_close(mine, other)

    def test_it_pulls_at_every_second_step_twice_as_far(self) -> None:
        parameters = self.parameters()[:2]
        expected = [parameter.detach().clone() for parameter in parameters]
        groups = [{"params": [parameter], "kind": "adamw"} for parameter in parameters]
        optimizer = MuonO(groups, lr=1e-3, iso=0.1, iso_scale=2.0, iso_every=2)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for pulls in (False, True, False, True):
            optimizer.step()
            for parameter, value in zip(parameters, expected):
                if pulls:
                    value -= 2 * 1e-3 * 0.1 * isometry_gradient(value, 2.0).view_as(value)
                torch.testing.assert_close(parameter.detach(), value)

    def test_without_a_gradient_weights_come_to_the_aspect_of_their_sides(self) -> None:
        parameters = self.parameters()
        before = parameters[2].detach().clone()
        optimizer = MuonO(self.groups(*parameters), lr=1e-1, iso=0.3, iso_scale="aspect", iso_every=2)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(600):
            optimizer.step()
        for parameter, aspect in zip(parameters, (6 / 4, 5 / 18)):
            sigmas = torch.linalg.svdvals(parameter.detach().flatten(1))
            torch.testing.assert_close(sigmas.square(), torch.full_like(sigmas, aspect), rtol=1e-3, atol=1e-3)
        assert torch.equal(parameters[2], before)

    def test_isometric_weights_are_left_alone(self) -> None:
        parameters = self.parameters()
        for parameter in parameters[:2]:
            nn.init.orthogonal_(parameter)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = MuonO(self.groups(*parameters), lr=1e-2, iso=1.0)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter, old in zip(parameters, before):
            torch.testing.assert_close(parameter.detach(), old, rtol=0, atol=1e-6)

    def test_what_is_refused(self) -> None:
        matrix, kernel, bias = self.parameters()
        with pytest.raises(ValueError, match=r"iso_scale must be .* or 'aspect', got aspects"):
            MuonO(self.groups(matrix, kernel, bias), iso_scale="aspects")
        with pytest.raises(ValueError, match=r"isometry needs matrices.*shape \(5,\)"):
            MuonO([{"params": [bias], "kind": "adamw"}])
        with pytest.raises(ValueError, match="the kind of a parameter group"):
            MuonO([matrix])
