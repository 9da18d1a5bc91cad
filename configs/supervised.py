"""Presets of the supervised learner: changes to the defaults of ``Args``.

``iso`` is chosen so that the isometry budget, learning rate x iso x gradient steps of the run, is about 1; in
the protocols of Rosseau et al. it is theirs.
"""

from collections.abc import Mapping
from typing import Any

# Rosseau et al. (ICML 2026): batch sizes, epochs, tasks, learning rates and the pull, towards singular values
# of 1. They leave open the gain of the orthogonal initialization (here that of the activation function), the
# padding of the convolutions (here none), and the width and the patches of the transformer.
PAPER = {"batch_size": 250, "num_tasks": 1_000, "probes": {"every": 40}}
ISOMETRY = {"iso": 1e-3, "iso_scale": 1.0}
MLP = {**PAPER, "network": {"hidden": (512, 512, 512, 512)}, "lr": 1e-4, "optim": ISOMETRY}
CNN = {**PAPER, "network": {"kind": "cnn", "hidden": (256, 256)}, "optim": ISOMETRY}
CNN["probes"] = {"every": 40, "ntk_samples": 8}  # whose cost is quadratic in samples times classes
VIT = {**PAPER, "network": {"kind": "vit", "hidden": (128, 128, 128, 128)}, "optim": ISOMETRY}

# The same networks on fewer samples and tasks, at a larger learning rate: minutes instead of days.
SMALL = {"num_tasks": 40, "lr": 1e-3, "optim": {"iso": 0.1, "iso_scale": 1.0}}
SMALL_MLP = {**MLP, **SMALL}

# Dohare et al. (Nature, 2024): a network too small for its task, and a new sample in each gradient step.
REGRESSION = {"network": {"hidden": (5,)}, "batch_size": 1, "num_tasks": 100, "probes": {"every": 4}}


def preset(
    shared: Mapping[str, Any], data: str, change: str, epochs: int, samples: int | None = None, **others: Any
) -> dict[str, Any]:
    """A preset: changes that several streams share, those for this stream, and others."""
    stream = {"data": data, "change": change, "epochs": epochs, "samples": samples}
    return {**shared, "stream": stream, **others}


PRESETS: dict[str, dict[str, Any]] = {
    # Random labels for 640 digits, anew in each of 40 tasks: Adam falls to chance within a minute.
    "digits-random-labels": {},
    # The same digits behind ever new orders of pixels, or with ever new numbers of classes.
    "digits-permuted-pixels": preset({}, "digits", "permuted-pixels", epochs=5),
    "digits-shuffled-labels": preset({}, "digits", "shuffled-labels", epochs=3),
    "digits-permuted-pixels-vit": preset(
        {}, "digits", "permuted-pixels", epochs=2, num_tasks=50, lr=3e-3,
        network={"kind": "vit", "hidden": (32, 32, 32, 32)},
        optim={"iso": 0.1, "iso_scale": 1.0}, probes={"every": 10},
    ),
    # Rosseau et al.: need the files of MNIST or CIFAR in --stream.folder.
    "mnist-permuted-pixels": preset(MLP, "mnist", "permuted-pixels", epochs=40),
    "mnist-permuted-pixels-small": preset(SMALL_MLP, "mnist", "permuted-pixels", 10, samples=5_000),
    "cifar10-permuted-pixels": preset(MLP, "cifar10", "permuted-pixels", epochs=40),
    "cifar10-permuted-pixels-small": preset(SMALL_MLP, "cifar10", "permuted-pixels", 10, samples=5_000),
    "cifar10-permuted-pixels-vit": preset(VIT, "cifar10", "permuted-pixels", epochs=40),
    "cifar10-random-labels": preset(
        MLP, "cifar10", "random-labels", epochs=256, batch_size=128, num_tasks=200
    ),
    "cifar10-random-labels-small": preset(
        SMALL_MLP, "cifar10", "random-labels", epochs=50, samples=1_280, batch_size=128
    ),
    "cifar100-shuffled-labels": preset(CNN, "cifar100", "shuffled-labels", epochs=40),
    "cifar100-shuffled-labels-small": preset(
        {**CNN, **SMALL}, "cifar100", "shuffled-labels", epochs=5, samples=10_000
    ),
    # Dohare et al.: one of 15 input bits flips after each 10,000 samples.
    "slowly-changing-regression": preset(
        REGRESSION, "bits", "flipping-bits", epochs=1, optim={"iso": 1e-3, "iso_scale": 1.0}
    ),
    "slowly-changing-regression-small": preset(
        REGRESSION, "bits", "flipping-bits", epochs=1, batch_size=10, num_tasks=40,
        optim={"iso": 0.025, "iso_scale": 1.0},
    ),
}  # fmt: skip
