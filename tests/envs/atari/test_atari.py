"""Atari games: the vector environment beside the single one, and streams of them."""

import itertools
import json
import sys
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit, TransformAction

from neoteny.agents import ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.agents.ppo import Args
from neoteny.agents.rewards import RewardConfig
from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.atari import engine as arcade_engine
from neoteny.envs.atari.engine import AtariConfig, AtariEngine
from neoteny.envs.atari.game import (
    Screen,
    ale,
    check_games,
    emulator_seed,
    make_game,
    vector_options,
)
from neoteny.envs.atari.scores import SCORES, human_normalized
from neoteny.envs.atari.streams import GAMES
from neoteny.envs.audit import fingerprint
from neoteny.envs.config import ENGINES
from neoteny.envs.engine import UncoveredError
from neoteny.envs.registry import registered_streams
from neoteny.envs.single.engine import SingleConfig, SingleEngine
from neoteny.optim import AdamConfig
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.identity import Identity
from neoteny.runners.probes import ProbeConfig
from tests.events import scalars
from tests.killed import at, kill
from tests.tiny_runs import ending, outcome

pytestmark = pytest.mark.slow

STREAMS = [id for id in registered_streams() if id.startswith("atari")]
SEEDS = [seed for seed in range(99) if emulator_seed(seed) < 2**31]  # which the vector environment can take


def raw(name, **options):
    ale()
    return gym.make(
        f"ALE/{name}-v5", frameskip=1, full_action_space=True, disable_env_checker=True, **options
    )


def assert_equal(one, step, reset, ends, most):
    """Both do the same under random actions until so many episodes have ended."""
    rng, observation = np.random.default_rng(0), one.reset(seed=SEEDS[0])[0]
    np.testing.assert_array_equal(observation, reset(SEEDS[0]))
    for _ in range(most):
        action = int(rng.integers(18))
        observation, reward, terminated, truncated, _ = one.step(action)
        other, *rest = step(action)
        np.testing.assert_array_equal(observation, other)
        assert rest == [reward, terminated, truncated]
        if terminated or truncated:
            ends -= 1
            np.testing.assert_array_equal(one.reset()[0], reset(None))
        if not ends:
            return
    raise AssertionError("no end came")


@pytest.mark.parametrize(
    ("name", "frame_skip", "options"),
    [
        ("Breakout", 4, {}),
        ("SpaceInvaders", 4, {}),
        ("Alien", 4, {"repeat_action_probability": 0.0}),
        ("Breakout", 1, {}),
        ("Pong", 4, {"max_num_frames_per_episode": 402}),  # which cuts an action short
        ("Boxing", 1, {"max_num_frames_per_episode": 301}),
        ("Tennis", 3, {"max_num_frames_per_episode": 900}),  # of another height
    ],
)
def test_the_vector_environment_does_what_the_single_one_does(name, frame_skip, options):
    env = raw(name, obs_type="grayscale", **options)
    env = FrameStackObservation(Screen(env, frame_skip), 4, padding_type="zero")
    made = vector_options(env)
    assert made["repeat_action_probability"] == options.get("repeat_action_probability", 0.25)
    vector = ale().vector_env.AtariVectorEnv(num_envs=1, **made)

    def step(action):
        observation, *rest, _ = vector.step(np.array([action]))
        return observation[0], *(part.item() for part in rest)

    def reset(seed):
        seeds = np.array([-1 if seed is None else emulator_seed(seed)])
        return vector.reset(seed=seeds, options={"reset_mask": np.array([True])})[0][0]

    assert_equal(env, step, reset, ends=2, most=4000)


@pytest.mark.parametrize(
    ("name", "frame_skip"), [("Breakout", 1), ("Breakout", 4), ("SpaceInvaders", 4), ("UpNDown", 4)]
)
def test_screens_are_those_of_gymnasium(name, frame_skip):
    pytest.importorskip("cv2")
    other = FrameStackObservation(
        AtariPreprocessing(raw(name), noop_max=0, frame_skip=frame_skip), 4, padding_type="zero"
    )

    def step(action):
        return other.step(action)[:4]

    assert_equal(make_game(name, frame_skip), step, lambda seed: other.reset(seed=seed)[0], 1, 6000)


def config(games=("Breakout", "SpaceInvaders"), period=90, **flags):
    return StreamConfig("atari", period=period, games=games, audit="off", **flags)


