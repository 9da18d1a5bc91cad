"""What a user's code overrides, reads and remembers, found by reading it.

An engine that steps a user's environment by its own rules must know what else the environment does. Playing
it finds what happens often; reading it finds what may happen after a thousand episodes.
"""

from __future__ import annotations

import array
import dis
import functools
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

LIBRARIES = frozenset(
    [
        *("ale_py", "gymnasium", "minigrid", "neoteny", "numpy", "builtins", "abc", "collections", "copy"),
        *("dataclasses", "enum", "functools", "itertools", "math", "operator", "typing"),
    ]
)
"""Packages whose code is known."""

CHANGING = (
    *("random", "time", "datetime", "secrets", "uuid", "numpy.random", "gymnasium.utils.seeding", "torch"),
)
"""Modules whose functions give something else at each call: generators and clocks."""

INSTALLED = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}

MADE_BY_A_STATEMENT = 1 << 9
"""Flag of a class that is no part of the interpreter (Py_TPFLAGS_HEAPTYPE)."""

NAMING = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_CONST")
"""Instructions whose argument may be the name of an attribute; constants are those of ``getattr``."""

MOST = 1_000
"""Functions, classes and containers that are read."""

PLAIN = bool | int | float | complex | str | bytes | bytearray | range | array.array | np.generic
"""Types of values whose ``repr`` tells all."""

LARGEST = 20_000
"""Values that a picture of a state looks at."""


def module_of(thing: Any) -> str:
    """The name of the module in which a function or class was made; empty if there is none."""
    if isinstance(thing, FunctionType):  # functools.wraps gives it the __module__ of another
        return thing.__globals__.get("__name__") or ""
    return getattr(thing, "__module__", None) or ""


def is_users(thing: Any) -> bool:
    """Whether a function or class is not from a package whose code is known."""
    root = module_of(thing).partition(".")[0]
    if root == "builtins":  # which is also the module of what exec makes
        return isinstance(thing, FunctionType) or bool(getattr(thing, "__flags__", 0) & MADE_BY_A_STATEMENT)
    return root not in LIBRARIES


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    return file.startswith(INSTALLED) or bool(PACKAGE_FOLDERS.intersection(Path(file).parts))


def users_members(thing: Any) -> dict[str, Any]:
    """Methods and properties of an object that are a user's, by name.

    They are those of the user's classes, those put into a package's class, and those set on the object.
    """
    found: dict[str, Any] = {}
    for kind in reversed(type(thing).__mro__):
        for name, value in vars(kind).items():
            if is_users(kind):
                is_own = callable(value) or hasattr(type(value), "__get__")
            else:
                is_own = _is_put_in(_function(value))
                found.pop(name, None)
            if is_own and name not in ("__dict__", "__weakref__"):
                found[name] = value
    methods = {name for name in getattr(thing, "__dict__", ()) if callable(getattr(type(thing), name, None))}
    return found | {name: vars(thing)[name] for name in methods}


def _is_put_in(value: Any) -> bool:
    """Whether a user has put this entry into the class of a package."""
    if isinstance(value, property):
        return value.fget is not None and _is_put_in(value.fget)
    if isinstance(value, FunctionType):
        return is_users(value)
    return callable(value) and (isinstance(value, functools.partial) or is_users(type(value)))


