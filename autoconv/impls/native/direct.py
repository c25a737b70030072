"""`native.direct`: direct convolution for few channels and images, generated C.

Source: the loops of Theano's ConvOp (unroll_batch, unroll_kern, unroll_patch), laid out for vector registers
        (window.c); for large filters `parts` > 1, Toom and Cook's product over interleaved parts of image and filter
        (window_toom.c; the "fast FIR" of Mou & Duhamel, 1991, in two dimensions).
Wins:   one to four channels, image filters from 3x3 to about 100x100.  Loses: many channels (gemm, winograd).
Error:  that of a plain sum over channels and taps; `parts` of 2, 3, 4 lose up to one, two, five bits more.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoconv.impls.native._c import ITEM_BYTES
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import as_forward
from autoconv.impls.native._window import Toom, Window, blockings
from autoconv.spec import ConvSpec, Op

__all__ = ["Direct", "toom_refusal", "window_of"]

UNROLLED_TAPS = 5  # wider rows of taps gain nothing from unrolling and make the code outgrow its cache


class Direct(NativeFamily):
    """The sliding window, all channels of a group for every output pixel."""

    name = "native.direct"
    tags = frozenset({"native", "legacy"})
    version = 1
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({1, 2})

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if spec.op == "dgrad" and set(spec.stride) != {1}:
            return f"dgrad needs stride 1, got {spec.stride}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        if not tunables:
            return None
        filters = as_forward(spec).out_channels
        if filters % tunables["unroll_kern"]:
            return f"unroll_kern must divide the output channels per group: {filters} % {tunables['unroll_kern']}"
        if tunables["unroll_batch"] > max(1, spec.batch):
            return f"unroll_batch is at most the batch of {spec.batch}, got {tunables['unroll_batch']}"
        return toom_refusal(spec, tunables["parts"])

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        forward, itemsize = as_forward(spec), ITEM_BYTES[spec.dtype]
        found: list[tuple[float, Tunables]] = []
        for parts in (1, 2, 3, 4):
            if toom_refusal(spec, parts):
                continue
            for speed, block in blockings(forward, itemsize, vector_bytes, threads, parts=parts)[:3]:
                named = {"unroll_batch": block["images"], "unroll_kern": block["filters"]}
                named |= {"rows": block["rows"], "columns": block["columns"], "parts": parts}
                found.append((speed, named | {"unroll_patch": forward.kernel[2] <= UNROLLED_TAPS and parts == 1}))
        found.sort(key=lambda pair: -pair[0])
        chosen = [tunables for speed, tunables in found if speed > 0.7 * found[0][0]][:5]
        if UNROLLED_TAPS - 2 <= forward.kernel[2] <= UNROLLED_TAPS + 2:
            chosen.insert(2, chosen[0] | {"unroll_patch": not chosen[0]["unroll_patch"]})
        return chosen

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        return _window(spec, tunables, threads, vector_bytes).source()

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _window(spec, tunables, threads, vector_bytes).workspace_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _window(spec, tunables, threads, vector_bytes).packed_bytes

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        return _window(spec, tunables, threads, vector_bytes).seconds(90.0)


def toom_refusal(spec: ConvSpec, parts: int) -> str | None:
    """Why the filters cannot be cut into `parts` x `parts`, or None."""
    if parts == 1:
        return None
    if spec.rank != 2 or set(spec.stride + spec.dilation) != {1}:
        return f"parts need two axes of stride and dilation 1, got {spec.stride} and {spec.dilation}"
    if min(spec.kernel) < 3 * parts:
        return f"{parts} parts need filters of {3 * parts}x{3 * parts} or more, got {spec.kernel}"
    return None


def window_of(
    spec: ConvSpec, block: Tunables, parts: int, unrolled: bool, across: bool, threads: int, vector_bytes: int
) -> Window | Toom:
    """The kernel of a register block: images, filters, rows, columns."""
    rest = {
        "itemsize": ITEM_BYTES[spec.dtype],
        "vector_bytes": vector_bytes,
        "threads": threads,
        "lanes_are_channels": across,
        "unroll_taps": unrolled,
        **{name: block[name] for name in ("images", "filters", "rows", "columns")},
    }
    forward = as_forward(spec)
    return Window(forward=forward, **rest) if parts == 1 else Toom.of(forward, parts, **rest)


def _window(spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> Window | Toom:
    block = tunables | {"images": tunables["unroll_batch"], "filters": tunables["unroll_kern"]}
    return window_of(spec, block, tunables["parts"], tunables["unroll_patch"], False, threads, vector_bytes)
