"""Configurations of Adam and AdamW, which are torch's, and what those of other optimizers share with them.

The learning rate is a flag of the agent, so that choosing another optimizer does not change it. All of them
run torch's fused kernels, on CPU as on CUDA.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from neoteny.optim.layers import Exclude, split_parameters


@dataclass(frozen=True)
class Moments:
    """Flags that all optimizers with Adam's moments share."""

    stackable: ClassVar[bool] = False
    """Whether a step on stacked parameters is that of each network, see `neoteny.optim.stacked`."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator of Adam's step; PPO implementations often use 1e-5."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        check_number("eps", self.eps)


@dataclass(frozen=True)
class AdamConfig(Moments):
    """Adam, as torch.optim.Adam."""

    name: ClassVar[str] = "adam"
    stackable: ClassVar[bool] = True

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        groups = one_group(module, exclude)
        return torch.optim.Adam(groups, lr=lr, fused=True, capturable=_on_gpu(module), **vars(self))


@dataclass(frozen=True)
class AdamWConfig(Moments):
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"
    stackable: ClassVar[bool] = True

    weight_decay: float = 0.01
    """Decoupled weight decay: each step shrinks all parameters, biases included, by lr * weight_decay."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_number("weight_decay", self.weight_decay)

    def build(self, module: nn.Module, lr: float, exclude: Exclude = ()) -> Optimizer:
        """Optimizer of the trainable parameters of `module`; those in `exclude` are treated like the rest."""
        groups = one_group(module, exclude)
        return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=_on_gpu(module), **vars(self))


def one_group(module: nn.Module, exclude: Exclude) -> list[dict[str, Any]]:
    """All trainable parameters in one group."""
    weights, others = split_parameters(module, exclude)
    return [{"params": weights + others}]


def _on_gpu(module: nn.Module) -> bool:
    """Whether steps can become a part of a CUDA graph: torch's own Adam asks to be told."""
    return any(parameter.is_cuda for parameter in module.parameters())


def check_number(name: str, value: float) -> None:
    """Refuse negative and infinite numbers and NaN."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")
