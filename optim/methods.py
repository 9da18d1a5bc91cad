"""Methods that keep a network plastic: a configuration each, by name."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = ["METHODS", "IsometryConfig", "MethodConfig", "methods_as_dict"]


@dataclass(frozen=True)
class MethodConfig:
    """What a method is and acts on; the base of all methods' configurations."""

    name: ClassVar[str] = ""

    on: Literal["actor", "critic", "all"] = "all"
    """The part of the agent that the method acts on."""


@dataclass(frozen=True)
class IsometryConfig(MethodConfig):
    """A penalty on weights that are no isometries."""

    name: ClassVar[str] = "isometry"

    coef: float = 1e-3
    """Weight of the penalty in the loss."""
    scale: float = 2.0
    """Target of the squared singular values."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.coef >= 0:
            raise ValueError(f"coef must not be negative, got {self.coef}")


METHODS: dict[str, type[MethodConfig]] = {IsometryConfig.name: IsometryConfig}
"""The methods of this package, by the names that a command line knows them by."""


def methods_as_dict(configs: Iterable[MethodConfig]) -> dict[str, dict[str, Any]]:
    """Fields of each method, by its name, or by `module:Class` if it is a user's own."""
    return {_key(type(config)): dataclasses.asdict(config) for config in configs}


def _key(config_type: type[MethodConfig]) -> str:
    """What a command line calls a method."""
    ours = METHODS.get(config_type.name) is config_type
    return config_type.name if ours else f"{config_type.__module__}:{config_type.__qualname__}"
