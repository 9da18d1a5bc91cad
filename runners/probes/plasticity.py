"""Plasticity by its definition: the fraction of a new task's optimality gap that training eliminates.

The fraction is 1 - gap(theta_t) / gap(theta_0), in expectation over tasks. (Rosseau et al., Preserving
Plasticity in Continual Learning via Dynamical Isometry, 2026, definition 2.1 and equation 2.)
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.optim import Methods
from neoteny.optim.layers import Network, encoded


class Observations(NamedTuple):
    """The minibatch that is passed to methods while a copy learns the new task."""

    observations: Tensor


class NextTask(NamedTuple):
    """A task that the network has not learnt: samples (B, ...), and the loss of its outputs on targets."""

    observations: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


def plasticity(
    methods: Methods,
    observations: Tensor,
    new_optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int = 300,
    seed: int = 0,
    next_task: NextTask | None = None,
) -> dict[str, Tensor]:
    """Measure plasticity on an unseen task: the next one, if it is given, or a random change of all outputs.

    The gap of the next task is its loss, since the best loss is taken to be 0, as in the paper. In a random
    task the target of every output of every sample is the current output plus a normal draw. Its standard
    deviation is that of the part's outputs over the samples, but at least 1. So the initial gap, relative to
    the scale of the outputs, is the same for all networks, and a network that fits all targets closes it
    completely. Copies of network, optimizer and methods are trained; the originals and the random state are
    unchanged.

    Args:
        methods: With the network and the optimizer that they act on.
        observations: Of the random task, (B, ...), without duplicates, whose gap could not be closed.
        new_optimizer: Creates an optimizer for a network.
        steps: Gradient steps, each on all samples.
        seed: Of the random task and of the new network.
        next_task: Is learnt instead of a random task.

    Returns:
        As a mean over the parts, and for each under `/<part>`, the fraction of the gap that is closed:
        `plasticity/fraction_eliminated` by the current network, with its optimizer's state;
        `plasticity/fraction_eliminated_new_optimizer` by the current network with a new optimizer;
        `plasticity/fresh` by a new network with a new optimizer and newly initialized methods;
        `plasticity/lost`: fresh minus fraction_eliminated.
        A fraction is negative if the gap has grown, and nan for a network that diverged.
    """
    devices = [observations.device] if observations.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        observations = (observations if next_task is None else next_task.observations).detach().clone()
        network = cast(Network, methods.learner.network)
        inputs = encoded(network, observations)
        as_it_is, restarted = copy.deepcopy(methods), copy.deepcopy(methods)
        restarted.learner.optimizer = new_optimizer(restarted.learner.network)
        changes = {name: torch.randn_like(part(inputs).detach()) for name, part in network.parts().items()}
        fresh = methods.learner.new_network()
        renewed = methods.remade(fresh, new_optimizer(fresh))
        fractions = {
            "fraction_eliminated": learn(as_it_is, observations, changes, steps, next_task),
            "fraction_eliminated_new_optimizer": learn(restarted, observations, changes, steps, next_task),
            "fresh": learn(renewed, observations, changes, steps, next_task),
        }
    fractions["lost"] = {
        name: fresh - fractions["fraction_eliminated"][name] for name, fresh in fractions["fresh"].items()
    }
    values = {}
    for quantity, by_part in fractions.items():
        values[f"plasticity/{quantity}"] = torch.stack(list(by_part.values())).mean()
        values |= {f"plasticity/{quantity}/{part}": value for part, value in by_part.items()}
    return values


def learn(
    methods: Methods,
    observations: Tensor,
    changes: Mapping[str, Tensor],
    steps: int,
    next_task: NextTask | None = None,
) -> dict[str, Tensor]:
    """Train a network on a task; returns the fraction of each part's gap that it closes.

    Args:
        methods: With the network and the optimizer, changed in place.
        observations: (B, ...).
        changes: Of the random task: targets minus outputs of each part, (B, O), in units of the standard
            deviation of its outputs over the samples, or of 1 if that is larger.
        steps: Gradient steps.
        next_task: Is learnt instead of the random task.
    """
    network, optimizer = cast(Network, methods.learner.network), methods.learner.optimizer
    inputs, batch = encoded(network, observations), Observations(observations)
    targets, whole = {}, {}
    for name, change in changes.items():
        outputs = network.parts()[name](inputs).detach()
        change = change * outputs.std(0, correction=0).mean().clamp(min=1.0)
        targets[name], whole[name] = outputs + change, change.square().mean()

    def gaps() -> dict[str, Tensor]:
        parts = network.parts()  # looked up each time, since methods may replace their modules
        if next_task is not None:
            return {name: next_task.loss(part(inputs), next_task.targets) for name, part in parts.items()}
        return {name: (parts[name](inputs) - target).square().mean() for name, target in targets.items()}

    if next_task is not None:
        whole = {name: gap.detach() for name, gap in gaps().items()}
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack(list(gaps().values())).sum()
        (loss + methods.penalty(batch, loss)).backward()
        methods.add_gradients(batch)
        optimizer.step()
        methods.after_step()
        methods.between_steps(batch)
    with torch.no_grad():
        return {name: 1.0 - gap / whole[name] for name, gap in gaps().items()}
