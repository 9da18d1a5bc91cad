"""Help in pages, and plasticity methods on the command line, in presets and in a run's args.json."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neoteny.agents import dqn, ppo
from neoteny.configs.cli import cli, override, read_args
from neoteny.configs.dqn import PRESETS as DQN_PRESETS
from neoteny.configs.ppo import PRESETS as PPO_PRESETS
from neoteny.optim import (
    METHODS,
    AdamConfig,
    AdamOConfig,
    AdamWConfig,
    MethodConfig,
    MuonConfig,
    MuonOConfig,
    TRACConfig,
    UPGDConfig,
    methods_as_dict,
)

AGENTS = {"ppo": (ppo.Args, PPO_PRESETS), "dqn": (dqn.Args, DQN_PRESETS)}
OPTIMIZERS = [AdamConfig, AdamWConfig, AdamOConfig, MuonConfig, MuonOConfig, UPGDConfig, TRACConfig]
GROUPS = ("probes", "stream", "network", "optim")

USER_FILE = '''
import dataclasses
from neoteny.optim.methods import MethodConfig

@dataclasses.dataclass(frozen=True)
class NoiseConfig(MethodConfig):
    """Noise on weights."""
    std: float = 1.0
    """Deviation of the noise."""
    every: tuple[int, ...] = (1,)
    at_switch: bool = False

@dataclasses.dataclass(frozen=True)
class NeedyConfig(MethodConfig):
    std: float = dataclasses.field(kw_only=True)

class Other:
    pass
'''


@dataclasses.dataclass(frozen=True)
class Args(ppo.Args):
    """PPO with methods."""

    methods: Annotated[tuple[MethodConfig, ...], tyro.conf.Suppress] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.methods and self.seed == 13:
            raise ValueError("no methods with --seed 13")


@dataclasses.dataclass(frozen=True)
class IsometryConfig(MethodConfig):
    """A pull."""

    name = "isometry"

    coef: float = 1e-3
    """How much."""
    scale: float = 2.0
    """Where to."""

    def __post_init__(self) -> None:
        if self.coef < 0:
            raise ValueError(f"coef must not be negative, not {self.coef}")


@dataclasses.dataclass(frozen=True)
class DropoutConfig(MethodConfig):
    """Units that rest."""

    name = "drop_out"

    rate: float = 0.5
    """Share of the units."""


PRESETS = {**PPO_PRESETS, "isometric": {"seed": 3, "methods": (IsometryConfig(coef=0.5),)}}


@pytest.fixture(autouse=True)
def two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["agents/ppo.py"])
    for name in list(METHODS):
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setitem(METHODS, "isometry", IsometryConfig)
    monkeypatch.setitem(METHODS, "drop_out", DropoutConfig)


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that holds a user's own methods, in the current directory."""
    name = f"my_file_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USER_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    return name


def parse(line: str) -> Any:
    return cli(Args, PRESETS, line.split())


def page(args_type: type, presets: dict, line: str, capsys: pytest.CaptureFixture) -> str:
    """The help that a command line prints."""
    with pytest.raises(SystemExit) as exit:
        cli(args_type, presets, [*line.split(), "--help"])
    assert exit.value.code == 0
    printed = capsys.readouterr()
    assert not printed.err
    return printed.out


