"""Videos of the policy, recorded during training without affecting it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import text

from neoteny.envs.stream import Stream
from neoteny.envs.tasks import TaskEnv
from neoteny.runners.disk.events import image_value

LONGEST = 600  # most frames of a video, one per step of the agent; longer episodes are cut short
SIZE = 240  # longest side of a frame, in pixels


def record_video(stream: Stream, act: Callable[[Tensor], Tensor]) -> tuple[bytes, Summary]:
    """Record one episode of the current task in an evaluation environment.

    The policy is ``act``, observations (1, ...) -> actions (1,). Episode and actions are drawn from the run's
    seed and the stream's step; the random state is restored; the stream and its normalizer are only read.

    Returns:
        A GIF, and a TensorBoard summary of the GIF, the number of the task and the return.

    Raises:
        ValueError: the environment has no frames to show.
        Exception: any exception of the environment's renderer.
    """
    words = np.random.SeedSequence([stream.seed, stream.steps, *b"video"]).generate_state(2, np.uint64)
    episode, policy = int(words[0] >> 33), int(words[1] >> 1)  # old environments take seeds of 31 bits only
    device = torch.device(stream.device or "cpu")
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []  # manual_seed seeds them all
    env = stream.make_eval_env()
    with _no_window(), torch.random.fork_rng(devices), _eager(), contextlib.closing(env):
        torch.manual_seed(policy)
        observation = env.reset(episode)
        frames, total, ended = [_frame(env, observation)], 0.0, False
        while not ended and len(frames) < LONGEST:
            batch = np.asarray(observation, dtype=env.spaces[0].dtype)[None].copy()
            with torch.inference_mode():
                (action,) = act(stream.preprocess(torch.from_numpy(batch))).cpu().numpy()
            observation, reward, terminated, truncated, _ = env.step(action.astype(env.spaces[1].dtype))
            total += float(reward)
            frames.append(_frame(env, observation))
            ended = bool(terminated or truncated)
        speed = env.env.metadata.get("render_fps") or 30
    game = f" ({stream.names[stream.task]})" if stream.names else ""
    message = f"task {stream.task}{game}: return {total:g} in {len(frames) - 1} steps"
    gif = _gif(frames, speed)
    caption = text("video/episode", message + ("" if ended else ", then cut short")).value
    return gif, Summary(value=[image_value("video/policy", gif), *caption])


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


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Run compiled networks eagerly: recompiling for a batch of one could change the training results."""
    compiling = "torch._dynamo" in sys.modules  # importing it takes a second
    return torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()


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
