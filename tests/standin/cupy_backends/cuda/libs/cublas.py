"""Stand-in for cuBLAS: matrix products of host memory by address, columns first, as the library defines them.

Signatures and constants are those of CuPy 13.6 and 14; what the library refuses is refused. `calls` counts.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_TF32_TENSOR_OP_MATH = 0, 1, 3
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77
INT_MAX = 2**31 - 1

_TYPES = {0: "float32", 1: "float64", 2: "float16", 4: "complex64", 5: "complex128", 14: "bfloat16"}
_math_modes: dict[int, int] = {}
calls: list[dict[str, int]] = []
"""Edges, count and compute type of every product since somebody cleared it."""


class CUBLASError(RuntimeError):
    """A status other than success."""

    def __init__(self, status: int) -> None:
        super().__init__({7: "CUBLAS_STATUS_INVALID_VALUE", 15: "CUBLAS_STATUS_NOT_SUPPORTED"}[status])
        self.status = status


def getMathMode(handle: int) -> int:
    """The handle's math mode."""
    return _math_modes.get(handle, CUBLAS_DEFAULT_MATH)


def setMathMode(handle: int, mode: int) -> None:
    """Set the handle's math mode."""
    _math_modes[handle] = mode


def gemmStridedBatchedEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
    A: int, Atype: int, lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int, beta: int,
    C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """`C = alpha op(A) op(B) + beta C` for every matrix of the batch; `alpha` to `C` are addresses."""
    from cupy.cuda import get_current_stream

    if get_current_stream().is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    for value in (m, n, k, lda, ldb, ldc, batchCount):
        if not isinstance(value, int):
            raise TypeError(f"an integer is required, got {type(value).__name__}")
        if value > INT_MAX:
            raise OverflowError("value too large to convert to int")
    if min(m, n, k, batchCount) < 0 or lda < max(1, k if transa else m) or ldb < max(1, n if transb else k):
        raise CUBLASError(7)
    if ldc < max(1, m):
        raise CUBLASError(7)
    if Atype != Btype or (Atype != Ctype and not (Atype in (2, 14) and Ctype == 0)):
        raise CUBLASError(15)
    wide = computeType in (CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32) and Ctype in (0, 2, 4, 14)
    if not wide and not (computeType == CUBLAS_COMPUTE_64F and Ctype in (1, 5)):
        raise CUBLASError(15)
    calls.append({"m": m, "n": n, "k": k, "count": batchCount, "compute": computeType})
    dtype = _dtype(_TYPES[Ctype])
    summed = {"float32": "float32", "float64": "float64", "complex64": "complex64", "complex128": "complex128"}.get(
        _TYPES[Ctype], "float32"
    )
    one, zero = (_memory(address, (1,), (0,), np.dtype(summed))[0] for address in (alpha, beta))
    operand = _dtype(_TYPES[Atype])
    left = _columns(A, (m, k), lda, strideA, batchCount, transa, operand)
    right = _columns(B, (k, n), ldb, strideB, batchCount, transb, operand)
    result = _columns(C, (m, n), ldc, strideC, batchCount, 0, dtype)
    short = Ctype == 0 and (
        computeType == CUBLAS_COMPUTE_32F_FAST_TF32 or getMathMode(handle) & 3 == CUBLAS_TF32_TENSOR_OP_MATH
    )
    left, right = (_shortened(side) if short else side.astype(summed) for side in (left, right))
    with np.errstate(all="ignore"):
        products = one * np.matmul(left, right)
        result[...] = products if zero == 0 else products + zero * result.astype(summed)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _columns(
    address: int, shape: tuple[int, int], step: int, stride: int, count: int, turned: int, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """(count, rows, columns) of matrices whose columns are contiguous; rows where `turned`."""
    inner = (step, 1) if turned else (1, step)
    return _memory(address, (count, *shape), (stride, *inner), dtype)


def _memory(address: int, shape: tuple[int, ...], steps: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * (extent * dtype.itemsize)).from_address(address)).view(dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, [step * dtype.itemsize for step in steps])


def _shortened(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 without the 13 bits that TF32 does not have."""
    return (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