class Reading:
    """All that some functions of a user reach, without running them.

    Args:
        roots: functions, methods, classes or objects, by name.
        kinds: classes of which only what they hold besides code is watched.
        skipped: an object that pictures of states leave out.
        is_read: whether the code of a function or class is read; by default all that is a user's.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        kinds: Iterable[type] = (),
        skipped: Any = None,
        is_read: Callable[[Any], bool] = is_users,
    ) -> None:
        self.skipped, self._is_read = skipped, is_read
        self.names: set[str] = set()
        """Names of all attributes and globals that are read, and all strings."""
        self.classes: list[type] = []
        """The user's classes."""
        self._values: list[tuple[str, Callable[[], Any]]] = []
        self._kinds = list(kinds)
        self._seen: set[int] = set()
        self._todo: deque[tuple[str, Callable[[], Any]]] = deque()
        self._todo.extend((name, functools.partial(_itself, value)) for name, value in roots.items())
        while self._todo and len(self._seen) < MOST:
            self._read(*self._todo.popleft())

    def values(self) -> dict[tuple[str, int], Any]:
        """Globals, captured variables, defaults and attributes of functions and classes, as they are now.

        Keys begin with the name.
        """
        found = {(name, number): get() for number, (name, get) in enumerate(self._values)}
        for kind in self._kinds:  # which may have got attributes since they were read
            for key, value in vars(kind).items():
                if not _is_code(value) and "__" not in key:
                    found[f"{kind.__name__}.{key}", id(kind)] = value
        return found

    def changing(self) -> str | None:
        """The name of a random generator or a clock that is reached, or of what cannot be watched, if any."""
        if self._todo:
            return "more code than can be read"
        if found := self.names & {"urandom", "getrandom"}:
            return min(found)
        for (name, _), value in self.values().items():
            if _is_changing(value):
                return name
            if is_large(value, self.skipped):
                return f"{name}, which is too large to compare"
        return None

    def state(self) -> dict[tuple[str, int], Any]:
        """A picture of each value, equal to that of another time if nothing has changed."""
        return {key: picture(value, self.skipped) for key, value in self.values().items()}

    def changes(self, before: dict[tuple[str, int], Any]) -> str | None:
        """The name of a value that has changed since the picture ``before`` was taken, if there is one."""
        now = self.state()
        return next((key[0] for key in now if key not in before or before[key] != now[key]), None)

    def _read(self, name: str, get: Callable[[], Any]) -> None:
        value = get()
        function, is_end = _function(value), _is_changing(value)
        if not _is_code(value) or isinstance(function, type) or is_end:
            self._values.append((name, get))
        if id(function) in self._seen or is_end or not _may_hold_code(value):
            return
        self._seen.add(id(function))
        found: Iterable[tuple[str, Any]] = ()
        match function:
            case functools.partial():
                parts = (function.func, *function.args, *function.keywords.values())
                found = [(name, each) for each in parts]
            case MethodType():
                found = [(name, function.__func__), (name, function.__self__)]
            case property():
                found = [(name, each) for each in (function.fget, function.fset, function.fdel) if each]
            case FunctionType() if self._is_read(function):
                self._todo.extend(self._references(function))
                self._values.append((name, functools.partial(vars, function)))
                found = [(name, each) for each in vars(function).values() if _may_hold_code(each)]
            case type() if self._is_read(function):
                self.classes.append(function)
                self._kinds.append(function)
                entries = [(key, each) for key, each in vars(function).items() if _may_hold_code(each)]
                found = [(f"{function.__name__}.{key}", each) for key, each in entries]
            case FunctionType() | type():
                pass
            case Mapping():
                found = [(name, each) for each in function.values() if _may_hold_code(each)]
            case list() | tuple() | Set():
                found = [(name, each) for each in function if _may_hold_code(each)]
            case _ if self._is_read(type(function)):
                held = attributes(function).values()
                found = [(name, each) for each in (type(function), *held) if _may_hold_code(each)]
        self._todo.extend((name, functools.partial(_itself, each)) for name, each in found)

    def _references(self, function: FunctionType) -> Iterator[tuple[str, Callable[[], Any]]]:
        """What a function refers to outside of itself; adds the names it reads."""
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for default in defaults:
            yield f"a default of {function.__name__}", functools.partial(_itself, default)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            if name != "__class__":  # that of super()
                yield name, functools.partial(content, cell)
        local: dict[str, ModuleType] = {}  # which the function imports
        for code in _codes(function.__code__):
            yield from self._named(code, function.__globals__, local)

    def _named(
        self, code: CodeType, names: dict[str, Any], local: dict[str, ModuleType]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """What code refers to by the names of globals and of what modules hold; adds the names it reads."""
        module: ModuleType | None = None  # what the instruction before has put on the stack
        origin: Any = None  # from which something is imported
        for instruction in dis.get_instructions(code):
            kind, name = instruction.opname, instruction.argval
            if kind in ("COPY", "SWAP", "POP_TOP", "PUSH_NULL"):
                continue
            if kind.startswith(NAMING) and isinstance(name, str):
                self.names.add(name)
            get = None
            if kind == "IMPORT_NAME":
                get = functools.partial(sys.modules.get, name)
                origin = get()
            elif kind == "IMPORT_FROM":
                get = functools.partial(getattr, origin, name, origin)  # itself for `import a.b as c`
            elif kind in ("LOAD_GLOBAL", "LOAD_NAME"):
                get = functools.partial(names.get, name)
            elif kind in ("LOAD_ATTR", "LOAD_METHOD") and module is not None:
                get = functools.partial(getattr, module, name, None)
            elif kind.startswith("STORE_") and module is not None:
                local[name] = sys.modules[name] if module.__name__.startswith(f"{name}.") else module
            elif kind.startswith(("LOAD_FAST", "LOAD_DEREF")) and name in local:
                get = functools.partial(local.get, name)
            value = get and get()
            module = value if isinstance(value, ModuleType) else None
            is_there = value is not None or name in names
            if get and is_there and (module is None or module.__name__ in CHANGING):
                yield name, get


def _itself(value: Any) -> Any:
    return value


def content(cell: CellType) -> Any:
    """What a cell of a closure holds; ``None`` as long as it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def attributes(value: Any) -> dict[str, Any]:
    """The attributes that an object itself holds, in its ``__dict__`` or in slots, by name."""
    kind: Any = type(value)
    slots = {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    return slots | getattr(value, "__dict__", {})


@functools.lru_cache
def _slots(kind: type) -> tuple[str, ...]:
    entries = (entry for base in kind.__mro__ for entry in vars(base).items())
    return tuple(name for name, entry in entries if isinstance(entry, MemberDescriptorType))


def is_large(value: Any, *skipped: Any) -> bool:
    """Whether a value has so many parts that a picture of it leaves some out."""
    left = [LARGEST]
    _picture(value, {id(each) for each in skipped}, left)
    return left[0] < 0


def picture(value: Any, *skipped: Any) -> Any:
    """A nested tuple that tells whether a value, without ``skipped`` objects in it, has changed.

    It differs each time where that cannot be told, as with iterators.
    """
    return _picture(value, {id(each) for each in skipped}, [LARGEST])


def _picture(value: Any, seen: set[int], left: list[int]) -> Any:
    left[0] -= 1
    if value is None or isinstance(value, PLAIN):
        return type(value).__name__, repr(value)
    if id(value) in seen or left[0] < 0 or isinstance(value, ModuleType | gym.Space):
        return ()
    seen.add(id(value))
    if isinstance(value, type | FunctionType | MethodType):
        return id(value)
    name = type(value).__name__
    if isinstance(value, gym.Env) or hasattr(value, "__next__"):
        return object()  # it may move on without showing it
    if isinstance(value, np.ndarray) and value.dtype != object:
        return name, value.shape, value.tobytes()
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = tuple((_picture(key, seen, left), _picture(each, seen, left)) for key, each in value.items())
    elif isinstance(value, Set):
        parts = tuple(sorted(map(repr, value)))
    elif isinstance(value, list | tuple | deque | np.ndarray):
        parts = tuple(_picture(each, seen, left) for each in value)
    elif isinstance(generator := getattr(value, "bit_generator", None), np.random.BitGenerator):
        parts = repr(generator.state)
    return name, parts, tuple((key, _picture(each, seen, left)) for key, each in attributes(value).items())


def _function(value: Any) -> Any:
    """What a static, class or partial method, a cached function or a cached property wraps."""
    while True:
        if isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
            value = value.__wrapped__
        elif isinstance(value, functools.partialmethod | functools.cached_property):
            value = value.func
        else:
            return value


def _is_code(value: Any) -> bool:
    return isinstance(_function(value), functools.partial | MethodType | property | FunctionType | type)


def _may_hold_code(value: Any) -> bool:
    """Whether it is code, an object of a user's class, a container, a generator or a clock."""
    is_container = isinstance(value, Mapping | list | tuple | Set)
    return _is_code(value) or is_container or is_users(type(value)) or _is_changing(value)


def _is_changing(value: Any) -> bool:
    """Whether it is a random generator, a clock, or from a module of these."""
    source = _source(value)
    return any(source == module or source.startswith(f"{module}.") for module in CHANGING)


def _source(value: Any) -> str:
    """The module that a value comes from."""
    if isinstance(value, ModuleType):
        return value.__name__
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        value = type(owner)
    module = getattr(value, "__module__", None) or type(value).__module__
    return module if isinstance(module, str) else ""


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
