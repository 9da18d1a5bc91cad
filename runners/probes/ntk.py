"""The empirical neural tangent kernel: how a gradient step on one sample changes the outputs for another.

K = J J^T, where the rows of J are the gradients of every output for every sample with respect to all
trainable parameters. The closer K is to a multiple of the identity, the more equally all tasks can be
learned. (Rosseau et al., Preserving Plasticity in Continual Learning via Dynamical Isometry, 2026, section
2.)
"""

import copy
import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neoteny.runners.probes.spectra import condition_number, effective_rank


@torch.inference_mode(False)
@torch.enable_grad()
def empirical_ntk(network: nn.Module, inputs: Tensor) -> Tensor:
    """Empirical neural tangent kernel of a network, in float64.

    The Jacobian of a linear layer is never built: its term of the kernel is (A A^T + 1) * (D D^T), where A
    holds the inputs of the layer and D the derivatives of the network's outputs with respect to the outputs
    of the layer (paper, equations 7 and 8). The terms of convolutions are computed from per-sample gradients,
    those of all other parameters, also of parametrized layers, with torch.func. The network is not changed: a
    copy is measured.

    Args:
        network: From `inputs` to outputs (m, O), each sample independent; measured in evaluation mode.
        inputs: (m, ...), floating point.

    Returns:
        (m O, m O), rows ordered by sample, then by output.
    """
    network = copy.deepcopy(network).double().eval()
    inputs = inputs.to(torch.float64, copy=True)
    calls: dict[nn.Linear | nn.Conv2d, list[tuple[Tensor, Tensor]]] = {}

    def record(module: nn.Linear | nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.setdefault(module, []).append((args[0].detach(), output))
        return output.clone()  # the next module may work in place

    with ExitStack() as hooks:
        for module in filter(_has_closed_form, network.modules()):
            hooks.enter_context(module.register_forward_hook(record))
        # Inputs require gradients, since otherwise leading frozen layers would have no graph.
        outputs = network(inputs.detach().requires_grad_()).reshape(len(inputs), -1)
    kernel = outputs.new_zeros(outputs.numel(), outputs.numel())
    deltas = iter(_derivatives(outputs, [leaving for of_layer in calls.values() for _, leaving in of_layer]))
    for layer, of_layer in calls.items():
        entered = [entering for entering, _ in of_layer]
        kernel += _layer_kernel(layer, entered, [next(deltas) for _ in entered])
    covered = {id(parameter) for layer in calls for parameter in layer.parameters()}
    others = {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and id(parameter) not in covered
    }
    return (kernel + _kernel_of_others(network, others, inputs) if others else kernel).detach()


def ntk_statistics(kernel: Tensor) -> dict[str, Tensor]:
    """Statistics of how far a kernel is from a multiple of the identity.

    Args:
        kernel: (n, n), symmetric and positive semi-definite.

    Returns:
        `ntk_log10_cond`: log10 of largest over smallest eigenvalue, infinite if that is 0 up to rounding.
        `ntk_rank`: number of eigenvalues that are not 0 up to rounding.
        `ntk_eigenvalue_std`: standard deviation of the eigenvalues.
        `ntk_participation_rank`: (sum of lambda)^2 / sum of lambda^2, from 1 to n.
        `ntk_effective_rank`: exponential of the entropy of the eigenvalues.
        `ntk_isotropy_gap`: Frobenius norm of K / (tr K / n) - I, 0 for an isotropic kernel.
        A zero kernel has an infinite condition number and gap, and ranks of 0; for a kernel that is not
        finite all are nan. A kernel can be exactly singular: if the samples lie in few linear regions of a
        piecewise linear network, or if the inputs are few.
    """
    finite = kernel.isfinite().all()
    size = len(kernel)
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, kernel, 0.0)).flip(0)
    resolved = eigenvalues > size * torch.finfo(kernel.dtype).eps * eigenvalues[0]
    eigenvalues = torch.where(resolved, eigenvalues, 0.0)
    mean = eigenvalues.mean()
    dead = mean == 0
    values = {
        "ntk_log10_cond": condition_number(eigenvalues).log10(),
        "ntk_rank": resolved.sum().double(),
        "ntk_eigenvalue_std": eigenvalues.std(correction=0),
        "ntk_participation_rank": torch.where(
            dead, 0.0, eigenvalues.sum().square() / eigenvalues.square().sum()
        ),
        "ntk_effective_rank": effective_rank(eigenvalues),
        "ntk_isotropy_gap": torch.where(dead, math.inf, (eigenvalues / mean - 1.0).square().sum().sqrt()),
    }
    return {name: torch.where(finite, value, math.nan) for name, value in values.items()}


