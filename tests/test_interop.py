"""Other people's code runs on our streams: Stable-Baselines3, Gymnasium's registry and vector wrappers."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics

from neoteny.envs import Stream, StreamConfig


def rollout(env, steps=300):
    """What a vector environment returns under fixed random actions, step by step."""
    rng = np.random.default_rng(0)
    env.reset()
    return [env.step(rng.integers(2, size=env.num_envs)) for _ in range(steps)]


def switching(**options):
    """CartPole on three planets, a hundred steps of three sub-environments on each."""
    return StreamConfig("cartpole-gravity", period=300).make(num_envs=3, seed=1, **options)


def adapted(stream, base):
    """A stream as a vector environment of Stable-Baselines3 (its ``base`` class), which keeps notes."""

    class Adapted(base):
        def __init__(self):
            super().__init__(stream.num_envs, stream.single_observation_space, stream.single_action_space)
            self.returns, self.switches = [], []

        def reset(self):
            self.observations = stream.reset()[0]
            return self.observations

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            before, task = self.observations, stream.task
            self.observations, rewards, terminated, truncated, info = stream.step(self.actions)
            done = terminated | truncated
            infos = [{"TimeLimit.truncated": bool(cut)} for cut in truncated & ~terminated]
            for i in np.flatnonzero(done):
                infos[i]["terminal_observation"] = info["final_obs"][i]
            if "episode_return" in info:
                self.returns += [(task, total) for total in info["episode_return"][info["_episode_return"]]]
            if stream.task != task:
                self.switches.append((task, before, self.actions, self.observations, terminated, done, infos))
            return self.observations, rewards, done, infos

        def close(self):
            stream.close()

        def get_attr(self, attr_name, indices=None):
            return [getattr(stream, attr_name)] * self.num_envs

        def set_attr(self, attr_name, value, indices=None):
            raise NotImplementedError

        def env_method(self, method_name, *args, indices=None, **kwargs):
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * self.num_envs

    return Adapted()


def test_ppo_of_stable_baselines3_learns_on_a_stream():
    sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    stream = StreamConfig("cartpole-gravity", period=8192).make(num_envs=8, seed=1)
    env = adapted(stream, sb3.common.vec_env.VecEnv)
    model = sb3.PPO("MlpPolicy", env, 1e-3, n_steps=64, batch_size=128, n_epochs=6, seed=1, device="cpu")
    model.learn(16_384)

    drawn = [info for *_, info in rollout(switching()) if "episode_return" in info]
    random = np.mean([total for info in drawn for total in info["episode_return"][info["_episode_return"]]])
    for task in (0, 1):
        returns = [total for of, total in env.returns if of == task]
        assert np.mean(returns[-30:]) > 4 * random
        assert all(total == int(total) for total in returns)  # the values SB3 adds to rewards are not in them

    assert [task for task, *_ in env.switches] == [0, 1]
    for task, before, actions, after, terminated, done, infos in env.switches:
        assert done.all()
        assert [info["TimeLimit.truncated"] for info in infos] == (~terminated).tolist()
        assert not terminated.all()
        ends = np.stack([info["terminal_observation"] for info in infos])
        np.testing.assert_allclose(ends, one_step(stream.make_task(task, 1), before, actions), atol=1e-5)
        other = one_step(stream.make_task(task + 1, 1), before, actions)
        assert np.abs(ends - other).max() > 1e-4  # in the next task the same step leads elsewhere
        assert np.abs(after).max() <= 0.05  # where CartPole starts


def one_step(env, observations, actions):
    """Where CartPole goes from each of some observations."""
    ends = []
    for observation, action in zip(observations, actions):
        env.reset(seed=0)
        env.unwrapped.state = observation.astype(np.float64)
        ends.append(env.step(int(action))[0])
    return np.stack(ends)


def test_the_registry_makes_streams():
    env = gym.make_vec("cartpole-rotations", num_envs=3)
    assert isinstance(env, Stream)
    assert env.spec.id == "cartpole-rotations"
    assert (env.num_envs, env.schedule.period) == (3, 16_384)
    ours = StreamConfig("cartpole-rotations").make(3)
    for (a, *_), (b, *_) in zip(rollout(env, 30), rollout(ours, 30)):
        np.testing.assert_array_equal(a, b)
    assert gym.make_vec("cartpole-rotations", num_envs=2, seed=7).seed == 7


def test_episode_statistics_equal_gymnasiums():
    env, lengths, cut = RecordEpisodeStatistics(switching()), 0, 0
    for step, (*_, info) in enumerate(rollout(env), start=1):
        ours = info.get("_episode_return", np.zeros(3, bool))
        theirs = info.get("_episode", np.zeros(3, bool))
        if ours.any():
            np.testing.assert_array_equal(info["episode"]["r"][ours], info["episode_return"][ours])
            np.testing.assert_array_equal(info["episode"]["l"][ours], info["episode_length"][ours])
        if theirs.any():
            lengths += info["episode"]["l"].sum()
        if step % 100:
            np.testing.assert_array_equal(theirs, ours)
        else:  # the last step of a task: Gymnasium counts what is unfinished too, and starts again at 0
            assert theirs.all()
            cut += (theirs & ~ours).sum()
            assert lengths == 3 * step
    assert cut > 3


def test_rewards_are_normalized_by_gymnasium_with_nothing_carried_through_a_switch():
    gamma, sums = 0.9, []
    env = NormalizeReward(switching(), gamma)
    running, out = np.zeros(3), rollout(env)
    for _, _, terminated, truncated, _ in out:
        running = running * gamma * ~terminated + 1  # CartPole pays 1; Gymnasium forgets before a termination
        sums.append(running.copy())
        running[terminated | truncated] = 0
    assert out[-1][1] == pytest.approx(1 / np.std(sums), rel=1e-4)
    assert env.return_rms.mean == pytest.approx(np.mean(sums), rel=1e-4)
    assert env.return_rms.var == pytest.approx(np.var(sums), rel=1e-4)


def test_observations_are_normalized_by_the_stream_where_gymnasium_refuses_to():
    # none of Gymnasium's observation wrappers changes final_obs, so all of them refuse SAME_STEP
    with pytest.raises(ValueError, match=r"Expected autoreset_mode .* got AutoresetMode\.SAME_STEP"):
        NormalizeObservation(switching())

    config = StreamConfig("cartpole-gravity", period=300, normalizer="keep")
    raw, normalized = switching(), config.make(num_envs=3, seed=1)
    statistics = RunningMeanStd(epsilon=1e-12, shape=(4,))
    seen = [raw.reset()[0]]
    statistics.update(seen[0])

    def by_gymnasium(observations):
        return (observations - statistics.mean) / np.sqrt(statistics.var)

    for plain, ours in zip(rollout(raw), rollout(normalized)):
        if "final_obs" in plain[-1]:  # by what was seen before the episode ended, and not counted itself
            ended = plain[-1]["_final_obs"]
            expected = by_gymnasium(plain[-1]["final_obs"][ended])
            np.testing.assert_allclose(ours[-1]["final_obs"][ended], expected, rtol=1e-4, atol=1e-5)
        seen.append(plain[0])
        statistics.update(plain[0])
        np.testing.assert_allclose(ours[0], by_gymnasium(plain[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.mean, np.mean(seen, axis=(0, 1)), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(statistics.var, np.var(seen, axis=(0, 1)), rtol=1e-5)
