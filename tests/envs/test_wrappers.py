"""Each change against its definition."""

import functools
import math

import gymnasium as gym
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from minigrid.wrappers import ImgObsWrapper

from neoteny.envs import wrappers
from neoteny.envs.wrappers import (
    Bounded,
    Increment,
    OrnsteinUhlenbeck,
    Oscillation,
    RandomWalk,
    Sigmoid,
    drawing,
    drift,
    fail_actions,
    noisy_observations,
    offset_observations,
    permute_actions,
    permute_observations,
)

CHANGES = {
    "permute_observations": functools.partial(permute_observations, seed=(1, 2)),
    "permute_actions": functools.partial(permute_actions, seed=1),
    "offset_observations": functools.partial(offset_observations, seed=1),
    "noisy_observations": functools.partial(noisy_observations, std=0.3),
    "sticky": functools.partial(fail_actions, probability=0.4),
    "dropped": functools.partial(fail_actions, probability=0.4, noop=1),
    "drift": functools.partial(
        drift, rules={"gravity": RandomWalk(2.0), "masscart": Bounded(Increment(0.1), high=3.0)}, seed=1
    ),
}
ON_IMAGES = ["permute_observations", "permute_actions", "sticky", "dropped"]
CASES = [("cartpole", name) for name in CHANGES] + [("grid", name) for name in ON_IMAGES]


def cartpole():
    """Episodes of at most 25 steps; under random actions most end earlier, each at its own time."""
    return gym.make("CartPole-v1", max_episode_steps=25)


def grid():
    return ImgObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0", max_steps=12))


BASES = {"cartpole": cartpole, "grid": grid}


class Echo(gym.Env):
    """Returns what was done as its reward; the observation is always the same."""

    def __init__(self, seen=(0.0,), dtype=np.float32, actions=None):
        self.seen = np.asarray(seen, dtype)
        self.observation_space = Box(0 if dtype == np.uint8 else -10, 10, self.seen.shape, dtype)
        self.action_space = actions or Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen.copy(), {}

    def step(self, action):
        return self.seen.copy(), action, False, False, {}


def rollout(env, seed, steps=60):
    """Everything that an environment returns under fixed random actions, flat."""
    rng = np.random.default_rng(seed)
    out = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        out += [observation, reward, terminated, truncated]
        if terminated or truncated:
            out.append(env.reset()[0])
    return out


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.filterwarnings("ignore:.*(is infinity|is -infinity|unwrapped version)")
@pytest.mark.parametrize(("base", "name"), CASES)
def test_gymnasium_accepts_it(base, name):
    env = CHANGES[name](BASES[base]())
    assert env.observation_space.dtype == BASES[base]().observation_space.dtype
    check_env(env, skip_render_check=True, skip_close_check=True)  # which make it again, from its spec


@pytest.mark.parametrize(("base", "name"), CASES)
def test_a_seeded_reset_and_the_actions_fix_everything(base, name):
    used, fresh = CHANGES[name](BASES[base]()), CHANGES[name](BASES[base]())
    rollout(used, 7)
    if name == "drift":
        fresh.lifelong_state = used.lifelong_state
    assert_same(rollout(used, 3), rollout(fresh, 3))


@pytest.mark.parametrize(("base", "name"), CASES)
def test_something_changes(base, name):
    changed, plain = rollout(CHANGES[name](BASES[base]()), 3), rollout(BASES[base](), 3)
    assert len(changed) != len(plain) or any((np.asarray(x) != y).any() for x, y in zip(changed, plain))


@pytest.mark.parametrize(
    "change",
    [
        functools.partial(permute_observations, order=range(4)),
        functools.partial(permute_actions, order=[0, 1]),
        functools.partial(offset_observations, seed=0, std=0.0),
        functools.partial(noisy_observations, std=0.0),
        functools.partial(fail_actions, probability=0.0),
        functools.partial(drift, rules={"gravity": Increment(0.0)}, seed=0),
    ],
)
def test_a_change_of_size_zero_changes_nothing(change):
    assert_same(rollout(change(cartpole()), 3), rollout(cartpole(), 3))


def test_permuted_observations_by_hand():
    env = permute_observations(Echo([5.0, 6.0, 7.0]), order=[2, 0, 1])
    assert env.reset()[0].tolist() == [7.0, 5.0, 6.0]


