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
from neoteny.optim.optimizer import Batch, CheckedOptimizer, adam_state, counter, named_params, options

_ADAM_OPTIONS = itemgetter("lr", "betas", "eps", "foreach", "fused")


class AdamO(CheckedOptimizer):
    r"""Adam with a decoupled step that pulls weight matrices towards equal singular values.

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
    without a factor 1/2; a convolution kernel is treated as a matrix `(out, in * k * k)`. The moments contain
    the gradient of the loss only.

    The strength is :math:`c = \gamma_\mathrm{iso} \lambda`: a singular value :math:`\sigma` becomes
    :math:`\sigma (1 - 4 c (\sigma^2 - s))`, so that its distance from :math:`\sqrt s` shrinks with a time
    constant of :math:`1 / (8 c s)` steps. With the defaults, the paper's, that is 125 000 steps. Choose `iso`
    so that c times the number of steps of the run is 0.5 to 8, as in the paper (`isometry_report` computes
    it). Three guards:

    * c is bounded by :math:`1 / (8 \max(s, \|G\|_\infty - s))`, so that no coefficient can make the weights
      diverge or oscillate (counted in `guarded_pulls`).
    * A step with a NaN or an infinity in any gradient changes no weight, moment or step counter (counted in
      `skipped_steps`). With `fused=True` on an accelerator this does not synchronize with the host.
    * Parameters in bfloat16 or float16, whose precision would round the pull away, are refused.

    Groups with `iso=0` are stepped as by `torch.optim.Adam`, bit for bit. A parameter without a gradient is
    neither stepped nor pulled.

    Args:
        params: parameters, named parameters or groups of either, as for any optimizer. Groups with `iso`
            other than 0 may hold only matrices and convolution kernels; `param_groups` makes such groups.
        lr: learning rate, :math:`\gamma`.
        betas: decay rates of the running averages of the gradient and of its square.
        eps: added to the denominator.
        iso: coefficient of the isometry penalty, :math:`\lambda`; 0 is plain Adam.
        iso_lr: step size of the pull, :math:`\gamma_\mathrm{iso}`; None for the learning rate. Its ratio to
            the group's learning rate is kept, so that it follows learning rate schedules.
        iso_scale: target s of the squared singular values.
        iso_every: pull only at every k-th step, with k times the coefficient: the same to first order, at
            1/k of the cost. Skipped steps are counted too.
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
                "pulls are limited to it",
                stacklevel=3,
            )

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped because of a NaN or an infinity in a gradient."""
        return max((int(state["skipped"]) for state in self.state.values()), default=0)

    @property
    def guarded_pulls(self) -> int:
        """Number of pulls whose coefficient was reduced to stay stable, summed over matrices."""
        return sum(int(state["guarded"]) for state in self.state.values() if "guarded" in state)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {**adam_state(param, group), "skipped": counter(param.device)}

    def variant(self) -> tuple[Any, ...]:
        """What distinguishes the kernels of the next step: options, and whether each group is pulled."""
        pulled = ((group["iso_phase"] + 1) % group["iso_every"] == 0 for group in self.param_groups)
        return (*options(self), *pulled)

    def count_replay(self) -> None:
        """Count a step, whose kernels are replayed."""
        for group in self.param_groups:
            group["iso_phase"] = (group["iso_phase"] + 1) % group["iso_every"]

    def _step(self, batches: list[Batch]) -> None:
        self.count_replay()
        skip, found_inf = self._skip_nonfinite(batches)
        if skip:
            return
        for batch in batches:
            _pull(batch, found_inf)
        # Groups that differ only in isometry options share one call of Adam, at the cost of one group.
        for _, alike in groupby(batches, key=_adam_options):
            _adam(list(alike), found_inf)

    def _skip_nonfinite(self, batches: list[Batch]) -> tuple[bool, Tensor | None]:
        """Check gradients for NaN and infinity, and count the step as skipped if there are any.

        Returns:
            Whether to skip the step, and None. If the kernels can skip it themselves, without synchronizing
            with the host: False and a tensor `()`, 1 to skip the step, else 0.
        """
        grads = [grad for batch in batches for grad in batch.grads]
        found_inf = _find_nonfinite(grads)
        on_device = self._skips_on_device(found_inf)
        skip = not on_device and bool(found_inf)
        if skip or on_device:
            counters = [state["skipped"] for batch in batches for state in batch.states]
            # A list of summands: with a single tensor the host would read its value.
            torch._foreach_add_(counters, [found_inf] * len(counters))
        return skip, found_inf if on_device else None

    def _skips_on_device(self, found_inf: Tensor) -> bool:
        """Whether the kernels can skip a step; on a CPU it is faster to read whether they shall."""
        return not found_inf.is_cpu and all(group["fused"] for group in self.param_groups)


def _find_nonfinite(grads: list[Tensor]) -> Tensor:
    """1 if any gradient contains a NaN or an infinity, else 0: `()`, float32, on the gradients' device."""
    found_inf = counter(grads[0].device)
    for dtype in {grad.dtype for grad in grads}:
        # The kernel of torch.amp.GradScaler: one launch for all gradients; the scale of 1 leaves them
        # unchanged.
        torch._amp_foreach_non_finite_check_and_unscale_(
            [grad for grad in grads if grad.dtype == dtype], found_inf, torch.ones_like(found_inf)
        )
    return found_inf


def _pull(batch: Batch, found_inf: Tensor | None) -> None:
    """Take the isometry step on a group, in place, if it is due and `found_inf` is not 1."""
    group, params, _, states = batch
    coefficient = isometry_coefficient(group) * group["iso_every"]
    if not params or group["iso_phase"] or (not isinstance(coefficient, Tensor) and not coefficient):
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


def _adam_options(batch: Batch) -> list[Any]:
    """Adam's options of a group; a tensor stands for itself, since its value is on the device."""
    options = _ADAM_OPTIONS(batch.group)
    return [id(option) if isinstance(option, Tensor) else option for option in options]


def _adam(batches: list[Batch], found_inf: Tensor | None) -> None:
    """Take Adam's step on groups with equal Adam options."""
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
    """Raise ValueError for an option out of range, with its name."""
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
    """Refuse complex parameters, and in isometry groups vectors and half-precision parameters."""
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
                f"parameter {name} is {param.dtype}, whose precision rounds the isometry pull away: "
                "keep float32 weights under autocast, or put it in a group with iso=0"
            )
