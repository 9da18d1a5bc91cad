"""Classic control on tensors beside Gymnasium itself, stepped from the same states by the same actions."""

import dataclasses
import functools
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv
from gymnasium.wrappers import TimeLimit, TransformAction, TransformObservation, TransformReward

from neoteny.envs import Schedule, Stream, StreamConfig, wrappers
from neoteny.envs.audit import parameters, set_parameters
from neoteny.envs.config import ENGINES
from neoteny.envs.control.engine import ControlConfig, ControlEngine, Drift
from neoteny.envs.control.physics import SIMULATORS
from neoteny.envs.control.task import ControlTask
from neoteny.envs.control.wrappers import PermutedActions, Repeat, Rotation
from neoteny.envs.engine import UncoveredError
from neoteny.envs.single.engine import SingleConfig, SingleEngine
from neoteny.envs.stream import choose_engine
from tests.killed import at
from tests.tiny_runs import BASE, ending, outcome, send, small

IDS = "CartPole-v1", "Acrobot-v1", "MountainCar-v0"

# Widest range of the states that are tried, besides those that episodes visit. At Acrobot's highest speeds,
# three times these, Gymnasium's own result moves by more than 1e-12 if one bit of the state changes.
WIDE = {"CartPole-v1": (3, 5, 0.3, 5), "Acrobot-v1": (3.1, 3.1, 4, 9), "MountainCar-v0": (0.85, 0.07)}


def plain(id):
    return gym.make(id, disable_env_checker=True)


def engine(make, num_envs, seed=0, schedule=None, step=0, k=0, device="cpu"):
    """Environments of one task, at the beginning of their first episodes."""
    task = make if schedule else lambda k, seed: make()
    env = task(0, 0)
    envs = ControlEngine(task, (env.observation_space, env.action_space), num_envs, device)
    envs.enter(schedule or Schedule(tasks=(k,), seed=seed), step)
    envs.reset()
    return envs


def with_physics(id, rng, **options):
    """An environment whose parameters are 0.7 to 1.4 times the default, and other options that it has."""
    env = gym.make(id, disable_env_checker=True, **options)
    own = env.unwrapped
    names = set(ControlTask(env).parameters) - {"torque_noise_max"}
    set_parameters(env, {name: getattr(own, name) * 2 ** rng.uniform(-0.5, 0.5) for name in sorted(names)})
    if id == "CartPole-v1":
        own.kinematics_integrator = str(rng.choice(["euler", "semi-implicit"]))
    if id == "Acrobot-v1":
        own.book_or_nips = str(rng.choice(["book", "nips"]))
        own.AVAIL_TORQUE = rng.uniform(-2, 2, 3).tolist()
    if id == "MountainCar-v0":
        own.min_position, own.goal_velocity = -1.1, float(rng.choice([0.0, 0.01]))
    return env


def compare(envs, env, id, steps, rng):
    """Step both from the same states, on tensors all at once; returns the largest difference and the ends."""
    own, largest, ends = env.unwrapped, 0.0, 0
    for number in range(steps):
        if number % 2:  # a state that no episode may have visited
            wide = torch.tensor(WIDE[id])[:, None]
            envs.state.copy_(wide * torch.from_numpy(rng.uniform(-1, 1, envs.state.shape)))
            envs.state[0] -= 0.3 if id == "MountainCar-v0" else 0.0
        before, actions = envs.state.T.numpy().copy(), rng.integers(envs.spaces[1].n, size=envs.num_envs)
        rewards, terminated, truncated, _ = envs.step(torch.from_numpy(actions))
        results, states = [], []
        for state, action in zip(before, actions.tolist()):
            own.state, own.steps_beyond_terminated = state, None
            results.append(own.step(action)[:3])
            states.append(own.state)
        observations, paid, ended = map(np.array, zip(*results))
        largest = max(largest, np.abs(envs.state.T.numpy() - np.array(states)).max())
        assert np.array_equal(rewards, paid)
        assert np.array_equal(terminated, ended)
        seen = envs.observations.numpy()
        assert seen.dtype == observations.dtype
        np.testing.assert_allclose(seen, observations, rtol=1e-6, atol=1e-7)
        ends += int(ended.sum())
        envs.reset(terminated | truncated)
    return largest, ends


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_a_step_is_gymnasiums(id):
    rng, most, ends = np.random.default_rng(0), 0.0, 0
    options = [{"sutton_barto_reward": True}] if id == "CartPole-v1" else [{}]
    for trial in range(5):
        env = with_physics(id, rng, **options[0]) if trial else plain(id)
        largest, ended = compare(engine(lambda env=env: env, 100), env, id, 200, rng)
        most, ends = max(most, largest), ends + ended
    print(f"{id}: 100,000 steps, {ends:,} ends, largest difference {most:.1e}")
    assert most < 1e-12
    assert ends > 100


