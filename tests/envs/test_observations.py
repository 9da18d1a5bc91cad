"""What observations are: known by their space or the package that makes them, said by a flag, or refused."""

import gymnasium as gym
import minigrid.wrappers as grids
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation, TransformObservation

from neoteny.agents import dqn, ppo
from neoteny.agents.networks import Images, NetworkConfig, encoder, torso, zeros
from neoteny.envs import Schedule, Stream, StreamConfig
from neoteny.envs.config import ENGINES
from neoteny.envs.observations import ObservationSpec, Preprocessing, read_observations
from neoteny.optim import AdamConfig
from neoteny.runners.probes import ProbeConfig
from tests.simple_envs import Cue


def box(*shape, dtype=np.uint8, high=255):
    return Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (box(4, dtype=np.float32), "vectors of 4 numbers"),
        (box(128), "vectors of 128 numbers"),
        (box(3, 64, 64, dtype=np.float32), "vectors of 12288 numbers"),
        (box(10, 10, 4, dtype=np.int64), "vectors of 400 numbers"),
        (box(64, 64, 3), "pictures, 64 x 64 x 3, channels last"),
        (box(3, 64, 64), "pictures, 3 x 64 x 64, channels first"),
        (box(32, 32, 3), "pictures, 32 x 32 x 3, channels last"),
        (box(3, 32, 32), "pictures, 3 x 32 x 32, channels first"),
        (box(210, 160, 3), "pictures, 210 x 160 x 3, channels last"),
        (box(3, 210, 160), "pictures, 3 x 210 x 160, channels first"),
        (box(84, 84, 1), "pictures, 84 x 84 x 1, channels last"),
        (box(4, 84, 84), "pictures, 4 x 84 x 84, channels first"),
        (box(84, 84), "pictures, 84 x 84"),
        (box(4, 96, 96, 3), "pictures, 4 x 96 x 96 x 3, channels last"),
        (box(4, 3, 96, 96), "pictures, 4 x 3 x 96 x 96, channels first"),
        (box(8, 8, 3, high=9), "planes, 8 x 8 x 3, channels last"),
        (box(10, 10, 4, high=1), "planes, 10 x 10 x 4, channels last"),
        (box(4, 10, 10, high=1), "planes, 4 x 10 x 10, channels first"),
        (box(10, 10, 4, dtype=bool, high=1), "planes, 10 x 10 x 4, channels last"),
        (box(10, 10, 10, high=1), None),
        (box(8, 8, 12, dtype=bool, high=1), "planes, 8 x 8 x 12, channels last"),
        (box(12, 8, 8, dtype=bool, high=1), "planes, 12 x 8 x 8, channels first"),
        (box(6, 7, 2, dtype=bool, high=1), "planes, 6 x 7 x 2, channels last"),
        (box(2, 6, 7, dtype=bool, high=1), "planes, 2 x 6 x 7, channels first"),
        (box(6, 7, 5, dtype=bool, high=1), None),
        (box(10, 10, dtype=bool, high=1), "planes, 10 x 10"),
    ],
)
def test_observations_are_read_by_type_and_shape(space, line):
    if line is None:
        with pytest.raises(ValueError, match=r"--stream\.channels first or last"):
            read_observations(space)
    else:
        assert str(read_observations(space)) == line


@pytest.mark.parametrize(
    ("space", "flags", "line"),
    [
        (box(10, 10, 10, high=1), {"channels": "first"}, "planes, 10 x 10 x 10, channels first"),
        (box(64, 64, 3), {"channels": "first"}, "pictures, 64 x 64 x 3, channels first"),
        (box(64, 64, 3), {"kind": "vectors"}, "vectors of 12288 numbers"),
        (box(9, 9, 3), {"kind": "codes"}, "codes, 9 x 9 x 3"),
        (
            box(3, 64, 64, dtype=np.float32, high=1),
            {"kind": "pictures"},
            "pictures, 3 x 64 x 64, channels first",
        ),
        (box(10, 10, 2, dtype=np.int64, high=5), {"kind": "planes"}, "planes, 10 x 10 x 2, channels last"),
    ],
)
def test_flags_overrule(space, flags, line):
    assert str(read_observations(space, **flags)) == line


