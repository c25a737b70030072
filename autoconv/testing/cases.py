"""Problems to test with: named ones, and random ones for Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from autoconv.spec import LAYOUTS, ConvSpec, Op

if TYPE_CHECKING:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy

__all__ = ["CASES", "EDGE", "SMOKE", "problems", "specs"]

SMOKE: dict[str, str] = {
    "plain": "fprop n2c3 8x9 k4 3x3 p1 s1 d1 g1 conv nchw f32",
    "strided": "fprop n2c4 9x8 k3 3x3 p1 s2 d1 g1 corr nchw f32",
    "pointwise": "fprop n2c5 6x7 k4 1x1 p0 s1 d1 g1 conv nchw f32",
    "grouped": "fprop n1c6 7x7 k4 3x3 p1 s1 d1 g2 conv nchw f64",
    "image": "fprop n1c1 24x31 k1 7x7 p3 s1 d1 g1 conv nchw f32",
    "sizeable": "fprop n1c64 12x14 k4 3x3 p1 s1 d1 g1 corr nchw f32",
}

EDGE: dict[str, str] = {
    "one_pixel": "fprop n1c1 1x1 k1 1x1",
    "one_pixel_padded": "fprop n1c2 1x1 k3 3x3 p1",
    "kernel_is_image": "fprop n2c3 5x4 k2 5x4 corr",
    "full": "fprop n1c2 6x5 k3 3x4 p2,3",
    "half_even": "fprop n1c2 7x6 k3 4x2 p2,1",
    "same_even": "fprop n1c3 7x8 k2 4x4 p1:2",
    "padded_beyond_kernel": "fprop n1c2 3x4 k2 2x2 p5,4",
    "only_before": "fprop n1c2 6x6 k2 3x3 p2:0,0:1",
    "row": "fprop n1c2 5x16 k3 1x7 p0,3",
    "column": "fprop n1c2 16x5 k3 7x1 p3,0 corr",
    "thin_image": "fprop n2c2 1x33 k2 1x5",
    "tall_image": "fprop n2c2 41x1 k2 3x1 p1,0",
    "stride_leaves_rest": "fprop n2c3 8x10 k2 3x3 s2",
    "stride_differs": "fprop n1c3 9x11 k2 3x2 s1,3 corr",
    "stride_skips_pixels": "fprop n1c3 11x9 k2 2x2 s3,4",
    "pointwise_strided": "fprop n2c4 9x8 k6 1x1 s2",
    "pointwise_padded": "fprop n1c3 4x5 k2 1x1 p1",
    "patches": "fprop n2c4 9x13 k6 2x3 s2,3 g2",
    "patches_of_volume": "fprop n1c2 4x5x6 k3 2x2x3 s2,2,3 corr",
    "stride_and_padding": "fprop n1c2 10x10 k2 5x5 p2:1,0:2 s2,3 corr",
    "dilated": "fprop n1c3 9x11 k2 3x3 p2 d2",
    "dilation_differs": "fprop n1c2 9x13 k2 2x3 p1,0 d3,2 corr",
    "dilated_strided": "fprop n1c2 12x12 k3 3x3 p1 s2 d3",
    "dilated_one_axis": "fprop n1c2 8x9 k2 3x3 p1,2 d1,2",
    "depthwise": "fprop n2c5 8x7 k5 3x3 p1 g5",
    "depthwise_multiplied": "fprop n1c3 7x9 k6 3x3 p1 g3 corr",
    "depthwise_strided": "fprop n1c4 9x9 k4 5x5 p2 s2 g4",
    "grouped_unevenly": "fprop n2c6 6x5 k9 2x3 g3 corr",
    "grouped_pointwise": "fprop n2c8 5x5 k4 1x1 g4",
    "many_channels": "fprop n1c17 7x8 k19 3x3 p1 corr",
    "many_filters": "fprop n1c1 12x11 k33 3x3",
    "batch_of_seven": "fprop n7c2 4x5 k2 3x3 p1",
    "tile_seams": "fprop n1c4 13x15 k4 3x3 p1 corr",
    "tile_less_than_one": "fprop n1c3 3x3 k2 3x3",
    "five_by_five": "fprop n1c3 13x12 k4 5x5 p2",
    "one_output": "fprop n3c4 3x3 k5 3x3 corr",
    "long_filter": "fprop n1c1 30x26 k2 15x11 p7,5 corr",
    "first_layer": "fprop n1c3 31x31 k4 11x11 p2 s4 corr",
    "last_axis_odd": "fprop n2c2 6x9 k2 3x3",
    "last_axis_even": "fprop n2c2 7x10 k2 3x3 corr",
    "double": "fprop n2c3 9x10 k4 3x3 p1 f64",
    "double_strided": "fprop n1c3 9x10 k4 3x5 p1,2 s2,1 d2,1 corr f64",
    "half_precision": "fprop n1c3 6x7 k2 3x3 p1 f16",
    "brain_float": "fprop n1c3 6x7 k2 3x3 p1 corr bf16",
    "no_batch": "fprop n0c3 6x7 k2 3x3 p1",
    "fixed": "fprop n2c3 8x9 k4 3x3 p1 fixed",
    "separable": "fprop n1c1 17x16 k1 5x5 p2 fixed rank1",
    "separable_channels": "fprop n2c3 19x21 k3 7x4 p3,2:1 g3 corr fixed rank1",
    "separable_bank": "fprop n2c2 9x41 k6 3x6 p0:4,7 g2 f64 fixed rank1",
    "separable_summed": "fprop n1c3 8x12 k4 2x5 corr fixed rank1",
    "separable_large": "fprop n1c1 40x67 k1 25x31 p12,15 fixed rank1",
    "separable_strided": "fprop n2c1 20x19 k2 5x3 p2 s2,3 d1,2 fixed rank1",
    "separable_volume": "fprop n1c2 6x7x9 k2 3x2x5 p1,0,2 g2 fixed rank1",
    "channels_last": "fprop n2c3 8x9 k4 3x3 p1 s2,1 corr nhwc",
    "line": "fprop n2c3 17 k4 5 p2 corr",
    "line_strided": "fprop n1c4 19 k4 4 p1:2 s3 d2 g2",
    "volume": "fprop n1c2 5x6x7 k3 3x2x3 p1,0,1",
    "volume_strided": "fprop n1c2 6x5x7 k2 2x3x3 p0:1,1,0 s2,1,2 d1,2,1 g2 corr f64",
    "line_dilated": "fprop n2c3 23 k4 3 p4:0 d3",
    "line_depthwise": "fprop n1c4 16 k8 5 p2 g4 corr",
    "line_padded_beyond": "fprop n1c2 3 k2 2 p5:1",
    "volume_one_frame": "fprop n2c3 1x6x7 k4 1x3x3 p0,1,1 corr",
    "volume_time_alone": "fprop n2c3 6x3x4 k4 3x1x1 p1,0,0",
    "volume_same_even": "fprop n1c2 4x5x6 k3 2x4x2 p0:1,1:2,0:1 corr",
    "volume_dilated": "fprop n1c2 7x6x5 k3 3x2x2 p2,1,1 d2,1,2",
    "volume_depthwise": "fprop n1c3 4x5x5 k6 3x3x3 p1 g3",
    "volume_skips_frames": "fprop n1c2 9x4x5 k2 2x2x2 s3,1,2 corr",
    "volume_padded_beyond": "fprop n1c2 2x3x3 k2 2x2x2 p5:3,1,1",
}

CASES: Mapping[str, str] = {**SMOKE, **EDGE}


def problems(text: str) -> Iterator[ConvSpec]:
    """The three operations of a case in both memory formats, as far as they differ."""
    forward = ConvSpec.parse(text)
    seen: set[ConvSpec] = set()
    for op, layout in product(Op, LAYOUTS):
        if op is Op.WGRAD:
            spec = replace(forward, op=op, layout=layout, fixed=False, rank1=False)
        else:
            spec = replace(forward, op=op, layout=layout)
        if spec not in seen:
            seen.add(spec)
            yield spec


def specs(
    *,
    ops: Sequence[Op] = tuple(Op),
    ranks: Sequence[int] = (2,),
    dtypes: Sequence[str] = ("f32", "f64"),
    layouts: Sequence[str] = LAYOUTS,
    largest: int = 6,
) -> SearchStrategy[ConvSpec]:
    """A Hypothesis strategy for small specs with every option; `largest` bounds the image beyond the kernel."""
    from hypothesis import strategies as st

    @st.composite
    def spec(draw: st.DrawFn) -> ConvSpec:
        def each(low: int, high: int) -> tuple[int, ...]:
            return tuple(draw(st.integers(low, high)) for _ in range(rank))

        rank = draw(st.sampled_from(ranks))
        groups = draw(st.integers(1, 3))
        kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3)
        padding = tuple(zip(each(0, 3), each(0, 3), strict=True))
        extents = ((k - 1) * d + 1 - sum(p) for k, d, p in zip(kernel, dilation, padding, strict=True))
        return ConvSpec(
            op=draw(st.sampled_from(ops)),
            batch=draw(st.integers(1, 3)),
            in_channels=groups * draw(st.integers(1, 4)),
            in_spatial=tuple(max(1, extent) + extra for extent, extra in zip(extents, each(0, largest), strict=True)),
            out_channels=groups * draw(st.integers(1, 4)),
            kernel=kernel,
            padding=padding,
            stride=stride,
            dilation=dilation,
            groups=groups,
            flip=draw(st.booleans()),
            layout=draw(st.sampled_from(layouts)),
            dtype=draw(st.sampled_from(dtypes)),
        )

    return spec()
