"""Operands to judge and time with, and memory in which trespassing shows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.device import cpu
from autoconv.places import Place, place_of
from autoconv.spec import ConvSpec, Op
from autoconv.workspace import ALIGNMENT, Workspace

__all__ = ["GuardedResult", "GuardedWorkspace", "Operands"]

GUARD_BYTES = 512  # on either side: a vector store or a row that runs over lands in it
GUARD = 0xA5
POISON = 0xFF  # every float made of these bytes is a NaN, so a value that was never written shows
SKEW = 16  # what NumPy's own allocations are aligned to; a kernel that needs more must not get it by luck
DEVICE_ALIGNMENT = 256  # of the pieces of a GPU's workspace
SLACK_BYTES = 4096  # declared workspace need not count the rounding of every piece


class Operands:
    """The two operands of a spec, uniform on [-1, 1): the same in every process, or others with another `seed`.

    `a` and `b` are NumPy's, drawn on the CPU, where their reference is computed; `placed` are the same in `place`, to
    be worked on: themselves there, copies on a GPU.
    """

    def __init__(self, spec: ConvSpec, seed: int = 0, place: Place | None = None) -> None:
        self._spec = spec
        self._seed = seed
        self._place = place or place_of(cpu())
        self.a, self.b = self._draw()
        self.placed = self._place.from_host(self.a), self._place.from_host(self.b)
        self._marks = _checksum(self.a), _checksum(self.b)

    def restore_if_changed(self) -> bool:
        """Whether somebody wrote on an operand; if so, it has its values back afterwards."""
        # checksums, not copies: large problems should fit twice into what they need once
        if tuple(_checksum(self._place.to_host(array)) for array in self.placed) == self._marks:
            return False
        for array, fresh in zip(self.placed, self._draw(), strict=True):
            array[...] = self._place.from_host(fresh)
        return True

    def _draw(self) -> tuple[Array, Array]:
        spec = self._spec
        rng = np.random.default_rng(zlib.crc32(str(spec).encode()) + self._seed)
        first, second = spec.operand_shapes
        a = _uniform(first, spec.layout, spec.np_dtype, rng)
        if spec.op is Op.WGRAD:
            return a, _uniform(second, spec.layout, spec.np_dtype, rng)
        if not spec.rank1:
            return a, _uniform(second, "nchw", spec.np_dtype, rng)
        filters = np.ones(second)  # products of one row per axis, as the spec promises
        for axis, taps in enumerate(spec.kernel):
            row = rng.random((*second[:2], *(taps if i == axis else 1 for i in range(spec.rank))))
            filters = filters * (2 * row - 1)
        return a, filters.astype(spec.np_dtype)


def _uniform(shape: Sequence[int], layout: str, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    values = rng.random(prod(shape), np.float64 if dtype.itemsize == 8 else np.float32)
    values *= 2
    values -= 1
    array = arrays.empty(shape, layout, dtype)
    flat = array.transpose(arrays.axis_order(layout, array.ndim))
    flat[...] = values.astype(dtype, copy=False).reshape(flat.shape)
    return array


def _checksum(array: Array) -> int:
    return zlib.crc32(array.ravel(order="K").view(np.uint8).data)


class GuardedResult:
    """Room for a result between guards, every element a NaN."""

    def __init__(self, spec: ConvSpec, place: Place | None = None) -> None:
        layout = "nchw" if spec.op is Op.WGRAD else spec.layout
        shape, dtype = spec.result_shape, spec.np_dtype
        self._piece = _GuardedBytes(prod(shape) * dtype.itemsize, SKEW, place)
        self.array: Any = arrays.as_layout(self._piece.inside.view(dtype), shape, layout)

    @property
    def trespassed(self) -> bool:
        """Whether somebody wrote outside the result."""
        return self._piece.trespassed


class GuardedWorkspace(Workspace):
    """A workspace whose pieces lie apart between guards, poisoned, and that counts what is taken."""

    __slots__ = ("_pieces", "_place", "peak_bytes", "trespassed")

    def __init__(self, place: Place | None = None) -> None:
        super().__init__()
        self._place = place
        self._pieces: list[_GuardedBytes] = []
        self.peak_bytes = 0
        self.trespassed = False

    def take(self, shape: Sequence[int] | int, dtype: Any = np.uint8) -> Any:
        dtype = np.dtype(dtype)
        size = (shape if isinstance(shape, int) else prod(shape)) * dtype.itemsize
        return self._piece(size).inside.view(dtype).reshape(shape)

    def take_address(self, size: int) -> int:
        return _address(self._piece(size).inside)

    def mark(self) -> int:
        return len(self._pieces)

    def release(self, mark: int = 0) -> None:
        self.trespassed |= any(piece.trespassed for piece in self._pieces[mark:])
        del self._pieces[mark:]

    def _piece(self, size: int) -> _GuardedBytes:
        self._pieces.append(_GuardedBytes(size, 0, self._place))
        self.peak_bytes = max(self.peak_bytes, sum(piece.inside.size for piece in self._pieces))
        return self._pieces[-1]


class _GuardedBytes:
    """Poisoned bytes, aligned but for `skew`, between guards, on the CPU or in `place`."""

    def __init__(self, size: int, skew: int, place: Place | None) -> None:
        xp: Any = place.xp if place else np
        alignment = DEVICE_ALIGNMENT if place and place.device.kind == "cuda" else ALIGNMENT
        block = xp.full(size + 2 * GUARD_BYTES + alignment + skew, GUARD, xp.uint8)
        start = GUARD_BYTES + -(_address(block) + GUARD_BYTES) % alignment + skew
        self._before, self._after = block[:start], block[start + size :]
        self.inside: Any = block[start : start + size]
        self.inside[...] = POISON

    @property
    def trespassed(self) -> bool:
        return bool((self._before != GUARD).any() or (self._after != GUARD).any())


def _address(array: Any) -> int:
    """Where an array of NumPy's or CuPy's begins."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
