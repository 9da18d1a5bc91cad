"""Malformed command lines, over every flag of every command, for `malformed.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from neoteny.configs.flags import OPTIMIZERS, flags
from neoteny.envs.atari.game import ale
from neoteny.optim import METHODS
from neoteny.scripts import compare, evaluate, sweep
from neoteny.scripts.agent_files import agent_names, load_agent

RUN = "run"  # the folder of a finished run
PRESETS = {
    "ppo": ("cartpole-gravity", "cartpole-rotations", "grid-layouts-small"),
    "dqn": ("cartpole", "cartpole-gravity", "grid-empty"),
}


class Line(NamedTuple):
    """A command line."""

    command: str
    kind: str
    words: tuple[str, ...]
    flag: str = ""
    """Which is malformed."""
    cannot_be: bool = False
    """Whether it must be refused."""


class Flag(NamedTuple):
    """A flag of a command."""

    name: str
    type: Any
    before: tuple[str, ...] = ()
    """Words that the command line needs to have the flag."""


def agent_flags(args: Any) -> Iterator[Flag]:
    """All flags of an agent, those of every optimizer and method too."""
    for name, owner in flags(args).items():
        if not name.startswith("optim."):
            yield _flag(f"--{name}", name, owner)
    for optimizer, kind in OPTIMIZERS.items():
        for field in dataclasses.fields(kind):
            yield _flag(f"--optim.{field.name}", field.name, kind, f"optim:{optimizer}")
    for method, kind in METHODS.items():
        for field in dataclasses.fields(kind):
            yield _flag(f"--methods.{method}.{field.name}", field.name, kind, f"--methods.{method}")


def _flag(word: str, name: str, owner: type, *before: str) -> Flag:
    hint = typing.get_type_hints(owner)[name.rpartition(".")[2]]
    return Flag(word.replace("_", "-"), hint, tuple(each.replace("_", "-") for each in before))


def commands() -> dict[str, list[Flag]]:
    """All flags of all commands."""
    found = {name: list(agent_flags(load_agent(name).Args())) for name in agent_names()}
    scripts: tuple[type[Any], ...] = (sweep.Sweep, compare.Compare, evaluate.Evaluate)
    for kind in scripts:
        known = [_flag(f"--{field.name}", field.name, kind) for field in dataclasses.fields(kind)]
        found[kind.__name__.lower()] = known
    return found


def _of_a_wrong_type(flag: Flag, draw: random.Random) -> list[str]:
    words = (
        "",
        "abc",
        "1.5.2",
        "0x10",
        "None",
        "true",
        "[1]",
        "1,2",
        "{}",
        "1e",
        "--",
        "-",
        "1_",
        "=",
        "a:b",
    )
    return [draw.choice(words)]


def _out_of_range(flag: Flag, draw: random.Random) -> list[str]:
    far = ("nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "-0.0", "1" + "0" * 400)
    whole = (str(2**31), str(2**63), str(2**64), "9" * draw.randint(15, 5000))
    near = ("-1", "-2", "-0.5", "0", "2.5", str(-(2**63)))
    anywhere = f"{draw.choice(('', '-'))}{draw.uniform(1, 10):.6g}e{draw.randint(-310, 310)}"
    return [draw.choice((*far, *whole, *near, anywhere))]


def _of_a_size_that_cannot_be(flag: Flag, draw: random.Random) -> list[str]:
    sizes = (10 ** draw.randint(13, 18), 2 ** draw.randint(41, 62), draw.randint(10**13, 2**62))
    return [str(draw.choice(sizes)) for _ in range(draw.choice((1, 1, 2, 3)))]


def _of_odd_signs(flag: Flag, draw: random.Random) -> list[str]:
    alphabet = "üßñ\u202e\n\t 😀１２３٣中文\udcff'\"\\$`;|&%{}[]()<>*?~#!@^:/.="
    odd = "".join(draw.choice(alphabet) for _ in range(draw.randint(1, 12)))
    paths = ("/dev/null", "/dev/full", "/proc/self/mem", "../" * 9, "a/" * 3000, "x" * 5000, "/", ".", "~")
    names = ("\n", "nul.py", "neoteny", "os:system", "sys:exit", "x:" * 50, ".:a", "a..b:c")
    return [draw.choice((odd, odd, *paths, *names))]


def _that_may_be_too_large(flag: Flag, draw: random.Random) -> list[str]:
    return [str(int(10 ** draw.uniform(5, 12)))]


def _without_a_value(flag: Flag, draw: random.Random) -> list[str]:
    return []


def _with_too_many(flag: Flag, draw: random.Random) -> list[str]:
    return [str(draw.randint(1, 9)) for _ in range(draw.choice((2, 5, 2000)))]


WRONG: dict[str, Callable[[Flag, random.Random], list[str]]] = {
    "type": _of_a_wrong_type,
    "range": _out_of_range,
    "size": _of_a_size_that_cannot_be,
    "large": _that_may_be_too_large,
    "signs": _of_odd_signs,
    "no value": _without_a_value,
    "values": _with_too_many,
}
"""What is wrong with the value of a flag -> the words of one."""


def twice(flag: Flag, draw: random.Random) -> list[str]:
    """A flag with two values, each of which may be good."""
    values = ("1", "2", "0.5", "cpu", "none", "cartpole-rotations", "adam")
    return [word for _ in range(2) for word in (flag.name, draw.choice(values))]


def misspelled(flag: Flag, draw: random.Random) -> list[str]:
    """A flag with a letter too few or too many, or in other words."""
    at = draw.randrange(2, len(flag.name))
    before, after = flag.name[:at], flag.name[at:]
    changed = (
        before + after[1:], before + draw.choice("xü-._:= ") + after, flag.name[1:], f"-{flag.name}",
        flag.name.upper(), flag.name.replace("--", "--no-"), f"{flag.name}.{flag.name[2:]}",
    )  # fmt: skip
    return [draw.choice(changed), draw.choice(("1", "x", ""))]


def malformed(number: int, seed: int) -> Iterator[Line]:
    """Command lines of all kinds, over all flags in turn."""
    draw = random.Random(seed)
    every = [(command, flag) for command, known in commands().items() for flag in known]
    kinds = [*WRONG, "twice", "misspelled"]
    order: list[tuple[str, Flag]] = []
    for place in range(number):
        order = order or draw.sample(every, len(every))
        yield _line(*order.pop(), kinds[place % len(kinds)], draw)


def _line(command: str, flag: Flag, kind: str, draw: random.Random) -> Line:
    begin = (RUN,) if command in ("compare", "evaluate") else ()
    begin = (draw.choice(PRESETS[command]),) if command in PRESETS else begin
    if kind in WRONG:
        value = WRONG[kind](flag, draw)
        is_joined = len(value) == 1 and draw.random() < 0.2
        bad = [f"{flag.name}={value[0]}"] if is_joined else [flag.name, *value]
    else:
        bad = (twice if kind == "twice" else misspelled)(flag, draw)
    is_number = "int" in str(flag.type) or "float" in str(flag.type)
    cannot_be = (kind == "twice" and flag.name != "--over") or (
        kind == "size" and is_number and "seed" not in flag.name
    )
    return Line(command, kind, (*begin, *flag.before, *bad), flag.name, cannot_be)


def registered(agents: Sequence[str] = ("ppo", "dqn")) -> Iterator[Line]:
    """A command line for each registered environment of Gymnasium and each agent."""
    with contextlib.suppress(ValueError):
        ale()  # registers its games
    for id, agent in itertools.product(sorted(gym.registry), agents):
        yield Line(agent, "id", ("--stream.id", id), id)
