"""Streams of tasks: what changes, and when."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neoteny.envs.config import StreamConfig
    from neoteny.envs.registry import stream
    from neoteny.envs.schedule import Schedule
    from neoteny.envs.stream import Stream

__all__ = ["Schedule", "Stream", "StreamConfig", "stream"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and with it all streams: a schedule alone needs no simulator."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neoteny.envs import config, registry, schedule

    found = {module for module in (config, registry, schedule) if hasattr(module, name)}
    return getattr(found.pop(), name)
