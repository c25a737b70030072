"""Depthwise convolution on a GPU: own kernels for one filter, or a few, per channel.

Source: a sliding window in registers over a tile in shared memory (depthwise.cu, channels first) or over columns of
        neighbouring channels (depthwise_last.cu); gradients of filters in two stages (depthwise_wgrad.cu).
Wins:   groups == channels, from 3x3 to 31x31, and images of one channel: libraries leave these to slow kernels, because
        no matrix unit helps.
Loses:  31x31 and more where a Fourier transform pays; strides above 2 leave part of what is read unused.
Error:  that of summing R*S products in float32 (float64 for float64), in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, prod

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Runner
from autoconv.impls.cuda import _roofline
from autoconv.impls.cuda._constants import distances, index_type, listed, number, pack, wants
from autoconv.impls.cuda._kernels import (
    PLAIN_SHARED_BYTES,
    Constants,
    KernelImplementation,
    LaunchRunner,
    Module,
    Source,
)
from autoconv.planning import Workspace
from autoconv.spec import DTYPES, ConvSpec, Op

__all__ = ["Depthwise"]

THREADS = 128  # of a block, about
WARP = 32
WIDEST_ROW = 64  # pixels under a row of taps: they sit in a thread's registers
MOST_PHASES = 4  # dgrad is unrolled once for each phase of the last axis
STAGED_BYTES = 16 << 10  # of filters, channels last
TOTAL_THREADS = 128
MOST_BLOCKS = 24  # on one multiprocessor: 16 to 32, by compute capability
HIDING = 1024  # threads on a multiprocessor that hide the time memory takes to answer
TAPS_AT_ONCE = 9  # gradients that a thread sums: a 3x3 filter's, a row of larger ones
POINTS_PER_THREAD = 8  # fewer are not worth a chunk
BLOCKS_PER_MULTIPROCESSOR = 8

Triple = tuple[int, int, int]


class Depthwise(KernelImplementation):
    """Every operation where each input channel is a group of its own, both memory formats.

    Configs of fprop and dgrad, channels first: tiles of `h` x `w` places of `planes` channels, `strip` results a
    thread; channels last: `strip` results and `pack` channels a thread. Of wgrad: points are cut into `chunks`.
    """

    name = "cuda.depthwise"
    dtypes = frozenset(DTYPES)
    tags = frozenset({"direct"})
    specimens = (
        "fprop n8c32 112x112 k32 3x3 p1 g32 f32",
        "fprop n2c16 56x56 k16 31x31 p15 g16 f32",
        "fprop n4c6 2000 k12 9 d2 s2 g6 corr bf16",
        "fprop n1c4 8x14x14 k4 3x3x3 p1 g4 f32",
        "dgrad n8c32 56x56 k32 3x3 p1 s2 g32 f32",
        "dgrad n2c3 15x17 k6 3x4 p1:2,0 s2,3 d1,2 g3 corr f64",
        "fprop n8c32 112x112 k32 3x3 p1 g32 nhwc f32",
        "fprop n8c64 28x28 k64 7x7 p3 g64 nhwc f16",
        "dgrad n8c32 56x56 k32 5x5 p2 s2 g32 nhwc bf16",
        "wgrad n8c32 56x56 k32 3x3 p1 g32 f32",
        "wgrad n2c16 28x28 k32 31x31 p15 g16 corr nhwc f16",
        "wgrad n1c4 8x14x14 k4 3x3x3 p1 g4 f64",
    )

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A group per channel; rows of taps that fit into registers, tiles that fit into shared memory."""
        channels = spec.in_channels
        yield (
            spec.groups == channels,
            f"needs a group per input channel, got {spec.groups} groups of {channels} channels",
        )
        if spec.op is not Op.WGRAD:
            span = (spec.kernel[-1] - 1) * spec.dilation[-1] + 1
            yield span <= WIDEST_ROW, f"needs taps within {WIDEST_ROW} pixels of a row, got {span}"
            step = spec.stride[-1]
            yield step <= MOST_PHASES, f"needs a stride of at most {MOST_PHASES} along rows, got {step}"
            needed = min(_shared_bytes(spec, one) for one in _configs(spec))
            yield needed <= PLAIN_SHARED_BYTES, f"needs {needed} bytes of shared memory, more than {PLAIN_SHARED_BYTES}"
        if config is not None:
            yield wants(config, _keys(spec))
            room = 0 if spec.op is Op.WGRAD else _shared_bytes(spec, config)
            yield room <= PLAIN_SHARED_BYTES, f"needs {room} bytes of shared memory, more than {PLAIN_SHARED_BYTES}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles by estimate; for wgrad one chunk of points per block that the device runs at once, and fewer."""
        if spec.op is Op.WGRAD:
            return [Config(chunks=chunks) for chunks in _chunks(spec, device)]
        fitting = [config for config in _configs(spec) if _shared_bytes(spec, config) <= PLAIN_SHARED_BYTES]
        return sorted(fitting, key=lambda config: self.estimate_s(spec, device, config))[:5]

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Sums per chunk for wgrad; else none."""
        return number(config, "chunks") * prod(_parts_shape(spec)) * _sum_bytes(spec) if spec.op is Op.WGRAD else 0

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Memory for small filters, arithmetic for large ones, and what a tile leaves unused."""
        moved: float = sum(map(prod, (*spec.operand_shapes, spec.result_shape))) * spec.itemsize
        if spec.op is Op.WGRAD:
            passes = 0.2 / ceil(prod(spec.kernel) / TAPS_AT_ONCE)
            busy = min(1.0, number(config, "chunks") / max(_chunks(spec, device)))
            own = _roofline.seconds(spec, device, 2 * spec.macs, moved, efficiency=max(passes, 0.1) * busy)
            return own + _roofline.LAUNCH_S
        used, row, strip = _used(spec, config), spec.kernel[-1], number(config, "strip")
        reuse = strip * row / (strip * row + 4 * (strip - 1 + row) + row)
        if not _last(spec):
            moved *= _overlap(spec, config)
        resident = min(1.0, _tile_threads(spec, config) * MOST_BLOCKS / HIDING)  # too few to hide what memory takes
        return _roofline.seconds(spec, device, 2 * spec.macs, moved / resident, efficiency=used * reuse * resident)

    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """The file for the operation and the memory format."""
        if spec.op is Op.WGRAD:
            return [("depthwise_wgrad", _gradient_constants(spec, config))]
        return [("depthwise_last" if _last(spec) else "depthwise", _convolve_constants(spec, config))]

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Compile for this spec and work out the grid."""
        (module,) = self.modules(spec, context.device, config)
        if spec.op is Op.WGRAD:
            return _GradientRunner(module, spec, config)
        lanes = _lanes(spec, config) if _last(spec) else 0
        block = (lanes, THREADS // lanes) if lanes else (_tile_threads(spec, config),)
        return LaunchRunner(module, "convolve", _blocks(spec, config), block, _shared_bytes(spec, config))


class _GradientRunner(Runner):
    def __init__(self, module: Module, spec: ConvSpec, config: Config) -> None:
        self._module = module
        lanes, chunks = _gradient_lanes(spec), number(config, "chunks")
        tap_blocks = ceil(prod(spec.kernel) / _tile_taps(spec))
        self._grid = (chunks * ceil(spec.out_channels / lanes) * tap_blocks,)
        self._block = lanes, 256 // lanes
        self._sums = chunks * prod(_parts_shape(spec)) * _sum_bytes(spec)
        self._totals = (ceil(prod(_parts_shape(spec)) / TOTAL_THREADS),)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        parts = workspace.take_address(self._sums)
        self._module.launch("partial", self._grid, self._block, (a, b, parts))
        self._module.launch("total", self._totals, (TOTAL_THREADS,), (parts, out))


def _last(spec: ConvSpec) -> bool:
    return spec.layout == "nhwc"


def _sum_bytes(spec: ConvSpec) -> int:
    return max(4, spec.itemsize)


def _three(values: Sequence[int], missing: int) -> Triple:
    """Depth, height and width of what has as many spatial axes as the spec."""
    full = (*[missing] * (3 - len(values)), *values)
    return full[0], full[1], full[2]


def _places(spec: ConvSpec) -> Triple:
    """Points along each axis: of the result, or of one phase of dgrad's."""
    if spec.op is Op.DGRAD:
        return _three([ceil(size / step) for size, step in zip(spec.in_spatial, spec.stride, strict=True)], 1)
    return _three(spec.output_spatial, 1)


