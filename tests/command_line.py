"""Runs that are started as from the command line, in this process."""

import gc
import sys

from neoteny.configs.cli import launch


def ending(module, words, monkeypatch):
    """The exit code of an agent's run; 0 if it finished."""
    monkeypatch.setattr(sys, "argv", ["agent.py", *words])
    code = 0
    try:
        launch(module.main, module.Args, module.PRESETS)
    except SystemExit as exit:
        code = exit.code
    gc.collect()  # closes the run
    return code
