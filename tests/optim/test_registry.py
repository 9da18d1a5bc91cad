"""Every method of the registry in runs of both agents: it acts, and kills and graphs change no bit."""

import dataclasses
import itertools
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import Stream, StreamConfig
from neoteny.optim import METHODS, AdamConfig, AdamOConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from neoteny.scripts.fault_processes import poison_steps
from tests.events import scalars
from tests.killed import die
from tests.learners import Trained
from tests.recorded_graph import RecordedCapture

AGENTS = {"ppo": ppo, "dqn": dqn}
SIZES = {
    "ppo": {"num_steps": 16, "epochs": 2, "minibatches": 2},
    "dqn": {
        "log_every": 64, "train_every": 16, "gradient_steps": 2, "batch_size": 16, "learning_starts": 64,
        "buffer_size": 200, "target_every": 3, "eps_steps": 100,
    },
}  # fmt: skip
ENGINES = {
    "single": {"id": "cartpole-rotations"},
    "control": {"id": "cartpole-gravity", "engine": "control"},
    "grid": {"id": "grid-layouts-small"},
    "minatar": {"id": "minatar", "games": ("Breakout", "Freeway", "Asterix")},
}
"""A stream of each engine but Atari's, which is slow."""
FLAGS = {
    "redo": {"every": 4, "tau": 0.8},
    "regrama": {"every": 4, "tau": 0.8},
    "snr": {"every": 2, "longest": 1},
    "continual_backprop": {"rate": 0.05, "maturity": 3, "every": 3},
    "cpr": {"every": 5, "rate": 0.5},
    "reset": {"every": 5, "layers": 2},
    "shrink_perturb_every": {"every": 5},
    "hare_tortoise": {"every": 5, "decay": 0.5},
    "injection": {"after": 9},
    "reorthogonalize": {"every": 5},
    "weight_clipping": {"kappa": 0.3},
    "nap": {"every": 3},
}
"""Flags with which methods act in short runs."""
NETWORKS = {"reorthogonalize": {"linear": "orthogonal"}, "nap": {"norm": "layer"}}
"""Networks that methods need."""


def arguments(agent, folder, name, id="cartpole-rotations", **stream):
    """A run with three switches."""
    return AGENTS[agent].Args(
        stream=StreamConfig(id, period=72, audit="off", **stream), num_envs=4, total_steps=256,
        network=NetworkConfig((8, 8), **NETWORKS.get(name, {})), optim=AdamConfig(), runs_dir=folder,
        checkpoint_every=64, probes=ProbeConfig(every=0), methods=(METHODS[name](**FLAGS.get(name, {})),),
        **SIZES[agent],
    )  # fmt: skip


def run(agent, args):
    """The summary's account of the method, the weights, and all tags without times."""
    did = AGENTS[agent].main(args)["methods"]
    folder = run_folder(agent, args)
    tags = {tag: v for tag, v in scalars(folder).items() if not tag.startswith(("time/", "charts/SPS"))}
    return did, load_file(folder / "checkpoint" / "weights.safetensors"), tags


QUICK, *OTHERS = ENGINES


@pytest.mark.parametrize("engine", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize("name", METHODS)
def test_both_agents_run_with_it(name, engine, tmp_path):
    for agent in AGENTS:
        did, weights, tags = run(agent, arguments(agent, tmp_path, name, **ENGINES[engine]))
        assert did[name]["acted"]
        assert all(weight.isfinite().all() for weight in weights.values())
        if changes := did[name].get("changes"):
            assert len(tags[f"methods/{name}/moved"]) > 0
            assert tags[f"methods/{name}/changes"] == [(256, changes)]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_not_finite_ends_with_code_70(name, tmp_path, monkeypatch, capsys):
    """Also if the method acts between the first NaN and the end of the update.

    With AdamO the weights are finite then, since it skips the step, but what the method has seen is not.
    """
    # Imported here, since it registers streams, which tests of shipped streams would take for theirs.
    from neoteny.scripts.fault_cases import NEED_ADAM

    optimizers = (AdamConfig(),) if name in NEED_ADAM else (AdamConfig(), AdamOConfig())
    for agent, optim, what in itertools.product(AGENTS, optimizers, ("reward", "observation")):
        args = dataclasses.replace(arguments(agent, tmp_path / what, name), optim=optim)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "step_tensors", Stream.step_tensors)  # restored afterwards
            poison_steps(what, SimpleNamespace(value=130))
            with pytest.raises(SystemExit) as exit:
                AGENTS[agent].main(args)
        assert exit.value.code == 70
        assert "error: not finite at step" in capsys.readouterr().err


