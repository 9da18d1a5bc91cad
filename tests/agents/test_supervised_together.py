"""Seeds that are trained together do what they do alone, and go on exactly after being killed."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load

from neoteny.agents import supervised
from neoteny.agents.supervised import Args, main
from neoteny.configs.cli import cli
from neoteny.configs.flags import OPTIMIZERS
from neoteny.configs.supervised import PRESETS
from neoteny.optim import METHODS
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.run import Run
from neoteny.runners.together import Together
from tests.events import scalars
from tests.killed import Killed

FLAGS = (
    "--stream.samples 48 --stream.epochs 2 --num-tasks 2 --batch-size 16 --network.hidden 16 16 --lr 1e-3 "
    "--checkpoint-every 48 --probes.every 2 --probes.no-pictures"
)
SEEDS = (3, 5)
NEEDED = {"nap": ["--network.norm", "layer"], "reorthogonalize": ["--network.linear", "orthogonal"]}
"""Flags without which a method does not fit."""


def of(folder, *words):
    return cli(Args, PRESETS, [*words, *FLAGS.split(), "--runs-dir", str(folder)])


def alone(folder, *words):
    """The arguments of separate runs."""
    return [of(folder, *words, "--seed", str(seed)) for seed in SEEDS]


def together(folder, *words):
    """The arguments of runs in one process."""
    return of(folder, *words, "--seeds", *map(str, SEEDS))


def folders(args):
    return [run_folder("supervised", dataclasses.replace(args, seed=seed)) for seed in args.seeds]


def weights(folder):
    return (folder / "checkpoint" / "weights.safetensors").read_bytes()


def tensors_of(folder):
    """The tensors of weights and of methods in the last checkpoint, by name."""
    last = max(folder.glob("checkpoint/step_*/tensors.safetensors"))
    of_methods = {name: it for name, it in load(last.read_bytes()).items() if "/parts/methods/" in name}
    return load(weights(folder)) | of_methods


def check_equal(folder, *words):
    """Weights, tensors of methods and logged points are those of separate runs, but for rounding."""
    args = together(folder / "together", *words)
    main(args)
    for one, mine in zip(alone(folder / "alone", *words), folders(args), strict=True):
        main(one)
        theirs = run_folder("supervised", one)
        tensors, expected = tensors_of(mine), tensors_of(theirs)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-3, msg=name)
        points, others = scalars(mine), scalars(theirs)
        assert points.keys() == others.keys()
        for tag in ("losses/loss", "update/grad_norm", "charts/online_accuracy", "charts/train_accuracy"):
            assert points[tag] == [
                (step, pytest.approx(value, rel=1e-3, abs=1e-3)) for step, value in others[tag]
            ]


def quick(names, *chosen):
    """Parameters, all but the chosen ones marked slow."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick(OPTIMIZERS, "adamo", "upgd"))
def test_every_optimizer_steps_each_seed_as_if_it_were_alone(name, tmp_path):
    pull = ["--optim.iso", "0.1", "--optim.iso-every", "2"] if name in ("adamo", "muono") else []
    check_equal(tmp_path, f"optim:{name}", *pull)


def short(name):
    """Flags with which a method acts within a few steps."""
    every = [f"--methods.{name}.every", "3"] if "every" in METHODS[name].__dataclass_fields__ else []
    return ["optim:adam", f"--methods.{name}", *every, *NEEDED.get(name, [])]


STACKABLE = [name for name, config in METHODS.items() if config.stackable]


@pytest.mark.parametrize("name", quick(STACKABLE, "redo", "parseval", "spectral"))
def test_every_method_acts_on_each_seed_as_if_it_were_alone(name, tmp_path):
    check_equal(tmp_path, *short(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--network.kind cnn",
        "--network.norm layer --network.activation crelu",
        "--max-grad-norm 0.5 --methods.parseval optim:adam",
        "digits-shuffled-labels --probes.plasticity-every 1 --probes.plasticity-steps 3",
    ],
)
def test_every_network_learns_as_if_it_were_alone(words, tmp_path):
    check_equal(tmp_path, *words.split())


def train_until_killed(args, monkeypatch, seed, update, method="_save_if_due"):
    """Kill the process before the run of a seed saves after an update, when others may have saved."""
    known = getattr(Run, method)

    def killed(run, *made):
        if run.args.seed == seed and run.updates_made == update:
            raise Killed
        return known(run, *made)

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, killed)
        with pytest.raises(Killed):
            main(args)


