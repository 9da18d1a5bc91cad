"""The project's virtual environment, made on first use and kept while it is current; needs only Python."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TYPECHECK = ROOT / ".typecheck"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def enter() -> None:
    """Return inside an installed ``.venv``, or run the calling script there instead."""
    if sys.version_info < (3, 11):  # noqa: UP036  (pip has not checked it yet)
        sys.exit("neoteny needs Python 3.11 or newer")
    wanted = hashlib.sha256()
    for name in ("pyproject.toml", "scripts/constraints.txt"):
        wanted.update((ROOT / name).read_bytes())
    stamp = VENV / "installed"
    if not stamp.exists() or stamp.read_text() != wanted.hexdigest():
        print("Installing into .venv (once) ...", flush=True)
        venv.create(VENV, with_pip=True, clear=Path(sys.prefix) != VENV)
        install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*install, "-c", "scripts/constraints.txt", "-e", ".[analysis,atari,dev]"], cwd=ROOT, check=True
        )
        stamp.write_text(wanted.hexdigest())
    # Type checkers and editors do not follow the import hook of the editable installation: to them
    # neoteny.optim must be a path.
    TYPECHECK.mkdir(exist_ok=True)
    if not (TYPECHECK / "neoteny").is_symlink():
        (TYPECHECK / "neoteny").symlink_to("..", target_is_directory=True)
    if Path(sys.prefix) == VENV:
        return
    command = [str(PYTHON), *sys.argv]
    if os.name == "posix":
        os.execv(PYTHON, command)  # in place of this process, so that signals reach the script
    sys.exit(subprocess.call(command))
