import copy
import errno
import io
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import NetworkConfig
from neoteny.envs import StreamConfig, stream
from neoteny.envs.audit import parameters
from neoteny.envs.seeds import episode_seed
from neoteny.envs.single.engine import SingleConfig
from neoteny.envs.wrappers import Increment, drift
from neoteny.optim import AdamConfig
from neoteny.runners import illustrations, video
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.probes import ProbeConfig
from neoteny.runners.video import record_video
from tests import simple_envs
from tests.events import scalars
from tests.killed import die

EVERY = 400


def small(agent, folder, id, **changes):
    """Arguments of a run of 1,024 steps with updates of 128."""
    sizes = {
        "ppo": {"num_steps": 32, "epochs": 1},
        "dqn": {"log_every": 128, "learning_starts": 128, "buffer_size": 600, "eps_steps": 600},
    }[agent.__name__.rpartition(".")[2]]
    defaults = {
        "total_steps": 1024, "num_envs": 4, "probes": ProbeConfig(every=0), "checkpoint_every": 256,
        "video_every": EVERY, "network": NetworkConfig(hidden=(16,)), "optim": AdamConfig(),
    }  # fmt: skip
    config = id if isinstance(id, StreamConfig) else StreamConfig(id)
    return agent.Args(stream=config, runs_dir=folder, **{**defaults, **sizes, **changes})


def folder_of(agent, args):
    return run_folder(agent.__name__.rpartition(".")[2], args)


def gifs(folder):
    return {path.name: path.read_bytes() for path in (folder / "videos").iterdir()}


def images(folder):
    """The pictures on the board: [(step, bytes), ...]."""
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [(image.step, image.encoded_image_string) for image in accumulator.Images("video/policy")]


def frames(gif):
    """Size of a GIF and how many frames it shows, equal ones in a row included."""
    image = Image.open(io.BytesIO(gif))
    assert image.info["loop"] == 0
    durations = []
    for frame in range(image.n_frames):
        image.seek(frame)
        durations.append(image.info["duration"])
    return image.size, sum(durations)


def outcome(folder):
    """What a run learned and measured, and the end of its random state."""
    points = {
        tag: values for tag, values in scalars(folder).items() if not tag.startswith(("time/", "charts/SPS"))
    }
    files = [*folder.glob("checkpoint/step_*/tensors.safetensors"), *folder.glob("checkpoint/weights*")]
    texts = [(folder / "visits.jsonl").read_text()]
    return points, {path.relative_to(folder): path.read_bytes() for path in files}, texts


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "id"), [(ppo, "cartpole-drift-small"), (dqn, "grid-layouts")])
def test_videos_do_not_disturb_training(agent, id, tmp_path):
    outcomes = []
    normalizer = "keep" if id.startswith("cartpole") else "none"
    for every in (0, EVERY):
        config = StreamConfig(id, period=600, normalizer=normalizer)
        args = small(agent, tmp_path / str(every), config, video_every=every)
        summary = agent.main(args)
        assert ("video" in summary["seconds"]) == bool(every)
        outcomes.append(outcome(folder_of(agent, args)))
        assert (folder_of(agent, args) / "videos").exists() == bool(every)
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("agent", [ppo, dqn])
def test_a_killed_run_goes_on_to_the_same_videos(agent, tmp_path, monkeypatch):
    calm, killed = (small(agent, tmp_path / name, "cartpole-rotations") for name in ("calm", "killed"))
    agent.main(calm)
    for step in (500, 900):  # a checkpoint is at 256 and 512 and 768, a video at 512 and 896
        die(agent, killed, step, monkeypatch)
    folder = folder_of(agent, killed)
    assert gifs(folder).keys() == {"step_000000512.gif", "step_000000896.gif"}
    (folder / "videos" / "step_000000895.gif").write_bytes(b"of what never was")
    agent.main(killed)
    assert outcome(folder) == outcome(folder_of(agent, calm))
    assert gifs(folder) == gifs(folder_of(agent, calm))
    assert images(folder) == images(folder_of(agent, calm))
    assert [step for step, _ in images(folder)] == [512, 896]


