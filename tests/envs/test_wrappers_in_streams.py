"""Every wrapper, with the documented seed (seed, k), makes tasks that differ and share their spaces."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from neoteny.envs import Schedule, Stream, wrappers
from neoteny.envs.config import ENGINES
from neoteny.envs.wrappers import drawing

CHANGES = {
    "permute_observations": lambda env, seed, k: wrappers.permute_observations(env, (seed, k)),
    "permute_actions": lambda env, seed, k: wrappers.permute_actions(env, (seed, k)),
    "offset_observations": lambda env, seed, k: wrappers.offset_observations(env, (seed, k)),
    "noisy_observations": lambda env, seed, k: wrappers.noisy_observations(env, 0.1, (seed, k)),
    "fail_actions": lambda env, seed, k: wrappers.fail_actions(env, 0.5, seed=(seed, k)),
    "scale_rewards": lambda env, seed, k: wrappers.scale_rewards(env, float(k + 1)),
    "drift": lambda env, seed, k: wrappers.drift(env, {"gravity": wrappers.RandomWalk(1.0)}, (seed, k)),
}
NO_WRAPPERS = {"Derived", "Rule", "Seed", "DERIVED_OF_CARTPOLE", "Drift"}
RULES = {"Bounded", "Increment", "OrnsteinUhlenbeck", "Oscillation", "RandomWalk", "Sigmoid"}
BASES = {"CartPole-v1": 2, "Acrobot-v1": 3}  # and their numbers of actions


def test_all_wrappers_are_tried():
    assert set(wrappers.__all__) - NO_WRAPPERS - RULES == set(CHANGES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("base", "name"), [case for case in itertools.product(BASES, CHANGES) if case != ("Acrobot-v1", "drift")]
)
def test_a_wrapper_makes_tasks_that_differ_in_the_same_spaces(base, name, seed):
    def task(k, seed):
        return CHANGES[name](gym.make(base), seed, k)

    stream = Stream(task, Schedule(8), ENGINES, num_envs=2, seed=seed)
    stream.reset()
    infos = [stream.step(np.zeros(2, dtype=int))[-1] for _ in range(4 * 8)]
    assert not any("audit" in info for info in infos)
    prints = [info["fingerprint"] for info in infos if "fingerprint" in info]
    assert len(prints) == 8
    for one, two in itertools.pairwise(prints):
        assert one.spaces == two.spaces
        assert one.rollout != two.rollout


@pytest.mark.parametrize("run", range(5))
@pytest.mark.parametrize("entries", [2, 3, 4, 7, 49])
def test_no_permutation_comes_twice_until_all_have_come(entries, run):
    different = {2: 2, 3: 5, 4: 23}.get(entries, 200)
    orders = [
        tuple(drawing.draw_order(entries, "permute_actions", (run, k), None)) for k in range(2 * different)
    ]
    for k in range(different + 1):
        assert len(set(orders[k : k + different])) == different
    assert all(sorted(order) == list(range(entries)) for order in orders)
    assert (tuple(range(entries)) in orders) == (entries == 2)


def test_runs_draw_their_permutations_in_different_orders():
    runs = {
        tuple(tuple(drawing.draw_order(4, "permute_actions", (run, k), None)) for k in range(3))
        for run in range(50)
    }
    assert len(runs) > 45


class Uneven(gym.Env):
    """Observations whose entries have different bounds, and which reach them."""

    observation_space = Box(np.float32([-1, -2, 0]), np.float32([1, 2, 9]))
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.high.copy(), {}

    def step(self, action):
        return self.observation_space.low.copy(), 0.0, False, False, {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_one_box_holds_every_order_of_observations_with_uneven_bounds(order):
    env = wrappers.permute_observations(Uneven(), order=order)
    assert env.observation_space == Box(-2, 9, (3,), np.float32)
    assert env.reset()[0].tolist() == [[1, 2, 9][entry] for entry in order]
    assert env.observation_space.contains(env.step(0)[0])


def test_only_the_permuted_axis_of_a_picture_shares_its_bounds():
    class Picture(Uneven):
        observation_space = Box(np.zeros((2, 2), np.uint8), np.array([[1, 5], [7, 3]], np.uint8))

    rows = wrappers.permute_observations(Picture(), order=[1, 0], axis=0)
    assert rows.observation_space.high.tolist() == [[7, 5], [7, 5]]
    columns = wrappers.permute_observations(Picture(), order=[1, 0])
    assert columns.observation_space.high.tolist() == [[5, 5], [7, 7]]
