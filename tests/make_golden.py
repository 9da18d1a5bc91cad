"""Make the checkpoint that later versions must be able to resume: python -m tests.make_golden."""

import contextlib
import shutil
import tempfile
import tomllib
from pathlib import Path

import torch

from neoteny.agents import ppo
from neoteny.runners.disk.folder import run_folder
from tests.tiny_runs import GOLDEN, ROOT, TOTAL, small

if __name__ == "__main__":
    torch.set_num_threads(1)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        args = small(Path("runs"), total_steps=TOTAL // 2)
        ppo.main(args)
        made = run_folder("ppo", args)
        shutil.rmtree(GOLDEN / version, ignore_errors=True)
        newest = max((made / "checkpoint").glob("step_*"))
        shutil.copytree(newest, GOLDEN / version / newest.name)
        shutil.copy(made / "args.json", GOLDEN / version)
