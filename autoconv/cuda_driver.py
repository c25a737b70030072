"""NVIDIA's driver, asked directly: which GPUs there are, without CuPy and in a fraction of a millisecond.

The driver's library comes with the driver, not with CUDA or CuPy, so a machine without one has nothing to ask.
Sources: the CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["Driver", "Gpu", "capture_id", "current_index", "driver", "load_library", "read_driver"]

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS = 75, 76, 16  # CUdevice_attribute
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CAPTURING = 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE
NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver describes it; `index` is its place among those that this process may see."""

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The newest CUDA that the driver runs, as (major, minor), and its GPUs."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]

    @property
    def version(self) -> str:
        """The CUDA version as people write it."""
        return f"{self.cuda[0]}.{self.cuda[1]}"


class _Refused(Exception):
    """A call of the driver's returned an error."""


@cache
def driver() -> Driver | str:
    """What the driver of this machine says, or a sentence why there is nothing to ask."""
    return read_driver(load_library())


@cache
def load_library() -> Any:
    """The driver's library, or None where it cannot be loaded; tests put their own in its place."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def read_driver(library: Any) -> Driver | str:
    """Ask `library`, which has the driver's functions; a sentence when it is None or refuses."""
    if library is None:
        return f"NVIDIA's driver is not installed: {LIBRARY} cannot be loaded"
    try:
        status = library.cuInit(0)
        if status == NO_DEVICE:
            return "NVIDIA's driver is installed, but sees no GPU"
        _check(library, status, "cuInit")
        count = _integer(library, "cuDeviceGetCount")
        if not count:
            return "NVIDIA's driver is installed, but sees no GPU"
        version = _integer(library, "cuDriverGetVersion")
        gpus = tuple(_describe(library, index) for index in range(count))
    except (_Refused, AttributeError) as error:  # a library without these functions is no driver
        return f"NVIDIA's driver does not work: {error}"
    return Driver((version // 1000, version % 1000 // 10), gpus)


def current_index() -> int:
    """The GPU whose context is current in the calling thread, whoever made it current; the first if none is."""
    library, device = load_library(), ctypes.c_int()
    if library is None or library.cuCtxGetDevice(ctypes.byref(device)):
        return 0
    return device.value


def capture_id(stream: int) -> int:
    """A number of the capture that the stream at this address takes part in; 0 when it takes part in none."""
    ask = getattr(load_library(), "cuStreamGetCaptureInfo_v2", None)
    status, number = ctypes.c_int(), ctypes.c_uint64()
    if ask is None or ask(ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(number), None, None, None):
        return 0
    return number.value if status.value == CAPTURING else 0


def _describe(library: Any, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES), ctypes.c_size_t()
    _check(library, library.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    _check(library, library.cuDeviceGetName(name, NAME_BYTES, device), "cuDeviceGetName")
    _check(library, library.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    major, minor, multiprocessors = (
        _integer(library, "cuDeviceGetAttribute", attribute, device)
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS)
    )
    return Gpu(index, name.value.decode(errors="replace"), (major, minor), multiprocessors, memory.value)


def _integer(library: Any, function: str, *arguments: Any) -> int:
    value = ctypes.c_int()
    _check(library, getattr(library, function)(ctypes.byref(value), *arguments), function)
    return value.value


def _check(library: Any, status: int, function: str) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    found = library.cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value is not None
    raise _Refused(f"{function} says {(text.value or b'').decode() if found else f'error {status}'}")
