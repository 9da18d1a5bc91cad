"""Presets of DQN: what each changes of ``Args``' defaults.

``iso`` is chosen by the isometry budget, learning rate x iso x gradient steps of the run: 0.5 to 1.5 here.
"""

from typing import Any

# MiniGrid: rewards at the end of an episode only, which ten steps at a time carry back fast enough.
GRID: dict[str, Any] = {
    "num_envs": 8,
    "gradient_steps": 1,
    "n_step": 10,
    "target_every": 500,
    "eps_steps": 20_000,
    "buffer_size": 50_000,
    "network": {"hidden": (128,)},
}

PRESETS: dict[str, dict] = {
    # CartPole behind a new rotation of its observations and a new order of its actions every 16k steps.
    "cartpole-rotations": {},
    # CartPole on planets of other gravity.
    "cartpole-gravity": {"stream": {"id": "cartpole-gravity"}},
    # CartPole as it is, for ever.
    "cartpole": {
        "stream": {"id": "CartPole-v1"},
        "total_steps": 50_176,
        "gradient_steps": 4,
        "target_every": 200,
        "buffer_size": 100_000,
    },
    # An empty MiniGrid room, for ever: the fastest look at learning from images.
    "grid-empty": {
        **GRID,
        "stream": {"id": "MiniGrid-Empty-8x8-v0"},
        "total_steps": 40_960,
        "optim": {"iso": 0.05},
    },
    # Three MiniGrid families in two cycles.
    "grid-layouts-small": {
        **GRID,
        "stream": {"id": "grid-layouts-small"},
        "total_steps": 240_640,
        "optim": {"iso": 0.1},
    },
}
