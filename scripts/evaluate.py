"""Play the policy of a run, finished or running, on the tasks of its stream, without learning.

neoteny evaluate runs/cartpole-rotations/ppo/adamo/s1 --episodes 50 --gif policy.gif
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import nn
from tqdm import tqdm

from neoteny.configs.cli import launch_script, read_args, script_args
from neoteny.envs.config import StreamConfig
from neoteny.envs.engine import first_tasks
from neoteny.envs.registry import import_typed
from neoteny.envs.single.engine import SingleConfig
from neoteny.envs.stream import Stream
from neoteny.envs.typed import Typed
from neoteny.optim.injection import inject_as_saved
from neoteny.runners.disk.appended import VISITS, read_rows
from neoteny.runners.disk.checkpoint import DamagedError, checkpoints, read_checkpoint
from neoteny.runners.disk.exit_codes import bad_input, check_numbers
from neoteny.runners.disk.files import replace_file, write_json
from neoteny.runners.disk.folder import check_file
from neoteny.runners.disk.messages import tell, tolerant, warn
from neoteny.runners.evaluation import LONGEST, Act, Played, play
from neoteny.runners.sources import Sources
from neoteny.runners.video import record_episodes
from neoteny.runners.weights import load_policy
from neoteny.scripts.agent_files import agent_names, load_agent

OBSERVED = ("wrap", "observations", "channels", "normalizer", "task_id")
"""Flags of a stream on which the policy's input depends."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play the policy of a run, finished or running, on the tasks of its stream, without learning."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    task: int | None = None
    """Number of the only task to play; by default all of the stream, or those of the run if none recurs."""
    episodes: int = 20
    """Complete episodes of each task."""
    gif: Path | None = None
    """File for a video of the first episode of the first task."""
    json: Path | None = None
    """File for the returns and lengths of all episodes."""
    stream: Typed = ""
    """module:id of the run's stream, if it is your own; or another stream of the same spaces, to play on."""
    modules: tuple[str, ...] = ()
    """Modules of your own with wrappers or methods of the run: a run folder alone imports nothing."""
    agent: str | None = None
    """File of the run's agent, if it is your own."""
    device: str = "cpu"
    """Device of the network: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        check_numbers(self, ("episodes",), at_least=1, at_most=10**6)


class Policy(NamedTuple):
    """The policy of a run."""

    agent: nn.Module
    act: Act
    """Observations (B, ...), as from ``stream.preprocess`` -> actions (B, ...), as in training."""
    stream: Stream
    """With the tasks, the preprocessing and the normalizer's statistics of the run."""
    args: Any
    step: int
    """Environment steps of training."""

    def play(self, task: int, episodes: int = 20, **options: Any) -> Played:
        """Play complete episodes of a task without learning; ``options`` are those of `evaluation.play`."""
        return play(self.stream, self.act, episodes, (*b"evaluation", task), task, **options)


def load(
    folder: Path | str, agent: str | None = None, stream: str | None = None, device: str = "cpu"
) -> Policy:
    """The policy of a run: the final one, or that of the latest checkpoint.

    A stream, wrapper or method of the user's own must have been imported.

    Args:
        folder: of the run.
        agent: file of the run's agent, if it is the user's own.
        stream: id of another stream to play on.
        device: of the network.

    Raises:
        SystemExit: code 2, if the folder does not hold the arguments of a run.
        ValueError: agent, stream and weights do not fit together, or there are no weights yet.
    """
    folder = Path(folder)
    module = load_agent(agent or shipped_agent(folder))
    if not hasattr(module, "make_policy"):
        raise ValueError(f"{module.__name__} plays no episodes: it has no make_policy")
    _check_code(folder, Path(module.__file__ or ""))
    args: Any = read_args(module.Args, folder / "args.json", {"device": device})
    own = args.stream
    config = dataclasses.replace(own, audit="off", single=SingleConfig())
    if stream not in (None, own.id):
        config = StreamConfig(stream, audit="off", **{name: getattr(own, name) for name in OBSERVED})
    made = config.make(1, args.seed, device)
    network, act = module.make_policy(args, made)
    try:
        step = _restore(folder, network, made)
    except RuntimeError as error:
        raise ValueError(f"the weights of {folder} do not fit the agent: {error}") from error
    return Policy(network, act, made, args, step)


def shipped_agent(folder: Path) -> str:
    """The agent that a run's arguments name; ValueError if it is none of neoteny's."""
    args = _known(folder, "args.json")
    if not args:
        raise ValueError(f"{folder} is not the folder of a run")
    name = str(args.get("agent"))
    if name not in agent_names():
        raise ValueError(f"there is no agent {name!r}; name its file by --agent")
    return name


