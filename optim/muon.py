"""Muon for the matrices of hidden layers and AdamW for all other parameters; MuonO also pulls the weights.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Its steps are scaled to the
size of Adam's as in J. Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, so that one
learning rate and one weight decay suit both. The computation is torch's own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, muon
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from neoteny.optim.adam import Moments
from neoteny.optim.isometry import Scale
from neoteny.optim.layers import Exclude, NamedParameters, split_parameters
from neoteny.optim.optimizer import (
    Batch,
    CheckedOptimizer,
    adam_state,
    check_moments,
    check_not_negative,
    named_params,
)
from neoteny.optim.pull import IsometryFlags, PullingOptimizer


class MuonAdamW(CheckedOptimizer):
    """Muon or AdamW, as each parameter group's `kind` says; bit-identical to torch's optimizers.

    A group's `kind` is "muon", for the matrices of hidden layers, or "adamw", for parameters of any shape:
    biases, convolutions, output layers.

        MuonAdamW([{"params": matrices, "kind": "muon"}, {"params": others, "kind": "adamw"}], lr=1e-3)

    Args:
        params: groups of parameters or of named parameters, each with its `kind`.
        lr: learning rate of both. A matrix (out, in) is stepped by Muon at 0.2 * sqrt(max(out, in)) times it.
        weight_decay: decoupled weight decay of both: a step shrinks parameters by lr * weight_decay.
        momentum: Muon's decay rate of the running average of the gradient (Nesterov momentum).
        ns_steps: Muon's Newton-Schulz iterations, which orthogonalize its step.
        betas: AdamW's decay rates of the running averages of the gradient and of its square.
        eps: added to AdamW's denominator.
        fused: AdamW's kernel, as for `torch.optim.AdamW`.

    Raises:
        ValueError: for a group without a kind, an option out of range, or a parameter that is not a matrix
            in a group of kind "muon".
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "kind": None,
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "betas": betas,
            "eps": eps,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _accept(self, group: dict[str, Any]) -> None:
        check_options(group)
        _check_params(group)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if group["kind"] == "adamw":
            return adam_state(param, group)
        return {"momentum_buffer": torch.zeros_like(param, memory_format=torch.preserve_format)}

    def _step(self, batches: list[Batch]) -> None:
        for batch in batches:
            if batch.params:
                (_muon if batch.group["kind"] == "muon" else _adamw)(batch)


class MuonO(PullingOptimizer, MuonAdamW):
    """`MuonAdamW` with AdamO's decoupled pull of the weights towards dynamical isometry.

    Before each step, the weights of groups with `iso` other than 0 are pulled as by `AdamO`, whichever kind
    they are: matrices and convolution kernels. The code of AdamO's authors for language models also has this
    optimizer; there the pull comes after the step and has half the gradient, so that its coefficient is twice
    the `iso` here.

    Args:
        params: groups of parameters or of named parameters, each with its `kind`.
        lr: learning rate, as in `MuonAdamW`.
        weight_decay: as in `MuonAdamW`; 0, as the pull already bounds the weights.
        momentum: as in `MuonAdamW`.
        ns_steps: as in `MuonAdamW`.
        betas: as in `MuonAdamW`.
        eps: as in `MuonAdamW`.
        iso: coefficient of the isometry penalty.
        iso_lr: step size of the pull; None for the learning rate.
        iso_scale: target s of the squared singular values; "aspect" for rows / columns of each matrix.
        iso_every: pull only at every k-th step, with k times the coefficient.
        fused: as in `MuonAdamW`.

    Raises:
        ValueError: as in `MuonAdamW` and `AdamO`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        iso: float = 1e-3,
        iso_lr: float | None = None,
        iso_scale: Scale = 1.0,
        iso_every: int = 1,
        *,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "kind": None,
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "betas": betas,
            "eps": eps,
            "iso": iso,
            "iso_lr": iso_lr,
            "iso_scale": iso_scale,
            "iso_every": iso_every,
            "fused": fused,
        }
        CheckedOptimizer.__init__(self, params, defaults)

    def _accept(self, group: dict[str, Any]) -> None:
        super()._accept(group)
        self._accept_pull(group)

    def _step(self, batches: list[Batch]) -> None:
        self.count_replay()
        for batch in batches:
            self._pull(batch)
        super()._step(batches)


def _muon(batch: Batch) -> None:
    """Take Muon's step on the matrices of a group."""
    group, params, grads, states = batch
    muon(
        params,
        grads,
        [state["momentum_buffer"] for state in states],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        nesterov=True,
        ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
        ns_steps=group["ns_steps"],
        eps=EPS,
        adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )


def _adamw(batch: Batch) -> None:
    """Take AdamW's step on the parameters of a group."""
    group, params, grads, states = batch
    adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for an option out of range, with its name."""
    check_not_negative(options, "lr", "weight_decay")
    check_moments(options)
    if not 0.0 <= options["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {options['momentum']}")
    if not 1 <= options["ns_steps"] < 100:
        raise ValueError(f"ns_steps must lie in [1, 100), got {options['ns_steps']}")


def _check_params(group: dict[str, Any]) -> None:
    """Refuse a group without a kind, and parameters that its kind does not support."""
    if group["kind"] not in ("muon", "adamw"):
        raise ValueError(f"the kind of a parameter group must be 'muon' or 'adamw', not {group['kind']!r}")
    for name, param in named_params(group):
        if param.is_complex():
            raise ValueError(f"MuonAdamW does not support complex parameters: {name}")
        if group["kind"] == "muon" and param.ndim != 2:
            raise ValueError(
                f"Muon steps matrices, but parameter {name} has shape {tuple(param.shape)}: "
                "put it in a group of kind 'adamw'"
            )


@dataclass(frozen=True)
class _Muon(Moments):
    """Flags that Muon and MuonO share."""

    momentum: float = 0.95
    """Momentum of Muon (betas and eps are for AdamW)."""
    ns_steps: int = 5
    """Number of Newton-Schulz iterations that orthogonalize Muon's update."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_options({"lr": 1.0, **vars(self)})


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
class MuonOConfig(IsometryFlags, _Muon):
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
