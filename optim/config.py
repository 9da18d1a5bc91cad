"""Configurations of optimizers, one frozen dataclass each; an agent's arguments have `optim: OptimConfig`.

The learning rate is a flag of the agent, so that choosing another optimizer does not change it. All of them
run torch's fused kernels, on CPU as on CUDA.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
import tyro
from torch import nn
from torch.optim import Optimizer

from neoteny.optim import muon, upgd
from neoteny.optim.adamo import AdamO
from neoteny.optim.injection import InjectionAtSwitchConfig, InjectionConfig
from neoteny.optim.isometry import param_groups
from neoteny.optim.layers import Exclude, NamedParameters, split_parameters
from neoteny.optim.methods import Learner, MethodConfig, Methods
from neoteny.optim.muon import MuonAdamW, MuonO
from neoteny.optim.orthogonal import ReorthogonalizeConfig, is_orthogonal
from neoteny.optim.perturbations import (
    FireConfig,
    HareTortoiseConfig,
    ShrinkPerturbAtSwitchConfig,
    ShrinkPerturbConfig,
    ShrinkPerturbEveryConfig,
)
from neoteny.optim.projections import NaPConfig, WeightClippingConfig
from neoteny.optim.pull import check_isometry
from neoteny.optim.regularizers import (
    CChainConfig,
    IsometryConfig,
    L2Config,
    L2InitConfig,
    ParsevalConfig,
    SpectralConfig,
)
from neoteny.optim.resets import ResetAtSwitchConfig, ResetConfig
from neoteny.optim.trac import TRAC
from neoteny.optim.unit_resets import (
    ContinualBackpropConfig,
    PartialResetsConfig,
    ReDoConfig,
    ReGraMaConfig,
    SelfNormalizedResetsConfig,
)
from neoteny.optim.upgd import UPGD


@dataclass(frozen=True)
class _Moments:
    """Flags that all optimizers with Adam's moments share."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator of Adam's step; PPO implementations often use 1e-5."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        _check_number("eps", self.eps)


@dataclass(frozen=True)
class AdamConfig(_Moments):
    """Adam, as torch.optim.Adam."""

    name: ClassVar[str] = "adam"

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        groups = _one_group(module, exclude)
        return torch.optim.Adam(groups, lr=lr, fused=True, capturable=_on_gpu(module), **vars(self))


@dataclass(frozen=True)
class AdamWConfig(_Moments):
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"

    weight_decay: float = 0.01
    """Decoupled weight decay: each step shrinks all parameters, biases included, by lr * weight_decay."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        _check_number("weight_decay", self.weight_decay)

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        groups = _one_group(module, exclude)
        return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=_on_gpu(module), **vars(self))


@dataclass(frozen=True)
class _Isometry:
    """Flags of optimizers that pull weights towards isometry."""

    iso: float = 1e-3
    """Coefficient of the isometry penalty; choose it so that lr * iso * gradient steps is 0.1 to 30."""
    iso_scale: float | Literal["aspect"] = 1.0
    """Target value of the squared singular values; 2 suits ReLU layers initialized with gain sqrt(2); aspect
    is rows / columns of each weight."""
    iso_every: int = 10
    """Pull at every k-th step only, with k times the coefficient: almost the same result at 1/k the cost."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()  # type: ignore[misc]
        check_isometry({"lr": 1.0, "iso_lr": None, **vars(self)})


