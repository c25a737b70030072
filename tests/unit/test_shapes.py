"""Shape arithmetic, against counting by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import shapes
from autoconv.errors import InvalidSpec, InvalidType


@given(
    st.integers(1, 40), st.integers(1, 7), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)
)
def test_output_extent_counts_the_windows_that_fit(
    size: int, kernel: int, before: int, after: int, stride: int, dilation: int
) -> None:
    reach = (kernel - 1) * dilation
    fitting = len([first for first in range(0, size + before + after, stride) if first + reach < size + before + after])
    assert max(0, shapes.output_extent(size, kernel, before, after, stride, dilation)) == fitting


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_same_gives_the_ceiling_and_pads_no_more_than_needed(
    size: int, kernel: int, stride: int, dilation: int
) -> None:
    before, after = shapes.same_pads(size, kernel, stride, dilation)
    assert shapes.output_extent(size, kernel, before, after, stride, dilation) == -(-size // stride)
    assert after - before in (0, 1), "the odd zero goes after"
    if before + after:
        fewer = shapes.output_extent(size, kernel, before, after - 1, stride, dilation)
        assert fewer < -(-size // stride)


@pytest.mark.parametrize(
    ("mode", "kernel", "dilation", "expected"),
    [
        ("valid", 5, 1, (0, 0)),
        ("full", 5, 1, (4, 4)),
        ("full", 3, 2, (4, 4)),
        ("half", 5, 1, (2, 2)),
        ("half", 4, 1, (2, 2)),
        ("half", 3, 2, (2, 2)),
        ("half", 2, 2, (1, 1)),
        ("same", 4, 1, (1, 2)),
        (3, 5, 1, (3, 3)),
        (np.int64(3), 5, 1, (3, 3)),
    ],
)
def test_border_modes(mode: Any, kernel: int, dilation: int, expected: tuple[int, int]) -> None:
    assert shapes.resolve_padding(mode, (9,), (kernel,), (1,), (dilation,)) == (expected,)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (0, 3)), ((1, 2), (0, 3))),
        ((1, (0, 3)), ((1, 1), (0, 3))),
        (np.array([[1, 2], [0, 3]]), ((1, 2), (0, 3))),
    ],
)
def test_border_modes_per_axis(mode: Any, expected: shapes.Pads) -> None:
    assert shapes.resolve_padding(mode, (9, 9), (3, 3), (1, 1), (1, 1)) == expected


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("reflect", "valid, full, half, same.*'reflect'"),
        (-1, "at least 0, got -1"),
        (1.0, "must be an integer, got 1.0"),
        (True, "must be an integer, got True"),
        (None, "must be an integer, got None"),
        ((1,), r"needs 2 entries.*\(1,\)"),
        ((1, 2, 3), "needs 2 entries"),
        (((1, 2, 3), (0, 0)), r"pairs are \(before, after\)"),
        (((1, -2), (0, 0)), "at least 0, got -2"),
        (("half", "half"), "must be an integer, got 'half'"),
    ],
)
def test_impossible_border_modes(mode: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message) as caught:
        shapes.resolve_padding(mode, (9, 9), (3, 3), (1, 1), (1, 1))
    assert "border_mode" in str(caught.value)


def test_per_axis() -> None:
    assert shapes.per_axis(2, 3, "stride") == (2, 2, 2)
    assert shapes.per_axis([1, 2], 2, "stride") == (1, 2)
    assert shapes.per_axis(np.array([1, 2]), 2, "stride") == (1, 2)
    for wrong, message in (((1, 2, 3), "needs 2 entries"), (0, "at least 1, got 0"), ("ab", "an integer, got 'ab'")):
        with pytest.raises(InvalidSpec, match=f"stride.*{message}"):
            shapes.per_axis(wrong, 2, "stride")


def test_rank() -> None:
    assert shapes.check_rank([1, 2, 3, 4], 2, "input") == (1, 2, 3, 4)
    with pytest.raises(InvalidType, match=r"input needs 4 dimensions, got 3: \(1, 2, 3\)"):
        shapes.check_rank((1, 2, 3), 2, "input")


def test_dot_length() -> None:
    assert shapes.dot_length(12, 3, (3, 5)) == 60
