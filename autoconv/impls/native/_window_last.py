"""Geometry of the sliding window over channels-last data where it lies (window_last.c), for `native.depthwise`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from autoconv.impls.native._forward import Forward
from autoconv.impls.native._window import Window, accumulators, c_text

__all__ = ["WindowInPlace", "in_place_blockings", "in_place_refusal"]

MOST_TAPS = 49  # of one filter: they are unrolled
CHUNK_BYTES = 192 * 1024  # of packed filters that stay in the second-level cache: long runs of channels matter more
LINE_CYCLES = 1.5  # to get a vector from the second-level cache
ROWS, COLUMNS = range(1, 7), range(1, 11)  # of a register block


def in_place_refusal(forward: Forward, channels_last: bool, columns: int | None = None) -> str | None:
    """Why the window cannot slide over the data where it lies (in blocks of `columns`), or None."""
    if not channels_last:
        return "reads channels-last data in place alone"
    if prod(forward.in_spatial[:1] + forward.kernel[:1]) != 1 or forward.out_channels != 1:
        return "in place it does images and one filter per channel"
    if forward.taps > MOST_TAPS:
        return f"in place it unrolls its taps, {MOST_TAPS} at most, got {forward.taps}"
    if columns is not None and not _inner_blocks_inside(forward, columns):
        return f"blocks of {columns} columns meet padding elsewhere than at both ends of a row"
    return None


def _inner_blocks_inside(forward: Forward, columns: int) -> bool:
    """Whether no block but the first and the last of a row reads outside the image."""
    last = (forward.out_spatial[2] - 1) // columns * columns
    if last <= columns:
        return True
    stride, reach = forward.stride[2], (forward.kernel[2] - 1) * forward.dilation[2]
    return columns * stride >= forward.pad[2] and (last - 1) * stride - forward.pad[2] + reach < forward.in_spatial[2]


@dataclass(frozen=True)
class WindowInPlace:
    """A window without a staged copy; `window` describes its register block."""

    window: Window

    @property
    def taps_bytes(self) -> int:
        """Packed filters of a vector of channels."""
        return self.window.forward.taps * self.window.vector_bytes

    @property
    def vectors(self) -> int:
        return ceil(self.window.forward.groups / self.window.lanes)

    @property
    def chunk(self) -> int:
        """Vectors of channels taken together, in parts of about equal size."""
        most = max(1, CHUNK_BYTES // self.taps_bytes)
        return ceil(self.vectors / ceil(self.vectors / most))

    @cached_property
    def strip(self) -> int:
        """Output rows per task: as many as leave every thread as much as the others."""
        f, threads = self.window.forward, self.window.threads
        blocks = ceil(f.out_spatial[1] / (self.window.rows * self.window.row_step))
        strips = next((s for s in range(1, blocks + 1) if f.batch * s % threads == 0), blocks)
        return ceil(blocks / strips) * self.window.rows * self.window.row_step

    @property
    def workspace_bytes(self) -> int:
        return 0

    @property
    def packed_bytes(self) -> int:
        return self.vectors * self.taps_bytes

    def source(self) -> str:
        """The C text: this problem's numbers, then the templates."""
        names = self.window.names | {"IN_PLACE": 1, "CHUNK": self.chunk, "STRIP": self.strip}
        return c_text(self.window, names, "window.c", "window_last.c")

    def seconds(self, gflops: float) -> float:
        """As `Window.seconds`; nothing is staged, so memory gives twice as much."""
        f = self.window.forward
        flops = 2.0 * f.batch * f.groups * f.taps * prod(f.out_spatial) / self.window.efficiency
        moved = f.batch * f.groups * (prod(f.in_spatial) + prod(f.out_spatial)) * self.window.itemsize
        per_s = gflops * 1e9 * self.window.vector_bytes / 64 * 4 / self.window.itemsize
        return max(flops / per_s, moved / 16e9) / self.window.threads


def in_place_blockings(forward: Forward, vector_bytes: int) -> list[tuple[float, dict[str, int]]]:
    """Register blocks as `blockings` gives them: useful sums per cycle, best first."""
    found = []
    _, p, q = forward.out_spatial
    _, height, width = forward.kernel
    for rows in (r for r in ROWS if r <= p):
        for columns in (c for c in COLUMNS if c <= q):
            if rows * columns > accumulators(vector_bytes) or not _inner_blocks_inside(forward, columns):
                continue
            sums = rows * columns * forward.taps
            # neighbouring taps read the same pixels if the stride lets them; unaligned vectors are two loads each
            span = min(columns * width, (columns - 1) * forward.stride[2] + width)
            loads = 2 * ((rows - 1) * forward.stride[1] + height) * span + rows * forward.taps
            cycles = max(sums / 2, loads / 2, 4 * forward.taps)
            # what neighbouring blocks share comes from the second-level cache again
            cycles += LINE_CYCLES * ((rows - 1) * forward.stride[1] + height) * span
            useful = p / (ceil(p / rows) * rows) * q / (ceil(q / columns) * columns)
            found.append((sums / cycles * useful, {"images": 1, "filters": 1, "rows": rows, "columns": columns}))
    return sorted(found, key=lambda pair: -pair[0])
