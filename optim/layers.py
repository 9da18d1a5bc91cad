"""The layers of a network: their weights and units, and which later layers each unit feeds.

Optimizers (which weights are hidden, which layers are heads), probes and plasticity methods all use this
description. It is found by forward passes, so any code may stand between the layers:

    layers = describe(network, torch.zeros(1, 4))
    connect(network, torch.zeros(1, 4), layers)  # for methods: which inputs of later layers each unit feeds
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

Exclude: TypeAlias = Iterable[nn.Module | str] | nn.Module | str
NamedParameters: TypeAlias = list[tuple[str, nn.Parameter]]
WeightLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHT_LAYERS = (nn.Linear, *CONVOLUTIONS)

# Modules that are not activation functions but may precede one, by the torch file that defines them.
_NORMALIZATIONS = {f"torch.nn.modules.{name}" for name in ("batchnorm", "instancenorm", "normalization")}
_PASSIVE = _NORMALIZATIONS | {
    f"torch.nn.modules.{name}" for name in ("dropout", "flatten", "padding", "pooling", "upsampling")
}


class Network(Protocol):
    """What probes and methods need of an agent's network, which is also an `nn.Module`."""

    example: Tensor
    """One observation, (1, ...), with the environments' shape and dtype; its values do not matter."""

    def encode(self, observations: Tensor) -> Tensor:
        """Observations (B, ...) -> the input of the parts, floats or flags; has no parameters."""

    def parts(self) -> dict[str, nn.Module]:
        """The networks to measure, by name, each from encoded observations to an output (B, O)."""


@dataclass(eq=False)
class Layer:
    """A linear or convolutional layer of a network.

    Attributes:
        name: `<part>.<child>`, as in `actor.linear1`.
        module: The torch module.
        parts: Parts of the agent that it belongs to; several if they share it.
        is_head: Whether its output is an output of the network and feeds no other layer.
        outgoing: The later layers that its units feed, set by `connect`. Empty for a head, and for a layer
            with a `problem`.
        problem: Why no input of a later layer depends on a single unit of this one; empty if there is none.
        normalizations: Modules between the layer and its activation function that normalize its output.
    """

    name: str
    module: WeightLayer
    parts: frozenset[str] = frozenset()
    is_head: bool = False
    outgoing: tuple[Connection, ...] = ()
    problem: str = ""
    normalizations: tuple[nn.Module, ...] = ()

    @property
    def weight(self) -> nn.Parameter | None:
        """The weight, (out, in) or (out, in, *kernel); None if it is computed by a parametrization."""
        return plain_weight(self.module)

    @property
    def units(self) -> int:
        """Number of units: outputs of a linear layer, output channels of a convolution."""
        return self.module.out_features if isinstance(self.module, nn.Linear) else self.module.out_channels


class AllParts(nn.ModuleDict):
    """Networks with the same input, as one network."""

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """The output of each network."""
        return [part(inputs) for part in self.values()]


class Connection(NamedTuple):
    """A later layer that the units of a layer feed, and the inputs that each unit feeds.

    `columns` (units, k) are indices into the second dimension of its weight: k = 1 from a linear layer to the
    next, k = height * width if images are flattened in between, k = 2 after CReLU.
    """

    layer: Layer
    columns: Tensor


@dataclass
class Call:
    """One call of a layer in a forward pass."""

    module: WeightLayer
    inputs: Tensor
    shape: torch.Size  # of the output
    following: list[nn.Module] = field(default_factory=list)  # up to and including its activation function
    activations: Tensor | None = None  # output of that, (B, units) or (B, channels, ...); None without one


def describe(
    network: nn.Module, example: Tensor, parts: Mapping[str, nn.Module] | None = None
) -> list[Layer]:
    """The layers of a network, in the order of their calls in a forward pass on `example` (1, ...).

    A layer's name is its path in the first of `parts` that holds it, else its path in the network.
    """
    parts = parts or {}
    names: dict[nn.Module, str] = {}
    for name, module in [*parts.items(), ("", network)]:
        for step_name, step in _steps(name, module):
            names.setdefault(step, step_name)
    members = {name: set(part.modules()) for name, part in parts.items()}
    with undisturbed([network], example.device):
        layers: dict[nn.Module, Layer] = {}
        calls = trace(network, example.clone())
        for call in calls:
            of = frozenset(name for name, modules in members.items() if call.module in modules)
            layer = layers.setdefault(call.module, Layer(names[call.module], call.module, of))
            normalizing = (m for m in call.following if _is_in(m, _NORMALIZATIONS))
            layer.normalizations = tuple(m for m in normalizing if not isinstance(m, nn.Identity))
        perturbation = _Perturbation(network, example, calls)
        for module, layer in layers.items():
            reached = perturbation.reach(module, each=False)
            others = (inputs for later, inputs in reached.items() if later not in (module, None))
            layer.is_head = not any(inputs.any() for inputs in others)
    return list(layers.values())


