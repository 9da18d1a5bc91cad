"""AdamO: plain Adam without isometry, the pull and its dynamics, and the guards."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neoteny.optim import AdamO, param_groups, set_learning_rate
from tests.simple_networks import backward, isometry_gradient

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)
devices = pytest.mark.parametrize("device", ["cpu", CUDA])
KERNELS = {
    "default": {},
    "foreach": {"foreach": True},
    "single": {"foreach": False},
    "fused": {"fused": True},
}
kernels = pytest.mark.parametrize("flags", KERNELS.values(), ids=KERNELS.keys())


def network(device: str = "cpu") -> nn.Sequential:
    """Convolution, norm, hidden matrix and head, always the same."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )
    return nn.Sequential(*layers).to(device)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        backward(module, step)
        optimizer.step()


def adamo(module: nn.Module, **options) -> AdamO:
    options = {"lr": 1e-2, "iso": 1e-1, **options}
    return AdamO(param_groups(module, exclude="6"), **options)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def alone(weight: Tensor, coefficient: float, **options) -> tuple[nn.Parameter, AdamO]:
    """A weight that only the pull moves: its task gradient is zero."""
    param = nn.Parameter(weight.clone())
    param.grad = torch.zeros_like(param)
    return param, AdamO([param], lr=1.0, iso=coefficient, **options)


@devices
@kernels
def test_without_isometry_it_is_adam_bit_for_bit(flags: dict, device: str) -> None:
    plain, ours, grouped = network(device), network(device), network(device)
    options = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, **flags}
    train(plain, torch.optim.Adam(plain.parameters(), **options), range(50))
    train(ours, AdamO(ours.parameters(), iso=0.0, **options), range(50))
    train(grouped, AdamO(param_groups(grouped, exclude="6"), iso=0.0, **options), range(50))
    assert_equal(values(plain), values(ours))
    assert_equal(values(plain), values(grouped))


@kernels
def test_groups_keep_their_own_options(flags: dict) -> None:
    plain, ours = network(), network()
    for module, make in ((plain, torch.optim.Adam), (ours, lambda groups, **o: AdamO(groups, iso=0.0, **o))):
        first, *rest = module.parameters()
        groups = [{"params": [first], "lr": 1e-3}, {"params": rest[:2], "eps": 1e-2}, {"params": rest[2:]}]
        train(module, make(groups, lr=1e-2, **flags), range(5))
    assert_equal(values(plain), values(ours))


@devices
@kernels
def test_moments_never_see_the_pull(flags: dict, device: str) -> None:
    """A step is Adam's step plus the pull at the weights before it, and Adam's state is Adam's."""
    plain, ours = network(device).double(), network(device).double()
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, **flags)
    optimizer = adamo(ours, **flags)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        plain.load_state_dict(ours.state_dict())
        pull = {n: isometry_gradient(p) for n, p in ours.named_parameters() if n in ("0.weight", "4.weight")}
        for p, q in zip(plain.parameters(), ours.parameters()):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(device)
            q.grad = p.grad.clone()
        adam.step()
        optimizer.step()
        for (name, p), q in zip(plain.named_parameters(), ours.parameters()):
            expected = p.detach() - 1e-2 * 1e-1 * pull[name].view_as(p) if name in pull else p.detach()
            torch.testing.assert_close(q.detach(), expected, rtol=0, atol=1e-14)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(adam.state[p][key], optimizer.state[q][key])


@devices
def test_zero_gradients_move_pulled_weights_only_and_no_moment(device: str) -> None:
    module = network(device)
    before, optimizer = values(module), adamo(module)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in values(module).items() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "4.weight"}
    for state in optimizer.state.values():
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()


def test_parameters_without_gradient_are_left_alone() -> None:
    module = network()
    before, optimizer = values(module), adamo(module)
    optimizer.step()
    backward(module, 0)
    module[0].weight.grad = None
    optimizer.step()
    assert torch.equal(module[0].weight, before["0.weight"])
    assert not torch.equal(module[4].weight, before["4.weight"])


