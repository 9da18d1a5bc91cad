"""References: which tasks a run visits, what a reference depends on, and where a run finds its own."""

import dataclasses
import json

import pytest

from neoteny.agents import ppo, supervised
from neoteny.configs.cli import cli
from neoteny.runners.disk.claims import claim
from neoteny.runners.references import (
    base_args,
    code_of,
    hash_of,
    reference_args,
    tasks_of,
    with_task,
    write_references,
)
from tests.tiny_runs import FLAGS, ROOT

CODE = {"agent": "a", "modules": {}, "version": "1"}


def parsed(*words):
    return cli(ppo.Args, ppo.PRESETS, [*FLAGS.split(), *words])


@pytest.mark.parametrize(
    ("words", "tasks"),
    [
        ("--total-steps 256", [0, 1, 2]),  # 100 steps each
        ("--total-steps 208", [0, 1, 2]),
        ("--total-steps 96", [0]),
        ("--total-steps 960 --stream.tasks 4 1 4", [4, 1]),
    ],
)
def test_the_distinct_tasks_of_a_run(words, tasks):
    assert tasks_of(parsed(*words.split())) == tasks


def test_tasks_in_random_order_are_those_that_the_seed_visits():
    words = ["--stream.tasks", *"0123", "--stream.order", "random", "--total-steps", "192"]
    args = parsed(*words)
    found = {seed: tasks_of(dataclasses.replace(args, seed=seed)) for seed in range(1, 9)}
    assert len(set(map(tuple, found.values()))) > 1
    for seed, tasks in found.items():
        schedule = dataclasses.replace(args.stream.schedule(), seed=seed)
        assert tasks == [schedule.task_at(0), schedule.task_at(100)]


def test_a_stream_that_never_switches_has_no_references():
    with pytest.raises(ValueError, match="never does"):
        reference_args(cli(ppo.Args, ppo.PRESETS, ["--stream.id", "CartPole-v1"]))


def test_a_reference_is_one_visit_on_one_task_without_probes():
    run = parsed("--video-every", "64", "--stream.jitter", "0.5", "--seed", "3", "--overwrite")
    args = with_task(reference_args(run), run, 5, CODE)
    assert (args.total_steps, args.stream.period, args.stream.tasks) == (100, 100, (5,))
    assert args.stream.jitter == 0  # no visit ends early
    assert (args.probes.every, args.video_every, args.overwrite, args.seed) == (0, 0, False, 3)
    assert args.runs_dir == run.runs_dir / "references"
    assert args.network == run.network


def test_a_reference_is_no_longer_than_a_run_that_ends_in_its_first_visit():
    assert reference_args(parsed("--total-steps", "48")).total_steps == 48


@pytest.mark.parametrize("tasks", ["024", "0242"])
def test_a_one_hot_task_id_keeps_its_length(tasks):
    run = parsed("--stream.tasks", *tasks, "--stream.task-id", "onehot")
    args = with_task(reference_args(run), run, 4, CODE)
    assert args.stream.tasks == (4, 0, 2)
    assert args.stream.schedule().task_at(args.total_steps - 1) == 4


SAME = [
    "--seed 9", "--note x", "--runs-dir elsewhere", "--probes.every 1", "--checkpoint-every 7",
    "--video-every 64", "--total-steps 512", "--stream.order cycle", "--stream.tasks 0 1 2", "--threads 2",
    "--overwrite",
]  # fmt: skip
OTHER = [
    "--network.hidden 8 8", "--lr 1e-2", "--num-envs 4", "--stream.period 64", "--stream.normalizer keep",
    "--optim.eps 1e-5", "--methods.isometry.coef 1",
]  # fmt: skip


def hashed(*words, base=False, code=CODE):
    run = parsed(*words)
    args = reference_args(base_args(run) if base else run)
    return hash_of(dataclasses.replace(args, stream=dataclasses.replace(args.stream, tasks=(0,))), code)


@pytest.mark.parametrize("words", SAME)
def test_what_does_not_matter_does_not_change_the_hash(words):
    assert hashed(*words.split()) == hashed()


@pytest.mark.parametrize("words", OTHER)
def test_what_matters_changes_the_hash(words):
    assert hashed(*words.split()) != hashed()


def test_the_base_is_one_for_all_optimizers_and_methods():
    assert hashed("--methods.isometry.coef", "1", base=True) == hashed("--optim.eps", "1e-5", base=True)
    assert hashed(base=True) == hashed()  # Adam's own
    assert hashed("--network.hidden", "8", base=True) != hashed(base=True)


def test_another_code_changes_the_hash(tmp_path):
    agent = ROOT / "agents" / "ppo.py"
    (tmp_path / "ppo.py").write_text(agent.read_text() + "\n")
    codes = [code_of(agent), code_of(tmp_path / "ppo.py"), {**code_of(agent), "modules": {"mine": "1"}}]
    assert len({hashed(code=code) for code in codes}) == 3


def test_a_run_finds_its_references_by_paths_from_its_folder(tmp_path):
    run, reference = tmp_path / "stream" / "ppo" / "adam" / "s1", tmp_path / "references" / "x" / "s1"
    run.mkdir(parents=True)
    write_references(run, {"base": {0: reference}, "own": {0: reference, 3: reference}})
    found = json.loads((run / "references.json").read_text())
    assert found == {
        "base": {"0": "../../../../references/x/s1"},
        "own": dict.fromkeys("03", found["base"]["0"]),
    }
    assert (run / found["base"]["0"]).resolve() == reference
    held = claim(run)
    write_references(run, {"base": {}, "own": {}})  # another sweep's
    assert json.loads((run / "references.json").read_text()) == found
    held.release()


def supervised_run(folder, *words):
    flags = (
        "--stream.samples 32 --stream.epochs 2 --batch-size 16 --network.hidden 8 --probes.every 0 --seed 3"
    )
    return cli(supervised.Args, supervised.PRESETS, [*flags.split(), *words, "--runs-dir", str(folder)])


def test_the_reference_of_a_first_task_is_its_visit(tmp_path):
    """A supervised run's, too: the network, the samples and their order are functions of the seed."""
    run = supervised_run(tmp_path, "--num-tasks", "3")
    alone = with_task(reference_args(run), run, 0, CODE)
    assert (alone.num_tasks, alone.stream.tasks, alone.seed) == (1, (0,), 3)
    assert supervised.main(alone)["visits"] == supervised.main(run)["visits"][:1]


@pytest.mark.parametrize(
    ("words", "tasks"),
    [("--num-tasks 3", [0, 1, 2]), ("--num-tasks 5 --stream.tasks 4 1 4", [4, 1]), ("--num-tasks 1", [0])],
)
def test_the_distinct_tasks_of_a_supervised_run(words, tasks, tmp_path):
    run = supervised_run(tmp_path, *words.split())
    assert tasks_of(run) == tasks
    references = [with_task(reference_args(run), run, task, CODE) for task in tasks]
    assert len({reference.note for reference in references}) == len(tasks)
