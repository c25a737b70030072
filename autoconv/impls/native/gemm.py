"""`native.gemm`: implicit GEMM with packed filters, generated C; any kernel, stride, dilation, groups and padding.

Source: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008 (packed panels, a register
        block of sums); the patches are formed on the fly, as in cuDNN's implicit GEMM (Chetlur et al., 2014).
Wins:   1x1, strided layers, first layers, large kernels over many channels.  Loses: 3x3 stride 1 (Winograd).
Error:  that of a plain sum over channels and taps in the array's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from autoconv.impls.native._c import ITEM_BYTES, prelude, registers, template
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._gemm_last import LastBlocking
from autoconv.impls.native._gemm_wgrad import WgradBlocking
from autoconv.impls.native._passes import Problem, Staging, as_passes
from autoconv.spec import ConvSpec

__all__ = ["Gemm"]

STAGED_BYTES = 640 * 1024  # of input per task: it is read once per block of filters, from the second-level cache
PANEL_BYTES = 384 * 1024  # of packed patches, which share that cache
FILTER_BYTES = 512 * 1024  # of packed filters: up to this they are read anew for every panel, beyond it once
LAST_CONFIGS = 4  # register blocks raced for channels-last data
MAX_STEPS = 1024  # (channel, tap) steps between visits to the sums: the packed filters of a block stay in cache


class Gemm(NativeFamily):
    """Packed filters times patches, for any geometry."""

    name = "native.gemm"
    tags = frozenset({"native", "gemm"})
    version = 2
    ranks = frozenset({1, 2, 3})

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        blocks = [(8, 3), (12, 2), (6, 4)] if registers(vector_bytes) == 32 else [(4, 3), (6, 2)]
        if spec.layout == "nhwc" and spec.op != "wgrad":
            if registers(vector_bytes) == 32:
                blocks += [(5, 5), (4, 6), (7, 3), (14, 2)]
            speeds = {block: _last_speed(spec, *block, threads, vector_bytes) for block in blocks}
            return [{"mp": mp, "nv": nv} for mp, nv in sorted(blocks, key=lambda b: -speeds[b])[:LAST_CONFIGS]]
        if spec.op == "wgrad":
            lanes = vector_bytes // ITEM_BYTES[spec.dtype]
            filters = (spec.in_channels if spec.op == "dgrad" else spec.out_channels) // spec.groups
            useful = {nv: filters / (ceil(filters / (nv * lanes)) * nv * lanes) for _, nv in blocks}
            return [{"mp": mp, "nv": nv} for mp, nv in sorted(blocks, key=lambda block: -useful[block[1]])]
        problem = as_passes(spec)
        taps = prod(spec.kernel)
        waste = _Blocking(spec, {"mr": 8, "nv": 3, "patches": "rows"}, threads, vector_bytes).wasted_columns
        orders = ["panels", "rows"] if taps == 1 or waste > 1.15 else ["rows", "panels"]
        if taps == 1 and problem.inside:
            orders = ["panels"]
        return [{"mr": mr, "nv": nv, "patches": patches} for patches in orders for mr, nv in blocks]

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        return _blocking(spec, tunables, threads, vector_bytes).source()

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        blocking = _blocking(spec, tunables, threads, vector_bytes)
        return blocking.workspace_bytes if isinstance(blocking, WgradBlocking) else threads * blocking.scratch_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _blocking(spec, tunables, threads, vector_bytes).packed_bytes

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        """Sums at two thirds of a vector unit's peak, patches and arrays at cache speed."""
        flops_per_s = 110e9 * vector_bytes / 64 * 4 / ITEM_BYTES[spec.dtype]
        blocking = _blocking(spec, tunables, threads, vector_bytes)
        problem = blocking.problem
        pixels = problem.batch * prod(problem.counts)
        moved = spec.batch * problem.groups * problem.channels * prod(problem.in_spatial)
        moved += spec.batch * problem.groups * problem.filters * prod(problem.out_spatial)
        if isinstance(blocking, _Blocking):
            flops = 2.0 * spec.macs * (1.0 if blocking.panels else blocking.wasted_columns)
            flops *= ceil(pixels / blocking.nr) * blocking.nr / pixels
            if blocking.panels:
                moved += pixels * problem.groups * problem.channels * blocking.max_taps
        elif isinstance(blocking, LastBlocking):
            flops = 2.0 * spec.macs * blocking.padded_filters / problem.filters
        else:
            flops = 2.0 * spec.macs * ceil(problem.filters / blocking.nk) * blocking.nk / problem.filters
        return float(flops / flops_per_s + moved * blocking.itemsize / 16e9) / threads


