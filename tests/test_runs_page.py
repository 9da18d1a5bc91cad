"""The tables of docs/runs.md are those of the code, and each of its sentences has a test."""

import dataclasses
import gc
import itertools
import json
import math
import platform
import re
import shlex
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from neoteny.agents import dqn, networks, ppo
from neoteny.configs import limits, parsing
from neoteny.configs.cli import cli, script_args
from neoteny.envs import config
from neoteny.envs.grid import engine as grid
from neoteny.envs.single import engine as single
from neoteny.envs.single import workers
from neoteny.optim import METHODS
from neoteny.runners import args, video
from neoteny.runners.disk import appended, attempts, events, exit_codes, folder
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.files import flatten
from neoteny.runners.identity import resumable
from neoteny.runners.run import Run
from neoteny.scripts import fault_cases, fault_outcomes, fault_sweeps, fault_switches, faults, malformed
from neoteny.scripts.sweep import Sweep
from tests.events import texts
from tests.killed import die
from tests.no_agent import begin, record
from tests.runs_page import SHOWN, names_of_tests, sentences
from tests.tiny_runs import BASE, FLAGS, ROOT, ending, run_folder, small

PAGE = (ROOT / "docs" / "runs.md").read_text()
LINE = " ".join(PAGE.split())
"""The page without breaks of lines."""


