"""Separable filters as one pass per axis, each pass a product with a banded Toeplitz matrix, by BLAS.

Source: the definition: an image times a product of rows is the image times one row after the other, R + S products
        per result where R*S were. A pass cuts its axis into blocks of results; a block is one small dense matrix,
        (block, what the block sees), times all lines of the image.
Wins:   filters found to be separable when they were bound, from about 7x7 on, where there is no compiler.
Loses:  small filters (the band is mostly zeros), many channels on both sides.
Error:  two sums of R and S products instead of one of R*S, and that of splitting the filter into its rows.

The matrices hold what lies inside the image only, so padding costs nothing, and stride, dilation and the gradient
(the transposed matrix) are only other entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._tiles import aligned
from autoconv.impls.cpu._blas import BlasImplementation, gemm_s, guarded
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.separable import rows_of
from autoconv.shapes import dilated
from autoconv.spec import ConvSpec, Op

BLOCKS = (32, 64)  # results per matrix: small ones waste fewer zeros, large ones run faster
BLOCK_S = 8e-6  # one call of matmul on nothing
PASS_S = 0.7e-9  # per result of a pass, which is written and read again


class Separable(BlasImplementation):
    """fprop and dgrad with separable filters; `block` is the number of results along an axis per matrix."""

    name = "numpy.separable"
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({2, 3})
    layouts = frozenset({"nchw"})
    tags = frozenset({"separable"})
    strict_nan = False  # zero entries of a matrix meet pixels that the filter does not see

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Filters known to be separable."""
        yield spec.rank1, "needs filters bound and found separable (fixed rank1), got any"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Blocks no longer than the result."""
        longest = max(spec.result_shape[2:])
        return [Config(block=block) for block in BLOCKS if block == BLOCKS[0] or block < 2 * longest]

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The image between two passes, twice, and the matrices of one pair of channels."""
        passes = _passes(spec, config)
        between = [prod(one.result) * spec.itemsize for one in passes]
        matrices = sum(spec.groups * index.size * spec.itemsize for one in passes for index in one.patterns)
        return aligned(*between) + matrices

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Every block of every pass is a product."""
        pairs = spec.in_channels // spec.groups * (spec.out_channels // spec.groups)
        total = 0.0
        for one in _passes(spec, config):
            lines = prod(one.result) // one.extent
            seen = max(index.shape[1] for index in one.patterns)
            total += len(one.blocks) * (BLOCK_S + gemm_s(one.block, seen, lines, 1, spec, device))
            total += PASS_S * prod(one.result)
        return pairs * total

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Find out which tap stands where in the matrices."""
        return guarded(_SeparableRunner(spec, _passes(spec, config)), context.device)


