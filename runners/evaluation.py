"""Evaluation: complete episodes of a policy, played without learning and without any effect on training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neoteny.envs.checks import write_observation
from neoteny.envs.repeatable import shared_state
from neoteny.envs.stream import Stream
from neoteny.envs.tasks import TaskEnv
from neoteny.runners.scores import evaluation_scores

Act = Callable[[Tensor], Tensor]
"""A policy: observations (B, ...), as its stream preprocesses them -> actions (B, ...)."""

LONGEST = 30_000  # steps after which an episode is cut; the longest of an Atari game has 27,000
PARALLEL = 8  # environments that are stepped together, so that the policy acts on batches


class Played(NamedTuple):
    """Episodes, E of them."""

    returns: NDArray[np.float64]  # (E,)
    lengths: NDArray[np.int64]  # (E,), in steps
    complete: NDArray[np.bool_]  # (E,), false where an episode was cut


def play(
    stream: Stream,
    act: Act,
    episodes: int,
    key: Sequence[int] = b"evaluation",
    task: int | None = None,
    longest: int = LONGEST,
    watch: Callable[[TaskEnv, NDArray[Any]], None] | None = None,
) -> Played:
    """Play episodes of a policy in environments of their own.

    Short episodes are not favoured: which episodes are played is settled by their seeds before the first
    step, and each is played to its end. The stream and its normalizer are only read, and the global random
    generators are restored, so that training goes on as if nothing had been played.

    Args:
        stream: the policy's; its tasks, preprocessing and seed are used.
        act: the policy.
        episodes: number of episodes, E.
        key: determines, with the stream's seed, the episodes and the random numbers of the policy.
        task: number of the task, as it is at the start of a visit or after a gradual change; ``None`` for the
            current task as it is at this step.
        longest: steps after which an episode is cut.
        watch: called with environment and observation after the reset and each step of the first episode.

    Raises:
        BrokenEnvironmentError: an observation does not fit the environment's space.
        Exception: any exception of an environment.
    """
    words = np.random.SeedSequence([stream.seed, *key]).generate_state(episodes + 1, np.uint64)
    seeds = (words[:-1] >> 33).tolist()  # old environments take seeds of 31 bits only
    played = Played(np.zeros(episodes), np.zeros(episodes, np.int64), np.zeros(episodes, bool))
    with _isolated(stream), contextlib.ExitStack() as to_close:
        torch.manual_seed(int(words[-1] >> 1))
        envs = [stream.make_eval_env(task) for _ in range(min(episodes, PARALLEL))]
        for env in envs:
            to_close.callback(env.close)
        seen = np.zeros((len(envs), *(envs[0].spaces[0].shape or ())), envs[0].spaces[0].dtype)
        waiting = iter(enumerate(seeds))
        running: dict[int, int] = {}  # environment -> episode

        def show(i: int, observation: Any) -> None:
            write_observation(seen[i, ...], observation, envs[i].env)
            if watch is not None and running[i] == 0:
                watch(envs[i], seen[i])

        def begin(i: int) -> None:
            if (following := next(waiting, None)) is not None:
                running[i], seed = following
                show(i, envs[i].reset(seed))

        for i in range(len(envs)):
            begin(i)
        while running:
            rows = sorted(running)
            for i, action in zip(rows, _actions(stream, act, seen[rows], task)):
                episode = running[i]
                observation, reward, terminated, truncated, _ = envs[i].step(action)
                show(i, observation)
                played.returns[episode] += float(reward)
                played.lengths[episode] += 1
                played.complete[episode] = terminated or truncated
                if played.complete[episode] or played.lengths[episode] == longest:
                    del running[i]
                    begin(i)
    return played


def _actions(stream: Stream, act: Act, observations: NDArray[Any], task: int | None) -> NDArray[Any]:
    """Actions (B, ...) of a policy for raw observations (B, ...), in the dtype of the environments."""
    with torch.inference_mode():
        actions = act(stream.preprocess(torch.from_numpy(observations), task=task))
    return actions.cpu().numpy().astype(stream.raw_spaces[1].dtype)


@contextlib.contextmanager
def _isolated(stream: Stream) -> Iterator[None]:
    """Restore all global random generators, and run compiled networks eagerly."""
    device = torch.device(stream.device or "cpu")
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []  # manual_seed seeds them all
    # Recompiling for another batch size could change the training results; the import takes a second.
    is_compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if is_compiling else contextlib.nullcontext()
    with shared_state(), torch.random.fork_rng(devices), eager:
        yield


class Evaluations:
    """Mean returns of a run's policy on all recurring tasks, before training and at the end of each visit.

    The episodes of a task are the same each time, so that a difference is one of the policy.

    Args:
        stream: of the run.
        act: the policy.
        episodes: per task and evaluation; 0 for no evaluations.
    """

    def __init__(self, stream: Stream, act: Act | None, episodes: int) -> None:
        if episodes and act is None:
            raise ValueError("--evaluate-at-switch needs an agent that gives its policy to the run")
        self.stream, self.act, self.episodes = stream, act, episodes
        self.rows: list[dict[str, Any]] = []
        """As in ``summary.json``: step, task of the visit that ended (``None`` before training), returns."""

    def ended(self, visited: Sequence[int], is_over: bool) -> list[int | None]:
        """``None`` and the tasks of the visits that have ended, if they have not been evaluated yet.

        Args:
            visited: tasks of all visits of the run so far.
            is_over: whether the last one has ended because the run has.
        """
        if not self.episodes:
            return []
        is_left = is_over or (bool(visited) and visited[-1] != self.stream.task)
        count = 1 + max(0, len(visited) - (not is_left))
        del self.rows[count:]  # of a visit that goes on, if the resumed run is longer than it was
        return [visited[i - 1] if i else None for i in range(len(self.rows), count)]

    def evaluate(
        self, ended: Sequence[int | None], proceed: Callable[[int], bool] = lambda task: True
    ) -> dict[str, float]:
        """Evaluate the policy; one evaluation stands for all visits that have ended in the same update.

        Args:
            ended: from :meth:`ended`.
            proceed: asked before each task; if it answers no, the evaluation is given up.

        Returns:
            The ``evaluation/`` tags; empty if the evaluation was given up.
        """
        assert self.act is not None
        returns: dict[str, float] = {}
        for task in sorted(set(self.stream.schedule.cycle)):
            if not proceed(task):
                return {}
            key = (*b"evaluation", task)
            returns[str(task)] = float(play(self.stream, self.act, self.episodes, key, task).returns.mean())
        self.rows += [{"step": self.stream.steps, "task": task, "returns": dict(returns)} for task in ended]
        return {f"evaluation/task_{task}": mean for task, mean in returns.items()}

    def scores(self) -> dict[str, float]:
        """The ``score/`` tags that need evaluations; empty without them."""
        if len(self.rows) < 2:
            return {}
        tasks = [int(task) for task in self.rows[0]["returns"]]
        returns = np.array([[row["returns"][str(task)] for task in tasks] for row in self.rows])
        return evaluation_scores(returns, [tasks.index(row["task"]) for row in self.rows[1:]])
