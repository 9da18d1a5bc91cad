"""The runs that scripts/faults.py disturbs: agents, streams, optimizers, methods and their faults."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper

from neoteny.configs.cli import cli
from neoteny.envs import stream, wrappers
from neoteny.envs.audit import set_parameters
from neoteny.optim import METHODS
from neoteny.runners.disk.folder import run_folder
from neoteny.scripts.fault_processes import PLACES, POINTS

CHECKPOINTS = 8  # of a run


@stream("FaultyWrappers-v0", period=700, tasks=3)
def faulty_wrappers(k: int, seed: int) -> gym.Env:
    """CartPole with wrappers that have random or other state: drifting gravity, noise, failing actions."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    rules = {"gravity": wrappers.RandomWalk(0.05)}
    env = wrappers.drift(env, rules, seed=(seed, k))
    env = wrappers.noisy_observations(env, 0.01 * (k + 1), seed=seed)
    return wrappers.fail_actions(env, 0.1 * (k + 1), seed=seed)


@stream("FaultyMemory-v0", period=700, tasks=3)
def faulty_memory(k: int, seed: int) -> gym.Env:
    """CartPole with rewards divided by a standard deviation that is estimated over all episodes."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.NormalizeReward(env)


@stream("FaultyNoise-v0", period=700)
def faulty_noise(k: int, seed: int) -> gym.Env:
    """CartPole whose rewards come from the global generator."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.TransformReward(env, lambda reward: float(reward) + random.random())


@stream("FaultyCode-v0", period=700)
def faulty_code(k: int, seed: int) -> gym.Env:
    """CartPole that pays what a file says, which is changed between a stop and a resume."""
    pay = importlib.import_module(CODE).PAY
    env = gym.make("CartPole-v1", disable_env_checker=True)
    set_parameters(env, {"gravity": 9.8 * (k + 1)})
    return gym.wrappers.TransformReward(env, lambda reward: pay * float(reward))


class Room(MiniGridEnv):
    """A user's class of MiniGrid: a room with a few walls at random places, which runs on tensors."""

    def __init__(self, walls: int) -> None:
        self.walls = walls
        super().__init__(MissionSpace(lambda: "reach the goal"), grid_size=7, max_steps=60)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.mission = "reach the goal"
        self.put_obj(Goal(), width - 2, height - 2)
        self.agent_pos, self.agent_dir = (1, 1), self._rand_int(0, 4)
        for _ in range(self.walls):
            self.put_obj(Wall(), self._rand_int(2, width - 1), self._rand_int(1, height - 2))


@stream("FaultyRooms-v0", period=700, tasks=3)
def faulty_rooms(k: int, seed: int) -> gym.Env:
    """Rooms with more and more walls."""
    return ImgObsWrapper(Room(walls=2 * k + 1))


STOPPED = "stopped, overtaken, woken"
TOGETHER = "three started at once"
FOREIGN = "written to by another process at the end"
UNREAD = "SIGTERM, with messages that nobody reads"
POISON = ("poisoned reward", "poisoned observation")
# Faults of a run that goes on afterwards, and those that need or bring its end.
MIDWAY = (
    STOPPED, UNREAD, *POISON,
    *(f"{kind} {place}" for kind in ("SIGKILL", STOPPED) for place in PLACES if "finish" not in place),
    *(f"{STOPPED} {point}" for point in POINTS),
)  # fmt: skip
AT_END = (
    TOGETHER,
    FOREIGN,
    *(f"{kind} {place}" for kind in ("SIGKILL", STOPPED) for place in PLACES if "finish" in place),
)
FAULTS = ("SIGKILL", "SIGTERM", *POINTS, *MIDWAY, *AT_END)

# The module that FaultyCode-v0 imports, in the folder of each case.
CODE = "faulty_pay"

# Streams whose sub-environments run in worker processes, which are killed and stopped too; the undisturbed
# run has no workers.
IN_WORKERS = {"acrobot-jumps", "grid-goals"}
WORKER_FAULTS = {"worker killed": signal.SIGKILL, "worker stopped": signal.SIGSTOP}