@pytest.mark.parametrize("id", IDS)
def test_episodes_begin_as_in_gymnasium(id):
    envs, env = engine(lambda: plain(id), 4096), plain(id)
    drawn = [envs.state.clone()]
    for _ in range(3):
        envs.reset()
        drawn.append(envs.state.clone())
    ours = torch.cat(drawn, 1).numpy()
    assert len(np.unique(ours[0])) > 0.99 * ours.shape[1]
    theirs = []
    for seed in range(2000):
        env.reset(seed=seed)
        theirs.append(env.unwrapped.state)
    for mine, package in zip(ours, np.array(theirs).T):
        assert package.min() >= mine.min() - 1e-3
        assert package.max() <= mine.max() + 1e-3
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            spread = np.ptp(package) or 1.0
            assert abs(np.quantile(mine, share) - np.quantile(package, share)) < 0.05 * spread
    correlations = np.corrcoef(np.concatenate((ours[:, :-1], ours[:, 1:]))[[0, len(ours)]])
    assert abs(correlations[0, 1]) < 0.05  # of neighbours
    if len(ours) == 4:
        np.testing.assert_allclose(np.corrcoef(ours), np.eye(4), atol=0.05)
        float32 = ours.astype(np.float32).astype(np.float64)
        assert np.array_equal(ours, float32) == (id == "Acrobot-v1")


def changed(id, **values):
    env = plain(id)
    for name, value in values.items():
        setattr(env.unwrapped, name, value)
    return env


def strong():
    """An Acrobot that random torques bring to its goal."""
    return changed("Acrobot-v1", AVAIL_TORQUE=[-4.0, 0.0, 4.0])


def near():
    """A MountainCar that random forces bring to its goal."""
    return changed("MountainCar-v0", goal_position=-0.42)


def beside(make, num_envs, steps, sticky=0.0, **options):
    """Step both from injected resets, and at each step from the same state; returns what happened."""
    envs, rng = engine(make, num_envs, **options), np.random.default_rng(0)
    singles = [make() for _ in range(num_envs)]
    happened = {"terminated": 0, "truncated": 0, "both": 0}

    def begin(i):
        first, _ = singles[i].reset(seed=i)
        envs.state[:, i] = torch.from_numpy(np.array(singles[i].unwrapped.state, np.float64))
        np.testing.assert_allclose(envs.observations[i], first, rtol=1e-6, atol=1e-6)

    for i in range(num_envs):
        begin(i)
    actions = rng.integers(envs.spaces[1].n, size=num_envs)
    for _ in range(steps):
        again = rng.random(num_envs) < sticky
        actions = np.where(again, actions, rng.integers(envs.spaces[1].n, size=num_envs))
        rewards, terminated, truncated, infos = envs.step(actions)
        assert len(infos) == 0
        assert rewards.dtype == torch.float64
        seen = envs.observations
        for i, single in enumerate(singles):
            observation, *outcome, _ = single.step(actions[i])
            assert outcome == [rewards[i], terminated[i], truncated[i]]
            np.testing.assert_allclose(seen[i], observation, rtol=1e-5, atol=1e-6)
            assert seen.numpy().dtype == observation.dtype
            envs.state[:, i] = torch.from_numpy(np.array(single.unwrapped.state, np.float64))
        happened["terminated"] += int(terminated.sum())
        happened["truncated"] += int(truncated.sum())
        happened["both"] += int((terminated & truncated).sum())
        done = terminated | truncated
        envs.reset(done)
        for i in done.nonzero().flatten().tolist():
            begin(i)
    return happened


