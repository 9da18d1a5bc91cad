"""MinAtar on tensors beside the package, whose random numbers are replaced by those of the tensors."""

import collections

import numpy as np
import pytest
import torch

from neoteny.envs.grid.board import mix
from neoteny.envs.minatar import asterix, breakout, freeway, seaquest
from neoteny.envs.minatar.board import Draws
from neoteny.envs.minatar.games import GAMES, Definition, Games
from tests.minatar_players import PLAYERS

pytest.importorskip("minatar", reason="needs the package minatar, of the extra minatar-parity")
from minatar import Environment

NUMBERS = 6  # of draws in a step
MODULES = {name: name.lower() for name in GAMES} | {"SpaceInvaders": "space_invaders"}
# In which a game draws, and the numbers of its draws, in their order.
DRAWING = {
    "Asterix": {"_spawn_entity": (asterix.SIDE, asterix.KIND, asterix.SLOT)},
    "Freeway": {"_randomize_cars": ("speeds", "directions")},
    "Seaquest": {
        "_spawn_enemy": (seaquest.SIDE, seaquest.KIND, seaquest.ROW),
        "_spawn_diver": (seaquest.DIVER_SIDE, seaquest.DIVER_ROW),
    },
}


class Injected:
    """Stands for the package's random generator: returns what it is told to."""

    def __init__(self):
        self.queue = []

    def rand(self, *shape):
        return self.queue.pop(0)

    def randint(self, low, high=None, size=None):
        number = self.queue.pop(0)
        if size is not None:
            return number
        low, high = (0, low) if high is None else (low, high)
        return low + int(number * (high - low))


class Package:
    """One game of the package, with injected random numbers."""

    def __init__(self, game, ramping=True):
        self.env = Environment(MODULES[game], difficulty_ramping=ramping)
        self.random = self.env.random = self.env.env.random = Injected()
        self.draws = {}
        for name, numbers in DRAWING.get(game, {}).items():
            setattr(self.env.env, name, self.drawing(getattr(self.env.env, name), numbers))

    def drawing(self, function, numbers):
        def call(*args, **kwargs):
            self.random.queue = [self.draws[number] for number in numbers]
            return function(*args, **kwargs)

        return call

    def reset(self, draws):
        self.draws = draws
        self.random.queue = [draws[breakout.START]]
        self.env.reset()
        return self.env.state()

    def step(self, action, draws):
        self.draws = draws
        self.random.queue = [draws[0]]
        reward, terminal = self.env.act(action)
        return self.env.state(), reward, terminal


def drawn(seeds, count):
    """The random numbers of one step, a dict for each environment."""
    draws = Draws(mix(seeds), count, NUMBERS)
    numbers = np.stack([draws(number).numpy() for number in range(NUMBERS)])
    speed, right = (each.numpy() for each in freeway._cars(draws))
    named = {"speeds": speed, "directions": np.where(right, 0.75, 0.25)}
    return [
        dict(enumerate(numbers[:, i])) | {name: of_all[:, i].copy() for name, of_all in named.items()}
        for i in range(len(seeds))
    ]


class Counter:
    """What happened in the package's games."""

    def __init__(self):
        self.events = collections.Counter()

    def see(self, env, before, reward, terminal):
        """Count what a step did."""
        now = vars(env)
        events = {
            "rewards": reward,
            "ends": terminal,
            "refills": "brick_map" in now and before["bricks"] == 0 and env.brick_map.sum() == 30,
            "waves": "alien_map" in now and reward and env.alien_map.sum() == 24,
            "fastest waves": now.get("enemy_move_interval") == 6,
            "all ramps": now.get("spawn_speed") == 1 or now.get("e_spawn_speed") == 1,
            "ramps": now.get("ramp_index", 0) > before["ramps"],
            "six divers brought up": "diver_count" in now and env.diver_count == -1 != before["divers"],
            "surfaced without divers after that": before["divers"] == -1 and now.get("diver_count") == -2,
            "no free row": "entities" in now and all(each is not None for each in env.entities),
        }
        for name, count in events.items():
            self.events[name] += int(count)

    @staticmethod
    def before(env):
        """What is compared with the state after a step."""
        return {
            "bricks": env.brick_map.sum() if hasattr(env, "brick_map") else 0,
            "ramps": getattr(env, "ramp_index", 0),
            "divers": getattr(env, "diver_count", 0),
        }


