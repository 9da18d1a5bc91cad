"""Measurements of a network on one batch; docs/metrics.md defines every tag."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from neoteny.envs.transfer import to_host
from neoteny.optim.layers import AllParts, Call, Layer, describe, trace, undisturbed
from neoteny.runners.probes.jacobians import (
    ELEMENTWISE,
    circular_singular_values,
    gated_singular_values,
    jacobian,
    jacobian_statistics,
    operator_matrix,
    slopes_of,
)
from neoteny.runners.probes.spectra import (
    RANKS,
    condition_number,
    gram,
    gram_singular_values,
    singular_values,
)
from neoteny.runners.probes.units import UNIT_PROBES, unit_sizes

JACOBIAN_SAMPLES = 32  # enough for a median and a 95th percentile; each costs one backward pass per output

# The cost of singular values is cubic in the smaller side, so wide layers get fewer samples: 32 at width 256,
# 4 from 512 on. These suffice, since the spectrum of a wider matrix varies less from sample to sample.
_SPECTRUM_BUDGET = 2**29
_FEWEST_SAMPLES = 4
_WIDEST_OPERATOR = 512  # likewise, the largest smaller side of a convolution's matrix

Measured = dict[str, Tensor]  # scalars (), and spectra (r,), by tag


def measure(
    parts: Mapping[str, nn.Module],
    inputs: Tensor,
    layers: Sequence[Layer] | None = None,
    *,
    jacobian_samples: int = JACOBIAN_SAMPLES,
    operators: bool = False,
) -> dict[str, float | list[float]]:
    """Measure units, features, weights and Jacobians of a network on one batch.

    Training is not affected: parts run in evaluation mode, and gradients, random state, training flags and
    hooks are restored. Parts may share modules; a shared layer is measured once, under its first name. A
    diverged network gives nan, not an error.

    Args:
        parts: Networks by name, each from `inputs` to an output (B, O).
        inputs: Floating-point batch (B, D) or (B, C, H, W), on the device of the parts. Dead and dormant
            shares depend on its size and distribution: use at least 256 samples of current data.
        layers: Description of the parts, if already known.
        jacobian_samples: Number of samples, evenly spaced in the batch, for Jacobians; fewer in layers wider
            than 256. 0 skips the Jacobians.
        operators: Also measure convolutions as matrices of linear maps, and their Jacobians.

    Returns:
        Values by tag, as docs/metrics.md defines them; spectra are lists.

    Raises:
        TypeError: If `inputs` is not floating point.
        ValueError: If there are no parts or no samples, or `jacobian_samples` is negative.
    """
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point, not {inputs.dtype}")
    if not parts or not len(inputs) or jacobian_samples < 0:
        raise ValueError("measure needs at least one part, at least one sample and jacobian_samples >= 0")
    if layers is None:
        layers = describe(AllParts(parts), inputs[:1], parts)
    described: dict[nn.Module, Layer] = {layer.module: layer for layer in layers}
    with undisturbed(parts.values(), inputs.device):
        inputs = inputs.clone()
        calls = {name: trace(part, inputs) for name, part in parts.items()}
        seen: dict[nn.Module, MeasuredLayer] = {}
        for call in chain.from_iterable(calls.values()):
            seen.setdefault(call.module, MeasuredLayer(described[call.module].name, call))
        hidden = [layer for module, layer in seen.items() if not described[module].is_head]
        measured = _unit_scalars(hidden) | _feature_scalars(calls) | _weight_spectra(seen.values(), hidden)
        measured |= _operator_scalars(seen.values(), operators)
        if jacobian_samples:
            measured |= _jacobian_scalars(parts, hidden, inputs, jacobian_samples, operators)
    return dict(zip(measured, to_host([*measured.values()])))


@dataclass
class MeasuredLayer:
    """A named layer with its inputs and outputs in one forward pass."""

    name: str
    call: Call

    @cached_property
    def unit_sizes(self) -> Tensor | None:
        """Mean absolute output of each unit of its activation, (units,); None without one."""
        return None if self.call.activations is None else unit_sizes(self.call.activations)

    @cached_property
    def matrix(self) -> Tensor:
        """The weight as a matrix (out, in), kernels as (out, in * height * width), float64."""
        return self.call.module.weight.detach().flatten(1).double()

    @cached_property
    def gram(self) -> Tensor:
        """Gram matrix of the smaller side of the weight."""
        return gram(self.matrix)

    @cached_property
    def operator(self) -> Tensor | None:
        """The matrix of a convolution as a linear map, float64; None for other layers or if too large."""
        if not isinstance(self.call.module, nn.Conv2d):
            return None
        smaller = min(self.call.inputs[0].numel(), self.call.shape[1:].numel())
        if smaller > _WIDEST_OPERATOR:
            return None
        return operator_matrix(self.call.module, *self.call.inputs.shape[2:])


def _unit_scalars(hidden: Sequence[MeasuredLayer]) -> Measured:
    """Dormant and dead shares of each hidden layer, their maximum, and the share of all units."""
    sizes = {layer.name: layer.unit_sizes for layer in hidden if layer.unit_sizes is not None}
    if not sizes:
        return {}
    counts = next(iter(sizes.values())).new_tensor([len(layer) for layer in sizes.values()])
    scalars: Measured = {}
    for probe, fraction in UNIT_PROBES.items():
        # The fractions depend only on mean absolute activations, so the means are passed as one sample.
        fractions = {name: fraction(layer[None]) for name, layer in sizes.items()}
        scalars |= {f"plasticity/{probe}/{name}": value for name, value in fractions.items()}
        values = torch.stack(list(fractions.values()))
        scalars[f"plasticity/{probe}/max"] = values.max()
        scalars[f"plasticity/{probe}/total"] = (counts * values).sum() / counts.sum()
    return scalars


def _feature_scalars(calls: Mapping[str, Sequence[Call]]) -> Measured:
    """Ranks of the features (samples, features), the inputs of each part's head."""
    scalars: Measured = {}
    for part, of_part in calls.items():
        if not of_part:
            continue
        features = of_part[-1].inputs
        linear = isinstance(of_part[-1].module, nn.Linear)
        sigma = singular_values(features.reshape(-1, features.shape[-1]) if linear else features.flatten(1))
        scalars |= {f"plasticity/feature_{name}/{part}": rank(sigma) for name, rank in RANKS.items()}
    return scalars


