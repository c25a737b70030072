"""How `native.winograd` cuts a problem into tiles, blocks and register blocks, and what that should cost.

A config (`Blocking`'s tunables, all ints):
    mh, mw          results per tile along each axis
    rows, columns   tiles per block
    tiles, vectors  register block: tiles by vectors of output channels
    shared          1: the threads make the data of a block together and divide the output channels, so that every
                    filter is read once; 0: each thread works through blocks of its own
    filters         TRANSFORMED by pack, LAID_OUT by pack or PLAIN: for the last two, `run` transforms them
    chunk           input channels multiplied between visits to the sums
    cut             1: filters of more than m taps an axis are cut into pieces of m, F(m, m) each; absent or 0: not

The estimate counts vector instructions and the bytes that stream from the second-level cache or from beyond. It is
there to order the candidates: the race among the first few decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from autoconv.impls.native._c import ITEM_BYTES, lanes, registers
from autoconv.impls.native._family import Tunables
from autoconv.impls.native._winograd_transforms import MOST_POINTS
from autoconv.spec import ConvSpec, Op

__all__ = ["LAID_OUT", "PLAIN", "TRANSFORMED", "Blocking", "Problem", "as_problem", "candidates"]

TRANSFORMED, LAID_OUT, PLAIN = range(3)

STRIP_BYTES = 32 * 1024  # pixels of a strip of tiles on their way through the transpose: first-level cache
FILTER_BYTES = 16 * 1024  # filters that several register blocks use one after the other: first-level cache
BLOCK_BYTES = (256 * 1024, 512 * 1024, 1024 * 1024)  # transformed data of a block: second-level cache
SHARED_BYTES = 16 << 20  # the same where the threads share it: last-level cache
SHARED_TILES = (56, 112, 224)
CHUNKS = (32, 64)  # channels whose filters are transformed at a time
AHEAD_BYTES = 4096  # how far in front of its use a filter is fetched
NEAR_BYTES = 1_200_000  # what is smaller stays in the second-level cache between its uses
MIXED_TILES = 16  # up to as many tiles an image, tiles of unequal sides are worth a thought

# Fitted to some 360 timings of 3x3 layers of 64 to 512 channels, two cores of a 2.7 GHz Sapphire Rapids: cycles for
# what happens in registers, what the second-level cache gives and what comes from beyond. Other machines rank alike.
CYCLES_PER_S = 2.7e9
MULTIPLY_CYCLES = 0.8  # a vector multiply-add
CALL_CYCLES = 28.0  # a register block's own cost: addresses, branch, the pipeline filling
NEAR_PER_CYCLE = 41.0  # bytes from the second-level cache
FAR_PER_CYCLE = 7.0  # bytes from beyond
TRANSFORM_CYCLES = 2.1  # per position of a tile and vector of channels
TRANSPOSE_CYCLES = 17.0  # per pixel of a tile: from planes to vectors, or back
FILTER_CYCLES = 4.8  # per position and vector of filters
VISIBLE = 0.4  # of the filters' way from memory: the rest hides behind the products
BARRIER_S = 6.5e-6  # two of them, and the threads' waiting for each other
CALL_S = 6e-6  # waking the threads


@dataclass(frozen=True)
class Problem:
    """The forward problem that is really computed: dgrad is fprop on exchanged, reversed filters."""

    batch: int
    groups: int
    ic: int
    oc: int
    x: tuple[int, int]
    y: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    reversed: bool
    dgrad: bool
    channels_last: bool
    dtype: str
    fixed: bool

    @property
    def taps(self) -> tuple[int, int]:
        """Taps of one phase of the stride along each axis."""
        (r, s), (sh, sw) = self.kernel, self.stride
        return ceil(r / sh), ceil(s / sw)

    @property
    def phases(self) -> int:
        """Phases of the stride that have taps."""
        (r, s), (sh, sw) = self.kernel, self.stride
        return min(r, sh) * min(s, sw)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def as_problem(spec: ConvSpec) -> Problem:
    """`spec`, of rank 2 and dilation 1 (a dgrad of stride 1 too), as a forward cross-correlation."""
    (r, s), (xh, xw), (yh, yw) = spec.kernel, spec.in_spatial, spec.output_spatial
    (top, _), (left, _) = spec.padding
    ic, oc = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    dgrad = spec.op is Op.DGRAD
    if dgrad:
        ic, oc, xh, xw, yh, yw, top, left = oc, ic, yh, yw, xh, xw, r - 1 - top, s - 1 - left
    return Problem(
        batch=spec.batch, groups=spec.groups, ic=ic, oc=oc, x=(xh, xw), y=(yh, yw), kernel=(r, s),
        stride=_pair(spec.stride), padding=(top, left), reversed=spec.flip != dgrad, dgrad=dgrad,
        channels_last=spec.layout == "nhwc", dtype=spec.dtype, fixed=spec.fixed,
    )  # fmt: skip


@dataclass(frozen=True)
class Blocking:
    """A problem and a config: the sizes of winograd.c, in elements."""

    problem: Problem
    config: Tunables
    threads: int
    vector_bytes: int

    @cached_property
    def vw(self) -> int:
        return lanes(self.problem.dtype, self.vector_bytes)

    @property
    def m(self) -> tuple[int, int]:
        return int(self.config["mh"]), int(self.config["mw"])

    @cached_property
    def taps(self) -> tuple[int, int]:
        """Taps of a piece of a phase along each axis."""
        (mh, mw), (r, s) = self.m, self.problem.taps
        return (min(mh, r), min(mw, s)) if self.config.get("cut") else (r, s)

    @cached_property
    def pieces(self) -> tuple[int, int]:
        (r, s), (rp, sp) = self.problem.taps, self.taps
        return ceil(r / rp), ceil(s / sp)

    @property
    def parts(self) -> int:
        """Small filters that a filter is the sum of."""
        return self.problem.phases * prod(self.pieces)

    @cached_property
    def n(self) -> tuple[int, int]:
        (mh, mw), (rp, sp) = self.m, self.taps
        return mh + rp - 1, mw + sp - 1

    @property
    def positions(self) -> int:
        return prod(self.n)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of an image."""
        (yh, yw), (mh, mw) = self.problem.y, self.m
        return ceil(yh / mh), ceil(yw / mw)

    @property
    def ku(self) -> int:
        return int(self.config["vectors"]) * self.vw

    @property
    def whole_rows(self) -> bool:
        return bool(self.config["columns"] == self.grid[1])

    @property
    def block_tiles(self) -> int:
        """Tiles of a block, with those that fill the last register block: of the block, or with pieces of every row."""
        tiles, rows, columns = (int(self.config[key]) for key in ("tiles", "rows", "columns"))
        if prod(self.pieces) > 1:
            return rows * ceil(columns / tiles) * tiles
        return ceil(rows * columns / tiles) * tiles

    @cached_property
    def data_rows(self) -> int:
        """Rows of data tiles that a block meets at most: pieces reach beyond its own."""
        rows, tile_rows = int(self.config["rows"]), self.grid[0]
        reach = self.pieces[0] - 1
        if not reach:
            return rows
        last = self.problem.batch * tile_rows - 1
        ends = ((row, min(row + rows - 1, last)) for row in range(0, last + 1, rows))
        return max(end - row + (end // tile_rows - row // tile_rows + 1) * reach + 1 for row, end in ends)

    @property
    def data_tiles(self) -> int:
        if prod(self.pieces) == 1:
            return self.block_tiles
        return self.data_rows * (int(self.config["columns"]) + self.pieces[1] - 1) + int(self.config["tiles"])

    @property
    def widths(self) -> tuple[int, int]:
        """Columns of data and of results that pass through a strip."""
        if self.whole_rows:
            return self.problem.x[1], self.problem.y[1]
        columns, mw = int(self.config["columns"]), self.m[1]
        return ((columns + self.pieces[1] - 2) * mw + self.n[1]) * self.problem.stride[1], columns * mw

    @cached_property
    def strip(self) -> int:
        """Rows of tiles that are transformed together: images of a few short rows fill whole vectors that way."""
        fits = STRIP_BYTES // (self.m[0] * max(self.widths) * self.vector_bytes)
        return max(1, min(fits, int(self.config["rows"]), self.grid[0]))

    @property
    def data_size(self) -> int:
        per_phase = ceil(self.problem.ic / self.vw) * self.data_tiles * self.vw
        return self.positions * (self.problem.phases * per_phase + self.vw)

    @property
    def thread_size(self) -> int:
        """What a thread has to itself besides data: products, filters of a chunk, a strip."""
        products = self.positions * (self.block_tiles * self.ku + self.vw)
        filters = self.positions * (self.config["chunk"] * self.ku + self.vw)
        read = ((self.strip - 1) * self.m[0] + self.n[0]) * self.problem.stride[0]
        pixels = max(read * self.widths[0], self.strip * self.m[0] * self.widths[1])
        return products + (0 if self.config["filters"] == TRANSFORMED else filters) + (pixels + self.vw) * self.vw

    @property
    def scratch_size(self) -> int:
        if self.config["shared"]:
            return self.data_size + self.threads * self.thread_size
        return self.threads * (self.data_size + self.thread_size)

    @property
    def packed_size(self) -> int:
        kept = {TRANSFORMED: self.parts * self.positions, LAID_OUT: prod(self.problem.kernel), PLAIN: 0}[
            self.config["filters"]
        ]
        return self.problem.groups * ceil(self.problem.oc / self.ku) * self.ku * self.problem.ic * kept

    @property
    def defines(self) -> dict[str, int]:
        """The constants of winograd.c."""
        p, config = self.problem, self.config
        (r, s), (mh, mw) = p.kernel, self.m
        ahead = 0
        if config["filters"] == TRANSFORMED and self.packed_size * ITEM_BYTES[p.dtype] > NEAR_BYTES:
            ahead = AHEAD_BYTES // ITEM_BYTES[p.dtype]
        return {
            "BATCH": p.batch, "GROUPS": p.groups, "IC": p.ic, "OC": p.oc, "R": r, "S": s, "MH": mh, "MW": mw,
            "SH": p.stride[0], "SW": p.stride[1], "RP": self.taps[0], "SP": self.taps[1],
            "PIECES_H": self.pieces[0], "PIECES_W": self.pieces[1], "V_ROWS": self.data_rows,
            "XH": p.x[0], "XW": p.x[1], "YH": p.y[0], "YW": p.y[1], "PH": p.padding[0], "PW": p.padding[1],
            "REVERSED": int(p.reversed), "DGRAD": int(p.dgrad), "CHANNELS_LAST": int(p.channels_last),
            "BR": config["rows"], "BC": config["columns"], "STRIP": self.strip,
            "TR": config["tiles"], "KV": config["vectors"],
            "SHARED": config["shared"], "FILTERS": config["filters"], "CHUNK": config["chunk"], "AHEAD": ahead,
        }  # fmt: skip

    @cached_property
    def seconds(self) -> float:
        """Rough time of a call; what `pack` takes is part of it unless the filters are bound."""
        p, config = self.problem, self.config
        tr, kv, shared, kind = (int(config[key]) for key in ("tiles", "vectors", "shared", "filters"))
        rows, columns = ceil(p.batch * self.grid[0] / int(config["rows"])), ceil(self.grid[1] / int(config["columns"]))
        blocks = rows * columns * p.groups
        ic_vectors, oc_blocks = ceil(p.ic / self.vw), ceil(p.oc / self.ku)
        tiles = blocks * self.block_tiles
        # products; the sums are stored, and fetched again between chunks
        chunks = self.parts * ceil(p.ic / int(config["chunk"]))
        issue = max(tr * kv * MULTIPLY_CYCLES, (tr + kv) / 2, 4.0)
        cycles = self.positions * (tiles / tr) * oc_blocks
        cycles *= self.parts * p.ic * issue + CALL_CYCLES * chunks + tr * kv * (2 * chunks - 1)
        # transforms: about as many instructions as there are values before and after
        transposes = 0.0 if p.channels_last else TRANSPOSE_CYCLES * prod(self.m)
        per_tile = TRANSFORM_CYCLES * self.positions + 0.5 * sum(self.n) * sum(self.m) + transposes
        cycles += blocks * (self.data_tiles * p.phases * ic_vectors + self.block_tiles * oc_blocks * kv) * per_tile
        filters = p.groups * oc_blocks * kv * p.ic * (FILTER_CYCLES * self.parts * self.positions + 2 * prod(p.kernel))
        if kind != TRANSFORMED:
            cycles += filters * (blocks / p.groups) * (1.35 if kind == LAID_OUT else 1.9)
        items = oc_blocks if shared else blocks
        cycles *= ceil(items / self.threads) / items

        data = self.data_size * ITEM_BYTES[p.dtype]
        read = self.parts * self.positions if kind == TRANSFORMED else prod(p.kernel)
        filter_bytes = read * p.ic * oc_blocks * kv * self.vector_bytes
        reads = 1 + oc_blocks / (self.threads if shared else 1)
        moved = VISIBLE * _streaming(filter_bytes) + 2 * _streaming(data) + reads * _streaming(data * 2 / 3)
        cycles += blocks / self.threads * moved
        if not p.fixed and kind != PLAIN:
            cycles += filters / self.threads + 4 * _streaming(self.packed_size * ITEM_BYTES[p.dtype]) / self.threads
        waits = CALL_S * (self.threads > 1) + shared * blocks * BARRIER_S
        return cycles / CYCLES_PER_S * 64 / self.vector_bytes * ITEM_BYTES[p.dtype] / 4 + waits


def _streaming(size: float) -> float:
    """Cycles in which a core reads so many bytes, from beyond the second-level cache when they do not fit in it."""
    return size / (NEAR_PER_CYCLE if size < NEAR_BYTES else FAR_PER_CYCLE)


def _sides(problem: Problem) -> Iterator[tuple[int, int, bool]]:
    """Tile sizes to consider, and whether filters are cut; an axis of a single tap is not transformed."""
    r, s = problem.taps
    for mh in range(2, 7) if r > 1 else (1,):
        for mw in range(2, 7) if s > 1 else (1,):
            if (mh > problem.y[0] + 1) or (mw > problem.y[1] + 1):
                continue
            few = ceil(problem.y[0] / mh) * ceil(problem.y[1] / mw) <= MIXED_TILES
            if mh == mw or 1 in (r, s) or r != s or (few and abs(mh - mw) <= 2):
                if max(mh + r, mw + s) - 1 <= MOST_POINTS:
                    yield mh, mw, False
                if max(min(mh, r) + mh, min(mw, s) + mw) - 1 <= MOST_POINTS and (r > mh or s > mw):
                    yield mh, mw, True


def candidates(problem: Problem, threads: int, vector_bytes: int) -> Iterator[Blocking]:
    """Every blocking worth estimating."""
    vw = lanes(problem.dtype, vector_bytes)
    limit = registers(vector_bytes)
    size = ITEM_BYTES[problem.dtype]
    in_channels = ceil(problem.ic / vw) * vw
    for mh, mw, cut in _sides(problem):
        grid = ceil(problem.y[0] / mh), ceil(problem.y[1] / mw)
        all_rows = problem.batch * grid[0]
        shape = Blocking(problem, {"mh": mh, "mw": mw, "cut": int(cut)}, threads, vector_bytes)
        tile_bytes = shape.positions * problem.phases * in_channels * size
        targets = {(max(1, block // tile_bytes), 0) for block in BLOCK_BYTES}
        targets |= {(tiles, 1) for tiles in SHARED_TILES if tiles * tile_bytes <= SHARED_BYTES and threads > 1}
        blocks = {(*_block(target, grid[1], all_rows), shared) for target, shared in targets}
        for rows, columns, shared in sorted(blocks):
            single = rows * columns == all_rows * grid[1]
            together = columns if cut else rows * columns
            for vectors in (1, 2, 4):
                if (vectors - 1) * vw >= problem.oc:
                    continue
                most = (limit - 1 - vectors) // vectors
                tiles = ceil(together / ceil(together / most))
                base = {
                    "mh": mh, "mw": mw, "rows": rows, "columns": columns, "tiles": tiles, "vectors": vectors,
                    "shared": shared, "filters": TRANSFORMED, "chunk": in_channels,
                } | ({"cut": 1} if cut else {})  # fmt: skip
                if tiles < rows * columns:
                    depth = max(1, FILTER_BYTES // (vectors * vector_bytes * vw)) * vw
                    base["chunk"] = min(in_channels, depth)
                yield Blocking(problem, base, threads, vector_bytes)
                if single and shape.parts == 1 and (shared or threads == 1):
                    for chunk in {min(in_channels, ceil(chunk / vw) * vw) for chunk in CHUNKS}:
                        other = {"filters": LAID_OUT if problem.fixed else PLAIN, "chunk": chunk}
                        yield Blocking(problem, base | other, threads, vector_bytes)


def _block(target: int, columns: int, rows: int) -> tuple[int, int]:
    """Rows and columns of about `target` tiles, in blocks of equal size."""
    if target < columns:
        return 1, ceil(columns / ceil(columns / target))
    wanted = max(1, min(rows, round(target / columns)))
    return ceil(rows / ceil(rows / wanted)), columns
