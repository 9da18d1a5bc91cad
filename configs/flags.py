"""The flags of a configuration: suggestions for mistyped flags, and refusal of flags without effect.

A configuration is a dataclass whose fields are flags or nested configurations. Its optional method ``unused``
returns the fields that have no effect with the current values of the others: name -> reason. The name of a
nested configuration stands for all of its fields; a dotted name is a field of a nested configuration.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from neoteny.optim import METHODS, OptimConfig, methods_as_dict

OPTIMIZERS: dict[str, Any] = {
    kind.name: kind for kind, *_ in map(typing.get_args, typing.get_args(OptimConfig))
}
# Words in other projects' names of flags -> the words for them here.
OURS = {
    "env": "gymnasium", "exploration": "random", "freq": "every", "frequency": "every", "gpu": "cuda",
    "interval": "every", "dir": "folders", "log": "run", "optimizer": "optim", "save": "checkpoint",
}  # fmt: skip


def flags(config: Any) -> dict[str, type]:
    """All flags of a configuration, such as ``stream.task_id`` -> the dataclass that has the field."""
    return {name: type(owner) for name, owner in _owners(config)}


def values(config: Any) -> dict[str, Any]:
    """The values of all flags of a configuration, by name."""
    return {name: getattr(owner, _last(name)) for name, owner in _owners(config)}


def name_of(word: str) -> str:
    """The name of the flag in a word of a command line; `--no-x` is x, and `--group.no-x` is group.x."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return re.sub(r"(^|\.)no_(\w+)$", r"\1\2", name)


def with_flags(words: Sequence[str], later: Sequence[str]) -> list[str]:
    """The words of a command line with other flags, in place of those that it has already."""
    names, kept, is_kept = {name_of(word) for word in later if word.startswith("--")}, list[str](), True
    for word in words:
        if word.startswith(("--", "optim:")):
            is_kept = not (word.startswith("--") and name_of(word) in names)
        if is_kept:
            kept.append(word)
    return [*kept, *later]


def unused(config: Any) -> dict[str, str]:
    """The flags that have no effect in a configuration: name -> reason."""
    found: dict[str, str] = config.unused() if hasattr(config, "unused") else {}
    for field in dataclasses.fields(config):
        for prefix, value in _nested(config, field.name):
            found = {f"{prefix}.{name}": reason for name, reason in unused(value).items()} | found
    return found


def refuse_unused(config: Any, words: Iterable[str]) -> None:
    """Refuse a command line that sets a flag without effect.

    Raises:
        ValueError: the message has the flag and the reason.
    """
    names, reasons = flags(config), unused(config)
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            for name in itertools.accumulate(_known(flag, names).split("."), "{}.{}".format):
                if name in reasons:
                    raise ValueError(f"{flag} does nothing: {reasons[name]}")


def refuse_unknown(config: Any, others: Sequence[str], prefix: str = "") -> None:
    """Refuse a command line with words that are not flags or their values.

    Args:
        config: the configuration that was parsed.
        others: the words that are left over.
        prefix: of the names of ``config``'s flags on the command line.

    Raises:
        ValueError: the message has the words and similar flags.
    """
    if others:
        messages = [_unknown_word(word, config, prefix) for word in others if word.startswith("--")]
        raise ValueError("; ".join(messages) or _unknown_word(others[0], config, prefix))


def no_such(what: str, name: str, names: Iterable[str], listing: str) -> str:
    """An error message for an unknown preset or method, with similar names and the flag that lists all."""
    near = difflib.get_close_matches(name, list(names), n=3)
    similar = f"similar: {', '.join(near)}; " if near else ""
    return f"there is no {what} {name!r}; {similar}{listing} lists all"


def near_flags(typed: str, texts: Mapping[str, str]) -> list[str]:
    """Up to three names of flags with a similar spelling or help text, the best match first."""
    scores = {name: _likeness(typed, name, text) for name, text in texts.items()}
    best = max(scores.values(), default=0.0)
    ranked = sorted(scores, key=lambda name: -scores[name])
    return [name for name in ranked if scores[name] >= max(0.4, best - 0.15)][:3]


