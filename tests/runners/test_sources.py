"""Of code that is imported in the middle of a run, and of packages of other names, nothing is missed."""

import importlib
import importlib.metadata
import json
import sys
import sysconfig
from pathlib import Path

import pytest

from neoteny.agents import ppo
from neoteny.envs.user_code import is_installed
from neoteny.runners.identity import Identity
from neoteny.runners.run import Run
from neoteny.runners.sources import installed_versions
from tests.runners.test_exactness import small


@pytest.fixture
def late(tmp_path, monkeypatch):
    """Imports a module that was not imported before."""
    (tmp_path / "imported_late.py").write_text("PAY = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)
    return lambda: importlib.import_module("imported_late")


def test_a_changed_module_is_told_once_it_is_imported(tmp_path, late):
    identity = Identity(ppo.__file__, small(tmp_path, "CartPole-v1"))
    code = identity.code()
    code["modules"]["imported_late"] = "of another text"
    state = {"machine": identity.machine, "config": identity.config, "code": code, "inexact": []}
    assert identity.inexact(state) == []
    late()
    assert identity.changed_code() == ["the code of imported_late was changed"]


def test_what_is_imported_after_the_last_checkpoint_is_in_meta_json(tmp_path, late, monkeypatch):
    end_update = Run.end_update
    monkeypatch.setattr(Run, "end_update", lambda *args, **options: late() and end_update(*args, **options))
    ppo.main(small(tmp_path, "CartPole-v1", checkpoint_every=0, total_steps=64))
    (path,) = tmp_path.glob("runs/*/*/*/s1/meta.json")
    assert "imported_late" in json.loads(path.read_text())["code"]["modules"]


def test_versions_of_packages_whose_modules_have_other_names_are_known():
    importlib.import_module("PIL")
    importlib.import_module("dateutil")
    versions = installed_versions()
    assert versions["pillow"] == importlib.metadata.version("pillow")
    assert versions["python-dateutil"] == importlib.metadata.version("python-dateutil")
    assert versions["torch"] == importlib.metadata.version("torch")


def test_a_folder_beside_pythons_own_is_a_users():
    library = sysconfig.get_path("stdlib")
    assert is_installed(str(Path(library) / "json" / "__init__.py"))
    assert not is_installed(str(Path(f"{library}-mine") / "environment.py"))
