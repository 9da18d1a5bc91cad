"""Plasticity probes: what state a network is in, measured on one batch of current data.

`measure` returns a flat dictionary of tags. A tag is absent where it has no meaning (no activation after the
layer, no hidden layer); which tags there are depends on the architecture alone, never on the weights.
`<layer>` is `<part>.<child>`, as in `actor.linear1`. The last weight layer of a part is its head, the others
are hidden.

| tag | meaning |
|---|---|
| `plasticity/dormant_<tau>/<layer>` | share of units whose mean size is at most tau times the layer's mean |
| `plasticity/dead/<layer>` | share of units that are exactly zero on every sample |
| `plasticity/<either>/max`, `/total` | worst hidden layer; units of all hidden layers counted together |
| `plasticity/feature_srank/<part>` | rank of the features that enter the head: 99 % of the sum of sigma |
| `plasticity/feature_rank99/<part>` | 99 % of the sum of sigma squared (PCA rank) |
| `plasticity/feature_stable_rank/<part>` | squared Frobenius norm over squared spectral norm |
| `plasticity/feature_effective_rank/<part>` | exponential of the entropy of sigma |
| `plasticity/feature_effective_rank_squared/<part>` | exponential of the entropy of sigma squared |
| `isometry/sigma_max/<layer>`, `sigma_min` | extreme singular values; `/max`, `/min`: of all hidden layers |
| `isometry/log10_cond/<layer>` | log10 of their ratio, inf if singular; `/max`: worst hidden layer |
| `isometry/penalty` | squared distance of Gram matrices from the identity, sum over hidden layers |
| `isometry/jacobian_log10_cond/<layer>/<q>` | largest over smallest singular value of one sample's Jacobian |
| `isometry/jacobian_log10_cond_active/<layer>/<q>` | the same over the singular values that are not zero |
| `isometry/jacobian_distance/<layer>/<q>` | root mean square of sigma - 1 |
| `isometry/jacobian_rank/<layer>/median` | number of singular values that are not zero |

`<tau>` is 0, 0.025 or 0.1; `<q>` is `median` or `p95`, over samples. There are Jacobians of every hidden
linear layer together with its activation, J = D W, and of every part end to end, under `<part>.input_output`.
Convolutions have none yet: their operator is not the reshaped kernel. A closed ReLU gate is a zero row of D,
so `jacobian_log10_cond` of a ReLU layer is nearly always inf: `_active` and `_rank` say how well conditioned
the open part is, and how large.

All spectra come from float64 Gram matrices of the smaller side. Squaring halves the digits: condition numbers
are right up to about 1e7, and a larger value only says "above 1e7". A float32 Gram would already fail between
1e3 and 1e4, which an ordinary initialisation exceeds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain

import torch
from torch import Tensor, nn

TAUS = (0.0, 0.025, 0.1)

# What a float64 Gram resolves: a Jacobian's singular values below this fraction of the largest count as zero.
RESOLUTION = 1e-7

# Singular values cost the cube of the smaller side, so wide layers get fewer samples. They can afford it: the
# wider a matrix, the less its spectrum varies from sample to sample. 32 at width 256, 4 from 512 on.
_SPECTRUM_BUDGET = 2**29
_FEWEST_SAMPLES = 4

# Backpropagated rows times samples held at once, to bound the memory of Jacobians with many outputs.
_ROWS_AT_ONCE = 1024

_WEIGHT_LAYERS = (nn.Linear, nn.Conv2d)

# Modules that carry activations on and are no activation functions themselves, by the file that defines them.
_PASSIVE = {
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.dropout",
    "torch.nn.modules.flatten",
    "torch.nn.modules.instancenorm",
    "torch.nn.modules.normalization",
    "torch.nn.modules.padding",
    "torch.nn.modules.pooling",
    "torch.nn.modules.upsampling",
}

# Activations whose derivative is a diagonal matrix. Any other is handled in full: slower, never wrong.
_ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)

Scalars = dict[str, Tensor]


def measure(
    parts: Mapping[str, nn.Module],
    inputs: Tensor,
    *,
    activations: tuple[type[nn.Module], ...] | None = None,
    jacobian_samples: int = 32,
) -> dict[str, float]:
    """Measure units, features, weights and Jacobians of a network on one batch.

    Nothing is disturbed: parts run in evaluation mode, and gradients, random state, training flags and hooks
    are afterwards what they were before. Parts may share modules; a shared layer is measured once, under its
    first name. A diverged network gives nan, not an error.

    Args:
        parts: Networks by name, each from `inputs` to an output (B, O).
        inputs: Floating-point batch (B, D) or (B, C, H, W), on the device of the parts. Dead and dormant
            shares depend on its size and distribution: use at least 256 samples of current data.
        activations: Modules that count as activation functions. By default every module without parameters
            that follows a linear or convolutional layer and does not merely reshape, pool, drop or normalize.
        jacobian_samples: Samples, spread evenly over the batch, whose Jacobians are taken; fewer in layers
            wider than 256. 0 leaves the Jacobians out.

    Returns:
        Values by tag, as the table at the top of this module lists them.

    Raises:
        TypeError: If `inputs` is not floating point.
        ValueError: If there are no parts or no samples, or `jacobian_samples` is negative.
    """
    if not inputs.is_floating_point():
        raise TypeError(f"inputs enter the parts as they are and must be floating point, not {inputs.dtype}")
    if not parts or not len(inputs) or jacobian_samples < 0:
        raise ValueError("measure needs at least one part, at least one sample and jacobian_samples >= 0")
    with _undisturbed(parts.values(), inputs.device):
        inputs = inputs.clone()
        traces = {name: _trace(name, part, inputs, activations) for name, part in parts.items()}
        layers: dict[nn.Module, _Layer] = {}
        for layer in chain.from_iterable(traces.values()):
            layers.setdefault(layer.module, layer)
        heads = {trace[-1].module for trace in traces.values() if trace}
        hidden = [layer for module, layer in layers.items() if module not in heads]
        scalars = _unit_scalars(hidden) | _feature_scalars(traces) | _weight_scalars(layers.values(), hidden)
        if jacobian_samples:
            scalars |= _jacobian_scalars(parts, hidden, inputs, jacobian_samples)
    if not scalars:
        return {}
    # The only transfer of results from the device.
    return dict(zip(scalars, torch.stack([value.double() for value in scalars.values()]).tolist()))


def dormant_fraction(activations: Tensor, tau: float) -> Tensor:
    """Share of units whose mean absolute activation is at most tau times the layer's mean of it.

    Compared as products, so that a layer of zeros is wholly dormant where a quotient would be 0 / 0. (Sokar
    et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning, 2023, definition 3.1.)

    Args:
        activations: Outputs of the units, (B, units), or (B, channels, ...) with one unit a channel.
        tau: Threshold, at least 0.

    Returns:
        Scalar in [0, 1], float64; nan if an activation is not finite.
    """
    sizes = _unit_sizes(activations)
    dormant = (sizes <= tau * sizes.mean()).double().mean()
    return torch.where(sizes.isfinite().all(), dormant, torch.nan)


def dead_fraction(activations: Tensor) -> Tensor:
    """Share of units that are exactly zero on every sample, and at every position.

    Not the fraction of zero entries, which is the sparsity of a healthy rectified layer.

    Args:
        activations: Outputs of the units, (B, units), or (B, channels, ...) with one unit a channel.

    Returns:
        Scalar in [0, 1], float64; nan if an activation is not finite.
    """
    sizes = _unit_sizes(activations)
    return torch.where(sizes.isfinite().all(), (sizes == 0).double().mean(), torch.nan)


def _unit_sizes(activations: Tensor) -> Tensor:
    """Mean absolute activation of every unit: (B, units, ...) to (units,), float64."""
    sizes = activations.abs()
    if sizes.dim() > 2:
        sizes = sizes.flatten(2).mean(2)  # positions first: what is left to convert to float64 is small
    return sizes.double().mean(0)


def gram(matrix: Tensor) -> Tensor:
    """Gram matrix of the smaller side, in float64: (..., m, n) to (..., r, r), r = min(m, n)."""
    # Cast before the product: a float32 Gram of a matrix with condition number 1e4 has negative eigenvalues.
    matrix = matrix.double()
    return matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values through the float64 Gram matrix: cheaper than an SVD, exact to 1e-7 of the largest.

    Args:
        matrix: (..., m, n), any floating-point type.

    Returns:
        (..., min(m, n)), descending, float64; nan where the matrix is not finite.
    """
    return _gram_singular_values(gram(matrix))


