"""How far a right answer may lie from the float64 reference: one function, for every implementation.

An error is max|y - ref| / max|ref|. Rounding was seen to reach a fifth of what is allowed
here; a tap left out, a seam or a wrong sign lies far beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

__all__ = ["EPSILON", "tolerance"]

EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}
"""Spacing of the numbers just above 1."""

PLAIN = 8.0  # rounding of operands and result, in epsilons
PER_ROOT = 2.0  # a plain loop over L products was seen to err by 0.4 * sqrt(L) epsilons of the largest result
ALGORITHMS = {
    "fft": 64.0,  # grows with the logarithm of the transform's length
    "winograd": 4096.0,  # F(6, 3) with ordinary points errs by up to 1000 epsilons
    "3xtf32": 8.0,  # two parts of 10 bits each hold a float32 to 2**-22
    "tf32": 2.0**14,  # both operands cut off after 10 bits of mantissa: 2**-9
}
"""Epsilons that belong to an algorithm, by tag, whatever the reduction's length."""
CEILING = 0.05  # beyond this it is no convolution any more, however short the format


def tolerance(dtype: str, reduction_length: int, tags: Iterable[str] = ()) -> float:
    """Largest error that rounding in `dtype` explains for sums of `reduction_length` products.

    >>> tolerance("f64", 9) < tolerance("f32", 9) < tolerance("f32", 9, ["winograd"])
    True
    """
    own = max((ALGORITHMS[tag] for tag in tags if tag in ALGORITHMS), default=0.0)
    return min(CEILING, EPSILON[dtype] * (PLAIN + own + PER_ROOT * sqrt(reduction_length)))
