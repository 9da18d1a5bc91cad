"""The table of speeds on a GPU; how fast anything is, no test says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "gpu.py"


@pytest.fixture
def bench(monkeypatch):
    """scripts/bench/gpu.py, with measurements that take no time."""
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)
    spec.loader.exec_module(module)
    module.runs = []
    monkeypatch.setattr(
        module, "measured", lambda row, arm, args: module.runs.append((row.name, arm)) or ("1,000", "")
    )
    monkeypatch.setattr(module, "prepare", lambda row, args: module.runs.append((row.name, "compiled")) or "")
    return module


def test_every_row_is_measured_in_its_arms(bench, capsys):
    bench.main(bench.Args(device="cpu"))
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert [line[0].strip("| ") for line in lines] == [row.name for row in bench.ROWS]
    assert bench.runs == [(row.name, arm) for row in bench.ROWS for arm in bench.ARMS if arm in row.arms]


def test_what_there_is_no_time_for_is_said(bench, capsys):
    bench.main(bench.Args(device="cpu", rows=("image",), seconds=-1.0))
    assert capsys.readouterr().out.splitlines()[-1].endswith("|  | no time | no time |  |")
    assert bench.runs == []


def test_all_that_is_compiled_is_prepared(bench):
    bench.main(bench.Args(device="cpu", prepare=True))
    compiled = {(row.name, "compiled") for row in bench.ROWS if "compiled" in row.arms}
    assert set(bench.runs) == compiled


def test_busy_and_waits(bench):
    """Work from 0 to 4, another piece beside it from 1 to 6, and one from 9 to 10."""
    assert bench.busy_and_waits([(9, 1), (0, 4), (1, 5)]) == (7, [3])
    assert bench.busy_and_waits([]) == (0, [])


def test_what_is_not_compiled_is_said(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "prepare", lambda row, args: f"{row.name}: no" if "image" in row.name else "")
    assert bench.main(bench.Args(device="cpu", prepare=True)) == 1
    assert capsys.readouterr().err == "PPO image, bf16, 4,096 x 32: no\n"


def test_one_row_is_measured_by_a_process_of_its_own():
    """With the defaults of all other flags, as `--prepare` does."""
    command = [sys.executable, SCRIPT, "--one", "PPO flat, 16 x 128", "graphs", "--device", "cpu"]
    done = subprocess.run([*command, "--updates", "1", "--warm-up", "1"], capture_output=True, text=True)
    assert float(done.stdout.splitlines()[-1]) > 0, done.stderr


@pytest.mark.parametrize("more", [{"device": "cpu"}, {"prepare": True}, {"one": ("row", "graphs")}])
def test_profiles_are_refused_where_there_would_be_none(bench, more):
    with pytest.raises(ValueError, match="--profile: it is for"):
        bench.Args(profile=True, **more)
