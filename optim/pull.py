"""The decoupled pull of weights towards isometry, which `AdamO` and `MuonO` share."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neoteny.optim.isometry import isometry_coefficient, isometry_steps, matrix_view, target_scale
from neoteny.optim.optimizer import Batch, CheckedOptimizer, counter, named_params, options


class PullingOptimizer(CheckedOptimizer):
    """An optimizer that pulls the weights of groups with `iso` other than 0, beside its own step.

    A subclass calls `_accept_pull` for each new group, and `count_replay` and `_pull` in each step. Groups
    have the options `iso`, `iso_lr`, `iso_scale` and `iso_every`, as in `AdamO`.
    """

    @property
    def guarded_pulls(self) -> int:
        """Number of pulls whose coefficient was reduced to stay stable, summed over matrices."""
        return sum(int(state["guarded"]) for state in self.state.values() if "guarded" in state)

    def variant(self) -> tuple[Any, ...]:
        """What distinguishes the kernels of the next step: options, and whether each group is pulled."""
        pulled = ((group["iso_phase"] + 1) % group["iso_every"] == 0 for group in self.param_groups)
        return (*options(self), *pulled)

    def count_replay(self) -> None:
        """Count a step, whose kernels are replayed."""
        for group in self.param_groups:
            group["iso_phase"] = (group["iso_phase"] + 1) % group["iso_every"]

    def _accept_pull(self, group: dict[str, Any]) -> None:
        """Check the isometry options and parameters of a group, and complete the options."""
        check_isometry(group)
        _check_params(group)
        group["iso_lr_ratio"] = 1.0 if group["iso_lr"] is None else group["iso_lr"] / group["lr"]
        group["iso_phase"] = 0
        coefficient = isometry_coefficient(group) * group["iso_every"]
        if not coefficient:
            return
        stiffness = coefficient * max(target_scale(param, group["iso_scale"]) for param in group["params"])
        if stiffness > 0.125:
            warnings.warn(
                f"lr * iso * iso_every * iso_scale = {stiffness:.3g} exceeds 1/8, the fastest stable pull: "
                "pulls are limited to it",
                stacklevel=4,
            )

    @staticmethod
    def _pull(batch: Batch, found_inf: Tensor | None = None) -> None:
        """Take the isometry step on a group, in place, if it is due and `found_inf` is not 1."""
        group, params, _, states = batch
        coefficient = isometry_coefficient(group) * group["iso_every"]
        if not params or group["iso_phase"] or (not isinstance(coefficient, Tensor) and not coefficient):
            return
        stacked = group.get("stacked", False)
        for param, state in zip(params, states):
            if "guarded" not in state:
                one = counter(param.device)
                state["guarded"] = one.repeat(len(param)) if stacked else one
        matrices = [matrix_view(param, stacked) for param in params]
        directions, divisors = isometry_steps(matrices, coefficient, group["iso_scale"])
        guarded = divisors > 0.125 / coefficient
        if found_inf is not None:
            finite = 1.0 - found_inf
            guarded, divisors = guarded * finite, divisors / finite
        torch._foreach_add_([state["guarded"] for state in states], list(guarded.unbind()))
        for matrix, direction, divisor in zip(matrices, directions, divisors.unbind()):
            matrix.addcdiv_(direction, divisor[..., None, None], value=-0.5)


def check_isometry(group: dict[str, Any]) -> None:
    """Raise ValueError for an isometry option out of range, with its name."""
    for name in ("lr", "iso", "iso_lr"):
        value = group[name]
        if not (name == "iso_lr" and value is None) and not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if isinstance(group["lr"], Tensor):
        raise ValueError("lr must be a number, not a tensor")
    scale = group["iso_scale"]
    if scale != "aspect" and (isinstance(scale, str) or not 0.0 < scale < math.inf):
        raise ValueError(f"iso_scale must be finite and positive, or 'aspect', got {scale}")
    if not (isinstance(group["iso_every"], int) and group["iso_every"] >= 1):
        raise ValueError(f"iso_every must be an integer of at least 1, got {group['iso_every']}")
    if group["iso_lr"] is not None and not group["lr"]:
        raise ValueError("iso_lr is kept in proportion to lr, which is zero: set iso instead")


def _check_params(group: dict[str, Any]) -> None:
    """Refuse vectors and half-precision parameters in isometry groups."""
    for name, param in named_params(group) if group["iso"] else ():
        if param.ndim < 2:
            raise ValueError(
                f"isometry needs matrices, but parameter {name} has shape {tuple(param.shape)}: "
                "put it in a group with iso=0, as neoteny.optim.param_groups does"
            )
        if param.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"parameter {name} is {param.dtype}, whose precision rounds the isometry pull away: "
                "keep float32 weights under autocast, or put it in a group with iso=0"
            )


@dataclass(frozen=True)
class IsometryFlags:
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
