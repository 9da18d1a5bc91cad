import dataclasses
import json
import math

import gymnasium as gym
import numpy as np
import pytest

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.scripts import reference
from neoteny.scripts.plain_loops import PlainDQN, PlainPPO, TanhActorCritic, dqn_loop, ppo_loop
from neoteny.scripts.reference import (
    Reference,
    Row,
    chosen,
    over_time,
    random_late_return,
    random_return,
)


def test_returns_over_time_by_hand():
    steps = np.array([1.0, 50.0, 51.0, 1000.0])  # the first twentieth of 1,000 steps ends at 50
    means = over_time((steps, np.array([1.0, 3.0, 5.0, 7.0])), 1000, 20)
    assert means.tolist() == [2.0, 5.0, *[5.0] * 17, 7.0]
    assert math.isnan(over_time((steps[-1:], np.array([7.0])), 1000, 20)[0])  # no episode had ended


def test_rows_are_chosen_by_parts_of_their_names():
    assert chosen("ppo CartPole-v1", (), True)
    assert not chosen("ppo CartPole-v1", (), False)
    assert chosen("ppo CartPole-v1", ("Acro", "Cart"), False)
    assert not chosen("ppo CartPole-v1", ("Acro",), True)
    assert chosen("ppo CartPole-v1", ("all",), False)


class Pays(gym.Env):
    """Ten steps, of which those with action 1 pay 1."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return np.ones(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(2, np.float32), float(action == 1), self.left == 0, False, {}


def test_the_plain_loops_learn_and_see_the_end_of_each_episode():
    episodes = []
    network, settings = TanhActorCritic(2, 2), PlainPPO(num_envs=2, num_steps=20, lr=1e-2)
    ppo_loop(
        Pays, network, list(network.parameters()), settings, 25,
        on_episode=lambda step, episode_return: episodes.append((step, episode_return)),
    )  # fmt: skip
    assert [step for step, _ in episodes] == [20 * (i // 2 + 1) for i in range(100)]
    assert np.mean([episode_return for _, episode_return in episodes[-10:]]) > 9
    episodes.clear()
    few = PlainDQN(lr=1e-2, learning_starts=100, train_every=1, target_every=50, batch_size=16)
    dqn_loop(Pays, 1000, 1, lambda step, episode_return: episodes.append((step, episode_return)), few)
    assert [step for step, _ in episodes] == list(range(10, 1001, 10))
    assert np.mean([episode_return for _, episode_return in episodes[-20:]]) > 8


def test_the_return_of_a_random_policy_is_weighted_by_length_and_its_error_is_as_large_as_it_varies():
    args = cli(ppo.Args, ppo.PRESETS, ["cartpole-rotations", "--num-envs", "4"])
    means, errors = zip(*(random_return(dataclasses.replace(args, seed=seed), 2, 4000) for seed in range(12)))
    assert 20 < np.mean(means) < 35  # episodes have 22 steps, and long ones count more
    assert 0.5 < np.std(means) / np.mean(errors) < 2


def test_a_random_policy_is_compared_in_the_late_tasks(monkeypatch):
    asked = []

    def of_task(args, task):
        asked.append(task)
        return float(task), 0.5

    monkeypatch.setattr(reference, "random_return", of_task)
    visits = [{"task": task, "start": 10 * i} for i, task in enumerate([4, 5, 4, 5])]
    mean, above = random_late_return([(None, {"visits": visits})])
    assert asked == [4, 5]
    assert mean == 4.5
    assert above == pytest.approx(4.5 + 1.96 * math.sqrt(0.5) / 2)


@pytest.mark.slow
def test_a_row_is_trained_once_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "ROWS", (Row("ppo", "CartPole-v1", 2048, ("cleanrl",)),))
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: object())
    args = Reference(seeds=1, runs_dir=tmp_path, jobs=2)
    assert reference.main(args) == 0
    output = capsys.readouterr().out
    assert "0 of 3 runs are done" in output
    assert "PPO on CartPole-v1, 2,048 steps, 1 seeds" in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("|")][2:] == [
        "adamo",
        "adam",
        "cleanrl",
    ]
    episodes = json.loads((tmp_path / "CartPole-v1" / "ppo" / "cleanrl" / "s1.json").read_text())
    assert 0 < episodes[0][0] <= episodes[-1][0] <= 2048
    reference.main(args)
    again = capsys.readouterr().out
    assert "3 of 3 runs are done" in again
    assert again.split("runs are done")[1] == output.split("runs are done")[1]


def test_references_that_are_not_installed_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        reference.main(Reference(seeds=1))
    assert exit.value.code == 2
    assert "--no-references" in capsys.readouterr().err