@pytest.mark.parametrize("axis", [0, -3])
def test_channels_of_an_image_are_permuted(axis):
    image = np.arange(3 * 2 * 2).reshape(3, 2, 2) % 10
    first = permute_observations(Echo(image, np.uint8), order=[2, 0, 1], axis=axis)
    np.testing.assert_array_equal(first.reset()[0], image[[2, 0, 1]])
    last = permute_observations(Echo(image.T, np.uint8), order=[2, 0, 1])
    np.testing.assert_array_equal(last.reset()[0], image[[2, 0, 1]].T)
    assert last.reset()[0].dtype == np.uint8


def test_permuted_actions_by_hand():
    env = permute_actions(Echo(), order=[4, 3, 2, 0, 1])
    assert [env.step(action)[1] for action in range(5)] == [4, 3, 2, 0, 1]
    shifted = permute_actions(Echo(actions=Discrete(3, start=-1)), order=[1, 2, 0])
    assert [shifted.step(action)[1] for action in (-1, 0, 1)] == [0, 1, -1]


@given(st.integers(2, 6), st.integers(0, 2**63), st.integers(0, 100))
def test_drawn_permutations_always_move_something(entries, seed, task):
    for s in (seed, (seed, task)):
        draw = drawing.draw_order(entries, "permute_actions", seed=s, order=None)
        assert sorted(draw) == list(range(entries))
        assert list(draw) != list(range(entries)) or (entries == 2 and s != seed)


def test_every_permutation_but_the_identity_is_drawn_equally_often():
    draws = [tuple(drawing.draw_order(3, "permute_actions", seed, None)) for seed in range(1000)]
    counts = [draws.count(order) for order in set(draws)]
    assert len(counts) == 5
    assert max(abs(count - 200) for count in counts) < 4 * math.sqrt(1000 * 0.2 * 0.8)


def test_purposes_and_tasks_draw_apart():
    first = {
        drawing.random_generator(seed, purpose).random()
        for seed in (0, 1, (1, 1), (1, 2))
        for purpose in ("drift", "fail_actions")
    }
    assert len(first) == 8


def test_the_offset_is_one_for_all_and_has_the_given_size():
    env = offset_observations(Echo(np.zeros(2000)), seed=0)
    offset = env.reset()[0]
    assert offset.std() == pytest.approx(2.0, rel=0.05)
    assert abs(offset.mean()) < 0.15
    np.testing.assert_array_equal(env.step(0)[0], offset)
    np.testing.assert_array_equal(env.reset(seed=3)[0], offset)
    assert env.observation_space == Box(-np.inf, np.inf, (2000,))
    assert (offset_observations(Echo(np.zeros(2000)), seed=1).reset()[0] != offset).all()


def test_noise_is_new_at_each_step_and_leaves_the_dynamics_alone():
    noisy, plain = noisy_observations(cartpole(), 0.5), cartpole()
    noise = [noisy.reset(seed=0)[0] - plain.reset(seed=0)[0]]
    for episode in range(300):
        done = False
        while not done:
            action = episode % 2
            (a, *_, done, _, _), (b, *_, ended, _, _) = noisy.step(action), plain.step(action)
            assert done == ended
            noise.append(a - b)
        noise.append(noisy.reset()[0] - plain.reset()[0])
    noise = np.array(noise)
    assert noise.std(axis=0) == pytest.approx(0.5, rel=0.06)
    assert np.abs(noise.mean(axis=0)).max() < 0.06
    assert len(np.unique(noise[:, 0])) > 0.99 * len(noise)


def test_every_reset_seed_has_noise_of_its_own():
    env = noisy_observations(Echo(), 1.0)
    assert len({env.reset(seed=seed)[0].item() for seed in range(4)}) == 4


@pytest.mark.parametrize("noop", [None, 0])
def test_failures_follow_their_generator(noop):
    env = fail_actions(Echo(actions=Discrete(10_000)), 0.25, noop)
    env.reset(seed=11)
    failures = drawing.random_generator(0, "fail_actions", 11).random(5000) < 0.25
    last, failed = None, 0
    for action, fails in enumerate(failures, start=1):
        instead = last if noop is None else noop
        expected = instead if fails and instead is not None else action
        last = env.step(action)[1]
        assert last == expected
        failed += last != action
    assert failed / 5000 == pytest.approx(0.25, abs=0.02)