@pytest.mark.parametrize(
    ("space", "flags", "message"),
    [
        (gym.spaces.Discrete(16), {}, r"not Discrete\(16\).*FlattenObservation"),
        (gym.spaces.Dict(a=box(2)), {}, "arrays of numbers, a Box, not Dict"),
        (gym.spaces.MultiBinary(4), {}, "FlattenObservation"),
        (box(4), {"kind": "pictures"}, "pictures have two to four axes"),
        (box(7, 7, 3, dtype=np.float32), {"kind": "codes"}, "codes of MiniGrid"),
        (Box(-np.inf, np.inf, (9, 9, 3)), {"kind": "planes"}, "a lowest and a highest value"),
        (box(4), {"channels": "last"}, r"--stream\.channels has no effect"),
    ],
)
def test_what_cannot_be_read_is_refused(space, flags, message):
    with pytest.raises(ValueError, match=message):
        read_observations(space, **flags)


def encoded(spec, observation):
    """What a network is given of one observation."""
    return encoder(spec)(torch.as_tensor(observation)[None])[0]


def test_pictures_and_planes_become_channels_from_0_to_1():
    board = np.zeros((6, 7, 2), np.uint8)
    board[5, 3, 1] = 9
    for channels, array in (("last", board), ("first", board.transpose(2, 0, 1))):
        spec = read_observations(Box(0, 9, array.shape, np.uint8))
        assert spec.channels == channels
        seen = encoded(spec, array)
        assert seen.shape == (2, 6, 7)
        assert seen[1, 5, 3] == 1.0
        assert seen.sum() == 1.0
    picture = encoded(read_observations(box(40, 40, 3)), np.full((40, 40, 3), 51, np.uint8))
    assert picture.shape == (3, 40, 40)
    assert picture.unique().tolist() == [pytest.approx(0.2)]
    assert encoded(read_observations(box(40, 40)), np.full((40, 40), 255, np.uint8)).shape == (1, 40, 40)


def test_a_stack_becomes_channels():
    for shape, channels in (((2, 40, 40, 3), "last"), ((2, 3, 40, 40), "first")):
        frames = np.zeros(shape, np.uint8)
        frames[(1, 7, 9, 2) if channels == "last" else (1, 2, 7, 9)] = 255
        seen = encoded(read_observations(box(*shape)), frames)
        assert seen.shape == (6, 40, 40)
        assert seen[1 * 3 + 2, 7, 9] == seen.sum() == 1.0


def test_every_entry_is_scaled_by_its_own_bounds():
    low, high = np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 2), np.uint8)
    low[..., 0], high[..., 0] = 10, 20
    high[0, 0, 1] = 4  # where low and high are both 0, nothing ever is
    spec = read_observations(Box(low, high, dtype=np.uint8))
    seen = encoded(spec, np.where(high, (low + high) // 2, 0).astype(np.uint8))
    assert (seen[0] == 0.5).all()
    assert seen[1].tolist() == [[0.5, 0, 0, 0, 0], *[[0] * 5] * 4]


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((40, 36, 3), ["conv1", "conv2", "conv3", "linear1"]),
        ((36, 35, 3), ["conv1", "conv2", "linear1"]),
        ((10, 10, 4), ["conv1", "conv2", "linear1"]),
        ((5, 5, 1), ["conv1", "conv2", "linear1"]),
        ((4, 4, 16), ["linear1"]),
    ],
)
def test_convolutions_fit_the_size(shape, names):
    spec = read_observations(box(*shape))
    encode = encoder(spec)
    network = torso(encode, spec.space, NetworkConfig(hidden=(8,)))
    layers = [name for name, _ in network.named_children() if "_" not in name and name != "flatten"]
    assert layers == names
    assert network(encode(zeros(spec.space, 2))).shape == (2, 8)
    assert isinstance(encode, Images)


def room():
    return gym.make("MiniGrid-DoorKey-5x5-v0")


IMAGES = {  # of MiniGrid, by the wrapper that makes them
    "codes, 7 x 7 x 3": lambda: room(),
    "codes, 5 x 5 x 3": lambda: grids.ViewSizeWrapper(room(), 5),
    "pictures, 56 x 56 x 3, channels last": lambda: grids.RGBImgPartialObsWrapper(room()),
    "pictures, 40 x 40 x 3, channels last": lambda: grids.RGBImgObsWrapper(room()),
    "pictures, 28 x 28 x 3, channels last": lambda: grids.RGBImgPartialObsWrapper(room(), tile_size=4),
    "planes, 7 x 7 x 20, channels last": lambda: grids.OneHotPartialObsWrapper(room()),
}