@pytest.mark.parametrize(
    ("make", "sticky"),
    [
        (lambda: gym.make("CartPole-v1", max_episode_steps=20), 0.0),
        (lambda: gym.make("CartPole-v1", sutton_barto_reward=True, max_episode_steps=20), 0.0),
        (lambda: TimeLimit(strong(), 60), 0.9),
        (lambda: Repeat(gym.make("MountainCar-v0", max_episode_steps=500), 8), 0.9),
        (lambda: TimeLimit(Repeat(TimeLimit(near(), 60), 3), 18), 0.9),
        (lambda: TimeLimit(TimeLimit(Repeat(Repeat(CartPoleEnv(), 2), 2), 7), 5), 0.0),
        (lambda: Repeat(gym.make("CartPole-v1", sutton_barto_reward=True, max_episode_steps=25), 4), 0.0),
        (lambda: Repeat(TimeLimit(strong(), 62), 5), 0.5),
    ],
    ids=["CartPole", "sutton", "Acrobot", "repeat", "limits", "limit of repeats", "sutton repeat", "torque"],
)
def test_episodes_end_and_actions_repeat_as_in_gymnasium(make, sticky):
    happened = beside(make, 8, 250, sticky)
    assert happened["terminated"] > happened["both"]
    assert happened["truncated"] > happened["both"]


def turned(make, seed=0, numbers=4, order=(1, 0)):
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(rng.standard_normal((16, numbers)))[0].astype(np.float32)
    return PermutedActions(Rotation(make(), matrix), order)


def test_observations_are_rotated_and_actions_permuted():
    beside(lambda: turned(lambda: gym.make("CartPole-v1")), 8, 100)
    beside(lambda: turned(lambda: plain("Acrobot-v1"), 1, 6, (2, 0, 1)), 4, 50)
    twice = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    beside(lambda: Rotation(turned(lambda: plain("CartPole-v1")), twice), 4, 50)
    order = (2, 0, 1)
    make = lambda: PermutedActions(PermutedActions(plain("MountainCar-v0"), order), (0, 2, 1))  # noqa: E731
    assert ControlTask(make()).pushes == [1.0, 0.0, -1.0]
    beside(make, 4, 50)


@pytest.mark.parametrize("id", ["cartpole-rotations", "cartpole-gravity", "mountaincar-jumps"])
def test_shipped_tasks_are_covered(id):
    task = gym.spec(id).kwargs["task"]
    for k in range(3):
        ControlConfig().covers(task, k, 1)
        beside(lambda k=k: task(k, 1), 4, 50)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: np.eye(3), "does not fit observations"),
        (lambda: np.ones(4), "does not fit observations"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        Rotation(plain("CartPole-v1"), make())


@pytest.mark.parametrize("order", [(0, 0), (1, 2), (0,)])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="is not a permutation of 0 to 1"):
        PermutedActions(plain("CartPole-v1"), order)


DRIFTING = ["cartpole-drift", "acrobot-drift", "mountaincar-drift"]


@pytest.mark.parametrize("id", DRIFTING)
def test_physics_drift_exactly_as_in_single_environments(id):
    config = StreamConfig(id, period=40)
    single, control = (
        dataclasses.replace(config, engine=name).make(4, seed=1) for name in ("single", "control")
    )
    single.reset()
    control.reset()
    names, seen = list(control.engine.task.parameters), set()
    for _ in range(45):
        env = single.engine.envs.envs[0]
        ended = np.logical_or(*single.step(np.zeros(4, int))[2:4])
        control.step(np.zeros(4, int))
        if ended[0]:  # a reset, also at a switch, sets the parameters of the step to come
            continue
        now = parameters(env.env)
        values = tuple(control.engine.drift.values.tolist())
        assert values == tuple(now[name] for name in names)
        seen.add(values)
    assert len(seen) > 20
    assert single.task == control.task == 4


def test_a_step_that_drifts_is_gymnasiums():
    """From the same state and with the same parameters, and the switch too."""
    config = StreamConfig("cartpole-drift", period=64)
    single, control = (
        dataclasses.replace(config, engine=name).make(4, seed=1) for name in ("single", "control")
    )
    rng = np.random.default_rng(0)
    observed = single.reset()[0], control.reset()[0]
    assert observed[0].shape == observed[1].shape
    for _ in range(60):
        states = control.engine.state.T.numpy().copy()
        for env, state in zip(single.engine.envs.envs, states):
            env.env.unwrapped.state = state
        actions = rng.integers(2, size=4)
        mine, package = control.step(actions), single.step(actions)
        for one, two in zip(mine[1:4], package[1:4]):
            if one.dtype != bool:
                assert np.array_equal(one, two)
        if not (mine[2] | mine[3]).any():
            np.testing.assert_allclose(mine[0], package[0], rtol=1e-6, atol=1e-7)
        assert mine[4]["task"] == package[4]["task"]


