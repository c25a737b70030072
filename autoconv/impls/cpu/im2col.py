"""Convolution as one matrix product: the Toeplitz matrix of the image is written out, BLAS does the rest.

Source: Chellapilla, Puri & Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006;
        Caffe and Theano's CorrMM do the same, image by image.
Wins:   many channels, strided or dilated filters, whatever the faster algorithms refuse.
Loses:  large filters and few channels: the matrix holds every pixel once per tap.
Error:  that of BLAS summing C*R*S products in the operands' precision.

The matrix is built for a block of results at a time: some rows of one image, or several small images, so
that it stays in cache and the product is large enough. dgrad multiplies first and adds the columns back
into the image; wgrad sums one product per block. Channels-last images keep channels innermost in the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._tiles import (
    Block,
    aligned,
    blocks,
    copy_window,
    groups_first,
    last_axes,
    split_channels,
    tap_windows,
    taps_in_order,
    ufunc_bytes,
    window_is_whole,
)
from autoconv.impls.cpu._blas import BlasImplementation, gemm_s, guarded
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import LAYOUTS, ConvSpec, Op

BAND_BYTES = 1 << 20  # a matrix of this size still sits in a core's cache when it is multiplied
ENOUGH_COLUMNS = 1024  # a product this wide runs at full speed
COPY_S = 0.6e-9  # per element of the matrix, written once in long runs
SHORT_RUN = 6.0  # elements whose copying costs as much as beginning a run
ADD_S = 0.9e-9  # per element of the matrix added back, in dgrad
TAP_S = 6e-6  # one strided addition of nothing
BLOCK_S = 40e-6  # views and calls of one block


class Im2col(BlasImplementation):
    """Every operation and option; `images` and `rows` say how many results one product makes."""

    name = "numpy.im2col"
    layouts = frozenset(LAYOUTS)
    tags = frozenset({"gemm"})

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """A cache-sized band of one image, a whole image, and several images where they are small."""
        height, positions = spec.output_spatial[0], prod(spec.output_spatial)
        row_bytes = _depth(spec) * spec.groups * (positions // height) * spec.itemsize
        band = max(1, min(height, BAND_BYTES // row_bytes))
        options = []
        if band < height:
            options.append(Config(images=1, rows=band))
        options.append(Config(images=1, rows=height))
        if spec.batch > 1 and positions < ENOUGH_COLUMNS:
            several = min(spec.batch, -(-ENOUGH_COLUMNS // positions))
            options.insert(0, Config(images=several, rows=height))
        return options

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The matrix of one block, its padded image, and what has to be rearranged."""
        pieces = aligned(*(prod(shape) * spec.itemsize for shape in _Sizes(spec, config).pieces()))
        return pieces + (ufunc_bytes(prod(spec.result_shape), spec.itemsize) if spec.op is Op.DGRAD else 0)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Writing (or adding back) the matrix, and one product per block and group."""
        sizes = _Sizes(spec, config)
        depth, positions, kernels = _depth(spec), prod(spec.output_spatial), spec.out_channels // spec.groups
        block = sizes.images * sizes.rows * (positions // spec.output_spatial[0])
        count = -(-max(spec.batch, 1) // sizes.images) * -(-spec.output_spatial[0] // sizes.rows)
        elements = depth * spec.groups * positions * spec.batch
        run = spec.in_channels // spec.groups if sizes.last else spec.output_spatial[-1]
        move = elements * COPY_S * (1.0 + SHORT_RUN / run)
        if spec.op is Op.DGRAD:
            move += elements * ADD_S + count * prod(spec.kernel) * TAP_S
        edges = {
            Op.FPROP: (kernels, depth, block),
            Op.DGRAD: (depth, kernels, block),
            Op.WGRAD: (kernels, block, depth),
        }[spec.op]
        return count * BLOCK_S + move + gemm_s(*edges, count * spec.groups, spec, device)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Nothing but sizes is worked out beforehand."""
        return guarded(_Im2colRunner(spec, config), context.device)


def _depth(spec: ConvSpec) -> int:
    """Rows of the matrix per group: channels times taps."""
    return spec.in_channels // spec.groups * prod(spec.kernel)


