"""The folders at the root are one package, and installing it brings nothing else."""

import doctest
import importlib
import itertools
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_equals_the_folders():
    folders = [path.parent for part in PARTS for path in (ROOT / part).rglob("__init__.py")]
    packages = {"neoteny." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    assert folders == {f"neoteny.{part}": part for part in PARTS}
    assert all((ROOT / part / "py.typed").exists() for part in PARTS)


@pytest.mark.slow
def test_an_installation_brings_neoteny_and_nothing_else_and_can_be_undone(tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    bin = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", bin / "python"]
    # A copy of the sources, since setuptools leaves its build folder in them.
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*wheel, "--wheel-dir", tmp_path, source], check=True)
    before = files(tmp_path / "env")
    subprocess.run([*pip, "install", "--no-deps", "--quiet", *tmp_path.glob("*.whl")], check=True)
    added = {path for path in files(tmp_path / "env") - before if "__pycache__" not in path.parts}
    (site,) = (tmp_path / "env").glob("**/site-packages")
    outside = {path.relative_to(tmp_path / "env") for path in added if not path.is_relative_to(site)}
    assert {path.stem for path in outside} == {"neoteny"}
    inside = {path.relative_to(site).parts[0] for path in added if path.is_relative_to(site)}
    assert {re.sub(r"-.*", "", name) for name in inside} == {"neoteny"}
    done = subprocess.run([bin / "neoteny", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert "neoteny COMMAND" in done.stdout, done.stderr
    script = f"""
import sys
sys.path += {[path for path in sys.path if "site-packages" in path]}  # of PyTorch and the others
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import neoteny.optim
from neoteny.optim import AdamO
assert {str(site)!r} in neoteny.optim.__file__
from neoteny.scripts.agent_files import agent_names
assert agent_names() == ["dqn", "ppo"]
"""
    subprocess.run([bin / "python", "-c", script], cwd=tmp_path, check=True)
    subprocess.run([*pip, "uninstall", "--yes", "--quiet", "neoteny"], check=True)
    assert files(tmp_path / "env") == before


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


FILES = [path for part in PARTS for path in (ROOT / part).rglob("[!_]*.py") if ">>> " in path.read_text()]
MODULES = ["neoteny." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_docstring_examples(module):
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert attempted
    assert failed == 0


def test_constraints_hold_every_dependency():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *itertools.chain(*extras)]
    assert {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted} <= pinned
