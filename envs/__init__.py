"""Streams of tasks: what changes, and when."""

from neoteny.envs import control, grid  # noqa: F401  (registers their streams)
from neoteny.envs.stream import Periodic, Stationary, Stream, StreamConfig, stream

__all__ = ["Periodic", "Stationary", "Stream", "StreamConfig", "stream"]
