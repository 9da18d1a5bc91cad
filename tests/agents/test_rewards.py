import dataclasses
import math

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.rewards import RewardConfig, RewardTransform
from neoteny.envs import StreamConfig
from neoteny.envs.single.engine import SingleConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from tests.killed import die


def learned(rewards, **flags):
    """Rewards as they are stored, of one step."""
    transform = RewardTransform(RewardConfig("none", **flags), num_envs=len(rewards), gamma=0.9)
    return transform.observe(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.bool))


def normalizer(mode, num_envs, gamma):
    return RewardTransform(RewardConfig(mode), num_envs, gamma)


def test_rewards_are_scaled_or_clipped_by_hand():
    assert learned([-3.0, 0.0, 0.5], scale=2.0).tolist() == [-6.0, 0.0, 1.0]
    assert learned([-3.0, 0.0, 0.5], scale=2.0, clip=True).tolist() == [-2.0, 0.0, 2.0]


def test_what_is_not_finite_is_not_hidden_by_clipping():
    clipped = learned([math.nan, math.inf, -math.inf, 4.0], clip=True)
    assert clipped.isfinite().tolist() == [False, False, False, True]


def observed(transform, rewards, done, tasks=None):
    for t, (reward, ended) in enumerate(zip(rewards, done)):
        transform.enter(tasks[t] if tasks else 0)
        transform.observe(torch.tensor(reward), torch.tensor(ended))


def test_rewards_are_divided_by_the_root_mean_square_of_returns_by_hand():
    transform = normalizer("keep", num_envs=2, gamma=0.5)
    assert transform.normalize(torch.tensor([3.0])).tolist() == [3.0]  # nothing is known of returns yet
    observed(transform, [[1.0, 0.0], [1.0, 4.0], [2.0, 1.0]], [[False, False], [True, False], [False, False]])
    # Discounted returns: 1, 1.5 and, after the end of the episode, 2; 0, 4 and 3.
    expected = math.sqrt((1 + 0 + 1.5**2 + 4**2 + 2**2 + 3**2) / 6)
    assert transform.scale.item() == pytest.approx(expected)
    assert transform.normalize(torch.tensor([[3.0], [-1.0]])).flatten().tolist() == pytest.approx(
        [3 / expected, -1 / expected]
    )


def test_equal_returns_have_a_size():
    transform = normalizer("keep", num_envs=1, gamma=0.0)
    observed(transform, [[5.0]] * 4, [[False]] * 4)  # their standard deviation is 0
    assert transform.normalize(torch.tensor([5.0])).item() == 1.0


@pytest.mark.parametrize(
    ("mode", "expected"), [("keep", math.sqrt((1 + 1 + 100 + 100) / 4)), ("reset", 10.0)]
)
def test_a_switch_keeps_or_resets_the_statistics(mode, expected):
    transform = normalizer(mode, num_envs=1, gamma=0.0)
    observed(transform, [[1.0], [1.0], [10.0], [10.0]], [[False], [True], [False], [False]], [3, 3, 1, 1])
    assert transform.scale.item() == pytest.approx(expected)


def test_rewards_may_stay_as_they_are():
    transform = normalizer("none", num_envs=1, gamma=0.9)
    observed(transform, [[5.0]], [[False]])
    rewards = torch.tensor([7.0])
    assert transform.normalize(rewards) is rewards
    assert transform.state_dict() == transform.statistics() == {}
    transform.load_state_dict({})  # that of a checkpoint from before rewards were normalized


@given(st.floats(1e-3, 1e3), st.lists(st.tuples(st.floats(-10, 10, width=32), st.booleans()), min_size=1))
def test_normalized_rewards_do_not_depend_on_their_unit(factor, steps):
    plain, scaled = (normalizer("keep", num_envs=1, gamma=0.9) for _ in range(2))
    rewards = torch.tensor([[reward] for reward, _ in steps])
    done = [[ended] for _, ended in steps]
    observed(plain, rewards.tolist(), done)
    observed(scaled, (factor * rewards).tolist(), done)
    assert torch.allclose(plain.normalize(rewards), scaled.normalize(factor * rewards), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("switch", [7, 13])
def test_statistics_go_on_where_they_were_saved(switch):
    whole, first, second = (normalizer("reset", num_envs=2, gamma=0.9) for _ in range(3))
    rewards, done = torch.randn(20, 2).tolist(), (torch.rand(20, 2) < 0.2).tolist()
    tasks = [0] * switch + [1] * (20 - switch)
    observed(whole, rewards, done, tasks)
    observed(first, rewards[:10], done[:10], tasks[:10])
    second.load_state_dict(first.state_dict())
    observed(second, rewards[10:], done[10:], tasks[10:])
    assert second.scale.item() == whole.scale.item()
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_episodes_that_could_not_be_resumed_count_nothing():
    transform = normalizer("keep", num_envs=1, gamma=1.0)
    observed(transform, [[3.0]], [[False]])
    transform.begin_episodes()
    observed(transform, [[4.0]], [[False]])
    assert transform.scale.item() == pytest.approx(math.sqrt((3**2 + 4**2) / 2))


@pytest.mark.parametrize("agent", [ppo, dqn])
def test_returns_begin_anew_where_a_resumed_run_has_other_episodes(agent, tmp_path, monkeypatch):
    """Without replay, and so with new episodes; with it, they go on, and so do their returns."""
    own = {"num_steps": 8} if agent is ppo else {"log_every": 32, "train_every": 8, "learning_starts": 64}
    args = agent.Args(
        stream=StreamConfig("cartpole-rotations"), num_envs=2, total_steps=96, checkpoint_every=32, **own,
        network=NetworkConfig(hidden=(4,)), probes=ProbeConfig(every=0), runs_dir=tmp_path,
    )  # fmt: skip
    begun, begin = [], RewardTransform.begin_episodes
    monkeypatch.setattr(RewardTransform, "begin_episodes", lambda self: (begun.append(1), begin(self)))
    die(agent, args, 80, monkeypatch)
    assert not begun
    without = dataclasses.replace(args.stream, single=SingleConfig(replay=False))
    agent.main(dataclasses.replace(args, stream=without))
    assert len(begun) == 1


@pytest.mark.slow
@pytest.mark.parametrize("agent", [ppo, dqn])
def test_the_unit_of_rewards_changes_what_is_logged_and_not_what_is_learnt(agent, tmp_path):
    """Rewards times a power of 2, so that no rounding differs."""
    common = {
        "stream": StreamConfig("CartPole-v1"), "num_envs": 2, "network": NetworkConfig(hidden=(8,)),
        "probes": ProbeConfig(every=0), "runs_dir": tmp_path,
    }  # fmt: skip
    own = {"num_steps": 32, "total_steps": 512} if agent is ppo else {"total_steps": 2048, "log_every": 256}
    weights, returns = [], []
    for wrap in ("unchanged", "times_64"):
        stream = StreamConfig("CartPole-v1", wrap=f"tests.agents.test_rewards:{wrap}")
        args = agent.Args(**{**common, "stream": stream}, **own, note=wrap)
        returns.append(agent.main(args)["score/return_auc"])
        name = agent.__name__.rpartition(".")[2]
        weights.append((run_folder(name, args) / "checkpoint" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert returns[1] == pytest.approx(64 * returns[0])


def unchanged(env):
    return env


def times_64(env):
    return gym.wrappers.TransformReward(env, lambda reward: 64 * reward)
