"""Geometry of the sliding-window kernel (window.c) that `native.direct`, `native.depthwise` and `native.toom` share.

`Window` takes the taps as they are; `Toom` has a window compute the products of a filter and an image that were
both cut into interleaved parts (window_toom.c). Volumes are in `_volume`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, gcd, prod
from typing import Any

from autoconv.impls.native._c import prelude, template
from autoconv.impls.native._forward import Forward

__all__ = ["STRIP_BYTES", "Toom", "Window", "blockings", "c_text"]

MAX_ROWS = 8  # output rows per block: beyond it the rim's code grows and saves few loads
STRIP_BYTES = 256 * 1024  # of staged input per task: a part of the second-level cache


def accumulators(vector_bytes: int) -> int:
    """Vector registers for sums; the others hold input and filter vectors."""
    return 24 if vector_bytes == 64 else 12


@dataclass(frozen=True)
class Window:
    """One problem cut into register blocks; the names in capitals are window.c's."""

    forward: Forward
    itemsize: int
    vector_bytes: int
    threads: int
    lanes_are_channels: bool
    images: int  # NB
    filters: int  # KB
    rows: int  # RB
    columns: int  # CB
    unroll_taps: bool

    @property
    def lanes(self) -> int:
        return self.vector_bytes // self.itemsize

    @property
    def row_step(self) -> int:
        """Rows of a block lie this far apart, so that a staged row serves several of them."""
        return self.forward.dilation[1] // gcd(self.forward.dilation[1], self.forward.stride[1])

    @property
    def tap_step(self) -> int:
        stride, dilation = self.forward.stride[2], self.forward.dilation[2]
        return 1 if self.lanes_are_channels else stride // gcd(stride, dilation)

    @property
    def stage_width(self) -> int:
        """Columns (of each phase) that the blocks of one output row read."""
        f = self.forward
        reach = (f.kernel[2] - 1) * f.dilation[2]
        if self.lanes_are_channels:
            q = ceil(f.out_spatial[2] / self.columns) * self.columns
            return (q - 1) * f.stride[2] + reach + 1
        block = self.columns * self.lanes
        return ceil(f.out_spatial[2] / block) * block + reach // f.stride[2]

    def stage_height(self, strip: int) -> int:
        f = self.forward
        block = self.rows * self.row_step
        padded = ceil(strip / block) * block
        return (padded - 1) * f.stride[1] + (f.kernel[1] - 1) * f.dilation[1] + 1

    def image_elements(self, strip: int) -> int:
        f = self.forward
        width = self.stage_width * (self.lanes if self.lanes_are_channels else f.stride[2])
        return f.in_channels * self.stage_height(strip) * width

    @property
    def strip(self) -> int:
        """Output rows per task: as many as the cache holds, and tasks enough for the threads."""
        p = self.forward.out_spatial[1]
        block = self.rows * self.row_step
        strips = 1
        groups = ceil(self.forward.groups / self.lanes) if self.lanes_are_channels else self.forward.groups
        independent = groups * ceil(self.forward.batch / self.images)
        while True:
            rows = ceil(ceil(p / strips) / block) * block
            fits = self.images * self.image_elements(rows) * self.itemsize <= STRIP_BYTES
            # the halo is staged anew for every strip: do not cut below a few filter heights
            low = rows <= max(block, 2 * (self.forward.kernel[1] - 1) * self.forward.dilation[1])
            busy = independent * ceil(p / rows) >= 2 * self.threads or self.threads == 1
            if rows <= block or ((fits or low) and (busy or (independent * ceil(p / rows) >= self.threads and low))):
                return min(rows, p)
            strips += 1

    @property
    def scratch_bytes(self) -> int:
        """Per thread: staged input and, for lanes across channels, the strip on its way out."""
        elements = self.images * self.image_elements(self.strip)
        if self.lanes_are_channels:
            q = ceil(self.forward.out_spatial[2] / self.columns) * self.columns
            elements += (self.strip * self.forward.out_spatial[2] + q) * self.lanes
        return ceil((elements + self.lanes) * self.itemsize / 64) * 64

    @property
    def workspace_bytes(self) -> int:
        return self.threads * self.scratch_bytes

    @property
    def packed_bytes(self) -> int:
        """Only lanes across channels need packed filters: one lane per channel."""
        f = self.forward
        return ceil(f.groups / self.lanes) * self.vector_bytes * f.taps if self.lanes_are_channels else 0

    @property
    def efficiency(self) -> float:
        """Useful share of the lanes and rows that the blocks compute."""
        f = self.forward
        _, p, q = f.out_spatial
        row_block, column_block = self.rows * self.row_step, self.columns
        if not self.lanes_are_channels:
            column_block *= self.lanes
        useful = p / (ceil(p / row_block) * row_block) * q / (ceil(q / column_block) * column_block)
        useful *= f.batch / (ceil(f.batch / self.images) * self.images)
        if self.lanes_are_channels:
            useful *= f.groups / (ceil(f.groups / self.lanes) * self.lanes)
        return useful

    @property
    def names(self) -> dict[str, object]:
        """The constants of window.c, window_stage.c and window_run.c."""
        f = self.forward
        names: dict[str, object] = {
            "LANES_ARE_CHANNELS": int(self.lanes_are_channels),
            "IN_PLACE": 0,
            "NB": self.images,
            "KB": self.filters,
            "RB": self.rows,
            "CB": self.columns,
            "N": f.batch,
            "GROUPS": f.groups,
            "CG": f.in_channels,
            "KG": f.out_channels,
            "BLOCK_H": f.in_spatial[1],
            "BLOCK_Y_C": f.y_strides[1],
            "W_BASE": f.w_base,
            "SIGMA": f.stride[1] // gcd(f.stride[1], f.dilation[1]),
            "ROW_STEP": self.row_step,
            "TAP_STEP": self.tap_step,
            "STRIP": self.strip,
            "STAGE_H": self.stage_height(self.strip),
            "STAGE_W": self.stage_width,
            "SCRATCH_BYTES": f"{self.scratch_bytes}L",
            "PACKED_T": self.packed_bytes // self.itemsize,
            "UNROLLED": int(self.unroll_taps),
            "UNROLL_TAPS": f'_Pragma("GCC unroll {min(f.kernel[2], 64) if self.unroll_taps else 1}")',
        }
        pads = tuple(f"({pad})" for pad in f.pad)
        for axes, values in (("DHW", f.in_spatial), ("ZPQ", f.out_spatial), ("_RS", f.kernel)):
            names |= dict(zip(axes[1:], values[1:], strict=True))
        names |= {"PT": pads[1], "PL": pads[2], "SH": f.stride[1], "SW": f.stride[2]}
        names |= {"DH": f.dilation[1], "DW": f.dilation[2]}
        for array, steps in (("X", f.x_strides), ("Y", f.y_strides)):
            names |= {f"{array}_{axis}": f"{step}L" for axis, step in zip("NCDHW", steps, strict=True)}
        return names | {f"W_{axis}": f"({step})" for axis, step in zip("GKCDRS", f.w_strides, strict=True)}

    def source(self) -> str:
        """The C text: this problem's numbers, then the templates."""
        return c_text(self, self.names, "window.c", "window_stage.c", "window_run.c")

    def seconds(self, gflops: float) -> float:
        """A rough time: blocks at `gflops` per thread, staging and output at memory speed."""
        f = self.forward
        flops = 2.0 * f.batch * f.groups * f.in_channels * f.out_channels * f.taps * prod(f.out_spatial)
        moved = f.batch * f.groups * (f.in_channels * prod(f.in_spatial) + f.out_channels * prod(f.out_spatial))
        per_s = gflops * 1e9 * self.vector_bytes / 64 * 4 / self.itemsize
        return (flops / self.efficiency / per_s + moved * self.itemsize / 8e9) / self.threads


