r"""AdamO: Adam with a decoupled pull of the weight matrices towards dynamical isometry."""

import math
import warnings
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from neoteny.optim.isometry import isometry_coefficient, isometry_steps, matrix_view
from neoteny.optim.optimizer import Batch, CheckedOptimizer, adam_state, counter, named_params

_ADAM_OPTIONS = itemgetter("lr", "betas", "eps", "foreach", "fused")


class AdamO(CheckedOptimizer):
    r"""Adam whose weight matrices are pulled towards equal singular values, apart from the moments.

    .. math::
        \begin{aligned}
            g_t &= \nabla_\theta f_t(\theta_{t-1}), \qquad
            r_t  = \nabla_\theta \sum_l R(W_l) \big|_{\theta_{t-1}}, \qquad
            \nabla_W R = 4 \, (W W^\top W - s W)                                                \\
            m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \, g_t, \qquad
            v_t  = \beta_2 v_{t-1} + (1 - \beta_2) \, g_t^2                                     \\
            \theta_t &= \theta_{t-1} - \gamma \, \hat m_t / (\sqrt{\hat v_t} + \epsilon)
                        - \gamma_\mathrm{iso} \, \lambda \, r_t
        \end{aligned}

    A. Rosseau, R. Müller, A. Nowé, "Preserving Plasticity in Continual Learning via Dynamical Isometry", ICML
    2026, eqs. 16, 19 and 20. :math:`R(W) = \|G - s I\|_F^2` with the Gram matrix G of the smaller side,
    without a factor 1/2; a convolution kernel counts as a matrix `(out, in * k * k)`. The moments see the
    task's gradient only.

    What matters is :math:`c = \gamma_\mathrm{iso} \lambda`: a singular value :math:`\sigma` becomes
    :math:`\sigma (1 - 4 c (\sigma^2 - s))`, so that its distance from :math:`\sqrt s` shrinks with a time
    constant of :math:`1 / (8 c s)` steps. The defaults, the paper's, make that 125 000 steps; choose `iso` by
    c times the number of steps of the run, 0.5 to 8 in the paper (`isometry_report` tells). Three guards:

    * c is bounded by :math:`1 / (8 \max(s, \|G\|_\infty - s))`, so that no coefficient can make the weights
      diverge or oscillate (`guarded_pulls` counts).
    * A step with a NaN or an infinity in any gradient changes no weight, moment or step counter
      (`skipped_steps` counts). With `fused=True` on an accelerator the host does not wait to learn of it.
    * A parameter whose precision would round the pull away, bfloat16 or float16, is refused.

    Groups with `iso=0` are stepped as by `torch.optim.Adam`, bit for bit. A parameter without a gradient is
    left alone by Adam and pull alike.

    Args:
        params: parameters, named parameters or groups of either, as for any optimizer. Those with `iso` other
            than 0 must be matrices or convolution kernels: `param_groups` sorts a network's parameters.
        lr: learning rate, :math:`\gamma`.
        betas: decay of the running averages of the gradient and of its square.
        eps: added to the denominator.
        iso: coefficient of the isometry penalty, :math:`\lambda`; 0 is plain Adam.
        iso_lr: step size of the pull, :math:`\gamma_\mathrm{iso}`; the learning rate if None. Either way it
            follows the group's learning rate, schedules included: the ratio they began with is kept.
        iso_scale: target s of the squared singular values.
        iso_every: pull only at every k-th step, with k times the coefficient: the same to first order, at a
            k-th of the cost. Steps that were skipped count.
        foreach: as for `torch.optim.Adam`.
        fused: as for `torch.optim.Adam`; the fastest choice where it is supported, CPU and CUDA included.

    Raises:
        ValueError: for an option out of range, or a parameter that cannot be pulled.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        iso: float = 1e-3,
        iso_lr: float | None = None,
        iso_scale: float = 1.0,
        iso_every: int = 1,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if foreach and fused:
            raise ValueError("foreach and fused cannot both be True")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "iso": iso,
            "iso_lr": iso_lr,
            "iso_scale": iso_scale,
            "iso_every": iso_every,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _accept(self, group: dict[str, Any]) -> None:
        check_options(group)
        _check_params(group)
        if len({param.device for group in self.param_groups for param in group["params"]}) > 1:
            raise ValueError("AdamO needs all parameters on one device")
        group["iso_lr_ratio"] = 1.0 if group["iso_lr"] is None else group["iso_lr"] / group["lr"]
        group["iso_phase"] = 0
        stiffness = isometry_coefficient(group) * group["iso_every"] * group["iso_scale"]
        if stiffness > 0.125:
            warnings.warn(
                f"lr * iso * iso_every * iso_scale = {stiffness:.3g} exceeds 1/8, the fastest stable pull: "
                "each will be cut down to that",
                stacklevel=3,
            )

    @property
    def skipped_steps(self) -> int:
        """Steps that were skipped because of a gradient that was not finite."""
        return max((int(state["skipped"]) for state in self.state.values()), default=0)

    @property
    def guarded_pulls(self) -> int:
        """Pulls whose coefficient was cut down, summed over matrices."""
        return sum(int(state["guarded"]) for state in self.state.values() if "guarded" in state)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {**adam_state(param, group), "skipped": counter(param.device)}

    def _step(self, batches: list[Batch]) -> None:
        for group in self.param_groups:
            group["iso_phase"] = (group["iso_phase"] + 1) % group["iso_every"]
        skip, found_inf = self._skip_nonfinite(batches)
        if skip:
            return
        for batch in batches:
            _pull(batch, found_inf)
        # Groups that differ only in isometry are one group to Adam, at the cost of one.
        for _, alike in groupby(batches, key=lambda batch: _ADAM_OPTIONS(batch.group)):
            _adam(list(alike), found_inf)

    def _skip_nonfinite(self, batches: list[Batch]) -> tuple[bool, Tensor | None]:
        """Look for gradients that are not finite, and count the step as skipped if there are any.

        Returns:
            Whether to skip the step, and None; or, where the host need not wait to learn that, False and a
            tensor `()`, 1 where the kernels are to skip it, else 0.
        """
        grads = [grad for batch in batches for grad in batch.grads]
        found_inf = _find_nonfinite(grads)
        on_device = not found_inf.is_cpu and all(group["fused"] for group in self.param_groups)
        skip = not on_device and bool(found_inf)
        if skip or on_device:
            counters = [state["skipped"] for batch in batches for state in batch.states]
            # One summand each: a single one for all would be read by the host.
            torch._foreach_add_(counters, [found_inf] * len(counters))
        return skip, found_inf if on_device else None


def _find_nonfinite(grads: list[Tensor]) -> Tensor:
    """1 if any gradient holds a NaN or an infinity, else 0: `()`, float32, on the gradients' device."""
    found_inf = counter(grads[0].device)
    for dtype in {grad.dtype for grad in grads}:
        # The kernel of torch.amp.GradScaler: one launch for all gradients, which a factor of one leaves as
        # they are.
        torch._amp_foreach_non_finite_check_and_unscale_(
            [grad for grad in grads if grad.dtype == dtype], found_inf, torch.ones_like(found_inf)
        )
    return found_inf