REDO = "optim:adam --methods.redo --methods.redo.every 3"
SPECTRAL = "optim:adam --methods.spectral"


@pytest.mark.parametrize("words", quick(["", REDO, SPECTRAL, "optim:trac"], REDO, SPECTRAL))
@pytest.mark.parametrize("update", [1, 3])
def test_killed_seeds_go_on_as_if_nothing_had_happened(words, update, tmp_path, monkeypatch):
    """Whichever of them had saved: here the first is one checkpoint ahead of the second."""
    whole, killed = (together(tmp_path / name, *words.split()) for name in ("whole", "killed"))
    main(whole)
    train_until_killed(killed, monkeypatch, SEEDS[1], update)
    main(killed)
    for mine, theirs in zip(folders(killed), folders(whole), strict=True):
        assert weights(mine) == weights(theirs)
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in (mine, theirs)]
        assert summaries[0]["visits"] == summaries[1]["visits"]
        assert scalars(mine)["losses/loss"] == scalars(theirs)["losses/loss"]
        assert json.loads((mine / "meta.json").read_text())["resume_exact"] is True


@pytest.mark.slow
def test_a_seed_that_had_finished_when_the_others_were_killed_stays(tmp_path, monkeypatch):
    whole, killed = (together(tmp_path / name) for name in ("whole", "killed"))
    main(whole)
    train_until_killed(killed, monkeypatch, SEEDS[1], 4, "finish")
    finished = (folders(killed)[0] / "summary.json").stat().st_mtime_ns
    main(killed)
    assert (folders(killed)[0] / "summary.json").stat().st_mtime_ns == finished
    assert list(map(weights, folders(killed))) == list(map(weights, folders(whole)))


def break_at(monkeypatch, seed, epoch):
    """Make a weight of a seed infinite when it begins an epoch."""
    known = supervised.Learning.begin_epoch

    def begin(learning, number):
        known(learning, number)
        if learning.args.seed == seed and number == epoch:
            with torch.no_grad():
                next(learning.agent.parameters()).fill_(float("inf"))

    monkeypatch.setattr(supervised.Learning, "begin_epoch", begin)


PENALIZED = "adamo --methods.l2-init"  # whose gradients are not finite either


@pytest.mark.parametrize("words", quick(["adamo", PENALIZED, "adam", "trac"], "adamo", PENALIZED))
def test_a_seed_that_is_not_finite_ends_alone(words, tmp_path, monkeypatch, capsys):
    whole, broken = (together(tmp_path / each, *f"optim:{words}".split()) for each in ("whole", "broken"))
    main(whole)
    break_at(monkeypatch, SEEDS[0], 2)
    with pytest.raises(SystemExit) as exit:
        main(broken)
    assert exit.value.code == 70
    assert "not finite at step 96" in capsys.readouterr().err
    ended, other = folders(broken)
    assert (ended / "crash" / "crash.json").exists()
    assert not (ended / "summary.json").exists()
    assert weights(other) == weights(folders(whole)[1])


def test_after_a_seed_was_not_finite_the_others_go_on_exactly(tmp_path, monkeypatch):
    whole, killed = (together(tmp_path / name) for name in ("whole", "killed"))
    main(whole)
    with monkeypatch.context() as patch:
        break_at(patch, SEEDS[0], 2)
        train_until_killed(killed, monkeypatch, SEEDS[1], 4)
    main(killed)
    assert weights(folders(killed)[1]) == weights(folders(whole)[1])
    assert not (folders(killed)[0] / "summary.json").exists()


