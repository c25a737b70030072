"""Where a device's arrays live: the one thing that plans, the suite and the tuner ask, so that none asks for CuPy.

`place_of(device)` is the CPU's memory or a GPU's. Whoever calls may hold NumPy arrays, CuPy arrays, or anything with
`__dlpack__`; a place gives implementations dense, aligned arrays of its own library, and the caller its own kind back.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.device import Device, cpu, cuda, missing_for_cuda
from autoconv.errors import BackendMissing, InvalidType
from autoconv.workspace import DeviceWorkspace, Workspace, thread_workspace

__all__ = [
    "DEVICE_ALIGNMENT",
    "CudaForm",
    "CudaPlace",
    "Form",
    "HostPlace",
    "Place",
    "check_one_home",
    "common_home",
    "home_of",
    "is_cupy",
    "place_of",
]

DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
DEVICE_ALIGNMENT = 16  # bytes: the widest load of a GPU's thread


class Form:
    """How an array looks that needs no conversion: a cheap test for the common case."""

    __slots__ = ("dtype", "shape", "strides")

    def __init__(self, shape: tuple[int, ...], layout: str, dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.strides = arrays.dense_strides(shape, layout, dtype.itemsize)  # in bytes
        self.dtype = dtype

    def matches(self, value: Any) -> bool:
        """Whether `value` is an aligned NumPy array of exactly this form; False may also mean a closer look is due."""
        return (
            type(value) is np.ndarray
            and value.dtype is self.dtype
            and value.shape == self.shape
            and value.strides == self.strides
            and value.flags.aligned
        )

    def admits(self, out: Any) -> bool:
        """Whether results may be written into `out` as it is: `matches`, spelt out for speed, and not read-only."""
        if type(out) is not np.ndarray or out.dtype is not self.dtype:
            return False
        flags = out.flags
        return out.shape == self.shape and out.strides == self.strides and flags.aligned and flags.writeable


class Place(ABC):
    """The memory of one device: arrays come from it, results go to it, scratch is lent in it.

    `Array` stands for NumPy's on the CPU and for CuPy's, which are no subclass of it, on a GPU.
    """

    device: Device
    overlap: Callable[[Any, Any], bool]  # whether two arrays may share memory
    workspace: Callable[[], Workspace]  # the calling thread's

    @property
    @abstractmethod
    def xp(self) -> Any:
        """The array library: `numpy` or `cupy`."""

    @abstractmethod
    def form(self, shape: tuple[int, ...], layout: str, dtype: np.dtype[Any]) -> Form:
        """The form of arrays that need no conversion here."""

    @abstractmethod
    def array(self, value: Any, name: str) -> Array:
        """`value` as an array of `xp` sharing its memory. Raises `InvalidType` for no array, and for one elsewhere."""

    @abstractmethod
    def empty(self, shape: Sequence[int], layout: str, dtype: np.dtype[Any]) -> Array:
        """A new array of logical `shape`, dense in `layout`, its values undefined."""

    @abstractmethod
    def conforms(self, array: Any, layout: str, dtype: np.dtype[Any]) -> bool:
        """Whether an array of `xp` is dense in `layout`, aligned and of `dtype`."""

    @abstractmethod
    def conform(self, array: Any, layout: str, dtype: np.dtype[Any]) -> Array:
        """`array` itself when it conforms; else a copy that does."""

    @abstractmethod
    def like_caller(self, result: Any, caller: Any) -> Any:
        """`result` as an array of the library `caller`'s array came from; that library's stream waits for ours."""

    @abstractmethod
    def join(self, caller: Any, array: Any) -> None:
        """Let the stream of another library, whose `caller` shares memory with `array`, wait for ours."""

    @abstractmethod
    def is_writeable(self, array: Any) -> bool:
        """Whether the array is not read-only."""

    @abstractmethod
    def current(self) -> AbstractContextManager[Any]:
        """Within it, this device is the current one."""

    @abstractmethod
    def capturing(self) -> bool:
        """Whether the caller records a graph, within which nothing may be tuned, compiled or waited for."""

    @abstractmethod
    def hold(self, array: Any) -> None:
        """Keep memory for good that a graph being recorded will use again."""

    @abstractmethod
    def to_host(self, array: Any) -> Array:
        """A copy as a NumPy array; the array itself on the CPU."""

    @abstractmethod
    def from_host(self, array: Array) -> Any:
        """A NumPy array's values here, its memory layout kept; the array itself on the CPU."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for what is enqueued on the current stream."""


