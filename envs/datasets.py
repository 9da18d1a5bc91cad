"""Datasets for supervised streams: packages that contain or generate them, and files as they are published.

Nothing is downloaded. MNIST is read from its files in IDX format, CIFAR from the archives of its binary
version. The version of CIFAR for Python holds pickles, which could run code, and is never read.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MNIST = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR10 = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
CIFAR100 = {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}
"""Files of a dataset, with the MD5 that their authors publish."""


INPUT_BITS, TARGET_UNITS, THRESHOLD = 20, 100, 0.7
"""Of the slowly changing regression problem, see :class:`TargetNetwork`."""


class Dataset(NamedTuple):
    """Samples to learn from, and others of the same kind to validate on.

    Inputs are images (n, C, H, W), uint8, or vectors (n, D), float32. Targets are classes (n,), int64, or the
    values of a regression (n, O), float32.
    """

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    outputs: int  # number of classes, or O
    remark: str = ""  # a warning about the files, or an empty string

    @property
    def is_regression(self) -> bool:
        """Whether targets are values and not classes."""
        return self.targets.is_floating_point()


def digits(folder: Path) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels, of which every sixth is for validation."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # pixels from 0 to 16
    pixels = torch.from_numpy((images * 255 / 16).round().astype(np.uint8)).view(-1, 1, 8, 8)
    classes = torch.from_numpy(labels).long()
    held_out = torch.arange(len(classes)) % 6 == 5
    return Dataset(pixels[~held_out], classes[~held_out], pixels[held_out], classes[held_out], 10)


def mnist1d(folder: Path) -> Dataset:
    """MNIST-1D (Greydanus and Kobak, ICML 2024): 4,000 vectors of 40 numbers, 1,000 more for validation."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    inputs = [torch.tensor(made[name], dtype=torch.float32) for name in ("x", "x_test")]
    classes = [torch.tensor(made[name], dtype=torch.int64) for name in ("y", "y_test")]
    return Dataset(inputs[0], classes[0], inputs[1], classes[1], 10)


def bits(folder: Path) -> Dataset:
    """10,000 vectors of 20 bits, 1,000 more for validation, and what a random network makes of them."""
    rng = np.random.default_rng(0)
    target_network = TargetNetwork(INPUT_BITS, rng)
    inputs, validation_inputs = (random_bits((count, INPUT_BITS), rng) for count in (10_000, 1_000))
    return Dataset(
        inputs, target_network(inputs), validation_inputs, target_network(validation_inputs), outputs=1
    )


class TargetNetwork:
    """The network to be learned in slowly changing regression: threshold units, and weights of -1 and 1.

    A unit is 1 if more than 70 % of its inputs, of which one is always 1, are as it wants them: 1 where its
    weight is 1, and 0 where it is -1. The output is the sum of all units and 1, weighted. (S. Dohare et al.,
    "Loss of plasticity in deep continual learning", Nature 632, 2024, methods.)

    Args:
        inputs: number of bits.
        rng: draws the weights.
    """

    def __init__(self, inputs: int, rng: np.random.Generator) -> None:
        weights = [
            rng.integers(2, size=size) * 2 - 1 for size in ((TARGET_UNITS, inputs + 1), TARGET_UNITS + 1)
        ]
        self.hidden, self.out = (torch.from_numpy(weight).float() for weight in weights)
        self.thresholds = THRESHOLD * (inputs + 1) - (self.hidden == -1).sum(1)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Bits (n, inputs) -> values (n, 1), float32."""
        units = (_with_one(inputs) @ self.hidden.T > self.thresholds).float()
        return _with_one(units) @ self.out[:, None]


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat((rows, torch.ones(len(rows), 1)), 1)


def random_bits(shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Zeros and ones, float32."""
    return torch.from_numpy(rng.integers(2, size=shape)).float()


def mnist(folder: Path) -> Dataset:
    """MNIST (LeCun et al., 1998): 60,000 handwritten digits of 28x28 pixels, 10,000 for validation."""
    remark = _check_files(folder, MNIST)
    images, labels, validation_images, validation_labels = (_read_idx(folder / name) for name in MNIST)
    return Dataset(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(),
        torch.from_numpy(validation_images)[:, None], torch.from_numpy(validation_labels).long(),
        10, remark,
    )  # fmt: skip


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 pictures of 32x32 pixels in 10 classes, 10,000 for validation."""
    batches = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar(folder, CIFAR10, batches, "cifar-10-batches-bin/test_batch.bin", labels=1, classes=10)


def cifar100(folder: Path) -> Dataset:
    """CIFAR-100 (Krizhevsky, 2009): 50,000 pictures of 32x32 pixels in 100 classes, 10,000 for validation."""
    train, test = (f"cifar-100-binary/{name}.bin" for name in ("train", "test"))
    return _cifar(folder, CIFAR100, [train], test, labels=2, classes=100)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    function.__name__: function for function in (digits, mnist1d, mnist, cifar10, cifar100, bits)
}
"""Functions that read a dataset from a folder, by its name."""


def _check_files(folder: Path, files: Mapping[str, str]) -> str:
    """A warning about files that are not the published ones, or an empty string.

    Raises:
        ValueError: a file is missing; says where to put it.
    """
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(
            f"{' and '.join(missing)} must be in {folder} (--stream.folder), as published, not unpacked"
        )
    changed = [
        name
        for name, published in files.items()
        if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != published
    ]
    return f"warning: not as published, by their MD5: {', '.join(changed)}" if changed else ""


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of a compressed IDX file of unsigned bytes.

    Raises:
        ValueError: it is no such file.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not compressed by gzip: {error}") from error
    # Two zeros, the type (8: unsigned bytes), the number of axes, then their lengths.
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", axes, offset=4) if len(data) >= 4 + 4 * axes else ()
    if not axes or len(data) != 4 + 4 * axes + np.prod(shape, dtype=int):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    return np.frombuffer(bytearray(data), np.uint8, offset=4 + 4 * axes).reshape(shape)


def _cifar(
    folder: Path, files: Mapping[str, str], train: Sequence[str], test: str, labels: int, classes: int
) -> Dataset:
    """A dataset from the archive of CIFAR's binary version.

    Args:
        folder: of the archive.
        files: its name and MD5.
        train: names in the archive of the files with samples to learn from.
        test: and of the one to validate on.
        labels: bytes of labels before each picture, the last of which is its class.
        classes: number of classes.
    """
    remark = _check_files(folder, files)
    (path,) = (folder / name for name in files)
    records = {}
    try:
        with tarfile.open(path) as archive:
            for name in (*train, test):
                member = archive.extractfile(name)
                if member is None:
                    raise ValueError(f"{name} in {path} is not a file")
                records[name] = np.frombuffer(bytearray(member.read()), np.uint8).reshape(-1, labels + 3072)
    except (tarfile.TarError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not CIFAR's binary version: {error}") from error
    parts = (np.concatenate([records[name] for name in train]), records[test])
    (inputs, targets), (validation_inputs, validation_targets) = (
        (rows[:, labels:].reshape(-1, 3, 32, 32).contiguous(), rows[:, labels - 1].long())
        for rows in map(torch.from_numpy, parts)
    )
    return Dataset(inputs, targets, validation_inputs, validation_targets, classes, remark)
