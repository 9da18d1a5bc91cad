"""The tables of docs/runs.md are those of the code."""

import dataclasses
import math
import re

import pytest

from neoteny.agents import networks
from neoteny.configs import limits, parsing
from neoteny.envs import config
from neoteny.envs.grid import engine as grid
from neoteny.envs.single import engine as single
from neoteny.envs.single import workers
from neoteny.runners import args, video
from neoteny.runners.disk import attempts, events, exit_codes, folder
from neoteny.runners.disk.exit_codes import ExitCode
from neoteny.runners.disk.files import flatten
from neoteny.runners.identity import resumable
from neoteny.scripts import fault_outcomes
from tests.tiny_runs import BASE, ROOT, ending, run_folder, small

PAGE = (ROOT / "docs" / "runs.md").read_text()


def rows(header):
    """The cells of the table of the page whose first line this is."""
    (lines,) = re.findall(rf"^{re.escape(header)}\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE, flags=re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.splitlines()]


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


IN_WORDS = {3: "three", 10: "ten seconds", 60: "a minute"}
AMOUNTS = (
    f"up to 10^{round(math.log10(exit_codes.MOST))}; seeds up to 2^{parsing.LARGEST.bit_length()} - 1",
    f"0, or from {limits.SMALLEST:g} to 1e{round(math.log10(limits.LARGEST))} in size",
    f"`--threads` up to {args.MOST_THREADS} ",
    f"{config.MOST_ENVS:,} environments of which {single.MOST_ENVS:,} are stepped one by one",
    f"{single.MOST_WORKERS} workers, {grid.MOST_LAYOUTS:,} layouts, {networks.MOST_LAYERS} hidden layers",
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
    assert sentence in " ".join(PAGE.split())
