"""Speed of PPO written in JAX, where environments, rollout, advantages and gradient steps are one program.

Example: python scripts/bench/jax_ppo.py --env doorkey --num-envs 1024 4096 16384

A baseline for agents/ppo.py: the same losses, advantages, networks, optimizer and treatment of truncated
episodes (Schulman et al., 2016 and 2017; Kingma and Ba, 2015), without its reward normalization, streams and
probes. DoorKey is that of XLand-MiniGrid, with the view as 98 numbers; the games are gymnax's MinAtar.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ADVICE = "which cannot be imported: {}. Try: pip install {}"
try:
    import jax
    import jax.numpy as jnp
    from jax import Array, lax
except ImportError as error:
    print(f"jax_ppo.py needs jax, {ADVICE.format(error, 'jax')}", file=sys.stderr)
    sys.exit(2)

GAMMA, LAMBDA = 0.99, 0.95
CLIP, ENTROPY, VALUE = 0.2, 0.01, 0.5
LEARNING_RATE, BETAS, EPSILON, MAX_GRAD_NORM = 2.5e-4, (0.9, 0.999), 1e-8, 0.5
WARM_UP = 3
"""Updates before the timed ones."""

# --env -> the package it comes from and its id there.
ENVIRONMENTS = {
    "doorkey": ("xminigrid", "MiniGrid-DoorKey-8x8"),
    "breakout": ("gymnax", "Breakout-MinAtar"),
    "asterix": ("gymnax", "Asterix-MinAtar"),
    "spaceinvaders": ("gymnax", "SpaceInvaders-MinAtar"),
    "freeway": ("gymnax", "Freeway-MinAtar"),
}
# The package -> values of the flags that are not given.
DEFAULTS: dict[str, dict[str, Any]] = {
    "xminigrid": {"num_envs": [1024, 4096, 16384], "num_steps": 32, "minibatches": 4, "hidden": [64, 64]},
    "gymnax": {"num_envs": [2048], "num_steps": 128, "minibatches": 128, "hidden": [64, 64, 64, 64]},
}


class Step(NamedTuple):
    """One step of an environment, which begins anew where its episode ended."""

    state: Any
    observation: Array
    reward: Array
    terminated: Array
    truncated: Array
    final: Array  # the observation before an episode that ended began anew


class Environment(NamedTuple):
    """One environment as pure functions."""

    actions: int
    reset: Callable[[Array], tuple[Any, Array]]  # key -> state, observation
    step: Callable[[Array, Any, Array], Step]  # key, state, action -> step


def grid(name: str) -> Environment:
    """An environment of XLand-MiniGrid; its keys are in its states."""
    import xminigrid

    env, params = xminigrid.make(name)

    def reset(key: Array) -> tuple[Any, Array]:
        first = env.reset(params, key)
        return first, first.observation.ravel()

    def step(key: Array, state: Any, action: Array) -> Step:
        last = env.step(params, state, action)
        new, seen = reset(jax.random.split(last.state.key)[0])
        done, final = last.last(), last.observation.ravel()
        pick = functools.partial(jnp.where, done)
        state, observation = jax.tree.map(pick, (new, seen), (last, final))
        ended = last.discount == 0
        return Step(state, observation, last.reward, ended, done & ~ended, final)

    return Environment(env.num_actions(params), reset, step)


def game(name: str) -> Environment:
    """An environment of gymnax, version 1 or later."""
    import gymnax

    env, params = gymnax.make(name)

    def reset(key: Array) -> tuple[Any, Array]:
        observation, state = env.reset(key, params)
        return state, observation.ravel()

    def step(key: Array, state: Any, action: Array) -> Step:
        observation, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        final = info["final_observation"].ravel()
        return Step(state, observation.ravel(), reward, terminated, truncated, final)

    return Environment(env.num_actions, reset, step)


class Training(NamedTuple):
    """All that changes from update to update."""

    parameters: Any
    means: Any  # Adam's moving averages of gradients
    squares: Any  # and of their squares
    count: Array  # gradient steps so far
    states: Any  # of N environments
    observations: Array  # (N, D)
    scores: Array  # (N,), rewards since the episodes began
    key: Array


class Rollout(NamedTuple):
    """Transitions, (T, N, ...) or flat."""

    observations: Array
    actions: Array
    log_probs: Array
    values: Array
    rewards: Array
    done: Array
    final_values: Array  # value of the final observation where an episode was truncated, else 0


class Batch(NamedTuple):
    """Transitions to train on, (B, ...)."""

    observations: Array  # the first three as in `Rollout`
    actions: Array
    log_probs: Array
    advantages: Array
    returns: Array


class Settings(NamedTuple):
    """Sizes of a training."""

    num_envs: int
    num_steps: int
    epochs: int
    minibatches: int
    hidden: tuple[int, ...]


def network(key: Array, sizes: Sequence[int], gain: float) -> list[tuple[Array, Array]]:
    """Weights and biases of linear layers: orthogonal, with ``gain`` for the last, and zero."""
    gains = [2**0.5] * (len(sizes) - 2) + [gain]
    keys = jax.random.split(key, len(gains))
    return [
        (jax.nn.initializers.orthogonal(gain)(key, (inputs, outputs)), jnp.zeros(outputs))
        for key, gain, inputs, outputs in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(layers: list[tuple[Array, Array]], observations: Array) -> Array:
    """Outputs of a network with ReLU between its layers: (B, D) -> (B, K)."""
    x = observations.astype(jnp.float32)
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def value(parameters: Any, observations: Array) -> Array:
    """Values (B,) of observations."""
    return apply(parameters["critic"], observations)[:, 0]


def begin(env: Environment, settings: Settings, key: Array) -> Training:
    """New networks, and environments at the start of their episodes."""
    key, *keys = jax.random.split(key, 4)
    states, observations = jax.vmap(env.reset)(jax.random.split(keys[0], settings.num_envs))
    sizes = (observations.shape[1], *settings.hidden)
    actor, critic = network(keys[1], (*sizes, env.actions), 0.01), network(keys[2], (*sizes, 1), 1.0)
    parameters = {"actor": actor, "critic": critic}
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    scores = jnp.zeros(settings.num_envs)
    return Training(parameters, zeros, zeros, jnp.zeros(()), states, observations, scores, key)


def collect(env: Environment, settings: Settings, training: Training) -> tuple[Training, Rollout, Array]:
    """T steps in N environments; also the mean return of the episodes that ended, NaN where none did."""
    parameters = training.parameters

    def step(now: Training, _: None) -> tuple[Training, tuple[Rollout, Array]]:
        key, act_key, step_key = jax.random.split(now.key, 3)
        log_probs = jax.nn.log_softmax(apply(parameters["actor"], now.observations))
        actions = jax.random.categorical(act_key, log_probs)
        chosen = jnp.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]
        values = value(parameters, now.observations)
        after = jax.vmap(env.step)(jax.random.split(step_key, settings.num_envs), now.states, actions)
        done = after.terminated | after.truncated
        final_values = value(parameters, after.final) * (after.truncated & ~after.terminated)
        row = Rollout(now.observations, actions, chosen, values, after.reward, done, final_values)
        scores = now.scores + after.reward
        ended = jnp.stack((jnp.sum(scores * done), jnp.sum(done)))
        scores = jnp.where(done, 0.0, scores)
        now = now._replace(states=after.state, observations=after.observation, scores=scores, key=key)
        return now, (row, ended)

    training, (rollout, ended) = lax.scan(step, training, None, settings.num_steps)
    total, count = ended.sum(0)
    return training, rollout, total / count


def gae(rollout: Rollout, next_value: Array) -> Array:
    """Generalized advantage estimation, which bootstraps at truncations: advantages, (T, N)."""

    def back(later: tuple[Array, Array], row: Rollout) -> tuple[tuple[Array, Array], Array]:
        advantage, next_value = later
        running = 1.0 - row.done
        delta = row.rewards + GAMMA * (running * next_value + row.final_values) - row.values
        advantage = delta + GAMMA * LAMBDA * running * advantage
        return (advantage, row.values), advantage

    return lax.scan(back, (jnp.zeros_like(next_value), next_value), rollout, reverse=True)[1]


def loss(parameters: Any, batch: Batch) -> Array:
    """Clipped surrogate objective, value loss and entropy bonus of a minibatch."""
    log_probs = jax.nn.log_softmax(apply(parameters["actor"], batch.observations))
    chosen = jnp.take_along_axis(log_probs, batch.actions[:, None], axis=1)[:, 0]
    ratio = jnp.exp(chosen - batch.log_probs)
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std(ddof=1) + 1e-8)
    policy_loss = -jnp.minimum(advantages * ratio, advantages * ratio.clip(1 - CLIP, 1 + CLIP)).mean()
    value_loss = 0.5 * jnp.square(value(parameters, batch.observations) - batch.returns).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(1).mean()
    return policy_loss - ENTROPY * entropy + VALUE * value_loss


def adam(training: Training, gradients: Any) -> Training:
    """One step of Adam on gradients, which are clipped by their global norm."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, MAX_GRAD_NORM / (norm + 1e-6))
    count, (b1, b2) = training.count + 1, BETAS
    means = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * scale * g, training.means, gradients)
    squares = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (scale * g) ** 2, training.squares, gradients)

    def move(p: Array, m: Array, v: Array) -> Array:
        return p - LEARNING_RATE * m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + EPSILON)

    parameters = jax.tree.map(move, training.parameters, means, squares)
    return training._replace(parameters=parameters, means=means, squares=squares, count=count)


