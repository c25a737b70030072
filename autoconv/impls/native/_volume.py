"""Geometry of the sliding window over volumes: one output depth at a time, depth taps as further channels.

The planes that the depth taps of a filter meet are summed as channels are, so window.c serves volumes as it is;
window_volume.c stages the planes, packs the filters in their order, and cuts the volume into tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from autoconv.impls.native._forward import Forward
from autoconv.impls.native._window import STRIP_BYTES, Window, c_text

__all__ = ["Volume", "plane_of"]


def plane_of(forward: Forward) -> Forward:
    """The problem of one output depth: [depth tap][channel] for channels, filters packed (`forward` itself if flat)."""
    if forward.in_spatial[0] == forward.out_spatial[0] == forward.kernel[0] == 1 and not forward.pad[0]:
        return forward
    depth_taps, height, width = forward.kernel
    channels, taps = depth_taps * forward.in_channels, height * width
    return replace(
        forward,
        in_channels=channels,
        in_spatial=(1, *forward.in_spatial[1:]),
        out_spatial=(1, *forward.out_spatial[1:]),
        kernel=(1, height, width),
        w_base=0,
        w_strides=(forward.out_channels * channels * taps, channels * taps, taps, 0, width, 1),
    )


@dataclass(frozen=True)
class Volume:
    """A problem of three axes; `window` describes one output depth of it."""

    forward: Forward
    window: Window

    @property
    def lane_groups(self) -> int:
        """Groups that one vector holds."""
        return self.window.lanes if self.window.lanes_are_channels else 1

    def planes(self, depths: int) -> int:
        """Input planes that `depths` neighbouring outputs read."""
        return (depths - 1) * self.forward.stride[0] + self.forward.kernel[0]

    def staged_elements(self, strip: int, depths: int) -> int:
        """Scratch for the input of a task."""
        per_tap = self.window.image_elements(strip) // self.forward.kernel[0]
        return self.window.images * self.planes(depths) * per_tap

    @cached_property
    def task(self) -> tuple[int, int]:
        """Output rows and depths per task: as many as the cache holds, and tasks enough for the threads."""
        window = self.window
        f, (z, p, _) = window.forward, self.forward.out_spatial
        block = window.rows * window.row_step
        # the halo is staged anew for every strip: do not cut below a few filter heights
        least = max(block, 2 * (f.kernel[1] - 1) * f.dilation[1])
        independent = ceil(f.groups / self.lane_groups) * ceil(f.batch / window.images)

        def fits(rows: int, depths: int) -> bool:
            return self.staged_elements(rows, depths) * window.itemsize <= STRIP_BYTES

        def busy(tasks: int) -> bool:
            return window.threads == 1 or tasks >= 2 * window.threads

        strips, rows = 1, ceil(p / block) * block
        while rows > least and not (fits(rows, 1) and busy(independent * z * ceil(p / rows))):
            strips += 1
            rows = ceil(ceil(p / strips) / block) * block
        rows = min(rows, p)
        independent *= ceil(p / rows)
        # neighbouring depths share planes when these lie one apart, and (window.c's IMAGE_T) with one image
        shared = self.forward.dilation[0] == 1 and self.forward.stride[0] < self.forward.kernel[0]
        slabs = 1 if shared and window.images == 1 else z
        while slabs < z and not (fits(rows, ceil(z / slabs)) and busy(independent * slabs)):
            slabs += 1
        return rows, ceil(z / slabs)

    @property
    def scratch_bytes(self) -> int:
        """Per thread: as `Window.scratch_bytes`."""
        window, (rows, depths) = self.window, self.task
        elements = self.staged_elements(rows, depths)
        if window.lanes_are_channels:
            q = self.forward.out_spatial[2]
            elements += (rows * q + ceil(q / window.columns) * window.columns) * window.lanes
        return ceil((elements + window.lanes) * window.itemsize / 64) * 64

    @property
    def workspace_bytes(self) -> int:
        return self.window.threads * self.scratch_bytes

    @property
    def packed_bytes(self) -> int:
        f = self.forward
        groups = ceil(f.groups / self.lane_groups) * self.lane_groups
        return groups * f.out_channels * f.in_channels * f.taps * self.window.itemsize

    def source(self) -> str:
        """The C text: this problem's numbers, then the templates."""
        f, window, (rows, depths) = self.forward, self.window, self.task
        names = window.names | {
            "D": f.in_spatial[0],
            "Z": f.out_spatial[0],
            "DEPTH_TAPS": f.kernel[0],
            "CHANNELS": f.in_channels,
            "PF": f"({f.pad[0]})",
            "SD": f.stride[0],
            "DD": f.dilation[0],
            "LANE_GROUPS": self.lane_groups,
            "STRIP": rows,
            "STAGE_H": window.stage_height(rows),
            "DEPTHS": depths,
            "STAGED_T": f"{self.staged_elements(rows, depths)}L",
            "SCRATCH_BYTES": f"{self.scratch_bytes}L",
            "FULL_W_BASE": f.w_base,
            **{f"FULL_W_{axis}": f"({step})" for axis, step in zip("GKCDRS", f.w_strides, strict=True)},
        }
        if window.lanes_are_channels:
            names["W_C"] = f"({f.kernel[1] * f.kernel[2] * window.lanes})"
        return c_text(window, names, "window.c", "window_stage.c", "window_volume.c")

    def seconds(self, gflops: float) -> float:
        """As `Window.seconds`."""
        return self.forward.out_spatial[0] * self.window.seconds(gflops)