def with_threads(threads, config, num_envs, seed):
    """A stream with so many threads for its emulators."""
    with patch.object(AtariEngine.__init__, "__defaults__", (True, threads, False)):
        stream = config.make(num_envs, seed)
    assert stream.engine.threads == threads
    return stream


def steps_of(stream, actions):
    """All that a stream returns, with raw rewards and without names."""
    out = []
    for action in actions:
        *arrays, info = stream.step(action)
        out.append([*arrays, info.get("final_obs", 0), info.get("episode_return", 0), info["task"]])
    return out


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


ACTIONS = np.random.default_rng(5).integers(18, size=(1000, 3))


@pytest.fixture
def soon_seeded_again(monkeypatch):
    monkeypatch.setattr(arcade_engine, "RESEED_AFTER", 60)


def test_a_restored_stream_goes_on_as_if_never_stopped(soon_seeded_again):
    short = config(games=("Breakout", "Asterix"), period=750)  # whose episodes end soon
    calm = with_threads(2, short, 3, seed=2)
    first, _ = calm.reset()
    expected, states, at = [], {}, [0, 249, 250, 400, 880]
    for t in range(len(ACTIONS)):
        if t in at:
            states[t] = calm.state_dict()
        expected += steps_of(calm, ACTIONS[t : t + 1])
    assert len({row[-1] for row in expected}) == 2
    assert sum(bool(np.any(row[2])) for row in expected) > 5  # episodes that ended by themselves
    assert min(game.seedings.min() for game in calm.engine.games.values()) > 2
    logs = [life["actions"] for game in states[880]["engine"]["games"].values() for life in game["segments"]]
    assert max(map(len, logs)) < 300
    streams = [with_threads(threads, short, 3, seed=9) for threads in (1, 2)]
    for restored, (t, state) in zip(itertools.cycle(streams), states.items()):
        restored.load_state_dict(state)
        np.testing.assert_array_equal(restored.observation, expected[t - 1][0] if t else first)
        assert (restored.steps, restored.task, restored.seed) == (3 * t, 3 * t // 750 % 2, 2)
        again = restored.state_dict()["engine"]["games"]
        assert {k: game["checksum"] for k, game in again.items()} == {
            k: game["checksum"] for k, game in state["engine"]["games"].items()
        }
        assert_same(steps_of(restored, ACTIONS[t : t + 100]), expected[t : t + 100])
    for stream in (calm, *streams):
        stream.close()


def test_a_stream_does_not_depend_on_threads_and_does_on_its_seed():
    one, two, other = (with_threads(threads, config(), 3, seed) for seed, threads in ((1, 1), (1, 2), (2, 2)))
    for stream in (one, two, other):
        stream.reset()
    first = steps_of(one, ACTIONS[:70])  # back in the first game
    assert_same(first, steps_of(two, ACTIONS[:70]))
    with pytest.raises(AssertionError):
        assert_same(first[:20], steps_of(other, ACTIONS[:20]))
    one.reset()
    assert_same(first, steps_of(one, ACTIONS[:70]))


def test_without_replay_new_episodes_begin():
    stream, other = config().make(3, seed=1), config(atari=AtariConfig(replay=False)).make(3, seed=1)
    stream.reset()
    steps_of(stream, ACTIONS[:40])
    state = stream.state_dict()
    other.load_state_dict(state)
    assert not other.exact
    assert (other.steps, other.task) == (stream.steps, stream.task)
    assert not other.returns.any()
    assert all(
        (other.engine.game.seedings > game["seedings"]).all()
        for k, game in state["engine"]["games"].items()
        if int(k) == other.task
    )
    steps_of(other, ACTIONS[:60])
    other.reset()
    assert other.exact


def test_a_replay_that_goes_elsewhere_is_reported():
    stream, other = config().make(2, seed=1), config().make(2, seed=1)
    stream.reset()
    steps_of(stream, ACTIONS[:20, :2])
    state = stream.state_dict()
    state["engine"]["games"]["0"]["segments"][1]["actions"][5:] = 3
    other.load_state_dict(state)
    assert not other.exact
    assert "gave other observations than before" in other.inexact[0]
    assert not other.returns.any()
    assert (other.engine.game.seedings > state["engine"]["games"]["0"]["seedings"]).all()


def test_switches_are_exact_and_returns_raw():
    stream = config(period=300).make(3, device="cpu")
    stream.reset()
    largest = 0.0
    for t in range(320):
        assert stream.task == 3 * t // 300 % 2
        _, reward, terminated, truncated, info = stream.step(ACTIONS[t])
        if t in (0, 100, 200, 300):
            assert info["game"] == ("Breakout", "SpaceInvaders")[3 * t // 300 % 2]
        largest = max(largest, float(reward.max()))
        if t % 100 == 99:
            assert (terminated ^ truncated).all()
            assert (stream.observation[:, :3] == 0).all()
            assert not (info["final_obs"][:, :3] == 0).all()
    assert largest >= 5


def test_games_of_ever_new_tasks_do_not_stay():
    stream = Stream(lambda k, seed: make_game(GAMES[k]), Schedule(period=4), ENGINES, 2, audit="off")
    stream.reset()
    for _ in range(5):
        stream.step(np.zeros(2, int))
    assert list(stream.engine.games) == [2]


def test_frames_are_stacked():
    assert config().make(1).frame_stack == 4
    assert config(engine="single").make(1).frame_stack == 4
    assert config(task_id="onehot").make(1).frame_stack == 1
    assert StreamConfig("cartpole-gravity").make(1).frame_stack == 1
    assert StreamConfig("grid-layouts").make(1).frame_stack == 1


@pytest.mark.parametrize("id", STREAMS)
def test_the_games_of_a_stream_are_there_and_tell_apart(id):
    spec = gym.spec(id).kwargs
    check_games(spec["names"])
    assert spec["schedule"].cycle == tuple(range(len(spec["names"])))
    if id.endswith("-small"):
        assert spec["schedule"].period < gym.spec(id.removesuffix("-small")).kwargs["schedule"].period
        stream = StreamConfig(id).make(1)
        prints = [fingerprint(stream.make_task(k, 0), steps=64) for k in stream.schedule.cycle]
        assert isinstance(stream.engine, AtariEngine)
        assert len({print.rollout for print in prints}) == len(prints)
        assert len({print.spaces for print in prints}) == 1


def test_a_mode_is_another_task_and_is_stepped_singly(capsys):
    stream = StreamConfig("atari", 20, games=("Freeway", "Freeway/1/0")).make(2)
    assert isinstance(stream.engine, SingleEngine)
    assert "stepped one by one" in (output := capsys.readouterr().out)
    assert "mode" in output
    stream.reset()
    infos = [stream.step(np.ones(2, int))[-1] for _ in range(12)]  # across the audit
    assert infos[10]["game"] == "Freeway/1/0"
    spread = StreamConfig("atari", 20, games=("Pong", "Breakout"), drift_fraction=0.5, audit="off").make(1)
    assert isinstance(spread.engine, SingleEngine)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: TimeLimit(env, 5),
        lambda env: TransformAction(env, lambda action: action, env.action_space),
        lambda env: FrameStackObservation(env.env, 4),
        lambda env: env.env,
        lambda env: FrameStackObservation(Screen(TimeLimit(env.env.env, 5)), 4, padding_type="zero"),
        lambda env: FrameStackObservation(
            Screen(raw("Pong", obs_type="grayscale", difficulty=0)), 4, padding_type="zero"
        ),
    ],
)
def test_what_the_vector_environment_cannot_do_is_reported(wrap):
    with pytest.raises(UncoveredError):
        vector_options(wrap(make_game("Pong")))


