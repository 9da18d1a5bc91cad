"""Evaluation plays whole episodes of a policy, and nothing of the training depends on it."""

import dataclasses
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.envs import StreamConfig, stream
from neoteny.runners import evaluation
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.evaluation import Evaluations, play
from neoteny.runners.run import Run
from neoteny.runners.scores import EVALUATION_SCORES, evaluation_scores
from neoteny.scripts.evaluate import load
from tests.killed import die
from tests.tiny_runs import FLAGS, ending, outcome, send

# Three tasks: the first two recur, so that the first is left twice, and the third is never visited.
TABLE = np.array([[1.0, 2, 10], [5, 3, 12], [4, 9, 11], [8, 6, 11], [6, 7, 15]])
VISITED = [0, 1, 0, 1]


def test_scores_of_a_table_by_hand():
    assert evaluation_scores(TABLE, VISITED) == {
        "score/average_performance": pytest.approx((6 + 7 + 15) / 3),
        "score/forgetting": pytest.approx(8 - 6),  # of task 0, last left at 8; task 1 was the final one
        "score/backward_transfer": pytest.approx(6 - 8),
        # Task 1 during visit 1; task 2 during all visits, though it is never visited.
        "score/zero_shot_transfer": pytest.approx(np.mean([3 - 2, 12 - 10, 11 - 12, 11 - 11, 15 - 11])),
    }


def test_scores_that_cannot_be_measured_are_absent_and_zeros_count():
    assert evaluation_scores(np.zeros((3, 1)), [0, 0]) == {"score/average_performance": 0.0}
    assert evaluation_scores(np.array([[0.0, 1.0], [0.0, 3.0]]), [0]) == {
        "score/average_performance": 1.5,
        "score/zero_shot_transfer": 2.0,
    }


@st.composite
def tables(draw):
    tasks, visits = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    numbers = st.floats(-1e3, 1e3)
    row = st.lists(numbers, min_size=tasks, max_size=tasks)
    returns = draw(st.lists(row, min_size=visits + 1, max_size=visits + 1))
    return np.array(returns), draw(st.lists(st.integers(0, tasks - 1), min_size=visits, max_size=visits))


