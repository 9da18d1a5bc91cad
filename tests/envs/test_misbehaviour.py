"""Environments that misbehave: none ends a run in silence, falsifies it, or leaves a bare traceback."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.wrappers import TransformAction
from minigrid.wrappers import ImgObsWrapper

from neoteny.agents import dqn, ppo
from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.checks import BrokenEnvironmentError
from neoteny.envs.single.engine import SingleConfig
from tests import command_line
from tests.forked import python

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "optim:adam --network.hidden 8 --probes.every 0 --num-envs 2 --checkpoint-every 32 --total-steps 128"
OWN = {
    "ppo": (ppo, "--num-steps 16 --minibatches 1 --epochs 1"),
    "dqn": (dqn, "--log-every 32 --train-every 8 --learning-starts 16 --batch-size 8 --buffer-size 100"),
}
LATE = 45
"""Steps of an environment after which it fails: in the third update of 32 steps of both environments."""


class Steps(gym.Env):
    """Counts its steps, over all episodes of ten; ``late`` changes the results of steps after LATE."""

    def __init__(self, late=None, always=None, space=None, actions=None, info=None):
        self.observation_space = space or Box(-10, 10, (2,), np.float32)
        self.action_space = actions or Discrete(2)
        self.late, self.always, self.info, self.count = late, always, info, 0

    def look(self):
        return np.full(self.observation_space.shape, self.t, self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        self.count += 1
        info = self.info(self.t) if self.info else {}
        result = self.look(), 1.0, self.t >= 10, False, info
        change = self.always or (self.late if self.count > LATE else None)
        return change(*result) if change else result


def ending(agent, id, folder, monkeypatch, *words):
    module, own = OWN[agent]
    command = f"{FLAGS} {own} --stream.id {id} --runs-dir {folder}"
    return command_line.ending(module, [*command.split(), *words], monkeypatch)


def saved_steps(folder):
    """Steps of the checkpoints in a folder of runs."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("*/*/*/*/checkpoint/step_*"))


def call_exit(code):
    return lambda *result: sys.exit(code)


