"""Runs before and after a change are compared bit by bit: the smallest difference is found."""

import importlib
import json
import math
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from neoteny.configs.cli import cli
from neoteny.scripts import neutral
from tests.forked import python

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL on Windows", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def ulp(value):
    """The next larger number of float32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return struct.unpack("<f", struct.pack("<i", bits + 1))[0]


class Finished:
    """The contents of a finished run, to be changed and written."""

    def __init__(self):
        self.weights = {
            "actor.head.weight": torch.tensor([[0.25, -1.5], [math.nan, 0.0]]),
            "steps": torch.tensor(7),
        }
        self.scalars = {
            "losses/entropy": 0.7,
            "plasticity/lost": math.nan,
            "time/learn": 1.0,
            "charts/SPS": 2.0,
        }
        self.histogram = HistogramProto(min=1, max=2, num=2, sum=3, bucket_limit=[1, 2], bucket=[1, 1])
        self.image = b"a picture"
        self.texts = {"stream/switch": "0 -> 1", "setup": "a machine"}
        self.summary = {"score/return_auc": 0.1, "visits": [{"task": 0}], "seconds": {"learn": 1.0}}

    def write(self, folder):
        (folder / "checkpoint").mkdir(parents=True)
        save_file(self.weights, folder / "checkpoint" / "weights.safetensors")
        (folder / "summary.json").write_text(json.dumps(self.summary))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in self.scalars.items()]
        values.append(Summary.Value(tag="spectra/q.linear1", histo=self.histogram))
        values.append(Summary.Value(tag="videos", image=Summary.Image(encoded_image_string=self.image)))
        values += [value for tag, output in self.texts.items() for value in text(tag, output).value]
        with open(folder / "events.out.tfevents.0000000001", "wb") as file:
            writer = RecordWriter(file)
            for step in (64, 128):
                event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
                writer.write(event.SerializeToString())
        return neutral.results(folder)


def change_weight(run):
    run.weights["actor.head.weight"][0, 1] = ulp(-1.5)


def change_nan(run):
    run.weights["actor.head.weight"].view(torch.int32)[1, 0] += 1


def change_zero(run):
    run.weights["actor.head.weight"][1, 1] = -0.0


def change_type(run):
    run.weights["steps"] = torch.tensor(7, dtype=torch.int32)


def change_shape(run):
    run.weights["steps"] = run.weights["steps"][None]


def remove_weight(run):
    del run.weights["steps"]


def change_scalar(run):
    run.scalars["losses/entropy"] = ulp(0.7)


def remove_tag(run):
    del run.scalars["plasticity/lost"]


def add_tag(run):
    run.scalars["losses/more"] = 0.0


def change_bucket(run):
    run.histogram.bucket_limit[0] = math.nextafter(1, 2)


def change_sum(run):
    run.histogram.sum = math.nextafter(3, 4)


def change_image(run):
    run.image = b"a picturf"


def change_text(run):
    run.texts["stream/switch"] = "0 -> 2"


def change_score(run):
    run.summary["score/return_auc"] = math.nextafter(0.1, 1)


def change_visits(run):
    run.summary["visits"][0]["task"] = 1


@pytest.mark.parametrize(
    ("change", "output", "more"),
    [
        (change_weight, "actor.head.weight in the weights differs", 0),
        (change_nan, "actor.head.weight in the weights differs", 0),
        (change_zero, "actor.head.weight in the weights differs", 0),
        (change_type, "steps in the weights differs", 0),
        (change_shape, "steps in the weights differs", 0),
        (remove_weight, "steps in the weights is gone", 0),
        (change_scalar, "losses/entropy at step 64 differs", 1),
        (remove_tag, "plasticity/lost at step 64 is gone", 1),
        (add_tag, "losses/more at step 64 is new", 1),
        (change_bucket, "spectra/q.linear1 at step 64 differs", 1),
        (change_sum, "spectra/q.linear1 at step 64 differs", 1),
        (change_image, "videos at step 64 differs", 1),
        (change_text, "stream/switch/text_summary at step 64 differs", 1),
        (change_score, "score/return_auc in the summary differs", 0),
        (change_visits, "visits in the summary differs", 0),
    ],
)
def test_the_smallest_difference_is_found(change, output, more, tmp_path):
    changed = Finished()
    change(changed)
    before, after = Finished().write(tmp_path / "before"), changed.write(tmp_path / "after")
    assert neutral.verdict(before, after) == output + ", and 1 more" * more
    assert neutral.verdict(after, after) == "equal"


def test_what_depends_on_the_clock_is_not_compared(tmp_path):
    later = Finished()
    later.scalars |= {"time/learn": 3.0, "time/more": 3.0, "charts/SPS": 4.0}
    later.texts["setup"] = "another machine"
    later.summary["seconds"] = {"learn": 2.0, "more": 3.0}
    before, after = Finished().write(tmp_path / "before"), later.write(tmp_path / "after")
    assert neutral.verdict(before, after) == "equal"
    assert sum(map(len, before.points.values())) == 2 * 5


def test_points_are_compared_in_order_and_with_repeats(tmp_path):
    before = Finished().write(tmp_path)
    values = before.points[64, "losses/entropy"]
    twice = before._replace(points={**before.points, (64, "losses/entropy"): values * 2})
    assert neutral.verdict(before, twice) == "losses/entropy at step 64 differs"


def test_old_names_are_read_as_new_ones(tmp_path, monkeypatch):
    renamed = Finished()
    renamed.weights["actor.out.weight"] = renamed.weights.pop("actor.head.weight")
    renamed.scalars["update/entropy"] = renamed.scalars.pop("losses/entropy")
    renamed.summary["score/mean"] = renamed.summary.pop("score/return_auc")
    sides = [Finished().write(tmp_path / "before"), renamed.write(tmp_path / "after")]
    assert neutral.verdict(*sides) == "losses/entropy at step 64 is gone, and 7 more"
    names = {
        r"(.+)\.head\.(.+)": r"\1.out.\2",
        "losses/entropy": "update/entropy",
        "score/return_auc": "score/mean",
    }
    monkeypatch.setattr(neutral, "RENAMED_NAMES", names)
    sides = [neutral.results(tmp_path / side) for side in ("before", "after")]
    assert neutral.verdict(*sides) == neutral.verdict(*reversed(sides)) == "equal"


@pytest.mark.slow
@pytest.mark.parametrize("name", neutral.COMMANDS)
def test_commands_are_written_in_the_newest_words(name):
    agent, *flags = neutral.COMMANDS[name].split()
    cli(importlib.import_module(f"neoteny.agents.{agent}").Args, {}, flags)


# A tree whose agents need no time: they leave the run that is in the folder `run`.
AGENT = """
import shutil, signal, sys, time
from pathlib import Path

