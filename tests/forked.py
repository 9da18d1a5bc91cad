"""Scripts in processes of their own, forked from one that has imported already what takes them seconds.

For tests of what a command does. Those of imports, of signals during them, and of encodings start Python.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from neoteny.envs.single import workers

IMPORTED = [
    "neoteny.agents.dqn",
    "neoteny.agents.ppo",
    "gymnasium.envs.classic_control.cartpole",
    "matplotlib.pyplot",
    "torch._dynamo",  # which the first step of an optimizer imports
]


def context():
    """Starts processes that are forked from one with all imports."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)
    return server


def serve(*arguments):
    """Serve as a worker, whose parent is the process that asked for it and not the one it is forked from."""
    os.getppid = lambda: multiprocessing.parent_process().pid
    workers.serve(*arguments)


def python(script, *words, cwd, timeout=300):
    """A script's exit code and output, as `subprocess.run` returns them."""
    command = [str(script), *map(str, words)]
    if "forkserver" not in multiprocessing.get_all_start_methods():  # on Windows
        return subprocess.run(
            [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = context().Process(target=_main, args=(command, cwd, dict(os.environ), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _main(command, cwd, environ, *outputs):
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).resolve().parent))  # as Python itself does
    runpy.run_path(command[0], run_name="__main__")
