"""PPO and DQN as plain loops, like CleanRL's: what neoteny's speed and learning are compared with.

They step environments one by one and treat truncated episodes as terminated ones, as CleanRL does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn

OnEpisode = Callable[[int, float], None]
"""Called at the end of each episode with the steps of the run so far and the episode's return."""


@dataclasses.dataclass(frozen=True)
class PlainPPO:
    """Settings of PPO, by default those of CleanRL's ppo.py."""

    num_envs: int = 4
    num_steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    lr: float = 2.5e-4
    anneal_lr: bool = True
    clip_values: bool = True


@dataclasses.dataclass(frozen=True)
class PlainDQN:
    """Settings of DQN, by default those of CleanRL's dqn.py."""

    lr: float = 2.5e-4
    buffer_size: int = 10_000
    batch_size: int = 128
    learning_starts: int = 10_000
    train_every: int = 10
    target_every: int = 500
    exploration: float = 0.5
    """Share of the run in which epsilon falls from 1 to 0.05."""


def layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A linear layer with an orthogonal weight times ``gain``."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class TanhActorCritic(nn.Module):
    """CleanRL's networks of policy and value function for vectors: two layers of 64 tanh units each."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.actor, self.critic = (
            nn.Sequential(
                layer(inputs, 64, 2**0.5),
                nn.Tanh(),
                layer(64, 64, 2**0.5),
                nn.Tanh(),
                layer(64, outputs, gain),
            )
            for outputs, gain in ((actions, 0.01), (1, 1.0))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, D) -> logits (B, A), values (B,)."""
        return self.actor(x), self.critic(x).squeeze(1)


