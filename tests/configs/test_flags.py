"""Every flag of every agent either acts, as a tiny run shows, or is refused."""

import functools
import json
import shutil
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import pytest
import torch

from neoteny.agents import dqn, ppo
from neoteny.configs.cli import cli
from neoteny.configs.flags import OPTIMIZERS, flags
from neoteny.runners import identity
from tests.events import scalars
from tests.simple_envs import Cue

gym.register("Planes-v0", Cue)

AGENTS: dict[str, Any] = {"ppo": ppo, "dqn": dqn}

# A run of 128 steps in three tasks, as a preset, so that none of these flags is typed.
SHARED = {
    "total_steps": 128, "num_envs": 2, "checkpoint_every": 0, "network": {"hidden": (8,)},
    "probes": {"every": 0, "plasticity_steps": 3}, "stream": {"period": 48, "audit": "off"},
}  # fmt: skip
TINY = {
    "ppo": {**SHARED, "num_steps": 16, "epochs": 2, "minibatches": 2},
    "dqn": {
        **SHARED, "log_every": 32, "train_every": 4, "gradient_steps": 1, "batch_size": 8,
        "learning_starts": 16, "buffer_size": 128, "target_every": 4, "eps_steps": 64,
    },
}  # fmt: skip


class Acts(NamedTuple):
    """A flag that changes what a run leaves: ``aspect`` differs between ``base`` and ``base`` with it."""

    typed: str
    base: str = ""
    aspect: str = "weights"


