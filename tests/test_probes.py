import math
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neoteny.runners import probes

INF, NAN = math.inf, math.nan
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]


class MaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack((pairs.amax(2), pairs.amin(2)), dim=2).flatten(1, 2)


class GroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 4)).sort(dim=2).values.flatten(1, 2)


class CReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.relu(x), self.relu(-x)), dim=1)


class Abs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


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


def with_singular_values(sigma: Tensor, rows: int, columns: int) -> Tensor:
    """A float64 matrix (rows, columns) with these singular values and random singular vectors."""
    left = torch.linalg.qr(torch.randn(rows, len(sigma), dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(sigma), dtype=torch.float64))[0]
    return left * sigma.double() @ right.T


def reference_jacobians(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    rows = [torch.autograd.functional.jacobian(function, x[None]).flatten(2).flatten(0, 1) for x in inputs]
    return torch.stack([row.reshape(-1, inputs[0].numel()) for row in rows])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TestUnits:
    def test_dormant_fraction_by_hand(self):
        activations = torch.tensor(
            [[0.0, 0.1, 1.0, -2.0], [0.0, -0.1, 3.0, 2.0]]
        )  # sizes 0, .1, 2, 2; mean 1.025
        assert probes.dormant_fraction(activations, 0.0) == 0.25
        assert probes.dormant_fraction(activations, 0.025) == 0.25
        assert probes.dormant_fraction(activations, 0.1) == 0.5
        assert probes.dormant_fraction(activations, 2.0) == 1.0

    def test_a_layer_of_zeros_is_wholly_dormant(self):
        for tau in probes.TAUS:
            assert probes.dormant_fraction(torch.zeros(3, 4), tau) == 1.0

    def test_the_threshold_itself_is_dormant(self):
        assert probes.dormant_fraction(torch.tensor([[1.0, 3.0]]), 0.5) == 0.5

    def test_dead_is_not_sparse(self):
        assert probes.dead_fraction(torch.eye(4)) == 0.0
        assert probes.dead_fraction(torch.tensor([[0.0, 0.0, 0.0, 1e-30], [0.0, 0.0, 0.0, 0.0]])) == 0.75

    def test_conv_units_are_channels_over_batch_and_space(self):
        activations = torch.zeros(2, 4, 3, 3)
        activations[0, 0, 0, 0] = 1.0  # alive at a single position of a single sample
        activations[1, 1] = 1.0
        assert probes.dead_fraction(activations) == 0.5
        assert probes.dormant_fraction(activations, 0.1) == 0.5
        assert probes.dormant_fraction(activations, 0.5) == 0.75  # sizes 1/18 and 1/2, mean 5/36

    def test_activations_that_are_not_finite_give_nan(self):
        for bad in (NAN, INF):
            activations = torch.tensor([[1.0, bad]])
            assert probes.dead_fraction(activations).isnan()
            assert probes.dormant_fraction(activations, 0.1).isnan()

    @given(exponent=st.integers(-20, 20), seed=st.integers(0, 2**31), tau=st.sampled_from(probes.TAUS))
    @settings(max_examples=50, deadline=None)
    def test_dormancy_does_not_depend_on_scale(self, exponent: int, seed: int, tau: float):
        activations = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)) * torch.logspace(
            -4, 0, 12
        )
        scaled = activations * 2.0**exponent
        assert probes.dormant_fraction(scaled, tau) == probes.dormant_fraction(activations, tau)
        assert probes.dead_fraction(scaled) == probes.dead_fraction(activations)


