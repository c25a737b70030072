"""Winograd minimal filtering, F(m x m, 3 x 3) and F(m x m, 5 x 5), by batched matrix products.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, sections 4 and 6.
Wins:   3x3, stride 1, channels above about 32, when no C compiler is at hand.
Loses:  few channels, tiny images: the transforms outweigh the products they save.
Error:  grows with m, see `_winograd`; tiles mix their pixels, so a NaN or an infinity reaches neighbours in
        its tile and `strict_nan` is False.

Tiles of the image are transformed, multiplied with the transformed filters over the channels, one product
per point, and transformed back. dgrad is the same on dy with the filters turned round and their channels
swapped. wgrad is the transpose of the same scheme: tiles of x and of dy are transformed, multiplied over
images and tiles, and the sum is transformed back once. It works along one, two and three axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

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
    last_axes,
    reversed_taps,
)
from autoconv.impls._winograd import Matrices, apply, largest, matrices
from autoconv.impls.cpu._blas import BlasImplementation, gemm_s, guarded
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

TILES = (4, 2, 6)
BLOCK_BYTES = 4 << 20  # tiles in the transformed domain that are worked on at a time
GATHER_S = {"nchw": 1.3e-9, "nhwc": 0.5e-9}  # per element brought into or out of the order of tiles
BLOCK_S = 70e-6  # views and calls of one block
PLACE_S = 1.5e-6  # one of the places within a tile, written back for all tiles at once


class Winograd(BlasImplementation):
    """Every operation for filters of 3 or 5 taps along every axis, stride 1, dilation 1; config `m` is the tile."""

    name = "numpy.winograd"
    tags = frozenset({"winograd"})
    strict_nan = False

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """3 or 5 taps, no stride, no dilation."""
        one = (1,) * spec.rank
        taps = set(spec.kernel)
        yield taps in ({3}, {5}), f"needs 3 or 5 taps along every axis, got {spec.kernel}"
        yield spec.stride == one, f"needs stride 1, got {spec.stride}"
        yield spec.dilation == one, f"needs dilation 1, got {spec.dilation}"
        if config is not None:
            m = config.get("m", TILES[0])
            yield m in TILES, f"knows m of {', '.join(map(str, sorted(TILES)))}, got {m!r}"
            # ten points along three axes: float32 errs by 1e-3 of the largest result
            steep = spec.rank == 3 and taps == {5} and m == 6
            yield not steep, "needs m of 2 or 4 for 5 taps along three axes, got 6: it loses four digits"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Every m that is not wholly beyond the result."""
        longest = max(_results(spec))
        steep = spec.rank == 3 and spec.kernel[0] == 5
        return tuple(Config(m=m) for m in TILES if m == 2 or (m < longest + 2 and not (steep and m == 6)))

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Transformed filters, and one block of tiles before, between and after the transforms."""
        return aligned(*(count * spec.itemsize for count in _Sizes(spec, _m(config)).pieces().values()))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Bringing tiles into order, three kinds of transforms, and the products."""
        sizes = _Sizes(spec, _m(config))
        groups, n, m, rank, r = spec.groups, sizes.n, sizes.m, spec.rank, spec.kernel[0]
        tiles = max(1, spec.batch) * prod(sizes.tiles)
        into, outof = sizes.into, sizes.outof
        count = -(-tiles // sizes.block_tiles)
        points, each = sizes.points, tiles // count or 1
        edges = (outof // groups, into // groups, each)
        if spec.op is Op.WGRAD:
            edges = (outof // groups, each, into // groups)
        products = gemm_s(*edges, count * points * groups, spec, device)
        transforms = rank * gemm_s(n, n, points // n * tiles * into, 1, spec, device)
        transforms += rank * gemm_s(m, n, points // n * tiles * outof, 1, spec, device)
        if not spec.fixed:
            transforms += rank * gemm_s(n, r, points // n * outof * into // groups, 1, spec, device)
        moved = tiles * (into * points + outof * prod((m,) * rank)) * GATHER_S[spec.layout]
        return products + transforms + moved + count * (BLOCK_S + prod((m,) * rank) * PLACE_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the matrices."""
        return guarded(_WinogradRunner(spec, _m(config)), context.device)


def _m(config: Config) -> int:
    return int(config.get("m", TILES[0]))


def _results(spec: ConvSpec) -> tuple[int, ...]:
    """Spatial size of what the tiles cut: the result, or the output gradient for wgrad."""
    return spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial


@dataclass(frozen=True, slots=True)
class _Side:
    """Tiles of one array: `points` per axis, read from `starts` on."""

    points: int
    starts: tuple[int, ...]
    name: str


class _Sizes:
    """How many tiles there are, how many make a block, and the scratch for one."""

    def __init__(self, spec: ConvSpec, m: int) -> None:
        self.spec, self.m, self.r = spec, m, spec.kernel[0]
        self.n = m + self.r - 1
        self.tiles = tuple(-(-size // m) for size in _results(spec))
        self.into = spec.out_channels if spec.op is Op.DGRAD else spec.in_channels
        self.outof = spec.in_channels if spec.op is Op.DGRAD else spec.out_channels
        self.filters = prod(spec.filter_shape[:2])
        self.points = prod((self.n,) * spec.rank)
        per_row = 2 * self.points * (self.into + self.outof) * prod(self.tiles[1:])
        # filters are read once per block: blocks no smaller than they are
        room = max(BLOCK_BYTES // spec.itemsize, self.points * self.filters) // per_row
        self.rows = max(1, min(self.tiles[0], room))
        self.images = max(1, min(spec.batch, room // self.tiles[0]))

    @property
    def block_tiles(self) -> int:
        """Tiles of the largest block."""
        return self.images * self.rows * prod(self.tiles[1:])

    def window(self, block: Block, points: int) -> tuple[int, ...]:
        """Size of the part of an array that a block's tiles read."""
        counts = (block.rows, *self.tiles[1:])
        return tuple((count - 1) * self.m + points for count in counts)

    def pieces(self) -> dict[str, int]:
        """Elements of each piece of scratch."""
        spec, tiles, rank = self.spec, self.block_tiles, self.spec.rank
        whole = Block(0, self.images, 0, self.rows)
        wgrad = spec.op is Op.WGRAD
        padded = self.into * prod(self.window(whole, self.n))
        if wgrad:
            padded = max(padded, self.outof * prod(self.window(whole, self.m)))
        filter_values = largest(self.n, self.r, rank) * self.filters
        return {
            "filters": filter_values,
            "filters_too": filter_values,
            "packed": 0 if wgrad else self.points * self.filters,
            "padded": self.images * padded,
            "data": self.points * self.into * tiles,
            "data_too": self.points * self.into * tiles,
            "result": self.points * self.outof * tiles,
            "result_too": self.points * self.outof * tiles,
        }


class _WinogradRunner(Runner):
    def __init__(self, spec: ConvSpec, m: int) -> None:
        self._spec = spec
        self._sizes = sizes = _Sizes(spec, m)
        self._matrices: Matrices = matrices(m, sizes.r, spec.np_dtype.name)
        self._blocks = list(blocks(spec.batch, sizes.tiles[0], sizes.images, sizes.rows))
        shift = sizes.r - 1 if spec.op is Op.DGRAD else 0
        sign = 1 if spec.op is Op.DGRAD else -1
        self._data = _Side(sizes.n, tuple(sign * pads[0] - shift for pads in spec.padding), "data")
        self._gradient = _Side(m, (0,) * spec.rank, "result")

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        room = self._room(workspace)
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, room)
        else:
            self._run(a, self._pack(b, room["packed"], room), out, room)

    def bind(self, filters: Array) -> BoundRunner:
        sizes = self._sizes
        packed = np.empty(sizes.points * sizes.filters, filters.dtype)
        names = ("filters", "filters_too")
        room = {name: np.empty(sizes.pieces()[name], filters.dtype) for name in names}
        matrix = self._pack(filters, packed, room)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, matrix, out, self._room(workspace, without=(*names, "packed")))

        return bound

    def _room(self, workspace: Workspace, without: Sequence[str] = ()) -> dict[str, Array]:
        dtype = self._spec.np_dtype
        return {name: workspace.take(n, dtype) for name, n in self._sizes.pieces().items() if name not in without}

    def _pack(self, filters: Array, packed: Array, room: dict[str, Array]) -> Array:
        """Transformed filters (points, groups, result channels per group, data channels per group)."""
        spec, sizes, rank = self._spec, self._sizes, self._spec.rank
        turned = reversed_taps(filters, rank) if spec.flip == (spec.op is Op.FPROP) else filters
        first = room["filters"]
        taps = first[: filters.size].reshape(*spec.kernel, *filters.shape[:2])
        np.copyto(taps, turned.transpose(*range(2, 2 + rank), 0, 1))
        done, _ = apply(self._matrices.filters, rank, first, room["filters_too"], sizes.filters)
        np.copyto(packed, done[: packed.size])
        kernels, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        matrix = packed.reshape(sizes.points, spec.groups, kernels, channels)
        return matrix.swapaxes(2, 3) if spec.op is Op.DGRAD else matrix

    # Tiles --------------------------------------------------------------------------------------

    def _gather(self, array: Array, block: Block, side: _Side, room: dict[str, Array]) -> None:
        """Bring a block's tiles into order: (points..., channels, tiles), or channels last as in the layout."""
        sizes, layout = self._sizes, self._spec.layout
        channels = array.shape[1]
        shape = (block.images, channels, *sizes.window(block, side.points))
        padded = as_layout(room["padded"][: prod(shape)], shape, layout)
        starts = (side.starts[0] + block.top * sizes.m, *side.starts[1:])
        copy_window(array[block.first : block.last], padded, starts)
        images, step, *pixels = padded.strides
        tile_counts = (block.rows, *sizes.tiles[1:])
        tile_steps = tuple(pixel * sizes.m for pixel in pixels)
        rank = self._spec.rank
        counts: tuple[int, ...] = (channels, block.images, *tile_counts)
        strides: tuple[int, ...] = (step, images, *tile_steps)
        if layout == "nhwc":
            counts, strides = (*counts[1:], channels), (*strides[1:], step)
        wanted = (*(side.points,) * rank, *counts)
        windows = np.lib.stride_tricks.as_strided(padded, wanted, (*pixels, *strides), writeable=False)
        np.copyto(room[side.name][: prod(wanted)].reshape(wanted), windows)

    def _forward(self, array: Array, block: Block, side: _Side, matrix: Array, room: dict[str, Array]) -> Array:
        """Transformed tiles of a block as (points, groups, channels per group, tiles)."""
        self._gather(array, block, side, room)
        channels, tiles = array.shape[1], self._count(block)
        done, _ = apply(matrix, self._spec.rank, room[side.name], room[f"{side.name}_too"], channels * tiles)
        return self._matrix(done, channels, tiles)

    def _count(self, block: Block) -> int:
        return block.images * block.rows * prod(self._sizes.tiles[1:])

    def _matrix(self, flat: Array, channels: int, tiles: int) -> Array:
        """Scratch in the order of points as (points, groups, channels per group, tiles), whatever the layout."""
        points, groups = self._sizes.points, self._spec.groups
        flat = flat[: points * channels * tiles]
        if self._spec.layout == "nchw":
            return flat.reshape(points, groups, channels // groups, tiles)
        return flat.reshape(points, tiles, groups, channels // groups).transpose(0, 2, 3, 1)

    # The operations -----------------------------------------------------------------------------

    def _run(self, data: Array, filters: Array, out: Array, room: dict[str, Array]) -> None:
        for block in self._blocks:
            tiles = self._count(block)
            transformed = self._forward(data, block, self._data, self._matrices.data, room)
            np.matmul(filters, transformed, out=self._matrix(room["result"], out.shape[1], tiles))
            done, _ = apply(
                self._matrices.inverse, self._spec.rank, room["result"], room["result_too"], out.shape[1] * tiles
            )
            self._scatter(done, block, out)

    def _scatter(self, flat: Array, block: Block, out: Array) -> None:
        """Write a block's tiles of m results per axis where they belong; those beyond the edge fall away."""
        sizes, rank, m = self._sizes, self._spec.rank, self._sizes.m
        counts = (block.rows, *sizes.tiles[1:])
        channels = out.shape[1]
        if self._spec.layout == "nchw":
            shape = (*(m,) * rank, channels, block.images, *counts)
            order = (1, 0, *range(2, 2 + rank))
        else:
            shape = (*(m,) * rank, block.images, *counts, channels)
            order = (0, 1 + rank, *range(1, 1 + rank))
        tiles = flat[: prod(shape)].reshape(shape)
        target = out[block.first : block.last, :, block.top * m : block.bottom * m]
        for place in np.ndindex(*(m,) * rank):
            part = last_axes(target, *(slice(at, None, m) for at in place))
            source: Array = tiles[place]
            part[...] = last_axes(source.transpose(order), *map(slice, part.shape[2:]))

    def _wgrad(self, x: Array, dy: Array, dw: Array, room: dict[str, Array]) -> None:
        spec, sizes, rank = self._spec, self._sizes, self._spec.rank
        shape = (sizes.points, spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups)
        total, term = (room[name][: prod(shape)].reshape(shape) for name in ("filters", "filters_too"))
        for number, block in enumerate(self._blocks):
            image = self._forward(x, block, self._data, self._matrices.data, room)
            gradient = self._forward(dy, block, self._gradient, self._matrices.inverse.T, room)
            np.matmul(gradient, image.swapaxes(2, 3), out=term if number else total)
            if number:
                total += term
        done, _ = apply(self._matrices.filters.T, rank, room["filters"], room["filters_too"], sizes.filters)
        taps = done[: dw.size].reshape(*spec.kernel, *dw.shape[:2]).transpose(rank, rank + 1, *range(rank))
        np.copyto(reversed_taps(dw, rank) if spec.flip else dw, taps)
