"""The isometry penalty, its closed form, and which weights it concerns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from neoteny.optim import AdamO, isometry_penalty, isometry_report, param_groups, pull_norm
from neoteny.optim.isometry import matrix_view
from tests.simple_networks import isometry_gradient

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


def network() -> nn.ModuleDict:
    """One of everything: convolution, norm, embedding, hidden matrices, two heads."""
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 4, 3),
            "norm": nn.LayerNorm(4),
            "embedding": nn.Embedding(5, 4),
            "torso": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)),
            "actor": nn.Linear(6, 3),
            "critic": nn.Sequential(nn.Linear(6, 1)),
        }
    )


def layer(weight: torch.Tensor) -> nn.Module:
    """A linear or convolutional layer with the given weight."""
    made = nn.Linear(1, 1) if weight.ndim == 2 else nn.Conv2d(1, 1, 1)
    made.weight = nn.Parameter(weight)
    return made


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, scale=st.sampled_from([1.0, 2.0]), seed=st.integers(0, 2**31))
def test_closed_form_is_the_gradient_of_the_penalty(shape: tuple[int, ...], scale: float, seed: int) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    module = layer(weight)
    isometry_penalty(module, scale).backward()
    torch.testing.assert_close(
        module.weight.grad.flatten(1), isometry_gradient(weight, scale), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_penalty_is_the_papers_and_both_sides_have_its_gradient(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    penalty = isometry_penalty(layer(weight), scale=2.0)
    expected = (torch.linalg.svdvals(weight).square() - 2.0).square().sum()
    torch.testing.assert_close(penalty.detach(), expected)
    gradients = []
    for side in (lambda w: w.T @ w, lambda w: w @ w.T):
        leaf = weight.clone().requires_grad_()
        gram = side(leaf)
        (gram - 2.0 * torch.eye(len(gram), dtype=gram.dtype)).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], isometry_gradient(weight, 2.0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_matrix_view_shares_memory_and_keeps_rows_apart(memory_format: torch.memory_format) -> None:
    kernel = torch.randn(5, 3, 2, 2).to(memory_format=memory_format)
    matrix = matrix_view(kernel)
    assert matrix.shape == (5, 12)
    torch.testing.assert_close(torch.linalg.svdvals(matrix), torch.linalg.svdvals(kernel.flatten(1)))
    matrix[2] = 7.0
    assert (kernel[2] == 7.0).all()
    assert not (kernel[3] == 7.0).any()
    assert matrix_view(kernel[:, :, 0, 0]).data_ptr() == kernel.data_ptr()


def test_matrix_view_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"matrix or a convolution kernel.*\(3,\)"):
        matrix_view(torch.zeros(3))


def test_groups_hold_every_trainable_parameter_once_by_name() -> None:
    module = network()
    module["norm"].requires_grad_(False)
    matrices, others = param_groups(module, exclude=["actor", module["critic"]])
    assert [name for name, _ in matrices["params"]] == ["conv.weight", "torso.0.weight", "torso.2.weight"]
    assert "iso" not in matrices
    assert others["iso"] == 0
    named = matrices["params"] + others["params"]
    assert {name for name, _ in named} == {n for n, p in module.named_parameters() if p.requires_grad}
    assert len(named) == len({id(p) for _, p in named})


def test_one_excluded_module_or_name_needs_no_list() -> None:
    module = network()
    for exclude in ("actor", module["actor"]):
        names = [name for name, _ in param_groups(module, exclude)[0]["params"]]
        assert "actor.weight" not in names
        assert "critic.0.weight" in names


def test_a_shared_submodule_is_known_by_each_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    module = nn.ModuleDict({"first": shared, "second": shared, "other": nn.Linear(4, 4)})
    for exclude in ("first", "second", shared):
        assert [name for name, _ in param_groups(module, exclude)[0]["params"]] == ["other.weight"]


@pytest.mark.parametrize("exclude", [["heads"], [nn.Linear(6, 3)]])
def test_unknown_exclude_is_an_error(exclude: list) -> None:
    for call in (param_groups, isometry_penalty):
        with pytest.raises(ValueError, match=r"not a submodule.*actor.*critic"):
            call(network(), exclude=exclude)


def test_tied_weights_occur_once_and_excluding_one_user_excludes_them() -> None:
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    module["b"].weight = module["a"].weight
    assert [name for name, _ in param_groups(module)[0]["params"]] == ["a.weight"]
    (others,) = param_groups(module, exclude="b")
    assert [name for name, _ in others["params"]] == ["a.weight", "a.bias", "b.bias"]
    assert isometry_penalty(module) == isometry_penalty(layer(module["a"].weight.detach()))


def test_parametrized_weights_are_not_pulled() -> None:
    (others,) = param_groups(nn.Sequential(weight_norm(nn.Linear(3, 3))))
    assert len(others["params"]) == 3


def test_penalty_leaves_heads_biases_and_norms_alone() -> None:
    module = network()
    isometry_penalty(module, exclude=["actor", "critic"]).backward()
    touched = {name for name, p in module.named_parameters() if p.grad is not None}
    assert touched == {"conv.weight", "torso.0.weight", "torso.2.weight"}


def adamo(**options: float) -> AdamO:
    return AdamO(param_groups(network(), exclude=["actor", "critic"]), **options)


def test_report_names_what_is_pulled_and_how_fast() -> None:
    report = isometry_report(adamo(lr=1e-3, iso=1e-1, iso_scale=2.0), planned_steps=10_000)
    assert "pulls conv.weight, torso.0.weight, torso.2.weight" in report
    assert "time constant 625 steps, budget 1 over 10,000 steps" in report
    left = report.splitlines()[-1]
    assert "actor.weight" in left
    assert "torso.0.bias" in left
    assert "torso.0.weight" not in left
    assert "warning:" not in report


@pytest.mark.parametrize(
    ("steps", "warned"), [(999, True), (1_001, False), (299_000, False), (301_000, True)]
)
def test_report_warns_of_a_budget_that_cannot_act_or_is_stiff(steps: int, warned: bool) -> None:
    report = isometry_report(adamo(lr=1e-3, iso=1e-1), steps)
    assert any(line.startswith("warning:") for line in report.splitlines()) == warned


def test_report_of_a_warm_up_uses_the_learning_rate_it_leads_to() -> None:
    optimizer = adamo(lr=1e-3, iso=1e-1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1.0))
    assert "time constant 1,250 steps" in isometry_report(optimizer, 10_000)


def test_aspect_is_a_target_for_each_matrix() -> None:
    shapes = ((6, 3), (3, 6), (4, 2, 3, 3))
    parameters = [nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in shapes]
    optimizer = AdamO(parameters, lr=1e-2, iso=0.1, iso_scale="aspect")
    expected = []
    for parameter, scale in zip(parameters, (2.0, 0.5, 4 / 18)):
        parameter.grad = torch.zeros_like(parameter)
        pull = isometry_gradient(parameter, scale).view_as(parameter)
        expected.append(parameter.detach() - 1e-2 * 0.1 * pull)
    norm = pull_norm(optimizer)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    for parameter, by_hand in zip(parameters, expected):
        torch.testing.assert_close(parameter.detach(), by_hand)
    moved = [(parameter.detach() - old).square().sum() for parameter, old in zip(parameters, before)]
    torch.testing.assert_close(norm, torch.stack(moved).sum().sqrt())
    # 1 / (8 c s) for s = 2 and s = 2/9.
    assert "time constant 62 to 562 steps" in isometry_report(optimizer, 1_000)


def test_report_works_without_names_and_is_empty_without_isometry() -> None:
    assert "(3, 2)" in isometry_report(AdamO([nn.Parameter(torch.ones(3, 2))], iso=1.0), 100)
    assert isometry_report(torch.optim.Adam(network().parameters()), 100) == ""
    assert isometry_report(adamo(iso=0.0), 100) == ""


@pytest.mark.parametrize("iso_every", [1, 10])
def test_pull_norm_is_the_average_step_of_zero_gradients(iso_every: int) -> None:
    module = network().double()
    optimizer = AdamO(param_groups(module, ["actor", "critic"]), lr=1e-3, iso=0.5, iso_every=iso_every)
    before = [p.detach().clone() for p in module.parameters()]
    expected = pull_norm(optimizer)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(iso_every):
        optimizer.step()
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(module.parameters(), before)))
    assert moved > 0
    assert expected.item() == pytest.approx(moved / iso_every, rel=1e-9)


def test_pull_norm_counts_the_guard_and_is_zero_without_isometry() -> None:
    weight = nn.Parameter(10.0 * torch.eye(3, dtype=torch.float64))
    with pytest.warns(UserWarning, match="1/8"):
        optimizer = AdamO([weight], lr=1.0, iso=1e4)
    # Under the guard c is 1 / (8 * 99), which halves every singular value.
    assert pull_norm(optimizer).item() == pytest.approx(5 * math.sqrt(3))
    assert pull_norm(torch.optim.Adam([weight])) == 0