class TestSpectra:
    @pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 3, 7)])
    def test_singular_values_equal_the_svd(self, shape: tuple[int, ...]):
        matrix = torch.randn(shape)
        sigma = probes.singular_values(matrix)
        assert sigma.dtype == torch.float64
        torch.testing.assert_close(sigma, torch.linalg.svdvals(matrix.double()))

    @pytest.mark.parametrize(("condition", "tolerance"), [(1e3, 1e-3), (1e4, 1e-3), (1e5, 1e-3), (1e6, 1e-2)])
    def test_large_condition_numbers_survive_the_gram(self, condition: float, tolerance: float):
        # A Gram matrix of float32, even if it is cast afterwards, has negative eigenvalues from 1e4 on.
        matrix = with_singular_values(torch.logspace(0, -math.log10(condition), 128), 256, 128).float()
        measured = probes.condition_number(probes.singular_values(matrix)).item()
        assert measured == pytest.approx(condition, rel=tolerance)

    def test_condition_number_of_a_singular_matrix_is_infinite(self):
        assert probes.condition_number(torch.tensor([2.0, 0.5])) == 4.0
        assert probes.condition_number(torch.tensor([2.0, 0.0])) == INF
        assert probes.condition_number(torch.tensor([0.0, 0.0])) == INF
        assert probes.condition_number(probes.singular_values(torch.zeros(3, 5))) == INF

    def test_penalty_equals_the_gram_distance_of_the_smaller_side(self):
        for matrix in (torch.randn(3, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)):
            wide = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
            distance = (wide @ wide.T - torch.eye(3)).square().sum()
            torch.testing.assert_close(probes.isometry_penalty(probes.singular_values(matrix)), distance)

    def test_a_matrix_that_is_not_finite_gives_nan(self):
        matrices = torch.stack((torch.eye(3), torch.full((3, 3), NAN), torch.full((3, 3), INF)))
        sigma = probes.singular_values(matrices)
        assert sigma[0].tolist() == [1.0, 1.0, 1.0]
        assert sigma[1:].isnan().all()
        for rank in (probes.srank, probes.rank99, probes.stable_rank, probes.effective_rank):
            assert rank(sigma).isnan().tolist() == [False, True, True]

    @given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
    @settings(max_examples=30, deadline=None)
    def test_singular_values_scale_linearly(self, seed: int, scale: float):
        matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(
            probes.singular_values(matrix * scale), probes.singular_values(matrix) * scale
        )


class TestRanks:
    def test_of_an_identity(self):
        sigma = torch.ones(10, dtype=torch.float64)
        assert probes.stable_rank(sigma) == 10.0
        assert probes.srank(sigma) == 10.0
        assert probes.rank99(sigma) == 10.0
        assert probes.effective_rank(sigma).item() == pytest.approx(10.0)

    def test_of_rank_one(self):
        sigma = torch.tensor([3.0, 0.0, 0.0])
        for rank in (probes.srank, probes.rank99, probes.stable_rank, probes.effective_rank):
            assert rank(sigma) == 1.0

    def test_of_zero(self):
        for rank in (probes.srank, probes.rank99, probes.stable_rank, probes.effective_rank):
            assert rank(torch.zeros(4)) == 0.0
        assert probes.effective_rank(torch.zeros(4), power=2) == 0.0

    def test_by_hand(self):
        sigma = torch.tensor([90.0, 9.0, 0.9, 0.1], dtype=torch.float64)
        assert probes.srank(sigma) == 2.0  # 99 of 100
        assert probes.srank(sigma, delta=0.2) == 1.0
        assert probes.srank(sigma, delta=0.001) == 3.0
        assert probes.rank99(torch.tensor([10.0, 1.0])) == 1.0  # 100 of 101 is 0.9901
        assert probes.rank99(torch.tensor([9.0, 1.0])) == 2.0  # 81 of 82 is 0.988
        assert probes.stable_rank(torch.tensor([2.0, 1.0])) == 1.25
        half, third = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 1.0], dtype=torch.float64)
        assert probes.effective_rank(half).item() == pytest.approx(2.0)
        entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
        assert probes.effective_rank(third).item() == pytest.approx(math.exp(entropy))
        entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
        assert probes.effective_rank(third, power=2).item() == pytest.approx(math.exp(entropy))

    @given(
        seed=st.integers(0, 2**31),
        rows=st.integers(1, 9),
        columns=st.integers(1, 9),
        exponent=st.integers(-30, 30),
    )
    @settings(max_examples=60, deadline=None)
    def test_bounds(self, seed: int, rows: int, columns: int, exponent: int):
        generator = torch.Generator().manual_seed(seed)
        inner = 1 + seed % min(rows, columns)
        matrix = torch.randn(rows, inner, generator=generator) @ torch.randn(
            inner, columns, generator=generator
        )
        sigma = probes.singular_values(matrix)
        slack = 1e-5
        ranks = {
            "srank": probes.srank(sigma),
            "rank99": probes.rank99(sigma),
            "stable": probes.stable_rank(sigma),
            "effective": probes.effective_rank(sigma),
            "effective squared": probes.effective_rank(sigma, power=2),
        }
        for name, rank in ranks.items():
            assert 1 - slack <= rank <= inner * (1 + slack), name
        assert ranks["stable"] <= ranks["effective squared"] * (
            1 + slack
        )  # Renyi entropies fall with their order
        assert ranks["effective squared"] <= ranks["effective"] * (1 + slack)
        scaled = probes.singular_values(matrix * 2.0**exponent)
        assert probes.srank(scaled) == ranks["srank"]
        assert probes.stable_rank(scaled).item() == pytest.approx(ranks["stable"].item())


