import gc
import multiprocessing
import os
import signal

import gymnasium as gym
import pytest
import torch

from neoteny.envs.single import workers
from neoteny.runners.disk.preemption import SIGNALS, Preemption
from tests import forked

# Read when cuBLAS is first used in a process: runs with --deterministic rely on it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Small networks are fastest with one thread, and the number of threads changes bits.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--grid-steps", type=int, default=400, help="steps beside MiniGrid's package, per id")
    parser.addoption("--board", action="store_true", help="look at TensorBoard in a browser, if there is one")
    parser.addoption(
        "--minatar-steps", type=int, default=2000, help="steps beside MinAtar's package, per game"
    )


def pytest_collection_finish():
    """What was imported stays, and is passed over when garbage is collected, as many tests do."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_waiting_for_a_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def signals():
    """A run that a test leaves open would take the signals that shall end the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    owners = [getattr(handler, "__self__", None) for handler in after.values()]
    assert not any(isinstance(owner, Preemption) for owner in owners), "a run was left open"


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of environments are forked from a process that has imported already what takes them seconds.

    Tests of how workers start do without this.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = forked.context()
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
        monkeypatch.setattr(workers, "serve", forked.serve)


@pytest.fixture
def register():
    """Registers an environment under a name until the test is over."""
    ids = []

    def add(entry_point, **kwargs):
        ids.append(f"Mine{len(ids)}-v0")
        gym.register(ids[-1], entry_point, kwargs=kwargs, disable_env_checker=True)
        return ids[-1]

    yield add
    for id in ids:
        del gym.registry[id]
