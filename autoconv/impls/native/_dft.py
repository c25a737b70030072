"""C text of discrete Fourier transforms whose elements are vectors: every lane is a transform of its own.

A transform of N = a * b points is b transforms of a points, a turn of every element, and a transforms of b points
(Cooley & Tukey, 1965), each of these few points written out as straight code: 2 and 4 directly, other primes by
their symmetric halves, products of those by the same step once more. Results come in natural order.
"""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin

__all__ = ["c_transforms", "operations", "smooth_sizes", "split"]

SMALL = tuple(range(1, 17))  # points written out; beyond them registers spill more than a second pass costs

Complex = tuple[str, str]


class _Writer:
    """Straight code, one operation a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def keep(self, expression: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"    const vec {name} = {expression};")
        return name

    def add(self, a: Complex, b: Complex) -> Complex:
        return self.keep(f"{a[0]} + {b[0]}"), self.keep(f"{a[1]} + {b[1]}")

    def sub(self, a: Complex, b: Complex) -> Complex:
        return self.keep(f"{a[0]} - {b[0]}"), self.keep(f"{a[1]} - {b[1]}")

    def weighted(self, start: str, terms: list[tuple[float, str]]) -> str:
        """start + the sum of weight * name."""
        for weight, name in terms:
            product = f"(T){weight!r} * {name}"
            start = self.keep(f"{start} + {product}" if start else product)
        return start

    def turn(self, a: Complex, step: int, points: int) -> Complex:
        """a * exp(-2 pi i step / points)."""
        step %= points
        if step == 0:
            return a
        if 4 * step == points:
            return a[1], self.keep(f"-{a[0]}")
        if 2 * step == points:
            return self.keep(f"-{a[0]}"), self.keep(f"-{a[1]}")
        if 4 * step == 3 * points:
            return self.keep(f"-{a[1]}"), a[0]
        c, s = cos(2 * pi * step / points), -sin(2 * pi * step / points)
        return (
            self.keep(f"(T){c!r} * {a[0]} - (T){s!r} * {a[1]}"),
            self.keep(f"(T){s!r} * {a[0]} + (T){c!r} * {a[1]}"),
        )

    def transform(self, x: list[Complex]) -> list[Complex]:
        points = len(x)
        if points == 1:
            return x
        if points == 2:
            return [self.add(x[0], x[1]), self.sub(x[0], x[1])]
        if points == 4:
            even, odd = self.transform(x[::2]), self.transform(x[1::2])
            (re, im), (odd_re, odd_im) = even[1], odd[1]
            second = self.keep(f"{re} + {odd_im}"), self.keep(f"{im} - {odd_re}")
            last = self.keep(f"{re} - {odd_im}"), self.keep(f"{im} + {odd_re}")
            return [self.add(even[0], odd[0]), second, self.sub(even[0], odd[0]), last]
        first = next((p for p in (4, 2, 3, 5, 7) if points % p == 0), points)
        return self.prime(x) if first == points else self.product(x, first)

    def prime(self, x: list[Complex]) -> list[Complex]:
        """An odd prime: the cosines meet the sums of opposite elements, the sines their differences."""
        points, half = len(x), range(1, len(x) // 2 + 1)
        sums = [self.add(x[k], x[points - k]) for k in half]
        differences = [self.sub(x[k], x[points - k]) for k in half]
        found = {0: x[0]}
        for total in sums:
            found[0] = self.add(found[0], total)
        for m in half:
            angles = [2 * pi * (m * k % points) / points for k in half]
            parts = []
            for part in (0, 1):
                parts.append(self.weighted(x[0][part], [(cos(a), s[part]) for a, s in zip(angles, sums, strict=True)]))
                parts.append(self.weighted("", [(sin(a), d[part]) for a, d in zip(angles, differences, strict=True)]))
            even_re, odd_re, even_im, odd_im = parts
            found[m] = self.keep(f"{even_re} + {odd_im}"), self.keep(f"{even_im} - {odd_re}")
            found[points - m] = self.keep(f"{even_re} - {odd_im}"), self.keep(f"{even_im} + {odd_re}")
        return [found[m] for m in range(points)]

    def product(self, x: list[Complex], first: int) -> list[Complex]:
        """points = first * second."""
        points = len(x)
        second = points // first
        columns = [self.transform(x[j::second]) for j in range(second)]
        found: dict[int, Complex] = {}
        for k in range(first):
            row = self.transform([self.turn(columns[j][k], j * k, points) for j in range(second)])
            found.update({k + first * m: value for m, value in enumerate(row)})
        return [found[m] for m in range(points)]


@cache
def _straight(points: int) -> tuple[str, int]:
    """`dftN(r, i)`, in place, and how many operations it is."""
    writer = _Writer()
    outputs = writer.transform([(f"r{k}", f"i{k}") for k in range(points)])
    reads = "".join(f"    const vec r{k} = r[{k}], i{k} = i[{k}];\n" for k in range(points))
    writes = "".join(f"    r[{k}] = {re}; i[{k}] = {im};\n" for k, (re, im) in enumerate(outputs))
    body = "".join(f"{line}\n" for line in writer.lines)
    return f"INLINE void dft{points}(vec *r, vec *i)\n{{\n{reads}{body}{writes}}}\n", len(writer.lines)


@cache
def split(points: int) -> tuple[int, int] | None:
    """The cheapest a * b = points with both factors written out; (points, 1) where no second pass is needed."""
    if points in SMALL:
        return points, 1
    factors = [(a, points // a) for a in SMALL if points % a == 0 and points // a in SMALL]
    return min(factors, key=lambda pair: (_passes(*pair), pair), default=None)


def _passes(a: int, b: int) -> float:
    moves = 2 * a * b  # loads, and as many stores
    if b == 1:
        return _straight(a)[1] + moves
    turns = 4 * (a - 1) * b
    return b * _straight(a)[1] + a * _straight(b)[1] + turns + 2 * moves


def operations(points: int) -> float:
    """Vector instructions of one transform, about."""
    factors = split(points)
    assert factors is not None
    return _passes(*factors)


@cache
def smooth_sizes(least: int, count: int) -> tuple[int, ...]:
    """The `count` cheapest lengths of at least `least` and not much more, cheapest first."""
    able = [n for n in range(least, least + max(4, least // 4) + 1) if split(n) is not None]
    return tuple(sorted(able, key=operations)[:count])


def c_transforms(lengths: set[int]) -> str:
    """`transform_N` for every length, and the straight code they call."""
    pairs = {length: pair for length in sorted(lengths) if (pair := split(length)) is not None}
    small = sorted({factor for pair in pairs.values() for factor in pair})
    text = "".join(_straight(points)[0] for points in small)
    for length, (a, b) in pairs.items():
        turns = ", ".join(
            f"{cos(2 * pi * (j * k % length) / length)!r}, {-sin(2 * pi * (j * k % length) / length)!r}"
            for j in range(b)
            for k in range(a)
        )
        text += _ONE_PASS.format(N=length) if b == 1 else _TWO_PASSES.format(N=length, A=a, B=b, turns=turns)
    return text


# Elements from `from` on lie `step` apart, the real vector and next to it the imaginary one; those from `valid` on are
# zero. Results from `wanted` on are not stored. `turn` of 1 exchanges real and imaginary parts: the inverse transform.
_ONE_PASS = """
INLINE void transform_{N}(const T *from, long step, int valid, T *to, long to_step, int wanted, int turn)
{{
    vec r[{N}], i[{N}];
    #pragma GCC unroll 16
    for (int k = 0; k < {N}; k++) {{
        r[k] = k < valid ? load(from + k * step + turn * VW) : (vec){{0}};
        i[k] = k < valid ? load(from + k * step + (1 - turn) * VW) : (vec){{0}};
    }}
    dft{N}(r, i);
    #pragma GCC unroll 16
    for (int k = 0; k < {N}; k++)
        if (k < wanted) {{
            store(to + k * to_step + turn * VW, r[k]);
            store(to + k * to_step + (1 - turn) * VW, i[k]);
        }}
}}
"""

_TWO_PASSES = """
static const T TURNS_{N}[] = {{{turns}}};
INLINE void transform_{N}(const T *from, long step, int valid, T *to, long to_step, int wanted, int turn)
{{
    T middle[2 * {N} * VW] __attribute__((aligned(VECTOR_BYTES)));
    for (int j = 0; j < {B}; j++) {{
        vec r[{A}], i[{A}];
        #pragma GCC unroll 16
        for (int k = 0; k < {A}; k++) {{
            int inside = (k + 1) * {B} <= valid || (k * {B} < valid && j + k * {B} < valid);
            r[k] = inside ? load(from + (j + k * {B}) * step + turn * VW) : (vec){{0}};
            i[k] = inside ? load(from + (j + k * {B}) * step + (1 - turn) * VW) : (vec){{0}};
        }}
        dft{A}(r, i);
        #pragma GCC unroll 16
        for (int k = 0; k < {A}; k++) {{
            const T *by = TURNS_{N} + 2 * (j * {A} + k);
            vec c = splat(by[0]), s = splat(by[1]);
            store(middle + 2 * VW * (k * {B} + j), k ? c * r[k] - s * i[k] : r[k]);
            store(middle + 2 * VW * (k * {B} + j) + VW, k ? s * r[k] + c * i[k] : i[k]);
        }}
    }}
    for (int k = 0; k < {A}; k++) {{
        vec r[{B}], i[{B}];
        #pragma GCC unroll 16
        for (int j = 0; j < {B}; j++) {{
            r[j] = load(middle + 2 * VW * (k * {B} + j));
            i[j] = load(middle + 2 * VW * (k * {B} + j) + VW);
        }}
        dft{B}(r, i);
        #pragma GCC unroll 16
        for (int m = 0; m < {B}; m++)
            if ((m + 1) * {A} <= wanted || (m * {A} < wanted && k + m * {A} < wanted)) {{
                store(to + (k + m * {A}) * to_step + turn * VW, r[m]);
                store(to + (k + m * {A}) * to_step + (1 - turn) * VW, i[m]);
            }}
    }}
}}
"""
