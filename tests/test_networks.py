import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from neoteny.agents.networks import (
    ACTIVATIONS,
    Flat,
    MaxMin,
    NetworkConfig,
    OneHotGrid,
    Pixels,
    encoder,
    torso,
)

GRID = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
ATARI = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = gym.spaces.Box(-1, 1, (5,), np.float32)


def test_maxmin_sorts_pairs_of_units_and_of_channels():
    assert MaxMin()(torch.tensor([[1.0, 2.0, 5.0, -3.0]])).tolist() == [[2.0, 1.0, 5.0, -3.0]]
    image = torch.randn(2, 6, 3, 3)
    sorted_image = MaxMin()(image)
    assert torch.equal(sorted_image[:, 0::2], torch.maximum(image[:, 0::2], image[:, 1::2]))
    assert torch.equal(sorted_image[:, 1::2], torch.minimum(image[:, 0::2], image[:, 1::2]))


@pytest.mark.parametrize(("space", "kind"), [(GRID, OneHotGrid), (ATARI, Pixels), (VECTOR, Flat)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_encoder_and_torso_by_observation(space, kind, activation):
    encode = encoder(space)
    assert isinstance(encode, kind)
    layers = torso(encode, space, NetworkConfig(hidden=(32, 16), activation=activation))
    observations = torch.as_tensor(np.stack([space.sample() for _ in range(3)])) % 4
    assert layers(encode(observations)).shape == (3, 16)
    for layer in layers.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
            torch.testing.assert_close(singular, torch.full_like(singular, ACTIVATIONS[activation][1]))
            assert not layer.bias.any()


def test_grid_cells_become_one_hot():
    observation = torch.zeros(1, 7, 7, 3, dtype=torch.uint8)
    observation[0, 2, 3] = torch.tensor([8, 1, 2])
    channels = OneHotGrid()(observation)
    assert channels.shape == (1, 21, 7, 7)
    assert channels[0, :, 2, 3].nonzero().flatten().tolist() == [8, 11 + 1, 17 + 2]
    assert channels.sum() == 3 * 49


def test_images_are_vectors_if_asked():
    observation = torch.randint(0, 11, (2, 7, 7, 3), dtype=torch.uint8)
    encode = encoder(GRID, flat=True)
    assert torch.equal(encode(observation), observation.flatten(1).float())
    assert torso(encode, GRID, NetworkConfig(flat=True)).linear1.in_features == 147


def test_pixels_are_scaled():
    assert Pixels()(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)).unique().tolist() == [1.0]


@pytest.mark.parametrize("bad", [{"hidden": ()}, {"hidden": (0,)}, {"hidden": (3,), "activation": "maxmin"}])
def test_bad_networks_are_refused(bad):
    with pytest.raises(ValueError, match=r"--network\.hidden"):
        NetworkConfig(**bad)


def test_other_observations_are_refused():
    with pytest.raises(ValueError, match="must be a Box"):
        encoder(gym.spaces.Discrete(4))