def matrix_with(sigmas: list[float], shape: tuple[int, int]) -> Tensor:
    """A float64 matrix with the given singular values."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, len(sigmas), dtype=torch.float64, generator=generator) for n in shape)
    return (
        torch.linalg.qr(rows)[0] @ torch.diag(torch.tensor(sigmas).double()) @ torch.linalg.qr(columns)[0].T
    )


@devices
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_singular_values_follow_the_map(shape: tuple[int, int], scale: float, device: str) -> None:
    sigmas = torch.tensor([2.1, 1.5, scale**0.5, 0.3], dtype=torch.float64)
    weight, optimizer = alone(matrix_with(sigmas.tolist(), shape).to(device), c := 5e-3, iso_scale=scale)
    for _ in range(20):
        optimizer.step()
        sigmas = sigmas * (1 - 4 * c * (sigmas.square() - scale))
        got = torch.linalg.svdvals(weight.detach()).cpu()
        torch.testing.assert_close(got, sigmas.sort(descending=True).values, rtol=1e-7, atol=0)
    assert sigmas[2] == pytest.approx(scale**0.5)
    assert optimizer.guarded_pulls == 0


@devices
@pytest.mark.filterwarnings("ignore:.*exceeds 1/8")
@pytest.mark.parametrize("coefficient", [0.01, 0.2, 1.0, 1e4])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_no_coefficient_diverges_or_oscillates(coefficient: float, scale: float, device: str) -> None:
    """Every singular value only ever comes closer to sqrt(s), where the unguarded map blows up."""
    start = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).double().mul_(4.0).to(device)
    assert 4 * coefficient * torch.linalg.svdvals(start)[0] ** 2 > 2
    weight, optimizer = alone(start, coefficient, iso_scale=scale)
    distance = (torch.linalg.svdvals(start) - scale**0.5).abs()
    for _ in range(400):
        optimizer.step()
        closer = (torch.linalg.svdvals(weight.detach()) - scale**0.5).abs()
        assert (closer.sort().values <= distance.sort().values + 1e-9).all()
        distance = closer
    assert distance.max() < 1e-6
    assert 0 < optimizer.guarded_pulls <= 400
    assert (optimizer.guarded_pulls == 400) == (coefficient * scale > 0.125)


def test_the_guard_sees_rows_that_oppose_each_other() -> None:
    """Their products are negative, and must not cancel in the row sums that bound sigma_max."""
    start = torch.tensor([[5.0, -4.0], [-4.0, 5.0]], dtype=torch.float64)  # singular values 9 and 1
    weight, optimizer = alone(start, 0.1)
    optimizer.step()
    assert torch.linalg.svdvals(weight.detach())[0] == pytest.approx(4.5)
    assert optimizer.guarded_pulls == 1


def test_the_guard_is_off_at_its_own_bound() -> None:
    """At c = 1 / (8s) and an orthonormal matrix nothing is cut, in float32 as well."""
    _, optimizer = alone(torch.eye(8), 0.125)
    optimizer.step()
    assert optimizer.guarded_pulls == 0


@settings(deadline=None, max_examples=25)
@given(coefficient=st.floats(1e-6, 0.1), seed=st.integers(0, 1000))
def test_float32_keeps_small_pulls(coefficient: float, seed: int) -> None:
    """The fixed point is where it should be, however small the step: s may not drown in 1 + 4cs."""
    orthonormal = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)))[0]
    weight, optimizer = alone(1.01 * orthonormal, coefficient)
    optimizer.step()
    moved = (weight.detach() - 1.01 * orthonormal).norm()
    expected = coefficient * isometry_gradient(1.01 * orthonormal.double()).norm()
    assert moved.item() == pytest.approx(expected.item(), rel=0.01, abs=3e-7)


@devices
def test_zero_rows_and_orthonormal_weights_stay(device: str) -> None:
    weight = torch.randn(5, 5, device=device)
    weight[2] = 0.0
    param, optimizer = alone(weight, 1e-2)
    for _ in range(50):
        optimizer.step()
    assert not param[2].any()
    assert not torch.equal(param[1], weight[1])
    param, optimizer = alone(torch.eye(5, device=device), 1e-2)
    optimizer.step()
    assert torch.equal(param.detach(), torch.eye(5, device=device))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_pulled_as_matrices(memory_format: torch.memory_format) -> None:
    kernel = torch.randn(8, 3, 3, 3)
    conv, optimizer = alone(kernel.to(memory_format=memory_format), 1e-2)
    matrix, reference = alone(kernel.flatten(1), 1e-2)
    for _ in range(10):
        optimizer.step()
        reference.step()
    torch.testing.assert_close(conv.detach().flatten(1), matrix.detach())


def test_every_tenth_step_is_close_to_every_step() -> None:
    every, tenth, none = network(), network(), network()
    train(every, adamo(every), range(200))
    train(tenth, adamo(tenth, iso_every=10), range(200))
    train(none, adamo(none, iso=0.0), range(200))
    near, far = ((other[4].weight - every[4].weight).norm().item() for other in (tenth, none))
    assert near < 0.1 * far


def test_a_pull_comes_at_the_end_of_each_interval() -> None:
    weight, optimizer = alone(2 * torch.eye(3), 1e-3, iso_every=3)
    moved = []
    for _ in range(7):
        before = weight.detach().clone()
        optimizer.step()
        moved.append(not torch.equal(before, weight))
    assert moved == [False, False, True, False, False, True, False]
    assert weight[0, 0].item() == pytest.approx(2 - 2 * 3e-3 * 4 * 2 * 3, rel=2e-2)


def count_dead(rows: Callable[[Tensor], Tensor], bias: float, iso: float) -> int:
    """Train a 64 x 64 ReLU layer with 24 dead units for 2000 steps; how many are dead on all inputs then?"""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(64, generator=generator)
    inputs = torch.randn(256, 64, generator=generator) + 4.0 * mean / mean.norm()
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight, generator=generator)
        layer.bias.zero_()
        layer.bias[:24] = bias
        noise = 0.01 * torch.randn(24, 64, generator=generator)
        layer.weight[:24] = rows(-mean / mean.norm() + noise)
    assert (layer(inputs)[:, :24] <= 0).all()
    optimizer = AdamO(param_groups(layer), lr=1e-5, iso=iso, iso_lr=1e-2, fused=True)
    for _ in range(2000):
        optimizer.zero_grad()
        layer(inputs).relu().mean().square().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in layer.parameters())
    return int((layer(inputs)[:, :24] <= 0).all(0).sum())


def collapsed(rows: Tensor) -> Tensor:
    return 3.0 * rows


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, -1.0])
def test_the_pull_revives_collapsed_units(bias: float) -> None:
    """Paper, section 4.3: the rows of dead units are pulled apart though their task gradient is zero."""
    assert count_dead(collapsed, bias, iso=0.0) == 24
    assert count_dead(collapsed, bias, iso=1.0) == 0


@pytest.mark.slow
def test_the_pull_cannot_revive_units_without_weight_or_below_their_bias() -> None:
    """A zero row gets no pull, and no row of norm 1 outweighs a bias below -max |x|."""
    assert count_dead(torch.zeros_like, -1.0, iso=1.0) == 24
    assert count_dead(collapsed, -20.0, iso=1.0) == 24


@devices
@kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_gradients_change_nothing_and_are_counted(bad: float, flags: dict, device: str) -> None:
    module, reference = network(device), network(device)
    optimizer, undisturbed = adamo(module, **flags), adamo(reference, **flags)
    train(module, optimizer, range(3))
    train(reference, undisturbed, range(3))
    before = values(module)
    backward(module, 3)
    module[6].bias.grad[1] = bad
    optimizer.step()
    assert_equal(values(module), before)
    assert (optimizer.skipped_steps, undisturbed.skipped_steps) == (1, 0)
    train(module, optimizer, range(4, 8))
    train(reference, undisturbed, range(4, 8))
    assert_equal(values(module), values(reference))
    for p, q in zip(module.parameters(), reference.parameters()):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][key], undisturbed.state[q][key])
    assert optimizer.skipped_steps == 1


def test_a_nonfinite_first_step_and_huge_finite_gradients() -> None:
    module = network()
    optimizer, before = adamo(module), values(module)
    backward(module, 0)
    module[0].weight.grad[0] = float("nan")
    optimizer.step()
    assert_equal(values(module), before)
    for p in module.parameters():
        p.grad = torch.full_like(p, 1e30)  # finite, though its norm overflows
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_gradients_are_left_as_they_are() -> None:
    module = network()
    optimizer = adamo(module)
    backward(module, 0)
    before = [p.grad.clone() for p in module.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(module.parameters(), before))


def test_the_path_without_a_wait_skips_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does without asking the host, on the CPU's fused kernel."""

    def on_device(self: AdamO, batches: list) -> tuple[bool, Tensor]:
        found = torch.tensor(
            float(any(not grad.isfinite().all() for batch in batches for grad in batch.grads))
        )
        torch._foreach_add_([state["skipped"] for batch in batches for state in batch.states], found)
        return False, found

    host, device = network(), network()
    optimizers = [adamo(module, fused=True, iso=1e3, iso_lr=1e-6) for module in (host, device)]
    for step in range(8):
        for module, optimizer in zip((host, device), optimizers):
            backward(module, step)
            if step in (0, 5):
                module[6].weight.grad[0, 0] = float("nan")
            with monkeypatch.context() as patch:
                if module is device:
                    patch.setattr(AdamO, "_skip_nonfinite", on_device)
                optimizer.step()
    assert_equal(values(host), values(device))
    assert [o.skipped_steps for o in optimizers] == [2, 2]
    assert [o.guarded_pulls for o in optimizers] == [0, 0]


