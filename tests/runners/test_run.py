import dataclasses
import json
import math
import typing

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from neoteny.envs import StreamConfig
from neoteny.envs.audit import Fingerprint
from neoteny.optim import AdamConfig
from neoteny.runners.args import RunArgs
from neoteny.runners.disk.appended import read_rows
from neoteny.runners.disk.files import write_json
from neoteny.runners.disk.folder import run_folder
from tests.events import scalars
from tests.no_agent import begin, record, update


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    seed: int = 3
    total_steps: int = 50
    stream: StreamConfig = dataclasses.field(default_factory=lambda: StreamConfig("my.module:space/Name-v0"))
    optim: AdamConfig = dataclasses.field(default_factory=AdamConfig)


def episode(task, value, first):
    fingerprint = Fingerprint("spaces", {"gravity": 9.8 + task}, f"print of {task}")
    info = {"task": task, **({"fingerprint": fingerprint} if first else {})}
    return info, torch.tensor([[1.0, 0.0], [value, -99.0], [int(value), -99]], dtype=torch.float64)


def live(run):
    """Two tasks of three and two updates."""
    assert run.updates_made == 0
    run.stream.audit_seconds = 0.5
    for step, (task, value) in enumerate([(0, 1.0), (0, 2.0), (0, 3.0), (5, 4.0), (5, 6.0)], start=1):
        record(run, 10 * step, *episode(task, value, first=value in (1.0, 4.0)))
        run.lap("env")
        with run.end_update({}) as metrics:
            metrics["losses/entropy"] = 1.0
    assert run.updates_made == 5
    return run.finish(nn.Linear(2, 1))


def test_the_folder_names_stream_agent_optimizer_and_seed(tmp_path):
    folder = run_folder("ppo", Args(runs_dir=tmp_path, note="wide"))
    assert folder == tmp_path / "space-Name-v0" / "ppo" / "adam-wide" / "s3"


def test_a_run_leaves_what_it_measured(tmp_path):
    run = begin(Args(runs_dir=tmp_path))
    summary = live(run)
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    assert [visit["task"] for visit in summary["visits"]] == [0, 5]
    assert [visit["start"] for visit in summary["visits"]] == [0, 30]
    assert summary["score/late_return"] == pytest.approx((4 * 4 + 6 * 6) / 10)
    visits = list(read_rows(run.folder / "visits.jsonl"))
    print_of_5 = {"spaces": "spaces", "parameters": {"gravity": 14.8}, "rollout": "print of 5"}
    assert visits[1] == {**summary["visits"][1], "fingerprint": print_of_5}
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
    run = begin(Args(runs_dir=tmp_path))
    live(run)
    assert len(list(run.folder.glob("**/events*"))) == 1
    accumulator = EventAccumulator(str(run.folder)).Reload()
    tags = accumulator.Tags()
    assert accumulator.summary_metadata["_hparams_/experiment"]
    assert accumulator.summary_metadata["_hparams_/session_start_info"]
    assert accumulator.summary_metadata["_hparams_/session_end_info"]
    assert "custom_scalars__config__" in tags["tensors"]


def test_a_finished_run_is_refused_and_an_unfinished_one_starts_again(tmp_path, capsys):
    unfinished = begin(Args(runs_dir=tmp_path))
    unfinished.writer.metrics({"losses/entropy": 1.0}, 1)
    unfinished.close()
    again = begin(Args(runs_dir=tmp_path))
    assert "holds no checkpoint yet: the run starts from the beginning" in capsys.readouterr().err
    live(again)
    before = sorted(path.read_bytes() for path in again.folder.rglob("*.json"))
    with pytest.raises(SystemExit) as exit:
        begin(Args(runs_dir=tmp_path))
    assert exit.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(path.read_bytes() for path in again.folder.rglob("*.json")) == before
    assert live(begin(Args(runs_dir=tmp_path, overwrite=True)))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    folder = run_folder("ppo", Args(runs_dir=tmp_path))
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(SystemExit):
            begin(Args(runs_dir=tmp_path, overwrite=overwrite))
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
    with pytest.raises(ValueError, match=r"must be|may contain only"):
        Args(runs_dir=tmp_path, **bad)
    assert Args(runs_dir=tmp_path, note="wide-2.0_b")


