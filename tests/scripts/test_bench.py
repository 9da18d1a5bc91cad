"""The benchmarks run and the core counts right; how fast anything is, no test says."""

import gc
import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

pytestmark = pytest.mark.slow

PATH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
spec = importlib.util.spec_from_file_location("bench", PATH)
bench = importlib.util.module_from_spec(spec)
sys.modules["bench"] = bench  # dataclasses look up their module there
spec.loader.exec_module(bench)


class Machine:
    """Two clocks that move only when an arm is called: wall time by its cost, CPU time by half of it."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def clock(self):
        return self.now, self.now / 2

    def arm(self, name, *costs):
        """Costs of successive calls, in cycles; the first call costs an hour more."""

        def call():
            assert not gc.isenabled()
            made = self.calls.count(name)
            self.calls.append(name)
            self.now += costs[made % len(costs)] + (3600 if made == 0 else 0)

        return call


def alternate(machine, arms, interval=1, **effort):
    options = {"turn": 1.0, "measurement": 0.0, "budget": 0.0, "repeats": (3, 5), **effort}
    return bench.alternate(arms, bench.Effort(**options), interval=interval, clock=machine.clock)


def test_warm_up_is_not_timed_and_each_clock_is_its_own():
    machine = Machine()
    seconds = alternate(machine, {"a": machine.arm("a", 0.25), "b": machine.arm("b", 0.5)})
    assert seconds["a"] == pytest.approx(np.tile([0.25, 0.125], (3, 1)))
    assert seconds["b"] == pytest.approx(np.tile([0.5, 0.25], (3, 1)))


@pytest.mark.parametrize(("cost", "calls"), [(0.125, 8), (1.0, 1), (7.0, 1)])
def test_every_arm_has_one_turn_a_round_and_a_turn_lasts_long_enough(cost, calls):
    machine = Machine()
    arms = {name: machine.arm(name, cost) for name in "abc"}
    alternate(machine, arms, interval=20, repeats=(2, 2))
    measured = "".join(machine.calls[-2 * 20 * 3 * calls :])
    turns = [measured[i : i + calls] for i in range(0, len(measured), calls)]
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = {"".join(turn[0] for turn in turns[i : i + 3]) for i in range(0, len(turns), 3)}
    assert rounds == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_a_measurement_lasts_long_enough():
    machine = Machine()
    alternate(machine, {"a": machine.arm("a", 1.0)}, interval=4, measurement=9.0, repeats=(1, 1))
    assert len(machine.calls) == 1 + 1 + 12  # warm-up, calibration, three whole intervals


@pytest.mark.parametrize("cost", [0.01, 0.3, 4.0])
def test_a_measurement_holds_whole_intervals(cost):
    machine = Machine()
    every_tenth = [cost] * 9 + [11 * cost]
    arms = {"plain": machine.arm("plain", cost), "tenth": machine.arm("tenth", *every_tenth)}
    seconds = alternate(machine, arms, interval=10)
    assert bench.overhead(seconds, "tenth") == pytest.approx([100.0] * 3)


def test_repeats_follow_the_budget():
    for budget, repeats in ((0.0, 3), (8.1, 4), (1e6, 5)):
        machine = Machine()
        arms = {name: machine.arm(name, 0.5) for name in "ab"}
        assert alternate(machine, arms, budget=budget)["a"].shape == (repeats, 2)


def test_the_garbage_collector_is_on_again_even_after_an_error():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.alternate({"a": broken}, bench.QUICK)
    assert gc.isenabled()


def test_ratios_are_paired_by_repeat():
    # The machine becomes twice as slow: each arm's median moves, their ratio does not.
    reference = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    seconds = {"a": reference, "b": reference * (1.5, 1.1)}
    assert bench.overhead(seconds, "b", bench.CPU) == pytest.approx([10, 10, 10])
    assert bench.overhead(seconds, "b", bench.WALL) == pytest.approx([50, 50, 50])


def test_a_cell_is_the_median_and_the_quartiles():
    assert bench.percent([9.0, 1.0, 3.0, 5.0, 7.0]) == "+5.0 (+3.0 to +7.0)"
    assert bench.ms([0.0012345, 1.2345]) == "618 (310 to 926)"
    assert bench.ms([1.2345]) == "1230 (1230 to 1230)"


def test_verdicts():
    assert bench.verdict("probes", 1.5, 2.0) == "holds   probes: 1.50 %, target 2 %"
    assert bench.verdict("probes", 2.5, 2.0) == "MISSED  probes: 2.50 %, target 2 %"
    assert bench.verdict("flush", 0.1, 0.2, "s") == "holds   flush: 0.10 s, target 0.2 s"
    assert bench.verdict("probes", math.nan, 2.0).startswith("MISSED")


def test_table_is_markdown():
    assert bench.table(["a", "bc"], [["1", "2"]]) == "| a | bc |\n| - | -- |\n| 1 | 2  |"


def test_the_networks_are_the_ones_of_the_claims():
    sizes = [sum(p.numel() for p in problem.network.parameters()) for problem in bench.problems()]
    assert sizes == [11_079, 826_378, 1_687_206]


def test_the_heads_are_those_of_the_networks():
    for problem in bench.problems():
        layers = bench.describe(problem.network, bench.torch.zeros(1, *problem.shape), problem.parts)
        heads = {problem.network.get_submodule(name) for name in problem.heads}
        assert {layer.module for layer in layers if layer.is_head} == heads
        assert len(heads) == len(problem.parts)


def test_the_ppo_problem_is_ppos_loss_on_a_batch_that_stays():
    agent, loss = bench.problems()[0].network, bench.ppo_batch(8)
    assert loss(agent).item() == loss(agent).item()
    assert loss(agent).item() != bench.ppo_batch(8)(agent).item()
    loss(agent).backward()
    assert all(parameter.grad.isfinite().all() for parameter in agent.parameters())
    assert any(parameter.grad.any() for parameter in agent.actor.parameters())
    assert any(parameter.grad.any() for parameter in agent.critic.parameters())


def test_every_arm_trains_its_own_copy_of_the_network():
    problem = bench.problems()[0]
    loss = problem.loss(4)
    before = loss(problem.network).item()
    stepping = bench.Stopwatch()
    bench.updater(problem, bench.AdamOConfig(iso=0.1), loss, stepping)()
    assert loss(problem.network).item() == before
    assert 0 < stepping.seconds < 10
    assert stepping.clocks()[bench.STEP] == stepping.seconds


@pytest.fixture
def few(monkeypatch):
    """Only the first of the networks and presets."""
    problems = bench.problems
    monkeypatch.setattr(bench, "problems", lambda norm="none": problems(norm)[:1])
    for presets in ("PROBED_PRESETS", "SAVED_PRESETS"):
        monkeypatch.setattr(bench, presets, getattr(bench, presets)[:1])


def smoke(name, capsys):
    """Cells of the tables that a quick run prints."""
    assert bench.main(tyro.cli(bench.Bench, args=[name, "--quick"])) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"$ python scripts/bench.py {name} --threads 1 --quick\n")
    assert "torch" in printed.splitlines()[1]
    rows = [line.strip("| ").split("|") for line in printed.splitlines() if line.startswith("| ")]
    return printed, [[cell.strip() for cell in row] for row in rows if not row[0].startswith("-")]


def numbers(cell):
    return [float(number) for number in re.findall(r"[-+]?\d[\d.]*(?:e[-+]\d+)?", cell.replace(",", ""))]


def assert_positive(cells):
    values = [value for cell in cells for value in numbers(cell)]
    assert len(values) >= len(cells)
    assert all(0 < value < math.inf for value in values)


def test_optim_smoke(few, capsys):
    printed, (header, *rows) = smoke("optim", capsys)
    names = [problem.name for problem in bench.problems()]
    assert [(row[0], row[2]) for row in rows] == [(name, batch) for name in names for batch in ("4", "8")]
    assert all(len(row) == len(header) for row in rows)
    for row in rows:
        assert_positive(row[1:6])
        assert [len(numbers(cell)) for cell in row[6:]] == [3, 3, 3, 3, 3, 2]
    for name in names:
        assert re.search(rf"(holds |MISSED)  {re.escape(name)}, batch 4, k=10: ", printed)


def test_methods_smoke(few, capsys):
    _, (header, adam, again, *rows) = smoke("methods", capsys)
    assert header[1:] == [problem.name for problem in bench.problems()]
    assert (adam[0], again[0]) == ("Adam", "Adam again")
    assert_positive(adam[1:])
    split = rows.index(["event", *header[1:]])
    names, events = ({row[0] for row in part} for part in (rows[:split], rows[split + 1 :]))
    assert names >= {*bench.METHODS} - {"reorthogonalize"}
    assert {"optim:muono", "optim:upgd", "optim:trac"} < names
    assert all(len(numbers(cell)) == 3 for row in (*rows[:split], *rows[split + 1 :]) for cell in row[1:])
    assert events >= {"redo", "snr", "injection", "fire_at_switch"}
    assert not events & {"l2", "shrink_perturb", "weight_clipping"}


def test_orthogonal_networks_keep_all_but_heads_orthogonal():
    problem = bench.problems()[1]
    for kind in bench.ORTHOGONAL:
        network = bench.orthogonal_network(problem, kind)
        kept = [name for name, part in network.named_children() if hasattr(part, "parametrizations")]
        assert kept == ([] if kind == "free" else ["linear1", "linear2", "linear3", "linear4"])


def test_orthogonal_smoke(few, capsys):
    _, (header, *rows) = smoke("orthogonal", capsys)
    names = [problem.name for problem in bench.problems()]
    assert [row[0] for row in rows] == [*names, "network", *names]
    for row in rows[: len(names)]:
        assert len(row) == len(header)
        assert_positive(row[1:])
    for row in rows[-len(names) :]:
        assert_positive(row[1:])


def test_probes_smoke(few, capsys):
    printed, rows = smoke("probes", capsys)
    presets, problems = bench.PROBED_PRESETS, [problem.name for problem in bench.problems()]
    names = [*presets, *problems]
    assert [row[0] for row in rows] == ["preset", *presets, "network", *problems]
    for row in rows:
        if row[0] in names:
            assert_positive(row[1:])
    for preset in presets:
        assert re.search(rf"(holds |MISSED)  probes in {preset}: ", printed)


def test_checks_smoke(capsys, monkeypatch):
    monkeypatch.setattr(bench, "switching_presets", lambda: ["cartpole-gravity"])
    printed, (header, row) = smoke("checks", capsys)
    assert (row[0], row[1], len(row)) == ("cartpole-gravity", "16,384", len(header))
    assert all(float(cell) >= 0 for cell in row[2:])
    for what in ("checks before training", "checks at a switch"):
        assert re.search(rf"(holds |MISSED)  {what}: ", printed)


def test_checkpoint_smoke(few, capsys):
    printed, rows = smoke("checkpoint", capsys)
    assert [row[0] for row in rows[:2]] == ["preset", "cartpole-rotations"]
    assert [row[0] for row in rows[3:]] == ["add to tensors", "add", "flush", "extra"]
    assert len(rows[1]) == len(rows[0])
    assert_positive(rows[1][1:])
    for row in rows[3:-1]:
        assert_positive(row[2:])
    for what in ("checkpoints in cartpole-rotations", "flush of 32 frames"):
        assert re.search(rf"(holds |MISSED)  {what}: ", printed)


@pytest.mark.parametrize("view", ["flat", "image"])
def test_the_plain_loop_trains_the_same_network(view, monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)
    peers = importlib.import_module("peers")
    networks = []

    class Recorded(peers.ppo.ActorCritic):
        def __init__(self, *args):
            super().__init__(*args)
            networks.append([(name, weight.shape) for name, weight in self.named_parameters()])

    monkeypatch.setattr(peers.ppo, "ActorCritic", Recorded)
    for train in (peers.neoteny, peers.plain):
        train(peers.Training(view, 1), 1)
    assert networks[0] == networks[1]


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_neoteny_trains_on_raw_rewards_as_the_others_do(agent, monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)
    peers = importlib.import_module("peers")
    trained = []
    monkeypatch.setattr(getattr(peers, agent), "main", trained.append)
    peers.neoteny(peers.Training("flat", 1, agent=agent), 1)
    assert trained[0].rewards == peers.RewardConfig("none", clip=False, scale=1.0)
