"""Stand-in for `cupy.ndarray`: a NumPy array within device memory, wrapped rather than inherited from.

What CuPy refuses is refused: NumPy arrays among the operands, conversion without `.get()`, arrays of another device,
whatever waits during a capture, cuBLAS during a capture, options that CuPy's functions do not have.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from cupy import _machine
from cupy.cuda import memory

__all__ = ["compute", "flagged", "ndarray", "unwrapped", "wrapped"]

KINDS = "?bhilqBHILQefdFD"
UFUNC_OPTIONS = {"out", "dtype", "casting"}
MATMUL_OPTIONS = UFUNC_OPTIONS | {"axes", "axis", "keepdims", "signature", "order"}
CUBLAS = {"matmul", "dot", "tensordot", "einsum", "outer", "inv", "solve"}
UFUNCS = (
    "absolute", "add", "bitwise_and", "bitwise_or", "ceil", "conjugate", "cos", "divide", "equal", "exp", "fabs",
    "floor", "floor_divide", "greater", "greater_equal", "isfinite", "isinf", "isnan", "left_shift", "less",
    "less_equal", "log", "log2", "logical_and", "logical_not", "logical_or", "matmul", "maximum", "minimum",
    "multiply", "negative", "not_equal", "power", "remainder", "right_shift", "rint", "sign", "signbit", "sin", "sqrt",
    "square", "subtract", "true_divide",
)  # fmt: skip


class Flags:
    """What CuPy says about the memory of an array, and no more."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous = array._array.flags.c_contiguous
        self.f_contiguous = array._array.flags.f_contiguous
        self.owndata = array.base is None
        self.fnc = self.f_contiguous and not self.c_contiguous
        self.forc = self.f_contiguous or self.c_contiguous


class ndarray:  # noqa: N801  CuPy's name
    """An array on a GPU."""

    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        dtype = np.dtype(dtype)
        if memptr is None:
            checked_dtype(dtype)
        if strides is not None and memptr is None:
            raise ValueError("memptr should be specified if strides is given")
        size = prod(shape) * dtype.itemsize
        self.data = memory.alloc(size) if memptr is None else memptr
        self.base: ndarray | None = None
        if strides is None:
            whole = self.data._span(size).view(dtype)
            self._array = whole.reshape(shape, order=order)
        else:
            self._array = np.ndarray(shape, dtype, self.data.mem.bytes, self.data._offset, tuple(strides))

    # What it is ---------------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        """The GPU it is on."""
        return self.data.device

    @property
    def flags(self) -> Flags:
        """How it lies in memory."""
        return Flags(self)

    @property
    def T(self) -> ndarray:
        """Transposed."""
        return self.transpose()

    @property
    def real(self) -> ndarray:
        """Real parts."""
        return _view_or_copy(self._array.real, [self])

    @property
    def imag(self) -> ndarray:
        """Imaginary parts."""
        return _view_or_copy(self._array.imag, [self])

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._array.shape

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    # To and from the host -----------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        """A copy on the host."""
        _machine.refuse_during_capture()
        if out is None:
            return self._array.copy(order=order)
        if out.dtype != self.dtype or out.shape != self.shape:
            raise (TypeError if out.dtype != self.dtype else ValueError)(f"cannot copy {self.dtype} {self.shape}")
        np.copyto(out, self._array)
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        """Copy from the host."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise (TypeError if arr.dtype != self.dtype else ValueError)(f"cannot set {self.dtype} {self.shape}")
        _machine.refuse_during_capture()
        np.copyto(self._array, arr)

    def item(self) -> Any:
        """Its one value."""
        return self.get().item()

    def tolist(self) -> Any:
        """Its values in lists."""
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        """Its bytes."""
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> ndarray:
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.data.device_id

    # Indexing -----------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> ndarray:
        plain = _indices(key)
        found = self._array[plain]
        return compute(lambda: np.asarray(self._array[plain]), found, [self, *_arrays_in(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = _indices(key)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _same_device([self, *_arrays_in((key, value))])
        target, source = self._array, unwrapped(value)

        def assign() -> None:
            with np.errstate(all="ignore"):
                target[plain] = source

        _machine.enqueue(assign)

    def fill(self, value: Any) -> None:
        """Set every element."""
        self[...] = value

    # NumPy's protocols --------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        name = ufunc.__name__
        if name not in UFUNCS or method not in ("__call__", "reduce") or (method == "reduce" and name != "add"):
            return NotImplemented
        if method == "reduce":
            raise NotImplementedError("the stand-in reduces by its functions")
        out = options.pop("out", (None,))
        if len(out) != 1:
            raise ValueError("The 'out' parameter must have exactly one array value")
        return apply_ufunc(ufunc, inputs, out[0], options)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        try:
            module = functools.reduce(getattr, func.__module__.split(".")[1:], cupy)
            found = getattr(module, func.__name__)
        except AttributeError:
            return NotImplemented
        if not all(issubclass(kind, ndarray | np.ndarray) for kind in types):
            return NotImplemented
        return found(*args, **kwargs)


def checked_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """`dtype`, if CuPy has arrays of it."""
    if dtype.char not in KINDS and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def unwrapped(value: Any) -> Any:
    """`value` with every stand-in array replaced by the NumPy array within; a NumPy array is refused."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple) and any(isinstance(one, ndarray | np.ndarray | list | tuple) for one in value):
        return type(value)(unwrapped(one) for one in value)
    return value


