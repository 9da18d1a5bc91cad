"""The pictures of a run show what was measured, and no run ends otherwise because of them."""

import dataclasses
import io
import json
import math
import sys

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neoteny.agents import ppo
from neoteny.configs.cli import cli
from neoteny.runners import illustrations, pictures
from neoteny.runners.disk.events import EventWriter
from neoteny.runners.disk.folder import run_folder
from neoteny.runners.pictures import DORMANT, SPECTRA, draw_pictures
from neoteny.runners.probes import ProbeConfig
from tests.killed import die

FLAGS = (
    "--stream.id cartpole-rotations --stream.period 100 --num-envs 2 --num-steps 8 --minibatches 2 "
    "--epochs 1 --network.hidden 8 8 --total-steps 256 --checkpoint-every 64 --probes.every 5 optim:adam"
)
BASE = cli(ppo.Args, {}, FLAGS.split())
DARKEST = (68, 1, 84)
"""The colour of an interval that holds all singular values of its layer."""


def written(folder, *measured):
    """A run's folder with measurements at steps 0, 100, ..."""
    folder.mkdir(exist_ok=True)
    writer = EventWriter(folder, 1)
    for i, metrics in enumerate(measured):
        writer.metrics(metrics, 100 * i)
    writer.close()
    return folder


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def dormant(**shares):
    return {DORMANT + layer.replace("_", "."): share for layer, share in shares.items()}


def test_rows_and_colours_are_the_layers_and_their_dormant_units(tmp_path):
    shares = dormant(actor_linear1=0.0, actor_linear2=1.0, max=1.0, total=0.5)
    folder = written(tmp_path, *[shares] * 5)
    made = draw_pictures(folder, [])
    assert made.keys() == {"dormant"}
    image = pixels(made["dormant"])
    assert len(image) == 170  # two rows of 40 between title and axis
    awake, asleep = (image[top : top + 30, 140:520] for top in (40, 80))
    assert (awake > (240, 240, 180)).all()
    assert (asleep < (10, 10, 10)).all()


def test_a_switch_is_a_line_at_its_step(tmp_path):
    folder = written(tmp_path, *[dormant(actor_linear1=0.2)] * 5)
    calm, switched = (pixels(draw_pictures(folder, steps)["dormant"]) for steps in ([], [100, 400, 999]))
    columns = np.nonzero((calm != switched).any(axis=(0, 2)))[0]
    assert abs(columns - 230).max() <= 1  # the axis is 400 wide from 130 on, and 400 steps long
    crowded = draw_pictures(folder, range(1, 400))["dormant"]
    assert (pixels(crowded) == calm).all()


def test_spectrum_picture(tmp_path):
    wide = np.geomspace(0.05, 20, 64).tolist()
    spectra = {f"{SPECTRA}actor.linear1": [1.0] * 64, f"{SPECTRA}critic.linear1": wide}
    image = pixels(draw_pictures(written(tmp_path, *[spectra] * 3), [])["spectra"])
    dark = (image == DARKEST).all(axis=2)
    first, second = dark[35:205, 80:480], dark[35:205, 520:920]
    assert first.any(axis=0).mean() > 0.95  # from the first step to the last
    assert 0 < first.any(axis=1).sum() <= 6
    assert not second.any()