def test_whole_numbers_drift_in_whole_numbers_and_the_same_task_twice_does_not_drift():
    schedule = Schedule(period=100, tasks=(0, 1, 1), drift_fraction=0.5)
    path = {"a": (3, 8), "b": (0.25, 1.5)}
    drift = Drift({"a": 8, "b": 1.5, "c": 2}, path, schedule, 100, 5, torch.device("cpu"))
    for step in range(100, 300, 5):
        values = drift.advance().tolist()
        progress = schedule.progress_at(step)
        a, b = (new if progress == 1 else old + progress * (new - old) for old, new in path.values())
        assert values == [round(a), b, 2]
    assert not Drift({"c": 2}, path, schedule, 100, 5, torch.device("cpu")).is_on


@pytest.mark.parametrize("id", ["cartpole-rotations", "acrobot-jumps", "mountaincar-drift"])
def test_an_environment_does_the_same_however_many_there_are(id):
    task, schedule = gym.spec(id).kwargs["task"], Schedule(1000, drift_fraction=0.5, seed=3)
    one, some, many = (engine(task, n, schedule=schedule, step=1000) for n in (1, 7, 1024))
    for envs in (one, some, many):
        envs.drift.stride = 1
    actions = torch.randint(0, 2, (150, 1024), generator=torch.Generator().manual_seed(0))
    for action in actions:
        results = [envs.step(action[: envs.num_envs])[:3] for envs in (one, some, many)]
        for n, envs, result in zip((1, 1, 7), (one, some, some), (results[0], results[1], results[1])):
            assert all(torch.equal(part[:n], full[:n]) for part, full in zip(result, results[2]))
            assert torch.equal(envs.state[:, :n], many.state[:, :n])
            assert torch.equal(envs.observations[:n], many.observations[:n])
        for envs, (_, terminated, truncated) in zip((one, some, many), results):
            envs.reset(terminated | truncated)


def test_first_states_differ_by_seed_task_environment_and_episode():
    make = functools.partial(plain, "CartPole-v1")
    one = engine(make, 64, seed=3)
    others = [engine(make, 64, seed=4), engine(make, 64, seed=3, k=1)]
    again = engine(make, 64, seed=3)
    assert torch.equal(one.state, again.state)
    states = [one.state.clone(), *(other.state for other in others)]
    one.reset(torch.arange(64) % 2 == 0)
    assert torch.equal(one.state[:, 1::2], states[0][:, 1::2])
    states.append(one.state[:, ::2])
    drawn = torch.cat([state.flatten() for state in states])
    assert len(drawn.unique()) == len(drawn)


def run(stream, actions):
    return [part.clone() for action in actions for part in stream.step(action)[:4]]


@pytest.mark.parametrize(
    ("id", "flags"),
    [
        ("cartpole-rotations", {"tasks": (0, 1, 0)}),
        ("cartpole-drift", {}),
        ("acrobot-drift", {}),
        ("mountaincar-jumps", {"tasks": (1, 0), "jitter": 0.5}),
    ],
)
def test_a_restored_stream_goes_on_bit_for_bit(id, flags):
    config = StreamConfig(id, period=400, engine="control", **flags)
    one, two = (config.make(4, seed=seed, device="cpu") for seed in (1, 2))
    one.reset()
    actions = torch.randint(0, 2, (400, 4), generator=torch.Generator().manual_seed(0))
    run(one, actions[:230])
    state = one.state_dict()
    saved = {name: value.clone() for name, value in state["engine"].items() if name != "episodes"}
    expected = run(one, actions[230:])
    assert all(torch.equal(state["engine"][name], value) for name, value in saved.items())
    two.load_state_dict(state)
    assert two.exact
    assert all(map(torch.equal, expected, run(two, actions[230:])))
    one.reset(seed=1)
    two.reset(seed=1)
    assert all(map(torch.equal, run(one, actions), run(two, actions)))


