"""Presets of PPO: what each changes of ``Args``' defaults.

``iso`` is chosen by the isometry budget, learning rate x iso x optimizer steps of the run: 0.5 to 1 here.
"""

# MiniGrid: sparse rewards. At twice the learning rate a policy that has just solved its task can collapse.
GRID = {"num_steps": 128, "epochs": 4, "lr": 5e-4, "network": {"hidden": (128,)}, "optim": {"iso": 0.2}}

PRESETS: dict[str, dict] = {
    # CartPole behind a new rotation of its observations and a new order of its actions every 16k steps.
    "cartpole-rotations": {},
    # The same CartPole on planets of other gravity.
    "cartpole-gravity": {"stream": {"id": "cartpole-gravity"}},
    # Five MiniGrid families in two cycles, a new layout each episode.
    "grid-layouts": {**GRID, "stream": {"id": "grid-layouts"}, "total_steps": 1_000_000},
    # Three of them in two cycles, in a few minutes on a laptop.
    "grid-layouts-small": {
        **GRID,
        "stream": {"id": "grid-layouts-small"},
        "total_steps": 240_000,
        "optim": {"iso": 0.6},
    },
    # DoorKey rooms of three sizes in four cycles.
    "grid-doorkey": {**GRID, "stream": {"id": "grid-doorkey"}, "total_steps": 1_200_000},
    # A new fixed maze of one family every 40k steps.
    "grid-crossings": {**GRID, "stream": {"id": "grid-crossings"}, "total_steps": 800_000},
}
