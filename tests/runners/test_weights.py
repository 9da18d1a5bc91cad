"""The normalizer belongs to the policy: its statistics are in the final weights, and a stream keeps them."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation
from safetensors.torch import load_file

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig
from neoteny.envs.config import ENGINES
from neoteny.envs.schedule import Schedule
from neoteny.envs.stream import Stream
from neoteny.optim import AdamConfig
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.replay import ReplayMemory
from neoteny.runners.run import Run
from neoteny.runners.weights import load_policy


def small(folder, agent, normalizer):
    flags = {
        ppo: {"num_steps": 32, "minibatches": 2, "epochs": 1},
        dqn: {"learning_starts": 64, "log_every": 64, "batch_size": 16},
    }
    return agent.Args(
        total_steps=512, num_envs=4, network=NetworkConfig(hidden=(8,)), optim=AdamConfig(), runs_dir=folder,
        stream=StreamConfig("cartpole-drift-small", normalizer=normalizer),
        probes=ProbeConfig(every=0, pictures=False), **flags[agent],
    )  # fmt: skip


@pytest.mark.parametrize("agent", [ppo, dqn])
def test_a_finished_run_can_be_used_with_its_normalizer(agent, tmp_path, monkeypatch):
    finished = []
    finish = Run.finish
    monkeypatch.setattr(
        Run, "finish", lambda run, network: finished.append((run, network)) or finish(run, network)
    )
    args = small(tmp_path, agent, "keep")
    agent.main(args)
    (run, network), path = finished[0], finished[0][0].folder / "checkpoint" / "weights.safetensors"
    lived = run.stream.preprocessing.normalizer
    assert int(load_file(path)["normalizer.count"]) == lived.count == 512 + 4

    stream = args.stream.make(4, seed=7, device="cpu")
    copy = {ppo: ppo.ActorCritic, dqn: dqn.QNetwork}[agent](stream, args.network)
    load_policy(path, copy, stream)
    raw = torch.randn(32, 4)
    torch.testing.assert_close(stream.preprocess(raw), run.stream.preprocess(raw), rtol=0, atol=0)
    outputs = [net(stream.preprocess(raw)) for net in (network, copy)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for _ in range(2):
        stream.reset()
        assert stream.preprocessing.normalizer.count >= lived.count
        torch.testing.assert_close(stream.preprocess(raw), run.stream.preprocess(raw), rtol=0.1, atol=0.1)


def test_weights_and_stream_must_fit(tmp_path):
    args = small(tmp_path, ppo, "none")
    ppo.main(args)
    (path,) = tmp_path.rglob("weights.safetensors")
    assert not any(name.startswith("normalizer") for name in load_file(path))
    stream = small(tmp_path, ppo, "keep").stream.make(4, device="cpu")
    with pytest.raises(ValueError, match="has no statistics of a normalizer, unlike the stream"):
        load_policy(path, ppo.ActorCritic(stream, args.network), stream)


def test_without_loaded_statistics_a_reset_starts_anew():
    stream = StreamConfig("cartpole-drift-small", normalizer="keep").make(2, device="cpu")
    first, _ = stream.reset()
    for _ in range(50):
        stream.step(stream.action_space.sample())
    again, _ = stream.reset()
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    stream.load_state_dict(stream.state_dict())
    count = int(stream.preprocessing.normalizer.count)
    stream.reset()
    assert stream.preprocessing.normalizer.count == count + 2


def test_replay_gives_stacks_of_frames_as_they_were_seen():
    """The statistics of a frame depend on its place in the stack, and move while it is in the memory."""

    def task(k, seed):
        return FrameStackObservation(gym.make("CartPole-v1"), 3, padding_type="zero")

    stream = Stream(task, Schedule(), ENGINES, 2, seed=1, device="cpu", normalizer="keep")
    memory = ReplayMemory(
        64, 2, stream.single_observation_space, stream.single_action_space, stream.frame_stack,
        torch.device("cpu"), None,
    )  # fmt: skip
    memory.open()
    observation, _ = stream.reset()
    seen = []
    for _ in range(24):
        actions = torch.as_tensor(stream.action_space.sample())
        after, reward, terminated, truncated, info = stream.step(actions)
        final = info.get("final_obs", after)
        memory.add(observation, actions, reward, terminated, truncated, final)
        seen += observation.tolist()
        observation = after
    known = {tuple(np.ravel(stack).round(5)) for stack in seen}
    sampled = memory.sample(64).observations.tolist()
    assert {tuple(np.ravel(stack).round(5)) for stack in sampled} <= known


def test_raw_frames_are_still_stored_once():
    make = functools.partial(FrameStackObservation, stack_size=3, padding_type="zero")
    options = {"engines": ENGINES, "num_envs": 2, "device": "cpu"}
    stream = Stream(lambda k, seed: make(gym.make("CartPole-v1")), Schedule(), **options)
    assert stream.frame_stack == 3