TOOM_TAPS = 85.0
TOOM_BYTES = 1280 * 1024  # scratch of one task: it lives in the second-level cache


@dataclass(frozen=True)
class Toom:
    """A large filter in `parts` x `parts` interleaved ones; `window` describes one of the products."""

    forward: Forward
    parts: int
    window: Window

    @classmethod
    def of(cls, forward: Forward, parts: int, **blocking: Any) -> Toom:
        _, height, width = forward.kernel
        inner_h, inner_w = ceil(height / parts), ceil(width / parts)
        plane = inner_h * inner_w
        _, p, q = (ceil(size / parts) for size in forward.out_spatial)
        inner = replace(
            forward,
            kernel=(1, inner_h, inner_w),
            out_spatial=(1, p, q),
            w_base=0,
            w_strides=(0, forward.in_channels * plane, plane, plane, inner_w, 1),
        )
        return cls(forward, parts, Window(forward=inner, **blocking))

    @property
    def products(self) -> int:
        """Transformed parts along each axis: parts^2 pairs become this many products."""
        return 2 * self.parts - 1

    def elements(self, rows: int) -> int:
        """Scratch for `rows` rows of every product."""
        window, m = self.window, self.parts
        f = window.forward
        spread, width = window.stage_height(rows), window.stage_width
        row_in = m * (width + 2 * window.lanes)
        staged = f.in_channels * (m * (spread - 1) + self.products + spread) * row_in
        image = f.in_channels * spread * width + 2 * window.lanes
        result = rows * self.result_width
        return staged + image + f.out_channels * result * (1 + m + m * m) + window.lanes

    @property
    def result_width(self) -> int:
        return ceil(self.window.forward.out_spatial[2] / self.window.lanes) * self.window.lanes

    @property
    def rows(self) -> int:
        """Rows of every product in a task."""
        window = self.window
        f = window.forward
        blocks = ceil(f.out_spatial[1] / window.rows)
        strips = 1
        while strips < blocks:
            rows = ceil(blocks / strips) * window.rows
            tasks = f.batch * f.groups * ceil(f.out_spatial[1] / rows)
            # a strip much lower than the filter would mostly stage and transform what its neighbours do too
            low = rows <= f.kernel[1]
            fits = self.elements(rows) * window.itemsize <= TOOM_BYTES
            if (fits or low) and (tasks % window.threads == 0 or tasks > 4 * window.threads):
                break
            strips += 1
        return ceil(blocks / strips) * window.rows

    @property
    def workspace_bytes(self) -> int:
        return self.window.threads * self._scratch_bytes

    @property
    def _scratch_bytes(self) -> int:
        return ceil(self.elements(self.rows) * self.window.itemsize / 64) * 64

    @property
    def packed_bytes(self) -> int:
        f = self.window.forward
        return self.products**2 * f.groups * f.in_channels * f.out_channels * f.taps * self.window.itemsize

    @property
    def efficiency(self) -> float:
        """Products a direct sum would take over those computed, less what the transforms cost."""
        f, inner, window = self.forward, self.window.forward, self.window
        done = self.products**2 * inner.taps * prod(inner.out_spatial)
        # measured: staging, transforming both ways and interleaving cost what this many taps of each product do
        overhead = 1 + TOOM_TAPS * (1 + inner.in_channels) / (inner.taps * inner.in_channels)
        halo = 1 + 0.02 * window.stage_height(self.rows) / self.rows
        return window.efficiency * f.taps * prod(f.out_spatial) / done / overhead / halo

    def source(self) -> str:
        from autoconv.impls._winograd import matrices  # writing the C of this one family alone needs them

        f, toom = self.forward, matrices(self.parts, self.parts)
        names = self.window.names | {
            "PARTS": self.parts,
            "P": f.out_spatial[1],
            "STRIP": self.rows * self.parts,
            "STAGE_H": self.window.stage_height(self.rows),
            "FULL_Q": f.out_spatial[2],
            "FULL_R": f.kernel[1],
            "FULL_S": f.kernel[2],
            "W_BASE": f.w_base,
            "BLOCK_H": "(1 << 30)",
            "BLOCK_Y_C": self.rows * self.result_width,
            "RESULT_W": self.result_width,
            "SCRATCH_BYTES": f"{self._scratch_bytes}L",
            "DATA_MATRIX": _matrix(toom.data.tolist()),
            "FILTER_MATRIX": _matrix(toom.filters.tolist()),
            "INVERSE_MATRIX": _matrix(toom.inverse.tolist()),
            **{f"FULL_W_{axis}": f"({step})" for axis, step in zip("GKCDRS", f.w_strides, strict=True)},
        }
        return c_text(self.window, names, "window.c", "window_toom.c")

    def seconds(self, gflops: float) -> float:
        """As `Window.seconds`."""
        flops = 2.0 * self.forward.batch * self.forward.groups * self.forward.in_channels * self.forward.out_channels
        flops *= self.forward.taps * prod(self.forward.out_spatial)
        per_s = gflops * 1e9 * self.window.vector_bytes / 64 * 4 / self.window.itemsize
        return flops / self.efficiency / per_s / self.window.threads


