"""What methods share that reset single units: those that are dormant, silent or of little use.

All of them judge a unit by its activation as it enters the next layer, or by its gradients; a channel of a
convolution is one unit, whatever lies between it and the next layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neoteny.optim.layers import Layer
from neoteny.optim.methods import Learner, Method
from neoteny.optim.resets import reset_units, resettable

UNIT_RESETS = ("redo", "regrama", "snr", "continual_backprop", "cpr")
"""Methods that reset units. A run has one at most, since each keeps its own account of the units."""


def others(name: str) -> tuple[str, ...]:
    """All methods that reset units but one."""
    return tuple(each for each in UNIT_RESETS if each != name)


class UnitMethod(Method):
    """Base class of methods that reset units: a state of each hidden layer's units, by the layer's name."""

    def __init__(self, learner: Learner, every: int, on: str) -> None:
        self.learner, self.every, self.part = learner, every, on
        self.state: dict[str, dict[str, Tensor]] = {}
        self.layers()

    def layers(self) -> list[Layer]:
        """The layers that it acts on; those that an event made get a state here."""
        layers = resettable(self.learner, self.part)
        if [layer.name for layer in layers] != list(self.state):
            self.state = {layer.name: self.state.get(layer.name) or self.new_state(layer) for layer in layers}
        return layers

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """The state of a layer's units at the start, (units, ...) each; nothing by default."""
        return {}

    def reset(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Reset units by masks (units,) of each layer, and clear their state; returns their numbers."""
        numbers = torch.stack([mask.sum() for mask in masks.values()]).tolist()
        if any(numbers):
            new = self.learner.new_network()
            for layer in self.layers():
                reset_units(self.learner, layer, masks[layer.name], new)
                for tensor in self.state[layer.name].values():
                    tensor[masks[layer.name]] = 0
        return {f"reset/{name}": float(number) for name, number in zip(masks, numbers)}

    def state_dict(self) -> dict[str, Any]:
        """The state of all units."""
        return {name: dict(state) for name, state in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        device = next(self.learner.network.parameters()).device
        self.state = {
            name: {key: tensor.to(device, copy=True) for key, tensor in tensors.items()}
            for name, tensors in state.items()
        }
