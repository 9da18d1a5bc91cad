"""Arms for comparisons: optimizers, methods and networks, each with one flag to tune and three values of it.

They fit streams with some hundred gradient steps a task, such as ``cartpole-rotations`` with PPO, which has
384: methods whose papers act every thousand steps or more act every hundred here, so that they act within a
task. The values are those of the papers where these have some; otherwise they surround the default.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TunedArm:
    """An arm and its grid.

    Args:
        flag: which is tuned, without its dashes.
        values: to try.
        optim: name of the optimizer.
        methods: names of methods, joined by ``+``, or "none".
        words: further words of its command lines.
    """

    flag: str
    values: tuple[str, ...]
    optim: str = "adam"
    methods: str = "none"
    words: tuple[str, ...] = ()


def _method(name: str, flag: str, values: str, **fixed: object) -> TunedArm:
    """Adam with a method: the flag of the method that is tuned, its values, and other flags of it."""
    words = [word for each, value in fixed.items() for word in (f"--methods.{name}.{each}", str(value))]
    return TunedArm(f"methods.{name}.{flag}", tuple(values.split()), methods=name, words=tuple(words))


def _network(note: str, *words: str, methods: str = "none") -> TunedArm:
    """Adam with another network; the note is part of the names of its runs."""
    return TunedArm("lr", RATES, methods=methods, words=(*words, "--note", note))


RATES = ("3e-4", "1e-3", "3e-3")
COEFS = "1e-4 1e-3 1e-2"

ARMS: dict[str, TunedArm] = {
    # The twelve that papers of 2025 and 2026 compare most, without those that know when the task switches.
    "adam": TunedArm("lr", RATES),
    "redo": _method("redo", "tau", "0 0.025 0.1", every=100),
    "shrink_perturb_every": _method("shrink_perturb_every", "shrink", "0.8 0.9 0.98", every=100),
    "l2_init": _method("l2_init", "coef", COEFS),
    "reset": _method("reset", "every", "100 200 400"),
    "layer_norm": _network("layer_norm", "--network.norm", "layer"),
    "continual_backprop": _method("continual_backprop", "rate", "1e-4 3e-4 1e-3", maturity=100, every=10),
    "l2": _method("l2", "coef", COEFS),
    "crelu": _network("crelu", "--network.activation", "crelu"),
    "parseval": _method("parseval", "coef", COEFS),
    "spectral": _method("spectral", "coef", COEFS),
    "adamo": TunedArm("optim.iso", ("0.03", "0.1", "0.3"), optim="adamo"),
    # The others.
    "nap": _network("layer_norm", "--network.norm", "layer", methods="nap"),
    "muon": TunedArm("lr", RATES, optim="muon"),
    "muono": TunedArm("optim.iso", ("0.03", "0.1", "0.3"), optim="muono"),
    "weight_clipping": _method("weight_clipping", "kappa", "1 2 5"),
    "upgd": TunedArm("optim.sigma", ("1e-3", "1e-2", "1e-1"), optim="upgd"),
    "trac": TunedArm("lr", RATES, optim="trac"),
    "adamw": TunedArm("optim.weight_decay", ("1e-2", "1e-1", "1"), optim="adamw"),
    "isometry": _method("isometry", "coef", COEFS),
    "cpr": _method("cpr", "rate", "0.005 0.015 0.05", every=100),
    "regrama": _method("regrama", "tau", "0 0.01 0.1", every=100),
    "snr": _method("snr", "eta", "0.01 0.02 0.05"),
    "c_chain": _method("c_chain", "scale", "0.01 0.05 0.1"),
    "shrink_perturb": _method("shrink_perturb", "decay", "1e-2 1e-1 1"),
    "hare_tortoise": _method("hare_tortoise", "decay", "0.9 0.99 0.999", every=100),
    "injection": _method("injection", "after", "100 200 400"),
    "fourier": _network("fourier", "--network.activation", "fourier"),
    "adamo_maxmin": TunedArm(
        "optim.iso",
        ("0.03", "0.1", "0.3"),
        "adamo",
        words=("--network.activation", "maxmin", "--note", "maxmin"),
    ),
    "maxmin": _network("maxmin", "--network.activation", "maxmin"),
    "orthogonal": _network(
        "maxmin-orthogonal", "--network.activation", "maxmin", "--network.linear", "orthogonal"
    ),
    # These know when the task switches.
    "fire_at_switch": TunedArm("lr", RATES, methods="fire_at_switch"),
    "shrink_perturb_at_switch": _method("shrink_perturb_at_switch", "share", "0.2 0.5 0.8"),
    "reset_at_switch": _method("reset_at_switch", "layers", "1 2 0"),
    "injection_at_switch": TunedArm("lr", RATES, methods="injection_at_switch"),
}
"""Arms by name, for ``sweep.py --arms``."""