def test_a_signal_stops_all_seeds_at_the_same_step(tmp_path, monkeypatch):
    whole, stopped = (together(tmp_path / name, "--checkpoint-every", "0") for name in ("whole", "stopped"))
    main(whole)
    read = Run._read

    def signalled(run, *made):
        if run.args.seed == SEEDS[0] and run.updates_made == 2:
            run.together._preemption.signal = "SIGTERM"  # comes while the first is about to be saved
        return read(run, *made)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_read", signalled)
        with pytest.raises(SystemExit) as exit:
            main(stopped)
    assert exit.value.code == 75
    saved = [sorted(path.name for path in (each / "checkpoint").iterdir()) for each in folders(stopped)]
    assert saved[0] == saved[1] != []
    main(stopped)
    assert list(map(weights, folders(stopped))) == list(map(weights, folders(whole)))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--seeds 1 1", "must differ"),
        ("--seeds 1 -1", "at least 0"),
        ("--seeds 1 2 --seed 3", "--seeds are trained"),
        ("--seeds 1 2 --compile", "are one graph"),
        *((f"--seeds 1 2 --methods.{name}", "one by one") for name in METHODS if name not in STACKABLE),
    ],
)
def test_what_cannot_be_trained_together_is_refused(words, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(cli(Args, PRESETS, words.split()))
    assert exit.value.code == 2
    assert match in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_watch_layers_say_that_they_cannot_be_stacked(name, tmp_path):
    args = of(tmp_path, "optim:adam", f"--methods.{name}", *NEEDED.get(name, []))
    methods = supervised.Learning(args, torch.device("cpu")).methods
    watches = bool(methods.methods[name].watches())
    assert METHODS[name].stackable is not (watches or "injection" in name)


def damage(folder, steps=None):
    """Cut the tensors of checkpoints, of all or of those at some steps."""
    for path in folder.glob("checkpoint/step_*/tensors.safetensors"):
        if steps is None or int(path.parent.name.removeprefix("step_")) in steps:
            path.write_bytes(path.read_bytes()[:-1])


def train_other(folder, monkeypatch, end):
    """A run with other arguments in the folder of the last seed: killed, broken or finished."""
    is_finished = end in ("finished", "shorter")
    words = ("--seed", "5") if is_finished else ("--seeds", "5")
    other = {"num_tasks": 1} if end == "shorter" else {"lr": 1e-2}
    args = dataclasses.replace(of(folder, *words), **other)
    if end == "killed":
        train_until_killed(args, monkeypatch, 5, 3)
    elif is_finished:
        main(args)
    else:
        with monkeypatch.context() as patch:
            break_at(patch, 5, 2)
            with pytest.raises(SystemExit):
                main(args)


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("damaged", "are damaged"),
        ("a file", "is not a folder"),
        ("foreign", "holds no run"),
        ("killed", "holds an unfinished run with"),
        ("broken", "holds a run with lr 0.01, not 0.001"),
        ("finished", "holds a finished run with lr 0.01, not 0.001"),
        ("shorter", "holds a finished run with num_tasks 1, not 2"),
    ],
)
def test_a_later_seed_that_is_refused_leaves_all_folders_alone(kind, sentence, tmp_path, monkeypatch, capsys):
    args = together(tmp_path)
    first, last = folders(args)
    train_until_killed(args, monkeypatch, SEEDS[0], 4)
    damage(first, steps={144})  # would be set aside if its run were opened
    damage(last)
    if kind != "damaged":
        shutil.rmtree(last)
    if kind == "a file":
        last.touch()
    elif kind == "foreign":
        (last / "notes").mkdir(parents=True)
    elif kind != "damaged":
        train_other(tmp_path, monkeypatch, kind)
    before = tree(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_all_seeds_go_on_from_the_last_step_at_which_none_is_damaged(tmp_path, monkeypatch):
    whole, killed = (together(tmp_path / name) for name in ("whole", "killed"))
    main(whole)
    train_until_killed(killed, monkeypatch, SEEDS[0], 4)
    damage(folders(killed)[-1], steps={144})
    main(killed)
    assert list(map(weights, folders(killed))) == list(map(weights, folders(whole)))


def test_a_seed_that_was_trained_alone_is_left_out(tmp_path):
    main(alone(tmp_path)[-1])
    before = tree(folders(together(tmp_path))[-1])
    assert list(main(together(tmp_path))) == [f"s{SEEDS[0]}"]
    assert tree(folders(together(tmp_path))[-1]) == before


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush them")
def test_while_seeds_are_trained_subnormal_numbers_count_as_0(tmp_path):
    """They slow a step of dead networks down several times."""
    args, small = together(tmp_path), torch.tensor(1e-38)
    with Together("supervised", [dataclasses.replace(args, seed=seed) for seed in SEEDS]):
        assert small * 0.1 == 0
    assert small * 0.1 > 0


@pytest.mark.slow
def test_finished_seeds_are_replaced_only_when_asked(tmp_path):
    args = together(tmp_path)
    main(args)
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    before = list(map(weights, folders(args)))
    main(dataclasses.replace(args, overwrite=True))
    assert list(map(weights, folders(args))) == before


@pytest.mark.slow
def test_seeds_of_a_batch_cannot_go_on_alone(tmp_path, monkeypatch, capsys):
    args = together(tmp_path)
    train_until_killed(args, monkeypatch, SEEDS[0], 3)
    with pytest.raises(SystemExit) as exit:
        main(alone(tmp_path)[0])
    assert exit.value.code == 2
    assert "with seeds" in capsys.readouterr().err