def _pull(batch: Batch, found_inf: Tensor | None) -> None:
    """Take the isometry step on a group, in place, where it is due; not at all where `found_inf` is 1."""
    group, params, _, states = batch
    coefficient = isometry_coefficient(group) * group["iso_every"]
    if not coefficient or not params or group["iso_phase"]:
        return
    for param, state in zip(params, states):
        if "guarded" not in state:
            state["guarded"] = counter(param.device)
    matrices = [matrix_view(param) for param in params]
    directions, divisors = isometry_steps(matrices, coefficient, group["iso_scale"])
    guarded = divisors > 0.125 / coefficient
    if found_inf is not None:
        finite = 1.0 - found_inf
        guarded, divisors = guarded * finite, divisors / finite
    torch._foreach_add_([state["guarded"] for state in states], list(guarded.unbind()))
    for matrix, direction, divisor in zip(matrices, directions, divisors.unbind()):
        matrix.addcdiv_(direction, divisor, value=-0.5)


def _adam(batches: list[Batch], found_inf: Tensor | None) -> None:
    """Take Adam's step on groups whose options for Adam are equal."""
    lr, (beta1, beta2), eps, foreach, fused = _ADAM_OPTIONS(batches[0].group)
    states = [state for batch in batches for state in batch.states]
    adam(
        [param for batch in batches for param in batch.params],
        [grad for batch in batches for grad in batch.grads],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        foreach=foreach,
        fused=fused,
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=0.0,
        eps=eps,
        maximize=False,
    )


def check_options(group: dict[str, Any]) -> None:
    """Refuse options out of range, each by name."""
    for name in ("lr", "eps", "iso", "iso_lr"):
        value = group[name]
        if not (name == "iso_lr" and value is None) and not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if isinstance(group["lr"], Tensor):
        raise ValueError("lr must be a number, not a tensor")
    if not all(0.0 <= beta < 1.0 for beta in group["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
    if not 0.0 < group["iso_scale"] < math.inf:
        raise ValueError(f"iso_scale must be finite and positive, got {group['iso_scale']}")
    if not (isinstance(group["iso_every"], int) and group["iso_every"] >= 1):
        raise ValueError(f"iso_every must be an integer of at least 1, got {group['iso_every']}")
    if group["iso_lr"] is not None and not group["lr"]:
        raise ValueError("iso_lr is kept in proportion to lr, which is zero: set iso instead")


def _check_params(group: dict[str, Any]) -> None:
    """Refuse complex parameters, and in an isometry group all that are no matrices of full precision."""
    for name, param in named_params(group):
        if param.is_complex():
            raise ValueError(f"AdamO does not support complex parameters: {name}")
        if not group["iso"]:
            continue
        if param.ndim < 2:
            raise ValueError(
                f"isometry needs matrices, but parameter {name} has shape {tuple(param.shape)}: "
                "put it in a group with iso=0, as neoteny.optim.param_groups does"
            )
        if param.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{param.dtype} rounds the pull of isometry away, but parameter {name} has it: "
                "keep float32 weights under autocast, or put it in a group with iso=0"
            )
