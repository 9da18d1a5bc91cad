"""Reproduce a crash by a NaN or an infinity, from a run's crash bundle.

python scripts/replay_crash.py runs/cartpole-rotations/ppo/adamo/s1/crash

It resumes from the last checkpoint before the crash, in a temporary folder. On the CPU, with the same build
of PyTorch, the run fails at the same step with the same values.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import shutil
import tempfile
from pathlib import Path

import tyro

import neoteny.agents
from neoteny.configs.cli import launch_script, read_args
from neoteny.envs.registry import import_typed
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop
from neoteny.runners.disk.folder import run_folder


@dataclasses.dataclass(frozen=True)
class ReplayCrash:
    """Reproduce a crash by a NaN or an infinity."""

    crash: tyro.conf.Positional[Path]
    """The crash/ folder of the run."""
    module: str = ""
    """Module that defines the run's stream, if it is user-defined; the crash bundle alone imports nothing."""


def main(replay: ReplayCrash) -> int:
    """Run it again; returns 0 if it failed in the same way."""
    try:
        before = json.loads((replay.crash / "crash.json").read_text())
        agent = json.loads((replay.crash / "args.json").read_text())["agent"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        stop(ExitCode.BAD_INPUT, f"{replay.crash} is no crash bundle: {error}")
    if agent not in {module.name for module in pkgutil.iter_modules(neoteny.agents.__path__)}:
        stop(ExitCode.BAD_INPUT, f"there is no agent {agent!r}")
    if replay.module:
        with bad_input():
            import_typed(f"{replay.module}:")
    module = importlib.import_module(f"neoteny.agents.{agent}")
    args = read_args(module.Args, replay.crash / "args.json")
    with tempfile.TemporaryDirectory() as runs_dir:
        changes = {"checkpoint_every": 0, "video_every": 0, "allow_code_change": True}
        args = dataclasses.replace(args, runs_dir=Path(runs_dir), **changes)
        folder = run_folder(agent, args)
        folder.mkdir(parents=True)
        shutil.copy(replay.crash / "args.json", folder)
        if (replay.crash / "checkpoint").exists():
            shutil.copytree(replay.crash / "checkpoint", folder / "checkpoint")
        if (replay.crash.parent / "replay").exists():  # too large to be copied into each crash bundle
            shutil.copytree(replay.crash.parent / "replay", folder / "replay")
        try:
            module.main(args)
        except SystemExit as exit:
            if exit.code == ExitCode.BROKEN:
                again = json.loads((folder / "crash" / "crash.json").read_text())
                same = again == before
                print(f"step {again['step']:,}: {', '.join(again['not_finite'])}")
                print("as before" if same else f"before: step {before['step']}: {before['not_finite']}")
                return int(not same)
            raise
    print("the run finished without a crash this time")
    return 1


if __name__ == "__main__":
    launch_script(main, ReplayCrash)
