"""Base class of this package's optimizers: checks parameter groups, and collects gradients and states."""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

NOT_OPTIONS = {"params", "param_names", "iso_phase"}
"""Entries of a parameter group that are no options."""


class Batch(NamedTuple):
    """The parameters of a group that have gradients; the lists are parallel."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Tensor]]


class CheckedOptimizer(Optimizer):
    """An optimizer that checks each new group; subclasses implement the checks and the step."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; missing options are set to the optimizer's defaults.

        Raises:
            ValueError: for a group that the optimizer does not accept; the optimizer is then unchanged.
        """
        super().add_param_group(param_group)
        try:
            self._accept(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step; parameters without a gradient do not change.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = [self._gather(group) for group in self.param_groups]
        if any(batch.params for batch in batches):
            self._step(batches)
        return loss

    def variant(self) -> Hashable:
        """What distinguishes the kernels of the next step from those of others, see `runners.capture`."""
        return options(self)

    def _accept(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a new group is invalid, else complete its options."""
        raise NotImplementedError

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step."""
        raise NotImplementedError

    def _step(self, batches: list[Batch]) -> None:
        """Update parameters and states in place; a batch may be empty."""
        raise NotImplementedError

    def _gather(self, group: dict[str, Any]) -> Batch:
        """The parameters of a group that have a gradient, with their states, created on first use."""
        batch = Batch(group, [], [], [])
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[param]
            if not state:
                state.update(self._new_state(param, group))
            batch.params.append(param)
            batch.grads.append(param.grad)
            batch.states.append(state)
        return batch


def options(optimizer: Optimizer) -> tuple[Any, ...]:
    """The options of all groups that a recorded step keeps as they were: numbers, and which tensors."""
    return tuple(
        [
            id(value) if isinstance(value, Tensor) else repr(value)
            for group in optimizer.param_groups
            for name, value in group.items()
            if name not in NOT_OPTIONS
        ]
    )


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all groups; on a GPU in one tensor, which captured steps read."""
    groups = optimizer.param_groups
    device, first = groups[0]["params"][0].device, groups[0]["lr"]
    value: float | Tensor = lr
    if device.type == "cuda":
        value = (
            first if isinstance(first, Tensor) and first.device == device else torch.empty((), device=device)
        )
        value.fill_(lr)
    for group in groups:
        group["lr"] = value


def counter(device: torch.device | str) -> Tensor:
    """A zero, `()`, to count or flag with; torch's kernels require float32, whatever the default dtype."""
    return torch.zeros((), dtype=torch.float32, device=device)


def adam_state(param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """Adam's state of a parameter before its first step."""
    # As in torch.optim.Adam: only the fused kernel reads the step count on the device.
    step = counter(param.device if group["fused"] else "cpu")
    first, second = (torch.zeros_like(param, memory_format=torch.preserve_format) for _ in range(2))
    return {"step": step, "exp_avg": first, "exp_avg_sq": second}


def adam_step(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    found_inf: Tensor | None = None,
) -> None:
    """Take Adam's step on parameters with a state as `adam_state` makes, unless `found_inf`, (), is 1."""
    adam(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        foreach=group.get("foreach"),
        fused=group["fused"],
        found_inf=found_inf,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )


def check_moments(options: dict[str, Any]) -> None:
    """Raise ValueError if `betas` or `eps` are out of range."""
    if not all(0.0 <= beta < 1.0 for beta in options["betas"]):
        raise ValueError(f"betas must lie in [0, 1), got {options['betas']}")
    check_not_negative(options, "eps")


def check_not_negative(options: dict[str, Any], *names: str) -> None:
    """Raise ValueError if one of these options is negative, infinite or NaN."""
    for name in names:
        if not 0.0 <= options[name] < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {options[name]}")


def named_params(group: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """The parameters of a group with their names, or their indices if they have none."""
    names = group.get("param_names") or [f"number {i}" for i in range(len(group["params"]))]
    return list(zip(names, group["params"]))
