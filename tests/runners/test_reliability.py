"""What a run promises when things go wrong, one row of the promise table after another.

Most of it is tried inside this process, on runs of 16 updates with a checkpoint after every fourth.
"""

import contextlib
import dataclasses
import errno
import functools
import gc
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing
import urllib.parse
import urllib.request
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neoteny.agents import ppo
from neoteny.agents.ppo import Args
from neoteny.agents.rewards import RewardConfig
from neoteny.configs.cli import launch, override
from neoteny.envs import Stream
from neoteny.envs.audit import Fingerprint, fingerprint
from neoteny.envs.single import workers
from neoteny.envs.single.engine import SingleConfig
from neoteny.optim import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    AdamWConfig,
    MuonConfig,
    MuonOConfig,
    TRACConfig,
    UPGDConfig,
)
from neoteny.runners import identity, run
from neoteny.runners import record as run_files
from neoteny.runners.disk import appended, checkpoint, events, opening
from neoteny.runners.disk.checkpoint import (
    MANIFEST,
    STATE,
    TENSORS,
    read_checkpoint,
)
from neoteny.runners.disk.events import event_files
from neoteny.runners.disk.files import flatten, to_json
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.disk.preemption import NAMES
from neoteny.runners.identity import Identity, changed_arguments, resumable
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.run import Run
from tests.events import scalars
from tests.killed import Killed, at, die, kill
from tests.no_agent import begin, record, update
from tests.tiny_runs import (
    BASE,
    BATCH,
    EVERY,
    FLAGS,
    GOLDEN,
    ROOT,
    TOTAL,
    ending,
    handlers,
    outcome,
    saved,
    send,
    small,
)  # fmt: skip


def tree(folder):
    """Every file under a folder, and what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run that nothing happened to."""
    args = small(tmp_path_factory.mktemp("undisturbed"))
    assert ending(args) == 0
    made = outcome(args)
    assert len(made["summary"]["visits"]) == 3
    assert len(made["scalars"]["losses/entropy"]) == TOTAL // BATCH
    return made


def interrupted(args, step=EVERY):
    """A run of no agent at all that was left at its first checkpoint; returns its folder."""
    begun = begin(args)
    update(begun, step)
    begun.close()
    return begun.folder


# Signals


