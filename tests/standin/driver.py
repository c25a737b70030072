"""A driver's library made of Python: the functions that `autoconv.cuda_driver` calls, about GPUs that do not exist."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autoconv import cuda_driver
from autoconv.cuda_driver import CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS, Gpu

__all__ = ["A100", "H200", "Library", "install"]

H200 = Gpu(0, "NVIDIA H200", (9, 0), 132, 150_109_880_320)
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", (8, 0), 108, 84_974_239_744)

INVALID_DEVICE, INVALID_CONTEXT = 101, 201


class Library:
    """What `ctypes.CDLL("libcuda.so.1")` would be on a machine with these GPUs. Arguments come by `ctypes.byref`.

    `current` is the device of the calling thread's context, None before there is one; `captures` maps the address of
    a stream to the number of its capture. `broken` maps a function's name to the error that it returns.
    """

    def __init__(self, gpus: Sequence[Gpu], version: int = 12080, broken: dict[str, int] | None = None) -> None:
        self.gpus = list(gpus)
        self.version = version
        self.broken = broken or {}
        self.current: int | None = None
        self.captures: dict[int, int] = {}

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name in self.broken:
            return lambda *arguments: self.broken[name]
        return super().__getattribute__(name)

    def cuInit(self, flags: int) -> int:
        return 0 if self.gpus else 100

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if 0 <= index < len(self.gpus) else INVALID_DEVICE

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = self.gpus[device.value].name.encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> int:
        size._obj.value = self.gpus[device.value].memory_bytes
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        gpu = self.gpus[device.value]
        known = {
            CAPABILITY_MAJOR: gpu.capability[0],
            CAPABILITY_MINOR: gpu.capability[1],
            MULTIPROCESSORS: gpu.multiprocessors,
        }
        value._obj.value = known[attribute]
        return 0

    def cuCtxGetDevice(self, device: Any) -> int:
        if self.current is None:
            return INVALID_CONTEXT
        device._obj.value = self.current
        return 0

    def cuStreamGetCaptureInfo_v2(
        self, stream: ctypes.c_void_p, status: Any, number: Any, graph: None, dependencies: None, count: None
    ) -> int:
        found = self.captures.get(stream.value or 0)
        status._obj.value = int(found is not None)
        number._obj.value = found or 0
        return 0

    def cuGetErrorString(self, error: int, text: Any) -> int:
        known = {3: b"initialization error", 803: b"system has unsupported display driver / cuda driver combination"}
        text._obj.value = known.get(error)
        return 0 if error in known else 1


def install(machine: dict[str, Any], count: int = 2) -> None:
    """Let this process, which has no driver, have a made-up one with GPUs: in a worker no fixture does."""
    if cuda_driver.load_library() is not None:
        return
    library = Library([replace(H200, index=index) for index in range(count)])
    cuda_driver.load_library = lambda: library  # type: ignore[assignment]
    cuda_driver.driver = lambda: cuda_driver.read_driver(library)  # type: ignore[assignment]
    machine.update(gpus=count, current=lambda index: setattr(library, "current", index), captures=library.captures)
