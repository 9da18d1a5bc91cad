"""Plasticity methods: the interface, the coupled isometry penalty, and methods in combination."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.configs.cli import launch
from neoteny.envs import StreamConfig
from neoteny.optim import (
    AdamConfig,
    AdamOConfig,
    Event,
    Learner,
    Method,
    MethodConfig,
    Methods,
)
from neoteny.optim.c_chain import CChainConfig
from neoteny.optim.checks import Snapshot
from neoteny.optim.continual_backprop import ContinualBackpropConfig
from neoteny.optim.injection import Injected, InjectionAtSwitchConfig, InjectionConfig
from neoteny.optim.isometry import matrix_view
from neoteny.optim.methods import Seen
from neoteny.optim.redo import ReDoConfig
from neoteny.optim.shrink_perturb import ShrinkPerturbAtSwitchConfig
from neoteny.optim.spectrum import IsometryConfig
from neoteny.runners import run
from neoteny.runners.disk.checkpoint import load_checkpoint
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.probes.plasticity import plasticity
from tests.events import scalars
from tests.killed import die
from tests.learners import (
    Net,
    Trained,
    assert_same,
    learner_of,
    seen_batch,
    state_of,
    step,
    tiny,
)
from tests.simple_networks import sequential

NAN = float("nan")


@dataclass(frozen=True)
class Given(MethodConfig):
    """Configures whatever method a test has."""

    name: ClassVar[str] = "given"
    method: Any = None

    def build(self, learner: Learner) -> Method:
        method = self.method()
        method.learner = learner
        return method


class Watcher(Method):
    """Looks at all hidden layers."""

    learner: Learner
    last: Seen

    def watches(self):
        return [layer for layer in self.learner.layers(connected=True) if not layer.is_head]

    def after_step(self, seen):
        self.last = seen


def given(method: type[Method], learner: Learner, *others: MethodConfig) -> Methods:
    return Methods([Given(method=method), *others], learner)


class TestIsometry:
    @pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3, 3), (40, 2, 3, 3)])
    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_value_and_gradient(self, shape, scale):
        if len(shape) == 2:
            layer = nn.Linear(shape[1], shape[0])
            net = Net(sequential(linear=layer, act=nn.ReLU(), head=nn.Linear(shape[0], 2)), shape[1])
        else:
            layer = nn.Conv2d(shape[1], shape[0], 3)
            net = Net(sequential(conv=layer, act=nn.ReLU(), head=nn.Conv2d(shape[0], 2, 1)), 2, 3, 3)
        net.double()
        learner = Learner(net, torch.optim.Adam(net.parameters()), lambda: net)
        net.example = net.example.double()
        methods = Methods([IsometryConfig(coef=0.3, scale=scale)], learner)
        methods.add_gradients(None)
        matrix = layer.weight.detach().flatten(1)
        by_hand = 0.3 * 4 * (matrix @ matrix.T @ matrix - scale * matrix)
        torch.testing.assert_close(layer.weight.grad.flatten(1), by_hand)
        assert net.net.head.weight.grad is None
        assert layer.bias.grad is None
        sigma = torch.linalg.svdvals(matrix)
        penalty = methods.methods["isometry"].penalty(None)
        torch.testing.assert_close(penalty, 0.3 * (sigma.square() - scale).square().sum())
        assert methods.penalty(None) == 0.0  # it is not clipped with the loss

    @pytest.mark.parametrize("kind", ["vector", "grid"])
    def test_from_the_flag_to_the_gradients(self, kind, streams, monkeypatch):
        args = parse(monkeypatch, ppo, "optim:adam --methods.isometry.coef 0.7 --methods.isometry.scale 1.5")
        trained = Trained("ppo", streams[kind], args.methods, args.optim)
        plain = copy.deepcopy(trained.network)
        batch = trained.batch()
        weights = copy.deepcopy(trained.network)
        trained.update(batch)

        evaluated = plain.evaluate(batch.observations, batch.actions)
        loss, _ = ppo.ppo_loss(*evaluated, batch, args.clip, args.ent_coef, args.vf_coef)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), args.max_grad_norm)
        assert norm > args.max_grad_norm
        hidden = 0
        for name, parameter in trained.network.named_parameters():
            expected = plain.get_parameter(name).grad
            if name.endswith("weight") and "head" not in name:
                matrix = matrix_view(weights.get_parameter(name).detach())
                by_hand = 0.7 * 4 * (matrix @ matrix.T @ matrix - 1.5 * matrix)
                view = expected if expected.is_contiguous() else expected.movedim(1, -1)
                view.add_(by_hand.view(view.shape))
                hidden += 1
            torch.testing.assert_close(parameter.grad, expected)
        assert hidden == (4 if kind == "vector" else 8)

    def test_not_beside_the_pull(self, streams):
        with pytest.raises(ValueError, match=r"use optim:adam, or --optim.iso 0"):
            Trained("ppo", streams["vector"], [IsometryConfig()], AdamOConfig(iso=1e-3))
        Trained("ppo", streams["vector"], [IsometryConfig()], AdamOConfig(iso=0.0))

    def test_not_without_a_weight(self, streams):
        network = NetworkConfig(linear="orthogonal")
        with pytest.raises(ValueError, match="finds no hidden weight to act on, on critic"):
            Trained("ppo", streams["vector"], [IsometryConfig(on="critic")], network=network)

    def test_part(self, streams):
        trained = Trained("ppo", streams["vector"], [IsometryConfig(on="actor")])
        trained.methods.add_gradients(None)
        names = {name for name, p in trained.network.named_parameters() if p.grad is not None}
        assert names == {"actor.linear1.weight", "actor.linear2.weight"}

    @pytest.mark.parametrize("bad", [{"coef": 0.0}, {"coef": NAN}, {"scale": -1.0}])
    def test_values(self, bad):
        with pytest.raises(ValueError, match="of isometry must be above 0"):
            IsometryConfig(**bad)


class TestSeen:
    @pytest.mark.parametrize("name", ["ppo", "dqn"])
    @pytest.mark.parametrize("kind", ["vector", "grid"])
    @pytest.mark.parametrize("shared", [False, True])
    def test_activations_and_gradients(self, name, kind, shared, streams):
        # Penalties run the network forward as well, and are not looked at.
        others = [CChainConfig(), Clipped()]
        trained = Trained(name, streams[kind], [Given(method=Watcher), *others], shared=shared)
        for _ in range(3):
            batch, network = trained.batch(), copy.deepcopy(trained.network)
            target = copy.deepcopy(trained.target)
            trained.update(batch)
        seen = trained.methods.methods["given"].last

        kept: dict[str, Tensor] = {}
        paths = {module: path for path, module in network.named_modules()}
        for layer in Learner(network, trained.optimizer, tiny).layers():
            if not layer.is_head:
                activation = network.get_submodule(f"{paths[layer.module]}_activation")
                activation.register_forward_hook(keep(kept, layer.name))
        if name == "ppo":
            evaluated = network.evaluate(batch.observations, batch.actions)
            loss, _ = ppo.ppo_loss(*evaluated, batch, 0.2, 0.01, 0.5)
        else:
            with torch.no_grad():
                targets = dqn.td_targets(network, target, batch, double=True)
            values = network(batch.observations)
            loss, _ = dqn.dqn_loss(values, batch.actions, targets, batch.weights)
        loss.backward()
        assert set(seen.activations) == set(seen.gradients) == set(kept)
        torsos = 1 if name == "dqn" or shared else 2
        assert len(kept) == torsos * (4 if kind == "grid" else 2)
        for layer, activations in kept.items():
            shape = (*activations.shape[:2], -1)
            assert_same(seen.activations[layer], activations.detach().reshape(shape))
            torch.testing.assert_close(seen.gradients[layer], activations.grad.reshape(shape))
            assert not seen.activations[layer].requires_grad

    def test_columns_of_a_unit_are_its_positions(self):
        learner = learner_of(lambda: Net(sequential(
            linear1=nn.Linear(3, 4), act=Both(), linear2=nn.Linear(8, 3), act2=nn.ReLU(), head=nn.Linear(3, 1)
        ), 3))  # fmt: skip
        methods = given(Watcher, learner)
        network, observations = copy.deepcopy(learner.network), torch.randn(5, 3)
        step(methods, observations)
        hidden = network.net.linear1(observations)
        wanted = torch.stack((hidden.relu(), (-hidden).relu()), 2)
        torch.testing.assert_close(methods.seen.activations["net.linear1"], wanted)
        assert methods.seen.gradients["net.linear2"].shape == (5, 3, 1)

    def test_not_what_acts_or_is_measured(self):
        learner = learner_of()
        methods = given(Watcher, learner)
        step(methods, torch.ones(4, 2))
        before = copy.deepcopy((methods.seen.activations, methods.seen.gradients))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                learner.network(torch.randn(9, 2))
        with methods.seen.paused():
            learner.network(torch.randn(9, 2)).sum().backward()
        assert_same((methods.seen.activations, methods.seen.gradients), before)

    def test_layers_are_watched_once_and_as_long_as_they_are_wanted(self):
        learner = learner_of()
        methods = given(Watcher, learner, *[Given2(method=Watcher)])
        head = learner.network.net.head
        assert len(head._forward_pre_hooks) == 1
        (hook,) = head._forward_pre_hooks.values()
        methods.learner.network.net.linear.weight.grad = None
        methods.between_steps(seen_batch(torch.ones(1, 2)))
        assert list(head._forward_pre_hooks.values()) == [hook]
        methods.seen.watch([])
        assert not head._forward_pre_hooks

    def test_units_that_cannot_be_distinguished(self, streams):
        network = NetworkConfig(hidden=(8, 8), activation="maxmin")
        with pytest.raises(
            ValueError, match=r"actor.linear1 cannot be watched: its units are mixed with others before"
        ):
            Trained("ppo", streams["vector"], [Given(method=Watcher)], network=network)

        class Heads(Watcher):
            def watches(self):
                return self.learner.layers(connected=True)

        with pytest.raises(ValueError, match=r"units of net.head cannot be watched: it is a head"):
            given(Heads, learner_of())


def keep(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            output.retain_grad()
            kept[name] = output

    return hook


class Both(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.relu(), (-x).relu()), 1)


@dataclass(frozen=True)
class Given2(Given):
    name: ClassVar[str] = "given2"


@dataclass(frozen=True)
class Clipped(MethodConfig):
    """A penalty that is clipped with the loss, of outputs and of weights."""

    name: ClassVar[str] = "clipped"

    def build(self, learner: Learner) -> Method:
        class Outputs(Method):
            clipped = True

            def penalty(self, batch: Any) -> Tensor:
                outputs = learner.network(batch.observations)
                outputs = outputs[0] if isinstance(outputs, tuple) else outputs
                return 1e-3 * outputs.square().mean()

        return Outputs()


class TestPenalties:
    def test_clipped_with_the_loss_or_beside_it(self):
        class Small(Method):
            def penalty(self, batch):
                return 0.25 * self.learner.network.net.head.bias.sum()

        class Large(Small):
            clipped = True

            def penalty(self, batch):
                return 100 * super().penalty(batch)

        learner = learner_of()
        methods = Methods([Given(method=Small), Given2(method=Large)], learner)
        bias = learner.network.net.head.bias
        methods.penalty(None).backward()
        assert_same(bias.grad, torch.full((2,), 25.0))
        nn.utils.clip_grad_norm_([bias], 1.0)
        methods.add_gradients(None)
        torch.testing.assert_close(bias.grad, torch.full((2,), 0.5**0.5 + 0.25))

    def test_none(self):
        methods = Methods([], learner_of())
        assert methods.penalty(None) == 0.0
        methods.add_gradients(None)
        methods.after_step()
        methods.between_steps(None)
        assert methods.end_update(5) == {}


class TestEvents:
    def test_when(self):
        events: list[Event] = []

        class Counted(Method):
            every, at_switch = 3, True

            def on(self, event):
                events.append(event)
                return {"steps": float(event.steps)}

        methods = given(Counted, learner_of())
        assert methods.end_update(7) == {}  # a switch before any gradient step
        for i in range(1, 5):
            methods.between_steps(seen_batch(torch.full((1, 2), float(i))))
        assert methods.end_update(7) == {"methods/given/steps": 3.0, "methods/given/moved": 0.0}
        assert methods.end_update(7) == {}
        assert methods.end_update(20)["methods/given/steps"] == 4.0
        assert [(event.kind, event.steps) for event in events] == [("step", 3), ("switch", 4)]
        assert [event.batch.observations[0, 0].item() for event in events] == [3.0, 4.0]

        other = given(Counted, learner_of())
        other.load_state_dict(methods.state_dict())
        assert other.end_update(20) == {}
        other.between_steps(None)
        other.between_steps(None)
        assert other.end_update(20)["methods/given/steps"] == 6.0

    def test_a_state_of_other_methods_is_refused(self):
        state = given(Method, learner_of()).state_dict()
        with pytest.raises(ValueError, match=r"has the methods \['given'\], the run \[\]"):
            Methods([], learner_of()).load_state_dict(state)


class TestCheck:
    def learner(self) -> Learner:
        learner = learner_of(target=True)
        step(Methods([], learner), torch.ones(4, 2))
        assert not learner.problem()
        return learner

    def test_a_tensor_that_is_not_trained(self):
        learner = self.learner()
        learner.network.net.head.weight = nn.Parameter(torch.zeros(2, 3))
        assert re.search(r"net.head.weight is not in the optimizer, so it would never", learner.problem())
        learner.network.net.head.weight.requires_grad_(False)
        assert not learner.problem()

    def test_a_frozen_tensor_that_keeps_a_gradient(self):
        learner = self.learner()
        weight = learner.network.net.head.weight.requires_grad_(False)
        assert re.search(r"net.head.weight is frozen but has a gradient", learner.problem())
        weight.grad = None
        assert not learner.problem()

    def test_moments_of_another_shape(self):
        learner = self.learner()
        weight = learner.network.net.head.weight
        learner.optimizer.state[weight]["exp_avg_sq"] = torch.zeros(2, 2)
        assert re.search(r"exp_avg_sq of net.head.weight has shape \(2, 2\)", learner.problem())

    @pytest.mark.parametrize("change", ["shape", "name"])
    def test_a_target_network_that_is_built_otherwise(self, change):
        learner = self.learner()
        net = learner.target.net
        net.head = nn.Linear(3, 4) if change == "shape" else Injected(net.head, nn.Linear(3, 2))
        assert re.search("the target network has another structure", learner.problem())

    @pytest.mark.parametrize(
        ("fault", "sentence"),
        [
            ("moments", "moments of net.head.weight are not cleared"),
            ("target", "net.head.weight is another in the target network"),
            ("not finite", ""),
            ("", ""),
        ],
    )
    def test_what_a_reset_must_do(self, fault, sentence):
        learner = self.learner()
        net, target = learner.network.net, learner.target.net
        before = Snapshot(learner)
        assert before.moved() == 0.0
        assert not before.problem(resets=True)
        weight = net.head.weight
        with torch.no_grad():
            for each in (weight, target.head.weight):
                each[1, 2] += 3.0
            moments = learner.optimizer.state[weight]
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name].fill_(1.0)[1, 2] = 0.0
            if fault == "moments":
                moments["exp_avg_sq"][1, 2] = 1.0
            elif fault == "target":
                target.head.weight[1, 2] += 1.0
            elif fault:
                net.linear.weight[0] = NAN
        assert before.problem(resets=True) == sentence
        assert before.moved() == pytest.approx(3.0) or fault == "not finite"
        assert not before.problem(resets=False)

    def test_after_each_event(self):
        class Forgetful(Method):
            every = 1

            def on(self, event):
                self.learner.network.net.head = nn.Linear(3, 2)
                return {}

        methods = given(Forgetful, learner_of())
        with pytest.raises(RuntimeError, match=r"after the method given: net.head.weight is not in the opt"):
            step(methods, torch.ones(4, 2))


class TestSetUp:
    def test_twice_or_against_each_other_or_without_a_name(self):
        with pytest.raises(ValueError, match="the method redo is given twice"):
            Methods([ReDoConfig(), ReDoConfig(tau=0.5)], learner_of())
        for first, second in permutations([ReDoConfig(), ContinualBackpropConfig()]):
            with pytest.raises(ValueError, match=f"{first.name} and {second.name} contradict each other"):
                Methods([first, second], learner_of())
        with pytest.raises(ValueError, match="MethodConfig is a method without a name"):
            Methods([MethodConfig()], learner_of())

    @pytest.mark.parametrize(
        "config", [ReDoConfig, CChainConfig, ShrinkPerturbAtSwitchConfig, IsometryConfig]
    )
    def test_a_part_that_is_not_there(self, config, streams):
        with pytest.raises(ValueError, match="the network has no part actor; it has: all, q"):
            Trained("dqn", streams["vector"], [config(on="actor")])

    @pytest.mark.parametrize("shared", [False, True])
    def test_layers_of_parts(self, shared, streams):
        layers = Trained("ppo", streams["vector"], shared=shared).methods.learner.layers
        actor = [layer.name for layer in layers("actor")]
        critic = [layer.name for layer in layers("critic")]
        torso = "actor" if shared else "critic"
        assert actor == ["actor.linear1", "actor.linear2", "actor.head"]
        assert critic == [f"{torso}.linear1", f"{torso}.linear2", "critic.head"]
        assert layers("all") == list(dict.fromkeys([*layers("actor"), *layers("critic")]))
        assert layers("actor", connected=True)[0].outgoing

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("on", ["actor", "critic", "all"])
    def test_what_is_reset_in_parts(self, on, shared, streams):
        trained = Trained("ppo", streams["vector"], [ReDoConfig(every=1, tau=1e9, on=on)], shared=shared)
        before = copy.deepcopy(trained.network)
        trained.methods.between_steps(trained.batch())
        for name, weight in trained.network.named_parameters():
            if name.endswith("head.bias"):
                continue
            concerned = on == "all" or name.startswith((on, "shared")) or (shared and "head" in name)
            assert torch.equal(weight, before.get_parameter(name)) != (concerned and "bias" not in name)

    def test_orthogonal_layers_bring_their_own(self, streams):
        network = NetworkConfig(linear="orthogonal")
        methods = Trained("ppo", streams["vector"], [CChainConfig()], network=network).methods
        assert list(methods.methods) == ["c_chain", "reorthogonalize"]

    def test_remade(self, streams):
        configs = [ContinualBackpropConfig(maturity=1, rate=0.5, every=1), CChainConfig()]
        trained = Trained("dqn", streams["vector"], configs)
        for _ in range(4):
            trained.update(trained.batch())
        before = state_of(trained.network, trained.optimizer, trained.target, trained.methods)
        fresh = trained.methods.learner.new_network()
        optimizer = AdamConfig().build(fresh, 1e-2)
        remade = trained.methods.remade(fresh, optimizer)
        assert list(remade.methods) == list(trained.methods.methods)
        assert (remade.steps, remade.learner.target) == (0, None)
        assert remade.learner.network is fresh
        assert remade.methods["c_chain"].batches == []
        assert_same(remade.methods["continual_backprop"].state["q.linear1"]["ages"], torch.zeros(6))
        batch = trained.batch()
        optimizer.zero_grad()
        fresh(batch.observations).sum().backward()
        remade.add_gradients(batch)
        optimizer.step()
        remade.after_step()
        remade.between_steps(batch)
        assert remade.steps == 1
        now = state_of(trained.network, trained.optimizer, trained.target, trained.methods)
        assert_same(now, before)

    @pytest.mark.parametrize(("name", "shared"), [("ppo", False), ("ppo", True), ("dqn", True)])
    def test_copies(self, name, shared, streams):
        configs = [
            ContinualBackpropConfig(maturity=2, rate=0.3, every=2),
            CChainConfig(),
            IsometryConfig(),
            ShrinkPerturbAtSwitchConfig(),
        ]
        trained = Trained(name, streams["vector"], configs, shared=shared)
        methods, batches = trained.methods, [trained.batch() for _ in range(9)]
        for batch in batches[:4]:
            trained.update(batch)
        parts = [trained.network, trained.optimizer, *filter(None, (trained.target,)), methods]
        before, seen = state_of(*parts), copy.deepcopy(methods.seen.activations)
        gradients = [parameter.grad.clone() for parameter in trained.network.parameters()]
        copied = copy.deepcopy(methods)
        random = torch.get_rng_state()
        for batch in batches[4:]:
            trained.update(batch, copied)
        copied.end_update(100)
        assert_same(state_of(*parts), before)
        assert_same(methods.seen.activations, seen)
        assert_same([parameter.grad for parameter in trained.network.parameters()], gradients)
        assert copied.seen.activations
        weights = copied.learner.network.state_dict()
        assert not any(torch.equal(weights[name], weight) for name, weight in before[0].items())

        torch.set_rng_state(random)
        for batch in batches[4:]:
            trained.update(batch)
        methods.end_update(100)
        learner = copied.learner
        of_copy = [learner.network, learner.optimizer, *filter(None, (learner.target,)), copied]
        assert_same(state_of(*parts), state_of(*of_copy))


class TestProbe:
    def values(self, trained: Trained, steps: int = 60) -> dict[str, float]:
        observations = trained.batch(24).observations

        def new_optimizer(network: nn.Module) -> torch.optim.Optimizer:
            return AdamConfig().build(network, 1e-2)

        values = plasticity(trained.methods, observations, new_optimizer, steps=steps)
        return {tag.removeprefix("plasticity/"): value.item() for tag, value in values.items()}

    def test_methods_are_in_it(self, streams):
        class Frozen(Method):
            """Takes back what a gradient step has done."""

            kept: list[Tensor] | None = None

            @torch.no_grad()
            def after_step(self, seen):
                parameters = list(self.learner.network.parameters())
                torch._foreach_copy_(parameters, self.weights)

        @dataclass(frozen=True)
        class FrozenConfig(MethodConfig):
            name: ClassVar[str] = "frozen"

            def build(self, learner):
                method = Frozen()
                method.learner = learner
                method.weights = [parameter.detach().clone() for parameter in learner.network.parameters()]
                return method

        free, frozen, pulled = (
            (torch.manual_seed(1), self.values(Trained("ppo", streams["vector"], configs)))[1]
            for configs in ([], [FrozenConfig()], [IsometryConfig(coef=0.1)])
        )
        for tag in ("fraction_eliminated", "fraction_eliminated_new_optimizer", "fresh"):
            assert free[tag] > 0.1
            assert frozen[tag] == pytest.approx(0.0, abs=1e-6)
            assert abs(pulled[tag] - free[tag]) > 1e-3

    def test_a_structure_that_changes_while_it_trains(self, streams):
        trained = Trained("dqn", streams["vector"], [InjectionConfig(after=5)])
        for _ in range(3):
            trained.update(trained.batch())
        before = state_of(trained.network, trained.optimizer, trained.target, trained.methods)
        values = self.values(trained)
        assert min(values["fraction_eliminated"], values["fresh"]) > 0.1
        assert_same(state_of(trained.network, trained.optimizer, trained.target, trained.methods), before)


AGENTS = {
    "ppo": (ppo, {"num_steps": 16, "epochs": 2, "minibatches": 2}),
    "dqn": (
        dqn,
        {
            "train_every": 8, "log_every": 64, "learning_starts": 64, "batch_size": 16, "buffer_size": 256,
            "tau": 0.5, "target_every": 3,
        },
    ),
}  # fmt: skip
RUNS = {
    "c_chain-isometry-redo-shrink_perturb_at_switch": (
        ShrinkPerturbAtSwitchConfig(share=0.5),
        IsometryConfig(coef=1e-2),
        CChainConfig(),
        ReDoConfig(every=7, tau=0.5),
    ),
    "continual_backprop-injection_at_switch": (
        InjectionAtSwitchConfig(),
        ContinualBackpropConfig(rate=0.05, maturity=2, every=4),
    ),
}


def arguments(folder, agent, methods, **changes):
    module, flags = AGENTS[agent]
    common = {
        "total_steps": 384,
        "num_envs": 4,
        "checkpoint_every": 128,
        "network": NetworkConfig(hidden=(8, 8)),
        "optim": AdamConfig(),
        "runs_dir": folder,
        "probes": ProbeConfig(every=4, pictures=False, plasticity_every=0, full_every=0),
        "methods": methods,
    }
    stream = StreamConfig("cartpole-rotations", period=150, audit="off")
    return module.Args(stream=stream, **{**common, **flags, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("names", RUNS)
def test_a_killed_run_comes_to_the_same_end(names, agent, tmp_path, monkeypatch):
    ends = []
    for name, steps in (("calm", ()), ("killed", (188, 300))):
        args = arguments(tmp_path / name, agent, RUNS[names])
        for at in steps:
            die(AGENTS[agent][0], args, at, monkeypatch)
        AGENTS[agent][0].main(args)
        folder = run_folder(agent, args)
        assert folder == tmp_path / name / "cartpole-rotations" / agent / f"adam-{names}" / "s1"
        tags = {tag: v for tag, v in scalars(folder).items() if not tag.startswith(("time/", "charts/SPS"))}
        ends.append((load_file(folder / "checkpoint" / "weights.safetensors"), tags))
    assert_same(ends[1], ends[0])
    for name in set(names.split("-")) - {"c_chain", "isometry"}:
        assert f"methods/{name}/moved" in ends[0][1]
    state = load_checkpoint(folder / "checkpoint")["parts"]["methods"]
    assert set(state["methods"]) == set(names.split("-"))
    assert state["steps"] == (6 * 4 if agent == "ppo" else (384 - 64) // 8 * 2 + 2)


def test_the_weights_do_not_depend_on_probes(tmp_path):
    weights = []
    for name, every in (("with", 1), ("without", 0)):
        steps = {"plasticity_every": 1, "plasticity_steps": 3} if every else {}
        probes = ProbeConfig(every=every, pictures=False, **steps)
        methods = RUNS["continual_backprop-injection_at_switch"]
        args = arguments(tmp_path / name, "dqn", methods, probes=probes, total_steps=256)
        dqn.main(args)
        weights.append(load_file(run_folder("dqn", args) / "checkpoint" / "weights.safetensors"))
    assert_same(weights[0], weights[1])


@pytest.mark.parametrize("agent", AGENTS)
def test_methods_are_restored_first(agent, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def restore_part(name, *rest):
        assert name == "methods"
        raise Stop

    monkeypatch.setattr(run, "restore_part", restore_part)
    with pytest.raises(Stop):
        AGENTS[agent][0].main(arguments(tmp_path, agent, ()))


def parse(monkeypatch: pytest.MonkeyPatch, agent: Any, flags: str) -> Any:
    parsed = []
    monkeypatch.setattr(sys, "argv", ["agent.py", *flags.split()])
    launch(parsed.append, agent.Args, agent.PRESETS)
    return parsed[0]


@pytest.mark.parametrize(
    ("agent", "flags", "sentence"),
    [
        (ppo, "optim:adamo --methods.isometry", "use optim:adam, or --optim.iso 0"),
        (dqn, "optim:adam --methods.isometry --network.linear orthogonal", "finds no hidden weight"),
        (ppo, "--methods.redo --methods.continual-backprop", "contradict each other"),
        (
            ppo,
            "--methods.redo --network.activation maxmin",
            "its units are mixed with others before",
        ),
        (dqn, "--methods.redo.on critic", "the network has no part critic; it has: all, q"),
        (ppo, "--methods.reorthogonalize", "finds no orthogonal layer on all"),
        (
            ppo,
            "--stream.id CartPole-v1 --methods.fire-at-switch",
            "--methods.fire-at-switch does nothing: CartPole-v1 does not switch before the run ends",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(agent, flags, sentence, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    argv = ["agent.py", *flags.split(), "--runs-dir", str(runs), "--stream.audit", "off"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        launch(agent.main, agent.Args, agent.PRESETS)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not runs.exists()


def test_the_same_twice_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        ppo.main(arguments(tmp_path / "runs", "ppo", (IsometryConfig(), IsometryConfig(coef=0.1))))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the method isometry is given twice\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("names", RUNS)
def test_on_a_gpu(names, agent, tmp_path, monkeypatch):
    args = arguments(tmp_path, agent, RUNS[names], device="cuda")
    die(AGENTS[agent][0], args, 188, monkeypatch)
    assert AGENTS[agent][0].main(args)
