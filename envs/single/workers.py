"""Workers: processes that step sub-environments, and that may be killed or hang at any moment.

The parent never waits without a time limit. A worker that died, does not answer in time or whose pipe broke
is killed and restarted: the new process replays the running episodes from the parent's log and repeats the
command at which the old one was lost. The results of the stream stay the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper
from numpy.typing import NDArray

from neoteny.envs.checks import BrokenEnvironmentError
from neoteny.envs.registry import TYPED, import_typed
from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode, EpisodeLog
from neoteny.envs.single.serial import SerialEnvs, Step
from neoteny.envs.tasks import Spaces, TaskFunction

MOST_RESTARTS = 3
"""Restarts of a worker at the same command before the run gives up."""

START_SECONDS = 120.0
"""Time for a new process to import its packages: cold network disks are slow."""

CLOSE_SECONDS = 5.0
"""Time for workers to close their environments before they are killed."""

WORKER_SECONDS = 60.0
"""Time for a worker to step, reset or make its environments, or to replay one step, before it is replaced."""

_LENGTH = struct.Struct("=Q")

Arguments = tuple[TaskFunction, Spaces, int, int]
Command = tuple[str, tuple[Any, ...]]


class WorkerError(RuntimeError):
    """A worker was lost repeatedly at the same command."""


class LostWorkerError(Exception):
    """A worker died, does not answer or its pipe broke; the message says which."""


class Worker:
    """The parent's end of one process.

    Both ends send pickles. The parent sends a list of commands: names of methods of :class:`SerialEnvs` with
    their arguments. The worker runs them all. Meanwhile it sends ``None`` as a heartbeat, and at the end
    (observations of its sub-environments, result of the last command, ``None``), or (``None``, ``None``,
    exception) if an environment raised one.

    Args:
        timeout: seconds without a heartbeat after which the worker counts as lost.
        arguments: for the constructor of :class:`SerialEnvs`.

    Raises:
        ValueError: the task cannot be pickled. No process was started.
    """

    def __init__(self, timeout: float, arguments: Arguments) -> None:
        packed = _packed(arguments)
        self.timeout = timeout
        self.socket, theirs = socket.socketpair()
        # A forked process would inherit our locks and signal handlers, but not our threads.
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=serve, args=(theirs, timeout, packed), daemon=True)
        try:
            self.process.start()
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()
        self.deadline = time.monotonic() + max(START_SECONDS, timeout)

    def send(self, commands: list[Command]) -> None:
        """Send commands; raises LostWorkerError if the worker does not take them."""
        now = time.monotonic()
        self.deadline = max(self.deadline, now + self.timeout)
        try:
            self.socket.settimeout(self.deadline - now)
            _send(self.socket, commands)
        except OSError as error:
            raise self.lost() from error

    def receive(self) -> Any:
        """Receive a message; raises LostWorkerError if none, or only a part of one, comes in time."""
        try:
            self.socket.settimeout(self.timeout)  # for each read, since a part may be there already
            message = _receive(self.socket)
        except (EOFError, OSError) as error:
            raise self.lost() from error
        self.deadline = time.monotonic() + self.timeout
        return message

    def lost(self) -> LostWorkerError:
        """The error that says why the worker is lost."""
        self.process.join(0.2)  # the pipe breaks a moment before the process has ended
        code = self.process.exitcode
        if code is None:
            return LostWorkerError(f"did not answer for {self.timeout:g} s")
        return LostWorkerError(
            f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        )

    def dismiss(self) -> None:
        """Ask the worker to close its environments and exit."""
        with contextlib.suppress(OSError):  # it has exited already
            self.socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()  # a stopped process would not react to SIGTERM
        self.process.join(CLOSE_SECONDS)
        self.socket.close()


class ProcessEnvs:
    """The sub-environments of a stream, divided among worker processes.

    It has the interface of :class:`SerialEnvs`; each worker holds a ``SerialEnvs`` of its share.

    Args:
        task: must be picklable, by cloudpickle if need be.
        log: the running episodes of all sub-environments, up to date before each command.
        count: number of processes.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, log: EpisodeLog, count: int) -> None:
        self.make, self.log = (task, spaces), log
        bounds = [worker * log.num_envs // count for worker in range(count + 1)]
        self.shares = [range(*pair) for pair in itertools.pairwise(bounds)]
        self.restarts = 0
        self.infos: Sequence[dict[str, Any]] = ()
        """The environments' infos of the latest step."""
        self.workers: list[Worker] = []
        # Unlike weakref.finalize, this does nothing in a forked copy of this process, which does not own the
        # workers, and at exit it runs before multiprocessing joins its processes, which may be stopped.
        multiprocessing.util.Finalize(self, _kill, (self.workers,), exitpriority=10)
        for envs in self.shares:
            self.workers.append(self._spawn(envs))

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Switch to the task of the stream's step ``steps``; all environments must be reset afterwards."""
        self.current_task = schedule, steps
        self._ask("enter", [self.current_task] * len(self.workers))

    def reset(self, seeds: Sequence[int | None]) -> list[list[Any]]:
        """Start an episode in each environment that is given a seed; returns the lifelong states."""
        shares = [([seeds[env] for env in envs],) for envs in self.shares]
        return list(itertools.chain.from_iterable(self._ask("reset", shares)))

    def step(self, actions: np.ndarray) -> Step:
        """Step all environments, actions (N, ...)."""
        answers = self._ask("step", [(actions[envs.start : envs.stop],) for envs in self.shares])
        self.infos = WorkerInfos(self)
        rewards, terminated, truncated = map(np.concatenate, zip(*answers))
        return rewards, terminated, truncated

    def latest_infos(self) -> list[dict[str, Any]]:
        """The environments' infos of the latest step, empty if their worker was lost since then."""
        shares = self._ask("latest_infos", [()] * len(self.workers))
        return list(itertools.chain.from_iterable(shares))

    def restore(self, episodes: Sequence[Episode | None]) -> NDArray[np.float64]:
        """Replay episodes in freshly made environments; returns as of :meth:`SerialEnvs.restore`, (N,)."""
        shares = [([episodes[env] for env in envs],) for envs in self.shares]
        return np.concatenate(self._ask("restore", shares))

    def close(self) -> None:
        """Close the environments and end the processes, if need be by force; may be called twice."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self.workers:
            worker.dismiss()
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        _kill(self.workers)
        self.workers.clear()

    def _ask(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send a command with its arguments to each worker; returns the results.

        Raises:
            WorkerError: a worker was lost repeatedly.
            Exception: any exception of an environment, with the worker's traceback as a note.
        """
        if not self.workers:
            raise gym.error.ClosedEnvironmentError("the stream is closed")
        self.failures = [0] * len(self.workers)
        waiting: dict[int, Command] = {number: (name, args) for number, args in enumerate(arguments)}
        answers: dict[int, tuple[np.ndarray, Any]] = {}
        try:
            for number, command in waiting.items():
                self._give(number, command)
            while waiting:
                for number, message in self._hear(waiting):
                    if isinstance(message, LostWorkerError):
                        self._give(number, waiting[number], message)
                    elif message is not None:
                        observations, answer, error = message
                        if error is not None:
                            raise error
                        answers[number] = observations, answer
                        del waiting[number]
        except BaseException:
            # Some workers may have run the command, which is not in the log. Killed, they are all restarted
            # from the log if another command follows.
            _kill(self.workers)
            raise
        self.observations = np.concatenate([answers[number][0] for number in range(len(self.workers))])
        return [answers[number][1] for number in range(len(self.workers))]

    def _hear(self, waiting: dict[int, Command]) -> list[tuple[int, Any]]:
        """Wait for workers; returns (number of the worker, message or LostWorkerError) pairs."""
        workers = {number: self.workers[number] for number in waiting}
        first = min(worker.deadline for worker in workers.values())
        sockets = [worker.socket for worker in workers.values()]
        ready = multiprocessing.connection.wait(sockets, max(0.0, first - time.monotonic()))
        now = time.monotonic()
        heard: list[tuple[int, Any]] = []
        for number, worker in workers.items():
            if worker.socket in ready:
                try:
                    heard.append((number, worker.receive()))
                except LostWorkerError as lost:
                    heard.append((number, lost))
            elif worker.deadline <= now:
                heard.append((number, worker.lost()))
        return heard

    def _give(self, number: int, command: Command, lost: LostWorkerError | None = None) -> None:
        """Send a command to a worker; a lost worker is replaced first."""
        commands = [command]
        while True:
            if lost is not None:
                self._replace(number, lost)
                episodes = [self.log[env] for env in self.shares[number]]
                commands = [("enter", self.current_task), ("restore", (episodes,)), command]
            try:
                return self.workers[number].send(commands)
            except LostWorkerError as error:
                lost = error

    def _replace(self, number: int, lost: LostWorkerError) -> None:
        self.workers[number].kill()
        envs = self.shares[number]
        self.failures[number] += 1
        if self.failures[number] > MOST_RESTARTS:
            raise WorkerError(
                f"{1 + MOST_RESTARTS} workers in a row were lost at the same command; the last one {lost}; "
                f"their sub-environments: {', '.join(map(self._describe, envs))}"
            )
        self.restarts += 1
        print(
            f"warning: the worker of sub-environments {envs[0]} to {envs[-1]} {lost}; it is restarted "
            f"and replays their episodes",
            file=sys.stderr,
        )
        self.workers[number] = self._spawn(envs)

    def _describe(self, env: int) -> str:
        episode = self.log[env]
        if episode is None:
            return f"{env} (no episode)"
        return f"{env} (seed {episode.seed}, {len(episode.actions)} actions)"

    def _spawn(self, envs: range) -> Worker:
        return Worker(WORKER_SECONDS, (*self.make, len(envs), self.log.num_envs))


class WorkerInfos(Sequence[dict[str, Any]]):
    """The infos of one step, one per environment, which workers send only if somebody reads them.

    Reading them first after the next step raises RuntimeError; reading an info that cannot be pickled raises
    an exception.
    """

    def __init__(self, envs: ProcessEnvs) -> None:
        self._envs = envs
        self._infos: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Number of environments."""
        return self._envs.log.num_envs

    def __getitem__(self, index: Any) -> Any:
        """The info of an environment, or a list of infos."""
        if self._infos is None:
            if self._envs.infos is not self:
                raise RuntimeError("infos of workers must be read before the next step")
            self._infos = self._envs.latest_infos()
        return self._infos[index]


def _kill(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


def serve(pipe: socket.socket, timeout: float, packed: bytes) -> None:
    """Main loop of a worker process: see :class:`Worker`."""
    _obey_the_parent()
    if "torch" in sys.modules:  # the parallelism is in the workers
        sys.modules["torch"].set_num_threads(1)
    last_sign = -math.inf

    def alive() -> None:
        nonlocal last_sign
        if time.monotonic() > last_sign + timeout / 10:
            last_sign = time.monotonic()
            _send(pipe, None)

    try:
        envs = SerialEnvs(*_unpacked(packed), alive)
    except Exception as error:
        with contextlib.suppress(EOFError, OSError):
            _receive(pipe)
            _send(pipe, (None, None, _portable(error)))
        return
    alive()
    while True:
        try:
            commands = _receive(pipe)
        except (EOFError, OSError):  # dismissed, or the parent died
            break
        try:
            for name, args in commands:
                alive()
                result = getattr(envs, name)(*args)
            _send(pipe, (envs.observations, result, None))
        except SystemExit as error:
            _send(pipe, (None, None, BrokenEnvironmentError(f"a task called sys.exit({error.code!r})")))
        except Exception as error:
            _send(pipe, (None, None, _portable(error)))
    envs.close()


def _packed(arguments: Arguments) -> bytes:
    """Pickle arguments, with cloudpickle what pickle cannot, such as a lambda; raises ValueError if it fails.

    A function that is pickled as a whole may name environments that its module registers: the modules that
    were typed on the command line are imported in the worker first.
    """
    try:
        return pickle.dumps(((), pickle.dumps(arguments)))
    except Exception:
        try:
            packed = pickle.dumps(CloudpickleWrapper(lambda: arguments))
        except Exception as error:
            raise ValueError(
                f"--stream.single.workers cannot send the task to its processes: "
                f"{type(error).__name__}: {error}"
            ) from error
    return pickle.dumps((TYPED, packed))


def _unpacked(packed: bytes) -> Arguments:
    """What :func:`_packed` has packed."""
    modules, inner = pickle.loads(packed)
    for module in modules:
        with contextlib.suppress(ValueError):  # it is not on the path any more
            import_typed(f"{module}:")
    arguments = pickle.loads(inner)
    return arguments() if isinstance(arguments, CloudpickleWrapper) else arguments


def _send(pipe: socket.socket, message: Any) -> None:
    data = pickle.dumps(message)
    pipe.sendall(_LENGTH.pack(len(data)) + data)


def _receive(pipe: socket.socket) -> Any:
    """Read exactly one message: ``connection.wait`` would not see bytes that were read ahead."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return pickle.loads(_read(pipe, length))


def _read(pipe: socket.socket, length: int) -> bytearray:
    data = bytearray()
    while len(data) < length:
        part = pipe.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _obey_the_parent() -> None:
    """Ignore Ctrl-C and a closed terminal, which are the parent's; restore other defaults; die with it."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # not on Windows
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        # Otherwise a worker that hangs would outlive a killed parent. By "parent" Linux means the thread that
        # started this process; should that thread end before its process, the worker is restarted.
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:  # it has died already
            os._exit(1)


def _portable(error: Exception) -> Exception:
    """The exception with its traceback as a note, since a traceback cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note("In the worker:\n\n" + "".join(traceback.format_exception(error)))
    return error
