"""Workers: sub-environments in processes of their own, any of which may be killed or hang at any moment.

The parent never waits without a limit. A worker that died, does not answer in time or whose pipe broke is
killed and made anew, replays the running episodes of its sub-environments from the parent's log and is
given once more the command at which it was lost. What the stream returns is, bit for bit, what it would have
been.
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

from neoteny.envs.schedule import Schedule
from neoteny.envs.single.episodes import Episode, EpisodeLog
from neoteny.envs.single.serial import SerialEnvs, Step
from neoteny.envs.tasks import Spaces, TaskFunction

MOST_RESTARTS = 3
"""How often a worker is made anew at one and the same command."""

START_SECONDS = 120.0
"""How long a new process may take to import what it needs: cold network disks are slow."""

CLOSE_SECONDS = 5.0
"""How long workers may take to close their environments before they are killed."""

WORKER_SECONDS = 60.0
"""How long a worker may take to step, reset or make its environments, or for one step that is replayed,
before it is replaced."""

_LENGTH = struct.Struct("=Q")

Arguments = tuple[TaskFunction, Spaces, int, int]
Command = tuple[str, tuple[Any, ...]]


class WorkerError(RuntimeError):
    """A worker was lost again and again at one and the same command."""


class LostWorkerError(Exception):
    """A worker died, does not answer or broke its pipe; the message says which."""


class Worker:
    """The parent's end of one process.

    Both ends send pickles. The parent sends a list of commands, names of methods of :class:`SerialEnvs` with
    arguments, and the worker carries them all out. While it is at work it sends ``None`` as a sign of life,
    and at the end the observations of its sub-environments, the result of the last command and ``None``; or,
    in place of the latter, the exception that an environment raised.

    Args:
        timeout: seconds without a sign of life after which it counts as lost.
        arguments: of :class:`SerialEnvs`.
    """

    def __init__(self, timeout: float, arguments: Arguments) -> None:
        self.timeout = timeout
        self.socket, theirs = socket.socketpair()
        # A forked process would have our locks and signal handlers, and lack our threads.
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=serve, args=(theirs, timeout, arguments), daemon=True)
        try:
            self.process.start()
        except BaseException:  # the task cannot be pickled
            self.socket.close()
            raise
        finally:
            theirs.close()
        self.deadline = time.monotonic() + max(START_SECONDS, timeout)

    def send(self, commands: list[Command]) -> None:
        """Give it commands; raises LostWorkerError if it does not take them."""
        now = time.monotonic()
        self.deadline = max(self.deadline, now + self.timeout)
        try:
            self.socket.settimeout(self.deadline - now)
            _send(self.socket, commands)
        except OSError as error:
            raise self.lost() from error

    def receive(self) -> Any:
        """What it sent; raises LostWorkerError if that is nothing in time, or half a message."""
        try:
            self.socket.settimeout(self.timeout)  # of each read, since half of it may have come
            message = _receive(self.socket)
        except (EOFError, OSError) as error:
            raise self.lost() from error
        self.deadline = time.monotonic() + self.timeout
        return message

    def lost(self) -> LostWorkerError:
        """Why it is lost."""
        self.process.join(0.2)  # the pipe breaks a moment before the process has ended
        code = self.process.exitcode
        if code is None:
            return LostWorkerError(f"did not answer for {self.timeout:g} s")
        return LostWorkerError(
            f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        )

    def dismiss(self) -> None:
        """Have it close its environments and end."""
        with contextlib.suppress(OSError):  # it has ended
            self.socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End it whatever it does."""
        self.process.kill()  # SIGTERM would not reach it if it is stopped
        self.process.join(CLOSE_SECONDS)
        self.socket.close()


