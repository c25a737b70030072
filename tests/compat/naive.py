"""Convolution of any rank written out in float64, independently of the library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

__all__ = ["Array", "close", "correlate", "dot", "noise"]

Array = np.ndarray[Any, np.dtype[Any]]


def noise(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Random numbers that differ with the shape."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def correlate(x: Array, w: Array, pads: Sequence[tuple[int, int]], stride: Sequence[int]) -> Array:
    """Cross-correlation of (N, C, spatial...) with (K, C, spatial...)."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    size = [(pixels - taps) // step + 1 for pixels, taps, step in zip(x.shape[2:], w.shape[2:], stride, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    for tap in product(*map(range, w.shape[2:])):
        cut = tuple(slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, size, stride, strict=True))
        y += np.einsum("nc...,kc->nk...", x[(..., *cut)], w[(slice(None), slice(None), *tap)])
    return y


def dot(a: Array, b: Array) -> float:
    """Scalar product in float64."""
    return float(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)))


def close(result: Array, expected: Array, limit: float = 1e-5) -> bool:
    """Whether shapes agree, and values to `limit` of the largest."""
    return result.shape == expected.shape and float(np.abs(result - expected).max()) <= limit * np.abs(expected).max()