def _arrays_in(value: Any) -> list[ndarray]:
    if isinstance(value, ndarray):
        return [value]
    return [one for part in value for one in _arrays_in(part)] if isinstance(value, list | tuple) else []


def _indices(key: Any) -> Any:
    if isinstance(key, np.ndarray) or (isinstance(key, tuple) and any(isinstance(k, np.ndarray) for k in key)):
        raise TypeError("the stand-in takes no NumPy array as an index: it would be copied in every call")
    return unwrapped(key)


def _same_device(operands: Sequence[ndarray]) -> None:
    here = _machine.current_device()
    for one in operands:
        if one.data.device_id != here:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {one.data.device_id} while current = {here}"
            )


def _view_or_copy(result: Any, sources: Sequence[ndarray]) -> ndarray:
    """A NumPy result as an array: within the memory of a source where it shares it, else in new memory.

    A view takes no kernel and can be had of any device's array.
    """
    if result.size:
        at = result.__array_interface__["data"][0]
        for source in sources:
            block = source.data.mem
            if block.size and block.ptr <= at < block.ptr + block.size:
                return wrapped(result, memory.MemoryPointer(block, at - block.ptr), source)
    _same_device(sources)
    new = ndarray(result.shape, checked_dtype(result.dtype))
    order = sorted(range(result.ndim), key=lambda axis: -abs(result.strides[axis])) if result.size else range(0)
    if list(order) != sorted(order) and result.flags.f_contiguous:
        new._array = new._array.reshape(-1).reshape(result.shape, order="F")
    new._array[...] = result
    return new


def wrapped(array: np.ndarray[Any, Any], at: memory.MemoryPointer, base: ndarray | None = None) -> ndarray:
    """A view of device memory."""
    new: ndarray = object.__new__(ndarray)
    new._array, new.data, new.base = array, at, base
    return new


def compute(work: Callable[[], Any], found: Any, sources: Sequence[ndarray]) -> Any:
    """`found`, what `work` gives, as an array; while a graph is recorded, `work` is done when that is launched."""
    result = _view_or_copy(np.asarray(found), sources)
    if result.base is None and flagged():
        target = result._array
        if target.size:
            target.reshape(-1).view(np.uint8)[...] = memory.POISON

        def again() -> None:
            with np.errstate(all="ignore"):
                target[...] = work()

        _machine.enqueue(again)
    return result


def flagged() -> bool:
    """Whether the current stream is being captured."""
    from cupy.cuda.stream import get_current_stream

    return get_current_stream().is_capturing()


def apply_ufunc(ufunc: np.ufunc, inputs: Sequence[Any], out: Any, options: dict[str, Any]) -> Any:
    """A ufunc as CuPy's of the same name does it."""
    name = ufunc.__name__
    unknown = set(options) - (MATMUL_OPTIONS if name == "matmul" else UFUNC_OPTIONS)
    if unknown:
        raise TypeError(f"Wrong arguments {', '.join(sorted(unknown))}")
    if name in CUBLAS and flagged():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    if isinstance(out, tuple):
        (out,) = out
    if out is not None and not isinstance(out, ndarray):
        raise TypeError("return arrays must be of ArrayType" if name != "matmul" else "`out` must be `cupy.ndarray`")
    arrays = [one for one in (*inputs, out) if isinstance(one, ndarray)]
    _same_device(arrays)
    plain = [unwrapped(one) for one in inputs]
    if name == "matmul" and any(array.dtype.name == "bfloat16" for array in arrays):
        raise NotImplementedError("the stand-in multiplies no matrices of bfloat16")

    def work(into: Any = None) -> Any:
        with np.errstate(all="ignore"):
            return ufunc(*plain, out=into, **options)

    if out is None:
        return compute(work, work(), arrays)
    target = out._array
    _machine.enqueue(lambda: work(target))
    return out