def test_episodes_of_a_recurring_task_go_on_and_others_are_forgotten():
    envs = engine(lambda k, seed: plain("CartPole-v1"), 3, schedule=Schedule(10, (0, 1)))
    first = envs.state.clone()
    envs.enter(Schedule(10, (0, 1)), 10)
    envs.reset()
    envs.enter(Schedule(10, (0, 1)), 20)
    envs.reset()
    assert envs.episodes.tolist() == [1, 1, 1]
    assert not torch.equal(envs.state, first)
    envs.clear()
    envs.enter(Schedule(10, (0, 1)), 0)
    envs.reset()
    assert torch.equal(envs.state, first)
    envs.enter(Schedule(10), 30)
    assert list(envs.numbers) == [3]


def test_a_state_of_another_engine_is_taken_up_by_new_episodes():
    config = StreamConfig("cartpole-gravity", period=200)
    streams = [dataclasses.replace(config, engine=name).make(2, seed=1) for name in ("single", "control")]
    for one, two in (streams, streams[::-1]):
        one.reset()
        for _ in range(110):
            one.step(np.zeros(2, int))
        two.load_state_dict(one.state_dict())
        assert not two.exact
        assert "another engine" in " ".join(two.inexact)
        assert (two.steps, two.task) == (220, 1)
        assert two.step(np.zeros(2, int))[4]["task"] == 1


def test_a_state_of_another_shape_is_refused():
    envs = engine(functools.partial(plain, "CartPole-v1"), 3)
    other = engine(functools.partial(plain, "Acrobot-v1"), 2).state_dict()
    with pytest.raises(ValueError, match=r"state of shape \(4, 2\) does not fit task 0"):
        envs.load_state_dict(other, Schedule(), 0, torch.zeros(3))


def never(*args, **kwargs):
    raise AssertionError("read from the device")


@pytest.mark.parametrize("id", ["cartpole-rotations", "cartpole-drift", "acrobot-drift", "mountaincar-jumps"])
def test_a_step_reads_nothing_from_the_device_and_leaves_its_tensors_where_they_are(id, monkeypatch):
    task, schedule = gym.spec(id).kwargs["task"], Schedule(1000, drift_fraction=1.0)
    envs = engine(task, 5, schedule=schedule, step=1000)
    held = [value for value in vars(envs).values() if isinstance(value, torch.Tensor)]
    held += [value for value in vars(envs.drift).values() if isinstance(value, torch.Tensor)]
    addresses = [tensor.data_ptr() for tensor in held]
    actions = torch.zeros(5, dtype=torch.int64)
    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__int__", "__float__", "__index__", "tolist", "numpy", "cpu"):
            patch.setattr(torch.Tensor, name, never)
        for name in ("tensor", "from_numpy"):
            patch.setattr(torch, name, never)
        for _ in range(30):
            envs.begin_step()
            _, terminated, truncated, _ = envs.step(actions)
            envs.reset(terminated | truncated)
            assert envs.observations.shape[0] == 5
    now = [value for value in vars(envs).values() if isinstance(value, torch.Tensor)]
    now += [value for value in vars(envs.drift).values() if isinstance(value, torch.Tensor)]
    assert [tensor.data_ptr() for tensor in now] == addresses
    assert envs.episodes.max() > 0 or id != "cartpole-drift"


def test_observations_are_copies():
    envs = engine(functools.partial(plain, "CartPole-v1"), 3)
    before = envs.observations
    kept = before.clone()
    rewards = envs.step(np.zeros(3, int))[0]
    assert torch.equal(before, kept)
    assert not torch.equal(before, envs.observations)
    envs.step(np.zeros(3, int))[0].zero_()
    assert rewards.tolist() == [1.0] * 3


class Long(CartPoleEnv):
    """A class of a user's that changes numbers only."""

    def __init__(self, length=2.0, **options):
        super().__init__(**options)
        self.length = length
        self.polemass_length = self.masspole * self.length


class Heavy(AcrobotEnv):
    LINK_MASS_1 = 2.0
    book_or_nips = "nips"
    AVAIL_TORQUE = (2.0, 0.5, -1.0)


class Stepping(CartPoleEnv):
    def step(self, action):
        return super().step(action)


