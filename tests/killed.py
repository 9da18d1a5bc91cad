"""Runs in which something happens at a step, such as death."""

import pytest

from neoteny.runners.run import Run


class Killed(BaseException):
    """Stands for SIGKILL: nothing saves anything any more."""


def kill(run):
    raise Killed


def at(monkeypatch, step, act):
    """Do something, once, when a run has made so many steps."""
    record, done = Run.record_episodes, []

    def recorded(self, *made):
        record(self, *made)
        if self.stream.steps == step and not done:
            done.append(step)
            act(self)

    monkeypatch.setattr(Run, "record_episodes", recorded)


def die(agent, args, step, monkeypatch):
    """Run an agent, a module, until so many steps were made."""
    with monkeypatch.context() as patch:
        at(patch, step, kill)
        with pytest.raises(Killed):
            agent.main(args)
