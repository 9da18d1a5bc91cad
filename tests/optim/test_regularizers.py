"""Penalties and decoupled steps, by hand on small networks, and what they refuse."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoteny.agents.networks import NetworkConfig
from neoteny.optim import AdamConfig, AdamOConfig, MethodConfig, Methods, c_chain
from neoteny.optim.c_chain import CChainConfig
from neoteny.optim.regularizers import L2Config, L2InitConfig
from neoteny.optim.spectrum import IsometryConfig, ParsevalConfig, SpectralConfig
from tests.learners import (
    Net,
    Trained,
    convolutional,
    learner_of,
    seen_batch,
    set_,
    step,
    tiny,
)
from tests.simple_networks import isometry_gradient, sequential

PENALTIES = [
    L2Config(),
    L2InitConfig(),
    IsometryConfig(),
    ParsevalConfig(),
    SpectralConfig(),
    CChainConfig(),
]


def gradients(methods: Methods, batch: Any = None, loss: Tensor | None = None) -> dict[str, Tensor | None]:
    """The gradients of all penalties, by the names of the parameters."""
    network = methods.learner.network
    network.zero_grad()
    if isinstance(clipped := methods.penalty(batch, loss), Tensor):
        clipped.backward()
    methods.add_gradients(batch)
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def constant_rate(rate: float) -> Any:
    """Plain gradient descent, whose steps can be computed by hand."""

    class Config:
        def build(self, module: nn.Module, lr: float, exclude: Any = ()) -> torch.optim.Optimizer:
            return torch.optim.SGD(module.named_parameters(), lr=rate)

    return Config()


@pytest.mark.parametrize("new", [tiny, convolutional])
def test_l2_by_hand(new: Any) -> None:
    methods = Methods([L2Config(coef=0.5)], learner_of(new))
    named = dict(methods.learner.network.named_parameters())
    for name, gradient in gradients(methods).items():
        torch.testing.assert_close(gradient, named[name].detach())  # 2 * 0.5 * w
    penalty = 0.5 * sum(parameter.square().sum() for parameter in named.values())
    assert methods.end_update(0) == {"methods/l2/penalty": pytest.approx(penalty.item())}


class TestL2Init:
    def test_by_hand(self) -> None:
        learner = learner_of()
        methods = Methods([L2InitConfig(coef=0.25)], learner)
        initial = copy.deepcopy(learner.network)
        assert not any(gradient.any() for gradient in gradients(methods).values())
        net = learner.network.net
        with torch.no_grad():
            net.linear.weight[1, 0] += 3.0
            net.head.bias[1] -= 4.0
        found = gradients(methods)
        assert found["net.linear.weight"][1, 0].item() == pytest.approx(2 * 0.25 * 3.0)
        assert found["net.head.bias"].tolist() == pytest.approx([0.0, -2 * 0.25 * 4.0])
        assert sum(gradient.count_nonzero() for gradient in found.values()) == 2
        assert methods.end_update(0) == {"methods/l2_init/distance": pytest.approx(5.0)}
        kept = methods.state_dict()["methods"]["l2_init"]["initial"]
        assert all(torch.equal(kept[name], value) for name, value in initial.named_parameters())

    def test_the_decoupled_step_by_hand(self) -> None:
        learner, rates = learner_of(), {"linear": 0.1, "head": 0.05}
        groups = [
            {"params": getattr(learner.network.net, name).parameters(), "lr": rates[name]} for name in rates
        ]
        learner.optimizer = torch.optim.SGD(groups)
        methods = Methods([L2InitConfig(coef=2.0, decoupled=True)], learner)
        initial = copy.deepcopy(learner.network)
        for _ in range(2):
            before = copy.deepcopy(learner.network)
            step(methods, torch.ones(4, 2))
            for name, parameter in learner.network.named_parameters():
                start = initial.get_parameter(name)
                rate = rates[name.split(".")[1]]
                stepped = before.get_parameter(name) - rate * parameter.grad
                torch.testing.assert_close(parameter, stepped - 2 * rate * 2.0 * (stepped - start))
        assert methods.end_update(0)["methods/l2_init/distance"] > 0.01

    def test_both_forms_are_one_with_plain_gradient_descent(self) -> None:
        torch.manual_seed(3)
        networks = []
        for decoupled in (False, True):
            network = copy.deepcopy(networks[0]) if networks else tiny()
            networks.append(copy.deepcopy(network))
            learner = learner_of(lambda network=network: network, constant_rate(1e-3))
            methods = Methods([L2InitConfig(coef=1.0, decoupled=decoupled)], learner)
            for i in range(20):
                step(methods, torch.full((4, 2), float(i % 3)))
            networks.append(network)
        for coupled, decoupled in zip(networks[1].parameters(), networks[3].parameters()):
            torch.testing.assert_close(coupled, decoupled, rtol=1e-2, atol=1e-4)

    def test_a_resumed_method_keeps_the_initial_weights(self) -> None:
        methods = Methods([L2InitConfig()], learner_of())
        step(methods, torch.ones(4, 2))
        state = copy.deepcopy(methods.state_dict())
        resumed = Methods([L2InitConfig()], copy.deepcopy(methods.learner))
        resumed.load_state_dict(state)
        assert gradients(resumed)["net.linear.weight"].any()
        for name, gradient in gradients(methods).items():
            assert torch.equal(gradient, gradients(resumed)[name])


class TestParseval:
    def test_by_hand(self) -> None:
        # 3 units, fewer inputs: the authors' W W^T is the larger Gram matrix.
        methods = Methods([ParsevalConfig(coef=0.1, scale=2.0)], learner_of())
        weight = methods.learner.network.net.linear.weight
        set_(weight, [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        # W W^T - 2 I is diag(-1, 2, -2), and 4 (W W^T W - 2 W) is 4 (-1), 4 * 2 * 2 in two places.
        found = gradients(methods)
        factor = 0.1 * (64 / 3) ** 2
        torch.testing.assert_close(
            found["net.linear.weight"], factor * torch.tensor([[-4.0, 0.0], [0.0, 16.0], [0.0, 0.0]])
        )
        assert [name for name, gradient in found.items() if gradient is not None] == ["net.linear.weight"]
        # Less the constant scale^2 of the third row.
        penalty = methods.end_update(0)["methods/parseval/penalty"]
        assert penalty == pytest.approx(factor * (1 + 4 + 4 - 4))

    def test_it_is_clipped_with_the_loss_and_scaled_by_width(self) -> None:
        methods = Methods([ParsevalConfig(coef=1.0)], learner_of(convolutional))
        net = methods.learner.network.net
        methods.penalty(None).backward()
        for layer in (net.conv1, net.linear1):
            wanted = (64 / len(layer.weight)) ** 2 * isometry_gradient(layer.weight, 2.0)
            torch.testing.assert_close(layer.weight.grad.flatten(1), wanted, rtol=1e-4, atol=1e-3)
        assert net.head.weight.grad is None

    @pytest.mark.parametrize("config", [ParsevalConfig(), IsometryConfig()])
    def test_orthogonal_weights_of_that_scale_are_left_alone(self, config: MethodConfig) -> None:
        methods = Methods([config], learner_of(convolutional))
        net = methods.learner.network.net
        for layer in (net.conv1, net.linear1):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
        found = gradients(methods)
        assert all(gradient.abs().max() < 1e-3 for gradient in found.values() if gradient is not None)


class TestSpectral:
    def test_by_hand(self) -> None:
        methods = Methods([SpectralConfig(coef=0.5)], learner_of())
        net = methods.learner.network.net
        set_(net.linear.weight, [[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        set_(net.head.weight, [[0.0, 0.1, 0.0], [0.0, 0.0, 0.2]])
        set_(net.linear.bias, [0.0, 2.0, 0.0])
        set_(net.head.bias, [0.0, 0.0])
        for _ in range(30):
            found = gradients(methods)
        # d (sigma^2 - 1)^2 = 4 (sigma^2 - 1) sigma in the largest entry of each weight alone.
        largest = 0.5 * 4 * (9 - 1) * 3
        torch.testing.assert_close(
            found["net.linear.weight"], torch.tensor([[largest, 0.0], [0.0, 0.0], [0.0, 0.0]])
        )
        torch.testing.assert_close(found["net.head.weight"][1, 2].item(), 0.5 * 4 * (0.04 - 1) * 0.2)
        # d ||b||^4 = 4 ||b||^2 b
        torch.testing.assert_close(found["net.linear.bias"], torch.tensor([0.0, 0.5 * 4 * 4 * 2.0, 0.0]))
        tags = methods.end_update(0)
        penalty = 0.5 * ((9 - 1) ** 2 + (0.04 - 1) ** 2 + 2.0**4)
        assert tags["methods/spectral/penalty"] == pytest.approx(penalty)
        assert tags["methods/spectral/sigma_max"] == pytest.approx(3.0)

    def test_the_estimate_is_right_and_follows_the_weights(self) -> None:
        torch.manual_seed(0)
        network = Net(sequential(linear=nn.Linear(40, 60), act=nn.ReLU(), head=nn.Linear(60, 5)), 40)
        learner = learner_of(lambda: network)
        methods = Methods([SpectralConfig()], learner)
        for i in range(60):
            with torch.no_grad():
                network.net.linear.weight.add_(torch.randn(60, 40), alpha=2e-3)
            methods.penalty(None), methods.add_gradients(None)
            weights = (network.net.linear.weight, network.net.head.weight)
            exact = max(torch.linalg.matrix_norm(weight, 2).item() for weight in weights)
            if i > 30:
                estimate = methods.end_update(0)["methods/spectral/sigma_max"]
                assert 0.97 * exact < estimate < 1.0001 * exact

    def test_metrics_do_not_move_the_vector(self) -> None:
        methods = Methods([SpectralConfig()], learner_of())
        with torch.no_grad():
            methods.learner.network.net.linear.weight.add_(torch.randn(3, 2))
        before = copy.deepcopy(methods.state_dict())
        methods.end_update(0)
        vectors = methods.state_dict()["methods"]["spectral"]["vectors"]
        kept = before["methods"]["spectral"]["vectors"]
        assert all(torch.equal(vectors[name], kept[name]) for name in vectors)

    def test_sigma_1_and_no_bias_are_left_alone(self) -> None:
        methods = Methods([SpectralConfig(heads=False)], learner_of(convolutional))
        net = methods.learner.network.net
        for layer in (net.conv1, net.linear1):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        found = gradients(methods)
        assert all(gradient.abs().max() < 1e-6 for name, gradient in found.items() if "head" not in name)
        assert found["net.head.weight"] is None

    def test_a_weight_of_zeros_is_found_again(self) -> None:
        methods = Methods([SpectralConfig()], learner_of())
        head = methods.learner.network.net.head
        weight = head.weight.detach().clone()
        set_(head.weight, torch.zeros(2, 3).tolist())
        gradients(methods)
        set_(head.weight, (5 * weight).tolist())
        assert gradients(methods)["net.head.weight"].any()


class TestCChain:
    @pytest.mark.parametrize("horizon", [c_chain.HORIZON, 3])
    def test_churn_of_the_last_step_on_the_minibatch_of_two_steps_ago(
        self, horizon: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(c_chain, "HORIZON", horizon)
        torch.manual_seed(0)
        mean_loss = mean_churn = 0.0
        methods = Methods([CChainConfig(scale=0.5)], learner_of())
        learner, networks = methods.learner, []
        batches = torch.randn(6, 4, 2)
        for k, observations in enumerate(batches):
            networks.append(copy.deepcopy(learner.network))
            reference, older = batches[max(0, k - 2)], networks[max(0, k - 1)]
            churn = F.mse_loss(learner.network(reference), older(reference).detach())
            loss = torch.tensor(-2.0 - k)
            rate = max(1 / (k + 1), 1 / horizon)  # the mean of all, later a moving average
            mean_loss += rate * (2.0 + k - mean_loss)
            mean_churn += rate * (churn.item() - mean_churn)
            learner.optimizer.zero_grad()
            (0.5 * mean_loss / (mean_churn + 1e-8) * churn).backward()
            wanted = [parameter.grad.clone() for parameter in learner.network.parameters()]
            found = gradients(methods, seen_batch(observations), loss)
            for gradient, by_hand in zip(found.values(), wanted):
                torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-6)
            assert k == 0 or any(gradient.any() for gradient in wanted)
            learner.network(observations).sum().backward()
            learner.optimizer.step()
            methods.after_step()
        assert methods.end_update(0) == {"methods/c_chain/churn": pytest.approx(mean_churn)}

    @pytest.mark.parametrize(("on", "kept"), [("all", "critic"), ("actor", "critic"), ("critic", "actor")])
    def test_parts_of_ppo(self, on: Any, kept: str, streams: Any) -> None:
        trained = Trained("ppo", streams["vector"], [CChainConfig(on=on)])
        for _ in range(3):
            trained.update(trained.batch())
        batch, method = trained.batch(), trained.methods.methods["c_chain"]
        reference, older = method.batches[0].clone(), method.networks[0]
        found = gradients(trained.methods, batch, torch.tensor(1.0))
        assert all((gradient is None) == name.startswith(kept) for name, gradient in found.items())
        if kept == "critic":
            now, before = (network(reference)[0].softmax(1) for network in (trained.network, older))
            by_hand = (before * (before / now).log()).sum(1).mean()
            torch.testing.assert_close(method._churn(reference), by_hand, rtol=1e-2, atol=1e-7)

    def test_a_network_that_does_not_change_is_left_alone(self) -> None:
        learner = learner_of()
        learner.optimizer.param_groups[0]["lr"] = 0.0
        methods = Methods([CChainConfig()], learner)
        for _ in range(3):
            step(methods, torch.randn(4, 2))
        found = gradients(methods, seen_batch(torch.randn(4, 2)), torch.tensor(1.0))
        assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("config", PENALTIES, ids=lambda config: config.name)
class TestEvery:
    def test_a_part_alone(self, config: MethodConfig, streams: Any) -> None:
        trained = Trained("ppo", streams["grid"], [type(config)(on="critic")])
        with torch.no_grad():
            for parameter in trained.network.parameters():
                parameter.add_(0.1)
        batch = trained.batch()
        found = gradients(trained.methods, batch, torch.tensor(1.0))
        assert {name.split(".")[0] for name, gradient in found.items() if gradient is not None} == {"critic"}

    def test_values(self, config: MethodConfig, streams: Any) -> None:
        name = "scale" if config.name == "c_chain" else "coef"
        for bad in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{name} of {config.name} must be above 0, not {bad}"):
                type(config)(**{name: bad})

    def test_orthogonal_layers(self, config: MethodConfig, streams: Any) -> None:
        network = NetworkConfig(hidden=(6, 5), linear="orthogonal")
        if config.name in ("isometry", "parseval", "spectral"):
            with pytest.raises(ValueError, match=f"{config.name} finds no hidden weight to act on, on all"):
                Trained("dqn", streams["vector"], [config], network=network)
            return
        trained = Trained("dqn", streams["vector"], [config], network=network)
        trained.update(trained.batch())
        if config.name != "c_chain":
            found = gradients(trained.methods)
            assert {name for name, gradient in found.items() if gradient is None} == {
                "torso.linear1.parametrizations.weight.original",
                "torso.linear2.parametrizations.weight.original",
            }


@pytest.mark.parametrize("config", [IsometryConfig(), ParsevalConfig(), SpectralConfig()])
def test_not_beside_the_pull(config: MethodConfig) -> None:
    with pytest.raises(ValueError, match=f"{config.name} and the optimizer's pull both set singular values"):
        Methods([config], learner_of(config=AdamOConfig(iso=1e-3)))
    Methods([config], learner_of(config=AdamOConfig(iso=0.0)))
    with pytest.raises(ValueError, match="contradict each other"):
        Methods([config, ParsevalConfig() if config.name != "parseval" else IsometryConfig()], learner_of())


def test_l2_and_l2_init_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="l2_init and l2 contradict each other"):
        Methods([L2Config(), L2InitConfig()], learner_of(config=AdamConfig()))
