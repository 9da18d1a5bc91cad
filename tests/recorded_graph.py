"""A stand-in for CUDA graphs on a CPU: operations are recorded and repeated on the same memory.

Like a CUDA graph it knows nothing of Python: numbers keep the values that they had when it was recorded, and
a tensor that was replaced by another is not found again. What a graph cannot do is refused.
"""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from neoteny.envs import Stream
from neoteny.optim import AdamO, orthogonal
from neoteny.runners.capture import Capture
from neoteny.runners.rollout import Rollout

READS = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::lift_fresh", "aten::repeat_interleave.Tensor", "aten::bincount", "aten::randperm",
}  # fmt: skip
"""Operations that wait for a GPU, or copy from the host to it."""

METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")
"""Methods of tensors that read from a GPU, some of which are no operation on a CPU."""


class ReadError(RuntimeError):
    """What is recorded reads from the device."""


def refuse(name: str) -> Callable[..., Any]:
    """What stands for a method that reads."""

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise ReadError(f"Tensor.{name} reads from the device")

    return method


class Recorder(TorchDispatchMode):
    """Collects operations while it does them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "")
        if name in READS or func._schema.name in READS:
            raise ReadError(f"{name} reads from the device")
        if name in ("aten::index.Tensor", "aten::index_put_") and _has_mask(args):
            raise ReadError("indexing by a mask reads from the device")
        made = func(*args, **(kwargs or {}))
        inputs = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        new = [each for each in _tensors(made) if each.untyped_storage().data_ptr() not in inputs]
        if new or func._schema.is_mutable:  # a view stays what it is
            self.calls.append((func, args, kwargs or {}, _tensors(made) if new else []))
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_flatten(tree)[0] if isinstance(each, Tensor)]


def _has_mask(args: Any) -> bool:
    return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))


class RecordedGraph:
    """Records and repeats the operations of a function, as `CudaGraph` does its kernels."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.is_new = True

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call a function as it is called on a GPU."""
        with as_on_a_gpu():
            return function()

    def record(self, function: Callable[[], Any]) -> Any:
        """Call a function. Its operations are done already, so that the first replay is none."""
        recorder = Recorder()
        with contextlib.ExitStack() as patches:
            for name in METHODS:
                patches.enter_context(mock.patch.object(Tensor, name, refuse(name)))
            patches.enter_context(mock.patch.object(orthogonal, "_is_recorded", return_value=True))
            patches.enter_context(as_on_a_gpu())
            with recorder:
                made = function()
        self.calls = recorder.calls
        return made

    def replay(self) -> None:
        """Repeat the operations."""
        if self.is_new:
            self.is_new = False
            return
        with torch.inference_mode():
            for func, args, kwargs, outputs in self.calls:
                made = _tensors(func(*args, **kwargs))
                for output, now in zip(outputs, made):
                    output.copy_(now)


@contextlib.contextmanager
def as_on_a_gpu():
    """Nothing is read that need not be, as if that took long."""
    with (
        mock.patch.object(Stream, "may_have", return_value=True),
        mock.patch.object(Rollout, "row", lambda rollout: rollout.t),
        mock.patch.object(AdamO, "_skips_on_device", return_value=True),
    ):
        yield


class RecordedCapture(Capture):
    """Captures on a CPU."""

    def __init__(self, device: torch.device, graphs: bool = True, compile: bool = False) -> None:
        super().__init__(device, graphs, compile)
        if graphs:
            self.new_graph = RecordedGraph  # type: ignore[assignment]
