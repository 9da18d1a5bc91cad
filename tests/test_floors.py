"""What may import what: a file imports its own folder and those below it, whatever way the import is written.

scripts -> agents -> configs -> runners -> envs and optim, which know nothing of each other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"envs": set(), "optim": set()}
BELOW["runners"] = {"envs", "optim"}
BELOW["configs"] = {"runners", *BELOW["runners"]}
BELOW["agents"] = {"configs", *BELOW["configs"]}
BELOW["scripts"] = {"agents", *BELOW["agents"]}
SCRIPTS = {path.stem for path in (ROOT / "scripts").iterdir() if path.is_file()}
ANY = "?"
"""What cannot be known before the program runs."""
IMPORTERS = {"import_module", "__import__", "find_spec", "run_module"}
# A stream of the user's own is imported from where the user says.
DYNAMIC = {"envs/registry.py"}
FILES = sorted(
    path
    for floor in BELOW
    for path in (ROOT / floor).rglob("*")
    if path.suffix == ".py" or (path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python"))
)


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of every import, at whatever depth; `ANY` ends what is not all known.

    Args:
        source: Of a file.
        package: The package that the file is in, as `neoteny.envs`.
    """
    tree = ast.parse(source)
    called = IMPORTERS | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in IMPORTERS and alias.asname
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), package)
            # What is imported from a package may be a module of it.
            yield from ((node.lineno, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in called and (arguments := [*node.args, *(word.value for word in node.keywords)]):
                anchors = [text(argument) for argument in arguments[1:]]
                anchor = next((known for known in anchors if known.startswith("neoteny")), package)
                yield node.lineno, absolute(text(arguments[0]), anchor)


def absolute(name: str, package: str) -> str:
    """The full name for one that may begin with dots."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *filter(None, [name[level:]])])


def text(node: ast.expr) -> str:
    """The text that an expression gives, with `ANY` for what is not known from where on."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ANY
    if isinstance(node, ast.JoinedStr):
        known = ""
        for part in node.values:
            if not isinstance(part, ast.Constant):
                return known + ANY
            known += part.value
        return known
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left = text(node.left)
        return left if ANY in left else left + text(node.right)
    return ANY


def climbing(source: str, floor: str, file: str = "") -> list[str]:
    """The imports of a file that its floor does not allow."""
    wrong = []
    for line, name in imports(source, f"neoteny.{floor}"):
        parts = name.split(".")
        target = parts[1] if parts[0] == "neoteny" and len(parts) > 1 else parts[0]
        if target in SCRIPTS and parts[0] != "neoteny":
            target = "scripts"
        if ANY in target:
            allowed = floor == "scripts" or (file in DYNAMIC and parts[0] == ANY)
        elif target in BELOW:
            allowed = target == floor or target in BELOW[floor]
        elif parts[0] == "neoteny":
            allowed = False  # the whole package, or a part of it that there is not
        else:
            allowed = target != "tests"
        if not allowed:
            wrong.append(f"{file}:{line} imports {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_above(path):
    file = path.relative_to(ROOT).as_posix()
    assert not climbing(path.read_text(), file.partition("/")[0], file)


def test_every_file_is_read_and_every_package_has_a_floor():
    assert len(FILES) > 50
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == BELOW.keys()
    assert {path.name for path in FILES} >= {"demo", "test", "__init__.py", "ppo.py", "bench.py"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == BELOW.keys()


CLIMBING = [
    ("envs", "import neoteny.optim"),
    ("optim", "from neoteny.envs import Stream"),
    ("optim", "from neoteny.envs.stream import Stream as S"),
    ("runners", "import torch, neoteny.agents.ppo as ppo"),
    ("runners", "from neoteny import agents"),
    ("runners", "from neoteny.configs import cli"),
    ("configs", "from neoteny.agents.ppo import Args"),
    ("agents", "import bench"),
    ("agents", "from neoteny.scripts import bench"),
    ("agents", "from scripts import bench"),
    ("runners", "import peers"),
    ("envs", "from neoteny.runners.disk.exit_codes import stop"),
    ("optim", "from runners import exit_codes"),
    ("optim", "import neoteny"),
    ("optim", "from neoteny.plugins import thing"),
    ("scripts", "from tests.events import scalars"),
    # deep inside
    ("optim", "def f():\n    from neoteny.runners import probes"),
    ("optim", "class A:\n    async def f(self):\n        if self:\n            import neoteny.agents"),
    ("envs", "if TYPE_CHECKING:\n    from neoteny.runners.run import Run"),
    ("envs", "try:\n    import torch\nexcept ImportError:\n    from neoteny.agents import networks"),
    # relative
    ("envs", "from ..optim import layers"),
    ("optim", "from .. import envs"),
    ("configs", "from ..agents.ppo import Args"),
    ("runners", "from ..configs import cli"),
    # dynamic
    ("envs", "import importlib\nimportlib.import_module('neoteny.optim')"),
    ("runners", "importlib.import_module(name='neoteny.agents.ppo')"),
    ("runners", "from importlib import import_module\nimport_module(f'neoteny.agents.{name}')"),
    ("runners", "from importlib import import_module as load\nload('neoteny.agents')"),
    ("runners", "importlib.import_module(f'neoteny.{part}.ppo')"),
    ("runners", "importlib.import_module('neoteny.' + part)"),
    ("runners", "importlib.import_module('neoteny.agents.' + name)"),
    ("runners", "importlib.import_module('..agents.ppo', 'neoteny.runners')"),
    ("runners", "importlib.import_module('.ppo', package='neoteny.agents')"),
    ("runners", "importlib.import_module(name)"),
    ("optim", "__import__('neoteny.runners.probes')"),
    ("optim", "def f():\n    return __import__(f'neoteny.runners.{name}')"),
    ("optim", "importlib.util.find_spec('neoteny.runners')"),
    ("optim", "runpy.run_module('neoteny.agents.ppo')"),
]


@pytest.mark.parametrize(("floor", "source"), CLIMBING)
def test_what_climbs_is_found(floor, source):
    assert len(climbing(source, floor)) == 1


FINE = [
    ("envs", "from neoteny.envs.stream import Stream\nfrom neoteny import envs\nfrom . import tasks"),
    ("envs", "from .stream import Stream\nfrom ..envs import tasks"),
    (
        "runners",
        "from neoteny.envs import Stream\nfrom neoteny.optim import Methods\nfrom ..optim import layers",
    ),
    ("configs", "import neoteny.runners.run, neoteny.envs, neoteny.optim"),
    ("agents", "from neoteny import configs, runners, envs, optim, agents"),
    ("scripts", "import environment\nfrom neoteny.scripts import bench\nfrom neoteny.agents import ppo"),
    ("scripts", "importlib.import_module(f'neoteny.agents.{name}')\nimportlib.import_module(name)"),
    ("runners", "importlib.import_module(f'neoteny.envs.{name}')\n__import__('torch')"),
    ("optim", "import torch\nfrom torch import nn\n'neoteny.agents'\nprint('import neoteny.agents')"),
    ("optim", "# import neoteny.agents\nagents = runners = 1"),
    ("envs", "importlib.util.find_spec('Box2D')"),
]


@pytest.mark.parametrize(("floor", "source"), FINE)
def test_what_does_not_climb_is_left_alone(floor, source):
    assert not climbing(source, floor)


def test_a_module_that_the_user_names_is_imported_in_one_place_alone():
    source = "importlib.import_module(module)"
    assert not climbing(source, "envs", "envs/registry.py")
    assert climbing(source, "envs", "envs/single/workers.py")
    assert climbing("importlib.import_module(f'neoteny.{module}')", "envs", "envs/registry.py")


@pytest.mark.parametrize("file", ["stream.py", "engine.py", "tasks.py", "observations.py", "schedule.py"])
def test_a_stream_knows_no_engine_and_no_package_of_environments(file):
    """The packages may be named in prose, but engines and packages are known to envs/config.py alone."""
    source = (ROOT / "envs" / file).read_text()
    names = [name for _, name in imports(source, "neoteny.envs")]
    engines = {path.parent.name for path in (ROOT / "envs").glob("*/engine.py")}
    assert len(engines) >= 3
    for name in names:
        assert name.split(".")[0] in {"neoteny", "gymnasium", *sys.stdlib_module_names, "numpy", "torch"}, (
            name
        )
        assert not engines & set(name.split(".")), name
    if file in ("stream.py", "engine.py"):
        assert not re.search(rf"(?i)minigrid|ale_py|\b({'|'.join(engines)})\.", source)


def test_a_schedule_needs_no_simulator():
    script = """
import neoteny.envs.schedule, sys
assert not {"minigrid", "pygame", "tyro", "ale_py"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
