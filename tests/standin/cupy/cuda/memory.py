"""Stand-in for `cupy.cuda.memory`: device memory in the host's, from a pool that is as stream-ordered as CuPy's.

What was freed is poisoned, and given again to the same stream only: who kept an array too short finds NaN in it.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from cupy import _machine

__all__ = ["MemoryHook", "MemoryPointer", "MemoryPool", "OutOfMemoryError", "UnownedMemory", "alloc", "pool_of"]

ROUNDING = 512  # CuPy's own
TOTAL_BYTES = 150_109_880_320
POISON = 0xFF


class OutOfMemoryError(MemoryError):
    """The device, or the limit of its pool, has not as much."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        limited = f" (limit set to: {limit:,} bytes)" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


class _Block:
    """Memory of one device; `bytes` are its contents."""

    def __init__(self, contents: np.ndarray[Any, Any], device_id: int, pool: MemoryPool | None = None) -> None:
        self.bytes = contents
        self.ptr = contents.ctypes.data if contents.size else 0
        self.size = contents.size
        self.device_id = device_id
        self._pool = pool
        self._stream = 0

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._pool._take_back(self.bytes, self.size, self._stream)


class UnownedMemory(_Block):
    """Memory that somebody else owns."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        contents = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(ptr))
        super().__init__(contents, _machine.current_device() if device_id < 0 else device_id)
        self._owner = owner


class MemoryPointer:
    """A place within a block."""

    def __init__(self, mem: _Block, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset
        self.device_id = mem.device_id
        self._offset = offset

    @property
    def device(self) -> Any:
        """Where the memory is."""
        from cupy.cuda.device import Device

        return Device(self.device_id)

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self._offset + offset)

    def memset(self, value: int, size: int) -> None:
        """Fill `size` bytes."""
        _machine.refuse_during_capture()
        self._span(size)[...] = value

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        """The same, enqueued."""
        span = self._span(size)
        _machine.enqueue(lambda: span.fill(value), stream)

    def _span(self, size: int) -> np.ndarray[Any, Any]:
        if not 0 <= size <= self.mem.size - self._offset:
            raise _machine.CUDARuntimeError(1)
        return self.mem.bytes[self._offset : self._offset + size]


class MemoryPool:
    """Blocks by stream and size; one pool per device."""

    def __init__(self, device_id: int | None = None) -> None:
        self._device_id = device_id
        self._free: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = {}
        self._total = self._used = self._limit = 0
        self._lock = threading.RLock()

    def malloc(self, size: int) -> MemoryPointer:
        """Uninitialised memory for work on the current stream. Raises `OutOfMemoryError` beyond the limit."""
        from cupy.cuda.stream import get_current_stream

        index = _machine.current_device() if self._device_id is None else self._device_id
        if size == 0:
            return MemoryPointer(_Block(np.empty(0, np.uint8), index), 0)
        rounded, stream = -(-size // ROUNDING) * ROUNDING, get_current_stream().ptr
        with self._lock:
            kept = self._free.get((stream, rounded))
            if kept:
                contents = kept.pop()
            else:
                if self._limit and self._total + rounded > self._limit:
                    self.free_all_blocks()
                if self._total + rounded > (self._limit or TOTAL_BYTES):
                    raise OutOfMemoryError(rounded, self._total, self._limit)
                room = np.full(rounded + ROUNDING, POISON, np.uint8)
                start = -room.ctypes.data % ROUNDING
                contents = room[start : start + rounded]
                self._total += rounded
            self._used += rounded
        block = _Block(contents, index, self)
        block._stream = stream
        for hook in _hooks():
            hook.malloc_postprocess(device_id=index, size=size, mem_size=rounded, mem_ptr=block.ptr, pmem_id=id(block))
        return MemoryPointer(block, 0)

    def _take_back(self, contents: np.ndarray[Any, Any], size: int, stream: int) -> None:
        contents[...] = POISON
        for hook in _hooks():
            at = contents.ctypes.data
            hook.free_postprocess(device_id=self._device_id or 0, mem_size=size, mem_ptr=at, pmem_id=at)
        with self._lock:
            self._free.setdefault((stream, size), []).append(contents)
            self._used -= size

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give what nobody uses back to the device."""
        with self._lock:
            self._total = self._used
            self._free.clear()

    def used_bytes(self) -> int:
        """Bytes that are lent."""
        return self._used

    def total_bytes(self) -> int:
        """Bytes taken from the device."""
        return self._total

    def free_bytes(self) -> int:
        """Bytes taken and not lent."""
        return self._total - self._used

    def n_free_blocks(self) -> int:
        """Blocks taken and not lent."""
        return sum(map(len, self._free.values()))

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Let it take no more than this from the current device; 0 is no limit."""
        self._limit = int(TOTAL_BYTES * fraction) if size is None and fraction is not None else size or 0

    def get_limit(self) -> int:
        """The limit in bytes."""
        return self._limit


class MemoryHook:
    """Watches the pools within a `with` block of its thread; derived classes say what is done."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        if self.name in _local.__dict__.setdefault("hooks", {}):
            raise KeyError(f"memory hook {self.name} already exists")
        _local.hooks[self.name] = self
        return self

    def __exit__(self, *error: object) -> None:
        del _local.hooks[self.name]

    def malloc_postprocess(self, **kwargs: int) -> None:
        """After a piece was lent."""

    def free_postprocess(self, **kwargs: int) -> None:
        """After a piece came back."""


_local = threading.local()


def _hooks() -> list[MemoryHook]:
    return list(_local.__dict__.get("hooks", {}).values())


_pools: dict[int, MemoryPool] = {}


def pool_of(index: int) -> MemoryPool:
    """The default pool of a device."""
    return _pools.setdefault(index, MemoryPool(index))


def alloc(size: int) -> MemoryPointer:
    """Memory of the current device, from its pool."""
    return pool_of(_machine.current_device()).malloc(size)
