"""Convolution of images and signals without channels: SciPy's functions, Theano's `signal.conv2d`, bound filters.

>>> import autoconv.signal, numpy as np
>>> autoconv.signal.convolve2d(np.eye(4), np.ones((3, 3)), mode="same").shape
(4, 4)

Which algorithm runs (a direct sum, passes along the axes for a separable filter, FFT, overlap-save) is decided per
shape as everywhere in autoconv: raced once, remembered. A filter that is small beside its image is bound behind the
scenes; `bind` does so for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autoconv import calling, convolving, options
from autoconv.arrays import Array, like_caller
from autoconv.errors import InvalidType
from autoconv.signal._filter import Filter, bind
from autoconv.signal._geometry import arrange, boundary_of, fill_of
from autoconv.signal._running import MAX_RANK, as_array, first_call

__all__ = ["Filter", "bind", "conv2d", "convolve", "convolve2d", "correlate", "correlate2d"]


def convolve2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Any:
    """Two-dimensional convolution, as `scipy.signal.convolve2d`.

    Parameters
    ----------
    in1, in2 : array, shapes (H, W) and (R, S)
        Real floating point, or of a mix that NumPy promotes to it (a float image and an integer filter). SciPy's
        integer results wrap round when they overflow; integers alone are refused: convert one input to float.
    mode : "full", "same" or "valid"
        All of the result, the part that is centred on `in1`, or the part that needs no boundary.
    boundary : "fill", "wrap" (or "circular") or "symm" (or "symmetric")
        What lies around `in1`: `fillvalue`, the image again, or its mirror image.
    fillvalue : real number

    Returns
    -------
    array, 2-D, of the promoted dtype

    Raises `InvalidType` for a wrong rank or dtype (integers, complex), `InvalidSpec` for empty inputs and for shapes
    of which neither holds the other in mode "valid", `InvalidOption` for unknown words.

    >>> import autoconv.signal
    >>> autoconv.signal.convolve2d([[1.0, 2.0]], [[1, 1]]).tolist()
    [[1.0, 3.0, 2.0]]
    """
    return _two(True, in1, in2, mode, boundary, fillvalue)


def correlate2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Any:
    """Two-dimensional cross-correlation, as `scipy.signal.correlate2d`; arguments as for `convolve2d`.

    As there, "same" with an even filter is centred half an element later than that of `correlate`.

    >>> import autoconv.signal
    >>> autoconv.signal.correlate2d([[1.0, 2.0, 4.0]], [[1, 3]], mode="valid").tolist()
    [[7.0, 14.0]]
    """
    return _two(False, in1, in2, mode, boundary, fillvalue)


def convolve(in1: Any, in2: Any, mode: str = "full") -> Any:
    """Convolution in one to three dimensions, as `scipy.signal.convolve`, `fftconvolve` and `oaconvolve`.

    Parameters
    ----------
    in1, in2 : array, both of one rank
        Dtypes as for `convolve2d`.
    mode : "full", "same" or "valid"

    Returns an array of the promoted dtype. Raises as `convolve2d`. There is no `method`: which one is fastest is
    measured, and `autoconv.settings(require="fft")` names it where it must be a certain one.

    >>> import autoconv.signal
    >>> autoconv.signal.convolve([1.0, 2.0, 3.0], [0, 1, 0.5], mode="same").tolist()
    [1.0, 2.5, 4.0]
    """
    return _any(True, in1, in2, mode)


def correlate(in1: Any, in2: Any, mode: str = "full") -> Any:
    """Cross-correlation in one to three dimensions, as `scipy.signal.correlate`; arguments as for `convolve`.

    >>> import autoconv.signal
    >>> autoconv.signal.correlate([1.0, 2.0, 3.0], [0, 1, 0.5], mode="valid").tolist()
    [3.5]
    """
    return _any(False, in1, in2, mode)


def _two(convolution: bool, in1: Any, in2: Any, mode: Any, boundary: Any, fillvalue: Any) -> Any:
    key: Any = None
    try:
        key = (
            convolution, in1.shape, in1.strides, in1.dtype, type(in1), in2.shape, in2.strides, in2.dtype, type(in2),
            mode, boundary, fillvalue,
        )  # fmt: skip
        call = options.current_scope().calls.get(key)
    except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
        key = call = None
    if call is not None:
        return call(in1, in2)
    first, second = as_array(in1, "in1"), as_array(in2, "in2")
    if first.ndim != 2 or second.ndim != 2:
        raise InvalidType(f"in1 and in2 must have 2 dimensions, got shapes {first.shape} and {second.shape}")
    problem = arrange(
        first.shape, second.shape, mode, convolution=convolution, late=not convolution,
        boundary=boundary_of(boundary), fill=fill_of(fillvalue),
    )  # fmt: skip
    return _first(key, problem, first, second, in1, in2, convolution)


def _any(convolution: bool, in1: Any, in2: Any, mode: Any) -> Any:
    key: Any = None
    try:
        key = (
            convolution, in1.shape, in1.strides, in1.dtype, type(in1), in2.shape, in2.strides, in2.dtype, type(in2),
            mode,
        )  # fmt: skip
        call = options.current_scope().calls.get(key)
    except (AttributeError, TypeError):  # as above
        key = call = None
    if call is not None:
        return call(in1, in2)
    first, second = as_array(in1, "in1"), as_array(in2, "in2")
    if first.ndim != second.ndim:
        raise InvalidType(f"in1 and in2 must have as many dimensions, got shapes {first.shape} and {second.shape}")
    if not 1 <= first.ndim <= MAX_RANK:
        raise InvalidType(f"in1 and in2 must have 1 to {MAX_RANK} dimensions, got shape {first.shape}")
    problem = arrange(first.shape, second.shape, mode, convolution=convolution)
    return _first(key, problem, first, second, in1, in2, convolution)


def _first(key: Any, problem: Any, first: Array, second: Array, in1: Any, in2: Any, convolution: bool) -> Any:
    if type(in1) is not np.ndarray or type(in2) is not np.ndarray:
        key = None
    result = first_call(key, problem, first, second, convolution=convolution)
    return like_caller(result, in1) if hasattr(in1, "__dlpack__") else result


def conv2d(
    input: Any,
    filters: Any,
    image_shape: Sequence[int | None] | None = None,
    filter_shape: Sequence[int | None] | None = None,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
) -> Any:
    """Traditional two-dimensional convolution of images without channels, as Theano's `signal.conv.conv2d`.

    Parameters
    ----------
    input : array, shape (H, W) or (N, H, W)
    filters : array, shape (R, S) or (K, R, S)
        Flipped, as a convolution wants them.
    image_shape, filter_shape : sequence of int or None, optional
        Declared shapes, checked against the arrays; None leaves a dimension open.
    border_mode : "valid" or "full", or any other of `autoconv.conv2d`
    subsample : int or (int, int)
        Stride of the result.

    Returns
    -------
    array, shape (P, Q), (N, P, Q), (K, P, Q) or (N, K, P, Q)
        Every image with every filter; an axis that neither input has is left out.

    Raises `InvalidType` for a wrong rank or dtype, `InvalidSpec` for sizes that do not fit.

    >>> import autoconv.signal, numpy as np
    >>> autoconv.signal.conv2d(np.ones((5, 8, 8)), np.ones((3, 3))).shape
    (5, 6, 6)
    """
    images, bank = as_array(input, "input"), as_array(filters, "filters")
    if images.ndim not in (2, 3) or bank.ndim not in (2, 3):
        raise InvalidType(
            f"input needs 2 or 3 dimensions ([images], height, width) and filters ([filters], height, width), "
            f"got shapes {images.shape} and {bank.shape}"
        )
    if image_shape is not None:
        calling.check_declared("image_shape", image_shape, "input", images)
    if filter_shape is not None:
        calling.check_declared("filter_shape", filter_shape, "filters", bank)
    result = convolving.conv2d(
        images[..., None, :, :] if images.ndim == 3 else images[None, None],
        bank[..., None, :, :] if bank.ndim == 3 else bank[None, None],
        border_mode=border_mode,
        subsample=subsample,
    )
    if bank.ndim == 2:
        result = result[:, 0]
    result = result if images.ndim == 3 else result[0]
    return like_caller(result, input) if hasattr(input, "__dlpack__") else result
