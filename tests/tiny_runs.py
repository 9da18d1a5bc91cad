"""Tiny runs of PPO, 16 updates with a checkpoint after every fourth, and all that they leave."""

import collections
import dataclasses
import json
import os
import signal
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from neoteny.agents import ppo
from neoteny.agents.ppo import Args
from neoteny.configs.cli import cli
from neoteny.runners.disk.checkpoint import load_checkpoint
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.disk.preemption import NAMES
from tests.events import scalars
from tests.killed import Killed

ROOT = Path(__file__).resolve().parents[1]
BATCH, EVERY, TOTAL = 16, 64, 256  # steps of an update, between checkpoints, of a run
GOLDEN = ROOT / "tests" / "checkpoints"
FLAGS = (
    "--stream.id cartpole-rotations --stream.period 100 --num-envs 2 --num-steps 8 --minibatches 2 "
    f"--epochs 1 --network.hidden 16 16 --total-steps {TOTAL} --checkpoint-every {EVERY} --probes.every 5 "
    "--probes.no-pictures optim:adam"
)
BASE = cli(Args, {}, FLAGS.split())


def small(folder, **changes):
    """Arguments of a tiny run."""
    return dataclasses.replace(BASE, runs_dir=folder, **changes)


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]


def ending(args):
    """The exit code of a run; signals then do again what they did before."""
    before, code = handlers(), 0
    try:
        ppo.main(args)
    except SystemExit as exit:
        code = exit.code
    except Killed:
        code = -signal.SIGKILL
    assert handlers() == before
    return code


def send(name):
    """Let a run get a signal."""
    return lambda self: os.kill(os.getpid(), getattr(signal, name))


def points(folder):
    """Every point in the event files, superseded ones too, but for times: (tag, step, value) -> how often."""
    return collections.Counter(
        (value.tag, event.step, value.SerializeToString(deterministic=True))
        for path in event_files(folder)
        for event in map(Event.FromString, RawEventFileLoader(str(path)).Load())
        for value in event.summary.value
        if not value.tag.startswith(("time/", "_hparams_", "charts/SPS"))
    )


def outcome(args):
    """All that a finished run leaves, but for times."""
    folder = run_folder("ppo", args)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": (folder / "checkpoint" / "weights.safetensors").read_bytes(),
        "visits": (folder / "visits.jsonl").read_bytes(),
        "summary": {name: value for name, value in summary.items() if name != "seconds"},
        "points": points(folder),
        "scalars": {
            tag: values
            for tag, values in scalars(folder).items()
            if not tag.startswith(("time/", "charts/SPS"))
        },
    }


def saved(args):
    """The state in the last checkpoint of a run."""
    return load_checkpoint(run_folder("ppo", args) / "checkpoint")
