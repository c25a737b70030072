"""`native.separable`: separable filters as a pass along the rows and a pass down the columns, generated C.

Source: the definition: R + S products per result where R*S were. Both passes are fused (separable.c): filtered rows
        stay in a ring in the first- or second-level cache until the last result that looks at them is done.
Wins:   filters found to be separable when they were bound: blurs and derivatives of images, 5x5 to 101x101 and more.
Loses:  many channels on both sides, where each pair of channels takes its own passes.
Error:  two sums of R and S products instead of one of R*S, and that of splitting the filter into its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from autoconv.impls.native._c import ITEM_BYTES, prelude, registers, template
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import Forward, as_forward
from autoconv.spec import ConvSpec, Op

__all__ = ["Separable"]

RING_BYTES = (1 << 20, 1 << 18)  # what half of a second-level cache holds, large or small
BLOCKS = {32: ((6, 4), (4, 4)), 16: ((4, 2), (3, 3))}  # rows x vectors summed at once, by number of registers
UNROLLED_TAPS = 9  # more gain nothing from unrolling


class Separable(NativeFamily):
    """Two passes per pair of channels, fused in cache.

    `tile` columns and `band` rows make a task; `rows` x `vectors` are summed at once down the columns.
    """

    name = "native.separable"
    version = 1
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({2})
    tags = frozenset({"native", "separable"})

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if not spec.rank1:
            return "needs filters bound and found separable (fixed rank1), got any"
        if set(spec.stride) != {1}:
            return f"needs stride 1, got {spec.stride}"
        if set(spec.dilation) != {1}:
            return f"needs dilation 1, got {spec.dilation}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        forward, width = as_forward(spec), vector_bytes // ITEM_BYTES[spec.dtype]
        _, p, q = forward.out_spatial
        whole = ceil(q / width) * width
        blocks = [(min(rows, p), min(vectors, whole // width)) for rows, vectors in BLOCKS[registers(vector_bytes)]]
        found: list[Tunables] = []
        for rows, vectors in dict.fromkeys(blocks):
            for ring_bytes in RING_BYTES if (rows, vectors) == blocks[0] else RING_BYTES[:1]:
                line_bytes = forward.in_channels * (forward.kernel[1] + rows - 1) * ITEM_BYTES[spec.dtype]
                group = vectors * width
                tile = min(whole, max(ring_bytes // line_bytes // group, 1) * group)
                tiles = ceil(q / tile)
                tile = ceil(ceil(q / tiles) / group) * group if tiles > 1 else whole
                tasks = spec.batch * forward.groups * forward.out_channels * ceil(q / tile)
                # every band filters R - 1 rows of its neighbour anew: cut planes only where threads would idle
                bands = 1 if tasks >= 4 * threads or tasks % threads == 0 else threads
                band = ceil(ceil(p / bands) / rows) * rows
                found.append({"tile": tile, "band": band, "rows": rows, "vectors": vectors})
        return list({tuple(one.items()): one for one in found}.values())

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        names = _Passes(as_forward(spec), ITEM_BYTES[spec.dtype], vector_bytes, tunables).names
        header = "".join(f"#define {name} {value}\n" for name, value in names.items())
        return prelude(spec.dtype, vector_bytes, threads) + header + "\n" + template("separable.c")

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        """A ring of filtered rows and one padded row per thread."""
        return threads * _Passes(as_forward(spec), ITEM_BYTES[spec.dtype], vector_bytes, tunables).scratch_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return prod(spec.filter_shape[:2]) * sum(spec.kernel) * ITEM_BYTES[spec.dtype]

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        """One unaligned vector a cycle along the rows, two down the columns, or what memory takes."""
        forward, width = as_forward(spec), vector_bytes // ITEM_BYTES[spec.dtype]
        _, height, taps = forward.kernel
        vectors: float = prod(forward.out_spatial) / width * (1 + (height - 1) / tunables["band"])
        pairs = spec.batch * forward.groups * forward.out_channels * forward.in_channels
        cycles = pairs * vectors * (taps + height / 2 + 6)
        moved = (prod(spec.input_shape) + 2 * prod(spec.output_shape)) * ITEM_BYTES[spec.dtype]
        return max(cycles / 2.2e9, moved / 16e9) / threads


@dataclass(frozen=True)
class _Passes:
    """The constants of separable.c."""

    forward: Forward
    itemsize: int
    vector_bytes: int
    tunables: Tunables

    @property
    def scratch_bytes(self) -> int:
        """Per thread, in whole cache lines."""
        f, width = self.forward, self.vector_bytes // self.itemsize
        tile: int = self.tunables["tile"]
        ring = f.in_channels * (f.kernel[1] + int(self.tunables["rows"]) - 1) * tile
        return ceil((ring + tile + f.kernel[2] - 1 + width) * self.itemsize / 64) * 64

    @property
    def names(self) -> dict[str, object]:
        f = self.forward
        names: dict[str, object] = {
            "N": f.batch, "GROUPS": f.groups, "CG": f.in_channels, "KG": f.out_channels,
            "TILE": self.tunables["tile"], "BAND": self.tunables["band"],
            "RB": self.tunables["rows"], "CB": self.tunables["vectors"],
            "SCRATCH_BYTES": f"{self.scratch_bytes}L", "W_BASE": f.w_base, "PT": f"({f.pad[1]})", "PL": f"({f.pad[2]})",
        }  # fmt: skip
        for axes, values in (("HW", f.in_spatial), ("PQ", f.out_spatial), ("RS", f.kernel)):
            names |= dict(zip(axes, values[1:], strict=True))
        for array, steps in (("X", f.x_strides), ("Y", f.y_strides)):
            names |= {f"{array}_{axis}": f"{step}L" for axis, step in zip("NCDHW", steps, strict=True)}
        names |= {f"W_{axis}": f"({step})" for axis, step in zip("GKCDRS", f.w_strides, strict=True)}
        for name, taps in (("UNROLL_ROW", f.kernel[2]), ("UNROLL_COLUMN", f.kernel[1])):
            names[name] = f'_Pragma("GCC unroll {taps if taps <= UNROLLED_TAPS else 4}")'
        return names
