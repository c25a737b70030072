"""Stand-in for `cupy.cuda.cufft`: batched plans over up to three axes, unscaled, on memory by address.

A plan works in memory of its own, so one that is used by two streams at once is an error here. A transform back to
real numbers destroys its input, as cuFFT's may.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from cupy import _machine
from cupy.cuda import memory, stream

__all__ = ["CUFFT_C2C", "CUFFT_C2R", "CUFFT_D2Z", "CUFFT_R2C", "CUFFT_Z2D", "CUFFT_Z2Z", "CuFFTError", "PlanNd"]

CUFFT_C2C, CUFFT_R2C, CUFFT_C2R, CUFFT_Z2Z, CUFFT_D2Z, CUFFT_Z2D = 0x29, 0x2A, 0x2C, 0x69, 0x6A, 0x6C
CUFFT_FORWARD, CUFFT_INVERSE = -1, 1
INT_MAX = 2**31 - 1
DTYPES = {
    CUFFT_R2C: ("float32", "complex64"), CUFFT_C2R: ("complex64", "float32"),
    CUFFT_D2Z: ("float64", "complex128"), CUFFT_Z2D: ("complex128", "float64"),
}  # fmt: skip


class CuFFTError(RuntimeError):
    """A status other than success."""

    def __init__(self, result: int) -> None:
        self.result = result
        super().__init__({4: "CUFFT_INVALID_VALUE", 8: "CUFFT_INVALID_SIZE"}[result])


class PlanNd:
    """`cufftMakePlanMany` with the work area from CuPy's pool."""

    def __init__(
        self, shape: Sequence[int], inembed: Sequence[int] | None, istride: int, idist: int,
        onembed: Sequence[int] | None, ostride: int, odist: int, fft_type: int, batch: int, order: str,
        last_axis: int, last_size: int | None,
    ) -> None:  # fmt: skip
        numbers = [*shape, *(inembed or ()), istride, idist, *(onembed or ()), ostride, odist, batch]
        if any(not isinstance(number, int) for number in numbers):
            raise TypeError("an integer is required")
        if any(number > INT_MAX for number in numbers):
            raise OverflowError("value too large to convert to int")
        if not 1 <= len(shape) <= 3 or min(numbers) < 1 or fft_type not in DTYPES:
            raise CuFFTError(8 if min(numbers) < 1 else 4)
        if inembed is None or onembed is None or istride != 1 or ostride != 1:
            raise NotImplementedError("the stand-in knows contiguous boxes")
        self.shape, self.fft_type, self.order = tuple(shape), fft_type, order
        self.last_axis, self.last_size, self.batch = last_axis, last_size, batch
        self._boxes = (tuple(inembed), idist), (tuple(onembed), odist)
        half = (*self.shape[:-1], self.shape[-1] // 2 + 1)
        real, spectrum = self._boxes if DTYPES[fft_type][1].startswith("c") else self._boxes[::-1]
        if real != (self.shape, prod(self.shape)) or spectrum != (half, prod(half)):
            raise CuFFTError(4)
        self.work_area = memory.alloc(batch * prod(half) * 16)
        self._user: tuple[int, int] | None = None

    def fft(self, a: Any, out: Any, direction: int) -> None:
        """Enqueue the transform of `a` into `out`."""
        user = threading.get_ident(), stream.get_current_stream().ptr
        if self._user not in (None, user):
            raise AssertionError("one cuFFT plan, hence one work area, for two streams or threads")
        self._user = user
        source, target = a.data.ptr, out.data.ptr

        def work() -> None:
            (before, into), axes = self._memory(source, target), tuple(range(1, 1 + len(self.shape)))
            if direction == CUFFT_FORWARD:
                into[...] = np.fft.rfftn(before, axes=axes)
            else:
                into[...] = np.fft.irfftn(before, self.shape, axes) * prod(self.shape)
                before[...] = np.nan

        _machine.enqueue(work)

    def _memory(self, source: int, target: int) -> tuple[Any, Any]:
        views = []
        for address, (box, _), name in zip((source, target), self._boxes, DTYPES[self.fft_type], strict=True):
            dtype = np.dtype(name)
            size = self.batch * prod(box) * dtype.itemsize
            flat = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype)
            views.append(flat.reshape(self.batch, *box))
        return views[0], views[1]
