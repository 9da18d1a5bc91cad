"""Plasticity probes: measurements of a network's state on one batch of current data.

docs/metrics.md defines every tag. A tag is absent where it has no meaning (no activation after the layer, no
hidden layer); which tags exist depends on the architecture alone, never on the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.envs.transfer import to_host
from neoteny.optim import Methods, pull_norm
from neoteny.optim.layers import Network, encoded
from neoteny.runners.disk.exit_codes import check_numbers
from neoteny.runners.probes.measure import Measured, measure, snapshot, spread, update_norms
from neoteny.runners.probes.ntk import empirical_ntk, ntk_statistics
from neoteny.runners.probes.plasticity import NextTask, plasticity

__all__ = ["NextTask", "ProbeConfig", "Probes", "measure", "snapshot", "update_norms"]


MOST = {"samples": 10_000, "ntk_samples": 1_000, "plasticity_samples": 10_000, "plasticity_steps": 10**6}
"""Largest amounts: what is measured grows with the sample times the widths, or with its square."""


@dataclass(frozen=True)
class ProbeConfig:
    """What the plasticity probes measure, and how often."""

    every: int = 20
    """Updates between two measurements; 0 for none. The first update is always measured."""
    full_every: int = 5
    """Interval, in measurements, of the neural tangent kernel and of convolutions as matrices; 0 for none."""
    plasticity_every: int = 0
    """Interval, in measurements, of plasticity by its definition, which trains copies on a random task; 0
    for none."""
    samples: int = 256
    """Number of current observations for units and features."""
    ntk_samples: int = 32
    """Number of distinct observations for the neural tangent kernel, whose cost is quadratic in it."""
    plasticity_samples: int = 64
    """Number of distinct observations of the random task, few enough for a fresh network to fit well."""
    plasticity_steps: int = 300
    """Gradient steps on the random task."""
    pictures: bool = True
    """Plot spectra and dormant units over time at the end of the run."""

    def __post_init__(self) -> None:
        """Refuse negative intervals and numbers of samples below 1."""
        check_numbers(self, ("every", "full_every", "plasticity_every"), at_least=0, prefix="probes.")
        for name, most in MOST.items():
            check_numbers(self, (name,), at_least=1, at_most=most, prefix="probes.")

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others -> why."""
        found = {}
        if self.full_every == 0:
            found["ntk_samples"] = "--probes.full-every is 0"
        if self.plasticity_every == 0:
            why = "--probes.plasticity-every is 0"
            found |= dict.fromkeys(("plasticity_samples", "plasticity_steps"), why)
        if self.every == 0:
            found = dict.fromkeys((name for name in vars(self) if name != "every"), "--probes.every is 0")
        return found


class Probes:
    """The probes of a run: when they are due, and their measurements.

    They do not affect training: the weights are bit-identical with and without them.

    Args:
        config: the flags.
        methods: with the network and the optimizer to measure.
        new_optimizer: creates another optimizer for a network.
    """

    def __init__(
        self, config: ProbeConfig, methods: Methods, new_optimizer: Callable[[nn.Module], Optimizer]
    ) -> None:
        self.config, self.methods, self.new_optimizer = config, methods, new_optimizer
        self.due = False  # whether to measure the current update

    def begin(self, update: int) -> None:
        """Begin an update, numbered from 1: call it before the gradient steps."""
        every = self.config.every
        self.due = every > 0 and (update == 1 or update % every == 0)
        self._update = update
        self._before = snapshot(self.methods.learner.network) if self.due else {}

    def measure(
        self, observations: Tensor, next_task: NextTask | None = None
    ) -> dict[str, float | list[float]]:
        """Measure the network on current observations (B, ...), its plasticity on the next task if given.

        Returns:
            Values by tag, spectra as lists.
        """
        with self.methods.seen.paused():  # methods shall record only training's forward passes
            return self._measure(observations, next_task)

    def _measure(self, observations: Tensor, next_task: NextTask | None) -> dict[str, float | list[float]]:
        config, learner = self.config, self.methods.learner
        agent = cast(Network, learner.network)
        count = 0 if self._update == 1 else self._update // config.every
        full, training = (
            every > 0 and count % every == 0 for every in (config.full_every, config.plasticity_every)
        )
        observations = spread(observations, config.samples)
        parts, inputs = agent.parts(), encoded(agent, observations)
        values: dict[str, float | list[float]] = {**update_norms(learner.network, self._before)}
        values["update/pull_norm"] = float(pull_norm(learner.optimizer))
        values |= measure(parts, inputs, learner.layers(), operators=full)
        if not (full or training):
            return values
        # In grid worlds many observations are equal. Duplicates make the kernel singular, and no network can
        # fit different targets to them.
        distinct = observations.unique(dim=0)
        others: Measured = {}
        if full:
            some = spread(encoded(agent, distinct), config.ntk_samples)
            for name, part in parts.items():
                statistics = ntk_statistics(empirical_ntk(part, some))
                others |= {f"isometry/{tag}/{name}": value for tag, value in statistics.items()}
        if training:
            run_and_update = np.random.SeedSequence((torch.initial_seed(), self._update))
            seed = int(run_and_update.generate_state(1)[0])
            count, steps = config.plasticity_samples, config.plasticity_steps
            some = spread(distinct, count)
            if next_task is not None:
                inputs, targets, loss = next_task
                next_task = NextTask(spread(inputs, count), spread(targets, count), loss)
            others |= plasticity(
                self.methods, some, self.new_optimizer, steps=steps, seed=seed, next_task=next_task
            )
        return values | dict(zip(others, to_host([*others.values()])))
