"""C text that applies the three small matrices of F(m, r) to vectors.

The rows of a pair of points +p, -p share their even and their odd halves, which halves the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoconv.impls._winograd import matrices
from autoconv.impls.native._c import literal

__all__ = ["MOST_POINTS", "c_functions"]

MOST_POINTS = 8  # larger sets lose four digits of float32

Matrix = list[list[float]]


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
    found = matrices(m, r)
    return (
        _rows(f"data_{axis}", found.data.tolist(), found.pairs, dtype)
        + _rows(f"filter_{axis}", found.filters.tolist(), found.pairs, dtype)
        + _columns(f"inverse_{axis}", found.inverse.tolist(), found.pairs, dtype)
    )
