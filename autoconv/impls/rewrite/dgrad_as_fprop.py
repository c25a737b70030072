"""The gradient of the input as a forward convolution of the output gradient.

Source: dx[i] sums dy[o] w[t] over i + before = o stride + t dilation: a convolution with the filters' channels
        swapped, of dy with stride - 1 zeros between its elements (Dumoulin & Visin, "A guide to convolution
        arithmetic for deep learning", 2016, chapter 4).
Wins:   stride 1 and dilation 1, where every fast forward kernel serves.
Loses:  large strides: most of the products are with inserted zeros.
Error:  the child's.

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
from autoconv.impls._tiles import aligned, last_axes
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.shapes import dilated
from autoconv.spec import ConvSpec, Op

COPY_S = 0.6e-9  # per element written


class DgradAsFprop(Implementation):
    """dgrad with any padding, stride, dilation and groups; the child's stride is 1."""

    name = "rewrite.dgrad_as_fprop"
    ops = frozenset({Op.DGRAD})
    ranks = frozenset(range(1, 9))
    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"rewrite"})

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Some of dy must reach the image."""
        yield spec.batch > 0, "needs a batch, got 0 images"
        for axis, (start, size) in enumerate(zip(*_window(spec), strict=True)):
            yield (
                size > 0,
                (
                    f"needs a result that sees the image, got padding {spec.padding[axis]} along axis {axis} "
                    f"with a first result {start} past it"
                ),
            )

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The forward problem whose input is the spread and cropped output gradient."""
        return replace(
            spec,
            op=Op.FPROP,
            in_channels=spec.out_channels,
            in_spatial=_window(spec)[1],
            out_channels=spec.in_channels,
            padding=tuple((max(before, 0), max(after, 0)) for before, after in _margins(spec)),
            stride=(1,) * spec.rank,
            flip=not spec.flip,
        )

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The swapped filters, and the spread gradient unless dy itself serves."""
        pieces = [prod(spec.filter_shape)]
        if not _as_is(spec):
            pieces.append(prod(self.child_spec(spec).input_shape))
        return aligned(*(piece * spec.itemsize for piece in pieces))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The copies."""
        spread = 0 if _as_is(spec) else prod(self.child_spec(spec).input_shape)
        return 5e-6 + move_s(spec, device, prod(spec.filter_shape) * (not spec.fixed) + spread, COPY_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the child ready."""
        return _DgradRunner(spec, self.child_spec(spec), context.child().runner)


def _margins(spec: ConvSpec) -> list[tuple[int, int]]:
    """Zeros the child sees before and after the spread gradient; negative where it is cropped instead."""
    margins = []
    axes = zip(spec.in_spatial, spec.kernel, spec.padding, spec.stride, spec.dilation, spec.output_spatial, strict=True)
    for size, kernel, (pad, _), stride, dilation, out in axes:
        reach = dilated(kernel, dilation) - 1
        before = reach - pad
        margins.append((before, size + reach - ((out - 1) * stride + 1) - before))
    return margins


def _window(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and size of what the child sees of the spread gradient, per axis."""
    spread = [(out - 1) * stride + 1 for out, stride in zip(spec.output_spatial, spec.stride, strict=True)]
    margins = _margins(spec)
    starts = tuple(max(-before, 0) for before, _ in margins)
    sizes = tuple(size + min(before, 0) + min(after, 0) for size, (before, after) in zip(spread, margins, strict=True))
    return starts, sizes


def _as_is(spec: ConvSpec) -> bool:
    """Whether the child can take dy itself."""
    starts, sizes = _window(spec)
    spread = any(stride > 1 and out > 1 for stride, out in zip(spec.stride, spec.output_spatial, strict=True))
    return not spread and not any(starts) and sizes == spec.output_spatial


class _DgradRunner(Runner):
    def __init__(self, spec: ConvSpec, child: ConvSpec, runner: Runner) -> None:
        self._spec = spec
        self._child = child
        self._runner = runner
        self._as_is = _as_is(spec)
        places, holes = [], []
        for start, size, stride in zip(*_window(spec), spec.stride, strict=True):
            first = -(-start // stride)  # the first element of dy that is not cropped
            count = max(0, (start + size - 1) // stride - first + 1)
            places.append(slice(first, first + count))
            holes.append(slice(first * stride - start, None, stride) if count else slice(0, 0))
        self._places, self._holes = tuple(places), tuple(holes)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        swapped = workspace.take(self._child.filter_shape, b.dtype)
        self._swap(b, swapped)
        self._runner(self._spread(a, workspace), swapped, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        swapped = np.empty_like(filters, order="C", shape=self._child.filter_shape)
        self._swap(filters, swapped)
        inner = self._runner.bind(swapped)
        if self._as_is:
            return inner

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            inner(self._spread(a, workspace), out, workspace)

        return bound

    def _swap(self, filters: Array, swapped: Array) -> None:
        """(K, C/groups, kernel) to (C, K/groups, kernel)."""
        spec = self._spec
        kernels, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        source = filters.reshape(spec.groups, kernels, channels, *spec.kernel)
        np.copyto(swapped.reshape(spec.groups, channels, kernels, *spec.kernel), source.swapaxes(1, 2))

    def _spread(self, dy: Array, workspace: Workspace) -> Array:
        """dy with zeros between its elements, cropped to what the child sees."""
        if self._as_is:
            return dy
        shape = self._child.input_shape
        spread = as_layout(workspace.take(prod(shape), dy.dtype), shape, self._child.layout)
        spread[...] = 0
        last_axes(spread, *self._holes)[...] = last_axes(dy, *self._places)
        return spread