def update(env: Environment, settings: Settings, training: Training) -> tuple[Training, Array]:
    """A rollout and the gradient steps on it; also the mean return of its episodes."""
    training, rollout, mean_return = collect(env, settings, training)
    advantages = gae(rollout, value(training.parameters, training.observations))
    fields = (*rollout[:3], advantages, advantages + rollout.values)
    size = settings.num_envs * settings.num_steps
    batch = Batch(*(field.reshape(size, *field.shape[2:]) for field in fields))

    def learn(now: Training, chosen: Array) -> tuple[Training, None]:
        minibatch = Batch(*(field[chosen] for field in batch))
        return adam(now, jax.grad(loss)(now.parameters, minibatch)), None

    def epoch(now: Training, _: None) -> tuple[Training, None]:
        key, shuffle_key = jax.random.split(now.key)
        order = jax.random.permutation(shuffle_key, size).reshape(settings.minibatches, -1)
        return lax.scan(learn, now._replace(key=key), order)

    training, _ = lax.scan(epoch, training, None, settings.epochs)
    return training, mean_return


def measure(env: Environment, settings: Settings, updates: int, seed: int) -> dict[str, Any]:
    """Compile, warm up and time every update."""
    training = jax.jit(lambda key: begin(env, settings, key))(jax.random.key(seed))
    start = time.perf_counter()
    run = jax.jit(lambda training: update(env, settings, training)).lower(training).compile()
    compile_seconds = time.perf_counter() - start
    speeds, returns = [], []
    for i in range(WARM_UP + updates):
        jax.block_until_ready(training)
        start = time.perf_counter()
        training, mean_return = jax.block_until_ready(run(training))
        speed = settings.num_envs * settings.num_steps / (time.perf_counter() - start)
        if i >= WARM_UP:
            speeds.append(speed)
        returns.append(float(mean_return))
    ended = [mean for mean in returns if mean == mean]
    return {
        "compile_seconds": compile_seconds,
        "steps_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "first_return": ended[0] if ended else None,
        "last_return": ended[-1] if ended else None,
    }


