"""Methods that reset or perturb weights, by hand on small networks, and what they refuse."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neoteny.agents.networks import NetworkConfig
from neoteny.optim import METHODS, AdamConfig, AdamOConfig, Learner, MethodConfig, Methods, MuonConfig
from neoteny.optim.injection import Injected, InjectionAtSwitchConfig, InjectionConfig
from neoteny.optim.perturbations import (
    FireConfig,
    HareTortoiseConfig,
    ShrinkPerturbAtSwitchConfig,
    ShrinkPerturbConfig,
    ShrinkPerturbEveryConfig,
)
from neoteny.optim.resets import ResetAtSwitchConfig, ResetConfig, reset_units
from neoteny.optim.unit_resets import (
    ContinualBackpropConfig,
    PartialResetsConfig,
    ReDoConfig,
    ReGraMaConfig,
    SelfNormalizedResetsConfig,
)
from tests.learners import (
    Net,
    Trained,
    assert_same,
    convolutional,
    learner_of,
    seen_batch,
    set_,
    state_of,
    step,
    tiny,
)
from tests.simple_networks import CReLU, sequential


def still(learner: Learner) -> Learner:
    """Take a gradient step, for moments; later ones move no weight."""
    step(Methods([], learner), torch.randn(4, *learner.network.example.shape[1:]))
    learner.optimizer.param_groups[0]["lr"] = 0.0
    return learner


def normalized() -> Net:
    layers = {"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "act": nn.ReLU(), "head": nn.Linear(3, 2)}
    return Net(sequential(**layers), 2)


def crelu() -> Net:
    return Net(sequential(linear=nn.Linear(2, 3), act=CReLU(), head=nn.Linear(6, 2)), 2)


def constant(network: nn.Module, value: float) -> nn.Module:
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def columns(value: Tensor, units: list[int], of_each: int) -> Tensor:
    """Columns of a weight that belong to units, if each has so many that follow one another."""
    return value.unflatten(1, (-1, of_each))[:, units]


class TestResetUnits:
    @pytest.mark.parametrize("target", [False, True])
    @pytest.mark.parametrize(
        ("new", "layer", "of_each"), [(tiny, 0, 1), (normalized, 0, 1), (convolutional, 0, 9)]
    )
    def test_what_changes(self, new, layer, of_each, target):
        learner = still(learner_of(new, target=target))
        if target:  # a target network is behind
            with torch.no_grad():
                torch._foreach_add_(list(learner.target.parameters()), 0.1)
        before, fresh = copy.deepcopy(learner), constant(new(), 5.0)
        reset = learner.layers(connected=True)[layer]
        later = reset.outgoing[0].layer.name
        mask = torch.zeros(reset.units, dtype=torch.bool)
        mask[1] = True
        reset_units(learner, reset, mask, fresh)

        networks = [(learner.network, before.network)] + [(learner.target, before.target)] * target
        for network, old in networks:
            for name, now in network.named_parameters():
                then = old.get_parameter(name)
                path = name.rpartition(".")[0]
                if path == reset.name or "norm" in path:
                    assert_same(now[1], torch.full_like(now[1], 5.0))
                    assert_same(now[~mask], then[~mask])
                elif name == f"{later}.weight":
                    others = (~mask).nonzero().flatten().tolist()
                    assert columns(now, [1], of_each).eq(0).all()
                    assert_same(columns(now, others, of_each), columns(then, others, of_each))
                else:
                    assert_same(now, then)
        for name, parameter in learner.network.named_parameters():
            state, then = (
                each.optimizer.state[each.network.get_parameter(name)] for each in (learner, before)
            )
            assert state["step"] == then["step"] == 1
            same = parameter.eq(before.network.get_parameter(name))
            for moment in ("exp_avg", "exp_avg_sq"):
                assert state[moment][~same].eq(0).all()
                kept = same & ~(state[moment].eq(0) & then[moment].ne(0))
                assert_same(state[moment][kept], then[moment][kept])
                assert kept.sum() >= same.sum() - 1  # a bias may be what it was before

    def test_units_of_crelu_feed_two_columns(self):
        learner = still(learner_of(crelu))
        before = copy.deepcopy(learner.network.net.head.weight)
        layer = learner.layers(connected=True)[0]
        reset_units(learner, layer, torch.tensor([False, True, False]), crelu())
        weight = learner.network.net.head.weight
        assert weight[:, [1, 4]].eq(0).all()
        assert_same(weight[:, [0, 2, 3, 5]], before[:, [0, 2, 3, 5]])

    @pytest.mark.parametrize("config", [ReDoConfig(), ReGraMaConfig(), SelfNormalizedResetsConfig()])
    @pytest.mark.parametrize(
        ("network", "sentence"),
        [
            (NetworkConfig(hidden=(8, 8), activation="maxmin"), "its units are mixed with others before"),
            (NetworkConfig(linear="orthogonal"), "has a computed weight"),
        ],
    )
    def test_networks_whose_units_cannot_be_reset(self, network, sentence, config, streams):
        with pytest.raises(ValueError, match=f"units of actor.linear1 cannot be reset: .*{sentence}"):
            Trained("ppo", streams["vector"], [config], network=network)


UNIT_CONFIGS = [
    ReDoConfig(every=1, tau=0.05),
    ReGraMaConfig(every=1, tau=0.01),
    SelfNormalizedResetsConfig(every=1),
    ContinualBackpropConfig(every=1, maturity=9),
]


@pytest.mark.parametrize("config", UNIT_CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("new", [tiny, convolutional])
def test_healthy_units_are_left_alone(config, new):
    """Units that are active, have gradients, fire in each step, or are young."""
    learner = learner_of(new)
    net = learner.network.net
    with torch.no_grad():
        for layer in learner.layers():
            layer.module.weight.abs_()
            layer.module.bias.fill_(0.1)
    methods = Methods([config], learner)
    learner.optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(net.state_dict())
    for _ in range(4):
        step(methods, torch.rand(8, *learner.network.example.shape[1:]) + 0.1)
    assert_same(net.state_dict(), before)
    assert methods.summary() == {config.name: {"acted": False, "changes": 0}}
    assert sum(methods.end_update(0).values()) == 0.0
