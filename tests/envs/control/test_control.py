"""Physics: drawn as the docstrings say, read by the simulators, and leaving every task solvable."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest

from neoteny.envs import StreamConfig
from neoteny.envs.audit import fingerprint, parameters, set_parameters
from neoteny.envs.control.streams import draw
from neoteny.envs.registry import registered_streams

BOX2D = importlib.util.find_spec("Box2D") is not None
LINK = (1.0, 0.5, 1.5)
# Default, low and high of each parameter.
PHYSICS = {
    "cartpole": {"gravity": (9.8, 3.1, 31), "length": (0.5, 0.16, 1.6), "force_mag": (10, 3.2, 32)},
    "acrobot": {"LINK_LENGTH_1": LINK, "LINK_MASS_1": LINK, "LINK_MASS_2": LINK},
    "mountaincar": {"gravity": (0.0025, 0.00175, 0.0035), "force": (0.001, 0.0007, 0.0014)},
}
if BOX2D:
    PHYSICS["lunarlander"] = {"gravity": (-10, -12, -2), "wind_power": (0, 1, 20)}
PARAMETERS = [(name, parameter) for name, ranges in PHYSICS.items() for parameter in ranges]


def task(name, k, seed=1):
    return StreamConfig(f"{name}-jumps").make(1).make_task(k, seed)


def test_lunarlander_is_a_stream_with_or_without_box2d():
    assert {"lunarlander-jumps", "lunarlander-drift-small"} <= set(registered_streams())


@pytest.mark.parametrize("name", PHYSICS)
def test_tasks_have_the_default_physics_first_and_then_draws_within_their_ranges(name):
    default, *drawn = (parameters(task(name, k)) for k in range(60))
    for parameter, (first, low, high) in PHYSICS[name].items():
        values = np.array([values[parameter] for values in drawn])
        assert default[parameter] == first
        assert (low <= values).all()
        assert (values <= high).all()
        assert len(set(values)) == len(values)
        # Log-uniform: half of the draws are below the geometric mean.
        assert 15 < (np.abs(values) < np.sqrt(low * high)).sum() < 45
    changed = {parameter for parameter, value in default.items() if value != drawn[0][parameter]}
    assert changed - {"polemass_length"} == set(PHYSICS[name])
    assert parameters(task(name, 1, seed=2)) != drawn[0] == parameters(task(name, 1, seed=1))


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_every_parameter_is_read_by_the_simulator(name, parameter):
    env = task(name, 0)
    set_parameters(env, {parameter: parameters(task(name, 1))[parameter]})
    assert not fingerprint(env).same_as(fingerprint(task(name, 0)))


def test_a_parameter_that_no_simulator_reads_would_be_found():
    env = gym.make("Acrobot-v1", disable_env_checker=True)
    draw(env, 1, 1, LINK_LENGTH_2=LINK[1:])
    assert env.unwrapped.LINK_LENGTH_2 != 1.0
    assert fingerprint(env).same_as(fingerprint(gym.make("Acrobot-v1", disable_env_checker=True)))


def test_a_longer_pole_is_longer_everywhere():
    for k in range(5):
        pole = task("cartpole", k).unwrapped
        assert pole.polemass_length == pole.masspole * pole.length
        assert pole.total_mass == pole.masspole + pole.masscart


@pytest.mark.parametrize("name", PHYSICS)
def test_physics_drift_from_one_draw_to_the_next(name):
    stream = StreamConfig(f"{name}-drift", period=40).make(2, seed=1)
    stream.reset()
    draws = [parameters(stream.make_task(k, 1)) for k in range(3)]
    for step in range(60):
        ended = np.logical_or(*stream.step(np.zeros(2, int))[2:4])
        visit, way = divmod(2 * step, 40)
        if visit > 0 and not ended[0]:  # a reset sets the parameters of the step to come
            now = parameters(stream.engine.envs.envs[0].env)
            for parameter in PHYSICS[name]:
                ends = (draws[visit - 1][parameter], draws[visit][parameter])
                assert now[parameter] == pytest.approx(np.interp(way, (0, 40), ends))


@pytest.mark.parametrize(("name", "limit"), [("cartpole", 200), ("acrobot", 500), ("mountaincar", 125)])
def test_episodes_end_at_their_limit(name, limit):
    env = task(name, 0)
    state = env.reset(seed=0)[0]
    for step in range(1, limit + 1):
        action = int(state[2] + state[3] > 0) if name == "cartpole" else 1
        state, _, terminated, truncated, _ = env.step(action)
        assert (terminated, truncated) == (False, step == limit)


def solved(env, act):
    """Whether a policy ends an episode before its time is up."""
    state, terminated, truncated = env.reset(seed=0)[0], False, False
    while not (terminated or truncated):
        state, _, terminated, truncated, _ = env.step(act(state))
    return terminated


@pytest.mark.parametrize("gravity", [0.00175, 0.0025, 0.0035])
@pytest.mark.parametrize("force", [0.0007, 0.001, 0.0014])
def test_pumping_energy_solves_every_mountaincar(gravity, force):
    env = task("mountaincar", 0)
    set_parameters(env, {"gravity": gravity, "force": force})
    assert solved(env, lambda state: 2 if state[1] >= 0 else 0)


@pytest.mark.parametrize("length", LINK)
@pytest.mark.parametrize("mass_1", LINK)
@pytest.mark.parametrize("mass_2", LINK)
def test_pumping_energy_solves_every_acrobot(length, mass_1, mass_2):
    env = task("acrobot", 0)
    set_parameters(env, {"LINK_LENGTH_1": length, "LINK_MASS_1": mass_1, "LINK_MASS_2": mass_2})
    assert solved(env, lambda state: 2 if state[5] >= 0 else 0)


@pytest.mark.parametrize("k", range(12))
def test_every_cartpole_can_be_balanced(k):
    env = task("cartpole", k)
    assert not solved(
        env, lambda state: int(state[2] * 12 + state[3] * 2 + state[1] * 0.3 + state[0] * 0.2 > 0)
    )


def test_each_action_in_mountaincar_is_carried_out_eight_times():
    env, plain = task("mountaincar", 0), gym.make("MountainCar-v0", disable_env_checker=True)
    env.reset(seed=0)
    plain.reset(seed=0)
    for action in (2, 0):
        for _ in range(8):
            state = plain.step(action)[0]
        repeated, reward, *_ = env.step(action)
        assert reward == -8
        np.testing.assert_array_equal(repeated, state)
