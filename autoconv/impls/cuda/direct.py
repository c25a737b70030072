"""Direct convolution on a GPU: own kernels that need no memory beyond operands and result.

Source: the definition; register tiles over points and channels, filters through shared memory (direct.cu), and a fixed
        order of summing for the gradient of the filters (direct_wgrad.cu). Heir of Theano's legacy GPU convolution.
Wins:   where nothing else does the problem or memory is short; few channels, strange strides and dilations.
Loses:  many channels, to whatever uses the matrix units; wgrad of few channels, which leaves multiprocessors idle.
Error:  that of summing C*R*S products in float32 (float64 for float64), in a fixed order.

It refuses nothing that `numpy.direct` does: the end of every fallback on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, prod

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Runner
from autoconv.impls.cuda import _roofline
from autoconv.impls.cuda._constants import distances, index_type, listed, number, pack, wants
from autoconv.impls.cuda._kernels import Constants, KernelImplementation, LaunchRunner, Source
from autoconv.spec import DTYPES, LAYOUTS, ConvSpec, Op

__all__ = ["Direct"]

THREADS = 128  # a block of `convolve`: with 100 registers each, five of them fill a multiprocessor's
WARP = 32
DEPTH = 8  # channels staged at once: a pack of every format divides it
STAGED_BYTES = 20 << 10  # of filters: leaves most of a multiprocessor's memory to L1, and holds 3x3 taps of a block
FILLED = 512  # threads per multiprocessor from which on its arithmetic hardly waits


class Direct(KernelImplementation):
    """Every operation, rank, option and dtype, without scratch.

    Configs of fprop and dgrad: a thread sums `points` results of each of `channels` channels, `rows` rows of threads
    share their points. Of wgrad: a block sums `k` x `c` channels x `taps` gradients with `threads` threads.
    """

    name = "cuda.direct"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset(DTYPES)
    layouts = frozenset(LAYOUTS)
    tags = frozenset({"legacy", "direct"})
    specimens = (
        "fprop n8c64 56x56 k64 3x3 p1 f32",
        "fprop n8c64 56x56 k64 3x3 p1 corr nhwc f16",
        "fprop n4c3 224x224 k64 7x7 p3 s2 f64",
        "fprop n1c8 16x16x16 k16 3x3x3 p1 nhwc bf16",
        "fprop n32c16 28x28 k32 5x5 p2 g2 chwn f32",
        "dgrad n8c64 56x56 k128 3x3 p1 s2 f32",
        "dgrad n2c12 15x17 k6 3x4 p1:2,0 s2,3 d1,2 g3 corr nhwc f64",
        "wgrad n8c64 28x28 k64 3x3 p1 corr nhwc f16",
        "wgrad n4c3 64x64 k16 5x5 s2 f64",
        "wgrad n32c16 14x14 k16 3x3 chwn f32",
        "fprop n3c700 30000x1100 k2 1x1 s300,500 f32",  # more than 2^31 elements
        "wgrad n3c700 30000x1100 k2 1x1 s300,500 nhwc f16",
    )

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Nothing but that a config be one of those listed."""
        if config is not None:
            yield wants(
                config, {"k", "c", "taps", "threads"} if spec.op is Op.WGRAD else {"points", "channels", "rows"}
            )

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles of several shapes, by estimate: large ones re-use more, small ones fill the device."""
        found = _gradient_configs(spec) if spec.op is Op.WGRAD else _convolve_configs(spec)
        return sorted(found, key=lambda config: self.estimate_s(spec, device, config))[:5]

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Arithmetic, slowed by loads, by what of a tile is unused, and by multiprocessors left idle."""
        blocks, threads, reuse = _work(spec, config)
        busy = min(1.0, blocks * threads / (device.cores * FILLED))
        moved = sum(map(prod, (*spec.operand_shapes, spec.result_shape))) * spec.itemsize
        return _roofline.seconds(spec, device, 2 * spec.macs, moved, efficiency=0.6 * busy * reuse)

    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """One kernel: fprop and dgrad differ in constants."""
        if spec.op is Op.WGRAD:
            return [("direct_wgrad", _gradient_constants(spec, config))]
        return [("direct", _convolve_constants(spec, config))]

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Compile for this spec and work out the grid."""
        (module,) = self.modules(spec, context.device, config)
        blocks, threads, _ = _work(spec, config)
        if spec.op is Op.WGRAD:
            return LaunchRunner(module, "gradient", blocks, (threads,))
        lanes = threads // number(config, "rows")
        staged = _staged_taps(spec, config) * _slice_bytes(spec, config)
        return LaunchRunner(module, "convolve", blocks, (lanes, number(config, "rows")), staged)


def _work(spec: ConvSpec, config: Config) -> tuple[int, int, float]:
    """Blocks, threads of each, and the part of the arithmetic that loads and unused tiles leave."""
    if spec.op is Op.WGRAD:
        tiles = number(config, "k"), number(config, "c"), number(config, "taps")
        sizes = _per_group(spec.out_channels, spec), _per_group(spec.in_channels, spec), prod(spec.kernel)
        products, loads = prod(tiles), tiles[0] + tiles[1] * tiles[2]
        counts = [ceil(size / tile) for size, tile in zip(sizes, tiles, strict=True)]
        used = prod(sizes) / prod(tile * count for tile, count in zip(tiles, counts, strict=True))
        return spec.groups * prod(counts), number(config, "threads"), used * products / (products + 4 * loads)
    points, channels, rows = (number(config, key) for key in ("points", "channels", "rows"))
    per_group = _per_group(spec.result_shape[1], spec)
    channel_blocks = ceil(per_group / (channels * rows))
    used = per_group / (channel_blocks * channels * rows)
    places = max(spec.batch, 1) * prod(_lattice(spec))
    phases = prod(spec.stride) if spec.op is Op.DGRAD else 1
    blocks = phases * ceil(places / (points * THREADS // rows)) * spec.groups * channel_blocks
    products = points * channels
    return blocks, THREADS, used * products / (products + 2 * (points + channels / 4))


def _per_group(channels: int, spec: ConvSpec) -> int:
    return channels // spec.groups


def _lattice(spec: ConvSpec) -> tuple[int, ...]:
    """Points along each axis: of the result, or of one phase of dgrad's."""
    if spec.op is Op.DGRAD:
        return tuple(ceil(size / step) for size, step in zip(spec.in_spatial, spec.stride, strict=True))
    return spec.output_spatial


