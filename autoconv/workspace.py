"""Scratch memory: lent to one call at a time, from one arena per thread on the CPU, from CuPy's pool on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.cuda_driver import capture_id

__all__ = ["ALIGNMENT", "DeviceWorkspace", "Workspace", "aligned_bytes", "thread_workspace"]

ALIGNMENT = 64  # a cache line, and the widest vector register


class Workspace:
    """Scratch memory that only grows: one per thread, lent to one call at a time.

    A runner takes pieces with `take`; they are valid until its call returns. After the first call of
    the largest problem nothing is allocated any more.
    """

    __slots__ = ("_address", "_block", "_peak", "_spilled", "_used")

    def __init__(self) -> None:
        self._block: Array = np.empty(0, np.uint8)
        self._address = 0
        self._spilled: list[tuple[int, Array]] = []  # (start, piece) of what did not fit, until the block grows
        self._used = 0
        self._peak = 0

    def take(self, shape: Sequence[int] | int, dtype: Any = np.uint8) -> Array:
        """An uninitialised array of `shape`, 64-byte aligned."""
        dtype = np.dtype(dtype)
        size = (shape if isinstance(shape, int) else prod(shape)) * dtype.itemsize
        start = self._claim(size)
        piece: Array = self._block[start : start + size] if start >= 0 else self._spilled[-1][1]
        view: Array = piece.view(dtype)
        return view.reshape(shape)

    def take_address(self, size: int) -> int:
        """The address of `size` uninitialised bytes, 64-byte aligned: `take` for kernels that want a pointer."""
        start = self._claim(size)
        return self._address + start if start >= 0 else int(self._spilled[-1][1].ctypes.data)

    def free_address(self, size: int) -> int:
        """The address of `size` free bytes, 64-byte aligned, or 0 when there are fewer.

        Nothing is taken: they are the caller's until somebody takes or the caller returns.
        """
        start = self._used
        return self._address + start if start + size <= self._block.size else 0

    def mark(self) -> int:
        """The present level, to `release` to."""
        return self._used

    def release(self, mark: int = 0) -> None:
        """Give back everything taken since `mark`."""
        self._used = mark
        while self._spilled and self._spilled[-1][0] >= mark:
            self._spilled.pop()  # a loop that takes and releases holds one round's pieces at a time
        if mark == 0 and self._peak > self._block.size:
            self._block = np.empty(0, np.uint8)  # let the old block go before asking for the new one
            self._block = aligned_bytes(self._peak)
            self._address = self._block.ctypes.data

    def _claim(self, size: int) -> int:
        """Offset of `size` free bytes in the block, or -1 when they became a piece of their own."""
        start = self._used
        self._used = start + -(-size // ALIGNMENT) * ALIGNMENT
        if self._used <= self._block.size:
            return start
        self._peak = max(self._peak, self._used)
        self._spilled.append((start, aligned_bytes(size)))
        return -1


def aligned_bytes(size: int) -> Array:
    """`size` new bytes, undefined, 64-byte aligned."""
    block: Array = np.empty(size + ALIGNMENT, np.uint8)
    offset = -block.ctypes.data % ALIGNMENT
    return block[offset : offset + size]


_local = threading.local()


def thread_workspace() -> Workspace:
    """The calling thread's workspace."""
    try:
        return _local.workspace  # type: ignore[no-any-return]
    except AttributeError:
        _local.workspace = Workspace()
        return _local.workspace  # type: ignore[no-any-return]


class DeviceWorkspace(Workspace):
    """Scratch memory of a GPU, from CuPy's pool; one per thread and GPU.

    The pool gives a piece that came back to work of the same stream only, so one may be released as soon as the
    work on it is enqueued. While the stream is captured that is not enough: a graph uses its memory whenever it is
    launched. Such pieces are kept for good; those of one capture on one stream serve its calls one after another.
    """

    __slots__ = ("_capture", "_cupy", "_free", "_kept", "_pieces")

    def __init__(self, cupy: Any) -> None:
        super().__init__()
        self._cupy = cupy
        self._pieces: list[tuple[int, Any, tuple[int, int] | None]] = []  # size, memory, and the capture it belongs to
        self._kept: list[Any] = []
        self._capture: tuple[int, int] | None = None
        self._free: list[tuple[int, Any]] = []  # pieces of the present capture that came back

    def take(self, shape: Sequence[int] | int, dtype: Any = np.uint8) -> Any:
        """An uninitialised `cupy.ndarray` of `shape`, 256-byte aligned, for the current stream."""
        dtype = np.dtype(dtype)
        size = (shape if isinstance(shape, int) else prod(shape)) * dtype.itemsize
        return self._cupy.ndarray(shape, dtype, self._piece(size))

    def take_address(self, size: int) -> int:
        """The address of `size` uninitialised bytes on the device, 256-byte aligned."""
        return int(self._piece(size).ptr)

    def free_address(self, size: int) -> int:
        """0: the pool lends nothing that was not taken."""
        return 0

    def mark(self) -> int:
        """The present level, to `release` to."""
        return len(self._pieces)

    def release(self, mark: int = 0) -> None:
        """Give back everything taken since `mark`; what is enqueued on it still runs."""
        for size, memory, capture in self._pieces[mark:]:
            if capture is not None and capture == self._capture:
                self._free.append((size, memory))
        del self._pieces[mark:]

    def hold(self, array: Any) -> None:
        """Keep `array` for good if the current stream is being captured: the graph will use it again."""
        if self._cupy.cuda.get_current_stream().is_capturing():
            self._kept.append(array)

    def _piece(self, size: int) -> Any:
        stream = self._cupy.cuda.get_current_stream()
        if not stream.is_capturing():
            memory = self._cupy.cuda.alloc(size)
            self._pieces.append((size, memory, None))
            return memory
        number = capture_id(stream.ptr)
        capture = (number, stream.ptr) if number else None  # a driver that cannot tell captures apart: share nothing
        if capture != self._capture:
            self._capture, self._free = capture, []
        fitting = [piece for piece in self._free if piece[0] >= size]
        if fitting:
            piece = min(fitting, key=lambda one: one[0])
            self._free.remove(piece)
        else:
            piece = (size, self._cupy.cuda.alloc(size))
            self._kept.append(piece[1])
        self._pieces.append((*piece, capture))
        return piece[1]
