"""`_cublas.matmul`: stacks of matrices however they lie, against NumPy's product."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoconv.impls.cuda import _cublas

TOLERANCE = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-12, "complex64": 1e-4, "complex128": 1e-12}


def lying(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, cupy: Any) -> Any:
    """An array of `shape` whose matrices have contiguous rows or columns, its axes in any order, with gaps."""
    stack = list(rng.permutation(len(shape) - 2))
    last = [len(shape) - 2, len(shape) - 1]
    if rng.random() < 0.5:
        last.reverse()
    if stack and rng.random() < 0.5:  # as channels-last groups lie: a matrix's lines outside the stack
        order = [*stack[:-1], last[0], stack[-1], last[1]]
    else:
        order = [*stack, *last]
    padded = [shape[axis] + int(rng.integers(0, 2)) for axis in order]
    values = rng.standard_normal(padded) + (1j * rng.standard_normal(padded) if dtype.startswith("c") else 0)
    part = cupy.asarray(values.astype(dtype))[tuple(slice(shape[axis]) for axis in order)]
    return part.transpose(sorted(range(len(shape)), key=order.__getitem__))


def test_stacks_however_they_lie(standin: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        dtype = str(rng.choice(list(TOLERANCE)))
        m, n, k = (int(size) for size in rng.integers(1, 6, 3))
        stack = tuple(int(size) for size in rng.integers(1, 4, rng.integers(0, 4)))
        broadcast = tuple(1 if rng.random() < 0.3 else size for size in stack)
        a = lying(rng, (*broadcast[int(rng.integers(0, len(stack) + 1)) :], m, k), dtype, standin)
        b = lying(rng, (*stack, k, n), dtype, standin)
        out = lying(rng, (*stack, m, n), dtype, standin)
        accumulate = bool(rng.random() < 0.3)
        expected = np.matmul(a.get().astype(complex), b.get().astype(complex)) + (out.get() if accumulate else 0)
        _cublas.matmul(a, b, out, accumulate=accumulate)
        np.testing.assert_allclose(out.get(), expected, TOLERANCE[dtype], 10 * TOLERANCE[dtype])


def test_one_call_where_one_stride_leads_through_the_stack(standin: ModuleType) -> None:
    from cupy_backends.cuda.libs import cublas

    a, b = standin.ones((1, 3, 2, 5), "f"), standin.ones((7, 3, 5, 4), "f")
    out = standin.empty((7, 3, 2, 4), "f")
    cublas.calls.clear()
    _cublas.matmul(standin.ones((2, 5), "f"), b, out)
    assert [call["count"] for call in cublas.calls] == [21]
    cublas.calls.clear()
    _cublas.matmul(a, b, out)  # broadcast along one axis, strided along the other
    assert sorted(call["count"] for call in cublas.calls) == [7, 7, 7]
    assert (out.get() == 5).all()


def test_matrices_that_cublas_cannot_read_are_refused(standin: ModuleType) -> None:
    gaps = standin.ones((4, 6), "f")[::2, ::2]
    with pytest.raises(ValueError, match="has gaps in rows and columns"):
        _cublas.matmul(gaps, standin.ones((3, 2), "f"), standin.empty((2, 2), "f"))
    with pytest.raises(ValueError, match="cannot multiply"):
        _cublas.matmul(standin.ones((4, 6), "f"), standin.ones((3, 2), "f"), standin.empty((4, 2), "f"))