@pytest.mark.parametrize(
    ("name", "step"),
    [*((name, 100) for name in NAMES if hasattr(signal, name)), ("SIGTERM", 2), ("SIGTERM", TOTAL)],
)
def test_sigterm_and_the_other_signals_save_and_the_run_goes_on(
    name, step, tmp_path, monkeypatch, undisturbed, capsys
):
    args = small(tmp_path)
    at(monkeypatch, step, send(name))
    assert ending(args) == 75
    now = -(-step // BATCH) * BATCH  # the update is finished first
    assert saved(args)["step"] == now
    assert f"stopped by {name} at step {now}; the same command resumes" in capsys.readouterr().err
    assert not (run_folder("ppo", args) / "summary.json").exists()
    assert ending(args) == 0
    assert f"resumes at step {now}, exactly" in capsys.readouterr().out
    assert outcome(args) == undisturbed


def test_sigterm_again_and_again(tmp_path, monkeypatch, undisturbed):
    args = small(tmp_path, checkpoint_every=0)  # a signal saves even so
    codes = []
    while not codes or codes[-1] == 75:
        with monkeypatch.context() as patch:
            at(patch, (len(codes) + 1) * 3 * BATCH, send("SIGTERM"))
            codes.append(ending(args))
    assert codes == [75] * (TOTAL // (3 * BATCH)) + [0]
    assert outcome(args) == undisturbed


def test_sigterm_while_a_checkpoint_is_written(tmp_path, monkeypatch, undisturbed):
    args, sync = small(tmp_path), checkpoint.sync_folder

    def interrupt(folder):
        sync(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.undo()

    monkeypatch.setattr(checkpoint, "sync_folder", interrupt)
    assert ending(args) == 75
    assert saved(args)["step"] == EVERY
    assert ending(args) == 0
    assert outcome(args) == undisturbed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
def test_sigterm_to_the_true_command(tmp_path):
    killed, calm = (small(tmp_path / name, total_steps=512) for name in ("killed", "calm"))
    words = ["--runs-dir", killed.runs_dir, *FLAGS.replace(f"-steps {TOTAL}", "-steps 512").split()]
    command = [sys.executable, ROOT / "agents" / "ppo.py", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    checkpoints = run_folder("ppo", killed) / "checkpoint"
    while process.poll() is None and not list(checkpoints.glob("step_*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 75, output
    assert "SIGTERM: saving after this update; once more to stop at once" in output
    assert "Traceback" not in output
    assert 0 < saved(killed)["step"] < 512
    assert [ending(args) for args in (killed, calm)] == [0, 0]  # what the command began, main finishes
    assert outcome(killed) == outcome(calm)


SIGNALLED_TWICE = """
import os, signal, sys
from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.runners.disk import checkpoint

sync, folders = checkpoint.sync_folder, []

def sync_folder(folder):
    sync(folder)
    folders.append(folder)
    if len(folders) == 3:  # the second checkpoint is written but has not got its name yet
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        print("still here")

checkpoint.sync_folder = sync_folder
ppo.main(cli(ppo.Args, {}, sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
def test_sigterm_twice_ends_at_once(tmp_path, undisturbed):
    command = [sys.executable, "-c", SIGNALLED_TWICE, "--runs-dir", tmp_path, *FLAGS.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    assert "still here" not in done.stdout
    args = small(tmp_path)
    assert len(list(tmp_path.glob("**/.tmp_*"))) == 1
    assert saved(args)["step"] == EVERY
    assert ending(args) == 0
    assert not list(tmp_path.glob("**/.tmp_*"))
    assert outcome(args) == undisturbed


# Disk full


def fail_saves(monkeypatch, which):
    """Let the disk be full in the middle of these checkpoints, 1 being the first."""
    write, count = checkpoint.write_bytes, itertools.count(1)

    def write_bytes(path, data):
        if path.name == STATE and next(count) in which:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", write_bytes)


@pytest.mark.parametrize("which", [{1}, {2, 3}, {3, 4}, {1, 2, 4}], ids=str)
def test_disk_full_for_a_while_is_survived(which, tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path)
    fail_saves(monkeypatch, which)
    assert ending(args) == 0
    output = capsys.readouterr().err
    for save in range(1, 5):
        warning = f"checkpoint at step {save * EVERY} could not be written (No space left on device)"
        assert output.count(warning) == (save in which)
    assert outcome(args) == undisturbed
    steps = [int(path.name[5:]) for path in tmp_path.glob("**/step_*")]
    assert sorted(steps) == [save * EVERY for save in range(1, 5) if save not in which][-2:]


def test_killed_before_it_removed_an_older_checkpoint(tmp_path, monkeypatch, undisturbed):
    """At the last checkpoint, so that no later one removes it."""
    args = small(tmp_path)

    def killed(folder, prune=checkpoint.prune):
        if checkpoint.step_of(checkpoint.checkpoints(folder)[-1]) == 4 * EVERY:
            raise Killed
        prune(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", killed)
        assert ending(args) == -signal.SIGKILL
    assert len(list(tmp_path.glob("**/step_*"))) == 3
    assert ending(args) == 0
    assert outcome(args) == undisturbed
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("**/step_*")) == [3 * EVERY, 4 * EVERY]


@pytest.mark.parametrize("which", [{1, 2, 3}, {2, 3, 4}], ids=str)
def test_disk_full_three_times_in_a_row_ends_the_run(which, tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path)
    fail_saves(monkeypatch, which)
    assert ending(args) == 74
    assert f"checkpoint at step {max(which) * EVERY} could not be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/.tmp_*"))
    state = saved(args)
    assert state["step"] == EVERY if which == {2, 3, 4} else state is None
    monkeypatch.undo()
    assert ending(args) == 0
    assert outcome(args) == undisturbed


def test_disk_full_when_a_signal_comes_is_reported_by_another_exit_code(tmp_path, monkeypatch, undisturbed):
    args = small(tmp_path)
    fail_saves(monkeypatch, {2})
    at(monkeypatch, 100, send("SIGTERM"))
    assert ending(args) == 74
    assert saved(args)["step"] == EVERY
    assert ending(args) == 0
    assert outcome(args) == undisturbed


def full_for(monkeypatch, *names):
    """Let the disk be full for files of these names; returns those that were refused."""
    refused = []

    def guard(write):
        def guarded(path, data):
            if path.name in names:
                refused.append(path.name)
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, data)

        return guarded

    monkeypatch.setattr(run_files, "write_json", guard(run_files.write_json))
    monkeypatch.setattr(run_files, "replace_file", guard(run_files.replace_file))
    return refused


@pytest.mark.parametrize("name", ["meta.json", "weights.safetensors", "summary.json"])
def test_disk_full_at_the_beginning_or_the_end(name, tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path)
    refused = full_for(monkeypatch, name)
    assert ending(args) == 74
    assert refused == [name]
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/summary.json"))
    monkeypatch.undo()
    assert ending(args) == 0
    assert outcome(args) == undisturbed


class Disk(io.FileIO):
    """A file on a disk that takes so many bytes more."""

    room = 2**62

    def write(self, data):
        if Disk.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(data[: Disk.room])
        Disk.room -= taken
        return taken


@pytest.fixture
def room(monkeypatch):
    """Sets how many bytes of events and visits the disk takes; they are written at once."""
    monkeypatch.setattr(Disk, "room", 2**62)
    monkeypatch.setattr(appended, "FLUSH_SECONDS", 0.0)

    def opened(path, mode, buffering=-1):
        return Disk(path, mode) if buffering == 0 else open(path, mode)

    monkeypatch.setattr(appended, "open", opened, raising=False)
    return lambda bytes: lambda self: setattr(Disk, "room", bytes)


def test_disk_full_for_events_loses_no_point(tmp_path, monkeypatch, undisturbed, capsys, room):
    args = small(tmp_path)
    at(monkeypatch, 70, room(1000))
    at(monkeypatch, 120, room(2**62))
    assert ending(args) == 0
    assert capsys.readouterr().err.count("what follows is kept in memory") >= 1
    assert outcome(args) == undisturbed


def test_disk_full_for_events_at_the_end_leaves_the_run_unfinished(
    tmp_path, monkeypatch, undisturbed, capsys, room
):
    args = small(tmp_path)
    at(monkeypatch, 220, room(1000))
    assert ending(args) == 74
    assert not list(tmp_path.glob("**/summary.json"))
    Disk.room = 2**62
    assert saved(args)["step"] == 3 * EVERY  # a later one would not know of all points
    assert ending(args) == 0
    assert outcome(args) == undisturbed


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "every", "last"), [(40, 64, 64), (40, 128, 102), (150, 64, 192), (250, 64, 256), (210, 0, 256)]
)
def test_two_processes_the_older_one_ends(step, every, last, tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path, checkpoint_every=every)
    folder, left, steps = run_folder("ppo", args), [], {}

    def overtake(self):
        assert ending(args) == 0
        left.append(tree(folder))

    at(monkeypatch, step, overtake)
    record = Run.record_episodes

    def recorded(self, *made):
        steps[self.attempt.number] = self.stream.steps
        record(self, *made)

    monkeypatch.setattr(Run, "record_episodes", recorded)
    assert ending(args) == 73
    assert steps == {1: last, 2: TOTAL}
    assert "was taken over by another process" in capsys.readouterr().err
    assert tree(folder) == left[0]
    assert outcome(args) == undisturbed


def test_two_processes_the_older_one_finishes_a_checkpoint_too_late(
    tmp_path, monkeypatch, undisturbed, capsys
):
    """It names more events than the newer one has left."""
    args = small(tmp_path)
    at(monkeypatch, 3 * EVERY + BATCH, kill)
    assert ending(args) == -signal.SIGKILL
    late = run_folder("ppo", args) / "checkpoint" / f"step_{3 * EVERY:012d}"
    late.rename(tmp_path / "late")
    at(monkeypatch, 2 * EVERY + BATCH, kill)
    assert ending(args) == -signal.SIGKILL
    (tmp_path / "late").rename(late)
    assert ending(args) == 0
    output = capsys.readouterr()
    assert "is shorter than the" in output.err
    assert f"resumes at step {2 * EVERY}, exactly" in output.out
    assert outcome(args) == undisturbed


class Reads:
    """Counts how often a checkpoint is read."""

    def __init__(self, monkeypatch):
        self.read, self.count = checkpoint.read_checkpoint, 0
        monkeypatch.setattr(checkpoint, "read_checkpoint", self)

    def __call__(self, path):
        self.count += 1
        return self.read(path)


def test_a_checkpoint_is_read_once(tmp_path, monkeypatch):
    args = small(tmp_path)
    interrupted(args)
    reads = Reads(monkeypatch)
    run = begin(args)
    run.close()
    assert reads.count == 1
    assert run.updates_made == 1


def test_a_checkpoint_that_another_process_writes_meanwhile_is_read_too(tmp_path, monkeypatch):
    args = small(tmp_path)
    interrupted(args)
    reads, lock, older = Reads(monkeypatch), opening.locked, begin(args)
    reads.count = 0

    def locked(folder):
        if older.stream.steps < 2 * EVERY:
            update(older, 2 * EVERY)
        return lock(folder)

    monkeypatch.setattr(opening, "locked", locked)
    run = begin(args)
    run.close()
    older.close()
    assert reads.count == 2
    assert run.stream.steps == 2 * EVERY


def test_a_run_that_another_process_finishes_meanwhile_is_not_replaced(tmp_path, monkeypatch, capsys):
    args, lock = small(tmp_path), opening.locked
    folder, left = interrupted(args), []

    def locked(folder):
        (folder / "summary.json").write_text("{}")
        left.append(tree(folder / "checkpoint"))
        return lock(folder)

    monkeypatch.setattr(opening, "locked", locked)
    before = handlers()
    with pytest.raises(SystemExit) as exit:
        begin(args)
    assert handlers() == before
    assert exit.value.code == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert tree(folder / "checkpoint") == left[0]


# Workers of the environments


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_worker_that_dies_or_does_not_answer_is_replaced(tmp_path, monkeypatch, undisturbed, capfd):
    monkeypatch.setattr(workers, "WORKER_SECONDS", 1.0)
    args = small(tmp_path, stream=dataclasses.replace(BASE.stream, single=SingleConfig(workers=2)))

    def lose(self):
        for worker, number in zip(
            self.stream.engine.envs.workers, (signal.SIGKILL, signal.SIGSTOP), strict=True
        ):
            os.kill(worker.process.pid, number)

    at(monkeypatch, 150, lose)
    assert ending(args) == 0
    output = capfd.readouterr().err
    assert "sub-environments 0 to 0 was killed by signal 9; it is restarted" in output
    assert "sub-environments 1 to 1 did not answer for 1 s; it is restarted" in output
    assert outcome(args) == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_worker_lost_again_and_again_ends_the_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workers, "MOST_RESTARTS", 0)
    at(
        monkeypatch,
        150,
        lambda self: os.kill(self.stream.engine.envs.workers[0].process.pid, signal.SIGKILL),
    )
    words = [*FLAGS.split(), "--stream.single.workers", "1", "--runs-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ppo.py", *words])
    with pytest.raises(SystemExit) as exit:
        launch(ppo.main, Args, {})
    assert exit.value.code == 70
    del exit
    gc.collect()  # which closes the run
    output = capfd.readouterr().err
    assert re.search(
        r"error: 1 workers in a row .* signal 9; their .*: 0 \(seed \d+, \d+ actions\), 1 \(", output
    )
    assert saved(small(tmp_path))["step"] == 2 * EVERY


def test_two_processes_the_older_one_does_no_harm(tmp_path, monkeypatch, undisturbed, capsys):
    """The older one is a run of no agent, which says other things than the newer one does."""
    args = small(tmp_path)
    older = begin(args)
    record(older, 30, {"task": 7})
    older.writer.metrics({"losses/entropy": -1.0}, 30)
    older.writer.flush()
    codes = []

    def late(self):
        """Whatever the older process may still do while the newer one is at work."""
        before = tree(older.folder)
        older.writer.metrics({"losses/entropy": -1.0}, 112)
        older.writer.flush()
        torn = nn.Parameter(torch.full((1,), torch.nan))
        record(older, EVERY, {"task": 7})
        for act in (
            lambda: record(older, EVERY, {"task": 8}),
            lambda: update(older, EVERY, {"task": 7}),
            lambda: older.end_update({"weights": torn}).__enter__(),
            lambda: older.finish(nn.Flatten()),
        ):
            with pytest.raises(SystemExit) as exit:
                act()
            codes.append(exit.value.code)
        assert tree(older.folder) == before

    at(monkeypatch, 150, late)
    assert ending(args) == 0
    assert codes == [73] * 4
    older.close()
    assert outcome(args) == undisturbed


def test_two_processes_the_visits_are_the_newer_one_s_own(tmp_path):
    args = small(tmp_path)
    older = begin(args)
    record(older, 30, {"task": 0})
    update(older, EVERY, {"task": 1})
    newer = begin(args)
    for each, task in ((older, 7), (newer, 1), (older, 8)):
        each.record.visits.append({"task": task})
        each.record.visits.flush()
    for each in (newer, older):
        each.close()
    assert [row["task"] for row in appended.read_rows(newer.record.visits.path)] == [0, 1]


@pytest.mark.parametrize(
    ("module", "place", "every"),
    [
        (run_files, "open_run", 64),
        (checkpoint, "sync_folder", 64),
        (run, "policy_as_bytes", 0),
        (run, "run_scores", 0),
    ],
)
def test_two_processes_the_older_one_wakes_up_anywhere(
    module, place, every, tmp_path, monkeypatch, undisturbed
):
    """It is overtaken after it has begun, within a checkpoint, or at its end, by one that is not done yet."""
    args, real, left = small(tmp_path, checkpoint_every=every), getattr(module, place), []
    folder = run_folder("ppo", args)

    def overtaken(*arguments):
        made = real(*arguments)
        if not left:
            monkeypatch.setattr(module, place, real)
            with torch.random.fork_rng():  # another process has its own
                die(ppo, args, 150, monkeypatch)
            left.append(tree(folder))
        return made

    monkeypatch.setattr(module, place, overtaken)
    assert ending(args) == 73
    assert tree(folder) == left[0]
    assert ending(args) == 0
    assert outcome(args) == undisturbed


def test_event_files_that_rotate_are_resumed(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(events, "LARGEST", 4_000)
    monkeypatch.setattr(appended, "FLUSH_SECONDS", 0.0)
    args = small(tmp_path)
    die(ppo, args, 180, monkeypatch)
    assert ending(args) == 0
    names = [path.name.partition("tfevents.")[2].split(".") for path in event_files(run_folder("ppo", args))]
    assert all(sum(name[0].endswith(attempt) for name in names) > 2 for attempt in "12")
    assert outcome(args) == undisturbed


@pytest.mark.parametrize("file", ["writer", "visits"])
def test_event_files_or_visits_that_are_not_as_they_were_written(file, tmp_path, monkeypatch, capsys):
    args = small(tmp_path)
    at(monkeypatch, 150, lambda self: getattr(self.record, file).path.unlink())
    assert ending(args) == 74
    assert "is not as it was written; the last checkpoint is intact" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/summary.json"))


def test_visits_grow_by_250_to_900_bytes_at_each_switch(tmp_path, undisturbed):
    """In a short run, with the fewest words about a task, and late in a run with those about Acrobot."""
    lines = undisturbed["visits"].splitlines()
    assert len(lines) == 3
    assert all(300 <= len(line) <= 700 for line in lines)
    acrobot = fingerprint(gym.make("Acrobot-v1"))
    drawn = {
        name: value / 7 if isinstance(value, float) else value for name, value in acrobot.parameters.items()
    }
    begun = begin(small(tmp_path))
    for start, about in (
        (0, Fingerprint("Box(4)", {"gravity": 9.8}, 40 * "0")),
        (10**9, dataclasses.replace(acrobot, parameters=drawn)),
    ):
        for step in range(start, start + 4):
            ended = torch.tensor([[1.0], [-step / 3], [1.0]], dtype=torch.float64)
            record(begun, step, {"task": step % 3, "fingerprint": about}, ended)
    begun.record.visits.flush()
    lines = begun.record.visits.path.read_bytes().splitlines(keepends=True)
    begun.close()
    assert len(lines) == 7
    assert all(250 <= len(line) <= 900 for line in lines), [len(line) for line in lines]


def test_a_checkpoint_is_written_every_so_many_steps(tmp_path):
    begun = begin(small(tmp_path))
    for step in range(BATCH, TOTAL + 1, BATCH):
        update(begun, step)
        kept = checkpoint.checkpoints(begun.folder / "checkpoint")
        assert [checkpoint.step_of(path) for path in kept[-1:]] == [step // EVERY * EVERY] * (step >= EVERY)
    begun.close()


def test_a_checkpoint_does_not_grow_with_steps_switches_or_episodes(tmp_path):
    begun, sizes = begin(small(tmp_path, total_steps=10_000)), []
    for end in (2 * EVERY, 8 * EVERY):
        for step in range(begun.stream.steps + 1, end + 1):
            record(begun, step, {"task": step % 9}, torch.ones(3, 1))
        update(begun, end)
        newest = checkpoint.checkpoints(begun.folder / "checkpoint")[-1]
        sizes.append(sum(path.stat().st_size for path in newest.iterdir()))
    begun.close()
    assert sizes[1] < sizes[0] + 100  # more digits


def test_two_processes_one_that_is_refused_leaves_the_other_alone(tmp_path, monkeypatch, undisturbed, capsys):
    args, sync, codes = small(tmp_path), checkpoint.sync_folder, []

    def start(folder):  # while the other is writing its second checkpoint
        sync(folder)
        if folder.name.startswith(".tmp_") and list(folder.parent.glob("step_*")) and not codes:
            codes.append(0)
            with torch.random.fork_rng():  # another process has its own
                codes[0] = ending(dataclasses.replace(args, lr=0.5))

    monkeypatch.setattr(checkpoint, "sync_folder", start)
    assert ending(args) == 0
    assert codes == [2]
    assert "could not be written" not in capsys.readouterr().err
    assert outcome(args) == undisturbed


# Checkpoints of earlier versions


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir() if path.name > "0.1.0"))
def test_checkpoints_of_earlier_versions_are_loaded(version, tmp_path):
    """What tests/make_golden.py made."""
    args = small(tmp_path, rewards=RewardConfig("none"))  # which they did not have
    folder = run_folder("ppo", args)
    shutil.copytree(GOLDEN / version, folder / "checkpoint")
    shutil.move(folder / "checkpoint" / "args.json", folder)
    assert saved(args)["step"] == TOTAL // 2
    assert ending(small(tmp_path)) == 2
    assert ending(args) == 0
    begun = json.loads((folder / "summary.json").read_text())["visits"]
    assert [visit["start"] for visit in begun] == [0, 100, 200]
    assert saved(args)["update"] == TOTAL // BATCH
    assert saved(args)["parts"].keys() == {"methods", "agent", "optimizer", "rewards", "stream"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_unfinished_run_of_0_1_is_refused_and_left_alone(overwrite, tmp_path, capsys):
    args = small(tmp_path, overwrite=overwrite)
    folder = run_folder("ppo", args)
    shutil.copytree(GOLDEN / "0.1.0", folder / "checkpoint")
    shutil.move(folder / "checkpoint" / "args.json", folder)
    before = tree(tmp_path)
    assert ending(args) == 2
    output = capsys.readouterr().err
    assert (
        "was made by neoteny 0.1: finish the run with that version, or remove its folder to start" in output
    )
    assert output.startswith(f"error: {folder}")
    assert output.count("\n") == 1
    assert tree(tmp_path) == before


# Other flags, methods, machines and devices

OPTIMIZERS = {
    config.name: config
    for config in (
        AdamConfig(), AdamWConfig(), AdamOConfig(), MuonConfig(), MuonOConfig(), UPGDConfig(), TRACConfig(),
    )
}  # fmt: skip
# The device has a test of its own, and so have Atari games, in tests/envs/atari.
# Methods are in a tuple, and have tests of their own.
# Flags of other engines, and the channels of vectors, are refused by the stream.
APART = (
    "device", "methods", "stream.games", "stream.rules", "stream.channels", "stream.grid.layouts",
    "stream.atari.replay",
)  # fmt: skip
FIELDS = [name for name in flatten(dataclasses.asdict(BASE)) if name not in APART]
CASES = [("adam", name) for name in FIELDS] + [
    (optim, f"optim.{field.name}")
    for optim, config in OPTIMIZERS.items()
    if optim != "adam"
    for field in dataclasses.fields(config)
]
OTHERS = {
    "stream.id": "cartpole-drift", "stream.tasks": (1, 0, 2), "note": "b", "runs_dir": Path("."),
    "stream.observations": "vectors", "stream.wrap": "neoteny.envs.wrappers:permute_actions",
}  # fmt: skip


def another(config, field):
    """Another value for a field of arguments."""
    value, hint = getattr(config, field), typing.get_type_hints(type(config))[field]
    choices = [word for word in typing.get_args(hint) if isinstance(word, str) and word != value]
    if choices:
        return choices[0]
    if value is None:
        return 1 if int in typing.get_args(hint) else 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(item / 2 if isinstance(item, float) else 2 * item for item in value)
    if isinstance(value, int):
        return 2 * value or 1
    assert isinstance(value, float)
    return value / 2 or 0.5


def changed(args, name):
    """Arguments of which one has another value."""
    *parts, field = name.split(".")
    config = functools.reduce(getattr, parts, args)
    changes = {field: OTHERS[name] if name in OTHERS else another(config, field)}
    for part in reversed(parts):
        changes = {part: changes}
    return override(args, changes)


def value_of(args, name):
    value = flatten(dataclasses.asdict(args))[name]
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.slow
@pytest.mark.parametrize(("optim", "name"), CASES)
def test_other_flags_are_refused_but_for_those_that_may_change(optim, name, tmp_path, capsys):
    stream = dataclasses.replace(BASE.stream, tasks=(0, 1, 2))
    args = small(tmp_path / "before", stream=stream, optim=OPTIMIZERS[optim])
    if name.startswith("probes.plasticity_"):  # of no measurement else
        args = dataclasses.replace(args, probes=ProbeConfig(every=5, plasticity_every=10, pictures=False))
    other = dataclasses.replace(changed(args, name), runs_dir=tmp_path / "now")
    folder = run_folder("ppo", other)
    shutil.copytree(interrupted(args), folder)
    before = tree(tmp_path)
    capsys.readouterr()
    assert value_of(args, name) != value_of(other, name)
    if f"{name}.".startswith(tuple(resumable(args))):
        again = begin(other)
        assert again.updates_made == 1
        assert again.stream.steps == EVERY
        again.close()
        return
    with pytest.raises(SystemExit) as exit:
        begin(other)
    assert exit.value.code == 2
    old, new = value_of(args, name), value_of(other, name)
    output = capsys.readouterr().err
    assert output.startswith(f"error: {folder} holds an unfinished run with {name} {old}, not {new}; ")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("method", "field"),
    [(name, field.name) for name, kind in METHODS.items() for field in dataclasses.fields(kind)],
)
def test_other_flags_of_methods_are_refused(method, field, tmp_path, capsys):
    config = METHODS[method]()
    other_config = dataclasses.replace(config, **{field: another(config, field)})
    args, other = (
        small(tmp_path / name, methods=(made,)) for name, made in (("before", config), ("now", other_config))
    )
    folder = run_folder("ppo", other)
    assert folder.parts[-2] == f"adam-{method}"
    shutil.copytree(interrupted(args), folder)
    before = tree(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        begin(other)
    assert exit.value.code == 2
    old, new = (to_json(getattr(made, field)) for made in (config, other_config))
    assert old != new
    output = capsys.readouterr().err
    what = f"methods.{method}.{field} {old}, not {new}; "
    assert output.startswith(f"error: {folder} holds an unfinished run with {what}")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("had", [True, False])
def test_other_methods_are_refused(had, tmp_path, monkeypatch, capsys):
    with_method, without = small(tmp_path, methods=(METHODS["isometry"](),)), small(tmp_path)
    args, other = (with_method, without) if had else (without, with_method)
    with monkeypatch.context() as patch:
        at(patch, 150, kill)
        assert ending(args) == -signal.SIGKILL
    folder = run_folder("ppo", other)
    assert folder != run_folder("ppo", args)
    shutil.copytree(run_folder("ppo", args), folder)
    capsys.readouterr()
    assert ending(other) == 2
    what = "with methods.isometry.on all, which is no argument of it now"
    if not had:
        what = "without methods.isometry.on, which now is all"
    assert f"error: {folder} holds an unfinished run {what}; --note names" in capsys.readouterr().err
    assert ending(args) == 0  # moved back, it resumes


def test_resumable_arguments_are_those_that_change_nothing_that_is_learned():
    names = {name.rstrip(".") for name in resumable(BASE)}
    assert {name for name in names if not name.startswith("stream.")} == {
        "total_steps", "checkpoint_every", "video_every", "runs_dir", "overwrite", "threads", "device",
        "allow_device_change", "allow_code_change", "probes", "graphs",
    }  # fmt: skip
    streams = {
        name for name in names & flatten(dataclasses.asdict(BASE)).keys() if name.startswith("stream.")
    }
    engines = {"stream.single.workers", "stream.single.replay", "stream.atari.replay"}
    assert streams == {"stream.cycles", "stream.audit", *engines}


CHANGES = {
    "another value": ({"lr": 0.1}, {"lr": 0.2}, {"lr": 0.1}, {"lr": "with lr 0.1, not 0.2"}),
    "nested": (
        {"optim": {"eps": 1.0}},
        {"optim": {"eps": 2.0}},
        {},
        {"optim.eps": "with optim.eps 1.0, not 2.0"},
    ),
    "tuples are lists": ({"hidden": [1, 2]}, {"hidden": (1, 2)}, {}, {}),
    "a new one as it was before": ({}, {"wrap": None, "n": (1,)}, {"wrap": None, "n": (1,)}, {}),
    "a new one that acts": ({}, {"n": 2}, {"n": 1}, {"n": "without n, which now is 2"}),
    "a new one without default": ({}, {"n": 2}, {}, {"n": "without n, which now is 2"}),
    "renamed": ({"stream": {"span": 0.5}}, {"stream": {"drift_fraction": 0.5}}, {}, {}),
    "one that is gone": ({"n": 2}, {}, {"n": 2}, {"n": "with n 2, which is no argument of it now"}),
}


@pytest.mark.parametrize(("before", "now", "defaults", "changed"), CHANGES.values(), ids=CHANGES)
def test_changed_arguments(before, now, defaults, changed):
    assert changed_arguments(before, now, defaults) == changed


OF_A_LATER_VERSION = {
    # changes of what the checkpoint holds, and the sentence that refuses it, if any
    "flag": (lambda config: config.pop("ent_coef"), None),
    "flag that acts": (lambda config: config.pop("num_steps"), "without num_steps, which now is 8"),
    "flag of the optimizer": (lambda config: config["optim"].pop("eps"), None),
    "flag of a method": (lambda config: config["methods"]["isometry"].pop("on"), None),
    "method": (lambda config: config["methods"].pop("isometry"), "without methods.isometry.on, which now is"),
    "flag gone": (lambda config: config.update(foo=1), "with foo 1, which is no argument of it now"),
    "flag of the network gone": (lambda config: config["network"].update(foo=1), "with network.foo 1, which"),
    "probe": (lambda config: config["probes"].update(foo=1), None),
}


@pytest.mark.parametrize(("change", "sentence"), OF_A_LATER_VERSION.values(), ids=OF_A_LATER_VERSION)
def test_arguments_of_a_later_version(change, sentence, tmp_path):
    made = Identity("ppo", small(tmp_path, methods=(METHODS["isometry"](),)))
    config = json.loads(json.dumps(to_json(made.config)))
    change(config)
    state = {"config": config, "machine": made.machine}
    if sentence:
        with pytest.raises(ValueError, match=re.escape(f"holds an unfinished run {sentence}")):
            made.check(state)
    else:
        made.check(state)


def test_other_optimizers_are_refused(tmp_path, capsys):
    folder = interrupted(small(tmp_path))
    other = small(tmp_path, optim=AdamWConfig())
    shutil.copytree(folder, run_folder("ppo", other))
    assert ending(other) == 2
    assert "optim.name adam, not adamw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("threads", 7),
        ("cpu_capability", "Z80"),
        ("python", "3.99.0"),
        ("versions", {"torch": "9.0"}),
        ("kernels", {"processor": "Z80"}),
        ("kernels", {"variables": "MKL_CBWR=AVX2"}),
        ("kernels", {"computation": "0123456789abcdef"}),
    ],
)
def test_machine_or_kernels_that_differ_are_listed_in_meta_json(what, value, tmp_path, monkeypatch, capsys):
    args, real = small(tmp_path), identity.machine
    folder = interrupted(args)
    assert json.loads((folder / "meta.json").read_text())["resume_exact"] is True

    def other(device):
        made = real(device)
        return made | {what: made[what] | value if isinstance(value, dict) else value}

    def go_on():
        again = begin(args)
        update(again, again.stream.steps + EVERY)
        again.close()
        return json.loads((folder / "meta.json").read_text())["resume_exact"]

    monkeypatch.setattr(identity, "machine", other)
    ((name, now),) = flatten({what: value}).items()
    was = flatten(real("cpu"))[name]
    assert go_on() == [f"{name} was {was} and is {now}"]
    assert f"but not bit for bit: {name} was {was} and is {now}" in capsys.readouterr().out
    monkeypatch.undo()
    assert go_on() == [f"{name} was {was} and is {now}", f"{name} was {now} and is {was}"]


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="has one kernel set only")
def test_kernels_of_another_set_compute_otherwise():
    code = "from neoteny.runners.identity import machine; print(machine('cpu')['kernels']['computation'])"
    runs = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **chosen}, capture_output=True)
        for chosen in ({}, {}, {"ATEN_CPU_CAPABILITY": "default"})
    ]
    once, again, other = (done.stdout for done in runs)
    assert once == again != other


@pytest.mark.parametrize(("was", "now"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_device_that_differs_needs_a_flag(was, now, tmp_path, monkeypatch, capsys):
    args, real = small(tmp_path), identity.machine
    monkeypatch.setattr(identity, "machine", lambda device: real(device) | {"device": was})
    folder = interrupted(args)
    monkeypatch.setattr(identity, "machine", lambda device: real(device) | {"device": now})
    before = tree(folder)
    with pytest.raises(SystemExit) as exit:
        begin(args)
    assert exit.value.code == 2
    assert f"was on {was}, not on {now}; --allow-device-change moves it" in capsys.readouterr().err
    assert tree(folder) == before
    again = begin(dataclasses.replace(args, allow_device_change=True))
    assert again.updates_made == 1
    again.close()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["device"] == now
    assert f"device was {was} and is {now}" in meta["resume_exact"]


# Damaged checkpoints


def stopped(tmp_path, monkeypatch, step=150):
    """A run with two checkpoints that was killed: its arguments, and the checkpoints."""
    args = small(tmp_path)
    with monkeypatch.context() as patch:
        at(patch, step, kill)
        assert ending(args) == -signal.SIGKILL
    return args, sorted((run_folder("ppo", args) / "checkpoint").glob("step_*"))


def damage(path):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_checkpoint_the_older_one_serves(tmp_path, monkeypatch, undisturbed, capsys):
    args, (_, newest) = stopped(tmp_path, monkeypatch)
    damage(newest / TENSORS)
    capsys.readouterr()
    assert ending(args) == 0
    output = capsys.readouterr()
    assert output.err.count("warning") == 1
    assert f"{newest / TENSORS} was changed" in output.err
    assert f"resumes at step {EVERY}, exactly" in output.out
    assert outcome(args) == undisturbed


def test_damaged_checkpoints_all_of_them_are_no_reason_to_start_over(tmp_path, monkeypatch, capsys):
    args, both = stopped(tmp_path, monkeypatch)
    for path in both:
        damage(path / STATE)
    folder = run_folder("ppo", args)
    others = {path: data for path, data in tree(folder).items() if path.parts[0] != "checkpoint"}
    codes, trees = [], []
    for _ in range(2):
        codes.append(ending(args))
        assert f"error: all checkpoints in {folder / 'checkpoint'} are damaged" in capsys.readouterr().err
        trees.append(tree(folder))
    assert codes == [2, 2]
    assert trees[0] == trees[1]
    assert others.items() <= trees[0].items()
    assert ending(dataclasses.replace(args, overwrite=True)) == 2


def test_damaged_no_less_is_a_checkpoint_of_a_newer_version(tmp_path, monkeypatch, capsys):
    args, (_, newest) = stopped(tmp_path, monkeypatch)
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps(manifest | {"format": manifest["format"] + 1}))
    before = tree(tmp_path)
    assert ending(args) == 2
    assert f"error: {newest} was made by a newer version: format" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_checkpoint_that_holds_what_no_run_has_written_is_set_aside(
    tmp_path, monkeypatch, undisturbed, capsys
):
    args, (_, newest) = stopped(tmp_path, monkeypatch)
    state = read_checkpoint(newest)
    del state["rng"]
    checkpoint.save_checkpoint(newest.parent, state["step"], state)  # whole, with the right hashes
    capsys.readouterr()
    assert ending(args) == 0
    output = capsys.readouterr()
    assert "is not one of a run (the state lacks rng); it is set aside" in output.err
    assert f"resumes at step {EVERY}, exactly" in output.out
    assert len(list(newest.parent.glob(f".corrupt_{newest.name}_*"))) == 1
    assert outcome(args) == undisturbed


def foreign_agent(state):
    state["config"]["agent"] = "dqn"


def foreign_network(state):
    state["parts"]["agent"]["actor.head.bias"] = torch.zeros(7)


def no_optimizer(state):
    del state["parts"]["optimizer"]


def other_groups(state):
    state["parts"]["optimizer"]["param_groups"] *= 2


def foreign_moments(state):
    state["parts"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(5)


def no_moments(state):
    state["parts"]["optimizer"]["state"][0]["exp_avg_sq"] = torch.zeros(())


def foreign_stream(state):
    state["parts"]["stream"]["returns"] = torch.zeros(5)


def other_methods(state):
    state["parts"]["methods"]["methods"] = {"isometry": {}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (foreign_agent, "holds an unfinished run with agent dqn, not ppo"),
        (
            foreign_network,
            "cannot be resumed: agent: RuntimeError: Error(s) in loading state_dict for ActorCritic",
        ),
        (no_optimizer, "cannot be resumed: optimizer: KeyError: 'state'"),
        (other_groups, "cannot be resumed: optimizer: loaded state dict has a different number of"),
        (foreign_moments, "cannot be resumed: optimizer: exp_avg has shape (5,) instead of (16, 16)"),
        (foreign_stream, "cannot be resumed: stream: "),
        (no_moments, "cannot be resumed: optimizer: exp_avg_sq has shape () instead of (16, 16)"),
        (
            other_methods,
            "cannot be resumed: methods: the checkpoint has the methods ['isometry'], the run []",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_run_is_refused(change, sentence, tmp_path, monkeypatch, capsys):
    args, (_, newest) = stopped(tmp_path, monkeypatch)
    state = read_checkpoint(newest)
    change(state)
    checkpoint.save_checkpoint(newest.parent, state["step"], state)
    before = {path: data for path, data in tree(tmp_path).items() if "checkpoint" in path.parts}
    assert ending(args) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert "Traceback" not in output
    assert before.items() <= tree(tmp_path).items()


# Clock noise

DAY = 86_400.0
CLOCKS = {
    "backwards": lambda now: (now - tick for tick in itertools.count()),
    "a day behind": lambda now: (now - DAY + tick for tick in itertools.count()),
    "a day ahead": lambda now: (now + DAY + tick for tick in itertools.count()),
    "standing still": lambda now: itertools.repeat(now),
}


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
def test_clock_noise_changes_nothing(clock, tmp_path, monkeypatch, undisturbed):
    args, _ = stopped(tmp_path, monkeypatch)
    ticks = CLOCKS[clock](time.time())
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    assert ending(args) == 0
    assert outcome(args) == undisturbed
    names = [path.name for path in event_files(run_folder("ppo", args))]
    assert names == ["events.out.tfevents.0000000001", "events.out.tfevents.0000000002"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def tensorboards(logdir):
    """Addresses of a TensorBoard with its Python loader and of one with its Rust loader."""
    processes, addresses = [], []
    for fast in ("false", "true"):
        port = free_port()
        words = ["--logdir", logdir, "--host", "127.0.0.1", "--port", str(port), f"--load_fast={fast}"]
        command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", *words]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        addresses.append(f"http://127.0.0.1:{port}/data/plugin/scalars")
    try:
        yield addresses
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def shown(address, run_name, tag):
    """The points of a tag that a TensorBoard shows, or nothing if it does not yet."""
    query = urllib.parse.urlencode({"run": run_name, "tag": tag})
    try:
        with urllib.request.urlopen(f"{address}/scalars?{query}", timeout=10) as reply:
            return [(step, value) for _, step, value in json.load(reply)]
    except OSError:
        return []


@pytest.mark.slow
def test_clock_noise_is_not_seen_in_tensorboard(tmp_path, monkeypatch, undisturbed):
    server = pytest.importorskip("tensorboard_data_server", reason="TensorBoard has no Rust loader here")
    if server.server_binary() is None:
        pytest.skip("TensorBoard has no Rust loader here")
    args, _ = stopped(tmp_path, monkeypatch)
    behind = time.time() - DAY
    monkeypatch.setattr(time, "time", lambda: behind)
    assert ending(args) == 0
    name = run_folder("ppo", args).relative_to(tmp_path).as_posix()
    tags = ("losses/entropy", "charts/episodic_return", "task/return_at_end")
    with tensorboards(tmp_path) as addresses:
        for address, tag in itertools.product(addresses, tags):
            expected, deadline = undisturbed["scalars"][tag], time.monotonic() + 60
            while len(seen := shown(address, name, tag)) < len(expected) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert seen == [(step, pytest.approx(value)) for step, value in expected]


# Non-interference


@pytest.mark.slow
@pytest.mark.parametrize("saving", [0, BATCH, 7 * BATCH])
@pytest.mark.parametrize("probing", [0, 1, 7])
def test_noninterference_of_probes_and_checkpoints(probing, saving, tmp_path, undisturbed):
    args = small(tmp_path, probes=ProbeConfig(every=probing), checkpoint_every=saving)
    assert ending(args) == 0
    assert outcome(args)["weights"] == undisturbed["weights"]
    assert len(list(tmp_path.glob("**/step_*"))) == (2 if saving else 0)


# Seeds


# Values that are not finite

STEP = 74  # in the fifth update, which ends at step 80


def spoil_stream(monkeypatch, spoil):
    """Change what a stream returns."""

    def step_tensors(self, actions, step_tensors=Stream.step_tensors):
        step = step_tensors(self, actions)
        spoil(self.steps, step)
        return step

    monkeypatch.setattr(Stream, "step_tensors", step_tensors)


def spoil_rewards(monkeypatch, value=torch.nan):
    def spoil(steps, made):
        if steps == STEP:
            made.rewards[1] = value

    spoil_stream(monkeypatch, spoil)


def spoil_rewards_by_infinity(monkeypatch):
    spoil_rewards(monkeypatch, torch.inf)


def spoil_observations(monkeypatch, step=STEP):
    def spoil(steps, made):
        if steps == step:
            made.observations[1, 0] = torch.nan

    spoil_stream(monkeypatch, spoil)


def spoil_last_observations(monkeypatch):
    spoil_observations(monkeypatch, 80)


def spoil_final_observations(monkeypatch):
    def spoil(steps, made):
        if 64 < steps <= 80 and made.final_observations is not None:
            made.final_observations.fill_(torch.nan)

    spoil_stream(monkeypatch, spoil)


def spoil_gradients(monkeypatch, call=9):
    """Each update has two minibatches; the loss that is logged stays as it is."""
    loss_of, calls = ppo.ppo_loss, itertools.count(1)

    def ppo_loss(*args):
        loss, stats = loss_of(*args)
        return loss * (torch.nan if next(calls) == call else 1), stats

    monkeypatch.setattr(ppo, "ppo_loss", ppo_loss)


def spoil_last_gradients(monkeypatch):
    spoil_gradients(monkeypatch, 10)


def spoil_weights(monkeypatch, part="critic"):
    def spoil(self):
        with torch.no_grad():
            getattr(self.parts["agent"], part).head.bias[0] = torch.nan

    at(monkeypatch, STEP, spoil)


def spoil_policy(monkeypatch):
    spoil_weights(monkeypatch, "actor")


def spoil_moments(monkeypatch):
    def spoil(self):
        next(iter(self.parts["optimizer"].state.values()))["exp_avg"].fill_(torch.nan)

    at(monkeypatch, STEP, spoil)


NOT_FINITE = {
    spoil_rewards: "rewards",
    spoil_rewards_by_infinity: "rewards",
    spoil_observations: "observations",
    spoil_last_observations: "losses",
    spoil_gradients: "losses",
    spoil_last_gradients: "losses",
    spoil_weights: "weights.critic.head.bias",
    spoil_policy: "weights.actor.head.bias",
    spoil_moments: "weights.actor.linear1.weight",
}


def not_finite(tensors):
    return sorted(
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    )


def assert_only_finite_is_saved(folder):
    paths = list(folder.glob("checkpoint/**/*.safetensors")) + list(folder.glob("crash/checkpoint/*/*.s*"))
    assert paths
    for path in paths:
        assert not not_finite(load_file(path))


@pytest.mark.parametrize("spoil", NOT_FINITE)
def test_nan_ends_the_run_in_the_same_update(spoil, tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path)
    spoil(monkeypatch)
    assert ending(args) == 70
    output = capsys.readouterr().err
    assert "error: not finite at step 80: " in output
    assert "Traceback" not in output
    folder = run_folder("ppo", args)
    crash = json.loads((folder / "crash" / "crash.json").read_text())
    assert crash["step"] == 80
    assert NOT_FINITE[spoil] in crash["not_finite"]
    assert not_finite(load_file(folder / "crash" / "tensors.safetensors")) == sorted(crash["not_finite"])
    name = f"step_{EVERY:012d}"
    assert [path.name for path in folder.glob("checkpoint/step_*")] == [name]
    assert tree(folder / "crash" / "checkpoint") == tree(folder / "checkpoint")
    assert_only_finite_is_saved(folder)
    for tag in ("losses/entropy", "losses/value_loss", "update/grad_norm"):
        assert scalars(folder)[tag] == undisturbed["scalars"][tag][:4]
    monkeypatch.undo()
    assert ending(args) == 0  # what was no fault of the run's does not come again
    assert outcome(args) == undisturbed


def test_infinity_by_a_huge_learning_rate_ends_the_run(tmp_path, monkeypatch):
    args = small(tmp_path, lr=1e25, max_grad_norm=1e38)
    steps, log_update = [], Run._log_update

    def logged(self, metrics):
        steps.append(self.stream.steps)
        assert all(weight.isfinite().all() for weight in self.parts["agent"].parameters())
        log_update(self, metrics)

    monkeypatch.setattr(Run, "_log_update", logged)
    assert ending(args) == 70
    folder = run_folder("ppo", args)
    crash = json.loads((folder / "crash" / "crash.json").read_text())
    assert crash["step"] == max(steps, default=0) + BATCH
    assert crash["not_finite"]
    assert not list(folder.glob("crash/checkpoint"))  # there was none yet


# Security


def tracked(*patterns):
    """Texts of the files that git knows of: name -> text."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.split() if (ROOT / name).exists()]
    assert names
    return {name: (ROOT / name).read_text() for name in names}


def test_commands_show_tensorboard_to_this_machine_only():
    starts = [
        line
        for text in tracked("README.md", "scripts/*", "*.py").values()
        for line in text.splitlines()
        if re.search(r"\btensorboard(\.main)?[\"',]* +[\"']?--", line) and "def " not in line
    ]
    assert starts
    for line in starts:
        hosts = re.findall(r"--host[=\", ]+([\w.]+)", line)
        assert set(hosts) <= {"127.0.0.1", "localhost"}, line
        assert "--bind" not in line, line


# Finished and unfinished runs


def test_overwrite_is_for_finished_runs(tmp_path, monkeypatch, undisturbed, capsys):
    args = small(tmp_path, overwrite=True)
    at(monkeypatch, 150, kill)
    assert ending(args) == -signal.SIGKILL
    capsys.readouterr()
    assert ending(args) == 0
    assert f"resumes at step {2 * EVERY}, exactly" in capsys.readouterr().out
    assert outcome(args) == undisturbed
    assert ending(dataclasses.replace(args, overwrite=False)) == 2
    assert outcome(args) == undisturbed
    assert ending(args) == 0
    assert "resumes" not in capsys.readouterr().out
    assert outcome(args) == undisturbed
    (file,) = event_files(run_folder("ppo", args))
    assert file.name == "events.out.tfevents.0000000003"


def test_overwrite_that_is_killed_while_it_clears_leaves_no_finished_run(tmp_path, monkeypatch, undisturbed):
    args = small(tmp_path)
    assert ending(args) == 0
    rmtree = shutil.rmtree

    def killed(path, *rest, **options):
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    assert ending(dataclasses.replace(args, overwrite=True)) == -signal.SIGKILL
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert not list(tmp_path.glob("**/summary.json"))
    assert ending(args) == 0
    assert outcome(args) == undisturbed


# Parts of a run's state


class Memory:
    """A part with data in a file of its own."""

    def __init__(self, path, exact=True):
        self.path, self.exact, self.due, self.pending, self.calls = path, exact, False, 3, []

    def open(self, attempt):
        self.calls.append("open")

    def flush(self):
        self.calls.append("flush")
        self.path.write_bytes(bytes(self.pending))

    def discard(self):
        self.calls.append("discard")

    def state_dict(self):
        self.calls.append("state")
        return {"size": self.path.stat().st_size}

    def load_state_dict(self, state):
        self.calls.append(state)


def test_part_is_flushed_before_its_state_is_taken(tmp_path):
    memory = Memory(tmp_path / "memory")
    begun = begin(small(tmp_path), memory=memory, bare=nn.Linear(1, 1))
    update(begun, EVERY - 2)
    assert memory.calls == ["open"]  # it is not time to save
    update(begun, EVERY)
    assert memory.calls == ["open", "flush", "state"]
    memory.due = True
    update(begun, EVERY + 2)
    begun.close()
    assert memory.calls == ["open", *2 * ("flush", "state")]
    assert saved(small(tmp_path))["parts"]["memory"] == {"size": 3}


def test_part_that_cannot_be_flushed_is_a_save_that_failed(tmp_path, monkeypatch, capsys):
    memory = Memory(tmp_path / "memory")
    begun = begin(small(tmp_path), memory=memory)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memory, "flush", full)
    for save in (1, 2):
        update(begun, save * EVERY)
    assert capsys.readouterr().err.count("could not be written (No space left on device)") == 2
    with pytest.raises(SystemExit) as exit:
        update(begun, 3 * EVERY)
    begun.close()
    assert exit.value.code == 74


@pytest.mark.parametrize("exact", [True, False])
def test_part_that_is_not_exact_is_reported_in_meta_json(exact, tmp_path):
    args = small(tmp_path)
    begun = begin(args, memory=Memory(tmp_path / "memory"))
    update(begun, EVERY)
    begun.close()
    memory = Memory(tmp_path / "memory", exact)
    again = begin(args, memory=memory)
    again.close()
    assert memory.calls == ["open", "state", {"size": 3}]  # what is loaded is compared with its state
    output = json.loads((again.folder / "meta.json").read_text())["resume_exact"]
    assert output == (True if exact else ["memory could not be restored exactly"])
