"""Theano's three-dimensional names, in their two layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv.compat import theano
from autoconv.errors import InvalidSpec, InvalidType
from tests.compat.naive import Array, close, correlate, dot, noise

V, W, B = noise(2, 5, 6, 4, 3), noise(7, 3, 2, 2, 3), noise(7)
NOTHING = ((0, 0),) * 3
ONES = (1, 1, 1)


@pytest.fixture(autouse=True)
def _briefly() -> Iterator[None]:
    with autoconv.settings(tune_budget_s=0.02):
        yield


def conv3d_by_hand(volumes: Array, filters: Array, stride: tuple[int, ...]) -> Array:
    y = correlate(np.moveaxis(volumes, -1, 1), np.moveaxis(filters, -1, 1), NOTHING, stride)
    return np.moveaxis(y, 1, -1)


@pytest.mark.parametrize("d", [(1, 1, 1), (2, 1, 2), (1, 3, 1)])
def test_conv3D_and_its_gradients(d: tuple[int, int, int]) -> None:
    plain = conv3d_by_hand(V, W, d)
    assert close(theano.conv3D(V, W, B, d), plain + B)
    gradient = noise(*plain.shape)
    dw = theano.convGrad3D(V, d, W.shape, gradient)
    dv = theano.convTransp3D(W, np.zeros(3, np.float32), d, gradient, V.shape[1:4])
    assert dw.shape == W.shape
    assert dv.shape == V.shape
    total = dot(plain, gradient)
    assert dot(W, dw) == pytest.approx(total, rel=1e-4, abs=1e-2)
    assert dot(V, dv) == pytest.approx(total, rel=1e-4, abs=1e-2)


def test_convTransp3D_adds_a_bias_and_grows() -> None:
    hidden, bias = noise(2, 2, 2, 3, 7), noise(3)
    least = theano.convTransp3D(W, bias, (2, 2, 1), hidden)
    assert least.shape == (2, 5, 4, 4, 3)
    assert np.array_equal(least, theano.convTransp3D(W, bias, (2, 2, 1), hidden, (-1, -1, -1)))
    larger = theano.convTransp3D(W, bias, (2, 2, 1), hidden, (9, 4, 5))
    assert np.array_equal(larger[:, :5, :, :4], least)
    assert np.array_equal(larger[:, 5:], np.broadcast_to(bias, larger[:, 5:].shape))
    with pytest.raises(InvalidSpec, match=r"RShape must be at least \(5, 4, 4\), which H covers, got \(4, 4, 4\)"):
        theano.convTransp3D(W, bias, (2, 2, 1), hidden, (4, 4, 4))


def test_the_two_layouts_are_exchanged() -> None:
    ones = (1, 1, 1)
    movies, filters = theano.conv3D_to_conv3d2d(V), theano.conv3D_to_conv3d2d(W)
    assert movies.shape == (2, 4, 3, 5, 6)
    turned = filters[:, ::-1, :, ::-1, ::-1]  # one convolves, the other correlates
    result = theano.conv3d2d_to_conv3D(theano.conv3d2d.conv3d(movies, turned))
    assert close(result, conv3d_by_hand(V, W, ones))
    assert np.shares_memory(theano.conv3d2d_to_conv3D(movies), V)


@pytest.mark.parametrize("mode", ["valid", "full", ("valid", "full", "full"), ("full", "valid", "full")])
def test_conv3d2d(mode: Any, capsys: pytest.CaptureFixture[str]) -> None:
    signals, filters = noise(2, 5, 3, 6, 7), noise(4, 2, 3, 3, 2)
    modes = (mode,) * 3 if isinstance(mode, str) else mode
    pads = [(k - 1, k - 1) if one == "full" else (0, 0) for one, k in zip(modes, (2, 3, 2), strict=True)]
    turned = filters[:, ::-1, :, ::-1, ::-1]
    expected = correlate(signals.transpose(0, 2, 1, 3, 4), turned.transpose(0, 2, 1, 3, 4), pads, (1, 1, 1))
    with autoconv.settings(verbose=1):
        result = theano.conv3d2d.conv3d(signals, filters, signals.shape, (4, 2, None, 3, 2), mode)
    assert close(result, expected.transpose(0, 2, 1, 3, 4))
    assert "rewrite.conv3d2d" in capsys.readouterr().err


@pytest.mark.parametrize("padded", [False, True])
def test_fft_in_three_dimensions(padded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    ones = (1, 1, 1)
    x, w = noise(2, 3, 5, 6, 8 - padded), noise(4, 3, 3, 2, 3)
    for mode, pads in (("valid", NOTHING), ("full", ((2, 2), (1, 1), (2, 2)))):
        with autoconv.settings(verbose=1):
            result = theano.conv3d_fft(x, w, border_mode=mode, pad_last_dim=padded)
        assert close(result, correlate(x, w[:, :, ::-1, ::-1, ::-1], pads, ones))
    assert "conv3d_fft is numpy.fft and nothing else" in capsys.readouterr().err
    volumes = V[:, :, :, : 4 - padded]
    plain = conv3d_by_hand(volumes, W, ones)
    gradient = noise(*plain.shape)
    dw = theano.convgrad3d_fft(volumes, ones, W.shape, gradient, pad_last_dim=padded)
    assert close(dw, np.asarray(theano.convGrad3D(volumes, ones, W.shape, gradient), np.float64), 1e-4)
    hidden, bias = noise(2, 3, 5, 4 - padded, 7), noise(3)
    for size in (None, (5, 6, 6)):
        dv = theano.convtransp3d_fft(W, bias, ones, hidden, size, pad_last_dim=padded)
        assert close(dv, np.asarray(theano.convTransp3D(W, bias, ones, hidden, size), np.float64), 1e-4)


@pytest.mark.parametrize("d", [(1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("mode", ["valid", "half", (1, 0, 2)])
def test_corr3dmm_and_its_gradients(mode: Any, d: tuple[int, int, int]) -> None:
    x, w = noise(2, 3, 5, 6, 4), noise(7, 3, 3, 2, 2)
    both = {"valid": (0, 0, 0), "half": (1, 1, 1)}[mode] if isinstance(mode, str) else mode
    expected = correlate(x, w, [(pad, pad) for pad in both], d)
    assert close(theano.GpuCorr3dMM(mode, d)(x, w), expected)
    gradient = noise(*expected.shape)
    dw = theano.GpuCorr3dMM_gradWeights(mode, d)(x, gradient, (3, 2, 2))
    dx = theano.GpuCorr3dMM_gradInputs(mode, d)(w, gradient, x.shape[2:])
    total = dot(expected, gradient)
    assert dot(w, dw) == pytest.approx(total, rel=1e-4, abs=1e-2)
    assert dot(x, dx) == pytest.approx(total, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: theano.conv3D(V[0], W, B, (1, 1, 1)), InvalidType, "V needs 5 dimensions"),
        (lambda: theano.conv3D(V, W, B[:3], (1, 1, 1)), InvalidSpec, "bias"),
        (lambda: theano.conv3D(V, W, B, (1, 1)), InvalidSpec, "d must be 3 integers of 1 or more"),
        (lambda: theano.conv3D(V, W, B, (1, 0, 1)), InvalidSpec, "d must be 3 integers of 1 or more"),
        (lambda: theano.conv3D(V[..., :2], W, B, (1, 1, 1)), InvalidSpec, "channels"),
        (lambda: theano.convTransp3D(W, B, ONES, noise(1, 2, 2, 2, 7)), InvalidSpec, "one value for each of the 3"),
        (lambda: theano.convTransp3D(W, B[:3], ONES, V[..., :2]), InvalidSpec, "H has 2 channels, but W has 7"),
        (lambda: theano.conv3d2d.conv3d(V, W, None, None, "same"), InvalidSpec, "border_mode"),
        (lambda: theano.convgrad3d_fft(V, (2, 1, 1), W.shape, V), InvalidSpec, "does not do strides"),
        (lambda: theano.conv3d_fft(noise(1, 1, 4, 4, 5), noise(1, 1, 2, 2, 2)), InvalidSpec, "must be even, got 5"),
        (lambda: theano.convtransp3d_fft(W, B[:3], ONES, noise(1, 2, 2, 3, 7)), InvalidSpec, "H's time must be even"),
    ],
)  # fmt: skip
def test_refuses(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
