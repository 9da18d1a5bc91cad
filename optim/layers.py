"""The layers of a network: which weights and units it has, what enters them and where they go.

This is the one description that optimizers (which weights are hidden, which layers are heads), probes and
plasticity methods read. It comes from forward passes, so the code between layers may be any:

    layers = describe(network, torch.zeros(1, 4))
    connect(network, torch.zeros(1, 4), layers)     # for methods: which inputs of later layers carry a unit
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

# Modules that carry activations on and are no activation functions themselves, by the file that defines them.
_NORMALIZATIONS = {f"torch.nn.modules.{name}" for name in ("batchnorm", "instancenorm", "normalization")}
_PASSIVE = _NORMALIZATIONS | {
    f"torch.nn.modules.{name}" for name in ("dropout", "flatten", "padding", "pooling", "upsampling")
}


class Network(Protocol):
    """What probes and methods ask of an agent's network, beside being an `nn.Module`."""

    example: Tensor
    """One observation, (1, ...), as environments give them; its values do not matter."""

    def encode(self, observations: Tensor) -> Tensor:
        """Observations (B, ...) -> what enters the parts, without parameters."""

    def parts(self) -> dict[str, nn.Module]:
        """Networks by name, each from encoded observations to an output (B, O): what is measured."""


@dataclass(eq=False)
class Layer:
    """A linear or convolutional layer of a network.

    Attributes:
        name: `<part>.<child>`, as in `actor.linear1`.
        module: The layer.
        parts: Parts of the agent that it belongs to; several, if they share it.
        is_head: Its output leaves the network, and enters no other layer.
        outgoing: The later layers that its units enter, known after `connect`. Empty for a head, and for a
            layer with a `problem`.
        problem: Why no input of a later layer belongs to one unit of this one alone.
    """

    name: str
    module: WeightLayer
    parts: frozenset[str] = frozenset()
    is_head: bool = False
    outgoing: tuple[Connection, ...] = ()
    problem: str = ""

    @property
    def weight(self) -> nn.Parameter | None:
        """The weight if it is trained as it is: (out, in) or (out, in, *kernel); None if it is computed."""
        return plain_weight(self.module)

    @property
    def units(self) -> int:
        """How many there are; those of a convolution are its channels."""
        return self.module.out_features if isinstance(self.module, nn.Linear) else self.module.out_channels


class AllParts(nn.ModuleDict):
    """Networks that take the same, as one."""

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """The outputs of all."""
        return [part(inputs) for part in self.values()]


class Connection(NamedTuple):
    """A later layer that units enter, and in which of its inputs.

    `columns` (units, k) are indices of the second dimension of its weight: k = 1 from a linear layer to the
    next, k = height * width where images are flattened in between, k = 2 behind CReLU.
    """

    layer: Layer
    columns: Tensor


@dataclass
class Call:
    """A layer as one forward pass saw it."""

    module: WeightLayer
    inputs: Tensor
    shape: torch.Size  # of what left it
    following: list[nn.Module] = field(default_factory=list)  # up to and including its activation function
    activations: Tensor | None = None  # what left that, (B, units) or (B, channels, ...); None without one


def describe(
    network: nn.Module, example: Tensor, parts: Mapping[str, nn.Module] | None = None
) -> list[Layer]:
    """The layers of any network that takes an example (1, ...), in the order in which it calls them.

    They are named after parts of it, which are given by name, else after their paths.
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
            layers.setdefault(call.module, Layer(names[call.module], call.module, of))
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


def heads(network: nn.Module) -> list[nn.Module]:
    """The layers of an agent's network whose outputs leave it."""
    return [layer.module for layer in describe_agent(network) if layer.is_head]


