"""Presets of DQN: what each changes of ``Args``' defaults.

``iso`` is chosen by the isometry budget, learning rate x iso x gradient steps of the run: 0.5 to 1 here.
"""

PRESETS: dict[str, dict] = {
    # CartPole behind a new rotation of its observations and a new order of its actions every 16k steps.
    "cartpole-rotations": {},
    # CartPole as it is, for ever.
    "cartpole": {"stream": {"id": "CartPole-v1"}, "total_steps": 51_200},
}