GRID = "--stream.id MiniGrid-Empty-5x5-v0 --stream.period None"
DOORKEY = "--stream.id MiniGrid-DoorKey-5x5-v0 --stream.period None"  # whose layouts differ
ALIENS = "--stream.id minatar --stream.games SpaceInvaders Asterix"  # of which rules differ in the number
PROBED = "--probes.every 2 --probes.no-pictures"
PLASTIC = f"{PROBED} --probes.full-every 0 --probes.plasticity-every 3"
FOR_BOTH = {
    "total_steps": Acts("--total-steps 64"),
    "num_envs": Acts("--num-envs 4"),
    "lr": Acts("--lr 0.01"),
    "gamma": Acts("--gamma 0.5"),
    "max_grad_norm": Acts("--max-grad-norm 0.01"),
    "rewards.normalizer": Acts("--rewards.normalizer none"),
    "rewards.clip": Acts("--rewards.clip", "--rewards.normalizer none --stream.id mountaincar-jumps"),  # -8
    "rewards.scale": Acts("--rewards.scale 2", "--rewards.normalizer none"),
    "seed": Acts("--seed 2"),
    "amp": Acts("--amp bf16"),
    "note": Acts("--note x", aspect="folder"),
    "runs_dir": Acts("--runs-dir elsewhere", aspect="folder"),
    "threads": Acts("--threads 2", aspect="meta"),
    "checkpoint_every": Acts("--checkpoint-every 64", aspect="files"),
    "evaluate_at_switch": Acts("--evaluate-at-switch 2", "--stream.tasks 0 1", "tags"),
    "video_every": Acts("--video-every 100", aspect="files"),
    "probes.every": Acts("--probes.every 4 --probes.no-pictures", aspect="tags"),
    "probes.full_every": Acts("--probes.full-every 0", PROBED, "points"),
    "probes.samples": Acts("--probes.samples 8", PROBED, "points"),
    "probes.ntk_samples": Acts("--probes.ntk-samples 4", PROBED, "points"),
    "probes.plasticity_every": Acts("--probes.plasticity-every 2", PROBED, "tags"),
    "probes.plasticity_samples": Acts("--probes.plasticity-samples 8", PLASTIC, "points"),
    "probes.plasticity_steps": Acts("--probes.plasticity-steps 5", PLASTIC, "points"),
    "probes.pictures": Acts("--probes.no-pictures", "--probes.every 4", "files"),
    "stream.id": Acts("--stream.id cartpole-gravity"),
    "stream.period": Acts("--stream.period 64"),
    "stream.tasks": Acts("--stream.tasks 3 4"),
    "stream.order": Acts("--stream.order random", "--stream.tasks 0 1 2 3 4"),
    "stream.jitter": Acts("--stream.jitter 0.9"),
    "stream.cycles": Acts("--stream.cycles 2", "--stream.tasks 0 1"),
    "stream.drift_fraction": Acts("--stream.drift-fraction 0.5", "--stream.id cartpole-gravity"),
    "stream.audit": Acts("--stream.audit on", aspect="tags"),
    "stream.normalizer": Acts("--stream.normalizer keep"),
    "stream.task_id": Acts("--stream.task-id onehot", "--stream.tasks 0 1"),
    "stream.wrap": Acts("--stream.wrap neoteny.envs.wrappers:permute_actions"),
    "stream.observations": Acts("--stream.observations vectors", GRID),
    "stream.channels": Acts("--stream.channels first", "--stream.id Planes-v0 --stream.period None"),
    "stream.games": Acts("--stream.games Pong", "--stream.id atari --stream.games Breakout"),
    "stream.engine": Acts("--stream.engine single", DOORKEY),
    "stream.grid.layouts": Acts("--stream.grid.layouts 1", DOORKEY),
    "stream.rules": Acts(
        "--stream.rules gymnax-0.0.9", "--stream.id minatar --stream.games SpaceInvaders Asterix"
    ),
    "network.hidden": Acts("--network.hidden 4 4"),
    "network.activation": Acts("--network.activation tanh"),
    "network.linear": Acts("--network.linear orthogonal", "optim:adam"),
    "network.norm": Acts("--network.norm layer"),
    "optim:adam betas": Acts("--optim.betas 0.5 0.9", "optim:adam"),
    "optim:adam eps": Acts("--optim.eps 1e-3", "optim:adam"),
    "optim:adamw betas": Acts("--optim.betas 0.5 0.9", "optim:adamw"),
    "optim:adamw eps": Acts("--optim.eps 1e-3", "optim:adamw"),
    "optim:adamw weight_decay": Acts("--optim.weight-decay 0.5", "optim:adamw"),
    "optim:adamo betas": Acts("--optim.betas 0.5 0.9"),
    "optim:adamo eps": Acts("--optim.eps 1e-3"),
    "optim:adamo iso": Acts("--optim.iso 1"),
    "optim:adamo iso_scale": Acts("--optim.iso-scale 1"),
    "optim:adamo iso_every": Acts("--optim.iso-every 3"),
    "optim:muon betas": Acts("--optim.betas 0.5 0.9", "optim:muon"),
    "optim:muon eps": Acts("--optim.eps 1e-3", "optim:muon"),
    "optim:muon momentum": Acts("--optim.momentum 0.5", "optim:muon"),
    "optim:muon ns_steps": Acts("--optim.ns-steps 2", "optim:muon"),
    "optim:muon weight_decay": Acts("--optim.weight-decay 0.5", "optim:muon"),
    "optim:muono betas": Acts("--optim.betas 0.5 0.9", "optim:muono"),
    "optim:muono eps": Acts("--optim.eps 1e-3", "optim:muono"),
    "optim:muono momentum": Acts("--optim.momentum 0.5", "optim:muono"),
    "optim:muono ns_steps": Acts("--optim.ns-steps 2", "optim:muono"),
    "optim:muono weight_decay": Acts("--optim.weight-decay 0.5", "optim:muono"),
    "optim:muono iso": Acts("--optim.iso 1", "optim:muono --optim.iso-every 2"),
    "optim:muono iso_scale": Acts("--optim.iso-scale aspect", "optim:muono --optim.iso-every 2"),
    "optim:muono iso_every": Acts("--optim.iso-every 3", "optim:muono --optim.iso 1"),
    "optim:upgd betas": Acts("--optim.betas 0.5 0.9", "optim:upgd"),
    "optim:upgd eps": Acts("--optim.eps 1e-3", "optim:upgd"),
    "optim:upgd beta_utility": Acts("--optim.beta-utility 0.5", "optim:upgd"),
    "optim:upgd sigma": Acts("--optim.sigma 0.1", "optim:upgd"),
    "optim:upgd weight_decay": Acts("--optim.weight-decay 0.5", "optim:upgd"),
    "optim:upgd adaptive": Acts("--optim.no-adaptive", "optim:upgd"),
    "optim:trac betas": Acts("--optim.betas 0.5 0.9", "optim:trac"),
    "optim:trac eps": Acts("--optim.eps 1e-3", "optim:trac"),
}
TABLE = {
    "ppo": FOR_BOTH | {
        "num_steps": Acts("--num-steps 32"),
        "epochs": Acts("--epochs 3"),
        "minibatches": Acts("--minibatches 4"),
        "anneal_lr": Acts("--anneal-lr"),
        "gae_lambda": Acts("--gae-lambda 0.5"),
        "clip": Acts("--clip 1e-4"),
        "ent_coef": Acts("--ent-coef 0.5"),
        "vf_coef": Acts("--vf-coef 0.1"),
        "shared_torso": Acts("--shared-torso"),
    },
    "dqn": FOR_BOTH | {
        "log_every": Acts("--log-every 64", aspect="points"),
        "train_every": Acts("--train-every 8"),
        "gradient_steps": Acts("--gradient-steps 2"),
        "batch_size": Acts("--batch-size 4"),
        "learning_starts": Acts("--learning-starts 32"),
        "buffer_size": Acts("--buffer-size 32"),
        "memory": Acts("--memory disk", "--checkpoint-every 64", "sizes"),
        "n_step": Acts("--n-step 3"),
        "double": Acts("--no-double", "--total-steps 512"),  # two networks choose alike at first
        "dueling": Acts("--dueling"),
        "target_every": Acts("--target-every 2"),
        "tau": Acts("--tau 0.5"),
        "eps_start": Acts("--eps-start 0.2"),
        "eps_end": Acts("--eps-end 0.9"),
        "eps_steps": Acts("--eps-steps 32"),
        "eps_restart": Acts("--eps-restart"),
    },
}  # fmt: skip

