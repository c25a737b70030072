"""kn2row: one matrix product per kernel position, summed in place.

Source: Vasudevan, Anderson & Gregg, "Parallel Multi Channel Convolution using General Matrix
        Multiplication", 2017. Where im2col gathers all R*S taps before one large product, this
        gathers one tap, multiplies, and adds, so its scratch is R*S times smaller.
Wins:   many channels, small filters, little memory.  Loses: few channels, many taps.
Error:  that of summing C products per tap, then R*S taps, in the operands' precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Runner
from autoconv.impls._windows import Index, taps
from autoconv.impls.cpu._blas import BlasImplementation, gemm_s, guarded
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec, Op

TAP_S = 10e-6  # gather, product and sum of one tap of one image on nothing
BYTES_PER_S = 4e9


class Kn2row(BlasImplementation):
    """Sums one matrix product per kernel position; any stride, dilation and padding, ungrouped."""

    name = "numpy.kn2row"
    tags = frozenset({"gemm"})

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Ungrouped problems."""
        return ((spec.groups == 1, f"does not do groups, got {spec.groups}"),)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """One tap of one image gathered, and its product."""
        return sum(-(-prod(shape) * spec.itemsize // 64) * 64 for shape in _scratch_shapes(spec))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Products at BLAS speed, every tap moved through memory, a few calls per tap and image."""
        calls = spec.batch * prod(spec.kernel)
        moved = calls * sum(map(prod, _scratch_shapes(spec))) * spec.itemsize
        product = gemm_s(spec.out_channels, spec.in_channels, prod(spec.output_spatial), calls, spec, device)
        return product + moved / BYTES_PER_S + calls * TAP_S

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """List the windows once."""
        return guarded(_Kn2rowRunner(spec), context.device)


def _scratch_shapes(spec: ConvSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a gathered tap and of its product with the filters (or the gradient)."""
    pixels, c, k = prod(spec.output_spatial), spec.in_channels, spec.out_channels
    if spec.op is Op.FPROP:
        return (c, pixels), (k, pixels)
    return ((k, pixels), (c, pixels)) if spec.op is Op.DGRAD else ((c + k, pixels), (k, c))


class _Kn2rowRunner(Runner):
    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec
        # the largest windows first, so that a fresh workspace grows once
        self._taps = sorted(taps(spec), key=lambda joined: -prod(part.stop - part.start for part in joined[2]))

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        out[...] = 0
        step = {Op.FPROP: _fprop_tap, Op.DGRAD: _dgrad_tap, Op.WGRAD: _wgrad_tap}[self._spec.op]
        for sample in range(self._spec.batch):
            second = b[sample] if self._spec.op is Op.WGRAD else b
            result = out if self._spec.op is Op.WGRAD else out[sample]
            for tap, image, window in self._taps:
                mark = workspace.mark()
                step(a[sample], second, result, (slice(None), slice(None), *tap), image, window, workspace)
                workspace.release(mark)


def _gather(array: Array, window: Index, workspace: Workspace) -> Array:
    """(channels, pixels) copy of a window of one image."""
    view = array[(slice(None), *window)]
    flat = workspace.take((view.shape[0], prod(view.shape[1:])), array.dtype)
    np.copyto(flat.reshape(view.shape), view)
    return flat


def _fprop_tap(x: Array, w: Array, y: Array, tap: Index, image: Index, window: Index, workspace: Workspace) -> None:
    patch = _gather(x, image, workspace)
    product = workspace.take((y.shape[0], patch.shape[1]), y.dtype)
    np.matmul(w[tap], patch, out=product)
    target = y[(slice(None), *window)]
    target += product.reshape(target.shape)


def _dgrad_tap(dy: Array, w: Array, dx: Array, tap: Index, image: Index, window: Index, workspace: Workspace) -> None:
    patch = _gather(dy, window, workspace)
    product = workspace.take((dx.shape[0], patch.shape[1]), dx.dtype)
    np.matmul(w[tap].T, patch, out=product)
    target = dx[(slice(None), *image)]
    target += product.reshape(target.shape)


def _wgrad_tap(x: Array, dy: Array, dw: Array, tap: Index, image: Index, window: Index, workspace: Workspace) -> None:
    patch, gradient = _gather(x, image, workspace), _gather(dy, window, workspace)
    product = workspace.take((dw.shape[0], dw.shape[1]), dw.dtype)
    np.matmul(gradient, patch.T, out=product)
    dw[tap] += product