class HostPlace(Place):
    """The CPU's memory: NumPy arrays."""

    overlap = staticmethod(np.may_share_memory)
    workspace = staticmethod(thread_workspace)

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def xp(self) -> Any:
        return np

    def form(self, shape: tuple[int, ...], layout: str, dtype: np.dtype[Any]) -> Form:
        return Form(shape, layout, dtype)

    def array(self, value: Any, name: str) -> Array:
        home = _gpu_index(value)
        if home is not None:
            raise InvalidType(f"{_is(name)} on cuda:{home}, but the plan is for the CPU")
        return arrays.as_numpy(value, name)

    def empty(self, shape: Sequence[int], layout: str, dtype: np.dtype[Any]) -> Array:
        return arrays.empty(shape, layout, dtype)

    def conforms(self, array: Array, layout: str, dtype: np.dtype[Any]) -> bool:
        return arrays.conforms(array, layout, dtype)

    def conform(self, array: Array, layout: str, dtype: np.dtype[Any]) -> Array:
        return arrays.conform(array, layout, dtype)

    def like_caller(self, result: Array, caller: Any) -> Any:
        return arrays.like_caller(result, caller)

    def join(self, caller: Any, array: Array) -> None:
        return

    def is_writeable(self, array: Array) -> bool:
        return array.flags.writeable

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capturing(self) -> bool:
        return False

    def hold(self, array: Array) -> None:
        return

    def to_host(self, array: Array) -> Array:
        return array

    def from_host(self, array: Array) -> Array:
        return array

    def synchronize(self) -> None:
        return


class CudaForm(Form):
    """The same for `cupy.ndarray` on one GPU, while that is the current device."""

    __slots__ = ("_current", "_index", "_kind")

    def __init__(self, shape: tuple[int, ...], layout: str, dtype: np.dtype[Any], index: int, cupy: Any) -> None:
        super().__init__(shape, layout, dtype)
        self._kind = cupy.ndarray
        self._current = cupy.cuda.runtime.getDevice
        self._index = index

    def matches(self, value: Any) -> bool:
        """Whether `value` is an aligned CuPy array of exactly this form on the current GPU."""
        if type(value) is not self._kind or value.dtype is not self.dtype or value.shape != self.shape:
            return False
        data = value.data
        return bool(
            value.strides == self.strides
            and data.ptr % DEVICE_ALIGNMENT == 0
            and data.device_id == self._index
            and self._current() == self._index
        )

    def admits(self, out: Any) -> bool:
        """As `matches`: CuPy has no read-only arrays."""
        return self.matches(out)


