"""Between callers' arrays and the dense arrays that implementations see.

Callers bring NumPy arrays of any strides, or anything with `__dlpack__`. Implementations get
aligned, native-endian arrays in logical (N, C, spatial...) shape, dense in the spec's layout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from autoconv.errors import InvalidType

__all__ = [
    "Array",
    "as_layout",
    "as_numpy",
    "axis_order",
    "conform",
    "conforms",
    "dense_strides",
    "empty",
    "is_dense",
    "like_caller",
    "memory_layout",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def as_numpy(value: Any, name: str) -> Array:
    """`value` as a NumPy array sharing its memory; raises `InvalidType` for what is no array."""
    if isinstance(value, np.ndarray):
        masked = sys.modules.get("numpy.ma")  # not `np.ma`: asking for it imports it, for 10 ms
        if masked is not None and isinstance(value, masked.MaskedArray):
            raise InvalidType(f"{name} is a masked array; fill it first, for example with .filled(0)")
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InvalidType(
                f"{name} ({type(value).__module__}.{type(value).__name__}) cannot be read as a CPU array: {error}"
            ) from error
    raise InvalidType(f"{name} must be a NumPy array or have __dlpack__, got {type(value).__name__}")


def like_caller(result: Array, caller: Any) -> Any:
    """`result` as an array of the library `caller`'s array came from."""
    if isinstance(caller, np.ndarray):
        return result
    namespace = getattr(caller, "__array_namespace__", None)
    module: Any = namespace() if namespace else sys.modules[type(caller).__module__.partition(".")[0]]
    return module.from_dlpack(result)


def axis_order(layout: str, ndim: int) -> tuple[int, ...]:
    """The logical axes (N, C, spatial...) in the order of `layout` in memory, slowest first."""
    if layout == "nchw":
        return tuple(range(ndim))
    return (0, *range(2, ndim), 1) if layout == "nhwc" else (*range(1, ndim), 0)


def memory_layout(array: Array) -> str:
    """The layout a dense array has; `"nchw"` where several fit, and where none does."""
    if array.flags.c_contiguous or array.ndim < 3:
        return "nchw"
    return next((layout for layout in ("nhwc", "chwn") if is_dense(array, layout)), "nchw")


def is_dense(array: Array, layout: str) -> bool:
    """Whether the elements lie without gaps in the order of `layout`."""
    return array.transpose(axis_order(layout, array.ndim)).flags.c_contiguous


def dense_strides(shape: Sequence[int], layout: str, itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a dense array of logical `shape` in `layout`."""
    strides = [0] * len(shape)
    step = itemsize
    for axis in reversed(axis_order(layout, len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def conforms(array: Array, layout: str, dtype: np.dtype[Any]) -> bool:
    """Whether `array` is dense in `layout`, aligned and of `dtype` in this machine's byte order."""
    return array.dtype == dtype and array.dtype.isnative and array.flags.aligned and is_dense(array, layout)


def conform(array: Array, layout: str, dtype: np.dtype[Any]) -> Array:
    """`array` itself when dense in `layout`, aligned and of `dtype`; else a copy that is."""
    if conforms(array, layout, dtype):
        return array
    copy = empty(array.shape, layout, dtype)
    np.copyto(copy, array)
    return copy


def empty(shape: Sequence[int], layout: str, dtype: np.dtype[Any]) -> Array:
    """A new array of logical `shape`, dense in `layout`, its values undefined."""
    if layout == "nchw":
        return np.empty(shape, dtype)
    return as_layout(np.empty(prod(shape), dtype), shape, layout)


def as_layout(flat: Array, shape: Sequence[int], layout: str) -> Array:
    """`flat`, its elements in the order of `layout` in memory, as an array of logical `shape` (N, C, spatial...)."""
    order = axis_order(layout, len(shape))
    inverse = sorted(range(len(shape)), key=order.__getitem__)
    return flat.reshape([shape[axis] for axis in order]).transpose(inverse)