def _gram_singular_values(gram: Tensor) -> Tensor:
    """Roots of the eigenvalues of a Gram matrix (..., r, r), descending (..., r)."""
    # eigvalsh refuses a matrix with nan or inf; a diverged layer must show as nan instead of ending the run.
    finite = gram.isfinite().all(-1).all(-1)
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0.0))
    sigma = eigenvalues.flip(-1).clamp(min=0.0).sqrt()
    return torch.where(finite[..., None], sigma, torch.nan)


def condition_number(sigma: Tensor) -> Tensor:
    """Largest over smallest singular value: (..., r) descending to (...); inf if singular, 0 / 0 included."""
    return torch.where(sigma[..., -1] == 0, torch.inf, sigma[..., 0] / sigma[..., -1])


def isometry_penalty(sigma: Tensor) -> Tensor:
    """Squared Frobenius distance of the Gram matrix from the identity: (..., r) to (...).

    The sum of (sigma^2 - 1)^2. (Rosseau et al., Preserving Plasticity in Continual Learning via Dynamical
    Isometry, 2026, equations 16 and 17.)
    """
    return (sigma.square() - 1.0).square().sum(-1)


def srank(sigma: Tensor, delta: float = 0.01) -> Tensor:
    """Fewest singular values that hold 1 - delta of their sum; 0 for a zero matrix.

    (Kumar et al., Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning, 2021.)

    Args:
        sigma: Singular values, (..., r), descending.
        delta: Share of the sum that may be missing.

    Returns:
        (...), whole numbers in float64.
    """
    return _fewest(sigma, 1.0 - delta)


