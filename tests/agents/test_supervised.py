"""The supervised learner does what a plain loop does, learns, and is restored exactly."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn

from neoteny.agents import supervised
from neoteny.agents.supervised import Args, Classifier, evaluate, loss_of, main, score_of
from neoteny.configs.cli import cli, read_args
from neoteny.configs.supervised import PRESETS
from neoteny.envs.datasets import digits
from neoteny.envs.supervised import Batch
from neoteny.runners.disk.folder import run_folder
from tests.envs.test_datasets import write_cifar, write_mnist
from tests.events import scalars
from tests.killed import die
from tests.recorded_graph import RecordedCapture

FLAGS = (
    "--stream.samples 64 --stream.epochs 2 --num-tasks 3 --batch-size 16 --network.hidden 16 16 "
    "--checkpoint-every 64 --probes.every 2 --probes.no-pictures"
)


def small(folder, *words):
    return cli(Args, PRESETS, [*words, *FLAGS.split(), "--runs-dir", str(folder)])


def weights(args):
    return (run_folder("supervised", args) / "checkpoint" / "weights.safetensors").read_bytes()


def test_a_plain_loop_comes_to_the_same_weights(tmp_path):
    args = small(tmp_path, "optim:adam")
    main(args)
    torch.manual_seed(args.seed)
    stream = args.stream.make(args.batch_size, args.seed)
    network = Classifier(stream, args.network)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    for _ in range(6):
        stream.begin_epoch()
        for chosen in stream.epoch():
            inputs, targets = stream.data.observations[chosen], stream.data.targets[chosen]
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), targets).backward()
            nn.utils.clip_grad_norm_(network.parameters(), float("inf"))
            optimizer.step()
    expected = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    assert weights(args) == expected


def test_the_scores_of_a_run(tmp_path):
    args = small(tmp_path)
    summary = main(args)
    rows = summary["visits"]
    assert [(row["task"], row["start"], row["end"], row["episodes"]) for row in rows] == [
        (0, 0, 128, 8), (1, 128, 256, 8), (2, 256, 384, 8)
    ]  # fmt: skip
    points = scalars(run_folder("supervised", args))
    online = [value for _, value in points["charts/online_accuracy"]]
    assert sum(online) / len(online) == pytest.approx(summary["score/return_auc"], abs=1e-6)
    assert [step for step, _ in points["charts/train_accuracy"]] == [128, 256, 384]
    assert "charts/validation_accuracy" not in points  # random labels cannot be predicted
    assert "charts/episodic_return" not in points
    assert "plasticity/dormant_0.025/max" in points


def test_plasticity_is_measured_on_the_next_task(tmp_path):
    """A network that has learnt the first task fits the labels of the second, which are others."""
    args = small(tmp_path, "--probes.plasticity-every", "1", "--probes.plasticity-steps", "30")
    main(args)
    points = scalars(run_folder("supervised", args))["plasticity/fraction_eliminated"]
    assert len(points) == 4
    assert all(0.05 < value < 1 for _, value in points)


def test_what_is_validated_is_of_the_current_task(tmp_path):
    words = [
        "digits-shuffled-labels",
        "--stream.epochs",
        "4",
        "--network.hidden",
        "64",
        "--lr",
        "1e-2",
        "--num-tasks",
        "2",
    ]
    args = cli(Args, PRESETS, [*words, "--runs-dir", str(tmp_path), "--probes.every", "0"])
    main(args)
    accuracies = scalars(run_folder("supervised", args))["charts/validation_accuracy"]
    assert [value > 0.8 for _, value in accuracies] == [True, True]


def test_every_sample_counts_the_same_in_a_score():
    """Whatever the pieces in which they are scored, of which the last is smaller."""
    samples = Batch(torch.eye(2)[[0, 0, 0, 1, 1]], torch.tensor([0, 0, 0, 0, 1]))
    assert [evaluate(nn.Identity(), samples, chunk) for chunk in (5, 4, 3, 2)] == pytest.approx([0.8] * 4)


def test_inputs_of_large_data_are_standardized_by_samples_from_all_of_them():
    """Which may be in the order of their classes."""
    mean, deviation = supervised._mean_and_deviation(torch.arange(20_000.0)[:, None])
    assert (mean, deviation) == pytest.approx((10_000, 20_000 / math.sqrt(12)), rel=1e-3)


@pytest.mark.parametrize("update", [1, 3, 4])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(update, tmp_path, monkeypatch):
    args = small(tmp_path / "whole")
    whole = main(args)
    killed = dataclasses.replace(args, runs_dir=tmp_path / "killed")
    die(supervised, killed, 64 * update, monkeypatch)
    summary = main(killed)
    assert weights(killed) == weights(args)
    assert summary["visits"] == whole["visits"]


@pytest.mark.parametrize("words", ["", "optim:adam --network.kind cnn"])
def test_replayed_steps_do_what_steps_do(words, tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "Capture", RecordedCapture)
    plain, captured = (small(tmp_path / name, *words.split()) for name in ("plain", "captured"))
    main(dataclasses.replace(plain, graphs=False))
    main(captured)
    assert weights(plain) == weights(captured)


VECTORS = "tests.agents.test_supervised:vectors"


def vectors(folder):
    """Digits as vectors."""
    data = digits(folder)
    return data._replace(inputs=data.inputs.flatten(1).float())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_loss_is_nearly_the_same(tmp_path):
    plain, compiled = (small(tmp_path / name, *flags) for name, flags in (("a", ()), ("b", ("--compile",))))
    for args in (plain, compiled):
        main(dataclasses.replace(args, num_tasks=1))
    one, two = (load(weights(args)) for args in (plain, compiled))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


REGRESSION = "slowly-changing-regression --num-tasks 2 --batch-size 100 --probes.no-pictures"


def test_a_regression_is_scored_by_its_error(tmp_path, monkeypatch):
    args = cli(Args, PRESETS, [*REGRESSION.split(), "--runs-dir", str(tmp_path / "whole")])
    summary = main(args)
    points = scalars(run_folder("supervised", args))
    online = [value for _, value in points["charts/online_negative_mse"]]
    assert [row["return_auc"] for row in summary["visits"]] == pytest.approx(online, abs=1e-5)
    assert all(-8 < value < -0.1 for value in online)
    assert {tag for tag in points if tag.endswith(("accuracy", "mse"))} == {
        f"charts/{of}_negative_mse" for of in ("online", "train", "validation")
    }
    killed = dataclasses.replace(args, runs_dir=tmp_path / "killed")
    die(supervised, killed, 10_000, monkeypatch)
    main(killed)
    assert weights(killed) == weights(args)


def test_values_are_regressed():
    values = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])
    assert (float(loss_of(*values)), float(score_of(*values))) == (2.0, -2.0)
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    assert float(score_of(logits, torch.tensor([1, 1]))) == 0.5
    assert float(loss_of(logits, torch.tensor([1, 1]))) == pytest.approx(math.log(16 / 3) / 2)


OF_FILES = [name for name in PRESETS if name.startswith(("mnist", "cifar"))]
SHORT = "--num-tasks 3 --batch-size 10 --stream.epochs 1 --checkpoint-every 40 --probes.every 0"
QUICK = ("mnist-permuted-pixels", "cifar10-permuted-pixels-vit")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OF_FILES],
)
def test_protocols_run_on_files_in_their_format_and_go_on_when_killed(name, tmp_path, monkeypatch):
    if name.startswith("mnist"):
        write_mnist(tmp_path)
    else:
        write_cifar(tmp_path, 100 if "100" in name else 10)
    kind = PRESETS[name]["network"].get("kind", "mlp")
    hidden = {"mlp": ["16"] * 4, "cnn": ["16"] * 2, "vit": ["8"] * 4}[kind]
    words = [name, *SHORT.split(), "--stream.samples", "20", "--network.hidden", *hidden]
    words += ["--stream.folder", str(tmp_path)]
    whole = cli(Args, PRESETS, [*words, "--runs-dir", str(tmp_path / "whole")])
    rows = main(whole)["visits"]
    assert [(row["task"], row["end"]) for row in rows] == [(0, 20), (1, 40), (2, 60)]
    killed = dataclasses.replace(whole, runs_dir=tmp_path / "killed")
    die(supervised, killed, 40, monkeypatch)
    assert main(killed)["visits"] == rows
    assert weights(killed) == weights(whole)


def test_the_papers_protocols_are_the_papers():
    """Table of section 3: batch, tasks, epochs, learning rate; a pull of 1e-3 towards 1."""
    expected = {
        "mnist-permuted-pixels": (250, 1000, 40, 1e-4),
        "cifar10-permuted-pixels": (250, 1000, 40, 1e-4),
        "cifar10-permuted-pixels-vit": (250, 1000, 40, 1e-3),
        "cifar10-random-labels": (128, 200, 256, 1e-4),
        "cifar100-shuffled-labels": (250, 1000, 40, 1e-3),
    }
    assert {name for name in OF_FILES if not name.endswith("-small")} == set(expected)
    for name, numbers in expected.items():
        args = cli(Args, PRESETS, [name])
        assert (args.batch_size, args.num_tasks, args.stream.epochs, args.lr) == numbers
        assert (args.optim.iso, args.optim.iso_scale, args.stream.samples) == (1e-3, 1.0, None)


def test_the_arguments_of_a_run_are_read_back(tmp_path):
    args = small(tmp_path, "optim:muon", "--stream.change", "noisy-labels", "--methods.isometry")
    main(dataclasses.replace(args, num_tasks=1))
    folder = run_folder("supervised", args)
    assert folder.parts[-4:] == ("digits-noisy-labels", "supervised", "muon-isometry", "s1")
    assert dataclasses.replace(read_args(Args, folder / "args.json"), num_tasks=3) == args


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--video-every", "10"], "there are no episodes"),
        (["--evaluate-at-switch", "10"], "there are no episodes"),
        (["--stream.order", "random"], "never recur without --stream.tasks"),
        (["--stream.data", "mnist"], "must be in data"),
        (["--stream.data", "minst"], "--stream.data must be digits"),
        (["--network.kind", "cnn", "--stream.data", VECTORS], "not inputs of 64"),
        (["--network.kind", "vit", "--stream.data", VECTORS], "not inputs of 64"),
        (["--network.patch", "2"], "it is for --network.kind vit, not mlp"),
        (["--network.kind", "vit", "--network.heads", "0"], "must be at least 1"),
        (["--stream.data", "bits"], "is of classes, and the targets of --stream.data are values"),
        (["--stream.change", "flipping-bits"], "is for --stream.data bits"),
        (["--batch-size", "0"], "must be above 0"),
        (["--num-tasks", "0"], "must be above 0"),
        (["--max-grad-norm", "0"], "must be above 0"),
        (["--methods.isometry", "--methods.isometry.on", "actor"], "no part actor"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(words, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(cli(Args, PRESETS, words))
    assert exit.value.code == 2
    assert match in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_dataset_and_tasks_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(
        """
import torch
from neoteny.envs.datasets import Dataset

def sums(folder):
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return Dataset(inputs, inputs.sum(1, keepdim=True), inputs[:8], inputs[:8].sum(1, keepdim=True), 1)

def scaled(data, k, seed):
    return data._replace(targets=data.targets * (k + 1), validation_targets=data.validation_targets * (k + 1))
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--stream.data", "my_tasks:sums", "--stream.change", "my_tasks:scaled"]
    args = small(tmp_path, *words)
    summary = main(args)
    assert run_folder("supervised", args).parts[-4] == "sums-scaled"
    assert [row["return_auc"] < 0 for row in summary["visits"]] == [True] * 3  # minus the squared error
    meta = json.loads((run_folder("supervised", args) / "meta.json").read_text())
    assert "my_tasks" in meta["code"]["modules"]
