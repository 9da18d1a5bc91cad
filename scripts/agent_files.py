"""Finding agents: those of neoteny by name, a user's own by file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import neoteny.agents
from neoteny.configs.flags import no_such
from neoteny.envs.registry import explained_end


def agent_names() -> list[str]:
    """Names of the agents of neoteny: the files of `agents/` that can be run."""
    files = (path for folder in neoteny.agents.__path__ for path in Path(folder).glob("*.py"))
    return sorted(path.stem for path in files if "launch(" in path.read_text())


def load_agent(agent: str) -> ModuleType:
    """Import an agent.

    Args:
        agent: name of one of neoteny's, or the file of a user's own, ending in `.py`, which only the user
            may name: importing it runs its code.

    Raises:
        ValueError: there is no such agent, or it lacks what an agent must offer.
        Exception: any exception of the user's file.
    """
    if not agent.endswith(".py"):
        if agent not in agent_names():
            raise ValueError(no_such("agent", agent, agent_names(), "neoteny list"))
        return importlib.import_module(f"neoteny.agents.{agent}")
    path = Path(agent).resolve()
    if not path.is_file():
        raise ValueError(f"there is no agent {path}")
    sys.path.insert(0, str(path.parent))  # as Python does for a file that it runs
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    with explained_end(path.name):
        spec.loader.exec_module(module)
    missing = [name for name in ("Args", "PRESETS", "main") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}, which agents/ppo.py shows")
    return module
