"""Compiles a `.cu` text for the host and runs its kernels.

`load(text, options)` gives a `Program`; `program.kernels["name"].launch(grid, block, addresses and scalars)` runs one.
device.h gives the words of CUDA C a meaning, runtime.cpp runs the threads of a block as fibers. Objects are kept
for the life of the process. `with thread_order(...)` sets the order in which threads and blocks run.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["Kernel", "Parameter", "Program", "ShimError", "compiler", "load", "thread_order"]

HERE = Path(__file__).parent
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^;{]*?\)\s*)?(\w+)\s*\(')
MOST_PARAMETERS = 64
FLAGS = ("-O1", "-std=c++17", "-fPIC", "-shared", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
RUNTIME_FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE")

_launching = threading.Lock()  # one grid at a time: the runtime's state is global
_order = 0


class ShimError(RuntimeError):
    """A text that does not compile, or a kernel that waits or writes where it must not."""


@contextmanager
def thread_order(order: int | str) -> Iterator[None]:
    """Run threads and blocks "forward", "backward", or shuffled (a seed above 1) inside the block."""
    global _order
    before, _order = _order, {"forward": 0, "backward": 1}.get(order, order) if isinstance(order, str) else order
    try:
        yield
    finally:
        _order = before


@dataclass(frozen=True)
class Parameter:
    """What a kernel takes: a letter (f float, i signed, u unsigned, h f16, b bf16, s struct, p pointer) and bytes."""

    kind: str
    size: int
    pointee: str = ""
    pointee_size: int = 0


class _CParameter(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char),
        ("size", ctypes.c_int),
        ("pointee", ctypes.c_char),
        ("pointee_size", ctypes.c_int),
    )


class Kernel:
    """One kernel of a compiled text."""

    def __init__(self, program: Program, name: str) -> None:
        self.name = name
        self._program = program
        self._call = ctypes.cast(program.library[f"shim_call_{name}"], ctypes.c_void_p)
        found = (_CParameter * MOST_PARAMETERS)()
        count = program.library[f"shim_describe_{name}"](found)
        self.parameters = tuple(
            Parameter(p.kind.decode(), p.size, p.pointee.strip(b"\0").decode(), p.pointee_size) for p in found[:count]
        )

    def launch(
        self, grid: Sequence[int], block: Sequence[int], values: Sequence[int | np.generic], shared_bytes: int = 0
    ) -> None:
        """Run the grid. `values` are addresses (int) and NumPy scalars, each of the parameter's size.

        Raises `ShimError` for threads that wait at different barriers and for writes beyond shared memory.
        """
        if len(values) != len(self.parameters):
            raise ShimError(f"{self.name} takes {len(self.parameters)} arguments, got {len(values)}")
        holders = [_holder(value) for value in values]
        for holder, parameter in zip(holders, self.parameters, strict=True):
            if ctypes.sizeof(holder) != parameter.size:
                raise ShimError(f"{self.name} takes {parameter}, got {ctypes.sizeof(holder)} bytes")
        pointers = (ctypes.c_void_p * max(1, len(holders)))(*(ctypes.addressof(holder) for holder in holders))
        three = ctypes.c_uint * 3
        with _launching:
            program = self._program
            said = _runtime().shim_launch(
                program.state, self._call, pointers, three(*_triple(grid)), three(*_triple(block)),
                ctypes.c_size_t(shared_bytes), ctypes.c_uint(_order), ctypes.c_void_p(program.library.shim_marker()),
            )  # fmt: skip
        if said:
            raise ShimError(f"{self.name}: {said.decode()}")


class Program:
    """A text compiled for the host."""

    def __init__(self, library: ctypes.CDLL, names: Sequence[str]) -> None:
        self.library = library
        library.shim_attach.restype = ctypes.c_void_p
        library.shim_marker.restype = ctypes.c_void_p
        self.state = ctypes.c_void_p(library.shim_attach(ctypes.c_void_p(_runtime().shim_runtime())))
        self.kernels = {name: Kernel(self, name) for name in names}


@cache
def compiler() -> str | None:
    """The host's C++ compiler, or None; tests skip then."""
    return shutil.which("c++") or shutil.which("g++")


@cache
def load(text: str, options: tuple[str, ...] = ()) -> Program:
    """`text` compiled with NVRTC's `options` (macros count, the rest is about GPUs) and loaded.

    Raises `ShimError` with the compiler's words.
    """
    names = list(dict.fromkeys(KERNEL.findall(text)))
    if not names:
        raise ShimError('no kernel in the text: extern "C" __global__ void name(...)')
    trailer = ["SHIM_MODULE", *(f"SHIM_KERNEL({name})" for name in names)]
    if "struct bf16" in text:
        trailer.insert(0, "SHIM_STORAGE(f16, 'h') SHIM_STORAGE(bf16, 'b')")
    source = "\n".join((f'#include "{HERE / "device.h"}"', "#line 1", text, *trailer, ""))
    macros = tuple(option for option in options if option.startswith("-D"))
    return Program(_built(source, (*FLAGS, *macros), "kernel"), names)


@cache
def _runtime() -> ctypes.CDLL:
    library = _built((HERE / "runtime.cpp").read_text(), RUNTIME_FLAGS, "runtime")
    library.shim_runtime.restype = ctypes.c_void_p
    library.shim_launch.restype = ctypes.c_char_p
    return library


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cuda-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _built(source: str, flags: tuple[str, ...], name: str) -> ctypes.CDLL:
    found = compiler()
    if found is None:
        raise ShimError("no C++ compiler on this machine")
    stem = f"{name}-{hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:16]}"
    path, made = _folder() / f"{stem}.cpp", _folder() / f"{stem}.so"
    path.write_text(source)
    done = subprocess.run([found, *flags, "-o", str(made), str(path)], capture_output=True, text=True)
    if done.returncode:
        raise ShimError(f"the host's compiler refuses the text:\n{done.stderr[:4000]}")
    return ctypes.CDLL(str(made))


def _triple(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, 1, 1, 1)[:3]


def _holder(value: int | np.generic) -> ctypes.Array[ctypes.c_char] | ctypes.c_uint64:
    if isinstance(value, np.generic):
        return ctypes.create_string_buffer(value.tobytes(), value.nbytes)
    return ctypes.c_uint64(value)
