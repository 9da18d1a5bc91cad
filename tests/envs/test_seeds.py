"""Seeds of episodes: 31 bits, all different within a run, as good as independent between runs."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.envs import StreamConfig
from neoteny.envs.seeds import episode_seed

RUNS = st.integers(0, 2**63 - 1)


@given(RUNS, st.data())
@settings(max_examples=200, deadline=None)
def test_seeds_within_a_run_differ(run, data):
    """As many environments, tasks and episodes as the docstring says."""
    bits = data.draw(st.integers(0, 10))
    places = st.tuples(*(st.integers(0, 2**bits - 1),) * 2, st.integers(0, 2 ** (31 - 2 * bits) - 1))
    chosen = data.draw(st.lists(places, min_size=2, max_size=50, unique=True))
    seeds = [episode_seed(run, *place) for place in chosen]
    assert len(set(seeds)) == len(chosen)
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("tasks", "envs", "episodes"), [(1, 1, 100_000), (10, 16, 500), (3, 1000, 30), (200, 4, 100)]
)
def test_no_two_of_all_the_seeds_of_a_run_are_equal(tasks, envs, episodes):
    """Among 80,000 independent ones 1.5 pairs would be."""
    for run in range(3):
        seeds = [
            episode_seed(run, k, env, episode)
            for k in range(tasks)
            for env in range(envs)
            for episode in range(episodes)
        ]
        assert len(set(seeds)) == len(seeds)


@given(RUNS, st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**40))
def test_the_largest_numbers_have_seeds_too(run, task, env, episode):
    assert 0 <= episode_seed(run, task, env, episode) < 2**31


@given(RUNS, st.integers(0, 2**40), st.integers(0, 2**20), st.lists(st.integers(0, 2**31 - 1), unique=True))
def test_one_environment_never_repeats_a_seed_in_a_task(run, task, env, episodes):
    assert len({episode_seed(run, task, env, episode) for episode in episodes}) == len(episodes)


@pytest.mark.slow
def test_runs_share_seeds_no_more_often_than_by_chance():
    """Of 128,000 seeds of 1,000 runs, 128,000**2 / 2**32 = 3.8 pairs are equal by chance; 15 are too many."""
    seeds = [
        episode_seed(run, task, env, task) for run in range(1000) for env in range(64) for task in (0, 1)
    ]
    assert len(seeds) - len(set(seeds)) < 15


def test_seeds_are_spread_evenly():
    """Every bit is set in half of the seeds: the standard deviation of 100,000 is 0.0016."""
    seeds = np.array([episode_seed(5, 0, env, episode) for env in range(4) for episode in range(25_000)])
    shares = (seeds[:, None] >> np.arange(31) & 1).mean(0)
    assert np.abs(shares - 0.5).max() < 0.008


def numpy_global(env, seed):
    np.random.seed(seed)  # noqa: NPY002


def random_state(env, seed):
    env.rng = np.random.RandomState(seed)


def own_action_space(env, seed):
    env.action_space.seed(seed)


def by_torch(env, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)


def one_int32(env, seed):
    assert np.iinfo(np.int32).max >= seed == np.int32(seed)


class Old(gym.Env):
    """Sows the seed in a way of its own."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, sow):
        self.sow = sow

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sow(self, seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t >= 3, False, {}


@pytest.mark.parametrize("sow", [numpy_global, random_state, own_action_space, by_torch, one_int32])
def test_environments_that_take_seeds_of_32_bits_run(sow):
    gym.register("Old-v0", Old, kwargs={"sow": sow}, disable_env_checker=True)
    try:
        stream = StreamConfig("Old-v0").make(4, seed=2**63 - 1)
        stream.reset()
        for _ in range(60):
            stream.step(np.zeros(4, int))
        env = stream.make_eval_env()
        env.reset(episode_seed(0, 0, 0, 0))
    finally:
        del gym.registry["Old-v0"]
