"""Operands, the float64 reference, and how far a result may lie from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.tolerance import tolerance as rounding

__all__ = ["operands", "reference", "relative_error", "tolerance"]


def operands(spec: ConvSpec, rng: np.random.Generator, *, integers: bool = False) -> tuple[Array, Array]:
    """Random operands of `spec` in its dtype: normal, or integers from -3 to 3; separable filters for `rank1`."""

    def draw(shape: Sequence[int]) -> Array:
        values = rng.integers(-3, 4, shape) if integers else rng.standard_normal(shape)
        return np.asarray(values).astype(spec.np_dtype)

    first, second = spec.operand_shapes
    if not spec.rank1:
        return draw(first), draw(second)
    filters = np.ones(second, spec.np_dtype)
    for axis, size in enumerate(spec.kernel):
        filters = filters * draw((*second[:2], *(size if i == axis else 1 for i in range(spec.rank))))
    return draw(first), filters


def reference(spec: ConvSpec, a: Array, b: Array) -> Array:
    """The operation in float64, from its definition: pad, then one product of channels per tap."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    pads = ((0, 0), (0, 0), *spec.padding)
    padded_size = [size + before + after for size, (before, after) in zip(spec.in_spatial, spec.padding, strict=True)]
    groups, spatial = spec.groups, spec.output_spatial
    per_group_in, per_group_out = spec.in_channels // groups, spec.out_channels // groups
    summed = (0, *range(2, spec.rank + 2))
    if spec.op is Op.DGRAD:
        image = np.zeros((spec.batch, spec.in_channels, *padded_size))
    else:
        image = np.pad(a, pads)
    filters = np.zeros(spec.filter_shape) if spec.op is Op.WGRAD else b
    result = b if spec.op is Op.WGRAD else a if spec.op is Op.DGRAD else np.zeros(spec.output_shape)
    for tap in product(*map(range, spec.kernel)):
        steps = zip(tap, spec.dilation, spec.stride, spatial, strict=True)
        window: tuple[Any, ...] = tuple(slice(t * d, t * d + (p - 1) * s + 1, s) for t, d, s, p in steps)
        position = tuple(k - 1 - t if spec.flip else t for t, k in zip(tap, spec.kernel, strict=True))
        for group in range(groups):
            ins = slice(group * per_group_in, (group + 1) * per_group_in)
            outs = slice(group * per_group_out, (group + 1) * per_group_out)
            here: tuple[Any, ...] = (outs, slice(None), *position)
            x, y, w = image[(slice(None), ins, *window)], result[:, outs], filters[here]
            if spec.op is Op.FPROP:
                y += np.einsum("nc...,kc->nk...", x, w)
            elif spec.op is Op.DGRAD:
                x += np.einsum("nk...,kc->nc...", y, w)
            else:
                w += np.tensordot(y, x, (summed, summed))
    if spec.op is Op.FPROP:
        return result
    if spec.op is Op.WGRAD:
        return filters
    inner = (slice(before, before + size) for size, (before, _) in zip(spec.in_spatial, spec.padding, strict=True))
    return image[(slice(None), slice(None), *inner)]


def relative_error(result: Array, expected: Array, least: float = 0.0) -> float:
    """max|result - expected| / max|expected|, the error that autoconv stores; NaN anywhere gives NaN.

    `least` bounds the divisor from below, for results that are small only because they cancel.
    """
    if not expected.size:
        return 0.0
    scale = max(float(np.max(np.abs(expected))), least)
    return float(np.max(np.abs(np.asarray(result, np.float64) - expected))) / (scale or 1.0)


def tolerance(spec: ConvSpec, tags: Iterable[str] = ()) -> float:
    """Largest `relative_error` that rounding explains: the tuner's own rule."""
    return rounding(spec.dtype, spec.reduction_length, tags)
