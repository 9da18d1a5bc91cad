"""The description of a network: its layers, its heads, and which inputs of later layers carry a unit."""

import copy
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neoteny.agents import dqn, ppo
from neoteny.agents.activations import Fourier, GroupSort, MaxMin
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.optim import orthogonalize
from neoteny.optim.layers import (
    Layer,
    connect,
    describe,
    describe_agent,
    heads,
    left_out,
    split_parameters,
    trace,
)
from tests.simple_networks import CReLU, conv_net, mlp, sequential

X = torch.zeros(1, 5)
IMAGE = torch.zeros(1, 2, 5, 5)


def connected(network: nn.Module, example: Tensor, **options) -> dict[str, Layer]:
    layers = describe(network, example, **options)
    connect(network, example, layers)
    assert all(not (layer.outgoing and layer.problem) for layer in layers)
    return {layer.name: layer for layer in layers}


def of_agent(network: nn.Module) -> dict[str, Layer]:
    return connected(network, network.example, parts=network.parts())


def wiring(layers: dict[str, Layer]) -> dict[str, dict[str, list[list[int]]]]:
    """Layer -> later layer -> columns of each unit."""
    return {
        name: {later.name: columns.tolist() for later, columns in layer.outgoing}
        for name, layer in layers.items()
    }


def one_to_one(units: int) -> list[list[int]]:
    return [[unit] for unit in range(units)]


def heads_of(layers: dict[str, Layer]) -> set[str]:
    return {name for name, layer in layers.items() if layer.is_head}


def problems(layers: dict[str, Layer]) -> dict[str, str]:
    return {name: layer.problem for name, layer in layers.items() if layer.problem}


