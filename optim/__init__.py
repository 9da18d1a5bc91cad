"""What keeps a network able to learn."""

from neoteny.optim.adamo import AdamO
from neoteny.optim.config import AdamConfig, AdamOConfig, AdamWConfig, MuonConfig, OptimConfig
from neoteny.optim.isometry import isometry_penalty, isometry_report, param_groups, pull_norm
from neoteny.optim.muon import MuonAdamW
from neoteny.optim.orthogonal import orthogonalize

__all__ = [
    "AdamConfig",
    "AdamO",
    "AdamOConfig",
    "AdamWConfig",
    "MuonAdamW",
    "MuonConfig",
    "OptimConfig",
    "isometry_penalty",
    "isometry_report",
    "orthogonalize",
    "param_groups",
    "pull_norm",
]
