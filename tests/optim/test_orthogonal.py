"""Orthogonal layers: the iteration, what is kept of it between calls, and raw weights through a run."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from neoteny.agents import dqn, ppo
from neoteny.agents.activations import Abs, MaxMin
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.optim import (
    AdamConfig,
    AdamO,
    AdamOConfig,
    AdamWConfig,
    Learner,
    Methods,
    MuonConfig,
    build_methods,
    orthogonal,
    orthogonalize,
)
from neoteny.optim.isometry import matrix_view
from neoteny.optim.layers import split_parameters
from neoteny.optim.orthogonal import (
    EXACT_ITERATIONS,
    REORTHOGONALIZE_EVERY,
    Bjorck,
    ReorthogonalizeConfig,
    orthogonal_factor,
)
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig, measure
from tests.killed import die

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]
SHAPES = [(5, 5), (9, 4), (4, 9)]


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().flatten(1))


def assert_orthogonal(weight: Tensor, tolerance: float = 1e-5) -> None:
    sigma = singular_values(weight)
    torch.testing.assert_close(sigma, torch.ones_like(sigma), atol=tolerance, rtol=0)


def bases(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal columns, (rows, r) and (columns, r), r the smaller."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left, right = (torch.randn(n, rank, dtype=torch.float64, generator=generator) for n in (rows, columns))
    return torch.linalg.qr(left)[0], torch.linalg.qr(right)[0]


def raw(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


class TestFactor:
    @given(
        rows=st.integers(1, 40),
        columns=st.integers(1, 40),
        scale=st.floats(1e-6, 1e6),
        spectrum=st.lists(st.floats(1e-3, 1.0), min_size=40, max_size=40),
        iterations=st.integers(1, EXACT_ITERATIONS),
        seed=st.integers(0, 2**31),
    )
    @settings(max_examples=150, deadline=None)
    def test_singular_values_tend_to_one_from_below_and_never_change_sign(
        self, rows, columns, scale, spectrum, iterations, seed
    ):
        left, right = bases(rows, columns, seed)
        sigma = torch.tensor(spectrum[: min(rows, columns)], dtype=torch.float64)
        start = scale * (left * sigma) @ right.T
        along = (left.T @ orthogonal_factor(start, iterations) @ right).diagonal()
        assert (along > 0).all()
        assert (along <= 1 + 1e-9).all()
        exact = orthogonal_factor(start, EXACT_ITERATIONS)
        left, _, right = torch.linalg.svd(start, full_matrices=False)
        torch.testing.assert_close(exact, left @ right, atol=1e-9, rtol=0)
        single = orthogonal_factor(start.float(), EXACT_ITERATIONS)
        torch.testing.assert_close(single.double(), left @ right, atol=1e-3, rtol=0)
        assert singular_values(single).amax() < 1 + 1e-5

    @pytest.mark.parametrize("shape", [(8, 8), (64, 200), (300, 128), (256, 256)])
    @pytest.mark.parametrize("kind", ["even", "one", "half"])
    def test_seven_iterations_reach_one_from_a_fifth_of_the_largest(self, shape, kind):
        left, right = bases(*shape, seed=0)
        count = left.shape[1]
        sigma = {
            "even": torch.linspace(0.2, 1, count),
            "one": torch.tensor([0.2] + [1.0] * (count - 1)),
            "half": torch.tensor([0.2] * (count // 2) + [1.0] * (count // 2)),
        }[kind]
        assert_orthogonal(orthogonal_factor((left * sigma) @ right.T), 1e-3)

    @pytest.mark.parametrize(("low", "reached"), [(0.1, 0.97), (0.05, 0.74), (0.01, 0.18)])
    def test_what_is_below_is_left_below(self, low, reached):
        left, right = bases(64, 64, seed=0)
        spectrum = torch.linspace(low, 1, 64)
        found = singular_values(orthogonal_factor((left * spectrum) @ right.T)).amin().item()
        assert found == pytest.approx(reached, abs=0.03)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_gradient_is_that_of_finite_differences(self, shape):
        matrix = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(orthogonal_factor, (matrix,))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_zeros_stay_zeros_and_rank_stays_rank(self, shape):
        zeros = torch.zeros(shape, requires_grad=True)
        factor = orthogonal_factor(zeros)
        factor.sum().backward()
        assert not factor.any()
        assert zeros.grad.isfinite().all()
        ones = torch.ones(shape, requires_grad=True)
        factor = orthogonal_factor(ones)
        factor.square().sum().backward()
        expected = torch.tensor([1.0] + [0.0] * (min(shape) - 1))
        torch.testing.assert_close(singular_values(factor), expected, atol=1e-5, rtol=0)
        assert ones.grad.isfinite().all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_seen(self, bad):
        matrix = torch.randn(4, 4)
        matrix[1, 2] = bad
        assert orthogonal_factor(matrix).isnan().all()


class TestLayers:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "make", [lambda: nn.Linear(6, 6), lambda: nn.Linear(3, 9), lambda: nn.Conv2d(3, 8, 3)]
    )
    def test_any_start_is_an_orthogonal_weight_and_so_is_one_that_is_set(self, make, dtype, device):
        layer = orthogonalize(make().to(device, dtype))
        assert layer.weight.dtype == dtype
        assert_orthogonal(layer.weight)
        assert_orthogonal(raw(layer))
        with torch.no_grad():
            layer.weight = torch.randn_like(layer.weight)
        assert_orthogonal(layer.weight)

    def test_kernels_keep_their_memory_format(self):
        conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        free = copy.deepcopy(conv)
        orthogonalize(conv)
        for weight in (raw(conv), conv.weight):
            assert weight.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        left, _, right = torch.linalg.svd(free.weight.detach().flatten(1), full_matrices=False)
        torch.testing.assert_close(conv.weight.flatten(1), left @ right, atol=1e-5, rtol=0)
        conv(torch.randn(2, 3, 5, 5)).sum().backward()
        assert raw(conv).grad.stride() == raw(conv).stride()

    @pytest.mark.parametrize("device", DEVICES)
    def test_autocast_leaves_the_iteration_in_full_precision(self, device):
        layer = orthogonalize(nn.Linear(32, 32)).to(device)
        with torch.no_grad():
            raw(layer).add_(0.02 * torch.randn_like(raw(layer)))
        weight = layer.weight
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            assert torch.equal(layer.weight, weight)
            assert layer(torch.randn(2, 32, device=device)).dtype == torch.bfloat16

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
    def test_compiled_layers_compute_the_same_without_a_break(self):
        network = nn.Sequential(orthogonalize(nn.Linear(6, 8)), MaxMin(), orthogonalize(nn.Linear(8, 8)))
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        inputs = torch.randn(5, 6)
        compiled(inputs).square().sum().backward()
        gradient = raw(network[0]).grad.clone()
        network.zero_grad()
        network(inputs).square().sum().backward()
        torch.testing.assert_close(raw(network[0]).grad, gradient)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(inputs), network(inputs))

    @pytest.mark.parametrize("map_name", ["exact", "torch"])
    def test_it_learns_what_torchs_own_parametrization_learns(self, map_name):
        make = orthogonalize if map_name == "exact" else nn.utils.parametrizations.orthogonal
        teacher = torch.linalg.qr(torch.randn(8, 8))[0]
        layer = make(nn.Linear(8, 8, bias=False))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
        start = None
        for _ in range(300):
            inputs = torch.randn(64, 8)
            loss = (layer(inputs).abs() - (inputs @ teacher.T).abs()).square().mean()
            start = loss.item() if start is None else start
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_orthogonal(layer.weight)
        assert loss.item() < 0.2 * start

    @pytest.mark.slow
    def test_hidden_layers_stay_orthogonal_through_a_thousand_steps(self):
        network = regression_net()
        assert train(network, AdamConfig().build(network, 3e-3, "4"), 1000)[-1] < 0.1
        for layer in (network[0], network[2]):
            assert (singular_values(raw(layer)) - 1).abs().amax() > 0.01
            assert_orthogonal(layer.weight, 1e-3)


def regression_net() -> nn.Sequential:
    layers = [orthogonalize(nn.Linear(16, 16)), MaxMin(), orthogonalize(nn.Linear(16, 16)), MaxMin()]
    return nn.Sequential(*layers, nn.Linear(16, 1))


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    first: int = 0,
    methods: Methods | None = None,
) -> list[float]:
    """Losses of a regression on data that follow from the number of the step."""
    losses = []
    for step in range(first, first + steps):
        inputs = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        loss = (network(inputs) - inputs[:, :4].abs().sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if methods:
            methods.after_step()
            methods.between_steps(inputs)
    return losses


class TestCache:
    @pytest.fixture
    def computed(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
        """Shapes of the matrices that were orthogonalized."""
        calls, factor = [], orthogonal.orthogonal_factor

        def counted(matrix: Tensor, *options: int) -> Tensor:
            calls.append(matrix.shape)
            return factor(matrix, *options)

        monkeypatch.setattr(orthogonal, "orthogonal_factor", counted)
        return calls

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_it_is_computed_once_for_each_raw_weight(self, mode, computed):
        layer = orthogonalize(nn.Linear(4, 4))
        computed.clear()
        with mode():
            first = layer(torch.eye(4))
            for _ in range(5):
                assert torch.equal(layer(torch.eye(4)), first)
        assert len(computed) == 1
        layer(torch.eye(4))
        layer(torch.eye(4))
        assert len(computed) == 3

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: raw(layer).lerp_(torch.eye(4), 0.5),
            lambda layer: raw(layer).data.add_(torch.eye(4)),
            lambda layer: layer.load_state_dict(orthogonalize(nn.Linear(4, 4)).state_dict()),
            lambda layer: step(layer, torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)),
            lambda layer: step(layer, torch.optim.Adam(layer.parameters(), lr=0.1, foreach=True)),
            lambda layer: step(layer, torch.optim.SGD(layer.parameters(), lr=0.1)),
            lambda layer: setattr(layer, "weight", torch.randn(4, 4)),
        ],
        ids=["lerp", "data", "load", "fused", "foreach", "loop", "set"],
    )
    def test_it_follows_every_change(self, change):
        layer = orthogonalize(nn.Linear(4, 4))
        with torch.no_grad():
            before = layer.weight
            change(layer)
            assert not torch.allclose(layer.weight, before)
            assert torch.equal(layer.weight, orthogonal_factor(raw(layer)))

    def test_it_follows_types_and_copies_are_apart(self):
        layer = orthogonalize(nn.Linear(4, 4))
        with torch.no_grad():
            weight = layer.weight
            copied = copy.deepcopy(layer)
            raw(copied).copy_(torch.eye(4))
            assert torch.equal(layer.weight, weight)
            torch.testing.assert_close(copied.weight, torch.eye(4))
            assert layer.double().weight.dtype == torch.float64

    def test_what_inference_left_serves_all_other_modes(self):
        layer, inputs = orthogonalize(nn.Linear(4, 4)), torch.randn(3, 4, requires_grad=True)
        with torch.inference_mode():
            outputs = layer(inputs.detach()).clone()
        with torch.no_grad():
            assert not layer.weight.is_inference()
            kept = layer.weight
        torch.testing.assert_close((inputs @ kept.T + layer.bias).detach(), outputs)
        (inputs @ kept.T).sum().backward()  # saved for the backward pass, which an inference tensor cannot be
        layer(inputs).sum().backward()
        assert raw(layer).grad is not None

    def test_no_call_without_gradients_or_in_evaluation_changes_what_is_learned(self):
        networks = [regression_net(), regression_net()]
        networks[1].load_state_dict(networks[0].state_dict())
        losses = []
        for looked_at, network in zip((False, True), networks):
            optimizer, seen = AdamConfig().build(network, 1e-2), []
            for first in range(5):
                seen += train(network, optimizer, 1, first)
                if looked_at:
                    network.eval()(torch.randn(3, 16)).sum().backward()
                    with torch.no_grad():
                        network.train()(torch.randn(3, 16))
                    with torch.inference_mode():
                        network(torch.randn(3, 16))
            losses.append(seen)
        assert losses[0] == losses[1]


def step(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.enable_grad():
        layer(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()


CONFIGS = [AdamConfig(), AdamWConfig(), AdamOConfig(iso=0.1, iso_every=1), MuonConfig()]
configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


class Regression(nn.Sequential):
    """Layers as an agent's network has them."""

    example = torch.zeros(1, 16)

    def encode(self, observations: Tensor) -> Tensor:
        return observations

    def parts(self) -> dict[str, nn.Module]:
        return {"actor": self}