APART = {
    "graphs", "matmul_precision", "deterministic",  # for GPUs: tests/agents/test_on_gpu.py
    "device", "compile", "overwrite", "allow_device_change", "allow_code_change",  # a test each, below
    "stream.single.workers", "stream.single.replay", "stream.atari.replay",  # below, and for resumed streams
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Runs in a folder of their own, with PyTorch's threads as they were."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def parse(agent: str, line: str) -> Any:
    return cli(AGENTS[agent].Args, {"tiny": TINY[agent]}, ["tiny", *line.split()])


@functools.cache
def left(agent: str, line: str) -> dict[str, Any]:
    """What a tiny run with these flags leaves, by aspect."""
    AGENTS[agent].main(parse(agent, f"{line} --overwrite"))
    (summary,) = Path().glob("**/summary.json")
    folder = summary.parent
    meta = json.loads((folder / "meta.json").read_text())
    clock = ("time/", "charts/SPS")
    points = {tag: values for tag, values in scalars(folder).items() if not tag.startswith(clock)}
    files = [path for path in folder.rglob("*.*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    aspects = {
        "weights": (folder / "checkpoint" / "weights.safetensors").read_bytes(),
        "points": points,
        "tags": set(points),
        "files": {name for name in sizes if "events" not in name},
        "sizes": {name: size for name, size in sizes.items() if name.endswith("tensors.safetensors")},
        "folder": str(folder),
        "meta": {name: meta[name] for name in ("threads", "device")},
    }
    shutil.rmtree(folder.parents[3])
    return aspects


@pytest.mark.parametrize("agent", AGENTS)
def test_the_tables_have_every_flag(agent):
    default = AGENTS[agent].Args()
    names = {name for name in flags(default) if not name.startswith("optim.")}
    for name, kind in OPTIMIZERS.items():
        names |= {f"optim:{name} {field}" for field in flags(kind())}
    assert names == {*TABLE[agent], *APART}


# Agents pass on the configs of streams and optimizers whole: of each, one more flag shows that DQN does too.
CASES = [
    (agent, name)
    for agent in TABLE
    for name in TABLE[agent]
    if agent == "ppo" or not name.startswith(("stream.", "optim:")) or name in ("stream.id", "optim:adam eps")
]


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "name"), CASES)
def test_every_flag_acts(agent, name, capsys):
    typed, base, aspect = TABLE[agent][name]
    before, now = left(agent, base), left(agent, f"{base} {typed}")
    assert before[aspect] != now[aspect]
    if aspect != "weights":  # what only watches, or says where, changes nothing that is learned
        assert before["weights"] == now["weights"]


@pytest.mark.parametrize("agent", AGENTS)
def test_every_optimizer_is_another(agent):
    weights = {left(agent, f"optim:{name}")["weights"] for name in OPTIMIZERS}
    assert len(weights) == len(OPTIMIZERS) == 7
    assert left(agent, "")["weights"] == left(agent, "optim:adamo")["weights"]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_device_is_used_or_refused(agent, capsys):
    if torch.cuda.is_available():
        assert left(agent, "--device cuda")["meta"]["device"] == "cuda"
        return
    with pytest.raises(SystemExit) as exit:
        parse(agent, "--device cuda")
    assert exit.value.code == 2
    assert "--device cuda cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("agent", AGENTS)
def test_compile_compiles_what_acts_and_the_loss(agent, monkeypatch):
    compiled: list[str] = []

    def compile(function, **options):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    AGENTS[agent].main(parse(agent, "--note plain"))
    assert not compiled
    AGENTS[agent].main(parse(agent, "--compile"))
    assert {"act", "loss_of"} <= set(compiled)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("flag", ["--no-graphs", "--matmul-precision high", "--deterministic"])
