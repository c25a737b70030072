"""fprop and dgrad of any stride as passes: sums over taps that lie at fixed offsets from evenly spaced inputs.

Output pixel i of a pass (at start + i * out_step) is the sum over its taps of the input at i * in_step + offset.
fprop is one pass with in_step = stride. dgrad is a pass for every phase of the stride (output positions of one
remainder), each with the taps that meet that phase: no zeros are inserted, none multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from autoconv.impls.native._forward import array_strides, three
from autoconv.spec import ConvSpec

__all__ = ["Pass", "Problem", "Staging", "as_passes"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Pass:
    """One phase of the output: where it lies, and its taps as (element of a filter plane, input offset)."""

    start: Triple
    count: Triple
    taps: tuple[tuple[int, Triple], ...]


@dataclass(frozen=True)
class Problem:
    """A spec in terms of passes; channels and filters are per group, sizes (depth, height, width)."""

    batch: int
    groups: int
    channels: int
    filters: int
    in_spatial: Triple
    out_spatial: Triple
    in_step: Triple
    out_step: Triple
    passes: tuple[Pass, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    w_strides: Triple  # group, filter, channel

    @property
    def counts(self) -> Triple:
        """Pixels of the largest pass along each axis."""
        depth, height, width = (max(p.count[axis] for p in self.passes) for axis in range(3))
        return depth, height, width

    def offsets(self, axis: int) -> list[int]:
        """The distinct input offsets of all taps along one axis."""
        return sorted({offset[axis] for p in self.passes for _, offset in p.taps}) or [0]

    @property
    def names(self) -> dict[str, object]:
        """Sizes, steps and strides as the C templates name them."""
        names: dict[str, object] = {}
        for axis, size, in_step, out_step in zip("DHW", self.in_spatial, self.in_step, self.out_step, strict=True):
            names |= {axis: size, f"IS{axis}": in_step, f"OS{axis}": out_step}
        for array, strides in (("X", self.x_strides), ("Y", self.y_strides)):
            names |= {f"{array}_{axis}": f"{step}L" for axis, step in zip("NCDHW", strides, strict=True)}
        return names | {f"W_{axis}": f"{step}L" for axis, step in zip("GKC", self.w_strides, strict=True)}

    @property
    def inside(self) -> bool:
        """Whether every tap of every pixel lies within the input, so that no padding is ever read."""
        return all(
            self.offsets(axis)[0] >= 0
            and (self.counts[axis] - 1) * self.in_step[axis] + self.offsets(axis)[-1] < self.in_spatial[axis]
            for axis in range(3)
        )


@dataclass(frozen=True)
class Staging:
    """The padded copy of the input rows that `rows` output rows of `images` images read (gemm_stage.c).

    Channels first: [channel][depth tap][phase][image][row][column], where a phase holds every in_step-th row and
    column, so that neighbouring pixels find neighbouring elements. Channels last:
    [image][depth tap][row][column][channel].
    """

    problem: Problem
    rows: int
    images: int
    last: bool

    @cached_property
    def low(self) -> tuple[int, int]:
        return self.problem.offsets(1)[0], self.problem.offsets(2)[0]

    @cached_property
    def phases(self) -> list[tuple[int, int]]:
        """The phases of the input step that any tap reads."""
        _, sh, sw = self.problem.in_step
        taps = [offset for p in self.problem.passes for _, offset in p.taps] or [(0, *self.low)]
        return sorted({((h - self.low[0]) % sh, (w - self.low[1]) % sw) for _, h, w in taps})

    @property
    def height(self) -> int:
        """Rows of one image: of one phase when channels come first."""
        reach, step = self.problem.offsets(1)[-1] - self.low[0], self.problem.in_step[1]
        return (self.rows - 1) * step + reach + 1 if self.last else self.rows + reach // step

    @property
    def width(self) -> int:
        """Columns, as the rows."""
        reach, step = self.problem.offsets(2)[-1] - self.low[1], self.problem.in_step[2]
        columns = self.problem.counts[2]
        return (columns - 1) * step + reach + 1 if self.last else columns + reach // step

    @property
    def channel_elements(self) -> int:
        planes = len(self.problem.offsets(0)) * (1 if self.last else len(self.phases))
        return planes * self.images * self.height * self.width

    @property
    def elements(self) -> int:
        return self.channel_elements * self.problem.channels

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """Elements from one image, row of pixels, pixel and channel to the next."""
        if not self.last:
            return self.height * self.width, self.width, 1, self.channel_elements
        row = self.width * self.problem.channels
        image = len(self.problem.offsets(0)) * self.height * row
        return image, row * self.problem.in_step[1], self.problem.channels * self.problem.in_step[2], 1

    def offset(self, tap: Triple) -> int:
        """Where a tap of the first pixel lies."""
        plane = self.problem.offsets(0).index(tap[0])
        h, w = tap[1] - self.low[0], tap[2] - self.low[1]
        if self.last:
            return ((plane * self.height + h) * self.width + w) * self.problem.channels
        _, sh, sw = self.problem.in_step
        plane = plane * len(self.phases) + self.phases.index((h % sh, w % sw))
        return (plane * self.images * self.height + h // sh) * self.width + w // sw

    @property
    def names(self) -> dict[str, object]:
        """The constants of gemm_stage.c."""
        return {
            "DEPTH_TAPS": len(self.problem.offsets(0)),
            "DEPTH_OFFSETS": _list(self.problem.offsets(0)),
            **({"LOW_H": f"({self.low[0]})", "LOW_W": f"({self.low[1]})"} if self.last else {}),
            "STAGE_H" if self.last else "HQ": self.height,
            "STAGE_W" if self.last else "WQ": self.width,
            **({} if self.last else {
                "PHASES": len(self.phases),
                "PHASES_H": _list([h + self.low[0] for h, _ in self.phases]),
                "PHASES_W": _list([w + self.low[1] for _, w in self.phases]),
                "CHANNEL_T": self.channel_elements,
            }),
        }  # fmt: skip


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def as_passes(spec: ConvSpec, splits: int = 1) -> Problem:
    """The passes of an fprop or dgrad. Plain 1x1 problems become long rows, at least `splits` of them if possible."""
    backward = spec.op == "dgrad"
    kernel, stride, dilation = three(spec.kernel), three(spec.stride), three(spec.dilation)
    pads = (((0, 0),) * 3 + tuple(spec.padding))[-3:]
    data, result = three(spec.in_spatial), three(spec.output_spatial)
    if prod(kernel) == prod(stride) == 1 and not any(map(sum, pads)) and data == result:
        data = result = _long_rows(data, splits)
    in_spatial, out_spatial = (result, data) if backward else (data, result)
    axes = [_phases(out_spatial[a], kernel[a], pads[a][0], stride[a], dilation[a], backward) for a in range(3)]
    passes = []
    for depth, height, width in product(*axes):
        taps = []
        for d, h, w in product(depth[2], height[2], width[2]):
            element = (d[0] * kernel[1] + h[0]) * kernel[2] + w[0]
            taps.append((prod(kernel) - 1 - element if spec.flip else element, (d[1], h[1], w[1])))
        passes.append(Pass((depth[0], height[0], width[0]), (depth[1], height[1], width[1]), tuple(taps)))
    channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    group, per_filter = filters * channels * prod(kernel), channels * prod(kernel)
    if backward:
        channels, filters = filters, channels
    ones = (1, 1, 1)
    return Problem(
        batch=spec.batch,
        groups=spec.groups,
        channels=channels,
        filters=filters,
        in_spatial=in_spatial,
        out_spatial=out_spatial,
        in_step=ones if backward else stride,
        out_step=stride if backward else ones,
        passes=tuple(passes),
        x_strides=array_strides(spec.layout, spec.batch, channels * spec.groups, in_spatial),
        y_strides=array_strides(spec.layout, spec.batch, filters * spec.groups, out_spatial),
        w_strides=(group, prod(kernel), per_filter) if backward else (group, per_filter, prod(kernel)),
    )


def _phases(
    size: int, kernel: int, pad: int, stride: int, dilation: int, backward: bool
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Along one axis: (start, count, [(tap, input offset)]) of every phase of the output."""
    if not backward:
        return [(0, size, [(tap, tap * dilation - pad) for tap in range(kernel)])]
    phases = []
    for start in range(min(stride, size)):
        taps = [
            (tap, (start + pad - tap * dilation) // stride)
            for tap in range(kernel)
            if (start + pad - tap * dilation) % stride == 0
        ]
        phases.append((start, -(-(size - start) // stride), taps))
    return phases


def _long_rows(spatial: Triple, splits: int) -> Triple:
    """The pixels of a plain matrix product in fewer, longer rows: as few as `splits` allows."""
    pixels = prod(spatial)
    rows = next((r for r in range(splits, 2 * splits + 1) if pixels % r == 0 and pixels // r >= 64), 1)
    return 1, rows, pixels // rows
