"""Choosing hyper-parameters: trials from a grid or from ranges, their scores, and the best.

The protocol is that of the strictest continual-learning studies: hyper-parameters are chosen on the first
part of the stream, with seeds of their own and as many trials for each method, and then judged on other
seeds over the whole stream. Tuning on the whole stream would let a method see its future.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoteny.runners.disk.files import read_json

ROUND = (
    8  # trials that are proposed together, whatever the number of jobs, so that the same ones are proposed
)
SCORE = "score/return_auc"


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of a hyper-parameter, as typed: ``1e-4..1e-2``; on a log scale from a factor of 10 on."""

    low: float
    high: float
    whole: bool

    @staticmethod
    def read(word: str) -> Range | None:
        """Read a range; ``None`` if the word is something else.

        Raises:
            ValueError: its ends are not numbers in ascending order.
        """
        if ".." not in word:
            return None
        low, high = word.split("..", 1)
        try:
            found = Range(float(low), float(high), all(re.fullmatch(r"-?\d+", end) for end in (low, high)))
        except ValueError:
            raise ValueError(f"{word} is not a range, such as 1e-4..1e-2") from None
        if not -math.inf < found.low < found.high < math.inf:
            raise ValueError(f"{word} is not a range from a smaller to a larger number")
        return found

    @property
    def log(self) -> bool:
        """Whether it is searched on a logarithmic scale."""
        return self.low > 0 and self.high >= 10 * self.low

    def number(self, word: str) -> float:
        """Read a value, which may have been rounded to one outside."""
        value = min(max(float(word), self.low), self.high)
        return int(value) if self.whole else value


@dataclasses.dataclass
class Trial:
    """Values of hyper-parameters, and the scores of their runs."""

    flags: dict[str, str]
    scores: dict[int, float | None] = dataclasses.field(default_factory=dict)
    """Seed -> mean return over the first part of the stream; ``None`` if the run failed."""

    @property
    def score(self) -> float | None:
        """Mean over seeds; ``None`` if a run failed, as one that diverges does."""
        known = [score for score in self.scores.values() if score is not None]
        return statistics.fmean(known) if known and len(known) == len(self.scores) else None


def score_of(run: Path) -> float | None:
    """The score of a finished run; ``None`` if it has not finished, or no episode ended."""
    score = (read_json(run / "summary.json") or {}).get(SCORE)
    return score if isinstance(score, int | float) else None


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest score, the first of equals; ``None`` if all failed."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: trial.score or 0.0, default=None)


def budget(spaces: Mapping[str, Mapping[str, Sequence[str]]], trials: int | None) -> int:
    """Number of trials for each arm.

    Args:
        spaces: arm -> flag -> values or a range, of the flags that it has.
        trials: the number that was asked for.

    Raises:
        ValueError: the arms would have different numbers of trials, or a range is given without a number.
    """
    sizes = {arm: math.prod(map(_size, space.values())) for arm, space in spaces.items()}
    least = min(sizes.values())
    if trials is None and math.inf in sizes.values():
        raise ValueError("a range in --over needs --trials, the number of trials for each arm")
    if trials is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} for {arm}" for arm, size in sizes.items())
        raise ValueError(
            f"each arm must have the same number of trials, but there are {listed}: --trials {least} draws "
            "as many for each, and a range such as 1e-4..1e-2 has any number"
        )
    if trials is not None and trials > least:
        arm = min(sizes, key=lambda arm: sizes[arm])
        raise ValueError(f"--trials {trials} is more than {arm} has combinations of --over, {least}")
    return trials or int(least)


def _size(words: Sequence[str]) -> float:
    """Number of values; infinite for a range, which must be alone."""
    if not any(map(Range.read, words)):
        return len(set(words))
    if len(words) > 1:
        raise ValueError(f"--over takes values or one range, not {' '.join(words)}")
    return math.inf


def propose(
    space: Mapping[str, Sequence[str]], known: Sequence[Trial], number: int, seed: int = 0
) -> list[dict[str, str]]:
    """The next trials of an arm, at most `ROUND`: a pure function, so that tuning can be resumed.

    Values in lists are drawn from all combinations without repetition, or are all of them. Ranges are
    searched by Optuna's tree-structured Parzen estimator (Bergstra et al., 2011).

    Args:
        space: flag -> its values, or one range.
        known: trials so far, of whole rounds.
        number: of trials in all.
        seed: of the draws.

    Raises:
        ModuleNotFoundError: a range needs Optuna.
    """
    begin, end = len(known), min(len(known) + ROUND, number)
    ranges = {flag: found for flag, words in space.items() if (found := Range.read(words[0]))}
    if ranges:
        return _ask(space, ranges, known, end - begin, seed)
    points = [dict(zip(space, values)) for values in itertools.product(*map(dict.fromkeys, space.values()))]
    if number < len(points):
        points = random.Random(seed).sample(points, number)
    return points[begin:end]


def _ask(
    space: Mapping[str, Sequence[str]],
    ranges: Mapping[str, Range],
    known: Sequence[Trial],
    count: int,
    seed: int,
) -> list[dict[str, str]]:
    """Ask Optuna for trials, after it has been told the known ones."""
    import optuna  # the extra "tune"

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, Any] = {
        flag: optuna.distributions.CategoricalDistribution(space[flag]) for flag in space
    }
    for flag, found in ranges.items():
        if found.whole:
            low, high = int(found.low), int(found.high)
            kinds[flag] = optuna.distributions.IntDistribution(low, high, log=found.log)
        else:
            kinds[flag] = optuna.distributions.FloatDistribution(found.low, found.high, log=found.log)
    sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in known:
        values: dict[str, Any] = dict(trial.flags)
        values |= {flag: found.number(trial.flags[flag]) for flag, found in ranges.items()}
        score = trial.score
        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=kinds, value=score, state=state)
        )
    asked = (study.ask(kinds).params for _ in range(count))
    return [
        {flag: f"{value:.3g}" if isinstance(value, float) else str(value) for flag, value in values.items()}
        for values in asked
    ]
