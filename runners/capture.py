"""Functions of tensors, replayed without Python: as CUDA graphs on a GPU, and compiled where asked for.

On a GPU, small networks wait for Python, which launches every kernel on its own. A function of *static
tensors*, such as an agent's rollout step or gradient step, reads and writes the same memory at each call,
never reads a value from the device and never branches on one. Its kernels are then the same at each call:
they are recorded once, as a CUDA graph, and replayed with a single launch.

What such a function does on the host is not part of the graph. The objects that it belongs to are named when
the function is captured: they say which kernels the next call needs, or count each replay.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from neoteny.optim.optimizer import options

Function = TypeVar("Function", bound=Callable[..., Any])

WARM_UP = 3
"""Ordinary calls of each variant before it is recorded, in which it is compiled and libraries are set up."""

KEPT = 4
"""Variants of a function whose graphs are kept; those of earlier tasks are recorded anew if they recur."""

OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {"fallback_random": True, "max_autotune_gemm": True},
    "cpu": {"fallback_random": True, "cpp_wrapper": True, "size_asserts": False},
}
"""Options of the compiler: PyTorch's own random numbers; on a GPU the fastest of many kernels for each matrix
product, with bias and activation in it; on a CPU calls from C++, since those from Python would take as long
as the kernels themselves."""

COPIED = (Tensor, tuple)
"""Types of arguments that are copied to where the recorded kernels read them."""

FORMS = 64
"""Compiled forms that a function may have, one for each kind of task."""


@runtime_checkable
class Varying(Protocol):
    """An object whose state on the host decides which kernels a captured function launches."""

    def variant(self) -> Hashable:
        """What distinguishes the kernels of the next call; ``None`` if that must not be captured."""


@runtime_checkable
class Counting(Protocol):
    """An object that counts the calls of a captured function on the host."""

    def count_replay(self) -> None:
        """Count a call that is replayed or compiled, in which nothing is counted."""


class CaptureError(RuntimeError):
    """A function could not be captured or replayed; the message names it and the remedy."""


class CompileError(RuntimeError):
    """A function could not be compiled; the message names it and the remedy."""


class Capture:
    """Captures functions for a device.

    Args:
        device: that the functions compute on.
        graphs: replay CUDA graphs; without effect on other devices.
        compile: compile the functions.
    """

    def __init__(self, device: torch.device, graphs: bool = True, compile: bool = False) -> None:
        self.compile = compile
        self.options = dict(OPTIONS.get(device.type, {}))
        if torch.are_deterministic_algorithms_enabled():  # which kernel is fastest may change from run to run
            self.options.pop("max_autotune_gemm", None)
        elif compile and "max_autotune_gemm" in self.options:  # kernels that do not fit are errors there
            logging.getLogger("torch._inductor.select_algorithm").setLevel(logging.CRITICAL)
        self.new_graph = (lambda: CudaGraph(device)) if graphs and device.type == "cuda" else None
        if compile:
            torch._dynamo.config.recompile_limit = FORMS

    def __call__(
        self,
        function: Function,
        *parts: Varying | Counting | Optimizer,
        when: bool = True,
        compile: bool = True,
    ) -> Function:
        """A function that does the same as ``function``, but is compiled, if asked for, and captured.

        The first calls of each variant are ordinary ones, the next is recorded, and later ones replay it.
        Tensors among the arguments, and those in another tuple than before, are copied to where the recorded
        kernels read them; all other arguments must be the same objects at each call. Tensors that are
        returned are overwritten by the next call.

        Args:
            function: of static tensors, see above.
            parts: objects that it reads or changes on the host.
            when: if false, the function is returned as it is.
            compile: whether it may be compiled.

        Raises:
            ValueError: an optimizer may count its steps on the host.
        """
        if not when or (self.new_graph is None and not (self.compile and compile)):
            return function
        varying = [part for part in parts if isinstance(part, Varying)]
        for part in parts:
            if isinstance(part, Optimizer) and not isinstance(part, Varying):
                if self.new_graph:
                    _check_capturable(part)
                varying.append(Options(part))
        counting = [part for part in parts if isinstance(part, Counting)]
        fast: Any = self.compiled(function) if compile else function
        return Captured(function, fast, varying, counting, self.new_graph)  # type: ignore[return-value]

    def compiled(self, function: Function) -> Function:
        """The function, compiled if that was asked for; it raises CompileError if it cannot be."""
        if not self.compile:
            return function
        made: Any = torch.compile(function, dynamic=False, options=self.options)

        def call(*args: Any) -> Any:
            try:
                return made(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                cause = getattr(error, "inner_exception", error)
                raise CompileError(
                    f"{_name(function)} cannot be compiled: {type(cause).__name__}: {str(cause).strip()}\n"
                    "Without --compile it runs as it is."
                ) from error

        return call  # type: ignore[return-value]


class Options:
    """The options of an optimizer that counts nothing on the host: when one changes, steps are others."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def variant(self) -> Hashable:
        """As in :class:`Varying`."""
        return options(self.optimizer)