class Resetting(MountainCarEnv):
    def reset(self, **options):
        return super().reset(**options)


class Derivatives(AcrobotEnv):
    def _dsdt(self, s_augmented):
        return super()._dsdt(s_augmented)


class Windy(CartPoleEnv):
    """Gravity is a property, so that reading it once is not enough."""

    reads = 0

    @property
    def gravity(self):
        self.reads += 1
        return 9.8 + self.reads

    @gravity.setter
    def gravity(self, value):
        pass


class Paid(gym.Wrapper):
    """A wrapper of a user's."""

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, 2 * reward, *rest


def on_the_object():
    env = plain("CartPole-v1")
    env.unwrapped.step = env.unwrapped.step
    return env


def changing_gravity():
    """A parameter changes during episodes, when an action is given another meaning."""
    env = plain("CartPole-v1")

    def meaning(action):
        env.unwrapped.gravity += 0.1
        return action

    return TransformAction(env, meaning, env.action_space)


def counting():
    counts = [0]

    def meaning(action):
        counts[0] += 1
        return action

    env = plain("CartPole-v1")
    return TransformAction(env, meaning, env.action_space)


def random_gravity():
    env = plain("CartPole-v1")
    env.unwrapped.gravity = float(np.random.default_rng().uniform(5, 15))
    return env


def relative():
    """A class of a package whose code is taken for known, but which is not the one that is covered."""
    return type("CartPoleEnv", (CartPoleEnv,), {"__module__": "gymnasium.envs.later"})()


def swapped():
    env = Long(3.0)
    return TransformAction(TimeLimit(env, 30), lambda action: 1 - action, env.action_space)


COVERED = {
    "a plain id": lambda: gym.make("CartPole-v1"),
    "attributes": lambda: changed("CartPole-v1", gravity=20.0, x_threshold=0.2, tau=0.01, masspole=1),
    "semi-implicit": lambda: changed("CartPole-v1", kinematics_integrator="semi-implicit"),
    "nips": lambda: changed("Acrobot-v1", book_or_nips="nips", LINK_LENGTH_1=0.7, dt=0.1, MAX_VEL_1=2.0),
    "goal": lambda: changed("MountainCar-v0", goal_position=-0.4, min_position=-0.6, max_speed=0.03),
    "a class with numbers": Long,
    "a class with attributes": Heavy,
    "a function of actions": swapped,
    "fewer actions": lambda: TransformAction(
        plain("MountainCar-v0"), lambda action: 2 * action, gym.spaces.Discrete(2)
    ),
    "order of actions": lambda: wrappers.permute_actions(plain("Acrobot-v1"), order=(2, 0, 1)),
}

REFUSED = {
    "Stepping overrides step": Stepping,
    "Resetting overrides reset": Resetting,
    "Derivatives overrides _dsdt": Derivatives,
    "Windy overrides gravity": Windy,
    "CartPoleEnv overrides step": on_the_object,
    "what the wrapper Paid does is not known": lambda: Paid(plain("CartPole-v1")),
    "func of TransformAction depends on": changing_gravity,
    "func of TransformAction depends on counts": counting,
    "gravity differs between environments of the same task": random_gravity,
    "gravity of CartPoleEnv is array": lambda: changed("CartPole-v1", gravity=np.array(9.8)),
    "tau of CartPoleEnv is np.float32": lambda: changed("CartPole-v1", tau=np.float32(0.02)),
    "its torque has random noise": lambda: changed("Acrobot-v1", torque_noise_max=0.5),
    "what the wrapper TransformObservation does": lambda: TransformObservation(
        plain("CartPole-v1"), lambda observation: 2 * observation, None
    ),
    "what the wrapper TransformReward does": lambda: TransformReward(plain("CartPole-v1"), abs),
    "PendulumEnv is not CartPole, Acrobot or MountainCar": lambda: plain("Pendulum-v1"),
    "what the wrapper Repeat does": lambda: Repeat(TimeLimit(Repeat(plain("MountainCar-v0"), 2), 9), 3),
    "the actions of CartPoleEnv are": lambda: changed("CartPole-v1", action_space=gym.spaces.Discrete(3)),
    "the actions of TransformAction are": lambda: TransformAction(
        plain("CartPole-v1"), lambda action: action - 1, gym.spaces.Discrete(2, start=1)
    ),
    "CartPoleEnv is not Gymnasium's CartPoleEnv": relative,
    "is drawn at every step": lambda: changed("CartPole-v1", render_mode="human"),
}


