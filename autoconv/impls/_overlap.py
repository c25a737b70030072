"""The machinery of FFT convolution: boxes cut from the operands, transformed, multiplied, and put together.

A `Cut` says, per axis, how the operands are cut into boxes of one size and which part of each circular
result is right. One box that holds the whole image and many small overlapping ones differ only in that.
Boxes go through in blocks, so that the scratch does not grow with the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import log2, prod, sqrt
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.impls import _spectra as spectra
from autoconv.impls._spectra import Product
from autoconv.impls._tiles import (
    aligned,
    copy_window,
    last_axes,
    reversed_taps,
    sees_nothing,
    split_channels,
    ufunc_bytes,
)
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Axis", "Cut", "SpectralRunner", "estimate_s", "workspace_bytes"]

BLOCK_BYTES = 8 << 20  # spectra of one block of boxes: what a shared cache holds, unless the filters' are larger
ELEMENT_S = {"numpy": 0.55e-9, "scipy": 0.5e-9}  # per element of a box and halving of its size; one thread
LINE_S = {"numpy": 0.17e-6, "scipy": 0.02e-6}  # one line along one axis
BOX_S = 12e-6  # cutting one box and putting its result back
COPY_S = 1.0e-9  # per element cut or put back
CALL_S = {"numpy": 90e-6, "scipy": 160e-6}  # views and library calls of one block


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


class _Layout:
    """How much of everything one block holds, and the workspace it takes."""

    def __init__(self, spec: ConvSpec, cut: Cut) -> None:
        self.spec, self.cut = spec, cut
        self.half = spectra.half_shape(cut.sizes)
        frequencies, box = prod(self.half), prod(cut.sizes)
        wgrad = spec.op is Op.WGRAD
        self.into = spec.out_channels if spec.op is Op.DGRAD else spec.in_channels
        self.outof = spec.in_channels if spec.op is Op.DGRAD else spec.out_channels
        count = max(1, spec.batch) * cut.boxes
        self.product = Product(spec, frequencies, count)
        filters = spec.out_channels * (spec.in_channels // spec.groups)
        per_box = frequencies * (self.into + self.outof) * 2 * spec.itemsize
        self.block = max(1, min(count, max(BLOCK_BYTES, filters * frequencies * 2 * spec.itemsize) // per_box))
        per_filter = spec.filter_shape[1]
        room = BLOCK_BYTES // (2 * spec.itemsize * frequencies * per_filter)
        self.rows = max(1, min(spec.out_channels, room))
        block, rows = self.block, self.rows
        extents = prod(spectra.filter_extents(spec))
        direct = cut.whole  # operands are transformed where they lie
        ordered = not self.product.by_terms

        boxes = [0 if direct else block * max(self.into, self.outof if wgrad else 0)]
        boxes.append(rows * per_filter if wgrad else block * self.outof)
        self.reals = {"box": max(boxes) * box, "taps": 0 if wgrad else rows * per_filter * extents}
        self.complexes = {
            "filters": filters * frequencies,
            "rows": rows * per_filter * frequencies if ordered else 0,
            "image": block * self.into * frequencies,
            "other": block * self.outof * frequencies,
            "image_ordered": block * self.into * frequencies if ordered else 0,
            "other_ordered": block * self.outof * frequencies if ordered else 0,
            "term": self._term(filters, frequencies, wgrad=wgrad),
        }
        self.largest_transform = box * max(block * max(self.into, self.outof), rows * per_filter)
        self.largest_product = frequencies * max(block * self.outof, filters if wgrad else 0)

    def _term(self, filters: int, frequencies: int, *, wgrad: bool) -> int:
        if wgrad:
            return filters * frequencies
        return self.block * self.outof * frequencies if self.product.by_terms and self.product.summed > 1 else 0

    def bytes(self, library: str) -> int:
        """Scratch of one call, with what NumPy and the transforms allocate themselves."""
        size = self.spec.itemsize
        pieces = [n * size for n in self.reals.values()] + [2 * n * size for n in self.complexes.values()]
        own = spectra.library_elements(library, self.largest_transform) * size
        return aligned(*pieces) + own + ufunc_bytes(self.largest_product, 2 * size)


def workspace_bytes(spec: ConvSpec, cut: Cut, library: str) -> int:
    """Scratch of one call."""
    return 0 if sees_nothing(spec) else _Layout(spec, cut).bytes(library)


def estimate_s(spec: ConvSpec, device: Device, cut: Cut, library: str) -> float:
    """Rough seconds of one call: transforms, products, and the copies in and out of boxes."""
    if sees_nothing(spec):
        return CALL_S[library]
    layout = _Layout(spec, cut)
    box, count = prod(cut.sizes), max(1, spec.batch) * cut.boxes
    halvings = sum(log2(max(size, 2)) * spectra.awkwardness(size) for size in cut.sizes)
    channels = count * (layout.into + layout.outof)
    filters = 0 if spec.fixed else spec.out_channels * spec.filter_shape[1]
    per_box = box * halvings * ELEMENT_S[library] + sum(box / size for size in cut.sizes) * LINE_S[library] * 0.6
    lines = (channels + filters * 0.7) * per_box
    if library == "scipy":
        lines /= min(device.threads, 8) ** 0.8
    copies = channels * box * COPY_S * (1 if cut.whole else 2)
    blocks = -(-count // layout.block)
    calls = blocks * CALL_S[library] + (0.0 if cut.whole else count * BOX_S)
    return float(lines + copies + layout.product.seconds + calls)


class SpectralRunner(Runner):
    """All three operations for one way of cutting."""

    def __init__(self, spec: ConvSpec, cut: Cut, library: str, threads: int) -> None:
        self._spec, self._cut = spec, cut
        self._fft = spectra.library(library, threads)
        self._complex: np.dtype[Any] = spectra.COMPLEX[spec.dtype]
        self._blank = sees_nothing(spec)  # exact zeros then, not the rounding of spectra
        if not self._blank:
            self._layout = _Layout(spec, cut)
        self._scale = sqrt(prod(cut.sizes))  # of the three square roots two cancel
        grid = list(product(*(range(axis.boxes) for axis in cut.axes)))
        self._boxes = [(image, index) for image in range(spec.batch) for index in grid]

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
        packed = np.empty(self._layout.product.filter_shape(), self._complex)
        self._transform_filters(filters, packed, self._room(Workspace()))

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
        per_filter = spec.filter_shape[1]
        ordered = packed if by_terms else packed.reshape(-1, spec.out_channels, per_filter)
        for first in range(0, spec.out_channels, layout.rows):
            part = filters[first : first + layout.rows]
            shape = (*part.shape[:2], *spectra.filter_extents(spec))
            taps = room["taps"][: prod(shape)].reshape(shape)
            spectra.load_filters(part, taps, spec)
            taps *= self._scale
            if by_terms:
                rows = ordered[first : first + layout.rows]
            else:
                rows = room["rows"][: part.shape[0] * per_filter * layout.product.frequencies]
            rows = rows.reshape(*part.shape[:2], *layout.half)
            spectra.transform(self._fft, taps, rows, self._cut.sizes)
            if not by_terms:
                flat = rows.reshape(*part.shape[:2], -1)
                np.copyto(ordered[:, first : first + layout.rows], flat.transpose(2, 0, 1))

    # Boxes --------------------------------------------------------------------------------------

    def _forward(self, data: Array, first: int, last: int, room: dict[str, Array], *, gradient: bool) -> Array:
        """Spectra of boxes `first` to `last` of an operand, in the product's order."""
        layout, cut, rank = self._layout, self._cut, self._spec.rank
        name = "other" if gradient else "image"
        channels, count = data.shape[1], last - first
        extents = tuple(axis.gradient if gradient else axis.image for axis in cut.axes)
        if cut.whole:
            boxes = data[first:last]
            if gradient:
                boxes = reversed_taps(boxes, rank)
        else:
            boxes = room["box"][: count * channels * prod(extents)].reshape(count, channels, *extents)
            for place, (image, index) in enumerate(self._boxes[first:last]):
                starts = [
                    at * axis.step + (0 if gradient else axis.start) for at, axis in zip(index, cut.axes, strict=True)
                ]
                box = boxes[place]
                copy_window(data[image], reversed_taps(box, rank) if gradient else box, starts)
        plain = room[name][: count * channels * layout.product.frequencies].reshape(count, channels, *layout.half)
        spectra.transform(self._fft, boxes, plain, cut.sizes)
        plain = plain.reshape(count, channels, -1)
        if layout.product.by_terms:
            return plain
        ordered = self._ordered(name, count, channels, room)
        np.copyto(layout.product.box_view(ordered), split_channels(plain, 1, self._spec.groups))
        return ordered

    def _ordered(self, name: str, count: int, channels: int, room: dict[str, Array]) -> Array:
        product = self._layout.product
        flat = room[name if product.by_terms else f"{name}_ordered"]
        return flat[: count * channels * product.frequencies].reshape(product.box_shape(count, channels))

    def _run(self, data: Array, filters: Array, out: Array, room: dict[str, Array]) -> None:
        """fprop and dgrad, block by block."""
        layout, product = self._layout, self._layout.product
        if any(axis.target.stop - axis.target.start < size for axis, size in self._result_axes(out) if axis.boxes == 1):
            out[...] = 0  # padding beyond the filters' reach
        for first in range(0, len(self._boxes), layout.block):
            last = min(first + layout.block, len(self._boxes))
            count = last - first
            image = self._forward(data, first, last, room, gradient=False)
            result = self._ordered("other", count, layout.outof, room)
            term = room["term"][: result.size if room["term"].size else 0]
            product.multiply(image, filters, result, term.reshape(result.shape) if term.size else result)
            plain = room["other"][: result.size].reshape(count, layout.outof, -1)
            if not product.by_terms:
                np.copyto(split_channels(plain, 1, self._spec.groups), product.box_view(result))
            self._store(plain.reshape(count, layout.outof, *layout.half), out, first, room)

    def _result_axes(self, out: Array) -> list[tuple[Axis, int]]:
        return list(zip(self._cut.axes, out.shape[2:], strict=True))

    def _store(self, plain: Array, out: Array, first: int, room: dict[str, Array]) -> None:
        """Back from spectra into the result."""
        cut, count = self._cut, plain.shape[0]
        shape = (*plain.shape[:2], *cut.sizes)
        box = room["box"][: prod(shape)].reshape(shape)
        window = spectra.untransform(self._fft, plain, box, cut.sizes, [axis.keep for axis in cut.axes])
        if cut.whole:
            last_axes(out[first : first + count], *(axis.target for axis in cut.axes))[...] = window
            return
        for place, (image, index) in enumerate(self._boxes[first : first + count]):
            target, part = [], []
            for at, (axis, size) in zip(index, self._result_axes(out), strict=True):
                begin = axis.target.start + at * axis.step
                end = min(axis.target.stop + at * axis.step, size)
                target.append(slice(begin, end))
                part.append(slice(0, end - begin))
            last_axes(out[image], *target)[...] = last_axes(window[place], *part)

    def _wgrad(self, x: Array, dy: Array, dw: Array, room: dict[str, Array]) -> None:
        spec, layout, cut, product = self._spec, self._layout, self._cut, self._layout.product
        total = room["filters"].reshape(product.filter_shape())
        term = room["term"].reshape(total.shape)
        for first in range(0, len(self._boxes), layout.block):
            last = min(first + layout.block, len(self._boxes))
            image = self._forward(x, first, last, room, gradient=False)
            gradient = self._forward(dy, first, last, room, gradient=True)
            product.accumulate(image, gradient, total, term, first=first == 0)
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
            window = spectra.untransform(self._fft, part, box, cut.sizes, [axis.keep for axis in cut.axes])
            last_axes(turned[start : start + part.shape[0]], *target)[...] = window
