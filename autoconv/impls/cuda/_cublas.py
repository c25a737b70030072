"""Matrix products on CuPy arrays by cuBLAS, in the arithmetic that is asked for and no other.

CuPy's own `matmul` copies what is not C-contiguous, and multiplies float32 in TF32 when CUPY_TF32 says so or somebody
set the handle's math mode. Here a product is one call of cublasGemmStridedBatchedEx on the arrays as they lie: rows or
columns may be contiguous, stacks may be strided or broadcast, and the compute type is written out.

    strict   sums in the operands' precision (in float32 for half types), partial sums too
    tf32     float32 operands are shortened to 10 bits of mantissa, sums are float32
    3xtf32   each float32 operand is a high and a low part, of 10 bits each; one product of three times the length,
             [Ah Ah Al] x [Bh; Bl; Bh], leaves out only Al Bl: float32's error (Ootomo & Yokota, "Recovering single
             precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022)

CuPy raises NotImplementedError for cuBLAS while a stream is captured: implementations that come here say
`capturable = False`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.impls.cuda._kernels import Module, module
from autoconv.planning import Workspace

__all__ = ["ARITHMETIC", "LONGEST", "Multiply", "has_tf32", "matmul"]

ARITHMETIC = ("strict", "tf32", "3xtf32")
LONGEST = 2**31 - 1  # edge or leading dimension of a matrix, in cuBLAS's 32-bit interface
LAYERS = 65535  # of a grid, hence of one batch of products

# cudaDataType, cublasComputeType_t (library_types.h, cublas_api.h) and the dtype of the factors, by operands' dtype
_TYPES: dict[str, tuple[int, int, str]] = {
    "float32": (0, 68, "float32"),
    "float64": (1, 70, "float64"),
    "float16": (2, 68, "float32"),
    "bfloat16": (14, 68, "float32"),
    "complex64": (4, 68, "complex64"),
    "complex128": (5, 70, "complex128"),
}
_TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32
_DEFAULT_ALGORITHM = -1
_WHOLE_SUMS = 16  # default math, and CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no partial sums in half types

_FACTORS = {name: (np.ones(1, name), np.zeros(1, name)) for name in ("float32", "float64", "complex64", "complex128")}


def has_tf32(device: Device) -> bool:
    """Whether the device has matrix units for TF32: compute capability 8.0 and later."""
    digits = "".join(letter for letter in device.isa if letter.isdigit())
    return int(digits or 0) >= 80


def matmul(a: Array, b: Array, out: Array, arithmetic: str = "strict", *, accumulate: bool = False) -> None:
    """`out = a @ b` (`+=` to accumulate) for stacks of matrices: (..., m, k) x (..., k, n) into (..., m, n).

    All are CuPy arrays of one dtype, or half types into float32. Leading axes broadcast as NumPy's do; each matrix must
    have rows or columns without gaps between their elements, and `out` must overlap neither operand. Enqueued on the
    current stream.
    Raises `ValueError` for matrices that cuBLAS cannot read as they lie.
    """
    if a.shape[-1] != b.shape[-2] or out.shape[-2:] != (a.shape[-2], b.shape[-1]):
        raise ValueError(f"cannot multiply {a.shape} by {b.shape} into {out.shape}")
    kind, compute, scalar = _TYPES[out.dtype.name]
    read = _TYPES[a.dtype.name][0]
    if arithmetic == "tf32":
        compute = _TF32
    if not _rows(out):  # cuBLAS stores columns: rows are the columns of the transposed product
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
    left, right, result = _Side(b, "right operand"), _Side(a, "left operand"), _Side(out, "result")
    one, zero = _FACTORS[scalar]
    beta = one if accumulate else zero
    n, m, k = out.shape[-1], out.shape[-2], a.shape[-1]
    operations = int(not left.rows), int(not right.rows)
    handle, cublas = _handle()
    mode = cublas.getMathMode(handle)
    if mode != _WHOLE_SUMS:
        cublas.setMathMode(handle, _WHOLE_SUMS)
    try:
        for starts, strides, count in _stacks(out.shape[:-2], (b, a, out)):
            at = [_address(array, start) for array, start in zip((b, a, out), starts, strict=True)]
            cublas.gemmStridedBatchedEx(
                handle, *operations, n, m, k, one.ctypes.data,
                at[0], read, left.step, strides[0],
                at[1], read, right.step, strides[1],
                beta.ctypes.data,
                at[2], kind, result.step, strides[2],
                count, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
    finally:
        if mode != _WHOLE_SUMS:
            cublas.setMathMode(handle, mode)


class Multiply:
    """`matmul` in one arithmetic, for the runners of one device."""

    def __init__(self, device: Device, arithmetic: str = "strict") -> None:
        self._arithmetic = arithmetic
        self._split: Module | None = module("split", {}, device) if arithmetic == "3xtf32" else None

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace, *, accumulate: bool = False) -> None:
        """`out = a @ b`, or `+=`; for 3xtf32 the stacks of `a` and of `b` must each lie without gaps."""
        if self._split is None:
            matmul(a, b, out, self._arithmetic, accumulate=accumulate)
            return
        mark = workspace.mark()
        long_a, long_b = self._triple(a, a.ndim - 1, 2, workspace), self._triple(b, b.ndim - 2, 1, workspace)
        matmul(long_a, long_b, out, "tf32", accumulate=accumulate)
        workspace.release(mark)

    def scratch(self, *shapes: Sequence[int]) -> list[int]:
        """Elements of each piece of workspace for operands of these shapes."""
        return scratch(self._arithmetic, *shapes)

    def _triple(self, array: Array, axis: int, low: int, workspace: Workspace) -> Array:
        """`array` three times as long along `axis`: its high parts twice, its low ones at place `low`."""
        assert self._split is not None
        # an axis of one is innermost when it grows, so that it is contiguous whatever else lies between
        alone = array.shape[axis] == 1
        order = sorted(range(array.ndim), key=lambda i: (alone and i == axis, array.shape[i] != 1, -array.strides[i]))
        memory = array.transpose(order)
        if not memory.flags.c_contiguous:
            raise ValueError(f"cannot split an array of shape {array.shape} with gaps: strides {array.strides}")
        place = order.index(axis)
        outer, inner = prod(memory.shape[:place]), prod(memory.shape[place:])
        parts = workspace.take((*memory.shape[:place], 3 * memory.shape[place], *memory.shape[place + 1 :]), np.float32)
        blocks = min(-(-outer * inner // 256), 1 << 20)
        self._split.launch(
            "split_tf32", (blocks,), (256,), (array, parts, np.int64(outer), np.int64(inner), np.int32(low))
        )
        return parts.transpose(sorted(range(array.ndim), key=order.__getitem__))


def scratch(arithmetic: str, *shapes: Sequence[int]) -> list[int]:
    """Elements of each piece of workspace that `Multiply` takes for operands of these shapes."""
    return [3 * prod(shape) for shape in shapes] if arithmetic == "3xtf32" else []


# How arrays lie -----------------------------------------------------------------------------------


class _Side:
    """A matrix as cuBLAS is told of it: whether rows are contiguous, and from one row (or column) to the next."""

    __slots__ = ("rows", "step")

    def __init__(self, array: Array, name: str) -> None:
        self.rows = _rows(array)
        line, lines = (-1, -2) if self.rows else (-2, -1)
        step = array.strides[lines] // array.dtype.itemsize
        self.step = step if array.shape[lines] > 1 else max(array.shape[line], 1)
        contiguous = array.shape[line] == 1 or array.strides[line] == array.dtype.itemsize
        if not contiguous or self.step < array.shape[line]:
            raise ValueError(f"the {name} has gaps in rows and columns: shape {array.shape}, strides {array.strides}")


def _rows(array: Array) -> bool:
    """Whether the rows of its matrices are contiguous; columns may be too where one edge is 1."""
    return array.shape[-1] == 1 or array.strides[-1] == array.dtype.itemsize


def _stacks(shape: Sequence[int], arrays: Sequence[Array]) -> Iterator[tuple[list[int], list[int], int]]:
    """Calls that together cover a stack: where each array starts, from one matrix to the next, and how many; elements.

    Neighbouring axes that every array strides through evenly are one; the longest is the batch, the others are loops.
    """
    strides = [_stack_strides(shape, array) for array in arrays]
    axes: list[tuple[int, tuple[int, ...]]] = []
    for size, steps in zip(shape, zip(*strides, strict=True), strict=True):
        if size == 1:
            continue
        if axes and all(outer == inner * size for outer, inner in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = axes[-1][0] * size, steps
        else:
            axes.append((size, steps))
    axes.sort(key=lambda axis: axis[0])
    count, batch = axes.pop() if axes else (1, (0,) * len(arrays))
    for index in product(*(range(size) for size, _ in axes)):
        base = [sum(i * axis[1][at] for i, axis in zip(index, axes, strict=True)) for at in range(len(arrays))]
        for first in range(0, count, LAYERS):
            starts = [start + first * step for start, step in zip(base, batch, strict=True)]
            yield starts, list(batch), min(LAYERS, count - first)


def _stack_strides(shape: Sequence[int], array: Array) -> list[int]:
    """Strides in elements along the axes of a stack, 0 where the array is broadcast."""
    own = array.shape[:-2]
    if len(own) > len(shape) or any(n not in (1, size) for n, size in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"a stack of {own} matrices does not broadcast to {tuple(shape)}")
    steps = [0 if n == 1 else step // array.dtype.itemsize for n, step in zip(own, array.strides, strict=False)]
    return [0] * (len(shape) - len(own)) + steps


def _address(array: Any, start: int) -> int:
    """Of an array's element, counted in elements of memory."""
    return int(array.data.ptr) + start * int(array.dtype.itemsize)


def _handle() -> tuple[int, Any]:
    """cuBLAS's handle of this thread and device, and CuPy's bindings."""
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    return device.get_cublas_handle(), cublas