def connect(network: nn.Module, example: Tensor, layers: Sequence[Layer]) -> None:
    """Find out which inputs of later layers carry each unit of a layer, and put it into `Layer.outgoing`.

    Whatever is done to outputs between layers: it is tried out, one unit at a time, in a forward pass in
    which no layer computes. So activations of any kind, flattening, pooling and slicing come out right.
    Normalizations are left out of that pass. Where units meet (in a residual stream, an attention, a sort),
    no input belongs to one of them alone, and `Layer.problem` says so.

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
            problems.append("its units leave the network past later layers, too")
        layer.problem = next(filter(None, problems), "")
        layer.outgoing = tuple(
            Connection(later, columns.nonzero()[:, 1].view(layer.units, -1).to(example.device))
            for later, columns in carried.items()
            if not layer.problem
        )


def _problem(later: Layer, carried: Tensor, others: Iterable[Mapping[nn.Module | None, Tensor]]) -> str:
    """Why the columns of a later layer that units change, (units, columns), are not theirs alone; or nothing.

    `others` is what every other layer, and the observation, changes of each layer.
    """
    sources = carried.sum(0) + sum(other[later.module].any(0) for other in others if later.module in other)
    if getattr(later.module, "groups", 1) > 1:
        return f"{later.name} is a convolution in groups"
    if (sources[carried.any(0)] > 1).any():
        return f"its units meet others before {later.name}"
    if len(set(carried.sum(1).tolist())) > 1:
        return f"its units enter {later.name} in different numbers"
    return ""


def trace(network: nn.Module, inputs: Tensor) -> list[Call]:
    """Run a network forward on inputs (B, ...); every call of a layer, in order.

    An activation function is a module without parameters that follows a layer and does not merely reshape,
    pool, drop or normalize.
    """
    calls: list[Call] = []
    current: Call | None = None  # the layer whose activation has not come yet
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
                current = None  # else an unknown kind of layer: what follows is not this layer's activation
    return calls


def left_out(network: nn.Module, layers: Sequence[Layer]) -> str:
    """What probes and methods leave out, in one line; empty if it is nothing.

    That is parameters which are trained and belong to no described layer or normalization, and units which
    `connect` cannot tell apart.
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
    apart = [f"{layer.name} ({layer.problem})" for layer in layers if layer.problem]
    lines = [f"of no layer that is known, and left out: {', '.join(unknown)}"] if unknown else []
    lines += [f"units that cannot be reset or watched: {', '.join(apart)}"] if apart else []
    return "; ".join(lines)


def plain_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight of a linear or convolutional layer, unless it is computed, as a parametrized one is."""
    return module._parameters.get("weight") if isinstance(module, WEIGHT_LAYERS) else None


def split_parameters(module: nn.Module, exclude: Exclude = ()) -> tuple[NamedParameters, NamedParameters]:
    """Split the trainable parameters into weights that isometry concerns and all others.

    The first are the weights of linear and convolutional layers outside `exclude`. Each parameter occurs
    once, however many layers share it.

    Raises:
        ValueError: if `exclude` holds what is not a submodule.
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
            raise ValueError(f"exclude holds {what}, which is no submodule of the network; it has: {known}")
        excluded.update((submodules[item] if isinstance(item, str) else item).parameters())
    return excluded


