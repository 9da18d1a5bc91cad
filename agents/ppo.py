"""Proximal policy optimization (Schulman et al., 2017) on a stream of tasks, for discrete actions.

python agents/ppo.py grid-layouts optim:adamo --optim.iso 1e-2 --seed 4
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from neoteny.runners.disk.preemption import end_at_signals

    end_at_signals()

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.agents.networks import NetworkConfig, action_count, encoder_of, head, precision, torso, zeros
from neoteny.agents.rewards import RewardConfig, RewardTransform
from neoteny.configs.cli import launch
from neoteny.configs.ppo import PRESETS
from neoteny.envs import Step, Stream, StreamConfig
from neoteny.envs.engine import without_gradients
from neoteny.optim import AdamOConfig, Learner, Methods, OptimConfig, build_methods, heads, set_learning_rate
from neoteny.runners.args import RESUMABLE, RunArgs, check_multiple
from neoteny.runners.capture import Capture
from neoteny.runners.disk.exit_codes import bad_input, check_numbers
from neoteny.runners.memory import check_minibatch, checked_weights
from neoteny.runners.probes import Probes
from neoteny.runners.rollout import Batch, Rollout, select
from neoteny.runners.run import Run


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """PPO on a stream of tasks."""

    total_steps: int = dataclasses.field(default=393_216, metadata=RESUMABLE)
    """Environment steps of the whole run, summed over sub-environments (or see --stream.cycles)."""
    num_envs: int = 16
    """Number of sub-environments stepped in parallel (N)."""
    num_steps: int = 64
    """Steps per sub-environment in each rollout (T)."""
    epochs: int = 6
    """Passes over each rollout in one update."""
    minibatches: int = 4
    """Minibatches per epoch."""
    lr: float = 1e-3
    """Learning rate, whichever optimizer is chosen."""
    anneal_lr: bool = False
    """Decay the learning rate linearly to 0; on a lifelong stream this is itself a loss of plasticity."""
    gamma: float = 0.99
    """Discount factor of rewards."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation (GAE)."""
    clip: float = 0.2
    """Clip the probability ratio to 1 - clip and 1 + clip."""
    ent_coef: float = 0.01
    """Coefficient of the entropy bonus in the loss."""
    vf_coef: float = 0.5
    """Coefficient of the value loss."""
    max_grad_norm: float = 0.5
    """Clip the gradient to this norm."""
    shared_torso: bool = False
    """Share one torso between policy and value function instead of one each."""
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    # Weights start with squared singular values of 2 (gain sqrt(2), for ReLU): pull towards that.
    optim: OptimConfig = dataclasses.field(default_factory=lambda: AdamOConfig(iso=0.1, iso_scale=2.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("total_steps", "num_envs", "num_steps", "epochs", "minibatches")
        check_numbers(self, (*sizes, "lr", "clip", "max_grad_norm"), above=0)
        check_numbers(self, ("ent_coef", "vf_coef"), at_least=0)
        check_numbers(self, ("gamma", "gae_lambda"), at_least=0, at_most=1)
        size = self.num_envs * self.num_steps
        check_multiple("--num-envs * --num-steps", size, "--minibatches", self.minibatches)
        if size == self.minibatches:
            raise ValueError(f"--minibatches {size}: the advantage of one transition cannot be normalized")
        self.check_update(self.epochs * self.minibatches, "--epochs * --minibatches")
        self.stream.check(self.num_envs)
        self.set_length(size, f"--num-envs {self.num_envs} * --num-steps {self.num_steps}")

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        found = super().unused() | self.without_switches()
        if self.epochs * self.minibatches == 1:
            found["clip"] = "with one gradient step per update the probability ratio is always 1"
        if self.num_steps == 1 or self.gamma == 0:
            found["gae_lambda"] = "with --num-steps 1 or --gamma 0 later advantages are not used"
        return found


class ActorCritic(nn.Module):
    """A policy and a value function of encoded observations, with separate torsos or a shared one."""

    def __init__(
        self,
        stream: gym.vector.VectorEnv,
        network: NetworkConfig,
        shared_torso: bool = False,
        amp: Literal["none", "bf16"] = "none",
    ) -> None:
        super().__init__()
        self.amp = amp
        space = stream.single_observation_space
        self.encode = encoder_of(stream)
        self.register_buffer("example", zeros(space, 1), persistent=False)
        self.shared = torso(self.encode, space, network) if shared_torso else nn.Identity()
        self.actor = nn.Sequential() if shared_torso else torso(self.encode, space, network)
        self.critic = nn.Sequential() if shared_torso else torso(self.encode, space, network)
        self.actor.add_module("head", head(network, action_count(stream), gain=0.01))
        self.critic.add_module("head", head(network, 1, gain=1.0))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, ...) -> logits (B, A) and values (B,)."""
        with precision(self.amp, observations.device):
            features = self.shared(self.encode(observations))
            logits, values = self.actor(features), self.critic(features)
        return logits.float(), values.float().squeeze(1)

    def act(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled actions (B,), their log-probabilities (B,) and the values (B,)."""
        logits, values = self(observations)
        log_probs = F.log_softmax(logits, dim=1)
        # As torch.multinomial does, without its check, which synchronizes and aborts the program on a NaN.
        actions = (log_probs.exp() / torch.empty_like(log_probs).exponential_()).argmax(1, keepdim=True)
        return actions.squeeze(1), log_probs.gather(1, actions).squeeze(1), values

    def evaluate(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (B,) of actions (B,), entropies (B,) of the policy, and values (B,)."""
        logits, values = self(observations)
        log_probs = F.log_softmax(logits, dim=1)
        of_actions = log_probs.gather(1, actions[:, None]).squeeze(1)
        return of_actions, -(log_probs.exp() * log_probs).sum(1), values

    def value(self, observations: Tensor) -> Tensor:
        """Values (B,)."""
        with precision(self.amp, observations.device):
            values = self.critic(self.shared(self.encode(observations)))
        return values.float().squeeze(1)

    def parts(self) -> dict[str, nn.Module]:
        """Actor and critic, each with its torso: encoded observations (B, ...) -> outputs."""
        shared = list(self.shared.named_children())
        own = {"actor": self.actor.named_children(), "critic": self.critic.named_children()}
        return {name: nn.Sequential(OrderedDict([*shared, *layers])) for name, layers in own.items()}


def make_policy(args: Args, stream: Stream) -> tuple[ActorCritic, Callable[[Tensor], Tensor]]:
    """A new network for a stream, and how it acts in evaluations: observations (B, ...) -> actions (B,)."""
    agent = ActorCritic(stream, args.network, args.shared_torso, args.amp).to(stream.device)
    return agent, lambda observations: agent.act(observations)[0]


def gae(
    rewards: Tensor,
    values: Tensor,
    done: Tensor,
    final_values: Tensor,
    next_value: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalized advantage estimation (Schulman et al., 2016), which bootstraps at truncations.

    Args:
        rewards: (T, N); ``values``, ``done`` and ``final_values`` too, as in `Rollout`.
        values: of the observations before each step.
        done: whether a step ended its episode.
        final_values: value of the final observation of truncated episodes, else 0.
        next_value: (N,), of the observations after the last step.
        gamma: discount factor.
        lam: the estimator's lambda.

    Returns:
        Advantages, (T, N).
    """
    next_values = torch.cat((values[1:], next_value[None]))
    running = 1.0 - done.float()
    deltas = rewards + gamma * (running * next_values + final_values) - values
    decays = gamma * lam * running
    advantage, advantages = torch.zeros_like(next_value), []
    for delta, decay in zip(reversed(deltas.unbind()), reversed(decays.unbind())):
        advantage = delta + decay * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


def ppo_loss(
    log_probs: Tensor,
    entropy: Tensor,
    values: Tensor,
    batch: Batch,
    clip: float,
    ent_coef: float,
    vf_coef: float,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate objective, value loss and entropy bonus of a minibatch of size B.

    Log-probabilities of the batch's actions, entropy and values, (B,), come from the current network; the
    batch's advantages are normalized here.

    Returns:
        The loss, and (5,): policy loss, value loss, entropy, approximate KL divergence, clipped fraction.
    """
    log_ratio = log_probs - batch.log_probs
    ratio = log_ratio.exp()
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    value_loss = 0.5 * (values - batch.returns).square().mean()
    mean_entropy = entropy.mean()
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clipfrac = ((ratio - 1).abs() > clip).float().mean()
        stats = torch.stack((policy_loss, value_loss, mean_entropy, approx_kl, clipfrac))
    return policy_loss - ent_coef * mean_entropy + vf_coef * value_loss, stats


LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")
STATS = (*(f"losses/{name}" for name in LOSSES), "update/grad_norm")


def loss_of(agent: ActorCritic, batch: Batch, args: Args) -> tuple[Tensor, Tensor]:
    """Loss of the current policy on a minibatch, and its statistics, as `ppo_loss` returns them."""
    log_probs, entropy, values = agent.evaluate(batch.observations, batch.actions)
    return ppo_loss(log_probs, entropy, values, batch, args.clip, args.ent_coef, args.vf_coef)


def update(
    agent: ActorCritic, optimizer: Optimizer, methods: Methods, batch: Batch, args: Args,
    loss_of: Callable[..., tuple[Tensor, Tensor]] = loss_of,
) -> Tensor:  # fmt: skip
    """One gradient step on a minibatch; returns its statistics, those of `STATS`, (6,)."""
    loss, stats = loss_of(agent, batch, args)
    agent.zero_grad()
    (loss + methods.penalty(batch, loss)).backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    methods.add_gradients(batch)
    optimizer.step()
    methods.after_step()
    return torch.cat((stats, grad_norm[None]))


def act(agent: ActorCritic, rollout: Rollout) -> Tensor:
    """Actions in every sub-environment, (N,), which are added to the rollout."""
    with without_gradients():
        actions, log_probs, values = agent.act(rollout.observation)
    rollout.add(actions=actions, log_probs=log_probs, values=values)
    return actions


def observe(
    agent: ActorCritic, step: Step, stream: Stream, transform: RewardTransform, rollout: Rollout
) -> None:
    """Add what followed the actions to the rollout."""
    done = step.terminated | step.truncated
    rewards = transform.observe(step.rewards, done)
    rollout.add(rewards=rewards, done=done)
    if step.final_observations is not None:
        rollout.add(final_values=final_values(agent, step.final_observations, step, stream))
    rollout.advance(step.observations)


def rollout_step(
    agent: ActorCritic, stream: Stream, transform: RewardTransform, rollout: Rollout, run: Run,
    act: Callable[..., Tensor] = act, observe: Callable[..., None] = observe,
) -> Step:  # fmt: skip
    """Act in every sub-environment and add the step to the rollout."""
    actions = act(agent, rollout)
    run.lap("act")
    step = stream.step_tensors(actions)
    observe(agent, step, stream, transform, rollout)
    return step


def final_values(agent: ActorCritic, final: Tensor, step: Step, stream: Stream) -> Tensor:
    """Values of the final observations, (N, ...), of episodes that a step truncated, (N,), else 0."""
    cut = step.truncated & ~step.terminated
    if not (final.is_floating_point() or stream.may_have(cut)):
        return torch.zeros_like(step.rewards)
    with without_gradients():
        values = agent.value(final) * cut
    if final.is_floating_point():  # all are checked: an activation may have hidden an infinity
        values = values + 0 * final.reshape(len(final), -1).abs().amax(1)
    return values


@torch.no_grad()
def estimate_advantages(agent: ActorCritic, rollout: Rollout, transform: RewardTransform, args: Args) -> None:
    """Compute the advantages and returns of a complete rollout."""
    next_value = agent.value(rollout.observations[-1])
    steps = (transform.normalize(rollout.rewards), rollout.values, rollout.done, rollout.final_values)
    rollout.advantages.copy_(gae(*steps, next_value, args.gamma, args.gae_lambda))
    torch.add(rollout.advantages, rollout.values, out=rollout.returns)


def average(stats: Tensor, values: Tensor, returns: Tensor) -> dict[str, Tensor]:
    """Means of the statistics of n gradient steps (n, 6), and the explained variance of the returns (B,)."""
    explained = 1 - (returns - values).var() / returns.var()
    return dict(zip((*STATS, "losses/explained_variance"), (*stats.mean(0), explained)))


def main(args: Args) -> dict[str, Any]:
    """Train; returns the run's summary."""
    device = args.set_up()

    def new_optimizer(agent: nn.Module) -> Optimizer:
        return args.optim.build(agent, args.lr, exclude=heads(agent))

    with bad_input(), checked_weights():
        stream = args.stream.make(args.num_envs, args.seed, device)
        rollout = Rollout.zeros(args.num_steps, stream, device)
        agent, policy = make_policy(args, stream)
        size = args.num_steps * args.num_envs
        check_minibatch(agent, size // args.minibatches, "--num-steps * --num-envs / --minibatches")
        optimizer = new_optimizer(agent)
        learner = Learner(agent, optimizer, lambda: make_policy(args, stream)[0])
        methods = build_methods(args.methods, learner)
        transform = RewardTransform(args.rewards, args.num_envs, args.gamma, device)
        capture = Capture(device, args.graphs, args.compile)
        # On a GPU a whole step is captured, or all but the environments if they are on the host.
        step = capture(rollout_step, stream, methods, when=stream.capturable)
        before = capture(act, methods, when=not stream.capturable)
        after = capture(observe, methods, when=not stream.capturable, compile=False)
        estimate = capture(estimate_advantages, methods, compile=False)
        draw = capture(select, compile=device.type == "cuda")  # slower on a CPU
        train = capture(update, optimizer, methods, compile=False)
        compiled_loss = capture.compiled(loss_of)
        stream.reset()
    probes = Probes(args.probes, methods, new_optimizer)
    updates = args.total_steps // size
    planned = updates * args.epochs * args.minibatches
    remarks = (f"{args.stream.id}: {stream}", args.report_length(size), methods.report(planned))
    run = Run(
        __file__, args, stream, updates * size, remarks, policy,
        methods=methods, agent=agent, optimizer=optimizer, rewards=transform,
    )  # fmt: skip
    if not stream.exact:
        transform.begin_episodes()
    rollout.observations[-1] = stream.observation
    batch = rollout.flat()

    for iteration in range(run.updates_made + 1, updates + 1):
        lr = args.lr * (1 - (iteration - 1) / updates) if args.anneal_lr else args.lr
        if args.anneal_lr:
            set_learning_rate(optimizer, lr)
        rollout.begin()
        for _ in range(args.num_steps):
            transform.enter(stream.task)
            stream.begin_step()
            made = step(agent, stream, transform, rollout, run, before, after)
            run.record_episodes(stream.about_step, made.episodes)
            run.lap("env")
        estimate(agent, rollout, transform, args)

        probes.begin(iteration)
        stats = []
        for _ in range(args.epochs):
            for chosen in torch.randperm(size, device=device).chunk(args.minibatches):
                minibatch = draw(batch, chosen)
                stats.append(train(agent, optimizer, methods, minibatch, args, compiled_loss).clone())
                methods.between_steps(minibatch)
        run.lap("learn")

        losses = torch.stack(stats)
        statistics = average(losses, rollout.values.flatten(), batch.returns) | transform.statistics()
        observed = rollout.observed()
        with run.end_update({**observed, "losses": losses, "weights": agent}, statistics) as metrics:
            metrics |= {"charts/learning_rate": lr}
            metrics |= methods.end_update(stream.schedule.switched_at(stream.steps))
            if probes.due:
                metrics |= probes.measure(batch.observations)
                run.lap("probe")

    stream.close()
    return run.finish(agent)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