class _Sizes:
    """What one block holds and how large its arrays are."""

    def __init__(self, spec: ConvSpec, config: Config) -> None:
        self.spec = spec
        height = spec.output_spatial[0]
        self.images = max(1, min(int(config.get("images", 1)), spec.batch))
        self.rows = height if self.images > 1 else max(1, min(int(config.get("rows", height)), height))
        self.last = spec.layout == "nhwc"
        # planes of several images do not follow each other within a channel: their products need rearranging
        self.staged = self.images > 1 and not self.last

    def window(self, block: Block) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Start and size of the part of the image that a block of results sees."""
        spec = self.spec
        starts = [-before for before, _ in spec.padding]
        starts[0] += block.top * spec.stride[0]
        counts = (block.rows, *spec.output_spatial[1:])
        axes = zip(counts, spec.stride, spec.kernel, spec.dilation, strict=True)
        return tuple(starts), tuple((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in axes)

    def padded_shape(self, block: Block) -> tuple[int, ...]:
        """(images, channels, spatial) of the padded part of the image."""
        return (block.images, self.spec.in_channels, *self.window(block)[1])

    def matrix_shape(self, block: Block) -> tuple[int, int, int]:
        """(groups, channels x taps, positions)."""
        positions = block.images * block.rows * prod(self.spec.output_spatial[1:])
        return self.spec.groups, _depth(self.spec), positions

    def result_shape(self, block: Block) -> tuple[int, int, int]:
        """(groups, filters per group, positions)."""
        return self.spec.groups, self.spec.out_channels // self.spec.groups, self.matrix_shape(block)[2]

    def block_pieces(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the matrix, the padded image and the rearranged results of the largest block; () for none."""
        spec, largest = self.spec, Block(0, self.images, 0, self.rows)
        padded = spec.op is not Op.DGRAD and any(map(any, spec.padding))
        return (
            self.matrix_shape(largest),
            self.padded_shape(largest) if padded else (),
            self.result_shape(largest) if self.staged else (),
        )

    def pieces(self) -> list[tuple[int, ...]]:
        """Shapes of everything one call takes from the workspace."""
        shapes = [shape for shape in self.block_pieces() if shape]
        if self.spec.op is Op.WGRAD:
            return shapes + [self.spec.filter_shape] * (1 + self.last)
        return shapes + [self.spec.filter_shape] * self.last


class _Room:
    """The workspace of one call, taken once and used by every block in turn."""

    def __init__(self, sizes: _Sizes, workspace: Workspace, dtype: np.dtype[Any]) -> None:
        self.matrix, self.padded, self.staged = (
            workspace.take(prod(shape), dtype) if shape else np.empty(0, dtype) for shape in sizes.block_pieces()
        )


