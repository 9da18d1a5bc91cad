from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


class CReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.relu(x), self.relu(-x)), dim=1)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def sequential(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, width_out: int = 8) -> nn.Sequential:
    return sequential(
        linear1=nn.Linear(5, 8),
        act1=activation(),
        linear2=nn.Linear(width_out, 8),
        act2=activation(),
        head=nn.Linear(width_out, 3),
    )


def conv_net() -> nn.Sequential:
    return sequential(
        conv1=nn.Conv2d(2, 4, 3),
        act1=nn.ReLU(),
        flatten=nn.Flatten(),
        linear1=nn.Linear(4 * 9, 6),
        act2=nn.Tanh(),
        head=nn.Linear(6, 3),
    )


def reference_jacobians(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    rows = [torch.autograd.functional.jacobian(function, x[None]).flatten(2).flatten(0, 1) for x in inputs]
    return torch.stack([row.reshape(-1, inputs[0].numel()) for row in rows])


def isometry_gradient(weight: Tensor, scale: float = 1.0) -> Tensor:
    """4 (W W^T W - s W), of kernels as matrices (out, in * height * width)."""
    matrix = weight.detach().flatten(1)
    return 4.0 * (matrix @ matrix.T @ matrix - scale * matrix)


def backward(module: nn.Module, step: int) -> Tensor:
    """Leave the gradients of a batch of images, (32, 2, 4, 4), that depends on the step alone; the loss."""
    images = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(step))
    images = images.to(next(module.parameters()).device)
    module.zero_grad()
    loss = (module(images) - images.mean((1, 2, 3))[:, None]).square().mean()
    loss.backward()
    return loss
