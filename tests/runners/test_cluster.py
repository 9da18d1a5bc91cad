"""A sweep on a Ray cluster of two nodes, one of which is lost in the middle: scripts/test --cluster."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason='needs Ray: pip install -e ".[cluster]"')

from ray.cluster_utils import Cluster  # noqa: E402

from neoteny.agents import ppo  # noqa: E402
from neoteny.configs.flags import with_flags  # noqa: E402
from neoteny.runners.cluster import run_on_cluster  # noqa: E402
from neoteny.runners.disk.claims import claim  # noqa: E402
from neoteny.runners.disk.folder import run_folder  # noqa: E402
from neoteny.runners.sweep import State  # noqa: E402
from neoteny.scripts import sweep  # noqa: E402
from tests.killed_sweep import stub_jobs, wrong  # noqa: E402
from tests.tiny_runs import FLAGS, outcome, small  # noqa: E402

# Ray leaves files and sockets open.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 2048


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes with two cores each."""
    monkeypatch.setenv("RAY_health_check_period_ms", "500")  # a lost node is noticed in seconds
    monkeypatch.setenv("RAY_health_check_timeout_ms", "2000")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes.lossy = nodes.add_node(num_cpus=2)
    yield nodes
    nodes.shutdown()


def processes(node):
    """Ids and command lines of all processes of a node, its runs too."""
    parents, found = {}, [node.all_processes["raylet"][0].process.pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for process in found:  # which grows
        found += [child for child, parent in parents.items() if parent == process]
    for process in found:
        with contextlib.suppress(OSError):
            yield process, Path(f"/proc/{process}/cmdline").read_text().split("\0")


def lose(node, is_due):
    """Kill all processes of a node at once, when it is due."""
    while not is_due():
        time.sleep(0.05)
    for process, _ in list(processes(node)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_a_grid_is_finished_when_a_node_is_lost_and_equals_that_of_one_machine(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    runs = {
        name: [small(tmp_path / name, seed=seed, total_steps=STEPS) for seed in range(8)]
        for name in ("a", "b")
    }
    for args in runs["a"]:
        ppo.main(args)

    def has_saved():
        """Whether a run on the node that will be lost has a checkpoint."""
        for _, words in processes(cluster.lossy):
            if "--seed" in words:
                args = runs["b"][int(words[words.index("--seed") + 1])]
                if list(run_folder("ppo", args).glob("checkpoint/step_*")):
                    return True
        return False

    thread = threading.Thread(target=lose, args=(cluster.lossy, has_saved))
    thread.start()
    words = [*"--optims adam --seeds 0 1 2 3 4 5 6 7 --cluster".split(), cluster.address, "--"]  # noqa: SIM905
    flags = with_flags(FLAGS.split(), ["--total-steps", str(STEPS), "--runs-dir", "b"])
    assert sweep.run([*words, *(flag for flag in flags if flag != "optim:adam")]) == 0
    thread.join()
    for one, other in zip(runs["a"], runs["b"]):
        alone, on_cluster = outcome(one), outcome(other)
        assert on_cluster["weights"] == alone["weights"]
        assert on_cluster["summary"] == alone["summary"]
    attempts = [len(list((run_folder("ppo", args) / "attempts").glob("*.json"))) for args in runs["b"]]
    assert 8 < sum(attempts) <= 10  # two runs were on that node


def test_what_another_sweep_has_claimed_is_waited_for(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = stub_jobs(tmp_path, 3)
    held = claim(jobs[0].path)

    def finish():
        while not all(job.is_done() for job in jobs[1:]):
            time.sleep(0.1)
        jobs[0].path.mkdir()
        (jobs[0].path / "summary.json").touch()
        held.release()

    thread = threading.Thread(target=finish)
    thread.start()
    outcomes = run_on_cluster(jobs, cluster.address, cpus=1, gpus=0.0)
    thread.join()
    assert [each.state for each in outcomes] == [State.DONE_ELSEWHERE, State.DONE, State.DONE]
    assert not wrong(jobs)


def test_a_stopped_sweep_lets_its_runs_save(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = stub_jobs(tmp_path, 3, steps=1000, pause=0.1)

    def stop():
        while not (jobs[0].path / "state").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(jobs, cluster.address, cpus=1, gpus=0.0)
    thread.join()
    assert claim(jobs[0].path) is not None  # no run is left
    assert not any(job.is_done() for job in jobs)


def test_no_cluster_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no Ray cluster at auto"):
        run_on_cluster(stub_jobs(tmp_path, 1), "auto", cpus=1, gpus=0.0)
