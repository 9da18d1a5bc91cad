"""The script on dead units counts them rightly, and what it puts out of reach no weights can bring back."""

import copy

import numpy as np
import pytest
import torch

from neoteny.agents.supervised import Classifier, SupervisedNetworkConfig
from neoteny.envs.supervised import SupervisedStreamConfig
from neoteny.scripts.revival import Revival, dead_units, main, put_out_of_reach, returned


@pytest.fixture
def agent():
    torch.manual_seed(0)
    stream = SupervisedStreamConfig(samples=64).make(32, 0)
    agent = Classifier(stream, SupervisedNetworkConfig((8, 6)))
    with torch.no_grad():
        agent.classifier.linear1.bias[2] = -100.0
        agent.classifier.linear2.bias[5] = -100.0
    return agent, stream.data.observations


def test_units_that_are_0_on_all_samples_are_dead(agent):
    network, samples = agent
    layers = network.classifier
    with torch.no_grad():
        first = layers.linear1(network.encode(samples).flatten(1)).relu()
        second = layers.linear2(first).relu()
    dead = dead_units(network, samples)
    assert dead.tolist() == [not units.any() for units in (*first.T, *second.T)]
    assert dead[[2, 8 + 5]].all()
    assert not dead.all()


def test_no_rotation_of_its_weights_brings_a_unit_out_of_reach_back(agent):
    network, samples = agent
    layer = network.classifier.linear1
    inputs = network.encode(samples).flatten(1)
    farthest = inputs[inputs.norm(dim=1).argmax()]
    with torch.no_grad():
        layer.bias[2] = -10.0
        layer.weight[2] = -farthest / farthest.norm()
        turned = torch.linalg.matrix_norm(layer.weight, ord=2) * farthest / farthest.norm()
        within = copy.deepcopy(network)
        put_out_of_reach(network, samples)
        assert dead_units(within, samples)[2]
        for each in (network, within):
            each.classifier.linear1.weight[2] = turned
    assert not dead_units(within, samples)[2]
    assert dead_units(network, samples)[2]
    kept = [i for i in range(8) if i != 2]
    assert torch.equal(layer.bias[kept], within.classifier.linear1.bias[kept])


def test_what_has_returned():
    before = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)  # three dead at the end
    dead = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]], bool)
    assert returned(before, dead) == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.slow
def test_it_draws_and_prints_every_arm(tmp_path, capsys):
    assert main(Revival(seeds=(1,), before=1, after=1, out=tmp_path / "new" / "figure")) == 0
    assert (tmp_path / "new" / "figure.png").exists()
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["Adam, before", "Adam", "AdamO", "AdamO, biases out of reach"]
