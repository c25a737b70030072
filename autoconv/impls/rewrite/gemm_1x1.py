"""1x1 filters as a plain matrix product: no patches, no copies unless a stride or padding asks for them.

Source: the definition: a filter of one tap mixes channels at every pixel alike.
Wins:   1x1 layers, on whatever BLAS NumPy has, or cuBLAS.
Loses:  where BLAS does; batches of tiny images in channels-first layout make one small product each.
Error:  that of BLAS summing C products in the operands' precision.

A stride reads every s-th pixel, so the image is subsampled first; padding only ever meets the one tap, so
results out there are zero. A leaf: it asks for no child plan, which ends any chain of rewrites here.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._products import GemmImplementation, Multiplier, move_s, multiplier, product_s, scratch
from autoconv.impls._tiles import aligned, last_axes, tap_windows
from autoconv.impls.cpu._blas import guarded
from autoconv.planning import Runner, Workspace
from autoconv.spec import ConvSpec, Op

COPY_S = 0.6e-9  # per element subsampled or scattered back
CALL_S = 8e-6  # views and one call
TERM_S = 4e-6  # one image's product in wgrad, added to the sum


class Gemm1x1(GemmImplementation):
    """All three operations, any rank, stride, padding and groups, for filters of one tap."""

    name = "rewrite.gemm_1x1"

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """One tap."""
        yield prod(spec.kernel) == 1, f"needs a filter of one tap, got {spec.kernel}"

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The subsampled image and the inner part of the results, where either is not the whole."""
        inside = _Inside(spec)
        pieces = [prod(shape) for shape in (inside.image_shape, inside.result_shape) if shape]
        image, result = ((inside.images, side * inside.positions) for side in (spec.in_channels, spec.out_channels))
        if spec.op is Op.WGRAD:
            pieces += scratch(config, image[1:], result[1:])
            if inside.images > 1 and device.kind == "cpu":
                pieces.append(prod(spec.filter_shape))
        else:
            pieces += scratch(config, spec.filter_shape, image if spec.op is Op.FPROP else result)
        return aligned(*(piece * spec.itemsize for piece in pieces))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """One product per image, and the copies that a stride or padding asks for."""
        inside = _Inside(spec)
        groups, images, positions = spec.groups, inside.images, inside.positions
        into, outof = spec.in_channels // groups, spec.out_channels // groups
        copies = sum(prod(shape) for shape in (inside.image_shape, inside.result_shape) if shape)
        edges = {
            Op.FPROP: (outof, into, positions),
            Op.DGRAD: (into, outof, positions),
            Op.WGRAD: (outof, positions, into),
        }[spec.op]
        terms = images * TERM_S if spec.op is Op.WGRAD else 0.0
        moves = move_s(spec, device, copies, COPY_S)
        return CALL_S + terms + moves + product_s(*edges, images * groups, spec, device, config)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Work out which pixels the one tap reads."""
        return guarded(_Gemm1x1Runner(spec, multiplier(context.device, config)), context.device)


class _Inside:
    """The results whose one pixel lies inside the image, those pixels, and how both become matrices."""

    def __init__(self, spec: ConvSpec) -> None:
        axes = zip(spec.in_spatial, spec.padding, spec.stride, spec.output_spatial, strict=True)
        found = [list(tap_windows(size, 1, pads[0], stride, 1, 0, out)) for size, pads, stride, out in axes]
        self.empty = not all(found)  # every result sees padding alone
        self.pixels = tuple(windows[0][1] for windows in found if windows)
        self.places = tuple(windows[0][2] for windows in found if windows)
        extents = () if self.empty else tuple(part.stop - part.start for part in self.places)
        count = 0 if self.empty else prod(extents)
        # planes of one channel follow each other across images only where channels are innermost
        self.images, self.positions = (1, spec.batch * count) if spec.layout == "nhwc" else (spec.batch, count)
        self.image_shape: tuple[int, ...] = ()
        self.result_shape: tuple[int, ...] = ()
        if not self.empty and extents != spec.in_spatial:
            self.image_shape = (spec.batch, spec.in_channels, *extents)
        if not self.empty and extents != spec.output_spatial:
            self.result_shape = (spec.batch, spec.out_channels, *extents)


class _Gemm1x1Runner(Runner):
    def __init__(self, spec: ConvSpec, multiply: Multiplier) -> None:
        self._spec = spec
        self._multiply = multiply
        self._inside = _Inside(spec)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        spec, inside = self._spec, self._inside
        if inside.empty:
            out[...] = 0
            return
        if spec.op is Op.WGRAD:
            image = self._read(a, inside.pixels, inside.image_shape, workspace)
            gradient = self._read(b, inside.places, inside.result_shape, workspace)
            self._sum_products(gradient, image, out, workspace)
            return
        filters = b.reshape(spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups)
        if spec.op is Op.FPROP:
            data = self._read(a, inside.pixels, inside.image_shape, workspace)
            self._write(filters, data, out, inside.places, inside.result_shape, workspace)
        else:
            data = self._read(a, inside.places, inside.result_shape, workspace)
            self._write(filters.transpose(0, 2, 1), data, out, inside.pixels, inside.image_shape, workspace)

    def _matrices(self, data: Array) -> Array:
        """(N, C, spatial) data, dense in its layout, as a view (images, groups, channels, positions)."""
        inside, groups = self._inside, self._spec.groups
        channels = data.shape[1] // groups
        if self._spec.layout == "nchw":
            return data.reshape(inside.images, groups, channels, inside.positions)
        flat = data.transpose(0, *range(2, data.ndim), 1).reshape(1, inside.positions, groups, channels)
        return flat.transpose(0, 2, 3, 1)

    def _read(self, data: Array, part: tuple[Any, ...], shape: tuple[int, ...], workspace: Workspace) -> Array:
        """The inner part of an operand as matrices; copied only if it is not the whole."""
        if not shape:
            return self._matrices(data)
        copy = as_layout(workspace.take(prod(shape), data.dtype), shape, self._spec.layout)
        np.copyto(copy, last_axes(data, *part))
        return self._matrices(copy)

    def _write(
        self,
        filters: Array,
        data: Array,
        out: Array,
        part: tuple[Any, ...],
        shape: tuple[int, ...],
        workspace: Workspace,
    ) -> None:
        """Multiply into the inner part of the result; zero around it."""
        if not shape:
            self._multiply(filters, data, self._matrices(out), workspace)
            return
        copy = as_layout(workspace.take(prod(shape), out.dtype), shape, self._spec.layout)
        self._multiply(filters, data, self._matrices(copy), workspace)
        out[...] = 0
        last_axes(out, *part)[...] = copy

    def _sum_products(self, gradient: Array, image: Array, out: Array, workspace: Workspace) -> None:
        spec = self._spec
        total = out.reshape(spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups)
        turned = image.transpose(0, 1, 3, 2)
        for one in range(len(image)):
            self._multiply(gradient[one], turned[one], total, workspace, accumulate=one > 0)
