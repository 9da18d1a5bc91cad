"""A small vision transformer (Dosovitskiy et al., ICLR 2021) for the supervised learner.

Every trained parameter is the weight or bias of a linear layer, so that optimizers, methods and probes know
all of them: queries, keys and values have a matrix each, places of patches have fixed codes, and features are
the mean over patches (Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neoteny.agents.networks import NetworkConfig, head, hidden_layer

EXPANSION = 4
"""Width of a block's hidden layer, as a multiple of the block's own."""


class VisionTransformer(nn.Module):
    """Images (B, C, H, W) -> outputs (B, O).

    Each of `network.hidden` is a block of that width D. All weights but the head's start orthogonal with
    gain 1.

    Args:
        image: an encoded image (1, C, H, W).
        outputs: O.
        patch: pixels of a side of a patch.
        heads: attention heads of a block.
        network: blocks, activation, and whether layer normalization stands before attention, before the
            hidden layer of each block, and before the head.

    Raises:
        ValueError: inputs are no images, or widths or sides do not fit.
    """

    def __init__(self, image: Tensor, outputs: int, patch: int, heads: int, network: NetworkConfig) -> None:
        super().__init__()
        width = network.hidden[0]
        if image.dim() != 4 or any(side % patch for side in image.shape[2:]):
            shape = "x".join(map(str, image.shape[1:]))
            needed = f"images with sides that are multiples of --network.patch {patch}"
            raise ValueError(f"--network.kind vit needs {needed}, not inputs of {shape}")
        if set(network.hidden) != {width} or width % heads or width % 4:
            needed = f"equal widths that are multiples of 4 and of --network.heads {heads}"
            raise ValueError(
                f"--network.kind vit needs --network.hidden to be {needed}, not {network.hidden}"
            )
        self.patch = patch
        self.embedding = hidden_layer(nn.Linear(image.shape[1] * patch**2, width), network, gain=1.0)
        self.places: Tensor
        self.register_buffer(
            "places", place_codes(image.shape[2] // patch, image.shape[3] // patch, width), persistent=False
        )
        self.blocks = nn.Sequential(*(Block(width, heads, network) for _ in network.hidden))
        self.norm = token_norm(width, network)
        self.head = head(network, outputs, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> outputs (B, O)."""
        tokens = self.embedding(patches(images, self.patch)) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class Block(nn.Module):
    """A block of a transformer: attention, then a hidden layer for each token, (B, P, D) -> (B, P, D)."""

    def __init__(self, width: int, heads: int, network: NetworkConfig) -> None:
        super().__init__()

        def linear(features: int, width: int) -> nn.Linear:
            return hidden_layer(nn.Linear(features, width), network, gain=1.0)

        self.heads, units = heads, network.units
        self.norm1 = token_norm(width, network)
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.out = linear(width, width)
        self.norm2 = token_norm(width, network)
        self.up = linear(width, EXPANSION * width // units.outputs)
        self.activation = units.make()
        self.down = linear(EXPANSION * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P, D) -> (B, P, D)."""
        normed = self.norm1(tokens)
        attended = attention(self.query(normed), self.key(normed), self.value(normed), self.heads)
        tokens = tokens + self.out(attended)
        return tokens + self.down(self.activation(self.up(self.norm2(tokens))))


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Softmax attention of each head over all tokens; all tensors are (B, P, D).

    Written out, because torch's kernel cannot be differentiated for many outputs at once, as probes do.
    """
    queries, keys, values = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    weights = (queries @ keys.mT / math.sqrt(queries.shape[3])).softmax(3)  # (B, heads, P, P)
    return (weights @ values).transpose(1, 2).flatten(2)


def patches(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) -> their patches, row by row, (B, P, C * side * side)."""
    cut = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def place_codes(rows: int, columns: int, width: int) -> Tensor:
    """Codes of the places of patches, row by row, (rows * columns, width): sines and cosines of both."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    angles = (places[:, :, None] * frequencies).flatten(1)
    return torch.cat((angles.sin(), angles.cos()), 1)


def token_norm(width: int, network: NetworkConfig) -> nn.Module:
    """Layer normalization of each token, without trained scale and offset, if `network.norm` says so."""
    return nn.LayerNorm(width, elementwise_affine=False) if network.norm == "layer" else nn.Identity()
