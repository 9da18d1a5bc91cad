"""On a GPU: runs with CUDA graphs do what runs without them do, and deterministic runs repeat themselves."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo, supervised
from neoteny.agents.networks import NetworkConfig
from neoteny.configs.cli import cli
from neoteny.envs import StreamConfig
from neoteny.optim import AdamConfig, AdamOConfig, MuonConfig
from neoteny.optim.spectrum import IsometryConfig
from neoteny.runners.capture import WARM_UP, Capture, CaptureError
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.killed import die

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

AGENTS = {"ppo": ppo, "dqn": dqn}
SIZES = {
    "ppo": {"num_steps": 16, "epochs": 2, "minibatches": 2},
    "dqn": {
        "log_every": 128, "train_every": 32, "gradient_steps": 2, "batch_size": 32, "learning_starts": 128,
        "buffer_size": 1000, "target_every": 3, "eps_steps": 1000,
    },
}  # fmt: skip
CASES = {
    "grid": {"id": "grid-layouts", "observations": "vectors"},
    "images": {"id": "grid-layouts"},
    "environments on the host": {"id": "cartpole-jumps", "engine": "single"},
    "classic control": {"id": "cartpole-rotations"},
    "minatar": {"id": "minatar", "games": ("Breakout", "Seaquest", "SpaceInvaders")},
}


@pytest.fixture(autouse=True)
def undo():
    """Leave PyTorch's global switches as they were."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def small(agent, folder, case="grid", optim=None, **flags):
    stream = StreamConfig(period=128 * 5, **CASES[case])
    defaults = dict(
        stream=stream, num_envs=8, total_steps=128 * 12, network=NetworkConfig((16,)), device="cuda",
        probes=ProbeConfig(every=3, pictures=False), runs_dir=folder,
        optim=optim or AdamOConfig(iso=0.1, iso_every=3), **SIZES[agent],
    )  # fmt: skip
    return AGENTS[agent].Args(**{**defaults, **flags})


def weights(agent, args):
    return load_file(run_folder(agent, args) / "checkpoint" / "weights.safetensors")


def train(agent, args, folder, **changes):
    args = dataclasses.replace(args, runs_dir=folder, **changes)
    AGENTS[agent].main(args)
    return weights(agent, args)


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("case", CASES)
def test_graphs_change_no_bit(agent, case, tmp_path):
    args = small(agent, tmp_path, case, deterministic=True)
    plain = train(agent, args, tmp_path / "plain", graphs=False)
    assert_same(plain, train(agent, args, tmp_path / "graphs"))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("optim", [AdamConfig(), MuonConfig()], ids=lambda optim: optim.name)
def test_every_optimizer_is_captured(agent, optim, tmp_path):
    args = small(agent, tmp_path, optim=optim, deterministic=True)
    plain = train(agent, args, tmp_path / "plain", graphs=False)
    assert_same(plain, train(agent, args, tmp_path / "graphs"))


