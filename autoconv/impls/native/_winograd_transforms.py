"""The three small matrices of F(m, r), and C text that applies them to vectors.

F(m, r) computes m outputs of an r-tap filter with n = m + r - 1 products: y = A ((G g) * (B d)). The construction is
Toom and Cook's: filter and output are polynomials evaluated at n points, one of them infinity
(Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; Winograd, 1980).

The points decide the rounding error (Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution", 2018). They come in pairs +p, -p wherever possible: the rows of such a pair share their even and
their odd halves, which halves the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ._c import literal

__all__ = ["POINTS", "Transforms", "c_functions", "transforms"]

Matrix = list[list[float]]

_H = math.sqrt(0.5)
_R = math.sqrt(2.0)

# Finite points by n; infinity is always the last one. Found by trying every family of a few simple values and taking
# the least error in float32 over 64 channels of normal noise.
POINTS: dict[int, tuple[float, ...]] = {
    1: (),
    2: (0.0,),
    3: (1.0, -1.0),
    4: (0.0, 1.0, -1.0),
    5: (0.375, -0.375, 1.25, -1.25),
    6: (0.0, _H, -_H, _R, -_R),
    7: (0.375, -0.375, 0.75, -0.75, 2.0, -2.0),
    8: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
}


@dataclass(frozen=True)
class Transforms:
    """Matrices of F(m, r): `inverse` m x n, `filters` n x r, `data` n x n, and which rows belong to a pair +p, -p."""

    inverse: Matrix
    filters: Matrix
    data: Matrix
    pairs: tuple[tuple[int, int], ...]


def _times_linear(polynomial: list[float], root: float) -> list[float]:
    """`polynomial` (lowest power first) times (x - root)."""
    shifted = [0.0, *polynomial]
    return [high - root * low for high, low in zip(shifted, [*polynomial, 0.0], strict=True)]


def _monic(roots: Sequence[float]) -> list[float]:
    """The polynomial with these roots; pairs +p, -p first, so that what must be zero or exact comes out so."""
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
        polynomial = _times_linear(polynomial, root)
    return polynomial


def transforms(m: int, r: int) -> Transforms:
    """Matrices of F(m, r) at POINTS[m + r - 1]."""
    n = m + r - 1
    points = POINTS[n]
    inverse = [[point**i for point in points] + [float(i == m - 1)] for i in range(m)]
    filters: Matrix = []
    data: Matrix = []
    for point in points:
        others = [other for other in points if other != point]
        # For an even number of points the rows of -p come out with the opposite sign; turning both changes nothing.
        sign = -1.0 if point < 0.0 and len(points) % 2 == 0 and -point in points else 1.0
        scale = sign / math.prod(point - other for other in others)
        filters.append([point**i * scale for i in range(r)])
        data.append([sign * c for c in _monic(others)] + [0.0])
    filters.append([float(i == r - 1) for i in range(r)])
    data.append(_monic(points))
    pairs = tuple((i, points.index(-p)) for i, p in enumerate(points) if p > 0.0 and -p in points)
    whole = tuple(pair for pair in pairs if _mirrored(data, pair) and _mirrored(filters, pair))
    return Transforms(inverse, filters, data, whole)


def _mirrored(rows: Matrix, pair: tuple[int, int]) -> bool:
    """Whether the second row is the first with its odd terms negated."""
    both = zip(rows[pair[0]], rows[pair[1]], strict=True)
    return all(math.isclose(b, -a if i % 2 else a, abs_tol=1e-12) for i, (a, b) in enumerate(both))


def _sum(terms: Sequence[tuple[float, str]], dtype: str) -> str:
    """`c0*x0 + c1*x1 ...` without the products by one and the terms that vanish; positive terms first."""
    kept = sorted((t for t in terms if abs(t[0]) > 1e-12), key=lambda t: t[0] < 0.0)
    text = ""
    for coefficient, name in kept:
        size = abs(coefficient)
        factor = name if size == 1.0 else f"{literal(size, dtype)} * {name}"
        if not text:
            text = f"-{factor}" if coefficient < 0.0 else factor
        else:
            text += f" {'-' if coefficient < 0.0 else '+'} {factor}"
    return text or "(vec){0}"


def _rows(name: str, rows: Matrix, pairs: Sequence[tuple[int, int]], dtype: str) -> str:
    """A function that applies `rows` to `d`; the rows of a pair are sum and difference of an even and an odd half."""
    lines = []
    paired = {i for pair in pairs for i in pair}
    for i, row in enumerate(rows):
        if i not in paired:
            lines.append(f"    t[{i} * ts] = {_sum([(c, f'd[{k} * ds]') for k, c in enumerate(row)], dtype)};")
    for number, (i, j) in enumerate(pairs):
        even = _sum([(c, f"d[{k} * ds]") for k, c in enumerate(rows[i]) if k % 2 == 0], dtype)
        odd = _sum([(c, f"d[{k} * ds]") for k, c in enumerate(rows[i]) if k % 2 == 1], dtype)
        lines.append(f"    const vec even{number} = {even}, odd{number} = {odd};")
        lines.append(f"    t[{i} * ts] = even{number} + odd{number};")
        lines.append(f"    t[{j} * ts] = even{number} - odd{number};")
    return _function(name, lines)


def _columns(name: str, rows: Matrix, pairs: Sequence[tuple[int, int]], dtype: str) -> str:
    """The same for matrices whose columns are paired: sums serve the even rows, differences the odd ones."""
    lines = []
    paired = {i for pair in pairs for i in pair}
    for number, (i, j) in enumerate(pairs):
        lines.append(f"    const vec sum{number} = d[{i} * ds] + d[{j} * ds];")
        if len(rows) > 1:
            lines.append(f"    const vec gap{number} = d[{i} * ds] - d[{j} * ds];")
    for i, row in enumerate(rows):
        terms = [(c, f"d[{k} * ds]") for k, c in enumerate(row) if k not in paired]
        terms += [(row[a], f"{'gap' if i % 2 else 'sum'}{number}") for number, (a, _) in enumerate(pairs)]
        lines.append(f"    t[{i} * ts] = {_sum(terms, dtype)};")
    return _function(name, lines)


def _function(name: str, lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"INLINE void {name}(const vec *d, int ds, vec *t, int ts) {{\n{body}\n}}\n"


def c_functions(axis: str, m: int, r: int, dtype: str) -> str:
    """`data_<axis>`, `filter_<axis>` and `inverse_<axis>`: d and t are read and written with strides ds and ts."""
    matrices = transforms(m, r)
    return (
        _rows(f"data_{axis}", matrices.data, matrices.pairs, dtype)
        + _rows(f"filter_{axis}", matrices.filters, matrices.pairs, dtype)
        + _columns(f"inverse_{axis}", matrices.inverse, matrices.pairs, dtype)
    )