LATE_FAULTS = {
    "no reward": (lambda o, r, *rest: (o, None, *rest), "returned the reward None"),
    "rewards": (lambda o, r, *rest: (o, np.ones(2), *rest), r"returned the reward array([1., 1.])"),
    "a text": (lambda o, r, *rest: (o, "1", *rest), "returned the reward '1'"),
    "a huge whole number": (lambda o, r, *rest: (o, 10**400, *rest), "which is not a number"),
    "other shape": (lambda o, *rest: (o[:1], *rest), "an observation of shape (1,)"),
    "ragged lists": (lambda o, *rest: ([[1.0], [1.0, 2.0]], *rest), "an observation that is not an array"),
    "complex": (lambda o, *rest: (o * 1j, *rest), "an observation of complex64"),
    "four values": (lambda *result: result[:4], "returned 4 values, not Gymnasium's five"),
    "nothing": (lambda *result: None, "returned NoneType, not Gymnasium's five"),
    "two ends": (lambda o, r, end, *rest: (o, r, np.ones(2, bool), *rest), "returned terminated array("),
    "exit with 0": (call_exit(0), "called sys.exit(0)"),
    "exit with nothing": (call_exit(None), "called sys.exit(None)"),
    "exit with 75": (call_exit(75), "called sys.exit(75)"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("fault", LATE_FAULTS)
def test_a_wrong_step_in_the_middle_of_a_run_is_one_sentence(
    fault, workers, register, tmp_path, monkeypatch, capfd
):
    if workers == "2" and fault not in ("no reward", "exit with 0"):
        pytest.skip("two kinds are enough where processes have to be started")
    change, message = LATE_FAULTS[fault]
    id = register(Steps, late=change)
    code = ending("ppo", id, tmp_path, monkeypatch, "--stream.single.workers", workers)
    assert code == 70
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: ")
    assert "<Steps<Mine0-v0>>" in sentence
    assert message in sentence
    assert sentence.endswith("in task 0 at step 92); the last checkpoint is intact")
    assert saved_steps(tmp_path)[-1] == 64
    assert not list(tmp_path.glob("**/summary.json"))


def test_an_error_of_the_environments_own_comes_with_its_traceback(register, tmp_path, monkeypatch, capfd):
    id = register(Steps, late=lambda *result: {}[result[1]])
    assert ending("ppo", id, tmp_path, monkeypatch) == 70
    output = capfd.readouterr().err
    assert "Traceback" in output
    assert "raised by <Steps<Mine0-v0>> in task 0 at step 92" in output
    (last,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert last.startswith("error: KeyError: 1.0 (")
    assert last.endswith("; the last checkpoint is intact")
    assert saved_steps(tmp_path)[-1] == 64


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_values_that_would_wrap_around_in_an_integer_space_are_refused(dtype, register):
    """As they come: the first ones are inside."""
    top = np.iinfo(dtype).max
    wide = np.int64 if np.dtype(dtype).kind == "i" else np.uint64
    stream = StreamConfig(
        register(
            Steps,
            space=Box(0, top, (1,), dtype),
            late=lambda o, *rest: (np.array([top + 1], wide), *rest),
        )
    ).make(1)
    stream.reset()
    for _ in range(LATE):
        stream.step(np.zeros(1, int))
    with pytest.raises(BrokenEnvironmentError, match=rf"values from {top + 1} .*at step {LATE + 1}"):
        stream.step(np.zeros(1, int))


def test_whole_numbers_of_another_type_that_fit_are_taken_as_they_are(register):
    space = Box(0, 100, (1,), np.int8)
    id = register(Steps, space=space, late=lambda o, *rest: (np.array([100]), *rest))
    stream = StreamConfig(id).make(1)
    stream.reset()
    for _ in range(LATE):
        stream.step(np.zeros(1, int))
    assert stream.step(np.zeros(1, int))[0] == 100


@pytest.mark.slow
@pytest.mark.parametrize("agent", OWN)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["observation", "reward"])
def test_what_is_not_finite_at_the_start_is_refused(
    where, value, agent, register, tmp_path, monkeypatch, capsys
):
    class Odd(Steps):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            if where == "reward":
                return observation, value, *rest
            return observation + np.float32(value), reward, *rest

    assert ending(agent, register(Odd), tmp_path, monkeypatch) == 2
    assert "not finite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["the task", "reset", "step"])
def test_sys_exit_at_the_start_is_not_the_end_of_a_run(place, register, tmp_path, monkeypatch, capsys):
    class Leaves(Steps):
        def __init__(self):
            if place == "the task":
                sys.exit(0)
            super().__init__()

        def reset(self, **options):
            if place == "reset":
                sys.exit(0)
            return super().reset(**options)

        def step(self, action):
            sys.exit(0)

    assert ending("ppo", register(Leaves), tmp_path, monkeypatch) == 2
    output = capsys.readouterr().err
    assert "sys.exit(0)" in output
    assert output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_module_that_calls_sys_exit_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ending("ppo", "leaves_at_once:Any-v0", tmp_path / "runs", monkeypatch) == 2
    assert "the module leaves_at_once called sys.exit(0)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def texts(t):
    return {"why": [None, "wall", 3, {"a": 1}][t % 4]}


SAID = {
    "a return and a length": lambda t: {"episode_return": 6.0, "episode_length": t, "_episode_return": True},
    "a return alone": lambda t: {"episode_return": float(t)},
    "arrays of several lengths": lambda t: {"path": np.zeros(t)},
    "values of several types": texts,
    "lists": lambda t: {"visited": list(range(t)), "arr": np.zeros((2, 2)) if t % 2 else 0},
    "final observations": lambda t: {"final_obs": np.zeros(3), "final_observation": np.zeros(3)},
    "names of the stream": lambda t: {"task": "reach", "game": "mine", "fingerprint": "x", "env_infos": 1},
    "what no process can send": lambda t: {"lock": threading.Lock(), "game": sys},
    "nothing": lambda t: None,
}


@pytest.mark.parametrize("kind", SAID)
def test_infos_never_meet_the_keys_of_the_stream(kind, register):
    stream = StreamConfig(register(Steps, info=SAID[kind])).make(2, device="cpu")
    stream.reset()
    for t in range(1, 21):
        info = stream.step(torch.zeros(2, dtype=torch.int64))[-1]
        assert info["task"] == 0
        assert len(info["env_infos"]) == 2
        ended = ["episode_return", "_episode_return", "episode_length", "_episode_length"]
        ends = [*ended, "final_obs", "_final_obs"] if t % 10 == 0 else []
        assert info.keys() == {"task", "env_infos", *ends}
    assert info["episode_return"].tolist() == info["episode_length"].tolist() == [10, 10]


@pytest.mark.usefixtures("forked_workers")
def test_workers_send_infos_only_to_those_who_read_them(register):
    id = register(Steps, info=lambda t: {"t": t, "lock": threading.Lock() if t == 3 else None})
    stream = StreamConfig(id, single=SingleConfig(workers=1)).make(2)
    stream.reset()
    asked = []
    ask = stream.engine.envs._ask
    stream.engine.envs._ask = lambda name, arguments: asked.append(name) or ask(name, arguments)
    first = stream.step(np.zeros(2, int))[-1]
    assert [info["t"] for info in first["env_infos"]] == [1, 1]
    second = stream.step(np.zeros(2, int))[-1]
    assert len(second["env_infos"]) == 2
    third = stream.step(np.zeros(2, int))[-1]
    assert asked == ["step", "latest_infos", "step", "step"]
    assert first["env_infos"][0]["t"] == 1
    with pytest.raises(RuntimeError, match="before the next step"):
        second["env_infos"][0]
    with pytest.raises((TypeError, RuntimeError), match="pickle"):
        third["env_infos"][0]
    assert stream.step(np.zeros(2, int))[0].tolist() == [[4, 4], [4, 4]]
    stream.close()


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_actions_are_numbered_from_the_first_of_the_environment(workers, register):
    """Discrete(3, start=-1): indices 0, 1, 2 are the actions -1, 0, 1."""
    id = register(Mover, actions=Discrete(3, start=-1))
    stream = StreamConfig(id, single=SingleConfig(workers=workers)).make(3, device="cpu")
    assert stream.single_action_space == Discrete(3)
    stream.reset()
    stream.step(torch.tensor([0, 1, 2]))
    observations = stream.step(torch.tensor([0, 1, 2]))[0]
    assert observations[:, 0].tolist() == [-2, 0, 2]
    again = StreamConfig(id).make(3, device="cpu")
    again.load_state_dict(stream.state_dict())  # which replays the actions
    assert again.observation[:, 0].tolist() == [-2, 0, 2]
    env = stream.make_eval_env()
    env.reset(0)
    assert env.step(np.int64(0))[0][0] == -1
    stream.close()


class Mover(Steps):
    """Moves by its action."""

    def reset(self, **options):
        self.x = 0
        return super().reset(**options)

    def step(self, action):
        assert self.action_space.contains(action)
        self.x += int(np.sum(action))
        return super().step(action)

    def look(self):
        return np.full(2, self.x, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("agent", OWN)
@pytest.mark.parametrize("space", [Discrete(3, start=-1), Discrete(2, start=5), Discrete(2, dtype=np.uint8)])
def test_agents_learn_with_actions_of_any_first_number_and_type(
    space, agent, register, tmp_path, monkeypatch
):
    reached = set()

    class Notes(Mover):
        def step(self, action):
            reached.add(int(action))
            return super().step(action)

    assert ending(agent, register(Notes, actions=space), tmp_path, monkeypatch) == 0
    assert reached == set(range(int(space.start), int(space.start + space.n)))


def test_several_discrete_actions_are_numbered_from_0_each(register):
    id = register(Mover, actions=MultiDiscrete([3, 2], start=[-1, 4]))
    stream = StreamConfig(id).make(1)
    assert stream.single_action_space == MultiDiscrete([3, 2])
    stream.reset()
    assert stream.step(np.array([[0, 1]]))[0].tolist() == [[4, 4]]  # -1 + 5


@pytest.mark.usefixtures("forked_workers")
def test_a_lambda_and_a_closure_run_in_workers(register, tmp_path):
    id = register(lambda: Steps())
    stream = StreamConfig(id, single=SingleConfig(workers=2)).make(2)
    stream.reset()
    assert stream.step(np.zeros(2, int))[0].tolist() == [[1, 1], [1, 1]]
    stream.close()


@pytest.mark.slow
def test_a_lambda_that_names_environments_of_its_module_runs_in_workers(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Inner-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
        "gym.register('Outer-v0', lambda **options: gym.make('Inner-v0', **options), max_episode_steps=50)\n"
    )
    words = f"{FLAGS} {OWN['ppo'][1]} --stream.id mine:Outer-v0 --stream.single.workers 1"
    done = python(ROOT / "agents" / "ppo.py", *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/Outer-v0/ppo/adam/s1/summary.json"))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_os_exit_in_a_worker_is_not_the_end_of_a_run(register, tmp_path, monkeypatch, capfd):
    """Code 0 of a worker is no success."""

    def end(observation, *rest):
        if multiprocessing.parent_process() is not None and observation[0] == 5:
            os._exit(0)
        return observation, *rest

    monkeypatch.setattr("neoteny.envs.single.workers.MOST_RESTARTS", 1)  # to save time
    id = register(Steps, always=end)
    assert ending("ppo", id, tmp_path, monkeypatch, "--stream.single.workers", "1") == 70
    output = capfd.readouterr().err
    assert "2 workers in a row were lost at the same command; the last one ended with exit code 0" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("**/summary.json"))


def test_a_task_function_that_exits_at_a_switch_is_not_the_end(register, tmp_path, monkeypatch, capfd):
    def task(k, seed):
        if k > 1:  # the first two are tried before training
            sys.exit(0)
        return Steps()

    def make_stream(config, num_envs, seed, device):
        return Stream(task, Schedule(32), [SingleConfig()], num_envs, seed, device, audit="off")

    monkeypatch.setattr(StreamConfig, "make", make_stream)
    assert ending("ppo", register(Steps), tmp_path, monkeypatch) == 70
    assert "sys.exit(0) was called" in capfd.readouterr().err


def test_an_environment_that_cannot_be_closed_loses_nothing(register, tmp_path, monkeypatch, capfd):
    class Stays(Steps):
        def close(self):
            if self.count > LATE:
                raise OSError("still open")

    assert ending("ppo", register(Stays), tmp_path, monkeypatch) == 0
    assert "warning: <Stays<Mine0-v0>> could not be closed: OSError('still open')" in capfd.readouterr().err
    assert list(tmp_path.glob("**/summary.json"))


def test_a_renderer_that_exits_costs_only_the_videos(register, tmp_path, monkeypatch, capfd):
    class Leaves(Steps):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

        def render(self):
            sys.exit(0)

    assert ending("ppo", register(Leaves), tmp_path, monkeypatch, "--video-every", "64") == 0
    assert "there will be no videos: SystemExit: 0" in capfd.readouterr().out


@pytest.mark.parametrize("transformed", [False, True])
def test_a_minigrid_whose_actions_do_not_begin_at_0_is_stepped_by_its_package(transformed, register, capsys):
    def make():
        env = gym.make("MiniGrid-Empty-5x5-v0")
        if transformed:  # turn left, turn right, forward
            return TransformAction(env, lambda action: action + 1, Discrete(3, start=-1))
        env.unwrapped.action_space = Discrete(2, start=1)  # turn right, forward
        return ImgObsWrapper(env)

    stream = StreamConfig(register(make)).make(1)
    assert stream.engine_name == "single"
    assert "its actions are not numbered from 0" in capsys.readouterr().out
    stream.reset()
    env = stream.engine.envs.envs[0].env.unwrapped
    stream.step(np.zeros(1, int))
    assert env.agent_dir == (3 if transformed else 1)


MOVES = """
import os
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Moves(CartPoleEnv):
    def reset(self, **options):
        os.chdir("/")
        return super().reset(**options)

    def step(self, action):
        os.chdir("/")
        return super().step(action)

gym.register("Moves-v0", Moves, max_episode_steps=50)
os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
"""


@pytest.mark.parametrize("where", ["runs", "mine"])
def test_an_environment_that_changes_the_working_directory_disturbs_nothing(where, tmp_path):
    """When its module is imported, and at every reset and step."""
    (tmp_path / "moves.py").write_text(MOVES)
    words = f"{FLAGS} {OWN['dqn'][1]} --stream.id moves:Moves-v0 --memory disk --video-every 64"
    elsewhere = ["--runs-dir", where] if where != "runs" else []
    done = python(ROOT / "agents" / "dqn.py", *words.split(), *elsewhere, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / where / "Moves-v0" / "dqn" / "adam" / "s1" / "summary.json").exists()
    made = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert made == ({"elsewhere", "moves.py", where})
    assert not list((tmp_path / "elsewhere").iterdir())


LEAVES = """
import os
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Leaves(CartPoleEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 40:
            os._exit(0)
        return super().step(action)

gym.register("Leaves-v0", Leaves)
"""


@pytest.mark.slow
def test_a_sweep_reports_runs_that_end_without_a_summary(tmp_path):
    """os._exit(0) in the process of the run itself, which nothing can catch."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    words = "--preset cartpole-rotations --optims adam --seeds 1 --jobs 1 -- --stream.id leaves:Leaves-v0"
    flags = [*FLAGS.removeprefix("optim:adam").split(), "--num-steps", "16"]
    done = python(ROOT / "scripts" / "sweep.py", *words.split(), *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "0 runs done, 0 were finished before, 1 failed" in done.stdout
    assert "failed: " in done.stdout
    assert not list(tmp_path.glob("**/summary.json"))