@given(tables())
def test_scores_are_those_of_the_definitions(table):
    returns, tasks = table
    scores = evaluation_scores(returns, tasks)
    assert scores["score/average_performance"] == pytest.approx(sum(returns[-1]) / len(returns[-1]))
    lost = []
    for task in set(tasks) - {tasks[-1]}:
        (*_, last) = (visit for visit in range(1, len(tasks) + 1) if tasks[visit - 1] == task)
        lost.append(returns[last][task] - returns[-1][task])
    gained = []
    for visit in range(1, len(tasks) + 1):
        new = set(range(returns.shape[1])) - set(tasks[:visit])
        gained += [returns[visit][task] - returns[visit - 1][task] for task in new]
    for name, values in (("forgetting", lost), ("zero_shot_transfer", gained)):
        assert (f"score/{name}" in scores) == bool(values)
        if values:
            assert scores[f"score/{name}"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert scores.get("score/backward_transfer") == (-scores["score/forgetting"] if lost else None)


class Lengths(gym.Env):
    """Episodes of 1 or of 60 steps, by their seed; each step pays 1. They also use global generators."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 if self.np_random.random() < 0.5 else 60
        return self.observe(), {}

    def observe(self):
        np.random.random(), random.random()  # noqa: NPY002
        return np.full(2, 0.5, np.float32)

    def step(self, action):
        self.left -= 1
        return self.observe(), 1.0, self.left <= 0, False, {}


@pytest.fixture
def lengths():
    stream("Lengths-v0", period=100, tasks=2)(lambda k, seed: Lengths())
    made = StreamConfig("Lengths-v0", audit="off", normalizer="keep", task_id="onehot").make(2, 3, "cpu")
    made.reset()
    yield made
    made.close()
    del gym.registry["Lengths-v0"]


def still(observations):
    return torch.zeros(len(observations), dtype=torch.int64)


@pytest.mark.parametrize("together", [1, 3, 8])
def test_the_episodes_are_settled_before_they_are_played(lengths, together, monkeypatch):
    monkeypatch.setattr(evaluation, "PARALLEL", together)
    played = play(lengths, still, 40)
    alone = [play(lengths, still, 40, longest=1).complete]  # those of one step
    assert played.lengths[alone[0]].tolist() == [1] * alone[0].sum()
    assert played.lengths[~alone[0]].tolist() == [60] * (~alone[0]).sum()
    assert 8 < alone[0].sum() < 32  # as seeds have it: the first to end would be short ones
    assert played.returns.tolist() == played.lengths.tolist()
    assert played.complete.all()


def test_an_episode_that_does_not_end_is_cut(lengths):
    played = play(lengths, still, 20, longest=10)
    assert set(played.lengths.tolist()) == {1, 10}
    assert (played.complete == (played.lengths == 1)).all()


def test_nothing_of_the_stream_or_of_global_generators_changes(lengths):
    def generators():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    def act(observations):
        return torch.randint(2, (len(observations),))

    before, state = generators(), lengths.state_dict()
    first, again = play(lengths, act, 5, task=1), play(lengths, act, 5, task=1)
    assert generators() == before
    assert str(lengths.state_dict()) == str(state)
    assert first.lengths.tolist() == again.lengths.tolist()
    assert play(lengths, act, 5, key=b"others").lengths.tolist() != first.lengths.tolist()


def test_the_policy_sees_the_id_of_the_task_that_is_played(lengths):
    seen = []
    for task in (0, 1, None):
        play(lengths, lambda observations: seen.append(observations[0, 2:].tolist()) or still(observations),
             1, task=task)  # fmt: skip
        assert seen[-1] == [[1, 0], [0, 1]][task or 0]


@pytest.mark.parametrize(
    "config",
    [
        StreamConfig("cartpole-rotations", period=2_000, tasks=(0, 1), task_id="onehot", normalizer="keep"),
        StreamConfig("minatar", games=("Breakout", "Freeway"), period=100_000),
        pytest.param(StreamConfig("grid-doorkey", tasks=(0,), period=10_000), marks=pytest.mark.slow),
        pytest.param(
            StreamConfig("grid-doorkey", tasks=(0,), period=10_000, observations="vectors"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            StreamConfig("CartPole-v1", wrap="neoteny.envs.wrappers:permute_actions"), marks=pytest.mark.slow
        ),
        pytest.param(StreamConfig("atari", games=("Breakout", "Pong")), marks=pytest.mark.slow),
    ],
    ids=lambda config: f"{config.id}-{config.observations}",
)
def test_returns_are_those_of_the_stream(config):
    """A policy has the same mean return, within four standard errors, on all kinds of streams."""
    if config.id == "atari":
        pytest.importorskip("ale_py")
    lived = config.make(16, seed=2, device="cpu")
    torch.manual_seed(1)

    generator = torch.Generator().manual_seed(3)
    example = lived.preprocess(torch.zeros(1, *lived.raw_spaces[0].shape))  # with the task's id
    actions = int(lived.single_action_space.n)
    weights = torch.randn(example.numel(), actions, generator=generator)

    def act(observations):
        shares = observations.flatten(1).float() / (255 if observations.dtype == torch.uint8 else 1)
        return torch.multinomial((shares @ weights / len(weights) ** 0.5).softmax(1), 1).squeeze(1)

    observation, _ = lived.reset()
    trained = []
    for _ in range({"grid-doorkey": 1_200, "atari": 400}.get(config.id, 120)):
        observation, *_, info = lived.step(act(observation))
        if info["task"] == 0 and "episode_return" in info:
            trained += info["episode_return"][info["_episode_return"]].tolist()
    played = play(lived, act, 6 if config.id == "atari" else 40, task=0)
    lived.close()
    error = np.hypot(*(np.std(each) / len(each) ** 0.5 for each in (trained, played.returns)))
    assert abs(np.mean(trained) - played.returns.mean()) <= 4 * error + 1e-9
    assert len(trained) >= 16


RECURRING = "--stream.tasks 0 1 --stream.normalizer keep --evaluate-at-switch 2"


@pytest.mark.slow
def test_a_trained_policy_is_as_good_as_it_was_in_training(tmp_path):
    words = "cartpole-gravity --stream.normalizer keep --stream.task-id onehot --stream.tasks 0 1"
    line = f"{words} --total-steps 49152 --probes.every 0 --runs-dir {tmp_path}"
    args = cli(ppo.Args, ppo.PRESETS, line.split())
    visits = {visit["task"]: visit for visit in ppo.main(args)["visits"]}
    policy = load(run_folder("ppo", args))
    for task in (0, 1):
        assert policy.play(task, 20).returns.mean() >= 175
    assert visits[0]["return_at_end"] >= 175


EVALUATED = cli(ppo.Args, {}, f"{FLAGS} {RECURRING}".split())


def evaluated(folder, **changes):
    return dataclasses.replace(EVALUATED, runs_dir=folder, **changes)


def without_evaluations(left):
    """What a run leaves, without what evaluations add."""
    extra = (*EVALUATION_SCORES, "evaluation/task_0", "evaluation/task_1", "evaluations")
    summary = {name: value for name, value in left["summary"].items() if name not in extra}
    scalars = {tag: values for tag, values in left["scalars"].items() if tag not in extra}
    return left["weights"], left["visits"], summary, scalars


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run leaves."""
    args = evaluated(tmp_path_factory.mktemp("whole"))
    assert ending(args) == 0
    return outcome(args)


def test_no_bit_of_training_depends_on_evaluations(whole, tmp_path):
    args = evaluated(tmp_path, evaluate_at_switch=0)
    assert ending(args) == 0
    off, on = outcome(args), whole
    assert without_evaluations(off) == without_evaluations(on)
    assert "evaluations" not in off["summary"]
    rows = on["summary"]["evaluations"]
    # The tasks switch at steps 100 and 200, within updates of 16, and the run ends at 256.
    assert [(row["step"], row["task"]) for row in rows] == [(0, None), (112, 0), (208, 1), (256, 0)]
    assert all(row["returns"].keys() == {"0", "1"} for row in rows)
    assert on["scalars"]["evaluation/task_1"] == [
        (row["step"], pytest.approx(row["returns"]["1"])) for row in rows
    ]
    assert on["summary"]["score/average_performance"] == np.mean(list(rows[-1]["returns"].values()))
    assert {tag: on["scalars"][tag][0][1] for tag in EVALUATION_SCORES} == pytest.approx(
        {tag: on["summary"][tag] for tag in EVALUATION_SCORES}
    )
    assert on["summary"]["score/forgetting"] == rows[2]["returns"]["1"] - rows[3]["returns"]["1"]


@pytest.mark.parametrize("step", [30, 150])
def test_a_killed_run_makes_the_same_evaluations_once(step, whole, tmp_path, monkeypatch):
    killed = evaluated(tmp_path)
    die(ppo, killed, step, monkeypatch)
    made, evaluate = [], Evaluations.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "evaluate", lambda *these: made.append(these[1]) or evaluate(*these))
        assert ending(killed) == 0
    assert outcome(killed) == whole
    saved = step // 64 * 64  # the step of the last checkpoint, if there was one
    left = [row for row in whole["summary"]["evaluations"] if not saved or row["step"] > saved]
    assert sum(map(len, made)) == len(left)


