"""oneDNN's shared library: found, loaded, and described for ctypes. Nothing here is about convolution.

Looked for, in this order: the file that `AUTOCONV_DNNL` names (then nothing else), `lib/` beside the running
Python (where the wheel `onednn-cpu-gomp` puts it), and `libdnnl.so.3` wherever the system's loader looks.
Enumerators are those of `dnnl_types.h` and `dnnl_common_types.h`, the same in every release 3.x.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from autoconv.errors import BackendMissing

__all__ = [
    "ANY", "CHANNELS_LAST", "DTYPES", "PLAIN", "SONAME", "VARIABLE", "Arg", "Buffer", "Dims", "Handle", "Library",
    "Program", "Query", "Step", "forks", "library", "unavailable",
]  # fmt: skip

VARIABLE = "AUTOCONV_DNNL"
SONAME = "libdnnl.so.3"
MAJOR = 3  # enumerators and signatures below are this major version's

DTYPES = {"f16": 1, "bf16": 2, "f32": 3}
ANY = 1  # format tag: the implementation chooses
PLAIN = {3: 4, 4: 5, 5: 6, 6: 7}  # number of axes -> format tag abc, abcd, ...
CHANNELS_LAST = {3: 15, 4: 22, 5: 33}  # acb, acdb, acdeb

_CPU = 1  # engine kind
_IN_ORDER = 1  # stream flag
_USER_SCRATCHPAD = 1
_STRICT_MATH = 0  # whatever ONEDNN_DEFAULT_FPMATH_MODE says: float32 stays float32
_SEQUENTIAL, _OPENMP, _TBB, _THREADPOOL = 1, 2, 4, 8  # CPU runtimes

_OUT_OF_MEMORY = 1
_STATUS = {
    1: "out of memory", 2: "invalid arguments", 3: "not implemented", 4: "no further implementation",
    5: "runtime error", 6: "not required",
}  # fmt: skip


class Arg:
    """What a memory object is to a primitive."""

    SRC = FROM = 1
    DST = TO = 17
    WEIGHTS = 33
    SCRATCHPAD = 80
    DIFF_SRC = 129
    DIFF_DST = 145
    DIFF_WEIGHTS = 161


class Query:
    """What a primitive descriptor can be asked for."""

    IMPLEMENTATION = 8
    SRC = 129
    DIFF_SRC = 130
    WEIGHTS = 131
    DIFF_WEIGHTS = 132
    DST = 133
    DIFF_DST = 134
    SCRATCHPAD = 136


class _Version(ctypes.Structure):
    _fields_ = (
        ("major", c_int), ("minor", c_int), ("patch", c_int), ("hash", c_char_p),
        ("cpu_runtime", c_uint), ("gpu_runtime", c_uint),
    )  # fmt: skip


class _ExecArg(ctypes.Structure):
    _fields_ = (("arg", c_int), ("memory", c_void_p))


Dims = c_int64 * 12

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dnnl_engine_create": (POINTER(c_void_p), c_int, c_size_t),
    "dnnl_stream_create": (POINTER(c_void_p), c_void_p, c_uint),
    "dnnl_stream_wait": (c_void_p,),
    "dnnl_memory_desc_create_with_tag": (POINTER(c_void_p), c_int, Dims, c_int, c_int),
    "dnnl_memory_desc_clone": (POINTER(c_void_p), c_void_p),
    "dnnl_memory_desc_equal": (c_void_p, c_void_p),
    "dnnl_memory_desc_get_size": (c_void_p,),
    "dnnl_memory_desc_destroy": (c_void_p,),
    "dnnl_memory_create": (POINTER(c_void_p), c_void_p, c_void_p, c_void_p),
    "dnnl_memory_set_data_handle": (c_void_p, c_void_p),
    "dnnl_memory_destroy": (c_void_p,),
    "dnnl_primitive_attr_create": (POINTER(c_void_p),),
    "dnnl_primitive_attr_set_scratchpad_mode": (c_void_p, c_int),
    "dnnl_primitive_attr_set_fpmath_mode": (c_void_p, c_int),
    "dnnl_primitive_desc_next_impl": (c_void_p,),
    "dnnl_primitive_desc_query": (c_void_p, c_int, c_int, c_void_p),
    "dnnl_primitive_desc_query_md": (c_void_p, c_int, c_int),
    "dnnl_primitive_desc_destroy": (c_void_p,),
    "dnnl_reorder_primitive_desc_create": (POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "dnnl_primitive_create": (POINTER(c_void_p), c_void_p),
    "dnnl_primitive_execute": (c_void_p, c_void_p, c_int, POINTER(_ExecArg)),
    "dnnl_primitive_destroy": (c_void_p,),
}
_RESULTS = {"dnnl_memory_desc_get_size": c_size_t, "dnnl_primitive_desc_query_md": c_void_p}


class Handle:
    """An object of the library, destroyed with its last reference."""

    __slots__ = ("_destroy", "value")

    def __init__(self, value: int, destroy: Callable[[int], object]) -> None:
        self.value = value
        self._destroy = destroy

    def __del__(self) -> None:
        self._destroy(self.value)


class Library:
    """A loaded oneDNN with its CPU engine. Raises `BackendMissing` with the reason when it is of no use here."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._dll = ctypes.CDLL(path)
            read_version = self._dll.dnnl_version
        except (OSError, AttributeError) as error:
            raise BackendMissing(f"oneDNN cannot be loaded: {error}") from error
        read_version.restype = POINTER(_Version)
        found: _Version = read_version().contents
        self.version = f"{found.major}.{found.minor}.{found.patch}"
        self._runtime: int = found.cpu_runtime
        if found.major != MAJOR:
            raise BackendMissing(f"{path} is oneDNN {self.version}, and version {MAJOR} is needed")
        if not self._runtime & (_SEQUENTIAL | _OPENMP | _TBB | _THREADPOOL):
            raise BackendMissing(f"{path} has no CPU runtime of its own (built for SYCL, or for GPUs only)")
        if self._runtime & _THREADPOOL:
            raise BackendMissing(f"{path} was built for its caller's thread pool, which Python has none of")
        self._declare()
        self.engine = self._created("dnnl_engine_create", _CPU, 0)  # lives as long as the process
        self.stream = self._created("dnnl_stream_create", self.engine, _IN_ORDER)
        self.attributes = self._created("dnnl_primitive_attr_create")
        self.check("dnnl_primitive_attr_set_scratchpad_mode", self.attributes, _USER_SCRATCHPAD)
        self.check("dnnl_primitive_attr_set_fpmath_mode", self.attributes, _STRICT_MATH)

    def _declare(self) -> None:
        try:
            for name, arguments in _SIGNATURES.items():
                function = getattr(self._dll, name)
                function.argtypes = arguments
                function.restype = _RESULTS.get(name, c_int)
            if self._runtime & _OPENMP:
                # the handle also finds what the library itself links to: its own OpenMP, whichever that is
                self._dll.omp_set_num_threads.argtypes = (c_int,)
                self._dll.omp_set_num_threads.restype = None
                self._max_threads: Callable[[], int] = self._dll.omp_get_max_threads
                self._set_threads: Callable[[int], None] = self._dll.omp_set_num_threads
        except AttributeError as error:
            raise BackendMissing(f"{self.path} lacks a function of oneDNN {MAJOR}: {error}") from error
        self._set_data: Callable[[int, int], int] = self._dll.dnnl_memory_set_data_handle
        self._execute: Callable[..., int] = self._dll.dnnl_primitive_execute
        self._wait: Callable[[int], int] = self._dll.dnnl_stream_wait

    def check(self, function: str, *arguments: Any) -> None:
        """Call `function`. Raises `MemoryError` or `RuntimeError` for a status that is not success."""
        self.judge(getattr(self._dll, function)(*arguments), function)

    def judge(self, status: int, function: str) -> None:
        """Raise unless `status` is success."""
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"{function} of oneDNN ran out of memory")
        if status:
            raise RuntimeError(f"{function} of oneDNN failed: {_STATUS.get(status, f'status {status}')}")

    def _created(self, function: str, *arguments: Any) -> int:
        made = c_void_p()
        self.check(function, byref(made), *arguments)
        assert made.value is not None
        return made.value

    def _owned(self, kind: str, value: int) -> Handle:
        return Handle(value, getattr(self._dll, f"dnnl_{kind}_destroy"))

    # Threads ------------------------------------------------------------------------------------

    @property
    def obeys(self) -> bool:
        """Whether the number of threads can be set from outside; a TBB build takes what it finds."""
        return not self._runtime & _TBB

    def limit_threads(self, threads: int) -> int:
        """Use `threads` in calls of this thread from now on; the number before, to go back to."""
        if not self._runtime & _OPENMP:
            return threads
        before = self._max_threads()
        if before != threads:
            self._set_threads(threads)
        return before

    # Memory -------------------------------------------------------------------------------------

    def memory_desc(self, shape: Sequence[int], dtype: str, tag: int) -> Handle:
        """The description of an array of logical `shape` in a memory format."""
        made = self._created("dnnl_memory_desc_create_with_tag", len(shape), Dims(*shape), DTYPES[dtype], tag)
        return self._owned("memory_desc", made)

    def same(self, left: Handle, right: Handle) -> bool:
        """Whether both describe the same bytes."""
        return bool(self._dll.dnnl_memory_desc_equal(left.value, right.value))

    def size(self, desc: Handle) -> int:
        """Bytes of an array so described, padding included."""
        size: int = self._dll.dnnl_memory_desc_get_size(desc.value)
        return size

    def memory(self, desc: Handle) -> Handle:
        """A memory object that points nowhere yet."""
        return self._owned("memory", self._created("dnnl_memory_create", desc.value, self.engine, None))

    # Primitives ---------------------------------------------------------------------------------

    def function(self, name: str, *arguments: Any) -> Callable[..., int]:
        """A function of the library beyond those described here, returning a status."""
        found = getattr(self._dll, name)
        found.argtypes = arguments
        found.restype = c_int
        described: Callable[..., int] = found
        return described

    def primitive_desc(self, create: Callable[..., int], *arguments: Any) -> Handle | None:
        """The first implementation's descriptor that `create` gives, or None when there is none."""
        made = c_void_p()
        status = create(byref(made), *arguments)
        if status == _OUT_OF_MEMORY:
            self.judge(status, "creating a primitive descriptor")
        return None if status or made.value is None else self._owned("primitive_desc", made.value)

    def advance(self, desc: Handle) -> bool:
        """Turn `desc` into the next implementation's; False after the last."""
        return not self._dll.dnnl_primitive_desc_next_impl(desc.value)

    def implementation(self, desc: Handle) -> str:
        """The implementation's name, such as brgconv:avx512_core."""
        text = c_char_p()
        self.check("dnnl_primitive_desc_query", desc.value, Query.IMPLEMENTATION, 0, byref(text))
        return (text.value or b"").decode("ascii", "replace")

    def wanted(self, desc: Handle, query: int) -> Handle:
        """The memory an implementation wants for one of its arguments."""
        borrowed: int | None = self._dll.dnnl_primitive_desc_query_md(desc.value, query, 0)
        return self._owned("memory_desc", self._created("dnnl_memory_desc_clone", borrowed))

    def reorder_desc(self, source: Handle, target: Handle) -> Handle | None:
        """The primitive descriptor of a copy from one memory format into another."""
        create = self._dll.dnnl_reorder_primitive_desc_create
        return self.primitive_desc(create, source.value, self.engine, target.value, self.engine, self.attributes)

    def primitive(self, desc: Handle) -> Handle:
        """The primitive itself: this is where code is generated."""
        return self._owned("primitive", self._created("dnnl_primitive_create", desc.value))