def _weight_spectra(layers: Iterable[MeasuredLayer], hidden: Sequence[MeasuredLayer]) -> Measured:
    """Singular values of all weights with their statistics; aggregates leave the heads out."""
    spectra = {layer.name: gram_singular_values(layer.gram) for layer in layers}
    measured: Measured = {}
    for name, sigma in spectra.items():
        measured |= _extremes("", name, sigma)
        measured[f"isometry/mean_squared_sigma/{name}"] = sigma.square().mean()
        measured[f"isometry/log10_cond/{name}"] = condition_number(sigma).log10()
        measured[f"spectra/{name}"] = sigma
    if hidden:
        names = [layer.name for layer in hidden]
        conditions = torch.stack([measured[f"isometry/log10_cond/{name}"] for name in names])
        of_hidden = torch.cat([spectra[name] for name in names])
        measured["isometry/sigma_max/max"] = of_hidden.max()
        measured["isometry/sigma_min/min"] = of_hidden.min()
        measured["isometry/mean_squared_sigma/mean"] = of_hidden.square().mean()
        measured["isometry/log10_cond/max"] = conditions.max()
        # Rosseau et al., equations 16 and 17: squared distances of the Gram matrices from the identity.
        penalties = [(spectra[name].square() - 1.0).square().sum() for name in names]
        measured["isometry/penalty"] = torch.stack(penalties).sum()
    return measured


def _extremes(kind: str, name: str, sigma: Tensor) -> Measured:
    return {
        f"isometry/{kind}sigma_max/{name}": sigma[..., 0],
        f"isometry/{kind}sigma_min/{name}": sigma[..., -1],
    }


def _operator_scalars(layers: Iterable[MeasuredLayer], operators: bool) -> Measured:
    """Largest and smallest singular values of convolutions as linear maps of images."""
    measured: Measured = {}
    for layer in layers:
        conv = layer.call.module
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.groups == 1 and conv.dilation == (1, 1):
            height, width = layer.call.inputs.shape[2:]
            sigma = circular_singular_values(conv.weight.detach(), height, width, conv.stride)  # type: ignore[arg-type]
            measured |= _extremes("circular_", layer.name, sigma)
        if operators and layer.operator is not None:
            measured |= _extremes("operator_", layer.name, singular_values(layer.operator))
    return measured


def _jacobian_scalars(
    parts: Mapping[str, nn.Module],
    hidden: Sequence[MeasuredLayer],
    inputs: Tensor,
    samples: int,
    operators: bool,
) -> Measured:
    """Conditioning of the Jacobians of hidden layers and of whole parts."""
    spectra = {}
    for layer in hidden:
        is_linear = isinstance(layer.call.module, nn.Linear)
        matrix = layer.matrix if is_linear else layer.operator if operators else None
        if matrix is not None and layer.unit_sizes is not None:
            spectra[layer.name] = _layer_jacobian_spectra(layer, matrix, samples)
    for name, part in parts.items():
        spectra[f"{name}.input_output"] = singular_values(jacobian(part, spread(inputs, samples)))
    return {
        f"isometry/{statistic.replace('/', f'/{name}/')}": value
        for name, sigma in spectra.items()
        for statistic, value in jacobian_statistics(sigma).items()
    }


def _layer_jacobian_spectra(layer: MeasuredLayer, matrix: Tensor, samples: int) -> Tensor:
    """Singular values (samples, r) of D W, from a layer's input to its activation's output."""
    affordable = max(_FEWEST_SAMPLES, _SPECTRUM_BUDGET // min(matrix.shape) ** 3)
    entering = layer.call.inputs
    if isinstance(layer.call.module, nn.Linear):
        entering = entering.reshape(-1, matrix.shape[1])
    before = layer.call.module(spread(entering, min(samples, affordable)))
    after = nn.Sequential(*layer.call.following)
    if len(after) == 1 and isinstance(after[0], ELEMENTWISE):
        known = layer.gram if matrix is layer.matrix else None
        return gated_singular_values(slopes_of(after, before).flatten(1), matrix, known)
    return singular_values(jacobian(after, before).double() @ matrix)


def spread(samples: Tensor, count: int) -> Tensor:
    """At most `count` samples, evenly spaced, since neighbours in a rollout are similar."""
    return samples[:: max(1, len(samples) // count)][:count]


def snapshot(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Copies of the module's parameters, for `update_norms` after the next update."""
    return {parameter: parameter.detach().clone() for parameter in module.parameters()}


def update_norms(module: nn.Module, before: Mapping[nn.Parameter, Tensor]) -> dict[str, float]:
    """Euclidean norms: `update/weight_norm` of all parameters, and `update/step_norm` of their change.

    The change is since `before = snapshot(module)`, of the parameters that existed then.
    """
    now = [parameter.detach() for parameter in module.parameters()]
    step = [after.detach() - before[after] for after in module.parameters() if after in before]
    norms = torch.stack([nn.utils.get_total_norm(step), nn.utils.get_total_norm(now)]).tolist()
    return dict(zip(("update/step_norm", "update/weight_norm"), norms))
