"""One frozen dataclass per optimizer, to be nested in an agent's arguments as `optim: OptimConfig`.

The learning rate is the agent's, not the optimizer's: it would otherwise change with the choice of optimizer.
All of them run torch's fused kernels, on CPU as on CUDA.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import nn
from torch.optim import Optimizer

from neoteny.optim.adamo import AdamO
from neoteny.optim.isometry import Exclude, param_groups, split_parameters
from neoteny.optim.muon import MuonAdamW
from neoteny.optim.orthogonal import Reorthogonalizing, orthogonal_groups
from neoteny.runners.exit_codes import BadInputError

__all__ = ["AdamConfig", "AdamOConfig", "AdamWConfig", "MuonConfig", "OptimConfig"]


@dataclass(frozen=True)
class AdamConfig:
    """Adam, as torch.optim.Adam."""

    name: ClassVar[str] = "adam"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator; PPO implementations often take 1e-5."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_moments(self.betas, self.eps)

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        groups = _one_group(module, exclude)
        return _Adam(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class AdamWConfig:
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator; PPO implementations often take 1e-5."""
    weight_decay: float = 0.01
    """Share of each parameter, biases included, that a step takes away, times the learning rate."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_moments(self.betas, self.eps)
        _check_number("weight_decay", self.weight_decay)

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        return _AdamW(
            _one_group(module, exclude),
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )


@dataclass(frozen=True)
class AdamOConfig:
    """Adam with a decoupled pull of the hidden weights towards dynamical isometry."""

    name: ClassVar[str] = "adamo"

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator; PPO implementations often take 1e-5."""
    iso: float = 1e-3
    """Coefficient of the isometry penalty; choose it so that lr * iso * steps of the run is 0.1 to 30."""
    iso_lr: float | None = None
    """Step size of the pull, scaled with the learning rate's schedule; None is the learning rate."""
    iso_scale: float = 1.0
    """Target of the squared singular values; 2 suits ReLU layers initialized with gain sqrt(2)."""
    iso_every: int = 10
    """Pull at every k-th step with k times the coefficient: hardly another course, at a k-th of the cost."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_moments(self.betas, self.eps)
        _check_number("iso", self.iso)
        if self.iso_lr is not None:
            _check_number("iso_lr", self.iso_lr)
        if not 0.0 < self.iso_scale < math.inf:
            raise ValueError(f"iso_scale must be finite and positive, got {self.iso_scale}")
        if self.iso_every < 1:
            raise ValueError(f"iso_every must be at least 1, got {self.iso_every}")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; it pulls the weights outside `exclude`.

        Raises:
            BadInputError: if there is a pull and nothing that it could act on.
        """
        if self.iso and not split_parameters(module, exclude)[0]:
            raise BadInputError(
                "AdamO has no weight to pull towards isometry, since all are kept orthogonal or excluded: "
                "use optim:adam"
            )
        return _AdamO(
            orthogonal_groups(param_groups(module, exclude), module),
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            iso=self.iso,
            iso_lr=self.iso_lr,
            iso_scale=self.iso_scale,
            iso_every=self.iso_every,
            fused=True,
        )


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices of hidden layers, AdamW for all else, output heads and convolutions included."""

    name: ClassVar[str] = "muon"

    momentum: float = 0.95
    """Muon's momentum."""
    ns_steps: int = 5
    """Newton-Schulz iterations that orthogonalize Muon's update."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to AdamW's denominator; PPO implementations often take 1e-5."""
    weight_decay: float = 0.01
    """Share of each parameter that a step takes away, times the learning rate; of both parts."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check_moments(self.betas, self.eps)
        _check_number("weight_decay", self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(f"ns_steps must lie in [1, 100), got {self.ns_steps}")

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are stepped by AdamW.

        Raises:
            BadInputError: if no matrix is left to Muon.
        """
        weights, others = split_parameters(module, exclude)
        matrices = [(name, weight) for name, weight in weights if weight.ndim == 2]
        if not matrices:
            raise BadInputError(
                "Muon needs a hidden matrix, but all weights are convolutions, kept orthogonal or excluded: "
                "use optim:adam"
            )
        rest = [(name, weight) for name, weight in weights if weight.ndim > 2] + others
        groups = [{"params": matrices, "kind": "muon"}, {"params": rest, "kind": "adamw"}]
        return MuonAdamW(
            [group for group in groups if group["params"]],
            lr=lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            ns_steps=self.ns_steps,
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )


class _Adam(Reorthogonalizing, torch.optim.Adam):
    """Adam that looks after orthogonal layers."""


class _AdamW(Reorthogonalizing, torch.optim.AdamW):
    """AdamW that looks after orthogonal layers."""


class _AdamO(Reorthogonalizing, AdamO):
    """AdamO that looks after orthogonal layers."""


def _one_group(module: nn.Module, exclude: Exclude) -> list[dict[str, Any]]:
    """All trainable parameters in one group, but for the raw weights of orthogonal layers."""
    matrices, others = split_parameters(module, exclude)
    return orthogonal_groups([{"params": matrices + others}], module)


def _check_moments(betas: tuple[float, float], eps: float) -> None:
    """Refuse settings that Adam's moments do not admit."""
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1), got {betas}")
    _check_number("eps", eps)


def _check_number(name: str, value: float) -> None:
    """Refuse negative and infinite numbers and NaN."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


OptimConfig = (
    Annotated[AdamConfig, tyro.conf.subcommand(AdamConfig.name)]
    | Annotated[AdamWConfig, tyro.conf.subcommand(AdamWConfig.name)]
    | Annotated[AdamOConfig, tyro.conf.subcommand(AdamOConfig.name)]
    | Annotated[MuonConfig, tyro.conf.subcommand(MuonConfig.name)]
)
"""Any of them; on the command line `optim:adam`, `optim:adamw`, `optim:adamo` or `optim:muon`."""
