"""Claims: one owner at a time, lost when the last process that holds it dies, whatever it dies of."""

import os
import subprocess
import sys
import threading
import time

import pytest

from neoteny.runners.disk.claims import claim

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no claims")

HOLD = """
import subprocess, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import claims
held = claims.claim(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=held.descriptors)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_run_is_claimed_once(tmp_path):
    run = tmp_path / "new" / "s1"
    held = claim(run)
    assert claim(run) is None
    assert claim(tmp_path / "new" / "s2") is not None
    held.release()
    assert claim(run) is not None
    assert not run.exists()


def test_a_released_claim_leaves_no_file(tmp_path):
    claim(tmp_path / "s1").release()
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_replaced_while_it_was_opened_is_no_claim(tmp_path, monkeypatch):
    """The last owner removed it, and a third process has claimed the run with a file of its own."""
    import fcntl

    lock, others = fcntl.flock, []

    def replaced_once(descriptor, how):
        lock(descriptor, how)
        if not others:
            monkeypatch.undo()
            (path,) = tmp_path.iterdir()
            path.unlink()
            others.append(claim(tmp_path / "s1"))

    monkeypatch.setattr(fcntl, "flock", replaced_once)
    assert claim(tmp_path / "s1") is None
    others[0].release()
    assert claim(tmp_path / "s1") is not None


def test_a_process_that_is_killed_loses_its_claim_when_its_run_has_ended_too(tmp_path):
    import neoteny.runners.disk.claims as module

    folder = os.path.dirname(module.__file__)
    words = [sys.executable, "-c", HOLD, str(tmp_path / "s1"), folder]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert claim(tmp_path / "s1") is None
    process.kill()
    process.wait()
    assert claim(tmp_path / "s1") is None
    os.kill(child, 9)
    while (held := claim(tmp_path / "s1")) is None:
        time.sleep(0.01)
    held.release()
    process.stdout.close()


def test_of_many_that_claim_and_release_one_is_the_owner_at_any_time(tmp_path):
    owners, most, turns = [], [], []

    def work():
        end = time.monotonic() + 20
        while len(turns) < 300 and time.monotonic() < end:
            if (held := claim(tmp_path / "s1")) is not None:
                owners.append(1)
                most.append(len(owners))
                turns.append(1)
                owners.pop()
                held.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
