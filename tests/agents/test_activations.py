"""What the activations compute, and how isometric layers with them are."""

import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neoteny.agents.activations import ACTIVATIONS, Abs, CReLU, Fourier, GroupSort, MaxMin
from neoteny.optim import orthogonalize
from neoteny.runners.probes import measure
from neoteny.runners.probes.jacobians import jacobian

SQUARE = ["abs", "maxmin", "groupsort"]  # as many outputs as units
ISOMETRIC = [*SQUARE, "crelu", "fourier"]


def hidden(name: str, inputs: int, width: int) -> nn.Sequential:
    """A layer with an orthogonal weight, some biases and `width` outputs."""
    linear = nn.Linear(inputs, width // ACTIVATIONS[name].outputs, dtype=torch.float64)
    return nn.Sequential(orthogonalize(linear), ACTIVATIONS[name].make())


def singular_values(function: nn.Module, inputs: Tensor) -> Tensor:
    return torch.linalg.svdvals(jacobian(function, inputs))


@pytest.mark.parametrize(
    ("module", "units", "outputs"),
    [
        (MaxMin(), [1.0, 2.0, 5.0, -3.0], [2.0, 1.0, 5.0, -3.0]),
        (GroupSort(2), [1.0, 2.0, 5.0, -3.0], [2.0, 1.0, 5.0, -3.0]),
        (GroupSort(3), [1.0, 2.0, 3.0, 0.0, -1.0, 5.0], [3.0, 2.0, 1.0, 5.0, 0.0, -1.0]),
        (Abs(), [1.0, -2.0, 0.0], [1.0, 2.0, 0.0]),
        (CReLU(), [1.0, -2.0, 0.0], [1.0, 0.0, 0.0, 0.0, 2.0, 0.0]),
        (Fourier(), [0.0, math.pi / 2], [0.0, 1.0, 1.0, 0.0]),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_by_hand(module, units, outputs):
    assert module(torch.tensor([units])).flatten().tolist() == pytest.approx(outputs, abs=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_images_are_vectors_of_channels_at_every_pixel(name):
    chosen = ACTIVATIONS[name]
    image = torch.randn(3, 8, 5, 4)
    pixels = image.movedim(1, -1).flatten(0, 2)
    outputs = chosen.make()(image)
    assert outputs.shape == (3, 8 * chosen.outputs, 5, 4)
    assert torch.equal(outputs.movedim(1, -1).flatten(0, 2), chosen.make()(pixels))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12), st.sampled_from([2, 3, 4, 6, 12]))
@settings(max_examples=50, deadline=None)
def test_groups_hold_what_they_held_in_order(units, size):
    groups = GroupSort(size)(torch.tensor([units])).view(-1, size)
    assert groups.tolist() == [sorted(units[i : i + size], reverse=True) for i in range(0, len(units), size)]
    if size == 2:
        assert groups.flatten().tolist() == MaxMin()(torch.tensor([units])).flatten().tolist()


@pytest.mark.parametrize("name", ISOMETRIC)
@pytest.mark.parametrize("shape", [(12, 12), (12, 20), (20, 12)])
def test_a_layer_has_the_singular_values_of_its_weight(name, shape):
    linear = nn.Linear(*shape, dtype=torch.float64)
    layer = nn.Sequential(linear, ACTIVATIONS[name].make())
    for one in jacobian(layer, torch.randn(7, shape[0], dtype=torch.float64)):
        torch.testing.assert_close(one.T @ one, linear.weight.T @ linear.weight)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh"])
def test_others_have_not(name):
    layer = nn.Sequential(orthogonalize(nn.Linear(12, 12)), ACTIVATIONS[name].make())
    sigma = singular_values(layer, 3 * torch.randn(7, 12))
    assert sigma.amin() < 0.5
    assert name != "relu" or ((sigma < 1e-5) | ((sigma - 1).abs() < 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SQUARE)
def test_square_orthogonal_layers_are_isometries_each_and_end_to_end(name, dtype):
    layers = [hidden(name, 16, 16) for _ in range(4)]
    network = nn.Sequential(*layers).to(dtype)
    signal = torch.randn(20, 16, dtype=dtype)
    torch.testing.assert_close(
        singular_values(network, signal), torch.ones(20, 16, dtype=dtype), atol=1e-5, rtol=0
    )
    for layer in layers:
        sigma = singular_values(layer, signal)
        torch.testing.assert_close(sigma, torch.ones_like(sigma), atol=1e-5, rtol=0)
        signal = layer(signal).detach()


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize(("width", "holds"), [(16, True), (40, False)])
def test_norms_of_gradients_are_kept_by_square_layers_and_not_by_tall_ones(name, width, holds):
    layer, inputs = hidden(name, 16, width), torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    outputs = layer(inputs)
    above = torch.randn_like(outputs)
    (below,) = torch.autograd.grad(outputs, inputs, above)
    ratio = below.norm(dim=1) / above.norm(dim=1)
    # Of a tall layer, what lies in the range of its 16 orthonormal columns in 40 dimensions: sqrt(0.4).
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-5) == holds
    assert holds or ratio.mean().item() == pytest.approx(math.sqrt(0.4), abs=0.1)


def deep(name: str) -> nn.Sequential:
    """Ten square layers as agents have them at first, in random orthogonal matrices with the table's gain."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(10):
        linear = nn.Linear(256, 256 // ACTIVATIONS[name].outputs, bias=False)
        nn.init.orthogonal_(linear.weight, ACTIVATIONS[name].gain)
        layers[f"linear{i}"], layers[f"activation{i}"] = linear, ACTIVATIONS[name].make()
    return nn.Sequential(layers)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "tanh"])
def test_gains_keep_the_mean_square_of_a_signal_and_of_a_gradient(name):
    network, inputs = deep(name), torch.randn(64, 256, requires_grad=True)
    outputs = network(inputs)
    expected = 0.5 if name == "fourier" else 1.0  # sin^2 + cos^2 = 1, of two outputs
    # A gain that is wrong by sqrt(2) makes it a thousand times as large.
    assert outputs.square().mean().item() == pytest.approx(expected, rel=0.4)
    above = torch.randn_like(outputs)
    (below,) = torch.autograd.grad(outputs, inputs, above)
    assert below.square().mean().item() == pytest.approx(1.0, rel=0.4)


@pytest.mark.parametrize("name", ISOMETRIC)
def test_probes_of_activations(name):
    chosen, units = ACTIVATIONS[name], 16 // ACTIVATIONS[name].outputs
    linear = orthogonalize(nn.Linear(16, units))
    with torch.no_grad():
        linear.bias[0] = 100.0
    network = nn.Sequential(OrderedDict(linear1=linear, activation=chosen.make(), head=nn.Linear(16, 2)))
    measured = measure({"net": network}, torch.randn(300, 16))
    assert measured["isometry/jacobian_log10_cond_active/net.linear1/p95"] == pytest.approx(0.0, abs=1e-5)
    assert measured["isometry/jacobian_rank/net.linear1/median"] == units
    lost = math.sqrt(1 - units / 16)
    assert measured["isometry/jacobian_distance/net.linear1/p95"] == pytest.approx(lost, abs=1e-5)
    assert measured["isometry/penalty"] == pytest.approx(0.0, abs=1e-6)
    # One output never comes to life: the negative part of the unit whose bias is 100.
    assert measured["plasticity/dead/net.linear1"] == (1 / 16 if name == "crelu" else 0.0)
