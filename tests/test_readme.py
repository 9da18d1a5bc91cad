"""What the README and the pages of docs/ say is true: commands run, links lead to files, tables are whole."""

import itertools
import os
import re
import shlex

import gymnasium as gym
import pytest

from neoteny.agents import dqn, ppo, supervised
from neoteny.configs.cli import cli, script_args
from neoteny.envs.registry import registered_streams
from neoteny.scripts.command import COMMANDS as COMMANDS_OF_NEOTENY
from neoteny.scripts.evaluate import Evaluate
from neoteny.scripts.sweep import DEFAULT, Sweep
from tests.pages import PAGES, ROOT, blocks, commands, run

RESULTS = sorted((ROOT / "results").glob("*.md"))
RESULT_COMMANDS = [
    line for path in RESULTS for line in commands(path) if "/sweep.py" in line or "agents/" in line
]
README = (ROOT / "README.md").read_text()
STREAMS = (ROOT / "docs" / "streams.md").read_text()
COMMANDS = [command for path in PAGES for command in commands(path)]
AGENT_COMMANDS = sorted({line for line in COMMANDS if line.startswith("python agents/")})
(USER_STREAM,) = (
    block.text for block in blocks(ROOT / "README.md") if block.kind == "python" and "@stream" in block.text
)
AGENTS = {agent.__name__.rpartition(".")[2]: (agent.Args, agent.PRESETS) for agent in (ppo, dqn, supervised)}
# Of the pages; test_extending.py runs them.
OWN_MODULES = ("my_streams", "my_wrappers", "my_board", "my_methods")
# The others are parsed: they show nothing more, or need an extra.
RUN = ("python agents/ppo.py", "python agents/dqn.py grid-empty optim:adam --methods.isometry.coef 1e-3")


def test_the_readme_is_short():
    assert len(README.encode()) < 9_000


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_agent_commands_run(command, tmp_path):
    assert command in commands(ROOT / "README.md")
    run(f"{command} --total-steps 2048 --probes.no-pictures", tmp_path)
    assert list(tmp_path.glob("runs/**/summary.json"))


@pytest.mark.parametrize("command", [line for line in AGENT_COMMANDS if not re.search(r"\bmy_\w+:", line)])
def test_agent_commands_have_flags_that_there_are(command, capsys):
    words = shlex.split(command)
    args_type, presets = AGENTS[re.fullmatch(r"agents/(\w+)\.py", words[1])[1]]
    if "--help" not in words:
        assert isinstance(cli(args_type, presets, words[2:]), args_type)
        return
    with pytest.raises(SystemExit) as ended:
        cli(args_type, presets, words[2:])
    assert ended.value.code in (0, None)
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("command", RESULT_COMMANDS)
def test_commands_of_results_have_flags_that_there_are(command):
    sweep, _, flags = command.partition(" -- ")
    words = shlex.split(sweep)
    if words[1].startswith("agents/"):
        args_type, presets = AGENTS[words[1][len("agents/") : -len(".py")]]
        assert isinstance(cli(args_type, presets, words[2:]), args_type)
        return
    settings = script_args(Sweep, words[2:])
    for agent, optim in itertools.product(settings.agents, settings.optims):
        flags_of_run = [*(settings.presets or (DEFAULT,)), f"optim:{optim}", *shlex.split(flags)]
        assert isinstance(cli(*AGENTS[agent], flags_of_run), AGENTS[agent][0])


def test_commands_with_a_module_of_the_readers_name_one_that_a_page_makes():
    named = {name for line in AGENT_COMMANDS for name in re.findall(r"\b(my_\w+):", line)}
    assert named == set(OWN_MODULES)


@pytest.mark.slow
def test_the_ten_line_stream(tmp_path):
    assert len(USER_STREAM.strip().splitlines()) <= 10
    (tmp_path / "my_streams.py").write_text(USER_STREAM)
    command = "python agents/ppo.py --stream.id my_streams:HeavyCartPole-v0"
    assert command in AGENT_COMMANDS
    run(f"{command} --stream.period 1024 --total-steps 3072 --stream.single.workers 1 --num-envs 4", tmp_path)
    (summary,) = tmp_path.glob("runs/HeavyCartPole-v0/ppo/adamo/s1/summary.json")
    assert '"task": 2' in summary.read_text()


