"""`theano.sandbox.cuda.fftconv`: convolution by FFT, filters flipped, strides not supported.

The functions pin `numpy.fft`. As in the original the last axis that is transformed must be even;
`pad_last_dim=True` appends a zero to it whatever it is, and strips what comes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoconv import convolving
from autoconv.arrays import Array
from autoconv.compat.theano._pins import check_shapes, operand, per_axis, pinned
from autoconv.compat.theano.conv3d import FILTERS, VOLUMES, filter_gradient, transposed
from autoconv.errors import InvalidSpec

__all__ = ["conv2d_fft", "conv3d_fft", "convgrad3d_fft", "convtransp3d_fft"]

ALGORITHM = "numpy.fft"


def conv2d_fft(
    input: Any,
    filters: Any,
    image_shape: Sequence[int | None] | None = None,
    filter_shape: Sequence[int | None] | None = None,
    border_mode: str = "valid",
    pad_last_dim: bool = False,
) -> Any:
    """Convolve images with filters by FFT.

    Parameters
    ----------
    input : array, shape (batch, channels, rows, columns)
    filters : array, shape (filters, channels, rows, columns)
    image_shape, filter_shape : four ints or None, optional
        Declared shapes, checked against the arrays.
    border_mode : "valid" or "full"
    pad_last_dim : bool
        Append a column of zeros to the images, and strip the result again: for an odd number of columns.

    Raises `InvalidSpec` for an odd number of columns without `pad_last_dim`, `InvalidType` for a wrong rank.

    >>> import numpy as np
    >>> from autoconv.compat.theano import conv2d_fft
    >>> conv2d_fft(np.ones((1, 1, 5, 7)), np.ones((1, 1, 3, 3)), pad_last_dim=True).shape
    (1, 1, 3, 5)
    """
    operand(input, "input", "batch, channels, rows, columns")
    operand(filters, "filters", "filters, channels, rows, columns")
    check_shapes(input, filters, image_shape, filter_shape)
    return _by_fft("conv2d_fft", convolving.conv2d, input, filters, border_mode, pad_last_dim)


def conv3d_fft(
    input: Any,
    filters: Any,
    image_shape: Sequence[int | None] | None = None,
    filter_shape: Sequence[int | None] | None = None,
    border_mode: str = "valid",
    pad_last_dim: bool = False,
) -> Any:
    """Convolve volumes (batch, channels, three axes) with filters (filters, channels, three axes) by FFT.

    Options, rules and errors are those of `conv2d_fft`; the last of the three axes must be even.
    """
    operand(input, "input", "batch, channels, rows, columns, time")
    operand(filters, "filters", "filters, channels, rows, columns, time")
    check_shapes(input, filters, image_shape, filter_shape)
    return _by_fft("conv3d_fft", convolving.conv3d, input, filters, border_mode, pad_last_dim)


def convgrad3d_fft(V: Any, d: Sequence[int], WShape: Sequence[int], dCdH: Any, pad_last_dim: bool = False) -> Any:
    """`convGrad3D` by FFT: strides of 1; the time of V must be even, or is padded."""
    _refuse_strides("convgrad3d_fft", d)
    volumes = operand(V, "V", VOLUMES)
    _check_even("V's time", volumes.shape[3], pad_last_dim)
    rows, columns, times = per_axis(WShape, "WShape", 5)[1:4]
    shape = (WShape[0], rows, columns, times + pad_last_dim, WShape[4])
    with pinned("convgrad3d_fft", ALGORITHM):
        result: Array = filter_gradient(_padded(volumes, 3, pad_last_dim), d, shape, dCdH)
    return result[:, :, :, :times]


def convtransp3d_fft(
    W: Any,
    b: Any,
    d: Sequence[int],
    H: Any,
    RShape: Sequence[int] | None = None,
    pad_last_dim: bool = False,
) -> Any:
    """`convTransp3D` by FFT: strides of 1; the time of H must be even, or is padded."""
    _refuse_strides("convtransp3d_fft", d)
    filters, hidden = operand(W, "W", FILTERS), operand(H, "H", VOLUMES)
    _check_even("H's time", hidden.shape[3], pad_last_dim)
    times = hidden.shape[3] + filters.shape[3] - 1
    if RShape is not None and tuple(RShape)[:1] != (-1,):
        size = per_axis(RShape, "RShape", 3)
        times, RShape = size[2], (*size[:2], size[2] + pad_last_dim)
    with pinned("convtransp3d_fft", ALGORITHM):
        result: Array = transposed(W, b, d, _padded(hidden, 3, pad_last_dim), RShape)
    return result[:, :, :, :times]


def _by_fft(
    caller: str, convolve: convolving.Forward, input: Any, filters: Any, border_mode: str, pad_last_dim: bool
) -> Any:
    if border_mode not in ("valid", "full"):
        raise InvalidSpec(f"border_mode must be valid or full, got {border_mode!r}")
    _check_even("the number of columns of input", input.shape[-1], pad_last_dim)
    with pinned(caller, ALGORITHM):
        result = convolve(_padded(input, -1, pad_last_dim), filters, border_mode=border_mode)
    return np.ascontiguousarray(result[..., :-1]) if pad_last_dim else result


def _check_even(what: str, size: int, padded: bool) -> None:
    if size % 2 and not padded:
        raise InvalidSpec(f"{what} must be even, got {size}: pad_last_dim=True appends a zero and strips it again")


def _refuse_strides(caller: str, d: Sequence[int]) -> None:
    if per_axis(d, "d", 3) != (1, 1, 1):
        raise InvalidSpec(f"{caller} does not do strides, got d = {tuple(d)}")


def _padded(array: Array, axis: int, padded: bool) -> Array:
    if not padded:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, 1)
    return np.pad(array, widths)
