"""Files of datasets in their published formats are read as written, others are refused with a sentence."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from neoteny.envs.datasets import CIFAR10, CIFAR100, DATASETS, MNIST, bits, cifar10, cifar100, digits, mnist

RNG = np.random.default_rng(0)


def idx(array):
    """The bytes of a compressed IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def write_mnist(folder, train=30, test=10):
    """Files like MNIST's, of random digits; returns what they hold."""
    arrays = []
    for count in (train, test):
        arrays += [RNG.integers(256, size=(count, 28, 28), dtype=np.uint8)]
        arrays += [RNG.integers(10, size=count, dtype=np.uint8)]
    for name, array in zip(MNIST, arrays):
        (folder / name).write_bytes(idx(array))
    return arrays


def write_cifar(folder, classes, count=20):
    """An archive like CIFAR's of a number of classes; returns the pictures and classes of its first file."""
    labels, name = (1, *CIFAR10) if classes == 10 else (2, *CIFAR100)
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    inside = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
    rows = {}
    with tarfile.open(folder / name, "w:gz") as archive:
        for file in names if classes == 10 else ["train", "test"]:
            rows[file] = RNG.integers(10, size=(count, labels + 3072), dtype=np.uint8)
            info = tarfile.TarInfo(f"{inside}/{file}.bin")
            info.size = rows[file].size
            archive.addfile(info, io.BytesIO(rows[file].tobytes()))
    first = next(iter(rows.values()))
    return first[:, labels:].reshape(-1, 3, 32, 32), first[:, labels - 1]


def test_digits_are_shared_out_among_training_and_validation():
    data = digits(None)
    assert (len(data.targets), len(data.validation_targets)) == (1498, 299)
    assert data.inputs.shape[1:] == data.validation_inputs.shape[1:] == (1, 8, 8)
    assert (data.inputs.dtype, data.targets.dtype, data.inputs.max()) == (torch.uint8, torch.int64, 255)
    assert data.targets.unique().tolist() == data.validation_targets.unique().tolist() == list(range(10))


def test_a_target_network_counts_how_many_bits_are_as_its_units_want_them():
    """By hand: a unit is 1 if at least 15 of 21 inputs, the constant 1 included, agree with its weights."""
    data, rng = bits(None), np.random.default_rng(0)
    hidden = rng.integers(2, size=(100, 21)) * 2 - 1
    out = rng.integers(2, size=101) * 2 - 1
    for row, target in zip(data.inputs[:20].int().tolist(), data.targets[:20].flatten().tolist()):
        agree = [sum((w == 1) == bool(x) for w, x in zip(unit, [*row, 1])) for unit in hidden]
        assert target == sum(w for w, count in zip(out, agree) if count >= 15) + out[-1]
    assert data.is_regression
    assert (data.inputs.shape, data.validation_inputs.shape) == ((10_000, 20), (1_000, 20))
    assert data.targets.std() > 1


def test_idx_files_are_read(tmp_path):
    images, labels, validation_images, validation_labels = write_mnist(tmp_path)
    data = mnist(tmp_path)
    assert data.inputs.shape == (30, 1, 28, 28)
    assert (data.inputs[:, 0].numpy() == images).all()
    assert (data.targets.numpy() == labels).all()
    assert (data.validation_inputs[:, 0].numpy() == validation_images).all()
    assert (data.validation_targets.numpy() == validation_labels).all()
    assert data.remark.startswith("warning: not as published, by their MD5: train-images-idx3-ubyte.gz, ")


@pytest.mark.parametrize(("read", "classes"), [(cifar10, 10), (cifar100, 100)])
def test_archives_of_cifar_are_read(read, classes, tmp_path):
    pictures, labels = write_cifar(tmp_path, classes)
    data = read(tmp_path)
    assert len(data.targets) == (100 if classes == 10 else 20)
    assert (data.inputs[:20].numpy() == pictures).all()
    assert (data.targets[:20].numpy() == labels).all()
    assert (data.validation_inputs.shape, data.outputs) == ((20, 3, 32, 32), classes)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_missing_files_are_named(name, tmp_path):
    files = " and ".join({"mnist": MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}[name])
    with pytest.raises(ValueError, match=f"{files} must be in .* as published, not unpacked"):
        DATASETS[name](tmp_path)


def test_damaged_files_are_refused(tmp_path):
    for damaged, match in [
        (b"", "not compressed by gzip|not an IDX file"),
        (b"plain text", "not compressed by gzip"),
        (idx(np.zeros((3, 28, 28), np.uint8))[:-20], "not compressed by gzip"),
        (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 5, 28, 28) + bytes(3 * 28 * 28)), "not an IDX file"),
        (gzip.compress(struct.pack(">HBB1I", 0, 13, 1, 4) + bytes(16)), "not an IDX file"),
    ]:
        write_mnist(tmp_path)
        (tmp_path / next(iter(MNIST))).write_bytes(damaged)
        with pytest.raises(ValueError, match=match):
            mnist(tmp_path)


def test_an_archive_of_other_files_is_refused(tmp_path):
    path = tmp_path / next(iter(CIFAR10))
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is not CIFAR's binary version"):
        cifar10(tmp_path)
    with tarfile.open(path, "w:gz") as archive:  # the version for Python
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), io.BytesIO())
    with pytest.raises(ValueError, match="is not CIFAR's binary version"):
        cifar10(tmp_path)
