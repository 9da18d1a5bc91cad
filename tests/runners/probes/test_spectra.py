import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neoteny.runners.probes import spectra

INF, NAN = math.inf, math.nan


def with_singular_values(sigma: Tensor, rows: int, columns: int) -> Tensor:
    """A float64 matrix (rows, columns) with these singular values and random singular vectors."""
    left = torch.linalg.qr(torch.randn(rows, len(sigma), dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(sigma), dtype=torch.float64))[0]
    return left * sigma.double() @ right.T


class TestSpectra:
    @pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 3, 7)])
    def test_singular_values_equal_the_svd(self, shape: tuple[int, ...]):
        matrix = torch.randn(shape)
        sigma = spectra.singular_values(matrix)
        assert sigma.dtype == torch.float64
        torch.testing.assert_close(sigma, torch.linalg.svdvals(matrix.double()))

    @pytest.mark.parametrize(("condition", "tolerance"), [(1e3, 1e-3), (1e4, 1e-3), (1e5, 1e-3), (1e6, 1e-2)])
    def test_large_condition_numbers_survive_the_gram(self, condition: float, tolerance: float):
        # A Gram matrix of float32, even if it is cast afterwards, has negative eigenvalues from 1e4 on.
        matrix = with_singular_values(torch.logspace(0, -math.log10(condition), 128), 256, 128).float()
        measured = spectra.condition_number(spectra.singular_values(matrix)).item()
        assert measured == pytest.approx(condition, rel=tolerance)

    def test_condition_number_of_a_singular_matrix_is_infinite(self):
        assert spectra.condition_number(torch.tensor([2.0, 0.5])) == 4.0
        assert spectra.condition_number(torch.tensor([2.0, 0.0])) == INF
        assert spectra.condition_number(torch.tensor([0.0, 0.0])) == INF
        assert spectra.condition_number(spectra.singular_values(torch.zeros(3, 5))) == INF

    def test_a_matrix_that_is_not_finite_gives_nan(self):
        matrices = torch.stack((torch.eye(3), torch.full((3, 3), NAN), torch.full((3, 3), INF)))
        sigma = spectra.singular_values(matrices)
        assert sigma[0].tolist() == [1.0, 1.0, 1.0]
        assert sigma[1:].isnan().all()
        for rank in (spectra.srank, spectra.rank99, spectra.stable_rank, spectra.effective_rank):
            assert rank(sigma).isnan().tolist() == [False, True, True]

    @given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
    @settings(max_examples=30, deadline=None)
    def test_singular_values_scale_linearly(self, seed: int, scale: float):
        matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(
            spectra.singular_values(matrix * scale), spectra.singular_values(matrix) * scale
        )


class TestRanks:
    def test_of_an_identity(self):
        sigma = torch.ones(10, dtype=torch.float64)
        assert spectra.stable_rank(sigma) == 10.0
        assert spectra.srank(sigma) == 10.0
        assert spectra.rank99(sigma) == 10.0
        assert spectra.effective_rank(sigma).item() == pytest.approx(10.0)

    def test_of_rank_one(self):
        sigma = torch.tensor([3.0, 0.0, 0.0])
        for rank in (spectra.srank, spectra.rank99, spectra.stable_rank, spectra.effective_rank):
            assert rank(sigma) == 1.0

    def test_of_zero(self):
        for rank in (spectra.srank, spectra.rank99, spectra.stable_rank, spectra.effective_rank):
            assert rank(torch.zeros(4)) == 0.0
        assert spectra.effective_rank(torch.zeros(4), power=2) == 0.0

    def test_by_hand(self):
        sigma = torch.tensor([90.0, 9.0, 0.9, 0.1], dtype=torch.float64)
        assert spectra.srank(sigma) == 2.0  # 99 of 100
        assert spectra.srank(sigma, delta=0.2) == 1.0
        assert spectra.srank(sigma, delta=0.001) == 3.0
        assert spectra.rank99(torch.tensor([10.0, 1.0])) == 1.0  # 100 of 101 is 0.9901
        assert spectra.rank99(torch.tensor([9.0, 1.0])) == 2.0  # 81 of 82 is 0.988
        assert spectra.stable_rank(torch.tensor([2.0, 1.0])) == 1.25
        half, third = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 1.0], dtype=torch.float64)
        assert spectra.effective_rank(half).item() == pytest.approx(2.0)
        entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
        assert spectra.effective_rank(third).item() == pytest.approx(math.exp(entropy))
        entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
        assert spectra.effective_rank(third, power=2).item() == pytest.approx(math.exp(entropy))

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
        sigma = spectra.singular_values(matrix)
        slack = 1e-5
        ranks = {
            "srank": spectra.srank(sigma),
            "rank99": spectra.rank99(sigma),
            "stable": spectra.stable_rank(sigma),
            "effective": spectra.effective_rank(sigma),
            "effective squared": spectra.effective_rank(sigma, power=2),
        }
        for name, rank in ranks.items():
            assert 1 - slack <= rank <= inner * (1 + slack), name
        assert ranks["stable"] <= ranks["effective squared"] * (
            1 + slack
        )  # Renyi entropies fall with their order
        assert ranks["effective squared"] <= ranks["effective"] * (1 + slack)
        scaled = spectra.singular_values(matrix * 2.0**exponent)
        assert spectra.srank(scaled) == ranks["srank"]
        assert spectra.stable_rank(scaled).item() == pytest.approx(ranks["stable"].item())


class TestQuantile:
    def test_quantile_is_one_of_the_values(self):
        values = torch.tensor([INF, 1.0, 3.0, 2.0])
        assert spectra.quantile(values, 0.5) == 2.0
        assert spectra.quantile(values, 0.75) == 3.0
        assert spectra.quantile(values, 0.95) == INF
        assert spectra.quantile(torch.tensor([5.0]), 0.5) == 5.0
        assert spectra.quantile(torch.full((4,), INF), 0.5) == INF