def test_the_last_action_is_not_carried_into_the_next_episode():
    env = fail_actions(Echo(), 1.0)
    for first in (3, 1):
        env.reset()
        assert [env.step(action)[1] for action in (first, 4, 0)] == [first] * 3


def test_continuous_actions_stick_too():
    env = fail_actions(Echo(actions=Box(-1, 1, (2,))), 1.0)
    env.reset()
    action = np.array([0.5, -0.5], np.float32)
    env.step(action)
    action[:] = 0.0  # the caller's own array
    assert env.step(action)[1].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Increment(0.5), [10.5, 11.0, 11.5, 12.0]),
        (Oscillation(2.0, period=4), [12.0, 10.0, 8.0, 10.0]),
        (Oscillation(2.0, period=4, phase=math.pi / 2), [10.0, 8.0, 10.0, 12.0]),
        (RandomWalk(0.5), [10.5, 9.5, 9.5, 11.0]),
        (OrnsteinUhlenbeck(0.5, 1.0), [11.0, 8.5, 9.25, 12.625]),
        (OrnsteinUhlenbeck(1.0, 0.0, mean=3.0), [3.0, 3.0, 3.0, 3.0]),
        (Sigmoid(14.0, midpoint=2, width=1 / math.log(3)), [11.0, 12.0, 13.0, 10 + 4 * 0.9]),
        (Bounded(Increment(0.5), high=11.2), [10.5, 11.0, 11.2, 11.2]),
        (Bounded(RandomWalk(0.5), low=10.0), [10.5, 10.0, 10.0, 11.5]),
    ],
)
def test_rules_by_hand(rule, expected):
    value, values = 10.0, []
    for step, normal in enumerate([1.0, -2.0, 0.0, 3.0], start=1):
        value = rule(10.0, value, step, normal)
        values.append(value)
    assert values == pytest.approx(expected)


def test_a_sigmoid_far_from_its_midpoint_is_finite():
    rule = Sigmoid(1.0, midpoint=1e6, width=1e-3)
    assert [rule(0.0, 0.0, step, 0.0) for step in (1, 10**6, 10**9)] == [0.0, 0.5, 1.0]


def test_drift_moves_the_simulator_and_goes_on_across_resets():
    env = drift(cartpole(), {"gravity": Increment(1.0), "length": Increment(0.5)}, seed=0)
    env.reset(seed=0)
    plain = cartpole()
    plain.reset(seed=0)
    for step in range(3):
        physics = env.unwrapped
        assert physics.gravity == pytest.approx(9.8 + step)
        assert physics.polemass_length == pytest.approx(0.1 * (0.5 + 0.5 * step))
        plain.unwrapped.gravity, plain.unwrapped.length = physics.gravity, physics.length
        plain.unwrapped.polemass_length = physics.masspole * physics.length
        np.testing.assert_array_equal(env.step(1)[0], plain.step(1)[0])
    env.reset(seed=0)
    assert env.lifelong_state == {"step": 3, "gravity": pytest.approx(12.8), "length": 2.0}
    assert env.unwrapped.gravity == pytest.approx(12.8)


def test_drift_survives_a_reset_that_puts_the_physics_back():
    class Forgetful(Echo):
        friction = 1

        def reset(self, *, seed=None, options=None):
            self.friction = 1
            return super().reset(seed=seed)

    env = drift(Forgetful(), {"friction": Increment(1.0)}, seed=0)
    for expected in (1, 2, 3):
        env.reset()
        assert env.unwrapped.friction == expected
        env.step(0)


@pytest.mark.parametrize("at", [3, wrappers.Drift.block - 1, wrappers.Drift.block])
def test_a_restored_drift_goes_on_as_if_never_stopped(at):
    def make():
        return drift(Echo(), {"gravity": RandomWalk(1.0), "wind": OrnsteinUhlenbeck(0.1, 1.0)}, seed=(5, 6))

    Echo.gravity, Echo.wind = 10.0, 0.0
    try:
        one, two = make(), make()
        for _ in range(at):
            one.step(0)
        two.lifelong_state = one.lifelong_state
        for _ in range(10):
            one.step(0)
            two.step(0)
        assert one.lifelong_state == two.lifelong_state
        assert one.lifelong_state["step"] == at + 10
        assert one.unwrapped.wind == two.unwrapped.wind == one.lifelong_state["wind"] != 0.0
        with pytest.raises(ValueError, match="no state"):
            two.lifelong_state = {"step": 1, "gravity": 1.0}
    finally:
        del Echo.gravity, Echo.wind