def _convolve_configs(spec: ConvSpec) -> list[Config]:
    """Sums per thread (points x channels) of 32 and less, channels no more than there are."""
    per_group = _per_group(spec.result_shape[1], spec)
    found = []
    for points, channels in ((4, 8), (2, 16), (2, 8), (1, 8), (8, 4), (4, 4), (1, 4), (8, 2), (1, 2), (8, 1), (2, 1)):
        if channels > 1 and channels >= 2 * per_group:
            continue
        rows = min(4, 1 << (ceil(per_group / channels) - 1).bit_length())
        found.append(Config(points=points, channels=channels, rows=rows))
    return found


def _gradient_configs(spec: ConvSpec) -> list[Config]:
    """Tiles of up to 64 sums, and smaller ones with more threads for problems of few tiles."""
    filters, channels = _per_group(spec.out_channels, spec), _per_group(spec.in_channels, spec)
    points = max(spec.batch, 1) * prod(spec.output_spatial)
    found: dict[Config, None] = {}
    for edge, threads in ((8, 256), (4, 256), (4, 1024), (2, 1024)):
        c = min(edge, channels)
        taps = min(edge // c, prod(spec.kernel))
        most = 1024 if spec.itemsize < 8 else 512  # float64 sums take two registers each
        shared = min(threads, most, max(WARP, 1 << (points // 4).bit_length()))  # four points a thread, or a warp
        found[Config(k=min(edge, filters), c=c, taps=taps, threads=shared)] = None
    return list(found)


def _slice_bytes(spec: ConvSpec, config: Config) -> int:
    """Shared memory that one tap's filters take; see `slice` in direct.cu."""
    return _depth(spec) * number(config, "channels") * number(config, "rows") * max(4, spec.itemsize) + 16


def _staged_taps(spec: ConvSpec, config: Config) -> int:
    return max(1, min(prod(spec.kernel), STAGED_BYTES // _slice_bytes(spec, config)))


def _depth(spec: ConvSpec) -> int:
    return min(DEPTH, _per_group(spec.operand_shapes[0][1], spec))


def _convolve_constants(spec: ConvSpec, config: Config) -> Constants:
    dgrad = spec.op is Op.DGRAD
    data_shape, result_shape = spec.operand_shapes[0], spec.result_shape
    data, result = distances(data_shape, spec.layout), distances(result_shape, spec.layout)
    summed, made, taps = _per_group(data_shape[1], spec), _per_group(result_shape[1], spec), prod(spec.kernel)
    across, along = taps, taps * spec.in_channels // spec.groups  # to the next input channel, the next filter
    channels, rows = number(config, "channels"), number(config, "rows")
    return {
        "ELEMENT": spec.dtype, "INDEX": index_type(spec), "RANK": spec.rank, "DGRAD": int(dgrad),
        "FLIP": int(spec.flip), "DATA_SIZES": listed(data_shape[2:]), "RESULT_SIZES": listed(result_shape[2:]),
        "TAPS": listed(spec.kernel), "STRIDES": listed(spec.stride), "DILATIONS": listed(spec.dilation),
        "PADS": listed(before for before, _ in spec.padding), "BATCH": max(spec.batch, 1), "GROUPS": spec.groups,
        "C": summed, "K": made, "DATA_N": data[0], "DATA_C": data[1], "DATA_AXES": listed(data[2:]),
        "RESULT_N": result[0], "RESULT_C": result[1], "RESULT_AXES": listed(result[2:]),
        "FILTER_GROUP": along * spec.out_channels // spec.groups, "FILTER_K": across if dgrad else along,
        "FILTER_C": along if dgrad else across, "BATCH_INNERMOST": int(spec.layout == "chwn"),
        "POINT_THREADS": THREADS // rows, "CHANNEL_THREADS": rows, "POINTS": number(config, "points"),
        "CHANNELS": channels, "DEPTH": _depth(spec), "TAPS_AT_ONCE": _staged_taps(spec, config),
        "DATA_PACK": pack(spec, data[1], summed, _depth(spec)), "RESULT_PACK": pack(spec, result[1], made, channels),
    }  # fmt: skip


def _gradient_constants(spec: ConvSpec, config: Config) -> Constants:
    x, y = distances(spec.input_shape, spec.layout), distances(spec.output_shape, spec.layout)
    channels, filters = _per_group(spec.in_channels, spec), _per_group(spec.out_channels, spec)
    k, c = number(config, "k"), number(config, "c")
    return {
        "ELEMENT": spec.dtype, "INDEX": index_type(spec), "RANK": spec.rank, "FLIP": int(spec.flip),
        "X_SIZES": listed(spec.in_spatial), "Y_SIZES": listed(spec.output_spatial), "TAPS": listed(spec.kernel),
        "STRIDES": listed(spec.stride), "DILATIONS": listed(spec.dilation),
        "PADS": listed(before for before, _ in spec.padding), "BATCH": max(spec.batch, 1), "GROUPS": spec.groups,
        "C": channels, "K": filters, "X_N": x[0], "X_C": x[1], "X_AXES": listed(x[2:]),
        "Y_N": y[0], "Y_C": y[1], "Y_AXES": listed(y[2:]), "BATCH_INNERMOST": int(spec.layout == "chwn"),
        "THREADS": number(config, "threads"), "TILE_K": k, "TILE_C": c, "TILE_TAPS": number(config, "taps"),
        "X_PACK": pack(spec, x[1], channels, c), "Y_PACK": pack(spec, y[1], filters, k),
    }  # fmt: skip
