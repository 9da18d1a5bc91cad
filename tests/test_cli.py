"""The command line: what it takes, and that bad input is one message, exit code 2 and nothing written."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neoteny.agents import dqn, ppo
from neoteny.agents.ppo import Args
from neoteny.configs.cli import cli, launch, override, read_args
from neoteny.configs.ppo import PRESETS
from tests.no_agent import begin

ROOT = Path(__file__).resolve().parent.parent


def parse(line):
    return cli(Args, PRESETS, line.split())


def test_preset_flags_and_optimizer_combine_in_any_order():
    args = parse("grid-layouts optim:adamo --optim.iso 1e-3 --seed 4 --stream.period 5000")
    assert (args.stream.id, args.stream.period, args.seed) == ("grid-layouts", 5000, 4)
    assert (args.optim.name, args.optim.iso) == ("adamo", 1e-3)
    assert args == parse("grid-layouts --seed 4 --stream.period 5000 optim:adamo --optim.iso 1e-3")
    assert args.total_steps == PRESETS["grid-layouts"]["total_steps"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_with_every_optimizer(preset):
    for optim in ("adam", "adamw", "adamo", "muon"):
        assert parse(f"{preset} optim:{optim}").optim.name == optim
    assert parse(preset) == override(Args(), PRESETS[preset])


def test_the_optimizer_of_a_preset_keeps_its_options_unless_told_otherwise():
    chosen = PRESETS["grid-layouts-small"]["optim"]["iso"]
    assert parse("grid-layouts-small").optim.iso == chosen != Args().optim.iso
    assert parse("grid-layouts-small optim:adamo").optim.iso == chosen


def test_override_knows_only_fields():
    with pytest.raises(TypeError):
        override(Args(), {"no_such_field": 1})


BAD = {
    "--stream.id grid-layout": "grid-layouts",
    "--stream.id no_such_module:Stream-v0": "no_such_module",
    "gridlayouts": "there is no preset",
    "--stream.period 0": "the period of a stream must be at least 1 step, not 0",
    "--stream.period -5": "the period of a stream must be at least 1 step, not -5",
    "--stream.period 3": "16 environments",
    "--stream.id CartPole-v1 --stream.period 100": "never switches",
    "--stream.id CartPole-v1 --stream.jitter 0.5": "never switches",
    "--stream.jitter 1": "jitter",
    "--stream.order random": "never recur",
    "atari --stream.games Pongg": "there is no Atari game 'Pongg'; there are Pong",
    "atari --stream.games Freeway/1": "Name/mode/difficulty",
    "atari-cora --stream.games Pong": "--stream.games are for --stream.id atari",
    "atari --stream.cycles 0": "--stream.cycles must be at least 1, not 0",
    "--stream.cycles 2": "needs tasks that recur",
    "optim:adamo --optim.iso -1": "iso",
    "optim:adamo --optim.iso nan": "iso",
    "optim:adam --optim.iso 1": "--optim.iso",
    "optim:sgd": "optim:sgd",
    "--seed -1": "--seed must be at least 0",
    "--gamma 1.5": "--gamma must be at least 0 and at most 1, not 1.5",
    "--ent-coef inf": "--ent-coef must be at least 0",
    "--reward-scale nan": "--reward-scale must be finite",
    "--probes.every -1": "--probes.every",
    "--note a/b": "--note",
    "--lr 0": "--lr must be above 0, not 0.0",
    "--lr nan": "--lr",
    "--num-envs -4": "--num-envs",
    "--num-envs four": "--num-envs",
    "--minibatches 7": "--minibatches",
    "--network.hidden 0": "--network.hidden",
    "--network.activation relux": "relu",
    "--network.activation crelu --network.hidden 7": "crelu needs --network.hidden to be multiples of 2",
    "--network.activation maxmin --network.group-size 2": "--network.group-size is for",
    "--network.linear orthogonal --network.conv-init delta": "choose one of them",
    "--device tpu": "--device",
    "--no-such-flag 1": "--no-such-flag",
    **({} if torch.cuda.is_available() else {"--device cuda": "--device cuda"}),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_told_and_nothing_is_written(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        parse(line)
    assert exit.value.code == 2
    told = " ".join(re.sub("[│╭╮╰╯─]", "", capsys.readouterr().err).split())
    assert BAD[line] in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_the_script_itself_exits_with_code_2(tmp_path):
    command = [sys.executable, ROOT / "agents" / "ppo.py", "--stream.period", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "period of a stream" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


NO_WEIGHT = "--network.linear orthogonal --stream.id cartpole-rotations"
UNFIT = {
    NO_WEIGHT: "AdamO has no weight to pull towards isometry",
    f"{NO_WEIGHT} optim:muon": "Muon needs a hidden matrix",
    "--network.conv-init delta": "--network.conv-init delta is for observations that pass convolutions",
}


@pytest.mark.parametrize("agent", [dqn, ppo])
@pytest.mark.parametrize("line", UNFIT)
def test_what_does_not_go_together_is_told_and_nothing_is_written(line, agent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["agent.py", *line.split()])
    with pytest.raises(SystemExit) as exit:
        launch(agent.main, agent.Args, {})
    assert exit.value.code == 2
    told = capsys.readouterr().err
    assert UNFIT[line] in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def written(folder, line):
    """The args.json of a run with these flags."""
    run = begin(parse(f"{line} --runs-dir {folder}"))
    run.close()
    return run.folder / "args.json"


@pytest.mark.parametrize("optim", ["adam", "adamw", "adamo", "muon"])
@pytest.mark.parametrize(
    "preset",
    [
        "cartpole-rotations",
        "grid-layouts-small",
        "mountaincar-drift-small",
        "grid-layouts --network.activation groupsort --network.group-size 8 --network.conv-init delta",
        "atari --stream.games Pong Freeway/1/0 --stream.cycles 2",
    ],
)
def test_the_arguments_of_a_run_are_read_back(preset, optim, tmp_path):
    line = f"{preset} optim:{optim} --stream.no-audit --network.hidden 8 16 --stream.period 700 --note x"
    assert read_args(Args, written(tmp_path, line)) == parse(f"{line} --runs-dir {tmp_path}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [field.name for field in dataclasses.fields(Args)]
NESTED = [f"{part}.{field.name}" for part in ("stream", "network", "optim") for field in
          dataclasses.fields(getattr(Args(), part))]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return json.loads(written(tmp_path_factory.mktemp("good"), "cartpole-rotations").read_text())


def refused(parse_it, folder, capsys):
    """Whether this does not parse; if so, it must be told in words, with exit code 2."""
    code = 0
    try:
        parse_it()
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr().err
    assert not list(folder.iterdir())
    assert "Traceback" not in told
    assert code in (0, 2)
    assert bool(told) == (code == 2)
    return code == 2


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_malformed_args_json_is_told(data, good, tmp_path_factory, capsys):
    config, path = copy.deepcopy(good), tmp_path_factory.mktemp("args") / "args.json"
    kind = data.draw(st.sampled_from(["text", "json", "field", "new"]))
    name = data.draw(st.sampled_from(FIELDS + NESTED))
    if kind == "text":
        path.write_bytes(data.draw(st.binary(max_size=40)))
    elif kind == "json":
        path.write_text(json.dumps(data.draw(JSON)))
    else:
        part, _, field = name.rpartition(".")
        inside = config[part] if part else config
        inside[field if kind == "field" else data.draw(st.text(max_size=8))] = data.draw(JSON)
        path.write_text(json.dumps(config))
    folder = tmp_path_factory.mktemp("cwd")
    was_refused = refused(lambda: read_args(Args, path), folder, capsys)
    assert was_refused or kind in ("field", "new")


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from([f"--{name.replace('_', '-')}" for name in FIELDS + NESTED])
        | st.sampled_from(["-1", "0", "1", "nan", "inf", "1e400", "None", "", "optim:adam", "optim:", "True"])
        | st.text(max_size=6).filter(lambda word: word not in ("-h", "--help")),
        max_size=5,
    )
)
def test_a_malformed_command_line_is_told(tmp_path_factory, capsys, words):
    refused(lambda: cli(Args, PRESETS, words), tmp_path_factory.mktemp("cwd"), capsys)


def test_no_args_json_imports_a_module(tmp_path, capsys):
    path = written(tmp_path, "cartpole-rotations")
    config = json.loads(path.read_text())
    config["stream"]["id"] = "antigravity:Stream-v0"
    path.write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        read_args(Args, path)
    assert "import antigravity first" in capsys.readouterr().err
    config["stream"]["id"] = "cartpole-rotations"
    config["stream"]["games"] = ["--stream.id=antigravity:Stream-v0"]
    path.write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        read_args(Args, path)
    assert "is no value of games" in capsys.readouterr().err
    assert "antigravity" not in sys.modules
