"""`autoconv.signal` against SciPy, against sums written out in float64, and against what it promises to refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoconv
import autoconv.signal as ac
from autoconv import dispatch, options
from autoconv.arrays import Array
from autoconv.errors import InvalidOption, InvalidSpec, InvalidType
from autoconv.signal import _running

MODES = ("full", "same", "valid")
TOLERANCE = {"f4": 3e-6, "f8": 1e-13}


@pytest.fixture(autouse=True)
def _untuned() -> Iterator[None]:
    """Choices by estimate: which algorithm runs is the conformance suite's business."""
    with autoconv.settings(on_miss="heuristic", exclude=("torch", "onnxruntime", "onednn")):
        yield


def full_sum(a: Array, b: Array, convolution: bool) -> Array:
    """The whole convolution or correlation by its definition: one shifted product per element of `b`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = np.zeros([n + k - 1 for n, k in zip(a.shape, b.shape, strict=True)])
    for at in np.ndindex(b.shape):
        to = at if convolution else tuple(k - 1 - i for i, k in zip(at, b.shape, strict=True))
        result[tuple(slice(i, i + n) for i, n in zip(to, a.shape, strict=True))] += b[at] * a
    return result


def close(result: Any, expected: Any) -> bool:
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return bool(
        np.abs(np.asarray(result, np.float64) - expected).max(initial=0.0) <= TOLERANCE[result.dtype.str[1:]] * scale
    )


# Against the definition ---------------------------------------------------------------------------

SHAPES = [((9,), (4,)), ((3,), (8,)), ((7, 9), (3, 4)), ((4, 5), (6, 7)), ((5, 3), (1, 3)), ((4, 5, 6), (3, 2, 3))]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("one", "other"), SHAPES)
def test_every_mode_is_a_part_of_the_whole_sum(
    one: tuple[int, ...], other: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    a, b = rng.standard_normal(one).astype(dtype), rng.standard_normal(other).astype(dtype)
    for function, convolution in ((ac.convolve, True), (ac.correlate, False)):
        whole = full_sum(a, b, convolution)
        assert close(function(a, b), whole)
        middle = tuple(slice((k - 1) // 2, (k - 1) // 2 + n) for n, k in zip(one, other, strict=True))
        assert close(function(a, b, "same"), whole[middle])
        if all(n >= k for n, k in zip(one, other, strict=True)) or all(n <= k for n, k in zip(one, other, strict=True)):
            inner = tuple(slice(min(n, k) - 1, max(n, k)) for n, k in zip(one, other, strict=True))
            assert close(function(a, b, "valid"), whole[inner])


@given(st.data())
def test_boundaries_are_what_surrounds_the_image(data: st.DataObject) -> None:
    """Whatever the sizes, filters larger than the image included: NumPy pads, and the sum is written out."""
    size = st.integers(1, 6)
    one, other = (data.draw(st.tuples(size, size)) for _ in range(2))
    mode, boundary = data.draw(st.sampled_from(["full", "same"])), data.draw(st.sampled_from(["fill", "wrap", "symm"]))
    convolution = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    a, b = rng.standard_normal(one), rng.standard_normal(other)
    widths = [(k - 1, k - 1) for k in other]
    padded = (
        np.pad(a, widths, constant_values=2.5)
        if boundary == "fill"
        else np.pad(a, widths, "wrap" if boundary == "wrap" else "symmetric")
    )
    whole = full_sum(padded, b, convolution)[
        tuple(slice(k - 1, k - 1 + n + k - 1) for n, k in zip(one, other, strict=True))
    ]
    start = [(k - 1) // 2 if convolution else k // 2 for k in other]
    if mode == "same":
        whole = whole[tuple(slice(s, s + n) for s, n in zip(start, one, strict=True))]
    function = ac.convolve2d if convolution else ac.correlate2d
    assert close(function(a, b, mode, boundary, 2.5), whole)


# Against SciPy ------------------------------------------------------------------------------------

PAIRS_2D = [((7, 8), (3, 3)), ((7, 8), (4, 2)), ((3, 2), (6, 5)), ((2, 9), (4, 3)), ((5, 5), (5, 5)), ((1, 6), (1, 4))]


@pytest.mark.parametrize("name", ["convolve2d", "correlate2d"])
@pytest.mark.parametrize(("one", "other"), PAIRS_2D)
def test_two_dimensions_as_scipy(
    name: str, one: tuple[int, int], other: tuple[int, int], rng: np.random.Generator
) -> None:
    scipy_signal = pytest.importorskip("scipy.signal")
    a, b = rng.standard_normal(one), rng.standard_normal(other)
    for mode, boundary, fill in product(MODES, ("fill", "wrap", "symm"), (0, -1.5)):
        arguments = (a, b, mode, boundary, fill)
        try:
            expected = getattr(scipy_signal, name)(*arguments)
        except ValueError:
            with pytest.raises(InvalidSpec, match="at least as large"):
                getattr(ac, name)(*arguments)
        else:
            assert close(getattr(ac, name)(*arguments), expected), (mode, boundary, fill)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("convolve", "convolve"), ("convolve", "fftconvolve"), ("convolve", "oaconvolve"), ("correlate", "correlate")],
)
@pytest.mark.parametrize(("one", "other"), SHAPES)
def test_any_dimensions_as_scipy(
    ours: str, theirs: str, one: tuple[int, ...], other: tuple[int, ...], rng: np.random.Generator
) -> None:
    scipy_signal = pytest.importorskip("scipy.signal")
    a, b = rng.standard_normal(one), rng.standard_normal(other)
    for mode in MODES:
        try:
            expected = getattr(scipy_signal, theirs)(a, b, mode)
        except ValueError:
            with pytest.raises(InvalidSpec, match="at least as large"):
                getattr(ac, ours)(a, b, mode)
        else:
            assert close(getattr(ac, ours)(a, b, mode), expected), mode


@pytest.mark.parametrize(("left", "right"), [("f4", "f4"), ("f4", "f8"), ("f4", "i8"), ("u1", "f4"), ("f8", "?")])
def test_dtypes_are_promoted_as_by_numpy(left: str, right: str) -> None:
    scipy_signal = pytest.importorskip("scipy.signal")
    a, b = np.arange(12).reshape(3, 4).astype(left), np.ones((2, 2), right)
    for boundary in ("fill", "symm"):
        result = ac.convolve2d(a, b, boundary=boundary, fillvalue=0.5)
        expected = scipy_signal.convolve2d(a, b, boundary=boundary, fillvalue=0.5)
        assert result.dtype == expected.dtype
        assert close(result, expected)


def test_arrays_of_any_kind(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((8, 9)), rng.standard_normal((3, 3))
    expected = full_sum(a, b, True)
    for image in (np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a[::-1][::-1], a.astype(">f8"), a.tolist()):
        for _ in range(2):  # found, then looked up
            assert close(ac.convolve2d(image, b), expected)
    assert close(ac.convolve2d(a, b.tolist()), expected)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ac.convolve2d, ac.correlate2d, ac.convolve, ac.correlate])
def test_refusals_say_what_to_do(function: Callable[..., Any]) -> None:
    ones = np.ones((3, 3))
    with pytest.raises(InvalidType, match=r"int64: convert first, for example with \.astype"):
        function(ones.astype(int), ones.astype(int))
    with pytest.raises(InvalidType, match="complex128: convolve the real and imaginary parts apart"):
        function(ones.astype(complex), ones)
    with pytest.raises(InvalidType, match=r"dimensions, got shapes \(3,\) and \(3, 3\)"):
        function(ones[0], ones)
    with pytest.raises(InvalidSpec, match=r"must not be empty, got shapes \(0, 3\) and \(3, 3\)"):
        function(ones[:0], ones)
    with pytest.raises(InvalidOption, match="mode must be 'full', 'same' or 'valid', got 'half'"):
        function(ones, ones, "half")
    with pytest.raises(InvalidSpec, match=r"'valid' needs one input .* got shapes \(3, 3\) and \(4, 2\)"):
        function(ones, np.ones((4, 2)), "valid")
    with pytest.raises(InvalidType, match="in1 must be an array or nested"):
        function(object(), ones)


def test_more_refusals() -> None:
    ones = np.ones((3, 3))
    with pytest.raises(InvalidType, match=r"1 to 3 dimensions, got shape \(1, 1, 1, 1\)"):
        ac.convolve(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))
    with pytest.raises(InvalidType, match=r"1 to 3 dimensions, got shape \(\)"):
        ac.convolve(np.float64(2), np.float64(3))
    with pytest.raises(InvalidOption, match=r"boundary must be 'fill'.*got 'reflect'"):
        ac.convolve2d(ones, ones, boundary="reflect")
    for fill in ((1, 2), 1j, "0"):
        with pytest.raises(InvalidOption, match="fillvalue must be one real number"):
            ac.convolve2d(ones, ones, fillvalue=fill)


# Theano's conv2d ----------------------------------------------------------------------------------


@pytest.mark.parametrize("border_mode", ["valid", "full"])
@pytest.mark.parametrize("subsample", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("images", "filters"), [((), ()), ((2,), ()), ((), (3,)), ((2,), (3,)), ((1,), (1,))])
def test_conv2d_of_every_rank(
    images: tuple[int, ...],
    filters: tuple[int, ...],
    subsample: tuple[int, int],
    border_mode: str,
    rng: np.random.Generator,
) -> None:
    x, w = rng.standard_normal((*images, 7, 8)), rng.standard_normal((*filters, 3, 2))
    declared = {"image_shape": (*images, 7, None), "filter_shape": (*filters, None, 2)}
    result = ac.conv2d(x, w, border_mode=border_mode, subsample=subsample, **declared)
    each = np.array([[full_sum(a, b, True) for b in w.reshape(-1, 3, 2)] for a in x.reshape(-1, 7, 8)])
    part = each if border_mode == "full" else each[..., 2:7, 1:8]
    part = part[..., :: subsample[0], :: subsample[1]]
    assert close(result, part.reshape(*images, *filters, *part.shape[2:]))


def test_conv2d_refuses() -> None:
    with pytest.raises(InvalidType, match=r"2 or 3 dimensions .* got shapes \(1, 1, 4, 4\) and \(3, 3\)"):
        ac.conv2d(np.ones((1, 1, 4, 4)), np.ones((3, 3)))
    with pytest.raises(InvalidSpec, match="image_shape declares"):
        ac.conv2d(np.ones((4, 4)), np.ones((3, 3)), (4, 5))
    with pytest.raises(InvalidType, match="filter_shape declares 3 dimensions"):
        ac.conv2d(np.ones((4, 4)), np.ones((3, 3)), None, (1, 3, 3))


# Bound filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bound_filter_is_the_function(mode: str, boundary: str, convolution: bool, rng: np.random.Generator) -> None:
    kernel = rng.standard_normal((4, 3))
    bound = ac.bind(kernel, mode, boundary, 0.5, convolution)
    function = ac.convolve2d if convolution else ac.correlate2d
    kernel_then = kernel.copy()
    kernel[...] = 0  # what was bound is the filter's own
    for shape in ((9, 8), (6, 5), (9, 8)):
        image = rng.standard_normal(shape)
        assert close(bound(image), function(image, kernel_then, mode, boundary, 0.5))
    stack = rng.standard_normal((3, 9, 8))
    each = [function(image, kernel_then, mode, boundary, 0.5) for image in stack]
    assert close(bound(stack), each)


def test_bound_filters_of_other_ranks_and_smaller_images(rng: np.random.Generator) -> None:
    for rank in (1, 3):
        image, kernel = rng.standard_normal((8, 7, 6)[:rank]), rng.standard_normal((3, 2, 4)[:rank])
        assert close(ac.bind(kernel)(image), ac.convolve(image, kernel, "same"))
    image, kernel = rng.standard_normal((3, 4)), rng.standard_normal((7, 9))
    for mode in MODES:
        assert close(ac.bind(kernel, mode)(image), ac.convolve2d(image, kernel, mode))


def test_a_separable_filter_is_bound_as_one() -> None:
    row = np.exp(-(np.linspace(-2, 2, 9) ** 2)).astype("f4")
    image = np.ones((40, 40), "f4")
    assert ac.bind(np.outer(row, row)).plan_for(image).plan.spec.rank1
    assert not ac.bind(np.eye(9, dtype="f4")).plan_for(image).plan.spec.rank1


def test_bind_refuses() -> None:
    ones = np.ones((3, 3))
    with pytest.raises(InvalidType, match="1 to 3 dimensions"):
        ac.bind(np.ones((1, 1, 3, 3)))
    with pytest.raises(InvalidSpec, match="must not be empty"):
        ac.bind(ones[:0])
    with pytest.raises(InvalidType, match="complex"):
        ac.bind(ones * 1j)
    with pytest.raises(InvalidOption, match="mode"):
        ac.bind(ones, "half")
    with pytest.raises(InvalidType, match=r"image needs 2 dimensions, or 3 for a stack of images, got shape \(3,\)"):
        ac.bind(ones)(ones[0])
    with pytest.raises(InvalidType, match="masked"):
        ac.bind(ones)(np.ma.masked_less(ones, 2))


# What calls keep ----------------------------------------------------------------------------------


def bound_by_bytes() -> list[_running._Bound]:
    """What the calls of this scope keep."""
    calls = options.current_scope().calls.values()
    cells = [cell.cell_contents for call in calls for cell in getattr(call, "__closure__", None) or ()]
    return [found for found in cells if isinstance(found, _running._Bound)]


def test_a_filter_beside_a_large_image_is_bound_by_its_values(rng: np.random.Generator) -> None:
    image, row = rng.standard_normal((200, 210)), np.hanning(9)
    kernels = [
        np.outer(row, row),
        rng.standard_normal((9, 9)),
        *(rng.standard_normal((9, 9)) for _ in range(_running.KEPT)),
    ]
    for kernel in kernels:
        for _ in range(2):
            assert close(
                ac.convolve2d(image, kernel, "valid"), ac.convolve2d(image[:, ::-1], kernel[:, ::-1], "valid")[:, ::-1]
            )
    first = bound_by_bytes()[0]
    assert len(first._kept) == _running.KEPT, "the latest few, not all"
    kernels[-1][0, 0] += 1.0  # the same array with another value is another filter
    assert close(
        ac.convolve2d(image, kernels[-1], "same")[50:60, 50:60], full_sum(image, kernels[-1], True)[54:64, 54:64]
    )


def test_separable_filters_in_a_plain_call_run_as_separable(rng: np.random.Generator) -> None:
    image, row = rng.standard_normal((200, 210)).astype("f4"), np.hanning(9).astype("f4")
    result = ac.convolve2d(image, np.outer(row, row))
    assert close(result, full_sum(image, np.outer(row, row), True))
    (bound,) = bound_by_bytes()
    assert [plan.plan.spec.rank1 for plan in bound._kept.values()] == [True]


def test_a_second_call_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.ones((8, 9)), np.ones((3, 3))
    first = ac.convolve2d(a, b, "same")
    monkeypatch.setattr(dispatch, "plan_for", lambda *_: pytest.fail("decided again"))
    assert np.array_equal(ac.convolve2d(a, b, "same"), first)


def test_settings_are_heeded() -> None:
    a, b = np.ones((8, 9)), np.ones((3, 3))
    with autoconv.settings(require="numpy.fft"):
        assert close(ac.convolve(a, b), full_sum(a, b, True))
        (plan,) = [one for one in options.current_scope().calls.values() if isinstance(one, autoconv.Plan)]
        assert plan.implementation == "numpy.fft"


def test_the_attribute_is_imported_when_asked_for() -> None:
    program = (
        "import sys, autoconv\n"
        "assert 'autoconv.signal' not in sys.modules\n"
        "assert autoconv.signal.convolve2d is __import__('autoconv.signal').signal.convolve2d\n"
        "assert 'scipy' not in sys.modules\n"
        "try: autoconv.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "has no attribute 'nothing'" in done.stdout
