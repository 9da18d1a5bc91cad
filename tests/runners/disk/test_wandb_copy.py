"""wandb sees the events of a run, though it looks for those of PyTorch's writer only."""

import os
import subprocess
import sys
import types

import pytest
import torch.utils.tensorboard.writer as pytorch
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from neoteny.runners.disk.events import EventWriter, event_files, read_points


def wandb_is_active(monkeypatch, folder, made):
    """What wandb does to PyTorch's writer when it is asked to read TensorBoard's files."""

    class Patched(EventFileWriter):
        def __init__(self, logdir, *args, **kwargs):
            made.append(logdir)
            super().__init__(logdir, *args, **kwargs)

    wandb = types.ModuleType("wandb")
    wandb.run = types.SimpleNamespace(dir=str(folder / "offline-run" / "files"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(pytorch, "EventFileWriter", Patched)


def write(folder):
    folder.mkdir(exist_ok=True)
    writer = EventWriter(folder, 1)
    writer.metrics({"losses/entropy": 0.5}, 3)
    writer.metrics({"losses/entropy": 0.25}, 4)
    writer.close()


def test_every_point_is_in_the_folder_of_wandb_s_run_too(tmp_path, monkeypatch):
    made = []
    wandb_is_active(monkeypatch, tmp_path, made)
    write(tmp_path / "run")
    assert made == [str(tmp_path / "offline-run" / "tensorboard")]
    for folder in (tmp_path / "run", tmp_path / "offline-run" / "tensorboard"):
        assert read_points(folder) == {"losses/entropy": [(3, 0.5), (4, 0.25)]}
    assert len(event_files(tmp_path / "run")) == 1


def test_without_wandb_or_without_its_run_there_is_no_copy(tmp_path, monkeypatch):
    made = []
    wandb_is_active(monkeypatch, tmp_path, made)
    sys.modules["wandb"].run = None
    write(tmp_path / "run")
    monkeypatch.delitem(sys.modules, "wandb")
    write(tmp_path / "other")
    assert made == []


def test_a_copy_that_cannot_be_written_does_not_disturb_the_run(tmp_path, monkeypatch, capsys):
    wandb_is_active(monkeypatch, tmp_path, [])
    (tmp_path / "offline-run").write_text("a file in place of a folder")
    write(tmp_path / "run")
    assert read_points(tmp_path / "run") == {"losses/entropy": [(3, 0.5), (4, 0.25)]}
    assert capsys.readouterr().err.count("wandb gets no more points") == 1


SCRIPT = """
import pathlib, sys, wandb
wandb.init(project="test", sync_tensorboard=True, dir=".")
from neoteny.runners.disk.events import EventWriter
writer = EventWriter(pathlib.Path("."), 1)
for step in range(3):
    writer.metrics({"losses/entropy": 0.5}, step)
writer.close()
wandb.finish()
"""


def test_wandb_itself_records_the_points(tmp_path):
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"}, timeout=120
    )
    assert done.returncode == 0
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"losses/entropy" in record.read_bytes()
