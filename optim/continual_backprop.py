"""Continual backpropagation: replace the least useful units, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoteny.optim.checks import in_both
from neoteny.optim.layers import Layer
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Seen, check_fields
from neoteny.optim.unit_resets import UnitMethod, others


class ContinualBackprop(UnitMethod):
    r"""Replaces the least useful units, a few at a time.

    S. Dohare et al., "Loss of plasticity in deep continual learning", Nature 632, 2024. The utility of a unit
    is a running mean of :math:`\sum |w_{out}| \cdot E|h - \bar h| / \sum |w_{in}|`, where :math:`\bar h` is a
    running mean of its activation; both are bias-corrected as Adam's moments are. In each gradient step a
    share `rate` of the units that are old enough is due. Fractions add up, and whole units, the least useful,
    are replaced at every event. What a unit gave on average, its outgoing weight times :math:`\bar h`, is
    added to the next biases; positions of a flattened convolution have a mean each.

    The authors' code clears :math:`\bar h` before it is added to the biases, so that nothing is added.
    """

    resets = True

    def __init__(
        self, learner: Learner, every: int, rate: float, maturity: int, decay: float, on: str = "all"
    ) -> None:
        super().__init__(learner, every, on)
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.due: dict[str, float] = {}

    def new_state(self, layer: Layer) -> dict[str, Tensor]:
        """Of each unit the age in gradient steps, the utility, and the mean of each input that it feeds."""
        ages = layer.module.weight.new_zeros(layer.units)
        means = ages.new_zeros(layer.outgoing[0].columns.shape)
        return {"ages": ages, "utilities": torch.zeros_like(ages), "means": means}

    def watches(self) -> list[Layer]:
        """All layers that it acts on."""
        return self.layers()

    @torch.no_grad()
    def after_step(self, seen: Seen) -> None:
        """Count the step, and update the running means of activations and utilities."""
        for layer in self.layers():
            ages, utilities, means = self.state[layer.name].values()
            activations = seen.activations[layer.name].float().unflatten(2, (means.shape[1], -1))
            ages += 1
            means.lerp_(activations.mean((0, 3)), 1 - self.decay)
            centred = activations - self._corrected(means, ages[:, None])[:, :, None]
            outgoing = sum(
                later.module.weight.abs().transpose(0, 1).flatten(1).sum(1)[columns].sum(1)
                for later, columns in layer.outgoing
            )
            incoming = layer.module.weight.abs().flatten(1).sum(1).clamp(min=1e-12)
            utilities.lerp_(outgoing * centred.abs().mean((0, 2, 3)) / incoming, 1 - self.decay)

    @torch.no_grad()
    def on(self, event: Event) -> dict[str, float]:
        """Replace the units that are due."""
        masks = {name: self._chosen(name) for name in self.state}
        for layer in self.layers():
            ages, _, means = self.state[layer.name].values()
            self._keep_means(layer, masks[layer.name], self._corrected(means, ages[:, None]))
        return self.reset(masks)

    def _chosen(self, name: str) -> Tensor:
        """The least useful of a layer's old units, as many as are due, (units,)."""
        ages, utilities, _ = self.state[name].values()
        eligible = (ages > self.maturity).nonzero().squeeze(1)
        self.due[name] = self.due.get(name, 0.0) + self.rate * self.every * len(eligible)
        number = min(int(self.due[name]), len(eligible))
        self.due[name] -= number
        order = self._corrected(utilities, ages)[eligible].argsort(stable=True)
        chosen = torch.zeros_like(ages, dtype=torch.bool)
        chosen[eligible[order[:number]]] = True
        return chosen

    def _keep_means(self, layer: Layer, mask: Tensor, means: Tensor) -> None:
        """Add to later biases what the units in a mask gave on average, in the target network as well."""
        for later, columns in layer.outgoing:
            if (bias := later.module.bias) is None:
                continue
            weights = in_both(self.learner, later.module.weight)
            for weight, sums in zip(weights, in_both(self.learner, bias), strict=True):
                of_units = weight[:, columns[mask]]  # (out, units, k, *kernel)
                of_units = of_units.flatten(3).sum(3) if weight.ndim > 2 else of_units
                sums += (of_units * means[mask]).sum((1, 2))

    def _corrected(self, running: Tensor, ages: Tensor) -> Tensor:
        """A running mean without the bias towards its start at 0; 0 at age 0."""
        return running / (1 - self.decay ** ages.clamp(min=1))

    def state_dict(self) -> dict[str, Any]:
        """The state of all units, and fractions of units that are due."""
        return {"units": super().state_dict(), "due": dict(self.due)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state["units"])
        self.due = dict(state["due"])


@dataclass(frozen=True)
class ContinualBackpropConfig(MethodConfig):
    """Replace the least useful units, a few at a time."""

    name: ClassVar[str] = "continual_backprop"
    stackable: ClassVar[bool] = False
    conflicts: ClassVar[tuple[str, ...]] = others("continual_backprop")

    rate: float = 1e-4
    """Share of the old units that is replaced, per gradient step."""
    maturity: int = 10_000
    """Gradient steps for which a unit is not replaced."""
    decay: float = 0.99
    """Decay rate of the running means, per gradient step."""
    every: int = 100
    """Gradient steps between two times at which units that are due are replaced."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, ("every",), at_least=1)
        check_fields(self, ("rate",), above=0, at_most=1)
        check_fields(self, ("maturity",), at_least=0)
        check_fields(self, ("decay",), at_least=0, at_most=1)
        if self.decay == 1:
            raise ValueError("decay of continual_backprop must be below 1, or nothing is averaged")

    def build(self, learner: Learner) -> Method:
        """The method for a network."""
        return ContinualBackprop(learner, self.every, self.rate, self.maturity, self.decay, self.on)
