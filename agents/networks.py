"""Networks that the agents share: encoders, torsos and heads.

A network is a :class:`torch.nn.Sequential` whose children have the names that appear in the probes' tags:
``conv1``, ``linear1``, ..., ``head``. Weights are initialized orthogonal, biases to zero.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neoteny.agents.activations import ACTIVATIONS, Activation
from neoteny.agents.sparse import FlagLinear, are_sparse
from neoteny.envs import Stream
from neoteny.envs.observations import CODES, ObservationSpec, read_observations, zeros
from neoteny.optim.orthogonal import orthogonalize

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

MOST_LAYERS = 100


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Layers and activations of the networks."""

    hidden: tuple[int, ...] = (64, 64)
    """Output widths of the hidden linear layers, counted after the activation; images pass convolutions
    first."""
    activation: Literal["relu", "leaky_relu", "tanh", "abs", "maxmin", "groupsort", "crelu", "fourier"] = (
        "relu"
    )
    """Activation function of every hidden layer."""
    linear: Literal["free", "orthogonal"] = "free"
    """Whether the weights of hidden layers, convolutions included, are unconstrained ("free") or kept
    orthogonal in every forward pass by Björck's iteration. Heads are always free."""
    norm: Literal["none", "layer"] = "none"
    """Whether layer normalization stands before every activation function: mean 0 and variance 1 over the
    units of a layer, or over channels and positions of a convolution, without trained scale and offset."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"--network.hidden must be positive widths, not {self.hidden}")
        if len(self.hidden) > MOST_LAYERS:
            raise ValueError(f"--network.hidden must be at most {MOST_LAYERS} widths, not {len(self.hidden)}")
        multiple = self.units.multiple
        if any(width % multiple for width in self.hidden):
            needed = f"{self.activation} needs --network.hidden to be multiples of {multiple}"
            raise ValueError(f"{needed}, not {self.hidden}")

    @property
    def units(self) -> Activation:
        """The activation function and its properties."""
        return ACTIVATIONS[self.activation]


class Flat(nn.Module):
    """Flatten any observation to a vector: (B, ...) -> (B, D), of floats, or of flags that are mostly false.

    Flags are for a `FlagLinear`, where that is faster.
    """

    def forward(self, observations: Tensor) -> Tensor:
        """Flatten."""
        flat = observations.reshape(len(observations), -1)
        return flat if are_sparse(flat) else flat.float()


class Images(nn.Module):
    """Convert images to float channels (B, C, H, W), scaled to 0 to 1 by the bounds of the space.

    Args:
        spec: the kind of observation: (B, C, H, W), (B, H, W, C), (B, H, W), or stacks (B, S, ...) of the
            first two, whose frames become channels.
    """

    def __init__(self, spec: ObservationSpec) -> None:
        super().__init__()
        self.axes, self.last = len(spec.space.shape), spec.channels == "last"
        low, high = map(torch.from_numpy, spec.bounds)
        scale = torch.where(high > low, high - low, 1.0)
        same = bool((low == 0).all() and (scale == scale.flatten()[0]).all())
        self.scale: float | None = float(scale.flatten()[0]) if same else None
        self.low: Tensor
        self.range: Tensor
        self.register_buffer("low", None if same else low, persistent=False)
        self.register_buffer("range", None if same else scale, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Scale, and move channels first."""
        images = observations.float()
        images = (images - self.low) / self.range if self.scale is None else images / self.scale
        if self.axes == 2:
            return images[:, None]
        if self.last:
            images = images.movedim(-1, -3)
        return images if self.axes == 3 else images.flatten(1, 2)


class OneHotGrid(nn.Module):
    """One-hot encode MiniGrid images of uint8 codes: (B, H, W, 3) -> (B, 21, H, W).

    Additional channels (a stream's task id, 0 or 255) are scaled to 0 and 1.
    """

    def __init__(self) -> None:
        super().__init__()
        codes = torch.cartesian_prod(*map(torch.arange, CODES))
        onehot = [F.one_hot(code, count) for code, count in zip(codes.unbind(1), CODES)]
        self.table: Tensor  # one-hot channels of every possible cell, (264, 21)
        self.register_buffer("table", torch.cat(onehot, dim=1).float(), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """One-hot channels, floats."""
        _, colours, states = CODES
        kind, colour, state = observations[..., :3].int().unbind(3)
        rows = (kind * colours + colour) * states + state
        channels = self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)
        if observations.shape[3] > 3:
            channels = torch.cat((channels, observations[..., 3:] / 255.0), dim=3)
        return channels.permute(0, 3, 1, 2)


