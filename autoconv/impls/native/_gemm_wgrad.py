"""The weight-gradient part of `native.gemm`: blocking and constants for gemm_wgrad.c."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

from autoconv.impls.native._c import ITEM_BYTES, prelude, template
from autoconv.impls.native._passes import Problem, Staging, as_passes
from autoconv.spec import ConvSpec, Op

__all__ = ["WgradBlocking"]

CHUNK_PIXELS = 768  # a block's packed gradient then fills part of the second-level cache; sums are visited rarely


@dataclass(frozen=True)
class WgradBlocking:
    """One weight gradient cut into chunks of pixels and register tiles; names in capitals are gemm_wgrad.c's."""

    spec: ConvSpec
    config: dict[str, Any]
    threads: int
    vector_bytes: int

    @cached_property
    def problem(self) -> Problem:
        return as_passes(replace(self.spec, op=Op.FPROP))

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES[self.spec.dtype]

    @property
    def nk(self) -> int:
        """Output channels of a register tile."""
        return self.vector_bytes // self.itemsize * int(self.config["nv"])

    @property
    def last(self) -> bool:
        return self.spec.layout == "nhwc"

    @property
    def staged(self) -> bool:
        return not (self.problem.inside and (self.last or self.problem.in_step[2] == 1))

    @cached_property
    def chunk(self) -> tuple[int, int]:
        """Images and output rows of a chunk."""
        _, height, width = self.problem.counts
        if height * width >= CHUNK_PIXELS:
            blocks = ceil(height * width / CHUNK_PIXELS)
            return 1, ceil(height / min(blocks, height))
        return min(self.problem.batch, CHUNK_PIXELS // (height * width)), height

    @cached_property
    def staging(self) -> Staging:
        images, rows = self.chunk
        return Staging(self.problem, rows, images, self.last)

    @property
    def packed_bytes(self) -> int:
        return 0

    @property
    def workspace_bytes(self) -> int:
        """Packed output gradient, sums and staged input, shared by all threads."""
        problem, (images, rows) = self.problem, self.chunk
        blocks = ceil(problem.filters / self.nk) * self.nk
        elements = blocks * images * rows * problem.counts[2]
        elements += blocks * problem.channels * prod(self.spec.kernel)
        if self.staged:
            elements += self.staging.elements
        return elements * self.itemsize

    def source(self) -> str:
        problem, staging = self.problem, self.staging
        images, rows = self.chunk
        x = problem.x_strides
        taps = problem.passes[0].taps
        if self.staged:
            offsets = [staging.offset(offset) for _, offset in taps]
        else:
            offsets = [sum(o * s for o, s in zip(offset, x[2:], strict=True)) for _, offset in taps]
        names: dict[str, object] = {
            "MP": self.config["mp"],
            "NV": self.config["nv"],
            "CHANNELS_LAST": int(self.last),
            "STAGED": int(self.staged),
            "N": problem.batch,
            "GROUPS": problem.groups,
            "CG": problem.channels,
            "KG": problem.filters,
            "TAPS": len(taps),
            "Z": problem.counts[0],
            "P": problem.counts[1],
            "Q": problem.counts[2],
            "IMAGES": images,
            "ROWS": rows,
            **staging.names,
            "OFFSETS": ", ".join(map(str, offsets)),
            "TAP_INDEX": ", ".join(str(element) for element, _ in taps),
        }
        names |= problem.names
        if self.staged:
            image, row, column, channel = staging.steps
        else:
            image, row, column, channel = x[0], x[3] * problem.in_step[1], x[4] * problem.in_step[2], x[1]
        names |= {"IN_IMAGE": f"{image}L", "IN_ROW": f"{row}L", "X_STEP": column, "EVEN": channel, "FETCH_AHEAD": 0}
        names["ROWS_JOIN"] = int(row == column * problem.counts[2])
        header = "".join(f"#define {name} {value}\n" for name, value in names.items())
        start = prelude(self.spec.dtype, self.vector_bytes, self.threads)
        return start + header + "\n" + "".join(map(template, ("gemm_stage.c", "gemm_outer.c", "gemm_wgrad.c")))
