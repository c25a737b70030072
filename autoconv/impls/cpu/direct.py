"""Direct convolution, tap by tap, on strided views.

Source: the definition. Every kernel position contributes one product of channels; the input under
        it is a strided view, so nothing but a block of products is held.
Wins:   hardly ever; it is the slow truth that judges the others and the end of every fallback.
Error:  that of summing C*R*S products in the operands' precision; half types sum in float32.
"""

from __future__ import annotations

from math import prod

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.impls._windows import taps
from autoconv.planning import Workspace
from autoconv.spec import DTYPES, LAYOUTS, ConvSpec, Op

MACS_PER_S = 1.0e9  # einsum's inner loop on one core
TAP_S = 15e-6  # one einsum call on nothing
BLOCK_BYTES = 1 << 20  # products of one tap held at a time


class Direct(Implementation):
    """Every operation, rank, option and dtype, in next to no extra memory."""

    name = "numpy.direct"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset(DTYPES)
    layouts = frozenset(LAYOUTS)
    tags = frozenset({"legacy", "reference"})

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """One tap's products of a block of channels; for the half types float32 copies of everything besides."""
        products = 0
        if spec.op is not Op.WGRAD:
            channels = min(_channel_block(spec), spec.result_shape[1] // spec.groups)
            products = channels * spec.groups * prod(spec.result_shape[2:]) * max(spec.itemsize, 4)
        if spec.itemsize >= 4:
            return products
        return products + 4 * sum(map(prod, (*spec.operand_shapes, spec.result_shape)))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """One slow multiply-add after another, and a call per tap."""
        return spec.macs / MACS_PER_S + prod(spec.kernel) * TAP_S

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """List the windows once."""
        return _DirectRunner(spec)


class _DirectRunner(Runner):
    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec
        self._taps = list(taps(spec))

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.itemsize >= 4:
            self._accumulate(a, b, out)
        else:
            wide = np.empty(out.shape, np.float32)
            self._accumulate(a.astype(np.float32), b.astype(np.float32), wide)
            out[...] = wide.astype(out.dtype)

    def _accumulate(self, a: Array, b: Array, out: Array) -> None:
        spec, groups = self._spec, self._spec.groups
        # (N, C, ...) -> (N, g, C/g, ...) and (K, C/g, ...) -> (g, K/g, C/g, ...): views, whatever the layout
        data = _split(a, 1, groups)
        if spec.op is Op.WGRAD:
            gradient, filters = _split(b, 1, groups), _split(out, 0, groups)
            filters[...] = 0
            axes = "tuvwxyz"[: spec.rank] if spec.rank < 8 else "stuvwxyz"
            for tap, image, result in self._taps:
                np.einsum(
                    f"ngc{axes},ngk{axes}->gkc", data[(..., *image)], gradient[(..., *result)], out=filters[(..., *tap)]
                )
            return
        result_split, filters = _split(out, 1, groups), _split(b, 0, groups)
        block = _channel_block(spec)
        for sample in range(spec.batch):
            for first in range(0, result_split.shape[2], block):
                part = slice(first, first + block)
                target = result_split[sample, :, part]
                target[...] = 0
                for tap, image, result in self._taps:
                    if spec.op is Op.FPROP:
                        source, weights = data[(sample, ..., *image)], filters[(slice(None), part, slice(None), *tap)]
                        target[(..., *result)] += np.einsum("gc...,gkc->gk...", source, weights)
                    else:
                        source, weights = data[(sample, ..., *result)], filters[(slice(None), slice(None), part, *tap)]
                        target[(..., *image)] += np.einsum("gk...,gkc->gc...", source, weights)


def _channel_block(spec: ConvSpec) -> int:
    """Channels per group to do at once, so that one tap's products stay within `BLOCK_BYTES`."""
    plane = spec.groups * prod(spec.result_shape[2:]) * max(spec.itemsize, 4)
    return max(1, BLOCK_BYTES // plane)


def _split(array: Array, axis: int, groups: int) -> Array:
    """View with the axis of channels split into (groups, channels per group)."""
    shape = (*array.shape[:axis], groups, array.shape[axis] // groups, *array.shape[axis + 1 :])
    strides = (*array.strides[:axis], array.strides[axis] * (array.shape[axis] // groups), *array.strides[axis:])
    return np.lib.stride_tricks.as_strided(array, shape, strides)