class _Im2colRunner(Runner):
    def __init__(self, spec: ConvSpec, config: Config) -> None:
        self._spec = spec
        self._sizes = sizes = _Sizes(spec, config)
        self._blocks = list(blocks(spec.batch, spec.output_spatial[0], sizes.images, sizes.rows))
        # where filters are used as they lie, a true convolution turns the matrix's taps round instead
        self._turned = spec.flip and not sizes.last

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, workspace)
            return
        packed = workspace.take(b.size, b.dtype) if self._sizes.last else None
        self._run(a, self._pack(b, packed), out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        matrix = self._pack(filters, np.empty(filters.size, filters.dtype) if self._sizes.last else None)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, matrix, out, workspace)

        return bound

    def _run(self, a: Array, matrix: Array, out: Array, workspace: Workspace) -> None:
        step = self._fprop_block if self._spec.op is Op.FPROP else self._dgrad_block
        room = _Room(self._sizes, workspace, a.dtype)
        for block in self._blocks:
            step(block, a, matrix, out, room)

    def _pack(self, filters: Array, packed: Array | None) -> Array:
        """Filters as (groups, filters per group, channels x taps), in the order of the matrix's rows."""
        spec = self._spec
        if packed is not None:
            rows = np.moveaxis(taps_in_order(filters, spec), 1, -1)
            packed = packed.reshape(rows.shape)
            np.copyto(packed, rows)
        return (filters if packed is None else packed).reshape(spec.groups, spec.out_channels // spec.groups, -1)

    # The matrix ---------------------------------------------------------------------------------

    def _shaped(self, block: Block, room: _Room) -> tuple[Array, Array]:
        """Room for the matrix (groups, depth, positions), and the same as (groups, c, taps, n, positions)."""
        spec, rank = self._spec, self._spec.rank
        groups, channels, taps = spec.groups, spec.in_channels // spec.groups, spec.kernel
        places = (block.images, block.rows, *spec.output_spatial[1:])
        _, depth, positions = self._sizes.matrix_shape(block)
        flat = room.matrix[: groups * depth * positions]
        if not self._sizes.last:
            return flat.reshape(groups, depth, positions), flat.reshape(groups, channels, *taps, *places)
        columns = flat.reshape(groups, *places, *taps, channels)
        order = (0, columns.ndim - 1, *range(2 + rank, 2 + 2 * rank), *range(1, 2 + rank))
        return flat.reshape(groups, positions, depth).transpose(0, 2, 1), columns.transpose(order)

    def _columns(self, block: Block, image: Array, room: _Room) -> Array:
        """The matrix of a block of results."""
        spec, sizes = self._spec, self._sizes
        starts, extents = sizes.window(block)
        source = image[block.first : block.last]
        if window_is_whole(starts, extents, spec.in_spatial):
            source = last_axes(source, *(slice(s, s + e) for s, e in zip(starts, extents, strict=True)))
        else:
            shape = sizes.padded_shape(block)
            padded = as_layout(room.padded[: prod(shape)], shape, spec.layout)
            copy_window(source, padded, starts)
            source = padded
        images, channels, *pixels = source.strides
        taps = [p * d for p, d in zip(pixels, spec.dilation, strict=True)]
        if self._turned:
            # the last tap first: start there and walk backwards
            ends = ((k - 1) * d for k, d in zip(spec.kernel, spec.dilation, strict=True))
            source = last_axes(source, *(slice(end, None) for end in ends))
            taps = [-step for step in taps]
        steps = (p * s for p, s in zip(pixels, spec.stride, strict=True))
        matrix, columns = self._shaped(block, room)
        strides = (channels * (spec.in_channels // spec.groups), channels, *taps, images, *steps)
        np.copyto(columns, np.lib.stride_tricks.as_strided(source, columns.shape, strides, writeable=False))
        return matrix

    def _products(self, block: Block, data: Array, room: _Room, *, fill: bool) -> tuple[Array, Array | None]:
        """A block of an array of results as a matrix (groups, filters, positions).

        Several images need a rearranged copy; it comes second, shaped as its origin, filled when `fill`.
        """
        part = groups_first(data[block.first : block.last, :, block.top : block.bottom], self._spec.groups)
        shape = self._sizes.result_shape(block)
        if block.images == 1 or not self._sizes.staged:
            return part.reshape(shape), None
        staged = room.staged[: prod(shape)].reshape(part.shape)
        if fill:
            np.copyto(staged, part)
        return staged.reshape(shape), staged

    # The operations -----------------------------------------------------------------------------

    def _fprop_block(self, block: Block, x: Array, filters: Array, y: Array, room: _Room) -> None:
        columns = self._columns(block, x, room)
        result, staged = self._products(block, y, room, fill=False)
        np.matmul(filters, columns, out=result)
        if staged is not None:
            np.copyto(groups_first(y[block.first : block.last], self._spec.groups), staged)

    def _dgrad_block(self, block: Block, dy: Array, filters: Array, dx: Array, room: _Room) -> None:
        spec = self._spec
        gradient, _ = self._products(block, dy, room, fill=True)
        matrix, columns = self._shaped(block, room)
        np.matmul(filters.transpose(0, 2, 1), gradient, out=matrix)
        image = groups_first(dx[block.first : block.last], spec.groups)
        if block.top == 0:
            image[...] = 0
        limits = [(block.top, block.bottom), *((0, size) for size in spec.output_spatial[1:])]
        axes = zip(spec.in_spatial, spec.kernel, spec.padding, spec.stride, spec.dilation, limits, strict=True)
        windows = [list(tap_windows(size, k, p[0], s, d, *limit)) for size, k, p, s, d, limit in axes]
        for combination in product(*windows):
            taps, pixels, places = zip(*combination, strict=True)
            if self._turned:
                taps = tuple(k - 1 - t for k, t in zip(spec.kernel, taps, strict=True))
            target = last_axes(image, *pixels)
            target += last_axes(columns, *taps, slice(None), *places)

    def _wgrad(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        spec, last = self._spec, self._sizes.last
        shape = (spec.groups, spec.out_channels // spec.groups, _depth(spec))
        total = workspace.take(shape, dw.dtype) if last else dw.reshape(shape)
        term = workspace.take(shape, dw.dtype)
        room = _Room(self._sizes, workspace, x.dtype)
        for number, block in enumerate(self._blocks):
            columns = self._columns(block, x, room)
            gradient, _ = self._products(block, dy, room, fill=True)
            np.matmul(gradient, columns.transpose(0, 2, 1), out=term if number else total)
            if number:
                total += term
        if last:
            plain = split_channels(taps_in_order(dw, spec), 0, spec.groups)
            rows = total.reshape(*shape[:2], *spec.kernel, -1)
            np.copyto(plain, np.moveaxis(rows, -1, 2))
