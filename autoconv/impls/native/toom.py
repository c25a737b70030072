"""`native.toom`: large filters by Toom and Cook's product of interleaved parts, generated C.

Source: the "fast FIR" of Mou & Duhamel, 1991, in two dimensions: image and filter are cut into `parts` x `parts`
        interleaved ones, of which (2 * parts - 1)^2 products are computed instead of parts^4 (window_toom.c), each by
        the sliding window of `native.direct`.
Wins:   image filters from about 15x15 to 61x61.  Loses: small filters, many channels.
Error:  that of a plain sum, and with `parts` of 2, 3, 4 up to one, two, five bits more; a NaN or an infinity reaches
        its neighbours in other parts, so `strict_nan` is False.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoconv.impls.native._c import ITEM_BYTES
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import as_forward
from autoconv.impls.native._window import Toom, blockings
from autoconv.spec import ConvSpec, Op

__all__ = ["ToomCook"]

PARTS = (2, 3, 4)
TAPS_PER_PART = 3  # fewer, and the transforms outweigh the products saved


class ToomCook(NativeFamily):
    """The sliding window over transformed parts, all channels of a group for every output pixel."""

    name = "native.toom"
    version = 1
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({2})
    strict_nan = False

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if set(spec.stride + spec.dilation) != {1}:
            return f"needs stride and dilation 1, got {spec.stride} and {spec.dilation}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        parts = tunables["parts"] if tunables else min(PARTS)
        if min(spec.kernel) < TAPS_PER_PART * parts:
            least = TAPS_PER_PART * parts
            return f"{parts} parts need filters of {least}x{least} or more, got {spec.kernel}"
        filters = as_forward(spec).out_channels
        if tunables and filters % tunables["filters"]:
            return f"filters must divide the output channels per group: {filters} % {tunables['filters']}"
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        forward, itemsize = as_forward(spec), ITEM_BYTES[spec.dtype]
        found: list[tuple[float, Tunables]] = []
        for parts in PARTS:
            if not self.refusal(spec, {"parts": parts, "filters": 1}):
                for speed, block in blockings(forward, itemsize, vector_bytes, threads, parts=parts)[:3]:
                    shape = {name: block[name] for name in ("filters", "rows", "columns")}
                    found.append((speed, shape | {"parts": parts}))
        found.sort(key=lambda pair: -pair[0])
        return [tunables for speed, tunables in found if speed > 0.7 * found[0][0]][:4]

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        return _kernel(spec, tunables, threads, vector_bytes).source()

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _kernel(spec, tunables, threads, vector_bytes).workspace_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _kernel(spec, tunables, threads, vector_bytes).packed_bytes

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        return _kernel(spec, tunables, threads, vector_bytes).seconds(90.0)


def _kernel(spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> Toom:
    return Toom.of(
        as_forward(spec),
        tunables["parts"],
        itemsize=ITEM_BYTES[spec.dtype],
        vector_bytes=vector_bytes,
        threads=threads,
        lanes_are_channels=False,
        unroll_taps=False,
        images=1,
        **{name: tunables[name] for name in ("filters", "rows", "columns")},
    )
