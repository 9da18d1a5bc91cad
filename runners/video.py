"""Videos of the policy, recorded during training without affecting it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import text

from neoteny.envs.stream import Stream
from neoteny.envs.tasks import TaskEnv
from neoteny.runners.disk.events import image_value
from neoteny.runners.evaluation import Act, Played, play

LONGEST = 600  # most frames of a video, one per step of the agent; longer episodes are cut short
SIZE = 240  # longest side of a frame, in pixels


def record_video(stream: Stream, act: Act) -> tuple[bytes, Summary]:
    """Record one episode of the current task, drawn from the run's seed and the stream's step.

    Returns:
        A GIF, and a TensorBoard summary of the GIF, the number of the task and the return.

    Raises:
        ValueError: the environment has no frames to show.
        Exception: any exception of the environment's renderer.
    """
    key = (stream.steps, *b"video")
    gif, played = record_episodes(stream, act, 1, key=key, longest=LONGEST - 1)
    game = f" ({stream.name})" if stream.name else ""
    message = f"task {stream.task}{game}: return {played.returns[0]:g} in {played.lengths[0]} steps"
    caption = text("video/episode", message + ("" if played.complete[0] else ", then cut short")).value
    return gif, Summary(value=[image_value("video/policy", gif), *caption])


def record_episodes(stream: Stream, act: Act, episodes: int, **options: Any) -> tuple[bytes, Played]:
    """Play episodes as :func:`play` does, which has the ``options``; also returns a GIF of the first."""
    frames: list[Image.Image] = []
    speeds: list[float] = []

    def watch(env: TaskEnv, observation: NDArray[Any]) -> None:
        if len(frames) < LONGEST:
            frames.append(_frame(env, observation))
            speeds.append(env.env.metadata.get("render_fps") or 30)

    with _no_window():
        played = play(stream, act, episodes, watch=watch, **options)
    return _gif(frames, speeds[0]), played


def _frame(env: TaskEnv, observation: Any) -> Image.Image:
    """A frame: rendered by the environment if it can, else its observation."""
    bare = env.env.unwrapped
    if "rgb_array" in bare.metadata.get("render_modes", ()):
        # Tasks are made without a render mode; environments read it when they render.
        bare.render_mode = "rgb_array"
        picture = bare.render()
    else:
        picture = np.asarray(observation)
        if picture.ndim == 3 and picture.shape[2] != 3:
            picture = picture[-1]  # newest frame of a stack
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or picture.shape[2:] == (3,)):
        raise ValueError(f"{bare} can neither render frames nor has it images as observations")
    image = Image.fromarray(picture).convert("RGB")
    scale = SIZE / max(image.size)
    scale = min(scale, max(1, int(scale)))  # small images are enlarged by an integer factor
    width, height = (max(1, round(scale * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _gif(frames: list[Image.Image], speed: float) -> bytes:
    """Encode frames as an endlessly looping GIF of ``speed`` frames per second, with one palette of 256."""
    some = frames[:: -(-len(frames) // 16)]
    sheet = Image.new("RGB", (frames[0].width, len(some) * frames[0].height))
    for row, frame in enumerate(some):
        sheet.paste(frame, (0, row * frame.height))
    palette = sheet.quantize()
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    file = io.BytesIO()
    duration = 10 * max(2, round(100 / speed))  # in ms; viewers show shorter frames for 100 ms
    first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return file.getvalue()


@contextlib.contextmanager
def _no_window() -> Iterator[None]:
    """Keep pygame, with which many environments render, from opening a display or an audio device."""
    names = [name for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER") if name not in os.environ]
    os.environ.update(dict.fromkeys(names, "dummy"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
