"""The optimizers' configurations: what they build, and what they refuse."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field

import pytest
import torch
import tyro
from torch import Tensor, nn

from neoteny.optim import (
    AdamConfig,
    AdamO,
    AdamOConfig,
    AdamWConfig,
    MuonConfig,
    MuonOConfig,
    OptimConfig,
    TRACConfig,
    UPGDConfig,
    orthogonalize,
)
from tests.simple_networks import backward

CONFIGS = [
    AdamConfig(),
    AdamWConfig(),
    AdamOConfig(iso=0.1, iso_every=3),
    MuonConfig(),
    MuonOConfig(iso=0.1, iso_every=3),
    UPGDConfig(sigma=0.0),
    TRACConfig(),
]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]
configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
LATE = {"trac": 200}
"""Gradient steps before an optimizer moves the weights much."""


def network(device: str = "cpu") -> nn.Sequential:
    """Convolution, hidden matrices and a head, always the same."""
    torch.manual_seed(0)
    torso = (
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 8),
        nn.Tanh(),
    )
    return nn.Sequential(*torso, nn.Linear(8, 3)).to(device)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(backward(module, step).item())
        optimizer.step()
    return losses


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, p), q in zip(left.named_parameters(), right.parameters()):
        assert torch.equal(p, q), name


@configs
@pytest.mark.parametrize("device", DEVICES)
def test_it_learns(config: OptimConfig, device: str) -> None:
    module = network(device)
    steps = range(60 + LATE.get(config.name, 0))
    losses = train(module, config.build(module, lr=1e-2, exclude="7"), steps)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@configs
def test_every_trainable_parameter_is_in_one_group_and_moves(config: OptimConfig) -> None:
    module = network()
    module[3].bias.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = config.build(module, lr=1e-2, exclude=[module[7]])
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {name: id(p) for name, p in module.named_parameters() if p.requires_grad}
    assert dict(zip(names, held)) == trainable
    assert len(held) == len(trainable)
    train(module, optimizer, range(1 + LATE.get(config.name, 0)))
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable.keys()
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


@configs
@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_continues_bit_for_bit(config: OptimConfig, device: str) -> None:
    whole, part, rest = network(device), network(device), network(device)
    train(whole, config.build(whole, 1e-2, "7"), range(8))
    optimizer = config.build(part, 1e-2, "7")
    train(part, optimizer, range(4))
    buffer = io.BytesIO()
    torch.save((part.state_dict(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)  # noqa: TID251
    rest.load_state_dict(weights)
    resumed = config.build(rest, 1e-2, "7")
    resumed.load_state_dict(state)
    train(rest, resumed, range(4, 8))
    assert_same_weights(whole, rest)


@configs
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_bit_for_bit(config: OptimConfig, clone: Callable) -> None:
    module = network()
    optimizer = config.build(module, 1e-2, "7")
    train(module, optimizer, range(4))
    copied, copied_optimizer = clone((module, optimizer))
    train(module, optimizer, range(4, 8))
    train(copied, copied_optimizer, range(4, 8))
    assert_same_weights(module, copied)


@configs
def test_schedules_scale_every_group(config: OptimConfig) -> None:
    module = network()
    optimizer = config.build(module, 1e-2, "7")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 2)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2] * len(optimizer.param_groups)
    train(module, optimizer, range(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3] * len(optimizer.param_groups)
    train(module, optimizer, range(1, 2))
    scheduler.step()
    before = copy.deepcopy(module)
    train(module, optimizer, range(2, 3))
    if config.name != "trac":  # whose scale of all steps so far changes still
        assert_same_weights(module, before)


@configs
def test_a_schedule_still_acts_after_resuming(config: OptimConfig) -> None:
    module = network()
    optimizer = config.build(module, 1e-2, "7")
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(module)
    train(module, optimizer, range(1))
    assert_same_weights(module, before)


@configs
def test_unknown_heads_are_refused(config: OptimConfig) -> None:
    with pytest.raises(ValueError, match="'head', which is not a submodule"):
        config.build(network(), 1e-2, ["head"])


@configs
def test_closures_are_evaluated_once(config: OptimConfig) -> None:
    module, calls = network(), []
    optimizer = config.build(module, 1e-2, "7")

    def closure() -> Tensor:
        calls.append(0)
        return backward(module, 0)

    assert optimizer.step(closure) == backward(network(), 0)
    assert len(calls) == 1


def test_adam_and_adamw_are_torchs() -> None:
    moments = {"betas": (0.8, 0.9), "eps": 1e-5}
    for config, reference, options in (
        (AdamConfig(**moments), torch.optim.Adam, moments),
        (AdamWConfig(**moments, weight_decay=0.1), torch.optim.AdamW, {**moments, "weight_decay": 0.1}),
    ):
        ours, theirs = network(), network()
        train(ours, config.build(ours, 1e-2, "7"), range(5))
        train(theirs, reference(theirs.parameters(), lr=1e-2, fused=True, **options), range(5))
        assert_same_weights(ours, theirs)


def test_adamo_pulls_all_but_heads_with_its_options() -> None:
    config = AdamOConfig((0.8, 0.9), 1e-5, iso=0.1, iso_scale=2.0, iso_every=4)
    optimizer = config.build(network(), 1e-2, exclude=["7"])
    assert isinstance(optimizer, AdamO)
    pulled, others = optimizer.param_groups
    assert pulled["param_names"] == ["0.weight", "3.weight", "5.weight"]
    assert others["iso"] == 0
    keys = ("betas", "eps", "iso", "iso_lr", "iso_scale", "iso_every", "lr", "fused")
    assert [pulled[key] for key in keys] == [(0.8, 0.9), 1e-5, 0.1, None, 2.0, 4, 1e-2, True]


def test_muon_steps_hidden_matrices_and_adamw_the_rest() -> None:
    ours, theirs = network(), network()
    train(ours, MuonConfig(weight_decay=0.1).build(ours, 1e-2, "7"), range(5))
    matrices = [theirs[3].weight, theirs[5].weight]
    others = [p for p in theirs.parameters() if not any(p is matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1, fused=True)
    for step in range(5):
        theirs.zero_grad()
        backward(theirs, step)
        muon.step()
        adamw.step()
    assert_same_weights(ours, theirs)


def test_muono_pulls_matrices_and_kernels_but_no_heads() -> None:
    optimizer = MuonOConfig(iso=0.1, iso_scale="aspect", iso_every=4).build(network(), 1e-2, exclude=["7"])
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names[:2] == [["3.weight", "5.weight"], ["0.weight"]]
    assert [group["kind"] for group in optimizer.param_groups] == ["muon", "adamw", "adamw"]
    assert [group["iso"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_muon_needs_a_hidden_matrix() -> None:
    with pytest.raises(ValueError, match=r"hidden linear layer.*optim:adam"):
        MuonConfig().build(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2)), 1e-2, "1")


def test_adamo_needs_a_weight_to_pull() -> None:
    kept = nn.Sequential(orthogonalize(nn.Conv2d(1, 1, 1)), orthogonalize(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no weight to pull.*optim:adam"):
        AdamOConfig(iso=0.1).build(kept, 1e-2, "2")
    AdamOConfig(iso=0.0).build(kept, 1e-2, "2")
    AdamOConfig(iso=0.1).build(kept, 1e-2)


@pytest.mark.parametrize("make", [type(config) for config in CONFIGS])
@pytest.mark.parametrize(
    "bad", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"eps": -1.0}, {"eps": float("nan")}]
)
def test_bad_moments_are_refused(make: type, bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(**bad)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (AdamWConfig, {"weight_decay": -0.1}),
        (AdamOConfig, {"iso": -1e-3}),
        (AdamOConfig, {"iso": float("inf")}),
        (AdamOConfig, {"iso_scale": 0.0}),
        (AdamOConfig, {"iso_every": 0}),
        (MuonConfig, {"weight_decay": float("inf")}),
        (MuonConfig, {"momentum": 1.0}),
        (MuonConfig, {"ns_steps": 0}),
        (MuonOConfig, {"iso": 0.0}),
        (MuonOConfig, {"iso_scale": -1.0}),
        (MuonOConfig, {"momentum": 1.0}),
        (UPGDConfig, {"beta_utility": 1.0}),
        (UPGDConfig, {"sigma": -1.0}),
    ],
)
def test_values_out_of_range_are_refused(make: type, bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(**bad)


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        AdamOConfig().iso = 1.0  # type: ignore[misc]


@dataclass(frozen=True)
class Args:
    optim: OptimConfig = field(default_factory=AdamConfig)


@pytest.mark.parametrize("make", [type(config) for config in CONFIGS])
def test_the_command_line_chooses_by_name(make: type) -> None:
    flags = [f"optim:{make.name}", "--optim.eps", "1e-5"]
    assert tyro.cli(Args, args=flags, config=(tyro.conf.CascadeSubcommandArgs,)).optim == make(eps=1e-5)
    assert tyro.cli(Args, args=[]).optim == AdamConfig()
