"""The auditor of a stream: compares tasks before training, and the new task with the old at each switch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any, Literal, get_args

import gymnasium as gym

from neoteny.envs.audit import Fingerprint, Moment, compare, fingerprint, parameters, rollout, set_parameters
from neoteny.envs.schedule import Schedule
from neoteny.envs.tasks import Spaces, SpacesError, TaskFunction, check_spaces

AuditMode = Literal["on", "warn", "off"]

BEGINNING = 16  # steps of each task that are compared first
STEPS = 4096  # in which two tasks that differ should differ
SECONDS = 3.0  # for all comparisons before training
JUMP_STEPS = 256  # in which a gradual change that starts with a jump should be seen
SWITCH_STEPS = 256  # of all rollouts at a switch, so that they take at most 1 % of a task's time
LET_THROUGH = "--stream.audit warn lets it through"


class Auditor:
    """Compares the tasks of a stream.

    Before training, tasks that follow one another are rolled out beside each other until they differ, which
    takes some steps for most, and a stream is refused if two of them do not. At a switch the fingerprint of
    the new task is compared with that of the old one; the result is a warning, since by then it would be a
    pity about the run.

    Args:
        task: makes task ``k`` from ``(k, seed)``.
        spaces: of the stream's first task.
        mode: whether tasks that do not differ are refused before training (on) or lead to a warning (warn),
            or tasks are compared not at all (off). Their spaces are compared in any case.

    Raises:
        ValueError: the mode is none of these.
    """

    def __init__(self, task: TaskFunction, spaces: Spaces, mode: AuditMode) -> None:
        if mode not in get_args(AuditMode):
            raise ValueError(f"--stream.audit must be one of {', '.join(get_args(AuditMode))}, not {mode!r}")
        self.make_task, self.spaces, self.mode = task, spaces, mode
        self.fingerprints: dict[int, Fingerprint] = {}
        self.seconds = 0.0
        self.warning = ""
        """What was wrong at the last switch; an empty string if nothing was."""
        self._differing: set[frozenset[int]] = set()  # pairs of tasks that were seen to differ
        self._fitting: set[int] = set()  # tasks that have the stream's spaces
        self._begun: Schedule | None = None  # whose tasks were compared, with these warnings
        self._warnings: list[str] = []

    def begin(self, schedule: Schedule) -> list[str]:
        """Compare tasks before training, and take the fingerprint of the first.

        Returns:
            Warnings.

        Raises:
            SpacesError: a task has other spaces than the first.
            ValueError: if the audit is on: two tasks that follow one another behave the same, or a gradual
                change would start with a jump.
        """
        started = time.perf_counter()
        self.fingerprints.clear()
        self.warning = ""
        if schedule != self._begun:
            self._differing.clear()
            self._fitting.clear()
            self._warnings = list(self._among_tasks(schedule))
            self._begun = schedule
        if self.mode != "off":
            self._known(schedule.task_at(0), schedule)
        self.seconds += time.perf_counter() - started
        return self._warnings

    def switch(self, schedule: Schedule, old: int, new: int) -> None:
        """Compare the task after a switch with the one before, and with itself at earlier visits."""
        if schedule.tasks is None:  # the old task never recurs
            self._fitting.discard(old)
        if self.mode == "off":
            return
        started = time.perf_counter()
        try:
            warnings = list(self._at_switch(schedule, old, new))
        except Exception as error:
            warnings = [f"task {new} could not be audited: {type(error).__name__}: {error}"]
        self.warning = "; ".join(warnings)
        if schedule.tasks is None:
            self.fingerprints.pop(old, None)
        self.seconds += time.perf_counter() - started

    def misfit(self, k: int, seed: int) -> str:
        """In what the spaces of a task differ from the stream's; an empty string if they are the same."""
        if k not in self._fitting:
            with contextlib.closing(self.make_task(k, seed)) as env:
                try:
                    check_spaces(env, self.spaces, k)
                except SpacesError as error:
                    return str(error)
            self._fitting.add(k)
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Fingerprints of the tasks so far and the last warning."""
        prints = {str(k): dataclasses.asdict(known) for k, known in self.fingerprints.items()}
        return {"fingerprints": prints, "audit_seconds": self.seconds, "audit_warning": self.warning}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state; fingerprints of version 0.2.0 are left out."""
        loaded = {int(k): Fingerprint(**known) for k, known in state["fingerprints"].items()}
        self.fingerprints = {k: known for k, known in loaded.items() if known.comparable()}
        self.seconds = state["audit_seconds"]
        self.warning = state.get("audit_warning", "")

    def _among_tasks(self, schedule: Schedule) -> Iterator[str]:
        """Compare the tasks of a schedule, as long as there is time; yields warnings."""
        until, pairs = time.perf_counter() + SECONDS, neighbours(schedule)
        beginnings: dict[int, list[Moment]] = {}  # most tasks differ in them, and some are slow to make
        for k in dict.fromkeys((*schedule.cycle, *itertools.chain(*pairs))):
            with contextlib.closing(self.make_task(k, schedule.seed)) as env:
                check_spaces(env, self.spaces, k)
                beginnings[k] = list(rollout(env, BEGINNING)) if self.mode != "off" else []
            self._fitting.add(k)
        for old, new in pairs if self.mode != "off" else ():
            left = until - time.perf_counter()
            if any(map(Moment.differs_from, beginnings[old], beginnings[new])):
                self._differing.add(frozenset((old, new)))
            elif left > 0 and frozenset((old, new)) not in self._differing:
                yield from self._compare(old, new, schedule.seed, left)
            if schedule.drift_fraction and left > 0:
                yield from self._jump(old, new, schedule.seed)

    def _known(self, k: int, schedule: Schedule) -> Fingerprint:
        """The fingerprint of a task, taken now if it was not before."""
        if k not in self.fingerprints:
            self.fingerprints[k] = fingerprint(self.make_task(k, schedule.seed), rollout_steps(schedule))
        return self.fingerprints[k]

    def _at_switch(self, schedule: Schedule, old: int, new: int) -> Iterator[str]:
        """What is wrong with a switch."""
        steps = rollout_steps(schedule)
        before, now = self._known(old, schedule), fingerprint(self.make_task(new, schedule.seed), steps)
        if not self.fingerprints.setdefault(new, now).same_as(now):
            yield f"task {new} has changed since its last visit: it must be a function of (k, seed) alone"
        if now.same_as(before) and frozenset((old, new)) not in self._differing:
            yield f"the switch changed nothing: in a short rollout task {new} behaves exactly as task {old}"
        if schedule.drift_fraction:
            changed = self._with_parameters(new, schedule.seed, before.parameters)
            if not fingerprint(changed, steps).same_as(before):
                yield _jumps(old, new)

    def _compare(self, old: int, new: int, seed: int, seconds: float) -> Iterator[str]:
        """Roll out two tasks; yields a warning if they do not differ."""
        found = compare(self.make_task(old, seed), self.make_task(new, seed), STEPS, seconds)
        if found.difference:
            self._differing.add(frozenset((old, new)))
        elif found.steps < STEPS:
            yield f"task {new} behaves exactly as task {old} in the {found.steps:,} steps that were tried"
        else:
            same = f"task {new} behaves exactly as task {old} in {STEPS:,} random steps"
            yield self._refuse(f"the switch changed nothing: {same}")

    def _jump(self, old: int, new: int, seed: int) -> Iterator[str]:
        """Compare a task with the next one at the start of a gradual change; yields a warning for a jump."""
        before = self.make_task(old, seed)
        changed = self._with_parameters(new, seed, parameters(before))
        if compare(before, changed, JUMP_STEPS).difference:
            yield self._refuse(_jumps(old, new))

    def _refuse(self, reason: str) -> str:
        """The reason as a warning; ValueError if the audit is on."""
        if self.mode == "on":
            raise ValueError(f"{reason}; {LET_THROUGH}")
        return reason

    def _with_parameters(self, k: int, seed: int, values: dict[str, float]) -> gym.Env:
        env = self.make_task(k, seed)
        set_parameters(env, values)
        return env


def rollout_steps(schedule: Schedule) -> int:
    """Steps of each rollout at a switch: of one if the change is abrupt, of two if it is gradual."""
    return SWITCH_STEPS // 2 if schedule.drift_fraction else SWITCH_STEPS


def neighbours(schedule: Schedule) -> list[tuple[int, int]]:
    """Pairs of tasks, old and new, between which a stream switches; of tasks that never recur the first."""
    if schedule.period is None:
        return []
    if schedule.tasks is None:
        return [(schedule.task_of(0), schedule.task_of(1))]
    pairs = list(itertools.pairwise((*schedule.cycle, schedule.cycle[0])))
    if schedule.order == "random":
        pairs += itertools.permutations(schedule.cycle, 2)
    return list(dict.fromkeys((old, new) for old, new in pairs if old != new))


def _jumps(old: int, new: int) -> str:
    return (
        f"task {old} cannot turn gradually into task {new}, which differs in more than numeric attributes of "
        "the environment"
    )
