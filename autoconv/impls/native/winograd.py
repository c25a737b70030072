"""Fused Winograd convolution in C: F(m, r) along each axis, for small dense filters at stride 1.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; the fusion by cache blocks follows
Zlateski et al., "FFT convolutions are faster than Winograd on modern CPUs", 2018, the points Barabasz et al., 2018.

Per block of tiles: transform the data, multiply by the transformed filters at each of the n * n positions, transform
back, so that what is between never leaves the second-level cache. `pack` transforms the filters beforehand or, for few
tiles (`raw`), only lays them out: then reading n * n / r * r as much from memory would cost more than making it again.

Wins:     3x3 and 5x5 from some 16 channels on; 1x7 and 7x1 too.  Loses: few channels, results of a handful of pixels.
Numerics: float32 over 64 channels of normal noise: 3e-7 of the largest value for F(2,3), 1e-6 for F(4,3), 3e-6 for
          F(5,3), 8e-6 for F(6,3); inputs of very mixed size lose more (the transforms add and subtract them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from autoconv.spec import ConvSpec, Op

from . import _c
from ._winograd_transforms import POINTS, c_functions

__all__ = ["packed_bytes", "source", "why_not", "workspace_bytes"]

Config = dict[str, int]
# A config's keys, all ints: mh, mw results per tile; rows, columns of tiles per block; strip rows of tiles transformed
# together; tiles, vectors of a register block; shared 1: threads share the tiles and divide the output channels;
# filters one of the three below; chunk: input channels whose filters are transformed at a time, unless pack did it.
TRANSFORMED, LAID_OUT, PLAIN = range(3)

MAX_POINTS = max(POINTS)
MAX_TILE_BYTES = 64 * MAX_POINTS * MAX_POINTS  # of one tile's vectors

# What the estimates assume of a core; only the order of the candidates depends on it.
L1_BYTES = 32 * 1024
L2_BYTES = 1 << 20
FLOPS_PER_S = 130e9
FAR_BYTES_PER_S = 20e9  # streaming from the last-level cache or memory
NEAR_BYTES_PER_S = 100e9  # second-level cache


@dataclass(frozen=True)
class _Problem:
    """The forward problem that is really computed: dgrad is fprop on reversed, exchanged filters."""

    batch: int
    groups: int
    ic: int
    oc: int
    x: tuple[int, int]
    y: tuple[int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    reversed: bool
    dgrad: bool
    channels_last: bool
    dtype: str


def _problem(spec: ConvSpec) -> _Problem:
    r, s = spec.kernel
    (top, _), (left, _) = spec.padding
    ins = (spec.in_spatial[0], spec.in_spatial[1])
    outs = (spec.output_spatial[0], spec.output_spatial[1])
    ic, oc = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    dgrad = spec.op is Op.DGRAD
    if dgrad:
        ic, oc, ins, outs, top, left = oc, ic, outs, ins, r - 1 - top, s - 1 - left
    return _Problem(
        spec.batch, spec.groups, ic, oc, ins, outs, (r, s), (top, left), spec.flip != dgrad, dgrad,
        spec.layout == "nhwc", spec.dtype,
    )  # fmt: skip


def why_not(spec: ConvSpec, config: Config | None = None) -> str | None:
    """The first reason why this family cannot run `spec`, or `config` of it."""
    if spec.op not in (Op.FPROP, Op.DGRAD):
        return f"computes fprop and dgrad, got {spec.op}"
    if spec.rank != 2:
        return f"works on two spatial axes, got {spec.rank}"
    if spec.dtype not in _c.ITEM_BYTES:
        return f"needs f32 or f64, got {spec.dtype}"
    if spec.batch < 1:
        return "needs at least one image, got a batch of 0"
    if any(s != 1 for s in spec.stride):
        return f"needs stride 1, got {spec.stride}"
    if any(d != 1 for d in spec.dilation):
        return f"needs dilation 1, got {spec.dilation}"
    if max(spec.kernel) < 2:
        return f"needs a filter of at least two taps along one axis, got {spec.kernel}"
    if max(spec.kernel) > MAX_POINTS - 1:
        return f"needs filters of at most {MAX_POINTS - 1} taps an axis, got {spec.kernel}"
    if config is not None:
        for m, r in zip((config["mh"], config["mw"]), spec.kernel, strict=True):
            if m < 1 or m + r - 1 not in POINTS:
                return f"F({m}, {r}) needs {m + r - 1} points, the most accurate sets end at {MAX_POINTS}"
    return None


def _constants(p: _Problem, config: Config) -> dict[str, int]:
    return {
        "BATCH": p.batch, "GROUPS": p.groups, "IC": p.ic, "OC": p.oc,
        "XH": p.x[0], "XW": p.x[1], "YH": p.y[0], "YW": p.y[1], "R": p.kernel[0], "S": p.kernel[1],
        "PH": p.padding[0], "PW": p.padding[1],
        "REVERSED": int(p.reversed), "DGRAD": int(p.dgrad), "CHANNELS_LAST": int(p.channels_last),
        "MH": config["mh"], "MW": config["mw"], "BR": config["rows"], "BC": config["columns"],
        "STRIP": config["strip"], "TR": config["tiles"], "KV": config["vectors"],
        "SHARED": config["shared"], "FILTERS": config["filters"], "CHUNK": config["chunk"],
        "AHEAD": config.get("ahead", 0),
    }  # fmt: skip


def source(spec: ConvSpec, config: Config, threads: int, vector_bytes: int = 64) -> str:
    """The C text of `pack` and `run`."""
    p = _problem(spec)
    return "\n".join(
        [
            _c.prelude(p.dtype, vector_bytes, threads),
            _c.defines(_constants(p, config)),
            c_functions("h", config["mh"], p.kernel[0], p.dtype),
            c_functions("w", config["mw"], p.kernel[1], p.dtype),
            _c.template("winograd.c"),
        ]
    )


def _sizes(p: _Problem, config: Config, vector_bytes: int) -> dict[str, int]:
    """Elements of each buffer; the same arithmetic as the `#define`s of winograd.c."""
    vw = _c.lanes(p.dtype, vector_bytes)
    nh, nw = (config[m] + r - 1 for m, r in zip(("mh", "mw"), p.kernel, strict=True))
    whole = config["columns"] == ceil(p.y[1] / config["mw"])
    positions, ku = nh * nw, config["vectors"] * vw
    block = config["rows"] * config["columns"]
    tiles = ceil(block / config["tiles"]) * config["tiles"]
    in_pixels = ((config["strip"] - 1) * config["mh"] + nh) * (
        p.x[1] if whole else (config["columns"] - 1) * config["mw"] + nw
    )
    out_pixels = config["strip"] * config["mh"] * (p.y[1] if whole else config["columns"] * config["mw"])
    kept = {TRANSFORMED: positions, LAID_OUT: prod(p.kernel), PLAIN: 0}[config["filters"]]
    return {
        "V": positions * (ceil(p.ic / vw) * tiles * vw + vw),
        "M": positions * (tiles * ku + vw),
        "U": positions * (config["chunk"] * ku + vw) if config["filters"] != TRANSFORMED else 0,
        "strip": (max(in_pixels, out_pixels) + vw) * vw,
        "filters": p.groups * ceil(p.oc / ku) * p.ic * ku * kept,
    }


def workspace_bytes(spec: ConvSpec, config: Config, threads: int, vector_bytes: int = 64) -> int:
    """Scratch of one call: transformed data and products of a block, for every thread."""
    p = _problem(spec)
    size = _sizes(p, config, vector_bytes)
    own = size["M"] + size["U"] + size["strip"]
    total = size["V"] + threads * own if config["shared"] else threads * (size["V"] + own)
    return total * _c.ITEM_BYTES[p.dtype]


def packed_bytes(spec: ConvSpec, config: Config, threads: int, vector_bytes: int = 64) -> int:
    """Size of the filters as `run` wants them."""
    p = _problem(spec)
    return _sizes(p, config, vector_bytes)["filters"] * _c.ITEM_BYTES[p.dtype]