def describe_agent(network: nn.Module) -> list[Layer]:
    """The layers of an agent's network."""
    agent = cast(Network, network)
    return describe(network, agent.example, agent.parts())


def encoded(network: Network, observations: Tensor) -> Tensor:
    """The input of the parts for observations (B, ...), of floats, where `encode` may return flags."""
    inputs = network.encode(observations)
    return inputs if inputs.is_floating_point() else inputs.float()


def heads(network: nn.Module) -> list[nn.Module]:
    """The layers of an agent's network that produce its outputs."""
    return [layer.module for layer in describe_agent(network) if layer.is_head]


def connect(network: nn.Module, example: Tensor, layers: Sequence[Layer]) -> None:
    """Find which inputs of later layers each unit of a layer feeds, and set `Layer.outgoing`.

    The outputs of layers are replaced by fixed numbers, one unit at a time is perturbed, and the inputs that
    change are recorded. This handles any activation, flattening, pooling and slicing between layers;
    normalizations are replaced by the identity. If units are mixed before the next layer (by a residual sum,
    attention or sorting), no input belongs to a single unit, and `Layer.problem` says so.
    """
    with undisturbed([network], example.device):
        perturbation = _Perturbation(network, example, trace(network, example.clone()))
        reached = {layer: perturbation.reach(layer.module) for layer in layers}
        observed = perturbation.reach(None)
    for layer in layers:
        entered = {other: reached[layer].get(other.module) for other in layers}
        carried = {
            later: columns for later, columns in entered.items() if columns is not None and columns.any()
        }
        others = [reached[other] for other in layers if other is not layer] + [observed]
        problems = [_problem(later, columns, others) for later, columns in carried.items()]
        if carried and reached[layer][None].any():
            problems.append("its units feed both later layers and the network's output")
        layer.problem = next(filter(None, problems), "")
        layer.outgoing = tuple(
            Connection(later, columns.nonzero()[:, 1].view(layer.units, -1).to(example.device))
            for later, columns in carried.items()
            if not layer.problem
        )


def _problem(later: Layer, carried: Tensor, others: Iterable[Mapping[nn.Module | None, Tensor]]) -> str:
    """Why the inputs of a later layer do not each belong to one unit; empty if they do.

    Args:
        later: the later layer.
        carried: which of its inputs change with each unit, (units, columns).
        others: the same for every other layer and for the observation, by the layer that they feed.
    """
    sources = carried.sum(0) + sum(other[later.module].any(0) for other in others if later.module in other)
    if getattr(later.module, "groups", 1) > 1:
        return f"{later.name} is a grouped convolution"
    if (sources[carried.any(0)] > 1).any():
        return f"its units are mixed with others before {later.name}"
    if len(set(carried.sum(1).tolist())) > 1:
        return f"its units feed different numbers of inputs of {later.name}"
    return ""


def trace(network: nn.Module, inputs: Tensor) -> list[Call]:
    """Run a forward pass on inputs (B, ...) and return every call of a layer, in order.

    The first module after a layer counts as its activation function if it has no parameters; modules that
    reshape, pool, drop out or normalize are passed over.
    """
    calls: list[Call] = []
    current: Call | None = None  # the layer whose activation function was not called yet
    positions = 1
    for module, entering, leaving in _capture(network, inputs):
        if isinstance(module, WEIGHT_LAYERS):
            positions = leaving[0, 0].numel() if isinstance(module, CONVOLUTIONS) else 1
            current = Call(module, entering, leaving.shape)
            calls.append(current)
        elif current is not None:
            if isinstance(current.module, CONVOLUTIONS) and leaving.dim() > 2:
                positions = leaving[0, 0].numel()
            current.following.append(module)
            if not _is_in(module, _PASSIVE):
                if not _has_parameters(module):
                    current.activations = _by_unit(current.module, leaving, positions)
                # With parameters, it is an unknown kind of layer, and the next activation is not current's.
                current = None
    return calls