FORMS = {
    "ppo": [
        {"anneal_lr": True}, {"amp": "bf16"}, {"shared_torso": True},
        {"methods": (IsometryConfig(),), "optim": AdamConfig()},
        {"network": NetworkConfig((16,), linear="orthogonal"), "optim": AdamConfig()},
    ],
    "dqn": [{"memory": "disk"}, {"n_step": 3, "dueling": True}, {"amp": "bf16"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("agent", "flags"), [(agent, flags) for agent in FORMS for flags in FORMS[agent]], ids=str
)
def test_forms_are_captured(agent, flags, tmp_path):
    args = small(agent, tmp_path, deterministic=True, **flags)
    plain = train(agent, args, tmp_path / "plain", graphs=False)
    assert_same(plain, train(agent, args, tmp_path / "graphs"))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("every", [0, 3])
def test_a_deterministic_run_that_is_killed_goes_on_as_if_it_had_not_been(
    agent, graphs, every, tmp_path, monkeypatch
):
    probes = ProbeConfig(every=every, pictures=False)
    args = small(agent, tmp_path, deterministic=True, checkpoint_every=256, graphs=graphs, probes=probes)
    whole = train(agent, args, tmp_path / "whole")
    die(AGENTS[agent], args, 1024, monkeypatch)
    assert_same(whole, train(agent, args, tmp_path))


SUPERVISED = (
    "digits-random-labels --device cuda --deterministic --stream.samples 64 --stream.epochs 4 --num-tasks 3 "
    "--batch-size 16 --network.hidden 16 16 --checkpoint-every 64 --probes.every 2 --probes.no-pictures"
)


@pytest.mark.parametrize(
    "more", ["optim:adamo --optim.iso 0.1 --optim.iso-every 3", "--methods.redo.every 4"]
)
def test_kills_and_graphs_change_no_bit_of_a_supervised_learner(more, tmp_path, monkeypatch):
    def args(folder, *words):
        flags = (*SUPERVISED.split(), *words, "--runs-dir", str(tmp_path / folder), *more.split())
        return cli(supervised.Args, supervised.PRESETS, flags)

    def train(args):
        supervised.main(args)
        return load_file(run_folder("supervised", args) / "checkpoint" / "weights.safetensors")

    plain = train(args("plain", "--no-graphs"))
    assert_same(plain, train(args("graphs")))
    die(supervised, args("killed"), 64 * 7, monkeypatch)
    assert_same(plain, train(args("killed")))


def test_seeds_in_one_process_do_on_a_gpu_what_each_does_alone(tmp_path):
    def train(folder, *words):
        flags = (*SUPERVISED.split(), *words, "--runs-dir", str(tmp_path / folder))
        args = cli(supervised.Args, supervised.PRESETS, flags)
        supervised.main(args)
        return args

    args = train("together", "--seeds", "1", "2")
    for seed in (1, 2):
        alone = train("alone", "--seed", str(seed))
        one = load_file(run_folder("supervised", alone) / "checkpoint" / "weights.safetensors")
        seed_of = dataclasses.replace(args, seed=seed, seeds=())
        many = load_file(run_folder("supervised", seed_of) / "checkpoint" / "weights.safetensors")
        for name, value in one.items():
            torch.testing.assert_close(many[name], value, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:.*Online softmax is disabled")
@pytest.mark.parametrize("agent", AGENTS)
def test_compiled_runs_learn_nearly_the_same(agent, tmp_path):
    args = small(agent, tmp_path, total_steps=128 * 4, deterministic=True)
    plain = train(agent, args, tmp_path / "plain", graphs=False)
    compiled = train(agent, args, tmp_path / "compiled", compile=True)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=0, atol=0.02)


def test_what_waits_for_the_gpu_is_refused():
    def reads(tensor):
        return tensor * tensor.sum().item()

    call = Capture(torch.device("cuda"))(reads)
    for _ in range(WARM_UP):
        call(torch.ones(3, device="cuda"))
    with pytest.raises(CaptureError, match=r"reads cannot be captured, .*; --no-graphs runs it"):
        call(torch.ones(3, device="cuda"))
    torch.cuda.synchronize()
    assert torch.rand(3, device="cuda").sum().item() > 0


def check_random_numbers(replays):
    """A captured function draws the numbers that an ordinary one would."""
    call, expected = Capture(torch.device("cuda"))(lambda: torch.rand(4, device="cuda")), []
    torch.manual_seed(3)
    for _ in range(WARM_UP + replays):
        expected.append(torch.rand(4, device="cuda"))
    torch.manual_seed(3)
    for numbers in expected:
        assert torch.equal(call(), numbers)


def test_random_numbers_go_on_between_replays():
    check_random_numbers(replays=3)


def test_a_replay_waits_until_the_recording_has_reset_the_random_generator(monkeypatch):
    begin = torch.cuda.CUDAGraph.capture_begin

    def late(self, *args, **kwargs):
        torch.cuda._sleep(100_000_000)  # on the stream that is recorded
        begin(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", late)
    check_random_numbers(replays=1)