@devices
@kernels
@pytest.mark.parametrize("steps", [7, 10])
def test_a_resumed_run_continues_bit_for_bit(steps: int, flags: dict, device: str) -> None:
    whole, first, second = network(device), network(device), network(device)
    flags = {**flags, "iso_every": 5}
    train(whole, adamo(whole, **flags), range(20))
    optimizer = adamo(first, **flags)
    train(first, optimizer, range(steps))
    buffer = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)  # noqa: TID251
    second.load_state_dict(weights)
    resumed = adamo(second, **flags)
    resumed.load_state_dict(state)
    train(second, resumed, range(steps, 20))
    assert_equal(values(whole), values(second))


def test_counters_are_in_the_state() -> None:
    weight, optimizer = alone(100 * torch.eye(2), 1e-2)
    optimizer.step()
    weight.grad[0, 0] = float("nan")
    optimizer.step()
    _, other = alone(torch.eye(2), 1e-2)
    other.load_state_dict(optimizer.state_dict())
    assert (other.skipped_steps, other.guarded_pulls) == (1, 1)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_bit_for_bit(clone: Callable) -> None:
    module = network()
    optimizer = adamo(module, iso_every=3)
    train(module, optimizer, range(4))
    copied, copied_optimizer = clone((module, optimizer))
    train(module, optimizer, range(4, 9))
    train(copied, copied_optimizer, range(4, 9))
    assert_equal(values(module), values(copied))