@pytest.mark.parametrize(
    ("games", "output"),
    [
        (("MsPackman",), "there is no Atari game 'MsPackman'; there are MsPacman"),
        (("pong",), "Pong"),
        (("Combat",), "there is no Atari game 'Combat'"),
        (("Freeway/99/0",), "Freeway has no mode 99, only 0, 1"),
        (("Freeway/1/7",), "Freeway has no difficulty 7, only 0, 1"),
        (("Freeway/1",), "Name/mode/difficulty"),
        (("Freeway/a/b",), "Name/mode/difficulty"),
        ((), "at least one"),
    ],
)
def test_bad_games_are_refused(games, output):
    with pytest.raises(ValueError, match=r"game|Freeway") as error:
        StreamConfig("atari", games=games).check(1)
    assert output in str(error.value)


def test_flags_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="the tasks of atari-cora are fixed"):
        StreamConfig("atari-cora", games=("Pong",)).check(1)
    with pytest.raises(ValueError, match=r"--stream\.single flags would be ignored"):
        config(single=SingleConfig(workers=1)).make(2)
    with pytest.raises(ValueError, match="needs recurring tasks"):
        StreamConfig("cartpole-gravity", cycles=2).check(1)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        config(cycles=0).check(1)
    with pytest.raises(ValueError, match="has tasks 0 to 1"):
        config(tasks=(0, 2)).check(1)


