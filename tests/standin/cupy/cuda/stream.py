"""Stand-in for `cupy.cuda.stream`: streams, events, and graphs of what was enqueued while a stream was captured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from cupy import _machine
from cupy._machine import CUDARuntimeError

__all__ = ["Event", "ExternalStream", "Graph", "Stream", "get_current_stream", "get_elapsed_time"]

_addresses = itertools.count(0x57EA000, 0x10)


class Stream:
    """A queue of one device; within a `with` block the current one of its device in this thread."""

    null: Stream
    ptds: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.ptr = 0 if null else 2 if ptds else next(_addresses)
        self.device_id = -1 if null or ptds else _machine.current_device()
        self._recorded: list[Callable[[], object]] | Any = None
        self._spoiled = False
        self._before: list[tuple[int, Stream | None]] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.ptr, self.device_id) == (other.ptr, other.device_id)

    def __hash__(self) -> int:
        return hash(self.ptr)

    def _owner(self) -> int:
        return _machine.current_device() if self.device_id < 0 else self.device_id

    def __enter__(self) -> Stream:
        index = self._owner()
        self._before.append((index, _machine.state.streams.get(index)))
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        index, before = self._before.pop()
        _machine.state.streams[index] = before or Stream.null

    def use(self) -> Stream:
        """Make it the current stream."""
        if self.device_id >= 0 and self.device_id != _machine.current_device():
            raise RuntimeError(
                f"This stream was not created on the current device. stream.device_id={self.device_id}, "
                f"cupy.cuda.device.get_device_id()={_machine.current_device()}."
            )
        _machine.state.streams[self._owner()] = self
        return self

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""
        if self.is_capturing():
            raise CUDARuntimeError(900)
        return True

    def synchronize(self) -> None:
        """Wait for what is enqueued."""
        if self.is_capturing():
            self._spoiled = True
            raise CUDARuntimeError(900)

    def record(self, event: Event | None = None) -> Event:
        """Enqueue an event."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what is enqueued later wait for an event."""

    def is_capturing(self) -> bool:
        """Whether a graph is being recorded."""
        return self._recorded is not None

    def begin_capture(self, mode: int | None = None) -> None:
        """Record what is enqueued from now on, instead of running it."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise CUDARuntimeError(900)
        self._recorded, self._spoiled = [], False
        _machine.machine["captures"][self.ptr] = next(_machine.capture_numbers)

    def end_capture(self) -> Graph:
        """The graph of what was enqueued since `begin_capture`."""
        if not self.is_capturing():
            raise CUDARuntimeError(1)
        recorded, self._recorded = self._recorded, None
        del _machine.machine["captures"][self.ptr]
        if self._spoiled:
            raise CUDARuntimeError(901)
        return Graph(recorded)


class ExternalStream(Stream):
    """A stream of another library's, by its address."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__()
        self.ptr, self.device_id = ptr, device_id


Stream.null, Stream.ptds = Stream(null=True), Stream(ptds=True)


class Graph:
    """Work that runs anew with every launch, on the memory it was recorded with."""

    def __init__(self, recorded: list[Callable[[], object]]) -> None:
        self._recorded = recorded

    def launch(self, stream: Stream | None = None) -> None:
        """Enqueue all of it."""
        for work in self._recorded:
            _machine.enqueue(work, stream)


class Event:
    """A mark in a stream, with its time."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._timed = not disable_timing
        self._at: float | None = None

    @property
    def done(self) -> bool:
        """Whether the stream has come there."""
        return True

    def record(self, stream: Stream | None = None) -> None:
        """Enqueue it."""
        where = get_current_stream() if stream is None else stream

        def pass_by() -> None:
            self._at = time.perf_counter()

        _machine.enqueue(pass_by, where)

    def synchronize(self) -> None:
        """Wait for it."""
        _machine.refuse_during_capture()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events."""
    if not (start_event._timed and end_event._timed) or start_event._at is None or end_event._at is None:
        raise CUDARuntimeError(1)
    return (end_event._at - start_event._at) * 1e3


def get_current_stream(device_id: int = -1) -> Stream:
    """The current stream of a device (the current one) in this thread."""
    index = _machine.current_device() if device_id < 0 else device_id
    return _machine.state.streams.get(index) or Stream.null  # type: ignore[no-any-return]
