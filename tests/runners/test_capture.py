"""Functions that are captured as CUDA graphs, on a stand-in for graphs that runs on a CPU."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.rewards import RewardConfig, RewardTransform
from neoteny.envs import StreamConfig
from neoteny.optim import (
    AdamConfig,
    AdamO,
    AdamOConfig,
    AdamWConfig,
    Methods,
    MuonConfig,
    MuonOConfig,
    TRACConfig,
    UPGDConfig,
)
from neoteny.optim.spectrum import IsometryConfig
from neoteny.runners import capture
from neoteny.runners.capture import WARM_UP, Capture, Captured, CaptureError, CompileError, Options
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.killed import die
from tests.recorded_graph import RecordedCapture, RecordedGraph

AGENTS = {"ppo": ppo, "dqn": dqn}
SIZES = {
    "ppo": {"num_steps": 16, "epochs": 2, "minibatches": 2},
    "dqn": {
        "log_every": 64, "train_every": 16, "gradient_steps": 2, "batch_size": 16, "learning_starts": 64,
        "buffer_size": 400, "target_every": 3, "eps_steps": 300,
    },
}  # fmt: skip


def small(agent, folder, id="grid-layouts", period=128, stream=None, **flags):
    defaults = dict(
        stream=StreamConfig(id, period=period, **{"audit": "off", **(stream or {})}), num_envs=4,
        total_steps=64 * 4,
        network=NetworkConfig((16,)), probes=ProbeConfig(every=0), runs_dir=folder,
        **SIZES[agent],
    )  # fmt: skip
    return AGENTS[agent].Args(**{**defaults, **flags})


def weights(agent, args):
    return load_file(run_folder(agent, args) / "checkpoint" / "weights.safetensors")


class Counter:
    """Counts the replays of a test."""

    def __init__(self):
        self.replays = 0


@pytest.fixture
def captured(monkeypatch):
    """Agents capture their functions; returns a counter of replays."""
    counter, replay = Counter(), RecordedGraph.replay

    def counted(self):
        counter.replays += 1
        replay(self)

    monkeypatch.setattr(RecordedGraph, "replay", counted)
    for agent in AGENTS.values():
        monkeypatch.setattr(agent, "Capture", RecordedCapture)
    return counter


def compare(agent, args, tmp_path, captured, least):
    """Run an agent without graphs and with; the weights must be the same."""
    AGENTS[agent].main(dataclasses.replace(args, runs_dir=tmp_path / "plain", graphs=False))
    assert captured.replays == 0
    AGENTS[agent].main(dataclasses.replace(args, runs_dir=tmp_path / "captured"))
    assert captured.replays >= least
    plain, replayed = (
        weights(agent, dataclasses.replace(args, runs_dir=tmp_path / name)) for name in ("plain", "captured")
    )
    assert plain.keys() == replayed.keys()
    for name in plain:
        assert torch.equal(plain[name], replayed[name]), name


OPTIMIZERS = [
    AdamConfig(), AdamWConfig(), AdamOConfig(iso=0.1, iso_every=3), MuonConfig(),
    *(
        pytest.param(config, marks=pytest.mark.slow)
        for config in (MuonOConfig(iso=0.1, iso_scale="aspect", iso_every=3), UPGDConfig(), TRACConfig())
    ),
]  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.name)
def test_replayed_steps_do_what_steps_do(agent, optim, tmp_path, captured):
    probes = ProbeConfig(every=3, pictures=False)
    args = small(agent, tmp_path, optim=optim, probes=probes, stream={"audit": "on"})
    compare(agent, args, tmp_path, captured, least=60)


KINDS = {
    "rules of our own": {"id": "grid-goals"},
    "obstacles": {"id": "MiniGrid-Dynamic-Obstacles-6x6-v0", "period": None},
    "the whole grid, as a vector": {"id": "grid-layouts", "stream": {"observations": "vectors"}},
    "task id": {"id": "grid-layouts-small", "stream": {"task_id": "onehot"}},
    "rewards": {"rewards": RewardConfig("reset", clip=True)},
    "raw rewards": {"rewards": RewardConfig("none", scale=2.0)},
    "orthogonal": {"network": NetworkConfig((16,), linear="orthogonal"), "optim": AdamConfig()},
    "activation": {"network": NetworkConfig((16,), activation="maxmin")},
    "method": {"methods": (IsometryConfig(),), "optim": AdamConfig()},
    "bfloat16": {"amp": "bf16"},
    "environments on the host": {"id": "cartpole-jumps"},
    "a normalizer": {"id": "cartpole-drift", "stream": {"normalizer": "keep"}},
    "MinAtar, games that end": {"id": "minatar", "stream": {"games": ("Asterix", "SpaceInvaders")}},
    "MinAtar, as vectors": {"id": "minatar-paper", "stream": {"observations": "vectors"}},
    "control": {"id": "cartpole-rotations", "stream": {"engine": "control"}},
    "control, repeated and drifting": {"id": "mountaincar-drift", "stream": {"engine": "control"}},
    "control, on its second visit": {"id": "acrobot-jumps", "stream": {"engine": "control", "tasks": (0, 1)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_captured(agent, kind, tmp_path, captured):
    compare(agent, small(agent, tmp_path, **KINDS[kind]), tmp_path, captured, least=40)


@pytest.mark.parametrize("flags", [{"shared_torso": True}, {"num_steps": 8, "epochs": 1}])
def test_forms_of_ppo_are_captured(flags, tmp_path, captured):
    compare("ppo", small("ppo", tmp_path, **flags), tmp_path, captured, least=60)


FORMS_OF_DQN = [{"dueling": True, "double": False}, {"n_step": 3, "tau": 0.1}, {"memory": "disk"}]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FORMS_OF_DQN, ids=str)
def test_forms_of_dqn_are_captured(flags, tmp_path, captured):
    compare("dqn", small("dqn", tmp_path, **flags), tmp_path, captured, least=60)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_a_killed_run_goes_on_with_graphs(agent, tmp_path, captured, monkeypatch):
    args = small(agent, tmp_path, checkpoint_every=128)
    AGENTS[agent].main(dataclasses.replace(args, runs_dir=tmp_path / "whole"))
    die(AGENTS[agent], args, 228, monkeypatch)
    AGENTS[agent].main(args)
    whole = weights(agent, dataclasses.replace(args, runs_dir=tmp_path / "whole"))
    for name, weight in weights(agent, args).items():
        assert torch.equal(weight, whole[name]), name


@st.composite
def runs(draw):
    """An agent, and flags of a run of it."""
    agent = draw(st.sampled_from(sorted(AGENTS)))
    of_stream = [
        ("grid-layouts-small", {}),
        ("grid-goals-small", {}),
        ("cartpole-rotations", {"engine": "control"}),
        ("MiniGrid-DoorKey-5x5-v0", {"observations": "vectors"}),
        ("mountaincar-drift", {"engine": "control"}),
    ]
    id, stream = draw(st.sampled_from(of_stream))
    optim = draw(st.sampled_from([AdamConfig(), AdamOConfig(iso=1.0, iso_every=draw(st.integers(1, 4)))]))
    flags = {
        "total_steps": 64 * 8, "id": id, "stream": stream, "optim": optim, "seed": draw(st.integers(0, 99)),
        "period": None if "-v" in id else draw(st.integers(2, 9)) * 32,
        "num_envs": draw(st.sampled_from([1, 2, 8])),
        "gamma": draw(st.sampled_from([0.0, 0.9])),
        "rewards": RewardConfig(draw(st.sampled_from(["none", "keep", "reset"]))),
        "network": NetworkConfig(draw(st.sampled_from([(8,), (8, 4)]))),
    }  # fmt: skip
    return agent, flags


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=runs())
def test_any_run_is_captured(run, tmp_path_factory, captured):
    agent, flags = run
    folder = tmp_path_factory.mktemp("run")
    captured.replays = 0
    compare(agent, small(agent, folder, **flags), folder, captured, least=20)


# Faults that are planted, and found


def replaces_a_state(monkeypatch):
    """A state that is replaced by another tensor instead of changed in place."""

    def observe(self, rewards, done, observe=RewardTransform.observe):
        self.returns = self.returns.clone()
        return observe(self, rewards + 1, done)

    monkeypatch.setattr(RewardTransform, "observe", observe)


def counts_in_python(monkeypatch):
    """A number that a graph would keep as it was when it was recorded."""

    def observe(self, rewards, done, observe=RewardTransform.observe):
        self.seen = getattr(self, "seen", 0) + 1
        return observe(self, rewards, done) + self.seen

    monkeypatch.setattr(RewardTransform, "observe", observe)


def keeps_the_rate(monkeypatch):
    """Steps with another learning rate that are taken for the same."""
    monkeypatch.setattr(Options, "variant", lambda self: 0)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_an_option_that_changes_is_followed(agent, tmp_path, captured, monkeypatch):
    """As a schedule of one's own changes the learning rate."""
    between_steps = Methods.between_steps

    def changed(self, batch):
        between_steps(self, batch)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + self.steps // 8)

    monkeypatch.setattr(Methods, "between_steps", changed)
    compare(agent, small(agent, tmp_path, optim=AdamConfig()), tmp_path, captured, least=30)
    captured.replays = 0
    keeps_the_rate(monkeypatch)
    with pytest.raises(AssertionError, match=r"weight|bias"):
        compare(agent, small(agent, tmp_path, optim=AdamConfig(), note="kept"), tmp_path, captured, least=0)


