"""Memory that the tuner shares with a worker, laid out so that trespassing shows.

Both operands and the result lie apart. Around each are guard bytes, which the tuner looks at afterwards, and
beyond these pages that the worker may not touch at all: a write that goes astray farther ends the worker.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.places import Place
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.operands import GUARD, GUARD_BYTES, POISON, SKEW
from autoconv.workspace import ALIGNMENT

__all__ = ["Arena", "Mirror"]

FORBIDDEN_BYTES = 1 << 20  # on either side of an array; they take address space, not memory
PROT_NONE = 0


class Arena:
    """The two operands of a spec and room for its result, in one piece of shared memory."""

    def __init__(self, spec: ConvSpec, descriptor: int | None = None) -> None:
        """Make the memory; or, in the worker, map that of `descriptor`. Raises `OSError` when there is not enough."""
        self._places: list[
            tuple[int, int, int, int]
        ] = []  # of each array: guard begins, array begins, ends, guard ends
        end = 0
        second = "nchw" if spec.op is not Op.WGRAD else spec.layout
        result = "nchw" if spec.op is Op.WGRAD else spec.layout
        forms = list(zip((*spec.operand_shapes, spec.result_shape), (spec.layout, second, result), strict=True))
        for shape, _ in forms:
            start = end + FORBIDDEN_BYTES
            first = start + GUARD_BYTES + -GUARD_BYTES % ALIGNMENT + SKEW
            last = first + prod(shape) * spec.itemsize
            end = last + GUARD_BYTES + -(last + GUARD_BYTES) % mmap.PAGESIZE
            self._places.append((start, first, last, end))
        self.size = end + FORBIDDEN_BYTES
        self.descriptor = _new_memory(self.size) if descriptor is None else descriptor
        if descriptor is None and hasattr(os, "posix_fallocate"):
            for start, _, _, end in self._places:  # memory that is not there is an error now, not a signal later
                os.posix_fallocate(self.descriptor, start, end - start)
        self._memory = mmap.mmap(self.descriptor, self.size)
        self._bytes: Array = np.frombuffer(self._memory, np.uint8)
        if descriptor is None:
            for start, first, last, end in self._places:
                self._bytes[start:first] = self._bytes[last:end] = GUARD
        else:
            self._forbid()
        self._forms = forms
        self._dtype = spec.np_dtype
        self.a, self.b, self.out = (
            np.ndarray(
                shape, spec.np_dtype, self._bytes[first:last], 0, arrays.dense_strides(shape, layout, spec.itemsize)
            )
            for (shape, layout), (_, first, last, _) in zip(forms, self._places, strict=True)
        )

    def poison(self) -> None:
        """Make every element of the result a NaN, and the guards whole."""
        start, first, last, end = self._places[2]
        self._bytes[start:first] = self._bytes[last:end] = GUARD
        self._bytes[first:last] = POISON

    @property
    def trespassed(self) -> str:
        """Which array somebody wrote beyond, in words; empty when nobody did."""
        for name, (start, first, last, end) in zip(
            ("an operand", "an operand", "its result"), self._places, strict=True
        ):
            before, after = self._bytes[start:first], self._bytes[last:end]
            if (before != GUARD).any() or (after != GUARD).any():
                before[...] = after[...] = GUARD
                return name
        return ""

    def mirror(self, place: Place) -> Mirror:
        """The same arrays and guards in the memory of `place`; the arena itself on the CPU."""
        if place.device.kind == "cpu":
            return Mirror(self.a, self.b, self.out, lambda: None)
        blocks = [place.from_host(self._bytes[start:end]) for start, _, _, end in self._places]
        a, b, out = (
            arrays.as_layout(block[first - start : last - start].view(self._dtype), shape, layout)
            for block, (shape, layout), (start, first, last, _) in zip(blocks, self._forms, self._places, strict=True)
        )

        def take_back() -> None:
            for block, (start, _, _, end) in zip(blocks, self._places, strict=True):
                self._bytes[start:end] = place.to_host(block)

        return Mirror(a, b, out, take_back)

    def close(self) -> None:
        """Give the memory back as soon as nobody looks at it any more."""
        os.close(self.descriptor)
        del self._memory, self._bytes, self.a, self.b, self.out

    def _forbid(self) -> None:
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        base, begins = self._bytes.ctypes.data, 0
        for start, end in (*((place[0], place[3]) for place in self._places), (self.size, self.size)):
            if protect(base + begins, start - begins, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
            begins = end


@dataclass(frozen=True, slots=True)
class Mirror:
    """An arena's arrays where a candidate works; `take_back` brings what it left of them, and of their guards, home."""

    a: Any
    b: Any
    out: Any
    take_back: Callable[[], None]


def _new_memory(size: int) -> int:
    """A descriptor of `size` bytes that have no name and vanish with their last user."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("autoconv")
    else:
        import tempfile

        descriptor, name = tempfile.mkstemp(prefix="autoconv-")
        os.unlink(name)
    os.ftruncate(descriptor, size)
    return descriptor