SLOW = pytest.param("dqn", "grid-layouts-small", marks=pytest.mark.slow)


@pytest.mark.parametrize(("agent", "id"), [("ppo", "cartpole-rotations"), SLOW])
@pytest.mark.parametrize("name", METHODS)
def test_kills_and_graphs_change_no_bit(name, agent, id, tmp_path, monkeypatch):
    did, weights, tags = run(agent, arguments(agent, tmp_path / "plain", name, id))
    monkeypatch.setattr(AGENTS[agent], "Capture", RecordedCapture)
    args = arguments(agent, tmp_path / "captured", name, id)
    for step in (100, 200):
        die(AGENTS[agent], args, step, monkeypatch)
    did_then, weights_then, tags_then = run(agent, args)
    assert did_then == did
    assert tags_then == tags
    assert weights_then.keys() == weights.keys()
    for tensor, value in weights.items():
        assert torch.equal(value, weights_then[tensor]), tensor


def test_a_method_that_did_nothing_is_named(tmp_path, capsys):
    args = arguments("ppo", tmp_path, "reset")
    summary = ppo.main(dataclasses.replace(args, methods=(METHODS["reset"](every=1_000),)))
    assert summary["methods"] == {"reset": {"acted": False, "changes": 0}}
    assert "warning: in the whole run these methods changed nothing: reset" in capsys.readouterr().err


@pytest.mark.slow
def test_any_two_methods_train_together_or_contradict_each_other():
    stream = gym.vector.VectorEnv()
    stream.single_observation_space = gym.spaces.Box(-1, 1, (7,))
    stream.single_action_space = gym.spaces.Discrete(3)
    for names in itertools.combinations(METHODS, 2):
        kinds = [METHODS[name] for name in names]
        configs = [kind(**FLAGS.get(kind.name, {})) for kind in kinds]
        layers = NETWORKS.get(names[0], {}) | NETWORKS.get(names[1], {})
        contradict = any(name in kind.conflicts for name in names for kind in kinds)
        try:
            trained = Trained("ppo", stream, configs, network=NetworkConfig((8, 8), **layers))
        except ValueError:
            refused = True
        else:
            refused = False
            for _ in range(5):
                trained.update(trained.batch())  # which checks the network after each event
            trained.methods.end_update(switched_at=1)
            assert all(parameter.isfinite().all() for parameter in trained.network.parameters()), names
        # Orthogonal layers, which come with reorthogonalize, are refused by several methods.
        assert refused == contradict or "reorthogonalize" in names, names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("agent", "engine"), [("ppo", "minatar"), ("dqn", "control")])
@pytest.mark.parametrize("name", METHODS)
def test_kills_and_graphs_change_no_bit_on_a_gpu(name, agent, engine, tmp_path, monkeypatch):
    """Also of a learning rate, a counter or weights that a method changes between steps."""

    def args(folder, **changes):
        made = arguments(agent, tmp_path / folder, name, **ENGINES[engine])
        return dataclasses.replace(made, device="cuda", deterministic=True, **changes)

    did, weights, _ = run(agent, args("plain", graphs=False))
    assert did[name]["acted"]
    for folder, steps in (("graphs", ()), ("killed", (100, 200))):
        for step in steps:
            die(AGENTS[agent], args(folder), step, monkeypatch)
        did_then, weights_then, _ = run(agent, args(folder))
        assert did_then == did
        different = [tensor for tensor in weights if not torch.equal(weights[tensor], weights_then[tensor])]
        assert not different