class TestJacobians:
    def test_quantile_is_one_of_the_values(self):
        values = torch.tensor([INF, 1.0, 3.0, 2.0])
        assert probes.quantile(values, 0.5) == 2.0
        assert probes.quantile(values, 0.75) == 3.0
        assert probes.quantile(values, 0.95) == INF
        assert probes.quantile(torch.tensor([5.0]), 0.5) == 5.0
        assert probes.quantile(torch.full((4,), INF), 0.5) == INF

    def test_statistics_by_hand(self):
        sigma = torch.tensor([[1.0, 1.0], [10.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
        statistics = {name: value.item() for name, value in probes.jacobian_statistics(sigma).items()}
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
        statistics = probes.jacobian_statistics(torch.zeros(4, 3, dtype=torch.float64))
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
        jacobians = probes.jacobian(net, inputs)
        assert jacobians.shape == (6, 3, 5)
        torch.testing.assert_close(jacobians, reference_jacobians(net, inputs))

    def test_equals_autograd_through_convolutions(self):
        net, inputs = conv_net().double(), torch.randn(3, 2, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(probes.jacobian(net, inputs), reference_jacobians(net, inputs))

    def test_many_outputs_are_taken_in_chunks(self, monkeypatch: pytest.MonkeyPatch):
        net, inputs = mlp(nn.Tanh).double(), torch.randn(4, 5, dtype=torch.float64)
        whole = probes.jacobian(net, inputs)
        monkeypatch.setattr(probes, "_ROWS_AT_ONCE", 1)
        torch.testing.assert_close(probes.jacobian(net, inputs), whole)

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
        sigma = probes.gated_singular_values(slopes, weight)
        torch.testing.assert_close(sigma, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(probes.gated_singular_values(slopes, weight, probes.gram(weight)), sigma)


def layer_jacobian_tags(net: nn.Sequential, inputs: Tensor) -> dict[str, float]:
    """What the tags of `net.linear2` must be, from autograd and an SVD."""
    hidden = net[:2](inputs).detach()
    sigma = torch.linalg.svdvals(reference_jacobians(net[2:4], hidden))
    return {
        tag.replace("/", "/net.linear2/"): value.item()
        for tag, value in probes.jacobian_statistics(sigma).items()
    }


class TestMeasure:
    @pytest.mark.parametrize(
        ("activation", "width"),
        [
            (nn.ReLU, 8),
            (lambda: nn.ReLU(inplace=True), 8),
            (nn.Tanh, 8),
            (lambda: nn.ELU(inplace=True), 8),
            (MaxMin, 8),
            (GroupSort, 8),
            (CReLU, 16),
            (lambda: nn.Sequential(nn.LayerNorm(8), nn.Tanh()), 8),
        ],
    )
    def test_layer_jacobians(self, activation: Callable[[], nn.Module], width: int):
        net, inputs = mlp(activation, width).double(), torch.randn(7, 5, dtype=torch.float64)
        measured = probes.measure({"net": net}, inputs)
        for tag, value in layer_jacobian_tags(net, inputs).items():
            assert measured[f"isometry/{tag}"] == pytest.approx(value, abs=1e-5), tag
        sigma = torch.linalg.svdvals(reference_jacobians(net, inputs))
        for tag, expected in probes.jacobian_statistics(sigma).items():
            tag = tag.replace("/", "/net.input_output/")
            assert measured[f"isometry/{tag}"] == pytest.approx(expected.item(), abs=1e-6), tag

    @pytest.mark.parametrize("activation", [Abs, MaxMin, nn.Identity])
    def test_orthogonal_weights_and_an_isometric_activation_are_an_isometry(
        self, activation: type[nn.Module]
    ):
        net = sequential(linear1=nn.Linear(6, 6), act1=activation(), head=nn.Linear(6, 6))
        for layer in (net.linear1, net.head):
            nn.init.orthogonal_(layer.weight)
        # nn.Identity does not count as an activation unless it is named as one.
        measured = probes.measure({"net": net}, torch.randn(40, 6), activations=(activation,))
        for name in ("net.linear1", "net.input_output"):
            assert measured[f"isometry/jacobian_log10_cond/{name}/p95"] == pytest.approx(0.0, abs=1e-5)
            assert measured[f"isometry/jacobian_distance/{name}/p95"] == pytest.approx(0.0, abs=1e-5)
            assert measured[f"isometry/jacobian_rank/{name}/median"] == 6.0
        assert measured["isometry/penalty"] == pytest.approx(0.0, abs=1e-10)

    def test_closed_gates_show_as_rank_not_as_noise(self):
        net = sequential(linear1=nn.Linear(40, 40), act1=nn.ReLU(), head=nn.Linear(40, 2))
        nn.init.orthogonal_(net.linear1.weight)
        nn.init.zeros_(net.linear1.bias)
        inputs = torch.randn(9, 40)
        open_gates = (net.linear1(inputs) > 0).sum(1).median().item()
        measured = probes.measure({"net": net}, inputs)
        assert measured["isometry/jacobian_rank/net.linear1/median"] == open_gates
        assert measured["isometry/jacobian_log10_cond/net.linear1/median"] == INF
        assert measured["isometry/jacobian_log10_cond_active/net.linear1/p95"] == pytest.approx(0.0, abs=1e-5)

    def test_units_of_linear_layers(self):
        net = sequential(
            linear1=nn.Linear(2, 4),
            act1=nn.ReLU(),
            linear2=nn.Linear(4, 2),
            act2=nn.ReLU(),
            head=nn.Linear(2, 1),
        )
        with torch.no_grad():
            net.linear1.bias.copy_(torch.tensor([-9.0, -9.0, -9.0, 1.0]))  # three of four units are dead
            net.linear1.weight.zero_()
            net.linear2.weight.fill_(1.0)
            net.linear2.bias.copy_(torch.tensor([0.0, -0.95]))  # sizes 1 and 0.05, mean 0.525
        measured = probes.measure({"net": net}, torch.randn(10, 2))
        expected = {
            "dead/net.linear1": 0.75,
            "dead/net.linear2": 0.0,
            "dead/max": 0.75,
            "dead/total": 0.5,
            "dormant_0/net.linear1": 0.75,
            "dormant_0.025/net.linear2": 0.0,
            "dormant_0.1/net.linear2": 0.5,
            "dormant_0.1/max": 0.75,
            "dormant_0.1/total": pytest.approx(4 / 6),
        }
        assert {tag: measured[f"plasticity/{tag}"] for tag in expected} == expected

    @pytest.mark.parametrize("flatten_first", [False, True])
    def test_units_of_convolutions_are_channels(self, flatten_first: bool):
        steps = [("flatten", nn.Flatten()), ("act1", CReLU())]
        net = sequential(conv1=nn.Conv2d(1, 3, 2), **dict(steps if flatten_first else steps[::-1]))
        net.add_module("head", nn.Linear(2 * 3 * 9, 2))
        with torch.no_grad():
            net.conv1.weight.zero_()
            net.conv1.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
        measured = probes.measure({"net": net}, torch.randn(5, 1, 4, 4))
        # Of the six units (positive parts, then negative parts), the first and the fifth are alive.
        assert measured["plasticity/dead/net.conv1"] == pytest.approx(4 / 6)

    def test_a_dead_network(self):
        net, inputs = mlp(), torch.randn(20, 5)
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        measured = probes.measure({"net": net}, inputs)
        for tag in ("dormant_0", "dormant_0.025", "dormant_0.1", "dead"):
            for scope in ("net.linear1", "net.linear2", "max", "total"):
                assert measured[f"plasticity/{tag}/{scope}"] == 1.0
        for rank in ("srank", "rank99", "stable_rank", "effective_rank", "effective_rank_squared"):
            assert measured[f"plasticity/feature_{rank}/net"] == 0.0
        for scope in ("net.linear1", "net.linear2", "net.head", "max"):
            assert measured[f"isometry/log10_cond/{scope}"] == INF
            assert measured[f"isometry/sigma_max/{scope}"] == 0.0
        for name in ("net.linear1", "net.linear2", "net.input_output"):
            assert measured[f"isometry/jacobian_log10_cond/{name}/median"] == INF
            assert measured[f"isometry/jacobian_rank/{name}/median"] == 0.0
        assert measured["isometry/penalty"] == 5.0 + 8.0

    def test_tags_depend_on_the_architecture_alone(self):
        inputs = torch.randn(20, 5)
        tags = list(probes.measure({"net": mlp()}, inputs))
        for value in (0.0, 1.0, NAN, INF):
            net = mlp()
            for parameter in net.parameters():
                nn.init.constant_(parameter, value)
            measured = probes.measure({"net": net}, inputs)
            assert list(measured) == tags
            if not math.isfinite(value):
                assert all(math.isnan(x) for x in measured.values())

    def test_weights_and_features(self):
        net, inputs = conv_net(), torch.randn(30, 2, 5, 5)
        measured = probes.measure({"net": net}, inputs)
        spectra = {
            name: torch.linalg.svdvals(getattr(net, name).weight.detach().flatten(1).double())
            for name in ("conv1", "linear1", "head")
        }
        for name, sigma in spectra.items():
            assert measured[f"isometry/sigma_max/net.{name}"] == pytest.approx(sigma[0].item())
            assert measured[f"isometry/sigma_min/net.{name}"] == pytest.approx(sigma[-1].item())
            assert measured[f"isometry/log10_cond/net.{name}"] == pytest.approx(
                (sigma[0] / sigma[-1]).log10().item()
            )
        hidden = [spectra["conv1"], spectra["linear1"]]  # the head counts for itself only
        assert measured["isometry/sigma_max/max"] == pytest.approx(max(s[0].item() for s in hidden))
        assert measured["isometry/sigma_min/min"] == pytest.approx(min(s[-1].item() for s in hidden))
        assert measured["isometry/log10_cond/max"] == pytest.approx(
            max((s[0] / s[-1]).log10().item() for s in hidden)
        )
        assert measured["isometry/penalty"] == pytest.approx(
            sum(probes.isometry_penalty(s).item() for s in hidden)
        )
        features = probes.singular_values(net[:-1](inputs).detach())
        assert measured["plasticity/feature_srank/net"] == probes.srank(features).item()
        assert measured["plasticity/feature_effective_rank/net"] == pytest.approx(
            probes.effective_rank(features).item()
        )
        assert not any("jacobian" in tag and "conv1" in tag for tag in measured)
        assert not any("head" in tag for tag in measured if "jacobian" in tag or "plasticity" in tag)

    def test_a_shared_torso_is_measured_once(self):
        torso = sequential(linear1=nn.Linear(5, 8), act1=nn.ReLU(), linear2=nn.Linear(8, 8), act2=nn.ReLU())
        actor = sequential(torso=torso, head=nn.Linear(8, 3))
        critic = sequential(torso=torso, head=nn.Linear(8, 1))
        inputs = torch.randn(20, 5)
        both, alone = (
            probes.measure(parts, inputs) for parts in ({"actor": actor, "critic": critic}, {"actor": actor})
        )
        assert {tag: both[tag] for tag in alone} == alone
        added = {tag for tag in both if tag not in alone}
        assert all("critic.head" in tag or "critic.input_output" in tag or "feature" in tag for tag in added)
        assert "plasticity/dead/actor.torso.linear2" in both
        assert both["plasticity/feature_srank/critic"] == both["plasticity/feature_srank/actor"]

    def test_normalization_dropout_and_pooling_are_no_activations(self):
        net = sequential(
            conv1=nn.Conv2d(1, 2, 3, padding=1),
            norm1=nn.BatchNorm2d(2),
            pool1=nn.MaxPool2d(2),
            act1=nn.ReLU(),
            flatten=nn.Flatten(),
            linear1=nn.Linear(8, 4),
            norm2=nn.LayerNorm(4),
            drop=nn.Dropout(0.5),
            head=nn.Linear(4, 2),
        )
        measured = probes.measure({"net": net}, torch.randn(10, 1, 4, 4))
        assert {tag for tag in measured if "dead" in tag} == {
            "plasticity/dead/net.conv1",
            "plasticity/dead/max",
            "plasticity/dead/total",
        }

    def test_a_part_without_hidden_layers(self):
        measured = probes.measure({"actor": nn.Linear(5, 3)}, torch.randn(10, 5))
        assert "isometry/log10_cond/actor" in measured
        assert "isometry/jacobian_rank/actor.input_output/median" in measured
        assert "plasticity/feature_srank/actor" in measured
        assert not any("/max" in tag or "dead" in tag for tag in measured)

    def test_a_part_without_weights(self):
        assert probes.measure({"net": nn.ReLU()}, torch.randn(3, 2), jacobian_samples=0) == {}

    def test_other_kinds_of_layers_end_the_search_for_an_activation(self):
        net = sequential(
            linear1=nn.Linear(4, 4), embed=nn.Bilinear(4, 4, 4), act=nn.ReLU(), head=nn.Linear(4, 2)
        )
        net.embed.forward = lambda x: x
        assert not any("dead" in tag for tag in probes.measure({"net": net}, torch.randn(3, 4)))

    def test_jacobians_can_be_left_out(self):
        net, inputs = mlp(), torch.randn(10, 5)
        every = probes.measure({"net": net}, inputs)
        rest = probes.measure({"net": net}, inputs, jacobian_samples=0)
        assert rest == {tag: value for tag, value in every.items() if "jacobian" not in tag}

    def test_wide_layers_get_fewer_samples(self, monkeypatch: pytest.MonkeyPatch):
        taken = []
        monkeypatch.setattr(
            probes,
            "_slopes",
            lambda activation, z, inner=probes._slopes: taken.append(len(z)) or inner(activation, z),
        )
        net = sequential(
            linear1=nn.Linear(8, 8),
            act1=nn.ReLU(),
            linear2=nn.Linear(8, 16),
            act2=nn.ReLU(),
            head=nn.Linear(16, 1),
        )
        probes.measure({"net": net}, torch.randn(100, 8))
        assert taken == [32, 32]
        taken.clear()
        monkeypatch.setattr(probes, "_SPECTRUM_BUDGET", 10 * 8**3)
        probes.measure({"net": net}, torch.randn(100, 8))
        assert taken == [10, 10]

    def test_samples_are_spread_over_the_batch(self):
        assert probes._spread(torch.arange(10), 3).tolist() == [0, 3, 6]
        assert probes._spread(torch.arange(3), 32).tolist() == [0, 1, 2]

    def test_inputs_are_checked(self):
        net = mlp()
        with pytest.raises(TypeError, match="floating point"):
            probes.measure({"net": net}, torch.zeros(3, 5, dtype=torch.uint8))
        with pytest.raises(ValueError, match="at least one part"):
            probes.measure({}, torch.zeros(3, 5))
        with pytest.raises(ValueError, match="at least one sample"):
            probes.measure({"net": net}, torch.zeros(0, 5))
        with pytest.raises(ValueError, match="jacobian_samples"):
            probes.measure({"net": net}, torch.zeros(3, 5), jacobian_samples=-1)

    @pytest.mark.parametrize("device", DEVICES)
    def test_devices_agree(self, device: str):
        net, inputs = conv_net().double(), torch.randn(30, 2, 5, 5, dtype=torch.float64)
        expected = probes.measure({"net": net}, inputs)
        measured = probes.measure({"net": net.to(device)}, inputs.to(device))
        assert measured == pytest.approx(expected, rel=1e-6, abs=1e-6)


class TestNothingIsDisturbed:
    def test_state(self):
        net = sequential(
            linear1=nn.Linear(5, 8),
            norm=nn.BatchNorm1d(8),
            act1=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            noise=Noise(),
            head=nn.Linear(8, 3),
        )
        inputs = torch.randn(20, 5)
        net.norm.eval()  # flags that differ from module to module
        net.linear1.weight.requires_grad_(False)
        net(inputs).sum().backward()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        gradients = {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
        flags = [
            (module.training, *(p.requires_grad for p in module.parameters())) for module in net.modules()
        ]
        inputs_before, random_state = inputs.clone(), torch.get_rng_state()

        probes.measure({"net": net}, inputs)

        assert torch.equal(torch.get_rng_state(), random_state)
        assert torch.equal(inputs, inputs_before)
        assert not inputs.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        for name, parameter in net.named_parameters():
            gradient = gradients[name]
            assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
        assert flags == [
            (module.training, *(p.requires_grad for p in module.parameters())) for module in net.modules()
        ]
        assert not any(module._forward_hooks for module in net.modules())
        assert torch.is_grad_enabled()

    def test_training_is_bitwise_the_same(self):
        def train(probe: bool) -> list[Tensor]:
            torch.manual_seed(3)
            net = sequential(
                linear1=nn.Linear(5, 8),
                act=nn.ReLU(),
                drop=nn.Dropout(0.2),
                norm=nn.BatchNorm1d(8),
                head=nn.Linear(8, 3),
            )
            optimizer = torch.optim.Adam(net.parameters())
            for _ in range(5):
                inputs = torch.randn(16, 5)
                loss = net(inputs).square().mean()
                if probe:
                    probes.measure({"net": net}, inputs)
                optimizer.zero_grad()
                loss.backward()
                if probe:
                    probes.measure({"net": net}, inputs)
                optimizer.step()
            return list(net.state_dict().values())

        assert all(torch.equal(a, b) for a, b in zip(train(probe=False), train(probe=True), strict=True))

    def test_a_network_that_overwrites_its_input(self):
        net = sequential(
            act0=nn.ELU(inplace=True), linear1=nn.Linear(5, 8), act1=nn.ReLU(), head=nn.Linear(8, 3)
        )
        inputs = torch.randn(10, 5)
        before = inputs.clone()
        probes.measure({"net": net}, inputs)
        assert torch.equal(inputs, before)

    def test_when_measuring_fails(self):
        net, inputs = mlp().train(), torch.randn(4, 7)
        random_state = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            probes.measure({"net": net}, inputs)
        assert not any(module._forward_hooks for module in net.modules())
        assert all(module.training for module in net.modules())
        assert torch.equal(torch.get_rng_state(), random_state)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_within_modes_without_gradients(self, mode: Callable):
        net, inputs = mlp(), torch.randn(10, 5)
        expected = probes.measure({"net": net}, inputs)
        with mode():
            assert probes.measure({"net": net}, inputs * 1.0) == expected


class TestNorms:
    def test_update_norms(self):
        net = nn.Linear(2, 1)
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        before = probes.snapshot(net)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[3.0, 4.0]]))
        assert probes.update_norms(net, before) == {"update/step_norm": 5.0, "update/weight_norm": 5.0}
        assert probes.update_norms(net, probes.snapshot(net))["update/step_norm"] == 0.0
        assert all(not value.any() for value in before)  # copies, not views