def _check_capturable(optimizer: Optimizer) -> None:
    """Raise ValueError if an optimizer counts its steps on the host, or may do so."""
    if not all(group.get("capturable") or group.get("fused") for group in optimizer.param_groups):
        raise ValueError(
            f"steps of {type(optimizer).__name__} cannot be captured as a CUDA graph, since it may count "
            "them on the host; --no-graphs runs them one by one"
        )


class Captured:
    """A function with its recorded calls, by variant.

    Raises:
        CaptureError: it cannot be captured, or is called with other objects than before.
    """

    running = False
    """Whether any captured function runs: those that it calls become a part of it."""

    def __init__(
        self,
        function: Callable[..., Any],
        compiled: Callable[..., Any],
        varying: Sequence[Varying],
        counting: Sequence[Counting],
        new_graph: Callable[[], CudaGraph] | None,
    ) -> None:
        self.function, self.compiled, self.new_graph = function, compiled, new_graph
        self.varying, self.counting = varying, counting
        self.name = _name(function)
        self.calls: dict[Hashable, RecordedCall] = {}
        self.guarded: dict[Hashable, int] = {}

    def __call__(self, *args: Any) -> Any:
        """Call the function, or replay it."""
        if Captured.running:
            return self.function(*args)
        variant = tuple([part.variant() for part in self.varying])
        if None in variant:
            return self.function(*args)
        shapes = tuple([_shape(arg) for arg in args if isinstance(arg, COPIED)])
        Captured.running = True
        try:
            if self.compiled is not self.function:
                self._count()
            if self.new_graph is None:
                return self._call_compiled((variant, shapes), args)
            if (call := self.calls.get((variant, shapes))) is None:
                for oldest in list(self.calls)[: 1 - KEPT]:
                    del self.calls[oldest]
                call = self.calls[variant, shapes] = RecordedCall(self.compiled, self.new_graph())
            elif call.is_recorded and self.compiled is self.function:
                self._count()
            return call(args)
        except CaptureError as error:
            raise CaptureError(f"{self.name} {error}; --no-graphs runs it without CUDA graphs") from error
        finally:
            Captured.running = False

    def _count(self) -> None:
        for part in self.counting:
            part.count_replay()

    def _call_compiled(self, variant: Hashable, args: Sequence[Any]) -> Any:
        """Call the compiled function; after some calls of a variant it needs few of its checks."""
        calls = self.guarded.get(variant, 0)
        if calls == WARM_UP:
            with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
                return self.compiled(*args)
        for oldest in list(self.guarded)[:-KEPT]:
            del self.guarded[oldest]
        self.guarded[variant] = calls + 1
        return self.compiled(*args)


class RecordedCall:
    """A call of a function: made some times, then recorded, then replayed."""

    def __init__(self, function: Callable[..., Any], graph: CudaGraph) -> None:
        self.function, self.graph = function, graph
        self.warm_ups, self.is_recorded = 0, False

    def __call__(self, args: Sequence[Any]) -> Any:
        """Call, record or replay the function."""
        if self.warm_ups < WARM_UP:
            self.warm_ups += 1
            return self.graph.warm_up(lambda: self.function(*args))
        if not self.is_recorded:
            self._record(args)
        for recorded, given in zip(self.inputs, args, strict=True):
            if recorded is not given:
                _copy(recorded, given)
        self.graph.replay()
        return self.outputs

    def _record(self, args: Sequence[Any]) -> None:
        self.inputs = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        try:
            self.outputs = self.graph.record(lambda: self.function(*self.inputs))
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CaptureError(f"cannot be captured, since it waits for the device: {reason}") from error
        self.is_recorded = True


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _shape(given: Tensor | tuple[Any, ...]) -> Hashable:
    """Shape and type of a tensor; which fields of a tuple are not there."""
    if isinstance(given, Tensor):
        return given.shape, given.dtype
    return tuple([field is None for field in given])


def _copy(recorded: Any, given: Any) -> None:
    """Copy a tensor, or a tuple of tensors, to where it is read."""
    if isinstance(given, Tensor):
        recorded.copy_(given)
    elif isinstance(given, tuple) and all(field is None or isinstance(field, Tensor) for field in given):
        there = [(into, field) for into, field in zip(recorded, given) if field is not None]
        torch._foreach_copy_([into for into, _ in there], [field for _, field in there])
    elif recorded != given:
        raise CaptureError(f"was captured with another {type(given).__name__} than it is called with")


class CudaGraph:
    """Recorded kernels on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.graph = device, torch.cuda.Stream(device), torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call a function on the stream that it will be recorded on, where libraries set up their memory."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function()
        current.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], Any]) -> Any:
        """Call a function whose kernels are recorded, not run; returns what it returns."""
        gc.disable()  # memory that it freed meanwhile would be freed by the graph
        try:
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                outputs = function()
            # On its stream, recording resets where random numbers begin: a replay must not overtake that.
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return outputs
        except Exception:
            # The random generator would stay in the state in which it is captured.
            generator = torch.cuda.default_generators[self.stream.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        finally:
            gc.enable()

    def replay(self) -> None:
        """Run the recorded kernels."""
        self.graph.replay()