def test_without_ale_py_one_sentence_is_said(monkeypatch):
    for name in ("ale_py", "ale_py.vector_env"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install neoteny\[atari\]"):
        StreamConfig("atari").make(1)


def test_cycles_are_the_length_of_a_run():
    assert config(period=100, cycles=3).total_steps() == 600
    assert config(period=100, cycles=3, tasks=(1, 0, 1)).total_steps() == 900
    assert config().total_steps() is None


def test_scores():
    assert len(SCORES) == 57
    check_games(list(SCORES))
    assert human_normalized("Breakout", 1.7) == 0
    assert human_normalized("Breakout", 30.5) == 1
    assert np.isnan(human_normalized("Freeway/1/0", 3.0))


def run(folder, cycles, games=("Breakout", "Asterix")):
    return Args(
        stream=StreamConfig("atari", 128, games=games, cycles=cycles, audit="off"), num_envs=2, num_steps=16,
        epochs=1, network=NetworkConfig(hidden=(8,)), shared_torso=True, probes=ProbeConfig(every=0),
        checkpoint_every=64, optim=AdamConfig(), runs_dir=folder,
    )  # fmt: skip


def test_a_killed_run_of_games_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys):
    calm, killed = run(tmp_path / "calm", cycles=2), run(tmp_path / "killed", cycles=1)
    assert ending(calm) == 0
    at(monkeypatch, 226, kill)
    assert ending(killed) < 0
    assert ending(run(tmp_path / "killed", cycles=2)) == 0
    assert "resumes at step 192, exactly" in capsys.readouterr().out
    assert outcome(killed) == outcome(calm)
    assert json.loads((run_folder("ppo", killed) / "args.json").read_text())["stream"]["cycles"] == 2


def test_a_run_of_other_games_is_refused(tmp_path):
    made, other = (
        Identity("ppo", run(tmp_path, 1, games)) for games in (("Breakout", "Asterix"), ("Breakout", "Pong"))
    )
    state = {"config": made.config, "machine": made.machine, "code": made.code()}
    made.check(state)
    with pytest.raises(ValueError, match=r"with stream\.games .*Asterix.*, not .*Pong"):
        other.check(state)


def test_ppo_learns_from_signs_and_logs_scores(tmp_path, monkeypatch):
    learned = []

    def spy(rewards, *rest):
        learned.append(rewards.clone())
        return gae(rewards, *rest)

    gae = ppo.gae
    monkeypatch.setattr(ppo, "gae", spy)
    args = Args(
        stream=StreamConfig("atari", 1024, games=("Asterix", "Breakout"), cycles=1, audit="off"),
        num_envs=2, num_steps=64, epochs=1, network=NetworkConfig(hidden=(16,)), shared_torso=True,
        rewards=RewardConfig("none", clip=True), probes=ProbeConfig(every=0), optim=AdamConfig(),
        runs_dir=tmp_path,
    )  # fmt: skip
    summary = ppo.main(args)
    assert set(torch.cat(learned).unique().tolist()) == {0.0, 1.0}
    first, second = summary["visits"]
    assert (first["game"], first["end"]) == ("Asterix", 1024)
    assert (second["game"], second["end"]) == ("Breakout", 2048)
    assert first["return_at_end"] >= 50
    assert first["human_normalized"] == pytest.approx((first["return_at_end"] - 210) / (8503.3 - 210))
    (folder,) = {path.parent for path in tmp_path.rglob("summary.json")}
    assert json.loads((folder / "summary.json").read_text()) == summary
    points = scalars(folder)
    assert [step for step, _ in points["task/human_normalized"]] == [0, 1]
    assert all(step <= 1024 + 128 for step, _ in points["game/Asterix"])
    assert all(step > 1024 for step, _ in points.get("game/Breakout", []))