def _last_speed(spec: ConvSpec, mp: int, nv: int, threads: int, vector_bytes: int) -> float:
    """Useful products per cycle of a channels-last register block, roughly: what orders the blocks."""
    blocking = LastBlocking(spec, {"mp": mp, "nv": nv}, threads, vector_bytes)
    width, filters = blocking.problem.counts[2], blocking.problem.filters
    whole, rest = divmod(blocking.padded_filters // blocking.lanes, nv)
    # two products a cycle, two loads, and the loop; broken rows of pixels are addressed one by one
    cycles = whole * (max(mp * nv, mp + nv) + 2) + (max(mp * rest, mp + rest) + 2 if rest else 0)
    straight = 1.0 if width % mp == 0 else max(0.0, 1 - (mp - 1) / width)
    return mp * filters / cycles * (0.85 + 0.15 * straight)


def _blocking(
    spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int
) -> _Blocking | LastBlocking | WgradBlocking:
    if spec.op == "wgrad":
        return WgradBlocking(spec, tunables, threads, vector_bytes)
    kind = LastBlocking if spec.layout == "nhwc" else _Blocking
    return kind(spec, tunables, threads, vector_bytes)


@dataclass(frozen=True)
class _Blocking:
    """One problem cut into tasks, panels and register blocks; the names in capitals are gemm.c's."""

    spec: ConvSpec
    config: Tunables
    threads: int
    vector_bytes: int

    @cached_property
    def problem(self) -> Problem:
        return as_passes(self.spec, max(1, 2 * self.threads // self.spec.batch))

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES[self.spec.dtype]

    @property
    def nr(self) -> int:
        """Pixels of a register block."""
        lanes: int = self.vector_bytes // self.itemsize
        return lanes * int(self.config["nv"])

    @property
    def panels(self) -> bool:
        return bool(self.config["patches"] == "panels")

    @property
    def staged(self) -> bool:
        """Panels of unpadded patches are packed straight from the input where its pixels are neighbours."""
        return not (self.panels and self.problem.inside and self.problem.in_step[2] == 1)

    def staging(self, rows: int, images: int) -> Staging:
        return Staging(self.problem, rows, images, last=False)

    @property
    def wasted_columns(self) -> float:
        """How much more the kernel computes when it runs over the columns between rows."""
        return self.staging(1, 1).width / self.problem.counts[2]

    @cached_property
    def task(self) -> tuple[int, int, int]:
        """Images, output rows and filters of one task."""
        problem, mr = self.problem, int(self.config["mr"])
        depth, height, width = problem.counts
        images, blocks = 1, 1

        def fits(rows: int, images: int) -> bool:
            if self.staged:
                return self.staging(rows, images).elements * self.itemsize <= STAGED_BYTES
            return images * rows * width * problem.channels * self.itemsize <= 2 * STAGED_BYTES

        while not fits(ceil(height / blocks), 1) and blocks < height:
            blocks += 1
        outer = problem.groups * depth
        if blocks == 1:
            while images < problem.batch and fits(height, images + 1) and images * height * width < 8 * self.nr:
                images += 1
            images = ceil(problem.batch / ceil(problem.batch / images))
        outer *= ceil(problem.batch / images)
        # rows are cut further for the threads' sake, as long as a task keeps several register blocks of pixels
        while outer * blocks < 2 * self.threads and ceil(height / (blocks + 1)) * width >= 4 * self.nr:
            blocks += 1
        rows = ceil(height / blocks)
        tasks, splits = outer * ceil(height / rows), 1
        most = ceil(problem.filters / mr)
        while self.threads > 1 and tasks < 4 * self.threads and splits < most:
            if tasks * splits >= self.threads and tasks * splits % self.threads == 0:
                break
            splits += 1
        return images, rows, ceil(most / splits) * mr

    @property
    def max_taps(self) -> int:
        return max(len(p.taps) for p in self.problem.passes)

    @property
    def channel_block(self) -> int:
        """Channels whose products are summed before the sums leave the registers."""
        channels, taps = self.problem.channels, max(1, self.max_taps)
        if channels * taps <= MAX_STEPS * 3 // 2 or not self.panels:
            return channels
        return ceil(channels / ceil(channels * taps / MAX_STEPS))

    @property
    def panel_group(self) -> int:
        """Panels packed together: the filters are read once for all of them."""
        images, rows, _ = self.task
        if not self.panels:
            return ceil(self.staging(rows, images).steps[0] * images / self.nr)
        panel = self.channel_block * max(1, self.max_taps) * self.nr * self.itemsize
        return max(1, min(PANEL_BYTES // panel, ceil(images * rows * self.problem.counts[2] / self.nr)))

    @property
    def elements(self) -> tuple[int, int, int]:
        """Scratch per thread: staged input, packed panels, sums between channel blocks; whole cache lines each."""
        images, rows, filters = self.task
        staged = self.staging(rows, images).elements + 2 * self.nr if self.staged else 0
        lanes = self.nr // int(self.config["nv"])
        panel = self.nr * self.channel_block * self.max_taps + lanes
        panels = self.panel_group * panel + self.nr if self.panels else 0
        sums = filters * self.panel_group * self.nr if self.channel_block < self.problem.channels else 0
        first, second, third = (ceil(n * self.itemsize / 64) * 64 // self.itemsize for n in (staged, panels, sums))
        return first, second, third

    @property
    def scratch_bytes(self) -> int:
        return sum(self.elements) * self.itemsize

    @property
    def packed_bytes(self) -> int:
        problem = self.problem
        taps = sum(len(p.taps) for p in problem.passes)
        return problem.groups * problem.filters * problem.channels * taps * self.itemsize

    def source(self) -> str:
        problem = self.problem
        images, rows, filters = self.task
        staged, panels, _ = self.elements
        staging = self.staging(rows, images)
        x = problem.x_strides
        offsets, tap_index, table, first, filter_elements = [], [], [], 0, 0
        for p in problem.passes:
            if self.staged:
                offsets += [staging.offset(offset) for _, offset in p.taps]
            else:
                offsets += [sum(o * s for o, s in zip(offset, x[2:], strict=True)) for _, offset in p.taps]
            tap_index += [element for element, _ in p.taps]
            start, count = ("{" + ", ".join(map(str, triple)) + "}" for triple in (p.start, p.count))
            table.append(f"{{{first}, {len(p.taps)}, {filter_elements}L, {start}, {count}}}")
            first += len(p.taps)
            filter_elements += problem.groups * problem.channels * problem.filters * len(p.taps)
        names: dict[str, object] = {
            "MR": self.config["mr"],
            "MR_REST": problem.filters % self.config["mr"] or self.config["mr"],
            "NV": self.config["nv"],
            "CHANNELS_LAST": 0,
            "PANELS": int(self.panels),
            "STAGED": int(self.staged),
            "N": problem.batch,
            "GROUPS": problem.groups,
            "CG": problem.channels,
            "KG": problem.filters,
            "Z": problem.counts[0],
            "P": problem.counts[1],
            "IMAGES": images,
            "ROWS": rows,
            "FILTERS": filters,
            "CHANNEL_BLOCK": self.channel_block,
            "PANEL_GROUP": self.panel_group,
            "FILTERS_INSIDE": int(filters * self.channel_block * self.max_taps * self.itemsize <= FILTER_BYTES),
            "MAX_TAPS": self.max_taps,
            **staging.names,
            **({} if self.staged else {"CHANNEL_T": f"{x[1]}L"}),
            "INPUT_IMAGE": f"{staging.steps[0] if self.staged else x[0]}L",
            "INPUT_ROW": f"{staging.steps[1] if self.staged else x[3] * problem.in_step[1]}L",
            "PASSES": len(problem.passes),
            "PASS_TABLE": ", ".join(table),
            "OFFSETS": _list(offsets),
            "TAP_INDEX": _list(tap_index),
            "X_SIZE": f"{x[0] * problem.batch}L",
            "STAGE_T": f"{staged}L",
            "PANELS_T": f"{panels}L",
            "SCRATCH_BYTES": f"{self.scratch_bytes}L",
        }
        names |= problem.names
        header = "".join(f"#define {name} {value}\n" for name, value in names.items())
        start = prelude(self.spec.dtype, self.vector_bytes, self.threads)
        return start + header + "\n" + template("gemm_stage.c") + template("gemm.c")


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values)) or "0"