class Functional(nn.Module):
    """All between its layers is code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.linear1, self.linear2, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 3).flatten(1)
        return self.head(torch.tanh(self.linear2(F.elu(self.linear1(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.block = sequential(inner=nn.Linear(8, 6), act=nn.ReLU(), outer=nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(x + self.block(x))


class Transformer(nn.Module):
    """A vision transformer of one block, its attention by hand or torch's."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 4, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if attention == "torch" else None
        if self.attention is None:
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def attend(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            return self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).view(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT + self.position
        x = x + self.attend(self.norm1(x))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Raw(nn.Module):
    """A layer of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.scale = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.matrix) * self.scale


class Gated(nn.Module):
    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.linear, self.head, self.gate = nn.Linear(5, 16), nn.Linear(8, 3), gate

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.linear(x).reshape(-1, 2, 8).unbind(1)
        return self.head(values * torch.sigmoid(gates) if self.gate else torch.relu(values))


class Twice(nn.Module):
    """A layer that is called twice: on two things, or on what it gave itself."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)
        self.head, self.again = nn.Linear(8 if again else 16, 3), again

    def forward(self, x: Tensor) -> Tensor:
        if self.again:
            return self.head(torch.relu(self.second(torch.relu(self.second(torch.relu(self.first(x)))))))
        both = [torch.relu(self.second(torch.relu(self.first(y)))) for y in (x, -x)]
        return self.head(torch.cat(both, 1))


class TestAgents:
    @pytest.fixture(scope="class")
    @staticmethod
    def streams():
        ids = {"vector": "cartpole-rotations", "grid": "grid-layouts"}
        streams = {kind: StreamConfig(id).make(2, device="cpu") for kind, id in ids.items()}
        yield streams
        for stream in streams.values():
            stream.close()

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("kind", ["vector", "grid"])
    def test_actor_and_critic(self, kind, shared, streams):
        agent = ppo.ActorCritic(streams[kind], NetworkConfig(hidden=(8, 6)), shared)
        layers = of_agent(agent)
        convolutions = ["conv1", "conv2"] if kind == "grid" else []
        torso = [*convolutions, "linear1", "linear2"]
        parts = ["actor"] if shared else ["actor", "critic"]
        hidden = [f"{part}.{name}" for part in parts for name in torso]
        assert set(layers) == {*hidden, "actor.head", "critic.head"}
        assert heads_of(layers) == {"actor.head", "critic.head"}
        assert heads(agent) == [agent.actor.head, agent.critic.head]
        assert not problems(layers)
        for name, layer in layers.items():
            both = shared and not layer.is_head
            assert layer.parts == ({"actor", "critic"} if both else {name.partition(".")[0]})
        wires = wiring(layers)
        ends = {"actor.head", "critic.head"} if shared else {"actor.head"}
        assert wires["actor.linear2"] == dict.fromkeys(ends, one_to_one(6))
        assert wires["actor.linear1"] == {"actor.linear2": one_to_one(8)}
        if kind == "grid":
            assert wires["actor.conv1"] == {"actor.conv2": one_to_one(16)}
            nine = [list(range(9 * channel, 9 * channel + 9)) for channel in range(32)]
            assert wires["actor.conv2"] == {"actor.linear1": nine}

    @pytest.mark.parametrize("dueling", [False, True])
    @pytest.mark.parametrize("kind", ["vector", "grid"])
    def test_values_of_actions(self, kind, dueling, streams):
        agent = dqn.QNetwork(streams[kind], NetworkConfig(hidden=(8, 6)), dueling)
        layers = of_agent(agent)
        ends = {"q.head", "head.value"} if dueling else {"q.head"}
        assert heads_of(layers) == ends
        assert heads(agent) == ([agent.head.advantage, agent.head.value] if dueling else [agent.head])
        assert not problems(layers)
        assert wiring(layers)["q.linear2"] == dict.fromkeys(ends, one_to_one(6))
        assert len(layers) == len(ends) + (4 if kind == "grid" else 2)

    def test_nature_cnn(self):
        class Pictures:
            single_observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
            single_action_space = gym.spaces.Discrete(6)

        layers = of_agent(dqn.QNetwork(Pictures, NetworkConfig(hidden=(32,)), dueling=True))
        assert not problems(layers)
        assert {name: layer.units for name, layer in layers.items()} == {
            "q.conv1": 32, "q.conv2": 64, "q.conv3": 64, "q.linear1": 32, "q.head": 6, "head.value": 1
        }  # fmt: skip
        ((linear, columns),) = layers["q.conv3"].outgoing
        assert (linear.name, columns.shape) == ("q.linear1", (64, 49))

    @pytest.mark.parametrize("activation", ["crelu", "fourier", "maxmin", "groupsort"])
    def test_activations_of_several_units_or_outputs(self, activation, streams):
        network = NetworkConfig(hidden=(8, 8), activation=activation)
        layers = of_agent(ppo.ActorCritic(streams["grid"], network))
        hidden = {name for name in layers if not name.endswith("head")}
        if activation in ("crelu", "fourier"):
            wires = wiring(layers)
            assert wires["actor.linear1"] == {"actor.linear2": [[unit, unit + 4] for unit in range(4)]}
            assert wires["critic.conv1"] == {"critic.conv2": [[unit, unit + 8] for unit in range(8)]}
            assert all(len(columns) == 18 for columns in wires["actor.conv2"]["actor.linear1"])
        else:
            assert set(problems(layers)) == hidden
            assert layers["actor.conv2"].problem == "its units are mixed with others before actor.linear1"

    def test_orthogonal_layers_have_no_weight_and_are_connected(self, streams):
        network = NetworkConfig(hidden=(8, 6), linear="orthogonal")
        agent = ppo.ActorCritic(streams["grid"], network)
        layers = of_agent(agent)
        assert {name for name, layer in layers.items() if layer.weight is not None} == heads_of(layers)
        assert not problems(layers)
        assert wiring(layers)["actor.linear2"] == {"actor.head": one_to_one(6)}
        assert left_out(agent, describe_agent(agent)) == ""


class TestModules:
    def test_mlp(self):
        network = mlp()
        layers = connected(network, X)
        assert wiring(layers) == {
            "linear1": {"linear2": one_to_one(8)},
            "linear2": {"head": one_to_one(8)},
            "head": {},
        }
        assert heads_of(layers) == {"head"}
        assert layers["linear1"].weight is network.linear1.weight
        assert layers["linear1"].parts == frozenset()
        assert left_out(network, list(layers.values())) == ""

    def test_names_come_from_parts_and_else_from_paths(self):
        network = nn.Module()
        network.torso, network.last = mlp(), nn.Linear(3, 2)
        network.forward = lambda x: network.last(torch.relu(network.torso(x)))
        layers = connected(network, X, parts={"net": network.torso})
        assert list(layers) == ["net.linear1", "net.linear2", "net.head", "last"]
        assert [sorted(layer.parts) for layer in layers.values()] == [["net"]] * 3 + [[]]
        assert heads_of(layers) == {"last"}

    def test_code_between_layers(self):
        layers = connected(Functional(), IMAGE)
        assert wiring(layers) == {
            "conv": {"linear1": one_to_one(4)},
            "linear1": {"linear2": one_to_one(8)},
            "linear2": {"head": one_to_one(6)},
            "head": {},
        }
        assert heads_of(layers) == {"head"}

    def test_columns_of_a_channel_are_those_that_its_silence_empties(self):
        network, images = conv_net(), torch.randn(7, 2, 5, 5)
        ((linear, columns),) = connected(network, IMAGE)["conv1"].outgoing
        assert linear.module is network.linear1
        for channel in range(4):
            silent = network[:1](images)
            silent[:, channel] = 0.0
            entering = network[1:3](silent)
            assert entering[:, columns[channel]].eq(0).all()
            rest = sorted(set(range(36)) - set(columns[channel].tolist()))
            assert torch.equal(entering[:, rest], network[:3](images)[:, rest])

    @pytest.mark.parametrize("outer", ["one conv", "conv1d", "pooled", "sequence"])
    def test_columns_of_other_shapes(self, outer):
        if outer == "one conv":
            network = sequential(conv=nn.Conv2d(2, 4, 3), act=nn.ReLU(), head=nn.Conv2d(4, 2, 1))
            layers, columns = connected(network, IMAGE), one_to_one(4)
        elif outer == "conv1d":
            convs = {"conv": nn.Conv1d(2, 4, 3), "act": nn.ReLU(), "flat": nn.Flatten()}
            layers = connected(sequential(**convs, head=nn.Linear(24, 3)), torch.zeros(1, 2, 8))
            columns = [list(range(6 * unit, 6 * unit + 6)) for unit in range(4)]
        elif outer == "pooled":
            network = sequential(
                conv=nn.Conv2d(2, 4, 3, padding=1),
                norm=nn.BatchNorm2d(4),
                act=nn.ReLU(),
                pool=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                head=nn.Linear(16, 3),
            )
            layers = connected(network, IMAGE)
            columns = [list(range(4 * unit, 4 * unit + 4)) for unit in range(4)]
        else:  # three words of five numbers, four units each, word after word
            network = sequential(
                conv=nn.Linear(5, 4), act=nn.ReLU(), flatten=nn.Flatten(), head=nn.Linear(12, 3)
            )
            layers = connected(network, torch.zeros(1, 3, 5))
            columns = [[unit, unit + 4, unit + 8] for unit in range(4)]
        assert wiring(layers)["conv"] == {"head": columns}

    @pytest.mark.parametrize(("act", "width"), [(CReLU, 16), (Fourier, 16), (MaxMin, 8), (GroupSort, 8)])
    def test_activations(self, act, width):
        layers = connected(mlp(act, width), X)
        if width == 16:
            assert wiring(layers)["linear1"] == {"linear2": [[unit, unit + 8] for unit in range(8)]}
        else:
            assert set(problems(layers)) == {"linear1", "linear2"}
            assert layers["linear1"].problem == "its units are mixed with others before linear2"
            assert layers["linear1"].outgoing == ()

    def test_normalizations_and_dropout_are_passed(self):
        network = sequential(
            linear1=nn.Linear(5, 8),
            norm1=nn.LayerNorm(8),
            act1=nn.ReLU(),
            drop=nn.Dropout(0.5),
            linear2=nn.Linear(8, 6),
            norm2=nn.BatchNorm1d(6),
            act2=nn.Tanh(),
            norm3=nn.RMSNorm(6),
            head=nn.Linear(6, 3),
        )
        layers = connected(network, X)
        assert wiring(layers)["linear1"] == {"linear2": one_to_one(8)}
        assert wiring(layers)["linear2"] == {"head": one_to_one(6)}
        assert left_out(network, list(layers.values())) == ""

    def test_groups(self):
        network = sequential(
            conv1=nn.Conv2d(2, 4, 2, groups=2),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 2, groups=2),
            act2=nn.ReLU(),
            flatten=nn.Flatten(),
            head=nn.Linear(36, 3),
        )
        layers = connected(network, IMAGE)
        assert problems(layers) == {"conv1": "conv2 is a grouped convolution"}
        assert len(layers["conv2"].outgoing[0].columns[0]) == 9

    def test_residual(self):
        layers = connected(Residual(), X)
        meet = "its units are mixed with others before head"
        assert problems(layers) == {"first": meet, "block.outer": meet}
        assert wiring(layers)["block.inner"] == {"block.outer": one_to_one(6)}
        assert heads_of(layers) == {"head"}

    @pytest.mark.parametrize("attention", ["by hand", "torch"])
    def test_transformer(self, attention):
        network = Transformer(attention)
        layers = connected(network, torch.zeros(1, 3, 8, 8))
        assert heads_of(layers) == {"head"}
        assert wiring(layers)["up"] == {"down": one_to_one(16)}
        assert {"patch", "down"} <= set(problems(layers))
        line = left_out(network, list(layers.values()))
        if attention == "torch":
            assert set(layers) == {"patch", "up", "down", "head"}
            assert "attention.in_proj_weight (of MultiheadAttention)" in line
            assert "attention.out_proj.weight" in line
        else:
            assert layers["qkv"].problem == "its units are mixed with others before out"
            meet = [name for name, problem in problems(layers).items() if problem]
            assert line.startswith("parameters of unknown layers, ignored: position (of Transformer); ")
            assert all(f"{name} (its units are mixed" in line for name in meet)

    def test_what_is_no_layer_is_named(self):
        network = mlp()
        network.act1 = Raw()
        layers = connected(network, X)
        assert left_out(network, list(layers.values())) == (
            "parameters of unknown layers, ignored: act1.matrix (of Raw), act1.scale (of Raw); "
            "layers whose units cannot be reset or watched: "
            "linear1 (its units are mixed with others before linear2)"
        )
        assert layers["linear1"].problem == "its units are mixed with others before linear2"
        network.act1.requires_grad_(False)
        assert left_out(network, describe(network, X)) == ""

    @pytest.mark.parametrize("gate", [True, False])
    def test_reshapes_and_slices(self, gate):
        layers = connected(Gated(gate), X)
        mixed = "its units are mixed with others before head"
        uneven = "its units feed different numbers of inputs of head"
        assert layers["linear"].problem == (mixed if gate else uneven)

    def test_a_layer_that_is_called_on_two_things(self):
        layers = connected(Twice(again=False), X)
        assert wiring(layers) == {
            "first": {"second": one_to_one(8)},
            "second": {"head": [[unit, unit + 8] for unit in range(8)]},
            "head": {},
        }

    def test_a_layer_that_is_called_on_what_it_gave(self):
        layers = connected(Twice(again=True), X)
        meet = "its units are mixed with others before second"
        assert problems(layers) == {"first": meet, "second": meet}
        assert heads_of(layers) == {"head"}

    def test_units_of_two_layers_side_by_side_and_of_the_observation(self):
        class Wide(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.left, self.right, self.head = nn.Linear(5, 3), nn.Linear(5, 2), nn.Linear(10, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.cat((torch.relu(self.left(x)), torch.relu(self.right(x)), x), 1))

        assert wiring(connected(Wide(), X)) == {
            "left": {"head": [[0], [1], [2]]},
            "right": {"head": [[3], [4]]},
            "head": {},
        }

    def test_units_that_leave_the_network_past_later_layers(self):
        class Leaky(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                x = torch.relu(self.linear(x))
                return {"features": x, "values": self.head(x), "size": x.mean()}

        layers = connected(Leaky(), X)
        assert problems(layers) == {"linear": "its units feed both later layers and the network's output"}
        assert heads_of(layers) == {"head"}

    def test_orthogonal_and_frozen_layers(self):
        network = mlp()
        orthogonalize(network.linear1)
        network.linear2.requires_grad_(False)
        layers = connected(network, X)
        assert layers["linear1"].weight is None
        assert layers["linear1"].units == 8
        assert layers["linear2"].weight is network.linear2.weight
        assert wiring(layers)["linear1"] == {"linear2": one_to_one(8)}
        assert left_out(network, list(layers.values())) == ""

    def test_all_float_types(self):
        layers = connected(mlp().double(), X.double())
        assert wiring(layers)["linear1"] == {"linear2": one_to_one(8)}


class TestTrace:
    def test_calls_in_order(self):
        network, images = conv_net(), torch.randn(3, 2, 5, 5)
        conv, linear, head = trace(network, images)
        assert (conv.module, linear.module, head.module) == (network.conv1, network.linear1, network.head)
        assert torch.equal(conv.inputs, images)
        assert conv.shape == (3, 4, 3, 3)
        assert conv.following == [network.act1]
        assert torch.equal(conv.activations, network[:2](images))
        assert torch.equal(linear.activations, network[:5](images))
        assert head.activations is None

    def test_a_channel_that_is_flattened_before_its_activation_stays_one_unit(self):
        network = sequential(
            conv=nn.Conv2d(2, 4, 3), flatten=nn.Flatten(), act=nn.ReLU(), head=nn.Linear(36, 3)
        )
        images = torch.randn(3, 2, 5, 5)
        call = trace(network, images)[0]
        assert torch.equal(call.activations, network[:3](images).view(3, 4, 9))

    def test_a_layer_of_a_users_own_ends_the_search_for_an_activation(self):
        network = mlp()
        network.act1 = nn.Sequential(Raw(), nn.ReLU())
        assert trace(network, X)[0].activations is None


class TestSplit:
    def test_each_parameter_once(self):
        network = mlp()
        network.linear2.weight = nn.Parameter(torch.randn(8, 5))
        network.linear2.weight = network.linear1.weight  # tied
        network.linear1.bias.requires_grad_(False)
        network.norm = nn.LayerNorm(3)
        weights, others = split_parameters(network, exclude="head")
        assert [name for name, _ in weights] == ["linear1.weight"]
        names = ["linear2.bias", "head.weight", "head.bias", "norm.weight", "norm.bias"]
        assert [name for name, _ in others] == names

    def test_computed_weights_are_not_concerned(self):
        network = mlp()
        orthogonalize(network.linear1)
        weights, others = split_parameters(network, [network.head])
        assert [name for name, _ in weights] == ["linear2.weight"]
        assert "linear1.parametrizations.weight.original" in dict(others)

    def test_what_is_no_submodule_is_refused(self):
        with pytest.raises(ValueError, match="'tail', which is not a submodule; the network has: linear1"):
            split_parameters(mlp(), "tail")
        with pytest.raises(ValueError, match="a Linear module, which is not a submodule"):
            split_parameters(mlp(), nn.Linear(1, 1))


ACTIVATIONS = {"tanh": nn.Tanh, "elu": nn.ELU, "crelu": CReLU, "fourier": Fourier}


@st.composite
def networks(draw) -> tuple[nn.Sequential, Tensor]:
    """Random ones, of convolutions and linear layers, and a batch for them."""
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    outputs = 2 if activation in ("crelu", "fourier") else 1
    widths = st.lists(st.integers(2, 5), min_size=1, max_size=2)
    convolutions, linears = draw(st.one_of(st.just([]), widths)), draw(widths)
    torch.manual_seed(draw(st.integers(0, 1000)))
    batch = torch.randn(6, 2, 6, 6) if convolutions else torch.randn(6, 3)
    network, width = nn.Sequential(), batch.shape[1]
    for i, units in enumerate(convolutions):
        stride, padding = draw(st.sampled_from((1, 2))), draw(st.sampled_from((0, 1)))
        network.add_module(f"conv{i}", nn.Conv2d(width, units, 2, stride, padding))
        network.add_module(f"conv{i}_activation", ACTIVATIONS[activation]())
        width = units * outputs
    if convolutions:
        if draw(st.booleans()):
            network.add_module("pool", nn.AvgPool2d(2, ceil_mode=True))
        network.add_module("flatten", nn.Flatten())
        width = network(batch).shape[1]
    for i, units in enumerate(linears):
        network.add_module(f"linear{i}", nn.Linear(width, units))
        network.add_module(f"linear{i}_activation", ACTIVATIONS[activation]())
        width = units * outputs
    network.add_module("head", nn.Linear(width, 4))
    return network.double(), batch.double()


@given(networks(), st.data())
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_without_its_outgoing_columns_a_unit_has_no_effect_and_all_others_have(drawn, data):
    network, batch = drawn
    layers = connected(network, batch[:1])
    layer = data.draw(st.sampled_from([layer for layer in layers.values() if not layer.is_head]))
    unit = data.draw(st.integers(0, layer.units - 1))
    for later, columns in layer.outgoing:
        later.weight[:, columns[unit]] = 0.0
    outputs = network(batch)
    for other in layers.values():
        for changed in range(other.units):
            before = copy.deepcopy(network.state_dict())
            other.weight[changed] += 0.5
            other.module.bias[changed] += 0.5
            assert torch.equal(network(batch), outputs) == (other is layer and changed == unit)
            network.load_state_dict(before)


class TestNothingIsDisturbed:
    @staticmethod
    def network() -> nn.Module:
        network = mlp()
        network.drop = nn.Dropout(0.5)
        network.norm = nn.BatchNorm1d(3)
        return network

    @pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
    def test(self, mode):
        network = self.network()
        network.linear2.eval()
        network.linear1.requires_grad_(False)
        own = network.linear2.forward
        network.linear2.forward = own
        network(torch.randn(4, 5)).sum().backward()
        seen: list[nn.Module] = []
        network.act1.register_forward_hook(lambda module, *_: seen.append(module))
        network._compiled_call_impl = compiled = lambda *_: pytest.fail("it was called as it is compiled")

        before = copy.deepcopy(network.state_dict())
        gradients = {name: p.grad for name, p in network.named_parameters()}
        values = {name: None if g is None else g.clone() for name, g in gradients.items()}
        training = {module: module.training for module in network.modules()}
        hooks = {module: dict(module._forward_hooks) for module in network.modules()}
        state = torch.get_rng_state()
        with mode():
            layers = connected(network, X)
        assert wiring(layers)["linear1"] == {"linear2": one_to_one(8)}
        assert torch.equal(torch.get_rng_state(), state)
        assert {module: module.training for module in network.modules()} == training
        assert {module: dict(module._forward_hooks) for module in network.modules()} == hooks
        assert [name for name, m in network.named_modules() if "forward" in vars(m)] == ["linear2"]
        assert network.linear2.forward is own
        assert network._compiled_call_impl is compiled
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name])
        for name, parameter in network.named_parameters():
            assert parameter.grad is gradients[name]
            assert parameter.grad is None or torch.equal(parameter.grad, values[name])
            assert parameter.requires_grad == (not name.startswith("linear1"))

    def test_nor_by_a_network_that_overwrites_its_input(self):
        network = mlp(lambda: nn.ReLU(inplace=True))
        network.linear1 = nn.Sequential(nn.ELU(inplace=True), network.linear1)
        example = -torch.ones(1, 5)
        assert wiring(connected(network, example))["linear1.1"] == {"linear2": one_to_one(8)}
        assert torch.equal(example, -torch.ones(1, 5))

    def test_nor_if_the_network_fails(self):
        network = mlp()
        state = torch.get_rng_state()
        with pytest.raises(RuntimeError):
            describe(network, torch.zeros(1, 4))
        assert all(module.training for module in network.modules())
        assert not any(module._forward_hooks or "forward" in vars(module) for module in network.modules())
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    network = conv_net().cuda()
    state = torch.cuda.get_rng_state()
    layers = connected(network, IMAGE.cuda())
    assert wiring(layers) == wiring(connected(conv_net(), IMAGE))
    assert all(columns.is_cuda for layer in layers.values() for _, columns in layer.outgoing)
    assert torch.equal(torch.cuda.get_rng_state(), state)