def left_out(network: nn.Module, layers: Sequence[Layer]) -> str:
    """What probes and methods ignore, in one line; empty if nothing.

    That is, trainable parameters outside of the described layers and normalizations, and layers whose units
    `connect` cannot separate.
    """
    known = {layer.module for layer in layers}
    unknown = [
        f"{path}.{name} (of {type(module).__name__})".lstrip(".")
        for path, module in network.named_modules()
        if module not in known
        and not _is_in(module, _NORMALIZATIONS)
        and not isinstance(module, parametrize.ParametrizationList)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    mixed = [f"{layer.name} ({layer.problem})" for layer in layers if layer.problem]
    lines = [f"parameters of unknown layers, ignored: {', '.join(unknown)}"] if unknown else []
    lines += [f"layers whose units cannot be reset or watched: {', '.join(mixed)}"] if mixed else []
    return "; ".join(lines)


def plain_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight of a linear or convolutional layer; None for other modules and parametrized weights."""
    return module._parameters.get("weight") if isinstance(module, WEIGHT_LAYERS) else None


def split_parameters(module: nn.Module, exclude: Exclude = ()) -> tuple[NamedParameters, NamedParameters]:
    """Split the trainable parameters into weights that isometry applies to and all others.

    The first are the weights of linear and convolutional layers outside `exclude`. A parameter that several
    layers share occurs once.

    Raises:
        ValueError: if an item of `exclude` is not a submodule.
    """
    weights = {plain_weight(layer) for layer in module.modules()} - _excluded_parameters(module, exclude)
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [(n, p) for n, p in trainable if p in weights], [(n, p) for n, p in trainable if p not in weights]


def _excluded_parameters(module: nn.Module, exclude: Exclude) -> set[nn.Parameter | None]:
    """Parameters of the submodules in `exclude`."""
    submodules = dict(module.named_modules(remove_duplicate=False))
    names = {submodule: name for name, submodule in submodules.items()}
    excluded: set[nn.Parameter | None] = set()
    for item in (exclude,) if isinstance(exclude, nn.Module | str) else exclude:
        if item not in (submodules if isinstance(item, str) else names):
            what = repr(item) if isinstance(item, str) else f"a {type(item).__name__} module"
            known = ", ".join(name for name in submodules if name)
            raise ValueError(f"exclude contains {what}, which is not a submodule; the network has: {known}")
        excluded.update((submodules[item] if isinstance(item, str) else item).parameters())
    return excluded


@contextmanager
def undisturbed(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; restores training flags and the random state at the end."""
    training = {module: module.training for network in networks for module in network.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module, flag in training.items():
                module.training = flag


class _Perturbation:
    """Forward passes in which layers output fixed numbers instead, those of one layer perturbed."""

    def __init__(self, network: nn.Module, example: Tensor, calls: Iterable[Call]) -> None:
        self.network, self.example = network, example
        self.outputs: dict[nn.Module, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(0)
        for call in calls:
            # Between 0.25 and 0.75: ReLUs are active, and no two units are equal.
            output = 0.25 + 0.5 * torch.rand(call.shape, generator=generator)
            self.outputs.setdefault(call.module, []).append(output.to(example.device))
        self._calm: dict[int, dict[nn.Module | None, list[Tensor]]] = {}  # inputs by the size of a batch

    def reach(self, module: nn.Module | None, each: bool = True) -> dict[nn.Module | None, Tensor]:
        """Which inputs of each layer change if units of `module`, or the observation if it is None, change.

        Returns:
            By layer, a bool tensor (units, columns) if `each` unit is perturbed alone, or (1, columns) if all
            are at once. The key None has the outputs of the network.
        """
        reached: dict[nn.Module | None, Tensor] = {}
        outputs = self.outputs[module] if module else []
        rows = outputs[0].shape[_unit_axis(module)] if module and each else 1
        example = self.example if module else self.example + 1
        if rows not in self._calm:
            self._calm[rows] = self._inputs(self.example.expand(rows, *example.shape[1:]), {})
        for value in (2.0, -2.0):  # each half of CReLU reacts to one of them
            tried = {module: [_set_units(module, output, value, each) for output in outputs]}
            after = self._inputs(example.expand(rows, *example.shape[1:]), tried)
            for later, entered in self._calm[rows].items():
                for old, new in zip(entered, after[later], strict=True):
                    # More than the rounding differences between equal rows of a batch.
                    changed = ((new - old).abs() > 1e-4).movedim(_unit_axis(later), -1)
                    changed = changed.reshape(rows, -1, changed.shape[-1]).any(1).cpu()
                    reached[later] = reached.get(later, torch.zeros_like(changed)) | changed
        return reached

    def _inputs(
        self, example: Tensor, tried: Mapping[nn.Module | None, Sequence[Tensor]]
    ) -> dict[nn.Module | None, list[Tensor]]:
        """Inputs (B, ...) of each layer in each of its calls; the key None has the network's outputs."""
        entered: dict[nn.Module | None, list[Tensor]] = {module: [] for module in self.outputs}

        def put_out(module: nn.Module, inputs: Tensor) -> Tensor:
            output = (tried.get(module) or self.outputs[module])[len(entered[module])]
            entered[module].append(inputs.detach() * 1.0)  # a copy, of floats where there were flags
            return output.expand(len(inputs), *output.shape[1:]).clone()

        with ExitStack() as stack:
            for module in self.network.modules():
                if module in self.outputs:
                    stack.enter_context(patch.object(module, "forward", partial(put_out, module)))
                elif _is_in(module, _NORMALIZATIONS):
                    stack.enter_context(patch.object(module, "forward", lambda inputs: inputs))
            leaving = tree_leaves(self.network.forward(example.clone()))  # a clone: it may work in place
        leaving = [out for out in leaving if isinstance(out, Tensor) and out.shape[:1] == example.shape[:1]]
        outputs = [example.new_zeros(len(example), 1), *(out.reshape(len(example), -1) for out in leaving)]
        entered[None] = [torch.cat(outputs, 1)]
        return entered


def _set_units(module: nn.Module | None, output: Tensor, value: float, each: bool) -> Tensor:
    """A layer's output (1, ...) with all units set to `value`; if `each`, a batch, one unit set per row."""
    if not each:
        return torch.full_like(output, value)
    output = output.movedim(_unit_axis(module), -1)
    chosen = torch.eye(output.shape[-1], dtype=torch.bool, device=output.device)
    chosen = chosen.view(-1, *[1] * (output.dim() - 2), output.shape[-1])
    return torch.where(chosen, value, output).movedim(-1, _unit_axis(module))


def _unit_axis(module: nn.Module | None) -> int:
    """The axis of a layer's inputs and outputs that holds its columns and units."""
    return -1 if isinstance(module, nn.Linear) else 1


def _steps(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that count as one step of a forward pass: layers, leaves, custom modules without parameters."""
    container = isinstance(module, nn.Sequential) or _has_parameters(module)
    children = list(module.named_children()) if container and not isinstance(module, WEIGHT_LAYERS) else []
    for child_name, child in children:
        yield from _steps(f"{name}.{child_name}".lstrip("."), child)
    if not children:
        yield name, module


def _capture(network: nn.Module, inputs: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Module, input and output of every call of a step (see `_steps`) during one forward pass."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and args:
            calls.append((module, args[0], output))  # return None: any other value replaces the output

    steps = {step for _, step in _steps("", network)}
    with ExitStack() as hooks:
        for module in steps:
            hooks.enter_context(module.register_forward_hook(record))
        (network if network in steps else network.forward)(inputs)  # forward bypasses torch.compile
    return calls


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_in(module: nn.Module, files: set[str]) -> bool:
    """Whether a module's class or a base class of it is defined in one of these torch files."""
    return isinstance(module, nn.Identity) or any(base.__module__ in files for base in type(module).__mro__)


def _by_unit(module: nn.Module, output: Tensor, positions: int) -> Tensor:
    """Activations as (B, units) after a linear layer, (B, channels, ...) after a convolution."""
    if isinstance(module, nn.Linear):
        return output.reshape(-1, output.shape[-1])
    # If flattened before the activation, a convolution still has one unit per channel, not per pixel.
    return output.unflatten(1, (-1, positions)) if output.dim() == 2 else output
