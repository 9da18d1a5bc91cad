"""Plasticity as it is defined: how much of a new task's gap to the best a network closes within some steps.

The fraction is 1 - gap(theta_t) / gap(theta_0), in expectation over tasks. (Rosseau et al., Preserving
Plasticity in Continual Learning via Dynamical Isometry, 2026, definition 2.1 and equation 2.)
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def plasticity(
    agent: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    new_agent: Callable[[], nn.Module],
    new_optimizer: Callable[[nn.Module], Optimizer],
    *,
    steps: int = 300,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Measure plasticity on a task that nobody has seen: a random change of all outputs.

    Every output of every sample shall move by a draw from a normal distribution, as wide as the outputs of
    its part differ from sample to sample, and of width 1 at least. So at the start the gap is the same for
    all networks, measured by what they say, and one that interpolates closes all of it. What is trained are
    copies: agent, optimizer and random state are afterwards what they were before.

    Args:
        agent: The network, with `parts()`: networks by name, each from `inputs` to outputs (B, O).
        optimizer: Its optimizer.
        inputs: (B, ...), for its parts; distinct ones, else the gap cannot be closed.
        new_agent: Makes a network as it was at its beginning.
        new_optimizer: Makes an optimizer of a network.
        steps: Gradient steps, each on all inputs.
        seed: Of the task and of the new network.

    Returns:
        For the mean over the parts, and under `/<part>` for each, the fraction of the gap that is closed:
        `plasticity/fraction_eliminated` by the agent as it is, with its optimizer's state;
        `plasticity/fraction_eliminated_new_optimizer` with a new optimizer;
        `plasticity/fresh` by a new network with a new optimizer;
        `plasticity/lost`, what the first falls short of the last.
        A fraction is below 0 where the gap has grown, and nan for a network that diverged.
    """
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        inputs = inputs.detach().clone()
        as_it_is, its_optimizer = copy.deepcopy((agent, optimizer))
        restarted = copy.deepcopy(agent)
        parts: dict[str, nn.Module] = as_it_is.parts()  # type: ignore[operator]
        changes = {name: torch.randn_like(part(inputs).detach()) for name, part in parts.items()}
        fresh = new_agent()
        fractions = {
            "fraction_eliminated": learn(as_it_is, its_optimizer, inputs, changes, steps),
            "fraction_eliminated_new_optimizer": learn(
                restarted, new_optimizer(restarted), inputs, changes, steps
            ),
            "fresh": learn(fresh, new_optimizer(fresh), inputs, changes, steps),
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
    agent: nn.Module, optimizer: Optimizer, inputs: Tensor, changes: Mapping[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """Train an agent to change its outputs; returns the fraction of each part's gap that it closes.

    Args:
        agent: The network, with `parts()`; changed in place.
        optimizer: Of its parameters.
        inputs: (B, ...).
        changes: What shall be added to the outputs of each part, (B, O), in units of the standard deviation
            of its outputs over the samples, or of 1 if that is more.
        steps: Gradient steps.
    """
    parts = agent.parts()  # type: ignore[operator]
    targets, whole = {}, {}
    for name, change in changes.items():
        outputs = parts[name](inputs).detach()
        change = change * outputs.std(0, correction=0).mean().clamp(min=1.0)
        targets[name], whole[name] = outputs + change, change.square().mean()

    def gaps() -> dict[str, Tensor]:
        return {name: (parts[name](inputs) - target).square().mean() for name, target in targets.items()}

    for _ in range(steps):
        optimizer.zero_grad()
        sum(gaps().values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        return {name: 1.0 - gap / whole[name] for name, gap in gaps().items()}
