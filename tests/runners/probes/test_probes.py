import dataclasses
import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from neoteny.agents.activations import Abs, GroupSort, MaxMin
from neoteny.optim import Learner, Methods
from neoteny.optim.layers import AllParts, connect, describe
from neoteny.runners import probes
from neoteny.runners.probes.jacobians import jacobian_statistics
from neoteny.runners.probes.spectra import effective_rank, singular_values, srank
from tests.simple_networks import CReLU, Noise, conv_net, mlp, reference_jacobians, sequential

measuring = importlib.import_module("neoteny.runners.probes.measure")  # not its function of this name
INF, NAN = math.inf, math.nan
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ),
]


def layer_jacobian_tags(net: nn.Sequential, inputs: Tensor) -> dict[str, float]:
    """What the tags of `net.linear2` must be, from autograd and an SVD."""
    hidden = net[:2](inputs).detach()
    sigma = torch.linalg.svdvals(reference_jacobians(net[2:4], hidden))
    return {
        tag.replace("/", "/net.linear2/"): value.item() for tag, value in jacobian_statistics(sigma).items()
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
        for tag, expected in jacobian_statistics(sigma).items():
            tag = tag.replace("/", "/net.input_output/")
            assert measured[f"isometry/{tag}"] == pytest.approx(expected.item(), abs=1e-6), tag

    @pytest.mark.parametrize("activation", [Abs, MaxMin])
    def test_orthogonal_weights_and_an_isometric_activation_are_an_isometry(
        self, activation: type[nn.Module]
    ):
        net = sequential(linear1=nn.Linear(6, 6), act1=activation(), head=nn.Linear(6, 6))
        for layer in (net.linear1, net.head):
            nn.init.orthogonal_(layer.weight)
        measured = probes.measure({"net": net}, torch.randn(40, 6))
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
                numbers = [x if isinstance(x, list) else [x] for x in measured.values()]
                assert all(math.isnan(number) for value in numbers for number in value)

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
        hidden, distances = [spectra["conv1"], spectra["linear1"]], []  # the head counts for itself only
        assert measured["isometry/sigma_max/max"] == pytest.approx(max(s[0].item() for s in hidden))
        assert measured["isometry/sigma_min/min"] == pytest.approx(min(s[-1].item() for s in hidden))
        assert measured["isometry/log10_cond/max"] == pytest.approx(
            max((s[0] / s[-1]).log10().item() for s in hidden)
        )
        for name in ("conv1", "linear1"):  # both are wide: the Gram matrix of the smaller side
            weight = getattr(net, name).weight.detach().flatten(1).double()
            assert weight.shape[0] <= weight.shape[1]
            distances.append((weight @ weight.T - torch.eye(len(weight))).square().sum().item())
        assert measured["isometry/penalty"] == pytest.approx(sum(distances))
        features = singular_values(net[:-1](inputs).detach())
        assert measured["plasticity/feature_srank/net"] == srank(features).item()
        assert measured["plasticity/feature_effective_rank/net"] == pytest.approx(
            effective_rank(features).item()
        )
        assert not any("jacobian" in tag and "conv1" in tag for tag in measured)
        assert not any("head" in tag for tag in measured if "jacobian" in tag or "plasticity" in tag)

        assert measured["isometry/mean_squared_sigma/mean"] == pytest.approx(
            torch.cat(hidden).square().mean().item()
        )
        assert measured["spectra/net.linear1"] == pytest.approx(spectra["linear1"].tolist())

    def test_what_the_penalty_does_not_see_of_a_convolution(self):
        # Each channel blurred on its own: orthonormal rows, but the operator is far from an isometry.
        net = sequential(
            conv1=nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            act1=nn.ReLU(),
            pool=nn.AvgPool2d(8),
            flatten=nn.Flatten(),
            head=nn.Linear(16, 2),
        )
        with torch.no_grad():
            net.conv1.weight.copy_(torch.eye(4)[:, :, None, None] / 3)
        measured = probes.measure({"net": net}, torch.randn(5, 4, 16, 16))
        assert measured["isometry/penalty"] == pytest.approx(0.0, abs=1e-10)
        assert measured["isometry/sigma_max/net.conv1"] == pytest.approx(1.0)
        assert measured["isometry/sigma_min/net.conv1"] == pytest.approx(1.0)
        assert measured["isometry/circular_sigma_max/net.conv1"] == pytest.approx(3.0)
        assert measured["isometry/circular_sigma_min/net.conv1"] == pytest.approx(0.01835, abs=1e-5)

    @pytest.mark.parametrize("activation", [nn.ReLU, MaxMin])
    def test_convolutions_as_operators(self, activation: type[nn.Module]):
        net = sequential(
            conv1=nn.Conv2d(2, 4, 3, stride=2, padding=1),
            act1=activation(),
            flatten=nn.Flatten(),
            head=nn.Linear(36, 2),
        ).double()
        inputs = torch.randn(6, 2, 5, 5, dtype=torch.float64)
        partly = probes.measure({"net": net}, inputs)
        measured = probes.measure({"net": net}, inputs, operators=True)
        assert {tag: measured[tag] for tag in partly} == partly
        added = set(measured) - set(partly)
        assert added
        assert all("operator" in tag or "jacobian" in tag for tag in added)
        operator = reference_jacobians(net.conv1, inputs[:1])[0]
        sigma = torch.linalg.svdvals(operator)
        assert measured["isometry/operator_sigma_max/net.conv1"] == pytest.approx(sigma[0].item())
        assert measured["isometry/operator_sigma_min/net.conv1"] == pytest.approx(sigma[-1].item(), abs=1e-7)
        sigma = torch.linalg.svdvals(reference_jacobians(net[:2], inputs))
        for tag, value in jacobian_statistics(sigma).items():
            found = measured[f"isometry/{tag.replace('/', '/net.conv1/')}"]
            assert found == pytest.approx(value.item(), abs=1e-5), tag

    def test_large_operators_are_left_out(self):
        net = sequential(conv1=nn.Conv2d(1, 3, 3), act1=nn.ReLU(), flatten=nn.Flatten())
        net.add_module("head", nn.Linear(3 * 22**2, 2))
        measured = probes.measure({"net": net}, torch.randn(2, 1, 24, 24), operators=True)
        assert "isometry/circular_sigma_max/net.conv1" in measured
        assert not any("operator" in tag or "jacobian_rank/net.conv1" in tag for tag in measured)

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
            measuring,
            "slopes_of",
            lambda activation, z, inner=measuring.slopes_of: taken.append(len(z)) or inner(activation, z),
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
        monkeypatch.setattr(measuring, "_SPECTRUM_BUDGET", 10 * 8**3)
        probes.measure({"net": net}, torch.randn(100, 8))
        assert taken == [10, 10]

    def test_samples_are_spread_over_the_batch(self):
        assert measuring.spread(torch.arange(10), 3).tolist() == [0, 3, 6]
        assert measuring.spread(torch.arange(3), 32).tolist() == [0, 1, 2]

    def test_a_description_that_is_there_already_changes_nothing(self):
        parts, inputs = {"one": mlp(), "two": mlp(nn.Tanh)}, torch.randn(20, 5)
        layers = describe(AllParts(parts), inputs[:1], parts)
        assert [layer.name for layer in layers if layer.is_head] == ["one.head", "two.head"]
        assert probes.measure(parts, inputs, layers) == probes.measure(parts, inputs)

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
        expected = probes.measure({"net": net}, inputs, operators=True)
        measured = probes.measure({"net": net.to(device)}, inputs.to(device), operators=True)
        assert list(measured) == list(expected)
        for tag, value in expected.items():
            assert measured[tag] == pytest.approx(value, rel=1e-6, abs=1e-6), tag


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
        layers = describe(net, inputs[:1], {"net": net})
        assert [layer.is_head for layer in layers] == [False, True]
        connect(net, inputs[:1], layers)
        assert layers[0].outgoing[0].columns.flatten().tolist() == list(range(8))
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


class Agent(nn.Module):
    """Observations of uint8, of which many are the same."""

    example = torch.zeros(1, 5, dtype=torch.uint8)

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(self.encode(observations))

    def encode(self, observations: Tensor) -> Tensor:
        return observations.float() / 10

    def parts(self) -> dict[str, nn.Module]:
        return {"net": self.net}


def probes_of(**config: int) -> probes.Probes:
    agent = Agent()

    def new_optimizer(agent: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(agent.parameters())

    methods = Methods((), Learner(agent, new_optimizer(agent), Agent))
    return probes.Probes(probes.ProbeConfig(**config), methods, new_optimizer)


class TestProbes:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"every": 3, "full_every": 2, "plasticity_every": 4}, {1: "np", 3: "", 6: "n", 9: "", 12: "np"}),
            ({"every": 1, "full_every": 5, "plasticity_every": 0}, {
                1: "n", **dict.fromkeys(range(2, 15), ""), 5: "n", 10: "n"}),
            ({"every": 10, "full_every": 0, "plasticity_every": 1}, {1: "p", 10: "p"}),
            ({"every": 0}, {}),
        ],
    )  # fmt: skip
    def test_when_what_is_measured(self, config: dict[str, int], expected: dict[int, str]):
        these = probes_of(**config, **({"plasticity_steps": 1} if config.get("plasticity_every") else {}))
        found = {}
        for update in range(1, 15):
            these.begin(update)
            if these.due:
                measured = these.measure(torch.randint(10, (20, 5), dtype=torch.uint8))
                assert {"update/step_norm", "update/pull_norm", "isometry/penalty"} <= measured.keys()
                tags = " ".join(measured)
                found[update] = "n" * ("ntk_isotropy_gap/net" in tags) + "p" * ("plasticity/lost" in tags)
        assert found == expected

    def test_equal_observations_count_once_in_the_kernel(self):
        observations = torch.randint(10, (20, 5), dtype=torch.uint8)
        these = probes_of()
        these.begin(1)
        once, thrice = (these.measure(observations.repeat(times, 1)) for times in (1, 3))
        tags = [tag for tag in once if "ntk" in tag]
        assert len(tags) == 6
        assert {tag: thrice[tag] for tag in tags} == {tag: once[tag] for tag in tags}

    def test_how_much_is_measured(self, monkeypatch: pytest.MonkeyPatch):
        sizes = {}
        for name in ("measure", "empirical_ntk", "plasticity"):
            inner = getattr(probes, name)

            def noting(*args, name=name, inner=inner, **options):
                inputs = next(arg for arg in args if isinstance(arg, Tensor))
                sizes[name] = len(inputs)
                return inner(*args, **options)

            monkeypatch.setattr(probes, name, noting)
        these = probes_of(samples=50, ntk_samples=7, plasticity_samples=9, plasticity_every=1)
        these.begin(1)
        these.measure(torch.arange(1000).reshape(200, 5).remainder(251).to(torch.uint8))
        assert sizes == {"measure": 50, "empirical_ntk": 7, "plasticity": 9}

    def test_the_random_task_is_another_one_in_each_run_and_update(self):
        seen = torch.randint(10, (20, 5), dtype=torch.uint8)
        values = {}
        for seed, update in ((1, 20), (1, 40), (2, 20), (1, 20)):
            torch.manual_seed(0)
            these = probes_of(plasticity_every=1, plasticity_steps=3)
            torch.manual_seed(seed)
            torch.randn(update)  # whatever else has been drawn does not count
            these.begin(update)
            value = these.measure(seen)["plasticity/fresh"]
            assert values.setdefault((seed, update), value) == value
        assert len(set(values.values())) == 3

    @pytest.mark.parametrize(
        "name", [field.name for field in dataclasses.fields(probes.ProbeConfig) if field.type is int]
    )
    def test_bad_numbers_are_refused(self, name: str):
        flag = f"--probes.{name.replace('_', '-')}"
        with pytest.raises(ValueError, match=f"{flag} must be at least [01](,| and at most [0-9]+,) not -1"):
            probes.ProbeConfig(**{name: -1})

    def test_what_does_nothing_is_named(self):
        plasticity = {"plasticity_samples", "plasticity_steps"}
        config = probes.ProbeConfig
        assert set(config(full_every=0).unused()) == {*plasticity, "ntk_samples"}
        assert set(config().unused()) == plasticity
        assert config(plasticity_every=1).unused() == {}
        every = {field.name for field in dataclasses.fields(config)} - {"every"}
        assert set(config(every=0, plasticity_every=1).unused()) == every


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
        assert all(not value.any() for value in before.values())  # copies, not views