@pytest.mark.parametrize("line", IMAGES)
def test_minigrid_says_what_its_images_are(line):
    stream = Stream(lambda k, seed: grids.ImgObsWrapper(IMAGES[line]()), Schedule(), ENGINES, 1, device="cpu")
    assert str(stream.observation_spec) == line
    seen = encoder(stream.observation_spec)(stream.reset()[0])
    assert 0 <= seen.min() < seen.max() <= 1
    if "20" in line:  # one-hot in the package, and so for the network
        assert set(seen.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("wrap", "line"),
    [
        (lambda env: grids.ImgObsWrapper(grids.FullyObsWrapper(env)), "codes, 5 x 5 x 3"),
        (grids.FlatObsWrapper, "vectors of 2835 numbers"),
        (lambda env: FlattenObservation(grids.ImgObsWrapper(env)), "vectors of 147 numbers"),
    ],
)
def test_minigrid_as_other_wrappers_show_it(wrap, line):
    stream = Stream(lambda k, seed: wrap(room()), Schedule(), ENGINES, 1)
    assert str(stream.observation_spec) == line


def test_codes_that_are_none_are_refused():
    def brighter(k, seed):
        env = grids.ImgObsWrapper(room())
        return TransformObservation(env, lambda codes: codes + np.uint8(100), env.observation_space)

    with pytest.raises(ValueError, match=r"not MiniGrid's codes.*--stream\.observations"):
        Stream(brighter, Schedule(), ENGINES, 1)


def test_planes_of_0_and_1_whose_space_says_255_are_reported(tmp_path):
    def dim(k, seed):
        env = Cue()
        env.observation_space = box(10, 10, 4)
        return env

    stream = Stream(dim, Schedule(), ENGINES, 1)
    assert "was above 1, but 255, the highest value of their space, is scaled to 1" in str(stream)
    assert "warning" not in str(Stream(lambda k, seed: Cue(), Schedule(), ENGINES, 1))


def test_vectors_with_the_widest_bounds_are_read_without_a_warning():
    class Wide(Cue):
        def __init__(self):
            super().__init__()
            self.observation_space = Box(-1.7e308, 1.7e308, (10, 10, 4), np.float64)
            self.dtype = np.float64

    stream = Stream(lambda k, seed: Wide(), Schedule(), ENGINES, 1)
    assert str(stream.observation_spec) == "vectors of 400 numbers"


@pytest.mark.parametrize("shape", [(10, 10, 4), (4, 10, 10), (40, 40, 3), (3, 40, 40)])
@pytest.mark.parametrize("high", [1, 9, 255])
def test_a_task_id_is_seen_as_ones_and_zeros(shape, high):
    raw = read_observations(box(*shape, high=high))
    preprocess = Preprocessing(raw, tasks=[2, 5])
    seen = preprocess(torch.zeros(3, *shape, dtype=torch.uint8), task=5)
    assert preprocess.spec.space.contains(seen[0].numpy())
    onehot = encoder(preprocess.spec)(seen)[:, -2:]
    assert (onehot[:, 0] == 0).all()
    assert (onehot[:, 1] == 1).all()


def test_a_spec_may_say_another_highest_value():
    spec = ObservationSpec(box(5, 5, 2), "planes", high=1.0)
    assert encoded(spec, np.ones((5, 5, 2), np.uint8)).unique().tolist() == [1.0]


SMALL = {"num_envs": 8, "optim": AdamConfig(), "probes": ProbeConfig(every=0), "total_steps": 3072, "seed": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "first", "dtype"),
    [
        ("last plane", False, np.uint8),
        ("last plane", True, bool),
        ("last column", False, bool),
        ("last column", True, np.uint8),
    ],
)
def test_a_cue_is_learnt_wherever_it_is(where, first, dtype, tmp_path):
    cue = {"dtype": dtype, "where": where, "channels_first": first}
    gym.register("Cue-v0", Cue, kwargs=cue)
    network = NetworkConfig(hidden=(64,))
    settings = SMALL | {"gamma": 0.0, "num_steps": 64}
    args = ppo.Args(stream=StreamConfig("Cue-v0"), network=network, runs_dir=tmp_path, **settings)
    summary = ppo.main(args)
    del gym.registry["Cue-v0"]
    assert summary["visits"][0]["return_at_end"] > 14


@pytest.mark.slow
def test_dqn_learns_a_cue_too(tmp_path):
    gym.register("Cue-v0", Cue, kwargs={"dtype": bool, "where": "last plane"})
    args = dqn.Args(
        stream=StreamConfig("Cue-v0"), network=NetworkConfig(hidden=(64,)), runs_dir=tmp_path,
        gamma=0.5, learning_starts=512, eps_steps=1000, target_every=50, **SMALL,
    )  # fmt: skip
    summary = dqn.main(args)
    del gym.registry["Cue-v0"]
    assert summary["visits"][0]["return_at_end"] > 14