def pulls_never(monkeypatch):
    """Steps with and without a pull that are taken for the same."""
    monkeypatch.setattr(AdamO, "variant", lambda self: ())


@pytest.mark.parametrize("plant", [replaces_a_state, counts_in_python, pulls_never])
def test_what_a_graph_cannot_know_gives_other_weights(plant, tmp_path, captured, monkeypatch):
    plant(monkeypatch)
    args = small("ppo", tmp_path, optim=AdamOConfig(iso=0.1, iso_every=3))
    with pytest.raises(AssertionError):
        compare("ppo", args, tmp_path, captured, least=0)


NATIVE = {
    **{
        game: {"id": "minatar", "stream": {"games": (game,)}}
        for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
    "MiniGrid": {"id": "grid-layouts"},
    "classic control": {"id": "cartpole-rotations", "stream": {"engine": "control"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NATIVE)
def test_nothing_is_compiled_that_the_compiler_refuses_for_a_gpu(kind, tmp_path, monkeypatch):
    """Triton cannot take a flag, one bit, as a number of eight."""
    compiler, seen = torch.compile, []

    def looked_at(graph, inputs):
        for node in graph.graph.nodes:
            kinds = [arg for arg in node.args if isinstance(arg, torch.dtype)]
            given = node.args[0].meta.get("example_value") if node.target == "view" and kinds else None
            seen.append(node.name)
            assert given is None or given.dtype != torch.bool
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, backend=looked_at))
    args = small("ppo", tmp_path, compile=True, **NATIVE[kind])
    ppo.main(dataclasses.replace(args, total_steps=64))
    assert seen


def test_what_cannot_be_compiled_is_named_with_the_remedy(monkeypatch):
    def refuses(graph, inputs):
        raise ValueError("an unknown kernel")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, backend=refuses))
    call = Capture(torch.device("cpu"), compile=True).compiled(ppo.gae)
    with pytest.raises(
        CompileError, match=r"gae cannot be compiled: ValueError: an unknown kernel\n.*--compile"
    ):
        call(*torch.ones(4, 2, 3).unbind(), torch.ones(3), 0.9, 0.9)


