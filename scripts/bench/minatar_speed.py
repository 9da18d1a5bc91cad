"""Speed of MinAtar on tensors, of PPO on it, and of its first layer, in CPU time of one thread.

Example: python scripts/bench/minatar_speed.py

Arms alternate, so that a slowdown of the machine affects all of them; tables show medians. With the package
minatar installed, a plain loop of it is measured beside the tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import torch
from torch import Tensor

from neoteny.agents import networks, ppo
from neoteny.agents.rewards import RewardTransform
from neoteny.configs.cli import override
from neoteny.configs.ppo import PRESETS
from neoteny.envs import StreamConfig
from neoteny.envs.minatar.games import GAMES, Definition, Games, leaves
from neoteny.optim import AdamConfig, Learner, build_methods
from neoteny.runners.rollout import Rollout, select

MODULES = {"SpaceInvaders": "space_invaders"}


def alternate(arms: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Microseconds of CPU time of a step, by arm; each call of an arm returns its number of steps."""
    costs: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, arm in arms.items():
            start = time.process_time()
            steps = arm()
            if repeat:  # the first is a warm-up
                costs[name].append((time.process_time() - start) / steps * 1e6)
    return {name: statistics.median(values) for name, values in costs.items()}


def tensors(game: str, num_envs: int) -> Callable[[], int]:
    """Steps of N games on tensors, with what is seen, and new episodes."""
    games = Games(Definition(game), num_envs, torch.device("cpu"))
    seeds = torch.arange(num_envs)
    games.reset(torch.ones(num_envs, dtype=torch.bool), seeds)
    actions = itertools.cycle(torch.randint(6, (64, num_envs)))

    def run() -> int:
        count = max(2, 20_000 // num_envs)
        with torch.inference_mode():
            for _ in range(count):
                _, terminated, _ = games.step(next(actions))
                games.observe()
                games.reset(terminated, seeds)
        return count * num_envs

    return run


def package(game: str) -> Callable[[], int]:
    """Steps of one game of the package, with what is seen, and new episodes."""
    from minatar import Environment

    env = Environment(MODULES.get(game, game.lower()))
    actions = itertools.cycle(torch.randint(6, (1000,)).tolist())

    def run() -> int:
        for _ in range(500):
            _, terminal = env.act(next(actions))
            env.state()
            if terminal:
                env.reset()
        return 500

    return run


def environments(repeats: int) -> Iterator[str]:
    """Rows of a table: microseconds of a step of one environment."""
    yield "| game | bytes | 256 | 2,048 | 16,384 | the package | times as fast, 2,048 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    there = importlib.util.find_spec("minatar") is not None
    for game in GAMES:
        arms = {f"{count}": tensors(game, count) for count in (256, 2048, 16384)}
        costs = alternate(arms | ({"package": package(game)} if there else {}), repeats)
        state = Games(Definition(game), 1, torch.device("cpu")).state
        size = sum(tensor.nbytes for _, tensor in leaves(state)) + 3 * 8
        times = f"{costs['package'] / costs['2048']:.0f}" if there else "-"
        cells = (f"{costs[name]:.2f}" if name in costs else "-" for name in (*arms, "package"))
        yield f"| {game} | {size:,} | {' | '.join(cells)} | {times} |"


class Training:
    """PPO at the settings of the preset ``minatar-paper``, on one game; steps are those of a whole update."""

    def __init__(self, game: str) -> None:
        args = override(ppo.Args(), PRESETS["minatar-paper"] | {"optim": {}})
        self.args = args
        config = StreamConfig("minatar", games=(game,), observations="vectors", audit="off")
        self.stream = config.make(args.num_envs, 0, "cpu")
        self.stream.reset()
        agent = ppo.ActorCritic(self.stream, args.network)
        self.agent, self.optimizer = agent, AdamConfig().build(agent, args.lr)
        self.methods = build_methods((), Learner(agent, self.optimizer, lambda: agent))
        device = torch.device("cpu")
        self.rewards = RewardTransform(args.rewards, args.num_envs, args.gamma, device)
        self.rollout = Rollout.zeros(args.num_steps, self.stream, device)
        self.rollout.observations[-1] = self.stream.observation

    def collect(self, steps: int) -> float:
        """CPU seconds of a whole rollout, measured on some of its steps."""
        run = mock.Mock()
        self.rollout.begin()
        start = time.process_time()
        for _ in range(steps):
            self.stream.begin_step()
            ppo.rollout_step(self.agent, self.stream, self.rewards, self.rollout, run)
        return (time.process_time() - start) / steps * self.args.num_steps

    def learn(self, steps: int) -> float:
        """CPU seconds of all gradient steps of an update, measured on some of them."""
        args, batch = self.args, self.rollout.flat()
        size = args.num_envs * args.num_steps // args.minibatches
        chosen: tuple[Tensor, ...] = torch.randperm(len(batch.actions))[: steps * size].chunk(steps)
        start = time.process_time()
        for each in chosen:
            ppo.update(self.agent, self.optimizer, self.methods, select(batch, each), args)
        return (time.process_time() - start) / steps * args.epochs * args.minibatches

    def rate(self) -> float:
        """Thousands of steps per CPU-second."""
        seconds = self.collect(32) + self.learn(32)
        return self.args.num_envs * self.args.num_steps / seconds / 1e3


def trainings(repeats: int) -> Iterator[str]:
    """Rows of a table: thousands of steps of PPO per CPU-second."""
    yield "| game | columns added | matrix product |"
    yield "| --- | --- | --- |"
    for game in ("Breakout", "Asterix", "SpaceInvaders", "Freeway"):
        training = Training(game)
        training.collect(training.args.num_steps)  # fills the rollout
        rates: dict[str, list[float]] = {"columns": [], "product": []}
        for _ in range(repeats):
            rates["columns"].append(training.rate())
            with mock.patch.object(networks, "are_sparse", return_value=False):
                rates["product"].append(training.rate())
        yield f"| {game} | {' | '.join(f'{statistics.median(each):.1f}' for each in rates.values())} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for rows in (environments(repeats), trainings(repeats)):
        for row in rows:
            print(row, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
