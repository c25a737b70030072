"""Operands to judge and time with, and memory in which trespassing shows."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.planning import ALIGNMENT, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["GuardedResult", "GuardedWorkspace", "Operands"]

GUARD_BYTES = 512  # on either side: a vector store or a row that runs over lands in it
GUARD = 0xA5
POISON = 0xFF  # every float made of these bytes is a NaN, so a value that was never written shows
SKEW = 16  # what NumPy's own allocations are aligned to; a kernel that needs more must not get it by luck
SLACK_BYTES = 4096  # declared workspace need not count the rounding of every piece


class Operands:
    """The two operands of a spec, uniform on [-1, 1): the same in every process, or others with another `seed`."""

    def __init__(self, spec: ConvSpec, seed: int = 0) -> None:
        self._spec = spec
        self._seed = seed
        self.a, self.b = self._draw()
        self._marks = self._checksums()

    def restore_if_changed(self) -> bool:
        """Whether somebody wrote on an operand; if so, it has its values back afterwards."""
        if self._checksums() == self._marks:
            return False
        for array, fresh in zip((self.a, self.b), self._draw(), strict=True):
            np.copyto(array, fresh)
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

    def _checksums(self) -> tuple[int, int]:
        # checksums, not copies: large problems should fit twice into what they need once
        return _checksum(self.a), _checksum(self.b)


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

    def __init__(self, spec: ConvSpec) -> None:
        layout = "nchw" if spec.op is Op.WGRAD else spec.layout
        shape, dtype = spec.result_shape, spec.np_dtype
        self._piece = _GuardedBytes(prod(shape) * dtype.itemsize, SKEW)
        self.array: Array = arrays.as_layout(self._piece.inside.view(dtype), shape, layout)

    @property
    def trespassed(self) -> bool:
        """Whether somebody wrote outside the result."""
        return self._piece.trespassed


class GuardedWorkspace(Workspace):
    """A workspace whose pieces lie apart between guards, poisoned, and that counts what is taken."""

    __slots__ = ("_pieces", "peak_bytes", "trespassed")

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[_GuardedBytes] = []
        self.peak_bytes = 0
        self.trespassed = False

    def take(self, shape: Sequence[int] | int, dtype: Any = np.uint8) -> Array:
        dtype = np.dtype(dtype)
        size = (shape if isinstance(shape, int) else prod(shape)) * dtype.itemsize
        piece: Array = self._piece(size).inside.view(dtype).reshape(shape)
        return piece

    def take_address(self, size: int) -> int:
        return int(self._piece(size).inside.ctypes.data)

    def mark(self) -> int:
        return len(self._pieces)

    def release(self, mark: int = 0) -> None:
        self.trespassed |= any(piece.trespassed for piece in self._pieces[mark:])
        del self._pieces[mark:]

    def _piece(self, size: int) -> _GuardedBytes:
        self._pieces.append(_GuardedBytes(size, 0))
        self.peak_bytes = max(self.peak_bytes, sum(piece.inside.size for piece in self._pieces))
        return self._pieces[-1]


class _GuardedBytes:
    """Poisoned bytes, aligned but for `skew`, between guards."""

    def __init__(self, size: int, skew: int) -> None:
        block = np.full(size + 2 * GUARD_BYTES + ALIGNMENT + skew, GUARD, np.uint8)
        start = GUARD_BYTES + -(block.ctypes.data + GUARD_BYTES) % ALIGNMENT + skew
        self._before, self._after = block[:start], block[start + size :]
        self.inside: Array = block[start : start + size]
        self.inside[...] = POISON

    @property
    def trespassed(self) -> bool:
        return bool((self._before != GUARD).any() or (self._after != GUARD).any())
