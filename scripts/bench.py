"""Benchmarks of neoteny's parts on this machine: optimizer, probes, task switches, checkpoints, training.

Example: python scripts/bench.py optim

The arms of a comparison alternate in short turns (A B C, C A B, ...) in one process, so that a slowdown of
the machine affects all of them. Ratios are taken within each repeat; a table shows their median and, in
brackets, the quartiles. CPU time is that of this process: other jobs on the machine affect it much less than
wall time.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.util
import io
import itertools
import math
import os
import platform
import random
import resource
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from minigrid.wrappers import ImgObsWrapper
from torch import Tensor, nn
from tqdm import tqdm

from neoteny.agents import ppo
from neoteny.agents.networks import NetworkConfig, encoder, head, torso
from neoteny.configs.cli import launch_script, override
from neoteny.configs.ppo import PRESETS
from neoteny.envs import Schedule, StreamConfig
from neoteny.envs.grid.engine import GridEngine
from neoteny.envs.observations import read_observations
from neoteny.optim import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    AdamWConfig,
    Learner,
    MethodConfig,
    Methods,
    MuonConfig,
    MuonOConfig,
    OptimConfig,
    TRACConfig,
    UPGDConfig,
    heads,
    orthogonalize,
)
from neoteny.optim.layers import describe
from neoteny.runners.probes import Probes, measure
from neoteny.runners.replay import ReplayMemory

if TYPE_CHECKING:
    import peers


@dataclasses.dataclass(frozen=True)
class Bench:
    """Benchmark a part of neoteny on this machine."""

    name: tyro.conf.Positional[
        Literal[
            "optim", "methods", "orthogonal", "probes", "streams", "checks", "checkpoint", "grid", "train"
        ]
    ]
    """optim: AdamO against fused AdamW, 6 minutes. methods: plasticity methods and optimizers against Adam, 4
    minutes. orthogonal: orthogonal layers, by Björck's iteration and by PyTorch's parametrizations, against
    unconstrained ones, 2 minutes. probes: the probes' share of the
    time of PPO, 8 minutes. streams: the share of task switches, audit included, and memory growth over 1,000
    switches, 3 minutes. checks: what every shipped stream costs to check before training and at a switch, 3
    minutes. checkpoint: the share of checkpoints, and the cost of a replay memory on disk, 3
    minutes. grid: MiniGrid on tensors against the minigrid package and, if installed, EnvPool, 12 minutes.
    train: PPO on MiniGrid, 8 minutes, or PPO and DQN on Atari, 15 minutes, against a plain loop and, if
    installed, Stable-Baselines3."""
    task: Literal["grid", "atari"] = "grid"
    """Environments of the benchmark "train"."""
    threads: int = 1
    """Number of PyTorch threads. With more than one, CPU time is the sum over threads."""
    quick: bool = False
    """Run a smoke test of a few seconds, with tiny batches and meaningless numbers."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    batches: tuple[int, ...] = (256, 1024)
    """Batch sizes of an update; the first is the number of samples of a probe."""
    turn: float = 0.02
    """Minimum seconds per turn; an arm is called until they have passed."""
    measurement: float = 0.5
    """Minimum seconds of all turns of an arm in a repeat."""
    budget: float = 30.0
    """Seconds for all repeats of a comparison, without warm-up, within the limits of `repeats`."""
    repeats: tuple[int, int] = (2, 50)
    """Minimum and maximum number of repeats of a comparison."""
    updates: int = 40
    """Updates per PPO run."""
    runs: int = 3
    """PPO runs per preset."""
    switches: int = 1000
    """Task switches over which memory growth is measured."""
    transitions: int = 100_000
    """Capacity of a replay memory; a tenth of it is added between two checkpoints."""
    grids: tuple[int, ...] = (64, 1024, 4096)
    """Numbers of MiniGrid environments."""
    more_grids: tuple[int, ...] = (1, 4, 8, 16, 256, 16384)
    """Additional numbers for the first room."""
    trainings: tuple[int, ...] = (16, 64, 256, 1024)
    """Numbers of MiniGrid environments on which PPO trains."""


QUICK = Effort(
    batches=(4, 8), turn=1e-3, measurement=0.0, budget=0.0, repeats=(2, 2), updates=2, runs=1, switches=10,
    transitions=320, grids=(4,), more_grids=(), trainings=(4,),
)  # fmt: skip

Clock = Callable[[], tuple[float, ...]]
WALL, CPU, STEP = 0, 1, 2


def clocks() -> tuple[float, float]:
    """Wall time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def alternate(
    arms: Mapping[str, Callable[[], object]],
    effort: Effort,
    *,
    interval: int = 1,
    label: str = "",
    clock: Clock = clocks,
) -> dict[str, np.ndarray]:
    """Time functions in alternating turns, after a warm-up and without the garbage collector.

    The order of the arms is random in every turn, since an arm inherits the caches of the arm before it.

    Args:
        arms: the functions, by name; the number of calls is chosen by the time of the first.
        effort: how long to measure.
        interval: the number of calls of a measurement is a multiple of this, so that work done at every
            `interval`-th call is counted in proportion.
        label: of the progress bar.
        clock: returns wall time, CPU time and optional further times.

    Returns:
        Seconds of one call, by name: (repeats, clocks).
    """

    def timed(arm: Callable[[], object], calls: int) -> np.ndarray:
        start = clock()
        for _ in range(calls):
            arm()
        return np.subtract(clock(), start)

    with _no_garbage_collection():
        for arm in arms.values():
            arm()
        first = next(iter(arms.values()))
        turn = 1
        while (seconds := timed(first, turn)[WALL]) < effort.turn:
            turn *= 2
        turns = interval * max(1, math.ceil(effort.measurement / seconds / interval))
        one_repeat = len(arms) * turns * seconds
        repeats = round(min(max(effort.budget / one_repeat, effort.repeats[0]), effort.repeats[1]))
        total = {name: np.zeros((repeats, len(clock()))) for name in arms}
        order = random.Random(0)
        for repeat in tqdm(range(repeats), desc=label, leave=False):
            for _ in range(turns):
                for name in order.sample(list(arms), len(arms)):
                    total[name][repeat] += timed(arms[name], turn)
    return {name: seconds / (turns * turn) for name, seconds in total.items()}


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return median, low, high


def percent(values: Sequence[float] | np.ndarray, form: str = "+.1f") -> str:
    """Median and quartiles of percentages, as a table cell."""
    median, low, high = (format(value, form) for value in quartiles(values))
    return f"{median} ({low} to {high})"


def ms(seconds: Sequence[float] | np.ndarray) -> str:
    """Median and quartiles in milliseconds, three digits each, as a table cell."""
    median, low, high = (f"{float(f'{1e3 * value:.3g}'):g}" for value in quartiles(seconds))
    return f"{median} ({low} to {high})"


def overhead(seconds: Mapping[str, np.ndarray], arm: str, clock: int = CPU) -> np.ndarray:
    """Percentage by which an arm is slower than the first, in each repeat: (repeats,)."""
    reference = next(iter(seconds.values()))
    return 100 * (seconds[arm][:, clock] / reference[:, clock] - 1)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in (header, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(what: str, share: float, target: float, unit: str = "%") -> str:
    """A line that says whether a measured share meets its target."""
    holds = "holds " if share <= target else "MISSED"
    return f"{holds}  {what}: {share:.2f} {unit}, target {target:g} {unit}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network and a loss to train it with."""

    name: str
    network: nn.Module
    new: Callable[[], nn.Module]
    """Makes another one, freshly initialized."""
    heads: tuple[str, ...]
    """Submodules that AdamO does not pull."""
    parts: Mapping[str, nn.Module]
    """Networks that the probes measure."""
    shape: tuple[int, ...]
    """Shape of an observation."""
    loss: Callable[[int], Callable[[nn.Module], Tensor]]
    """Batch size -> a loss on a fixed random batch of that size."""


