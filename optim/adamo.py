r"""AdamO: Adam with a decoupled pull of the weight matrices towards dynamical isometry."""

from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from neoteny.optim.adam import Moments
from neoteny.optim.isometry import Scale, param_groups
from neoteny.optim.layers import Exclude, split_parameters
from neoteny.optim.optimizer import Batch, adam_state, adam_step, check_moments, counter, named_params
from neoteny.optim.pull import IsometryFlags, PullingOptimizer, check_isometry

_ADAM_OPTIONS = itemgetter("lr", "betas", "eps", "foreach", "fused")


class AdamO(PullingOptimizer):
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
        iso_scale: target s of the squared singular values; "aspect" for rows / columns of each matrix.
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
        iso_scale: Scale = 1.0,
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
        for name, param in named_params(group):
            if param.is_complex():
                raise ValueError(f"AdamO does not support complex parameters: {name}")
        self._accept_pull(group)
        if len({param.device for group in self.param_groups for param in group["params"]}) > 1:
            raise ValueError("AdamO needs all parameters on one device")

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped because of a NaN or an infinity in a gradient."""
        return max((int(state["skipped"]) for state in self.state.values()), default=0)

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {**adam_state(param, group), "skipped": counter(param.device)}

    def _step(self, batches: list[Batch]) -> None:
        self.count_replay()
        skip, found_inf = self._skip_nonfinite(batches)
        if skip:
            return
        for batch in batches:
            self._pull(batch, found_inf)
        # Groups that differ only in isometry options share one call of Adam, at the cost of one group.
        for _, alike in groupby(batches, key=_adam_options):
            group, *lists = zip(*alike)
            params, grads, states = (list(chain.from_iterable(each)) for each in lists)
            adam_step(group[0], params, grads, states, found_inf)

    def _skip_nonfinite(self, batches: list[Batch]) -> tuple[bool, Tensor | None]:
        """Check gradients for NaN and infinity, and count the step as skipped if there are any.

        Returns:
            Whether to skip the step, and None. If the kernels can skip it themselves, without synchronizing
            with the host: False and a tensor `()`, 1 to skip the step, else 0.
        """
        if batches[0].group.get("stacked"):
            return False, None  # a step must not be skipped for all networks: their gradients were checked
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


def _adam_options(batch: Batch) -> list[Any]:
    """Adam's options of a group; a tensor stands for itself, since its value is on the device."""
    options = _ADAM_OPTIONS(batch.group)
    return [id(option) if isinstance(option, Tensor) else option for option in options]


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for an option out of range, with its name."""
    check_isometry(options)
    check_moments(options)


@dataclass(frozen=True)
class AdamOConfig(IsometryFlags, Moments):
    """Adam with a decoupled pull of the hidden weights towards dynamical isometry."""

    name: ClassVar[str] = "adamo"
    stackable: ClassVar[bool] = True

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
