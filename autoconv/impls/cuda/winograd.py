"""Winograd minimal filtering on a GPU: own kernels for the transforms, one batched strict product by cuBLAS between.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4, in the three-step form.
Wins:   strict float32 and float64 of 3x3 and 5x5 filters, stride 1, from some 64 channels on: where no matrix unit
        helps, four times fewer multiplications do.
Loses:  few channels, whose transforms move more memory than the product saves; wherever TF32 is admitted.
Error:  float32, 64 channels of normal noise, of the largest result: F(2,3) 3e-7, F(4,3) 8e-7, F(6,3) 8e-6, F(2,5) 1e-6.
        Tiles mix their pixels: a NaN or an infinity reaches its tile's other results.

Tiles are taken in chunks; a chunk of 32 MiB stays in the L2 cache of a large GPU between the three steps, one of 512
MiB makes the longest products. Which is better is for a race to say. The float32 product is strict whatever CUPY_TF32
says, and because CuPy refuses cuBLAS while a stream is captured, so does this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, prod

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._tiles import aligned
from autoconv.impls._winograd import matrices
from autoconv.impls.cuda import _roofline
from autoconv.impls.cuda._cublas import matmul
from autoconv.impls.cuda._kernels import KernelImplementation, Module, Source
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Winograd"]

TILES = {3: (4, 6, 2), 5: (2,)}  # results per axis by taps: sets of more than eight points lose four digits
CHUNKS_MIB = (32, 512)
THREADS = 128
WARP = 32
SECTOR = 8  # tiles: rows of float32 tiles then begin on a boundary of 32 bytes, the least that memory moves
PRODUCT_EFFICIENCY = 0.6  # part of the float32 peak that cuBLAS reaches on some dozens of middling matrices


class Winograd(KernelImplementation):
    """Every operation for 3x3 and 5x5 filters, stride 1, dilation 1; configs: `m`, the tile, and `mib`, a chunk."""

    name = "cuda.winograd"
    ranks = frozenset({2})
    tags = frozenset({"winograd"})
    strict_nan = False
    capturable = False
    specimens = (
        "fprop n8c64 56x56 k64 3x3 p1 corr nchw f32",
        "fprop n2c3 17x18 k8 3x3 p1 corr nhwc f32",
        "dgrad n8c64 28x28 k64 3x3 p1 nhwc f32",
        "wgrad n8c64 14x14 k32 3x3 p1 nchw f32",
        "wgrad n2c24 7x7 k32 5x5 p2 nhwc f64",
        "fprop n1c16 31x30 k16 5x5 p2 nchw f64",
    )

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Square filters of 3 or 5 taps, no stride, no dilation."""
        taps = set(spec.kernel)
        yield taps in ({3}, {5}), f"needs 3x3 or 5x5 filters, got {spec.kernel}"
        yield set(spec.stride) == {1}, f"needs stride 1, got {spec.stride}"
        yield set(spec.dilation) == {1}, f"needs dilation 1, got {spec.dilation}"
        if config is not None:
            known = TILES[spec.kernel[0]]
            yield config.get("m") in known, f"knows m of {_join(known)}, got {config.get('m')!r}"
            yield config.get("mib") in CHUNKS_MIB, f"knows mib of {_join(CHUNKS_MIB)}, got {config.get('mib')!r}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles that are not wholly beyond the result, in chunks of each size that makes a difference."""
        found = []
        longest = max(_results(spec))
        for m in TILES[spec.kernel[0]]:
            if m > 2 and m >= longest + 2:
                continue
            chunks: set[int] = set()
            for mib in CHUNKS_MIB:
                chunk = _Sizes(spec, m, mib).chunk
                if chunk not in chunks:
                    found.append(Config(m=m, mib=mib))
                chunks.add(chunk)
        return tuple(found)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Transformed filters, and a chunk of tiles before and after the products."""
        sizes = _sizes(spec, config)
        return aligned(*(count * spec.itemsize for count in (sizes.filters, *sizes.chunk_elements)))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The products, and what the transforms move."""
        sizes = _sizes(spec, config)
        launches = ceil(sizes.tiles / sizes.chunk) * _roofline.LAUNCH_S
        channels = spec.in_channels + spec.out_channels
        transformed = sizes.points * sizes.tiles * channels * spec.itemsize
        arrays = (prod(spec.input_shape) + prod(spec.output_shape)) * spec.itemsize
        flops = 2 * sizes.points * sizes.tiles * spec.out_channels * (spec.in_channels // spec.groups)
        filters = 0 if spec.fixed else sizes.filters * spec.itemsize
        unit = "double" if spec.dtype == "f64" else ""
        products = _roofline.seconds(spec, device, flops, transformed + filters, unit, PRODUCT_EFFICIENCY)
        return products + _roofline.seconds(spec, device, 0, transformed + arrays + 2 * filters) + 2 * launches

    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """The one text, with the matrices as macros."""
        return [("winograd", _sizes(spec, config).constants)]

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Compile the transforms."""
        (kernels,) = self.modules(spec, context.device, config)
        return _WinogradRunner(_sizes(spec, config), kernels)


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _results(spec: ConvSpec) -> tuple[int, ...]:
    """Spatial size of what the tiles cut: the result, or the output gradient for wgrad."""
    return spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial


def _sizes(spec: ConvSpec, config: Config) -> _Sizes:
    return _Sizes(spec, int(config["m"]), int(config["mib"]))


class _Sizes:
    """How many tiles there are, how many make a chunk, and the numbers of winograd.cu by the names they have there."""

    def __init__(self, spec: ConvSpec, m: int, mib: int) -> None:
        self.spec, self.m, self.taps = spec, m, spec.kernel[0]
        self.side = m + self.taps - 1
        self.points = self.side**2
        backward = spec.op is Op.DGRAD
        self.into = spec.out_channels if backward else spec.in_channels
        self.outof = spec.in_channels if backward else spec.out_channels
        self.tiling = tuple(ceil(size / m) for size in _results(spec))
        self.tiles = max(1, spec.batch) * prod(self.tiling)
        per_tile = self.points * (self.into + self.outof) * spec.itemsize
        room = max(1, (mib << 20) // per_tile // SECTOR) * SECTOR
        count = ceil(self.tiles / min(room, self.tiles))
        self.chunk = min(ceil(self.tiles / count / SECTOR) * SECTOR, room)  # chunks of one size, none of a few tiles
        self.filters = self.points * prod(spec.filter_shape[:2])

    @property
    def chunk_elements(self) -> tuple[int, int]:
        """Elements of a chunk's transformed data, and of its products (or transformed gradient)."""
        return self.points * self.into * self.chunk, self.points * self.outof * self.chunk

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First tile and number of tiles of each chunk."""
        for first in range(0, self.tiles, self.chunk):
            yield first, min(self.chunk, self.tiles - first)

    def blocks(self, channels: int, count: int) -> int:
        """Blocks of threads for `count` tiles of so many channels."""
        if self.spec.layout == "nchw":
            return ceil(channels * count / THREADS)
        lanes = _lanes(channels)
        return ceil(channels / lanes) * ceil(count / (THREADS // lanes))

    @property
    def constants(self) -> dict[str, int | str]:
        """The macros."""
        spec, found = self.spec, matrices(self.m, self.taps)
        backward = spec.op is Op.DGRAD
        read = spec.output_spatial if backward else spec.in_spatial
        cut = _results(spec)
        shift, sign = (self.taps - 1, 1) if backward else (0, -1)
        starts = [sign * before - shift for before, _ in spec.padding]
        return {
            "ELEMENT": spec.dtype, "TILE": self.m, "TAPS": self.taps, "THREADS": THREADS,
            "DATA": _braces(found.data), "FILTER": _braces(found.filters), "INVERSE": _braces(found.inverse),
            "CHANNELS_LAST": int(spec.layout == "nhwc"),
            "IN_CHANNELS": self.into, "IN_H": read[0], "IN_W": read[1], "IN_LANES": _lanes(self.into),
            "OUT_CHANNELS": self.outof, "OUT_H": cut[0], "OUT_W": cut[1], "OUT_LANES": _lanes(self.outof),
            "START_H": starts[0], "START_W": starts[1], "TILES_H": self.tiling[0], "TILES_W": self.tiling[1],
            "TURN": int(spec.flip if spec.op is not Op.DGRAD else not spec.flip),
        }  # fmt: skip


def _lanes(channels: int) -> int:
    """Neighbouring threads that take neighbouring channels: a power of two up to a warp."""
    return min(WARP, 1 << (channels - 1).bit_length())


def _braces(matrix: Array) -> str:
    """A matrix as a C initialiser, every digit of it."""
    rows = ("{" + ",".join(repr(float(value)) for value in row) + "}" for row in matrix)
    return "{" + ",".join(rows) + "}"


class _WinogradRunner(Runner):
    def __init__(self, sizes: _Sizes, kernels: Module) -> None:
        self._sizes = sizes
        self._kernels = kernels

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        packed = workspace.take(self._sizes.filters, a.dtype)
        if self._sizes.spec.op is Op.WGRAD:
            self._wgrad(a, b, out, packed, workspace)
        else:
            self._pack(b, packed)
            self._run(a, packed, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        packed: Array = np.empty_like(filters, order="C", shape=self._sizes.filters)
        self._pack(filters, packed)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, packed, out, workspace)

        return bound

    def _pack(self, filters: Array, packed: Array) -> None:
        self._per_filter("filter_tiles", filters, packed)

    def _per_filter(self, kernel: str, source: Array, target: Array) -> None:
        count = prod(self._sizes.spec.filter_shape[:2])
        self._kernels.launch(kernel, (ceil(count / THREADS),), (THREADS,), (source, target, np.int64(count)))

    def _per_tile(self, kernel: str, channels: int, source: Array, target: Array, first: int, count: int) -> None:
        sizes = self._sizes
        arguments = (source, target, np.int64(first), np.int32(count), np.int32(sizes.chunk))
        self._kernels.launch(kernel, (sizes.blocks(channels, count),), (THREADS,), arguments)

    def _run(self, data: Array, packed: Array, out: Array, workspace: Workspace) -> None:
        sizes = self._sizes
        filters = self._filters(packed)
        if sizes.spec.op is Op.DGRAD:
            filters = filters.swapaxes(-1, -2)
        tiles, products = self._room(data, workspace)
        for first, count in sizes.chunks():
            self._per_tile("data_tiles", sizes.into, data, tiles, first, count)
            left, right = self._stack(tiles, sizes.into, count), self._stack(products, sizes.outof, count)
            matmul(filters, left, right)
            self._per_tile("result_tiles", sizes.outof, products, out, first, count)

    def _wgrad(self, x: Array, dy: Array, dw: Array, summed: Array, workspace: Workspace) -> None:
        sizes = self._sizes
        tiles, gradients = self._room(x, workspace)
        total = self._filters(summed)
        for first, count in sizes.chunks():
            self._per_tile("data_tiles", sizes.into, x, tiles, first, count)
            self._per_tile("gradient_tiles", sizes.outof, dy, gradients, first, count)
            left, right = self._stack(gradients, sizes.outof, count), self._stack(tiles, sizes.into, count)
            matmul(left, right.swapaxes(-1, -2), total, accumulate=first > 0)
        self._per_filter("filter_results", summed, dw)

    def _room(self, like: Array, workspace: Workspace) -> list[Array]:
        return [workspace.take(count, like.dtype) for count in self._sizes.chunk_elements]

    def _filters(self, packed: Array) -> Array:
        """(points, groups, result channels per group, data channels per group) of the forward problem."""
        spec = self._sizes.spec
        kernels, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        return packed.reshape(self._sizes.points, spec.groups, kernels, channels)

    def _stack(self, tiles: Array, channels: int, count: int) -> Array:
        """A chunk's transformed numbers as (points, groups, channels per group, tiles), as they lie."""
        points, groups, chunk = self._sizes.points, self._sizes.spec.groups, self._sizes.chunk
        if self._sizes.spec.layout == "nchw":
            return tiles.reshape(points, groups, channels // groups, chunk)[..., :count]
        return tiles.reshape(points, chunk, groups, channels // groups)[:, :count].transpose(0, 2, 3, 1)