def advance(game, package, games, i, rng):
    """Begin an episode at a difficulty that takes long to reach."""
    env, state = package.env.env, games.state
    if game == "SpaceInvaders":
        env.ramp_index = int(rng.integers(7))
        env.enemy_move_interval = 12 - env.ramp_index
        state.move_every[i] = env.enemy_move_interval
    if game == "Seaquest":
        env.ramp_index = int(rng.integers(20))
        env.e_spawn_speed = 20 - env.ramp_index
        env.move_speed = 5 - min(3, env.ramp_index // 2)
        state.ramps[i], state.spawn_every[i] = env.ramp_index, env.e_spawn_speed
        state.move_every[i] = env.move_speed


def play(game, steps, num_envs=16, minimal=False, ramping=True, randomness=0.02):
    """Step both side by side; returns what happened."""
    rng, counter = np.random.default_rng(0), Counter()
    definition = Definition(game, minimal=minimal, ramping=ramping)
    games = Games(definition, num_envs, torch.device("cpu"))
    packages = [Package(game, ramping) for _ in range(num_envs)]
    seeds, everyone = torch.arange(num_envs), torch.ones(num_envs, dtype=torch.bool)
    games.reset(everyone, seeds)
    for i, (package, draws) in enumerate(zip(packages, drawn(seeds, games.count))):
        package.reset(draws)
        if i % 2:
            advance(game, package, games, i, rng)
    number = {action: i for i, action in enumerate(definition.actions)}
    for step in range(-(-steps // num_envs)):
        chosen = [int(PLAYERS[game](package.env.env, rng)) for package in packages]
        drawn_freely = rng.random(num_envs) < randomness
        actions = [
            int(rng.integers(len(number))) if free else number.get(action, 0)
            for action, free in zip(chosen, drawn_freely)
        ]
        rewards, terminated, truncated = games.step(torch.tensor(actions))
        seen, draws = games.observe().numpy(), drawn(games.seeds, games.count)
        for i, package in enumerate(packages):
            before = counter.before(package.env.env)
            state, reward, terminal = package.step(definition.actions[actions[i]], draws[i])
            assert (rewards[i], terminated[i]) == (reward, terminal), (step, i)
            assert np.array_equal(seen[i], state), (step, i)
            counter.see(package.env.env, before, reward, terminal)
        assert not truncated.any()
        seeds = seeds + num_envs
        games.reset(terminated, seeds)
        fresh, draws = games.observe().numpy(), drawn(games.seeds, games.count)
        for i in terminated.nonzero().flatten().tolist():
            assert np.array_equal(fresh[i], packages[i].reset(draws[i]))
            if i % 2:
                advance(game, packages[i], games, i, rng)
    return counter.events


REACHED = {
    "Breakout": ("rewards", "ends", "refills"),
    "Asterix": ("rewards", "ends", "all ramps", "no free row"),
    "SpaceInvaders": ("rewards", "ends", "waves", "fastest waves"),
    "Freeway": ("rewards", "ends"),
    "Seaquest": (
        "rewards", "ends", "all ramps", "six divers brought up", "surfaced without divers after that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"minimal": True, "ramping": False}], ids=["v0", "v1"])
@pytest.mark.parametrize("game", GAMES)
def test_a_step_is_the_packages(game, options):
    """The reward, the end of the episode and what is seen."""
    assert play(game, 640, **options)["rewards"]


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_a_step_is_the_packages_all_the_way(game, pytestconfig):
    steps = pytestconfig.getoption("--minatar-steps")
    happened = play(game, steps // 2) + play(game, steps // 2, minimal=True)
    print(f"{game}: {steps:,} steps, {dict(+happened)}")
    if steps >= 200_000:
        assert all(happened[event] for event in REACHED[game])
