"""Supervised learning on a stream of tasks: classification or regression, by minibatches.

python agents/supervised.py digits-random-labels optim:adamo --optim.iso 0.3 --seed 4
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from neoteny.runners.disk.preemption import end_at_signals

    end_at_signals()

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from neoteny.agents.networks import NetworkConfig, head, hidden_layers, precision
from neoteny.agents.supervised_together import train_together
from neoteny.agents.vit import VisionTransformer
from neoteny.configs.cli import launch
from neoteny.configs.supervised import PRESETS
from neoteny.envs.supervised import Batch, SupervisedStream, SupervisedStreamConfig
from neoteny.optim import AdamOConfig, Learner, Methods, OptimConfig, build_methods, heads
from neoteny.runners.args import RESUMABLE, RunArgs
from neoteny.runners.capture import Capture
from neoteny.runners.disk.exit_codes import bad_input, check_numbers
from neoteny.runners.memory import check_minibatch, checked_weights
from neoteny.runners.probes import NextTask, Probes
from neoteny.runners.rollout import select
from neoteny.runners.run import Run
from neoteny.runners.together import Together, check_together

KERNELS = {"mlp": [], "cnn": [(32, 3, 1), (32, 3, 1), (32, 3, 2)]}
"""Width, kernel size and stride of the convolutions of each kind of network but vision transformers."""


@dataclasses.dataclass(frozen=True)
class SupervisedNetworkConfig(NetworkConfig):
    """Layers and activations of the network."""

    kind: Literal["mlp", "cnn", "vit"] = "mlp"
    """Linear layers only, three convolutions first, or a vision transformer."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Output widths of the hidden linear layers, counted after the activation; of a vision transformer, the
    widths of its blocks, which must be equal."""
    patch: int = 4
    """Pixels of a side of a vision transformer's patches."""
    heads: int = 4
    """Attention heads of each of its blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ("patch", "heads"), at_least=1, prefix="network.")

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others -> why."""
        why = f"it is for --network.kind vit, not {self.kind}"
        return {} if self.kind == "vit" else dict.fromkeys(("patch", "heads"), why)


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """Supervised learning on a stream of tasks."""

    seeds: tuple[int, ...] = ()
    """Train these seeds together, faster than one by one: in one process, each in a folder as of `--seed`.
    The results are those of separate runs but for rounding."""
    num_tasks: int = dataclasses.field(default=40, metadata=RESUMABLE)
    """Tasks of the run, one after the other."""
    batch_size: int = 32
    """Samples of a gradient step (B)."""
    lr: float = 1e-3
    """Learning rate, whichever optimizer is chosen."""
    max_grad_norm: float | None = None
    """Clip the gradient to this norm; None does not."""
    stream: SupervisedStreamConfig = dataclasses.field(
        default_factory=lambda: SupervisedStreamConfig(samples=640)
    )
    network: SupervisedNetworkConfig = dataclasses.field(default_factory=SupervisedNetworkConfig)
    # Weights start with squared singular values of 2 (gain sqrt(2), for ReLU): pull towards that.
    optim: OptimConfig = dataclasses.field(default_factory=lambda: AdamOConfig(iso=0.1, iso_scale=2.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped = [] if self.max_grad_norm is None else ["max_grad_norm"]
        check_numbers(self, ("num_tasks", "batch_size", "lr", *clipped), above=0)
        check_together(self.seeds, self.methods)
        self.stream.check()

    def unused(self) -> dict[str, str]:
        """Flags that have no effect with the current values of the others: name -> reason."""
        why = "there are no episodes; what is held out is validated at the end of each task"
        found = super().unused() | dict.fromkeys(("video_every", "evaluate_at_switch"), why)
        if self.seeds:
            found["seed"] = "--seeds are trained"
            found |= dict.fromkeys(("graphs", "compile"), "gradients of --seeds are one graph already")
        return found


class Classifier(nn.Module):
    """A network from inputs, standardized by the mean and deviation of all training inputs, to outputs.

    Outputs are the logits of classes, or the values of a regression.
    """

    def __init__(
        self,
        stream: SupervisedStream,
        network: SupervisedNetworkConfig,
        amp: Literal["none", "bf16"] = "none",
    ) -> None:
        super().__init__()
        self.amp = amp
        inputs = stream.dataset.inputs
        if network.kind == "cnn" and (inputs.dim() != 4 or min(inputs.shape[2:]) < 7):
            shape = "x".join(map(str, inputs.shape[1:]))
            raise ValueError(f"--network.kind cnn needs images of at least 7x7 pixels, not inputs of {shape}")
        self.register_buffer("example", torch.zeros_like(inputs[:1]), persistent=False)
        self.mean, self.deviation = _mean_and_deviation(inputs)
        self.classifier = classifier(self.encode(inputs[:1]), stream.dataset.outputs, network)

    def encode(self, observations: Tensor) -> Tensor:
        """Inputs (B, ...) as floats, standardized."""
        return (observations.float() - self.mean) / self.deviation

    def forward(self, observations: Tensor) -> Tensor:
        """Inputs (B, ...) -> outputs (B, O)."""
        with precision(self.amp, observations.device):
            outputs = self.classifier(self.encode(observations))
        return outputs.float()

    def parts(self) -> dict[str, nn.Module]:
        """The network, from standardized inputs to outputs."""
        return {"classifier": self.classifier}


def classifier(example: Tensor, outputs: int, network: SupervisedNetworkConfig) -> nn.Module:
    """The network of a kind, from inputs like ``example`` (1, ...) to outputs (B, O)."""
    if network.kind == "vit":
        return VisionTransformer(example, outputs, network.patch, network.heads, network)
    layers = hidden_layers(example, KERNELS[network.kind], network)
    layers.add_module("head", head(network, outputs, gain=1.0))
    return layers


def _mean_and_deviation(inputs: Tensor) -> tuple[float, float]:
    """Of all numbers of all inputs, so that a permutation of pixels changes neither."""
    numbers = inputs[:: max(1, len(inputs) // 5_000)].double()
    return float(numbers.mean()), float(numbers.std()) or 1.0


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of classes (B,), or the mean squared error of values (B, O); ()."""
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(outputs, targets)


def score_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of samples whose class has the largest output, or the negative mean squared error; ()."""
    if targets.is_floating_point():
        return -F.mse_loss(outputs, targets)
    return (outputs.argmax(1) == targets).float().mean()


STATS = ("losses/loss", "update/grad_norm", "score")


def loss_and_score(agent: Classifier, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and score of the current network on a minibatch."""
    outputs = agent(batch.observations)
    return loss_of(outputs, batch.targets), score_of(outputs.detach(), batch.targets)


def update(
    agent: Classifier, optimizer: Optimizer, methods: Methods, batch: Batch, args: Args,
    loss_and_score: Callable[..., tuple[Tensor, Tensor]] = loss_and_score,
) -> Tensor:  # fmt: skip
    """One gradient step on a minibatch; returns its `STATS`, (3,), from before the step."""
    loss, score = loss_and_score(agent, batch)
    agent.zero_grad()
    (loss + methods.penalty(batch, loss)).backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
    methods.add_gradients(batch)
    optimizer.step()
    methods.after_step()
    return torch.stack((loss.detach(), grad_norm, score))


@torch.no_grad()
def evaluate(agent: Classifier, samples: Batch, chunk: int = 4_096) -> float:
    """The score on all samples."""
    scores = [
        score_of(agent(inputs), targets) * len(targets)
        for inputs, targets in zip(samples.observations.split(chunk), samples.targets.split(chunk))
    ]
    return float(torch.stack(scores).sum()) / len(samples.targets)


class Learning:
    """All that learns from one stream, with one seed, and the run that logs and saves it."""

    run: Run

    def __init__(self, args: Args, device: torch.device) -> None:
        stream = args.stream.make(args.batch_size, args.seed, device)

        def new_agent() -> Classifier:
            return Classifier(stream, args.network, args.amp).to(device)

        def new_optimizer(agent: nn.Module) -> Optimizer:
            return args.optim.build(agent, args.lr, exclude=heads(agent))

        self.args, self.stream, self.agent = args, stream, new_agent()
        check_minibatch(self.agent, args.batch_size, "--batch-size")
        self.optimizer = new_optimizer(self.agent)
        self.methods = build_methods(args.methods, Learner(self.agent, self.optimizer, new_agent))
        self.probes = Probes(args.probes, self.methods, new_optimizer)
        self.epochs = args.num_tasks * args.stream.epochs
        self.score_name = "negative_mse" if stream.dataset.is_regression else "accuracy"

    def start(self, together: Together | None = None) -> None:
        """Start or resume the run, beside those of other seeds if there are any."""
        planned = self.epochs * self.stream.batches
        remarks = (f"{self.args.stream.id}: {self.stream}", self.methods.report(planned))
        self.run = Run(
            __file__, self.args, self.stream, self.epochs * self.stream.epoch_steps, remarks,
            chart=f"online_{self.score_name}", together=together,
            methods=self.methods, agent=self.agent, optimizer=self.optimizer,
        )  # fmt: skip

    def begin_epoch(self, epoch: int) -> None:
        """Switch the task if it is time to."""
        self.run.record_episodes(self.stream.begin_epoch())
        self.probes.begin(epoch)
        self.task_ends = self.stream.visit_ends

    def end_epoch(self, losses: Tensor) -> None:
        """Log, measure and save; `losses` are the `STATS` of the epoch's minibatches, (n, 3)."""
        run, stream, agent = self.run, self.stream, self.agent
        run.lap("learn")
        run.score(losses[:, 2].tolist(), self.args.batch_size)
        statistics = dict(zip(STATS[:2], losses.mean(0)))
        with run.end_update({"losses": losses, "weights": agent}, statistics) as metrics:
            metrics["charts/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
            metrics |= self.methods.end_update(stream.schedule.switched_at(stream.steps))
            if self.task_ends:
                metrics[f"charts/train_{self.score_name}"] = evaluate(agent, stream.data)
                if len(stream.validation.targets):
                    metrics[f"charts/validation_{self.score_name}"] = evaluate(agent, stream.validation)
            if self.probes.due:
                is_measured = self.args.probes.plasticity_every
                next_task = NextTask(*stream.next_data(), loss_of) if is_measured else None
                metrics |= self.probes.measure(stream.data.observations, next_task)
                run.lap("probe")


def main(args: Args) -> dict[str, Any]:
    """Train; returns the run's summary, or with several seeds each one's, by seed."""
    if args.seeds:
        return train_together(__file__, args, Learning, loss_and_score)
    device = args.set_up()
    with bad_input(), checked_weights():
        one = Learning(args, device)
        capture = Capture(device, args.graphs, args.compile)
        draw = capture(select, one.stream, compile=device.type == "cuda")  # slower on a CPU
        train = capture(update, one.optimizer, one.methods, compile=False)
        compiled_loss = capture.compiled(loss_and_score)
    one.start()

    for epoch in range(one.run.updates_made + 1, one.epochs + 1):
        one.begin_epoch(epoch)
        stats = []
        for chosen in one.stream.epoch():
            minibatch = draw(one.stream.data, chosen)
            stats.append(train(one.agent, one.optimizer, one.methods, minibatch, args, compiled_loss).clone())
            one.methods.between_steps(minibatch)
        one.end_epoch(torch.stack(stats))

    return one.run.finish(one.agent)


if __name__ == "__main__":
    launch(main, Args, PRESETS)