def test_videos_may_begin_when_a_run_goes_on(tmp_path, monkeypatch):
    die(ppo, small(ppo, tmp_path, "cartpole-rotations", video_every=0), 700, monkeypatch)
    args = small(ppo, tmp_path, "cartpole-rotations", video_every=EVERY)
    ppo.main(args)
    assert gifs(folder_of(ppo, args)).keys() == {"step_000000896.gif"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id", "size", "duration"),
    [
        ("cartpole-rotations", (240, 160), 20),
        ("Acrobot-v1", (240, 240), 70),
        ("grid-layouts", (240, 240), 100),
        ("grid-goals-small", (240, 240), 100),
        ("grid-permuted-observations-small", (160, 160), 100),
        ("atari", (160, 210), 30),
    ],
)
def test_a_video_shows_an_episode(id, size, duration, tmp_path, monkeypatch, capfd):
    if id == "atari":
        pytest.importorskip("ale_py")
    monkeypatch.setattr(video, "LONGEST", 30)
    args = small(ppo, tmp_path, id, total_steps=128, video_every=1)
    ppo.main(args)
    folder = folder_of(ppo, args)
    (gif,) = gifs(folder).values()
    assert images(folder) == [(128, gif)]
    accumulator = EventAccumulator(str(folder)).Reload()
    (output,) = accumulator.Tensors("video/episode/text_summary")
    (words,) = (text.decode() for text in output.tensor_proto.string_val)
    game = r" \(Breakout\)" if id == "atari" else ""
    steps, cut = re.fullmatch(rf"task 0{game}: return \S+ in (\d+) steps(, then cut short)?", words).groups()
    assert frames(gif) == (size, duration * (int(steps) + 1))
    assert int(steps) == 29 or (not cut and int(steps) < 29)
    assert "XDG" not in capfd.readouterr().err  # no window was looked for


def test_frames_are_those_of_the_episode():
    """Of a policy that turns left and back, again and again, there are two pictures."""
    lived = StreamConfig("MiniGrid-Empty-5x5-v0").make(2, device="cpu")
    lived.reset()
    turns = iter([0, 1] * 1000)
    gif, _ = record_video(lived, lambda seen: torch.tensor([next(turns)]))
    image, shown = Image.open(io.BytesIO(gif)), []
    for frame in range(image.n_frames):
        image.seek(frame)
        shown.append(image.convert("RGB").tobytes())
    assert len(set(shown)) == 2
    assert shown[::2] == shown[:1] * len(shown[::2])


class Picture(gym.Env):
    """Draws nothing but is a picture."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape):
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 255, self.observation_space.shape, np.uint8), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture
def pictures(request):
    gym.register("Picture-v0", lambda: Picture(request.param), max_episode_steps=5)
    yield "Picture-v0"
    del gym.registry["Picture-v0"]


@pytest.mark.parametrize(
    ("pictures", "size"),
    [((36, 36, 3), (216, 216)), ((4, 84, 84), (168, 168)), ((50, 100), (200, 100))],
    indirect=["pictures"],
)
def test_observations_that_are_pictures_are_shown(pictures, size, capsys):
    lived = StreamConfig(pictures).make(1, device="cpu")
    lived.reset()
    gif, _ = record_video(lived, lambda seen: torch.zeros(1, dtype=torch.int64))
    assert frames(gif) == (size, 6 * 30)
    assert capsys.readouterr().err == ""


class Undrawable(simple_envs.Constant):
    """Says that it can draw itself."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def render(self):
        raise gym.error.DependencyNotInstalled("no crayons")


gym.register("Undrawable-v0", Undrawable, max_episode_steps=5)


@pytest.mark.parametrize("id", ["Identity-v0", "Undrawable-v0"])
def test_what_cannot_be_shown_is_reported_once(id, tmp_path, capsys):
    args = small(dqn, tmp_path, id, video_every=128)
    summary = dqn.main(args)
    assert summary["visits"]
    reason = "no crayons" if id == "Undrawable-v0" else "can neither render frames nor"
    output = [line for line in capsys.readouterr().out.splitlines() if "no videos" in line]
    assert len(output) == 1
    assert reason in output[0]
    assert not (folder_of(dqn, args) / "videos").exists()


