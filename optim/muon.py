"""Muon for hidden matrices and AdamW for all else, as one optimizer.

Muon is of K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; its steps are
scaled to the size of Adam's as by J. Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, so
that one learning rate and one weight decay serve both. The computation is torch's own.
"""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, muon
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT


class MuonAdamW(Optimizer):
    """Muon or AdamW, as each parameter group says, bit for bit as torch's optimizers step them.

    A group's `kind` is "muon", for the matrices of hidden layers, or "adamw", for parameters of any shape:
    biases, convolutions, output layers. Muon takes what is noted as Muon's below, AdamW the rest.

        MuonAdamW([{"params": matrices, "kind": "muon"}, {"params": others, "kind": "adamw"}], lr=1e-3)

    Args:
        params: groups of parameters or of named parameters, each with its `kind`.
        lr: learning rate of both. A matrix (out, in) is stepped by Muon at 0.2 * sqrt(max(out, in)) times it.
        weight_decay: share of each parameter that a step takes away, times the learning rate; of both.
        momentum: Muon's decay of the running average of the gradient, which it takes Nesterov's way.
        ns_steps: Muon's Newton-Schulz iterations, which orthogonalize its step.
        betas: AdamW's decay of the running averages of the gradient and of its square.
        eps: added to AdamW's denominator.
        fused: AdamW's kernel, as for `torch.optim.AdamW`.

    Raises:
        ValueError: for a group without a kind, an option out of range, or a parameter that is no matrix in a
            group of Muon's.
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group with its `kind`; other options that it lacks are the optimizer's defaults.

        Raises:
            ValueError: see the class. The optimizer is then unchanged.
        """
        super().add_param_group(param_group)
        try:
            check_options(self.param_groups[-1])
            _check_params(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # Checkpoints of earlier versions hold the groups of torch.optim.Muon and torch.optim.AdamW.
            group.setdefault("kind", "adamw" if "betas" in group else "muon")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step; a parameter without a gradient is left alone.

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
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._step_muon(group)
            else:
                self._step_adamw(group)
        return loss

    def _gather(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        """Parameters of a group that have a gradient, their gradients and their states, empty at first."""
        params, grads, states = [], [], []
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError("MuonAdamW does not support sparse gradients")
            params.append(param)
            grads.append(param.grad)
            states.append(self.state[param])
        return params, grads, states

    def _step_muon(self, group: dict[str, Any]) -> None:
        """Take Muon's step on the matrices of a group."""
        params, grads, states = self._gather(group)
        for param, state in zip(params, states):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
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

    def _step_adamw(self, group: dict[str, Any]) -> None:
        """Take AdamW's step on the parameters of a group."""
        params, grads, states = self._gather(group)
        for param, state in zip(params, states):
            if not state:
                # As in torch.optim.AdamW: only the fused kernel reads the step on the device.
                device = param.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def check_options(options: dict[str, Any]) -> None:
    """Refuse options out of range, each by name."""
    for name in ("lr", "weight_decay", "eps"):
        if not 0.0 <= options[name] < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {options[name]}")
    for name, decays in (("betas", options["betas"]), ("momentum", (options["momentum"],))):
        if not all(0.0 <= decay < 1.0 for decay in decays):
            raise ValueError(f"{name} must lie in [0, 1), got {options[name]}")
    if not 1 <= options["ns_steps"] < 100:
        raise ValueError(f"ns_steps must lie in [1, 100), got {options['ns_steps']}")


def _check_params(group: dict[str, Any]) -> None:
    """Refuse a group without a kind, and parameters that its kind does not step."""
    if group["kind"] not in ("muon", "adamw"):
        raise ValueError(f"the kind of a parameter group must be 'muon' or 'adamw', not {group['kind']!r}")
    names = group.get("param_names") or [f"number {i}" for i in range(len(group["params"]))]
    for name, param in zip(names, group["params"]):
        if param.is_complex():
            raise ValueError(f"MuonAdamW does not support complex parameters: {name}")
        if group["kind"] == "muon" and param.ndim != 2:
            raise ValueError(
                f"Muon steps matrices, but parameter {name} has shape {tuple(param.shape)}: "
                "put it in a group of kind 'adamw'"
            )
