"""Stand-in for `cupy.cuda.device`: GPUs of compute capability 9.0."""

from __future__ import annotations

from typing import Any

from cupy import _machine

__all__ = ["Device", "get_cublas_handle", "get_device_id"]


class Device:
    """One GPU; within a `with` block the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = _machine.current_device() if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._before.append(_machine.current_device())
        _machine.make_current(self.id)
        return self

    def __exit__(self, *error: object) -> None:
        _machine.make_current(self._before.pop())

    def use(self) -> None:
        """Make it the current device."""
        _machine.make_current(self.id)

    def synchronize(self) -> None:
        """Wait for everything enqueued on it."""
        _machine.refuse_during_capture()

    @property
    def compute_capability(self) -> str:
        """Of the H200."""
        return "90"

    @property
    def attributes(self) -> dict[str, int]:
        """Those that somebody asks for: a clock whose cycles last a nanosecond, and a small L2 cache."""
        return {"ClockRate": 1_000_000, "L2CacheSize": 1 << 16, "MultiProcessorCount": 132}

    @property
    def pci_bus_id(self) -> str:
        """Where it is on the bus."""
        return f"0000:0{self.id}:00.0"

    @property
    def mem_info(self) -> tuple[int, int]:
        """(free, total) bytes."""
        from cupy.cuda import runtime

        with _machine.on_device(self.id):
            return runtime.memGetInfo()


def get_device_id() -> int:
    """Index of the current device."""
    return _machine.current_device()


def get_cublas_handle() -> int:
    """The handle of the current device in this thread."""
    return 0xB1A50 + _machine.current_device()
