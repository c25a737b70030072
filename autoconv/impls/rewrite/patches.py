"""Filters that step by their own size as a plain matrix product: every pixel belongs to one patch.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, where such a layer embeds an image's patches.
Wins:   patch embeddings and other downsampling where the kernel equals the stride: the matrix of patches is the image
        in another order, not several times as large as im2col's.
Loses:  a few channels of a small kernel, where an engine that reads the image as it lies needs no copy.
Error:  that of BLAS summing C*R*S products in the operands' precision.

Pixels that no patch covers are left out, and their gradient is zero. A leaf: it asks for no child plan, which ends any
chain of rewrites here.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._products import GemmImplementation, Multiplier, move_s, multiplier, product_s, scratch
from autoconv.impls._tiles import aligned, last_axes, split_channels, taps_in_order
from autoconv.impls.cpu._blas import guarded
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Patches"]

COPY_S = 0.8e-9  # per element brought into the order of patches, or back
CALL_S = 12e-6  # views and one call


class Patches(GemmImplementation):
    """All three operations, any rank and groups, where the kernel equals the stride and nothing is padded."""

    name = "rewrite.patches"

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Patches that lie side by side, inside the image."""
        axes = zip(spec.kernel, spec.stride, spec.output_spatial, strict=True)
        beside = all(kernel == stride or out == 1 for kernel, stride, out in axes)
        yield beside, f"needs a stride of the filter's size, got {spec.stride} for {spec.kernel}"
        near = all(d == 1 or kernel == 1 for d, kernel in zip(spec.dilation, spec.kernel, strict=True))
        yield near, f"needs dilation 1, got {spec.dilation}"
        ends = zip(spec.kernel, spec.output_spatial, spec.in_spatial, spec.padding, strict=True)
        inside = all(pads[0] == 0 and kernel * out <= size for kernel, out, size, pads in ends)
        yield inside, f"needs patches inside the image, got padding {spec.padding}"
        yield prod(spec.kernel) > 1, f"needs more than one tap, got {spec.kernel}"

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The patches, filters in their order, and for wgrad the gradient of the results in it too."""
        pieces, operands = _pieces(spec)
        return aligned(*(size * spec.itemsize for size in [*pieces, *scratch(config, *operands)]))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Copying the patches, and one product per group."""
        groups, positions = spec.groups, max(spec.batch, 1) * prod(spec.output_spatial)
        depth, kernels = prod(spec.filter_shape[1:]), spec.out_channels // groups
        edges = {
            Op.FPROP: (kernels, depth, positions),
            Op.DGRAD: (depth, kernels, positions),
            Op.WGRAD: (kernels, positions, depth),
        }[spec.op]
        copied = move_s(spec, device, sum(_pieces(spec)[0]), COPY_S)
        return CALL_S + copied + product_s(*edges, groups, spec, device, config)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Nothing but sizes is worked out beforehand."""
        return guarded(_PatchesRunner(spec, multiplier(context.device, config)), context.device)


def _as_they_lie(spec: ConvSpec) -> bool:
    """Whether plain filters are the matrix: taps inside channels, in the order of correlation."""
    return spec.layout == "nchw" and not spec.flip


def _pieces(spec: ConvSpec) -> tuple[list[int], list[tuple[int, ...]]]:
    """Elements of each piece of workspace, and the shapes of a product's operands."""
    positions = spec.batch * prod(spec.output_spatial)
    patches = positions * spec.in_channels * prod(spec.kernel)
    filters = [] if _as_they_lie(spec) else [prod(spec.filter_shape)]
    result = positions * spec.out_channels
    if spec.op is Op.WGRAD:
        staged = [result] if spec.layout == "nchw" and spec.batch > 1 else []
        return [patches, *filters, *staged], [(result,), (patches,)]
    return [patches, *filters], [spec.filter_shape, (patches if spec.op is Op.FPROP else result,)]