def problems(norm: Literal["none", "layer"] = "none") -> list[Problem]:
    """A small, a wide and a convolutional network, without normalization or with it."""
    stream: gym.vector.VectorEnv = gym.vector.VectorEnv()
    stream.single_observation_space = gym.spaces.Box(-1, 1, (17,))
    stream.single_action_space = gym.spaces.Discrete(6)
    new = functools.partial(ppo.ActorCritic, stream, NetworkConfig(norm=norm))
    agent = new()
    heads, parts = ("actor.head", "critic.head"), {"actor": agent.actor, "critic": agent.critic}
    numbers, pixels = gym.spaces.Box(-1, 1, (64,)), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    return [
        Problem("PPO MLP 64x64, actor and critic", agent, new, heads, parts, (17,), ppo_batch),
        _classifier("MLP 64-512x4-10", numbers, NetworkConfig((512,) * 4, norm=norm), 10),
        _classifier("NatureCNN 4x84x84", pixels, NetworkConfig((512,), norm=norm), 6),
    ]


def _classifier(name: str, space: gym.spaces.Box, config: NetworkConfig, classes: int) -> Problem:
    def new() -> nn.Module:
        network = torso(encoder(read_observations(space)), space, config)
        network.add_module("head", head(config, classes, gain=1.0))
        return network

    def batch(size: int) -> Callable[[nn.Module], Tensor]:
        inputs, labels = torch.randn(size, *space.shape), torch.randint(classes, (size,))
        return lambda network: F.cross_entropy(network(inputs), labels)

    network = new()
    return Problem(name, network, new, ("head",), {"network": network}, space.shape, batch)


def ppo_batch(size: int) -> Callable[[nn.Module], Tensor]:
    """PPO's loss on a random minibatch for 17 observations and 6 actions."""
    args = ppo.Args()
    observations, actions = torch.randn(size, 17), torch.randint(6, (size,))
    old_log_probs = torch.full((size,), -math.log(6))
    batch = ppo.Batch(observations, actions, old_log_probs, torch.randn(size), torch.randn(size))

    def loss(network: nn.Module) -> Tensor:
        log_probs, entropy, values = network.evaluate(observations, actions)  # type: ignore[operator]
        return ppo.ppo_loss(log_probs, entropy, values, batch, args.clip, args.ent_coef, args.vf_coef)[0]

    return loss


@dataclasses.dataclass
class Stopwatch:
    """CPU time spent in one part of a program."""

    seconds: float = 0.0

    def clocks(self) -> tuple[float, ...]:
        """Wall time, CPU time, and the CPU time spent in the part."""
        return *clocks(), self.seconds


def updater(
    problem: Problem, config: OptimConfig, loss: Callable[[nn.Module], Tensor], stepping: Stopwatch
) -> Callable[[], None]:
    """A function that makes one update of a copy of the problem's network; `stepping` times its `step()`."""
    network = copy.deepcopy(problem.network)
    # A tiny learning rate, so that all optimizers keep similar networks: different numbers of dead units and
    # of subnormal moments, which are slow, would distort the comparison.
    optimizer = config.build(network, lr=1e-6, exclude=problem.heads)

    def update() -> None:
        optimizer.zero_grad()
        loss(network).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        start = time.process_time()
        optimizer.step()
        stepping.seconds += time.process_time() - start

    return update


INTERVALS = (1, 10)
# For each problem: by how many percent of an update AdamO's step() may be slower than AdamW's, at the smaller
# batch and the longest interval.
OPTIM_TARGETS = (5.0, 10.0, 2.0)
PROBED_PRESETS = ("cartpole-rotations", "grid-layouts-small", "atari")
# Percent of the time of a PPO run.
PROBE_TARGET = 2.0


def optim(bench: Bench, effort: Effort) -> str:
    """Extra time of AdamO compared to fused AdamW, as a share of the whole update."""
    arms = [f"k={k}" for k in INTERVALS]
    rows, verdicts = [], []
    for problem, target in zip(problems(), OPTIM_TARGETS):
        parameters = sum(p.numel() for p in problem.network.parameters())
        for batch in effort.batches:
            label = f"{problem.name}, batch {batch}"
            seconds = time_updates(problem, batch, effort, label)
            adamw = seconds["AdamW"]
            steps = {arm: 100 * (seconds[arm] - adamw)[:, STEP] / adamw[:, CPU] for arm in arms}
            row = [problem.name, f"{parameters:,}", str(batch), str(len(adamw))]
            row += [ms(adamw[:, CPU]), ms(adamw[:, WALL])]
            row += [percent(steps[arm]) for arm in arms]
            row += [percent(overhead(seconds, arm)) for arm in (*arms, "AdamW again")]
            row.append(" / ".join(f"{np.median(overhead(seconds, arm, WALL)):+.1f}" for arm in arms))
            rows.append(row)
            if batch == effort.batches[0]:
                verdicts.append(verdict(f"{label}, {arms[-1]}", float(np.median(steps[arms[-1]])), target))
    header = ["network", "parameters", "batch", "repeats", "AdamW, ms CPU", "AdamW, ms wall"]
    header += [f"{arm}, step()" for arm in arms]
    header += [f"{arm}, whole" for arm in arms] + ["AdamW again", f"{' / '.join(arms)}, wall"]
    return "\n".join([OPTIM_EXPLAINED, "", table(header, rows), "", *verdicts])