def test_a_signal_in_an_evaluation_leaves_it_to_the_resumed_run(whole, tmp_path, monkeypatch):
    stopped = evaluated(tmp_path)
    with monkeypatch.context() as patch:
        evaluate = Run._evaluate

        def interrupted(self):
            if self.stream.steps == 112:
                send("SIGTERM")(self)
            evaluate(self)

        patch.setattr(Run, "_evaluate", interrupted)
        assert ending(stopped) == 75
    assert ending(stopped) == 0
    assert outcome(stopped) == whole


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "the tasks of cartpole-rotations never recur"),
        ("--stream.tasks 0 1 --stream.normalizer reset", "discards what the policy needs"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(flags, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(ppo.Args, {}, [*flags.split(), "--evaluate-at-switch", "2"])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_last_visit_is_evaluated_again_if_the_run_becomes_longer(lengths):
    evaluations = Evaluations(lengths, still, 1)
    visits = [1, 0]
    evaluations.evaluate(evaluations.ended(visits, is_over=True))
    assert [row["task"] for row in evaluations.rows] == [None, 1, 0]
    assert evaluations.ended(visits, is_over=False) == []
    assert evaluations.ended(visits, is_over=True) == [0]


def test_an_agent_without_a_policy_cannot_be_evaluated():
    with pytest.raises(ValueError, match="needs an agent that gives its policy"):
        Evaluations(None, None, 3)


def test_the_first_and_the_last_lines_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = evaluated(tmp_path / "runs")
    assert ending(args) == 0
    first, of_stream, begins, last, scores, following = capsys.readouterr().out.splitlines()
    folder = run_folder("ppo", args).relative_to(tmp_path)
    assert first == "ppo with adam: 256 steps on cpu, seed 1"
    assert of_stream.startswith("cartpole-rotations: tasks 0, 1 in cycles, each for 100 steps; vectors of 16")
    assert begins == f"{folder} begins"
    assert last.startswith(f"{folder}: 256 steps in 0:00:")
    assert "return_auc " in scores
    assert ", forgetting " in scores
    assert f"neoteny evaluate {folder}, neoteny compare runs, tensorboard --logdir runs" in following
