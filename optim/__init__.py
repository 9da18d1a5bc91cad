"""What keeps a network able to learn."""

from neoteny.optim.adamo import AdamO
from neoteny.optim.config import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    AdamWConfig,
    MethodConfigs,
    MuonConfig,
    OptimConfig,
    build_methods,
)
from neoteny.optim.isometry import isometry_penalty, isometry_report, param_groups, pull_norm
from neoteny.optim.layers import heads, left_out
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Methods
from neoteny.optim.orthogonal import orthogonalize

__all__ = [
    "METHODS",
    "AdamConfig",
    "AdamO",
    "AdamOConfig",
    "AdamWConfig",
    "Event",
    "Learner",
    "Method",
    "MethodConfig",
    "MethodConfigs",
    "Methods",
    "MuonConfig",
    "OptimConfig",
    "build_methods",
    "heads",
    "isometry_penalty",
    "isometry_report",
    "left_out",
    "orthogonalize",
    "param_groups",
    "pull_norm",
]
