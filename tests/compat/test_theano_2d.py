"""Theano's two-dimensional names: `nnet.conv2d`, `conv2d_fft`, `CorrMM`, `dnn_conv`, and their rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv.compat import theano
from autoconv.compat.theano.dnn import ALGORITHMS, CHOOSING
from autoconv.errors import InvalidOption, InvalidSpec, InvalidType, NoImplementation
from autoconv.evidence import Choice, Config
from tests.compat.naive import Array, close, correlate, dot, noise

X, W = noise(4, 3, 8, 10), noise(6, 3, 3, 2)
FLIPPED = W[:, :, ::-1, ::-1]
PADS = {"valid": ((0, 0), (0, 0)), "full": ((2, 2), (1, 1)), "half": ((1, 1), (1, 1))}


@pytest.fixture(autouse=True)
def _briefly() -> Iterator[None]:
    with autoconv.settings(tune_budget_s=0.02):
        yield


def runs(capsys: pytest.CaptureFixture[str], call: Any, *arguments: Any, **options: Any) -> tuple[Array, str]:
    """The result of a call and what verbose mode says of it."""
    capsys.readouterr()
    with autoconv.settings(verbose=1):
        result = call(*arguments, **options)
    return result, capsys.readouterr().err


# nnet.conv2d -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, (2, 3)])
@pytest.mark.parametrize("mode", ["valid", "full"])
def test_conv2d_flips(mode: str, stride: Any) -> None:
    steps = (stride, stride) if isinstance(stride, int) else stride
    result = theano.nnet.conv2d(X, W, (4, None, 8, 10), (6, 3, 3, 2), mode, stride)
    assert close(result, correlate(X, FLIPPED, PADS[mode], steps))


@pytest.mark.usefixtures("gcc")
def test_unroll_values_select_the_generated_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    result, said = runs(
        capsys, theano.nnet.conv2d, X, W, unroll_batch=2, unroll_kern=3, unroll_patch=True, openmp=False
    )
    assert close(result, correlate(X, FLIPPED, PADS["valid"], (1, 1)))
    assert "native.direct[" in said
    assert "(pinned)" in said
    for tunable in ("unroll_batch=2", "unroll_kern=3", "unroll_patch=True", "threads=1"):
        assert tunable in said


@pytest.mark.usefixtures("gcc")
def test_unroll_values_that_do_not_divide_are_lowered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(RuntimeWarning) as warned:
        result, said = runs(capsys, theano.nnet.conv2d, X, W, unroll_batch=3, unroll_kern=20)
    assert [str(one.message) for one in warned] == [
        "unroll_batch=3 does not divide 4: lowered to 2",
        "unroll_kern=20 does not divide 6: lowered to 6",
    ]
    assert "unroll_batch=2 unroll_kern=6" in said
    assert close(result, correlate(X, FLIPPED, PADS["valid"], (1, 1)))


def test_unroll_values_without_a_compiler_are_said_to_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv.impls.native.direct import Direct

    monkeypatch.setattr(Direct, "unavailable", lambda self: "needs a C compiler, found none")
    with pytest.warns(RuntimeWarning, match=r"unroll_kern, openmp without effect: native.direct needs a C compiler"):
        result = theano.nnet.conv2d(X, W, unroll_kern=2, openmp=True)
    assert close(result, correlate(X, FLIPPED, PADS["valid"], (1, 1)))


def test_no_fft_leaves_fft_out() -> None:
    with autoconv.settings(require=("fft",)), pytest.raises(NoImplementation, match="excluded"):
        theano.nnet.conv2d(X, W, version="no_fft")
    with autoconv.settings(require=("fft",)):
        assert close(theano.nnet.conv2d(X, W, version=-1), correlate(X, FLIPPED, PADS["valid"], (1, 1)))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], W), {}, InvalidType, "input needs 4 dimensions"),
        ((X, W[0]), {}, InvalidType, "filters needs 4 dimensions"),
        ((X, W, (4, 3, 8, 9)), {}, InvalidSpec, "image_shape declares"),
        ((X, W), {"version": "fft"}, InvalidSpec, "version must be an integer or 'no_fft'"),
        ((X, W), {"unroll_kern": 0}, InvalidSpec, "unroll_kern must be an integer of 1 or more"),
        ((X, W[:, :2]), {}, InvalidSpec, "channels"),
    ],
)
def test_conv2d_refuses(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        theano.nnet.conv2d(*arguments, **options)


def test_conv2d_knows_no_other_keyword() -> None:
    with pytest.raises(TypeError, match="imshp_logical"):
        theano.nnet.conv2d(X, W, imshp_logical=(3, 8, 10))  # type: ignore[call-arg]


# conv2d_fft --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["valid", "full"])
@pytest.mark.parametrize("width", [10, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_conv2d_fft(mode: str, width: int, padded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    images = X[..., :width]
    if width % 2 and not padded:
        with pytest.raises(InvalidSpec, match=r"columns of input must be even, got 9: pad_last_dim=True"):
            theano.conv2d_fft(images, W, border_mode=mode)
        return
    result, said = runs(capsys, theano.conv2d_fft, images, W, border_mode=mode, pad_last_dim=padded)
    assert close(result, correlate(images, FLIPPED, PADS[mode], (1, 1)))
    assert "conv2d_fft is numpy.fft and nothing else" in said


def test_conv2d_fft_knows_two_modes() -> None:
    with pytest.raises(InvalidSpec, match="border_mode must be valid or full, got 'half'"):
        theano.conv2d_fft(X, W, border_mode="half")


# CorrMM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["valid", "full", "half", (2, 0), 1])
@pytest.mark.parametrize("kernel", [(3, 2), (2, 3), (4, 4)])
def test_corrmm_and_its_gradients(mode: Any, stride: tuple[int, int], kernel: tuple[int, int]) -> None:
    filters = noise(6, 3, *kernel)
    if isinstance(mode, str):
        both = {"valid": [0, 0], "full": [k - 1 for k in kernel], "half": [k // 2 for k in kernel]}[mode]
    else:
        both = [mode, mode] if isinstance(mode, int) else list(mode)
    options = {"border_mode": mode, "subsample": stride}
    expected = correlate(X, filters, [(pad, pad) for pad in both], stride)
    result = theano.GpuCorrMM(**options)(X, filters)
    assert close(result, expected)
    gradient = noise(*expected.shape)
    strided = stride != (1, 1)
    dw = theano.CorrMM_gradWeights(**options)(X, gradient, kernel if strided or mode == "half" else None)
    dx = theano.CorrMM_gradInputs(**options)(filters, gradient, X.shape[2:] if strided else None)
    assert dw.shape == filters.shape
    assert dx.shape == X.shape
    total = dot(expected, gradient)
    assert dot(filters, dw) == pytest.approx(total, rel=1e-4, abs=1e-2)
    assert dot(X, dx) == pytest.approx(total, rel=1e-4, abs=1e-2)


def test_half_by_hand() -> None:
    """Odd kernels keep the size, even ones add one: taps // 2 zeros lie on either side."""
    row = np.array([[[[1.0, 2.0, 3.0]]]])
    odd, even = np.array([[[[1.0, 10.0, 100.0]]]]), np.array([[[[1.0, 10.0]]]])
    assert theano.CorrMM("half")(row, odd).tolist() == [[[[210.0, 321.0, 32.0]]]]
    assert theano.CorrMM("half")(row, even).tolist() == [[[[10.0, 21.0, 32.0, 3.0]]]]
    assert autoconv.conv2d(row, odd, border_mode="half").tolist() == [[[[12.0, 123.0, 230.0]]]]