@pytest.mark.slow
def test_sweep_and_compare(tmp_path):
    sweep, compare = (
        next(line for line in COMMANDS if line.startswith(f"python scripts/{name}.py"))
        for name in ("sweep", "compare")
    )
    sweep = sweep.replace("--seeds 1 2 3", "--seeds 1 2") + " -- --total-steps 2048 --probes.no-pictures"
    assert "4 runs done, 0 were finished before, 0 failed" in run(sweep, tmp_path)
    assert "0 runs done, 4 were finished before, 0 failed" in run(sweep, tmp_path)
    printed = run(compare, tmp_path)
    assert re.search(r"\| adamo +\| 2 +\|", printed)
    assert "mean return, adamo - adam" in printed
    assert (tmp_path / "runs" / "comparison.png").stat().st_size > 10_000
    assert re.search(r"\* adamo: .*sigma max", run(f"{compare} --rows isometry", tmp_path))


def test_other_commands_exist():
    for command in set(COMMANDS) - set(AGENT_COMMANDS):
        words = shlex.split(command)
        if words[0] in ("tensorboard", "pip", "cp") or words[1:2] == ["my_ppo.py"]:
            continue
        if words[0] == "neoteny":
            assert words[1] in COMMANDS_OF_NEOTENY, command
            assert words[1] != "evaluate" or script_args(Evaluate, words[2:])
            continue
        script = ROOT / (words[1] if words[0] == "python" else words[0])
        assert script.exists(), command
    assert all(os.access(ROOT / "scripts" / name, os.X_OK) for name in ("demo", "test"))


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not heading or heading in anchors(target.read_text()), link


def anchors(page):
    """How links name the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_and_every_result_is_linked():
    assert {path.name for path in PAGES[1:]} == set(re.findall(r"\]\(docs/([\w.]+)\)", README))
    index = (ROOT / "results" / "README.md").read_text()
    files = {path.name for path in (ROOT / "results").iterdir()} - {"README.md"}
    assert files == set(re.findall(r"\]\(([\w.-]+)\)", index))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_paragraphs_are_short(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
    for paragraph in re.split(r"\n\s*\n|\n(?=\* |\d\. |\||#)", text):
        lines = paragraph.strip().splitlines()
        assert len(lines) <= 6, paragraph


def test_the_optimizer_snippet_runs():
    (snippet,) = (block.text for block in blocks(ROOT / "docs" / "adamo.md") if block.kind == "python")
    setup = """
import torch
model = torch.nn.Sequential()
model.add_module("hidden", torch.nn.Linear(3, 4))
model.add_module("head", torch.nn.Linear(4, 1))
loss = model(torch.ones(2, 3)).sum()
"""
    exec(setup + snippet + "loss.backward()\noptimizer.step()", {})


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", ["none", "keep"])
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_the_weights_of_a_finished_run_play(agent, normalizer, tmp_path, monkeypatch, capsys):
    page = blocks(ROOT / "docs" / "evaluating.md")
    (snippet,) = (block.text.replace("ppo", agent) for block in page if block.kind == "python")
    module, steps = {"ppo": (ppo, "1024"), "dqn": (dqn, "2048")}[agent]
    stream = ["--stream.id", "CartPole-v1", "--probes.every", "0", "--stream.normalizer", normalizer]
    monkeypatch.chdir(tmp_path)
    module.main(cli(*AGENTS[agent], [*stream, "--total-steps", steps]))
    exec(snippet, {})
    returns = re.search(r"mean return of (\d+) episodes: ([\d.]+)", capsys.readouterr().out)
    assert int(returns[1]) == 20
    assert 8 <= float(returns[2]) <= 500


def test_table_of_streams():
    rows = {name: row.split("|") for row, name in re.findall(r"^(\| `([\w-]+)` \|.*)$", STREAMS, flags=re.M)}
    for name in registered_streams():
        if "-v" not in name:  # those are made by tests
            whole, small = name.removesuffix("-small"), f"{name.removesuffix('-small')}-small"
            for id, cell in zip((whole, small), rows[whole][3:]):
                period = f"{gym.spec(id).kwargs['schedule'].period:,}" if id in registered_streams() else ""
                assert cell.strip() == period
            assert ppo.PRESETS[name].get("stream", {}).get("id", name) == name


def test_the_tree_names_every_folder_and_no_other():
    (tree,) = (block.text for block in blocks(ROOT / "README.md") if "runners/    " in block.text)
    folders, parent = [], ""
    for indent, name in re.findall(r"^( *)(\w+)/", tree, flags=re.M):
        parent = parent if indent else name
        folders.append(f"{parent}/{name}" if indent else name)
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/__init__.py")}
    packages |= {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[!t.]*/*/__init__.py")}
    assert sorted(folders) == sorted(packages | {"docs", "tests", "results"})