@pytest.mark.parametrize("name", COVERED)
def test_what_is_a_users_is_covered_if_it_does_the_same(name):
    make = COVERED[name]
    ControlConfig().covers(lambda k, seed: make(), 0, 0)
    beside(make, 4, 60)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_something_else_is_refused(reason):
    with pytest.raises(UncoveredError, match=reason.replace(".", r"\.")):
        ControlConfig().covers(lambda k, seed: REFUSED[reason](), 0, 0)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("what", ["step", "ended", "observe", "low"])
def test_rules_that_differ_are_found_by_playing(simulator, what, monkeypatch):
    """A user's class that reads as covered, beside a simulator that does something else."""
    kind = type("Own", (simulator.kind,), {})
    before = getattr(simulator, what)
    other = {
        "step": lambda self, state, push, constants: before(self, state, push, constants) + 1e-7,
        "ended": lambda self, state, constants: ~before(self, state, constants),
        "observe": lambda self, state: before(self, state) * (1 + 1e-5),
        "low": tuple(high for high in simulator.high),
    }[what]
    ControlConfig().covers(lambda k, seed: kind(), 0, 0)
    monkeypatch.setattr(simulator, what, other)
    message = "differs by" if what in ("step", "observe") else "after some steps|begins in the state"
    with pytest.raises(UncoveredError, match=message):
        ControlConfig().covers(lambda k, seed: kind(), 0, 0)


def test_a_parameter_that_changes_during_episodes_is_found_by_playing(monkeypatch):
    """Even where reading does not find it, as it would be if the package itself did so."""
    step = MountainCarEnv.step

    def heavier(self, action):
        result = step(self, action)
        self.gravity += 1e-15
        return result

    kind = type("Own", (MountainCarEnv,), {})
    monkeypatch.setattr(MountainCarEnv, "step", heavier)
    monkeypatch.setattr("neoteny.envs.control.task.users_members", lambda env: {})
    with pytest.raises(UncoveredError, match="gravity changes during episodes"):
        ControlConfig().covers(lambda k, seed: kind(), 0, 0)


def chosen(config, device, **options):
    """The engine that an agent on ``device`` would have, without making anything there."""
    made = []

    class Chosen(Exception):
        pass

    def choose(engines, task, schedule, first):
        made.append(choose_engine(engines, task, schedule, first).name)
        raise Chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["neoteny.envs.stream"], "choose_engine", choose)
        with pytest.raises(Chosen):
            config.make(2, device=device, **options)
    return made[0]


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "cuda", torch.device("cuda", 1)])
@pytest.mark.parametrize("id", ["cartpole-rotations", "Acrobot-v1", "mountaincar-drift-small", "grid-goals"])
def test_the_engine_follows_the_device_unless_a_flag_names_it(id, device):
    config = StreamConfig(id)
    native = "grid" if id.startswith("grid") else "control"
    on_cpu = native if native == "grid" else "single"
    assert chosen(config, device) == (native if torch.device(device or "cpu").type == "cuda" else on_cpu)
    assert chosen(dataclasses.replace(config, engine=native), device) == native
    assert chosen(dataclasses.replace(config, engine="single"), device) == "single"


def test_flags_of_other_engines_are_refused():
    config = StreamConfig("cartpole-rotations", engine="control", single=SingleConfig(workers=1))
    with pytest.raises(
        ValueError, match=r"--stream\.single flags would be ignored: .* --stream\.engine control"
    ):
        config.make(2)
    with pytest.raises(ValueError, match=r"--stream\.engine control cannot step"):
        StreamConfig("grid-goals", engine="control").make(2)


def test_what_is_not_covered_is_stepped_by_gymnasium(monkeypatch, capsys):
    monkeypatch.setattr(ControlConfig, "on_cpu", True)
    assert isinstance(
        Stream(lambda k, seed: plain("CartPole-v1"), Schedule(), ENGINES, 2).engine, ControlEngine
    )
    assert not capsys.readouterr().out
    stream = Stream(lambda k, seed: Stepping(), Schedule(), ENGINES, 2)
    assert isinstance(stream.engine, SingleEngine)
    (line,) = capsys.readouterr().out.splitlines()
    assert "Gymnasium's own classes step this stream" in line
    assert "Stepping overrides step" in line
    with pytest.raises(ValueError, match="Stepping overrides step"):
        Stream(lambda k, seed: Stepping(), Schedule(), ENGINES, 2, engine="control")