@pytest.mark.parametrize("iso_lr", [None, 0.5])
def test_the_pull_follows_the_schedule(iso_lr: float | None) -> None:
    """With a learning rate cut to a quarter, the pull is a quarter."""
    weight = nn.Parameter(2 * torch.eye(2, dtype=torch.float64))
    optimizer = AdamO([weight], lr=0.1, iso=1e-2, iso_lr=iso_lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25**step)
    step_size = 0.1 if iso_lr is None else iso_lr
    for k in range(3):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        scheduler.step()
        pull = 0.25**k * step_size * 1e-2 * isometry_gradient(before)
        torch.testing.assert_close(before - weight.detach(), pull)
    optimizer.param_groups[0]["lr"] = 0.0
    before = weight.detach().clone()
    optimizer.step()
    assert torch.equal(before, weight)


def test_a_learning_rate_may_be_a_tensor_as_captured_steps_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups share it, and no step reads it, nor compares those of two groups."""
    trained = []
    for as_tensor in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        optimizer = AdamO(param_groups(network), lr=0.01, iso=0.5, iso_every=2, fused=True)
        for rate in (0.01, 0.005, 0.002):
            if as_tensor:
                lr = torch.tensor(rate)
                for group in optimizer.param_groups:
                    group["lr"] = lr
            else:
                set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            network(torch.ones(2, 6)).square().sum().backward()
            with monkeypatch.context() as patch:
                if as_tensor:
                    patch.setattr(AdamO, "_skips_on_device", lambda self, found_inf: True)
                    patch.setattr(Tensor, "__eq__", None)
                    patch.setattr(Tensor, "__bool__", None)
                optimizer.step()
        trained.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-7)


def test_closures_are_evaluated_once_with_gradients() -> None:
    module, reference = network(), network()
    optimizer, calls = adamo(module), []

    def closure() -> Tensor:
        calls.append(0)
        return backward(module, 0)

    loss = optimizer.step(closure)
    train(reference, adamo(reference), range(1))
    assert len(calls) == 1
    assert loss == backward(network(), 0)
    assert_equal(values(module), values(reference))


def test_step_hooks_of_two_optimizers_fire_once_each() -> None:
    fired: list[str] = []
    for name in ("a", "b"):
        module = network()
        optimizer = adamo(module)
        optimizer.register_step_pre_hook(lambda *_, name=name: fired.append(f"{name} before"))
        optimizer.register_step_post_hook(lambda *_, name=name: fired.append(f"{name} after"))
        train(module, optimizer, range(1))
    assert fired == ["a before", "a after", "b before", "b after"]


def test_a_group_can_be_added_with_its_own_isometry() -> None:
    first, second = nn.Parameter(2 * torch.eye(2)), nn.Parameter(2 * torch.eye(2))
    optimizer = AdamO([first], lr=1e-3, iso=0.0)
    optimizer.add_param_group({"params": [second], "iso": 1.0, "iso_scale": 2.0})
    first.grad, second.grad = torch.zeros(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(first, 2 * torch.eye(2))
    torch.testing.assert_close(second.detach(), (2 - 1e-3 * 4 * 2 * (4 - 2)) * torch.eye(2))


def test_isometry_can_be_switched_on_later() -> None:
    weight, optimizer = alone(2 * torch.eye(2), 0.0)
    optimizer.step()
    assert torch.equal(weight, 2 * torch.eye(2))
    optimizer.param_groups[0]["iso"] = 1e-3
    optimizer.step()
    assert not torch.equal(weight, 2 * torch.eye(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iso": -1.0}, "iso must be"),
        ({"iso": float("nan")}, "iso must be"),
        ({"iso": float("inf")}, "iso must be"),
        ({"iso_lr": -1.0}, "iso_lr must be"),
        ({"iso_lr": float("nan")}, "iso_lr must be"),
        ({"iso_lr": 1.0, "lr": 0.0}, "iso_lr is kept in proportion"),
        ({"iso_lr": 0.0, "lr": 0.0}, "iso_lr is kept in proportion"),
        ({"iso_scale": 0.0}, "iso_scale must be"),
        ({"iso_scale": float("inf")}, "iso_scale must be"),
        ({"iso_every": 0}, "iso_every must be"),
        ({"iso_every": 2.5}, "iso_every must be"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": torch.tensor(1.0)}, "lr must be a number"),
        ({"eps": -1.0}, "eps must be"),
        ({"betas": (1.0, 0.9)}, "betas must"),
        ({"betas": (0.9, -0.1)}, "betas must"),
        ({"foreach": True, "fused": True}, "foreach and fused"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamO([nn.Parameter(torch.eye(2))], **options)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (torch.zeros(3), r"layer has shape \(3,\).*iso=0"),
        (torch.zeros(()), r"layer has shape \(\)"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "layer is torch.bfloat16"),
        (torch.zeros(2, 2, dtype=torch.float16), "layer is torch.float16"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex.*layer"),
    ],
)
def test_parameters_that_cannot_be_pulled_are_refused_by_name(param: Tensor, message: str) -> None:
    bad = ("layer", nn.Parameter(param))
    with pytest.raises(ValueError, match=message):
        AdamO([bad], iso=1e-3)
    optimizer = AdamO([("good", nn.Parameter(torch.eye(2)))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1
    if not param.is_complex():
        optimizer.add_param_group({"params": [bad], "iso": 0.0})


def test_parameters_on_two_devices_are_refused() -> None:
    optimizer = AdamO([nn.Parameter(torch.eye(2))])
    with pytest.raises(ValueError, match="one device"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.eye(2, device="meta"))]})
    assert len(optimizer.param_groups) == 1


def test_it_works_with_float64_as_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for flags in KERNELS.values():
            module = network()
            optimizer = adamo(module, **flags)
            train(module, optimizer, range(2))
            assert optimizer.skipped_steps == 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = AdamO(embedding.parameters(), iso=0.0)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_a_coefficient_beyond_the_bound_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"= 0\.2 exceeds 1/8"):
        AdamO([nn.Parameter(torch.eye(2))], lr=1e-2, iso=1.0, iso_scale=2.0, iso_every=10)
    AdamO([nn.Parameter(torch.eye(2))], lr=1e-2, iso=1.0, iso_scale=1.0, iso_every=10)
