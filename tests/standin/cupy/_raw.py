"""`cupy.RawModule` and `RawKernel`: signatures and refusals of CuPy 14, kernels run on the host by tests/cuda_shim.

Stricter than CuPy in one thing: CuPy copies an argument's bytes without knowing what the kernel takes, so a wrong type
reads rubbish on a device. Here it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cupy import _machine

from tests import cuda_shim

__all__ = ["CUDADriverError", "CompileException", "RawKernel", "RawModule"]

PLAIN_SHARED_BYTES = 48 * 1024
MOST_SHARED_BYTES = 227 * 1024  # of compute capability 9.0
MOST_THREADS = 1024
MOST_BLOCK = (1024, 1024, 64)
MOST_GRID = (2**31 - 1, 65535, 65535)
SCALARS = {np.dtype(letter).type for letter in "?bhilqBHILQefdFD"}


class CUDADriverError(RuntimeError):
    """What `cuLaunchKernel` and its like answer."""


class CompileException(Exception):
    """A text that does not compile."""


class RawKernel:
    """One kernel of a CUDA C text."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        jitify: bool = False,
    ) -> None:
        self.code = code
        self.name = self.__name__ = name
        self.options = _tuple_of(options, "options")
        self._granted = PLAIN_SHARED_BYTES

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], **kwargs: Any) -> None:
        self._launch(_tuple_of(grid, "grid"), _tuple_of(block, "block"), args, **kwargs)

    def _launch(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
        sizes = [[max(1, size) for size in (*given, 1, 1)[:3]] for given in (grid, block)]
        for given, most, what in zip(sizes, (MOST_GRID, MOST_BLOCK), ("grid", "block"), strict=True):
            if any(size > limit for size, limit in zip(given, most, strict=True)):
                raise _invalid(f"{what} {given} exceeds {most}")
        if np.prod(sizes[1]) > MOST_THREADS:
            raise _invalid(f"block {sizes[1]} has more than {MOST_THREADS} threads")
        if shared_mem > self._granted:
            raise _invalid(f"{shared_mem} bytes of shared memory, {self._granted} granted")
        kernel = self.kernel
        if len(args) != len(kernel.parameters):
            raise _invalid(f"{self.name} takes {len(kernel.parameters)} arguments, got {len(args)}")
        values = [_passed(value, taken, self.name) for value, taken in zip(args, kernel.parameters, strict=True)]
        _machine.enqueue(lambda: kernel.launch(sizes[0], sizes[1], values, shared_mem))

    @property
    def kernel(self) -> cuda_shim.Kernel:
        """The compiled function."""
        found = _program(self.code, self.options).kernels.get(self.name)
        if found is None:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {self.name}")
        return found

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory that a launch may ask for."""
        return self._granted

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= MOST_SHARED_BYTES:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: {size} bytes of shared memory, at most {MOST_SHARED_BYTES}"
            )
        self._granted = size

    def compile(self, log_stream: Any = None) -> None:
        """Compile now."""
        _ = self.kernel


class RawModule:
    """A CUDA C text."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None or name_expressions is not None:
            raise NotImplementedError("the stand-in compiles texts of extern C kernels")
        self.code = code
        self.options = _tuple_of(options, "options")

    def compile(self, log_stream: Any = None) -> None:
        """Compile now."""
        _program(self.code, self.options)

    def get_function(self, name: str) -> RawKernel:
        """The kernel called `name`, compiled."""
        found = RawKernel(self.code, name, self.options)
        found.compile()
        return found


def _invalid(what: str) -> CUDADriverError:
    return CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {what}")


def _program(code: str, options: tuple[str, ...]) -> cuda_shim.Program:
    try:
        return cuda_shim.load(code, options)
    except cuda_shim.ShimError as error:
        raise CompileException(str(error)) from error


def _tuple_of(value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise TypeError(f"Argument '{name}' has incorrect type (expected tuple, got {type(value).__name__})")
    return value


def _passed(value: Any, taken: cuda_shim.Parameter, kernel: str) -> int | np.generic:
    """What CuPy passes for `value`; `TypeError` for what CuPy refuses and for what the kernel does not take."""
    import cupy

    if isinstance(value, cupy.ndarray):
        if taken.kind != "p" or not _points_to(taken, value.dtype):
            raise TypeError(f"{kernel} takes {taken}, got an array of {value.dtype}")
        return int(value.data.ptr)
    if isinstance(value, cupy.cuda.MemoryPointer):
        value = int(value.ptr)
    elif type(value) not in SCALARS:
        if isinstance(value, int):
            value = np.int64(value)
        elif isinstance(value, float):
            value = np.float64(value)
        else:
            raise TypeError(f"Unsupported type {type(value)}")
    kind, size = ("i", 8) if isinstance(value, int) else (value.dtype.kind, value.dtype.itemsize)
    if taken.kind == "p":
        fits = size == 8 and kind in "iu"
    else:
        fits = size == taken.size and _same(_letter(kind, size), taken.kind)
    if not fits:
        raise TypeError(f"{kernel} takes {taken}, got {size} bytes of {value!r}")
    return int(value) if taken.kind == "p" else value


def _letter(kind: str, size: int) -> str:
    return "h" if kind == "f" and size == 2 else kind


def _points_to(taken: cuda_shim.Parameter, dtype: np.dtype[Any]) -> bool:
    if taken.pointee in "iu" and taken.pointee_size == 1:
        return True  # plain bytes
    if dtype.name == "bfloat16":
        return taken.pointee == "b"
    return _same(_letter(dtype.kind, dtype.itemsize), taken.pointee) and dtype.itemsize == taken.pointee_size


def _same(letter: str, other: str) -> bool:
    return letter == other or {letter, other} == {"i", "u"}
