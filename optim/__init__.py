"""Optimizers and plasticity methods: what keeps a network able to learn."""

from neoteny.optim.adamo import AdamO
from neoteny.optim.config import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    AdamWConfig,
    MethodConfigs,
    MuonConfig,
    MuonOConfig,
    OptimConfig,
    TRACConfig,
    UPGDConfig,
    build_methods,
    methods_as_dict,
    optimizer_name,
)  # fmt: skip
from neoteny.optim.isometry import isometry_penalty, isometry_report, param_groups, pull_norm
from neoteny.optim.layers import heads
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Methods, Seen
from neoteny.optim.muon import MuonAdamW, MuonO
from neoteny.optim.optimizer import set_learning_rate
from neoteny.optim.orthogonal import orthogonalize
from neoteny.optim.trac import TRAC
from neoteny.optim.upgd import UPGD

__all__ = [
    "METHODS", "TRAC", "UPGD", "AdamConfig", "AdamO", "AdamOConfig", "AdamWConfig", "Event", "Learner",
    "Method", "MethodConfig", "MethodConfigs", "Methods", "MuonAdamW", "MuonConfig", "MuonO", "MuonOConfig",
    "OptimConfig", "Seen", "TRACConfig", "UPGDConfig", "build_methods", "heads", "isometry_penalty",
    "isometry_report", "methods_as_dict", "optimizer_name", "orthogonalize", "param_groups", "pull_norm",
    "set_learning_rate",
]  # fmt: skip
