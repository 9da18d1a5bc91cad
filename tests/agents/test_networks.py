import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from neoteny.agents.activations import ACTIVATIONS
from neoteny.agents.networks import (
    Flat,
    Images,
    NetworkConfig,
    OneHotGrid,
    convolutions,
    encoder,
    head,
    torso,
)
from neoteny.envs.observations import ObservationSpec, read_observations

GRID = ObservationSpec(gym.spaces.Box(0, 255, (7, 7, 3), np.uint8), "codes")
ATARI = ObservationSpec(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), "pictures", "first")
VECTOR = ObservationSpec(gym.spaces.Box(-1, 1, (5,), np.float32), "vectors")


@pytest.mark.parametrize(("spec", "kind"), [(GRID, OneHotGrid), (ATARI, Images), (VECTOR, Flat)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("linear", ["free", "orthogonal"])
def test_encoder_and_torso_by_observation(spec, kind, activation, linear):
    space, encode = spec.space, encoder(spec)
    assert isinstance(encode, kind)
    layers = torso(encode, space, NetworkConfig(hidden=(32, 16), activation=activation, linear=linear))
    observations = torch.as_tensor(np.stack([space.sample() for _ in range(3)])) % 4
    assert layers(encode(observations)).shape == (3, 16)
    for layer in layers.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
            gain = ACTIVATIONS[activation].gain if linear == "free" else 1.0
            torch.testing.assert_close(singular, torch.full_like(singular, gain), atol=1e-5, rtol=0)
            assert not layer.bias.any()
            if isinstance(layer, nn.Conv2d):
                assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", [GRID, ATARI, VECTOR])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_widths_are_those_after_the_activation(spec, activation):
    layers = dict(torso(encoder(spec), spec.space, NetworkConfig((32, 16), activation)).named_children())
    widths = [16, 32] if spec is GRID else [32, 64, 64] if spec is ATARI else []
    names = [f"conv{i + 1}" for i in range(len(widths))] + ["linear1", "linear2"]
    for name, width in zip(names, [*widths, 32, 16]):
        assert len(layers[name].weight) * ACTIVATIONS[activation].outputs == width


@pytest.mark.parametrize("spec", [GRID, ATARI, VECTOR])
@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_normalized_layers_have_mean_0_and_variance_1_before_the_activation(spec, activation):
    encode = encoder(spec)
    layers = torso(encode, spec.space, NetworkConfig((32, 16), activation, norm="layer"))
    free = torso(encode, spec.space, NetworkConfig((32, 16), activation))
    assert layers.state_dict().keys() == free.state_dict().keys()  # nothing of it is trained
    entered = []
    for name, module in layers.named_children():
        if name.endswith("_activation"):
            module.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0].detach()))
    observations = torch.as_tensor(np.stack([spec.space.sample() for _ in range(3)]))
    layers(encode(observations % 4 if spec is GRID else observations))
    assert len(entered) == (2 if spec is VECTOR else 4 if spec is GRID else 5)
    for each in entered:
        torch.testing.assert_close(each.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(each.flatten(1).var(1, correction=0), torch.ones(3), atol=1e-2, rtol=0)


def test_heads_stay_free():
    network = NetworkConfig(linear="orthogonal")
    assert head(network, 3, gain=0.01).weight.norm().item() == pytest.approx(0.01 * 3**0.5)
    assert not nn.utils.parametrize.is_parametrized(head(network, 3, gain=0.01))


def test_grid_cells_become_one_hot():
    observation = torch.zeros(1, 7, 7, 3, dtype=torch.uint8)
    observation[0, 2, 3] = torch.tensor([8, 1, 2])
    channels = OneHotGrid()(observation)
    assert channels.shape == (1, 21, 7, 7)
    assert channels[0, :, 2, 3].nonzero().flatten().tolist() == [8, 11 + 1, 17 + 2]
    assert channels.sum() == 3 * 49


def test_images_are_vectors_if_asked():
    observation = torch.randint(0, 11, (2, 7, 7, 3), dtype=torch.uint8)
    spec = read_observations(GRID.space, "vectors")
    encode = encoder(spec)
    assert torch.equal(encode(observation), observation.flatten(1).float())
    assert torso(encode, spec.space, NetworkConfig()).linear1.in_features == 147


@pytest.mark.parametrize(
    ("side", "widths"), [(4, []), (5, [16, 32]), (35, [16, 32]), (36, [32, 64, 64]), (84, [32, 64, 64])]
)
def test_convolutions_by_the_smaller_side_of_an_image(side, widths):
    space = gym.spaces.Box(0, 255, (1, side, 90), np.uint8)
    encode = encoder(ObservationSpec(space, "pictures", "first"))
    kernels = convolutions(encode, encode(torch.zeros(1, *space.shape)))
    assert [width for width, _, _ in kernels] == widths


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden": ()},
        {"hidden": (0,)},
        {"hidden": (3,), "activation": "maxmin"},
        {"hidden": (8, 3), "activation": "crelu"},
        {"hidden": (3,), "activation": "fourier"},
        {"hidden": (6,), "activation": "groupsort"},
    ],
)
def test_bad_networks_are_refused(bad):
    with pytest.raises(ValueError, match=r"--network\.hidden"):
        NetworkConfig(**bad)
