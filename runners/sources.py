"""The code that a run executes, as hashes of its sources, so that a change before a resume is noticed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import neoteny.runners
from neoteny.envs.user_code import PACKAGE_FOLDERS, is_installed

ROOT = Path(neoteny.runners.__file__).resolve().parents[1]
PARTS = ("agents", "configs", "envs", "optim", "runners")


class Sources:
    """Hashes of the agent's file, of neoteny, and of all other modules outside of installed packages.

    A hash is taken when a module is first seen, and the agent's file is no module.

    Args:
        agent: file of the agent.
    """

    def __init__(self, agent: Path) -> None:
        self.agent_file = agent.resolve()
        self.agent = _digest(self.agent_file)
        self.neoteny = _digest(*(path for path in _own_files() if path != self.agent_file))
        self.modules: dict[str, str] = {}
        self._seen: set[str] = set()
        self.update()

    def update(self) -> None:
        """Add the modules that were imported since the last call."""
        for name in sys.modules.keys() - self._seen:
            self._seen.add(name)
            file = _file(sys.modules.get(name))
            if file is None or name.startswith("neoteny.") or is_installed(file):
                continue
            path = Path(file)
            if path.resolve() != self.agent_file:
                self.modules[path.stem if name == "__main__" else name] = _digest(path)

    def as_dict(self) -> dict[str, Any]:
        """All hashes, for ``meta.json`` and checkpoints."""
        return {"agent": self.agent, "neoteny": self.neoteny, "modules": dict(self.modules)}


def agent_file(agent: str, args: Any) -> Path:
    """The file of an agent that is given by its file, or else by its name and arguments."""
    if agent.endswith(".py"):
        return Path(agent)
    try:
        return Path(inspect.getfile(type(args)))
    except (OSError, TypeError):  # typed into an interpreter
        return Path(agent)


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages of which a module is imported, by package."""
    packages: set[str] = set()
    for name in {module.partition(".")[0] for module in list(sys.modules)}:
        file = _file(sys.modules.get(name))
        if file is not None and PACKAGE_FOLDERS.intersection(Path(file).parts):
            packages.update(_packages().get(name, ()))
    versions = {name.replace("_", "-"): version(name) for name in sorted(packages)}
    return {name: known for name, known in versions.items() if known is not None}


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """Installed packages by the name of a module, which may be another: ``cv2`` is from opencv-python."""
    return importlib.metadata.packages_distributions()


@functools.cache
def version(package: str) -> str | None:
    """The version of an installed package; None if no package has this name."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _own_files() -> Iterator[Path]:
    """All source files of neoteny, in a fixed order."""
    for part in PARTS:
        yield from sorted((ROOT / part).rglob("*.py"))


def _file(module: ModuleType | None) -> str | None:
    """The file of a module, if it has one."""
    file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    return file if isinstance(file, str) else None


def _digest(*files: Path) -> str:
    """The SHA-256 of files, in hexadecimal; a file that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for file in files:
        data = file.read_bytes() if file.is_file() else b""
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()
