"""TensorBoard's custom charts, hyperparameters and text of a run."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from neoteny.runners.disk.files import flatten
from neoteny.runners.scores import EVALUATION_SCORES, run_scores

Charts = dict[str, dict[str, list[Any]]]

# Charts of TensorBoard's custom-scalars page, with all runs overlaid: title -> tag, or a pattern of tags.
SCORES = {
    "return": "charts/episodic_return",
    "online accuracy": "charts/online_accuracy",
    "negative mean squared error, online": "charts/online_negative_mse",
}
"""Of which a run has one: the others are of supervised learners."""
TASKS = {
    "return at the end of each task": "task/return_at_end",
    "area under the return curve of each task": "task/return_auc",
    "steps to be as good as before": "task/recovery_steps",
}
PLASTICITY = {
    "dormant units (0.025), worst layer": "plasticity/dormant_0.025/max",
    "dead units, worst layer": "plasticity/dead/max",
    "effective rank of the features": "plasticity/feature_effective_rank/.*",
    "plasticity lost (definition 2.1)": "plasticity/lost",
}
ISOMETRY = {
    "log10 condition number, worst hidden layer": "isometry/log10_cond/max",
    "largest singular value, hidden layers": "isometry/sigma_max/max",
    "isometry penalty": "isometry/penalty",
    "participation rank of the tangent kernel": "isometry/ntk_participation_rank/.*",
}
OPENING = ("lr", "methods", "note", "optimizer", "seed")
"""Columns with which the hyperparameter page opens; it has room for five."""

ALL = SCORES | TASKS | PLASTICITY | ISOMETRY


def charts(switches: bool, probes: Mapping[str, Any], score: str = "episodic_return") -> Charts:
    """The charts of a run, without those that would stay empty.

    Args:
        switches: whether the stream has more than one visit.
        probes: the flags of the probes.
        score: name of the chart of scores.
    """
    learning = {title: tag for title, tag in SCORES.items() if tag == f"charts/{score}"}
    learning |= TASKS if switches else {}
    plasticity = {
        title: tag
        for title, tag in PLASTICITY.items()
        if probes["every"] and (probes["plasticity_every"] or tag != "plasticity/lost")
    }
    isometry = {
        title: tag
        for title, tag in ISOMETRY.items()
        if probes["every"] and (probes["full_every"] or "ntk" not in tag)
    }
    parts = {"learning": learning, "plasticity": plasticity, "isometry": isometry}
    return {
        name: {title: ["Multiline", [tag]] for title, tag in part.items()}
        for name, part in parts.items()
        if part
    }


def is_charted(tag: str) -> bool:
    """Whether there is a chart of a tag."""
    return any(re.fullmatch(pattern, tag) for pattern in ALL.values())


def pooled_tags(tag: str) -> tuple[str, str, str]:
    """The tags of a pooled run for a tag: the mean over seeds, and the ends of its interval."""
    return tag, f"pooled/{tag}/low", f"pooled/{tag}/high"


def pooled_charts(tags: Container[str]) -> Charts:
    """Charts of a pooled run, each a line with its interval, for those of its tags that have a chart."""
    found = {title: ["Margin", list(pooled_tags(tag))] for title, tag in ALL.items() if tag in tags}
    return {"over seeds, with 95 % intervals": found}


def setup_summaries(config: Mapping[str, Any], switches: bool, remark: str, score: str) -> Iterator[Summary]:
    """Custom charts, hyperparameters and a text remark, to be logged at the start of a run."""
    yield custom_scalars(charts(switches, config["probes"], score))
    # SummaryWriter.add_hparams would open a second run for these.
    scores = (*run_scores([]), *(EVALUATION_SCORES if config["evaluate_at_switch"] else ()))
    experiment, start, _ = hparams(hyperparameters(config), dict.fromkeys(scores, 0.0))
    yield _opening_on(OPENING, experiment)
    yield start
    yield text("setup", remark.replace("\n", "  \n"))


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The flags of a run for TensorBoard's hyperparameter page."""
    named = {
        **flatten(config),
        "optimizer": config["optim"]["name"],
        "methods": " ".join(sorted(config["methods"])) or "none",
    }
    del named["optim.name"]
    return {
        name: value if isinstance(value, bool | int | float) else str(value) for name, value in named.items()
    }


def _opening_on(names: Container[str], experiment: Summary) -> Summary:
    """Let TensorBoard's hyperparameter page open on some columns: those marked as differing come first."""
    (value,) = experiment.value
    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in names
    value.metadata.plugin_data.content = data.SerializeToString()
    return experiment


def end_summary() -> Summary:
    """Mark the run as finished on TensorBoard's hyperparameter page."""
    return hparams({"seed": 0}, dict.fromkeys(run_scores([]), 0.0))[2]
