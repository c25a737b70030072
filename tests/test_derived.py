"""Transposed, causal and separable convolutions against sums written out, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import InvalidSpec, InvalidType, dispatch, settings
from autoconv.cache import MemoryStore

TRANSPOSED: dict[int, Callable[..., Any]] = {
    1: autoconv.conv1d_transpose,
    2: autoconv.conv2d_transpose,
    3: autoconv.conv3d_transpose,
}
FORWARD: dict[int, Callable[..., Any]] = {1: autoconv.conv1d, 2: autoconv.conv2d, 3: autoconv.conv3d}


@pytest.fixture(autouse=True)
def _untuned() -> Any:
    dispatch.use_store(MemoryStore(), settings.current().cache)
    with settings(on_miss="heuristic"):
        yield


def spread(x: Any, w: Any, shape: tuple[int, ...], before: Any, stride: Any, dilation: Any, groups: int = 1) -> Any:
    """Every pixel times every tap of a cross-correlation's filters, added where it belongs."""
    batch, channels, *sizes = x.shape
    result = np.zeros(shape)
    for n, k, c in product(range(batch), range(channels), range(w.shape[1])):
        into = k // (channels // groups) * w.shape[1] + c
        for pixel, tap in product(np.ndindex(*sizes), np.ndindex(*w.shape[2:])):
            place = tuple(p * s + t * d - b for p, s, t, d, b in zip(pixel, stride, tap, dilation, before, strict=True))
            if all(0 <= at < size for at, size in zip(place, shape[2:], strict=True)):
                result[(n, into, *place)] += x[(n, k, *pixel)] * w[(k, c, *tap)]
    return result


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "flip"), [(1, False), (2, True)])
def test_transposed_is_a_sum_of_spread_filters(rank: int, groups: int, flip: bool) -> None:
    rng = np.random.default_rng(rank)
    sizes, kernel, stride, dilation, pads = (3, 2, 4), (3, 2, 3), (2, 3, 1), (1, 2, 1), ((1, 0), (0, 2), (1, 1))
    sizes, kernel, stride, dilation, pads = (one[:rank] for one in (sizes, kernel, stride, dilation, pads))
    x, w = rng.standard_normal((2, 4, *sizes)), rng.standard_normal((4, 3, *kernel))
    extra = tuple(s - 1 for s in stride)
    options = {"border_mode": pads, "input_dilation": stride, "filter_dilation": dilation, "num_groups": groups}
    result = TRANSPOSED[rank](x, w, output_padding=extra, filter_flip=flip, **options)
    used = w[(..., *(slice(None, None, -1),) * rank)] if flip else w
    expected = spread(x, used, result.shape, [before for before, _ in pads], stride, dilation, groups)
    assert result.shape[:2] == (2, 3 * groups)
    assert np.allclose(result, expected)
    again = TRANSPOSED[rank](x, w, (None, None, *result.shape[2:]), filter_flip=flip, **options)
    assert np.array_equal(again, result)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["valid", "full", "half", "same", 1])
def test_transposed_turns_the_forward_convolution_round(rank: int, mode: Any) -> None:
    rng = np.random.default_rng(7)
    image, w = rng.standard_normal((2, 3, *(7, 6, 5)[:rank])), rng.standard_normal((4, 3, *(4, 3, 2)[:rank]))
    y = FORWARD[rank](image, w, border_mode=mode, subsample=2)
    x = rng.standard_normal(y.shape)
    back = TRANSPOSED[rank](x, w, image.shape, border_mode=mode, input_dilation=2)
    assert back.shape == image.shape
    assert np.vdot(image, back) == pytest.approx(np.vdot(y, x))


def test_transposed_by_hand() -> None:
    x, w = np.array([[[1.0, 2, 3]]]), np.array([[[10.0, 1]]])
    corr = {"filter_flip": False, "input_dilation": 2}
    assert autoconv.conv1d_transpose(x, w, **corr).tolist() == [[[10, 1, 20, 2, 30, 3]]]
    assert autoconv.conv1d_transpose(x, w, input_dilation=2).tolist() == [[[1, 10, 2, 20, 3, 30]]]
    assert autoconv.conv1d_transpose(x, w, output_padding=1, **corr).tolist() == [[[10, 1, 20, 2, 30, 3, 0]]]
    assert autoconv.conv1d_transpose(x, w, (1, 1, 7), **corr).shape == (1, 1, 7)
    assert autoconv.conv1d_transpose(x, w, border_mode=1, **corr).tolist() == [[[1, 20, 2, 30]]]
    assert autoconv.conv1d_transpose(x, w, filter_flip=False).tolist() == [[[10, 21, 32, 3]]]


