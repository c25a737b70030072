"""Stand-in for `cupy.cuda`."""

from __future__ import annotations

from typing import Any

from cupy import _machine
from cupy.cuda import device, memory, runtime, stream
from cupy.cuda.device import Device, get_cublas_handle
from cupy.cuda.memory import MemoryHook, MemoryPointer, MemoryPool, UnownedMemory, alloc
from cupy.cuda.stream import Event, ExternalStream, Graph, Stream, get_current_stream, get_elapsed_time

__all__ = [
    "Device", "Event", "ExternalStream", "Graph", "MemoryHook", "MemoryPointer", "MemoryPool", "Stream",
    "UnownedMemory", "alloc", "device", "get_cublas_handle", "get_current_stream", "get_device_id",
    "get_elapsed_time", "is_available", "memory", "runtime", "stream",
]  # fmt: skip


def is_available() -> bool:
    """Whether there is a GPU."""
    return _machine.count() > 0


def get_device_id() -> int:
    """Index of the current device."""
    return _machine.current_device()


def __getattr__(name: str) -> Any:
    if name == "compiler":
        from types import SimpleNamespace

        from cupy import _raw

        return SimpleNamespace(CompileException=_raw.CompileException)
    raise AttributeError(f"module 'cupy.cuda' has no attribute {name!r}")
