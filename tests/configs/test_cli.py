"""The command line: what it takes, and that bad input is one message, exit code 2 and nothing written."""

import copy
import dataclasses
import json
import re
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

ROOT = Path(__file__).resolve().parents[2]


def parse(line):
    return cli(Args, PRESETS, line.split())


def test_preset_flags_and_optimizer_combine_in_any_order():
    args = parse("grid-layouts optim:adamo --optim.iso 1e-3 --seed 4 --stream.period 5000")
    assert (args.stream.id, args.stream.period, args.seed) == ("grid-layouts", 5000, 4)
    assert (args.optim.name, args.optim.iso) == ("adamo", 1e-3)
    assert args == parse("grid-layouts --seed 4 --stream.period 5000 optim:adamo --optim.iso 1e-3")
    assert args.total_steps == PRESETS["grid-layouts"]["total_steps"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses(preset):
    assert parse(preset) == override(Args(), PRESETS[preset])


@pytest.mark.parametrize("optim", ["adam", "adamw", "adamo", "muon"])
def test_a_preset_combines_with_every_optimizer(optim):
    args = parse(f"grid-layouts-small optim:{optim}")
    assert (args.optim.name, args.lr) == (optim, parse("grid-layouts-small").lr)


def test_the_optimizer_of_a_preset_keeps_its_options_unless_given():
    chosen = PRESETS["grid-layouts-small"]["optim"]["iso"]
    assert parse("grid-layouts-small").optim.iso == chosen != Args().optim.iso
    assert parse("grid-layouts-small optim:adamo").optim.iso == chosen


def test_flags_of_the_optimizer_may_stand_before_it():
    assert parse("--optim.momentum 0.5 --seed 4 optim:muon") == parse(
        "optim:muon --seed 4 --optim.momentum 0.5"
    )


@pytest.mark.parametrize("seed", [-1, 2**63, 10**400])
def test_arguments_in_code_have_seeds_of_63_bits_too(seed):
    with pytest.raises(ValueError, match="--seed must be at least 0 and at most 9223372036854775807, not"):
        Args(seed=seed)


WHOLE = ["1000000", "1_000_000", "1e6", "1E6", "10.0e5", "+1e6"]


@pytest.mark.parametrize("number", WHOLE)
def test_whole_numbers_may_be_typed_as_powers_of_ten(number):
    line = f"--total-steps {number} --stream.period={number} --network.hidden 8 {number}"
    args = parse(line)
    assert (args.total_steps, args.stream.period) == (1_000_000, 1_000_000)
    assert args.network.hidden == (8, 1_000_000)
    assert parse("--stream.period 2.5e5").stream.period == 250_000
    assert parse("--stream.period None").stream.period is None
    assert parse("--seed 9223372036854775807").seed == 2**63 - 1  # of which a float knows only 2^63


NEAR = {
    "ppo": {
        "learning-rate": "--lr", "batch-size": "--minibatches", "n-envs": "--num-envs",
        "total-timesteps": "--total-steps", "entropy-coef": "--ent-coef", "hidden-sizes": "--network.hidden",
        "discount": "--gamma", "gpu": "--device", "cuda": "--device", "env-id": "--stream.id",
        "env": "--stream.id", "clip-range": "--clip", "grad-clip": "--max-grad-norm", "gae": "--gae-lambda",
        "log-dir": "--runs-dir", "save-freq": "--checkpoint-every", "record-video": "--video-every",
        "optimizer": "optim:adam", "iso": "--optim.iso", "activation": "--network.activation",
        "normalize-obs": "--stream.normalizer", "reward-clip": "--rewards.clip", "n-epochs": "--epochs",
    },
    "dqn": {
        "buffer-capacity": "--buffer-size", "batch": "--batch-size", "epsilon-start": "--eps-start",
        "target-network-frequency": "--target-every", "polyak": "--tau", "n-steps": "--n-step",
        "exploration-fraction": "--eps-start", "replay-size": "--buffer-size",
    },
}  # fmt: skip


@pytest.mark.parametrize(("agent", "typed"), [(agent, typed) for agent in NEAR for typed in NEAR[agent]])
def test_of_an_unknown_flag_the_nearest_are_named(agent, typed, capsys):
    with pytest.raises(SystemExit) as exit:
        cli({"ppo": ppo, "dqn": dqn}[agent].Args, {}, [f"--{typed}", "1"])
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith(f"error: there is no flag --{typed}; similar: ")
    assert NEAR[agent][typed] in re.findall(r"[\w:.-]+", output.partition("similar:")[2])


def test_override_knows_only_fields():
    with pytest.raises(TypeError):
        override(Args(), {"no_such_field": 1})


BAD = {
    "--stream.id grid-layout": "grid-layouts",
    "--stream.id no_such_module:Stream-v0": "no_such_module",
    "gridlayouts": "there is no preset 'gridlayouts'; similar: grid-layouts, ",
    "no-such-thing": "there is no preset 'no-such-thing'; --help lists all",
    "--seed 1 grid-layouts": "the preset grid-layouts must be the first word",
    "--stream.period 0": "the period of a stream must be at least 1 step, not 0",
    "--stream.period -5": "the period of a stream must be at least 1 step, not -5",
    "--stream.period 3": "16 environments",
    "--stream.id CartPole-v1 --stream.period 100": "never switches",
    "--stream.id CartPole-v1 --stream.jitter 0.5": "never switches",
    "--stream.jitter 1": "jitter",
    "--stream.order random": "never recur",
    "atari --stream.games Pongg": "there is no Atari game 'Pongg'; there are Pong",
    "atari --stream.games Freeway/1": "Name/mode/difficulty",
    "atari-cora --stream.games Pong": "--stream.games needs --stream.id atari",
    "atari --stream.cycles 0": "--stream.cycles must be at least 1, not 0",
    "--stream.cycles 2": "needs recurring tasks",
    "optim:adamo --optim.iso -1": "iso",
    "optim:adamo --optim.iso nan": "iso",
    "optim:adam --optim.iso 1": "--optim.iso is a flag of optim:adamo and optim:muono, not of optim:adam",
    "--optim.iso 1 optim:muon": "--optim.iso is a flag of optim:adamo and optim:muono, not of optim:muon",
    "--optim.momentum 1": "--optim.momentum is a flag of optim:muon and optim:muono, not of optim:adamo",
    "optim:adam optim:muon": "a run has one optimizer, not optim:adam and optim:muon",
    "optim:sgd": "there is no optimizer optim:sgd; there are optim:adam, optim:adamw, optim:adamo, optim:mu",
    "--optim.foo 3": "there is no flag --optim.foo",
    "--seed -1": "--seed must be at least 0",
    "--gamma 1.5": "--gamma must be at least 0 and at most 1, not 1.5",
    "--ent-coef inf": "--ent-coef must be at least 0",
    "--rewards.scale nan": "--rewards.scale must be finite",
    "--probes.every -1": "--probes.every",
    "--note a/b": "--note",
    "--lr 0": "--lr must be above 0, not 0.0",
    "--lr nan": "--lr",
    "--lr abc": "--lr: 'abc' is not a number",
    "--lr": "Missing value for argument '--lr'",
    "--seed 1.5": "--seed: '1.5' is not a whole number, such as 1000000 or 1e6",
    "--seed 1e-3": "--seed: '1e-3' is not a whole number",
    "--seed nan": "--seed: 'nan' is not a whole number",
    "--seed 99999999999999999999": "--seed: 99999999999999999999 is too large: whole numbers go up to 922",
    "--seed 1e19": "--seed: 1e19 is too large: whole numbers go up to 922",
    "--total-steps 1e400": "--total-steps: '1e400' is not a whole number",
    "--stream.period x": "--stream.period: {None}|INT cannot be read from ['x']",
    "--network.hidden 8 1.5": "--network.hidden: cannot be read from ['8', '1.5']",
    "--shared-torso 3": "no flag takes the word '3'",
    "--num-envs -4": "--num-envs",
    "--num-envs four": "--num-envs",
    "--minibatches 7": "--minibatches",
    "--network.hidden 0": "--network.hidden",
    "--network.activation relux": "relu",
    "--network.activation crelu --network.hidden 7": "crelu needs --network.hidden to be multiples of 2",
    "--network.group-size 2": "there is no flag --network.group-size",
    "--device tpu": "--device",
    "--no-such-flag 1": "there is no flag --no-such-flag; --help lists all",
    "--learning-rate 1 --n-envs 2": "; there is no flag --n-envs; similar: --num-envs",
    **({} if torch.cuda.is_available() else {"--device cuda": "--device cuda"}),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_refused_and_nothing_is_written(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        parse(line)
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert BAD[line] in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


NO_WEIGHT = "--network.linear orthogonal --stream.id cartpole-rotations"
UNFIT = {
    NO_WEIGHT: "AdamO has no weight to pull towards isometry",
    f"{NO_WEIGHT} optim:muon": "Muon needs a hidden linear layer",
}


@pytest.mark.parametrize("agent", [dqn, ppo])
@pytest.mark.parametrize("line", UNFIT)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    line, agent, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["agent.py", *line.split()])
    with pytest.raises(SystemExit) as exit:
        launch(agent.main, agent.Args, {})
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert UNFIT[line] in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def written(folder, line):
    """The args.json of a run with these flags."""
    run = begin(parse(f"{line} --runs-dir {folder}"))
    run.close()
    return run.folder / "args.json"


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adam", "adamw", "adamo", "muon"])
@pytest.mark.parametrize(
    "preset",
    [
        "cartpole-rotations",
        "grid-layouts-small",
        "mountaincar-drift-small",
        "grid-layouts --network.activation groupsort",
        "atari --stream.games Pong Freeway/1/0 --stream.cycles 2",
    ],
)
def test_the_arguments_of_a_run_are_read_back(preset, optim, tmp_path):
    line = f"{preset} optim:{optim} --stream.audit off --network.hidden 8 16 --stream.period 700 --note x"
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
    """Whether this does not parse; if so, the refusal must be a sentence, with exit code 2."""
    code = 0
    try:
        parse_it()
    except SystemExit as exit:
        code = exit.code
    output = capsys.readouterr().err
    assert not list(folder.iterdir())
    assert "Traceback" not in output
    assert code in (0, 2)
    assert bool(output) == (code == 2)
    return code == 2


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_malformed_args_json_is_refused(data, good, tmp_path_factory, capsys):
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


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from([f"--{name.replace('_', '-')}" for name in FIELDS + NESTED])
        | st.sampled_from(["-1", "0", "1", "nan", "inf", "1e400", "None", "", "optim:adam", "optim:", "True"])
        | st.text(max_size=6).filter(lambda word: word not in ("-h", "--help")),
        max_size=5,
    )
)
def test_a_malformed_command_line_is_refused(tmp_path_factory, capsys, words):
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
    assert "is not a value of games" in capsys.readouterr().err
    assert "antigravity" not in sys.modules
