"""Which presets a stream takes that is given by its id: by what its observations are, never by its name."""

import gymnasium as gym
import numpy as np
import pytest

from neoteny.agents import dqn, ppo
from neoteny.configs.cli import cli, override, presets_of_stream
from neoteny.envs import stream
from tests.simple_envs import Cue

AGENTS = {"ppo": ppo, "dqn": dqn}


class Pictures(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)


@pytest.fixture
def ids():
    stream("PresetPictures-v0", period=1000)(lambda k, seed: Pictures())
    gym.register("PresetCue-v0", Cue)
    yield
    del gym.registry["PresetPictures-v0"], gym.registry["PresetCue-v0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--stream.id Acrobot-v1", ("vectors", "one-task")),
        ("--stream.id=Acrobot-v1 optim:adam", ("vectors", "one-task")),
        ("--stream.id cartpole-gravity", ("vectors",)),
        ("--stream.id MiniGrid-LavaGapS5-v0", ("codes", "one-task")),
        (
            "--lr 1e-3 --stream.id MiniGrid-LavaGapS5-v0 --stream.observations vectors",
            ("vectors", "one-task"),
        ),
        ("--stream.id grid-layouts", ("codes",)),
        ("--stream.id grid-goals --methods.isometry.coef 1e-3", ("vectors",)),
        ("--stream.id PresetPictures-v0", ("pictures",)),
        ("--stream.id PresetCue-v0 --stream.channels first", ("planes", "one-task")),
        ("--stream.id Nope-v0", ()),
        ("--stream.id Acrobot-v1 --stream.period never", ()),
        ("--seed 3", ()),
    ],
)
@pytest.mark.usefixtures("ids")
@pytest.mark.parametrize("agent", AGENTS)
def test_a_stream_takes_presets_by_its_observations(agent, flags, expected):
    assert presets_of_stream(AGENTS[agent].Args(), flags.split()) == expected


@pytest.mark.parametrize("agent", AGENTS)
def test_flags_take_precedence_over_presets_and_these_over_defaults(agent):
    module, said = AGENTS[agent], []
    flags = "--stream.id MiniGrid-Empty-5x5-v0 optim:adam"
    args = cli(module.Args, module.PRESETS, flags.split(), said.append)
    expected = override(module.Args(), module.PRESETS["codes"])
    assert (args.num_envs, args.network) == (expected.num_envs, expected.network)
    assert args.network != module.Args().network
    assert said == ["presets for this stream: codes, one-task"]
    changed = cli(module.Args, module.PRESETS, [*flags.split(), "--network.hidden", "7"])
    assert changed.network.hidden == (7,)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_preset_of_a_command_line_is_the_only_one(agent):
    module = AGENTS[agent]
    words = ["vectors", "--stream.id", "MiniGrid-Empty-5x5-v0"]
    assert cli(module.Args, module.PRESETS, words).network == module.Args().network


@pytest.mark.parametrize("agent", AGENTS)
def test_one_task_weakens_the_pull_and_leaves_the_optimizer(agent):
    module = AGENTS[agent]
    once, again = (
        cli(module.Args, module.PRESETS, ["--stream.id", id]).optim
        for id in ("CartPole-v1", "cartpole-gravity")
    )
    assert once.name == again.name == module.Args().optim.name
    assert 0 < once.iso < again.iso
    words = ["--stream.id", "CartPole-v1", "optim:adam"]
    assert cli(module.Args, module.PRESETS, words).optim.name == "adam"


@pytest.mark.slow
def test_acrobot_is_learnt_with_its_preset(tmp_path):
    """With its observations normalized every episode lasted to the limit, -500."""
    words = f"acrobot-jumps-small optim:adam --total-steps 40960 --probes.every 0 --runs-dir {tmp_path}"
    summary = ppo.main(cli(ppo.Args, ppo.PRESETS, words.split()))
    assert summary["score/return_at_end"] > -200


@pytest.mark.slow
def test_cartpole_is_solved_with_default_flags(tmp_path):
    """With raw rewards and the pull of a stream that switches, AdamO's critic did not reach the values."""
    words = f"--stream.id CartPole-v1 --total-steps 100352 --probes.every 0 --runs-dir {tmp_path}"
    args = cli(ppo.Args, ppo.PRESETS, words.split())
    assert args.optim.name == "adamo"
    assert ppo.main(args)["score/return_at_end"] > 450
