"""Methods that reset or perturb weights, by hand on small networks, and what they refuse."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neoteny.agents.networks import NetworkConfig
from neoteny.optim import METHODS, AdamConfig, AdamOConfig, Learner, Methods, MuonConfig
from neoteny.optim.continual_backprop import ContinualBackpropConfig
from neoteny.optim.cpr import PartialResetsConfig
from neoteny.optim.fire import FireConfig
from neoteny.optim.hare_tortoise import HareTortoiseConfig
from neoteny.optim.injection import Injected, InjectionAtSwitchConfig, InjectionConfig, inject_as_saved
from neoteny.optim.redo import ReDoConfig, ReGraMaConfig
from neoteny.optim.resets import STRUCTURE, ResetAtSwitchConfig, ResetConfig, reset_units
from neoteny.optim.shrink_perturb import (
    ShrinkPerturbAtSwitchConfig,
    ShrinkPerturbConfig,
    ShrinkPerturbEveryConfig,
)
from neoteny.optim.snr import SelfNormalizedResetsConfig
from neoteny.optim.unit_resets import UNIT_RESETS
from tests.learners import (
    Net,
    Trained,
    assert_same,
    convolutional,
    learner_of,
    seen_batch,
    set_,
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


class TestReDo:
    def test_by_hand(self):
        learner = still(learner_of(target=True))
        linear = learner.network.net.linear
        set_(linear.weight, [[1.0, 0.0], [0.0, -1.0], [0.02, 0.0]])
        set_(linear.bias, [0.0, 0.5, 0.0])
        methods = Methods([ReDoConfig(every=1, tau=0.1)], learner)
        # On (1, 1) and (3, 1), units are at 1, 0, .02 and 3, 0, .06: means 2, 0 and .04, with a mean of .68.
        step(methods, torch.tensor([[1.0, 1.0], [3.0, 1.0]]))
        tags = methods.end_update(0)
        assert tags.pop("methods/redo/moved") > 1.0
        assert tags == {"methods/redo/reset/net.linear": 2.0}
        assert_same(linear.weight[0], torch.tensor([1.0, 0.0]))
        assert (linear.weight[1:] != torch.tensor([[0.0, -1.0], [0.02, 0.0]])).all()
        assert_same(learner.target.net.linear.weight[1:], linear.weight[1:])
        assert learner.network.net.head.weight[:, 1:].eq(0).all()
        assert learner.network.net.head.weight[:, 0].ne(0).all()

    def test_what_a_dead_channel_gave_is_gone(self):
        learner = learner_of(convolutional)
        net = learner.network.net
        set_(net.conv1.bias, [0.0, -100.0, 0.0, 0.0])
        old, images = copy.deepcopy(net), torch.randn(6, 2, 5, 5)
        methods = Methods([ReDoConfig(every=1, tau=0.0)], learner)
        methods.between_steps(seen_batch(images))
        assert methods.end_update(0)["methods/redo/reset/net.conv1"] == 1.0
        assert columns(net.linear1.weight, [1], 9).eq(0).all()
        assert (net.conv1.weight[1] != old.conv1.weight[1]).all()
        torch.testing.assert_close(net(images), old(images))


class TestReGraMa:
    @pytest.mark.parametrize(("tau", "small"), [(0.01, [0]), (0.02, [0, 2])])
    def test_by_hand(self, tau, small):
        learner = still(learner_of())
        net = learner.network.net
        # Unit 0 is closed, so that its weights get no gradient; those of units 1 and 2 get the sums of their
        # outgoing weights, 1 and .005, times inputs of 1. The mean of 0, 1 and .005 is .335.
        set_(net.head.weight, [[1.0, 2.0, 0.005], [2.0, -1.0, 0.0]])
        set_(net.linear.weight, [[0.0, -1.0], [1.0, 1.0], [1.0, 2.0]])
        set_(net.linear.bias, [0.0, 0.0, 0.0])
        before = copy.deepcopy(net)
        methods = Methods([ReGraMaConfig(every=1, tau=tau)], learner)
        step(methods, torch.ones(4, 2))
        assert methods.end_update(0)["methods/regrama/reset/net.linear"] == len(small)
        kept = [unit for unit in range(3) if unit not in small]
        assert (net.linear.weight[small] != before.linear.weight[small]).all()
        assert_same(net.linear.weight[kept], before.linear.weight[kept])
        assert net.head.weight[:, small].eq(0).all()


class TestSelfNormalizedResets:
    def learner(self) -> Learner:
        """Unit 0 fires if x0 > 0, unit 1 if x1 > 0, unit 2 never."""
        learner = still(learner_of())
        set_(learner.network.net.linear.weight, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        set_(learner.network.net.linear.bias, [0.0, 0.0, -1.0])
        return learner

    def run(self, fires: list[tuple[int, int]], **flags: Any) -> Methods:
        methods = Methods([SelfNormalizedResetsConfig(**flags)], self.learner())
        for first, second in fires:
            step(methods, torch.tensor([[first, second], [-1.0, second]]) - 0.5)
        return methods

    def test_intervals_by_hand(self):
        methods = self.run([(1, 1), (0, 1), (0, 1), (1, 1), (1, 0), (0, 0)], longest=4)
        state = methods.methods["snr"].state["net.linear"]
        assert state["intervals"].tolist() == [[0, 2, 0, 1, 0], [0, 4, 0, 0, 0], [0, 0, 0, 0, 0]]
        assert state["silent"].tolist() == [1, 2, 4]

    @pytest.mark.parametrize(("silent", "is_reset"), [(1, False), (2, False), (3, True)])
    def test_a_unit_is_reset_after_an_unusual_silence(self, silent, is_reset):
        # Nine intervals of 1, then one of 3: a tenth is longer than a silence of 1 or 2, none longer than 3.
        fires = [(1, 1)] * 9 + [(0, 1), (0, 1), (1, 1)] + [(0, 1)] * silent
        methods = self.run(fires, every=len(fires), eta=0.1 if silent == 3 else 0.09, longest=99)
        tags = methods.end_update(0)
        # eta 0.09 needs 12 intervals, and there are 10.
        assert tags["methods/snr/reset/net.linear"] == float(is_reset)
        if is_reset:
            state = methods.methods["snr"].state["net.linear"]
            assert state["intervals"][0].sum() == state["silent"][0] == 0
            assert state["intervals"][1].sum() == 15

    def test_a_unit_that_never_fires(self):
        methods = self.run([(1, 1)] * 5, every=5, longest=5)
        assert methods.end_update(0)["methods/snr/reset/net.linear"] == 1.0
        assert methods.learner.network.net.linear.weight[2].ne(0).all()


class TestContinualBackprop:
    def test_utilities_by_hand(self):
        learner = still(learner_of())
        methods = Methods([ContinualBackpropConfig(decay=0.9, maturity=10)], learner)
        net = learner.network.net
        mean, utility = torch.zeros(3), torch.zeros(3)
        factor = net.head.weight.detach().abs().sum(0) / net.linear.weight.detach().abs().sum(1)
        for i, observations in enumerate(torch.randn(3, 5, 2), start=1):
            step(methods, observations)
            hidden = net[:2](observations).detach()
            mean = 0.9 * mean + 0.1 * hidden.mean(0)
            utility = 0.9 * utility + 0.1 * factor * (hidden - mean / (1 - 0.9**i)).abs().mean(0)
        state = methods.methods["continual_backprop"].state["net.linear"]
        torch.testing.assert_close(state["means"][:, 0], mean)
        torch.testing.assert_close(state["utilities"], utility)
        assert_same(state["ages"], torch.full((3,), 3.0))

    def test_the_least_useful_unit_is_replaced_and_its_mean_stays(self):
        learner = still(learner_of(target=True))
        net, target = learner.network.net, learner.target.net
        set_(net.linear.weight, [[1.0, 1.0], [2.0, 1.0], [1.0, 3.0]])
        set_(net.head.weight, [[1.0, 0.1, -2.0], [1.0, -0.1, 2.0]])
        methods = Methods([ContinualBackpropConfig(rate=0.5, maturity=1, every=1)], learner)
        observations = torch.tensor([[1.0, 2.0], [1.0, 2.5]])
        before, of_target = copy.deepcopy((net, target))
        step(methods, observations)
        assert methods.end_update(0)["methods/continual_backprop/reset/net.linear"] == 0.0
        step(methods, observations)  # 3 units are old enough, of which 1.5 are due
        assert methods.end_update(0)["methods/continual_backprop/reset/net.linear"] == 1.0
        method = methods.methods["continual_backprop"]
        assert method.due == {"net.linear": 0.5}
        assert_same(method.state["net.linear"]["ages"], torch.tensor([2.0, 0.0, 2.0]))
        assert_same(net.head.weight[:, 1], torch.zeros(2))
        assert_same(net.linear.weight[[0, 2]], before.linear.weight[[0, 2]])
        assert (net.linear.weight[1] != before.linear.weight[1]).all()
        mean = before[:2](observations).mean(0)[1]
        for now, then in ((net, before), (target, of_target)):
            torch.testing.assert_close(now.head.bias, then.head.bias + then.head.weight[:, 1] * mean)

    def test_a_constant_channel_is_replaced_without_a_trace(self):
        """It has no use. Each of its positions, which enter the next layer, has a mean of its own."""
        learner = still(learner_of(convolutional))
        net, images = learner.network.net, torch.randn(6, 2, 5, 5)
        images[:, 0] = torch.rand(5, 5)  # the same in all images
        with torch.no_grad():
            net.conv1.weight[1, 1] = 0.0
            net.conv1.bias[1] = 1.0
        before = copy.deepcopy(net)
        methods = Methods([ContinualBackpropConfig(rate=0.1, maturity=2, every=3)], learner)
        for _ in range(3):  # of 4 channels and 6 units 1.2 and 1.8 are due
            step(methods, images)
        tags = methods.end_update(0)
        assert tags["methods/continual_backprop/reset/net.conv1"] == 1.0
        assert tags["methods/continual_backprop/reset/net.linear1"] == 1.0
        kept = net.linear1.weight[:, 0] == before.linear1.weight[:, 0]
        assert kept.sum() == 5
        assert columns(net.linear1.weight, [1], 9)[kept].eq(0).all()
        torch.testing.assert_close(net[:4](images)[:, kept], before[:4](images)[:, kept], rtol=0, atol=1e-5)


class TestPartialResets:
    def test_by_hand(self):
        learner = still(learner_of(target=True))
        learner.new_network = lambda: constant(tiny(), 5.0)
        net = learner.network.net
        # Gradients of incoming weights, (out of a unit) * observation: 2, 2 and 0 on (1, 1), means 2, 2, 0.
        set_(net.head.weight, [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
        set_(net.linear.weight, [[1.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
        before, of_target = copy.deepcopy((net, learner.target.net))
        moments = copy.deepcopy(learner.optimizer.state_dict()["state"])
        methods = Methods([PartialResetsConfig(every=2, rate=0.25, decay=0.5)], learner)
        methods.between_steps(None)
        step(methods, torch.ones(1, 2))
        # Scores are 1.5, 1.5 and 0, utilities 1.25, 1.25 and .5, and shares .25 times 2 sigmoid(-4) and 1,
        # since 2 sigmoid(8) is more.
        small = 0.5 / (1 + math.exp(4.0))
        shares = torch.tensor([small, small, 0.25])
        tags = methods.end_update(0)
        assert tags["methods/cpr/share/net.linear"] == pytest.approx(shares.mean().item(), rel=1e-4)
        for now, then in ((net, before), (learner.target.net, of_target)):
            expected = then.linear.weight + shares[:, None] * (5.0 - then.linear.weight)
            torch.testing.assert_close(now.linear.weight, expected)
            torch.testing.assert_close(now.head.weight, then.head.weight * (1 - shares))
            assert_same(now.linear.bias, then.linear.bias)
        now = learner.optimizer.state_dict()["state"]
        assert all(now[i]["exp_avg"].ne(0).any() == moments[i]["exp_avg"].ne(0).any() for i in now)
        assert methods.methods["cpr"].state["net.linear"]["utilities"].eq(1).all()

    def test_columns_of_a_channel_shrink(self):
        learner = still(learner_of(convolutional))
        net, before = learner.network.net, copy.deepcopy(learner.network.net)
        method = Methods([PartialResetsConfig(rate=0.5, sharpness=1e3)], learner).methods["cpr"]
        method.state["net.conv1"]["utilities"].copy_(torch.tensor([2.0, 0.0, 2.0, 2.0]))
        method.state["net.linear1"]["utilities"].fill_(2.0)
        method.on(None)
        halved = columns(before.linear1.weight, [1], 9) / 2
        torch.testing.assert_close(columns(net.linear1.weight, [1], 9), halved)
        assert_same(columns(net.linear1.weight, [0, 2, 3], 9), columns(before.linear1.weight, [0, 2, 3], 9))
        assert_same(net.conv1.weight[[0, 2, 3]], before.conv1.weight[[0, 2, 3]])
        assert (net.conv1.weight[1] != before.conv1.weight[1]).all()

    def test_units_with_the_largest_gradients_stay(self):
        learner = still(learner_of())
        before = copy.deepcopy(learner.network.net.state_dict())
        methods = Methods([PartialResetsConfig()], learner)
        method = methods.methods["cpr"]
        method.state["net.linear"]["utilities"].fill_(9.0)
        method.on(None)
        torch.testing.assert_close(learner.network.net.state_dict(), before, rtol=0, atol=1e-20)


class TestLayerReset:
    @pytest.mark.parametrize(("name", "shared"), [("ppo", False), ("ppo", True), ("dqn", True)])
    @pytest.mark.parametrize(("layers", "on"), [(1, "all"), (2, "all"), (0, "all"), (1, "critic")])
    def test_which_layers(self, layers, on, name, shared, streams):
        if name == "dqn" and on == "critic":
            pytest.skip("no such part")
        trained = Trained(
            name, streams["vector"], [ResetConfig(every=3, layers=layers, on=on)], shared=shared
        )
        for _ in range(2):
            trained.update(trained.batch())
        before = copy.deepcopy(trained.network)
        batch = trained.batch()
        trained.update(batch)
        for path, now in trained.network.named_parameters():
            state = trained.optimizer.state[now]
            reset = "head" in path or layers == 0 or (layers == 2 and "linear2" in path)
            reset &= on == "all" or path.startswith(on)
            assert (state["step"] == 0) == reset
            assert state["exp_avg"].eq(0).all() == reset
            assert (now.ndim == 1 and now.eq(0).all()) == (reset and now.ndim == 1)
            moved = (now - before.get_parameter(path)).abs().max()
            assert (moved > 0.011) == (reset and now.ndim > 1) or now.ndim == 1  # Adam's step is 0.01
        assert trained.methods.end_update(0)["methods/reset/reset_layers"] > 0

    def test_the_target_network_too_and_orthogonal_layers(self, streams):
        network = NetworkConfig(hidden=(6, 6), linear="orthogonal")
        trained = Trained("dqn", streams["vector"], [ResetAtSwitchConfig(layers=0)], network=network)
        trained.update(trained.batch())
        before = copy.deepcopy(trained.network)
        trained.methods.end_update(10)
        assert_same(trained.target.state_dict(), trained.network.state_dict())
        weight = "torso.linear1.parametrizations.weight.original"
        assert (trained.network.get_parameter(weight) != before.get_parameter(weight)).all()

    def test_too_many_layers(self):
        with pytest.raises(ValueError, match="layers of a reset must be at most 2, or 0 for all, not 3"):
            Methods([ResetConfig(layers=3)], learner_of())


class TestShrinkPerturb:
    @pytest.mark.parametrize(
        ("config", "keep", "add", "biases"),
        [
            (ShrinkPerturbAtSwitchConfig(share=0.25), 0.75, 1.25, True),
            (ShrinkPerturbEveryConfig(every=2, shrink=0.5, perturb=0.1), 0.5, 0.5, False),
        ],
    )
    @pytest.mark.parametrize("target", [False, True])
    def test_towards_new_weights_by_hand(self, config, keep, add, biases, target):
        learner = still(learner_of(target=target))
        learner.new_network = lambda: constant(tiny(), 5.0)
        methods = Methods([config], learner)
        before, of_target = copy.deepcopy((learner.network, learner.target))
        step(methods, torch.ones(4, 2))
        assert methods.end_update(0) == {}
        moments = copy.deepcopy(learner.optimizer.state_dict()["state"])
        if config.name == "shrink_perturb_every":
            methods.between_steps(None)
        assert methods.end_update(100)[f"methods/{config.name}/moved"] > 1.0
        for now, then in ((learner.network, before), (learner.target, of_target))[: 1 + target]:
            for name, parameter in now.named_parameters():
                old = then.get_parameter(name)
                expected = keep * old + add if biases or "weight" in name else old
                torch.testing.assert_close(parameter, expected)
        assert_same(learner.optimizer.state_dict()["state"], moments)

    def test_in_every_step_by_hand(self):
        learner = learner_of()
        before = copy.deepcopy(learner.network)
        methods = Methods([ShrinkPerturbConfig(decay=2.0, sigma=3.0)], learner)
        learner.optimizer.param_groups[0]["lr"] = 0.1
        torch.manual_seed(3)
        methods.after_step()
        torch.manual_seed(3)
        for group in learner.optimizer.param_groups:
            for parameter, name in zip(group["params"], group["param_names"]):
                expected = 0.8 * before.get_parameter(name) + 0.3 * torch.randn_like(parameter)
                torch.testing.assert_close(parameter, expected)

    @pytest.mark.parametrize(("shared", "on"), [(False, "actor"), (True, "critic")])
    @pytest.mark.parametrize("config", [ShrinkPerturbAtSwitchConfig, ShrinkPerturbConfig])
    def test_a_part_alone(self, config, shared, on, streams):
        trained = Trained("ppo", streams["vector"], [config(on=on)], shared=shared)
        trained.methods.steps = 1
        before = copy.deepcopy(trained.network)
        trained.methods.after_step()
        trained.methods.end_update(100)
        for name, parameter in trained.network.named_parameters():
            concerned = name.startswith((on, "shared")) and name.endswith("weight")
            same = torch.equal(parameter, before.get_parameter(name))
            assert same != concerned or name.endswith("bias")
            assert same or name.startswith((on, "shared"))


class TestHareAndTortoise:
    def test_by_hand(self):
        learner = still(learner_of())
        weight = learner.network.net.linear.weight
        methods = Methods([HareTortoiseConfig(every=3, decay=0.75)], learner)
        first = weight.detach().clone()
        for value in (1.0, 2.0, 4.0):
            before = weight.detach().clone()
            set_(weight, [[value] * 2] * 3)
            step(methods, torch.ones(4, 2))
        slow = first * 0.75**3 + 0.25 * (1.0 * 0.75**2 + 2.0 * 0.75 + 4.0)
        assert before.eq(2.0).all()
        torch.testing.assert_close(weight.detach(), slow)
        assert methods.end_update(0)["methods/hare_tortoise/moved"] == pytest.approx((4 - slow).norm().item())


class TestFire:
    @pytest.mark.parametrize("target", [False, True])
    def test_by_hand(self, target):
        learner = still(learner_of(convolutional, target=target))
        net, before = learner.network.net, copy.deepcopy(learner.network.net)
        methods = Methods([FireConfig()], learner)
        methods.steps = 1
        assert methods.end_update(10)["methods/fire_at_switch/moved"] > 0.1
        for name in ("linear1", "head"):
            weight = before.get_submodule(name).weight.detach()
            u, _, v = torch.linalg.svd(weight, full_matrices=False)
            expected = u @ v * math.sqrt(weight.shape[0] / weight.shape[1])
            torch.testing.assert_close(net.get_submodule(name).weight.detach(), expected)
        for i in range(3):
            for j in range(3):
                u, _, v = torch.linalg.svd(before.conv1.weight.detach()[:, :, i, j], full_matrices=False)
                torch.testing.assert_close(net.conv1.weight.detach()[:, :, i, j], u @ v * math.sqrt(2) / 9)
        assert_same(net.linear1.bias, before.linear1.bias)
        for name in ("conv1", "linear1", "head"):
            state = learner.optimizer.state[net.get_submodule(name).weight]
            assert [value.eq(0).all() for value in state.values()] == [True] * 3
        if target:
            assert_same(learner.target.net.head.weight, net.head.weight)

    def test_weights_that_are_isometric_stay(self):
        learner = still(learner_of())
        net = learner.network.net
        set_(net.linear.weight, [[0.0, math.sqrt(1.5)], [math.sqrt(1.5), 0.0], [0.0, 0.0]])
        before = copy.deepcopy(net)
        methods = Methods([FireConfig(heads=False)], learner)
        methods.steps = 1
        methods.end_update(10)
        torch.testing.assert_close(net.linear.weight, before.linear.weight)
        assert_same(net.head.weight, before.head.weight)

    def test_not_on_orthogonal_layers(self, streams):
        network = NetworkConfig(linear="orthogonal")
        with pytest.raises(
            ValueError, match=r"FIRE cannot set the weight of actor.linear1, which is computed"
        ):
            Trained("ppo", streams["vector"], [FireConfig()], network=network)


class TestInjection:
    @pytest.mark.parametrize("optim", [AdamConfig(), AdamOConfig(), MuonConfig()], ids=lambda o: o.name)
    @pytest.mark.parametrize(("name", "dueling"), [("ppo", False), ("dqn", False), ("dqn", True)])
    def test_the_function_stays_and_new_layers_are_trained(self, name, dueling, optim, streams):
        trained = Trained(name, streams["vector"], [InjectionConfig(after=3)], optim, shared=dueling)
        methods, batches = trained.methods, [trained.batch() for _ in range(6)]
        for batch in batches[:2]:
            trained.update(batch)
        observations = batches[0].observations
        copied = copy.deepcopy(trained.methods)
        copied.methods["injection"].every = 0
        for each in (methods, copied):
            trained.update(batches[2], each)
        outputs, targets = copied.learner.network(observations), copied.learner.target
        torch.testing.assert_close(trained.network(observations), outputs, rtol=0, atol=1e-6)
        if targets is not None:
            torch.testing.assert_close(trained.target(observations), targets(observations), rtol=0, atol=1e-6)
        assert methods.end_update(0) == {"methods/injection/injected": 1.0, "methods/injection/moved": 0.0}
        assert methods.summary() == {"injection": {"acted": True, "changes": 1}}
        injected = [module for module in trained.network.modules() if isinstance(module, Injected)]
        assert len(injected) == (2 if name == "ppo" else 1)
        before = copy.deepcopy(injected)
        for batch in batches[3:]:
            trained.update(batch)
        for now, then in zip(injected, before):
            assert_same(now.kept.state_dict(), then.kept.state_dict())
            assert_same(now.start.state_dict(), then.start.state_dict())
            assert (now.new.linear2.weight != then.new.linear2.weight).any()
            assert all(weight.grad is None for weight in now.kept.parameters())
            assert all(weight not in trained.optimizer.state for weight in now.kept.parameters())
        assert methods.end_update(0) == {}

    def test_at_the_first_switch_alone(self):
        learner = learner_of()
        methods = Methods([InjectionAtSwitchConfig()], learner)
        assert methods.end_update(0) == {}
        step(methods, torch.ones(4, 2))
        assert methods.end_update(10)["methods/injection_at_switch/injected"] == 1.0
        step(methods, torch.ones(4, 2))
        assert methods.end_update(20) == {}
        assert isinstance(learner.network.net.head.kept, nn.Sequential)

    def test_layers_that_stay_keep_the_state_of_their_units(self, streams):
        configs = [InjectionConfig(after=3), ContinualBackpropConfig()]
        trained = Trained("dqn", streams["vector"], configs)
        for _ in range(5):
            trained.update(trained.batch())
        state = trained.methods.methods["continual_backprop"].state
        ages = {name: each["ages"].unique().tolist() for name, each in state.items()}
        (stays,) = (name for name in ages if name.endswith("linear1"))
        (new,) = ages.keys() - {stays}
        assert ages == {stays: [5.0], new: [2.0]}

    def test_units_of_new_layers_are_reset_from_their_own_initializer(self, streams):
        """And those of kept layers are left alone, while all copies lose what a reset unit gave them."""
        configs = [InjectionConfig(after=1), ReDoConfig(every=2, tau=1e9)]
        trained = Trained("dqn", streams["vector"], configs)
        trained.update(trained.batch())
        injected = trained.network.head
        before = copy.deepcopy(injected)
        trained.update(trained.batch())
        tags = trained.methods.end_update(0)
        resets = {tag.rpartition("/")[2] for tag in tags if "reset" in tag}
        assert resets == {"q.linear1", "q.head.new.linear2"}
        for tail in (injected.kept, injected.start, injected.new):
            assert tail.linear2.weight.eq(0).all() == (tail is not injected.new)
        assert_same(injected.kept.head.state_dict(), before.kept.head.state_dict())
        assert (injected.new.linear2.weight != before.new.linear2.weight).all()
        assert injected.new.head.weight.eq(0).all()

    @pytest.mark.parametrize(
        ("name", "shared", "on"), [("ppo", False, "all"), ("ppo", False, "critic"), ("dqn", True, "all")]
    )
    def test_saved_weights_fit_a_new_network(self, name, shared, on, streams):
        config = InjectionConfig(after=1, layers=2, on=on)
        trained = Trained(name, streams["vector"], [config], shared=shared)
        for _ in range(2):
            trained.update(trained.batch())
        new, state = trained.methods.learner.new_network(), trained.network.state_dict()
        inject_as_saved(new, state)
        new.load_state_dict(state)
        observations = trained.batch().observations
        assert_same(new(observations), trained.network(observations))

    def test_what_cannot_be(self, streams):
        with pytest.raises(ValueError, match=r"would begin in shared.linear2, which several parts share"):
            Trained("ppo", streams["vector"], [InjectionConfig()], shared=True)
        with pytest.raises(ValueError, match="must be 2 to 3, those of q, not 4"):
            Trained("dqn", streams["vector"], [InjectionConfig(layers=4)])
        with pytest.raises(ValueError, match="layers of injection must be at least 2, not 1"):
            InjectionConfig(layers=1)


BAD = [
    ("redo", {"every": 0}), ("redo", {"tau": -1.0}), ("regrama", {"tau": math.nan}), ("snr", {"eta": 0.0}),
    ("snr", {"longest": 0}), ("continual_backprop", {"rate": 2.0}), ("continual_backprop", {"decay": 1.0}),
    ("cpr", {"rate": 0.0}), ("reset", {"every": 0}), ("reset_at_switch", {"layers": -1}),
    ("shrink_perturb", {"decay": 0.0, "sigma": 0.0}), ("shrink_perturb_every", {"shrink": 1.5}),
    ("shrink_perturb_at_switch", {"share": 0.0}), ("hare_tortoise", {"decay": 2.0}),
    ("injection", {"after": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), BAD)
def test_values_out_of_range(name, fields):
    with pytest.raises(ValueError, match=f"{name}.* (must be|does nothing)"):
        METHODS[name](**fields)


def test_methods_that_know_of_switches_say_so():
    learner = learner_of()
    others = (name for name in METHODS if re.match("reset|shrink|hare|fire", name))
    for name in (*UNIT_RESETS, *STRUCTURE, *others):
        assert METHODS[name]().build(learner).at_switch == name.endswith("_at_switch")


CONTRADICTIONS = [
    ("redo", "snr"), ("cpr", "regrama"), ("reset", "reset_at_switch"), ("injection", "fire_at_switch"),
    ("injection_at_switch", "reset"), ("shrink_perturb", "shrink_perturb_every"),
]  # fmt: skip


@pytest.mark.parametrize("names", CONTRADICTIONS)
def test_contradictions(names):
    with pytest.raises(ValueError, match="contradict each other"):
        Methods([METHODS[name]() for name in names], learner_of())
