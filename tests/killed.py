"""A run that dies on the way."""

import pytest

from neoteny.runners.run import Run


class Killed(BaseException):
    """Stands for SIGKILL: nothing saves anything any more."""


def die(agent, args, step, monkeypatch):
    """Run an agent, a module, until so many steps were made."""
    record = Run.record_episodes

    def recorded(self, info):
        record(self, info)
        if self.stream.steps == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record_episodes", recorded)
        with pytest.raises(Killed):
            agent.main(args)
