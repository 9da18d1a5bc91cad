"""Runs of no agent at all, on a stream that only counts steps."""

from neoteny.envs.schedule import Schedule
from neoteny.runners.run import Run


class Steps:
    """What a run needs of a stream."""

    audit_seconds = 0.0
    schedule = Schedule(period=1)

    def __init__(self):
        self.steps = 0

    def misfit_before(self, step):
        return ""

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def begin(args, **parts):
    """A run that begins or resumes."""
    act = (lambda observations: observations) if args.evaluate_at_switch else None  # never called
    return Run("ppo", args, Steps(), args.total_steps, act=act, **parts)


def record(run, step, info, episodes=None):
    """Let a run's stream make a step."""
    run.stream.steps = step
    run.record_episodes(info, episodes)


def update(run, step, info=None):
    """Let a run make an update that ends at a step."""
    record(run, step, info or {"task": 0})
    with run.end_update({}):
        pass
