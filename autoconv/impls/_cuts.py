"""How FFT convolution cuts its operands into boxes: the whole image in one, or overlapping tiles.

A `Cut` says, per axis, how the operands are cut into boxes of one size and which part of each circular
result is right. One box that holds the whole image and many small overlapping ones differ only in that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from autoconv.impls import _spectra
from autoconv.spec import ConvSpec, Op

__all__ = ["Axis", "Boxes", "Cut", "cut_tiles", "cut_whole", "reach", "tile_sizes"]

TILES = {1: (256, 1024, 4096), 2: (32, 64, 128, 256), 3: (16, 32, 64)}
WORTH = 3  # tiles this many times as large as the filter's reach keep most of what they compute
SMALLEST = 8


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: boxes of `size`, the i-th reading `image` samples from `start + i * step`.

    For wgrad the output gradient is read too, `gradient` samples from `i * step`. `keep` is the part of the
    circular result that is right; it goes to `target`, moved on by `i * step` for an fprop or dgrad.
    """

    size: int
    boxes: int
    step: int
    start: int
    image: int
    gradient: int
    keep: slice
    target: slice


@dataclass(frozen=True, slots=True)
class Boxes:
    """Some boxes of one cut: images `first` to `last`, and along each axis boxes `begins` to `ends`."""

    first: int
    last: int
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many images."""
        return self.last - self.first

    @property
    def grid(self) -> tuple[int, ...]:
        """How many boxes along each axis."""
        return tuple(end - begin for begin, end in zip(self.begins, self.ends, strict=True))

    @property
    def count(self) -> int:
        """How many boxes."""
        return self.images * prod(self.grid)


@dataclass(frozen=True, slots=True)
class Cut:
    """All axes. `whole`: a single box from the first sample on, so that operands need not be copied out."""

    axes: tuple[Axis, ...]
    whole: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of a box."""
        return tuple(axis.size for axis in self.axes)

    @property
    def boxes(self) -> int:
        """Boxes per image."""
        return prod(axis.boxes for axis in self.axes)

    def block(self, batch: int, most: int) -> Boxes:
        """The first block of at most `most` boxes, the last axis's neighbours before others; at least one box."""
        counts, room = [], max(most, 1)
        for axis in reversed(self.axes):
            counts.append(min(axis.boxes, room))
            room //= counts[-1]
        return Boxes(0, max(1, min(batch, room)), (0,) * len(counts), tuple(reversed(counts)))

    def blocks(self, batch: int, most: int) -> Iterator[Boxes]:
        """Every box, in blocks of at most `most`."""
        block = self.block(batch, most)
        ranges = [range(0, axis.boxes, count) for axis, count in zip(self.axes, block.ends, strict=True)]
        for first in range(0, batch, block.last):
            for begins in product(*ranges):
                axes = zip(begins, block.ends, self.axes, strict=True)
                ends = tuple(min(begin + count, axis.boxes) for begin, count, axis in axes)
                yield Boxes(first, min(first + block.last, batch), begins, ends)


def cut_whole(spec: ConvSpec, *, exact: bool) -> Cut:
    """One box per image, of the least size that does, or of the next fast one."""
    return Cut(tuple(_whole_axis(spec, axis, exact=exact) for axis in range(spec.rank)), whole=True)


def _whole_axis(spec: ConvSpec, axis: int, *, exact: bool) -> Axis:
    pad, dilation, kernel = spec.padding[axis][0], spec.dilation[axis], spec.kernel[axis]
    image, out, span = spec.in_spatial[axis], spec.output_spatial[axis], (kernel - 1) * dilation
    # the results are entries `first + step * i`, i < count, of the full convolution of two sequences
    data, other, first, count, step = {
        Op.FPROP: (image, span + 1, span - pad, out, 1),
        Op.DGRAD: (out, span + 1, pad, image, 1),
        Op.WGRAD: (image, out, out - 1 - pad, kernel, dilation),
    }[spec.op]
    full = data + other - 1
    low = max(0, -(first // step))  # entries before the first and behind the last are zero: padding alone
    high = min(count, (full - 1 - first) // step + 1)
    begin, end = first + step * low, first + step * (high - 1) + 1
    # an entry may not meet what lies one size further on, and both operands have to fit
    size = max(end, full - begin, data, other) if low < high else 1
    if not exact:
        size = _spectra.fast_size(size, even=axis == spec.rank - 1)
    return Axis(size, 1, 0, 0, data, out, slice(begin, max(end, begin), step), slice(low, max(high, low)))


def cut_tiles(spec: ConvSpec, tile: int) -> Cut:
    """Tiles of one size; an axis that is shorter gets one tile just as long."""
    return Cut(tuple(_tile_axis(spec, axis, tile) for axis in range(spec.rank)), whole=False)


def _tile_axis(spec: ConvSpec, axis: int, tile: int) -> Axis:
    span = (spec.kernel[axis] - 1) * spec.dilation[axis]
    count, pad = _counts(spec)[axis], spec.padding[axis][0]
    size = min(tile, _spectra.fast_size(count + span, even=axis == spec.rank - 1))
    step = size - span
    boxes = -(-count // step)
    if spec.op is Op.WGRAD:
        keep = slice(step - 1, step + span, spec.dilation[axis])
        return Axis(size, boxes, step, -pad, size, step, keep, slice(0, spec.kernel[axis]))
    start = -pad if spec.op is Op.FPROP else pad - span
    return Axis(size, boxes, step, start, size, 0, slice(span, size), slice(0, step))


def reach(spec: ConvSpec) -> int:
    """How far the dilated filter looks beyond one pixel, along its longest axis."""
    return max(size - 1 for size in _spectra.filter_extents(spec))


def tile_sizes(spec: ConvSpec, most: int) -> list[int]:
    """Up to `most` sizes that suit the filter and are smaller than the image; at least one."""
    span, longest = reach(spec), max(_counts(spec)) + reach(spec)
    first = _spectra.fast_size(max(SMALLEST, 2 * span + 2), even=True)
    fitting = [tile for tile in TILES[spec.rank] if WORTH * span <= tile < longest]
    return sorted({*fitting[:most]} or {first})


def _counts(spec: ConvSpec) -> tuple[int, ...]:
    """Length of what the tiles cut, per axis: the result, or the output gradient for wgrad."""
    return spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial
