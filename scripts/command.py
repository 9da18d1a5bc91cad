"""The command `neoteny`, which calls the same functions as the scripts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from neoteny.runners.disk.exit_codes import ExitCode, bad_input, stop
from neoteny.runners.disk.messages import protect_output, tell
from neoteny.runners.disk.preemption import end_at_signals

HELP = """usage: neoteny COMMAND ...

  list      agents, presets, streams, optimizers, methods and arms
  train     train an agent: neoteny train ppo cartpole-rotations optim:adam
  sweep     train a grid of optimizers, flags and seeds
  compare   compare runs over seeds: tables and figures
  evaluate  play the policy of a run on the tasks of its stream

neoteny COMMAND --help shows the flags of a command, neoteny train ppo --help those of an agent."""


def main() -> NoReturn:
    """Run the command line; exits with code 2 and one sentence for bad input."""
    protect_output()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        tell(HELP)
        sys.exit(0)
    if name not in COMMANDS:
        stop(ExitCode.BAD_INPUT, f"there is no command {name!r}; neoteny --help lists all")
    sys.argv = [f"neoteny {name}", *words]  # which help pages show
    sys.exit(COMMANDS[name](words))


def train(words: Sequence[str]) -> int:
    """Train an agent: its name or file, then its command line."""
    end_at_signals()
    from neoteny.configs.cli import launch  # here, since imports take seconds
    from neoteny.scripts.agent_files import agent_names, load_agent

    agent, *flags = words or ["--help"]
    if agent in ("-h", "--help"):
        tell(
            f"usage: neoteny train AGENT ...\n\nAGENT is {' or '.join(agent_names())}, or a file of your own"
        )
        return 0
    with bad_input():
        module = load_agent(agent)
    sys.argv = [f"neoteny train {agent}", *flags]
    launch(module.main, module.Args, module.PRESETS)
    return 0


def show(words: Sequence[str]) -> int:
    """List what there is, or the kinds of it that are asked for, each with a line."""
    from neoteny.scripts.listing import KINDS, lines_of

    if unknown := [word for word in words if word not in (*KINDS, "-h", "--help")]:
        stop(ExitCode.BAD_INPUT, f"neoteny list knows {', '.join(KINDS)}, not {unknown[0]!r}")
    if "-h" in words or "--help" in words:
        tell(f"usage: neoteny list [{' | '.join(KINDS)}]...")
        return 0
    for kind in words or KINDS:
        tell("\n".join((f"{kind}:", *lines_of(kind), "")))
    return 0


def script(name: str) -> Callable[[Sequence[str]], int]:
    """The script of a name: takes the words of its command line, returns its exit code."""

    def run(words: Sequence[str]) -> int:
        from neoteny.configs.cli import until_signal  # here, since imports take seconds

        return until_signal(lambda: importlib.import_module(f"neoteny.scripts.{name}").run(words))

    return run


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": show,
    "train": train,
    **{name: script(name) for name in ("sweep", "compare", "evaluate")},
}

if __name__ == "__main__":
    main()