class ProcessEnvs:
    """The sub-environments of a stream, shared out among processes.

    The interface is that of :class:`SerialEnvs`, which every worker has one of.

    Args:
        task: can be pickled, as a function of a module can.
        log: the running episodes of all sub-environments, complete up to the command that is given.
        count: how many processes.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, log: EpisodeLog, count: int) -> None:
        self.make, self.log = (task, spaces), log
        bounds = [worker * log.num_envs // count for worker in range(count + 1)]
        self.shares = [range(*pair) for pair in itertools.pairwise(bounds)]
        self.restarts = 0
        self.workers: list[Worker] = []
        # Unlike weakref.finalize, this does nothing in a forked copy of this process, whose workers they are
        # not, and at exit comes before multiprocessing waits for processes that may be stopped.
        multiprocessing.util.Finalize(self, _kill, (self.workers,), exitpriority=10)
        for members in self.shares:
            self.workers.append(self._spawn(members))

    def enter(self, schedule: Schedule, steps: int) -> None:
        """Go over to the task that is on at step ``steps`` of the stream; all must be reset then."""
        self.current_task = schedule, steps
        self._ask("enter", [self.current_task] * len(self.workers))

    def reset(self, seeds: Sequence[int | None]) -> list[list[Any]]:
        """Start an episode in each that is given a seed; returns what it carries into it."""
        shares = [([seeds[env] for env in members],) for members in self.shares]
        return list(itertools.chain.from_iterable(self._ask("reset", shares)))

    def step(self, actions: np.ndarray) -> Step:
        """Step all, actions (N, ...)."""
        answers = self._ask("step", [(actions[members.start : members.stop],) for members in self.shares])
        *arrays, infos = zip(*answers)
        rewards, terminated, truncated = (np.concatenate(parts) for parts in arrays)
        return rewards, terminated, truncated, list(itertools.chain.from_iterable(infos))

    def restore(self, episodes: Sequence[Episode | None]) -> None:
        """Play episodes again in sub-environments that were just made; ``None`` where none was running."""
        self._ask("restore", [([episodes[env] for env in members],) for members in self.shares])

    def close(self) -> None:
        """Close the environments and end the processes, if need be by force; twice does no harm."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self.workers:
            worker.dismiss()
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        _kill(self.workers)
        self.workers.clear()

    def _ask(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Give each worker a command with its arguments; returns what they answer.

        Raises:
            WorkerError: a worker was lost again and again.
            Exception: whatever an environment raised, with the worker's traceback as a note.
        """
        if not self.workers:
            raise gym.error.ClosedEnvironmentError("the stream is closed")
        self.failures = [0] * len(self.workers)
        waiting: dict[int, Command] = {number: (name, its) for number, its in enumerate(arguments)}
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
            # Some may have carried out the command, which is not in the log. Should there be a next one,
            # they are all made anew, from the log.
            _kill(self.workers)
            raise
        self.observations = np.concatenate([answers[number][0] for number in range(len(self.workers))])
        return [answers[number][1] for number in range(len(self.workers))]

    def _hear(self, waiting: dict[int, Command]) -> list[tuple[int, Any]]:
        """Wait for workers; returns what came, or why nothing will, with the number of the worker."""
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
        """Give a worker a command; one that is lost is replaced first."""
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
        members = self.shares[number]
        self.failures[number] += 1
        if self.failures[number] > MOST_RESTARTS:
            raise WorkerError(
                f"{1 + MOST_RESTARTS} workers in a row were lost at the same command, the last one since it "
                f"{lost}; their sub-environments: {', '.join(map(self._describe, members))}"
            )
        self.restarts += 1
        print(
            f"warning: the worker of sub-environments {members[0]} to {members[-1]} {lost}; it is made anew "
            f"and replays their episodes",
            file=sys.stderr,
        )
        self.workers[number] = self._spawn(members)

    def _describe(self, env: int) -> str:
        episode = self.log[env]
        if episode is None:
            return f"{env} (no episode)"
        return f"{env} (seed {episode.seed}, {len(episode.actions)} actions)"

    def _spawn(self, members: range) -> Worker:
        return Worker(WORKER_SECONDS, (*self.make, len(members), self.log.num_envs))


def _kill(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


def serve(pipe: socket.socket, timeout: float, arguments: Arguments) -> None:
    """What a worker does: see :class:`Worker`."""
    _obey_the_parent()
    if "torch" in sys.modules:  # the workers are the threads
        sys.modules["torch"].set_num_threads(1)
    last_sign = -math.inf

    def alive() -> None:
        nonlocal last_sign
        if time.monotonic() > last_sign + timeout / 10:
            last_sign = time.monotonic()
            _send(pipe, None)

    alive()
    envs = SerialEnvs(*arguments, alive)
    while True:
        try:
            commands = _receive(pipe)
        except (EOFError, OSError):  # dismissed, or the parent is dead
            break
        try:
            for name, its in commands:
                alive()
                result = getattr(envs, name)(*its)
            _send(pipe, (envs.observations, result, None))
        except Exception as error:
            _send(pipe, (None, None, _portable(error)))
    envs.close()


def _send(pipe: socket.socket, message: Any) -> None:
    data = pickle.dumps(message)
    pipe.sendall(_LENGTH.pack(len(data)) + data)


def _receive(pipe: socket.socket) -> Any:
    """One message and no byte more: what were read ahead, waiting for the pipe would not see."""
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
    """Leave Ctrl-C to the parent and die with it; signals that end a process do, whatever the parent does."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # not on Windows
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Otherwise one that hangs outlives a parent that was killed. Linux means the thread that made us by
        # "parent"; should that one end before its process, the worker is made anew.
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:  # it died before
            os._exit(1)


def _portable(error: Exception) -> Exception:
    """The exception with its traceback as a note, since a traceback cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note("In the worker:\n\n" + "".join(traceback.format_exception(error)))
    return error
