"""Streams of tasks: what changes, and when."""

from neoteny.envs import arcade, control, grid  # noqa: F401  (registers their streams)
from neoteny.envs.schedule import Schedule
from neoteny.envs.stream import Stream, StreamConfig, stream

__all__ = ["Schedule", "Stream", "StreamConfig", "stream"]
