"""Optimizers and plasticity methods: what keeps a network able to learn."""

from neoteny.optim.adam import AdamConfig, AdamWConfig
from neoteny.optim.adamo import AdamO, AdamOConfig
from neoteny.optim.config import (
    METHODS,
    MethodConfigs,
    OptimConfig,
    build_methods,
    methods_as_dict,
    optimizer_name,
)
from neoteny.optim.isometry import isometry_penalty, isometry_report, param_groups, pull_norm
from neoteny.optim.layers import heads
from neoteny.optim.methods import Event, Learner, Method, MethodConfig, Methods, Seen
from neoteny.optim.muon import MuonAdamW, MuonConfig, MuonO, MuonOConfig
from neoteny.optim.optimizer import set_learning_rate
from neoteny.optim.orthogonal import orthogonalize
from neoteny.optim.trac import TRAC, TRACConfig
from neoteny.optim.upgd import UPGD, UPGDConfig

__all__ = [
    "METHODS", "TRAC", "UPGD", "AdamConfig", "AdamO", "AdamOConfig", "AdamWConfig", "Event", "Learner",
    "Method", "MethodConfig", "MethodConfigs", "Methods", "MuonAdamW", "MuonConfig", "MuonO", "MuonOConfig",
    "OptimConfig", "Seen", "TRACConfig", "UPGDConfig", "build_methods", "heads", "isometry_penalty",
    "isometry_report", "methods_as_dict", "optimizer_name", "orthogonalize", "param_groups", "pull_norm",
    "set_learning_rate",
]  # fmt: skip