def _keys(spec: ConvSpec) -> set[str]:
    if spec.op is Op.WGRAD:
        return {"chunks"}
    return {"strip", "pack"} if _last(spec) else {"strip", "h", "w", "planes"}


def _configs(spec: ConvSpec) -> Iterator[Config]:
    _, height, width = _places(spec)
    if _last(spec):
        for strip in (4, 8, 2, 1):
            if strip < 2 * width:
                yield Config(strip=strip, pack=_pack(spec))
        return
    found: dict[Config, None] = {}
    for strip in (8, 4):
        for h, w in ((32, 32), (16, 32), (16, 64), (8, 32), (8, 16), (4, 8), (1, THREADS * strip)):
            if h == 1 and height > 1:
                continue
            rows, columns = min(h, _power(height)), min(w, ceil(width / strip) * strip)
            planes = max(1, min(THREADS // (rows * columns // strip), _power(max(spec.batch, 1) * spec.in_channels)))
            found[Config(strip=strip, h=rows, w=columns, planes=planes)] = None
    yield from found


def _power(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << (size - 1).bit_length()


def _window(spec: ConvSpec, axis: int, places: int) -> int:
    """Data that so many places along an axis look at; see `Reach` in depthwise.cu."""
    kernel, stride, dilation = (_three(v, 1)[axis] for v in (spec.kernel, spec.stride, spec.dilation))
    pad, far = _pads(spec)[axis], (kernel - 1) * dilation
    if spec.op is Op.DGRAD:
        return places + (stride - 1 + pad) // stride - (pad - far) // stride
    return (places - 1) * stride + far + 1


def _pads(spec: ConvSpec) -> Triple:
    return _three([before for before, _ in spec.padding], 0)


def _shared_bytes(spec: ConvSpec, config: Config) -> int:
    if _last(spec):
        row = _three(spec.kernel, 1)[2] * _lanes(spec, config) * number(config, "pack") * _sum_bytes(spec)
        return _rows(spec, config) * row
    planes, h, w = (number(config, key) for key in ("planes", "h", "w"))
    _, taps_h, taps_w = _three(spec.kernel, 1)
    aligned = 16 // _sum_bytes(spec)
    filters = taps_h * ceil(taps_w / aligned) * aligned
    return planes * (filters + _window(spec, 1, h) * (_window(spec, 2, w) | 1) + h * (w | 1)) * _sum_bytes(spec)


def _pack(spec: ConvSpec) -> int:
    """Neighbouring channels that a thread takes; one filter each."""
    return pack(spec, 1, spec.in_channels) if spec.in_channels == spec.out_channels else 1


def _lanes(spec: ConvSpec, config: Config) -> int:
    """Threads along channels, channels last."""
    return min(WARP, _power(ceil(spec.result_shape[1] / number(config, "pack"))))


def _rows(spec: ConvSpec, config: Config) -> int:
    """Rows of taps staged at a time, channels last."""
    _, taps_h, taps_w = _three(spec.kernel, 1)
    row = taps_w * _lanes(spec, config) * number(config, "pack") * _sum_bytes(spec)
    return max(1, min(taps_h, STAGED_BYTES // row))


def _blocks(spec: ConvSpec, config: Config) -> int:
    depth, height, width = _places(spec)
    phases = prod(spec.stride) if spec.op is Op.DGRAD else 1
    if _last(spec):
        strips = max(spec.batch, 1) * depth * height * ceil(width / number(config, "strip"))
        lanes = _lanes(spec, config)
        return phases * ceil(strips * lanes / THREADS) * ceil(spec.result_shape[1] / (lanes * number(config, "pack")))
    planes = ceil(max(spec.batch, 1) * spec.in_channels / number(config, "planes"))
    return phases * planes * depth * ceil(height / number(config, "h")) * ceil(width / number(config, "w"))


def _used(spec: ConvSpec, config: Config) -> float:
    """The part of the places of all blocks that are results."""
    depth, height, width = _places(spec)
    places = max(spec.batch, 1) * depth * height * width
    if _last(spec):
        return width / (ceil(width / number(config, "strip")) * number(config, "strip"))
    phases = prod(spec.stride) if spec.op is Op.DGRAD else 1
    tile = prod(number(config, key) for key in ("h", "w", "planes"))
    return places * spec.in_channels * phases / (_blocks(spec, config) * tile)


def _tile_threads(spec: ConvSpec, config: Config) -> int:
    """Threads of a block of fprop or dgrad."""
    if _last(spec):
        return THREADS
    return number(config, "h") * number(config, "planes") * number(config, "w") // number(config, "strip")


def _overlap(spec: ConvSpec, config: Config) -> float:
    """How much more is read than once, mostly from the L2 cache: windows of neighbouring tiles overlap."""
    window = tile = 1
    for axis, key in ((1, "h"), (2, "w")):
        places = number(config, key)
        window *= _window(spec, axis, places)
        tile *= places if spec.op is Op.DGRAD else places * _three(spec.stride, 1)[axis]
    return max(1.0, 0.5 + 0.25 * (1 + window / tile))


def _gradient_lanes(spec: ConvSpec) -> int:
    return WARP if _last(spec) else 1


def _tile_taps(spec: ConvSpec) -> int:
    return min(TAPS_AT_ONCE, prod(spec.kernel))


def _parts_shape(spec: ConvSpec) -> tuple[int, int]:
    return spec.out_channels, prod(spec.kernel)


def _chunks(spec: ConvSpec, device: Device) -> list[int]:
    """As many as fill the device, and a quarter of that, no shorter than worth it."""
    lanes = _gradient_lanes(spec)
    points = max(spec.batch, 1) * prod(spec.output_spatial)
    most = max(1, points // (256 // lanes * POINTS_PER_THREAD))
    each = ceil(spec.out_channels / lanes) * ceil(prod(spec.kernel) / _tile_taps(spec))
    wanted = max(1, device.cores * BLOCKS_PER_MULTIPROCESSOR // each)
    return list(dict.fromkeys((min(wanted, most), min(max(1, wanted // 4), most))))


def _convolve_constants(spec: ConvSpec, config: Config) -> Constants:
    own: dict[str, int | str]
    if _last(spec):
        lanes = _lanes(spec, config)
        own = {
            "PACK": number(config, "pack"), "ROWS": _rows(spec, config), "CHANNEL_THREADS": lanes,
            "PLACE_THREADS": THREADS // lanes,
        }  # fmt: skip
    else:
        own = {"TILE_H": number(config, "h"), "TILE_W": number(config, "w"), "PLANES": number(config, "planes")}
    return {
        **_axes(spec), **own, "STRIP": number(config, "strip"), "DGRAD": int(spec.op is Op.DGRAD),
        "CHANNELS": spec.in_channels, "DATA_SIZES": listed(_three(spec.operand_shapes[0][2:], 1)),
        "RESULT_SIZES": listed(_three(spec.result_shape[2:], 1)),
    }  # fmt: skip


def _gradient_constants(spec: ConvSpec, config: Config) -> Constants:
    x, y = distances(spec.input_shape, spec.layout), distances(spec.output_shape, spec.layout)
    lanes = _gradient_lanes(spec)
    return {
        **_axes(spec), "FILTERS": spec.out_channels, "X_SIZES": listed(_three(spec.in_spatial, 1)),
        "Y_SIZES": listed(_three(spec.output_spatial, 1)), "X_N": x[0], "X_C": x[1], "X_AXES": listed(_three(x[2:], 0)),
        "Y_N": y[0], "Y_C": y[1], "Y_AXES": listed(_three(y[2:], 0)), "CHUNKS": number(config, "chunks"),
        "TILE_TAPS": _tile_taps(spec), "CHANNEL_THREADS": lanes, "POINT_THREADS": 256 // lanes,
    }  # fmt: skip


def _axes(spec: ConvSpec) -> dict[str, int | str]:
    """What all three files take."""
    return {
        "ELEMENT": spec.dtype, "INDEX": index_type(spec), "FLIP": int(spec.flip), "BATCH": max(spec.batch, 1),
        "MULTIPLIER": spec.out_channels // spec.in_channels, "TAPS": listed(_three(spec.kernel, 1)),
        "STRIDES": listed(_three(spec.stride, 1)), "DILATIONS": listed(_three(spec.dilation, 1)),
        "PADS": listed(_pads(spec)),
    }  # fmt: skip