def plain(text: str) -> str:
    """Text without boxes and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", "", text).split())


def flags(text: str) -> set[str]:
    """The flags that a page shows, but for those that switch off."""
    shown = re.findall(r"^[│ ] (--\w[\w.:-]*)", text.partition("show this help")[2], re.MULTILINE)
    return {flag for flag in shown if not re.search(r"[-.]no[-_]", flag)}


def flat(args: Any) -> set[str]:
    return {f"--{name.replace('_', '-')}" for name, value in vars(args).items()
            if not dataclasses.is_dataclass(value) and name != "methods"}  # fmt: skip


def nested(args: Any, group: str) -> set[str]:
    fields = vars(getattr(args, group)).items()
    deeper = [nested(getattr(args, group), name) for name, value in fields if dataclasses.is_dataclass(value)]
    own = {f"--{name.replace('_', '-')}" for name, value in fields if not dataclasses.is_dataclass(value)}
    return {f"--{group}.{flag.removeprefix('--')}" for flag in own.union(*deeper)}


@pytest.mark.parametrize("name", AGENTS)
def test_first_help_page(name, capsys):
    args_type, presets = AGENTS[name]
    text = page(args_type, presets, "", capsys)
    assert len(text.splitlines()) < 150
    assert max(map(len, text.splitlines()[1:])) <= 90  # the first lists all optimizers
    assert flags(text) == flat(args_type())
    for group in (*GROUPS, "methods"):
        assert re.search(rf" --{group}[, ]", plain(text))
    for word in (*presets, *(f"optim:{config.name}" for config in OPTIMIZERS)):
        assert re.search(rf"[ •]{re.escape(word)}[, \n]", text)


def test_the_first_page_does_not_grow_with_the_number_of_methods(capsys, monkeypatch):
    text = page(Args, PRESETS, "", capsys)
    for number in range(20):
        monkeypatch.setitem(METHODS, f"method_{number}", DropoutConfig)
    assert page(Args, PRESETS, "", capsys) == text


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_flags_has_a_page(group, name, capsys):
    args_type, presets = AGENTS[name]
    for line in (
        f"--{group}",
        f"--seed 3 --{group}",
        f"--{group}.{next(iter(vars(getattr(args_type(), group))))}",
    ):
        assert flags(page(args_type, presets, line, capsys)) == nested(args_type(), group)


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_the_page_of_the_optimizer_is_that_of_the_chosen_one(config, capsys):
    wanted = nested(override(Args(), {"optim": config()}), "optim")
    assert flags(page(Args, PRESETS, f"--seed 3 optim:{config.name}", capsys)) == wanted
    assert flags(page(Args, PRESETS, f"optim:{config.name} --seed 3 --optim", capsys)) == wanted


def test_pages_show_the_defaults_of_the_preset(capsys):
    for line, default in {
        "--stream": "cartpole-rotations", "grid-layouts --stream": "grid-layouts",
        "grid-layouts-small --optim": str(PPO_PRESETS["grid-layouts-small"]["optim"]["iso"]),
        "grid-layouts": str(PPO_PRESETS["grid-layouts"]["total_steps"]),
        "isometric": "3", "isometric --methods.isometry": "0.5", "--methods.isometry.coef": "0.001",
    }.items():  # fmt: skip
        assert f"(default: {default})" in plain(page(Args, PRESETS, line, capsys))


@pytest.mark.parametrize(
    "line", ["--seed", "--note stream", "optim:adam --seed 1", "--seeed", "--methods.drop_out.rate 1"]
)
def test_any_other_word_before_it_leads_to_the_first_page(line, capsys):
    assert "--total-steps" in flags(page(Args, PRESETS, line, capsys))


def test_methods_have_pages(capsys, user_file):
    text = page(Args, PRESETS, "--methods", capsys)
    assert "--methods.isometry: A pull." in text
    assert "--methods.drop_out: Units that rest." in text
    for line in ("--methods.drop_out", "--methods.drop-out.rate"):
        text = page(Args, PRESETS, line, capsys)
        assert flags(text) == {"--methods.drop-out.on", "--methods.drop-out.rate"}
        assert "Share of the units. (default: 0.5)" in text
    method = f"--methods.{user_file}:NoiseConfig"
    assert f"{method}.std" in flags(page(Args, PRESETS, method, capsys))


def test_a_method_is_taken_by_its_name_or_by_any_of_its_flags():
    assert parse("").methods == ()
    assert parse("--methods.isometry").methods == (IsometryConfig(),)
    for word in ("--methods.isometry.coef 1e-2", "--methods.isometry.coef=1e-2"):
        assert parse(word).methods == (IsometryConfig(coef=1e-2),)
        assert parse(f"--methods.isometry {word} --methods.isometry").methods == (IsometryConfig(coef=1e-2),)
    for word in ("drop_out", "drop-out"):
        assert parse(f"--methods.{word}.on critic").methods == (DropoutConfig(on="critic"),)
    assert parse("--methods.drop-out.on critic --methods.drop_out.rate 1").methods == (
        DropoutConfig("critic", 1),
    )


def test_order_of_methods():
    line = (
        "grid-layouts --methods.drop_out.rate -1 optim:muon --methods.isometry --seed 4 --optim.momentum 0.5 "
        "--methods.drop_out.on actor --stream.tasks 0 1 --methods.isometry.scale 3 --network.hidden 8 8"
    )
    args = parse(line)
    assert args.methods == (DropoutConfig("actor", -1.0), IsometryConfig(scale=3.0))
    others = "grid-layouts optim:muon --seed 4 --optim.momentum 0.5 --stream.tasks 0 1 --network.hidden 8 8"
    assert dataclasses.replace(args, methods=()) == parse(others)


def test_a_preset_takes_methods_and_flags_change_them():
    assert override(Args(), PRESETS["isometric"]).methods == (IsometryConfig(coef=0.5),)
    assert parse("isometric").methods == (IsometryConfig(coef=0.5),)
    assert parse("isometric --methods.isometry").methods == (IsometryConfig(coef=0.5),)
    changed = (IsometryConfig(coef=0.5, scale=1.0), DropoutConfig())
    assert parse("isometric --methods.drop_out --methods.isometry.scale 1").methods == changed


def test_a_method_of_the_users_own_is_imported(user_file):
    noise = f"--methods.{user_file}:NoiseConfig"
    for line in (f"{noise} {noise}.std 0.1 {noise}.at-switch", f"{noise}.std=0.1 --seed 2 {noise}.at_switch"):
        (method,) = parse(line).methods
        assert (type(method).__module__, type(method).__name__) == (user_file, "NoiseConfig")
        assert dataclasses.astuple(method) == ("all", 0.1, (1,), True)
    assert parse(f"--methods.{user_file}:NeedyConfig.std 2").methods[0].std == 2.0


BAD = {
    "--methods": "--methods names no method",
    "--methods isometry": "--methods names no method",
    "--methods=isometry": "names no method",
    "--methods.": "names no method",
    "--methods.a/b": "names no method",
    "--methods.isometri": "there is no method 'isometri'; similar: isometry; --methods --help lists all",
    "--methods.isometri --help": "there is no method 'isometri'",
    "--methods.isometry.nope 1": "there is no flag --methods.isometry.nope",
    "--methods.isometry.ceof 1": "similar: --methods.isometry.coef",
    "--methods.isometry.coef": "Missing value for argument '--methods.isometry.coef'",
    "--methods.isometry.coef x": "--methods.isometry.coef: 'x' is not a number",
    "--methods.isometry.coef -1": "coef must not be negative, not -1.0",
    "--methods.isometry.on nobody": "'actor', 'critic', 'all'",
    "--methods.isometry 5": "no flag takes the word '5'",
    "--methods.isometry=5": "there is no flag --methods.isometry",
    "--methods.isometry.coef 1 2": "no flag takes the word '2'",
    "--methods.no_such_file:X": "there is no method 'no_such_file:X': No module named 'no_such_file'",
    "--methods.json:Nope": "there is no method 'json:Nope': json has no MethodConfig Nope",
    "--methods.json:JSONDecoder": "json has no MethodConfig JSONDecoder",
    "--methods.json:": "names no method",
    "--methods.isometry --seed 13": "no methods with --seed 13",
    "--methods.isometry --seed x": "--seed",
    "--method.isometry": "there is no flag --method.isometry; similar: --methods.isometry",
    "--methods.isometry grid-layouts": "no flag takes the word 'grid-layouts'",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_methods_are_refused(line, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(line)
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert BAD[line] in output
    assert output.count("\n") == 1
    assert "Traceback" not in output


def written(folder: Path, args: Any) -> Path:
    """The args.json of a run."""
    config = {"agent": "ppo", **dataclasses.asdict(args), "methods": methods_as_dict(args.methods)}
    config["optim"]["name"] = args.optim.name
    (folder / "args.json").write_text(json.dumps(config, default=str))
    return folder / "args.json"


def test_the_methods_of_a_run_are_read_back(tmp_path, user_file):
    noise = f"--methods.{user_file}:NoiseConfig"
    for line in (
        "", "isometric", "--methods.isometry.on actor --methods.drop_out --seed 2",
        f"{noise}.std 1e-3 --methods.drop_out.rate 0.25 optim:muon {noise}.every 2 3 {noise}.at-switch",
    ):  # fmt: skip
        args = parse(line)
        path = written(tmp_path, args)
        assert read_args(Args, path) == args
    assert list(json.loads(path.read_text())["methods"]) == [noise.removeprefix("--methods."), "drop_out"]


def test_an_args_json_without_methods_is_read(tmp_path):
    path = written(tmp_path, Args())
    config = json.loads(path.read_text())
    del config["methods"]
    path.write_text(json.dumps(config))
    assert read_args(Args, path) == Args()


UNREADABLE = {
    "import antigravity first": {"antigravity:This": {}},
    "is not a value of on": {"isometry": {"on": "--methods.antigravity:This"}},
    "is not an argument": {"isometry": {"on --methods.antigravity:This": 1}},
    "there is no method 'nope'": {"nope": {}},
    "names no method": {"": {}},
    "--methods.isometry.nope": {"isometry": {"nope": 1}},
    "not enough": [["isometry"]],
    "does not hold the arguments of a run": ["isometry"],
    "has no attribute": {"isometry": 3},
}  # fmt: skip


@pytest.mark.parametrize("reason", UNREADABLE)
def test_no_args_json_imports_a_method_or_ends_in_a_traceback(reason, tmp_path, capsys):
    path = written(tmp_path, Args())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"methods": UNREADABLE[reason]}))
    with pytest.raises(SystemExit) as exit:
        read_args(Args, path)
    assert exit.value.code == 2
    output = capsys.readouterr().err
    assert reason in output or isinstance(UNREADABLE[reason], list)
    assert "antigravity" not in sys.modules


WORDS = [
    "--methods", "--methods.", "--methods.isometry", "--methods.isometry.coef", "--methods.drop_out.rate=1",
    "--methods.:", "--methods.json:", "--methods.json:x", "--methods..json:x", "--methods.json.:x.y", "-1",
    "nan", "optim:adam", "--seed", "1", "=", "--", "-", "--stream", "--optim.iso",
]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4).map("--methods.{}".format), max_size=5))
def test_malformed_words_are_refused(capsys, words):
    code = 0
    try:
        cli(Args, PRESETS, words)
    except SystemExit as exit:
        code = exit.code
    output = capsys.readouterr().err
    assert code in (0, 2)
    assert bool(output) == (code == 2)
    assert "Traceback" not in output
