"""The table of speeds on a GPU; how fast anything is, no test says."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    """scripts/bench/gpu.py, with measurements that take no time."""
    path = Path(__file__).parents[2] / "scripts" / "bench" / "gpu.py"
    spec = importlib.util.spec_from_file_location("bench_gpu", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)
    spec.loader.exec_module(module)
    module.runs = []
    monkeypatch.setattr(
        module, "measured", lambda row, arm, args: module.runs.append((row.name, arm)) or ("1,000", "")
    )
    monkeypatch.setattr(module, "prepare", lambda row, args: module.runs.append((row.name, "compiled")))
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