def rank99(sigma: Tensor) -> Tensor:
    """Fewest of sigma (..., r) that hold 99 % of the sum of squares, the PCA rank; 0 for a zero matrix."""
    return _fewest(sigma.square(), 0.99)


def stable_rank(sigma: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm, of sigma (..., r); 0 for a zero matrix."""
    return _unless_zero(sigma, (sigma / sigma[..., :1]).square().sum(-1))


def effective_rank(sigma: Tensor, power: int = 1) -> Tensor:
    """Exponential of the entropy of sigma^power, normalized to sum 1; 0 for a zero matrix.

    Power 1 is the original (Roy and Vetterli, The effective rank, 2007). Power 2, which weighs by energy, is
    what the authors of AdamO report.

    Args:
        sigma: Singular values, (..., r), descending.
        power: 1 or 2.

    Returns:
        (...), from 1 to r, float64.
    """
    mass = (sigma / sigma[..., :1]) ** power
    return _unless_zero(sigma, torch.special.entr(mass / mass.sum(-1, keepdim=True)).sum(-1).exp())


def _fewest(mass: Tensor, fraction: float) -> Tensor:
    """Number of leading entries of `mass` (..., r) whose sum reaches `fraction` of the whole."""
    cumulative = mass.cumsum(-1)
    count = (cumulative < fraction * cumulative[..., -1:]).sum(-1).double() + 1.0
    return _unless_zero(mass, count)


def _unless_zero(sigma: Tensor, rank: Tensor) -> Tensor:
    """`rank`, but 0 where all of `sigma` is zero and nan where it is nan."""
    return torch.where(sigma[..., 0] == 0, 0.0, torch.where(sigma[..., 0].isnan(), torch.nan, rank))


def jacobian(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Jacobian of every sample's output with respect to its own input.

    Args:
        function: Maps (B, ...) to (B, ...), every sample on its own.
        inputs: (B, ...).

    Returns:
        (B, outputs, inputs), both flattened.
    """
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        outputs = function(leaf.clone())  # a clone: an in-place activation may not write to a leaf
        outputs = outputs.reshape(len(inputs), -1)
    samples, width = outputs.shape
    # Samples do not interact, so row o of all Jacobians is the gradient of output o summed over the batch.
    basis = torch.eye(width, dtype=outputs.dtype, device=outputs.device)[:, None].expand(-1, samples, -1)
    rows = [
        torch.autograd.grad(outputs, leaf, chunk, retain_graph=True, is_grads_batched=True)[0].flatten(2)
        for chunk in basis.split(max(1, _ROWS_AT_ONCE // samples))
    ]
    return torch.cat(rows).transpose(0, 1)


def gated_singular_values(slopes: Tensor, weight: Tensor, weight_gram: Tensor | None = None) -> Tensor:
    """Singular values of D W, D = diag(slopes), for every sample: a layer with an elementwise activation.

    The Gram matrix of D W is that of W, scaled: one product serves all samples. Closed gates are cut out of
    it, which makes their zeros exact and a half-open ReLU layer about six times cheaper.

    Args:
        slopes: Derivatives of the activation, (B, out).
        weight: (out, in).
        weight_gram: `gram(weight)`, if known.

    Returns:
        (B, min(out, in)), descending, float64.
    """
    slopes, weight = slopes.double(), weight.double()
    rank = min(weight.shape)
    if weight.shape[0] > weight.shape[1]:
        return _gram_singular_values(weight.T @ (slopes.square().unsqueeze(-1) * weight))
    weight_gram = gram(weight) if weight_gram is None else weight_gram
    # The widest open set, so that one batch holds all samples. eigvalsh waits for the device anyway.
    open_gates = int((slopes != 0).sum(-1).max())
    rows = slopes.abs().topk(open_gates).indices
    slopes = slopes.gather(-1, rows)
    grams = weight_gram[rows[:, :, None], rows[:, None, :]].mul_(slopes[:, :, None]).mul_(slopes[:, None, :])
    return nn.functional.pad(_gram_singular_values(grams), (0, rank - open_gates))


def jacobian_statistics(sigma: Tensor) -> Scalars:
    """Conditioning of a batch of Jacobians.

    Args:
        sigma: Singular values of each sample's Jacobian, (B, r), descending.

    Returns:
        Scalars `jacobian_log10_cond`, `jacobian_log10_cond_active` and `jacobian_distance`, each with
        `/median` and `/p95`, and `jacobian_rank/median`. A zero Jacobian has both condition numbers infinite.
    """
    largest = sigma[:, :1]
    sigma = torch.where(sigma <= RESOLUTION * largest, 0.0, sigma)
    smallest_active = torch.where(sigma == 0, torch.inf, sigma).amin(-1)
    active = torch.where(largest.squeeze(-1) == 0, torch.inf, largest.squeeze(-1) / smallest_active)
    per_sample = {
        "jacobian_log10_cond": condition_number(sigma).log10(),
        "jacobian_log10_cond_active": active.log10(),
        "jacobian_distance": (sigma - 1.0).square().mean(-1).sqrt(),
    }
    scalars = {}
    for name, values in per_sample.items():
        scalars[f"{name}/median"] = quantile(values, 0.5)
        scalars[f"{name}/p95"] = quantile(values, 0.95)
    rank = torch.where(largest.squeeze(-1).isnan(), torch.nan, (sigma > 0).sum(-1).double())
    scalars["jacobian_rank/median"] = quantile(rank, 0.5)
    return scalars


def quantile(values: Tensor, q: float) -> Tensor:
    """Smallest of the values (B,) that at least a fraction q of them do not exceed; q in (0, 1].

    One of the values, never an interpolation: between a finite number and inf that would be inf or nan.
    """
    return values.kthvalue(max(1, math.ceil(q * len(values)))).values


def snapshot(module: nn.Module) -> list[Tensor]:
    """Copies of the module's parameters, for `update_norms` after the next update."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def update_norms(module: nn.Module, before: Sequence[Tensor]) -> dict[str, float]:
    """Euclidean norms of the change since `before = snapshot(module)` and of the parameters as they are now.

    Returns:
        `update/step_norm` and `update/weight_norm`.
    """
    now = [parameter.detach() for parameter in module.parameters()]
    step = [after - start for after, start in zip(now, before, strict=True)]
    norms = torch.stack([nn.utils.get_total_norm(step), nn.utils.get_total_norm(now)]).tolist()
    return dict(zip(("update/step_norm", "update/weight_norm"), norms))


@dataclass
class _Layer:
    """A linear or convolutional layer as one forward pass saw it.

    Attributes:
        name: `<part>.<child>`.
        module: The layer.
        inputs: What entered it.
        following: Modules after it, up to and including its activation.
        unit_sizes: Mean absolute output of each unit of its activation, (units,); None without one.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    inputs: Tensor
    following: list[nn.Module] = field(default_factory=list)
    unit_sizes: Tensor | None = None

    @cached_property
    def matrix(self) -> Tensor:
        """The weight as a matrix (out, in), kernels as (out, in * height * width), float64."""
        return self.module.weight.detach().flatten(1).double()

    @cached_property
    def gram(self) -> Tensor:
        """Gram matrix of the smaller side of the weight."""
        return gram(self.matrix)


def _trace(
    name: str, part: nn.Module, inputs: Tensor, activations: tuple[type[nn.Module], ...] | None
) -> list[_Layer]:
    """Weight layers of a part in the order in which one forward pass calls them."""
    names: dict[nn.Module, str] = {}
    for step_name, module in _steps(name, part):
        names.setdefault(module, step_name)
    layers: list[_Layer] = []
    current: _Layer | None = None  # the weight layer whose activation has not come yet
    positions = 1
    for module, entering, leaving in _capture(names, part, inputs):
        if isinstance(leaving, Tensor) and leaving.dim() == 4:
            positions = leaving[0, 0].numel()
        if isinstance(module, _WEIGHT_LAYERS):
            current = _Layer(names[module], module, entering)
            layers.append(current)
        elif current is not None:
            current.following.append(module)
            if _is_activation(module, activations):
                current.unit_sizes = _unit_sizes(_by_unit(current.module, leaving, positions))
                current = None
            elif _has_parameters(module) and not _is_passive(module):
                current = None  # an unknown kind of layer: what follows is not this layer's activation
    return layers


def _steps(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that act as one step: weight layers, leaves, and custom modules that hold no parameters."""
    container = isinstance(module, nn.Sequential) or _has_parameters(module)
    children = list(module.named_children()) if container and not isinstance(module, _WEIGHT_LAYERS) else []
    for child_name, child in children:
        yield from _steps(f"{name}.{child_name}", child)
    if not children:
        yield name, module


def _capture(
    modules: Iterable[nn.Module], part: nn.Module, inputs: Tensor
) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Module, input and output of every call of `modules` during one forward pass of `part`."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, args[0], output))  # and return None: a value would replace the output

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(record))
        part(inputs)
    return calls


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_passive(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or any(
        base.__module__ in _PASSIVE for base in type(module).__mro__
    )


def _is_activation(module: nn.Module, activations: tuple[type[nn.Module], ...] | None) -> bool:
    if activations is not None:
        return isinstance(module, activations)
    return not _has_parameters(module) and not _is_passive(module)


def _by_unit(module: nn.Module, output: Tensor, positions: int) -> Tensor:
    """Activations as (B, units) after a linear layer, (B, channels, ...) after a convolution."""
    if isinstance(module, nn.Linear):
        return output.reshape(-1, output.shape[-1])
    # Flattened before its activation, a convolution still has one unit a channel, not one a pixel.
    return output.unflatten(1, (-1, positions)) if output.dim() == 2 else output


@contextmanager
def _undisturbed(parts: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; training flags and random state are put back at the end."""
    training = {module: module.training for part in parts for module in part.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module, flag in training.items():
                module.training = flag


_UNIT_PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"dormant_{tau:g}": partial(dormant_fraction, tau=tau) for tau in TAUS},
    "dead": dead_fraction,
}


def _unit_scalars(hidden: Sequence[_Layer]) -> Scalars:
    """Dormant and dead shares of each hidden layer, of the worst, and of all units together."""
    sizes = {layer.name: layer.unit_sizes for layer in hidden if layer.unit_sizes is not None}
    if not sizes:
        return {}
    counts = next(iter(sizes.values())).new_tensor([len(layer) for layer in sizes.values()])
    scalars: Scalars = {}
    for probe, fraction in _UNIT_PROBES.items():
        # Mean sizes act as one sample of the activations they are the means of.
        fractions = {name: fraction(layer[None]) for name, layer in sizes.items()}
        scalars |= {f"plasticity/{probe}/{name}": value for name, value in fractions.items()}
        values = torch.stack(list(fractions.values()))
        scalars[f"plasticity/{probe}/max"] = values.max()
        scalars[f"plasticity/{probe}/total"] = (counts * values).sum() / counts.sum()
    return scalars


def _feature_scalars(traces: Mapping[str, Sequence[_Layer]]) -> Scalars:
    """Ranks of the features (samples, features) that enter each part's head."""
    scalars: Scalars = {}
    for part, layers in traces.items():
        if not layers:
            continue
        features = layers[-1].inputs
        linear = isinstance(layers[-1].module, nn.Linear)
        sigma = singular_values(features.reshape(-1, features.shape[-1]) if linear else features.flatten(1))
        scalars[f"plasticity/feature_srank/{part}"] = srank(sigma)
        scalars[f"plasticity/feature_rank99/{part}"] = rank99(sigma)
        scalars[f"plasticity/feature_stable_rank/{part}"] = stable_rank(sigma)
        scalars[f"plasticity/feature_effective_rank/{part}"] = effective_rank(sigma)
        scalars[f"plasticity/feature_effective_rank_squared/{part}"] = effective_rank(sigma, power=2)
    return scalars


def _weight_scalars(layers: Iterable[_Layer], hidden: Sequence[_Layer]) -> Scalars:
    """Extreme singular values and condition numbers of the weights, heads included by name only."""
    spectra = {layer.name: _gram_singular_values(layer.gram) for layer in layers}
    scalars: Scalars = {}
    for name, sigma in spectra.items():
        scalars[f"isometry/sigma_max/{name}"] = sigma[0]
        scalars[f"isometry/sigma_min/{name}"] = sigma[-1]
        scalars[f"isometry/log10_cond/{name}"] = condition_number(sigma).log10()
    if hidden:
        names = [layer.name for layer in hidden]
        conditions = torch.stack([scalars[f"isometry/log10_cond/{name}"] for name in names])
        scalars["isometry/sigma_max/max"] = torch.stack([spectra[name][0] for name in names]).max()
        scalars["isometry/sigma_min/min"] = torch.stack([spectra[name][-1] for name in names]).min()
        scalars["isometry/log10_cond/max"] = conditions.max()
        scalars["isometry/penalty"] = torch.stack([isometry_penalty(spectra[name]) for name in names]).sum()
    return scalars


def _jacobian_scalars(
    parts: Mapping[str, nn.Module], hidden: Sequence[_Layer], inputs: Tensor, samples: int
) -> Scalars:
    """Conditioning of the Jacobians of hidden linear layers and of whole parts."""
    spectra = {
        layer.name: _layer_jacobian_spectra(layer, samples)
        for layer in hidden
        if isinstance(layer.module, nn.Linear) and layer.unit_sizes is not None
    }
    for name, part in parts.items():
        spectra[f"{name}.input_output"] = singular_values(jacobian(part, _spread(inputs, samples)))
    return {
        f"isometry/{statistic.replace('/', f'/{name}/')}": value
        for name, sigma in spectra.items()
        for statistic, value in jacobian_statistics(sigma).items()
    }


def _layer_jacobian_spectra(layer: _Layer, samples: int) -> Tensor:
    """Singular values (samples, r) of D W, from a linear layer's input to its activation's output."""
    affordable = max(_FEWEST_SAMPLES, _SPECTRUM_BUDGET // min(layer.matrix.shape) ** 3)
    entering = layer.inputs.reshape(-1, layer.matrix.shape[1])
    before = layer.module(_spread(entering, min(samples, affordable)))
    after = nn.Sequential(*layer.following)
    if len(after) == 1 and isinstance(after[0], _ELEMENTWISE):
        return gated_singular_values(_slopes(after, before), layer.matrix, layer.gram)
    return singular_values(jacobian(after, before).double() @ layer.matrix)


def _slopes(activation: nn.Module, inputs: Tensor) -> Tensor:
    """Derivative of an elementwise activation at every entry of `inputs`."""
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(leaf.clone()).sum(), leaf)[0]


def _spread(samples: Tensor, count: int) -> Tensor:
    """At most `count` samples, evenly spaced: neighbours in a rollout resemble each other."""
    return samples[:: max(1, len(samples) // count)][:count]
