"""Between callers' arrays and the dense arrays that implementations see.

Callers bring NumPy arrays of any strides, or anything with `__dlpack__`. Implementations get
aligned, native-endian arrays in logical (N, C, spatial...) shape, dense in the spec's layout.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from autoconv.errors import InvalidType

__all__ = ["Array", "as_numpy", "conform", "dense_strides", "empty", "is_dense", "like_caller", "memory_layout"]

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


def memory_layout(array: Array) -> str:
    """`"nhwc"` for a dense channels-last array, else `"nchw"` (which also fits both, and neither)."""
    if array.flags.c_contiguous or array.ndim < 3:
        return "nchw"
    return "nhwc" if is_dense(array, "nhwc") else "nchw"


def is_dense(array: Array, layout: str) -> bool:
    """Whether the elements lie without gaps in the order of `layout`."""
    if layout == "nchw":
        return array.flags.c_contiguous
    return np.moveaxis(array, 1, -1).flags.c_contiguous


def dense_strides(shape: Sequence[int], layout: str, itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a dense array of logical `shape` in `layout`."""
    order = range(len(shape)) if layout == "nchw" else (0, *range(2, len(shape)), 1)
    strides = [0] * len(shape)
    step = itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def conform(array: Array, layout: str, dtype: np.dtype[Any]) -> Array:
    """`array` itself when dense in `layout`, aligned and of `dtype`; else a copy that is."""
    if array.dtype == dtype and array.dtype.isnative and array.flags.aligned and is_dense(array, layout):
        return array
    copy = empty(array.shape, layout, dtype)
    np.copyto(copy, array)
    return copy


def empty(shape: Sequence[int], layout: str, dtype: np.dtype[Any]) -> Array:
    """A new array of logical `shape`, dense in `layout`, its values undefined."""
    if layout == "nchw":
        return np.empty(shape, dtype)
    batch, channels, *spatial = shape
    return np.moveaxis(np.empty((batch, *spatial, channels), dtype), -1, 1)
