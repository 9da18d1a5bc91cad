"""A run: folder, checkpoints, TensorBoard events, progress bar and scores."""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard.summary import text

from neoteny.envs.audit import Fingerprint
from neoteny.envs.transfer import read_together
from neoteny.optim import Methods
from neoteny.runners.board import end_summary, setup_summaries
from neoteny.runners.console import first_lines, last_lines, progress_bar, shown
from neoteny.runners.disk.appended import read_rows
from neoteny.runners.disk.crash import magnitudes, named_tensors, save_crash
from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop
from neoteny.runners.disk.folder import check_path, run_folder
from neoteny.runners.disk.messages import tell, warn
from neoteny.runners.disk.preemption import Preemption
from neoteny.runners.episodes import Episodes, visit_of
from neoteny.runners.evaluation import Act, Evaluations
from neoteny.runners.identity import Identity
from neoteny.runners.illustrations import Illustrations
from neoteny.runners.optimizers import check_optimizer
from neoteny.runners.parts import OnDisk, Stateful, restore_part
from neoteny.runners.record import open_record
from neoteny.runners.scores import Visit, run_scores
from neoteny.runners.together import Together
from neoteny.runners.weights import policy_as_bytes

FAILED_SAVES = 3  # failed checkpoints in a row after which a run ends


