"""The vision transformer computes what it says, and optimizers, methods and probes know its layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neoteny.agents import supervised
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.supervised import Args, Classifier, SupervisedNetworkConfig, update
from neoteny.agents.vit import VisionTransformer, attention, patches, place_codes
from neoteny.envs.supervised import Batch, SupervisedStreamConfig
from neoteny.optim import METHODS, AdamConfig, AdamOConfig, Learner, build_methods, heads
from neoteny.optim.layers import connect, describe_agent
from neoteny.runners.probes import measure
from neoteny.runners.probes.jacobians import jacobian
from neoteny.runners.probes.ntk import empirical_ntk
from tests.agents.test_supervised import small, weights
from tests.killed import die
from tests.optim.test_registry import FLAGS
from tests.recorded_graph import RecordedCapture

VIT = "--network.kind vit --network.hidden 8 8 --network.heads 2 --network.norm layer"
IN_BLOCK = ("query", "key", "value", "out", "up", "down")


def transformer(norm="none", hidden=(8, 8), **options):
    torch.manual_seed(0)
    return VisionTransformer(torch.zeros(1, 2, 6, 4), 3, 2, 2, NetworkConfig(hidden, norm=norm, **options))


def digits_classifier(method="", norm="layer"):
    linear = "orthogonal" if method == "reorthogonalize" else "free"
    stream = SupervisedStreamConfig(change="permuted-pixels").make(16, 0)
    network = SupervisedNetworkConfig((8, 8), norm=norm, linear=linear, kind="vit", heads=2)
    return stream, lambda: Classifier(stream, network)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_patches_are_cut_row_by_row(batch, channels, rows, columns, side):
    images = torch.rand(batch, channels, rows * side, columns * side)
    cut = patches(images, side)
    assert cut.shape == (batch, rows * columns, channels * side * side)
    for row in range(rows):
        for column in range(columns):
            down, right = (slice(side * i, side * (i + 1)) for i in (row, column))
            assert torch.equal(cut[:, row * columns + column], images[:, :, down, right].flatten(1))


def test_places_have_codes_of_their_own():
    codes = place_codes(3, 2, 8)
    assert codes.shape == (6, 8)
    assert len(codes.unique(dim=0)) == 6
    angles = [[r, r / 1e4, c, c / 1e4] for r in range(3) for c in range(2)]
    expected = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
    assert torch.allclose(codes, torch.tensor(expected))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_attention_is_torchs(batch, tokens, heads, width):
    three = torch.randn(3, batch, tokens, heads * width).unbind()
    split = [each.view(batch, tokens, heads, width).transpose(1, 2) for each in three]
    expected = F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(batch, tokens, -1)
    assert torch.allclose(attention(*three, heads), expected, atol=1e-5)


def test_only_the_codes_tell_where_a_patch_is():
    network, image = transformer(), torch.randn(1, 2, 6, 4)
    moved = image.roll(2, 2)  # by a patch
    assert not torch.allclose(network(image), network(moved), atol=1e-3)
    network.places.zero_()
    assert torch.allclose(network(image), network(moved), atol=1e-5)


def test_a_block_adds_to_its_tokens():
    """So blocks whose last layers are zero are the identity."""
    network, tokens = transformer(norm="layer"), torch.randn(2, 6, 8)
    for block in network.blocks:
        nn.init.zeros_(block.out.weight)
        nn.init.zeros_(block.down.weight)
    assert torch.equal(network.blocks(tokens), tokens)


@pytest.mark.parametrize(("norm", "count"), [("none", 0), ("layer", 5)])
def test_what_is_normalized(norm, count):
    network = transformer(norm)
    assert sum(isinstance(module, nn.LayerNorm) for module in network.modules()) == count
    block = network.blocks[0]
    with torch.no_grad():
        same = torch.allclose(block.norm1(torch.ones(1, 1, 8) * 3), torch.zeros(1, 1, 8))
    assert same == (norm == "layer")


def test_every_matrix_starts_orthogonal():
    for activation in ("relu", "crelu", "maxmin"):
        for name, parameter in transformer(activation=activation).named_parameters():
            if parameter.dim() == 2:
                sigma = torch.linalg.svdvals(parameter)
                assert torch.allclose(sigma, torch.ones_like(sigma), atol=1e-5), name
            else:
                assert not parameter.any()


def test_its_layers_are_known():
    """The units of a block's hidden layer alone can be told apart later."""
    _, new = digits_classifier()
    agent = new()
    layers = describe_agent(agent)
    connect(agent, agent.example, layers)
    names = [f"classifier.blocks.{i}.{name}" for i in range(2) for name in IN_BLOCK]
    assert {layer.name for layer in layers} == {"classifier.embedding", *names, "classifier.head"}
    assert [layer.name for layer in layers if layer.is_head] == ["classifier.head"]
    apart = {layer.name: layer.outgoing[0].layer.name for layer in layers if layer.outgoing}
    assert apart == {f"classifier.blocks.{i}.up": f"classifier.blocks.{i}.down" for i in range(2)}


