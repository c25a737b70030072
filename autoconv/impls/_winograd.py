"""Matrices of Winograd's minimal filtering F(m, r): m results of r taps in m + r - 1 products.

y = A' ((G g) * (B' d)), elementwise in between; along several axes the matrices apply one axis after the
other. The construction is Toom and Cook's: polynomials evaluated at m + r - 2 points and at infinity, and
interpolated (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).

The points decide the rounding error (Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", 2018). These were the best of all symmetric families of some twenty
simple values, float32, 64 channels of normal noise, two axes: F(2,3) 3e-7, F(4,3) 8e-7 (with 0, +-1, +-2 it
would be 6e-6 and more), F(6,3) 8e-6, F(2,5) 1e-6, F(4,5) 4e-6, F(6,5) 3e-5 of the largest result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod, sqrt

import numpy as np

from autoconv.arrays import Array

__all__ = ["POINTS", "Matrices", "apply", "largest", "matrices"]

_HALF, _TWO = sqrt(0.5), sqrt(2.0)

POINTS: dict[int, tuple[float, ...]] = {
    4: (0.0, 1.0, -1.0),
    6: (0.0, _HALF, -_HALF, _TWO, -_TWO),
    8: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
    10: (0.0, 0.375, -0.375, 0.8, -0.8, 1.25, -1.25, 2.0, -2.0),
}
"""Finite points by the number of products; infinity is always the last one."""

VANISHES = 1e-12  # smaller coefficients are rounding of the symmetric points' own


@dataclass(frozen=True, slots=True)
class Matrices:
    """`inverse` (A') is m x n, `filters` (G) n x r, `data` (B') n x n, with n = m + r - 1."""

    inverse: Array
    filters: Array
    data: Array


@cache
def matrices(m: int, r: int, dtype: str = "float64") -> Matrices:
    """The matrices of F(m, r)."""
    points = POINTS[m + r - 1]
    inverse = [[point**i for point in points] + [float(i == m - 1)] for i in range(m)]
    filters, data = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = prod(point - other for other in others)
        filters.append([point**i / scale for i in range(r)])
        data.append([*_coefficients(others), 0.0])
    filters.append([float(i == r - 1) for i in range(r)])
    data.append(_coefficients(points))
    return Matrices(*(_frozen(rows, dtype) for rows in (inverse, filters, data)))


def _coefficients(roots: tuple[float, ...] | list[float]) -> list[float]:
    """The monic polynomial with these roots, lowest power first."""
    found = [float(c) for c in np.poly(roots)[::-1]]
    return [0.0 if abs(c) < VANISHES else c for c in found]


def _frozen(rows: list[list[float]], dtype: str) -> Array:
    matrix: Array = np.array(rows, dtype)
    matrix.flags.writeable = False
    return matrix


def apply(matrix: Array, rank: int, first: Array, second: Array, rest: int) -> tuple[Array, Array]:
    """`matrix` (rows x columns) along each of the `rank` leading axes of what `first` holds.

    `first` is flat scratch beginning with (columns,) * rank + (rest,) values, `second` scratch as large as
    any step needs. Returns the one that holds (rows,) * rank + (rest,) now, and the other one.
    """
    rows, columns = matrix.shape
    for axis in range(rank):
        left, right = prod((rows,) * axis), prod((columns,) * (rank - axis - 1)) * rest
        source = first[: left * columns * right].reshape(left, columns, right)
        target = second[: left * rows * right].reshape(left, rows, right)
        np.matmul(matrix, source, out=target)
        first, second = second, first
    return first, second


def largest(rows: int, columns: int, rank: int) -> int:
    """Values per element of `rest` that `apply` holds at most in one of its buffers."""
    return max(prod((rows,) * axis + (columns,) * (rank - axis)) for axis in range(rank + 1))