class CudaPlace(Place):
    """A GPU's memory: CuPy arrays. Everything is enqueued on the caller's current stream, nothing waits for it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._index = device.index
        self._cupy = _import_cupy()
        self._local = threading.local()
        self.overlap = self._cupy.may_share_memory
        self.workspace = self._workspace

    @property
    def xp(self) -> Any:
        return self._cupy

    def form(self, shape: tuple[int, ...], layout: str, dtype: np.dtype[Any]) -> Form:
        return CudaForm(shape, layout, dtype, self._index, self._cupy)

    def array(self, value: Any, name: str) -> Any:
        home = _gpu_index(value)
        if home != self._index:
            if home is None and not isinstance(value, np.ndarray) and not hasattr(value, "__dlpack__"):
                raise InvalidType(f"{name} must be a CuPy array or have __dlpack__, got {type(value).__name__}")
            raise InvalidType(f"{_is(name)} {_whereabouts(value, home)}, but the plan is for {self.device.name}")
        if isinstance(value, self._cupy.ndarray):
            return value
        try:
            return self._cupy.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            kind = f"{type(value).__module__}.{type(value).__name__}"
            raise InvalidType(f"{name} ({kind}) cannot be read as a CuPy array: {error}") from error

    def empty(self, shape: Sequence[int], layout: str, dtype: np.dtype[Any]) -> Any:
        memory = self._cupy.cuda.alloc(prod(shape) * dtype.itemsize)
        return self._cupy.ndarray(tuple(shape), dtype, memory, arrays.dense_strides(shape, layout, dtype.itemsize))

    def conforms(self, array: Any, layout: str, dtype: np.dtype[Any]) -> bool:
        aligned = array.data.ptr % DEVICE_ALIGNMENT == 0
        return bool(array.dtype == dtype and aligned and arrays.is_dense(array, layout))

    def conform(self, array: Any, layout: str, dtype: np.dtype[Any]) -> Any:
        if self.conforms(array, layout, dtype):
            return array
        copy = self.empty(array.shape, layout, dtype)
        copy[...] = array
        self.hold(copy)
        return copy

    def like_caller(self, result: Any, caller: Any) -> Any:
        return result if isinstance(caller, self._cupy.ndarray) else arrays.like_caller(result, caller)

    def join(self, caller: Any, array: Any) -> None:
        self.like_caller(array, caller)  # exporting through DLPack is what makes the other stream wait

    def is_writeable(self, array: Any) -> bool:
        return True  # CuPy has no read-only arrays

    def current(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._cupy.cuda.Device(self._index)
        return context

    def capturing(self) -> bool:
        return bool(self._cupy.cuda.get_current_stream(self._index).is_capturing())

    def hold(self, array: Any) -> None:
        self._workspace().hold(array)

    def to_host(self, array: Any) -> Array:
        layout = arrays.memory_layout(array)
        with self.current():
            values: Array = array.transpose(arrays.axis_order(layout, array.ndim)).get()
        return arrays.as_layout(values.reshape(-1), array.shape, layout)

    def from_host(self, array: Array) -> Any:
        layout = arrays.memory_layout(array)
        order = arrays.axis_order(layout, array.ndim)
        with self.current():
            flat = self._cupy.asarray(np.ascontiguousarray(array.transpose(order)).reshape(-1))
            return arrays.as_layout(flat, array.shape, layout)

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream(self._index).synchronize()

    def _workspace(self) -> DeviceWorkspace:
        try:
            return self._local.workspace  # type: ignore[no-any-return]
        except AttributeError:
            self._local.workspace = DeviceWorkspace(self._cupy)
            return self._local.workspace  # type: ignore[no-any-return]


_guard = threading.Lock()
_gpus: dict[Device, CudaPlace] = {}


def place_of(device: Device) -> Place:
    """The place of `device`'s arrays. Raises `BackendMissing` for a GPU without CuPy."""
    if device.kind == "cpu":
        return _host(device)
    with _guard:
        if device not in _gpus:
            _gpus[device] = CudaPlace(device)
        return _gpus[device]


@cache
def _host(device: Device) -> HostPlace:
    return HostPlace(device)


def is_cupy(value: Any, *, exactly: bool = False) -> bool:
    """Whether `value` is a CuPy array (`exactly`: and of no derived class), told without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and (type(value) is cupy.ndarray or (not exactly and isinstance(value, cupy.ndarray)))


def _gpu_index(value: Any) -> int | None:
    """The GPU that an operand is on; None for one on the CPU, and for what is no array."""
    if isinstance(value, np.ndarray):
        return None
    if is_cupy(value):
        return int(value.data.device_id)
    if not hasattr(value, "__dlpack_device__"):
        return None
    try:
        kind, index = value.__dlpack_device__()
    except (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError):  # reading it will say why
        return None
    return int(index) if kind in DLPACK_CUDA else None


def home_of(value: Any, threads: int | None = None) -> Device:
    """The device an operand is on: a GPU for CuPy arrays and others that say so through DLPack, else the CPU."""
    index = _gpu_index(value)
    return cpu(threads) if index is None else cuda(index)


def common_home(names: tuple[str, str], first: Any, second: Any, threads: int | None = None) -> Device:
    """The device that both operands are on. Raises as `check_one_home`."""
    index = check_one_home(names, first, second)
    return cpu(threads) if index is None else cuda(index)


def check_one_home(names: tuple[str, str], first: Any, second: Any) -> int | None:
    """The GPU that both operands are on, None for the CPU. Raises `InvalidType`, naming both, if they are apart."""
    here, there = _gpu_index(first), _gpu_index(second)
    if here != there:
        places = f"{_is(names[0])} {_whereabouts(first, here)}, {_is(names[1])} {_whereabouts(second, there)}"
        raise InvalidType(f"{places}: operands must be on one device")
    return here


def _whereabouts(value: Any, index: int | None) -> str:
    if index is not None:
        return f"on cuda:{index}"
    return "a NumPy array" if isinstance(value, np.ndarray) else f"a {type(value).__name__} on the CPU"


def _is(name: str) -> str:
    return f"{name} are" if name.endswith("filters") else f"{name} is"


def _import_cupy() -> Any:
    missing = missing_for_cuda()
    if missing:
        raise BackendMissing(f"a GPU cannot be used: {missing}")
    try:
        import cupy
    except ImportError as error:  # installed, but for another CUDA or another Python
        raise BackendMissing(f"a GPU cannot be used: CuPy cannot be imported: {error}") from error
    return cupy
