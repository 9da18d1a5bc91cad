"""Workers that are killed, stopped or hang at any moment, against the same stream in one process."""

import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.single import workers
from neoteny.envs.single.engine import SingleConfig
from tests.envs.test_stream import advance, assert_same_steps
from tests.faulty import drifting

SCRIPT = """
import os, signal, time
from neoteny.envs import StreamConfig
from neoteny.envs.single.engine import SingleConfig

if __name__ == "__main__":
    stream = StreamConfig("CartPole-v1", single=SingleConfig(workers=2)).make(2)
    pids = [worker.process.pid for worker in stream.engine.envs.workers]
    os.kill(pids[0], signal.SIGSTOP)
    print(*pids, flush=True)
    time.sleep(60)
"""


def faults(folder, *names):
    """Have these happen, one after the other."""
    for number, name in enumerate(names):
        (folder / f"{number},{name}").touch()


def drift_stream(folder=None, workers=0):
    task = functools.partial(drifting, folder and str(folder))
    engines = [SingleConfig(workers=workers)]
    return Stream(task, Schedule(period=120), engines, num_envs=3, seed=5, audit="off")


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def no_orphans():
    yield
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_may_be_lost_at_any_moment_and_nothing_changes(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(workers, "CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(workers, "WORKER_SECONDS", 1.0)
    # The second happens while the worker that is lost at the first plays five steps again.
    faults(tmp_path, "step 6,kill", "step 3,stop", "reset 1,kill", "make 2,end")
    here, there = drift_stream(), drift_stream(tmp_path, workers=2)
    np.testing.assert_array_equal(here.reset()[0], there.reset()[0])
    assert_same_steps(advance(here, 110), advance(there, 110))
    assert there.engine.envs.restarts == 4
    assert there.task == 2

    os.kill(there.engine.envs.workers[1].process.pid, signal.SIGKILL)
    assert_same_steps(advance(here, 3), advance(there, 3))
    assert there.engine.envs.restarts == 5
    ours, theirs = here.state_dict(), there.state_dict()
    for one, other in zip(ours["engine"]["running"], theirs["engine"]["running"], strict=True):
        assert one.keys() == other.keys() == {"began", "seed", "lifelong", "actions"}
        np.testing.assert_array_equal(one.pop("actions"), other.pop("actions"))
        assert one == other
    assert any(episode["lifelong"][0]["step"] > 0 for episode in theirs["engine"]["running"])

    output = capfd.readouterr().err.splitlines()
    assert len(output) == 5
    assert "of sub-environments 1 to 2 was killed by signal 9" in output[-1]
    assert sum("did not answer for 1 s" in line for line in output) == 1
    assert sum("exit code 3" in line for line in output) == 1

    pids = [worker.process.pid for worker in there.engine.envs.workers]
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    there.close()
    assert time.monotonic() - began < 3
    there.close()
    assert not any(map(alive, pids))
    with pytest.raises(gym.error.ClosedEnvironmentError):
        there.step(np.zeros(3, int))


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_is_always_lost_is_given_up(tmp_path, monkeypatch):
    assert workers.MOST_RESTARTS == 3
    monkeypatch.setattr(workers, "MOST_RESTARTS", 1)  # to save time
    monkeypatch.setattr(workers, "WORKER_SECONDS", 0.5)
    faults(tmp_path, "step 4,end", "step 4,hang")
    stream = drift_stream(tmp_path, workers=1)
    stream.reset()
    advance(stream, 3)
    seeds = [episode["seed"] for episode in stream.state_dict()["engine"]["running"]]
    named = ", ".join(rf"{env} \(seed {seed}, 3 actions\)" for env, seed in enumerate(seeds))
    with pytest.raises(RuntimeError, match=rf"2 workers in a row .* not answer for 0\.5 s; .*: {named}"):
        advance(stream, 1)
    assert stream.engine.envs.restarts == 1
    stream.close()


@pytest.mark.usefixtures("forked_workers")
def test_what_an_environment_raises_is_raised_here(tmp_path):
    faults(tmp_path, "step 2,complain")
    here, there = drift_stream(), drift_stream(tmp_path, workers=1)
    here.reset()
    there.reset()
    assert_same_steps(advance(here, 1), advance(there, 1))
    with pytest.raises(KeyError, match="on purpose") as caught:
        advance(there, 1)
    assert 'faulty.py", line' in "".join(caught.value.__notes__)
    assert there.engine.envs.restarts == 0
    assert_same_steps(advance(here, 3), advance(there, 3))  # the step that failed was not made
    del there, caught
    gc.collect()  # which ends the worker of a stream that nobody closed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 3}, "--stream.single.workers must be 0 to 2"),
        ({"workers": -1}, "--stream.single.workers must be 0 to 2"),
    ],
)
def test_what_cannot_run_is_refused_by_the_name_of_its_flag(options, message):
    with pytest.raises(ValueError, match=message):
        StreamConfig("CartPole-v1", single=SingleConfig(**options)).make(2)


def test_a_task_that_cannot_be_pickled_starts_no_worker():
    lock = threading.Lock()

    def local(k, seed):
        with lock:
            return gym.make("CartPole-v1")

    with pytest.raises(ValueError, match=r"^--stream\.single\.workers cannot send the task .*pickle"):
        Stream(local, Schedule(), [SingleConfig(workers=1)], 1)


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_does_not_read_its_commands_is_lost():
    worker = workers.Worker(10.0, (drifting, (gym.spaces.Discrete(1),) * 2, 1, 1))
    assert worker.receive() is None  # it has begun
    os.kill(worker.process.pid, signal.SIGSTOP)
    for size in (10, 1_000_000):  # the second does not fit the pipe
        worker.timeout, worker.deadline, began = 0.3, 0.0, time.monotonic()
        command = ("step", (np.zeros(size),))
        with pytest.raises(workers.LostWorkerError, match=r"did not answer for 0\.3 s"):
            _ = worker.send([command]), worker.receive()
        assert 0.3 <= time.monotonic() - began < 2
    worker.kill()