def ppo_loop(
    make: Callable[[], gym.Env],
    agent: Callable[[Tensor], tuple[Tensor, Tensor]],
    parameters: list[nn.Parameter],
    settings: PlainPPO,
    updates: int,
    seed: int = 1,
    on_update: Callable[[], None] = lambda: None,
    on_episode: OnEpisode | None = None,
) -> None:
    """Train PPO.

    Args:
        make: makes an environment.
        agent: observations (B, ...) -> logits (B, A), values (B,).
        parameters: of the agent.
        settings: see `PlainPPO`.
        updates: number of updates.
        seed: of the environments.
        on_update: called after each update.
        on_episode: see `OnEpisode`.
    """
    envs: gym.vector.VectorEnv = SyncVectorEnv(
        [make] * settings.num_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )
    if on_episode:
        envs = RecordEpisodeStatistics(envs)
    space = envs.single_observation_space
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, eps=1e-5)
    shape = settings.num_steps, settings.num_envs
    batch = settings.num_steps * settings.num_envs
    obs = torch.zeros(*shape, *space.shape)  # type: ignore[misc]
    actions, logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(5))
    next_obs = torch.Tensor(envs.reset(seed=seed)[0])
    next_done = torch.zeros(settings.num_envs)
    shuffle = np.random.default_rng(seed)
    steps = 0

    def act(x: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        logits, value = agent(x)
        policy = torch.distributions.Categorical(logits=logits)
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), value

    for update in range(updates):
        if settings.anneal_lr:
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - update / updates)
        for step in range(settings.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = act(next_obs)
            values[step], actions[step], logprobs[step] = value, action, logprob
            new, reward, terminated, truncated, infos = envs.step(action.numpy())
            steps += settings.num_envs
            rewards[step] = torch.tensor(reward)
            next_obs, next_done = torch.Tensor(new), torch.Tensor(terminated | truncated)
            if on_episode and "episode" in infos:
                for episode_return in infos["episode"]["r"][infos["_episode"]]:
                    on_episode(steps, float(episode_return))
        with torch.no_grad():
            next_value = agent(next_obs)[1]
            advantages, lastgaelam = torch.zeros_like(rewards), torch.zeros(settings.num_envs)
            for t in reversed(range(settings.num_steps)):
                last = t == settings.num_steps - 1
                nonterminal = 1.0 - (next_done if last else dones[t + 1])
                nextvalues = next_value if last else values[t + 1]
                delta = rewards[t] + 0.99 * nextvalues * nonterminal - values[t]
                advantages[t] = lastgaelam = delta + 0.99 * 0.95 * nonterminal * lastgaelam
            returns = advantages + values
        b_obs = obs.reshape(-1, *space.shape)  # type: ignore[misc]
        b_logprobs, b_actions, b_values = logprobs.reshape(-1), actions.reshape(-1), values.reshape(-1)
        b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
        indices, clipfracs = np.arange(batch), []
        for _ in range(settings.epochs):
            shuffle.shuffle(indices)
            for mb in np.split(indices, settings.minibatches):
                _, newlogprob, entropy, newvalue = act(b_obs[mb], b_actions.long()[mb])
                logratio = newlogprob - b_logprobs[mb]
                ratio = logratio.exp()
                with torch.no_grad():
                    clipfracs.append(((ratio - 1.0).abs() > 0.2).float().mean().item())
                mb_advantages = b_advantages[mb]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                pg_loss1, pg_loss2 = -mb_advantages * ratio, -mb_advantages * ratio.clamp(0.8, 1.2)
                v_loss = (newvalue - b_returns[mb]) ** 2
                if settings.clip_values:
                    clipped = b_values[mb] + (newvalue - b_values[mb]).clamp(-0.2, 0.2)
                    v_loss = torch.max(v_loss, (clipped - b_returns[mb]) ** 2)
                loss = torch.max(pg_loss1, pg_loss2).mean() - 0.01 * entropy.mean() + 0.25 * v_loss.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        on_update()
    envs.close()


def dqn_loop(
    make: Callable[[], gym.Env],
    steps: int,
    seed: int,
    on_episode: OnEpisode,
    settings: PlainDQN = PlainDQN(),
) -> None:
    """Train DQN with CleanRL's network, 120 and 84 units, on an environment with vectors."""
    env = gym.wrappers.RecordEpisodeStatistics(make())
    inputs, actions = int(np.prod(env.observation_space.shape)), int(env.action_space.n)  # type: ignore[arg-type,attr-defined]
    network = nn.Sequential(
        nn.Linear(inputs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions)
    )
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    rng = np.random.default_rng(seed)
    size = settings.buffer_size
    seen, after = torch.zeros(size, inputs), torch.zeros(size, inputs)
    taken, rewards, ended = torch.zeros(size, dtype=torch.int64), torch.zeros(size), torch.zeros(size)
    observation = torch.as_tensor(env.reset(seed=seed)[0]).float().flatten()
    for step in range(steps):
        epsilon = max(0.05, 1 - 0.95 * step / (settings.exploration * steps))
        action = int(rng.integers(actions))
        if rng.random() >= epsilon:
            with torch.no_grad():
                action = int(network(observation).argmax())
        new, reward, terminated, truncated, info = env.step(action)
        place = step % size
        seen[place], taken[place], rewards[place] = observation, action, float(reward)
        observation = torch.as_tensor(new).float().flatten()
        after[place], ended[place] = observation, float(terminated)
        if terminated or truncated:
            on_episode(step + 1, float(info["episode"]["r"]))
            observation = torch.as_tensor(env.reset()[0]).float().flatten()
        if step > settings.learning_starts:
            if step % settings.train_every == 0:
                mb = torch.as_tensor(rng.integers(min(step + 1, size), size=settings.batch_size))
                with torch.no_grad():
                    values = rewards[mb] + 0.99 * target(after[mb]).max(1).values * (1 - ended[mb])
                loss = F.mse_loss(network(seen[mb]).gather(1, taken[mb, None]).squeeze(1), values)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if step % settings.target_every == 0:
                target.load_state_dict(network.state_dict())
    env.close()