def test_no_picture_needs_fonts_for_formulas(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", None)
    measured = {f"{SPECTRA}q.linear1": [1e-3, 0.5, 20.0], **dormant(q_linear1=0.5)}
    assert len(draw_pictures(written(tmp_path, measured, measured), [100])) == 2


def test_heads_have_no_picture_and_parts_stand_side_by_side(tmp_path):
    layers = ("actor.conv1", "actor.linear1", "actor.head", "critic.head", "critic.linear1")
    spectra = {SPECTRA + layer: [0.5, 1.0, 2.0] for layer in layers}
    size = pixels(draw_pictures(written(tmp_path, spectra, spectra), [])["spectra"]).shape
    assert size == (470, 1040, 3)  # two rows of two
    heads = {f"{SPECTRA}actor.head": [1.0], **dormant(max=0.5)}
    assert draw_pictures(written(tmp_path / "heads", heads, heads), []) == {}


def test_one_measurement_is_no_picture(tmp_path):
    assert (
        draw_pictures(written(tmp_path, {f"{SPECTRA}q.linear1": [1.0], **dormant(q_linear1=0.1)}), []) == {}
    )


def test_a_broken_network_is_drawn(tmp_path):
    sound = {f"{SPECTRA}q.linear1": [2.0, 1e-9, 0.0], **dormant(q_linear1=0.5)}
    broken = {f"{SPECTRA}q.linear1": [math.inf, 1e30], **dormant(q_linear1=math.nan)}
    huge = {f"{SPECTRA}q.linear1": [1e30, 1.0], **dormant(q_linear1=math.nan)}
    assert draw_pictures(written(tmp_path, sound, broken, huge), [100]).keys() == {"spectra", "dormant"}


def test_a_long_run_is_drawn_from_some_of_its_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "COLUMNS", 3)
    shares = [dormant(q_linear1=share) for share in (0.0, 0.9, 0.5, 0.9, 1.0)]
    few, many = written(tmp_path / "few", *shares[::2]), written(tmp_path / "many", *shares)
    left, right = (pixels(draw_pictures(folder, [])["dormant"])[40:60] for folder in (few, many))
    assert (left == right).all()


# In runs


def small(folder, **changes):
    return dataclasses.replace(BASE, runs_dir=folder, **changes)


def drawn(args):
    """The pictures in a finished run's folder, which are those in TensorBoard."""
    folder = run_folder("ppo", args)
    assert json.loads((folder / "summary.json").read_text())["visits"]
    files = {path.stem: path.read_bytes() for path in folder.glob("pictures/*")}
    events = EventAccumulator(str(folder)).Reload()
    shown = {
        tag.removeprefix("pictures/"): [
            (image.step, image.encoded_image_string) for image in events.Images(tag)
        ]
        for tag in events.Tags()["images"]
    }
    assert shown == {name: [(256, png)] for name, png in files.items()}
    return files


def test_a_killed_run_ends_with_the_pictures_of_one_that_was_not(tmp_path, monkeypatch):
    calm, killed = small(tmp_path / "calm"), small(tmp_path / "killed")
    ppo.main(calm)
    assert drawn(calm).keys() == {"spectra", "dormant"}
    for step in (100, 200):
        die(ppo, killed, step, monkeypatch)
    ppo.main(killed)
    assert drawn(killed) == drawn(calm)
    ppo.main(dataclasses.replace(calm, overwrite=True, probes=ProbeConfig(pictures=False)))
    assert drawn(calm) == {}


def test_tensorboard_has_both_pictures_and_the_spectra_as_histograms(tmp_path):
    args = small(tmp_path)
    summary = ppo.main(args)
    assert drawn(args).keys() == {"spectra", "dormant"}
    assert summary["seconds"]["pictures"] > 0
    layers = [f"{part}.linear{i}" for part in ("actor", "critic") for i in (1, 2)]
    shown = EventAccumulator(str(run_folder("ppo", args))).Reload().Tags()["histograms"]
    assert {f"spectra/{layer}" for layer in layers} <= set(shown)


def test_no_pictures_leaves_the_drawing_out(tmp_path):
    args = small(tmp_path, probes=ProbeConfig(every=5, pictures=False))
    assert "pictures" not in ppo.main(args)["seconds"]
    assert drawn(args) == {}


def test_without_matplotlib_one_sentence_says_so(tmp_path, monkeypatch, capsys):
    for name in ("figure", "ticker", "backends.backend_agg"):
        monkeypatch.setitem(sys.modules, f"matplotlib.{name}", None)
    ppo.main(small(tmp_path))
    output = capsys.readouterr().out
    assert output.count("pictures of the run need matplotlib: pip install") == 1
    assert drawn(small(tmp_path)) == {}


def test_pictures_that_fail_are_reported_in_one_line_and_lose_no_run(tmp_path, monkeypatch, capsys):
    def full(path, data):
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")
        replace_file(path, data)

    replace_file = illustrations.replace_file
    monkeypatch.setattr(illustrations, "replace_file", full)
    ppo.main(small(tmp_path))
    output = capsys.readouterr().out.splitlines()
    assert "there are no pictures of the run: OSError: [Errno 28] No space left on device" in output
    assert drawn(small(tmp_path)) == {}
