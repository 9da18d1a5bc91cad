"""Layers of flags: the same outputs and gradients as of a matrix product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from neoteny.agents import sparse
from neoteny.agents.networks import Flat, NetworkConfig, torso
from neoteny.agents.sparse import Entries, FlagLinear, are_sparse
from neoteny.envs import StreamConfig


def flags(rows, width, share=0.03, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=generator) < share


SIZES = [(1, 7, 0.5), (64, 1000, 0.0), (64, 1000, 0.03), (64, 1000, 0.9), (20, 70_000, 0.01)]


@pytest.mark.parametrize(("rows", "width", "share"), SIZES)
def test_outputs_and_gradients_are_those_of_a_linear_layer(rows, width, share):
    layer, plain = FlagLinear(width, 5), nn.Linear(width, 5)
    plain.load_state_dict(layer.state_dict())
    inputs = flags(rows, width, share)
    inputs[0] = False  # a sample without entries
    outputs, expected = layer(inputs), plain(inputs.float())
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)
    torch.testing.assert_close(layer(inputs.float()), expected)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_entries_are_listed_by_sample_and_by_column(array):
    entries = Entries(torch.from_numpy(array))
    samples, columns = array.nonzero()
    assert entries.columns.tolist() == columns.tolist()
    assert entries.first.tolist() == [int((samples < i).sum()) for i in range(len(array))]
    listed, first = entries.by_column
    columns, samples = array.T.nonzero()
    assert listed.tolist() == samples.tolist()
    assert first.tolist() == [int((columns < i).sum()) for i in range(array.shape[1])]


def test_a_batch_is_listed_once_and_anew_when_it_changes(monkeypatch):
    listed = []
    monkeypatch.setattr(sparse, "Entries", lambda flags: (listed.append(1), Entries(flags))[1])
    batch = flags(100, 1000)
    one, two = FlagLinear(1000, 4), FlagLinear(1000, 4)
    one(batch)
    two(batch)
    assert len(listed) == 1
    batch[:] = flags(100, 1000, seed=1)
    torch.testing.assert_close(one(batch), nn.functional.linear(batch.float(), one.weight, one.bias))
    assert len(listed) == 2
    with torch.inference_mode():
        batch = batch.clone()
        one(batch)
        batch[:] = flags(100, 1000, seed=2)
        torch.testing.assert_close(one(batch), nn.functional.linear(batch.float(), one.weight, one.bias))


def test_flags_stay_flags_only_where_that_is_faster():
    assert are_sparse(flags(100, 1000))
    for other in (flags(100, 1000, 0.2), flags(10, 1000), flags(100, 1000).float()):
        assert not are_sparse(other)
        assert Flat()(other).dtype == torch.float32
    assert Flat()(flags(100, 1000).view(100, 10, 10, 10)).dtype == torch.bool


def test_first_layers_of_vectors_of_flags_take_them():
    stream = StreamConfig("minatar", observations="vectors").make(1)
    layers = torso(Flat(), stream.single_observation_space, NetworkConfig((8, 8)))
    assert type(layers.linear1) is FlagLinear
    assert type(layers.linear2) is nn.Linear
