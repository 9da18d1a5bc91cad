"""The command line: what it takes, and that bad input is one message, exit code 2 and nothing written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neoteny.agents.ppo import Args
from neoteny.configs.cli import cli, override
from neoteny.configs.ppo import PRESETS

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
    "optim:adamo --optim.iso -1": "iso",
    "optim:adamo --optim.iso nan": "iso",
    "optim:adam --optim.iso 1": "--optim.iso",
    "optim:sgd": "optim:sgd",
    "--seed -1": "--seed must be at least 0",
    "--gamma 1.5": "--gamma must be at least 0 and at most 1, not 1.5",
    "--ent-coef inf": "--ent-coef must be at least 0",
    "--reward-scale nan": "--reward-scale must be finite",
    "--probe-every -1": "--probe-every",
    "--note a/b": "--note",
    "--lr 0": "--lr must be above 0, not 0.0",
    "--lr nan": "--lr",
    "--num-envs -4": "--num-envs",
    "--num-envs four": "--num-envs",
    "--minibatches 7": "--minibatches",
    "--network.hidden 0": "--network.hidden",
    "--network.activation relux": "relu",
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


def test_help_shows_the_optimizers_and_presets(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for word in ("optim:adamo", "grid-layouts", "--stream.period", "--optim.iso"):
        assert word in shown
