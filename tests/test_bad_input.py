"""What nobody can compute is refused in words, by the error of the tree, before anything is allocated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import (
    InvalidOption,
    InvalidSpec,
    InvalidType,
    NoImplementation,
    RegistryError,
    dispatch,
    settings,
)
from autoconv.cache import MemoryStore

X: Any = np.arange(2 * 3 * 6 * 7, dtype=np.float64).reshape(2, 3, 6, 7)
W: Any = np.arange(4 * 3 * 3 * 2, dtype=np.float64).reshape(4, 3, 3, 2)
Y: Any = np.ones((2, 4, 4, 6))


@pytest.fixture(autouse=True)
def _untuned() -> Iterator[None]:
    """Choices by estimate, misses counted in memory."""
    dispatch.use_store(MemoryStore(), settings.current().cache)
    with settings(on_miss="heuristic"):
        yield


BAD: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "rank of the input": (
        lambda: autoconv.conv2d(X[0], W),
        InvalidType,
        ("input", "4 dimensions", "got 3", "(3, 6, 7)"),
    ),
    "rank of the filters": (lambda: autoconv.conv2d(X, W[0, 0]), InvalidType, ("filters", "4 dimensions", "got 2")),
    "rank of a gradient": (
        lambda: autoconv.conv2d_grad_wrt_inputs(Y[0], W, X.shape),
        InvalidType,
        ("output_grad", "got 3"),
    ),
    "rank of a shape": (
        lambda: autoconv.conv2d_grad_wrt_inputs(Y, W, (2, 3, 6)),
        InvalidType,
        ("input_shape", "4", "got 3"),
    ),
    "no shape at all": (lambda: autoconv.conv2d_grad_wrt_weights(X, Y, 3), InvalidType, ("filter_shape", "3")),
    "no declared shape": (lambda: autoconv.conv2d(X, W, image_shape=6), InvalidType, ("image_shape", "sequence", "6")),
    "channels": (
        lambda: autoconv.conv2d(X, W[:, :2]),
        InvalidSpec,
        ("filters", "(4, 2, 3, 2)", "2 input channels", "has 3"),
    ),
    "groups and input": (
        lambda: autoconv.conv2d(X, W, num_groups=2),
        InvalidSpec,
        ("num_groups", "3 channels", "input", "got 2"),
    ),
    "groups and filters": (
        lambda: autoconv.conv2d(X, W[:, :1], num_groups=3),
        InvalidSpec,
        ("num_groups", "4 channels", "filters"),
    ),
    "no groups": (lambda: autoconv.conv2d(X, W, num_groups=0), InvalidSpec, ("num_groups", "at least 1", "got 0")),
    "broken groups": (lambda: autoconv.conv2d(X, W, num_groups=1.5), InvalidSpec, ("num_groups", "integer", "1.5")),
    "stride": (lambda: autoconv.conv2d(X, W, subsample=0), InvalidSpec, ("subsample", "at least 1", "got 0")),
    "stride per axis": (
        lambda: autoconv.conv2d(X, W, subsample=(1, -1)),
        InvalidSpec,
        ("subsample", "at least 1", "got -1"),
    ),
    "strides": (
        lambda: autoconv.conv2d(X, W, subsample=(1, 1, 1)),
        InvalidSpec,
        ("subsample", "2 entries", "(1, 1, 1)"),
    ),
    "dilation": (
        lambda: autoconv.conv2d(X, W, filter_dilation=(0, 1)),
        InvalidSpec,
        ("filter_dilation", "at least 1", "got 0"),
    ),
    "broken dilation": (
        lambda: autoconv.conv2d(X, W, filter_dilation=1.5),
        InvalidSpec,
        ("filter_dilation", "integer", "1.5"),
    ),
    "border mode": (
        lambda: autoconv.conv2d(X, W, border_mode="mirror"),
        InvalidSpec,
        ("border_mode", "valid", "half", "'mirror'"),
    ),
    "negative padding": (
        lambda: autoconv.conv2d(X, W, border_mode=(1, -1)),
        InvalidSpec,
        ("border_mode", "at least 0", "got -1"),
    ),
    "kernel too large": (lambda: autoconv.conv2d(X[..., :2, :], W), InvalidSpec, ("kernel larger", "axis 0", "3", "2")),
    "dilated too large": (
        lambda: autoconv.conv2d(X, W, filter_dilation=7),
        InvalidSpec,
        ("kernel larger", "dilation 7", "15"),
    ),
    "declared image": (
        lambda: autoconv.conv2d(X, W, image_shape=(2, 3, 6, 8)),
        InvalidSpec,
        ("image_shape", "(2, 3, 6, 8)", "(2, 3, 6, 7)"),
    ),
    "declared rank": (lambda: autoconv.conv2d(X, W, image_shape=(2, 3, 6)), InvalidType, ("image_shape", "3", "4")),
    "declared filters": (
        lambda: autoconv.conv2d(X, W, filter_shape=(None, None, 3, 3)),
        InvalidSpec,
        ("filter_shape", "(4, 3, 3, 2)"),
    ),
    "output gradient": (
        lambda: autoconv.conv2d_grad_wrt_inputs(Y[..., :-1], W, X.shape),
        InvalidSpec,
        ("output_grad", "(2, 4, 4, 6)", "(2, 4, 4, 5)"),
    ),
    "gradient's batch": (
        lambda: autoconv.conv2d_grad_wrt_weights(X[:1], Y, W.shape),
        InvalidSpec,
        ("output_grad", "(1, 4, 4, 6)"),
    ),
    "integers": (lambda: autoconv.conv2d(X.astype(int), W), InvalidType, ("input", "int64", "astype")),
    "integer filters": (lambda: autoconv.conv2d(X, W.astype(np.uint8)), InvalidType, ("filters", "uint8", "astype")),
    "booleans": (lambda: autoconv.conv2d(X > 3, W), InvalidType, ("input", "bool", "astype")),
    "complex": (
        lambda: autoconv.conv2d(X.astype(complex), W),
        InvalidType,
        ("input", "complex128", "real and imaginary"),
    ),
    "objects": (lambda: autoconv.conv2d(X.astype(object), W), InvalidType, ("input", "object")),
    "long doubles": (lambda: autoconv.conv2d(X.astype(np.longdouble), W), InvalidType, ("input", "float128")),
    "lists": (lambda: autoconv.conv2d(X.tolist(), W), InvalidType, ("input", "list", "__dlpack__")),
    "nothing": (lambda: autoconv.conv2d(X, None), InvalidType, ("filters", "NoneType")),
    "masked": (lambda: autoconv.conv2d(np.ma.masked_array(X), W), InvalidType, ("input", "masked", "filled")),
    "no channels": (lambda: autoconv.conv2d(X[:, :0], W[:, :0]), InvalidSpec, ("channels", "at least 1", "got 0")),
    "no filters": (lambda: autoconv.conv2d(X, W[:0]), InvalidSpec, ("output channels", "at least 1", "got 0")),
    "no taps": (lambda: autoconv.conv2d(X, W[..., :0]), InvalidSpec, ("kernel", "at least 1", "got 0")),
    "no pixels": (
        lambda: autoconv.conv2d(X[..., :0], W, border_mode=3),
        InvalidSpec,
        ("input size", "at least 1", "got 0"),
    ),
    "out's shape": (
        lambda: autoconv.conv2d(X, W, out=np.empty((2, 4, 4, 5))),
        InvalidSpec,
        ("out", "(2, 4, 4, 6)", "(2, 4, 4, 5)"),
    ),
    "out's dtype": (
        lambda: autoconv.conv2d(X, W, out=np.empty((2, 4, 4, 6), "f4")),
        InvalidType,
        ("out", "float64", "float32"),
    ),
    "bias": (lambda: autoconv.conv2d(X, W, bias=np.ones(3)), InvalidSpec, ("bias", "(4,)", "(3,)")),
    "spec": (lambda: autoconv.plan("fprop n1c1 3x3 k1"), InvalidSpec, ("fprop n1c1 3x3 k1",)),
    "no spec": (lambda: autoconv.plan(3), InvalidType, ("spec", "int")),
    "spec to explain": (lambda: autoconv.explain("fprop n1c1 3x3 k1 5x5"), InvalidSpec, ("kernel larger",)),
    "spec to tune": (lambda: autoconv.tune(["fprop n1c1 3x3 k1 3x3", "nonsense"]), InvalidSpec, ("nonsense",)),
    "budget": (lambda: autoconv.tune([], budget_s=-1), InvalidOption, ("budget_s", "positive", "-1")),
    "device": (lambda: autoconv.plan("fprop n1c1 3x3 k1 3x3", device="tpu"), InvalidOption, ("device", "cpu", "'tpu'")),
    "absent device": (
        lambda: autoconv.plan("fprop n1c1 3x3 k1 3x3", device="gpu:0"),
        InvalidOption,
        ("gpu:0", "cuda:N"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_what_came_and_what_was_expected(name: str) -> None:
    call, error, words = BAD[name]
    with pytest.raises(error) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value} lacks {missing}"
    if error is InvalidType:
        assert isinstance(caught.value, TypeError)
    if error in (InvalidSpec, InvalidType):
        assert isinstance(caught.value, ValueError)


def test_bad_input_is_refused_after_good_calls_too() -> None:
    """The short way of repeated calls must not let through what the long one refuses."""
    autoconv.conv2d(X, W)
    autoconv.conv2d(X, W, subsample=1, border_mode=1)
    for name in ("channels", "out's shape", "out's dtype", "bias", "declared image", "integers", "broken dilation"):
        call, error, _ = BAD[name]
        with pytest.raises(error):
            call()


def test_refusing_allocates_nothing() -> None:
    """A result of 8 TB is refused, or not refused, without an attempt at it."""
    huge = np.broadcast_to(np.float64(0), (1000, 1000, 1000, 1000))
    tracemalloc.start()
    try:
        for call in (
            lambda: autoconv.conv2d(huge, W),
            lambda: autoconv.conv2d(huge[..., :1], np.broadcast_to(0.0, (4, 1000, 3, 2))),
            lambda: autoconv.conv2d(huge, np.broadcast_to(0.0, (4, 999, 3, 2))),
            lambda: autoconv.conv2d(huge, np.broadcast_to(0, (4, 1000, 3, 2))),
        ):
            with pytest.raises(InvalidSpec):
                call()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("setting", ["require", "exclude", "prefer"])
def test_an_unknown_name_in_the_settings(setting: str) -> None:
    with settings(**{setting: ("numpy.dirct",)}):
        for call in (lambda: autoconv.conv2d(X, W), lambda: autoconv.tune("fprop n1c1 3x3 k1 3x3")):
            with pytest.raises(RegistryError, match=f"{setting}: .*'numpy.dirct'; did you mean 'numpy.direct'"):
                call()


def test_an_impossible_require() -> None:
    with (
        settings(require=("numpy.direct",), exclude=("numpy.direct",)),
        pytest.raises(NoImplementation, match=r"numpy\.direct +excluded by settings") as caught,
    ):
        autoconv.conv2d(X, W)
    assert caught.value.refusals["numpy.direct"] == "excluded by settings(exclude='numpy.direct')"
    with settings(require=("numpy.winograd",)), pytest.raises(NoImplementation) as caught:
        autoconv.conv2d(X, np.ones((4, 3, 3, 3)), subsample=2)
    assert "stride" in caught.value.refusals["numpy.winograd"]


def test_the_policy_error_says_what_to_do() -> None:
    with settings(on_miss="error"), pytest.raises(NoImplementation, match=r"autoconv tune 'fprop n2c3 6x7 .* f64'"):
        autoconv.conv2d(X, W)
    assert [miss.count for miss in dispatch.current_store().misses()] == [1]
