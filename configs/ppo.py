"""Presets of PPO: changes to the defaults of ``Args``.

``iso`` is chosen so that the isometry budget, learning rate x iso x gradient steps of the run, is 0.5 to 1.
"""

from neoteny.configs.cli import preset

# MiniGrid: sparse rewards, which take exploration in each new task. With less entropy it ends after the first
# task; at twice the learning rate a policy that has just solved its task can collapse.
GRID = {"num_steps": 32, "epochs": 4, "lr": 5e-4, "ent_coef": 0.03, "network": {"hidden": (128,)}}

# Where one layout, or one order of actions, follows another, more of it: what the last task has taught keeps
# the agent from ever finding the new goal.
FIXED = {**GRID, "ent_coef": 0.06}

# Pictures: the network of Mnih et al. (2015) and the batch sizes of Schulman et al. (2017).
PICTURES = {
    "num_envs": 8,
    "num_steps": 128,
    "epochs": 4,
    "lr": 2.5e-4,
    "clip": 0.1,
    "shared_torso": True,
    "probes": {"every": 40},
    "network": {"hidden": (512,)},
}

# Atari: as in both papers, scores are not normalized but replaced by their signs.
ATARI = {**PICTURES, "rewards": {"normalizer": "none", "clip": True}}

# MinAtar: the network and the settings of Rosseau et al. (2026) where they give them. Open are the discount,
# the norm of gradients, Adam's epsilon and whether rewards are normalized: the first three are the defaults
# here, and rewards are raw. The pull is theirs, towards singular values of 1.
MINATAR = {
    "epochs": 4,
    "lr": 2.5e-4,
    "rewards": {"normalizer": "none"},
    "network": {"hidden": (64, 64, 64, 64)},
}
MINATAR_LARGE = {**MINATAR, "num_envs": 2048, "num_steps": 128, "minibatches": 128}
MINATAR_SMALL = {**MINATAR, "num_envs": 128, "num_steps": 32, "minibatches": 16}

# Where the task never changes there is no plasticity to keep: a weaker pull, and a learning rate that falls
# to 0. Otherwise a policy that has solved CartPole-v1 still fails now and then.
ONE_TASK = {"anneal_lr": True, "optim": {"iso": 0.03}}


def minatar(shared: dict, id: str, total_steps: int, iso: float) -> dict:
    """A preset whose network takes the cells of the board as a vector."""
    made = preset(shared, id, total_steps, iso, observations="vectors")
    return {**made, "optim": {"iso": iso, "iso_scale": 1.0}}


PRESETS: dict[str, dict] = {
    # For any stream that is given by its id: by the kind of its observations, and where nothing changes.
    "vectors": {},
    "codes": GRID,
    "planes": GRID,
    "pictures": PICTURES,
    "one-task": ONE_TASK,
    # CartPole behind a new rotation of its observations and a new order of its actions every 16k steps.
    "cartpole-rotations": {},
    # The same CartPole on planets of other gravity.
    "cartpole-gravity": {"stream": {"id": "cartpole-gravity"}},
    # Five MiniGrid families in two cycles, a new layout each episode.
    "grid-layouts": preset(GRID, "grid-layouts", 1_000_000, iso=0.05),
    # Three of them in two cycles, in a few minutes on a laptop.
    "grid-layouts-small": preset(GRID, "grid-layouts-small", 360_000, iso=0.09),
    # DoorKey rooms of three sizes in four cycles.
    "grid-doorkey": preset(GRID, "grid-doorkey", 1_200_000, iso=0.05),
    # Kessler et al.: DoorKey, lava and walls once, and in two cycles with a smaller DoorKey.
    "grid-kessler": preset(GRID, "grid-kessler", 2_250_000, iso=0.02),
    "grid-kessler-small": preset(GRID, "grid-kessler-small", 368_640, iso=0.12),
    # Meyer et al.: ten layouts.
    "grid-resampled-crossings": preset(FIXED, "grid-resampled-crossings", 400_000, iso=0.12),
    "grid-resampled-crossings-small": preset(FIXED, "grid-resampled-crossings-small", 204_800, iso=0.25),
    "grid-resampled-doorkeys": preset(FIXED, "grid-resampled-doorkeys", 1_000_000, iso=0.05),
    "grid-resampled-doorkeys-small": preset(FIXED, "grid-resampled-doorkeys-small", 409_600, iso=0.12),
    # Chung et al.: twenty goals, ten in the small rooms. The observation is a vector.
    "grid-goals": preset({"num_steps": 32, "epochs": 4}, "grid-goals", 800_000, iso=0.03),
    "grid-goals-small": preset({"num_steps": 32, "epochs": 4}, "grid-goals-small", 307_200, iso=0.08),
    # Juliani and Ash: ten permutations of the view's cells, or of the actions.
    "grid-permuted-observations": preset(GRID, "grid-permuted-observations", 51_200_000, iso=0.001),
    "grid-permuted-observations-small": preset(GRID, "grid-permuted-observations-small", 409_600, iso=0.12),
    "grid-permuted-actions": preset(FIXED, "grid-permuted-actions", 51_200_000, iso=0.001),
    "grid-permuted-actions-small": preset(FIXED, "grid-permuted-actions-small", 409_600, iso=0.12),
    # Atari games in three cycles; CORA's in five.
    "atari": preset(ATARI, "atari", 2_250_000, iso=0.06),
    "atari-cora": preset(ATARI, "atari-cora", 375_000_000, iso=0.0005),
    "atari-cora-small": preset(ATARI, "atari-cora-small", 1_800_000, iso=0.08),
    "atari-switching": preset(ATARI, "atari-switching", 75_000_000, iso=0.002),
    "atari-switching-small": preset(ATARI, "atari-switching-small", 1_500_000, iso=0.1),
    "atari-upper-bound": preset(ATARI, "atari-upper-bound", 9_600_000, iso=0.015),
    "atari-upper-bound-small": preset(ATARI, "atari-upper-bound-small", 960_000, iso=0.15),
    # Any games of MinAtar in two cycles; the paper's twenty cycles, and a hundredth of them; C-CHAIN's chain.
    "minatar": minatar(MINATAR_SMALL, "minatar", 5_000_000, iso=0.05),
    "minatar-paper": minatar(MINATAR_LARGE, "minatar-paper", 1_200_000_000, iso=0.001),
    "minatar-paper-small": minatar(MINATAR_SMALL, "minatar-paper-small", 12_000_000, iso=0.02),
    "minatar-chain": minatar(MINATAR_SMALL, "minatar-chain", 6_000_000, iso=0.04),
}

# Physics that jump or drift: twenty tasks, or ten to sixteen in the small forms. Observations are normalized,
# as in Chung et al., but for Acrobot, which PPO then never learns; without it MountainCar is not learned.
# Small steps, isometry coefficient, normalizer.
PHYSICS = {
    "cartpole": (393_216, 0.1, "keep"),
    "acrobot": (409_600, 0.1, "none"),
    "mountaincar": (245_760, 0.15, "keep"),
    "lunarlander": (614_400, 0.06, "keep"),  # needs the extra "box2d"
}
for name, (small, iso, normalizer) in PHYSICS.items():
    for id in (f"{name}-jumps", f"{name}-drift"):
        PRESETS[id] = preset({}, id, 10_000_000, iso=0.003, normalizer=normalizer)
        PRESETS[f"{id}-small"] = preset({}, f"{id}-small", small, iso=iso, normalizer=normalizer)
