"""Streams: vector environments whose task changes over time."""

from typing import TYPE_CHECKING, Any

from neoteny.envs.schedule import Schedule
from neoteny.envs.stream import Step, Stream

from neoteny.envs.registry import stream  # isort: skip  (the module of this name must have been imported)

if TYPE_CHECKING:
    from neoteny.envs.config import StreamConfig

__all__ = ["Schedule", "Step", "Stream", "StreamConfig", "stream"]


def __getattr__(name: str) -> Any:
    """Import ``StreamConfig`` on first use, since it imports all shipped streams and their simulators."""
    if name != "StreamConfig":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neoteny.envs.config import StreamConfig

    return StreamConfig
