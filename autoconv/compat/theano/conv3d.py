"""`theano.tensor.nnet.Conv3D`: volumes as (batch, row, column, time, channel), filters not flipped, a bias.

The functions pin `numpy.direct`, the sum over taps that Theano's C code was. The layout is channels-last
and is used as it lies. The other layout of the time, that of `conv3d2d`, is (batch, time, channel, row, column):
`conv3D_to_conv3d2d` and back exchange them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoconv import convolving
from autoconv.arrays import Array
from autoconv.compat.theano._pins import operand, per_axis, pinned
from autoconv.errors import InvalidSpec

__all__ = [
    "conv3D",
    "conv3D_to_conv3d2d",
    "conv3d2d_to_conv3D",
    "convGrad3D",
    "convTransp3D",
    "filter_gradient",
    "transposed",
]

ALGORITHM = "numpy.direct"
VOLUMES = "batch, row, column, time, channel"
FILTERS = "filter, row, column, time, channel"


def conv3D(V: Any, W: Any, b: Any, d: Sequence[int]) -> Any:  # noqa: N802  Theano's names
    """Correlate volumes with filters, and add a bias.

    Parameters
    ----------
    V : array, shape (batch, row, column, time, channel)
    W : array, shape (filter, row, column, time, channel)
    b : array, shape (filter,)
    d : three ints
        Strides along row, column and time.

    Returns (batch, row, column, time, filter). Raises `InvalidType` for a wrong rank, `InvalidSpec` for
    shapes that do not fit.

    >>> import numpy as np
    >>> from autoconv.compat.theano import conv3D
    >>> conv3D(np.ones((1, 4, 4, 3, 2)), np.ones((5, 3, 3, 2, 2)), np.zeros(5), (1, 1, 1)).shape
    (1, 2, 2, 2, 5)
    """
    volumes, filters = _first(operand(V, "V", VOLUMES)), _first(operand(W, "W", FILTERS))
    stride = per_axis(d, "d", 3)
    with pinned("conv3D", ALGORITHM):
        return _last(convolving.conv3d(volumes, filters, subsample=stride, filter_flip=False, bias=b))


def convGrad3D(V: Any, d: Sequence[int], WShape: Sequence[int], dCdH: Any) -> Any:  # noqa: N802
    """Gradient of a cost with respect to `conv3D`'s filters.

    Parameters
    ----------
    V : array, shape (batch, row, column, time, channel)
    d : three ints
        Strides of the forward call.
    WShape : five ints
        Shape of the filters: (filter, row, column, time, channel).
    dCdH : array, shape (batch, row, column, time, filter)
        Gradient with respect to the forward result.
    """
    with pinned("convGrad3D", ALGORITHM):
        return filter_gradient(V, d, WShape, dCdH)


def convTransp3D(W: Any, b: Any, d: Sequence[int], H: Any, RShape: Sequence[int] | None = None) -> Any:  # noqa: N802
    """The transpose of `conv3D`: what H was made of, had the filters been its building blocks; plus a bias.

    Parameters
    ----------
    W : array, shape (filter, row, column, time, channel)
    b : array, shape (channel,)
    d : three ints
        Strides of the forward call.
    H : array, shape (batch, row, column, time, filter)
    RShape : three ints, optional
        Rows, columns and time of the result; -1s and None stand for the least that H covers.
    """
    with pinned("convTransp3D", ALGORITHM):
        return transposed(W, b, d, H, RShape)


def filter_gradient(V: Any, d: Sequence[int], WShape: Sequence[int], dCdH: Any) -> Any:
    """`convGrad3D` by whatever the settings allow."""
    volumes, gradient = _first(operand(V, "V", VOLUMES)), _first(operand(dCdH, "dCdH", VOLUMES))
    count, rows, columns, times, channels = per_axis(WShape, "WShape", 5)
    stride = per_axis(d, "d", 3)
    shape = (count, channels, rows, columns, times)
    return _last(convolving.conv3d_grad_wrt_weights(volumes, gradient, shape, subsample=stride, filter_flip=False))


def transposed(W: Any, b: Any, d: Sequence[int], H: Any, RShape: Sequence[int] | None) -> Any:
    """`convTransp3D` by whatever the settings allow."""
    filters, gradient = _first(operand(W, "W", FILTERS)), _first(operand(H, "H", VOLUMES))
    bias = operand(b, "b", "channel")
    stride = per_axis(d, "d", 3)
    channels = filters.shape[1]
    if bias.shape != (channels,):
        raise InvalidSpec(f"b must have one value for each of the {channels} channels of W, got shape {bias.shape}")
    if gradient.shape[1] != filters.shape[0]:
        raise InvalidSpec(f"H has {gradient.shape[1]} channels, but W has {filters.shape[0]} filters")
    covered = tuple(
        (out - 1) * step + taps for out, step, taps in zip(gradient.shape[2:], stride, filters.shape[2:], strict=True)
    )
    size = covered
    if RShape is not None and tuple(RShape)[:1] != (-1,):
        size = per_axis(RShape, "RShape", 3)
        if any(wanted < least for wanted, least in zip(size, covered, strict=True)):
            raise InvalidSpec(f"RShape must be at least {covered}, which H covers, got {size}")
    result = convolving.conv3d_grad_wrt_inputs(
        gradient, filters, (None, None, *covered), subsample=stride, filter_flip=False
    )
    result = _last(result)
    if size != covered:
        result = np.pad(result, [(0, 0), *((0, all_ - part) for all_, part in zip(size, covered, strict=True)), (0, 0)])
    result += bias
    return result


def conv3D_to_conv3d2d(array: Any) -> Array:  # noqa: N802
    """A view of (batch, row, column, time, channel) data or filters as (batch, time, channel, row, column).

    `conv3D` correlates and `conv3d2d.conv3d` convolves: filters want `[:, ::-1, :, ::-1, ::-1]` after it.
    """
    return operand(array, "array", VOLUMES).transpose(0, 3, 4, 1, 2)


def conv3d2d_to_conv3D(array: Any) -> Array:  # noqa: N802
    """A view of (batch, time, channel, row, column) data or filters as (batch, row, column, time, channel)."""
    return operand(array, "array", "batch, time, channel, row, column").transpose(0, 3, 4, 1, 2)


def _first(array: Array) -> Array:
    """Channels last as the logical order that autoconv has: a view."""
    return np.moveaxis(array, -1, 1)


def _last(array: Any) -> Any:
    return np.moveaxis(array, 1, -1)
