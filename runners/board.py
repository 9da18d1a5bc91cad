"""TensorBoard's custom charts, hyperparameters and text of a run."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from neoteny.runners.disk.files import flatten
from neoteny.runners.scores import run_scores

Charts = dict[str, dict[str, list[Any]]]

# Charts of TensorBoard's custom-scalars page, with all runs overlaid: title -> tag, or a pattern of tags.
LEARNING = {
    "return": "charts/episodic_return",
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
    "log10 condition number of the tangent kernel": "isometry/ntk_log10_cond/.*",
}


def charts(switches: bool, probes: Mapping[str, Any]) -> Charts:
    """The charts of a run, without those that would stay empty.

    Args:
        switches: whether the stream has more than one visit.
        probes: the flags of the probes.
    """
    learning = LEARNING if switches else {"return": LEARNING["return"]}
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


def pooled_charts(tags: Container[str]) -> Charts:
    """Charts of a pooled run for those of its tags that a run has a chart for: a line and its interval."""
    found = {
        title: ["Margin", [f"pooled/{tag}/{name}" for name in ("iqm", "low", "high")]]
        for title, tag in {**LEARNING, **PLASTICITY, **ISOMETRY}.items()
        if tag in tags
    }
    return {"over seeds": found}


def setup_summaries(config: Mapping[str, Any], switches: bool, remark: str) -> Iterator[Summary]:
    """Custom charts, hyperparameters and a text remark, to be logged at the start of a run."""
    yield custom_scalars(charts(switches, config["probes"]))
    # SummaryWriter.add_hparams would open a second run for these.
    yield from hparams(hyperparameters(config), dict.fromkeys(run_scores([]), 0.0))[:2]
    yield text("setup", remark.replace("\n", "  \n"))


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The flags of a run for TensorBoard's hyperparameter page; what runs are compared by comes first."""
    flat = flatten(config)
    first: dict[str, Any] = {
        "optimizer": config["optim"]["name"],
        "methods": " ".join(sorted(config["methods"])) or "none",
        **{name: flat[name] for name in ("lr", "seed") if name in flat},
    }
    named = {name: value for name, value in flat.items() if name not in ("optim.name", "methods")}
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in {**first, **named}.items()
    }


def end_summary() -> Summary:
    """Mark the run as finished on TensorBoard's hyperparameter page."""
    return hparams({"seed": 0}, dict.fromkeys(run_scores([]), 0.0))[2]