@contextmanager
def undisturbed(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; training flags and random state are put back at the end."""
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
    """Forward passes in which no layer computes: they put out fixed numbers, and one of them is perturbed."""

    def __init__(self, network: nn.Module, example: Tensor, calls: Iterable[Call]) -> None:
        self.network, self.example = network, example
        self.outputs: dict[nn.Module, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(0)
        for call in calls:
            # Between 0.25 and 0.75: rectifiers are open, and no two units are equal.
            output = 0.25 + 0.5 * torch.rand(call.shape, generator=generator)
            self.outputs.setdefault(call.module, []).append(output.to(example.device))

    def reach(self, module: nn.Module | None, each: bool = True) -> dict[nn.Module | None, Tensor]:
        """Which inputs of layers change with the units of a layer, or with the observation if it is None.

        Returns:
            By layer, (units, columns) of bool; (1, columns) for all units together, unless `each` is told
            apart. Under None, the outputs of the network.
        """
        reached: dict[nn.Module | None, Tensor] = {}
        outputs = self.outputs[module] if module else []
        rows = outputs[0].shape[_unit_axis(module)] if module and each else 1
        example = self.example if module else self.example + 1
        before = self._inputs(self.example.expand(rows, *example.shape[1:]), {})
        for value in (2.0, -2.0):  # each half of CReLU sees one of them
            tried = {module: [_set_units(module, output, value, each) for output in outputs]}
            after = self._inputs(example.expand(rows, *example.shape[1:]), tried)
            for later, entered in before.items():
                for old, new in zip(entered, after[later], strict=True):
                    # Beyond what the same numbers can differ by, elsewhere in a batch.
                    changed = ((new - old).abs() > 1e-4).movedim(_unit_axis(later), -1)
                    changed = changed.reshape(rows, -1, changed.shape[-1]).any(1).cpu()
                    reached[later] = reached.get(later, torch.zeros_like(changed)) | changed
        return reached

    def _inputs(
        self, example: Tensor, tried: Mapping[nn.Module | None, Sequence[Tensor]]
    ) -> dict[nn.Module | None, list[Tensor]]:
        """What enters each layer, (B, ...), in each of its calls; under None, what leaves the network."""
        entered: dict[nn.Module | None, list[Tensor]] = {module: [] for module in self.outputs}

        def put_out(module: nn.Module, inputs: Tensor) -> Tensor:
            output = (tried.get(module) or self.outputs[module])[len(entered[module])]
            entered[module].append(inputs.detach().clone())
            return output.expand(len(inputs), *output.shape[1:]).clone()

        with ExitStack() as stack:
            for module in self.network.modules():
                if module in self.outputs:
                    stack.enter_context(patch.object(module, "forward", partial(put_out, module)))
                elif _is_in(module, _NORMALIZATIONS):
                    stack.enter_context(patch.object(module, "forward", lambda inputs: inputs))
            leaving = tree_leaves(self.network.forward(example.clone()))  # which may be overwritten
        leaving = [out for out in leaving if isinstance(out, Tensor) and out.shape[:1] == example.shape[:1]]
        outputs = [example.new_zeros(len(example), 1), *(out.reshape(len(example), -1) for out in leaving)]
        entered[None] = [torch.cat(outputs, 1)]
        return entered


def _set_units(module: nn.Module | None, output: Tensor, value: float, each: bool) -> Tensor:
    """An output (1, ...) of a layer with one unit set in each of its rows, or with all of them set in one."""
    if not each:
        return torch.full_like(output, value)
    output = output.movedim(_unit_axis(module), -1)
    chosen = torch.eye(output.shape[-1], dtype=torch.bool, device=output.device)
    chosen = chosen.view(-1, *[1] * (output.dim() - 2), output.shape[-1])
    return torch.where(chosen, value, output).movedim(-1, _unit_axis(module))


def _unit_axis(module: nn.Module | None) -> int:
    """Where a layer's inputs and outputs have its columns and units."""
    return -1 if isinstance(module, nn.Linear) else 1


def _steps(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that act as one step: layers, leaves, and custom modules that hold no parameters."""
    container = isinstance(module, nn.Sequential) or _has_parameters(module)
    children = list(module.named_children()) if container and not isinstance(module, WEIGHT_LAYERS) else []
    for child_name, child in children:
        yield from _steps(f"{name}.{child_name}".lstrip("."), child)
    if not children:
        yield name, module


def _capture(network: nn.Module, inputs: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Module, input and output of every call of a step of the network during one forward pass."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and args:
            calls.append((module, args[0], output))  # and return None: a value would replace the output

    steps = {step for _, step in _steps("", network)}
    with ExitStack() as hooks:
        for module in steps:
            hooks.enter_context(module.register_forward_hook(record))
        (network if network in steps else network.forward)(inputs)  # the latter is never a compiled one
    return calls


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_in(module: nn.Module, files: set[str]) -> bool:
    """Whether a module's class, or one that it extends, is defined in these files of torch."""
    return isinstance(module, nn.Identity) or any(base.__module__ in files for base in type(module).__mro__)


def _by_unit(module: nn.Module, output: Tensor, positions: int) -> Tensor:
    """Activations as (B, units) after a linear layer, (B, channels, ...) after a convolution."""
    if isinstance(module, nn.Linear):
        return output.reshape(-1, output.shape[-1])
    # Flattened before its activation, a convolution still has one unit a channel, not one a pixel.
    return output.unflatten(1, (-1, positions)) if output.dim() == 2 else output
