"""Deep Q-learning (Mnih et al., 2015) on a stream of tasks: double; dueling and n-step returns by flag.

python agents/dqn.py grid-layouts-small optim:adamo --optim.iso 1e-2 --seed 4
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from neoteny.runners.disk.preemption import end_at_signals

    end_at_signals()

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.agents.networks import Dueling, NetworkConfig, action_count, encoder_of, head, precision, torso
from neoteny.agents.rewards import RewardConfig, RewardTransform
from neoteny.configs.cli import launch
from neoteny.configs.dqn import PRESETS
from neoteny.envs import Step, Stream, StreamConfig
from neoteny.envs.engine import without_gradients
from neoteny.envs.observations import zeros
from neoteny.optim import AdamOConfig, Learner, Methods, OptimConfig, build_methods, heads
from neoteny.runners.args import RESUMABLE, RunArgs, check_multiple
from neoteny.runners.capture import Capture
from neoteny.runners.disk.exit_codes import bad_input, check_numbers
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.memory import check_minibatch, checked_weights
from neoteny.runners.probes import Probes
from neoteny.runners.replay import Batch, ReplayMemory
from neoteny.runners.run import Run


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """Deep Q-learning on a stream of tasks."""

    total_steps: int = dataclasses.field(default=196_608, metadata=RESUMABLE)
    """Environment steps of the whole run, summed over sub-environments (or see --stream.cycles)."""
    num_envs: int = 4
    """Number of sub-environments stepped in parallel (N)."""
    log_every: int = 1024
    """Environment steps per update: metrics are logged and checkpoints saved at the ends of updates only."""
    train_every: int = 8
    """Environment steps between two rounds of gradient steps."""
    gradient_steps: int = 2
    """Gradient steps per round; gradient_steps / train_every is the replay ratio."""
    batch_size: int = 64
    """Transitions per minibatch (B)."""
    learning_starts: int = 1024
    """Environment steps before the first gradient step."""
    buffer_size: int = 10_000
    """Capacity of the replay memory in environment steps; data from long-past tasks slows learning."""
    memory: Literal["disk", "device"] = "device"
    """Where the replay memory is kept: "device" holds it in tensors, which every checkpoint copies; "disk",
    for large ones, in memory-mapped files of the run's folder, which checkpoints need not copy."""
    lr: float = 5e-4
    """Learning rate, whichever optimizer is chosen."""
    gamma: float = 0.99
    """Discount factor of rewards."""
    n_step: int = 1
    """Steps of the n-step return before it bootstraps from the target network."""
    double: bool = True
    """Double Q-learning: the network chooses the next action, the target network evaluates it (van Hasselt
    et al., 2016)."""
    dueling: bool = False
    """Use a dueling head: one layer for the state value, one for the advantages (Wang et al., 2016)."""
    target_every: int = 250
    """Gradient steps between updates of the target network."""
    tau: float = 1.0
    """Step size of a target update: 1 copies the network, less is Polyak averaging."""
    eps_start: float = 1.0
    """Initial epsilon: the probability of a random action."""
    eps_end: float = 0.05
    """Final epsilon."""
    eps_steps: int = 10_000
    """Environment steps over which epsilon goes linearly from eps_start to eps_end."""
    eps_restart: bool = False
    """Restart the epsilon schedule at every task switch; this reveals switches to the agent."""
    max_grad_norm: float = 10.0
    """Clip the gradient to this norm."""
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)
    network: NetworkConfig = dataclasses.field(default_factory=lambda: NetworkConfig(hidden=(128, 128)))
    # Weights start with squared singular values of 2 (gain sqrt(2), for ReLU): pull towards that.
    optim: OptimConfig = dataclasses.field(default_factory=lambda: AdamOConfig(iso=0.05, iso_scale=2.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = (
            "total_steps", "num_envs", "log_every", "train_every", "gradient_steps", "batch_size",
            "buffer_size", "lr", "n_step", "target_every", "tau", "eps_steps", "max_grad_norm",
        )  # fmt: skip
        check_numbers(self, positive, above=0)
        check_numbers(self, ("n_step",), at_most=10_000)  # of a window in the replay memory
        check_numbers(self, ("gamma", "tau", "eps_start", "eps_end"), at_least=0, at_most=1)
        check_multiple("--train-every", self.train_every, "--num-envs", self.num_envs)
        check_multiple("--log-every", self.log_every, "--train-every", self.train_every)
        least = max(self.n_step * self.num_envs, self.batch_size)
        if not least <= self.learning_starts <= self.buffer_size:
            raise ValueError(
                f"--learning-starts must be at least {least}, which one gradient step needs, and at most "
                f"--buffer-size, {self.buffer_size}, not {self.learning_starts}"
            )
        steps = self.log_every // self.train_every * self.gradient_steps
        self.check_update(steps, "--log-every / --train-every * --gradient-steps")
        self.stream.check(self.num_envs)
        self.set_length(self.log_every, f"--log-every {self.log_every}")

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        found = super().unused()
        if self.target_every == 1 and self.tau == 1:
            found["double"] = "with --target-every 1 and --tau 1 both networks are the same"
        if self.gamma == 0:
            unused = ("double", "target_every", "tau")
            found |= dict.fromkeys(unused, "with --gamma 0 the target network is not used")
        found |= self.without_switches("eps_restart")
        if self.eps_start == self.eps_end:
            equal = f"--eps-start and --eps-end are both {self.eps_end}"
            found |= dict.fromkeys(("eps_steps", "eps_restart"), equal)
        return found


class QNetwork(nn.Module):
    """Maps observations to the values of all actions."""

    def __init__(
        self,
        stream: gym.vector.VectorEnv,
        network: NetworkConfig,
        dueling: bool = False,
        amp: Literal["none", "bf16"] = "none",
    ) -> None:
        super().__init__()
        self.amp = amp
        space, self.actions = stream.single_observation_space, action_count(stream)
        self.encode = encoder_of(stream)
        self.register_buffer("example", zeros(space, 1), persistent=False)
        self.torso = torso(self.encode, space, network)
        self.head = Dueling(network, self.actions) if dueling else head(network, self.actions, gain=1.0)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (B, ...) -> action values (B, A)."""
        with precision(self.amp, observations.device):
            return self.head(self.torso(self.encode(observations))).float()

    def act(self, observations: Tensor, epsilon: Tensor | float) -> Tensor:
        """Epsilon-greedy actions (B,)."""
        best = self(observations).argmax(1)
        chance = torch.rand(best.shape, device=best.device)
        return torch.where(chance < epsilon, torch.randint_like(best, self.actions), best)

    def parts(self) -> dict[str, nn.Module]:
        """The network: encoded observations (B, ...) -> its outputs, or the advantages if it is dueling."""
        last = self.head.advantage if isinstance(self.head, Dueling) else self.head
        return {"q": nn.Sequential(OrderedDict([*self.torso.named_children(), ("head", last)]))}


def make_policy(args: Args, stream: Stream) -> tuple[QNetwork, Callable[[Tensor], Tensor]]:
    """A new network for a stream, and how it acts in evaluations: observations (B, ...) -> actions (B,)."""
    agent = QNetwork(stream, args.network, args.dueling, args.amp).to(stream.device)
    return agent, lambda observations: agent.act(observations, args.eps_end)


def epsilon_at(step: int, start: float, end: float, steps: int) -> float:
    """Epsilon after ``step`` steps: linear from start to end over ``steps`` steps, then constant."""
    return start + (end - start) * min(1.0, step / steps)


@torch.no_grad()
def td_targets(agent: nn.Module, target: nn.Module, batch: Batch, double: bool) -> Tensor:
    """Targets of the taken actions' values, (B,): n-step returns bootstrapped from the target network.

    The next action is chosen by the network if ``double``, else by the target network.
    """
    values = target(batch.next_observations)
    choice = agent(batch.next_observations) if double else values
    return batch.returns + batch.discounts * values.gather(1, choice.argmax(1, keepdim=True)).squeeze(1)


def dqn_loss(values: Tensor, actions: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Huber loss of a minibatch of size B.

    Args:
        values: of all actions, (B, A), from the current network.
        actions: the actions taken, (B,).
        targets: of their values, (B,).
        weights: (B,), 0 for samples that are no transition, else 1.

    Returns:
        The loss, and (2,): the loss and the mean value of the actions taken.
    """
    taken = values.gather(1, actions[:, None]).squeeze(1)
    loss = (weights * F.smooth_l1_loss(taken, targets, reduction="none")).mean()
    return loss, torch.stack((loss.detach(), taken.detach().mean()))


STATS = ("losses/td_loss", "losses/q_values", "update/grad_norm")


def loss_of(agent: QNetwork, target: QNetwork, batch: Batch, args: Args) -> tuple[Tensor, Tensor]:
    """Loss of the network on a minibatch, and its statistics, as `dqn_loss` returns them."""
    targets = td_targets(agent, target, batch, args.double)
    return dqn_loss(agent(batch.observations), batch.actions, targets, batch.weights)


def update(
    agent: QNetwork, target: QNetwork, optimizer: Optimizer, methods: Methods, batch: Batch, args: Args,
    loss_of: Callable[..., tuple[Tensor, Tensor]] = loss_of,
) -> Tensor:  # fmt: skip
    """One gradient step on a minibatch; returns its statistics, those of `STATS`, (3,)."""
    loss, stats = loss_of(agent, target, batch, args)
    agent.zero_grad()
    (loss + methods.penalty(batch, loss)).backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    methods.add_gradients(batch)
    optimizer.step()
    methods.after_step()
    return torch.cat((stats, grad_norm[None]))


@torch.no_grad()
def update_target(target: nn.Module, agent: nn.Module, tau: float) -> None:
    """Polyak update of the target network's parameters: target += tau * (network - target)."""
    for of_target, of_agent in zip(target.parameters(), agent.parameters(), strict=True):
        of_target.lerp_(of_agent, tau)


def rollout_step(
    act: Callable[[Tensor, Tensor], Tensor], observations: Tensor, epsilon: Tensor,
    stream: Stream, transform: RewardTransform, memory: ReplayMemory, run: Run,
) -> Step:  # fmt: skip
    """Act in every sub-environment and store the transitions."""
    task = stream.task
    with without_gradients():
        actions = act(observations, epsilon)
    run.lap("act")
    step = stream.step_tensors(actions)
    run.lap("env")
    final = step.observations if step.final_observations is None else step.final_observations
    rewards = transform.observe(step.rewards, step.terminated | step.truncated)
    memory.add(observations, actions, rewards, step.terminated, step.truncated, final, task)
    return step


def epsilon_now(stream: Stream, args: Args) -> float:
    """Epsilon at the current step of the stream."""
    since = stream.schedule.switched_at(stream.steps) if args.eps_restart else 0
    return epsilon_at(stream.steps - since, args.eps_start, args.eps_end, args.eps_steps)


def gradient_steps(steps: int, args: Args) -> range:
    """Indices, from 0 on, of the gradient steps that are due after ``steps`` environment steps."""
    if steps < args.learning_starts:
        return range(0)
    first = (steps - args.learning_starts) // args.train_every * args.gradient_steps
    return range(first, first + args.gradient_steps)


def main(args: Args) -> dict[str, Any]:
    """Train; returns the run's summary."""
    device = args.set_up()

    def new_optimizer(agent: nn.Module) -> Optimizer:
        return args.optim.build(agent, args.lr, exclude=heads(agent))

    with bad_input(), checked_weights():
        stream = args.stream.make(args.num_envs, args.seed, device)
        agent, policy = make_policy(args, stream)
        check_minibatch(agent, args.batch_size, "--batch-size")
        target = copy.deepcopy(agent).requires_grad_(False)
        optimizer = new_optimizer(agent)
        learner = Learner(agent, optimizer, lambda: make_policy(args, stream)[0], target)
        methods = build_methods(args.methods, learner)
        transform = RewardTransform(args.rewards, args.num_envs, args.gamma, device)
        memory = ReplayMemory(
            args.buffer_size, args.num_envs, stream.single_observation_space, stream.single_action_space,
            stream.frame_stack, device,
            run_folder(__file__, args, optimizer) / "replay" if args.memory == "disk" else None,
            interval=max(16 * args.log_every, args.buffer_size // 64),
        )  # fmt: skip
        capture = Capture(device, args.graphs, args.compile)
        # On a GPU a whole step is captured, or only the network where environments or memory are on the host.
        on_device = stream.capturable and args.memory == "device"
        step = capture(rollout_step, stream, memory, methods, when=on_device)
        act = capture(agent.act, methods, when=not on_device)
        draw = capture(memory.sample, when=args.memory == "device")
        train = capture(update, optimizer, methods, compile=False)
        refresh = capture(update_target, methods, compile=False)
        compiled_loss = capture.compiled(loss_of)
        stream.reset()
    probes = Probes(args.probes, methods, new_optimizer)
    updates = args.total_steps // args.log_every
    planned = gradient_steps(updates * args.log_every, args).stop
    remarks = (f"{args.stream.id}: {stream}", args.report_length(args.log_every), methods.report(planned))
    run = Run(
        __file__, args, stream, updates * args.log_every, remarks, policy,
        methods=methods, agent=agent, target=target, optimizer=optimizer, memory=memory, rewards=transform,
    )  # fmt: skip
    observations = stream.observation
    if not stream.exact:
        memory.cut()
        transform.begin_episodes()

    for iteration in range(run.updates_made + 1, updates + 1):
        probes.begin(iteration)
        stats = []
        for _ in range(args.log_every // args.train_every):
            for _ in range(args.train_every // args.num_envs):
                epsilon = epsilon_now(stream, args)
                chance = torch.full((), epsilon, device=device)
                transform.enter(stream.task)
                stream.begin_step()
                made = step(act, observations, chance, stream, transform, memory, run)
                observations = made.observations
                run.record_episodes(stream.about_step, made.episodes)
                run.lap("replay")
            for number in gradient_steps(stream.steps, args):
                batch = draw(args.batch_size, args.n_step, args.gamma, transform.normalize)
                run.lap("replay")
                stats.append(train(agent, target, optimizer, methods, batch, args, compiled_loss).clone())
                methods.between_steps(batch)
                if number % args.target_every == 0:
                    refresh(target, agent, args.tau)
                run.lap("learn")

        losses = torch.stack(stats) if stats else torch.zeros(0, len(STATS))
        statistics = (dict(zip(STATS, losses.mean(0))) if stats else {}) | transform.statistics()
        observed = {"observations": observations.float(), **memory.newest(args.log_every // args.num_envs)}
        with run.end_update({**observed, "losses": losses, "weights": agent}, statistics) as metrics:
            metrics |= {"charts/epsilon": epsilon, "charts/learning_rate": args.lr}
            metrics |= methods.end_update(stream.schedule.switched_at(stream.steps))
            if probes.due:
                metrics |= probes.measure(memory.latest(args.probes.samples))
                metrics |= {f"replay/task_{task}": share for task, share in memory.tasks().items()}
                run.lap("probe")

    stream.close()
    return run.finish(agent)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