def function(name: str, parameters: str, call: Callable[..., Any], *, host: bool = False) -> Callable[..., Any]:
    """A function with CuPy's parameters that works by `call`, NumPy's of that name."""
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    @functools.wraps(call)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)  # an option that CuPy's function lacks is a TypeError
        if name in CUBLAS and flagged():
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        arrays = _arrays_in([*args, *kwargs.values()])
        out = kwargs.get("out")
        plain, named = [unwrapped(one) for one in args], {key: unwrapped(one) for key, one in kwargs.items()}

        def work() -> Any:
            with np.errstate(all="ignore"):
                return call(*plain, **named)

        if out is not None:
            _same_device(arrays)
            _machine.enqueue(work)
            return out
        found = work()
        if host:
            return found
        if isinstance(found, list | tuple):
            return type(found)(_view_or_copy(one, arrays) for one in found)
        return compute(work, found, arrays)

    replacement.__name__ = replacement.__qualname__ = name
    return replacement


def _method(name: str, parameters: str) -> None:
    call = getattr(np.ndarray, name)
    method = function(name, f"self, {parameters}" if parameters else "self", call)
    setattr(ndarray, name, method)


def _property(name: str) -> None:
    setattr(ndarray, name, property(lambda self: getattr(self._array, name)))


for _name in ("dtype", "strides", "ndim", "size", "itemsize", "nbytes"):
    _property(_name)
for _name, _parameters in {
    "reshape": "*shape, order='C', copy=None", "transpose": "*axes", "view": "dtype=None, type=None",
    "copy": "order='C'", "ravel": "order='C'", "flatten": "order='C'", "squeeze": "axis=None",
    "swapaxes": "axis1, axis2", "sum": "axis=None, dtype=None, out=None, keepdims=False",
    "prod": "axis=None, dtype=None, out=None, keepdims=None", "max": "axis=None, out=None, keepdims=False",
    "min": "axis=None, out=None, keepdims=False", "mean": "axis=None, dtype=None, out=None, keepdims=False",
    "all": "axis=None, out=None, keepdims=False", "any": "axis=None, out=None, keepdims=False",
    "argmax": "axis=None, out=None, dtype=None, keepdims=False", "conj": "", "diagonal": "offset=0, axis1=0, axis2=1",
    "clip": "min=None, max=None, out=None", "dot": "b, out=None", "take": "indices, axis=None, out=None",
    "repeat": "repeats, axis=None", "round": "decimals=0, out=None",
    "cumsum": "axis=None, dtype=None, out=None",
}.items():  # fmt: skip
    _method(_name, _parameters)


def _astype(
    self: ndarray, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
) -> ndarray:
    """The values in another dtype."""
    checked_dtype(np.dtype(dtype))
    if not copy and self.dtype == np.dtype(dtype):
        return self
    plain = self._array
    return compute(lambda: plain.astype(dtype, order=order), plain.astype(dtype, order=order), [])


ndarray.astype = _astype  # type: ignore[attr-defined]

_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power", "mod": "remainder",
    "floordiv": "floor_divide", "matmul": "matmul", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal", "eq": "equal", "ne": "not_equal", "and": "bitwise_and", "or": "bitwise_or",
    "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip


def _operator(short: str, ufunc: np.ufunc) -> None:
    def forward(self: ndarray, other: Any) -> Any:
        return apply_ufunc(ufunc, (self, other), None, {})

    def backward(self: ndarray, other: Any) -> Any:
        return apply_ufunc(ufunc, (other, self), None, {})

    def in_place(self: ndarray, other: Any) -> Any:
        return apply_ufunc(ufunc, (self, other), self, {})

    setattr(ndarray, f"__{short}__", forward)
    if short not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{short}__", backward)
        setattr(ndarray, f"__i{short}__", in_place)


for _short, _long in _OPERATORS.items():
    _operator(_short, getattr(np, _long))
ndarray.__neg__ = lambda self: apply_ufunc(np.negative, (self,), None, {})  # type: ignore[attr-defined]
ndarray.__abs__ = lambda self: apply_ufunc(np.absolute, (self,), None, {})  # type: ignore[attr-defined]
ndarray.__module__ = "cupy"
