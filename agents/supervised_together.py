"""Several seeds of the supervised learner in one process: their networks are stacked, see `optim.stacked`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neoteny.envs.supervised import Batch, minibatches_of
from neoteny.optim import Methods
from neoteny.optim.stacked import Losses, Stack
from neoteny.runners.disk.exit_codes import bad_input
from neoteny.runners.memory import checked_weights
from neoteny.runners.together import Together

if TYPE_CHECKING:
    from neoteny.agents.supervised import Args, Learning


def update_together(
    stack: Stack, all_methods: Sequence[Methods], batch: Batch, args: Args, together: Together
) -> Tensor:
    """`update` of each seed on its own minibatch, of (K, B, ...); returns the `STATS` of all, (K, 3)."""
    losses, scores = stack.backward(batch)
    own = [Batch(*each) for each in zip(*(field.unbind() for field in batch))]

    def add_penalty(k: int) -> None:
        if isinstance(penalty := all_methods[k].penalty(own[k], losses[k]), Tensor):
            penalty.backward()

    def end_step(k: int) -> None:
        all_methods[k].after_step()
        all_methods[k].between_steps(own[k])

    if all_methods[0].has_penalties:
        together.each(add_penalty)
    grad_norms = stack.clip_grad_norm_(args.max_grad_norm)
    stack.add_gradients()
    if all_methods[0].has_penalties:
        together.each(lambda k: all_methods[k].add_gradients(own[k]))
    stack.step(together.random_state_of)
    together.each(end_step, may_draw=stack.others)
    return torch.stack((losses, grad_norms, scores), dim=1)


def train_together(
    agent_file: str, args: Args, make: Callable[[Args, torch.device], Learning], loss: Losses
) -> dict[str, Any]:
    """Train all seeds in one process.

    Args:
        agent_file: file of the agent.
        args: its arguments, with the seeds.
        make: what learns with one seed, on a device.
        loss: loss and score of a network on a minibatch.

    Returns:
        The summary of each run, by seed.
    """
    of_seeds = [dataclasses.replace(args, seed=seed) for seed in args.seeds]
    summaries: dict[str, Any] = {}
    with Together(agent_file, of_seeds) as together:
        learning: list[Learning] = []
        with bad_input(), checked_weights():
            for k, each in enumerate(of_seeds):
                with together.random_state_of(k):
                    learning.append(make(each, each.set_up()))
            if any(method.watches() for method in learning[0].methods.methods.values()):
                raise ValueError("a method that watches layers cannot be used with --seeds: use --seed")
        for k in together.live:
            with together.random_state_of(k):
                learning[k].start(together)
        methods = [each.methods for each in learning]
        stack = Stack(methods, loss, joint=args.optim.stackable)

        def learn(epoch: int) -> None:
            together.each(lambda k: learning[k].begin_epoch(epoch))
            streams = {k: learning[k].stream for k in together.live}
            stats = [
                update_together(stack, methods, minibatch, args, together)
                for minibatch in minibatches_of(streams, len(learning))
            ]
            losses = torch.stack(stats, dim=1)  # (K, n, 3)
            stack.share()
            together.begin_saving()
            together.each(lambda k: learning[k].end_epoch(losses[k]))

        def finish(k: int) -> None:
            summaries[f"s{args.seeds[k]}"] = learning[k].run.finish(learning[k].agent)

        first = learning[together.live[0]]
        for epoch in range(first.run.updates_made + 1, first.epochs + 1):
            learn(epoch)
        together.each(finish)
        together.end()
    return summaries