def rows(header):
    """The cells of the table of the page whose first line this is."""
    (lines,) = re.findall(rf"^{re.escape(header)}\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE, flags=re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.splitlines()]


def figures(pattern):
    """The numbers in the one place of the page that fits a pattern."""
    (found,) = re.findall(pattern, LINE)
    return [float(number.replace(",", "")) for number in ([found] if isinstance(found, str) else found)]


def test_every_sentence_has_its_test():
    said = list(sentences(PAGE))
    for sentence in said:
        assert sum(sentence.startswith(beginning) for beginning in SHOWN) == 1, sentence
    for beginning in SHOWN:
        assert sum(sentence.startswith(beginning) for sentence in said) == 1, beginning


def test_every_test_that_is_named_exists():
    files = names_of_tests()
    for beginning, named in SHOWN.items():
        for name in (named,) if isinstance(named, str) else named:
            path, _, own = name.rpartition("::")
            found = [file for file in files.get(f"test_{own}", ()) if path in ("", file)]
            assert len(found) == 1, f"{name}, of {beginning!r}, is in {found}"


def test_the_folder_has_the_files_of_the_table(tmp_path):
    made = small(tmp_path, total_steps=64, video_every=48)
    assert ending(made) == 0
    run = run_folder("ppo", made)
    named = {name for cell, _ in rows("| file | content |") for name in re.findall(r"`([\w./]+)`", cell)}
    left = {path.name for path in run.iterdir() if "tfevents" not in path.name}
    assert left == {
        "args.json",
        "meta.json",
        "visits.jsonl",
        "checkpoint",
        "summary.json",
        "videos",
        "attempts",
    }
    assert left <= {name.rstrip("/") for name in named}
    assert (run / "checkpoint" / "weights.safetensors").exists()
    assert list(run.glob("events.out.tfevents.*"))


def test_faults_are_in_the_table_as_they_are_printed():
    names = [row[0] for row in rows(f"| {' | '.join(fault_outcomes.HEADER)} |")]
    assert names == [name for name in fault_outcomes.KINDS if name in names]
    assert "runs lost 0, runs different 0, points duplicated 0,\npoints missing 0." in PAGE


def test_exit_codes_are_all_in_the_table():
    assert [int(code) for code, _ in rows("| exit code | |")] == [0, *ExitCode]


def test_what_may_change_are_the_flags_of_the_table():
    typed = {flag for _, cell in rows("| may change | flags |") for flag in re.findall(r"--([\w.*-]+)", cell)}
    named = {flag.replace("-", "_").removeprefix("no_").replace(".no_", ".") for flag in typed}
    known = set(flatten(dataclasses.asdict(BASE))) | {"graphs"}
    changed = {name.rstrip(".").replace("probes", "probes.*") for name in resumable(BASE)}
    assert named <= known | {"probes.*", "stream.atari.replay"}
    assert changed - named == {"runs_dir", "overwrite"}  # they say where a run is, not what it is
    assert named <= changed


IN_WORDS = {3: "three", 10: "ten seconds", 60: "a minute", 10**6: "a million"}
AMOUNTS = (
    f"up to 10^{round(math.log10(exit_codes.MOST))}; seeds up to 2^{parsing.LARGEST.bit_length()} - 1",
    f"0, or from {limits.SMALLEST:g} to 1e{round(math.log10(limits.LARGEST))} in size",
    f"`--threads` up to {args.MOST_THREADS} ",
    f"{config.MOST_ENVS:,} environments of which {single.MOST_ENVS:,} are stepped one by one",
    f"{single.MOST_WORKERS} workers, {grid.MOST_LAYOUTS:,} layouts, {networks.MOST_LAYERS} hidden layers",
    f"{IN_WORDS[args.LONGEST_UPDATE]} gradient steps in an update",
    f"names up to {folder.LONGEST_NAME} bytes",
    f"does not answer for {IN_WORDS[workers.WORKER_SECONDS]}",
    f"replaced, up to {IN_WORDS[workers.MOST_RESTARTS]} times in one step",
    f"stopped for {IN_WORDS[attempts.PATIENCE]} within such a moment",
    f"the first {events.SCALARS:,} points of a tag are kept ({events.VECTORS} of a vector)",
    f"A new file begins after {events.LARGEST >> 20} MiB",
    f"at most {video.LONGEST} frames long",
)


@pytest.mark.parametrize("sentence", AMOUNTS)
def test_amounts_are_those_of_the_code(sentence):
    assert sentence in LINE


# What a run prints


def test_the_first_lines_of_a_run_say_what_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = cli(ppo.Args, {}, f"{FLAGS}o --methods.redo.every 5".split())
    run = run_folder("ppo", tiny)
    die(ppo, tiny, 80, monkeypatch)
    began = capsys.readouterr().out.splitlines()
    assert began[0] == "ppo with adamo and redo: 256 steps on cpu, seed 1"
    assert re.match(
        "cartpole-rotations: .*tasks, each for 100 steps; .* stepped by the engine single", began[1]
    )
    assert began[-1] == f"{run} begins"
    ppo.main(tiny)
    resumed = capsys.readouterr().out.splitlines()
    assert resumed[: len(began)] == [*began[:-1], f"{run} resumes at step 64, exactly"]


def test_the_text_page_names_the_weights_that_adamo_pulls(tmp_path, capsys):
    tiny = cli(ppo.Args, {}, [*f"{FLAGS}o".split(), "--runs-dir", str(tmp_path)])
    ppo.main(tiny)
    ((_, page),) = texts(tmp_path, "setup")
    pulled = ", ".join(f"{part}.linear{i}.weight" for part in ("actor", "critic") for i in (1, 2))
    assert re.findall(" pulls (.+?)  \n", page) == [pulled]
    assert "linear1.weight" not in capsys.readouterr().out  # so it is only there


def test_meta_json_has_the_machine_versions_and_hashes_of_the_code(tmp_path):
    begun = begin(small(tmp_path))
    begun.close()
    meta = json.loads((begun.folder / "meta.json").read_text())
    assert meta["resume_exact"] is True
    assert (meta["device"], meta["python"]) == ("cpu", platform.python_version())
    assert meta["kernels"].keys() == {"processor", "variables", "computation"}
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["code"].keys() == {"agent", "neoteny", "modules"}
    assert all(re.fullmatch("[0-9a-f]+", meta["code"][name]) for name in ("agent", "neoteny"))


# What grows


def test_events_of_1_2_billion_steps_are_as_large_as_the_page_says(tmp_path, monkeypatch):
    """In one of 250 updates, where series are thinned after one of 250 points: so one of 250 is kept.

    An update logs what one of the first three of a run did: all probes, those of most measurements, none.
    """
    steps, size, megabytes = figures(
        r"([\d.]+) billion steps of PPO .* updates of ([\d,]+) .* leave (\d+) MB"
    )
    words = "cartpole-rotations --total-steps 3072 --probes.every 2 --probes.no-pictures --runs-dir"
    short, logged = cli(ppo.Args, ppo.PRESETS, [*words.split(), str(tmp_path / "short")]), []
    assert short.num_envs * short.num_steps == size
    metrics = events.EventWriter.metrics
    with monkeypatch.context() as patch:
        patch.setattr(events.EventWriter, "metrics", lambda *made: (logged.append(made[1]), metrics(*made)))
        ppo.main(short)
    full, some, none = (values for values in logged if "losses/entropy" in values)
    assert full.keys() > some.keys() > none.keys()
    probes = ppo.Args().probes
    monkeypatch.setattr(events, "SCALARS", events.SCALARS // 250)
    monkeypatch.setattr(events, "VECTORS", events.VECTORS // 250)
    writer = events.EventWriter(tmp_path, 1)
    for update in range(1, round(1e9 * steps / size / 250)):
        is_full = update % (probes.every * probes.full_every) == 0
        writer.metrics(full if is_full else none if update % probes.every else some, round(update * size))
    made = sum(writer.sizes().values()) * 250 / 1e6
    writer.close()
    assert made == pytest.approx(megabytes, rel=0.15)


def open_files(below):
    """How many files below a folder this process has open."""
    links = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return sum(link.is_relative_to(below) for link in links)


MEMORY = (
    "--stream.id cartpole-rotations --num-envs 2 --total-steps 512 --log-every 16 --train-every 8 "
    "--learning-starts 32 --batch-size 8 --buffer-size 200 --network.hidden 8 --checkpoint-every 64 "
    "--probes.every 0 --memory disk"
)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are found in /proc")
@pytest.mark.parametrize("agent", ["PPO", "DQN"])
def test_the_process_has_no_more_open_files_after_more_steps(agent, tmp_path, monkeypatch):
    """Though its event files rotate; besides those of a run it has the three of every process."""
    monkeypatch.setattr(events, "LARGEST", 4_000)
    monkeypatch.setattr(appended, "FLUSH_SECONDS", 0.0)
    module, words = {"PPO": (ppo, FLAGS), "DQN": (dqn, MEMORY)}[agent]
    seen, log = [], Run._log_update
    monkeypatch.setattr(
        Run, "_log_update", lambda self, made: (log(self, made), seen.append(3 + open_files(tmp_path)))
    )
    module.main(cli(module.Args, {}, [*words.split(), "--runs-dir", str(tmp_path)]))
    known = figures(r"PPO had \d+ to \d+ MB and (\d+) open files .*, DQN .* \d+ to \d+ MB and (\d+) from")
    assert len(list(tmp_path.rglob("events.*"))) > 3
    assert len(seen) >= 16
    assert set(seen) == {dict(zip(("PPO", "DQN"), known))[agent]}


def python_memory():
    """Bytes in use, without those of NumPy: it keeps freed arrays, a few of each size that there was."""
    gc.collect()
    filters = [
        tracemalloc.DomainFilter(False, np.lib.tracemalloc_domain),
        tracemalloc.Filter(False, "*/numpy/*"),
        tracemalloc.Filter(False, tracemalloc.__file__),
    ]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(filters).traces)


def test_the_process_has_no_more_memory_after_more_steps(tmp_path):
    begun, used = begin(small(tmp_path, total_steps=10_000, checkpoint_every=0)), []
    try:
        for step in range(1, 1_801):
            if step == 600:  # what is replaced later counts as new until then
                tracemalloc.start()
            record(begun, step, {"task": 0}, torch.ones(3, 1))
            with begun.end_update({}) as metrics:
                metrics["losses/entropy"] = 1.0
            if step in (1_200, 1_800):
                begun.writer.flush()
                begun.record.visits.flush()
                used.append(python_memory())
    finally:
        tracemalloc.stop()
    begun.close()
    assert used[1] - used[0] < 7_000  # a float for each step would be 14 kB


def test_faults_py_measures_what_the_page_says_of_switches(tmp_path):
    milliseconds, seconds = figures(r"switches cost ([\d.]+) ms each, .* a resume takes ([\d.]+) s")
    assert milliseconds < fault_switches.MOST_MS
    assert seconds < fault_switches.MOST_SECONDS
    sentence, _ = fault_switches.measure_switches(128, tmp_path)
    assert re.fullmatch(
        r"128 switches: \S+ ms each in the first tenth, \S+ ms in the last; .* a resume takes \S+ s\.",
        sentence,
    )


# Of scripts


def test_only_over_may_be_given_twice(capsys):
    assert (
        len(script_args(Sweep, ["--optims", "adam", "--over", "lr", "1e-3", "--over", "gamma", "0.9"]).over)
        == 2
    )
    with pytest.raises(SystemExit) as exit:
        script_args(Sweep, ["--optims", "adam", "--seeds", "1", "--seeds", "2"])
    assert exit.value.code == 2
    assert "--seeds is given twice" in capsys.readouterr().err


SCRIPTS = {"faults": faults.Faults, "malformed": malformed.Malformed}
COMMANDS = re.findall(r"python scripts/(faults|malformed)\.py ([^`\n]+)", PAGE)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_flags_of_the_page_s_scripts_are_theirs(command):
    script, words = command
    assert isinstance(script_args(SCRIPTS[script], shlex.split(words)), SCRIPTS[script])


def test_sentences_on_faults_are_those_that_are_printed(monkeypatch, capsys):
    """Of runs with as many faults of each kind as the table has."""
    header = f"| {' | '.join(fault_outcomes.HEADER)} |"
    times = [(row[0], row[1]) for row in rows(header)]
    known = (*fault_cases.FAULTS, *fault_cases.WORKER_FAULTS, "code changed")
    met = [
        next(filter(fault_outcomes.KINDS[kind], known)) for kind, count in times for _ in range(int(count))
    ]
    runs, inexact, others = map(
        int, figures(r"faults in (\d+) runs of .* are (\d+) runs .* as (\d+) of them were")
    )
    command = script_args(faults.Faults, shlex.split(dict(COMMANDS[::-1])["faults"]))
    kinds = itertools.cycle(itertools.product(command.agents, command.streams))
    outcomes = [
        fault_outcomes.Outcome(
            fault_cases.Case(*next(kinds), "adam", 1, command.steps, ()),
            met[number::runs],
            recomputed=[0] * len(met[number::runs]),
            exact=number >= inexact,
            differences=fault_outcomes.Differences(["weights"] * (number < others)),
        )
        for number in range(runs)
    ]
    printed = fault_outcomes.table(outcomes)
    assert [tuple(row.split(" | ")[:2]) for row in printed.splitlines()[2 : 2 + len(times)]] == [
        (f"| {kind}", count) for kind, count in times
    ]
    first, second, third = (
        printed.splitlines()[-1]
        .replace("missing 0. ", "missing 0.\n")
        .replace("different. ", "different.\n")
        .splitlines()
    )
    assert first in LINE
    assert second == (
        f"Not counted as different are {inexact} runs that said they were not exact; "
        f"{others} of them were different."
    )
    assert third in LINE
    assert len(met) >= command.kills
    monkeypatch.setattr(faults, "sweep_is_same", lambda seed, folder: True)
    faults.main(dataclasses.replace(command, kills=0))
    assert (
        capsys.readouterr().out == "2 sweeps of two runs, each killed three times: 2 as undisturbed ones.\n"
    )
    assert "It also killed two sweeps of two runs three times each" in LINE
    assert fault_sweeps.KILLS == 3


def test_methods_gives_each_run_a_method():
    runs, methods = map(int, figures(r"the same streams, \d+ faults in (\d+) runs with (\d+) methods"))
    planned = fault_cases.cases(("ppo", "dqn"), list(fault_cases.STREAMS), 2048, 1, methods=True)
    assert {case.method for case in itertools.islice(planned, runs)} == METHODS.keys()
    assert len(METHODS) == methods


def test_only_names_the_faults():
    planned = fault_cases.cases(("ppo",), ("atari",), 2048, 1, methods=False, only=("SIGTERM", "SIGKILL"))
    assert [case.faults for case in itertools.islice(planned, 2)] == 2 * [("SIGTERM", "SIGKILL")]


@pytest.mark.parametrize("count", [-1, 1, 127])
def test_switches_are_none_or_enough_for_an_update(count):
    with pytest.raises(ValueError, match=rf"^--switches must be 0 or at least 128, not {count}$"):
        faults.Faults(switches=count)


def not_typed(line, folder):
    """The outcome of a line, as if it had been typed: about a tenth of those that may be valid are."""
    if len("".join(line.words)) % 10 == 0 and not line.cannot_be:
        return malformed.Outcome(0, "", (), 0.1, 2**20)
    return malformed.Outcome(2, "error: x\n", (), 1.5, 300 * 2**20)


def test_malformed_py_prints_the_figures_of_the_page(monkeypatch, capsys):
    known = (
        r"Of ([\d,]+) lines, of seeds (\d+) to (\d+), ([\d,]+) were refused and (\d+) valid, with no fault; "
        r"a refusal took at most ([\d.]+) s of the processor and (\d+) MiB, imports included\. (\d+) of them"
    )
    lines, first, last, refused, valid, seconds, size, again = figures(known)
    command = script_args(malformed.Malformed, shlex.split(dict(COMMANDS)["malformed"]))
    seeds = last - first + 1
    assert (lines, again) == (seeds * command.lines, seeds * command.processes)
    assert lines == refused + valid
    assert seconds < malformed.SECONDS
    assert size < malformed.BYTES / 2**20

    for name in ("type_in", "in_new_process"):
        monkeypatch.setattr(malformed, name, not_typed)
    monkeypatch.setattr(malformed, "make_run", lambda made: (made / malformed.RUN).mkdir())
    monkeypatch.setattr(malformed, "IMPORTED", ())
    monkeypatch.setattr(gc, "freeze", lambda: None)
    assert malformed.main(malformed.Malformed(lines=100, processes=7, seed=1)) == 0
    *table, _, end = capsys.readouterr().out.splitlines()
    counts = {
        name: list(map(int, row)) for name, *row in (re.split(r" ?\| ?", line)[1:-2] for line in table[2:])
    }
    assert counts.pop("new processes")[0] == 7
    lines, refused, valid = map(sum, zip(*counts.values()))
    assert lines == refused + valid == 100
    assert valid > 0
    assert end == "0 faults; a refusal took at most 1.50 s and 300 MiB"
