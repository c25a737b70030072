"""Separable filters: whether every (k, c) slice is a product of one row per axis, and those rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoconv.arrays import Array

__all__ = ["is_separable", "rows_of"]

MAX_RESIDUAL = 4.0  # epsilons of the largest singular value: filters are products that were rounded a few times
FIRST_SLICES = 8  # a look at these tells a bank that is not separable, without decomposing all of it


def is_separable(filters: Array) -> bool:
    """Whether every slice of `filters` (K, C, kernel...) is of rank 1, up to rounding in its dtype.

    A slice is of rank 1 when each of its unfoldings is: singular values beyond the first within four epsilons of
    the first, by SVD in float64. Filters that are not finite are not separable.

    >>> import numpy as np
    >>> row = np.array([1.0, 2.0, 1.0])
    >>> is_separable(np.multiply.outer(row, row)[None, None]), is_separable(np.eye(3)[None, None])
    (True, False)
    """
    slices = filters.reshape(-1, *filters.shape[2:])
    bound = MAX_RESIDUAL * _epsilon(filters.dtype)
    first, rest = slices[:FIRST_SLICES], slices[FIRST_SLICES:]
    return all(_of_rank_1(part.astype(np.float64), bound) for part in (first, rest) if len(part))


def _of_rank_1(slices: Array, bound: float) -> bool:
    if not np.isfinite(slices).all():
        return False
    count, *kernel = slices.shape
    for axis in range(len(kernel) - 1):  # where all unfoldings but one are of rank 1, so is the last
        if kernel[axis] == 1:
            continue
        unfolded = np.moveaxis(slices, axis + 1, 1).reshape(count, kernel[axis], -1)
        if unfolded.shape[2] == 1:
            continue
        values = np.linalg.svd(unfolded, compute_uv=False)
        if (np.sqrt((values[:, 1:] ** 2).sum(axis=1)) > bound * values[:, 0]).any():
            return False
    return True


def _epsilon(dtype: np.dtype[Any]) -> float:
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def rows_of(filters: Array) -> list[Array]:
    """For separable `filters` (K, C, kernel...): one array (K, C, taps) per axis, whose product they are.

    Each is the filter's line through its largest tap, which rounding harms least; all but the last axis' are
    divided by that tap, so that no partial sum is larger than the direct sum's own.
    """
    lead, kernel = filters.shape[:2], filters.shape[2:]
    flat = filters.reshape(*lead, -1)
    peak = np.abs(flat).argmax(axis=-1)
    at = np.unravel_index(peak, kernel)
    first, second = np.ogrid[: lead[0], : lead[1]]
    pivot = np.take_along_axis(flat, peak[..., None], axis=-1)
    divisor = np.where(pivot == 0, 1, pivot)  # a filter of zeros has rows of zeros
    rows = []
    for axis in range(len(kernel)):
        line = filters[(first, second, *(slice(None) if i == axis else at[i] for i in range(len(kernel))))]
        rows.append(line if axis == len(kernel) - 1 else line / divisor)
    return rows
