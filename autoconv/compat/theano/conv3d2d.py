"""`theano.tensor.nnet.conv3d2d`: movies convolved by two-dimensional convolutions of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoconv import calling, convolving
from autoconv.compat.theano._pins import operand, pinned
from autoconv.errors import InvalidSpec

__all__ = ["conv3d"]

ALGORITHM = "rewrite.conv3d2d"


def conv3d(
    signals: Any,
    filters: Any,
    signals_shape: Sequence[int | None] | None = None,
    filters_shape: Sequence[int | None] | None = None,
    border_mode: str | Sequence[str] = "valid",
) -> Any:
    """Convolve movies with spatio-temporal filters, which are flipped; pins `rewrite.conv3d2d`.

    Parameters
    ----------
    signals : array, shape (batch, time, channel, row, column)
    filters : array, shape (filter, time, channel, row, column)
    signals_shape, filters_shape : five ints or None, optional
        Declared shapes, checked against the arrays.
    border_mode : "valid" or "full", or one of these for each of time, row and column
        Theano knew "valid" alone for time, and one mode for rows and columns.

    Returns (batch, time, filter, row, column). Raises `InvalidType` for a wrong rank, `InvalidSpec` for
    shapes that do not fit or an unknown mode.

    >>> import numpy as np
    >>> from autoconv.compat.theano import conv3d2d
    >>> conv3d2d.conv3d(np.ones((1, 5, 2, 6, 6)), np.ones((4, 3, 2, 3, 3))).shape
    (1, 3, 4, 4, 4)
    """
    movies = operand(signals, "signals", "batch, time, channel, row, column")
    taps = operand(filters, "filters", "filter, time, channel, row, column")
    if signals_shape is not None:
        calling.check_declared("signals_shape", signals_shape, "signals", movies)
    if filters_shape is not None:
        calling.check_declared("filters_shape", filters_shape, "filters", taps)
    modes = (border_mode,) * 3 if isinstance(border_mode, str) else tuple(border_mode)
    if len(modes) != 3 or not set(modes) <= {"valid", "full"}:
        raise InvalidSpec(f"border_mode must be valid or full, or one of these for each of 3 axes, got {border_mode!r}")
    kernel = (taps.shape[1], *taps.shape[3:])
    pads = tuple(size - 1 if mode == "full" else 0 for mode, size in zip(modes, kernel, strict=True))
    with pinned("conv3d2d.conv3d", ALGORITHM):
        result = convolving.conv3d(movies.transpose(0, 2, 1, 3, 4), taps.transpose(0, 2, 1, 3, 4), border_mode=pads)
    return result.transpose(0, 2, 1, 3, 4)