def main():
    if "--help" in sys.argv:
        print("[--probes.every INT] {optim:adam}")
    elif "--fail" in sys.argv:
        sys.exit("error: no such thing\\n---")
    elif "--stop" in sys.argv and not Path("runs/a").exists():
        Path("runs/a/checkpoint/step_1").mkdir(parents=True)
        time.sleep(60)
    else:
        shutil.copytree(Path(__file__).parent.parent / "run", "runs/a", dirs_exist_ok=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository of one commit, in whose working tree one weight was changed since."""
    root = tmp_path / "repository"
    (root / "agents").mkdir(parents=True)
    for name, code in {"__init__": "", "ppo": AGENT, "dqn": AGENT}.items():
        (root / "agents" / f"{name}.py").write_text(code)
    Finished().write(root / "run")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "a"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    shutil.rmtree(root / "run")
    changed = Finished()
    change_weight(changed)
    changed.write(root / "run")
    monkeypatch.setattr(neutral, "ROOT", root)
    commands = {"plain": "ppo", "killed": "dqn --stop", "failing": "ppo --fail"}
    monkeypatch.setattr(neutral, "COMMANDS", commands)
    monkeypatch.setattr(neutral, "STOPPED", {"killed": signal.SIGKILL})
    return root


def worktrees(root):
    listed = subprocess.run(["git", "worktree", "list"], cwd=root, capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def test_a_commit_and_the_working_tree(repository, tmp_path, capsys):
    keep = tmp_path / "kept"
    assert neutral.main(neutral.Neutral("HEAD", "HEAD", only="plain|killed", keep=keep)) == 0
    assert re.findall(r"\| (\w+) \| 2 \| 10 \| equal \|", capsys.readouterr().out) == ["plain", "killed"]
    assert {path.name for path in keep.glob("*/after/runs/a")} == {"a"}
    assert neutral.main(neutral.Neutral("HEAD", str(repository))) == 1
    output = capsys.readouterr().out
    assert "| plain | 2 | 10 | actor.head.weight in the weights differs |" in output
    assert "failed before: exit code 1, error: no such thing; failed after: exit code 1, " in output
    assert worktrees(repository) == 1


@pytest.mark.slow
def test_what_cannot_be_done_is_reported_in_a_sentence(repository, tmp_path, capsys):
    for flags, reason in (
        ({"before": "nothing"}, "nothing is neither a git revision nor the folder of a tree"),
        ({"before": "HEAD", "after": "--all"}, "--all is neither"),
        ({"before": "HEAD", "only": "x"}, "no command has x in its name"),
        ({"before": "HEAD", "keep": repository}, "is not empty"),
    ):
        assert neutral.main(neutral.Neutral(**flags)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert reason in error
    (repository / "agents" / "ppo.py").unlink()  # the installed one, if any, would be imported instead
    assert neutral.main(neutral.Neutral("HEAD", str(repository))) == 2
    assert re.search("which is outside of it|No module named 'neoteny.agents.ppo'", capsys.readouterr().err)
    assert worktrees(repository) == 1


def test_nothing_lives_on_after_an_interruption(repository, monkeypatch):
    started = []
    monkeypatch.setattr(neutral, "tqdm", lambda *_, **__: started.append(time.sleep(1)) or 1 / 0)
    monkeypatch.setattr(neutral, "STOPPED", {})
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        neutral.main(neutral.Neutral("HEAD", "HEAD", only="killed", jobs=1))
    assert time.monotonic() - begun < 30
    assert worktrees(repository) == 1


def test_renamed_flags_of_an_older_tree(tmp_path, monkeypatch):
    def run(self, *words):
        """In a process that has imported the tree's agents already."""
        (tmp_path / "script.py").write_text(words[-1])
        return python(tmp_path / "script.py", cwd=tmp_path)

    monkeypatch.setattr(neutral.Tree, "_run", run)
    tree = neutral.Tree(ROOT, tmp_path / "path")
    renamed = {"--old-period 500": "--stream.period 500", "--stream.jitter 0.5": "--stream.not-there 0.5"}
    monkeypatch.setattr(neutral, "RENAMED_WORDS", renamed)
    words = tree.words("ppo --stream.period 500 --stream.not-there 0.5 optim:adam")
    assert words[2:] == ["--stream.period", "500", "--stream.jitter", "0.5", "optim:adam"]


@pytest.mark.slow
def test_one_rounding_more_is_found_in_a_tree_where_it_is(tmp_path, monkeypatch, capsys):
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "tests", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    agent = tmp_path / "copy" / "agents" / "ppo.py"
    code, count = re.subn(r"\bargs\.gamma\b", "args.gamma * (1 + 2**-23)", agent.read_text())
    assert count
    agent.write_text(code)
    small = "--num-envs 2 --total-steps 256 --network.hidden 8 --probes.no-pictures optim:adamo"
    ppo = f"ppo --num-steps 16 --epochs 1 --minibatches 1 {small}"
    dqn = f"dqn --log-every 32 --learning-starts 64 {small}"
    monkeypatch.setattr(neutral, "COMMANDS", {"of-ppo": ppo, "of-dqn": dqn})
    assert neutral.main(neutral.Neutral(str(tmp_path / "copy"))) == 1
    output = capsys.readouterr().out
    assert re.search(r"\| of-ppo \| 8 \| \d+ \| \S+ at step 32 differs, and \d+ more \|", output)
    assert re.search(r"\| of-dqn \| 4 \| \d+ \| equal \|", output)
