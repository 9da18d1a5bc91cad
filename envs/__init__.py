"""Streams of tasks: what changes, and when."""

from neoteny.envs.atari import streams as _atari  # noqa: F401  (registers its streams)
from neoteny.envs.control import streams as _control  # noqa: F401
from neoteny.envs.grid import streams as _grid  # noqa: F401
from neoteny.envs.schedule import Schedule
from neoteny.envs.stream import Stream, StreamConfig, stream

__all__ = ["Schedule", "Stream", "StreamConfig", "stream"]
