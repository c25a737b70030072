"""A stand-in for CuPy 14 over the host's memory, for machines without a GPU: only what CuPy has, and no kinder.

It is found as `cupy` when this folder's parent is on the path; the `standin` fixture of tests/cuda sees to that.
`tests/cuda/test_standin.py` holds it to the real one where that is installed.
"""

from __future__ import annotations

import sys as _sys
import types as _types
from typing import Any

import numpy as _np
from cupy import _machine, cuda
from cupy._arrays import UFUNCS as _UFUNCS
from cupy._arrays import apply_ufunc as _apply_ufunc
from cupy._arrays import checked_dtype as _checked_dtype
from cupy._arrays import compute as _compute
from cupy._arrays import function as _function
from cupy._arrays import ndarray
from numpy import can_cast as _can_cast
from numpy import result_type as _result_type

__version__ = "14.2.0"

NAMES = (  # what CuPy has from NumPy as it is
    "bool_", "complex64", "complex128", "dtype", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "newaxis", "pi", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
FUNCTIONS = {  # CuPy 14.2's own parameters
    "all": "a, axis=None, out=None, keepdims=False",
    "any": "a, axis=None, out=None, keepdims=False",
    "argmax": "a, axis=None, dtype=None, out=None, keepdims=False",
    "argmin": "a, axis=None, dtype=None, out=None, keepdims=False",
    "array_equal": "a1, a2, equal_nan=False",
    "atleast_1d": "*arys",
    "broadcast_to": "array, shape",
    "clip": "a, a_min, a_max, out=None",
    "concatenate": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "count_nonzero": "a, axis=None",
    "cumsum": "a, axis=None, dtype=None, out=None",
    "dot": "a, b, out=None",
    "einsum": "*operands, **kwargs",
    "expand_dims": "a, axis",
    "flip": "a, axis=None",
    "max": "a, axis=None, out=None, keepdims=False",
    "mean": "a, axis=None, dtype=None, out=None, keepdims=False",
    "min": "a, axis=None, out=None, keepdims=False",
    "moveaxis": "a, source, destination",
    "outer": "a, b, out=None",
    "pad": "array, pad_width, mode='constant', **kwargs",
    "prod": "a, axis=None, dtype=None, out=None, keepdims=False",
    "ravel": "a, order='C'",
    "repeat": "a, repeats, axis=None",
    "reshape": "a, newshape, order='C', *, copy=None",
    "roll": "a, shift, axis=None",
    "split": "ary, indices_or_sections, axis=0",
    "squeeze": "a, axis=None",
    "stack": "tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "sum": "a, axis=None, dtype=None, out=None, keepdims=False",
    "swapaxes": "a, axis1, axis2",
    "take": "a, indices, axis=None, out=None",
    "tensordot": "a, b, axes=2",
    "tile": "A, reps",
    "transpose": "a, axes=None",
    "tril": "m, k=0",
    "triu": "m, k=0",
    "where": "condition, x=None, y=None",
}
FFTS = {
    **dict.fromkeys(("fft", "ifft", "rfft", "irfft"), "a, n=None, axis=-1, norm=None"),
    **dict.fromkeys(("fft2", "ifft2", "rfft2", "irfft2"), "a, s=None, axes=(-2, -1), norm=None"),
    **dict.fromkeys(("fftn", "ifftn", "rfftn", "irfftn"), "a, s=None, axes=None, norm=None"),
}


def _ufunc(name: str) -> Any:
    numpys = getattr(_np, name)

    def call(*args: Any, out: Any = None, **options: Any) -> Any:
        return _apply_ufunc(numpys, args[: numpys.nin], args[numpys.nin] if len(args) > numpys.nin else out, options)

    call.__name__ = name
    return call


globals().update({name: getattr(_np, name) for name in NAMES})
globals().update({name: _ufunc(name) for name in _UFUNCS})
globals().update({name: _function(name, parameters, getattr(_np, name)) for name, parameters in FUNCTIONS.items()})
abs, conj = globals()["absolute"], globals()["conjugate"]


def _module(name: str, contents: dict[str, Any]) -> Any:
    made = _types.ModuleType(f"cupy.{name}")
    made.__dict__.update(contents)
    _sys.modules[made.__name__] = made
    return made


fft = _module("fft", {name: _function(name, parameters, getattr(_np.fft, name)) for name, parameters in FFTS.items()})
linalg = _module(
    "linalg",
    {
        "norm": _function("norm", "x, ord=None, axis=None, keepdims=False", _np.linalg.norm),
        "solve": _function("solve", "a, b", _np.linalg.solve),
    },
)
_as_strided = _function("as_strided", "x, shape=None, strides=None", _np.lib.stride_tricks.as_strided)
_windows = _function(
    "sliding_window_view", "x, window_shape, axis=None, *, subok=False, writeable=False",
    _np.lib.stride_tricks.sliding_window_view,
)  # fmt: skip
stride_tricks = _module("lib.stride_tricks", {"as_strided": _as_strided, "sliding_window_view": _windows})
lib = _module("lib", {"stride_tricks": stride_tricks})


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array, its values undefined."""
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    """A new array of one value."""
    new = ndarray(shape, _np.asarray(fill_value).dtype if dtype is None else dtype, order=order)
    new.fill(fill_value)
    return new


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array of zeros."""
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """A new array of ones."""
    return full(shape, 1, dtype, order)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """A new array like another."""
    if not isinstance(prototype, ndarray):
        raise TypeError(f"Unsupported type {type(prototype)}")
    blank = _np.empty_like(prototype._array, dtype=dtype, order=order, shape=shape)
    return _compute(lambda: blank, blank, [])


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    """A new array of one value, like another."""
    new = empty_like(a, dtype, order, subok, shape)
    new.fill(fill_value)
    return new


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """A new array of zeros, like another."""
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """A new array of ones, like another."""
    return full_like(a, 1, dtype, order, subok, shape)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    """Evenly spaced values."""
    values = _np.arange(start, None, step, dtype) if stop is None else _np.arange(start, stop, step, dtype)
    return _compute(lambda: values, values, [])


def array(
    obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0,
    *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    """An array's or list's values on the current device."""
    if isinstance(obj, ndarray):
        wanted = obj.dtype if dtype is None else _np.dtype(dtype)
        if not copy and wanted == obj.dtype and order in ("K", "A", None):
            return obj
        return obj.astype(wanted, order=order or "K")
    _machine.refuse_during_capture()
    values = _np.array(obj, dtype=dtype, order="K" if order is None else order, ndmin=ndmin)
    _checked_dtype(values.dtype)
    return _compute(lambda: values, values, [])


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    """`a` itself where it fits, else its values on the current device."""
    return array(a, dtype, bool(copy), "K" if order is None else order)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """`a` itself where it is plain, else a plain copy."""
    found = asarray(a, dtype)
    return found if found.flags.c_contiguous else found.copy()


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    """A copy on the host."""
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else _np.asarray(a)


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Copy values, broadcast."""
    if not isinstance(dst, ndarray):
        raise TypeError(f"Argument 'dst' has incorrect type (expected cupy.ndarray, got {type(dst).__name__})")
    if isinstance(src, _np.ndarray) and src.ndim:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    if where is not None:
        raise NotImplementedError("the stand-in copies everything")
    if not _can_cast(src.dtype if isinstance(src, ndarray) else _np.asarray(src).dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast {getattr(src, 'dtype', type(src))!r} to {dst.dtype!r} in {casting} casting mode")
    dst[...] = src


def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    """Whether two arrays lie in one stretch of memory."""
    return bool(_np.may_share_memory(a._array, b._array))


def result_type(*arrays_and_dtypes: Any) -> Any:
    """The dtype that all can be cast to."""
    return _result_type(*(one.dtype if isinstance(one, ndarray) else one for one in arrays_and_dtypes))


def can_cast(from_: Any, to: Any, casting: str = "safe") -> bool:
    """Whether a cast is allowed."""
    return bool(_can_cast(from_.dtype if isinstance(from_, ndarray) else from_, to, casting))


def get_array_module(*args: Any) -> Any:
    """`cupy` if there is one of its arrays, else `numpy`."""
    return _sys.modules[__name__] if any(isinstance(one, ndarray) for one in args) else _np


def get_default_memory_pool() -> Any:
    """The pool of the current device."""
    return cuda.memory.pool_of(_machine.current_device())


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """An array of another library's, sharing its memory; its stream is waited for by ours."""
    if device is not None:
        raise NotImplementedError("from_dlpack() does not support device yet.")
    if isinstance(array, ndarray):
        return array
    kind, index = array.__dlpack_device__()
    if kind not in (2, 13):
        raise TypeError("CPU arrays cannot be directly imported to CuPy.")
    with _machine.on_device(index):
        shared = array.__dlpack__(stream=cuda.get_current_stream().ptr or 1)
    if not isinstance(shared, ndarray):
        raise TypeError("the stand-in's capsules are its arrays")
    return shared


def _lazy(name: str) -> Any:
    if name in ("RawKernel", "RawModule"):
        from cupy import _raw

        return getattr(_raw, name)
    raise AttributeError(f"module 'cupy' has no attribute {name!r}")


__getattr__ = _lazy

from tests.standin import driver as _driver  # noqa: E402  now that there is something to install

_driver.install(_machine.machine)
