"""Every method of the registry in runs of both agents: it acts, and kills and graphs change no bit."""

import pytest
import torch
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.optim import METHODS, AdamConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import die
from tests.recorded_graph import RecordedCapture

AGENTS = {"ppo": ppo, "dqn": dqn}
SIZES = {
    "ppo": {"num_steps": 16, "epochs": 2, "minibatches": 2},
    "dqn": {
        "log_every": 64, "train_every": 16, "gradient_steps": 2, "batch_size": 16, "learning_starts": 64,
        "buffer_size": 200, "target_every": 3, "eps_steps": 100,
    },
}  # fmt: skip
FLAGS = {
    "weight_clipping": {"kappa": 0.3},
    "nap": {"every": 3},
    "reorthogonalize": {"every": 5},
}
"""Flags with which methods act in short runs."""
NETWORKS = {"reorthogonalize": {"linear": "orthogonal"}, "nap": {"norm": "layer"}}
"""Networks that methods need."""


def arguments(agent, folder, name, **flags):
    """A run with three switches."""
    network = NetworkConfig((8, 8), **NETWORKS.get(name, {}))
    return AGENTS[agent].Args(
        stream=StreamConfig("grid-layouts-small", period=72, audit="off"), num_envs=4, total_steps=256,
        network=network, optim=AdamConfig(), runs_dir=folder, checkpoint_every=64,
        probes=ProbeConfig(every=0), methods=(METHODS[name](**FLAGS.get(name, {})),), **SIZES[agent], **flags,
    )  # fmt: skip


def end(agent, args):
    folder = run_folder(agent, args)
    tags = {tag: v for tag, v in scalars(folder).items() if not tag.startswith(("time/", "charts/SPS"))}
    return load_file(folder / "checkpoint" / "weights.safetensors"), tags


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_goes_on_bit_for_bit(name, agent, tmp_path, monkeypatch):
    args = arguments(agent, tmp_path / "plain", name)
    AGENTS[agent].main(args)
    weights, tags = end(agent, args)
    of_method = [values for tag, values in tags.items() if tag.startswith(f"methods/{name}/")]
    assert all(len(values) >= 3 for values in of_method)
    assert of_method or name == "reorthogonalize"

    monkeypatch.setattr(AGENTS[agent], "Capture", RecordedCapture)
    args = arguments(agent, tmp_path / "captured", name)
    for step in (100, 200):
        die(AGENTS[agent], args, step, monkeypatch)
    AGENTS[agent].main(args)
    weights_then, tags_then = end(agent, args)
    assert tags_then == tags
    assert weights_then.keys() == weights.keys()
    for tensor, value in weights.items():
        assert torch.equal(value, weights_then[tensor]), tensor
