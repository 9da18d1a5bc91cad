"""Checkpoints: what is written is read back, whole or not at all, whatever is done to the files."""

import errno
import hashlib
import json
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoteny.runners.disk import checkpoint, files
from neoteny.runners.disk.checkpoint import (
    CheckpointError,
    DamagedError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from neoteny.runners.disk.files import remove_temporary, replace_file

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def state(step):
    """A state that knows its step in every part."""
    return {"step": step, "weights": torch.full((3, 2), float(step)), "log": [np.arange(step), "x" * step]}


def assert_same(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor | np.ndarray):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        one, two = (torch.as_tensor(each).contiguous().reshape(-1) for each in (one, two))
        assert torch.equal(torch.isnan(one), torch.isnan(two))
        assert torch.equal(one[~torch.isnan(one)], two[~torch.isnan(two)])
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two):
            assert_same(a, b)
    else:
        assert one == two or (math.isnan(one) and math.isnan(two))


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers(0, 255)).map(lambda x: torch.tensor(x, dtype=torch.uint8))
    | st.lists(st.floats(width=32)).map(lambda x: torch.tensor(x, dtype=torch.float32))
    | st.lists(st.floats()).map(lambda x: np.array(x, dtype=np.float64))
    | st.lists(st.booleans()).map(lambda x: np.array(x, dtype=bool))
    | st.integers(0, 2**63 - 1).map(lambda x: np.array(x))
    | st.sampled_from((torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool)).map(
        lambda dtype: torch.ones((2, 3), dtype=dtype).T
    )
    | st.just(np.asfortranarray(np.arange(6).reshape(2, 3)))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TREES)
def test_what_is_saved_is_loaded(tree):
    tensors = {}
    text = json.dumps(checkpoint._encode(tree, "", tensors))
    saved = checkpoint._serialize(tensors)
    assert saved == checkpoint.safetensors.torch.save(tensors)
    tensors = checkpoint.safetensors.torch.load(saved)
    assert_same(checkpoint._decode(json.loads(text), tensors), tree)


def test_views_and_shared_weights_are_saved(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path, 1, {"a": weight, "b": weight, "t": weight.t(), "row": weight[1]})
    loaded = load_checkpoint(tmp_path)
    assert_same(loaded, {"a": weight, "b": weight, "t": weight.t(), "row": weight[1]})


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cannot hold /parts/agent, a object"):
        save_checkpoint(tmp_path, 1, {"parts": {"agent": object()}})


def test_the_newest_of_two_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (5, 900, 10_000):
        save_checkpoint(tmp_path, step, state(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000000000900", "step_000000010000"]
    assert_same(load_checkpoint(tmp_path), state(10_000))


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 5, state(5))
    save_checkpoint(tmp_path, 5, state(5) | {"again": True})
    assert load_checkpoint(tmp_path)["again"]


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"0",
    "flipped at the start": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "flipped in the middle": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "flipped at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeroed": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_for_the_older_one(name, damage, tmp_path, capsys):
    for step in (10, 20):
        save_checkpoint(tmp_path, step, state(step))
    path = tmp_path / "step_000000000020" / name
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert_same(load_checkpoint(tmp_path), state(10))
    assert "step_000000000020" in capsys.readouterr().err
    assert len(list(tmp_path.glob(".corrupt_step_000000000020_*"))) == 1


def test_a_run_without_a_whole_checkpoint_is_refused_again_and_again(tmp_path):
    for step in (10, 20):
        (save_checkpoint(tmp_path, step, state(step)) / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
            load_checkpoint(tmp_path)


def forge(folder, **files):
    """A checkpoint whose manifest fits whatever is in its files."""
    path = save_checkpoint(folder, 1, state(1))
    for name, data in files.items():
        (path / {"tensors": FILES[0], "state": FILES[1]}[name]).write_bytes(data)
    listed = {
        name: {
            "size": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in FILES[:2]
    }
    (path / FILES[2]).write_text(json.dumps({"format": checkpoint.FORMAT, "step": 1, "files": listed}))
    return path


class Malice:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


MALICE = {
    "pickle for tensors": {"tensors": pickle.dumps(Malice())},
    "pickle for state": {"state": pickle.dumps(Malice())},
    "giant header": {"tensors": (2**60).to_bytes(8, "little") + b"{}"},
    "giant tensor": {
        "tensors": (lambda head: len(head).to_bytes(8, "little") + head)(
            json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        )
    },
    "missing tensor": {"state": b'{"dict": {"a": {"tensor": "nowhere"}}}'},
    "unknown kind": {"state": b'{"python": "import os"}'},
    "not a dict": {"state": b"[1, 2]"},
    "deep": {"state": b"[" * 100_000},
}


@pytest.mark.parametrize("kind", MALICE)
def test_a_malicious_checkpoint_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DamagedError):
        read_checkpoint(forge(tmp_path, **MALICE[kind]))
    assert not (tmp_path / "pwned").exists()


def test_a_manifest_names_no_other_files(tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = forge(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = manifest["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="lists unexpected files"):
        read_checkpoint(path)


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1))
    manifest = json.loads((path / "manifest.json").read_text()) | {"format": checkpoint.FORMAT + 1}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="newer version: format 3"):
        load_checkpoint(tmp_path)
    assert path.exists()


def test_an_older_format_is_refused_and_left_alone(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1))
    manifest = json.loads((path / "manifest.json").read_text()) | {"format": 1}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"made by neoteny 0\.1: finish the run with that version"):
        load_checkpoint(tmp_path)
    assert path.exists()


def test_a_full_disk_leaves_the_old_checkpoint_as_it_was(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    real = checkpoint.write_bytes

    def full(path, data):
        if path.name == "state.json":
            real(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001"]
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="bytes are needed"):
        save_checkpoint(tmp_path, 2, state(2))
    assert_same(load_checkpoint(tmp_path), state(1))


def test_what_a_killed_process_left_is_swept(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    for name in (".tmp_1", ".old_1"):
        shutil.copytree(tmp_path / "step_000000000001", tmp_path / name)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert len(list(tmp_path.iterdir())) == 3  # another process may be at work on them
    remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    replace_file(path, b"old")

    def full(path, data):
        path.write_bytes(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("summary.json", b"old")]