class Part:
    """A part of a run's state that writes down when it is restored."""

    restored: typing.ClassVar[list[str]] = []

    def __init__(self, name):
        self.name = name

    def state_dict(self):
        return {"name": self.name}

    def load_state_dict(self, state):
        assert state == {"name": self.name}
        Part.restored.append(self.name)


def test_methods_are_restored_first_and_the_others_in_their_order(tmp_path):
    names = ("agent", "target", "methods", "memory")
    for _ in range(2):
        Part.restored.clear()
        run = begin(Args(runs_dir=tmp_path, checkpoint_every=1), **{name: Part(name) for name in names})
        update(run, run.stream.steps + 10)
        run.close()
    assert Part.restored == ["methods", "agent", "target", "memory"]
    assert run.updates_made == 2
    assert run.stream.steps == 20


def test_statistics_are_read_together_with_whether_values_are_finite(tmp_path, monkeypatch):
    """And together with the episodes that ended."""
    run, read, cpu = begin(Args(runs_dir=tmp_path)), [], torch.Tensor.cpu
    record(run, 10, {"task": 0}, torch.tensor([[1.0, 0.0], [5.0, 0.0], [3.0, 0.0]]))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (read.append(tensor), cpu(tensor))[1])
    third = torch.tensor(1 / 3, dtype=torch.float64)
    statistics = {"losses/entropy": torch.tensor(0.1), "charts/reward_scale": third}
    with run.end_update({"weights": nn.Linear(2, 2), "steps": torch.arange(3)}, statistics) as metrics:
        assert metrics == {"losses/entropy": torch.tensor(0.1).item(), "charts/reward_scale": 1 / 3}
    assert len(read) == 1
    run.close()
    points = scalars(run.folder)
    assert points["losses/entropy"] == [(10, pytest.approx(0.1))]
    assert points["charts/episodic_return"] == [(10, 5.0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_neither_measured_nor_saved(tmp_path, bad):
    run = begin(Args(runs_dir=tmp_path, checkpoint_every=1, video_every=1))
    record(run, 10, {"task": 0})
    with pytest.raises(SystemExit) as exit, run.end_update({"losses": torch.tensor([0.0, bad])}):
        pytest.fail("there was something to measure")
    assert exit.value.code == 70
    assert not (run.folder / "checkpoint").exists()
    assert run.updates_made == 0
    assert "losses/entropy" not in scalars(run.folder)


def test_an_error_while_it_is_measured_is_no_update(tmp_path):
    run = begin(Args(runs_dir=tmp_path, checkpoint_every=1))
    record(run, 10, {"task": 0})
    with pytest.raises(RuntimeError), run.end_update({}):
        raise RuntimeError
    run.close()
    assert not (run.folder / "checkpoint").exists()


def test_a_run_without_episodes_is_scored_by_its_own_scores(tmp_path):
    """As a supervised learner is: 0.5 on 10 samples and 0.9 on 30 are 0.8 in all."""
    run = begin(Args(runs_dir=tmp_path))
    for task, start in ((0, 0), (1, 20)):
        run.begin_visit(task, start)
        for step, (value, length) in enumerate([(0.5, 10), (0.9, 30)], start=1):
            run.stream.steps = start + 10 * step
            run.score([value], length)
            with run.end_update({}):
                pass
    summary = run.finish(nn.Linear(2, 1))
    rows = [(visit["task"], visit["start"], visit["end"], visit["episodes"]) for visit in summary["visits"]]
    assert rows == [(0, 0, 20, 2), (1, 20, 40, 2)]
    assert [visit["return_auc"] for visit in summary["visits"]] == pytest.approx([0.8, 0.8])
    assert [visit["return_at_end"] for visit in summary["visits"]] == pytest.approx([0.7, 0.7])
    expected = [(10, 0.5), (20, 0.9), (30, 0.5), (40, 0.9)]
    assert scalars(run.folder)["charts/episodic_return"] == [(x, pytest.approx(y)) for x, y in expected]
