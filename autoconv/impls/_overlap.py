"""The machinery of FFT convolution: boxes cut from the operands, transformed, multiplied, and put together.

Everything here is for NumPy and CuPy arrays alike; an `Engine` brings the transforms, the matrix product and what they
cost. Boxes go through in blocks, so that the scratch does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product as combinations
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.impls import _spectra as spectra
from autoconv.impls._cuts import Axis, Boxes, Cut
from autoconv.impls._spectra import Library, Matmul, Product, ProductCosts, numpy_matmul
from autoconv.impls._tiles import (
    aligned,
    copy_window,
    last_axes,
    reversed_taps,
    sees_nothing,
    split_channels,
    strided,
    window_is_whole,
)
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Engine", "Layout", "SpectralRunner", "workspace_bytes"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What computes: the size of a block's spectra in bytes, whether transforms want whole boxes, and a product's cost.

    `own_bytes` says what transforms and arithmetic allocate themselves, given the elements of the largest box of one
    transform, of the largest product, and the bytes of one.
    """

    block_bytes: int
    padded: bool
    costs: ProductCosts
    own_bytes: Callable[[int, int, int], int]
    matmul: Matmul = numpy_matmul


class Layout:
    """How much of everything one block holds, and the workspace it takes."""

    def __init__(self, spec: ConvSpec, cut: Cut, engine: Engine) -> None:
        self.spec, self.cut, self.engine = spec, cut, engine
        self.half = spectra.half_shape(cut.sizes)
        frequencies, box = prod(self.half), prod(cut.sizes)
        wgrad = spec.op is Op.WGRAD
        self.into = spec.out_channels if spec.op is Op.DGRAD else spec.in_channels
        self.outof = spec.in_channels if spec.op is Op.DGRAD else spec.out_channels
        self.count = max(1, spec.batch) * cut.boxes
        self.product = Product(spec, frequencies, self.count, engine.costs, engine.matmul)
        filters = spec.out_channels * (spec.in_channels // spec.groups)
        per_box = frequencies * (self.into + self.outof) * 2 * spec.itemsize
        room = max(engine.block_bytes, filters * frequencies * 2 * spec.itemsize)
        self.most = max(1, min(self.count, room // per_box))  # boxes of a block
        largest = cut.block(spec.batch, self.most)
        block = largest.count
        per_filter = spec.filter_shape[1]
        self.rows = max(1, min(spec.out_channels, engine.block_bytes // (2 * spec.itemsize * frequencies * per_filter)))
        extents = box if engine.padded else prod(spectra.filter_extents(spec))
        direct = cut.whole and not engine.padded  # operands are transformed where they lie
        ordered = not self.product.by_terms

        boxes = [0 if direct else block * max(self.into, self.outof if wgrad else 0)]
        boxes.append(self.rows * per_filter if wgrad else block * self.outof)
        self.reals = {
            "box": max(boxes) * box,
            "taps": 0 if wgrad else self.rows * per_filter * extents,
            "region": self._region(largest),
        }
        self.complexes = {
            "filters": filters * frequencies,
            "rows": self.rows * per_filter * frequencies if ordered else 0,
            "image": block * self.into * frequencies,
            "other": block * self.outof * frequencies,
            "image_ordered": block * self.into * frequencies if ordered else 0,
            "other_ordered": block * self.outof * frequencies if ordered else 0,
            "term": self._term(filters, frequencies, block, wgrad=wgrad),
        }
        self.largest_transform = box * max(block * max(self.into, self.outof), self.rows * per_filter)
        self.largest_product = frequencies * max(block * self.outof, filters if wgrad else 0)

    def _term(self, filters: int, frequencies: int, block: int, *, wgrad: bool) -> int:
        if wgrad:
            return filters * frequencies
        return block * self.outof * frequencies if self.product.by_terms and self.product.summed > 1 else 0

    def _region(self, block: Boxes) -> int:
        """Elements of the padded part of an operand that the tiles of a block are cut from; 0 without tiles."""
        if self.cut.whole:
            return 0
        sides = [(self.into, False)] + [(self.outof, True)] * (self.spec.op is Op.WGRAD)
        return max(
            block.images * channels * prod(self.extent(block, gradient=gradient)) for channels, gradient in sides
        )

    def extent(self, block: Boxes, *, gradient: bool) -> tuple[int, ...]:
        """Size of the part of an operand that the boxes of a block lie in."""
        axes = zip(block.grid, self.cut.axes, strict=True)
        return tuple((n - 1) * axis.step + (axis.gradient if gradient else axis.image) for n, axis in axes)

    @property
    def bytes(self) -> int:
        """Scratch of one call, with what libraries allocate themselves."""
        size = self.spec.itemsize
        pieces = [n * size for n in self.reals.values()] + [2 * n * size for n in self.complexes.values()]
        return aligned(*pieces) + self.engine.own_bytes(self.largest_transform, self.largest_product, size)


def workspace_bytes(spec: ConvSpec, cut: Cut, engine: Engine) -> int:
    """Scratch of one call."""
    return 0 if sees_nothing(spec) else Layout(spec, cut, engine).bytes


class SpectralRunner(Runner):
    """All three operations for one way of cutting; `scratch` makes the workspace that filters are bound with."""

    def __init__(
        self, spec: ConvSpec, cut: Cut, engine: Engine, fft: Library, scratch: Callable[[], Workspace] = Workspace
    ) -> None:
        self._spec, self._cut, self._fft, self._scratch = spec, cut, fft, scratch
        self._complex: np.dtype[Any] = spectra.COMPLEX[spec.dtype]
        self._blank = sees_nothing(spec)  # exact zeros then, not the rounding of spectra
        if not self._blank:
            self._layout = Layout(spec, cut, engine)
            self._blocks = list(cut.blocks(spec.batch, self._layout.most))
            self._scale = fft.scale(cut.sizes)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._blank:
            out[...] = 0
            return
        room = self._room(workspace)
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, room)
            return
        packed = room["filters"].reshape(self._layout.product.filter_shape())
        self._transform_filters(b, packed, room)
        self._run(a, packed, out, room)

    def bind(self, filters: Array) -> BoundRunner:
        if self._blank:
            return super().bind(filters)
        packed = np.empty_like(filters, self._complex, "C", shape=self._layout.product.filter_shape())
        workspace = self._scratch()
        mark = workspace.mark()
        self._transform_filters(filters, packed, self._room(workspace))
        workspace.release(mark)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, packed, out, self._room(workspace, bound=True))

        return bound

    def _room(self, workspace: Workspace, *, bound: bool = False) -> dict[str, Array]:
        layout = self._layout
        skipped = ("filters", "rows", "taps") if bound else ()
        room = {k: workspace.take(n, self._spec.np_dtype) for k, n in layout.reals.items() if k not in skipped}
        room |= {k: workspace.take(n, self._complex) for k, n in layout.complexes.items() if k not in skipped}
        return room

    # Filters ------------------------------------------------------------------------------------

    def _transform_filters(self, filters: Array, packed: Array, room: dict[str, Array]) -> None:
        """Spectra of the filters in the product's order, some output channels at a time."""
        spec, layout = self._spec, self._layout
        by_terms = layout.product.by_terms
        per_filter, extents = spec.filter_shape[1], spectra.filter_extents(spec)
        ordered = packed if by_terms else packed.reshape(-1, spec.out_channels, per_filter)
        for first in range(0, spec.out_channels, layout.rows):
            part = filters[first : first + layout.rows]
            shape = (*part.shape[:2], *(self._cut.sizes if self._fft.padded else extents))
            taps = room["taps"][: prod(shape)].reshape(shape)
            if self._fft.padded:
                taps[...] = 0
            spectra.load_filters(part, last_axes(taps, *map(slice, extents)), spec)
            taps *= self._scale
            if by_terms:
                rows = ordered[first : first + layout.rows]
            else:
                rows = room["rows"][: part.shape[0] * per_filter * layout.product.frequencies]
            rows = rows.reshape(*part.shape[:2], *layout.half)
            self._fft.transform(taps, rows, self._cut.sizes)
            if not by_terms:
                flat = rows.reshape(*part.shape[:2], -1)
                np.copyto(ordered[:, first : first + layout.rows], flat.transpose(2, 0, 1))

    # Boxes --------------------------------------------------------------------------------------

    def _forward(self, data: Array, block: Boxes, room: dict[str, Array], *, gradient: bool) -> Array:
        """Spectra of the boxes of a block of an operand, in the product's order."""
        layout, cut = self._layout, self._cut
        name = "other" if gradient else "image"
        channels, count = data.shape[1], block.count
        if cut.whole:
            boxes = data[block.first : block.last]
            if gradient:
                boxes = reversed_taps(boxes, self._spec.rank)
            if self._fft.padded:
                boxes = self._corner(boxes, room)
        else:
            boxes = self._tiles(data, block, room, gradient=gradient)
        plain = room[name][: count * channels * layout.product.frequencies].reshape(count, channels, *layout.half)
        self._fft.transform(boxes, plain, cut.sizes)
        plain = plain.reshape(count, channels, -1)
        if layout.product.by_terms:
            return plain
        ordered = self._ordered(name, count, channels, room)
        np.copyto(layout.product.box_view(ordered), split_channels(plain, 1, self._spec.groups))
        return ordered

    def _corner(self, data: Array, room: dict[str, Array]) -> Array:
        """Data at the low corner of boxes of zeros."""
        shape = (*data.shape[:2], *self._cut.sizes)
        boxes = room["box"][: prod(shape)].reshape(shape)
        boxes[...] = 0
        last_axes(boxes, *map(slice, data.shape[2:]))[...] = data
        return boxes

    def _tiles(self, data: Array, block: Boxes, room: dict[str, Array], *, gradient: bool) -> Array:
        """The overlapping tiles of a block, one after another, (boxes, channels, extents or sizes)."""
        cut, rank, channels = self._cut, self._spec.rank, data.shape[1]
        extents = tuple(axis.gradient if gradient else axis.image for axis in cut.axes)
        shape = (block.images, *block.grid, channels, *(cut.sizes if self._fft.padded else extents))
        tiles = room["box"][: prod(shape)].reshape(shape)
        target = tiles
        if self._fft.padded and extents != cut.sizes:
            tiles[...] = 0
            target = last_axes(tiles, *map(slice, extents))
        if gradient:
            target = reversed_taps(target, rank)
        region = self._region(data[block.first : block.last], block, room, gradient=gradient)
        image, channel, *pixels = region.strides
        steps = [axis.step * pixel for axis, pixel in zip(cut.axes, pixels, strict=True)]
        windows = strided(region, target.shape, (image, *steps, channel, *pixels))
        np.copyto(target, windows)
        return tiles.reshape(block.count, channels, *shape[rank + 2 :])

    def _region(self, images: Array, block: Boxes, room: dict[str, Array], *, gradient: bool) -> Array:
        """What the tiles of a block are cut from: part of the operand, a copy with zeros where it reaches out of it."""
        axes = zip(block.begins, self._cut.axes, strict=True)
        starts = [begin * axis.step + (0 if gradient else axis.start) for begin, axis in axes]
        sizes = self._layout.extent(block, gradient=gradient)
        if window_is_whole(starts, sizes, images.shape[2:]):
            return last_axes(images, *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)))
        shape = (*images.shape[:2], *sizes)
        region = room["region"][: prod(shape)].reshape(shape)
        copy_window(images, region, starts)
        return region

    def _ordered(self, name: str, count: int, channels: int, room: dict[str, Array]) -> Array:
        product = self._layout.product
        flat = room[name if product.by_terms else f"{name}_ordered"]
        return flat[: count * channels * product.frequencies].reshape(product.box_shape(count, channels))

    def _run(self, data: Array, filters: Array, out: Array, room: dict[str, Array]) -> None:
        """fprop and dgrad, block by block."""
        layout, product = self._layout, self._layout.product
        if any(axis.target.stop - axis.target.start < size for axis, size in self._result_axes(out) if axis.boxes == 1):
            out[...] = 0  # padding beyond the filters' reach
        for block in self._blocks:
            count = block.count
            image = self._forward(data, block, room, gradient=False)
            result = self._ordered("other", count, layout.outof, room)
            term = room["term"][: result.size if room["term"].size else 0]
            product.multiply(image, filters, result, term.reshape(result.shape) if term.size else result)
            plain = room["other"][: result.size].reshape(count, layout.outof, -1)
            if not product.by_terms:
                np.copyto(split_channels(plain, 1, self._spec.groups), product.box_view(result))
            self._store(plain.reshape(count, layout.outof, *layout.half), out, block, room)

    def _result_axes(self, out: Array) -> list[tuple[Axis, int]]:
        return list(zip(self._cut.axes, out.shape[2:], strict=True))

    def _store(self, plain: Array, out: Array, block: Boxes, room: dict[str, Array]) -> None:
        """Back from spectra into the result."""
        cut, rank = self._cut, self._spec.rank
        shape = (*plain.shape[:2], *cut.sizes)
        box = room["box"][: prod(shape)].reshape(shape)
        window = self._fft.untransform(plain, box, cut.sizes, [axis.keep for axis in cut.axes])
        images = out[block.first : block.last]
        if cut.whole:
            last_axes(images, *(axis.target for axis in cut.axes))[...] = window
            return
        tiles = split_channels(window, 0, block.images)
        for axis, count in enumerate(block.grid[:-1]):
            tiles = split_channels(tiles, axis + 1, count)  # (images, grid, channels, sizes)
        for parts in combinations(*(self._seams(axis, block, size) for axis, size in enumerate(out.shape[2:]))):
            # along each axis either the tiles that fit, or what the last one has left
            boxes, places, lengths = zip(*parts, strict=True)
            source = last_axes(tiles[(slice(None), *boxes)], *map(slice, lengths))
            target = last_axes(images, *places)
            for axis in range(rank - 1, -1, -1):
                target = split_channels(target, axis + 2, boxes[axis].stop - boxes[axis].start)
            order = (0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))
            target.transpose(order)[...] = source

    def _seams(self, axis: int, block: Boxes, size: int) -> Iterator[tuple[slice, slice, int]]:
        """Tiles of a block that fit wholly into the result along an axis, and one that does not.

        Each as the tiles' places in the block, their place in the result, and how much of each is wanted.
        """
        cut = self._cut.axes[axis]
        begin = cut.target.start + block.begins[axis] * cut.step
        length = min(block.grid[axis] * cut.step, size - begin)
        whole, rest = divmod(length, cut.step)
        if whole:
            yield slice(0, whole), slice(begin, begin + whole * cut.step), cut.step
        if rest:
            yield slice(whole, whole + 1), slice(begin + whole * cut.step, begin + length), rest

    def _wgrad(self, x: Array, dy: Array, dw: Array, room: dict[str, Array]) -> None:
        spec, layout, cut, product = self._spec, self._layout, self._cut, self._layout.product
        total = room["filters"].reshape(product.filter_shape())
        term = room["term"].reshape(total.shape)
        for number, block in enumerate(self._blocks):
            image = self._forward(x, block, room, gradient=False)
            gradient = self._forward(dy, block, room, gradient=True)
            product.accumulate(image, gradient, total, term, first=number == 0)
        total *= self._scale
        dw[...] = 0
        turned = reversed_taps(dw, spec.rank) if spec.flip else dw
        per_filter = spec.filter_shape[1]
        target = tuple(axis.target for axis in cut.axes)
        ordered = total if product.by_terms else total.reshape(-1, spec.out_channels, per_filter).transpose(1, 2, 0)
        for start in range(0, spec.out_channels, layout.rows):
            part = ordered[start : start + layout.rows]
            if not product.by_terms:
                plain = room["rows"][: part.size].reshape(part.shape)
                np.copyto(plain, part)
                part = plain
            shape = (*part.shape[:2], *cut.sizes)
            box = room["box"][: prod(shape)].reshape(shape)
            part = part.reshape(*part.shape[:2], *layout.half)
            window = self._fft.untransform(part, box, cut.sizes, [axis.keep for axis in cut.axes])
            last_axes(turned[start : start + part.shape[0]], *target)[...] = window
