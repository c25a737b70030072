"""Matrices of Winograd's minimal filtering F(m, r): m results of r taps in m + r - 1 products.

y = A' ((G g) * (B' d)), elementwise in between; along several axes the matrices apply one axis after the
other. The construction is Toom and Cook's: polynomials evaluated at m + r - 2 points and at infinity, and
interpolated (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).

The points decide the rounding error (Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", 2018). They come in pairs +p, -p wherever possible: the rows of such a pair
share their even and their odd halves. These were the best of all families of some twenty simple values, float32, 64
channels of normal noise, two axes: F(2,3) 3e-7, F(4,3) 8e-7 (with 0, +-1, +-2 it would be 6e-6 and more), F(6,3) 8e-6,
F(2,5) 1e-6, F(4,5) 4e-6, F(6,5) 3e-5 of the largest result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isclose, prod, sqrt

import numpy as np

from autoconv.arrays import Array

__all__ = ["POINTS", "Matrices", "apply", "largest", "matrices"]

_HALF, _TWO = sqrt(0.5), sqrt(2.0)

POINTS: dict[int, tuple[float, ...]] = {
    1: (),
    2: (0.0,),
    3: (1.0, -1.0),
    4: (0.0, 1.0, -1.0),
    5: (0.375, -0.375, 1.25, -1.25),
    6: (0.0, _HALF, -_HALF, _TWO, -_TWO),
    7: (0.375, -0.375, 0.75, -0.75, 2.0, -2.0),
    8: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
    10: (0.0, 0.375, -0.375, 0.8, -0.8, 1.25, -1.25, 2.0, -2.0),
}
"""Finite points by the number of products; infinity is always the last one."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """`inverse` (A') is m x n, `filters` (G) n x r, `data` (B') n x n, with n = m + r - 1.

    `pairs` are rows of `filters` and `data` that differ in the sign of their odd terms alone.
    """

    inverse: Array
    filters: Array
    data: Array
    pairs: tuple[tuple[int, int], ...]


@cache
def matrices(m: int, r: int, dtype: str = "float64") -> Matrices:
    """The matrices of F(m, r)."""
    points = POINTS[m + r - 1]
    inverse = [[point**i for point in points] + [float(i == m - 1)] for i in range(m)]
    filters: list[list[float]] = []
    data: list[list[float]] = []
    for point in points:
        others = [other for other in points if other != point]
        # For an even number of points the rows of -p come out with the opposite sign; turning both changes nothing.
        sign = -1.0 if point < 0.0 and len(points) % 2 == 0 and -point in points else 1.0
        scale = sign / prod(point - other for other in others)
        filters.append([point**i * scale for i in range(r)])
        data.append([sign * c for c in _monic(others)] + [0.0])
    filters.append([float(i == r - 1) for i in range(r)])
    data.append(_monic(points))
    mirrored = ((i, points.index(-p)) for i, p in enumerate(points) if p > 0.0 and -p in points)
    pairs = tuple((i, j) for i, j in mirrored if all(_mirrored(rows[i], rows[j]) for rows in (data, filters)))
    return Matrices(_frozen(inverse, dtype), _frozen(filters, dtype), _frozen(data, dtype), pairs)


def _monic(roots: Sequence[float]) -> list[float]:
    """The polynomial with these roots, lowest power first; pairs +p, -p first: what must be zero comes out so."""
    polynomial = [1.0]
    rest = list(roots)
    for root in roots:
        if root > 0.0 and -root in rest:
            square = round(root * root, 12)
            rest.remove(root)
            rest.remove(-root)
            padded = [0.0, 0.0, *polynomial]
            polynomial = [high - square * low for high, low in zip(padded, [*polynomial, 0.0, 0.0], strict=True)]
    for root in rest:
        padded = [0.0, *polynomial]
        polynomial = [high - root * low for high, low in zip(padded, [*polynomial, 0.0], strict=True)]
    return polynomial


def _mirrored(row: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `other` is `row` with its odd terms negated."""
    terms = enumerate(zip(row, other, strict=True))
    return all(isclose(b, -a if i % 2 else a, abs_tol=1e-12) for i, (a, b) in terms)


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
