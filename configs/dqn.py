"""Presets of DQN: changes to the defaults of ``Args``.

``iso`` is chosen so that the isometry budget, learning rate x iso x gradient steps of the run, is 0.5 to 1.5.
"""

from typing import Any

from neoteny.configs.cli import preset

# MiniGrid: rewards come only at the end of an episode; 10-step returns propagate them fast enough.
GRID: dict[str, Any] = {
    "num_envs": 8,
    "gradient_steps": 1,
    "n_step": 10,
    "target_every": 500,
    "eps_steps": 20_000,
    "buffer_size": 50_000,
    "network": {"hidden": (128,)},
}

# Vectors: a gradient step per environment step, and a slowly moving target network. With a quarter of the
# steps and a target that is copied, CartPole-v1 ends anywhere between 170 and 350.
VECTORS: dict[str, Any] = {
    "gradient_steps": 8,
    "batch_size": 128,
    "target_every": 2,
    "tau": 0.01,
    "buffer_size": 50_000,
}

# Pictures: the network of Mnih et al. (2015) and their replay ratio, one minibatch of 32 every 4 steps.
PICTURES: dict[str, Any] = {
    "num_envs": 8,
    "log_every": 256,
    "probes": {"every": 80},
    "train_every": 8,
    "batch_size": 32,
    "learning_starts": 20_000,
    "buffer_size": 1_000_000,
    "memory": "disk",
    "lr": 1e-4,
    "target_every": 1000,
    "eps_end": 0.01,
    "eps_steps": 250_000,
    "network": {"hidden": (512,)},
}

# Atari: as in that paper, scores are not normalized but replaced by their signs.
ATARI = {**PICTURES, "rewards": {"normalizer": "none", "clip": True}}

# A tenth of the memory and a shorter warm-up.
SMALL_ATARI = {**ATARI, "learning_starts": 5_000, "buffer_size": 100_000, "eps_steps": 50_000}

# MinAtar: the settings of Tang et al. (2025), C-CHAIN, in their public code, for one environment. There, the
# network has one convolution instead of two, the loss is squared, gradients are not clipped, and epsilon
# begins to fall after the random steps.
MINATAR: dict[str, Any] = {
    "num_envs": 1,
    "log_every": 1000,
    "train_every": 1,
    "gradient_steps": 1,
    "batch_size": 32,
    "learning_starts": 10_000,
    "buffer_size": 100_000,
    "memory": "disk",
    "lr": 3e-4,
    "target_every": 1000,
    "eps_end": 0.1,
    "eps_steps": 100_000,
    "rewards": {"normalizer": "none"},
    "network": {"hidden": (128,)},
}

# Where the task never changes, a weaker pull.
ONE_TASK = {"optim": {"iso": 0.02}}


PRESETS: dict[str, dict] = {
    # For any stream that is given by its id: by the kind of its observations, and where nothing changes.
    "vectors": VECTORS,
    "codes": GRID,
    "planes": GRID,
    "pictures": PICTURES,
    "one-task": ONE_TASK,
    # CartPole behind a new rotation of its observations and a new order of its actions every 16k steps.
    "cartpole-rotations": {},
    # CartPole on planets of other gravity.
    "cartpole-gravity": {"stream": {"id": "cartpole-gravity"}},
    # Plain CartPole, without switches.
    "cartpole": {**VECTORS, "stream": {"id": "CartPole-v1"}, "total_steps": 50_176},
    # An empty MiniGrid room, without switches: the fastest example of learning from images.
    "grid-empty": preset(GRID, "MiniGrid-Empty-8x8-v0", 40_960, iso=0.05),
    # Three MiniGrid families in two cycles.
    "grid-layouts-small": preset(GRID, "grid-layouts-small", 360_448, iso=0.05),
    # Atari games in three cycles, CORA's in five; and two games for 300,000 steps, half an hour on a laptop.
    "atari": preset(ATARI, "atari", 2_250_000, iso=0.015),
    "atari-two-games": preset(
        SMALL_ATARI, "atari", 300_032, iso=0.1, games=("Breakout", "Pong"), period=75_008
    ),
    "atari-cora": preset(ATARI, "atari-cora", 375_000_000, iso=1e-4),
    "atari-cora-small": preset(SMALL_ATARI, "atari-cora-small", 1_800_000, iso=0.02),
    "atari-switching": preset(ATARI, "atari-switching", 75_000_000, iso=5e-4),
    "atari-switching-small": preset(SMALL_ATARI, "atari-switching-small", 1_500_000, iso=0.02),
    "atari-upper-bound": preset(ATARI, "atari-upper-bound", 9_600_000, iso=0.004),
    "atari-upper-bound-small": preset(SMALL_ATARI, "atari-upper-bound-small", 960_000, iso=0.03),
    # Three games of MinAtar, once.
    "minatar-chain": preset(MINATAR, "minatar-chain", 6_000_000, iso=5e-4),
}
