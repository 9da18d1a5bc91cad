import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from neoteny.agents.activations import GroupSort, MaxMin
from neoteny.runners.probes import jacobians
from neoteny.runners.probes.spectra import gram
from tests.simple_networks import CReLU, conv_net, mlp, reference_jacobians

INF = math.inf


class TestJacobians:
    def test_statistics_by_hand(self):
        sigma = torch.tensor([[1.0, 1.0], [10.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
        statistics = {name: value.item() for name, value in jacobians.jacobian_statistics(sigma).items()}
        assert statistics == {
            "jacobian_log10_cond/median": 1.0,
            "jacobian_log10_cond/p95": INF,
            "jacobian_log10_cond_active/median": 0.0,
            "jacobian_log10_cond_active/p95": 1.0,
            "jacobian_distance/median": pytest.approx(math.sqrt(2.5)),
            "jacobian_distance/p95": pytest.approx(math.sqrt(40.5)),
            "jacobian_rank/median": 2.0,
        }

    def test_a_dead_jacobian_is_not_well_conditioned(self):
        statistics = jacobians.jacobian_statistics(torch.zeros(4, 3, dtype=torch.float64))
        assert statistics["jacobian_log10_cond/median"] == INF
        assert statistics["jacobian_log10_cond_active/median"] == INF
        assert statistics["jacobian_distance/median"] == 1.0
        assert statistics["jacobian_rank/median"] == 0.0

    @pytest.mark.parametrize(
        ("activation", "width"),
        [
            (nn.ReLU, 8),
            (nn.Tanh, 8),
            (MaxMin, 8),
            (GroupSort, 8),
            (CReLU, 16),
            (lambda: nn.ReLU(inplace=True), 8),
        ],
    )
    def test_equals_autograd(self, activation: Callable[[], nn.Module], width: int):
        net, inputs = mlp(activation, width).double(), torch.randn(6, 5, dtype=torch.float64)
        found = jacobians.jacobian(net, inputs)
        assert found.shape == (6, 3, 5)
        torch.testing.assert_close(found, reference_jacobians(net, inputs))

    def test_equals_autograd_through_convolutions(self):
        net, inputs = conv_net().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(jacobians.jacobian(net, inputs), reference_jacobians(net, inputs))

    def test_many_outputs_are_taken_in_chunks(self, monkeypatch: pytest.MonkeyPatch):
        net, inputs = mlp(nn.Tanh).double(), torch.randn(4, 5, dtype=torch.float64)
        whole = jacobians.jacobian(net, inputs)
        monkeypatch.setattr(jacobians, "_ROWS_AT_ONCE", 1)
        torch.testing.assert_close(jacobians.jacobian(net, inputs), whole)

    @pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
    @pytest.mark.parametrize("gates", ["open", "half", "closed", "smooth"])
    def test_gated_singular_values(self, shape: tuple[int, int], gates: str):
        weight = torch.randn(shape, dtype=torch.float64)
        slopes = {
            "open": torch.ones(5, shape[0]),
            "half": (torch.rand(5, shape[0]) < 0.5).double(),
            "closed": torch.zeros(5, shape[0]),
            "smooth": torch.randn(5, shape[0]).double(),
        }[gates]
        expected = torch.linalg.svdvals(slopes.double()[:, :, None] * weight)
        sigma = jacobians.gated_singular_values(slopes, weight)
        torch.testing.assert_close(sigma, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(jacobians.gated_singular_values(slopes, weight, gram(weight)), sigma)


class TestOperators:
    @pytest.mark.parametrize("stride", [1, 2, (2, 1)])
    @pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
    def test_the_matrix_does_what_the_convolution_does(self, stride, padding_mode: str):
        conv = nn.Conv2d(3, 5, 3, stride, padding=1, padding_mode=padding_mode).double()
        matrix = jacobians.operator_matrix(conv, 8, 6)
        images = torch.randn(4, 3, 8, 6, dtype=torch.float64)
        expected = (conv(images) - conv(torch.zeros_like(images))).flatten(1)
        torch.testing.assert_close(images.flatten(1) @ matrix.T, expected)

    @pytest.mark.parametrize("channels", [(3, 5), (5, 3), (4, 4)])
    @pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (2, 2), (3, (2, 1))])
    def test_fourier_transforms_give_the_singular_values_of_circular_convolutions(
        self, channels: tuple[int, int], kernel: int, stride
    ):
        conv = nn.Conv2d(*channels, kernel, stride, padding_mode="circular").double()
        wrapped = nn.functional.pad(torch.eye(channels[0] * 48).double().view(-1, channels[0], 8, 6), (
            0, kernel - 1, 0, kernel - 1), mode="circular")  # fmt: skip
        operator = nn.functional.conv2d(wrapped, conv.weight.detach(), stride=conv.stride).flatten(1)
        sigma = jacobians.circular_singular_values(conv.weight.detach(), 8, 6, conv.stride)
        torch.testing.assert_close(sigma, torch.linalg.svdvals(operator), atol=1e-7, rtol=1e-7)

    def test_the_mean_square_is_the_kernels(self):
        weight = torch.randn(4, 6, 3, 3, dtype=torch.float64)  # wide: each output pixel is a row
        sigma = jacobians.circular_singular_values(weight, 7, 7, (1, 1))
        assert sigma.square().mean().item() == pytest.approx(weight.square().sum().item() / 4)

    def test_patches_are_seen_as_the_kernel_sees_them(self):
        weight = torch.randn(5, 3, 2, 2, dtype=torch.float64)
        sigma = jacobians.circular_singular_values(weight, 8, 8, (2, 2))
        expected = torch.linalg.svdvals(weight.flatten(1)).repeat_interleave(16)
        torch.testing.assert_close(sigma, expected)

    def test_a_tall_kernel_without_penalty_has_gain(self):
        weight = torch.empty(32, 3, 3, 3)
        nn.init.orthogonal_(weight)
        sigma = jacobians.circular_singular_values(weight, 9, 9, (1, 1))
        torch.testing.assert_close(sigma, torch.full_like(sigma, 3.0))

    def test_sizes_are_rounded_up(self):
        weight = torch.randn(4, 2, 3, 3)
        sigma = jacobians.circular_singular_values(weight, 5, 2, (2, 1))  # as 6 x 3
        assert sigma.shape == (3 * 3 * 4,)

    def test_a_kernel_that_is_not_finite_gives_nan(self):
        assert jacobians.circular_singular_values(torch.full((2, 2, 3, 3), INF), 5, 5, (1, 1)).isnan().all()


def test_jacobian_of_a_normalized_convolution_in_channels_last():
    """PyTorch cannot batch the gradients of its normalization in this order."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3, affine=False), nn.ReLU()).double()
    inputs = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    expected = jacobians.jacobian(layers, inputs)
    layers[0].to(memory_format=torch.channels_last)
    torch.testing.assert_close(jacobians.jacobian(layers, inputs), expected)
