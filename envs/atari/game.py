"""A single Atari game as an ordinary Gymnasium environment, and the options of its vector environment.

ale-py is optional, so it is imported only where a game is created or looked up.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FrameStackObservation, OrderEnforcing, PassiveEnvChecker
from numpy.typing import NDArray

from neoteny.envs.engine import UncoveredError
from neoteny.envs.user_code import users_members

SIZE = 84
"""Height and width of observations, in pixels."""


def make_game(text: str, frame_skip: int = 4) -> gym.Env:
    """Create a single game, ``Name`` or ``Name/mode/difficulty``, with preprocessed observations.

    Args:
        text: a name of ale-py's, such as ``MsPacman``, or ``Freeway/1/0``.
        frame_skip: number of frames for which each action is repeated.
    """
    ale()
    name, mode, difficulty = parse_game(text)
    env = gym.make(
        f"ALE/{name}-v5",
        disable_env_checker=True,
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=0.25,
        full_action_space=True,
        mode=mode,
        difficulty=difficulty,
    )
    return FrameStackObservation(Screen(env, frame_skip), 4, padding_type="zero")


def ale() -> Any:
    """Import ale-py, which registers its games with Gymnasium; ValueError if it is missing."""
    try:
        import ale_py
        import ale_py.vector_env
    except ImportError as error:
        raise ValueError(f"Atari games need ale-py, pip install neoteny[atari]: {error}") from error
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else every process prints a banner
    return ale_py


def parse_game(text: str) -> tuple[str, int | None, int | None]:
    """Parse ``Name/mode/difficulty`` or ``Name`` (mode and difficulty ``None``); else ValueError."""
    name, *numbers = text.split("/")
    if not numbers:
        return name, None, None
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"a game is Name or Name/mode/difficulty, such as Freeway/1/0, not {text!r}")
    return name, int(numbers[0]), int(numbers[1])


def check_games(games: Sequence[str]) -> None:
    """Raise ValueError if ale-py is not installed, or has no such game, mode or difficulty."""
    if not games:
        return
    ale()
    known = {id[4:-3] for id in gym.registry if id.startswith("ALE/") and id.endswith("-v5")}
    for text in games:
        name, *numbers = parse_game(text)
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known)) or sorted(known)
            raise ValueError(f"there is no Atari game {name!r}; there are {', '.join(near)}")
        if numbers != [None, None]:
            emulator = gym.make(f"ALE/{name}-v5").unwrapped.ale  # type: ignore[attr-defined]
            there = {"mode": emulator.getAvailableModes(), "difficulty": emulator.getAvailableDifficulties()}
            for number, (kind, available) in zip(numbers, there.items()):
                if number not in available:
                    raise ValueError(f"{name} has no {kind} {number}, only {', '.join(map(str, available))}")


class Screen(gym.Wrapper):
    """Frame skip, maximum over the last two frames, grayscale, 84x84.

    The same, bit for bit, as Gymnasium's ``AtariPreprocessing`` without no-ops and as ale-py's vector
    environment, but without OpenCV: :func:`shrink` replaces its area interpolation.

    Args:
        env: an Atari environment with grayscale frames as observations.
        frame_skip: number of frames for which each action is repeated; with 1 there is no maximum.
    """

    def __init__(self, env: gym.Env, frame_skip: int = 4) -> None:
        super().__init__(env)
        self.frame_skip = frame_skip
        self.observation_space = Box(0, 255, (SIZE, SIZE), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode."""
        self.last, info = self.env.reset(seed=seed, options=options)
        self.last_but_one = np.zeros_like(self.last)
        return shrink(self.last), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat an action for ``frame_skip`` frames and sum the rewards."""
        total = 0.0
        for left in reversed(range(self.frame_skip)):
            screen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break  # ale-py's vector environment does not show this frame either
            if left == 1:
                self.last_but_one = screen
            elif left == 0:
                self.last = screen
        if self.frame_skip > 1:
            self.last = np.maximum(self.last, self.last_but_one)
        return shrink(self.last), total, terminated, truncated, info


def shrink(screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Downsample an image by averaging over areas, (H, W) -> (84, 84).

    Sums are taken in single precision, columns before rows and from the first pixel to the last, as OpenCV
    does: another order would round some pixels differently.
    """
    rows, columns = map(_areas, screen.shape)
    wide = sum(screen[:, pixel] * share for pixel, share in zip(*columns))
    small = sum(wide[pixel] * share[:, None] for pixel, share in zip(*rows))
    return np.rint(small).astype(np.uint8)


@functools.lru_cache
def _areas(size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and weights of the input pixels (out of ``size``) that make up each of 84, (n, 84) both."""
    width = size / SIZE
    begin = np.arange(SIZE) * width
    pixel = np.floor(begin).astype(np.int64) + np.arange(int(np.ceil(width)) + 1)[:, None]
    inside = np.minimum(pixel + 1, begin + width) - np.maximum(pixel, begin)
    inside[inside < 1e-3] = 0.0  # rounding errors
    return np.minimum(pixel, size - 1), (inside / width).astype(np.float32)


def is_game(env: gym.Env) -> bool:
    """Whether it is an Atari game, in any wrappers."""
    ale = sys.modules.get("ale_py")
    return ale is not None and isinstance(env.unwrapped, ale.AtariEnv)


def vector_options(env: gym.Env) -> dict[str, Any]:
    """Arguments with which ale-py's vector environment reproduces ``env``; UncoveredError if none do."""
    if type(env) is not FrameStackObservation or type(env.env) is not Screen or env.padding_type != "zero":
        raise UncoveredError(f"{type(env).__name__} is not a frame stack of a Screen")
    screen = env.env
    layers: list[Any] = [env, screen, screen.env]
    while type(layers[-1]) in (OrderEnforcing, PassiveEnvChecker):
        layers.append(layers[-1].env)
    game = layers[-1]
    if not is_game(game) or type(game) is not sys.modules["ale_py"].AtariEnv or game.spec is None:
        raise UncoveredError(f"ale-py's vector environment has no {type(game).__name__}")
    for layer in layers:
        if changed := users_members(layer):
            raise UncoveredError(f"{type(layer).__name__} has another {', '.join(sorted(changed))}")
    default = {"mode": None, "difficulty": None, "continuous": False, "obs_type": "rgb"}
    options = default | game.spec.kwargs
    if (options["mode"], options["difficulty"]) != (None, None):
        raise UncoveredError(f"{game.spec.name} has a mode or difficulty set, which it cannot set")
    if options["frameskip"] != 1 or options["continuous"] or options["obs_type"] != "grayscale":
        raise UncoveredError(f"{game.spec.name} has frames or actions that it does not offer")
    same = ("game", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
    return {
        **{name: options[name] for name in same},
        "frameskip": screen.frame_skip,
        "stack_num": env.stack_size,
        "img_height": SIZE,
        "img_width": SIZE,
        "grayscale": True,
        "maxpool": screen.frame_skip > 1,
        "noop_max": 0,
        "use_fire_reset": False,
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }


def emulator_seed(seed: int) -> int:
    """The emulator's seed when ale-py's single environment is reset with ``seed``."""
    return int(np.random.SeedSequence(seed).generate_state(2)[1])
