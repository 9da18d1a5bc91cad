"""The same PPO three times: neoteny's, Stable-Baselines3's and a plain loop in the manner of CleanRL's.

All train the same networks on the same MiniGrid environment with as many environments, steps, epochs and
minibatches. Each function returns the wall and CPU seconds of every update but the first, (updates, 2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
import unittest.mock
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.wrappers import ImgObsWrapper
from torch import nn

from neoteny.agents import ppo
from neoteny.agents.networks import NetworkConfig, encoder, torso
from neoteny.envs import StreamConfig
from neoteny.optim import AdamConfig
from neoteny.runners.run import Run


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained."""

    view: Literal["flat", "image", "image, bf16"]
    """The view as a vector of 147 numbers, or as an image that passes two convolutions."""
    num_envs: int
    id: str = "MiniGrid-DoorKey-8x8-v0"
    epochs: int = 4
    minibatches: int = 4
    lr: float = 2.5e-4

    @property
    def num_steps(self) -> int:
        """Steps of each environment between updates."""
        return 128 if self.num_envs < 256 else 32

    @property
    def batch(self) -> int:
        """Steps between updates."""
        return self.num_envs * self.num_steps

    @property
    def network(self) -> NetworkConfig:
        """A torso for the policy and one for the value function."""
        return NetworkConfig(hidden=(64, 64), activation="relu", flat=self.view == "flat")

    def make(self) -> gym.Env:
        """One environment of the package."""
        return ImgObsWrapper(gym.make(self.id, disable_env_checker=True))


def now() -> tuple[float, float]:
    """Wall time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def neoteny(training: Training, updates: int) -> np.ndarray:
    """The agent as it is."""
    times = []
    log_update = Run.log_update

    def logged(run: Run, step: int, metrics: Mapping[str, float]) -> None:
        log_update(run, step, metrics)
        times.append(now())

    with tempfile.TemporaryDirectory() as folder:
        args = ppo.Args(
            stream=StreamConfig(training.id), network=training.network, num_envs=training.num_envs,
            num_steps=training.num_steps, epochs=training.epochs, minibatches=training.minibatches,
            total_steps=(updates + 1) * training.batch, lr=training.lr, probe_every=0, checkpoint_every=0,
            optim=AdamConfig(), amp="bf16" if "bf16" in training.view else "none", runs_dir=Path(folder),
            threads=torch.get_num_threads(),
        )  # fmt: skip
        with (
            unittest.mock.patch.object(Run, "log_update", logged),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            ppo.main(args)
    return np.diff(times, axis=0)


def plain(training: Training, updates: int) -> np.ndarray:
    """A loop as CleanRL's ppo.py writes it, which takes a truncated episode for a terminated one."""
    envs = SyncVectorEnv([training.make] * training.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = ppo.ActorCritic(envs, training.network)
    optimizer = torch.optim.Adam(agent.parameters(), lr=training.lr, eps=1e-5)
    shape = training.num_steps, training.num_envs
    obs = torch.zeros(*shape, *envs.single_observation_space.shape)  # type: ignore[misc]
    actions, logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(5))
    next_obs = torch.Tensor(envs.reset(seed=1)[0])
    next_done = torch.zeros(training.num_envs)
    times = []

    def act(x: torch.Tensor, action: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits, value = agent(x.to(torch.uint8))
        policy = torch.distributions.Categorical(logits=logits)
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), value

    for _ in range(updates + 1):
        for step in range(training.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = act(next_obs)
            values[step], actions[step], logprobs[step] = value, action, logprob
            new, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[step] = torch.tensor(reward)
            next_obs, next_done = torch.Tensor(new), torch.Tensor(terminated | truncated)
        with torch.no_grad():
            next_value = agent.value(next_obs.to(torch.uint8))
            advantages, lastgaelam = torch.zeros_like(rewards), torch.zeros(training.num_envs)
            for t in reversed(range(training.num_steps)):
                last = t == training.num_steps - 1
                nonterminal = 1.0 - (next_done if last else dones[t + 1])
                nextvalues = next_value if last else values[t + 1]
                delta = rewards[t] + 0.99 * nextvalues * nonterminal - values[t]
                advantages[t] = lastgaelam = delta + 0.99 * 0.95 * nonterminal * lastgaelam
            returns = advantages + values
        b_obs = obs.reshape(-1, *envs.single_observation_space.shape)  # type: ignore[misc]
        b_logprobs, b_actions = logprobs.reshape(-1), actions.reshape(-1)
        b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
        indices, clipfracs = np.arange(training.batch), []
        for _ in range(training.epochs):
            np.random.default_rng().shuffle(indices)
            for mb in np.split(indices, training.minibatches):
                _, newlogprob, entropy, newvalue = act(b_obs[mb], b_actions.long()[mb])
                logratio = newlogprob - b_logprobs[mb]
                ratio = logratio.exp()
                with torch.no_grad():
                    clipfracs.append(((ratio - 1.0).abs() > 0.2).float().mean().item())
                mb_advantages = b_advantages[mb]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                pg_loss1, pg_loss2 = -mb_advantages * ratio, -mb_advantages * ratio.clamp(0.8, 1.2)
                v_loss = 0.5 * ((newvalue - b_returns[mb]) ** 2).mean()
                loss = torch.max(pg_loss1, pg_loss2).mean() - 0.01 * entropy.mean() + 0.5 * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        times.append(now())
    envs.close()
    return np.diff(times, axis=0)


def stable_baselines(training: Training, updates: int) -> np.ndarray:
    """Stable-Baselines3's PPO."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv

    space = training.make().observation_space

    class Convolutions(BaseFeaturesExtractor):
        """The layers before the two hidden ones."""

        def __init__(self, flat: gym.spaces.Box) -> None:
            encode = encoder(space)
            layers = list(torso(encode, space, training.network).children())[:-4]
            outputs = nn.Sequential(encode, *layers)(torch.zeros(1, 7, 7, 3, dtype=torch.uint8)).shape[1]
            super().__init__(flat, outputs)
            self.layers = nn.Sequential(encode, *layers).to(memory_format=torch.contiguous_format)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            """Features, (B, features), of flat observations, (B, 147)."""
            return self.layers(observations.to(torch.uint8).view(-1, 7, 7, 3))

    class Stopwatch(BaseCallback):
        """Reads the clocks before each rollout: after each update."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[tuple[float, float]] = []

        def _on_rollout_start(self) -> None:
            self.times.append(now())

        def _on_step(self) -> bool:
            return True

    options: dict[str, Any] = {"net_arch": [64, 64]}
    if training.view != "flat":
        options |= {"features_extractor_class": Convolutions, "share_features_extractor": False}
    envs = DummyVecEnv([lambda: gym.wrappers.FlattenObservation(training.make())] * training.num_envs)
    model = PPO(
        "MlpPolicy", envs, training.lr, training.num_steps, training.batch // training.minibatches,
        training.epochs, ent_coef=0.01, device="cpu", policy_kwargs=options,
    )  # fmt: skip
    stopwatch = Stopwatch()
    model.learn((updates + 1) * training.batch, callback=stopwatch)
    envs.close()
    return np.diff([*stopwatch.times[1:], now()], axis=0)