# Streams and agents of the runs, with flags for each.
STREAMS = {
    "cartpole-rotations": "",
    "cartpole-drift": "--stream.normalizer keep",
    "acrobot-jumps": "--stream.normalizer reset --stream.jitter 0.5",
    "mountaincar-drift": "",
    "FaultyWrappers-v0": "--stream.task-id onehot --stream.order random",
    "grid-layouts": "--stream.order random --stream.jitter 0.5",
    "grid-goals": "--stream.engine single",
    "grid-resampled-crossings": "",
    "grid-permuted-actions": "",
    "atari": "--stream.games Breakout Pong",
    "minatar": "--stream.observations vectors",
    "FaultyMemory-v0": "",
    "FaultyNoise-v0": "",
    "FaultyCode-v0": "",
    "FaultyRooms-v0": "",
}
AGENTS = {
    "ppo": "--num-steps 32 --epochs 2 --minibatches 2",
    "dqn": "--log-every 128 --train-every 16 --learning-starts 128 --batch-size 16 --buffer-size 1000 "
    "--n-step 3 --eps-steps 1000",
}
BOTH = {
    ("ppo", "mountaincar-drift"): "--anneal-lr",
    ("dqn", "grid-goals"): "--dueling --no-double",
    ("dqn", "cartpole-rotations"): "--eps-restart",
}
# What some methods refuse.
WITHOUT_METHODS = {
    ("ppo", "grid-goals"): "--shared-torso",
    ("ppo", "grid-permuted-actions"): "--network.activation maxmin",
    ("dqn", "grid-permuted-actions"): "--network.activation maxmin",
}
# The project's optimizers, and torch's, which a copied agent would use.
OURS = ("adamo", "adam", "muon", "adamw", "upgd", "muono", "trac")
TORCHS = ("NAdam", "ASGD", "Adafactor", "RMSprop", "Rprop", "Adagrad", "SGD", "RAdam", "Adamax", "Adadelta")
OPTIMIZERS = (*OURS, *TORCHS)
# Flags with which methods act several times in runs as short as these.
OF_METHODS = {
    "redo": "--methods.redo.every 7 --methods.redo.tau 0.5",
    "regrama": "--methods.regrama.every 7 --methods.regrama.tau 0.5",
    "snr": "--methods.snr.every 5 --methods.snr.longest 2",
    "continual_backprop": "--methods.continual-backprop.every 5 --methods.continual-backprop.rate 0.02 "
    "--methods.continual-backprop.maturity 7",
    "cpr": "--methods.cpr.every 7 --methods.cpr.rate 0.5",
    "reset": "--methods.reset.every 23",
    "shrink_perturb_every": "--methods.shrink-perturb-every.every 9",
    "hare_tortoise": "--methods.hare-tortoise.every 11 --methods.hare-tortoise.decay 0.9",
    "injection": "--methods.injection.after 21",
    "nap": "--methods.nap.every 3 --network.norm layer",
    "reorthogonalize": "--methods.reorthogonalize.every 7 --network.linear orthogonal",
}
# Those that set what AdamO's pull sets, or leave no weight to it.
NEED_ADAM = {"nap", "reorthogonalize", "isometry", "parseval", "spectral"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A run and its faults, one after the other."""

    agent: str
    stream: str
    optimizer: str
    seed: int
    steps: int
    faults: tuple[str, ...]
    method: str = ""

    @property
    def is_copied(self) -> bool:
        """Whether its optimizer is one of torch, as that of a copied agent may be."""
        return self.optimizer not in OURS

    def torch_optimizer(self, module: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        """Its optimizer, if it is one of torch."""
        return getattr(torch.optim, self.optimizer)(module.parameters(), lr=lr)

    def folder(self, args: Any) -> Path:
        """The folder of its run."""
        optimizer = self.torch_optimizer(torch.nn.Linear(1, 1), args.lr) if self.is_copied else None
        return run_folder(self.agent, args, optimizer)


def words_of(case: Case, runs_dir: Path, more: str = "") -> list[str]:
    """The command line of a short run with many switches, checkpoints and probes."""
    optimizer = case.optimizer if case.optimizer in OURS else "adam"
    others = WITHOUT_METHODS.get((case.agent, case.stream), "")
    if case.method:
        others = OF_METHODS.get(case.method, f"--methods.{case.method.replace('_', '-')}")
    words = (
        f"--stream.id {case.stream} optim:{optimizer} --seed {case.seed} --runs-dir {runs_dir} "
        f"--total-steps {case.steps} --checkpoint-every {case.steps // CHECKPOINTS} --num-envs 4 "
        f"--probes.every 5 "
        f"--network.hidden 32 32 --stream.period 700 {AGENTS[case.agent]} {STREAMS.get(case.stream, '')} "
        f"{BOTH.get((case.agent, case.stream), '')} {others} {more}"
    )
    if case.agent == "dqn" and case.seed % 4 < 2:
        words += " --memory disk"
    return words.split()


def arguments(case: Case, runs_dir: Path, more: str = "") -> Any:
    """The arguments of :func:`words_of`."""
    module = importlib.import_module(f"neoteny.agents.{case.agent}")
    return cli(module.Args, {}, words_of(case, runs_dir, more))


def write_code(runs_dir: Path, pay: float) -> None:
    """Write the module that FaultyCode-v0 imports."""
    (runs_dir / f"{CODE}.py").write_text(f"PAY = {pay}\n")


def cases(
    agents: Sequence[str],
    streams: Sequence[str],
    steps: int,
    seed: int,
    methods: bool,
    only: Sequence[str] = (),
) -> Iterator[Case]:
    """An endless sequence of cases over all agents, streams, optimizers and kinds of faults.

    Args:
        agents: their names.
        streams: their ids.
        steps: of each run.
        seed: of the order of the faults.
        methods: whether each run has a plasticity method.
        only: the faults of each run; by default all take turns.
    """
    rng = random.Random(seed)
    points, midway, at_end = (itertools.cycle(kinds) for kinds in (POINTS, MIDWAY, AT_END))
    kinds = list(itertools.product(agents, streams))
    for number in itertools.count():
        agent, id = kinds[number % len(kinds)]
        turn = number + number // len(kinds)
        method = sorted(METHODS)[turn % len(METHODS)] if methods else ""
        optimizers = ("adam", "adamw") if method in NEED_ADAM else OURS if method else OPTIMIZERS
        optimizer = optimizers[turn % len(optimizers)]
        chosen = ["SIGKILL", next(points), "SIGTERM", next(points), next(midway), next(midway)]
        rng.shuffle(chosen)
        chosen.append(next(at_end))
        yield Case(agent, id, optimizer, number + 1, steps, tuple(only or chosen), method)
