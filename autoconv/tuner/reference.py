"""The judge: single results in float64, each gathered from the operands by the definition.

Nothing here is shared with an implementation. A result is one sum over (reduced axis, taps or
outputs); along every spatial axis the positions it reads are separable, so one broadcast gather
serves fprop, dgrad and wgrad at any rank.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np

from autoconv.arrays import Array
from autoconv.spec import ConvSpec, Op

__all__ = ["positions_to_judge", "reference_at"]

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

CHUNK = 1 << 18  # products gathered at a time: 2 MiB of float64
WHOLE_PRODUCTS = 1 << 20  # up to this many products every result is judged (about 20 ms)
SAMPLED_PRODUCTS = 1 << 20  # and beyond, as many results as this pays for
MIN_POSITIONS, MAX_POSITIONS = 8, 192
MAX_CORNERS = 64  # of the result's box; more than 6 axes have more
PER_FACE = 3  # random results on each face of the box, where padding and seams go wrong


def positions_to_judge(spec: ConvSpec, rng: np.random.Generator) -> Ints:
    """Indices of the results to compute: all of a small problem, else corners, faces and random ones."""
    shape = spec.result_shape
    if prod(shape) * spec.reduction_length <= WHOLE_PRODUCTS:
        return np.indices(shape).reshape(len(shape), -1).T
    corners = np.array(list(product(*((0, size - 1) for size in shape[-6:]))), np.int64)
    corners = np.pad(corners, ((0, 0), (max(len(shape) - 6, 0), 0)))[:MAX_CORNERS]
    faces = []
    for axis, size in enumerate(shape):
        for end in (0, size - 1):
            face = rng.integers(0, shape, (PER_FACE, len(shape)))
            face[:, axis] = end
            faces.append(face)
    anywhere = rng.integers(0, shape, (MAX_POSITIONS, len(shape)))
    chosen = np.concatenate([corners, *faces, anywhere])[:MAX_POSITIONS]
    affordable = max(MIN_POSITIONS, SAMPLED_PRODUCTS // spec.reduction_length)
    if affordable < len(chosen):  # a few of each kind
        chosen = rng.permutation(chosen)[:affordable]
    return np.unique(chosen, axis=0)


def reference_at(spec: ConvSpec, a: Array, b: Array, positions: Ints) -> Array:
    """The results at `positions` (one index per row) in float64."""
    size = max(1, CHUNK // spec.reduction_length)
    gather = {Op.FPROP: _fprop, Op.DGRAD: _dgrad, Op.WGRAD: _wgrad}[spec.op]
    parts = [gather(spec, a, b, positions[first : first + size]) for first in range(0, len(positions), size)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _fprop(spec: ConvSpec, x: Array, w: Array, at: Ints) -> Array:
    per_group_in, per_group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    channel = np.arange(per_group_in)[None, :]
    first = at[:, 1:2] // per_group_out * per_group_in
    data, weights = [at[:, :1], first + channel], [at[:, 1:2], channel]
    masks: list[Array] = []
    for axis, taps in enumerate(map(np.arange, spec.kernel)):
        pixel = at[:, 2 + axis, None] * spec.stride[axis] + taps * spec.dilation[axis] - spec.padding[axis][0]
        _put(spec.in_spatial[axis], pixel, data, masks)
        weights.append(_stored(spec, axis, taps)[None, :])
    return _sum(x, data, w, weights, masks)


def _dgrad(spec: ConvSpec, dy: Array, w: Array, at: Ints) -> Array:
    per_group_in, per_group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    group = at[:, 1:2] // per_group_in
    filters = group * per_group_out + np.arange(per_group_out)
    data, weights = [at[:, :1], filters], [filters, at[:, 1:2] % per_group_in]
    masks: list[Array] = []
    for axis, taps in enumerate(map(np.arange, spec.kernel)):
        offset = at[:, 2 + axis, None] + spec.padding[axis][0] - taps * spec.dilation[axis]
        output, rest = np.divmod(offset, spec.stride[axis])
        output[rest != 0] = -1  # this tap never met this pixel
        _put(spec.output_spatial[axis], output, data, masks)
        weights.append(_stored(spec, axis, taps)[None, :])
    # the reduced axis is the filters' first: both gathers have it second, after the position
    return _sum(dy, data, w, weights, masks)


def _wgrad(spec: ConvSpec, x: Array, dy: Array, at: Ints) -> Array:
    per_group_in, per_group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    sample = np.arange(spec.batch)[None, :]
    channel = at[:, :1] // per_group_out * per_group_in + at[:, 1:2]
    data, weights = [sample, channel], [sample, at[:, :1]]
    masks: list[Array] = []
    for axis, outputs in enumerate(map(np.arange, spec.output_spatial)):
        tap = _stored(spec, axis, at[:, 2 + axis, None])
        pixel = outputs * spec.stride[axis] + tap * spec.dilation[axis] - spec.padding[axis][0]
        _put(spec.in_spatial[axis], pixel, data, masks)
        weights.append(outputs[None, :])
    return _sum(x, data, dy, weights, masks)


def _stored(spec: ConvSpec, axis: int, taps: Ints) -> Ints:
    """Where the filters keep the tap that meets the image at this offset, and the other way round."""
    return spec.kernel[axis] - 1 - taps if spec.flip else taps


def _put(size: int, coordinate: Ints, data: list[Ints], masks: list[Array]) -> None:
    """Read inside the array, and let what lies outside count nothing."""
    data.append(coordinate.clip(0, size - 1))
    masks.append((coordinate >= 0) & (coordinate < size))


def _sum(source: Array, data: list[Ints], other: Array, weights: list[Ints], masks: list[Array]) -> Array:
    """Sum over all but the first axis of source[data] * other[weights], masked.

    Every index is (positions or 1, extent): the two leading ones share the reduced axis, each
    spatial one has an axis of its own.
    """
    rank = len(masks)

    def spread(index: Array, axis: int) -> Array:
        return index.reshape(len(index), *(index.shape[1] if i == axis else 1 for i in range(rank + 1)))

    def gather(array: Array, indices: list[Ints]) -> Array:
        lead = [spread(index, 0) for index in indices[:2]]
        spatial = [spread(index, axis + 1) for axis, index in enumerate(indices[2:])]
        return np.asarray(array[(*lead, *spatial)], np.float64)

    terms = gather(source, data) * gather(other, weights)
    for axis, mask in enumerate(masks):
        terms *= spread(mask, axis + 1)
    result: Array = terms.reshape(len(terms), -1).sum(axis=1)
    return result