@pytest.mark.parametrize(
    ("gravity", "reason"),
    [
        (lambda: 9.8 + time.time() // 86_400 % 2, "gravity depends on the time"),
        (lambda: 9.8 + 0 * np.random.random(), "it uses the global random generator of numpy.random"),  # noqa: NPY002
        (lambda: 9.8, ""),
    ],
    ids=["clock", "global generator", "a number"],
)
def test_tasks_that_may_be_others_after_a_stop_are_named(gravity, reason, monkeypatch):
    _named_after_a_stop(gravity, reason)
    for hours in range(3, 24, 4):  # at any time of the day
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=time.time, hours=hours: clock() + 3600 * hours)
            _named_after_a_stop(gravity, reason)


def _named_after_a_stop(gravity, reason):
    stream = Stream(
        lambda k, seed: changed("CartPole-v1", gravity=gravity() + k),
        Schedule(10),
        ENGINES,
        2,
        engine="control",
    )
    assert reason in stream.unrepeatable
    assert bool(reason) == bool(stream.unrepeatable)


def test_a_later_task_that_is_not_covered_is_named():
    def task(k, seed):
        return Stepping() if k == 3 else changed("CartPole-v1", gravity=9.0 + k)

    stream = Stream(task, Schedule(10), ENGINES, 2, engine="control")
    stream.reset()
    assert "--stream.engine control cannot step task 3" in stream.misfit_before(40)


def test_an_evaluation_environment_is_gymnasiums_with_the_parameters_of_the_step():
    stream = StreamConfig("cartpole-drift", period=100, engine="control").make(2, seed=1)
    stream.reset()
    for _ in range(75):
        stream.step(np.zeros(2, int))
    env = stream.make_eval_env()
    env.reset(seed=0)
    old, new = (parameters(stream.make_task(k, 1))["gravity"] for k in (0, 1))
    assert env.env.unwrapped.gravity == old + 0.5 * (new - old)


@pytest.mark.parametrize("id", ["cartpole-rotations", "mountaincar-drift"])
def test_a_run_of_an_agent_goes_on_exactly_after_a_stop(id, tmp_path, monkeypatch, capsys):
    stream = dataclasses.replace(BASE.stream, id=id, engine="control")
    whole, stopped = (small(tmp_path / name, stream=stream) for name in ("whole", "stopped"))
    assert ending(whole) == 0
    assert "stepped by the engine control" in capsys.readouterr().out
    at(monkeypatch, 130, send("SIGTERM"))
    assert ending(stopped) == 75
    assert ending(stopped) == 0
    assert "exactly" in capsys.readouterr().out
    assert outcome(whole) == outcome(stopped)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("id", ["cartpole-rotations", "acrobot-drift", "mountaincar-drift"])
def test_a_gpu_does_the_same_as_the_cpu(id):
    """From the same states; the first ones are the same bit for bit."""
    task, schedule = gym.spec(id).kwargs["task"], Schedule(1000, drift_fraction=0.5, seed=3)
    here, there = (
        engine(task, 64, schedule=schedule, step=1000, device=device) for device in ("cpu", "cuda")
    )
    for action in torch.randint(0, 2, (200, 64), generator=torch.Generator().manual_seed(0)):
        torch.testing.assert_close(here.state, there.state.cpu(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(here.observations, there.observations.cpu(), rtol=1e-6, atol=1e-6)
        there.state.copy_(here.state)
        outcomes = [envs.step(action.to(envs.device))[:3] for envs in (here, there)]
        for one, two in zip(*outcomes):
            assert torch.equal(one, two.cpu())
        for envs, (_, terminated, truncated) in zip((here, there), outcomes):
            envs.reset(terminated | truncated)
        done = outcomes[0][1] | outcomes[0][2]
        assert torch.equal(here.state[:, done], there.state.cpu()[:, done])
        assert torch.equal(here.drift.values, there.drift.values.cpu())
