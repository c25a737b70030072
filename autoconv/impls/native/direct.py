"""`native.direct`: direct convolution for few channels and images, generated C.

Source: the loops of Theano's ConvOp (unroll_batch, unroll_kern, unroll_patch), laid out for vector registers
        (window.c).
Wins:   one to four channels, image filters from 3x3 to about 100x100, volumes by 3x3x3 and more.
Loses:  many channels (gemm, winograd).
Error:  that of a plain sum over channels and taps.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoconv.impls.native._c import ITEM_BYTES
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import as_forward
from autoconv.impls.native._volume import Volume, plane_of
from autoconv.impls.native._window import Window, blockings
from autoconv.spec import ConvSpec, Op

__all__ = ["Direct", "window_of"]

UNROLLED_TAPS = 5  # wider rows of taps gain nothing from unrolling and make the code outgrow its cache


class Direct(NativeFamily):
    """The sliding window, all channels of a group for every output pixel."""

    name = "native.direct"
    tags = frozenset({"native", "legacy"})
    version = 2
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({1, 2, 3})

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
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        forward, itemsize = plane_of(as_forward(spec)), ITEM_BYTES[spec.dtype]
        unroll = forward.kernel[2] <= UNROLLED_TAPS
        ranked = blockings(forward, itemsize, vector_bytes, threads)
        chosen = [
            {
                "unroll_batch": block["images"], "unroll_kern": block["filters"], "unroll_patch": unroll,
                "rows": block["rows"], "columns": block["columns"],
            }
            for speed, block in ranked[:3] if speed > 0.7 * ranked[0][0]
        ]  # fmt: skip
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


def window_of(
    spec: ConvSpec, block: Tunables, unrolled: bool, across: bool, threads: int, vector_bytes: int
) -> Window | Volume:
    """The kernel of a register block: images, filters, rows, columns."""
    forward = as_forward(spec)
    plane = plane_of(forward)
    window = Window(
        forward=plane,
        itemsize=ITEM_BYTES[spec.dtype],
        vector_bytes=vector_bytes,
        threads=threads,
        lanes_are_channels=across,
        unroll_taps=unrolled,
        **{name: block[name] for name in ("images", "filters", "rows", "columns")},
    )
    return window if plane is forward else Volume(forward, window)


def _window(spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> Window | Volume:
    block = tunables | {"images": tunables["unroll_batch"], "filters": tunables["unroll_kern"]}
    return window_of(spec, block, tunables["unroll_patch"], False, threads, vector_bytes)
