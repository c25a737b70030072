"""cuda-convnet's operations: layout, ceil rule, restrictions."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import pytest

import autoconv
from autoconv.compat.theano import FilterActs, ImageActs, WeightActs
from autoconv.errors import InvalidSpec, InvalidType
from tests.compat.naive import Array, close, correlate, dot, noise

pytestmark = pytest.mark.usefixtures("gcc")


@pytest.fixture(autouse=True)
def _briefly() -> Iterator[None]:
    with autoconv.settings(tune_budget_s=0.02):
        yield


def expected(images: Array, filters: Array, stride: int, pad: int) -> Array:
    """(filters, rows, columns, batch), zeros beyond the end as far as the ceil rule asks for them."""
    taps = filters.shape[1]
    outs = [ceil((size + 2 * pad - taps) / stride) + 1 for size in images.shape[1:3]]
    pads = [(pad, (out - 1) * stride + taps - size - pad) for out, size in zip(outs, images.shape[1:3], strict=True)]
    y = correlate(images.transpose(3, 0, 1, 2), filters.transpose(3, 0, 1, 2), pads, (stride, stride))
    assert y.shape[2:] == tuple(outs)
    return y.transpose(1, 2, 3, 0)


@pytest.mark.parametrize(("stride", "pad"), [(1, 0), (2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(("channels", "batch"), [(3, 5), (4, 32)])
def test_acts(channels: int, batch: int, stride: int, pad: int) -> None:
    images, filters = noise(channels, 8, 9, batch), noise(channels, 3, 3, 16)
    responses = expected(images, filters, stride, pad)
    result = FilterActs(stride, None, pad)(images, filters)
    assert close(result, responses)
    gradient = noise(*responses.shape)
    dw = WeightActs(stride, None, pad)(images, gradient, (3, 3))
    dx = ImageActs(stride, None, pad)(gradient, filters, (8, 9))
    assert dw.shape == filters.shape
    assert dx.shape == images.shape
    total = dot(responses, gradient)
    assert dot(filters, dw) == pytest.approx(total, rel=1e-4, abs=1e-2)
    assert dot(images, dx) == pytest.approx(total, rel=1e-4, abs=1e-2)


def test_keeps_its_layout_and_its_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with autoconv.settings(verbose=1):
        result = FilterActs()(noise(2, 6, 6, 16), noise(2, 3, 3, 16))
    assert result.flags.c_contiguous
    said = capsys.readouterr().err
    assert "FilterActs is native.chwn and nothing else" in said
    assert " chwn f32: native.chwn[" in said


def test_is_compiled_when_calls_are_not_tuned() -> None:
    images, filters = noise(2, 6, 6, 16), noise(2, 3, 3, 16)
    with autoconv.settings(on_miss="heuristic"):
        assert close(FilterActs()(images, filters), expected(images, filters, 1, 0))


GRADIENT = noise(16, 6, 6, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FilterActs()(noise(5, 8, 8, 4), noise(5, 3, 3, 16)), "channels must be at most 3 or even, got 5"),
        (lambda: FilterActs()(noise(4, 8, 8, 4), noise(4, 3, 3, 20)), "filters must be a multiple of 16, got 20"),
        (lambda: FilterActs()(noise(4, 8, 8, 4), noise(4, 3, 2, 16)), "filters must be square, got 3x2"),
        (lambda: FilterActs()(noise(4, 2, 8, 4), noise(4, 3, 3, 16)), "filters of 3x3 do not fit images of"),
        (lambda: ImageActs()(GRADIENT, noise(7, 3, 3, 16), (8, 8)), "channels must be at most 3 or even, got 7"),
        (lambda: ImageActs()(GRADIENT, noise(4, 3, 3, 16), (9, 8)), "hid_grads must have"),
        (
            lambda: WeightActs()(noise(6, 8, 8, 4), GRADIENT, (3, 3)),
            "channels must be at most 3 or a multiple of 4, got 6",
        ),
        (
            lambda: WeightActs(1, 5)(noise(4, 8, 8, 4), GRADIENT, (3, 3)),
            "partial_sum must divide the 36 results per image",
        ),
        (lambda: FilterActs(stride=0), "stride must be an integer of 1 or more"),
        (lambda: FilterActs(pad=-1), "pad must be an integer of 0 or more"),
    ],
)
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        call()


def test_refuses_ranks() -> None:
    with pytest.raises(InvalidType, match=r"images needs 4 dimensions \(channels, rows, columns, batch\), got 3"):
        FilterActs()(noise(3, 8, 8), noise(3, 3, 3, 16))