def test_pad_is_the_older_spelling() -> None:
    assert np.array_equal(theano.CorrMM(pad=(1, 2))(X, W), theano.CorrMM(border_mode=(1, 2))(X, W))
    with pytest.raises(InvalidSpec, match="border_mode or pad, not both"):
        theano.CorrMM("full", pad=(1, 1))


def test_shapes_that_do_not_follow_are_asked_for() -> None:
    with pytest.raises(InvalidSpec, match=r"CorrMM_gradWeights needs shape=the filters' spatial size"):
        theano.CorrMM_gradWeights(subsample=(2, 2))(X, noise(4, 6, 3, 5))
    with pytest.raises(InvalidSpec, match=r"CorrMM_gradInputs needs shape=the images' spatial size"):
        theano.CorrMM_gradInputs(subsample=(2, 1))(W, noise(4, 6, 3, 9))


def test_corrmm_is_im2col(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = runs(capsys, theano.GpuCorrMM(), X, W)
    assert "GpuCorrMM is numpy.im2col and nothing else" in said
    assert "numpy.im2col[" in said


# dnn_conv ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [*ALGORITHMS, *CHOOSING])
@pytest.mark.parametrize("conv_mode", ["conv", "cross"])
def test_dnn_conv(algo: str, conv_mode: str) -> None:
    square = noise(6, 3, 3, 3)
    filters = square[:, :, ::-1, ::-1] if conv_mode == "conv" else square
    for mode, hint in (("half", None), ("valid", "forward"), ("full", "forward!"), ("full", None)):
        pad = {"valid": 0, "half": 1, "full": 2}[mode]
        result = theano.dnn_conv(X, square, mode, (1, 1), conv_mode, direction_hint=hint, algo=algo)
        assert close(result, correlate(X, filters, [(pad, pad)] * 2, (1, 1)), 1e-4), (mode, hint)


@pytest.mark.usefixtures("gcc")
@pytest.mark.parametrize("conv_mode", ["conv", "cross"])
def test_hints_choose_the_operation(conv_mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    filters = FLIPPED if conv_mode == "conv" else W
    for mode, hint, op in (
        ("valid", "bprop weights", "wgrad"),
        ("full", "bprop inputs", "dgrad"),
        ("valid", None, "fprop"),
    ):
        result, said = runs(capsys, theano.dnn_conv, X, W, mode, conv_mode=conv_mode, direction_hint=hint)
        assert close(result, correlate(X, filters, PADS[mode], (1, 1)))
        assert f"autoconv: {op} " in said


def test_an_algorithm_that_cannot_is_not_replaced() -> None:
    with pytest.raises(NoImplementation, match="needs stride 1"):
        theano.dnn_conv(X, W, subsample=(2, 2), algo="fft")
    with pytest.raises(NoImplementation):
        theano.dnn_conv(X, W, direction_hint="bprop weights", algo="winograd")


def test_once_keeps_its_choice_and_checks_it(capsys: pytest.CaptureFixture[str]) -> None:
    with autoconv.settings(exclude=("native", "vendor", "framework", "rewrite", "gemm")):
        operation = theano.DnnConv(algo="time_once")
        with autoconv.settings(require=("numpy.fft", "numpy.direct")):
            operation(X, noise(2, 3, 7, 7))
            first = operation.choice
        assert first is not None
        operation.choice = Choice("numpy.fft", 1, Config(lib="numpy", size="padded"))
        other = noise(2, 3, 11, 12)
        _, said = runs(capsys, operation, other, noise(5, 3, 4, 4))  # another shape, another engine might be faster
        assert "numpy.fft[lib=numpy size=padded] (pinned)" in said
        strided = theano.DnnConv(subsample=(2, 2), algo="guess_once")
        strided.choice = operation.choice
        result, said = runs(capsys, strided, X, W)
        assert "cannot run fprop" in said
        assert "needs stride 1" in said
        assert strided.choice.implementation != "numpy.fft"
        assert close(result, correlate(X, FLIPPED, PADS["valid"], (2, 2)))


def test_on_shape_change_chooses_for_each_shape() -> None:
    operation = theano.DnnConv(algo="guess_on_shape_change")
    operation(X, W)
    assert operation.choice is None


def test_precision() -> None:
    result = theano.dnn_conv(X, W, precision="float64", algo="large")
    assert result.dtype == np.float32
    assert np.array_equal(result, correlate(X, FLIPPED, PADS["valid"], (1, 1)).astype(np.float32))
    with pytest.raises(InvalidOption, match="precision must be at least that of the arrays, float32, got float16"):
        theano.dnn_conv(X, W, precision="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_mode": "corr"}, "conv_mode must be conv or cross"),
        ({"algo": "fast"}, "algo must be one of none, small"),
        ({"algo": "fft", "workmem": "none"}, "algo or workmem"),
        ({"direction_hint": "backward"}, "direction_hint must be one of"),
        ({"precision": "half"}, "precision must be as_input"),
        ({"subsample": (1, 2, 3)}, "subsample must be 2 integers"),
    ],
)
def test_dnn_conv_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        theano.dnn_conv(X, W, **options)