def test_a_full_disk_is_reported_once_and_ends_no_run(tmp_path, monkeypatch, capsys):
    replace = illustrations.replace_file

    def full(path, data):
        if path.suffix == ".gif":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, data)

    monkeypatch.setattr(illustrations, "replace_file", full)
    args = small(ppo, tmp_path, "cartpole-rotations", video_every=128)
    assert ppo.main(args)["visits"]
    assert capsys.readouterr().err.count("could not be written (No space left on device)") == 1
    assert "video/policy" not in EventAccumulator(str(folder_of(ppo, args))).Reload().Tags()["images"]


@pytest.mark.parametrize("task_id", ["none", "onehot"])
@pytest.mark.parametrize("normalizer", ["none", "keep"])
def test_the_policy_sees_what_the_stream_would_show(normalizer, task_id):
    options = {"normalizer": normalizer, "task_id": task_id}
    config = StreamConfig("cartpole-rotations", period=20, tasks=(0, 1), **options)
    lived = config.make(1, seed=5, device="cpu")
    seen = [lived.reset()[0]]
    for _ in range(24):  # four into the second task, unless an episode ended
        seen.append(lived.step(torch.zeros(1, dtype=torch.int64))[0])
    episode, length = int(lived.engine.episodes[0]), int(lived.lengths[0])
    eval_env = lived.make_eval_env()
    observation = eval_env.reset(episode_seed(5, 1, 0, episode))
    for _ in range(length):
        observation = eval_env.step(0)[0]
    count = lived.preprocessing.normalizer and lived.preprocessing.normalizer.count
    (view,) = lived.preprocess(torch.from_numpy(observation)[None])
    assert torch.equal(view, lived.observation[0])
    assert torch.equal(view, seen[-1][0])
    assert (lived.preprocessing.normalizer and lived.preprocessing.normalizer.count) == count
    eval_env.close()


def test_eval_env_has_the_progress_of_the_stream():
    lived = StreamConfig("cartpole-drift-small", period=40).make(1, device="cpu")
    lived.reset()
    for _ in range(50):
        lived.step(torch.zeros(1, dtype=torch.int64))
    eval_env = lived.make_eval_env()
    eval_env.reset(0)
    ours = lived.engine.envs.envs[0]
    ours._move()  # which the next step would do first
    one, two = ({**parameters(env.env), "steps_beyond_terminated": 0} for env in (eval_env, ours))
    assert one == two
    assert one["gravity"] != parameters(lived.make_task(lived.task, lived.seed))["gravity"]
    eval_env.close()


def drifting(k, seed):
    return drift(gym.make("CartPole-v1"), {"gravity": Increment(0.01 * (k + 1))}, seed=(seed, k))


@pytest.fixture
def drifts():
    stream("Drifting-v0", period=10_000)(drifting)
    yield "Drifting-v0"
    del gym.registry["Drifting-v0"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_eval_env_has_the_lifelong_state_of_the_running_episode(drifts, workers):
    lived = StreamConfig(drifts, single=SingleConfig(workers=workers)).make(2, device="cpu")
    lived.reset()
    for _ in range(30):
        lived.step(torch.zeros(2, dtype=torch.int64))
    given = lived.engine.log[0].lifelong
    assert given[0]["step"] > 0
    eval_env = lived.make_eval_env()
    assert eval_env.lifelong == given
    before = copy.deepcopy(given)
    eval_env.reset(0)
    for _ in range(5):
        eval_env.step(0)
    assert eval_env.lifelong != before
    assert lived.engine.log[0].lifelong == before
    eval_env.close()
    lived.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_videos_leave_the_random_state_of_a_gpu_alone():
    lived = StreamConfig("grid-layouts").make(2, device="cuda")
    lived.reset()
    before = torch.cuda.get_rng_state_all()
    record_video(lived, lambda seen: torch.randint(7, (1,), device=seen.device))
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))


def test_a_negative_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--video-every must be at least 0"):
        small(ppo, tmp_path, "cartpole-rotations", video_every=-1)
