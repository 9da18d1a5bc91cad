"""Resets: new random weights for single units or for whole layers.

`reset_units` is how every method resets single units. Weights come from a new network, thus from the same
initializers as at the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neoteny.optim.checks import in_both, moments_of
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, check_fields


@torch.no_grad()
def reset_units(learner: Learner, layer: Layer, mask: Tensor, new: nn.Module) -> None:
    """Give units of a layer new incoming weights, and outgoing weights of 0.

    Bias, and scale, offset and statistics of a normalization before the activation function, are new too.
    The optimizer's moments of just these entries become 0; its step counts, which belong to whole tensors,
    stay. The target network gets the same values.

    Args:
        learner: That the layer belongs to.
        layer: One of `resettable`.
        mask: Units to reset, (units,), bool.
        new: A network from `learner.new_network()`.
    """
    units = mask.nonzero().squeeze(1)
    for tensor, fresh in new_tensors(learner, layer, new):
        if tensor.shape[:1] == mask.shape:
            _overwrite(learner, tensor, units, fresh[units])
    for later, columns in layer.outgoing:
        _overwrite(learner, later.module.weight, (slice(None), columns[units].flatten()), 0.0)


def _overwrite(learner: Learner, tensor: Tensor, entries: Any, values: Tensor | float) -> None:
    """Set entries of a tensor, of the target network's, too, and clear their moments."""
    for each in in_both(learner, tensor):
        each[entries] = values
    for moment in moments_of(learner.optimizer, tensor):
        moment[entries] = 0.0


def resettable(learner: Learner, on: str) -> list[Layer]:
    """Hidden layers whose units can be reset, in the order of their calls; frozen ones are left out.

    Raises:
        ValueError: there is none, or units of a layer cannot be reset.
    """
    layers = [layer for layer in learner.layers(on, connected=True) if not layer.is_head]
    layers = [layer for layer in layers if layer.weight is None or layer.weight.requires_grad]
    for layer in layers:
        touched = [layer, *(connection.layer for connection in layer.outgoing)]
        if computed := [each.name for each in touched if each.weight is None]:
            raise ValueError(f"units of {layer.name} cannot be reset: {computed[0]} has a computed weight")
        if not layer.outgoing:
            raise ValueError(f"units of {layer.name} cannot be reset: {layer.problem}")
    if not layers:
        raise ValueError(f"there is no hidden layer on {on} whose units could be reset")
    return layers


def new_tensors(learner: Learner, layer: Layer, new: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters and buffers of a layer and of its normalization, each with that of a new network."""
    paths = {module: path for path, module in learner.network.named_modules()} | learner.origins
    for module in (layer.module, *layer.normalizations):
        fresh = new.get_submodule(paths[module])
        yield from zip(module.parameters(), fresh.parameters(), strict=True)
        yield from zip(module.buffers(), fresh.buffers(), strict=True)


class LayerReset(Method):
    """Resets the last layers, or all, with their optimizer's state: every n gradient steps or at switches.

    E. Nikishin et al., "The Primacy Bias in Deep Reinforcement Learning", ICML 2022. The step counts of the
    optimizer become 0 too, as in a new optimizer, since whole tensors are reset; and the target network's
    layers get the same weights. Orthogonal layers get a new raw weight.

    With `at_switch` the method has information that the agent lacks: when the task changes.
    """

    resets = True

    def __init__(
        self, learner: Learner, layers: int, every: int = 0, at_switch: bool = False, on: str = "all"
    ) -> None:
        self.learner, self.last, self.part = learner, layers, on
        self.every, self.at_switch = every, at_switch
        most = min(len(part) for part in self._parts())
        if layers > most:
            raise ValueError(f"layers of a reset must be at most {most}, or 0 for all, not {layers}")

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Reset the layers."""
        new, chosen = self.learner.new_network(), self._chosen()
        for layer in chosen:
            for tensor, fresh in new_tensors(self.learner, layer, new):
                for each in in_both(self.learner, tensor):
                    each.copy_(fresh)
                clear_state(self.learner, tensor)
        return {"reset_layers": float(len(chosen))}

    def _chosen(self) -> list[Layer]:
        parts = [part if self.last == 0 else part[-self.last :] for part in self._parts()]
        return list({layer.name: layer for part in parts for layer in part}.values())

    def _parts(self) -> list[Sequence[Layer]]:
        """For each head, the hidden layers of its part, and it: in the order of calls."""
        layers = self.learner.layers(self.part)
        hidden = [layer for layer in layers if not layer.is_head]
        return [
            [*(each for each in hidden if not head.parts or each.parts & head.parts), head]
            for head in layers
            if head.is_head
        ]


def clear_state(learner: Learner, tensor: Tensor) -> None:
    """Clear what the optimizer remembers of a whole tensor, in place, since captured steps use the memory."""
    for moment in moments_of(learner.optimizer, tensor):
        moment.zero_()
    step = learner.optimizer.state.get(tensor, {}).get("step")
    if isinstance(step, Tensor):
        step.zero_()


STRUCTURE: tuple[str, ...] = ("injection", "injection_at_switch")
"""Methods that change the structure of the network, with which those that need new layers cannot combine."""


@dataclass(frozen=True)
class ResetAtSwitchConfig(MethodConfig):
    """Reset the last layers at task switches, which this tells the agent."""

    name: ClassVar[str] = "reset_at_switch"
    conflicts: ClassVar[tuple[str, ...]] = ("reset", *STRUCTURE)

    layers: int = 1
    """Number of last layers that are reset, the head included; 0 resets all."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("layers",), at_least=0)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return LayerReset(learner, self.layers, at_switch=True, on=self.on)


@dataclass(frozen=True)
class ResetConfig(ResetAtSwitchConfig):
    """Reset the last layers at intervals."""

    name: ClassVar[str] = "reset"
    conflicts: ClassVar[tuple[str, ...]] = STRUCTURE

    every: int = 20_000
    """Gradient steps between two resets."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        check_fields(self, ("every",), at_least=1)

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return LayerReset(learner, self.layers, self.every, on=self.on)
