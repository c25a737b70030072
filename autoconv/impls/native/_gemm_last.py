"""The channels-last half of `native.gemm`: blocking and constants for gemm_last.c."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any

from autoconv.impls.native._c import ITEM_BYTES, prelude, template
from autoconv.impls.native._passes import Pass, Problem, Staging, as_passes
from autoconv.spec import ConvSpec

__all__ = ["LastBlocking"]

STAGED_BYTES = 640 * 1024  # of input per task: it is read once per block of filters, from the second-level cache
HEAVY_BYTES = 1024 * 1024  # packed filters of this size do not stay in a second-level cache from task to task
RESULT_BYTES = 640 * 1024  # of results per task, where they are visited once for every chunk of filters
CHUNK_BYTES = 32 * 1024  # of packed filters, which every block of pixels reads: most of a first-level cache


@dataclass(frozen=True)
class LastBlocking:
    """One channels-last problem cut into tasks and register blocks; the names in capitals are gemm_last.c's."""

    spec: ConvSpec
    config: dict[str, Any]
    threads: int
    vector_bytes: int

    @cached_property
    def problem(self) -> Problem:
        return as_passes(self.spec, max(1, 2 * self.threads // self.spec.batch))

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES[self.spec.dtype]

    @property
    def lanes(self) -> int:
        return self.vector_bytes // self.itemsize

    @property
    def nk(self) -> int:
        """Filters of a register block."""
        return self.lanes * int(self.config["nv"])

    @property
    def staged(self) -> bool:
        """Without padding the input is read where it lies."""
        return not self.problem.inside

    @property
    def padded_filters(self) -> int:
        return ceil(self.problem.filters / self.lanes) * self.lanes

    def staging(self, rows: int, images: int) -> Staging:
        return Staging(self.problem, rows, images, last=True)

    @cached_property
    def chunks_first(self) -> bool:
        """Whether a task takes all its filters chunk by chunk: they are heavy, and its input need not be staged."""
        problem = self.problem
        heavy = problem.filters * problem.channels * len(problem.passes[0].taps) * self.itemsize > HEAVY_BYTES
        few = problem.batch * prod(problem.counts) * ceil(problem.filters / self.threads) * self.itemsize
        return heavy and not self.staged and problem.counts[0] == 1 and few < 4 * RESULT_BYTES

    def _heavy_task(self) -> tuple[int, int, int]:
        """Every thread its share of the filters, over as many images as there is room for their results."""
        _, height, width = self.problem.counts
        filters = ceil(ceil(self.problem.filters / self.threads) / self.nk) * self.nk
        per_row = width * filters * self.itemsize
        images = max(1, min(self.problem.batch, RESULT_BYTES // (height * per_row)))
        images = ceil(self.problem.batch / ceil(self.problem.batch / images))
        rows = height if images > 1 else max(1, min(height, RESULT_BYTES // per_row))
        return images, rows, filters

    @cached_property
    def task(self) -> tuple[int, int, int]:
        """Images, output rows and filters of one task."""
        if self.chunks_first:
            return self._heavy_task()
        problem = self.problem
        depth, height, width = problem.counts
        blocks, images = 1, 1
        while self.staging(ceil(height / blocks), 1).elements * self.itemsize > STAGED_BYTES and blocks < height:
            blocks += 1
        if blocks == 1:
            per_image = self.staging(height, 1).elements * self.itemsize
            while images < problem.batch and (images + 1) * per_image <= STAGED_BYTES:
                if images * height * width >= 128 and ceil(problem.batch / (images + 1)) < 2 * self.threads:
                    break
                images += 1
        outer = problem.groups * depth * ceil(problem.batch / images)
        while outer * blocks < 2 * self.threads and ceil(height / (blocks + 1)) * width >= 64:
            blocks += 1
        rows = ceil(height / blocks)
        tasks, splits, most = outer * ceil(height / rows), 1, ceil(problem.filters / self.nk)
        while self.threads > 1 and tasks < 4 * self.threads and splits < most:
            if tasks * splits >= self.threads and tasks * splits % self.threads == 0:
                break
            splits += 1
        return images, rows, ceil(most / splits) * self.nk

    def runs(self, taps: Pass, staging: Staging) -> list[tuple[int, int]]:
        """(offset, length) of the contiguous input elements that the taps of one pixel read."""
        channels = self.problem.channels
        runs: list[tuple[int, int]] = []
        for _, tap in _ordered(taps):
            if self.staged:
                offset = staging.offset(tap)
            else:
                offset = sum(o * s for o, s in zip(tap, self.problem.x_strides[2:], strict=True))
            if runs and sum(runs[-1]) == offset:
                runs[-1] = runs[-1][0], runs[-1][1] + channels
            else:
                runs.append((offset, channels))
        return runs

    def chunks(self, runs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The runs, cut so that the filters of a chunk stay in cache."""
        most = max(16, CHUNK_BYTES // (self.nk * self.itemsize))
        total = sum(length for _, length in runs)
        most = ceil(total / max(1, ceil(total / most)))
        chunks: list[list[tuple[int, int]]] = []
        room = 0
        for offset, length in runs:
            while length:
                if not room:
                    chunks.append([])
                    room = most
                take = min(length, room)
                chunks[-1].append((offset, take))
                offset, length, room = offset + take, length - take, room - take
        return chunks

    @property
    def scratch_bytes(self) -> int:
        """Per thread: the staged input of one task."""
        images, rows, _ = self.task
        elements = self.staging(rows, images).elements if self.staged else 0
        return ceil(elements * self.itemsize / 64) * 64

    @property
    def packed_bytes(self) -> int:
        taps = sum(len(p.taps) for p in self.problem.passes)
        return self.problem.groups * self.padded_filters * self.problem.channels * taps * self.itemsize

    def source(self) -> str:
        problem = self.problem
        images, rows, filters = self.task
        staging, x = self.staging(rows, images), problem.x_strides
        run_table: list[str] = []
        chunk_table: list[str] = []
        pass_table: list[str] = []
        tap_index: list[int] = []
        filter_elements = 0
        for p in problem.passes:
            chunks = self.chunks(self.runs(p, staging))
            start, count = ("{" + ", ".join(map(str, triple)) + "}" for triple in (p.start, p.count))
            all_steps = len(p.taps) * problem.channels
            pass_table.append(
                f"{{{len(chunk_table)}, {len(chunks)}, {all_steps}, {filter_elements}L, {start}, {count}}}"
            )
            filter_elements += problem.groups * self.padded_filters * all_steps
            first_step = 0
            for chunk in chunks:
                steps = sum(length for _, length in chunk)
                chunk_table.append(f"{{{len(run_table)}, {len(chunk)}, {first_step}, {steps}}}")
                first_step += steps
                run_table += [f"{{{offset}, {length}}}" for offset, length in chunk]
            tap_index += [element for element, _ in _ordered(p)]
        image, row, column, _ = staging.steps
        if not self.staged:
            image, row, column = x[0], x[3] * problem.in_step[1], x[4] * problem.in_step[2]
        names: dict[str, object] = {
            "CHANNELS_LAST": 1,
            "MP": self.config["mp"],
            "NV": self.config["nv"],
            "K_REST": problem.filters % self.nk or self.nk,
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
            **staging.names,
            "IN_IMAGE": f"{image}L",
            "IN_ROW": f"{row}L",
            "IN_COLUMN": f"{column}L",
            "EVEN": f"{column}L",
            "X_STEP": 1,
            "FETCH_AHEAD": 1,
            "CHUNKS_FIRST": int(self.chunks_first),
            "PASSES": len(problem.passes),
            "PASS_TABLE": ", ".join(pass_table),
            "CHUNKS": ", ".join(chunk_table) or "{0}",
            "RUNS": ", ".join(run_table) or "{0}",
            "TAP_INDEX": ", ".join(map(str, tap_index)) or "0",
            "TAPS": ", ".join(str(len(p.taps)) for p in problem.passes),
            "SCRATCH_BYTES": f"{self.scratch_bytes}L",
        }
        names |= problem.names
        header = "".join(f"#define {name} {value}\n" for name, value in names.items())
        start = prelude(self.spec.dtype, self.vector_bytes, self.threads)
        return start + header + "\n" + template("gemm_stage.c") + template("gemm_outer.c") + template("gemm_last.c")


def _ordered(taps: Pass) -> list[tuple[int, tuple[int, int, int]]]:
    """A pass's taps in the order of the input elements they read, so that neighbours join into runs."""
    return sorted(taps.taps, key=lambda tap: tap[1])