X, W = np.ones((2, 4, 5, 5)), np.ones((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: autoconv.conv2d_transpose(X[0], W), InvalidType, ("input", "4 dimensions")),
        (lambda: autoconv.conv2d_transpose(X, W[0]), InvalidType, ("filters", "4 dimensions")),
        (lambda: autoconv.conv2d_transpose(X, W[:3]), InvalidSpec, ("filters", "3 channels", "input", "has 4")),
        (lambda: autoconv.conv2d_transpose(X, W, num_groups=3), InvalidSpec, ("num_groups", "4 channels", "got 3")),
        (lambda: autoconv.conv2d_transpose(X, W, (2, 3, 8, 7)), InvalidSpec, ("output_shape", "(6, 5)", "(5, 5)")),
        (lambda: autoconv.conv2d_transpose(X, W, (2, 4, 7, 7)), InvalidSpec, ("begin with (2, 3)",)),
        (lambda: autoconv.conv2d_transpose(X, W, (7, 7)), InvalidType, ("output_shape", "4 entries", "got 2")),
        (lambda: autoconv.conv2d_transpose(X, W, (2, 3, 7, None)), InvalidSpec, ("output_shape[3]",)),
        (lambda: autoconv.conv2d_transpose(X, W, output_padding=1), InvalidSpec, ("below", "(1, 1)")),
        (
            lambda: autoconv.conv2d_transpose(X, W, (2, 3, 8, 8), input_dilation=2, output_padding=1),
            InvalidSpec,
            ("output_padding must then be 0",),
        ),
        (lambda: autoconv.conv2d_transpose(X, W, border_mode="same"), InvalidSpec, ("'same' needs output_shape",)),
        (lambda: autoconv.conv2d_transpose(X, W, border_mode=9), InvalidSpec, ("crops everything", "(-11, -11)")),
        (lambda: autoconv.conv2d_transpose(X.astype(int), W), InvalidType, ("input", "int64")),
        (lambda: autoconv.causal_conv1d(X, W), InvalidType, ("input", "3 dimensions")),
        (lambda: autoconv.separable_conv2d(X, W, W), InvalidSpec, ("depthwise_filters", "(4 * M, 1", "(4, 3, 3, 3)")),
        (
            lambda: autoconv.separable_conv2d(X, np.ones((8, 1, 3, 3)), np.ones((5, 4, 1, 1))),
            InvalidSpec,
            ("pointwise_filters", "(K, 8, 1, 1)", "(5, 4, 1, 1)"),
        ),
    ],
)
def test_refusals_speak_of_what_was_passed(call: Callable[[], Any], error: type, words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []
    assert "output_grad" not in str(caught.value)


def test_foreign_arrays_and_lists_of_options_take_the_long_way() -> None:
    expected = autoconv.conv2d_transpose(X, W, (2, 3, 11, 11), input_dilation=2)
    assert np.array_equal(autoconv.conv2d_transpose(X, W, [2, 3, 11, 11], input_dilation=[2, 2]), expected)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 3), (2, 2)])
def test_causal_by_the_definition(stride: int, dilation: int) -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 4, 9)), rng.standard_normal((6, 2, 3))
    y = autoconv.causal_conv1d(x, w, subsample=stride, filter_dilation=dilation, num_groups=2)
    expected = np.zeros((2, 6, -(-9 // stride)))
    for n, k, t in np.ndindex(*expected.shape):
        for c, s in product(range(2), range(3)):
            moment = t * stride - s * dilation
            if moment >= 0:
                expected[n, k, t] += w[k, c, s] * x[n, k // 3 * 2 + c, moment]
    assert np.allclose(y, expected)
    later = x.copy()
    later[:, :, 5:] = 99
    changed = autoconv.causal_conv1d(later, w, subsample=stride, filter_dilation=dilation, num_groups=2)
    seen = -(-5 // stride)
    assert np.array_equal(changed[:, :, :seen], y[:, :, :seen])
    assert not np.allclose(changed, y)


@pytest.mark.parametrize("mode", ["valid", "half", ((1, 2), (0, 1))])
def test_separable_by_the_definition(mode: Any) -> None:
    rng = np.random.default_rng(5)
    x, depthwise = rng.standard_normal((2, 3, 7, 6)), rng.standard_normal((6, 1, 3, 2))
    pointwise, bias = rng.standard_normal((4, 6, 1, 1)), rng.standard_normal(4)
    y = autoconv.separable_conv2d(x, depthwise, pointwise, border_mode=mode, subsample=(2, 1), bias=bias)
    full = np.zeros((4, 3, 3, 2))  # the one filter bank that both are together
    for k, c, m in np.ndindex(4, 3, 2):
        full[k, c] += pointwise[k, 2 * c + m, 0, 0] * depthwise[2 * c + m, 0]
    assert np.allclose(y, autoconv.conv2d(x, full, border_mode=mode, subsample=(2, 1), bias=bias))
    out = np.empty_like(y)
    assert autoconv.separable_conv2d(x, depthwise, pointwise, border_mode=mode, subsample=(2, 1), out=out) is out
    assert np.allclose(out, y - bias[:, None, None])
