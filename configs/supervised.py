"""Presets of the supervised learner: changes to the defaults of ``Args``.

``iso`` is chosen so that the isometry budget, learning rate x iso x gradient steps of the run, is about 1.
"""

from typing import Any

# The multilayer perceptron, the convolutional network and the batch sizes of Rosseau et al. (ICML 2026).
MLP = {"network": {"hidden": (512, 512, 512, 512)}, "lr": 1e-4, "probes": {"every": 40}}
CNN = {
    "network": {"kind": "cnn", "hidden": (256, 256)},
    "lr": 1e-3,
    "probes": {"every": 40, "ntk_samples": 8},  # whose cost is quadratic in samples times classes
}

PRESETS: dict[str, dict[str, Any]] = {
    # Random labels for 640 digits, anew in each of 40 tasks: Adam falls to chance within a minute.
    "digits-random-labels": {},
    # The same digits behind ever new orders of pixels, or with ever new numbers of classes.
    "digits-permuted-pixels": {"stream": {"change": "permuted-pixels", "epochs": 5, "samples": None}},
    "digits-shuffled-labels": {"stream": {"change": "shuffled-labels", "epochs": 3, "samples": None}},
    # Rosseau et al.: 1,000, 200 and 1,000 tasks; needs CIFAR's files in --stream.folder.
    "cifar10-permuted-pixels": {
        **MLP,
        "batch_size": 250,
        "num_tasks": 1_000,
        "stream": {"data": "cifar10", "change": "permuted-pixels", "epochs": 40, "samples": None},
        "optim": {"iso": 1e-3},
    },
    "cifar10-random-labels": {
        **MLP,
        "batch_size": 128,
        "num_tasks": 200,
        "stream": {"data": "cifar10", "epochs": 256, "samples": None},
        "optim": {"iso": 1e-3},
    },
    "cifar100-shuffled-labels": {
        **CNN,
        "batch_size": 250,
        "num_tasks": 1_000,
        "stream": {"data": "cifar100", "change": "shuffled-labels", "epochs": 40, "samples": None},
        "optim": {"iso": 1e-3},
    },
}