def test_random_drift_has_the_given_size_and_its_own_path_for_each_seed():
    ends = []
    for seed in range(50):
        env = drift(gym.make("CartPole-v1"), {"gravity": RandomWalk(0.1), "tau": RandomWalk(0.1)}, seed)
        for _ in range(400):
            env.advance()
        ends.append([env.unwrapped.gravity - 9.8, env.unwrapped.tau - 0.02])
    ends = np.array(ends)
    assert ends.std() == pytest.approx(0.1 * math.sqrt(400), rel=0.25)
    assert abs(np.corrcoef(ends.T)[0, 1]) < 0.45


def test_random_drift_does_not_repeat_itself():
    env, path = drift(cartpole(), {"gravity": RandomWalk(1.0)}, seed=0), []
    for _ in range(3 * env.block):
        env.advance()
        path.append(env.unwrapped.gravity)
    assert len(set(np.diff(path).round(9))) > 0.99 * len(path)


def test_derived_attributes_of_the_users_own():
    class Derived(Echo):
        mass, weight = 1.0, 10.0

    env = drift(Derived(), {"mass": Increment(1.0)}, seed=0, derived={"weight": lambda env: 10 * env.mass})
    env.step(0)
    assert env.unwrapped.weight == 20.0


ATARI_LIKE = functools.partial(Echo, np.zeros((2, 2, 3)), np.uint8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: permute_observations(Echo([1.0, 2.0])), ValueError, "a seed or an order"),
        (lambda: permute_observations(Echo([1.0, 2.0]), 0, order=[1, 0]), ValueError, "a seed or an order"),
        (lambda: permute_observations(Echo([1.0, 2.0]), order=[1, 1]), ValueError, "not a permutation"),
        (lambda: permute_observations(Echo([1.0, 2.0]), order=[1]), ValueError, "not a permutation"),
        (lambda: permute_observations(Echo([1.0]), seed=0), ValueError, "changes nothing"),
        (lambda: permute_observations(gym.make("MiniGrid-Empty-5x5-v0"), 0), TypeError, "a Box"),
        (lambda: permute_actions(Echo(actions=Discrete(1)), seed=0), ValueError, "changes nothing"),
        (lambda: permute_actions(Echo(actions=Box(-1, 1, (2,))), seed=0), TypeError, "Discrete"),
        (lambda: offset_observations(ATARI_LIKE(), seed=0), TypeError, "floating-point"),
        (lambda: offset_observations(Echo(), seed=0, std=-1.0), ValueError, "not negative"),
        (lambda: noisy_observations(ATARI_LIKE(), 1.0), TypeError, "floating-point"),
        (lambda: noisy_observations(Echo(), math.inf), ValueError, "finite"),
        (lambda: fail_actions(Echo(), 1.5), ValueError, r"within \[0, 1\]"),
        (lambda: fail_actions(Echo(), 0.5, noop=5), ValueError, "not an action"),
        (lambda: fail_actions(Echo(actions=gym.spaces.Text(3))), TypeError, "numbers or arrays"),
        (lambda: drift(cartpole(), {}, seed=0), ValueError, "at least one"),
        (
            lambda: drift(cartpole(), {"friction": Increment(1.0)}, 0),
            AttributeError,
            "CartPoleEnv .*'friction'",
        ),
        (lambda: drift(cartpole(), {"total_mass": Increment(1.0)}, 0), ValueError, "total_mass"),
        (lambda: drift(cartpole(), {"kinematics_integrator": Increment(1.0)}, 0), TypeError, "only numbers"),
        (lambda: drift(Echo(), {"seen": Increment(1.0)}, 0), TypeError, "only numbers"),
        (lambda: Oscillation(1.0, period=0), ValueError, "period"),
        (lambda: Sigmoid(1.0, midpoint=1, width=0), ValueError, "width"),
    ],
)
def test_what_cannot_be_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        change()


def test_a_drift_says_that_resets_do_not_fix_episodes():
    assert drift(cartpole(), {"gravity": Increment(1.0)}, seed=0).spec.nondeterministic
    assert not cartpole().spec.nondeterministic
