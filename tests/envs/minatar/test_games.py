"""MinAtar on tensors: environments, engine, streams and the rules that no package checks."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.config import ENGINES
from neoteny.envs.grid.board import mix
from neoteny.envs.minatar import asterix, freeway, seaquest
from neoteny.envs.minatar.board import FIRE, LEFT, NOOP, RIGHT, Draws, Rules
from neoteny.envs.minatar.engine import MinAtarConfig, MinAtarEngine
from neoteny.envs.minatar.env import MinAtar
from neoteny.envs.minatar.games import GAMES, Definition, Games, leaves
from neoteny.envs.minatar.streams import PAPER, game_of_paper
from neoteny.envs.seeds import EpisodeSeeds, episode_seed
from neoteny.envs.single.engine import SingleEngine

CPU = torch.device("cpu")
FOUR = [game for game in GAMES if game != "Seaquest"]


def draws_of(seeds, count):
    """The random numbers of a step of N episodes."""
    return Draws(mix(torch.arange(seeds)), torch.full((seeds,), count), 6)


def games_of(definition, num_envs=1, seed=0):
    games = Games(definition, num_envs, CPU)
    games.reset(torch.ones(num_envs, dtype=torch.bool), torch.arange(num_envs) + seed)
    return games


def engine(game, num_envs, seed=0, **options):
    env = MinAtar(game, **options)
    envs = MinAtarEngine(
        lambda k, seed: MinAtar(game, **options), (env.observation_space, env.action_space), num_envs
    )
    envs.enter(Schedule(seed=seed), 0)
    envs.reset()
    return envs


@pytest.mark.parametrize("game", GAMES)
def test_an_environment_does_the_same_however_many_there_are(game):
    few, many = engine(game, 3), engine(game, 300)
    actions = torch.from_numpy(np.random.default_rng(0).integers(6, size=(120, 300)))
    for action in actions:
        results, of_all = few.step(action[:3])[:3], many.step(action)[:3]
        assert all(torch.equal(one, all[:3]) for one, all in zip(results, of_all))
        assert torch.equal(few.observations, many.observations[:3])
        few.reset(results[1])
        many.reset(of_all[1])


def test_seeds_of_episodes_on_tensors_are_those_of_single_environments():
    episodes = torch.tensor([0, 1, 7, 2**31 - 1, 5])
    for run, task in ((0, 0), (2**40, 3), (5, 2**15 + 1)):
        seeds = EpisodeSeeds(run, task, 5, CPU)(episodes).tolist()
        assert seeds == [episode_seed(run, task, i, int(e)) for i, e in enumerate(episodes)]
    last = EpisodeSeeds(3, 1, 2**16 + 2, CPU)(torch.zeros(2**16 + 2, dtype=torch.int64))[-1]
    assert last == episode_seed(3, 1, 2**16 + 1, 0)


def test_random_numbers_are_uniform_and_independent():
    draws = np.stack([draws_of(64, t)(1).numpy() for t in range(200)])
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    for one, other in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.04


def chi_squared(counts, shares):
    """The probability of counts that are at least as unlikely."""
    counts = np.asarray(counts)
    return stats.chisquare(counts, counts.sum() * np.asarray(shares)).pvalue


def test_things_come_as_often_from_each_side_into_each_row_as_they_should():
    draws = draws_of(40_000, 11)
    state = asterix.begin(draws, Rules())._replace(spawn_timer=torch.zeros(40_000, dtype=torch.int64))
    there = asterix._spawn(state, draws, Rules())
    rows = there.there.sum(1).tolist()
    assert chi_squared(rows, [1 / 8] * 8) > 1e-3
    gold, right = (there.there & there.gold).sum(), (there.there & there.right).sum()
    assert chi_squared([gold, 40_000 - gold], [1 / 3, 2 / 3]) > 1e-3
    assert chi_squared([right, 40_000 - right], [0.5, 0.5]) > 1e-3

    speed, right = freeway._cars(draws)
    assert chi_squared(np.bincount((speed - 1 + 5 * right).flatten(), minlength=10), [0.1] * 10) > 1e-3
    assert abs(np.corrcoef(speed.numpy())[np.triu_indices(8, 1)]).max() < 0.03

    due = torch.zeros(40_000, dtype=torch.int64)
    state = seaquest.begin(draws, Rules())._replace(spawn_timer=due, diver_timer=due)
    new = seaquest._spawn_diver(seaquest._spawn_enemy(state, draws), draws)
    for things in (new.enemies, new.divers):
        assert chi_squared(np.bincount(things.y[things.there], minlength=9)[1:], [1 / 8] * 8) > 1e-3
        assert chi_squared(np.bincount(things.x[things.there])[[0, 9]], [0.5, 0.5]) > 1e-3
    subs = (new.enemies.there & new.enemies.sub).sum()
    assert chi_squared([subs, 40_000 - subs], [1 / 3, 2 / 3]) > 1e-3


@pytest.mark.parametrize(
    ("options", "share"), [({}, 0.1), ({"rules": "gymnax-0.0.9"}, 0.0), ({"sticky": 1}, 1)]
)
def test_actions_stick_and_the_last_one_survives_a_reset(options, share):
    games = games_of(Definition("Breakout", minimal=False, **options), 4000)
    assert (games.last_action == NOOP).all()
    games.step(torch.full((4000,), LEFT))
    stayed = (games.state.paddle == 4).double().mean()
    assert abs(stayed - share) < 0.02
    before = games.last_action.clone()
    games.reset(torch.ones(4000, dtype=torch.bool), torch.arange(4000))
    assert torch.equal(games.last_action, before)


def test_by_gymnaxs_rules_episodes_are_cut_and_actions_are_minimal():
    for game in FOUR:
        definition = Definition(game, rules="gymnax-0.0.9")
        assert definition.actions == GAMES[game].ACTIONS
        games = games_of(definition)
        games.count.fill_(definition.limit - 2)
        assert not games.step(torch.zeros(1, dtype=torch.int64))[2]
        assert games.step(torch.zeros(1, dtype=torch.int64))[2]
    assert Definition("Seaquest").limit is None
    with pytest.raises(ValueError, match=r"gymnax 0\.0\.9 has no Seaquest"):
        Definition("Seaquest", rules="gymnax-0.0.9")


def test_by_gymnaxs_rules_bullets_hit_where_the_cannon_was():
    for rules, hits in (("package", [False, True, False]), ("gymnax-0.0.9", [True, False, False])):
        ended = []
        # The cannon leaves a column with a bullet, walks under one, and walks elsewhere.
        for column, action in ((5, LEFT), (4, LEFT), (0, RIGHT)):
            games = games_of(Definition("SpaceInvaders", rules=rules, sticky=0, minimal=False))
            games.state.enemy_bullets[8] = 1 << column
            ended.append(games.step(torch.tensor([action]))[1].item())
        assert ended == hits
    aliens = {rules: games_of(Definition("SpaceInvaders", rules=rules)).observe()[..., 1].sum().item()
              for rules in ("package", "gymnax-0.0.9")}  # fmt: skip
    assert aliens == {"package": 24, "gymnax-0.0.9": 28}


def test_by_gymnaxs_rules_a_thing_is_deleted_where_no_row_is_free():
    for rules, left in (("package", 8), ("gymnax-0.0.9", 7)):
        games = games_of(Definition("Asterix", rules=rules))
        games.state.there.fill_(True)
        games.state.at.fill_(3)
        games.state.spawn_timer.fill_(0)
        games.step(torch.zeros(1, dtype=torch.int64))
        assert games.state.there.sum() == left


def test_by_gymnaxs_rules_the_thing_that_is_deleted_is_not_in_the_row_that_is_left_out():
    draws, rules = draws_of(2000, 0), Rules("gymnax-0.0.9")
    state = asterix.begin(draws, rules)
    for tensor, value in ((state.there, True), (state.at, 3), (state.spawn_timer, 0)):
        tensor.fill_(value)
    left = asterix.step(state, torch.zeros(2000, dtype=torch.int64), draws, rules).state.there
    skipped = (8 * draws(asterix.SKIPPED)).long()
    pairs = set(zip(skipped.tolist(), left.int().argmin(0).tolist()))
    assert pairs == {(one, other) for one in range(8) for other in range(8) if one != other}


def test_of_two_columns_at_the_same_distance_the_left_one_shoots():
    games = games_of(Definition("SpaceInvaders", sticky=0))
    games.state.aliens.zero_()
    games.state.aliens[2:4] = 1 << 3 | 1 << 7  # the cannon is in column 5
    games.state.shot_timer.fill_(0)
    games.step(torch.tensor([NOOP]))
    assert games.state.enemy_bullets.flatten().tolist() == [0, 0, 0, 1 << 3, *[0] * 6]


def test_without_ramping_the_game_stays_as_it_is():
    for ramping in (True, False):
        games = games_of(Definition("Asterix", ramping=ramping, sticky=0), 4)
        games.state.ramp_timer.fill_(-1)
        games.step(torch.zeros(4, dtype=torch.int64))
        assert (games.state.spawn_every == (9 if ramping else 10)).all()


def test_an_environment_draws_and_renders():
    env = MinAtar("Seaquest", places=tuple(range(9, -1, -1)))
    first, _ = env.reset(seed=3)
    assert env.observation_space.contains(first)
    assert first[0, 5, 9]  # the player, whose channel is the last
    picture = env.render()
    assert picture.shape == (10, 10, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 5].any()
    assert not picture[5, 5].any()
    again, _ = MinAtar("Seaquest").reset(seed=3)
    assert np.array_equal(again, first[..., ::-1])
    env.step(FIRE)
    assert env.lifelong_state == FIRE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "Pong"}, "there is no MinAtar game 'Pong'; there are Breakout"),
        ({"game": "Breakout", "rules": "mine"}, "the rules of MinAtar are package or gymnax"),
        ({"game": "Breakout", "places": (0, 0, 1, 2)}, "are not the places of 4 channels"),
        ({"game": "Breakout", "channels": 3}, "are not the places of 4 channels among 3"),
        ({"game": "Breakout", "sticky": 2}, "from 0 to 1, not 2"),
    ],
)
def test_what_is_no_game_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Definition(**options)


class Own(MinAtar):
    def step(self, action):
        return super().step(action)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (lambda k, seed: Own("Breakout"), "what Own does is not known"),
        (lambda k, seed: gym.wrappers.TimeLimit(MinAtar("Breakout"), 9), "what TimeLimit does is not known"),
    ],
)
def test_what_was_added_is_stepped_singly(task, reason, capsys):
    stream = Stream(task, Schedule(), ENGINES, 2)
    assert isinstance(stream.engine, SingleEngine)
    assert reason in capsys.readouterr().out


def test_a_task_of_ones_own_runs_on_tensors_and_is_repeatable():
    stream = Stream(lambda k, seed: MinAtar("Asterix", sticky=0.5), Schedule(), ENGINES, 2, device="cpu")
    assert isinstance(stream.engine, MinAtarEngine)
    assert stream.unrepeatable == ""
    changing = iter(range(100))
    stream = Stream(lambda k, seed: MinAtar("Asterix", sticky=next(changing) / 100), Schedule(), ENGINES, 2)
    assert isinstance(stream.engine, SingleEngine)


@pytest.mark.parametrize("game", GAMES)
def test_a_state_is_restored(game):
    one, two = (engine(game, 8, seed=1, sticky=0.5) for _ in range(2))  # the last actions count
    actions = torch.from_numpy(np.random.default_rng(1).integers(6, size=(80, 8)))
    for action in actions[:40]:
        _, terminated, *_ = one.step(action)
        one.reset(terminated)
    two.load_state_dict(one.state_dict(), Schedule(seed=1), 0, torch.zeros(8))
    assert two.inexact == ""
    for action in actions[40:]:
        results = [envs.step(action)[:3] for envs in (one, two)]
        assert all(torch.equal(*pair) for pair in zip(*results))
        for envs in (one, two):
            envs.reset(results[0][1])
        assert torch.equal(one.observations, two.observations)
    with pytest.raises(ValueError, match="does not fit task 0"):
        two.load_state_dict(engine(game, 4).state_dict() | {"episodes": torch.zeros(8)}, Schedule(), 0, None)


def test_every_field_of_a_state_has_memory_of_its_own():
    for game in GAMES:
        games = games_of(Definition(game), 2)
        for _ in range(3):
            games.step(torch.tensor([0, 1]))
        places = [tensor.data_ptr() for _, tensor in leaves(games.state)]
        assert len(set(places)) == len(places)


def test_the_papers_order_is_random_and_balanced_and_channels_are_permuted_at_each_onset():
    orders = {tuple(game_of_paper(4 * cycle + i, 1) for i in range(4)) for cycle in range(30)}
    assert all(sorted(order) == sorted(PAPER) for order in orders)
    assert len(orders) > 10
    stream = StreamConfig("minatar-paper-small", period=8, audit="off").make(2, seed=1, device="cpu")
    stream.reset()
    places, names = [], []
    for _ in range(4 * 12):
        places.append(stream.engine.games.definition.places)
        *_, info = stream.step(np.zeros(2, int))
        if "game" in info:
            names.append(info["game"])
    assert names == [f"MinAtar-{game_of_paper(k, 1)}" for k in range(12)]
    assert len(set(places)) == 12
    assert stream.single_observation_space.shape == (10, 10, 10)


def test_flags_of_streams(capsys):
    config = StreamConfig("minatar", period=100, games=("Freeway", "Breakout"), rules="gymnax-0.0.9")
    stream = config.make(2)
    assert [stream.make_task(k, 0).definition.game for k in (0, 1)] == ["Freeway", "Breakout"]
    assert stream.engine.games.definition.rules == "gymnax-0.0.9"
    assert stream.single_action_space.n == 6
    assert stream.name == "MinAtar-Freeway"
    assert StreamConfig("MinAtar-Asterix-v1", rules="gymnax-0.0.9").make(1).single_action_space.n == 5
    assert StreamConfig("MinAtar-Asterix-v0").make(1).single_action_space.n == 6
    for flags, message in (
        ({"id": "minatar", "games": ("Pong",)}, "there is no MinAtar game"),
        (
            {"id": "minatar-chain", "games": ("Breakout",)},
            "--stream.games needs --stream.id atari or minatar",
        ),
        ({"id": "grid-layouts", "rules": "package"}, "--stream.rules would be ignored"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamConfig(**flags).check(1)
    with pytest.raises(ValueError, match=r"gymnax 0\.0\.9 has no Seaquest"):
        dataclasses.replace(config, games=("Seaquest",)).make(1)


def test_what_is_seen_are_planes_with_channels_last():
    spec = StreamConfig("minatar").make(1).observation_spec
    assert (spec.kind, spec.channels, spec.space.shape) == ("planes", "last", (10, 10, 10))
    assert MinAtarConfig().recognizes(gym.make("MinAtar-Freeway-v1"))
