"""Weight clipping, and normalize and project, by hand on small networks, and what they refuse."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from neoteny.agents.networks import NetworkConfig
from neoteny.optim import AdamConfig, AdamOConfig, MethodConfig, Methods
from neoteny.optim.projections import NaPConfig, WeightClippingConfig
from neoteny.optim.regularizers import L2Config
from neoteny.optim.spectrum import IsometryConfig
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
from tests.simple_networks import sequential

NORMALIZED = NetworkConfig(hidden=(6, 5), norm="layer")


def normalized() -> Net:
    """A network with layer normalization, a convolution among its layers."""
    return Net(
        sequential(
            conv=nn.Conv2d(2, 4, 3),
            norm1=nn.GroupNorm(1, 4, affine=False),
            act1=nn.ReLU(),
            flatten=nn.Flatten(),
            linear=nn.Linear(36, 6),
            norm2=nn.LayerNorm(6, elementwise_affine=False),
            act2=nn.ReLU(),
            head=nn.Linear(6, 3),
        ), 2, 5, 5,
    )  # fmt: skip


class TestWeightClipping:
    def test_by_hand(self) -> None:
        methods = Methods([WeightClippingConfig(kappa=2.0)], learner_of())
        net = methods.learner.network.net
        bound, of_head = 2 / math.sqrt(2), 2 / math.sqrt(3)
        set_(net.linear.weight, [[1.5, -1.5], [0.3, 1.4], [-9.0, 0.0]])
        set_(net.linear.bias, [1.0, -1.5, 1.42])
        set_(net.head.weight, [[1.2, -1.1, 0.0], [0.0, 0.0, 0.0]])
        set_(net.head.bias, [1.1, 0.0])
        methods.after_step()
        assert net.linear.weight.flatten().tolist() == pytest.approx([bound, -bound, 0.3, 1.4, -bound, 0])
        assert net.linear.bias.tolist() == pytest.approx([1.0, -bound, bound])
        assert net.head.weight[0].tolist() == pytest.approx([of_head, -1.1, 0.0])
        assert net.head.bias.tolist() == pytest.approx([1.1, 0.0])
        assert methods.end_update(0) == {"methods/weight_clipping/clipped": pytest.approx(6 / 17)}
        assert methods.methods["weight_clipping"].acted()

    def test_what_was_clipped_before_a_resume_counts(self) -> None:
        methods = Methods([WeightClippingConfig(kappa=1e-3)], learner_of())
        methods.after_step()
        resumed = Methods([WeightClippingConfig(kappa=1e-3)], methods.learner)
        resumed.load_state_dict(methods.state_dict())
        assert resumed.summary()["weight_clipping"]["acted"]
        assert resumed.end_update(0) == methods.end_update(0) != {"methods/weight_clipping/clipped": 0.0}

    def test_fan_in_of_convolutions_and_free_heads(self) -> None:
        methods = Methods([WeightClippingConfig(kappa=1.0, heads=False)], learner_of(convolutional))
        net = methods.learner.network.net
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(7.0)
        methods.after_step()
        for layer, fan_in in ((net.conv1, 2 * 9), (net.linear1, 36)):
            for parameter in layer.parameters():
                torch.testing.assert_close(parameter, torch.full_like(parameter, 1 / math.sqrt(fan_in)))
        assert all(parameter.eq(7).all() for parameter in net.head.parameters())

    def test_weights_in_range_are_left_alone_and_it_says_so(self) -> None:
        # torch's default initialization lies within 1 / sqrt(fan-in).
        methods = Methods([WeightClippingConfig(kappa=1.0)], learner_of(convolutional))
        before = copy.deepcopy(methods.learner.network.state_dict())
        methods.after_step()
        assert_same(methods.learner.network.state_dict(), before)
        assert methods.end_update(0) == {"methods/weight_clipping/clipped": 0.0}
        assert not methods.methods["weight_clipping"].acted()

    def test_a_part_alone(self, streams: Any) -> None:
        trained = Trained("ppo", streams["grid"], [WeightClippingConfig(kappa=1e-3, on="actor")])
        trained.update(trained.batch())
        largest = {
            name: parameter.abs().max().item() for name, parameter in trained.network.named_parameters()
        }
        assert max(value for name, value in largest.items() if name.startswith("actor")) < 1e-3
        assert min(value for name, value in largest.items() if "critic" in name and "weight" in name) > 1e-2


class TestNaP:
    def test_by_hand(self) -> None:
        methods = Methods([NaPConfig()], learner_of(normalized))
        net = methods.learner.network.net
        norms = {name: net.get_submodule(name).weight.norm().item() for name in ("conv", "linear")}
        with torch.no_grad():
            net.linear.weight.mul_(3.0)
            net.linear.bias.fill_(1.5)
            net.conv.weight.mul_(0.5)
            net.conv.bias.fill_(2.0)
        before = copy.deepcopy(net)
        methods.after_step()
        for name, growth, bias in (("conv", 0.5, 4.0), ("linear", 3.0, 0.5)):
            layer, old = net.get_submodule(name), before.get_submodule(name)
            assert layer.weight.norm().item() == pytest.approx(norms[name])
            torch.testing.assert_close(layer.weight, old.weight / growth)
            torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, bias))
        assert_same(net.head.state_dict(), before.head.state_dict())
        # Because of the normalization, the function is the same.
        images = 10 * torch.randn(4, 2, 5, 5)
        torch.testing.assert_close(net(images), before(images), rtol=1e-3, atol=1e-3)
        assert methods.end_update(0) == {"methods/nap/growth": pytest.approx(1.75)}

    @pytest.mark.parametrize("every", [1, 3])
    def test_when(self, every: int) -> None:
        methods = Methods([NaPConfig(every=every)], learner_of(normalized))
        net = methods.learner.network.net
        start = net.linear.weight.norm().item()
        for i in range(1, 7):
            step(methods, torch.randn(4, 2, 5, 5))
            assert (net.linear.weight.norm().item() == pytest.approx(start, rel=1e-6)) == (i % every == 0)

    def test_weights_of_the_initial_norm_are_left_alone(self) -> None:
        methods = Methods([NaPConfig()], learner_of(normalized))
        before = copy.deepcopy(methods.learner.network.state_dict())
        methods.after_step()
        assert_same(methods.learner.network.state_dict(), before)

    def test_a_resumed_run_keeps_the_initial_norms(self) -> None:
        methods = Methods([NaPConfig()], learner_of(normalized))
        net = methods.learner.network.net
        norm, state = net.linear.weight.norm().item(), copy.deepcopy(methods.state_dict())
        with torch.no_grad():
            net.linear.weight.mul_(4.0)
        resumed = Methods([NaPConfig()], copy.deepcopy(methods.learner))
        resumed.load_state_dict(state)
        resumed.after_step()
        assert resumed.learner.network.net.linear.weight.norm().item() == pytest.approx(norm)

    @pytest.mark.parametrize("name", ["ppo", "dqn"])
    @pytest.mark.parametrize("kind", ["vector", "grid"])
    def test_the_agents_normalized_networks(self, name: str, kind: str, streams: Any) -> None:
        trained = Trained(name, streams[kind], [NaPConfig()], network=NORMALIZED)
        before = copy.deepcopy(trained.network)
        for _ in range(3):
            trained.update(trained.batch())
        layers = [layer for layer in trained.methods.learner.layers() if not layer.is_head]
        paths = {module: path for path, module in trained.network.named_modules()}
        assert len(layers) == (2 if name == "ppo" else 1) * (4 if kind == "grid" else 2)
        for layer in layers:
            old = before.get_submodule(paths[layer.module]).weight
            assert not torch.equal(layer.module.weight, old)
            torch.testing.assert_close(layer.module.weight.norm(), old.norm())

    def test_what_does_not_fit(self, streams: Any) -> None:
        with pytest.raises(ValueError, match=r"not actor.linear1: use --network.norm layer"):
            Trained("ppo", streams["vector"], [NaPConfig()])
        with pytest.raises(ValueError, match="nap and the optimizer's pull both set the size of weights"):
            Trained("ppo", streams["vector"], [NaPConfig()], AdamOConfig(iso=1e-3), network=NORMALIZED)
        network = NetworkConfig(hidden=(6, 5), norm="layer", linear="orthogonal")
        with pytest.raises(ValueError, match="nap finds no hidden weight to act on, on all"):
            Trained("ppo", streams["vector"], [NaPConfig()], network=network)
        for other in (IsometryConfig(), L2Config(), WeightClippingConfig()):
            with pytest.raises(ValueError, match="contradict each other"):
                Methods([NaPConfig(), other], learner_of(normalized))


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (WeightClippingConfig, {"kappa": 0.0}),
        (WeightClippingConfig, {"kappa": math.nan}),
        (NaPConfig, {"every": 0}),
    ],
)
def test_values_out_of_range(make: type[MethodConfig], bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(**bad)


def test_no_weight_to_clip(streams: Any) -> None:
    with pytest.raises(ValueError, match="weight_clipping finds no hidden weight to act on, on all"):
        Trained(
            "dqn", streams["vector"], [WeightClippingConfig()], network=NetworkConfig(linear="orthogonal")
        )


def test_events_do_not_hurt() -> None:
    methods = Methods([WeightClippingConfig()], learner_of(tiny, AdamConfig(), target=True))
    methods.between_steps(seen_batch(torch.ones(1, 2)))
    assert not methods.learner.problem()
