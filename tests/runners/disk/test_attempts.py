"""Which process owns a run: processes that are stopped, wake up, and are killed."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
import uuid

import gymnasium as gym
import pytest
import torch

from neoteny.runners.disk import attempts
from neoteny.runners.disk.attempts import begin_attempt, latest_attempt, locked
from neoteny.runners.disk.files import replace_file
from neoteny.runners.replay import ReplayMemory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no POSIX locks on Windows")


@contextlib.contextmanager
def other_process(act, then=lambda: time.sleep(600)):
    """Another process that calls a function, and another when that has returned; its id."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            kept = act()
            os.write(write, b".")
            then()
            del kept
        os._exit(1)
    try:
        assert os.read(read, 1) == b"."
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def begun(folder):
    """An attempt at a run."""
    with locked(folder):
        return begin_attempt(folder)


def hold(folder):
    """Take the lock of a run and keep it."""
    holding = locked(folder)
    holding.__enter__()
    return holding


def test_two_processes_the_newest_owns_the_run(tmp_path):
    older = begun(tmp_path)
    older.check()
    with older.section(), older.section():
        pass
    (tmp_path / "attempts" / "notes.json").write_text("of the user")
    newer = begun(tmp_path)
    assert (older.number, newer.number, latest_attempt(tmp_path)) == (1, 2, 2)
    entered = []
    with pytest.raises(SystemExit) as exit, older.section():
        entered.append(older)
    assert exit.value.code == 73
    assert not entered
    newer.check()


def test_two_processes_the_newest_of_several_that_start_at_once_owns_the_run(tmp_path):
    wakes, wake = os.pipe()

    def begin_at_once():
        os.read(wakes, 1)
        kept = begun(tmp_path)
        time.sleep(600)
        del kept

    with contextlib.ExitStack() as stack:
        pids = {stack.enter_context(other_process(lambda: None, begin_at_once)) for _ in range(5)}
        os.write(wake, b".....")
        deadline = time.monotonic() + 60
        while latest_attempt(tmp_path) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        files = [attempts.attempt_file(tmp_path, number) for number in range(1, 6)]
        with locked(tmp_path):  # so that each has written who it is
            assert {json.loads(file.read_text())["pid"] for file in files} == pids
        owners = [attempts.Attempt(tmp_path, i, os.open(file, os.O_RDWR)) for i, file in enumerate(files, 1)]
        assert [owner.is_superseded for owner in owners] == [True, True, True, True, False]
        for owner in owners:
            owner.close()
    os.close(wakes)
    os.close(wake)


def test_two_processes_a_run_that_was_removed_and_started_again_is_another(tmp_path):
    older = begun(tmp_path)
    older_file = attempts.attempt_file(tmp_path, 1)
    older_file.unlink()
    assert older.is_superseded
    begun(tmp_path)  # with the same number
    assert older.is_superseded


def test_two_processes_one_that_is_stopped_under_the_lock_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "PATIENCE", 0.2)
    with other_process(lambda: hold(tmp_path)) as pid:
        os.kill(pid, signal.SIGSTOP)
        with locked(tmp_path):
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_two_processes_the_older_one_asks_after_each_step_too(tmp_path, monkeypatch):
    """On a file system without locks the newer one does not wait for it."""
    monkeypatch.setattr(attempts, "_lock", lambda descriptor: True)
    section = begun(tmp_path).section()
    section.__enter__()
    begun(tmp_path)
    with pytest.raises(SystemExit) as exit:
        section.__exit__(None, None, None)
    assert exit.value.code == 73


def test_two_processes_the_lock_of_one_on_another_machine_is_not_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attempts, "PATIENCE", 0.2)
    monkeypatch.setattr(attempts, "_kill_holder", lambda descriptor: False)
    with other_process(lambda: hold(tmp_path)), locked(tmp_path):
        assert "stays locked by a process elsewhere; the run goes on" in capsys.readouterr().err


def test_two_processes_the_older_one_may_be_alive_where_there_are_no_locks(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    assert begun(tmp_path).is_alone()
    monkeypatch.setattr(attempts.fcntl, "lockf", no_locks)
    assert not begun(tmp_path).is_alone()  # so that the replay memory is copied


def test_two_processes_the_older_one_does_not_wait_for_the_newer_one(tmp_path):
    older = begun(tmp_path)
    with other_process(lambda: hold(tmp_path), lambda: attempts.attempt_file(tmp_path, 2).touch()) as pid:
        with pytest.raises(SystemExit) as exit, older.section():
            pass
        assert exit.value.code == 73
        assert os.waitpid(pid, 0)


def test_two_processes_child_processes_do_not_inherit_the_lock(tmp_path):
    with locked(tmp_path):
        children = contextlib.ExitStack()
        children.enter_context(other_process(lambda: None))
    start = time.monotonic()
    with children, locked(tmp_path):
        assert time.monotonic() < start + 5


def test_two_processes_the_older_one_is_known_to_have_ended(tmp_path):
    with other_process(lambda: begun(tmp_path)) as pid:
        newer = begun(tmp_path)
        assert newer.number == 2
        os.kill(pid, signal.SIGSTOP)
        assert not newer.is_alone()
        assert not begun(tmp_path).is_alone()
    assert newer.is_alone()


@pytest.mark.parametrize("alive", [True, False])
def test_two_processes_the_replay_memory_is_the_newer_one_s_own(alive, tmp_path):
    """An older process that wakes up writes where nobody reads any more."""
    space, no = gym.spaces.Box(-1.0, 1.0, (1,)), torch.zeros(1, dtype=torch.bool)
    frames = tmp_path / "replay" / "frames.npy"

    def add(memory, values):
        for value in values:
            row = torch.full((1, 1), float(value))
            memory.add(row, torch.zeros(1, dtype=torch.int64), torch.ones(1), no, no, row)

    def opened():
        memory = ReplayMemory(20, 1, space, gym.spaces.Discrete(2), folder=frames.parent, interval=20)
        memory.open(begun(tmp_path))
        return memory

    older = opened()
    add(older, range(8))
    older.flush()
    state, before = older.state_dict(), frames.stat().st_ino
    wakes, wake = os.pipe()

    def sleep_and_go_on():
        os.read(wakes, 1)
        add(older, [100.0] * 20)

    with other_process(lambda: begun(tmp_path) if alive else None, sleep_and_go_on) as pid:
        newer = opened()
        newer.load_state_dict(state)
        add(newer, range(8, 16))
        os.write(wake, b".")
        os.waitpid(pid, 0)
    seen = newer.gather(torch.zeros(16, dtype=torch.int64), torch.arange(16)).observations.flatten().tolist()
    assert (seen == list(range(16))) == alive
    assert (frames.stat().st_ino != before) == alive
    assert not list(tmp_path.glob(".*"))


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))  # in truth nobody can guess the name
    (tmp_path / f".tmp_{uuid.UUID(int=0).hex}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "args.json", b"{}")
    assert victim.read_text() == "precious"
