"""References: freshly initialized agents that are trained on one task each, with the budget of one visit.

A reference is an ordinary run on one task of a stream, of as many steps as a visit, with the seed of the
continual run, since the seed decides what a task is. The plasticity gap of a visit is the return of the
reference less that of the continual run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoteny.optim import AdamConfig, methods_as_dict
from neoteny.runners.disk.claims import claim
from neoteny.runners.disk.files import flatten, read_json, to_json, write_json
from neoteny.runners.identity import resumable
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.sources import Sources, version

FOLDER = "references"  # in the folder of all runs
WATCHING = ("video_every", "evaluate_at_switch")  # flags of what watches a run, 0 for a reference


def tasks_of(args: Any) -> list[int]:
    """The distinct tasks that a run visits, in the order of their first visits."""
    schedule = dataclasses.replace(args.stream.schedule(), seed=args.seed)
    visits = schedule.visit_at(args.total_steps - 1) + 1 if hasattr(args, "total_steps") else args.num_tasks
    return list(dict.fromkeys(map(schedule.task_of, range(visits))))


def reference_args(args: Any) -> Any:
    """The arguments of the references of a run, but for task, seed and note.

    Neither probes nor videos, no other tasks; what remains is what the agent, its tasks and the machine are.

    Raises:
        ValueError: its stream never switches, or a visit is shorter than an update.
    """
    period = args.stream.schedule().period
    if period is None:
        raise ValueError(f"references are for streams that switch, and {args.stream.id} never does")
    tasks = args.stream.tasks if _is_onehot(args.stream) else None  # which needs to know their number
    one_visit = {"tasks": tasks, "cycles": None, "order": "cycle", "jitter": 0.0, "drift_fraction": None}
    of_stream = {name: value for name, value in one_visit.items() if hasattr(args.stream, name)}
    supervised = not hasattr(args, "total_steps")
    return dataclasses.replace(
        args,
        **({"num_tasks": 1} if supervised else {"total_steps": min(args.total_steps, period)}),
        stream=dataclasses.replace(args.stream, **of_stream, audit="off"),
        probes=ProbeConfig(every=0),
        overwrite=False,
        runs_dir=args.runs_dir / FOLDER,
        note="",
        seed=1,
        **{name: 0 for name in WATCHING if hasattr(args, name)},
    )


def _is_onehot(stream: Any) -> bool:
    """Whether observations have a one-hot task id, which is as long as there are tasks."""
    return getattr(stream, "task_id", None) == "onehot"


def base_args(args: Any) -> Any:
    """The arguments of a run with Adam and without methods."""
    return dataclasses.replace(args, optim=AdamConfig(), methods=())


def with_task(args: Any, of_run: Any, task: int, code: Mapping[str, Any]) -> Any:
    """The arguments of the reference for one task.

    Args:
        args: as from :func:`reference_args`.
        of_run: arguments of the continual run.
        task: number of the task.
        code: as from :func:`code_of`.
    """
    tasks: tuple[int, ...] = (task,)
    if _is_onehot(args.stream):  # only the first task is met
        tasks += tuple(each for each in dict.fromkeys(of_run.stream.schedule().cycle) if each != task)
    args = dataclasses.replace(args, stream=dataclasses.replace(args.stream, tasks=tasks))
    return dataclasses.replace(args, note=f"task{task}-{hash_of(args, code)}", seed=of_run.seed)


def task_words(args: Any) -> list[str]:
    """The flags in which the references of a run differ."""
    tasks = map(str, args.stream.tasks)
    return ["--stream.tasks", *tasks, "--seed", str(args.seed), "--note", args.note]


def code_of(agent_file: Path) -> dict[str, Any]:
    """Hashes of the agent's file and of the user's modules that are imported, and neoteny's version."""
    sources = Sources(agent_file)
    # The script that is running is under another name.
    modules = {name: digest for name, digest in sources.modules.items() if name in sys.modules}
    return {"agent": sources.agent, "modules": modules, "version": version("neoteny")}


def hash_of(args: Any, code: Mapping[str, Any]) -> str:
    """A hash of all that a reference depends on besides its seed: its arguments and the code."""
    config = {
        **dataclasses.asdict(args),
        "methods": methods_as_dict(args.methods),
        "optim.name": args.optim.name,
    }
    free = (*resumable(args), "seed.", "note.")
    used = {
        name: value for name, value in flatten(to_json(config)).items() if not f"{name}.".startswith(free)
    }
    used["total_steps"] = getattr(args, "total_steps", None)
    return hashlib.sha256(json.dumps([used, code], sort_keys=True).encode()).hexdigest()[:10]


def write_references(run: Path, references: Mapping[str, Mapping[int, Path]]) -> None:
    """Write ``references.json`` into the folder of a continual run, if it is not there.

    What another sweep has claimed is left to that sweep.

    Args:
        run: folder of the run.
        references: kind -> number of the task -> folder of its reference.

    Raises:
        OSError: it cannot be written.
    """
    paths = {
        kind: {str(task): os.path.relpath(folder, run) for task, folder in folders.items()}
        for kind, folders in references.items()
    }
    if read_json(run / "references.json") != paths and (held := claim(run)) is not None:
        try:
            write_json(run / "references.json", paths)
        finally:
            held.release()
