"""Any stream in a wrapper of the user's: `--stream.wrap module:function`."""

import sys
import types

import gymnasium as gym
import numpy as np
import pytest

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.envs import StreamConfig
from neoteny.envs.grid.engine import GridEngine
from neoteny.envs.single.engine import SingleEngine
from neoteny.envs.wrappers import permute_actions, permute_observations, scale_rewards

CALLS = []


def plain(env):
    CALLS.append(())
    return env


def seeded(env, seed):
    CALLS.append(seed)
    return permute_actions(env, seed)


def numbered(env, k, seed):
    CALLS.append((k, seed))
    return scale_rewards(env, 1.0 + k)


def turned_round(env, seed, k):
    CALLS.append((k, seed))
    return env


def of_a_task(task, seed):
    CALLS.append(seed)
    return task


def two_seeds(env, seed, other_seed):
    return env


def only_k(env, k):
    CALLS.append(k)
    return env


class Louder(gym.Wrapper):
    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, 10 * reward, *rest


def no_env(env):
    return 3


def more(env, what, ever):
    return env


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    """A module of the user's that has been imported."""
    module = types.ModuleType("mine")
    for each in (plain, seeded, numbered, turned_round, of_a_task, two_seeds, only_k, Louder, no_env, more):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "mine", module)
    CALLS.clear()


def make(wrap, id="CartPole-v1", **flags):
    return StreamConfig(id, wrap=f"mine:{wrap}", **flags).make(2, seed=7, device="cpu")


@pytest.mark.parametrize(
    ("wrap", "call"),
    [
        ("plain", ()),
        ("seeded", (7, 0)),
        ("of_a_task", (7, 0)),
        ("numbered", (0, 7)),
        ("turned_round", (0, 7)),
        ("only_k", 0),
    ],
)
def test_what_a_wrapper_is_given(wrap, call):
    make(wrap)
    assert set(CALLS) == {call}


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        ("no_env", "mine:no_env returned 3, which is not an environment"),
        ("more", r"mine:more must take \(env\), \(env, seed\) or \(env, k, seed\)"),
        ("two_seeds", r"mine:two_seeds must take"),
        ("nothing", "no 'mine:nothing'"),
    ],
)
def test_what_is_no_wrapper_is_refused(wrap, message):
    with pytest.raises(ValueError, match=message):
        make(wrap)


def test_a_class_will_do_and_rewards_are_its_own():
    stream = make("Louder")
    stream.reset()
    assert stream.step(np.zeros(2, int))[1].tolist() == [10, 10]


def test_wrapped_plain_id_with_a_period():
    stream = make("numbered", period=8)
    stream.reset()
    rewards = [stream.step(np.zeros(2, int))[1][0].item() for _ in range(12)]
    assert rewards == [1] * 4 + [2] * 4 + [3] * 4
    with pytest.raises(ValueError, match=r"never switches without --stream\.period"):
        make("numbered", tasks=(0, 1))


def test_the_audit_sees_wrapped_tasks():
    with pytest.raises(ValueError, match="the switch changed nothing"):
        make("plain", period=4).reset()


def test_a_shipped_stream_stays_on_tensors_where_they_hold_the_wrapper(capsys):
    assert isinstance(make("seeded", "grid-layouts-small").engine, GridEngine)
    assert not capsys.readouterr().out
    stream = make("Louder", "grid-layouts-small")
    assert isinstance(stream.engine, SingleEngine)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MiniGrid's own package steps this stream")
    assert "Louder cannot be expressed by tables" in line


def test_wrapped_actions_do_on_tensors_what_they_do_in_the_package():
    fast, slow = (
        make("seeded", "grid-layouts-small", engine=engine, audit="off") for engine in ("grid", "single")
    )
    tasks = [stream.make_task(1, 7) for stream in (fast, slow)]
    for action in range(7):
        for env in tasks:
            env.reset(seed=3)
        one, two = (env.step(action)[0] for env in tasks)
        np.testing.assert_array_equal(one, two)
    assert fast.engine.task.actions != list(range(7))


def test_the_wrappers_that_are_shipped_can_be_named():
    import neoteny.envs.wrappers  # noqa: F401  (a command line imports what is named)

    wrap = "neoteny.envs.wrappers:permute_observations"
    stream = StreamConfig("grid-layouts-small", wrap=wrap).make(2, seed=7)
    env, inner = stream.make_task(0, 7), StreamConfig("grid-layouts-small").make(2, seed=7).make_task(0, 7)
    expected = permute_observations(inner, (7, 0)).reset(seed=1)[0]
    np.testing.assert_array_equal(env.reset(seed=1)[0], expected)


def test_the_module_is_imported_by_a_command_line_alone(tmp_path, monkeypatch):
    (tmp_path / "typed_wrappers.py").write_text("def wrap(env):\n    return env\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="import typed_wrappers first"):
        StreamConfig("CartPole-v1", wrap="typed_wrappers:wrap").make(1)
    words = ["--stream.id", "CartPole-v1", "--stream.wrap", "typed_wrappers:wrap"]
    assert cli(ppo.Args, {}, words).stream.wrap == "typed_wrappers:wrap"
    assert "typed_wrappers" in sys.modules
