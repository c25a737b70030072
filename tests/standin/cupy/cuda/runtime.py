"""Stand-in for `cupy.cuda.runtime`."""

from __future__ import annotations

from cupy import _machine
from cupy._machine import CUDARuntimeError

__all__ = [
    "CUDARuntimeError", "deviceSynchronize", "driverGetVersion", "free", "getDevice", "getDeviceCount", "memGetInfo",
    "runtimeGetVersion", "setDevice", "streamCaptureModeGlobal", "streamCaptureModeRelaxed",
    "streamCaptureModeThreadLocal",
]  # fmt: skip

streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = 0, 1, 2


def getDevice() -> int:
    """Index of the current device."""
    return _machine.current_device()


def setDevice(device: int) -> None:
    """Make a device the current one."""
    _machine.make_current(device)


def getDeviceCount() -> int:
    """GPUs of the machine."""
    return _machine.count()


def deviceSynchronize() -> None:
    """Wait for everything enqueued on the current device."""
    _machine.refuse_during_capture()


def driverGetVersion() -> int:
    """As `cuDriverGetVersion`."""
    return 12080


def runtimeGetVersion() -> int:
    """Of the CUDA runtime that this CuPy is built with."""
    return 12090


def memGetInfo() -> tuple[int, int]:
    """(free, total) bytes of the current device."""
    from cupy.cuda import memory

    total = memory.TOTAL_BYTES
    return total - memory.pool_of(_machine.current_device()).total_bytes(), total


def free(address: int) -> None:
    """Free what `malloc` gave; of 0 it makes the device's context and no more."""
    if address:
        raise CUDARuntimeError(1)