class _PatchesRunner(Runner):
    def __init__(self, spec: ConvSpec, multiply: Multiplier) -> None:
        self._spec = spec
        self._multiply = multiply
        self._whole = all(
            kernel * out == size
            for kernel, out, size in zip(spec.kernel, spec.output_spatial, spec.in_spatial, strict=True)
        )

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, workspace)
            return
        matrix = b if _as_they_lie(self._spec) else workspace.take(b.shape, b.dtype)
        self._run(a, self._pack(b, matrix), out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        matrix = self._pack(filters, filters if _as_they_lie(self._spec) else np.empty_like(filters))

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, matrix, out, workspace)

        return bound

    # Everything as matrices -----------------------------------------------------------------------

    def _ordered(self, filters: Array) -> Array:
        """Plain filters as a view in the order of a patch: (K, taps, C/groups) for channels-last images."""
        turned = taps_in_order(filters, self._spec)
        return turned if self._spec.layout == "nchw" else np.moveaxis(turned, 1, -1)

    def _pack(self, filters: Array, matrix: Array) -> Array:
        """Filters as (groups, K/groups, depth)."""
        if matrix is not filters:
            rows = self._ordered(filters)
            np.copyto(matrix.reshape(rows.shape), rows)
        return matrix.reshape(self._spec.groups, self._spec.out_channels // self._spec.groups, -1)

    def _room(self, workspace: Workspace, like: Array) -> tuple[Array, Array]:
        """Room for the patches, (N, groups, positions, depth), and the same in the order of the image's axes.

        That is (N, groups, C/groups, positions and taps of each axis in turn).
        """
        spec, rank = self._spec, self._spec.rank
        channels, places = spec.in_channels // spec.groups, spec.output_spatial
        first = spec.layout == "nchw"
        inner = (channels, *spec.kernel) if first else (*spec.kernel, channels)
        patches = workspace.take((spec.batch, *places, spec.groups, *inner), like.dtype)
        channel = 2 + rank if first else 2 + 2 * rank
        taps = range(3 + rank, 3 + 2 * rank) if first else range(2 + rank, 2 + 2 * rank)
        pairs = (axis for pair in zip(range(1, 1 + rank), taps, strict=True) for axis in pair)
        matrix = patches.reshape(spec.batch, prod(places), spec.groups, -1).transpose(0, 2, 1, 3)
        return matrix, patches.transpose(0, 1 + rank, channel, *pairs)

    def _image(self, image: Array) -> Array:
        """The part of an image that patches cover, a view (N, groups, C/groups, positions and taps of each axis)."""
        spec = self._spec
        covered = last_axes(image, *(slice(k * n) for k, n in zip(spec.kernel, spec.output_spatial, strict=True)))
        for axis in range(spec.rank - 1, -1, -1):
            covered = split_channels(covered, 2 + axis, spec.output_spatial[axis])
        return split_channels(covered, 1, spec.groups)

    def _results(self, data: Array) -> Array:
        """(N, K, spatial) results, dense in their layout, as a view (N, groups, K/groups, positions)."""
        spec = self._spec
        shape = (spec.batch, spec.groups, spec.out_channels // spec.groups)
        if spec.layout == "nchw":
            return data.reshape(*shape, -1)
        flat = data.transpose(0, *range(2, data.ndim), 1).reshape(spec.batch, -1, *shape[1:])
        return flat.transpose(0, 2, 3, 1)

    # The operations -------------------------------------------------------------------------------

    def _run(self, a: Array, filters: Array, out: Array, workspace: Workspace) -> None:
        matrix, patches = self._room(workspace, a)
        if self._spec.op is Op.FPROP:
            np.copyto(patches, self._image(a))
            self._multiply(filters, matrix.swapaxes(-1, -2), self._results(out), workspace)
            return
        self._multiply(self._results(a).swapaxes(-1, -2), filters, matrix, workspace)
        if not self._whole:
            out[...] = 0
        np.copyto(self._image(out), patches)

    def _wgrad(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        spec = self._spec
        matrix, patches = self._room(workspace, x)
        np.copyto(patches, self._image(x))
        # one product sums over all images: their positions follow each other in the patches, and must in the gradient
        rows = matrix.transpose(1, 0, 2, 3).reshape(spec.groups, -1, matrix.shape[-1])
        gradient = self._results(dy).transpose(1, 2, 0, 3)
        if spec.layout == "nchw" and spec.batch > 1:
            staged = workspace.take(gradient.shape, dy.dtype)
            np.copyto(staged, gradient)
            gradient = staged
        gradient = gradient.reshape(spec.groups, gradient.shape[1], -1)
        total = dw if _as_they_lie(spec) else workspace.take(dw.shape, dw.dtype)
        self._multiply(gradient, rows, total.reshape(spec.groups, spec.out_channels // spec.groups, -1), workspace)
        if total is not dw:
            ordered = self._ordered(dw)
            np.copyto(ordered, total.reshape(ordered.shape))