def precision(amp: Literal["none", "bf16"], device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast context of forward passes: "bf16" computes in bfloat16 with float32 weights."""
    return torch.autocast(device.type, torch.bfloat16) if amp == "bf16" else contextlib.nullcontext()


def encoder(spec: ObservationSpec) -> nn.Module:
    """The parameter-free module that turns a batch of raw observations into floats."""
    if spec.kind == "codes":
        return OneHotGrid()
    return Flat() if spec.kind == "vectors" else Images(spec)


def encoder_of(envs: gym.vector.VectorEnv) -> nn.Module:
    """The encoder for the observations of a stream, or of another vector environment by its space.

    Raises:
        ValueError: the space is ambiguous.
    """
    if isinstance(envs, Stream):
        return encoder(envs.observation_spec)
    return encoder(read_observations(envs.single_observation_space))


def action_count(envs: gym.vector.VectorEnv) -> int:
    """The number of actions.

    Raises:
        ValueError: the action space is not discrete.
    """
    actions = envs.single_action_space
    if not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"the agent needs a discrete action space, not {actions}")
    return int(actions.n)


def convolutions(encode: nn.Module, image: Tensor) -> list[tuple[int, int, int]]:
    """Width, kernel size and stride of the convolutions after ``encode``, whose output is like ``image``.

    Images of at least 36 pixels a side get the three of Mnih et al. (Nature, 2015); smaller ones and
    MiniGrid's codes get two small ones; vectors, and images with a side below 5, none.
    """
    if isinstance(encode, Flat) or min(image.shape[2:]) < 5:
        return []
    if isinstance(encode, Images) and min(image.shape[2:]) >= 36:
        return [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    return [(16, 3, 1), (32, 3, 1)]


def torso(encode: nn.Module, space: gym.Space, network: NetworkConfig) -> nn.Sequential:
    """Hidden layers on top of ``encode``: (B, ...) -> (B, network.hidden[-1]), convolutions first."""
    example = encode(zeros(space, 1))
    flags = isinstance(encode, Flat) and space.dtype == np.bool_
    return hidden_layers(example, convolutions(encode, example), network, flags)


def hidden_layers(
    example: Tensor, kernels: Sequence[tuple[int, int, int]], network: NetworkConfig, flags: bool = False
) -> nn.Sequential:
    """Hidden layers for inputs like ``example`` (1, ...): convolutions, then linear layers.

    Widths are counted after the activation: if that has two outputs per unit, the layer has half the units.

    Args:
        example: an encoded observation.
        kernels: width, kernel size and stride of each convolution.
        network: the linear layers and activations.
        flags: whether inputs may be flags.
    """
    units = network.units
    layers = nn.Sequential()
    channels = example.shape[1]
    for i, (width, size, stride) in enumerate(kernels, start=1):
        _add_hidden(layers, f"conv{i}", nn.Conv2d(channels, width // units.outputs, size, stride), network)
        channels = width
    if example.dim() > 2:
        layers.add_module("flatten", nn.Flatten())
    features = layers(example).shape[1]
    for i, width in enumerate(network.hidden, start=1):
        kind = FlagLinear if flags and i == 1 else nn.Linear
        _add_hidden(layers, f"linear{i}", kind(features, width // units.outputs), network)
        features = width
    return layers


def _add_hidden(layers: nn.Sequential, name: str, layer: Layer, network: NetworkConfig) -> None:
    """Add a layer, its normalization and its activation function."""
    layers.add_module(name, hidden_layer(layer, network))
    if network.norm == "layer":
        layers.add_module(f"{name}_norm", layer_norm(layer))
    layers.add_module(f"{name}_activation", network.units.make())


def layer_norm(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Layer normalization of a layer's outputs, over the units of a sample, and over their positions."""
    if isinstance(layer, nn.Conv2d):
        return nn.GroupNorm(1, layer.out_channels, affine=False)
    return nn.LayerNorm(layer.out_features, elementwise_affine=False)


def hidden_layer(layer: Layer, network: NetworkConfig, gain: float | None = None) -> Layer:
    """Initialize a hidden layer with an orthogonal weight, and constrain it if ``network.linear`` says so.

    Its singular values are ``gain``, which by default suits the activation function.
    """
    orthogonal(layer, network.units.gain if gain is None else gain)
    if isinstance(layer, nn.Conv2d):
        # Up to 1.5 times as fast.
        layer = nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
    return orthogonalize(layer) if network.linear == "orthogonal" else layer


def head(network: NetworkConfig, outputs: int, gain: float) -> nn.Linear:
    """The output layer, (B, network.hidden[-1]) -> (B, outputs)."""
    return orthogonal(nn.Linear(network.hidden[-1], outputs), gain)


class Dueling(nn.Module):
    """Dueling head (Wang et al., 2016): the state value plus each action's advantage over the mean."""

    def __init__(self, network: NetworkConfig, actions: int) -> None:
        super().__init__()
        self.value = head(network, 1, gain=1.0)
        self.advantage = head(network, actions, gain=1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> action values (B, A)."""
        advantages = self.advantage(features)
        return self.value(features) + advantages - advantages.mean(1, keepdim=True)


def orthogonal(layer: Layer, gain: float) -> Layer:
    """Initialize a layer's weight orthogonal, with all singular values ``gain``, and its bias to zero."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
