import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from neoteny.envs import StreamConfig
from neoteny.envs.audit import Fingerprint
from neoteny.optim import AdamConfig
from neoteny.runners.args import RunArgs
from neoteny.runners.disk.files import write_json
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.run import Run
from tests.events import scalars


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    seed: int = 3
    stream: StreamConfig = dataclasses.field(default_factory=lambda: StreamConfig("my.module:space/Name-v0"))
    optim: AdamConfig = dataclasses.field(default_factory=AdamConfig)


def episode(task, value):
    ended = torch.tensor([True, False]).numpy()
    values = torch.tensor([value, -99.0]).numpy()
    return {
        "task": task,
        "fingerprint": Fingerprint("spaces", {"gravity": 9.8 + task}, f"print of {task}"),
        "audit_seconds": 0.5,
        "episode_return": values,
        "_episode_return": ended,
        "episode_length": values.astype(int),
        "_episode_length": ended,
    }


def live(run):
    """Two tasks of three and two updates."""
    assert run.resume() == 0
    for step, (task, value) in enumerate([(0, 1.0), (0, 2.0), (0, 3.0), (5, 4.0), (5, 6.0)], start=1):
        run.record_episodes(10 * step, episode(task, value))
        run.lap("env")
        run.log_update(10 * step, {"losses/entropy": 1.0})
    return run.finish(nn.Linear(2, 1))


def test_the_folder_names_stream_agent_optimizer_and_seed(tmp_path):
    folder = run_folder("ppo", Args(runs_dir=tmp_path, note="wide"))
    assert folder == tmp_path / "space-Name-v0" / "ppo" / "adam-wide" / "s3"


def test_a_run_leaves_what_it_measured(tmp_path):
    run = Run("ppo", Args(runs_dir=tmp_path), total_steps=50)
    summary = live(run)
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    assert [visit["task"] for visit in summary["visits"]] == [0, 5]
    assert [visit["start"] for visit in summary["visits"]] == [0, 30]
    assert summary["score/late_return"] == pytest.approx((4 * 4 + 6 * 6) / 10)
    visits = json.loads((run.folder / "stream.json").read_text())["visits"]
    print_of_5 = {"spaces": "spaces", "parameters": {"gravity": 14.8}, "rollout": "print of 5"}
    assert visits[1] == {"task": 5, "start": 30, "fingerprint": print_of_5}
    assert summary["seconds"]["audit"] == 0.5
    assert [visit["recovered"] for visit in summary["visits"]] == [None, False]
    assert json.loads((run.folder / "args.json").read_text())["optim"]["name"] == "adam"
    meta = json.loads((run.folder / "meta.json").read_text())
    assert meta["versions"]["torch"]
    assert meta["resume_exact"] is True
    assert load_file(run.folder / "checkpoint" / "weights.safetensors").keys() == {"weight", "bias"}

    events = scalars(run.folder)
    assert events["charts/episodic_return"] == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0), (50, 6.0)]
    assert events["task/return_at_end"] == [(0, 2.0), (1, 5.0)]
    assert events["stream/task"] == [(10, 0), (20, 0), (30, 0), (40, 5), (50, 5)]
    assert events["stream/fingerprint_changed"] == [(30, 1.0)]
    assert events["task/recovery_steps"] == [(1, 20.0)]
    assert events["task/recovered"] == [(1, 0.0)]
    assert {"charts/SPS", "time/env", "score/early_return", "losses/entropy"} <= events.keys()


def test_hparams_and_charts_are_in_the_run_s_own_event_file(tmp_path):
    run = Run("ppo", Args(runs_dir=tmp_path), total_steps=50)
    live(run)
    assert len(list(run.folder.glob("**/events*"))) == 1
    accumulator = EventAccumulator(str(run.folder)).Reload()
    tags = accumulator.Tags()
    assert accumulator.summary_metadata["_hparams_/experiment"]
    assert accumulator.summary_metadata["_hparams_/session_start_info"]
    assert accumulator.summary_metadata["_hparams_/session_end_info"]
    assert "custom_scalars__config__" in tags["tensors"]


def test_a_finished_run_is_refused_and_an_unfinished_one_starts_again(tmp_path, capsys):
    unfinished = Run("ppo", Args(runs_dir=tmp_path), total_steps=50)
    unfinished.writer.metrics({"losses/entropy": 1.0}, 1)
    unfinished.close()
    again = Run("ppo", Args(runs_dir=tmp_path), total_steps=50)
    assert "holds no checkpoint yet: it starts again" in capsys.readouterr().err
    live(again)
    before = sorted(path.read_bytes() for path in again.folder.rglob("*.json"))
    with pytest.raises(SystemExit) as exit:
        Run("ppo", Args(runs_dir=tmp_path), total_steps=50)
    assert exit.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(path.read_bytes() for path in again.folder.rglob("*.json")) == before
    assert live(Run("ppo", Args(runs_dir=tmp_path, overwrite=True), total_steps=50))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    folder = run_folder("ppo", Args(runs_dir=tmp_path))
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(SystemExit):
            Run("ppo", Args(runs_dir=tmp_path, overwrite=overwrite), total_steps=50)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.0], "c": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0], "c": str(tmp_path)}


@pytest.mark.parametrize("device", ["tpu", "cuda:99", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(ValueError, match=f"--device {device} cannot be used"):
        Args(runs_dir=tmp_path, device=device)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"note": "../up"}, {"note": "two words"}, {"threads": 0}])
def test_what_cannot_name_a_run_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="must be"):
        Args(runs_dir=tmp_path, **bad)
    assert Args(runs_dir=tmp_path, note="wide-2.0_b")