def _restore(folder: Path, network: nn.Module, stream: Stream) -> int:
    """Load the latest weights of a run; returns its steps so far."""
    summary = _known(folder, "summary.json")
    if summary:
        load_policy(folder / "checkpoint" / "weights.safetensors", network, stream)
        return int(summary["visits"][-1]["end"])
    for path in reversed(checkpoints(folder / "checkpoint")):
        try:
            state = read_checkpoint(path)
        except DamagedError:  # or removed meanwhile by the running run
            continue
        inject_as_saved(network, state["parts"]["agent"])
        network.load_state_dict(state["parts"]["agent"])
        stream.load_statistics(state["parts"]["stream"]["preprocessing"])
        return int(state["step"])
    raise ValueError(f"{folder} holds no weights yet")


def _known(folder: Path, name: str) -> dict[str, Any]:
    """The contents of a JSON file of a run; empty if there is none."""
    try:
        content = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_code(folder: Path, file: Path) -> None:
    """Warn if the agent's file is not the one that trained."""
    before = _known(folder, "meta.json").get("code", {}).get("agent")
    if before not in (None, Sources(file).agent):
        warn(f"warning: {file.name} was changed since the run, or is another agent")


def tasks_of(policy: Policy, folder: Path) -> list[int]:
    """The recurring tasks of the policy's stream; without any those that the run has visited."""
    if cycle := policy.stream.schedule.cycle:
        return sorted(set(cycle))
    visited = {int(visit["task"]) for visit in read_rows(folder / VISITS)}
    return sorted(visited) or first_tasks(policy.stream.schedule)


def interval(returns: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over episodes: 1.96 standard errors; NaN for one."""
    values = torch.as_tensor(returns, dtype=torch.float64)
    return float(1.96 * values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def table(played: dict[int, Played]) -> str:
    """A Markdown table with a row per task."""
    rows = [
        (str(task), f"{each.returns.mean():.2f}", f"{interval(each.returns.tolist()):.2f}",
         f"{each.lengths.mean():.1f}", str(len(each.returns)))
        for task, each in played.items()
    ]  # fmt: skip
    header = ("task", "mean return", "± 95 %", "mean length", "episodes")
    lines = [[cell.ljust(len(name)) for name, cell in zip(header, row)] for row in (header, *rows)]
    lines.insert(1, ["-" * len(name) for name in header])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(args: Evaluate) -> int:
    """Play and print the table."""
    with bad_input():
        for path in filter(None, (args.gif, args.json)):
            check_file(path)
        for name in args.modules:
            import_typed(f"{name}:")
        policy = load(args.folder, args.agent, args.stream or None, args.device)
        tasks = tasks_of(policy, args.folder)
        if args.task is not None:
            if args.task < 0 or (policy.stream.schedule.cycle and args.task not in tasks):
                raise ValueError(f"--task must be one of {', '.join(map(str, tasks))}, not {args.task}")
            tasks = [args.task]
    torch.set_num_threads(policy.args.threads)
    for path in filter(None, (args.gif, args.json)):
        path.parent.mkdir(parents=True, exist_ok=True)
    played: dict[int, Played] = {}
    for task in tqdm(tasks, unit="task", file=tolerant(sys.stderr), disable=len(tasks) == 1):
        if args.gif and task == tasks[0]:
            options = {"key": (*b"evaluation", task), "task": task}
            gif, played[task] = record_episodes(policy.stream, policy.act, args.episodes, **options)
            replace_file(args.gif, gif)
        else:
            played[task] = policy.play(task, args.episodes)
    policy.stream.close()
    tell(f"{args.folder} after {policy.step:,} steps, on {policy.stream.schedule}\n\n{table(played)}")
    for task, each in played.items():
        if cut := int((~each.complete).sum()):
            warn(f"warning: {cut} episodes of task {task} were cut after {LONGEST:,} steps")
    if args.json:
        rows = {
            str(task): {"mean": float(each.returns.mean()), "interval": interval(each.returns.tolist()),
                        "returns": each.returns.tolist(), "lengths": each.lengths.tolist()}
            for task, each in played.items()
        }  # fmt: skip
        write_json(args.json, {"folder": args.folder, "step": policy.step, "tasks": rows})
    return 0


def run(words: Sequence[str]) -> int:
    """Evaluate with the words of a command line; returns the exit code."""
    return main(script_args(Evaluate, words))


if __name__ == "__main__":
    launch_script(main, Evaluate)
