"""Presets by what they do alike, so that one of each kind needs to run."""

import dataclasses
from importlib.util import find_spec

import gymnasium as gym
import pytest

from neoteny.envs import StreamConfig

_streams = {}


def available(presets):
    """Names of the presets whose simulator is installed; games take long to load."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("atari") else ())
        for name in presets
        if not name.startswith("lunarlander-") or find_spec("Box2D")
    ]


def one_of_each_kind(presets):
    """Names of presets that differ in more than the tasks, their number and length, and the pull."""
    found = {}
    for (name,) in (param.values for param in available(presets)):
        stream, pull = presets[name].get("stream", {}), presets[name].get("optim", {})
        alike = {**presets[name], "stream": None, "total_steps": None, "optim": {**pull, "iso": None}}
        id = stream.get("id", StreamConfig().id)
        others = {key: value for key, value in stream.items() if key not in ("id", "period", "tasks")}
        found.setdefault((id.partition("-")[0], repr(alike), repr(others)), name)
    return list(found.values())


def stream_of(config):
    """The stream of a preset, on tensors; streams that differ in the period alone are one."""
    task = gym.spec(config.id).kwargs.get("task", config.id)
    key = task, dataclasses.replace(config, id="", period=None)
    if key not in _streams:
        _streams[key] = config.make(2, device="cpu")
    return _streams[key]