def test_all_matrices_but_the_head_are_pulled_and_the_report_names_them():
    _, new = digits_classifier()
    agent = new()
    optimizer = AdamOConfig(iso=0.1).build(agent, 1e-3, exclude=heads(agent))
    lines = build_methods((), Learner(agent, optimizer, new)).report(10_000).splitlines()
    matrices = [f"classifier.blocks.{i}.{name}.weight" for i in range(2) for name in IN_BLOCK]
    assert lines[1].split("pulls ")[1].split(", ") == ["classifier.embedding.weight", *matrices]
    left = lines[2].split("does not pull ")[1].split(", ")
    assert {name for name in left if name.endswith("weight")} == {"classifier.head.weight"}


def test_probes_measure_it():
    network, images = transformer(norm="layer").double(), torch.randn(4, 2, 6, 4, dtype=torch.float64)
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(output, parameters, retain_graph=True)])
        for output in network(images).flatten()
    ]
    gradients = torch.stack(rows)
    assert torch.allclose(empirical_ntk(network, images), gradients @ gradients.T)
    expected = [torch.func.jacrev(network)(image[None]).reshape(3, -1) for image in images]
    assert torch.allclose(jacobian(network, images), torch.stack(expected))
    measured = measure({"net": network}, images)
    dead = {tag for tag in measured if tag.startswith("plasticity/dead/net")}
    assert dead == {"plasticity/dead/net.blocks.0.up", "plasticity/dead/net.blocks.1.up"}
    block = network.blocks[0]
    tokens = network.embedding(patches(images, 2)) + network.places
    tokens = tokens + block.out(
        attention(*(f(block.norm1(tokens)) for f in (block.query, block.key, block.value)), 2)
    )
    active = (block.up(block.norm2(tokens)) > 0).flatten(0, 1).any(0)
    assert measured["plasticity/dead/net.blocks.0.up"] == pytest.approx(1 - float(active.float().mean()))


REFUSED = {
    "nap": "not classifier.blocks.0.query",
    "injection": "classifier is a VisionTransformer",
    "injection_at_switch": "classifier is a VisionTransformer",
} | dict.fromkeys(("redo", "regrama", "snr", "continual_backprop", "cpr"), "embedding cannot be reset")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_acts_on_it_or_says_why_not(name):
    stream, new = digits_classifier(name)
    agent = new()
    optimizer = AdamConfig().build(agent, 1e-3, exclude=heads(agent))
    learner, configs = Learner(agent, optimizer, new), (METHODS[name](**FLAGS.get(name, {})),)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            build_methods(configs, learner)
        return
    methods, batch = (
        build_methods(configs, learner),
        Batch(stream.data.observations[:8], stream.data.targets[:8]),
    )
    for _ in range(6):
        update(agent, optimizer, methods, batch, Args())
        methods.between_steps(batch)
    methods.end_update(switched_at=8)
    assert methods.summary()[name]["acted"]
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


def test_a_killed_run_goes_on_and_replayed_steps_do_what_steps_do(tmp_path, monkeypatch):
    whole, killed, captured = (
        small(tmp_path / name, "optim:adamo", *VIT.split()) for name in ("whole", "killed", "captured")
    )
    supervised.main(whole)
    die(supervised, killed, 64 * 3, monkeypatch)
    supervised.main(killed)
    assert weights(killed) == weights(whole)
    monkeypatch.setattr(supervised, "Capture", RecordedCapture)
    supervised.main(captured)
    assert weights(captured) == weights(whole)


@pytest.mark.parametrize(
    ("image", "patch", "heads", "hidden", "match"),
    [
        ((1, 1, 8, 8), 3, 1, (8,), "multiples of --network.patch 3, not inputs of 1x8x8"),
        ((1, 64), 4, 1, (8,), "not inputs of 64"),
        ((1, 1, 8, 8), 4, 3, (8,), r"multiples of 4 and of --network.heads 3, not \(8,\)"),
        ((1, 1, 8, 8), 4, 2, (8, 16), "equal widths"),
        ((1, 1, 8, 8), 4, 2, (6,), "multiples of 4"),
    ],
)
def test_what_does_not_fit_is_refused(image, patch, heads, hidden, match):
    with pytest.raises(ValueError, match=match):
        VisionTransformer(torch.zeros(image), 10, patch, heads, NetworkConfig(hidden))
