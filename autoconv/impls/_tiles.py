"""Windows, blocks and chunks of images: index arithmetic that several algorithms share.

A window is a box of a larger array that may reach over its edges; what lies outside counts as zero.
Padding, cropping, tiling and the halo of a tile are all windows with different starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.planning import ALIGNMENT
from autoconv.spec import ConvSpec

__all__ = [
    "Block",
    "aligned",
    "blocks",
    "copy_window",
    "groups_first",
    "last_axes",
    "reversed_taps",
    "sees_nothing",
    "split_channels",
    "strided",
    "tap_windows",
    "taps_in_order",
    "ufunc_bytes",
    "window_is_whole",
]


@dataclass(frozen=True, slots=True)
class Block:
    """Some of the results: images `first` to `last`, and rows `top` to `bottom` of the first spatial axis."""

    first: int
    last: int
    top: int
    bottom: int

    @property
    def images(self) -> int:
        """How many images."""
        return self.last - self.first

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.bottom - self.top


def blocks(batch: int, height: int, images: int, rows: int) -> Iterator[Block]:
    """Cut `batch` images of `height` rows into blocks of at most `images` by `rows`."""
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield Block(first, min(first + images, batch), top, min(top + rows, height))


def aligned(*sizes: int) -> int:
    """Bytes of workspace that pieces of these sizes take together."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def ufunc_bytes(elements: int, itemsize: int, operands: int = 3) -> int:
    """Bytes NumPy itself may take for arithmetic on strided views: a buffer per operand."""
    return operands * min(elements, np.getbufsize()) * itemsize


def last_axes(array: Array, *parts: Any) -> Array:
    """View with `parts`, slices or positions, on the last axes and everything of the ones before."""
    index: Any = (..., *parts)
    view: Array = array[index]
    return view


def strided(array: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """View of NumPy's or CuPy's `array` with other strides (in bytes), for reading: windows may overlap."""
    # CuPy's as_strided is not reached by NumPy's protocols, and its sliding_window_view waits for the device
    xp: Any = np if isinstance(array, np.ndarray) else import_module("cupy")
    view: Array = xp.lib.stride_tricks.as_strided(array, shape, strides)
    return view


def copy_window(source: Array, target: Array, starts: Sequence[int]) -> None:
    """Fill `target` with the window of `source` that begins at `starts` (last axes); zero outside the source.

    The leading axes of both must agree; starts may be negative.
    """
    inside: list[slice] = []
    wanted: list[slice] = []
    rank = len(starts)
    for start, size, extent in zip(starts, target.shape[-rank:], source.shape[-rank:], strict=True):
        low, high = max(0, -start), min(size, extent - start)
        if low >= high:
            target[...] = 0
            return
        wanted.append(slice(low, high))
        inside.append(slice(low + start, high + start))
    for axis, (part, size) in enumerate(zip(wanted, target.shape[-rank:], strict=True)):
        # margins of this axis, inside the windows of the axes before it: every element is written once
        after = (slice(None),) * (rank - axis - 1)
        if part.start:
            last_axes(target, *wanted[:axis], slice(0, part.start), *after)[...] = 0
        if part.stop < size:
            last_axes(target, *wanted[:axis], slice(part.stop, size), *after)[...] = 0
    last_axes(target, *wanted)[...] = last_axes(source, *inside)


def window_is_whole(starts: Sequence[int], sizes: Sequence[int], extents: Sequence[int]) -> bool:
    """Whether the window is a plain box inside the source: nothing to pad."""
    axes = zip(starts, sizes, extents, strict=True)
    return all(start >= 0 and start + size <= extent for start, size, extent in axes)


def tap_windows(
    size: int, kernel: int, before: int, stride: int, dilation: int, top: int, bottom: int
) -> Iterator[tuple[int, slice, slice]]:
    """For outputs `top` to `bottom` of one axis: each tap, the image positions under it, the outputs they join.

    The outputs are counted from `top`; taps that see nothing but padding are left out.
    """
    for tap in range(kernel):
        offset = tap * dilation - before  # image position under this tap for output 0
        first = max(top, -(offset // stride))
        last = min(bottom - 1, (size - 1 - offset) // stride)
        if first <= last:
            image = slice(first * stride + offset, last * stride + offset + 1, stride)
            yield tap, image, slice(first - top, last + 1 - top)


def sees_nothing(spec: ConvSpec) -> bool:
    """Whether every tap of every result meets padding alone: then all is zero."""
    axes = zip(spec.in_spatial, spec.kernel, spec.padding, spec.stride, spec.dilation, spec.output_spatial, strict=True)
    return not all(any(tap_windows(n, k, pads[0], s, d, 0, out)) for n, k, pads, s, d, out in axes)


def split_channels(array: Array, axis: int, groups: int) -> Array:
    """View with the axis of channels split into (groups, channels per group)."""
    # splitting one axis never needs a copy, whatever the strides
    return array.reshape(*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])


def groups_first(array: Array, groups: int) -> Array:
    """(N, C, spatial) data as a view (groups, C/groups, N, spatial)."""
    split = split_channels(array, 1, groups)
    return split.transpose(1, 2, 0, *range(3, split.ndim))


def reversed_taps(filters: Array, rank: int) -> Array:
    """View with the kernel axes, the last ones, turned round."""
    return last_axes(filters, *(slice(None, None, -1),) * rank)


def taps_in_order(filters: Array, spec: ConvSpec) -> Array:
    """View of filters (or of their gradient) in the order of cross-correlation."""
    return reversed_taps(filters, spec.rank) if spec.flip else filters
