"""cuDNN through NVIDIA's frontend: found, loaded, and what it leaves to its callers. Nothing here is about plans.

`unavailable` says what is missing. A `Target` is what plans are made for; a `Handle` is what they run with: one per
thread and device, on the caller's stream. `known_wrong` lists versions that gave wrong results without saying so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

from autoconv.device import Device
from autoconv.spec import ConvSpec

__all__ = [
    "DTYPES", "MAJOR", "Handle", "Target", "frontend", "handle", "known_wrong", "target", "unavailable", "version",
    "version_text",
]  # fmt: skip

FRONTENDS = (1, 27), (1, 29)  # 1.27 tells a plan's engine and knobs; 1.29 installs 490 MB of no use to convolution
MAJOR = 9
DTYPES = {"f64": "DOUBLE", "f32": "FLOAT", "f16": "HALF", "bf16": "BFLOAT16"}

_INSTALL = "pip install 'autoconv[cuda12]', or 'autoconv[cuda13]' for CUDA 13"


@cache
def unavailable() -> str | None:
    """What of cuDNN, its frontend and CuPy is missing, in a sentence; None when nothing is."""
    if find_spec("cudnn") is None:
        return f"nvidia-cudnn-frontend is not installed ({_INSTALL})"
    try:
        import cudnn
    except (ImportError, OSError, RuntimeError) as error:  # installed, but for another Python or another system
        return f"nvidia-cudnn-frontend cannot be imported: {error}"
    found = str(getattr(cudnn, "__version__", "0"))
    if not FRONTENDS[0] <= _numbers(found) < FRONTENDS[1]:
        lowest, beyond = (".".join(map(str, numbers)) for numbers in FRONTENDS)
        return f"needs nvidia-cudnn-frontend >= {lowest} and < {beyond}, found {found} ({_INSTALL})"
    try:
        number = cudnn.backend_version()
    except (RuntimeError, OSError) as error:
        return f"cuDNN's library cannot be loaded: {error} ({_INSTALL})"
    if number // 10000 < MAJOR:
        return f"needs cuDNN {MAJOR} or later, found {cudnn.backend_version_string()}"
    if find_spec("cupy") is None:
        return f"CuPy is not installed ({_INSTALL})"
    return None


def frontend() -> Any:
    """The frontend's module."""
    import cudnn

    return cudnn


def version() -> tuple[int, int, int]:
    """The library's: (9, 19, 0)."""
    number = int(frontend().backend_version())
    return number // 10000, number // 100 % 100, number % 100


def version_text() -> str:
    """The library's, as people write it."""
    return ".".join(map(str, version()))


def _numbers(text: str) -> tuple[int, int]:
    """`1.28.0` -> (1, 28); (0, 0) for what is no version."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


# Versions that are wrong -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownWrong:
    """Problems that versions `first` up to `beyond` (not included) solve wrongly, and who found out."""

    first: tuple[int, int]
    beyond: tuple[int, int]
    concerns: Callable[[ConvSpec], bool]
    what: str
    source: str


def _half_volume(spec: ConvSpec) -> bool:
    return spec.rank == 3 and spec.dtype in ("bf16", "f16") and spec.layout == "nchw" and prod(spec.kernel) > 1


# The seed of this system warned of CUDA 5.0 to 6.0; cuDNN 9 does not run on them.
KNOWN_WRONG = (
    KnownWrong(
        (9, 8),
        (9, 15),
        _half_volume,
        "gives wrong 3-D convolutions of bf16 and f16 in nchw",
        "https://github.com/pytorch/pytorch/issues/163539",
    ),
)


def known_wrong(spec: ConvSpec) -> str | None:
    """Why the loaded version is not trusted with `spec`, or None."""
    found = version()
    for one in KNOWN_WRONG:
        if one.first <= found[:2] < one.beyond and one.concerns(spec):
            fixed = ".".join(map(str, one.beyond))
            return f"cuDNN {version_text()} {one.what} ({one.source}); {fixed} does not"
    return None


# What plans are made for, and run with -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Where plans shall run: what a graph is told about it."""

    arguments: Mapping[str, Any]

    def load(self, graph: Any, serialised: bytes) -> None:
        """Make `graph` the serialised plan."""
        known = self.arguments.get("handle")
        plain = list(serialised)  # the frontend takes no bytes
        if known is None:
            graph.deserialize(plain)
        else:
            graph.deserialize(known, plain)


def target(device: Device) -> Target:
    """Plans for `device`, by the calling thread's handle."""
    return Target({"handle": handle(device.index).value})


class Handle:
    """cuDNN's handle of one thread on one device. The stream is set when it changes: that costs microseconds."""

    __slots__ = ("_set_stream", "_stream", "raw", "value")

    def __init__(self, index: int) -> None:
        import cupy

        cudnn = frontend()
        with cupy.cuda.Device(index):
            cupy.cuda.runtime.free(0)  # nothing is freed: it makes the device's context this thread's
            self.value = cudnn.create_handle()
        self.raw = int(getattr(self.value, "backend_handle", self.value))  # an object from 1.28 on, a number before
        self._set_stream = cudnn.set_stream
        self._stream: int | None = None

    def on(self, stream: int) -> int:
        """The handle itself, working on `stream` from now on."""
        if stream != self._stream:
            self._set_stream(self.value, stream)
            self._stream = stream
        return self.raw


class _Handles:
    """The handles of one thread. When it ends they are the next thread's: plans were made with them."""

    def __init__(self) -> None:
        self.by_index: dict[int, Handle] = {}

    def __del__(self) -> None:
        for index, one in self.by_index.items():
            if _idle is not None:  # the interpreter is not ending
                _idle.setdefault(index, []).append(one)


_idle: dict[int, list[Handle]] = {}
_local = threading.local()


def handle(index: int) -> Handle:
    """The calling thread's handle on GPU `index`, made when first asked for."""
    try:
        mine: _Handles = _local.handles
    except AttributeError:
        mine = _local.handles = _Handles()
    found = mine.by_index.get(index)
    if found is None:
        try:
            found = _idle.get(index, []).pop()
        except IndexError:
            found = Handle(index)
        mine.by_index[index] = found
    return found
