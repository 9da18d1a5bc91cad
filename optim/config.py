"""All optimizers and methods, for agents' arguments: `optim: OptimConfig` and `methods: MethodConfigs`.

The configuration of each, a frozen dataclass, stands beside it.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeAlias

import tyro
from torch.optim import Optimizer

from neoteny.optim.adam import AdamConfig, AdamWConfig
from neoteny.optim.adamo import AdamOConfig
from neoteny.optim.c_chain import CChainConfig
from neoteny.optim.continual_backprop import ContinualBackpropConfig
from neoteny.optim.cpr import PartialResetsConfig
from neoteny.optim.fire import FireConfig
from neoteny.optim.hare_tortoise import HareTortoiseConfig
from neoteny.optim.injection import InjectionAtSwitchConfig, InjectionConfig
from neoteny.optim.methods import Learner, MethodConfig, Methods
from neoteny.optim.muon import MuonAdamW, MuonConfig, MuonOConfig
from neoteny.optim.orthogonal import ReorthogonalizeConfig, is_orthogonal
from neoteny.optim.projections import NaPConfig, WeightClippingConfig
from neoteny.optim.redo import ReDoConfig, ReGraMaConfig
from neoteny.optim.regularizers import L2Config, L2InitConfig
from neoteny.optim.resets import ResetAtSwitchConfig, ResetConfig
from neoteny.optim.shrink_perturb import (
    ShrinkPerturbAtSwitchConfig,
    ShrinkPerturbConfig,
    ShrinkPerturbEveryConfig,
)
from neoteny.optim.snr import SelfNormalizedResetsConfig
from neoteny.optim.spectrum import IsometryConfig, ParsevalConfig, SpectralConfig
from neoteny.optim.trac import TRACConfig
from neoteny.optim.upgd import UPGDConfig

OptimConfig = (
    Annotated[AdamConfig, tyro.conf.subcommand(AdamConfig.name)]
    | Annotated[AdamWConfig, tyro.conf.subcommand(AdamWConfig.name)]
    | Annotated[AdamOConfig, tyro.conf.subcommand(AdamOConfig.name)]
    | Annotated[MuonConfig, tyro.conf.subcommand(MuonConfig.name)]
    | Annotated[MuonOConfig, tyro.conf.subcommand(MuonOConfig.name)]
    | Annotated[UPGDConfig, tyro.conf.subcommand(UPGDConfig.name)]
    | Annotated[TRACConfig, tyro.conf.subcommand(TRACConfig.name)]
)
"""Any optimizer; on the command line `optim:adam`, `optim:adamw`, and so on."""


def optimizer_name(optimizer: Optimizer) -> str:
    """The name of an optimizer: for `MuonAdamW` that of its configuration, else its class's in lower case."""
    return MuonConfig.name if type(optimizer) is MuonAdamW else type(optimizer).__name__.lower()


METHODS: dict[str, type[MethodConfig]] = {
    config.name: config
    for config in (
        L2Config,
        L2InitConfig,
        IsometryConfig,
        ParsevalConfig,
        SpectralConfig,
        CChainConfig,
        WeightClippingConfig,
        NaPConfig,
        ReorthogonalizeConfig,
        ReDoConfig,
        ReGraMaConfig,
        SelfNormalizedResetsConfig,
        ContinualBackpropConfig,
        PartialResetsConfig,
        ResetConfig,
        ResetAtSwitchConfig,
        ShrinkPerturbConfig,
        ShrinkPerturbEveryConfig,
        ShrinkPerturbAtSwitchConfig,
        HareTortoiseConfig,
        FireConfig,
        InjectionConfig,
        InjectionAtSwitchConfig,
    )
}
"""Plasticity methods by their names on the command line."""


MethodConfigs: TypeAlias = Annotated[tuple[MethodConfig, ...], tyro.conf.Suppress]
"""Any methods, at most one of each; on the command line `--methods.NAME`, which `configs.cli` parses."""


def build_methods(configs: Sequence[MethodConfig], learner: Learner) -> Methods:
    """The methods of a run: those in `configs`, and reorthogonalization if the network has orthogonal layers.

    Raises:
        ValueError: two exclude each other, or one does not fit the network or the optimizer.
    """
    orthogonal = any(is_orthogonal(module) for module in learner.network.modules())
    if orthogonal and not any(config.name == ReorthogonalizeConfig.name for config in configs):
        configs = (*configs, ReorthogonalizeConfig())
    return Methods(configs, learner)


def methods_as_dict(configs: Iterable[MethodConfig]) -> dict[str, dict[str, Any]]:
    """Fields of each method, by its name, or by `module:Class` if it is user-defined."""
    return {_flag(type(config)): dataclasses.asdict(config) for config in configs}


def _flag(config_type: type[MethodConfig]) -> str:
    """The name of a method on the command line."""
    ours = METHODS.get(config_type.name) is config_type
    return config_type.name if ours else f"{config_type.__module__}:{config_type.__qualname__}"
