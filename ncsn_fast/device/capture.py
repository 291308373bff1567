"""Capturing work on a GPU as a CUDA graph: warmed up, failing cleanly, released on request.

A graph replays exactly the kernels that a function launched, on the same memory. What the host
does in between is not repeated, so nothing in the function may wait for the device or decide by
its data; such a function is found while it warms up, before a capture is begun.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# PyTorch takes one capture at a time in a process, and all work given to its stream belongs to it.
_one_at_a_time = threading.RLock()
# Graphs that PyTorch's allocator of host memory may go on asking, as it was not told of their end.
_broken_off: list[torch.cuda.CUDAGraph] = []


class CaptureError(RuntimeError):
    """Something cannot be captured.

    Attributes:
        cause: why, in words that end a sentence: "… cannot be captured: <cause>".
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Captured:
    """A captured piece of work."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph: torch.cuda.CUDAGraph | None = graph

    def replay(self) -> None:
        """Do it again, on the current stream and on the memory it was captured on.

        In-place changes so made do not count in the tensors' versions.

        Raises:
            RuntimeError: after :meth:`release`.
        """
        if self._graph is None:
            raise RuntimeError("this graph has been released: capture the work again")
        self._graph.replay()

    def release(self) -> None:
        """Give its memory back to PyTorch's allocator; once released it stays so."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = None


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be captured on a device, or None where that is possible."""
    if device.type != "cuda":
        return f"graphs are captured on CUDA devices, and this is {device.type}"
    if not torch.cuda.is_available():
        return "there is no GPU that this torch can use"
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return "another capture is under way on this stream"
    return None


def capture(step: Callable[[], None], device: torch.device, *, warm_ups: int = 3) -> Captured:
    """Capture the work that ``step`` gives the device. It is not done by that, warm-ups are.

    Threads take turns. What waits for the device in another one while a step is warmed up may
    raise an error there: which waits are refused is PyTorch's setting for the whole process.

    Args:
        step: reads and writes tensors that exist already and stay where they are.
        device: a CUDA device.
        warm_ups: how often it is run before, on a side stream. From the second time on it may not
            wait for the device: the first makes, compiles and tunes what is needed once. With 0
            the caller has done that work, inside :func:`side_stream`.

    Raises:
        CaptureError: where it waits for the device or does what no graph can hold. The current
            stream is then as it was, and the memory of the attempt is free.
        Exception: what ``step`` raises while warming up; out-of-memory errors at any time.
    """
    reason = obstacle(device)
    if reason is not None:
        raise CaptureError(reason)
    with _one_at_a_time, torch.cuda.device(device):
        with side_stream(device):
            for run in range(warm_ups):
                with contextlib.nullcontext() if run == 0 else waiting_refused():
                    step()
        return Captured(_captured(step, device))


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work inside runs on the stream on which is captured, in order with the current stream.

    Work that is to be captured is done there first (three times is customary): libraries then
    have made what they keep for that stream. Threads take turns.
    """
    with _one_at_a_time:
        before, stream = torch.cuda.current_stream(device), _stream(device)
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            before.wait_stream(stream)


@contextlib.contextmanager
def waiting_refused() -> Iterator[None]:
    """An operation inside that waits for the device raises CaptureError, as far as torch sees."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature": the capture itself is the judge
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise CaptureError(f"it waits for the device{_where(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    before, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    failure: Exception | None = None
    finished = False
    try:
        with _recording(graph, device, pool):
            try:
                step()
            except Exception as error:
                failure = error
                raise
        finished = True
    except Exception as error:
        # Ending a capture that has failed raises another error, which hides the first.
        first = failure or error
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        text = str(first).strip().split("\n")[0]
        raise CaptureError(f"{type(first).__name__}: {text}{_where(first)}") from first
    finally:
        torch.cuda.set_stream(before)  # which that other error leaves at the capture's stream
        if not finished:
            _clean_up(graph, device, pool)
            torch.cuda.set_stream(before)
    return graph


def _recording(
    graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any = None
) -> torch.cuda.graph:
    # Not an error mode that forbids other threads (of a data loader, say) to allocate meanwhile.
    return torch.cuda.graph(graph, pool, _stream(device), "thread_local")


def _clean_up(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """After a capture that failed, memory and random numbers are as if it had not been begun."""
    _broken_off.append(graph)
    with contextlib.suppress(RuntimeError):  # there is nothing to free where it never began
        graph.reset()
    # Where CUDA has declared a capture invalid, PyTorch's own end of it stops half-way. Its
    # allocator still serves the capture, and empty_cache() would be an internal error …
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # of torch 2.6
    end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
    if end is not None:
        with contextlib.suppress(RuntimeError):  # it has been ended already
            end(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    # … and its generator refuses to draw outside of a capture, until one has been ended well.
    with contextlib.suppress(RuntimeError), _recording(torch.cuda.CUDAGraph(), device):
        torch.zeros((), device=device)


def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures on a device: the matrix libraries keep workspaces for each stream."""
    return _streams(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _streams(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)


def _where(error: BaseException) -> str:
    """The line of Python that it happened in, such as " (model.py, line 12: x.item())"."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    name = last.filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f" ({name}, line {last.lineno}: {last.line})"


__all__ = ["CaptureError", "Captured", "capture", "obstacle", "side_stream", "waiting_refused"]