@dataclass(frozen=True)
class AdamOConfig(_Isometry, _Moments):
    """Adam with a decoupled pull of the hidden weights towards dynamical isometry."""

    name: ClassVar[str] = "adamo"

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        return {} if self.iso else dict.fromkeys(("iso_scale", "iso_every"), "--optim.iso is 0")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; it pulls the weights outside `exclude`.

        Raises:
            ValueError: if `iso` is not 0 and no weight can be pulled.
        """
        if self.iso and not split_parameters(module, exclude)[0]:
            raise ValueError(
                "AdamO has no weight to pull towards isometry, since all are kept orthogonal or excluded: "
                "use optim:adam"
            )
        return AdamO(param_groups(module, exclude), lr=lr, fused=True, **vars(self))


@dataclass(frozen=True)
class _Muon(_Moments):
    """Flags that Muon and MuonO share."""

    momentum: float = 0.95
    """Momentum of Muon (betas and eps are for AdamW)."""
    ns_steps: int = 5
    """Number of Newton-Schulz iterations that orthogonalize Muon's update."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        muon.check_options({"lr": 1.0, **vars(self)})


@dataclass(frozen=True)
class MuonConfig(_Muon):
    """Muon for the matrices of hidden linear layers, AdamW for all other parameters."""

    name: ClassVar[str] = "muon"

    weight_decay: float = 0.01
    """Decoupled weight decay of both: each step shrinks all parameters by lr * weight_decay."""

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are stepped by AdamW.

        Raises:
            ValueError: if there is no matrix that Muon could step.
        """
        matrices, kernels, others = _muon_parameters(module, exclude)
        groups = [{"params": matrices, "kind": "muon"}, {"params": kernels + others, "kind": "adamw"}]
        return MuonAdamW(_filled(groups), lr=lr, fused=True, **vars(self))


@dataclass(frozen=True)
class MuonOConfig(_Isometry, _Muon):
    """Muon with AdamO's decoupled pull of the hidden weights towards dynamical isometry."""

    name: ClassVar[str] = "muono"

    weight_decay: float = 0.0
    """Decoupled weight decay of both: each step shrinks all parameters by lr * weight_decay."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not self.iso:
            raise ValueError("MuonO without a pull is Muon: use optim:muon instead of --optim.iso 0")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; it pulls the weights outside `exclude`.

        Raises:
            ValueError: if there is no matrix that Muon could step.
        """
        matrices, kernels, others = _muon_parameters(module, exclude)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "kind": "muon"},
            {"params": kernels, "kind": "adamw"},
            {"params": others, "kind": "adamw", "iso": 0.0},
        ]
        return MuonO(_filled(groups), lr=lr, fused=True, **vars(self))


@dataclass(frozen=True)
class UPGDConfig(_Moments):
    """UPGD: spare useful weights and perturb useless ones, with the directions of Adam or of the gradient."""

    name: ClassVar[str] = "upgd"

    beta_utility: float = 0.999
    """Decay rate of the running average of utilities."""
    sigma: float = 1e-3
    """Standard deviation of the noise, before the learning rate."""
    weight_decay: float = 1e-3
    """Decoupled weight decay: each step shrinks all parameters, biases included, by lr * weight_decay."""
    adaptive: bool = True
    """Take Adam's direction, as the authors do in reinforcement learning, instead of the gradient."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        upgd.check_options({"lr": 1.0, **vars(self)})

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        return {} if self.adaptive else dict.fromkeys(("betas", "eps"), "with --optim.no-adaptive")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        return UPGD(_one_group(module, exclude), lr=lr, **vars(self))


@dataclass(frozen=True)
class TRACConfig(_Moments):
    """TRAC: Adam with a scale of the distance from the initial weights that is learned online."""

    name: ClassVar[str] = "trac"

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        return TRAC(_one_group(module, exclude), lr=lr, **vars(self))


def _muon_parameters(
    module: nn.Module, exclude: Exclude
) -> tuple[NamedParameters, NamedParameters, NamedParameters]:
    """Matrices and convolution kernels outside `exclude`, and all other parameters; needs a matrix."""
    weights, others = split_parameters(module, exclude)
    matrices = [(name, weight) for name, weight in weights if weight.ndim == 2]
    if not matrices:
        raise ValueError(
            "Muon needs a hidden linear layer, but all weights are orthogonal, excluded or convolutions: "
            "use optim:adam"
        )
    return matrices, [(name, weight) for name, weight in weights if weight.ndim > 2], others


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that have parameters."""
    return [group for group in groups if group["params"]]