@dataclass(frozen=True, slots=True)
class Buffer:
    """Where a primitive finds an argument: in the caller's operand of that number, or so far into the scratch."""

    desc: Handle
    operand: int | None = None
    offset: int = 0


Step: TypeAlias = tuple[Handle, Sequence[tuple[int, int]]]
"""A primitive with its arguments: (what it is to the primitive, index of the buffer)."""


class _Frame:
    """Memory objects and argument lists of one call at a time."""

    __slots__ = ("addresses", "calls", "memories")

    def __init__(self, lib: Library, buffers: Sequence[Buffer], steps: Sequence[Step]) -> None:
        self.memories = [lib.memory(buffer.desc) for buffer in buffers]
        self.addresses = [0] * len(buffers)
        self.calls: list[tuple[int, int, Any]] = []
        for primitive, arguments in steps:
            pairs = [_ExecArg(arg, self.memories[index].value) for arg, index in arguments]
            self.calls.append((primitive.value, len(pairs), (_ExecArg * len(pairs))(*pairs)))


class Program:
    """Primitives executed one after another, on memory that each call names anew; by many threads at once."""

    def __init__(self, lib: Library, buffers: Sequence[Buffer], steps: Sequence[Step]) -> None:
        self._lib = lib
        self._buffers = tuple(buffers)
        self._steps = tuple(steps)
        self._places = [(buffer.operand, buffer.offset) for buffer in buffers]
        self._idle: list[_Frame] = []  # append and pop are atomic: no two threads hold one frame

    def run(self, operands: Sequence[int], scratch: int, threads: int) -> None:
        """Execute on the operands and the scratch memory at these addresses."""
        lib = self._lib
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = _Frame(lib, self._buffers, self._steps)
        known, memories = frame.addresses, frame.memories
        for index, (operand, offset) in enumerate(self._places):
            address = scratch + offset if operand is None else operands[operand]
            if known[index] != address:
                lib.judge(lib._set_data(memories[index].value, address), "dnnl_memory_set_data_handle")
                known[index] = address
        before = lib.limit_threads(threads)
        try:
            for primitive, count, arguments in frame.calls:
                lib.judge(lib._execute(primitive, lib.stream, count, arguments), "dnnl_primitive_execute")
            lib.judge(lib._wait(lib.stream), "dnnl_stream_wait")
        finally:
            if before != threads:
                lib.limit_threads(before)
        self._idle.append(frame)


# Finding it --------------------------------------------------------------------------------------


@cache
def _look_up(explicit: str | None) -> Library | str:
    """The first library that serves, or why none does."""
    beside = Path(sys.prefix, "lib", SONAME)
    places = [explicit] if explicit else [*([str(beside)] if beside.exists() else []), SONAME]
    reasons = []
    for place in places:
        try:
            return Library(place)
        except BackendMissing as missing:
            reasons.append(" ".join(str(missing).split()))
    if not explicit and len(reasons) == 1:
        return f"oneDNN is not installed (pip install autoconv[onednn]): {reasons[0]}"
    return "; ".join(reasons)


def unavailable() -> str | None:
    """Why there is no oneDNN on this machine, or None."""
    found = _look_up(os.environ.get(VARIABLE))
    return found if isinstance(found, str) else None


def library() -> Library:
    """The library, loaded once. Raises `BackendMissing` with the reason when there is none."""
    found = _look_up(os.environ.get(VARIABLE))
    if isinstance(found, str):
        raise BackendMissing(found)
    return found


_forks = 0


def forks() -> int:
    """How many forks lie between the process that loaded this module and this one."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
