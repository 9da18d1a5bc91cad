"""The layers of a network as one forward pass goes through them."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from neoteny.runners.jacobians import operator_matrix
from neoteny.runners.spectra import gram
from neoteny.runners.units import unit_sizes

WEIGHT_LAYERS = (nn.Linear, nn.Conv2d)

WIDEST_OPERATOR = 512
"""Convolutions are not taken as matrices whose smaller side is larger: singular values cost its cube."""

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


@dataclass
class Layer:
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

    @cached_property
    def operator(self) -> Tensor | None:
        """A convolution as the matrix that it is, float64; None of another layer, or if it is too large."""
        if not isinstance(self.module, nn.Conv2d):
            return None
        smaller = min(self.inputs[0].numel(), self.module(self.inputs[:1]).numel())
        return operator_matrix(self.module, *self.inputs.shape[2:]) if smaller <= WIDEST_OPERATOR else None


def trace(
    name: str, part: nn.Module, inputs: Tensor, activations: tuple[type[nn.Module], ...] | None
) -> list[Layer]:
    """Weight layers of a part in the order in which one forward pass calls them."""
    names: dict[nn.Module, str] = {}
    for step_name, module in _steps(name, part):
        names.setdefault(module, step_name)
    layers: list[Layer] = []
    current: Layer | None = None  # the weight layer whose activation has not come yet
    positions = 1
    for module, entering, leaving in _capture(names, part, inputs):
        if isinstance(leaving, Tensor) and leaving.dim() == 4:
            positions = leaving[0, 0].numel()
        if isinstance(module, WEIGHT_LAYERS):
            current = Layer(names[module], module, entering)
            layers.append(current)
        elif current is not None:
            current.following.append(module)
            if _is_activation(module, activations):
                current.unit_sizes = unit_sizes(_by_unit(current.module, leaving, positions))
                current = None
            elif _has_parameters(module) and not _is_passive(module):
                current = None  # an unknown kind of layer: what follows is not this layer's activation
    return layers


def _steps(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that act as one step: weight layers, leaves, and custom modules that hold no parameters."""
    container = isinstance(module, nn.Sequential) or _has_parameters(module)
    children = list(module.named_children()) if container and not isinstance(module, WEIGHT_LAYERS) else []
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
