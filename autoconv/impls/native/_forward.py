"""fprop, and dgrad of stride 1, as one problem: a cross-correlation with filters read through strides.

The gradient of the data is the cross-correlation of the output gradient with the filters, their taps
reversed and their two channel axes exchanged. Kernels written for this form therefore serve both.
Sizes are padded to three axes (depth, height, width) with leading ones; strides count elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from autoconv.spec import ConvSpec

__all__ = ["Forward", "array_strides", "as_forward", "three"]


@dataclass(frozen=True)
class Forward:
    """y[n, k, p] = sum over c, t of x[n, c, p * stride - pad + t * dilation] * w[k, c, t], per group."""

    batch: int
    groups: int
    in_channels: int  # per group, as out_channels
    out_channels: int
    in_spatial: tuple[int, int, int]
    out_spatial: tuple[int, int, int]
    kernel: tuple[int, int, int]
    pad: tuple[int, int, int]  # before; negative where the input is cropped
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    x_strides: tuple[int, ...]  # batch, channel, depth, height, width
    y_strides: tuple[int, ...]
    w_base: int  # element of the first tap, and from it, per
    w_strides: tuple[int, ...]  # group, output channel, input channel, depth, height, width

    @property
    def taps(self) -> int:
        """Taps of one filter plane."""
        return prod(self.kernel)


def three(sizes: tuple[int, ...], fill: int = 1) -> tuple[int, int, int]:
    """Sizes of a 1-D, 2-D or 3-D problem as those of a 3-D one."""
    depth, height, width = (fill,) * (3 - len(sizes)) + tuple(sizes)
    return depth, height, width


def array_strides(layout: str, batch: int, channels: int, spatial: tuple[int, int, int]) -> tuple[int, ...]:
    """Element strides (batch, channel, depth, height, width) of a dense array in `layout`."""
    depth, height, width = spatial
    plane = depth * height * width
    if layout == "nhwc":
        return plane * channels, 1, height * width * channels, width * channels, channels
    if layout == "chwn":
        return 1, plane * batch, height * width * batch, width * batch, batch
    return plane * channels, plane, height * width, width, 1


def as_forward(spec: ConvSpec) -> Forward:
    """The forward problem that computes `spec`: fprop, or dgrad with stride 1."""
    backward = spec.op == "dgrad"
    kernel, dilation = three(spec.kernel), three(spec.dilation)
    small, large = three(spec.output_spatial), three(spec.in_spatial)
    pad = three(tuple(before for before, _ in spec.padding), 0)
    taps = prod(kernel)
    data_channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    per_filter = data_channels * taps
    turn = -1 if spec.flip != backward else 1
    tap_strides = (turn * kernel[1] * kernel[2], turn * kernel[2], turn)
    if backward:
        first, second, third = ((k - 1) * d - p for k, d, p in zip(kernel, dilation, pad, strict=True))
        pad = first, second, third
    ins, outs = (filters, data_channels) if backward else (data_channels, filters)
    in_spatial, out_spatial = (small, large) if backward else (large, small)
    return Forward(
        batch=spec.batch,
        groups=spec.groups,
        in_channels=ins,
        out_channels=outs,
        in_spatial=in_spatial,
        out_spatial=out_spatial,
        kernel=kernel,
        pad=pad,
        stride=three(spec.stride),
        dilation=dilation,
        x_strides=array_strides(spec.layout, spec.batch, ins * spec.groups, in_spatial),
        y_strides=array_strides(spec.layout, spec.batch, outs * spec.groups, out_spatial),
        w_base=taps - 1 if turn < 0 else 0,
        w_strides=(filters * per_filter, *((taps, per_filter) if backward else (per_filter, taps)), *tap_strides),
    )