def mixed_net() -> Regression:
    """An orthogonal layer, a free one and a head: something for every optimizer."""
    layers = [orthogonalize(nn.Linear(16, 16)), Abs(), nn.Linear(16, 16), Abs()]
    return Regression(*layers, nn.Linear(16, 1))


def with_methods(network: nn.Module, config, every: int = 4) -> Methods:
    """A network with its optimizer and a method that renews raw weights."""
    optimizer = config.build(network, 1e-2, "4")
    return build_methods((ReorthogonalizeConfig(every=every),), Learner(network, optimizer, mixed_net))


def train_all(methods: Methods, steps: int, first: int = 0) -> list[float]:
    """Train a network with its optimizer and its methods."""
    learner = methods.learner
    return train(learner.network, learner.optimizer, steps, first, methods)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def is_renewed(weight: Tensor) -> bool:
    """Whether a raw weight is as orthogonal as a renewed one."""
    return bool(((singular_values(weight) - 1).abs() < 1e-5).all())


class TestReorthogonalization:
    @configs
    def test_every_fourth_step_changes_the_raw_weight_and_not_the_function(self, config):
        network = mixed_net()
        methods = with_methods(network, config)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        for first in range(10):
            train_all(methods, 1, first)
            assert is_renewed(raw(network[0])) == (first % 4 == 3)
        assert all(not torch.equal(p, b) for p, b in zip(network.parameters(), before))

    @configs
    def test_it_changes_raw_weights_alone_and_the_layer_not_at_all(self, config):
        network = mixed_net()
        methods = with_methods(network, config)
        optimizer = methods.learner.optimizer
        train(network, optimizer, 4)
        inputs = torch.randn(5, 16)
        before, state = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        outputs, weight = network(inputs), network[0].weight.detach().clone()
        for _ in range(4):
            methods.between_steps(inputs)
        torch.testing.assert_close(network[0].weight, weight, atol=1e-6, rtol=0)
        torch.testing.assert_close(network(inputs), outputs)
        changed = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
        assert changed == {"0.parametrizations.weight.original"}
        now = optimizer.state_dict()["state"]
        (renewed,) = [i for i, p in enumerate(parameters_of(optimizer)) if p is raw(network[0])]
        del now[renewed], state["state"][renewed]
        torch.testing.assert_close(now, state["state"], rtol=0, atol=0)
        assert optimizer.state_dict()["param_groups"] == state["param_groups"]

    @configs
    def test_it_changes_only_the_scale_of_the_raw_weight(self, config):
        often, never = mixed_net(), mixed_net()
        never.load_state_dict(often.state_dict())
        train_all(with_methods(often, config), 4)
        train_all(with_methods(never, config, every=1000), 4)
        assert not torch.allclose(raw(often[0]), raw(never[0]), atol=1e-3)
        torch.testing.assert_close(often[0].weight, never[0].weight, atol=1e-6, rtol=0)
        torch.testing.assert_close(often[2].weight, never[2].weight)

    @pytest.mark.parametrize(
        "config", [AdamConfig(), AdamWConfig(weight_decay=0), MuonConfig(weight_decay=0)]
    )
    @pytest.mark.parametrize("scale", [0.2, 3.0])
    def test_a_step_after_it_is_the_step_that_would_have_come(self, config, scale):
        """Moments follow the raw weight to its new scale: gradients are of the inverse scale."""
        moves = []
        for every in (4, 1000):
            torch.manual_seed(1)
            network = mixed_net()
            weight = raw(network[0])
            weight.data.mul_(scale)
            methods = with_methods(network, config, every)
            for _ in range(5):
                before = weight.detach().clone()
                weight.grad = 4 * torch.randn(16, 16) / torch.linalg.vector_norm(before)
                methods.learner.optimizer.step()
                move = weight.detach() - before
                weight.data.copy_(before)
                methods.between_steps(torch.zeros(1, 16))
            assert is_renewed(weight) == (every == 4)
            moves.append(move)
        torch.testing.assert_close(*moves, rtol=1e-3, atol=1e-6)
        assert moves[0].abs().max() > 1e-4

    @configs
    @pytest.mark.parametrize("saved_at", [4, 6])
    def test_a_resumed_run_continues_bit_for_bit(self, config, saved_at):
        whole, part, rest = mixed_net(), mixed_net(), mixed_net()
        part.load_state_dict(whole.state_dict())
        expected = train_all(with_methods(whole, config), 12)
        methods = with_methods(part, config)
        train_all(methods, saved_at)
        buffer = io.BytesIO()
        parts = (methods, part, methods.learner.optimizer)
        torch.save([kept.state_dict() for kept in parts], buffer)
        buffer.seek(0)
        resumed = with_methods(rest, config)
        states = torch.load(buffer, weights_only=True)  # noqa: TID251
        for kept, state in zip((resumed, rest, resumed.learner.optimizer), states):
            kept.load_state_dict(state)
        assert train_all(resumed, 12 - saved_at, first=saved_at) == expected[saved_at:]
        for ours, theirs in zip(rest.parameters(), whole.parameters()):
            assert torch.equal(ours, theirs)

    @configs
    def test_a_resumed_run_that_counts_anew_is_another_one(self, config):
        whole, rest = mixed_net(), mixed_net()
        methods, resumed = with_methods(whole, config), with_methods(rest, config)
        train_all(methods, 6)
        for kept, before in ((rest, whole), (resumed.learner.optimizer, methods.learner.optimizer)):
            kept.load_state_dict(before.state_dict())
        train_all(methods, 2, first=6)
        train_all(resumed, 2, first=6)
        assert is_renewed(raw(whole[0]))
        assert not is_renewed(raw(rest[0]))

    @configs
    def test_copies_go_their_own_way_and_the_same(self, config):
        network = mixed_net()
        methods = with_methods(network, config)
        train_all(methods, 2)
        copied = copy.deepcopy(methods)
        assert copied.learner.network is not network
        before = copy.deepcopy((network.state_dict(), methods.learner.optimizer.state_dict()["state"]))
        losses = train_all(copied, 8, first=2)
        for now, then in zip((network.state_dict(), methods.learner.optimizer.state_dict()["state"]), before):
            torch.testing.assert_close(now, then, rtol=0, atol=0)
        assert (methods.steps, copied.steps) == (2, 10)
        assert train_all(methods, 8, first=2) == losses
        for ours, theirs in zip(network.parameters(), copied.learner.network.parameters()):
            assert torch.equal(ours, theirs)

    @configs
    def test_hooks_of_a_step_run_once_whatever_was_built_before(self, config):
        for optimizer_class in (torch.optim.Adam, torch.optim.AdamW, AdamO):
            optimizer_class([nn.Linear(2, 2).weight])
        network, ran = mixed_net(), []
        methods = with_methods(network, config)
        optimizer = methods.learner.optimizer
        optimizer.register_step_pre_hook(lambda *_: ran.append("before"))
        optimizer.register_step_post_hook(lambda *_: ran.append("after"))
        optimizer.load_state_dict(optimizer.state_dict())
        train_all(methods, 1)
        assert ran == ["before", "after"]
        assert methods.steps == 1

    @configs
    def test_optimizers_alone_leave_raw_weights_to_grow(self, config):
        network = mixed_net()
        optimizer = config.build(network, 1e-2, "4")
        train(network, optimizer, REORTHOGONALIZE_EVERY // 1000)
        assert not is_renewed(raw(network[0]))
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamo": AdamO}
        assert config.name == "muon" or type(optimizer) is kinds[config.name]

    def test_a_copy_of_the_network_alone_is_left_alone(self):
        network = mixed_net()
        methods = with_methods(network, AdamConfig())
        target = copy.deepcopy(network).requires_grad_(False)
        before = raw(target[0]).clone()
        train_all(methods, 8)
        assert torch.equal(raw(target[0]), before)
        dqn.update_target(target, network, 0.25)
        expected = orthogonal_factor(before.lerp(raw(network[0]).detach(), 0.25))
        with torch.no_grad():
            assert torch.equal(target[0].weight, expected)
        dqn.update_target(target, network, 1.0)
        with torch.no_grad():
            assert torch.equal(target[0].weight, network[0].weight)

    def test_what_a_forward_pass_had_left_below_one_is_renewed_too(self):
        network = mixed_net()
        methods = with_methods(network, AdamConfig(), every=1)
        left, right = bases(16, 16, seed=0)
        with torch.no_grad():
            raw(network[0]).copy_((left * torch.logspace(-3, 1, 16)) @ right.T)
        assert singular_values(network[0].weight).amin() < 0.1
        methods.between_steps(torch.zeros(1, 16))
        assert is_renewed(raw(network[0]))
        torch.testing.assert_close(raw(network[0]).detach(), (left @ right.T).float(), atol=1e-3, rtol=0)

    def test_it_is_concerned_with_orthogonal_layers_alone(self):
        network = mixed_net()
        network[2] = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        methods = with_methods(network, AdamConfig(), every=1)
        with torch.no_grad():
            raw(network[0]).mul_(3.0)
        before = copy.deepcopy(network.state_dict())
        methods.between_steps(torch.zeros(1, 16))
        changed = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
        assert changed == {"0.parametrizations.weight.original"}

    @configs
    def test_raw_weights_are_trained_like_the_rest_and_never_pulled(self, config):
        network = mixed_net()
        optimizer = config.build(network, 1e-2, "4")
        matrices, others = split_parameters(network, "4")
        assert [name for name, _ in matrices] == ["2.weight"]
        assert "0.parametrizations.weight.original" in [name for name, _ in others]
        (group,) = (
            group
            for group in optimizer.param_groups
            if any(parameter is raw(network[0]) for parameter in group["params"])
        )
        assert any(parameter is network[0].bias for parameter in group["params"])
        assert not group.get("iso")
        assert len(optimizer.param_groups) == (1 if config.name in ("adam", "adamw") else 2)

    def test_networks_with_orthogonal_layers_have_it_by_default_once_and_others_do_not(self):
        def names(configs, network) -> list[str]:
            optimizer = AdamConfig().build(network, 1e-2)
            return list(build_methods(configs, Learner(network, optimizer, mixed_net)).methods)

        assert names((), mixed_net()) == ["reorthogonalize"]
        free = Regression(nn.Linear(16, 16), Abs(), nn.Linear(16, 1))
        assert names((), free) == []
        network = mixed_net()
        methods = build_methods((), Learner(network, AdamConfig().build(network, 1e-2), mixed_net))
        assert methods.methods["reorthogonalize"].every == REORTHOGONALIZE_EVERY == 10_000
        assert with_methods(mixed_net(), AdamConfig(), every=7).methods["reorthogonalize"].every == 7
        with pytest.raises(ValueError, match="no orthogonal layer"):
            names((ReorthogonalizeConfig(),), free)
        with pytest.raises(ValueError, match="every"):
            ReorthogonalizeConfig(every=0)

    def test_one_part_is_renewed_alone(self):
        class Two(nn.Module):
            example = torch.zeros(1, 16)

            def __init__(self) -> None:
                super().__init__()
                self.actor, self.critic = mixed_net(), mixed_net()

            def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
                return self.actor(observations), self.critic(observations)

            def encode(self, observations: Tensor) -> Tensor:
                return observations

            def parts(self) -> dict[str, nn.Module]:
                return {"actor": self.actor, "critic": self.critic}

        network = Two()
        for part in network.parts().values():
            raw(part[0]).data.mul_(3.0)
        learner = Learner(network, AdamConfig().build(network, 1e-2), Two)
        build_methods((ReorthogonalizeConfig(on="critic", every=1),), learner).between_steps(None)
        assert not is_renewed(raw(network.actor[0]))
        assert is_renewed(raw(network.critic[0]))


RUNS = {
    "ppo": (ppo, {"num_steps": 32, "epochs": 2}),
    "dqn": (
        dqn,
        {
            "train_every": 8, "log_every": 128, "learning_starts": 128, "batch_size": 16, "buffer_size": 500,
            "tau": 0.5, "target_every": 3,
        },
    ),
}  # fmt: skip


def arguments(folder, agent, id, **changes):
    """A small run with orthogonal layers."""
    module, flags = RUNS[agent]
    network = NetworkConfig(hidden=(16, 16), activation="maxmin", linear="orthogonal")
    common = {"total_steps": 512, "num_envs": 4, "checkpoint_every": 128, "network": network}
    common |= {"optim": AdamConfig(), "runs_dir": folder, "probes": ProbeConfig(every=2, pictures=False)}
    return module.Args(stream=StreamConfig(id), **{**common, **flags, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "id", "amp"),
    [("ppo", "grid-layouts", "bf16"), ("dqn", "cartpole-rotations", "none")],
)
def test_a_killed_run_comes_to_the_same_end(agent, id, amp, tmp_path, monkeypatch):
    renewing = (ReorthogonalizeConfig(every=7),)
    weights = []
    for name, steps in (("calm", ()), ("killed", (140, 400))):
        args = arguments(tmp_path / name, agent, id, amp=amp, methods=renewing)
        for at in steps:
            die(RUNS[agent][0], args, at, monkeypatch)
        RUNS[agent][0].main(args)
        path = run_folder(agent, args) / "checkpoint" / "weights.safetensors"
        weights.append(path.read_bytes())
    assert weights[0] == weights[1]
    kept = [weight for name, weight in load_file(path).items() if name.endswith("original")]
    assert len(kept) == (2 if id == "cartpole-rotations" else 4) * (2 if agent == "ppo" else 1)
    for weight in kept:
        assert_orthogonal(orthogonal_factor(matrix_view(weight)), 1e-3)


@pytest.mark.parametrize("agent", RUNS)
def test_runs_of_orthogonal_layers_renew_their_raw_weights_unasked(agent, tmp_path, monkeypatch):
    renewed, renew = [], orthogonal.Reorthogonalization.on
    monkeypatch.setattr(
        orthogonal.Reorthogonalization,
        "on",
        lambda self, event: (renewed.append((event.steps, self.every)), renew(self, event))[1],
    )
    monkeypatch.setattr(orthogonal.ReorthogonalizeConfig.__init__, "__defaults__", ("all", 7))
    args = arguments(tmp_path, agent, "cartpole-rotations")
    RUNS[agent][0].main(args)
    assert renewed == [(step, 7) for step in range(7, {"ppo": 32, "dqn": 98}[agent] + 1, 7)]
    assert (run_folder(agent, args) / "summary.json").exists()


@pytest.mark.parametrize("linear", ["free", "orthogonal"])
def test_probes_train_nothing_and_measure_what_the_layer_computes(linear):
    stream = StreamConfig("grid-layouts").make(4, device="cpu")
    network = NetworkConfig(hidden=(16, 16), activation="maxmin", linear=linear)
    agent = ppo.ActorCritic(stream, network)
    if linear == "orthogonal":
        for module in agent.modules():
            if isinstance(module, nn.utils.parametrize.ParametrizationList):
                nn.init.normal_(module.original)
                assert isinstance(module[0], Bjorck)
    before = copy.deepcopy(agent.state_dict())
    measured = measure(agent.parts(), agent.encode(stream.reset()[0]))
    assert measured["isometry/sigma_max/max"] == pytest.approx(1.0, abs=1e-5)
    for name, tensor in agent.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("agent", RUNS)
def test_agents_run_on_the_gpu(agent, tmp_path):
    args = arguments(tmp_path, agent, "grid-layouts", device="cuda", amp="bf16")
    assert RUNS[agent][0].main(args)