def read_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the defaults of its environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--env", choices=ENVIRONMENTS, default="doorkey")
    add("--num-envs", type=int, nargs="+", help="one table row each (1024 4096 16384, MinAtar 2048)")
    add("--num-steps", type=int, help="steps per environment in each rollout (32, MinAtar 128)")
    add("--updates", type=int, default=20, help="timed updates, after 3 others (20)")
    add("--epochs", type=int, default=4, help="passes over each rollout (4)")
    add("--minibatches", type=int, help="minibatches per epoch (4, MinAtar 128)")
    add("--hidden", type=int, nargs="+", help="widths of the layers (64 64, MinAtar 64 64 64 64)")
    precision = "of matrix products: float32, or JAX's default, which on many GPUs is TF32 (highest)"
    add("--precision", choices=("highest", "default"), default="highest", help=precision)
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="print one JSON object a line instead of a table")
    flags = parser.parse_args(arguments)
    for name, default in DEFAULTS[ENVIRONMENTS[flags.env][0]].items():
        if getattr(flags, name) is None:
            setattr(flags, name, default)
    sizes = (*flags.num_envs, flags.num_steps, flags.updates, flags.epochs, flags.minibatches, *flags.hidden)
    if min(sizes) < 1:
        parser.error("all sizes must be at least 1")
    for size in (num_envs * flags.num_steps for num_envs in flags.num_envs):
        if size % flags.minibatches or size == flags.minibatches:
            parser.error(f"{size} transitions do not make {flags.minibatches} minibatches of two or more")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each number of environments."""
    flags = read_flags(arguments)
    jax.config.update("jax_default_matmul_precision", flags.precision)
    package, name = ENVIRONMENTS[flags.env]
    try:
        env = {"xminigrid": grid, "gymnax": game}[package](name)
    except ImportError as error:
        print(f"--env {flags.env} needs {package}, {ADVICE.format(error, package)}", file=sys.stderr)
        sys.exit(2)
    device = jax.devices()[0].device_kind
    if not flags.json:
        print("| env | N | T | device | compile (s) | steps/s (median) | minimum to maximum |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for num_envs in flags.num_envs:
        settings = Settings(num_envs, flags.num_steps, flags.epochs, flags.minibatches, tuple(flags.hidden))
        found = measure(env, settings, flags.updates, flags.seed)
        if flags.json:
            about = {"env": flags.env, "device": device, "jax": jax.__version__, **settings._asdict()}
            print(json.dumps({**about, **found}), flush=True)
        else:
            row = (flags.env, num_envs, flags.num_steps, device)
            seconds, median, low, high = list(found.values())[:4]
            cells = (*row, f"{seconds:.1f}", f"{median:,.0f}", f"{low:,.0f} to {high:,.0f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