class Run:
    """One run on disk and in TensorBoard, started or resumed from its last checkpoint.

    The constructor opens the folder and restores all parts of the run's state. Then end each update with
    ``with run.end_update(...)``, and the run with :meth:`finish`.

    Args:
        agent_file: file of the agent, which is also its name; or only its name.
        args: the agent's arguments, a :class:`RunArgs` with ``stream`` and ``optim``.
        stream: the agent's :class:`Stream`, already reset, or :class:`SupervisedStream`; its ``steps`` are
            those of the run.
        total_steps: environment steps of the whole run.
        remarks: on the set-up, to be logged to TensorBoard's text page, and to be printed but for indented
            lines; empty ones are left out.
        act: the policy, for videos and evaluations.
        chart: name of the chart of scores, if they are not the returns of episodes.
        together: what it shares with the runs of other seeds in this process.
        parts: all other parts of the run's state, by name. ``methods`` are restored first, since they may
            change the network's structure, then the stream, then the others in this order. The folder is
            named after ``optimizer``.

    Raises:
        SystemExit: code 2 and one sentence, if the folder holds a finished run and ``--overwrite`` is not
            given, an unfinished run with other arguments or parts, or only damaged checkpoints; 74 if the
            disk is full; 75 if a signal came meanwhile.
    """

    def __init__(
        self,
        agent_file: str,
        args: Any,
        stream: Any,
        total_steps: int,
        remarks: Sequence[str] = (),
        act: Act | None = None,
        chart: str = "episodic_return",
        together: Together | None = None,
        **parts: Stateful,
    ) -> None:
        optimizer = parts.get("optimizer")
        with bad_input():
            for part in parts.values():
                if isinstance(part, Optimizer):
                    check_optimizer(part)
            self.evaluations = Evaluations(stream, act, args.evaluate_at_switch)
        known = optimizer if isinstance(optimizer, Optimizer) else None
        self.folder = run_folder(agent_file, args, known)
        with bad_input():
            check_path(self.folder)
        self.args, self.stream = args, stream
        self.total_steps, self.act, self.together = total_steps, act, together
        self.parts = {"stream": stream, **parts}
        self._on_disk = [part for part in self.parts.values() if isinstance(part, OnDisk)]
        self.identity = Identity(agent_file, args)
        self.episodes = Episodes(chart, recurring=stream.schedule.tasks is not None)
        self.seconds: dict[str, float] = {}
        self.updates_made = self._saved = self._failed_saves = 0
        self._audit_warned = False

        with contextlib.ExitStack() as resources:  # closed if the constructor fails
            self.preemption = together or resources.enter_context(Preemption())
            latest = together.step if together else math.inf
            self.record, state = open_record(self.folder, self.identity, args.overwrite, latest)
            resources.callback(self.record.close)
            self.attempt, self.writer = self.record.attempt, self.record.writer
            self._begin(remarks, first_lines(agent_file, args, total_steps, remarks, known), state)
            self._first = state["step"] if state else 0
            name = "/".join(self.folder.parts[-2:])
            if together:
                self.bar = together.bar(name, total_steps, self._first)
            else:
                self.bar = resources.enter_context(progress_bar(name, total_steps, self._first))
            self._restore(state)
            self._illustrations = Illustrations(self.attempt, self.writer, args.video_every, self._first)
            if self.preemption.signal:
                reason = f"stopped by {self.preemption.signal} before an update; the same command resumes it"
                stop(ExitCode.PREEMPTED, reason)
            # Also called if the run ends with an error, so that logged points are kept.
            self.close = weakref.finalize(self, resources.pop_all().close)
        self._last_step = self.stream.steps
        self._start = self._lap = time.perf_counter()
        self._evaluate()

    def lap(self, section: str) -> None:
        """Add the time since the last lap to ``section`` (env, act, learn, probe, ...)."""
        if torch.compiler.is_compiling():
            return
        now = time.perf_counter()
        self.seconds[section] = self.seconds.get(section, 0.0) + now - self._lap
        self._lap = now

    def record_episodes(self, info: Mapping[str, Any], episodes: Tensor | None = None) -> None:
        """Record a step of the stream: its task, and the episodes that ended.

        Args:
            info: of the step, or the stream's ``about_step``.
            episodes: (3, N), as in :class:`neoteny.envs.Step`, if any may have ended; what is on a GPU stays
                there until the end of the update.
        """
        if info["task"] != self.episodes.task:
            names = {"fingerprint": "fingerprint", "game": "game", "audit": "warning"}
            about = {name: info[key] for key, name in names.items() if key in info}
            self.begin_visit(info["task"], self.episodes.step, **about)
        self.episodes.record(self.stream.steps, episodes)

    def begin_visit(
        self,
        task: int,
        start: int,
        fingerprint: Fingerprint | None = None,
        game: str | None = None,
        warning: str = "",
    ) -> None:
        """Begin a visit to a task at a step of the run; later scores belong to it.

        Args:
            task: its number.
            start: the last step before the visit.
            fingerprint: of the task, from the audit.
            game: name of the task, if it is an Atari game.
            warning: what the audit found wrong with the switch.

        Raises:
            SystemExit: code 73 if another process has taken the run over.
        """
        self.attempt.check()
        if self.episodes.visit:
            self._log_visit()
            self._log_switch(self.episodes.visit, task, start, fingerprint)
            self.record.visits.append(self.episodes.row())
        if warning:
            self._warn_of_switch(warning, start)
        self.episodes.begin_visit(task, start, fingerprint, game)

    def score(self, values: Sequence[float], length: int) -> None:
        """Add scores to the current visit, each of ``length`` steps, one after the other."""
        self.episodes.score(values, length, self.stream.steps)

    @contextlib.contextmanager
    def end_update(
        self, finite: Mapping[str, Tensor | nn.Module], statistics: Mapping[str, Tensor] | None = None
    ) -> Iterator[dict[str, float | Sequence[float]]]:
        """End an update: log the metrics that the block fills in; evaluate, record a video and save, if due.

        A checkpoint is also saved if a signal asks the run to stop. If a value is not finite, the run ends
        before the block, so that nothing is logged or saved, and the folder ``crash`` holds what
        ``scripts/replay_crash.py`` needs to reproduce it.

        Args:
            finite: tensors and networks that must be finite, by name.
            statistics: numbers on the device to be logged, tag -> (). They are read in one transfer, together
                with whether values are finite.

        Yields:
            The statistics as numbers, a dict to add other metrics to, tag -> number or vector.

        Raises:
            SystemExit: code 70, naming the values that are not finite; 75 after a signal; 65 if the next
                update would meet a task with other spaces; 73 if another process has taken the run over; 74
                if three checkpoints in a row could not be written.
        """
        metrics = self._read(named_tensors(finite), statistics or {})
        yield metrics
        self.updates_made += 1
        self._log_update(metrics)
        self._evaluate()
        if self._illustrations.record_video(self.stream, self.act):
            self.lap("video")
        self._save_if_due()

    def finish(self, network: nn.Module) -> dict[str, Any]:
        """Save the weights, log the scores, write ``summary.json`` and close.

        Returns:
            The summary: scores, one row per visit, seconds by section, and what each method did, if any.

        Raises:
            SystemExit: code 73 if another process has taken the run over, 74 if the disk is full.
        """
        self.attempt.check()
        self.record.report_inexact(getattr(self.stream, "inexact", ()))
        self.record.write_meta()  # with what was imported since the last checkpoint
        self.episodes.collect()
        self._log_visit()
        self.record.visits.append(self.episodes.row())
        self.record.visits.flush()
        self.record.write("checkpoint/weights.safetensors", policy_as_bytes(network, self.stream))
        self.lap("save")
        visits = [
            {name: value for name, value in row.items() if name != "fingerprint"}
            for row in read_rows(self.record.visits.path)
        ]
        scores = run_scores(visits) | self.evaluations.scores()
        scores = {tag: score for tag, score in scores.items() if math.isfinite(score)}
        self.writer.metrics(scores, self.stream.steps)
        about_methods = self._about_methods()
        self.writer.add(end_summary())
        if self.args.probes.pictures:
            self._illustrations.draw(self.episodes.starts[1:], self.stream.steps)
            self.lap("pictures")
        total = sum(seconds for name, seconds in self.seconds.items() if name != "audit")  # a part of env
        seconds = {**self.seconds, "total": total}
        evaluations = {"evaluations": self.evaluations.rows} if self.evaluations.rows else {}
        summary = {
            **scores,
            "visits": visits,
            **evaluations,
            "seconds": seconds,
            **about_methods,
        }
        self.record.finish(summary, self._on_disk)
        self.close()
        tell(last_lines(self.folder, self.args, self.stream.steps, summary, self.act is not None))
        return summary

    def _about_methods(self) -> dict[str, Any]:
        """What each plasticity method did, for the summary; warns of those that did nothing."""
        methods = self.parts.get("methods")
        if not isinstance(methods, Methods) or not methods.methods:
            return {}
        done = methods.summary()
        changes = {
            f"methods/{name}/changes": did["changes"] for name, did in done.items() if "changes" in did
        }
        self.writer.metrics(changes, self.stream.steps)
        if idle := [name for name, did in done.items() if not did["acted"]]:
            warn(f"warning: in the whole run these methods changed nothing: {', '.join(idle)}")
        return {"methods": done}

    def _begin(self, remarks: Sequence[str], message: str, state: Mapping[str, Any] | None) -> None:
        """Print the first lines; if the run begins, also log its arguments and remarks to TensorBoard."""
        if self.together is None or self.together.is_first(self.args.seed):
            tell(message)
        if state is None:
            switches = (self.stream.schedule.period or self.total_steps) < self.total_steps
            remark = "\n".join(filter(None, remarks))
            for summary in setup_summaries(self.identity.config, switches, remark, self.episodes.chart):
                self.writer.add(summary)

    def _restore(self, state: Mapping[str, Any] | None) -> None:
        """Restore all parts from the last checkpoint's state, if any, and print where the run resumes."""
        inexact = self.record.inexact
        for name in sorted(self.parts, key=lambda name: name != "methods"):
            states = state["parts"] if state else None
            reasons = restore_part(name, self.parts[name], states, self.attempt)
            inexact += [reason for reason in reasons if reason not in inexact]
        if state:
            with bad_input(f"{self.folder} cannot be resumed: "):
                torch.set_rng_state(state["rng"]["cpu"])
                if self.identity.machine["device"] == "cuda" and "cuda" in state["rng"]:
                    torch.cuda.set_rng_state_all(state["rng"]["cuda"])
                self._restore_visits(state)
                self.evaluations.rows = state.get("evaluations", [])
            self.seconds, self.updates_made = state["seconds"], state["update"]
            self._saved = state["step"]
        self.record.write_meta()
        exactly = "exactly" if not inexact else f"but not bit for bit: {'; '.join(inexact)}"
        begins = f"resumes at step {state['step']:,}, {exactly}" if state else "begins"
        tell(f"{shown(self.folder)} {begins}")

    def _restore_visits(self, state: Mapping[str, Any]) -> None:
        """Restore the visits of a checkpoint; those of earlier versions hold all of them."""
        if "visits" in state:
            *ended, current = state["visits"] or [None]
            for row in ended:
                known = {"fingerprint": row["fingerprint"]} if row["fingerprint"] else {}
                self.record.visits.append(visit_of(row).row() | known)
            self.record.visits.flush()
        else:
            current = state["visit"]
        self.episodes.restore(read_rows(self.record.visits.path), current)

    def _read(self, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read statistics and episodes from the device; end the run if a tensor has a NaN or an infinity."""
        largest = magnitudes(tensors)
        *pieces, episodes = read_together([
            *largest.values(), *statistics.values(), self.episodes.recorded()
        ])  # fmt: skip
        numbers = [piece.item() for piece in pieces]
        if bad := [name for name, number in zip(largest, numbers) if not math.isfinite(number)]:
            self._end_broken(bad, tensors)
        self.episodes.collect(episodes.numpy())
        return dict(zip(statistics, numbers[len(largest) :]))

    def _end_broken(self, bad: Sequence[str], tensors: Mapping[str, Tensor]) -> NoReturn:
        """End the run with a crash bundle of these tensors, some of which are not finite."""
        self.attempt.check()
        try:
            with self.attempt.section():
                crash = save_crash(self.folder, self.stream.steps, bad, tensors)
            again = f"python scripts/replay_crash.py {crash} reproduces it"
        except OSError as error:
            again = f"{self.folder / 'crash'} could not be written ({error.strerror})"
        self.close()
        named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        stop(ExitCode.BROKEN, f"not finite at step {self.stream.steps:,}: {named}; {again}")

    def _log_update(self, metrics: Mapping[str, float | Sequence[float]]) -> None:
        """Log an update's metrics, its ended episodes, speed and times; advance the progress bar."""
        assert self.episodes.visit is not None
        step, task = self.stream.steps, self.episodes.visit.task
        charts = {"charts/SPS": (step - self._first) / (time.perf_counter() - self._start)}
        charts |= self.episodes.charts()
        if (score := f"charts/{self.episodes.chart}") in charts:
            progress = f"task {task}, {self.episodes.chart.partition('_')[2]} {charts[score]:.2f}"
            self.bar.set_postfix_str(progress, refresh=False)
        if self.stream.audit_seconds:
            self.seconds["audit"] = self.stream.audit_seconds
        times = {f"time/{section}": seconds for section, seconds in self.seconds.items()}
        self.writer.metrics({**charts, **metrics, **times, "stream/task": task}, step)
        self.bar.update(step - self.bar.n)

    def _evaluate(self) -> None:
        """Evaluate the policy if visits have ended since the last time, or before training.

        After a signal the rest is left to the resumed run.
        """
        ended = self.evaluations.ended(self.episodes.tasks, is_over=self.stream.steps >= self.total_steps)
        if not ended:
            return

        def proceed(task: int) -> bool:
            self.bar.set_postfix_str(f"evaluation, task {task}")
            return self.preemption.signal is None

        if metrics := self.evaluations.evaluate(ended, proceed):
            self.writer.metrics(metrics, self.stream.steps)
        self.lap("evaluation")

    def _save_if_due(self) -> None:
        """Write a checkpoint if one is due or the run ends here: after a signal, or before a misfit."""
        step, every = self.stream.steps, self.args.checkpoint_every
        due = every > 0 and step // every > self._saved // every
        misfit = self._misfit()
        if not (due or any(part.due for part in self._on_disk) or self.preemption.signal or misfit):
            return
        self.attempt.check()
        self.record.report_inexact(getattr(self.stream, "inexact", ()))
        try:
            for part in self._on_disk:
                part.flush()
            self.record.save(self._state())
        except OSError as error:
            self.attempt.check()  # a newer process removes what an older one has half written
            self._failed_saves += 1
            reason = f"checkpoint at step {step:,} could not be written ({error.strerror})"
            most = 1 if self.together else FAILED_SAVES  # so that all seeds have a checkpoint at one step
            if self._failed_saves == most or self.preemption.signal or misfit:
                stop(ExitCode.IO, f"{reason}; the last one is intact")
            warn(f"warning: {reason}; the run continues until the next one")
        else:
            self._failed_saves = 0
        self._saved = step
        self.lap("save")
        if self.preemption.signal:
            reason = f"stopped by {self.preemption.signal} at step {step:,}; the same command resumes it"
            stop(ExitCode.PREEMPTED, reason)
        if misfit:
            stop(ExitCode.MISFIT, f"{misfit}; the checkpoint at step {step:,} is intact")

    def _misfit(self) -> str:
        """Why the next update, if it is as long as the last, would meet a task with other spaces, if so."""
        step, before = self.stream.steps, self._last_step
        self._last_step = step
        return self.stream.misfit_before(min(step + step - before, self.total_steps))

    def _state(self) -> dict[str, Any]:
        """The complete state of the run, for a checkpoint."""
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.identity.machine["device"] == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state_all()
        return {
            "step": self.stream.steps,
            "update": self.updates_made,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rng": rng,
            "visit": self.episodes.state(),
            "evaluations": self.evaluations.rows,
            "seconds": self.seconds,
            **self.record.state(),
        }

    def _log_visit(self) -> None:
        """Log the scores of the visit that ends."""
        self.episodes.collect()
        self.writer.metrics(self.episodes.last_scores(), len(self.episodes.tasks) - 1)

    def _log_switch(self, before: Visit, task: int, step: int, fingerprint: Fingerprint | None) -> None:
        """Log what a switch of the task changed."""
        old = before.fingerprint
        if old and fingerprint:
            self.writer.metrics({"stream/fingerprint_changed": not fingerprint.same_as(old)}, step)
            change = f"task {before.task} -> {task}: {fingerprint.changes(old)}"
            self.writer.add(text("stream/switch", change), step)

    def _warn_of_switch(self, warning: str, step: int) -> None:
        """Log what the audit found wrong with a switch; print it if it is the first."""
        self.writer.add(text("stream/audit", warning), step)
        if not self._audit_warned:
            warn(f"warning: step {step:,}: {warning} (later ones are on TensorBoard)")
        self._audit_warned = True
