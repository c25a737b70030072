"""`native.winograd`: Winograd convolution in generated C, transform, products and inverse fused per cache block.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4; the fusion by cache blocks
        as in Jia et al., "Optimizing N-dimensional, Winograd-based convolution for manycore CPUs", 2018. The gradient
        of the filters sums the products before one inverse transform (see winograd_wgrad.c). A stride's phases, and
        pieces of a large filter (Toom and Cook's blocks), are further channels of the products.
Wins:   3x3 and 5x5 at stride 1 from some 16 channels on, at any batch; 1x7 and 7x1, larger filters and strides too.
Loses:  few channels, results of a handful of pixels.
Error:  float32, 64 channels of normal noise, of the largest result: F(2,3) 3e-7, F(4,3) 1e-6, F(5,3) 4e-6,
        F(6,3) 1e-5. Tiles mix their pixels: a NaN or an infinity reaches its tile's other results.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from autoconv.impls.native._c import ITEM_BYTES, defines, prelude, template
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._winograd_blocking import Blocking, as_problem, candidates
from autoconv.impls.native._winograd_transforms import MOST_POINTS, c_functions
from autoconv.impls.native._winograd_wgrad import WgradBlocking, wgrad_candidates
from autoconv.spec import ConvSpec, Op

__all__ = ["Winograd"]

MAX_CONFIGS = 8
MOST_TAPS = 16  # an axis, of one phase: beyond, FFT and Toom-Cook's parts need fewer products
PER_KIND = 2  # register blocks of one tile size, way of sharing and kind of filters; unequal sides get one
HOPELESS = 1.6  # estimates rank better than that


class Winograd(NativeFamily):
    """F(m, r) along each axis, m + r - 1 up to 8; r: the taps of a filter, of its phases or of its pieces."""

    name = "native.winograd"
    version = 3
    tags = frozenset({"native", "winograd"})
    strict_nan = False

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if spec.op is not Op.FPROP and set(spec.stride) != {1}:
            return f"{spec.op} needs stride 1, got {spec.stride}"
        if set(spec.dilation) != {1}:
            return f"needs dilation 1, got {spec.dilation}"
        taps = tuple(ceil(taps / step) for taps, step in zip(spec.kernel, spec.stride, strict=True))
        if max(taps) < 2:
            return f"needs two taps or more of one phase along one axis, got {spec.kernel} with stride {spec.stride}"
        most = MOST_POINTS - 1 if spec.op is Op.WGRAD else MOST_TAPS
        if max(taps) > most:
            return f"needs at most {most} taps an axis, got {taps}"
        if max(spec.kernel) > 2 * MOST_TAPS:
            return f"needs at most {2 * MOST_TAPS} taps an axis in all phases, got {spec.kernel}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        if tunables:
            for m, r in zip((tunables["mh"], tunables["mw"]), taps, strict=True):
                piece = min(m, r) if tunables.get("cut") else r
                if m < 1 or m + piece - 1 > MOST_POINTS:
                    return (
                        f"F({m}, {piece}) takes {m + piece - 1} points, sets of up to {MOST_POINTS} are accurate enough"
                    )
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        able: list[Blocking | WgradBlocking] = []
        if spec.op is Op.WGRAD:
            able += wgrad_candidates(spec, threads, vector_bytes)
        else:
            able += candidates(as_problem(spec), threads, vector_bytes)
        ranked = sorted(able, key=lambda blocking: blocking.seconds)
        taken: dict[tuple[int, ...], int] = {}
        found: list[Tunables] = []
        for blocking in ranked:
            config = blocking.config
            sides = sorted(blocking.m)
            kind = (*sides, *(config.get(key, 0) for key in ("shared", "filters", "cut")))
            taken[kind] = taken.get(kind, 0) + 1
            if taken[kind] <= (PER_KIND if sides[0] == sides[1] else 1):
                found.append(config)
            if len(found) == MAX_CONFIGS or blocking.seconds > HOPELESS * ranked[0].seconds:
                break
        return found

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        blocking = _blocking(spec, tunables, threads, vector_bytes)
        if isinstance(blocking, WgradBlocking):
            return blocking.source()
        (r, s), (mh, mw) = blocking.taps, blocking.m
        return "\n".join(
            [
                prelude(spec.dtype, vector_bytes, threads),
                defines(blocking.defines),
                c_functions("h", mh, r, spec.dtype),
                c_functions("w", mw, s, spec.dtype),
                template("winograd_channels.c"),
                template("winograd.c"),
                template("winograd_filters.c"),
                template("winograd_run.c"),
            ]
        )

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _blocking(spec, tunables, threads, vector_bytes).scratch_size * ITEM_BYTES[spec.dtype]

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        blocking = _blocking(spec, tunables, threads, vector_bytes)
        return 0 if isinstance(blocking, WgradBlocking) else blocking.packed_size * ITEM_BYTES[spec.dtype]

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        return _blocking(spec, tunables, threads, vector_bytes).seconds


def _blocking(spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> Blocking | WgradBlocking:
    if spec.op is Op.WGRAD:
        return WgradBlocking(spec, tunables, threads, vector_bytes)
    return Blocking(as_problem(spec), tunables, threads, vector_bytes)