OPTIM_EXPLAINED = """\
An update is forward, backward, clip_grad_norm_, step and zero_grad. AdamW is fused; AdamO pulls the weights
of all hidden layers at every k-th step. The other columns are percentages of the time of AdamW's update, in
CPU time except for the last. "step()": how much longer AdamO's step() takes, timed inside the updates.
"whole": how much longer whole updates take, including the noise of forward and backward passes. "AdamW
again": the same for a second AdamW, which would be 0 without noise. Targets are for step()."""


def time_updates(problem: Problem, batch: int, effort: Effort, label: str) -> dict[str, np.ndarray]:
    """Seconds of an update with AdamW twice and AdamO: (repeats, 3), wall, CPU and CPU within `step`."""
    configs: dict[str, OptimConfig] = {"AdamW": AdamWConfig(), "AdamW again": AdamWConfig()}
    configs |= {f"k={k}": AdamOConfig(iso=0.1, iso_scale=2.0, iso_every=k) for k in INTERVALS}
    loss, stepping = problem.loss(batch), Stopwatch()
    updates = {name: updater(problem, config, loss, stepping) for name, config in configs.items()}
    return alternate(updates, effort, interval=math.lcm(*INTERVALS), label=label, clock=stepping.clocks)


def methods(bench: Bench, effort: Effort) -> str:
    """Extra time of plasticity methods and optimizers compared to Adam, as a share of the whole update."""
    batch, columns, events = effort.batches[0], {}, {}
    for problem, normalized in zip(problems(), problems("layer")):
        events[problem.name] = method_events(problem, batch)
        updates = method_updates(problem, normalized, batch)
        seconds = alternate(updates, effort, interval=max(INTERVALS), label=problem.name)
        adam = next(iter(seconds))
        columns[problem.name] = {adam: f"{ms(seconds[adam][:, CPU])} ms"}
        columns[problem.name] |= {arm: percent(overhead(seconds, arm), "+.0f") for arm in list(seconds)[1:]}
    tables = [table([head, *of], _rows(of)) for head, of in (("method", columns), ("event", events))]
    return "\n".join(
        [METHODS_EXPLAINED.format(batch=batch), "", tables[0], "", EVENTS_EXPLAINED, "", tables[1]]
    )