@dataclass(frozen=True)
class _Pass:
    """One axis: which results see which part of the image through which taps."""

    axis: int
    source: tuple[int, ...]  # (N, groups, spatial...) before
    result: tuple[int, ...]  # and after
    block: int
    stride: int
    dilation: int
    pad: int
    taps: int
    transposed: bool  # dgrad: the same matrix from results to pixels

    @property
    def extent(self) -> int:
        """Results along the axis."""
        return self.result[2 + self.axis]

    @cached_property
    def _plan(self) -> tuple[list[tuple[slice, slice, int]], list[Array]]:
        blocks: list[tuple[slice, slice, int]] = []
        patterns: list[Array] = []
        known: dict[bytes, int] = {}
        size, reach = self.source[2 + self.axis], dilated(self.taps, self.dilation) - 1
        for first in range(0, self.extent, self.block):
            last = min(first + self.block, self.extent) - 1
            if self.transposed:
                low, high = -((reach - first - self.pad) // self.stride), (last + self.pad) // self.stride
            else:
                low, high = first * self.stride - self.pad, last * self.stride - self.pad + reach
            low, high = max(low, 0), min(high, size - 1)
            results, seen = np.arange(first, last + 1)[:, None], np.arange(low, high + 1)[None, :]
            pixel, output = (results, seen) if self.transposed else (seen, results)
            offset = pixel + self.pad - output * self.stride
            tap, rest = np.divmod(offset, self.dilation)
            index = np.where((tap >= 0) & (tap < self.taps) & (rest == 0), tap, self.taps).astype(np.intp)
            number = known.setdefault(repr(index.shape).encode() + index.tobytes(), len(patterns))
            if number == len(patterns):
                patterns.append(index)
            blocks.append((slice(first, last + 1), slice(low, max(high + 1, low)), number))
        return blocks, patterns

    @property
    def blocks(self) -> list[tuple[slice, slice, int]]:
        """(results, what they see, number of their pattern)."""
        return self._plan[0]

    @property
    def patterns(self) -> list[Array]:
        """Per pattern, a matrix of taps: `taps` where there is none."""
        return self._plan[1]

    def matrices(self, row: Array) -> list[Array]:
        """The matrices of `row` (groups, taps), the taps in the order in which they meet the image."""
        extended = np.concatenate([row, np.zeros_like(row[:, :1])], axis=1)
        made: list[Array] = [extended[:, index] for index in self.patterns]
        return made

    def run(self, matrices: Sequence[Array], source: Array, result: Array) -> None:
        """One product per block; both arrays have dense spatial axes."""
        batch, groups, *spatial = self.source
        before, after = prod(spatial[: self.axis]), prod(spatial[self.axis + 1 :])
        last = self.axis == len(spatial) - 1
        middle = (before,) if last else (before, spatial[self.axis])
        source = source.reshape(batch, groups, *middle, -1 if last else after)
        result = result.reshape(batch, groups, *middle[:1], self.extent, *([] if last else [after]))
        for results, seen, number in self.blocks:
            matrix = matrices[number]
            if last:
                np.matmul(source[..., seen], matrix.swapaxes(1, 2), out=result[..., results])
            else:
                np.matmul(matrix[:, None], source[..., seen, :], out=result[..., results, :])


def _passes(spec: ConvSpec, config: Config) -> list[_Pass]:
    """The passes in order, the last axis first."""
    backward = spec.op is Op.DGRAD
    source = (spec.batch, spec.groups, *(spec.output_spatial if backward else spec.in_spatial))
    target = spec.in_spatial if backward else spec.output_spatial
    passes = []
    for axis in reversed(range(spec.rank)):
        result = (*source[: 2 + axis], target[axis], *source[3 + axis :])
        passes.append(
            _Pass(
                axis=axis, source=source, result=result, block=int(config["block"]), stride=spec.stride[axis],
                dilation=spec.dilation[axis], pad=spec.padding[axis][0], taps=spec.kernel[axis], transposed=backward,
            )
        )  # fmt: skip
        source = result
    return passes


class _SeparableRunner(Runner):
    def __init__(self, spec: ConvSpec, passes: list[_Pass]) -> None:
        self._spec = spec
        self._passes = passes

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        rows = self._rows(b)
        self._each(lambda kernel, channel: self._matrices(rows, kernel, channel), a, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        rows, spec = self._rows(filters), self._spec
        kernels, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        made = {(k, c): self._matrices(rows, k, c) for k in range(kernels) for c in range(channels)}

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._each(lambda kernel, channel: made[kernel, channel], a, out, workspace)

        return bound

    def _rows(self, filters: Array) -> list[Array]:
        """Per axis (groups, K/groups, C/groups, taps), in the order in which the taps meet the image."""
        spec = self._spec
        turn = slice(None, None, -1 if spec.flip else 1)
        shape = (spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups)
        return [row[..., turn].reshape(*shape, -1) for row in rows_of(filters)]

    def _matrices(self, rows: list[Array], kernel: int, channel: int) -> list[list[Array]]:
        return [one.matrices(rows[one.axis][:, kernel, channel]) for one in self._passes]

    def _each(self, matrices_of: Any, a: Array, out: Array, workspace: Workspace) -> None:
        """Every pair of channels in its turn; the first of a result's writes, the others add."""
        spec, backward = self._spec, self._spec.op is Op.DGRAD
        kernels, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        sources = a.reshape(spec.batch, spec.groups, -1, *a.shape[2:])
        targets = out.reshape(spec.batch, spec.groups, -1, *out.shape[2:])
        scratch = [workspace.take(one.result, a.dtype) for one in self._passes]
        for target in range(channels if backward else kernels):
            for source in range(kernels if backward else channels):
                matrices = matrices_of(source, target) if backward else matrices_of(target, source)
                image, last = sources[:, :, source], len(self._passes) - 1
                for number, (one, own) in enumerate(zip(self._passes, matrices, strict=True)):
                    here = targets[:, :, target] if number == last and not source else scratch[number]
                    one.run(own, image, here)
                    image = here
                if source:
                    targets[:, :, target] += image
