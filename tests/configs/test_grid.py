"""Grids: which flags an arm has, notes that tell points apart, and command lines that give arguments."""

import dataclasses

import pytest

from neoteny.agents import dqn, ppo
from neoteny.configs.arms import ARMS
from neoteny.configs.cli import cli
from neoteny.configs.flags import OPTIMIZERS
from neoteny.configs.grid import Agent, Arm, combinations, point, values_of
from neoteny.configs.words import effective, words_of
from neoteny.optim import METHODS
from tests.tiny_runs import ROOT

PPO = Agent(ROOT / "agents" / "ppo.py", ppo.Args, ppo.PRESETS)


def arm(optim="adamo", methods="none", *flags, begin=("cartpole-rotations",)):
    return Arm(PPO, begin, optim, methods, flags)


def test_all_combinations():
    made = list(combinations({"lr": ["1", "2"], "optim.iso": ["3", "4"]}))
    assert [tuple(values.values()) for values in made] == [("1", "3"), ("1", "4"), ("2", "3"), ("2", "4")]
    assert list(combinations({})) == [{}]


def test_a_flag_is_for_the_arms_that_have_it():
    over = {"lr": ["1e-3"], "optim.iso": ["0.1"], "methods.isometry.coef": ["1"]}
    assert list(values_of(arm("adam"), over)) == ["lr"]
    assert list(values_of(arm("adamo"), over)) == ["lr", "optim.iso"]
    assert list(values_of(arm("adam", "isometry"), over)) == ["lr", "methods.isometry.coef"]


@pytest.mark.parametrize("name", ARMS)
def test_each_tuned_arm_has_three_points_of_its_own(name):
    tuned = ARMS[name]
    made = Arm(
        PPO, ("cartpole-rotations",), tuned.optim, tuned.methods, (), tuned.words, {tuned.flag: tuned.values}
    )
    points = [point(made, values) for values in combinations(values_of(made, {}))]
    assert len({each.folder(1) for each in points}) == len({str(each.args) for each in points}) == 3
    for each in points:
        assert cli(ppo.Args, ppo.PRESETS, each.of_seed(1)[0]) == each.of_seed(1)[1]


def test_all_optimizers_and_methods_are_in_tuned_arms():
    assert {arm.optim for arm in ARMS.values()} == set(OPTIMIZERS)
    used = {name for arm in ARMS.values() for name in arm.methods.split("+")} - {"none"}
    assert used == set(METHODS) - {"reorthogonalize"}  # which is a part of orthogonal layers
    names = [(arm.optim, arm.methods, arm.words) for arm in ARMS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("flags", [("--lr", "1e-2"), ("--seed", "1"), ("--no-shared-torso",), ("--seed=2",)])
def test_what_the_sweep_sets_cannot_be_set_for_all_runs(flags):
    with pytest.raises(ValueError, match="the sweep sets"):
        values_of(arm("adam", "none", *flags), {"lr": ["1e-3"], "shared-torso": ["true"]})


def test_points_are_told_apart_by_their_notes():
    made = point(arm("adamo", "none", "--note", "try"), {"optim.iso": "5e-2", "lr": "0.00100"})
    assert made.args.note == "try-iso0.05-lr0.001"
    assert made.folder(7).parts[-3:] == ("ppo", "adamo-try-iso0.05-lr0.001", "s7")
    words, args = made.of_seed(7)
    assert cli(ppo.Args, ppo.PRESETS, words) == args
    assert (args.lr, args.optim.iso, args.seed) == (1e-3, 0.05, 7)


@pytest.mark.parametrize(
    ("flag", "value", "note", "name", "expected"),
    [
        ("network.hidden", "64 32", "hidden64x32", "network", (64, 32)),
        ("shared-torso", "true", "shared_torso", "shared_torso", True),
        ("shared-torso", "false", "no_shared_torso", "shared_torso", False),
        ("network.activation", "tanh", "activationtanh", "network", "tanh"),
    ],
)
def test_values_of_all_kinds(flag, value, note, name, expected):
    made = point(arm("adam"), {flag: value})
    assert made.args.note == note
    found = getattr(made.args, name)
    assert (found if name == "shared_torso" else getattr(found, flag.rpartition(".")[2])) == expected


def test_a_switch_takes_true_and_false():
    with pytest.raises(ValueError, match="takes true and false, not yes"):
        point(arm(), {"shared-torso": "yes"})


def test_flags_of_the_same_last_name_have_whole_names_in_notes():
    values = {"rewards.normalizer": "none", "stream.normalizer": "keep"}
    assert point(arm(), values, named=values).args.note == "rewards.normalizernone-stream.normalizerkeep"


CHANGED = {
    "grid-layouts-small": (
        dqn,
        {"lr": 0.1 + 0.2, "note": "a-b", "double": False},
        {"period": 100, "tasks": (2, 0), "cycles": None},
    ),
    "cartpole-rotations": (
        ppo,
        {"shared_torso": True, "total_steps": 10**7},
        {"id": "grid-layouts", "tasks": (3, 1, 3)},
    ),
    "": (ppo, {"minibatches": 1, "epochs": 1, "clip": 0.5}, {"normalizer": "reset", "audit": "off"}),
}


@pytest.mark.parametrize("preset", CHANGED)
def test_a_command_line_gives_the_arguments_that_it_was_made_from(preset):
    agent, changes, stream = CHANGED[preset]
    begin = [preset] if preset else []
    args = cli(agent.Args, agent.PRESETS, begin)
    args = dataclasses.replace(args, stream=dataclasses.replace(args.stream, **stream), **changes)
    words = words_of(args, agent.PRESETS, begin)
    assert effective(cli(agent.Args, agent.PRESETS, words)) == effective(args)
    assert "--clip" not in words  # which does nothing with one gradient step


def test_a_stream_by_its_id_keeps_the_defaults_of_its_kind():
    begin = ["--stream.id", "MiniGrid-Empty-5x5-v0"]
    args = cli(ppo.Args, ppo.PRESETS, [*begin, "optim:muon", "--methods.isometry.coef", "0.5"])
    words = words_of(dataclasses.replace(args, threads=2), ppo.PRESETS, begin)
    assert words[:3] == [*begin, "optim:muon"]
    assert words[-2:] == ["--threads", "2"]
    assert "--ent-coef" not in words