def _has_closed_form(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if parametrize.is_parametrized(module):
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _derivatives(outputs: Tensor, leaving: list[Tensor]) -> list[Tensor]:
    """Derivatives of all outputs (m, O) with respect to each layer's outputs, (m, ...): (m, O, ...) each."""
    if not leaving:
        return []
    columns = [
        torch.autograd.grad(column.sum(), leaving, retain_graph=True, materialize_grads=True)
        for column in outputs.unbind(1)
    ]
    return [torch.stack(of_layer, dim=1) for of_layer in zip(*columns)]


def _layer_kernel(layer: nn.Linear | nn.Conv2d, entered: list[Tensor], deltas: list[Tensor]) -> Tensor:
    """A layer's term of the kernel, (m O, m O), from the inputs and deltas of each of its calls."""
    if isinstance(layer, nn.Linear) and len(entered) == 1 and entered[0].dim() == 2:
        samples, outputs = deltas[0].shape[:2]
        similar = layer.weight.requires_grad * entered[0] @ entered[0].T
        if layer.bias is not None and layer.bias.requires_grad:
            similar += 1.0
        delta = deltas[0].flatten(0, 1)
        kernel = (delta @ delta.T).unflatten(0, (samples, outputs)).unflatten(2, (samples, outputs))
        return (similar[:, None, :, None] * kernel).flatten(2).flatten(0, 1)
    gradients = _sample_gradients(layer, entered, deltas)
    return sum((g @ g.T for g in gradients), deltas[0].new_zeros(()))


def _sample_gradients(
    layer: nn.Linear | nn.Conv2d, entered: list[Tensor], deltas: list[Tensor]
) -> list[Tensor]:
    """Per-sample gradients (m O, parameters) of all outputs with respect to a layer's weight and bias."""
    calls = [_positions(layer, *call) for call in zip(entered, deltas)]
    gradients = []
    if layer.weight.requires_grad:
        by_weight = [torch.einsum("moup,mip->moui", delta, columns) for columns, delta in calls]
        gradients.append(torch.stack(by_weight).sum(0).flatten(2).flatten(0, 1))
    if layer.bias is not None and layer.bias.requires_grad:
        gradients.append(torch.stack([delta.sum(3) for _, delta in calls]).sum(0).flatten(0, 1))
    return gradients


def _positions(layer: nn.Linear | nn.Conv2d, entering: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of each of P positions, (m, in, P), and derivatives by their outputs, (m, O, out, P)."""
    if isinstance(layer, nn.Linear):
        columns = entering.reshape(len(entering), -1, entering.shape[-1]).transpose(1, 2)
        return columns, delta.reshape(*delta.shape[:2], -1, delta.shape[-1]).transpose(2, 3)
    columns = F.unfold(entering, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return columns, delta.flatten(3)


def _kernel_of_others(network: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The kernel's term, (m O, m O), of parameters without a closed form: norms, parametrized layers."""

    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(network, parameters, (sample[None],)).flatten()

    rows = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))(parameters, inputs)
    gradients: Iterable[Tensor] = (row.flatten(2).flatten(0, 1) for row in rows.values())
    return sum((g @ g.T for g in gradients), inputs.new_zeros(()))