def reads(tensor):
    return tensor * tensor.sum().item()


def branches(tensor):
    return tensor + 1 if (tensor > 0).any() else tensor


def selects(tensor):
    return tensor[tensor > 0]


def moves(tensor):
    return torch.as_tensor(tensor.numpy() + 1)


@pytest.mark.parametrize("function", [reads, branches, selects, moves])
def test_what_waits_for_the_device_is_refused(function):
    call = RecordedCapture(torch.device("cpu"))(function)
    for _ in range(WARM_UP):
        call(torch.ones(3))
    message = rf"{function.__name__} cannot be captured, .*; --no-graphs runs it"
    with pytest.raises(CaptureError, match=message):
        call(torch.ones(3))


def test_other_objects_are_refused():
    call = RecordedCapture(torch.device("cpu"))(lambda tensor, factor: tensor * factor)
    for _ in range(WARM_UP + 2):
        assert call(torch.ones(2), 2.0).tolist() == [2.0, 2.0]
    with pytest.raises(CaptureError, match="captured with another float than it is called with"):
        call(torch.ones(2), 3.0)


def test_arguments_of_other_shapes_have_their_own_graph():
    call = RecordedCapture(torch.device("cpu"))(lambda tensor: tensor + 1)
    for _ in range(WARM_UP + 2):
        assert call(torch.zeros(2)).shape == (2,)
        assert call(torch.zeros(1)).shape == (1,)


def test_a_field_that_may_be_missing_has_graphs_of_its_own():
    made = []

    def add(step):
        made.append(step)
        return step[0] if step[1] is None else step[0] + step[1]

    call = RecordedCapture(torch.device("cpu"))(add)
    for number in range(WARM_UP + 3):
        assert call((torch.tensor([number]), None)).item() == number
        assert call((torch.tensor([number]), torch.tensor([0.5]))).item() == number + 0.5
    assert len(made) == 2 * (WARM_UP + 1)


def test_what_shall_not_be_captured_stays_as_it_is():
    assert RecordedCapture(torch.device("cpu"))(reads, when=False) is reads


def test_few_graphs_are_kept():
    class Task:
        number = 0

        def variant(self):
            return self.number

        def count_replay(self):
            self.replays += 1

    task, result = Task(), torch.zeros(())
    task.replays = 0
    call = RecordedCapture(torch.device("cpu"))(lambda: result.fill_(task.number), task)
    for task.number in [0] * (WARM_UP + 2) + [*range(1, 8)] + [0] * (WARM_UP + 3):
        assert call() == task.number
    assert isinstance(call, Captured)
    assert len(call.calls) == capture.KEPT
    assert task.replays == 1 + 2


def test_an_optimizer_that_may_count_on_the_host_is_refused():
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match=r"steps of Adam cannot be captured .* --no-graphs"):
        RecordedCapture(torch.device("cpu"))(lambda: None, optimizer)


def test_nothing_is_captured_on_a_cpu():
    assert Capture(torch.device("cpu"))(reads) is reads