def c_text(window: Window, names: dict[str, object], *templates: str) -> str:
    """Vocabulary, constants and templates of one unit."""
    dtype = "f32" if window.itemsize == 4 else "f64"
    header = "".join(f"#define {name} {value}\n" for name, value in names.items())
    return prelude(dtype, window.vector_bytes, window.threads) + header + "\n" + "\n".join(map(template, templates))


def _matrix(rows: list[list[float]]) -> str:
    return ", ".join("{" + ", ".join(map(repr, row)) + "}" for row in rows)


def blockings(
    forward: Forward, itemsize: int, vector_bytes: int, threads: int, lanes_are_channels: bool = False, parts: int = 1
) -> list[tuple[float, dict[str, int]]]:
    """Register blocks that fit the registers, with the useful sums per cycle one may hope for, best first."""
    whole = Toom.of(forward, parts, **_block(1, 1, 1, 1, itemsize, vector_bytes, threads, False)).window.forward
    f = whole if parts > 1 else forward
    lanes, budget = vector_bytes // itemsize, accumulators(vector_bytes)
    most_columns = f.out_spatial[2] if lanes_are_channels else ceil(f.out_spatial[2] / lanes)
    step = f.dilation[1] // gcd(f.dilation[1], f.stride[1])
    images = 1
    if not lanes_are_channels and parts == 1:  # narrow images: several of them fill the registers
        images = max(n for n in (1, 2, 4) if n == 1 or (n <= f.batch and n * most_columns <= 2))
    found = []
    for filters in (k for k in (1, 2, 3, 4) if f.out_channels % k == 0):
        for columns in range(1, min(most_columns, 8) + 1):
            for rows in range(1, min(MAX_ROWS, ceil(f.out_spatial[1] / step)) + 1):
                sums = filters * rows * columns * images
                if sums > budget:
                    continue
                blocking = _block(images, filters, rows, columns, itemsize, vector_bytes, threads, lanes_are_channels)
                window = Window(forward=f, **blocking)
                useful = Toom.of(forward, parts, **blocking).efficiency if parts > 1 else window.efficiency
                # a row at the rim serves fewer output rows; unaligned vectors along the width are two loads each
                share = f.kernel[1] / (f.kernel[1] + (rows - 1) * f.stride[1])
                loads = columns * images * (1 if lanes_are_channels else 2) / share + filters * rows
                cycles = max(sums / 2, loads / 2, 4 if sums < 8 else 0)
                found.append(
                    (sums / cycles * useful, {"images": images, "filters": filters, "rows": rows, "columns": columns})
                )
    return sorted(found, key=lambda pair: -pair[0])


def _block(
    images: int, filters: int, rows: int, columns: int, itemsize: int, vector_bytes: int, threads: int, across: bool
) -> dict[str, Any]:
    return {
        "itemsize": itemsize, "vector_bytes": vector_bytes, "threads": threads, "lanes_are_channels": across,
        "images": images, "filters": filters, "rows": rows, "columns": columns, "unroll_taps": False,
    }  # fmt: skip