def _unknown_word(word: str, config: Any, prefix: str) -> str:
    """The error message for a word that is neither a flag nor the value of one."""
    if word.startswith("optim:"):
        return f"there is no optimizer {word}; there are {', '.join(f'optim:{name}' for name in OPTIMIZERS)}"
    if not word.startswith("--"):
        return f"no flag takes the word {word!r}"
    flag = word.partition("=")[0]
    typed = flag.removeprefix("--").replace("-", "_")
    texts = {
        f"{prefix}{name}": _help_texts(kind).get(_last(name), "") for name, kind in flags(config).items()
    }
    if hasattr(config, "optim"):
        if owners := [name for name, kind in OPTIMIZERS.items() if typed in _optimizer_flags(kind)]:
            names = " and ".join(f"optim:{name}" for name in owners)
            return f"{flag} is a flag of {names}, not of optim:{config.optim.name}"
        optimizers = {f"optim:{name}": inspect.getdoc(kind) or "" for name, kind in OPTIMIZERS.items()}
        methods = {f"methods.{name}": inspect.getdoc(kind) or "" for name, kind in METHODS.items()}
        texts = optimizers | texts | methods
    found = [name if ":" in name else f"--{name.replace('_', '-')}" for name in near_flags(typed, texts)]
    return f"there is no flag {flag}; " + (f"similar: {', '.join(found)}" if found else "--help lists all")


def _optimizer_flags(kind: Any) -> set[str]:
    return {f"optim.{field.name}" for field in dataclasses.fields(kind)}


def _known(flag: str, names: Container[str]) -> str:
    """The name of a flag as typed; `--no-x` is x, and `--group.no-x` is group.x."""
    name = flag.removeprefix("--").replace("-", "_")
    return name if name in names else name_of(flag)


def _owners(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names of all flags of a configuration, each with the configuration that has the field."""
    for field in dataclasses.fields(config):
        for name, value in _nested(config, field.name):
            yield from _owners(value, f"{prefix}{name}.")
        if not dataclasses.is_dataclass(getattr(config, field.name)) and field.name != "methods":
            yield f"{prefix}{field.name}", config


def _nested(config: Any, name: str) -> list[tuple[str, Any]]:
    """The configurations in a field, each with its name on the command line."""
    value = getattr(config, name)
    # A sweep has names of methods, and other scripts may have a switch of this name.
    if name == "methods" and isinstance(value, tuple) and all(map(dataclasses.is_dataclass, value)):
        return [(f"methods.{method}", each) for method, each in zip(methods_as_dict(value), value)]
    return [(name, value)] if dataclasses.is_dataclass(value) else []


@functools.cache
def _help_texts(kind: type) -> dict[str, str]:
    """Docstrings of the fields of a dataclass and its bases, read from their source."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # no source is available
            continue
        for field, text in itertools.pairwise(tree.body if isinstance(tree, ast.ClassDef) else ()):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[field.target.id] = value.value
    return texts


def _likeness(typed: str, name: str, text: str) -> float:
    """Similarity, 0 to 1, of a flag to what was typed: by spelling, or by words in its name and help text."""
    ends = (typed, _last(typed))
    spelled = max(difflib.SequenceMatcher(None, *pair).ratio() for pair in zip(ends, (name, _last(name))))
    if spelled < 0.6:
        spelled = 0.0
    wanted = {OURS.get(word, word) for word in re.findall(r"[a-z]+", typed.lower())}
    of_name, of_text = (re.findall(r"[a-z]+", each.lower()) for each in (name, text))
    parts = [max(_found(word, of_name), 0.9 * _found(word, of_text)) for word in wanted]
    # If two help texts have the words, the shorter one is more likely to be about them.
    meant = sum(parts) / len(parts) - 0.001 * len(of_text) if parts else 0.0
    contained = 0.85 * wanted.issuperset(re.findall(r"[a-z]+", _last(name)))  # --clip in --clip-range
    return max(spelled, meant, contained)


def _found(word: str, words: Sequence[str]) -> float:
    """1 if a word is among ``words``, 0.9 if it is a prefix or a long part of one, else 0."""
    if word in words:
        return 1.0
    begun = len(word) >= 3 and any(each.startswith(word) for each in words)
    shared = len(word) >= 5 and any(word in each or (len(each) >= 4 and each in word) for each in words)
    return 0.9 * (begun or shared)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