def test_flags_for_gpus_are_refused_on_a_cpu(agent, flag, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(agent, flag)
    assert exit.value.code == 2
    assert "it is for GPUs, and --device is cpu" in capsys.readouterr().err


@pytest.mark.parametrize("agent", AGENTS)
def test_overwrite_replaces_a_finished_run(agent, capsys):
    AGENTS[agent].main(parse(agent, ""))
    with pytest.raises(SystemExit) as exit:
        AGENTS[agent].main(parse(agent, ""))
    assert exit.value.code == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    AGENTS[agent].main(parse(agent, "--overwrite"))


@pytest.mark.parametrize("agent", AGENTS)
def test_allow_device_change_lets_a_run_go_on_elsewhere(agent, monkeypatch, capsys):
    AGENTS[agent].main(parse(agent, "--checkpoint-every 64"))
    (summary,) = Path().glob("**/summary.json")
    summary.unlink()  # as if it had been stopped
    elsewhere = {**identity.machine("cpu"), "device": "tpu"}
    monkeypatch.setattr(identity, "machine", lambda device: elsewhere)
    with pytest.raises(SystemExit) as exit:
        AGENTS[agent].main(parse(agent, "--checkpoint-every 64"))
    assert exit.value.code == 2
    assert "--allow-device-change moves it" in capsys.readouterr().err
    AGENTS[agent].main(parse(agent, "--checkpoint-every 64 --allow-device-change"))
    assert "resumes at step 128" in capsys.readouterr().out


@pytest.mark.parametrize("agent", AGENTS)
def test_allow_code_change_lets_a_run_go_on_with_an_edited_agent(agent, tmp_path, monkeypatch, capsys):
    AGENTS[agent].main(parse(agent, "--checkpoint-every 64"))
    (summary,) = Path().glob("**/summary.json")
    summary.unlink()  # as if it had been stopped
    edited = tmp_path / f"{agent}.py"
    edited.write_text(Path(AGENTS[agent].__file__).read_text() + "# edited")
    monkeypatch.setattr(AGENTS[agent], "__file__", str(edited))
    with pytest.raises(SystemExit) as exit:
        AGENTS[agent].main(parse(agent, "--checkpoint-every 64"))
    assert exit.value.code == 2
    assert "--allow-code-change continues this one" in capsys.readouterr().err
    AGENTS[agent].main(parse(agent, "--checkpoint-every 64 --allow-code-change"))
    assert f"resumes at step 128, but not bit for bit: the code of {agent}.py" in capsys.readouterr().out


# Flags that do nothing beside the others of the line: each is refused.
NUMBERS = sorted(set(flags(ppo.Args().probes)) - {"every", "pictures"})
NOTHING = {
    "ppo": [
        ("--stream.tasks 0 1 --stream.cycles 2", "--total-steps 1e5"),
        ("", "--video-every 1000"),
        ("--stream.id CartPole-v1 --stream.period None", "--stream.audit off"),
        *(("--probes.every 0", f"--probes.{name.replace('_', '-')} 1") for name in NUMBERS),
        ("--probes.every 0", "--probes.no-pictures"),
        ("--probes.every 0", "--probes.pictures"),
        ("--probes.every 1 --probes.full-every 0", "--probes.ntk-samples 4"),
        ("--probes.every 1", "--probes.plasticity-samples=4"),
        ("--probes.every 1 --probes.plasticity-every 0", "--probes.plasticity_steps 4"),
        ("--optim.iso 0", "--optim.iso-every 5"),
        ("--optim.iso 0 optim:adamo", "--optim.iso_scale=2"),
        ("--epochs 1 --minibatches 1", "--clip 0.1"),
        ("--num-steps 1 --num-envs 32", "--gae-lambda 0.9"),
        ("--gamma 0", "--gae-lambda 0.9"),
    ],
    "dqn": [
        ("--stream.tasks 0 1 --stream.cycles 2", "--total-steps 1e5"),
        ("--total-steps 4096", "--video-every 5000"),
        ("--probes.every 0", "--probes.samples 1"),
        ("--optim.iso 0", "--optim.iso-every 5"),
        ("--stream.id CartPole-v1 --stream.period None", "--eps-restart"),
        ("--stream.period 128", "--eps-restart"),
        ("--eps-start 0.05", "--eps-restart"),
        ("--eps-start 0.05", "--eps-steps 100"),
        ("--target-every 1", "--no-double"),
        ("--gamma 0", "--double"),
        ("--gamma 0", "--target-every 3"),
        ("--gamma 0", "--tau 0.3"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("agent", "line", "typed"), [(agent, *case) for agent in NOTHING for case in NOTHING[agent]]
)
def test_a_flag_that_would_do_nothing_is_refused(agent, line, typed, capsys):
    parse(agent, line)
    with pytest.raises(SystemExit) as exit:
        parse(agent, f"{typed} {line}")
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith(f"error: {typed.replace('=', ' ').split()[0]} does nothing: ")
    assert output.count("\n") == 1


# What steps a stream is known once it is made.
OF_OTHER_ENGINES = [
    ("", "--stream.grid.layouts 8", "--stream.grid flags would be ignored"),
    ("", "--stream.atari.no-replay", "--stream.atari flags would be ignored"),
    (GRID, "--stream.single.workers 2", "--stream.single flags would be ignored"),
    (GRID, "--stream.single.no-replay", "--stream.single flags would be ignored"),
    (f"{GRID} --stream.engine single", "--stream.grid.layouts 8", "--stream.grid flags would be ignored"),
    ("", "--stream.engine grid", "--stream.engine grid cannot step"),
    (GRID, "--stream.engine atari", "--stream.engine atari cannot step"),
    ("", "--stream.channels last", "--stream.channels has no effect"),
    ("", "--stream.games Pong", "--stream.games needs --stream.id atari"),
    ("--stream.id CartPole-v1 --stream.period None", "--stream.tasks 0 1", "never switches"),
]


@pytest.mark.parametrize(("line", "typed", "message"), OF_OTHER_ENGINES)
def test_a_flag_of_another_engine_is_refused(line, typed, message, capsys):
    with pytest.raises(SystemExit) as exit:
        ppo.main(parse("ppo", f"{line} {typed}"))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_workers_are_processes_and_change_nothing(monkeypatch):
    started = []
    start = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", lambda self: (started.append(self), start(self)))
    here = left("ppo", "")
    assert not started
    assert left("ppo", "--stream.single.workers 2 --note workers")["weights"] == here["weights"]
    assert len(started) == 2


@pytest.mark.parametrize("agent", AGENTS)
def test_flags_of_a_preset_may_do_nothing(agent):
    args = cli(AGENTS[agent].Args, {"still": {"optim": {"iso": 0.0, "iso_every": 5}}}, ["still"])
    assert agent == "dqn" or not args.unused().keys() - {"graphs", "matmul_precision", "deterministic"}
    assert set(args.optim.unused()) == {"iso_every", "iso_scale"}


@pytest.mark.parametrize(
    ("agent", "flags"), [("ppo", "--num-envs 2 * --num-steps 16"), ("dqn", "--log-every 32")]
)
def test_a_run_of_less_than_an_update_is_refused(agent, flags, capsys):
    least = f"must make at least one update, of 32 steps ({flags}), not"
    for line, wanted in {
        "--total-steps 31": f"--total-steps {least} 31",
        "--stream.tasks 0 1 --stream.period 8 --stream.cycles 1": f"--stream.cycles 1 {least} 16",
    }.items():
        with pytest.raises(SystemExit) as exit:
            parse(agent, line)
        assert exit.value.code == 2
        assert capsys.readouterr().err == f"error: {wanted}\n"


CYCLE = "--stream.tasks 0 1 --stream.cycles 1"


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("line", "steps", "said"),
    [
        ("--total-steps 96", 96, False),
        ("--total-steps 100", 100, True),
        (CYCLE, 96, False),
        (f"{CYCLE} --stream.period 50", 96, True),  # args.json says what is run
    ],
)
def test_a_run_makes_whole_updates_and_says_so(agent, line, steps, said, capsys):
    AGENTS[agent].main(parse(agent, line))
    output = capsys.readouterr().out
    assert ("the run makes 96 steps instead of 100: whole updates of 32" in output) == said
    (summary,) = Path().glob("**/summary.json")
    assert json.loads(summary.read_text())["visits"][-1]["end"] == 96
    assert json.loads((summary.parent / "args.json").read_text())["total_steps"] == steps


@pytest.mark.parametrize(("envs", "steps", "minibatches"), [(1, 4, 4), (2, 2, 4), (1, 1, 1)])
def test_minibatches_of_one_are_refused(envs, steps, minibatches):
    with pytest.raises(ValueError, match=f"^--minibatches {minibatches}: the advantage of one"):
        ppo.Args(num_envs=envs, num_steps=steps, minibatches=minibatches)
    ppo.Args(num_envs=envs, num_steps=2 * steps, minibatches=minibatches)
