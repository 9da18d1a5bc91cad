"""Input Jacobians of networks and layers, and measures of their isometry."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neoteny.runners.probes.spectra import RESOLUTION, condition_number, gram, gram_singular_values, quantile

# Rows times samples that are backpropagated at once, to bound the memory of Jacobians with many outputs.
_ROWS_AT_ONCE = 1024

# Activations whose Jacobian is diagonal. For any other the full Jacobian is computed, which is slower.
ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.ReLU,
    nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip


def jacobian(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Jacobians (B, outputs, inputs), dimensions flattened, of a function of each input (B, ...) alone."""
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        outputs = function(leaf.clone())  # a clone, since in-place activations must not write to a leaf
        outputs = outputs.reshape(len(inputs), -1)
    samples, width = outputs.shape
    # Samples do not interact, so row o of all Jacobians is the gradient of output o summed over the batch.
    basis = torch.eye(width, dtype=outputs.dtype, device=outputs.device)[:, None].expand(-1, samples, -1)
    try:
        rows = [
            torch.autograd.grad(outputs, leaf, chunk, retain_graph=True, is_grads_batched=True)[0]
            for chunk in basis.split(max(1, _ROWS_AT_ONCE // samples))
        ]
    except RuntimeError:  # some gradients cannot be batched, as of GroupNorm in the order of channels_last
        rows = [torch.autograd.grad(outputs, leaf, row, retain_graph=True)[0][None] for row in basis]
    return torch.cat(rows).flatten(2).transpose(0, 1)


def gated_singular_values(slopes: Tensor, weight: Tensor, weight_gram: Tensor | None = None) -> Tensor:
    """Singular values of D W, D = diag(slopes), for every sample: a layer with an elementwise activation.

    The Gram matrix of D W is that of W with rows and columns scaled, so one product serves all samples. Rows
    of zero slope are left out, which makes their singular values exactly 0 and a ReLU layer with half of its
    units active about six times cheaper.

    Args:
        slopes: Derivatives of the activation, (B, out).
        weight: (out, in).
        weight_gram: `gram(weight)`, if already computed.

    Returns:
        (B, min(out, in)), descending, float64.
    """
    slopes, weight = slopes.double(), weight.double()
    rank = min(weight.shape)
    if weight.shape[0] > weight.shape[1]:
        return gram_singular_values(weight.T @ (slopes.square().unsqueeze(-1) * weight))
    weight_gram = gram(weight) if weight_gram is None else weight_gram
    # The largest number of nonzero slopes, so that all samples fit one batch. The read from the device costs
    # nothing extra, as eigvalsh waits for it anyway.
    open_gates = int((slopes != 0).sum(-1).max())
    rows = slopes.abs().topk(open_gates).indices
    slopes = slopes.gather(-1, rows)
    grams = weight_gram[rows[:, :, None], rows[:, None, :]].mul_(slopes[:, :, None]).mul_(slopes[:, None, :])
    return nn.functional.pad(gram_singular_values(grams), (0, rank - open_gates))


def jacobian_statistics(sigma: Tensor) -> dict[str, Tensor]:
    """Statistics of the conditioning of a batch of Jacobians.

    Args:
        sigma: Singular values of each sample's Jacobian, (B, r), descending.

    Returns:
        `jacobian_log10_cond`, `jacobian_log10_cond_active` and `jacobian_distance`, each with `/median` and
        `/p95`, and `jacobian_rank/median`. A zero Jacobian has both condition numbers infinite.
    """
    largest = sigma[:, :1]
    sigma = torch.where(sigma <= RESOLUTION * largest, 0.0, sigma)
    smallest_active = torch.where(sigma == 0, torch.inf, sigma).amin(-1)
    active = torch.where(largest.squeeze(-1) == 0, torch.inf, largest.squeeze(-1) / smallest_active)
    per_sample = {
        "jacobian_log10_cond": condition_number(sigma).log10(),
        "jacobian_log10_cond_active": active.log10(),
        "jacobian_distance": (sigma - 1.0).square().mean(-1).sqrt(),
    }
    scalars = {}
    for name, values in per_sample.items():
        scalars[f"{name}/median"] = quantile(values, 0.5)
        scalars[f"{name}/p95"] = quantile(values, 0.95)
    rank = torch.where(largest.squeeze(-1).isnan(), torch.nan, (sigma > 0).sum(-1).double())
    scalars["jacobian_rank/median"] = quantile(rank, 0.5)
    return scalars


def slopes_of(activation: nn.Module, inputs: Tensor) -> Tensor:
    """Derivatives of an elementwise activation at every entry of `inputs`."""
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        return torch.autograd.grad(activation(leaf.clone()).sum(), leaf)[0]


@torch.no_grad()
def operator_matrix(conv: nn.Conv2d, height: int, width: int) -> Tensor:
    """The matrix of a convolution as a linear map of images of `height` x `width` pixels, without its bias.

    Returns:
        (out_channels * out_height * out_width, in_channels * height * width), float64.
    """
    conv = copy.deepcopy(conv).double()
    pixels = conv.in_channels * height * width
    basis = torch.eye(pixels, dtype=torch.float64, device=conv.weight.device)
    images = basis.view(pixels, conv.in_channels, height, width)
    return (conv(images) - conv(torch.zeros_like(images[:1]))).flatten(1).T


def circular_singular_values(weight: Tensor, height: int, width: int, stride: tuple[int, int]) -> Tensor:
    """Exact singular values of a convolution with circular padding, by Fourier transforms.

    In the Fourier basis a circular convolution is block diagonal, with one small matrix per frequency; a
    stride joins the blocks of frequencies that alias. A convolution without padding consists of some rows of
    the circular one, so its largest singular value is at most the largest of these. (Sedghi, Gupta and Long,
    The singular values of convolutional layers, 2019.)

    Args:
        weight: (out, in, kernel height, kernel width).
        height: Of the input; like the width, rounded up to a multiple of the stride that holds the kernel.
        width: Of the input.
        stride: Vertical and horizontal.

    Returns:
        All min(out * output pixels, in * pixels) singular values, descending, float64; nan if the weight is
        not finite.
    """
    sizes = [
        step * math.ceil(max(size, kernel) / step)
        for size, kernel, step in zip((height, width), weight.shape[2:], stride)
    ]
    rows, columns = (size // step for size, step in zip(sizes, stride))
    response = torch.fft.fft2(torch.where(weight.isfinite(), weight, torch.nan).double(), s=sizes)
    aliases = response.view(*weight.shape[:2], stride[0], rows, stride[1], columns)
    blocks = aliases.permute(3, 5, 0, 1, 2, 4).reshape(rows * columns, weight.shape[0], -1)
    blocks = blocks / math.sqrt(stride[0] * stride[1])
    tall = blocks.shape[1] > blocks.shape[2]
    sigma = gram_singular_values(blocks.mH @ blocks if tall else blocks @ blocks.mH)
    return sigma.flatten().sort(descending=True).values
