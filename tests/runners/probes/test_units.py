import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.runners.probes import units


def test_dormant_fraction_by_hand():
    activations = torch.tensor(
        [[0.0, 0.1, 1.0, -2.0], [0.0, -0.1, 3.0, 2.0]]
    )  # sizes 0, .1, 2, 2; mean 1.025
    assert units.dormant_fraction(activations, 0.0) == 0.25
    assert units.dormant_fraction(activations, 0.025) == 0.25
    assert units.dormant_fraction(activations, 0.1) == 0.5
    assert units.dormant_fraction(activations, 2.0) == 1.0


def test_a_layer_of_zeros_is_wholly_dormant():
    for tau in units.TAUS:
        assert units.dormant_fraction(torch.zeros(3, 4), tau) == 1.0


def test_the_threshold_itself_is_dormant():
    assert units.dormant_fraction(torch.tensor([[1.0, 3.0]]), 0.5) == 0.5


def test_dead_is_not_sparse():
    assert units.dead_fraction(torch.eye(4)) == 0.0
    assert units.dead_fraction(torch.tensor([[0.0, 0.0, 0.0, 1e-30], [0.0, 0.0, 0.0, 0.0]])) == 0.75


def test_conv_units_are_channels_over_batch_and_space():
    activations = torch.zeros(2, 4, 3, 3)
    activations[0, 0, 0, 0] = 1.0  # alive at a single position of a single sample
    activations[1, 1] = 1.0
    assert units.dead_fraction(activations) == 0.5
    assert units.dormant_fraction(activations, 0.1) == 0.5
    assert units.dormant_fraction(activations, 0.5) == 0.75  # sizes 1/18 and 1/2, mean 5/36


def test_activations_that_are_not_finite_give_nan():
    for bad in (math.nan, math.inf):
        activations = torch.tensor([[1.0, bad]])
        assert units.dead_fraction(activations).isnan()
        assert units.dormant_fraction(activations, 0.1).isnan()


@given(exponent=st.integers(-20, 20), seed=st.integers(0, 2**31), tau=st.sampled_from(units.TAUS))
@settings(max_examples=50, deadline=None)
def test_dormancy_does_not_depend_on_scale(exponent: int, seed: int, tau: float):
    activations = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)) * torch.logspace(
        -4, 0, 12
    )
    scaled = activations * 2.0**exponent
    assert units.dormant_fraction(scaled, tau) == units.dormant_fraction(activations, tau)
    assert units.dead_fraction(scaled) == units.dead_fraction(activations)