def _one_group(module: nn.Module, exclude: Exclude) -> list[dict[str, Any]]:
    """All trainable parameters in one group."""
    weights, others = split_parameters(module, exclude)
    return [{"params": weights + others}]


def _on_gpu(module: nn.Module) -> bool:
    """Whether steps can become a part of a CUDA graph: torch's own Adam asks to be told."""
    return any(parameter.is_cuda for parameter in module.parameters())


def _check_number(name: str, value: float) -> None:
    """Refuse negative and infinite numbers and NaN."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


OptimConfig = (
    Annotated[AdamConfig, tyro.conf.subcommand(AdamConfig.name)]
    | Annotated[AdamWConfig, tyro.conf.subcommand(AdamWConfig.name)]
    | Annotated[AdamOConfig, tyro.conf.subcommand(AdamOConfig.name)]
    | Annotated[MuonConfig, tyro.conf.subcommand(MuonConfig.name)]
    | Annotated[MuonOConfig, tyro.conf.subcommand(MuonOConfig.name)]
    | Annotated[UPGDConfig, tyro.conf.subcommand(UPGDConfig.name)]
    | Annotated[TRACConfig, tyro.conf.subcommand(TRACConfig.name)]
)
"""Any optimizer; on the command line `optim:adam`, `optim:adamw`, and so on."""


def optimizer_name(optimizer: Optimizer) -> str:
    """The name of an optimizer: for `MuonAdamW` that of its configuration, else its class's in lower case."""
    return MuonConfig.name if type(optimizer) is MuonAdamW else type(optimizer).__name__.lower()


METHODS: dict[str, type[MethodConfig]] = {
    config.name: config
    for config in (
        L2Config,
        L2InitConfig,
        IsometryConfig,
        ParsevalConfig,
        SpectralConfig,
        CChainConfig,
        WeightClippingConfig,
        NaPConfig,
        ReorthogonalizeConfig,
        ReDoConfig,
        ReGraMaConfig,
        SelfNormalizedResetsConfig,
        ContinualBackpropConfig,
        PartialResetsConfig,
        ResetConfig,
        ResetAtSwitchConfig,
        ShrinkPerturbConfig,
        ShrinkPerturbEveryConfig,
        ShrinkPerturbAtSwitchConfig,
        HareTortoiseConfig,
        FireConfig,
        InjectionConfig,
        InjectionAtSwitchConfig,
    )
}
"""Plasticity methods by their names on the command line."""

MethodConfigs: TypeAlias = Annotated[tuple[MethodConfig, ...], tyro.conf.Suppress]
"""Any methods, at most one of each; on the command line `--methods.NAME`, which `configs.cli` parses."""


def build_methods(configs: Sequence[MethodConfig], learner: Learner) -> Methods:
    """The methods of a run: those in `configs`, and reorthogonalization if the network has orthogonal layers.

    Raises:
        ValueError: two exclude each other, or one does not fit the network or the optimizer.
    """
    orthogonal = any(is_orthogonal(module) for module in learner.network.modules())
    if orthogonal and not any(config.name == ReorthogonalizeConfig.name for config in configs):
        configs = (*configs, ReorthogonalizeConfig())
    return Methods(configs, learner)


def methods_as_dict(configs: Iterable[MethodConfig]) -> dict[str, dict[str, Any]]:
    """Fields of each method, by its name, or by `module:Class` if it is user-defined."""
    return {_flag(type(config)): dataclasses.asdict(config) for config in configs}


def _flag(config_type: type[MethodConfig]) -> str:
    """The name of a method on the command line."""
    ours = METHODS.get(config_type.name) is config_type
    return config_type.name if ours else f"{config_type.__module__}:{config_type.__qualname__}"
