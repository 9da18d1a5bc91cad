"""Malformed command lines are refused in one sentence: a small part of scripts/malformed.py."""

import gc
import importlib
import random
import shutil
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest

import neoteny.envs.config  # noqa: F401  (registers all streams)
from neoteny.scripts import malformed
from neoteny.scripts.malformed_lines import RUN, WRONG, Flag, Line, commands, registered
from neoteny.scripts.malformed_lines import malformed as lines
from tests.tiny_runs import ending, run_folder, small

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and all imports."""
    folder = tmp_path_factory.mktemp("run")
    args = small(folder, total_steps=32)
    assert ending(args) == 0
    for name in malformed.IMPORTED:
        importlib.import_module(name)
    gc.collect()
    return run_folder("ppo", args)


@pytest.fixture
def end(finished, tmp_path, monkeypatch):
    """How a command line ends, and what is wrong with that; a machine may be slow."""
    monkeypatch.setattr(malformed, "SECONDS", 10.0)

    def type_in(line):
        if line.command in ("compare", "evaluate"):
            shutil.copytree(finished, tmp_path / RUN)
        outcome = malformed.type_in(line, tmp_path)
        return malformed.fault(line, outcome), outcome

    return type_in


@pytest.mark.parametrize("line", list(lines(48, seed=24)), ids=lambda line: f"{line.command} {line.kind}")
def test_a_malformed_line_is_refused_in_one_sentence(line, end):
    fault, outcome = end(line)
    assert not fault, outcome.output


KINDS = {
    "steps": "ppo --total-steps 1e13",
    "steps of all cycles": "ppo --stream.id grid-layouts --stream.cycles 1e11",
    "rollout": "ppo --num-envs 4096 --num-steps 1e6 --total-steps 1e11 --stream.period 1e12",
    "minibatch": "dqn --buffer-size 2e8 --batch-size 1e8 --learning-starts 1e8 --total-steps 1e9",
    "replay memory": "dqn --buffer-size 1e11",
    "network": "dqn --network.hidden 10000000000 10000000000",
    "layers": f"ppo --network.hidden {'4 ' * 101}",
    "network of a dataset": "supervised --network.hidden 1000000000",
    "transformer": "supervised --network.kind vit --network.hidden 1000000000 1000000000",
    "gradient steps": "ppo --epochs 1e8",
    "layouts": "ppo grid-layouts-small --stream.grid.layouts 4294967296",
    "environments": "ppo --num-envs 1e9",
    "environments one by one": "ppo --num-envs 65536 --total-steps 1e9 --stream.period 1e9",
    "workers": "ppo --num-envs 1000 --total-steps 1e9 --stream.single.workers 999",
    "threads": "ppo --threads 100000000000",
    "real": "ppo --clip 1e308",
    "tiny": "ppo --lr 1e-320",
    "real of a method": "ppo --methods.l2-init.coef 1e200",
    "not a number": "ppo --gamma nan",
    "four hundred digits": f"ppo --total-steps 1{'0' * 400}",
    "seed": "ppo --seed 18446744073709551616",
    "seeds": "sweep --seeds 18446744073709551616 --dry-run",
    "value of a sweep": "sweep --over lr 1e300 --dry-run",
    "device without numbers": "ppo --device meta",
    "device of another kind": "ppo --device vulkan",
    "device of an evaluation": f"evaluate {RUN} --device meta",
    "episodes": f"evaluate {RUN} --episodes 1e11",
    "name": f"ppo --note {'x' * 300}",
    "path": f"ppo --runs-dir {'a/' * 2500}",
    "a file": "ppo --runs-dir /dev/null",
    "below a file": "dqn --memory disk --runs-dir /dev/null/runs",
    "name of a file": f"evaluate {RUN} --json {'x' * 300}",
    "a file below a file": f"evaluate {RUN} --gif /dev/null/x.gif",
    "a folder for a file": f"compare {RUN} --out /",
    "twice": "ppo --lr 1e-3 --lr 1e-4",
    "twice, once negated": "ppo --stream.single.replay --stream.single.no-replay",
    "twice in a sweep": "sweep --dry-run -- --lr 1e-3 --lr 1e-4",
    "not printable": "ppo --runs-dir \udcff",
    "a word of its own": "ppo --compile=--",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_refused_before_it_is_allocated(kind, end):
    command, *words = KINDS[kind].split()
    fault, outcome = end(Line(command, kind, tuple(words), cannot_be=True))
    assert not fault, (fault, outcome)


def test_every_flag_is_malformed_in_turn():
    every = [(command, flag.name, flag.before) for command, known in commands().items() for flag in known]
    assert len(set(every)) == len(every) > 500
    assert {"--optim.iso-every", "--methods.redo.tau", "--stream.grid.layouts", "--over"} <= {
        name for _, name, _ in every
    }
    assert {line.flag for line in lines(len(every), seed=0)} == {name for _, name, _ in every}


@pytest.mark.parametrize("kind", WRONG)
def test_values_are_drawn_from_a_seed(kind):
    flag = Flag("--lr", float)
    drawn = [[WRONG[kind](flag, random.Random(seed)) for seed in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]


def refuse(reason="x"):
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def fail():
    raise KeyError


def leave_a_file():
    Path("left").touch()
    refuse()


def compute():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
    refuse()


def fill_memory():
    kept = bytearray(2**30)
    kept[::4096] = bytes(2**18)
    refuse()


FAULTS = {
    "traceback": fail,
    "code 3": lambda: sys.exit(3),
    "folder written": leave_a_file,
    "no sentence": lambda: sys.exit(2),
    "slow": compute,
    "large": fill_memory,
    "memory": lambda: refuse("MemoryError"),
    "hangs": lambda: time.sleep(60),
    "accepted": lambda: None,
    "": refuse,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, monkeypatch, tmp_path):
    monkeypatch.setattr(malformed, "run", lambda line: FAULTS[fault]())
    monkeypatch.setattr(malformed, "SECONDS", 0.5 if fault == "slow" else 10.0)
    if fault == "hangs":
        monkeypatch.setattr(malformed, "HANGS", 0.5)
    line = Line("ppo", "size", (), cannot_be=True)
    assert malformed.fault(line, malformed.type_in(line, tmp_path)) == fault


def families():
    """One registered environment of each package and each kind of stream, and all of those of text."""
    found = {}
    for line in registered(("ppo",)):
        spec = gym.registry[line.flag]
        module = str(spec.entry_point).partition(":")[0].split(".")[:3]
        kind = line.flag.partition("-")[0] if "schedule" in spec.kwargs else ""
        found.setdefault((*module, kind or line.flag if "toy_text" in module else kind), line)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("line", families(), ids=lambda line: line.flag)
def test_a_registered_environment_trains_or_is_refused_in_a_sentence(line, end, monkeypatch):
    monkeypatch.setattr(malformed, "TRAINING", 0.1)
    fault, outcome = end(line)
    assert not fault, outcome.output
