"""The machine that the stand-in stands on: its GPUs, the current one of each thread, streams, and what is enqueued.

What is enqueued runs at once, but for a stream that is being captured: then it runs when the graph is launched, on the
memory that it had then, whoever uses it by now.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CUDARuntimeError", "count", "current_device", "enqueue", "on_device", "refuse_during_capture", "state"]

ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream",
}


class CUDARuntimeError(RuntimeError):
    """A status of the runtime's other than success."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(ERRORS[status])


class _State(threading.local):
    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Any] = {}  # device -> its current stream in this thread


state = _State()
machine: dict[str, Any] = {"gpus": 1, "current": lambda index: None, "captures": {}}
"""How many GPUs there are; whom to tell which one is current; stream address -> number of its capture."""

capture_numbers = itertools.count(1)


def count() -> int:
    """GPUs of the machine."""
    return int(machine["gpus"])


def current_device() -> int:
    """The current device of the calling thread."""
    return state.device


def make_current(index: int) -> None:
    """What `cudaSetDevice` does."""
    if not 0 <= index < count():
        raise CUDARuntimeError(101)
    state.device = index
    machine["current"](index)


@contextmanager
def on_device(index: int) -> Iterator[None]:
    """Another current device for a while."""
    before = state.device
    make_current(index)
    try:
        yield
    finally:
        make_current(before)


def enqueue(work: Callable[[], object], stream: Any = None) -> None:
    """Run `work` on the current stream (or `stream`): now, or whenever the graph that is being recorded is launched."""
    from cupy.cuda import stream as streams

    where = streams.get_current_stream() if stream is None else stream
    if where.is_capturing():
        where._recorded.append(work)
    else:
        work()


def refuse_during_capture() -> None:
    """For what waits for the device: an error while the current stream is captured, which spoils the capture."""
    from cupy.cuda import stream as streams

    where = streams.get_current_stream()
    if where.is_capturing():
        where._spoiled = True
        raise CUDARuntimeError(900)
