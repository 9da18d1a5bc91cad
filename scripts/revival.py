"""Dead units that return: a network whose units died with Adam goes on with Adam, and with AdamO.

python scripts/revival.py

The network memorizes random labels for digits, task after task. Then copies of it go on: with Adam, with
AdamO, and with AdamO after the biases of the dead units were lowered so far that no direction of their
weights can make them active. Writes a figure, and prints a table as Markdown.

Rosseau et al. (ICML 2026), section 4.3: a dead unit has no gradient, but the pull moves its weights unless
they are already orthogonal to those of all others. The pull does not move biases.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from neoteny.agents import supervised
from neoteny.agents.supervised import Classifier
from neoteny.configs.cli import cli, launch_script
from neoteny.envs.supervised import SupervisedStream
from neoteny.optim import AdamConfig, AdamOConfig, Learner, OptimConfig, build_methods, heads
from neoteny.optim.layers import Call, trace
from neoteny.runners.disk.exit_codes import check_numbers
from neoteny.runners.rollout import select
from neoteny.scripts.comparison_tables import markdown, plus_minus

Dead: TypeAlias = NDArray[np.bool_]
"""Which hidden units are 0 on all samples of the task, (times, units)."""

ADAM, ADAMO, TOO_LOW = "Adam", "AdamO", "AdamO, biases out of reach"


@dataclasses.dataclass(frozen=True)
class Revival:
    """Show that dead units return with AdamO."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of networks, labels and the order of samples."""
    before: int = 12
    """Tasks that are learned with Adam first."""
    after: int = 8
    """Tasks after that."""
    lr: float = 3e-3
    """Learning rate."""
    iso: float = 0.1
    """Strength of AdamO's pull; the squared singular values are pulled towards 2."""
    every: int = 50
    """Gradient steps between two counts of dead units; an epoch has 20."""
    out: Path = Path("results/revival")
    """The figure, without its suffix."""

    def __post_init__(self) -> None:
        check_numbers(self, ("before", "after"), at_least=1)
        check_numbers(self, ("every",), at_least=1, at_most=300)  # gradient steps of a task
        if not self.seeds:
            raise ValueError("--seeds must name at least one")
        check_numbers(self, ("lr", "iso"), above=0)


def hidden_calls(agent: Classifier, samples: Tensor) -> list[Call]:
    """The hidden layers in a forward pass on samples (B, ...), with their inputs and activations."""
    with torch.no_grad():
        return trace(agent.classifier, agent.encode(samples))[:-1]


def dead_units(agent: Classifier, samples: Tensor) -> NDArray[np.bool_]:
    """Which units of all hidden layers are 0 on all samples, (units,)."""
    activations = [call.activations for call in hidden_calls(agent, samples)]
    return torch.cat([(each == 0).all(0) for each in activations if each is not None]).numpy()


@torch.no_grad()
def put_out_of_reach(agent: Classifier, samples: Tensor) -> None:
    """Lower the biases of dead units below -||w|| ||x|| for all inputs x, and w as long as any of the layer.

    No rotation of its weights then makes such a unit active.
    """
    for call in hidden_calls(agent, samples):
        assert call.activations is not None
        assert call.module.bias is not None
        dead = (call.activations == 0).all(0)
        longest = torch.linalg.matrix_norm(call.module.weight, ord=2) * call.inputs.norm(dim=1).max()
        call.module.bias[dead] = -2 * longest  # twice, since inputs of later layers grow


def learn(
    agent: Classifier, stream: SupervisedStream, config: OptimConfig, epochs: int, args: Revival
) -> Iterator[NDArray[np.bool_]]:
    """Learn with a new optimizer; yields dead units at every `args.every`-th gradient step."""
    optimizer = config.build(agent, args.lr, exclude=heads(agent))
    methods = build_methods((), Learner(agent, optimizer, lambda: copy.deepcopy(agent)))
    steps, flags = 0, supervised.Args(lr=args.lr)
    for _ in range(epochs):
        stream.begin_epoch()
        for chosen in stream.epoch():
            supervised.update(agent, optimizer, methods, select(stream.data, chosen), flags)
            steps += 1
            if steps % args.every == 0:
                yield dead_units(agent, stream.data.observations)


def run(seed: int, args: Revival) -> tuple[Dead, dict[str, Dead]]:
    """Dead units before, and after in each arm."""
    torch.manual_seed(seed)
    flags = cli(supervised.Args, supervised.PRESETS, ["digits-random-labels"])
    stream, epochs = flags.stream.make(flags.batch_size, seed), flags.stream.epochs
    agent = Classifier(stream, flags.network)
    before = np.stack(list(learn(agent, stream, AdamConfig(), args.before * epochs, args)))
    adamo = AdamOConfig(iso=args.iso, iso_scale=2.0)
    after: dict[str, Dead] = {}
    arms: dict[str, OptimConfig] = {ADAM: AdamConfig(), ADAMO: adamo, TOO_LOW: adamo}
    for name, config in arms.items():
        copied, again = copy.deepcopy((agent, stream))
        if name == TOO_LOW:
            put_out_of_reach(copied, again.data.observations)
        after[name] = np.stack(list(learn(copied, again, config, args.after * epochs, args)))
    return before, after


def draw(found: Sequence[tuple[Dead, dict[str, Dead]]], args: Revival) -> None:
    """Plot the share of dead units over gradient steps, a line for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for before, after in found:
        begin = args.every * np.arange(1, len(before) + 1)
        left.plot(begin, before.mean(1), color="grey", linewidth=1)
        for number, (name, dead) in enumerate(after.items()):
            steps = args.every * np.arange(1, len(dead) + 1)
            label = name if before is found[0][0] else None
            left.plot(begin[-1] + steps, dead.mean(1), color=f"C{number}", linewidth=1, label=label)
            right.plot(steps, returned(before, dead), color=f"C{number}", linewidth=1)
    left.axvline(begin[-1], color="black", linewidth=0.5)
    left.set(title="dead units", xlabel="gradient steps: with Adam, then with each", ylim=(0, 1))
    right.set(title="dead at the vertical line and active again", xlabel="gradient steps since", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{args.out}.png", dpi=130)
    plt.close(figure)


def returned(before: Dead, dead: Dead) -> NDArray[np.float64]:
    """The share of the units dead at the end of `before` that are not dead at each later time, (times,)."""
    return 1.0 - dead[:, before[-1]].mean(1)


def main(args: Revival) -> int:
    """Train, draw and print."""
    torch.set_num_threads(1)
    found = [run(seed, args) for seed in tqdm(args.seeds, "seeds", disable=None)]
    draw(found, args)
    rows = [["Adam, before", "", plus_minus(np.array([before[-1].mean() for before, _ in found]))]]
    for name in found[0][1]:
        back = np.array([returned(before, after[name])[-1] for before, after in found])
        rows.append(
            [name, plus_minus(back), plus_minus(np.array([after[name][-1].mean() for _, after in found]))]
        )
    print(markdown(["network", "active again of those that were dead", "dead units at the end"], rows))
    return 0


if __name__ == "__main__":
    launch_script(main, Revival)