def _rows(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Rows of a table whose columns have the same keys."""
    names = next(iter(columns.values()))
    return [[name, *(column[name] for column in columns.values())] for name in names]


METHODS_EXPLAINED = """\
An update at batch {batch} is forward, backward, clip_grad_norm_, penalties, step and what methods do after
each step, without their events. The first row is the CPU time of an update with Adam, the others are by how
many percent longer it takes, with the flags' defaults: median and quartiles over repeats. "nap" is with layer
normalization. AdamO and MuonO pull at every 10th step. "Adam again" would be 0 without noise."""

EVENTS_EXPLAINED = """\
An event, with the checks that follow it: CPU time in ms, median and quartiles. Methods that reset single
units reset some, for which a new network is made."""

ACTING: dict[str, dict[str, float]] = {
    "redo": {"tau": 0.5}, "regrama": {"tau": 0.5}, "snr": {"longest": 1},
    "continual_backprop": {"maturity": 0, "rate": 0.05}, "injection": {"after": 1},
}  # fmt: skip
"""Flags with which a method acts after a single gradient step."""

OTHER_OPTIMIZERS: tuple[OptimConfig, ...] = (
    AdamWConfig(), AdamOConfig(iso=0.1), MuonConfig(), MuonOConfig(iso=0.1), UPGDConfig(), TRACConfig(),
)  # fmt: skip


def method_updates(problem: Problem, normalized: Problem, batch: int) -> dict[str, Callable[[], None]]:
    """A function for each method and optimizer that makes one update of a copy of the problem's network."""
    loss = problem.loss(batch)
    updates = {
        name: method_update(problem, AdamConfig(), (), loss, batch)[0] for name in ("Adam", "Adam again")
    }
    for name, config in METHODS.items():
        if name != "reorthogonalize":
            on = normalized if name == "nap" else problem
            updates[name] = method_update(on, AdamConfig(), (config(),), loss, batch)[0]
    for optimizer in OTHER_OPTIMIZERS:
        updates[f"optim:{optimizer.name}"] = method_update(problem, optimizer, (), loss, batch)[0]
    return updates


def method_events(problem: Problem, batch: int, repeats: int = 3) -> dict[str, str]:
    """CPU time of an event of each method that has any, as table cells."""
    loss = problem.loss(batch)
    kinds = {name: kind for name, kind in METHODS.items() if name not in ("nap", "reorthogonalize")}
    found = {
        name: [event_seconds(problem, kind, loss, batch) for _ in range(repeats)]
        for name, kind in kinds.items()
    }
    return {name: ms(seconds) for name, seconds in found.items() if all(seconds)}


def event_seconds(
    problem: Problem, kind: type[MethodConfig], loss: Callable[[nn.Module], Tensor], batch: int
) -> float:
    """CPU time of the first event of a method; 0 if it has none."""
    flags: dict[str, Any] = dict(ACTING.get(kind.name, {}))
    if any(field.name == "every" for field in dataclasses.fields(kind)):
        flags["every"] = 1
    update, methods, data = method_update(problem, AdamConfig(), (kind(**flags),), loss, batch)
    update()
    start = time.process_time()
    methods.between_steps(data)
    methods.end_update(switched_at=1)
    return time.process_time() - start if methods.changes else 0.0


def method_update(
    problem: Problem,
    config: OptimConfig,
    configs: Sequence[MethodConfig],
    loss: Callable[[nn.Module], Tensor],
    batch: int,
) -> tuple[Callable[[], None], Methods, Observations]:
    """A function that makes one update of a copy of the problem's network; its methods; their minibatch."""
    network = copy.deepcopy(problem.network)
    agent = as_agent(network, problem.shape)
    optimizer = config.build(agent, lr=1e-6, exclude=heads(agent))
    methods = Methods(configs, Learner(agent, optimizer, lambda: as_agent(problem.new(), problem.shape)))
    data = Observations(torch.randn(batch, *problem.shape))

    def update() -> None:
        value = loss(network)
        optimizer.zero_grad()
        (value + methods.penalty(data, value)).backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        methods.add_gradients(data)
        optimizer.step()
        methods.after_step()

    return update, methods, data


def as_agent(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """A network with parts: PPO's own, or any as the only one."""
    return network if isinstance(network, ppo.ActorCritic) else OnePart(network, shape)


class Observations(NamedTuple):
    """The minibatch that is passed to methods."""

    observations: Tensor


class OnePart(nn.Module):
    """A network as the only part of an agent."""

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.example = network, torch.zeros(1, *shape)

    def encode(self, observations: Tensor) -> Tensor:
        """Observations (B, ...), unchanged."""
        return observations

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (B, ...) -> outputs (B, O)."""
        outputs: Tensor = self.network(observations)
        return outputs

    def parts(self) -> dict[str, nn.Module]:
        """The network."""
        return {"network": self.network}


torch_orthogonal = nn.utils.parametrizations.orthogonal
# Name -> the change of a hidden layer, and the types of layers that it applies to. PyTorch's parametrizations
# treat a convolution kernel as a batch of small matrices, so they apply to linear layers only.
ORTHOGONAL: dict[str, tuple[Callable[..., object], tuple[type[nn.Module], ...]]] = {
    "free": (lambda layer: layer, ()),
    "Björck": (orthogonalize, (nn.Linear, nn.Conv2d)),
    "torch": (torch_orthogonal, (nn.Linear,)),
    "torch, cayley": (functools.partial(torch_orthogonal, orthogonal_map="cayley"), (nn.Linear,)),
}


def orthogonal(bench: Bench, effort: Effort) -> str:
    """Cost of orthogonal hidden layers, in training and in acting."""
    effort = dataclasses.replace(
        effort, measurement=0.0, repeats=(effort.repeats[0], min(9, effort.repeats[1]))
    )
    batch, seen = effort.batches[0], 8
    rows, acting = [], []
    for problem in problems():
        kinds = [kind for kind in ORTHOGONAL if kind != "torch" or "CNN" not in problem.name]
        networks = {kind: orthogonal_network(problem, kind) for kind in kinds}
        loss = problem.loss(batch)
        updates = {
            kind: updater(dataclasses.replace(problem, network=network), AdamConfig(), loss, Stopwatch())
            for kind, network in networks.items()
        }
        seconds = alternate(updates, effort, label=problem.name)
        times = [f"{float(np.median(seconds['free'][:, clock])) * 1e3:.3g}" for clock in (CPU, WALL)]
        ratios = {kind: seconds[kind][:, CPU] / seconds["free"][:, CPU] for kind in kinds}
        cells = [percent(ratios[kind], ".1f") if kind in kinds else "-" for kind in list(ORTHOGONAL)[1:]]
        rows.append([problem.name, str(len(seconds["free"])), *times, *cells])
        actions = actors(networks, torch.randn(seen, *problem.shape))
        # Short turns: some arms are hundreds of times as slow as the first, which sets the number of calls.
        seconds = alternate(actions, dataclasses.replace(effort, turn=1e-3), label=problem.name)
        acting.append([problem.name, *(ms(seconds[kind][:, CPU]) for kind in seconds)])
    header = ["network", "repeats", "free, ms CPU", "free, ms wall", *list(ORTHOGONAL)[1:]]
    explained = ORTHOGONAL_EXPLAINED.format(batch=batch, seen=seen)
    acted = table(["network", "free, ms CPU", "kept", "computed anew"], acting)
    return "\n".join([explained, "", table(header, rows), "", acted])


ORTHOGONAL_EXPLAINED = """\
First table: CPU time of whole updates at batch {batch} with fused Adam, with orthogonal layers as a multiple
of that with unconstrained (free) ones; median and quartiles of the ratios within each repeat. PyTorch's
parametrizations are applied to linear layers only; its default is left out for NatureCNN, whose linear layer
of 512x3136 takes most of a minute per step. Second table: a forward pass on {seen} observations without
gradients, as when an agent acts: with cached orthogonal weights ("kept"), and with raw weights that change
before each pass ("computed anew")."""


def orthogonal_network(problem: Problem, kind: str) -> nn.Module:
    """A copy of a problem's network with orthogonal hidden layers."""
    network = copy.deepcopy(problem.network)
    change, layers = ORTHOGONAL[kind]
    for name, module in list(network.named_modules()):
        if isinstance(module, layers) and name not in problem.heads:
            change(module)
    return network


def actors(networks: Mapping[str, nn.Module], inputs: Tensor) -> dict[str, Callable[[], object]]:
    """Forward passes without gradients: with free, with cached and with changing orthogonal weights."""
    free, kept = networks["free"], networks["Björck"]
    anew = copy.deepcopy(kept)
    raw = [weight for name, weight in anew.named_parameters() if name.endswith("original")]

    def act(network: nn.Module, changed: Sequence[Tensor] = ()) -> None:
        with torch.inference_mode():
            for weight in changed:
                weight.neg_()
            network(inputs)

    return {
        "free": lambda: act(free),
        "kept": lambda: act(kept),
        "computed anew": lambda: act(anew, raw),
    }


def probes(bench: Bench, effort: Effort) -> str:
    """The probes' share of the time of PPO runs, and the cost of each kind of measurement."""
    presets = [preset for preset in PROBED_PRESETS if preset != "atari" or importlib.util.find_spec("ale_py")]
    rows, verdicts = [], []
    for preset in tqdm(presets, desc="PPO runs", leave=False):
        updates = effort.updates // 10 if preset == "atari" else effort.updates
        effort_here = dataclasses.replace(effort, updates=max(2, updates))
        costs = [probe_costs(preset, seed, bench, effort_here) for seed in range(effort.runs)]
        default, full, _, update = np.array(costs).T
        config = override(ppo.Args(), PRESETS[preset]).probes
        shares = 100 * (default + (full - default) / config.full_every) / (config.every * update)
        rows.append([preset, str(effort.runs), str(effort_here.updates), *map(ms, np.array(costs).T)])
        rows[-1] += [str(config.every), str(config.every * config.full_every), percent(shares, ".2f")]
        verdicts.append(verdict(f"probes in {preset}", float(np.median(shares)), PROBE_TARGET))
    header = ["preset", "runs", "updates", "default, ms", "full, ms", "full and plasticity, ms"]
    header += ["one update, ms", "updates between two", "between two full ones", "share, %"]
    lines = [
        "Wall time of one measurement in PPO runs: the default set; the full one, with the neural tangent",
        "kernel and convolutions as operators; and the full one with plasticity (training copies). The share",
        "is that of default and full measurements, at the preset's intervals, in the time of the updates.",
        "",
        *(table(header, rows), "", *verdicts, "", *_one_measurement(effort)),
    ]
    return "\n".join(lines)


def probe_costs(preset: str, seed: int, bench: Bench, effort: Effort) -> tuple[float, float, float, float]:
    """Wall seconds of a default, a full, and a full measurement with plasticity, and of an update."""
    args = preset_args(preset, seed, bench)
    full: dict[str, Any] = {"full_every": 1, **({"ntk_samples": 2} if bench.quick else {})}
    training: dict[str, Any] = {"plasticity_every": 1, **({"plasticity_steps": 1} if bench.quick else {})}
    kinds = [dataclasses.replace(args.probes, **more) for more in ({"full_every": 0}, full, full | training)]
    spent: list[list[float]] = []
    inner = Probes.measure

    def timed(self: Probes, observations: Tensor) -> dict[str, float | list[float]]:
        spent.append([])
        for self.config in kinds:
            start = time.perf_counter()
            measured = inner(self, observations)
            spent[-1].append(time.perf_counter() - start)
        return measured

    with unittest.mock.patch.object(Probes, "measure", timed):
        one_update = update_seconds(args, effort)
    return (*np.median(spent, axis=0).tolist(), one_update)


def update_seconds(args: ppo.Args, effort: Effort) -> float:
    """Train PPO for a few updates; returns the wall seconds per update, without probes."""
    with tempfile.TemporaryDirectory() as folder:
        return updating(train(args, Path(folder), effort.updates)) / effort.updates


def preset_args(preset: str, seed: int, bench: Bench) -> ppo.Args:
    """Arguments of a run of a preset."""
    args = override(ppo.Args(), PRESETS[preset])
    if bench.quick:
        args = dataclasses.replace(args, num_envs=4, num_steps=8)
    return dataclasses.replace(args, seed=seed, threads=bench.threads)


def train(args: ppo.Args, runs_dir: Path, updates: int) -> dict[str, float]:
    """Train PPO for a few updates; returns the wall seconds of each section."""
    steps = updates * args.num_envs * args.num_steps
    args = dataclasses.replace(args, total_steps=steps, runs_dir=runs_dir)
    # Hide the run's progress bar.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return ppo.main(args)["seconds"]


def updating(seconds: Mapping[str, float]) -> float:
    """Wall seconds of a run's updates, without probes, checkpoints, set-up and shutdown."""
    return sum(seconds[section] for section in ("act", "env", "learn"))


def _one_measurement(effort: Effort) -> list[str]:
    samples = effort.batches[0]
    rows = []
    for problem in problems():
        inputs = torch.randn(samples, *problem.shape)
        # Described once, as in a run.
        layers = describe(problem.network, inputs[:1], problem.parts)
        whole = functools.partial(measure, problem.parts, inputs, layers)
        without = functools.partial(whole, jacobian_samples=0)
        shorter = dataclasses.replace(effort, budget=effort.budget / 4)
        seconds = alternate({"whole": whole, "without": without}, shorter, label=problem.name)
        cells = [ms(seconds[arm][:, clock]) for clock in (CPU, WALL) for arm in ("whole", "without")]
        rows.append([problem.name, str(len(seconds["whole"])), *cells])
    header = ["network", "repeats", "ms CPU", "without Jacobians, ms CPU", "ms wall", "without, ms wall"]
    return [f"One measure() on {samples} samples.", "", table(header, rows)]


SWITCHED_PRESETS = ("cartpole-rotations", "cartpole-gravity", "grid-layouts-small")
# Percent of the time of a PPO run.
SWITCH_TARGET = 1.0


def streams(bench: Bench, effort: Effort) -> str:
    """The share of task switches in the time of PPO runs, and memory growth over switches."""
    rows, verdicts = [], []
    for preset in tqdm(SWITCHED_PRESETS, desc="streams", leave=False):
        args = override(ppo.Args(), PRESETS[preset])
        period = args.stream.schedule().period
        assert period is not None
        cost = np.array(
            [switch_and_period(preset, seed, period, bench, effort) for seed in range(effort.runs)]
        )
        shares = 100 * cost[:, 0] / (cost[:, 0] + cost[:, 2])
        rows.append([preset, f"{period:,}", str(effort.runs), *(ms(column) for column in cost.T)])
        rows[-1].append(percent(shares, ".2f"))
        verdicts.append(verdict(f"a switch in {preset}", float(np.median(shares)), SWITCH_TARGET))
    header = ["preset", "period", "runs", "one switch, ms", "of it audit, ms", "one period, ms", "share, %"]
    few, many = effort.switches // 5, effort.switches
    grown = memory_of_switches(few, many)
    return "\n".join(
        [
            "Wall time of one switch (making environments, audit, resets) and of training for one period.",
            "",
            table(header, rows),
            "",
            *verdicts,
            f"Memory: {grown:+.1f} MiB from switch {few:,} to switch {many:,}, audit included.",
        ]
    )


def switch_and_period(
    preset: str, seed: int, period: int, bench: Bench, effort: Effort
) -> tuple[float, float, float]:
    """Wall seconds of one switch, of its audit, and of training for one period without a switch."""
    args = preset_args(preset, seed, bench)
    num_envs, batch = args.num_envs, args.num_envs * args.num_steps
    one_update = update_seconds(args, effort)
    stream = dataclasses.replace(args.stream, period=num_envs).make(num_envs, seed, args.device)
    stream.reset()
    actions = np.zeros(num_envs, dtype=np.int64)
    stream.step(actions)
    audited, start = stream.audit_seconds, time.perf_counter()
    switches = max(4, effort.updates // 2)
    for _ in range(switches):
        stream.step(actions)
    spent = (time.perf_counter() - start) / switches
    stream.close()
    return spent, (stream.audit_seconds - audited) / switches, one_update * period / batch


def memory_of_switches(few: int, many: int) -> float:
    """Growth in MiB of the process's peak memory between two numbers of switches."""
    stream = dataclasses.replace(ppo.Args().stream, id="cartpole-gravity", period=2).make(2)
    stream.reset()
    peaks = []
    for switch in range(1, many + 1):
        stream.step(np.zeros(2, dtype=np.int64))
        if switch in (few, many):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    stream.close()
    return peaks[1] - peaks[0]


# Seconds before training, and percent of a task's time at its switch.
START_TARGET, AUDIT_TARGET = 5.0, 1.0


def checks(bench: Bench, effort: Effort) -> str:
    """The cost of the checks of every shipped stream: engine, repeatability and audit."""
    rows, starts, shares = [], [], []
    effort = dataclasses.replace(effort, updates=max(2, effort.updates // 10))
    for preset in tqdm(switching_presets(), desc="checks", leave=False):
        args = preset_args(preset, 0, bench)
        period = args.stream.schedule().period
        assert period is not None
        stream = args.stream.make(args.num_envs, args.seed, args.device)
        stream.reset()
        starts.append(stream.audit_seconds)
        stream.close()
        few = dataclasses.replace(effort, updates=2) if preset.startswith("atari") else effort
        _, audit, training = switch_and_period(preset, 0, period, bench, few)
        shares.append(100 * audit / training)
        rows.append([preset, f"{period:,}", f"{starts[-1]:.2f}", f"{1e3 * audit:.0f}", f"{shares[-1]:.2f}"])
    header = ["stream", "period", "before training, s", "at a switch, ms", "share of the task, %"]
    return "\n".join(
        [
            "Wall time of all checks of a stream: whether the engine can step it, whether it can be resumed",
            "exactly, and the audit. The share is of the time in which PPO trains on the task.",
            "",
            table(header, rows),
            "",
            verdict("checks before training", max(starts), START_TARGET, "s"),
            verdict("checks at a switch", max(shares), AUDIT_TARGET),
        ]
    )


def switching_presets() -> list[str]:
    """Presets of PPO on shipped streams that switch, as far as their packages are installed."""
    needs = {"atari": "ale_py", "lunarlander": "Box2D"}
    lacking = tuple(name for name, package in needs.items() if not importlib.util.find_spec(package))
    presets = {name: override(ppo.Args(), values).stream for name, values in PRESETS.items()}
    usable = {name: stream for name, stream in presets.items() if not name.startswith(lacking)}
    return [name for name, stream in usable.items() if stream.schedule().period is not None]


SAVED_PRESETS = ("cartpole-rotations", "grid-layouts-small")
# Percent of the time of a PPO run.
CHECKPOINT_TARGET = 1.0
# Seconds that flushing a replay memory may add to a checkpoint.
FLUSH_TARGET = 0.2


def checkpoint(bench: Bench, effort: Effort) -> str:
    """The share of checkpoints in the time of PPO runs, and the cost of flushing a replay memory."""
    rows, verdicts = [], []
    every = ppo.Args().checkpoint_every
    # Presets alternate, so that a slowdown of the machine affects all of them.
    runs = list(itertools.product(range(effort.runs), SAVED_PRESETS))
    costs = [save_and_update(preset, seed, bench, effort) for seed, preset in tqdm(runs, "PPO", leave=False)]
    for preset, cost in zip(SAVED_PRESETS, np.array(costs).reshape(effort.runs, -1, 3).swapaxes(0, 1)):
        args = preset_args(preset, 0, bench)
        intervals = cost[:, 1] * every / (args.num_envs * args.num_steps)
        shares = 100 * cost[:, 0] / (cost[:, 0] + intervals)
        row = [preset, str(effort.runs), f"{np.median(cost[:, 2]) / 1e6:.2f}", ms(cost[:, 0]), ms(intervals)]
        rows.append([*row, percent(shares, ".2f")])
        verdicts.append(verdict(f"checkpoints in {preset}", float(np.median(shares)), CHECKPOINT_TARGET))
    header = ["preset", "runs", "size, MB", "one checkpoint, ms", f"{every:,} steps, ms", "share, %"]
    lines = [
        f"Share of checkpoints, one every {every:,} steps, in the wall time of PPO runs. This includes an",
        f"update's logging and NaN check; files are synchronized to the disk of {tempfile.gettempdir()}.",
        "",
        *(table(header, rows), "", *verdicts, "", *_replay_memory(effort)),
    ]
    return "\n".join(lines)


def save_and_update(preset: str, seed: int, bench: Bench, effort: Effort) -> tuple[float, float, float]:
    """Wall seconds of a checkpoint and of an update in a PPO run, and the checkpoint's size in bytes."""
    args = preset_args(preset, seed, bench)
    every = max(1, effort.updates // 10)
    args = dataclasses.replace(args, checkpoint_every=every * args.num_envs * args.num_steps)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(args, Path(folder), effort.updates)
        newest = max(Path(folder).rglob("step_*"))
        size = sum(path.stat().st_size for path in newest.iterdir())
    return seconds["save"] / (effort.updates // every), updating(seconds) / effort.updates, size


def _replay_memory(effort: Effort) -> list[str]:
    seconds, size = time_replay_memory(effort.transitions, 5 * effort.repeats[0])
    seconds["extra"] = seconds["add"] - seconds["add to tensors"] + seconds["flush"]
    new, repeats = effort.transitions // 10, len(seconds["add"])
    cells = [[name, ms(lap[:, CPU]), ms(lap[:, WALL])] for name, lap in seconds.items()]
    flush = float(np.median(seconds["flush"][:, WALL]))
    return [
        f"A replay memory of {effort.transitions:,} frames of 84x84 bytes, {size / 1e6:,.0f} MB on disk:",
        f"{new:,} are added, 16 at a time, and flushed for a checkpoint; extra is the cost beyond tensors.",
        "",
        table([f"{repeats} repeats", "ms CPU", "ms wall"], cells),
        "",
        verdict(f"flush of {new:,} frames", flush, FLUSH_TARGET, "s"),
    ]


def time_replay_memory(capacity: int, repeats: int) -> tuple[dict[str, np.ndarray], int]:
    """Seconds of adding a tenth of the capacity, to tensors and on disk, and of the flush; and the file size.

    The first pass over the files, in which the system allocates disk space, is not timed.
    """
    new, at_once = capacity // 10, 16
    frames = torch.randint(256, (64, at_once, 84, 84), dtype=torch.uint8)
    actions, rewards = torch.zeros(at_once, dtype=torch.int64), torch.zeros(at_once)
    running = torch.zeros(at_once, dtype=torch.bool)
    spaces = gym.spaces.Box(0, 255, (84, 84), np.uint8), gym.spaces.Discrete(18)

    with tempfile.TemporaryDirectory() as folder:
        in_tensors = ReplayMemory(capacity, at_once, *spaces)
        on_disk = ReplayMemory(capacity, at_once, *spaces, folder=Path(folder), interval=new)
        for memory in (in_tensors, on_disk):
            memory.open()

        def add(memory: ReplayMemory) -> None:
            for step in range(new // at_once):
                now, then = frames[step % 64], frames[(step + 1) % 64]
                memory.add(now, actions, rewards, running, running, then)

        arms: dict[str, Callable[[], object]] = {
            "add to tensors": functools.partial(add, in_tensors),
            "add": functools.partial(add, on_disk),
            "flush": on_disk.flush,
        }
        first_time = math.ceil(on_disk.places * at_once / new)
        total = np.zeros((len(arms), first_time + repeats, 2))
        for repeat in tqdm(range(first_time + repeats), "replay memory", leave=False):
            for arm, call in enumerate(arms.values()):
                start = clocks()
                call()
                total[arm, repeat] = np.subtract(clocks(), start)
    return dict(zip(arms, total[:, first_time:])), on_disk.size


GRIDS = ("DoorKey-8x8", "Empty-8x8", "FourRooms", "LavaCrossingS9N2", "MultiRoom-N6")


def grid(bench: Bench, effort: Effort) -> str:
    """MiniGrid on tensors against the minigrid package and, if installed, EnvPool's C++ port."""
    rows, ratios, costs = [], {}, {}
    effort = dataclasses.replace(effort, budget=effort.budget / 3)
    for name in GRIDS[: len(effort.grids) * 2]:
        more = effort.more_grids if name == GRIDS[0] else ()
        for count in sorted((*effort.grids, *more)):
            arms = grid_arms(f"MiniGrid-{name}-v0", count)
            seconds = alternate(arms, effort, label=f"{name}, {count:,}")
            steps = {arm: 1 if arm == "package" else count for arm in arms}
            rates = {arm: steps[arm] / seconds[arm][:, CPU] for arm in arms}
            row = [name, f"{count:,}", *(thousands(rates[arm]) if arm in rates else "-" for arm in PLAYERS)]
            costs[name, count] = float(np.median(1e6 / rates["tensors"]))
            for arm in PLAYERS[1:]:
                ratio = rates["tensors"] / rates[arm] if arm in rates else np.full(1, np.nan)
                ratios[name, count, arm] = float(np.median(ratio))
                row.append(percent(ratio, ".1f") if arm in rates else "-")
            rows.append(row)
    header = ["", "environments", *(f"{arm}, thousands" for arm in PLAYERS), "to EnvPool", "to the package"]
    at = GRIDS[0], 1024
    lines = [
        f"{name}: {ratios[(*at, arm)]:.1f} times as fast on {at[0]}, {at[1]:,} environments; target {target}"
        for arm, name, target in (("EnvPool", "EnvPool", 2), ("package", "the package", 35))
        if math.isfinite(ratios.get((*at, arm), math.nan))
    ]
    if effort.more_grids:
        few = {count: ratios[GRIDS[0], count, "package"] for count in effort.more_grids if count <= 16}
        slowest = min(few, key=few.__getitem__)
        many = {count: cost for (name, count), cost in costs.items() if name == GRIDS[0] and count >= 256}
        lines += [
            f"with few environments: {few[slowest]:.1f} times the package at worst, at {slowest}",
            "microseconds of a step of one environment: "
            + ", ".join(f"{cost:.2f} at {count:,}" for count, cost in sorted(many.items())),
            f"bytes of one environment: {grid_bytes(GRIDS[0]):,}",
        ]
    return "\n".join(
        [
            "Steps per second of CPU time, random actions, images of the agent's view; median and quartiles.",
            "On tensors, one of 256 layouts is replaced every 16 steps of all environments, included here;",
            "EnvPool and the package make a new layout for every episode. The package steps one environment.",
            "",
            table(header, rows),
            "",
            *lines,
        ]
    )


def grid_bytes(name: str) -> int:
    """Bytes of memory per additional environment, for state and observations."""
    sizes: list[int] = []
    for count in (1, 2):
        envs = StreamConfig(f"MiniGrid-{name}-v0").make(count, device="cpu").engine
        assert isinstance(envs, GridEngine)
        envs.reset()
        held = itertools.chain(vars(envs).values(), vars(envs.board).values())
        tensors = (value for value in held if isinstance(value, torch.Tensor))
        kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        sizes.append(sum(kept.values()) + sum(of_task.nbytes for of_task in envs.episodes.values()))
    return sizes[1] - sizes[0]


PLAYERS = ("tensors", "EnvPool", "package")


def grid_arms(id: str, count: int) -> dict[str, Callable[[], object]]:
    """Functions that step ``count`` environments once, with resets; that of the package steps only one."""

    def make(k: int, seed: int) -> gym.Env:
        return ImgObsWrapper(gym.make(id, disable_env_checker=True))

    one, rng = make(0, 0), np.random.default_rng(0)
    assert isinstance(one.action_space, gym.spaces.Discrete)
    actions = rng.integers(one.action_space.n, size=(64, count))
    turn = {arm: itertools.cycle(actions) for arm in PLAYERS}

    envs = GridEngine(make, (one.observation_space, one.action_space), count)
    envs.enter(Schedule(), 0)
    envs.reset()
    tensors = itertools.cycle(torch.as_tensor(actions))

    def step_tensors() -> None:
        envs.begin_step()
        _, terminated, truncated, _ = envs.step(next(tensors))
        done = terminated | truncated
        if done.any():
            envs.reset(done)

    one.reset(seed=0)

    def step_one() -> None:
        _, _, terminated, truncated, _ = one.step(next(turn["package"])[0])
        if terminated or truncated:
            one.reset()

    arms: dict[str, Callable[[], object]] = {"tensors": step_tensors, "package": step_one}
    if importlib.util.find_spec("envpool"):
        import envpool

        pool = envpool.make_gymnasium(id, num_envs=count, num_threads=1, seed=0)
        pool.reset()
        arms["EnvPool"] = lambda: pool.step(next(turn["EnvPool"]))
    return arms


def thousands(rates: np.ndarray) -> str:
    """Median and quartiles of rates, in thousands, three digits each."""
    median, low, high = (f"{float(f'{value / 1e3:.3g}'):g}" for value in quartiles(rates))
    return f"{median} ({low} to {high})"


def trainings(bench: Bench, effort: Effort) -> list[tuple[peers.Training, float]]:
    """The trainings, and the target of how many times as fast as the others neoteny is; 0 for none."""
    import peers

    if bench.task == "atari":
        count = 8 if not bench.quick else effort.trainings[0]
        return [
            (peers.Training("atari", count), 0.0),
            (peers.Training("atari", count, "bf16"), 1.8),
            (peers.Training("atari", count, agent="dqn"), 0.0),
            (peers.Training("atari", count, "bf16", "dqn"), 1.5),
        ]
    targets = {
        ("flat", 16): 4.0, ("flat", 64): 6.0, ("flat", 256): 10.0, ("image", 16): 2.0, ("image", 256): 2.0,
    }  # fmt: skip
    views: tuple[Literal["flat", "image"], ...] = ("flat", "image")
    chosen = [
        (peers.Training(view, count), targets.get((view, count), 0.0))
        for view in views
        for count in effort.trainings
    ]
    return chosen + [(peers.Training("image", n, "bf16"), 3.0 * (n == 256)) for n in effort.trainings[-2:]]


def train_beside_peers(bench: Bench, effort: Effort) -> str:
    """Train PPO and DQN with neoteny, a plain loop and, if installed, Stable-Baselines3."""
    import peers

    rows, verdicts, names = [], [], list(peers.trainers(peers.Training("flat", 1)))
    for training, target in trainings(bench, effort):
        updates = max(1, min(effort.updates, (4096 if bench.task == "atari" else 8192) // training.batch))
        rates: dict[str, list[float]] = {name: [] for name in peers.trainers(training)}
        order = random.Random(0)
        for _ in tqdm(range(effort.runs), f"{training.name}, {training.num_envs}", leave=False):
            for name in order.sample(list(rates), len(rates)):
                seconds = peers.trainers(training)[name](training, updates)[:, CPU]
                rates[name].append(training.batch * len(seconds) / float(seconds.sum()))
        row = [training.name, f"{training.num_envs:,}", str(training.num_steps)]
        row += [thousands(np.array(rates[name])) if name in rates else "-" for name in names]
        for name in names[1:]:
            ratio = np.divide(rates["neoteny"], rates.get(name, math.nan))
            row.append(percent(ratio, ".1f") if name in rates else "-")
            if target and name in rates:
                holds = "holds " if np.median(ratio) >= target else "MISSED"
                label = f"{training.name}, {training.num_envs:,} environments: {np.median(ratio):.1f} times"
                verdicts.append(f"{holds}  {label} {name}, target {target:g}")
        rows.append(row)
    header = ["", "environments", "steps", *(f"{name}, thousands" for name in names)]
    header += [f"to {name}" for name in names[1:]]
    return "\n".join(
        [
            f"Steps of {peers.NAMES[bench.task]} per second of CPU time in training, with the same networks",
            "and the same number of environments, steps, epochs, minibatches and gradient steps. Median and",
            f"quartiles of {effort.runs} runs each. In rows with bf16, only neoteny uses it.",
            "",
            table(header, rows),
            "",
            *verdicts,
            *(emulators(effort) if bench.task == "atari" else ()),
        ]
    )


def emulators(effort: Effort) -> list[str]:
    """Speed of the stream relative to that of the bare emulator."""
    import ale_py
    import peers

    count, steps = 8, 20 * effort.updates
    stream = peers.Training("atari", count).stream.make(count, device="cpu")
    stream.reset()
    emulator = ale_py.ALEInterface()
    emulator.loadROM(str(ale_py.roms.get_rom_path("breakout")))
    actions = torch.randint(18, (steps, count))

    def play(step: int) -> None:
        stream.step(actions[step])

    def act(step: int) -> None:
        for _ in range(4 * count):
            emulator.act(0)
        if emulator.game_over():
            emulator.reset_game()

    seconds = {}
    for name, call in (("stream", play), ("emulator", act)):
        start = clocks()
        for step in range(steps):
            call(step)
        seconds[name] = np.subtract(clocks(), start)[CPU]
    stream.close()
    share = seconds["emulator"] / seconds["stream"]
    rates = {name: count * steps / value for name, value in seconds.items()}
    return [
        "",
        f"The stream alone makes {rates['stream']:,.0f} steps per second of CPU time, {100 * share:.0f} % of",
        f"the {rates['emulator']:,.0f} steps of four frames that the emulator makes without rendering them.",
    ]


BENCHMARKS: dict[str, Callable[[Bench, Effort], str]] = {
    "optim": optim,
    "methods": methods,
    "orthogonal": orthogonal,
    "probes": probes,
    "streams": streams,
    "checks": checks,
    "checkpoint": checkpoint,
    "grid": grid,
    "train": train_beside_peers,
}


def machine() -> str:
    """Processor, load and versions, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{model}, {os.cpu_count()} cores{load}; {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}"
    )


def main(bench: Bench) -> int:
    """Run one benchmark and print its tables."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(bench.threads)
    torch.manual_seed(0)
    started = time.perf_counter()
    quick = " --quick" if bench.quick else ""
    task = f" --task {bench.task}" if bench.name == "train" else ""
    print(f"$ python scripts/bench.py {bench.name}{task} --threads {bench.threads}{quick}\n{machine()}\n")
    if bench.quick:
        print("A smoke test: the numbers are meaningless.\n")
    print(BENCHMARKS[bench.name](bench, QUICK if bench.quick else Effort()))
    print(f"\n{time.perf_counter() - started:.0f} s")
    torch.set_num_threads(threads_before)
    return 0


if __name__ == "__main__":
    launch_script(main, Bench)
