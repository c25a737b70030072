"""The weight-gradient part of `native.winograd`: blocking, constants and cost for winograd_wgrad.c.

A config (all ints):
    mh, mw      values of dy per tile along each axis
    rows        rows of tiles that are transformed, multiplied and added at a time
    vectors     vectors of output channels in a register block
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from autoconv.impls.native._c import ITEM_BYTES, defines, lanes, prelude, registers, template
from autoconv.impls.native._family import Tunables
from autoconv.impls.native._winograd_transforms import MOST_POINTS, c_functions
from autoconv.spec import ConvSpec

__all__ = ["WgradBlocking", "wgrad_candidates"]

STRIP_BYTES = 32 * 1024  # pixels of a strip of tiles on their way through the transpose: first-level cache
ITEM_BYTES_MOST = 1 << 20  # sums of an item: second-level cache
ITEM_CHANNELS = 128, 64  # in and out: so many read each other's transforms from the second-level cache
TILES = (64, 160, 320)  # of a chunk

# Two cores of a 2.7 GHz Sapphire Rapids, measured; other machines rank alike.
CYCLES_PER_S = 1.4e9  # instructions wait for the caches about as long as they take
BARRIERS_S = 10e-6
FAR_PER_CYCLE = 8.0  # bytes from beyond the second-level cache
CALL_CYCLES = 25.0  # a register block's own cost


@dataclass(frozen=True)
class WgradBlocking:
    """A weight gradient and a config: the sizes of winograd_wgrad.c, in elements."""

    spec: ConvSpec
    config: Tunables
    threads: int
    vector_bytes: int

    @cached_property
    def vw(self) -> int:
        return lanes(self.spec.dtype, self.vector_bytes)

    @cached_property
    def channels(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.spec.in_channels // self.spec.groups, self.spec.out_channels // self.spec.groups

    @property
    def m(self) -> tuple[int, int]:
        return int(self.config["mh"]), int(self.config["mw"])

    @cached_property
    def n(self) -> tuple[int, int]:
        (mh, mw), (r, s) = self.m, self.spec.kernel
        return mh + r - 1, mw + s - 1

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows of tiles of all images, and tiles of a row."""
        (height, width), (mh, mw) = self.spec.output_spatial, self.m
        return self.spec.batch * ceil(height / mh), ceil(width / mw)

    @cached_property
    def chunks(self) -> int:
        return ceil(self.grid[0] / int(self.config["rows"]))

    @property
    def ku(self) -> int:
        return int(self.config["vectors"]) * self.vw

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """Vectors of input channels and blocks of output channels."""
        ic, oc = self.channels
        return ceil(ic / self.vw), ceil(oc / self.ku)

    @property
    def register_channels(self) -> int:
        """Input channels of a register block: half a vector where there are 32 registers of 16 lanes."""
        return min(self.vw, 8 if registers(self.vector_bytes) == 32 else 4)

    @property
    def sums_block(self) -> int:
        """Sums of a vector of input channels by a block of output channels."""
        return prod(self.n) * (self.vw * self.ku + self.vw)

    @cached_property
    def item(self) -> tuple[int, int]:
        """Vectors of input channels and blocks of output channels of an item; a few items for every thread."""
        (cs, ks), size = self.blocks, ITEM_BYTES[self.spec.dtype]
        ci, ki = min(cs, max(1, ITEM_CHANNELS[0] // self.vw)), min(ks, max(1, ITEM_CHANNELS[1] // self.ku))
        while ci * ki * self.sums_block * size > ITEM_BYTES_MOST or ceil(cs / ci) * ceil(ks / ki) < 2 * self.threads:
            if ci > 1 and (ci * self.vw >= ki * self.ku or ki == 1):
                ci = ceil(ci / 2)
            elif ki > 1:
                ki = ceil(ki / 2)
            else:
                break
        return ci, ki

    @property
    def items(self) -> int:
        return ceil(self.blocks[0] / self.item[0]) * ceil(self.blocks[1] / self.item[1])

    @cached_property
    def strip(self) -> int:
        """Rows of tiles that are transformed together."""
        width = max(self.spec.in_spatial[1], self.spec.output_spatial[1])
        fits = STRIP_BYTES // (self.m[0] * width * self.vector_bytes)
        return max(1, min(fits, int(self.config["rows"])))

    @property
    def scratch_size(self) -> int:
        tiles, (cs, ks) = int(self.config["rows"]) * self.grid[1], self.blocks
        transformed = prod(self.n) * (tiles * (cs * self.vw + ks * self.ku) + 2 * self.vw)
        sums = (self.items if self.chunks > 1 else self.threads) * prod(self.item) * self.sums_block
        width = max(self.spec.in_spatial[1], self.spec.output_spatial[1])
        pixels = ((self.strip - 1) * self.m[0] + self.n[0]) * width
        strip = max(pixels, self.vw * prod(self.spec.kernel) + self.vw) * self.vw
        return transformed + sums + self.threads * strip

    def source(self) -> str:
        spec, (mh, mw), (r, s) = self.spec, self.m, self.spec.kernel
        constants = {
            "BATCH": spec.batch, "GROUPS": spec.groups, "IC": self.channels[0], "OC": self.channels[1],
            "R": r, "S": s, "MH": mh, "MW": mw,
            "XH": spec.in_spatial[0], "XW": spec.in_spatial[1],
            "YH": spec.output_spatial[0], "YW": spec.output_spatial[1],
            "PH": spec.padding[0][0], "PW": spec.padding[1][0],
            "REVERSED": int(spec.flip), "CHANNELS_LAST": int(spec.layout == "nhwc"),
            "BR": self.config["rows"], "STRIP": self.strip, "TR": self.register_channels, "KV": self.config["vectors"],
            "CI": self.item[0], "KI": self.item[1],
        }  # fmt: skip
        return "\n".join(
            [
                prelude(spec.dtype, self.vector_bytes, self.threads),
                defines(constants),
                c_functions("h", r, mh, spec.dtype),
                c_functions("w", s, mw, spec.dtype),
                template("winograd_channels.c"),
                template("winograd_wgrad.c"),
            ]
        )

    @cached_property
    def seconds(self) -> float:
        """Rough time of a call."""
        (cs, ks), kv, size = self.blocks, int(self.config["vectors"]), ITEM_BYTES[self.spec.dtype]
        positions, taps, tr = prod(self.n), prod(self.spec.kernel), self.register_channels
        tiles = prod(self.grid)
        # two multiply-adds or two loads a cycle; the sums come and go with every chunk
        calls = positions * ks * cs * (self.vw / tr)
        cycles = calls * (tiles * max(tr * kv / 2, (tr + kv) / 2, 4.0) + self.chunks * (CALL_CYCLES + 2 * tr * kv))
        transposes = 0.0 if self.spec.layout == "nhwc" else 4.0 * prod(self.m)
        cycles += tiles * (cs + ks * kv) * (2.5 * positions + transposes)
        cycles += cs * self.vw * ks * kv * (2.5 * positions + 3 * taps)
        moved = tiles * positions * (cs * self.vw + ks * self.ku) * size * 2.0
        moved += self.chunks * 2.0 * cs * ks * self.sums_block * size * (self.chunks > 1)
        cycles += moved / FAR_PER_CYCLE
        share = self.spec.groups / min(self.threads, self.items)
        waits = self.spec.groups * self.chunks * BARRIERS_S * (self.threads > 1)
        return cycles * share / CYCLES_PER_S * 64 / self.vector_bytes * size / 4 + waits


def wgrad_candidates(spec: ConvSpec, threads: int, vector_bytes: int) -> Iterator[WgradBlocking]:
    """Every blocking worth estimating."""
    vw, (r, s) = lanes(spec.dtype, vector_bytes), spec.kernel
    most, filters = MOST_POINTS, spec.out_channels // spec.groups
    height, width = spec.output_spatial
    for m in range(2, 7):
        mh, mw = (min(m, most + 1 - taps) if taps > 1 else 1 for taps in (r, s))
        if m > max(height, width) + 1 or m not in (mh, mw):
            continue
        columns, rows = ceil(width / mw), spec.batch * ceil(height / mh)
        for target in TILES:
            chunks = ceil(rows / max(1, target // columns))
            for vectors in (1, 2, 3) if registers(vector_bytes) == 32 else (1, 2):
                if (vectors - 1) * vw < filters:
                    config = {"mh": mh, "mw": mw, "rows": ceil(rows / chunks), "vectors": vectors}
                    yield WgradBlocking(spec, config, threads, vector_bytes)
