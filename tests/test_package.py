"""The folders at the root are one package, and installing it brings nothing else."""

import doctest
import importlib
import itertools
import re
import subprocess
import sys
import tomllib
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
def test_an_installation_brings_neoteny_and_nothing_else(tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet"]
    # A copy of the sources, since setuptools leaves its build folder in them.
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    subprocess.run([*install, "--target", tmp_path / "site", source], check=True)
    installed = {path.name for path in (tmp_path / "site").iterdir()}
    assert {re.sub(r"-.*", "", name) for name in installed} == {"neoteny"}
    # Without the editable installation's finder, so that the copy is what is imported.
    script = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, {str(tmp_path / "site")!r})
import neoteny.optim
from neoteny.optim import AdamO
assert "site/neoteny/optim" in neoteny.optim.__file__
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


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
