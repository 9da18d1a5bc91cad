"""TensorBoard's custom charts, hyperparameters and text of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from neoteny.runners.disk.files import flatten
from neoteny.runners.scores import EVALUATION_SCORES, run_scores

# One chart each on TensorBoard's custom-scalars page, with all runs overlaid.
CHARTS = {
    "learning": {
        "return": ["Multiline", ["charts/episodic_return"]],
        "return at the end of each task": ["Multiline", ["task/return_at_end"]],
        "area under the return curve of each task": ["Multiline", ["task/return_auc"]],
        "steps to be as good as before": ["Multiline", ["task/recovery_steps"]],
    },
    "plasticity": {
        "dormant units (0.025), worst layer": ["Multiline", ["plasticity/dormant_0.025/max"]],
        "dead units, worst layer": ["Multiline", ["plasticity/dead/max"]],
        "effective rank of the features": ["Multiline", ["plasticity/feature_effective_rank/.*"]],
        "plasticity lost (definition 2.1)": ["Multiline", ["plasticity/lost"]],
    },
    "isometry": {
        "log10 condition number, worst hidden layer": ["Multiline", ["isometry/log10_cond/max"]],
        "largest singular value, hidden layers": ["Multiline", ["isometry/sigma_max/max"]],
        "isometry penalty": ["Multiline", ["isometry/penalty"]],
        "log10 condition number of the tangent kernel": ["Multiline", ["isometry/ntk_log10_cond/.*"]],
    },
}


def setup_summaries(config: Mapping[str, Any], remark: str) -> Iterator[Summary]:
    """Custom charts, hyperparameters and a text remark, to be logged at the start of a run."""
    yield custom_scalars(CHARTS)
    # SummaryWriter.add_hparams would open a second run for these.
    flat = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flatten(config).items()
    }
    scores = (*run_scores([]), *(EVALUATION_SCORES if config["evaluate_at_switch"] else ()))
    yield from hparams(flat, dict.fromkeys(scores, 0.0))[:2]
    yield text("setup", remark.replace("\n", "  \n"))


def end_summary() -> Summary:
    """Mark the run as finished on TensorBoard's hyperparameter page."""
    return hparams({"seed": 0}, dict.fromkeys(run_scores([]), 0.0))[2]
