"""The gradient of the filters as a forward convolution of the input with the output gradient.

Source: dw[k, c, t] sums x[n, c, o stride + t dilation - before] dy[n, k, o] over n and o: a cross-correlation in
        which batch and channels change places, dy is the filter, and stride and dilation change places too.
Wins:   where a forward engine is good at large filters; small batches.
Loses:  large batches of channels: both operands are rearranged, and few engines like filters this large.
Error:  the child's; it sums N*P*Q products.

The child is an fprop and no rewrite turns an fprop into a gradient, so the recursion ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import numpy as np

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls._products import move_s
from autoconv.impls._tiles import aligned, last_axes, split_channels, taps_in_order
from autoconv.planning import Runner, Workspace
from autoconv.spec import ConvSpec, Op

COPY_S = 0.9e-9  # per element rearranged


class WgradAsFprop(Implementation):
    """wgrad with any padding, stride, dilation and groups."""

    name = "rewrite.wgrad_as_fprop"
    ops = frozenset({Op.WGRAD})
    ranks = frozenset(range(1, 9))
    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"rewrite"})

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """There must be something to sum over."""
        yield spec.batch > 0, "needs a batch, got 0 images"
        for axis, size in enumerate(_seen(spec)):
            yield size > 0, f"needs a result that sees the image, got padding {spec.padding[axis]} along axis {axis}"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The forward problem: images are input channels, its input channels the images of the batch."""
        return replace(
            spec,
            op=Op.FPROP,
            batch=spec.in_channels // spec.groups,
            in_channels=spec.groups * spec.batch,
            in_spatial=_seen(spec),
            kernel=spec.output_spatial,
            padding=tuple(
                (before, max(after, 0)) for (before, _), after in zip(spec.padding, _after(spec), strict=True)
            ),
            stride=spec.dilation,
            dilation=spec.stride,
            flip=False,
        )

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Both operands and the result, rearranged."""
        child = self.child_spec(spec)
        shapes = (child.input_shape, child.filter_shape, child.output_shape)
        return aligned(*(prod(shape) * spec.itemsize for shape in shapes))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The copies."""
        shapes = (spec.input_shape, spec.output_shape, spec.filter_shape)
        return 10e-6 + move_s(spec, device, sum(map(prod, shapes)), COPY_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the child ready."""
        return _WgradRunner(spec, self.child_spec(spec), context.child().runner)


def _after(spec: ConvSpec) -> list[int]:
    """Zeros the child needs after the image for exactly as many results as taps; negative: pixels nobody reads."""
    axes = zip(spec.in_spatial, spec.kernel, spec.padding, spec.stride, spec.dilation, spec.output_spatial, strict=True)
    return [(k - 1) * d + (out - 1) * s + 1 - size - pads[0] for size, k, pads, s, d, out in axes]


def _seen(spec: ConvSpec) -> tuple[int, ...]:
    """Size of the part of the image that the child takes."""
    return tuple(size + min(after, 0) for size, after in zip(spec.in_spatial, _after(spec), strict=True))


class _WgradRunner(Runner):
    def __init__(self, spec: ConvSpec, child: ConvSpec, runner: Runner) -> None:
        self._spec = spec
        self._child = child
        self._runner = runner

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        spec, child = self._spec, self._child
        groups, layout = spec.groups, child.layout
        channels = spec.in_channels // groups
        # (N, C, ...) -> (C/g, g N, ...)
        image = as_layout(workspace.take(prod(child.input_shape), a.dtype), child.input_shape, layout)
        seen = last_axes(a, *map(slice, child.in_spatial))
        target = split_channels(image, 1, groups).transpose(2, 1, 0, *range(3, a.ndim + 1))
        np.copyto(target, split_channels(seen, 1, groups))
        filters = workspace.take(child.filter_shape, b.dtype)
        np.copyto(filters, b.swapaxes(0, 1))
        result = as_layout(workspace.take(prod(child.output_shape), out.dtype), child.output_shape, layout)
        self._runner(image, filters, result, workspace)
        np.copyto(taps_in_order(out, spec).reshape(spec.out_channels, channels, *spec.kernel), result.swapaxes(0, 1))
