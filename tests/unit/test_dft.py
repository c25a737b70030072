"""The transforms that `native.fft` writes in C, evaluated as Python; and the lengths it may choose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoconv.impls.native import _dft
from autoconv.impls.native._forward import as_forward
from autoconv.impls.native.fft import _Axis
from autoconv.spec import ConvSpec


@pytest.mark.parametrize("points", _dft.SMALL)
def test_straight_code_is_the_transform(points: int) -> None:
    rng = np.random.default_rng(points)
    x = rng.standard_normal(points) + 1j * rng.standard_normal(points)
    names = {f"r{k}": value.real for k, value in enumerate(x)} | {f"i{k}": value.imag for k, value in enumerate(x)}
    writer = _dft._Writer()
    outputs = writer.transform([(f"r{k}", f"i{k}") for k in range(points)])
    for line in writer.lines:
        name, _, expression = line.strip().removeprefix("const vec ").rstrip(";").partition(" = ")
        names[name] = eval(expression.replace("(T)", ""), {}, names)
    result = [names[re] + 1j * names[im] for re, im in outputs]
    np.testing.assert_allclose(result, np.fft.fft(x), atol=1e-13)


def test_few_points_take_few_operations() -> None:
    assert [len(_operations(points)) for points in (2, 4, 8)] == [4, 16, 53]


def _operations(points: int) -> list[str]:
    writer = _dft._Writer()
    writer.transform([(f"r{k}", f"i{k}") for k in range(points)])
    return writer.lines


def test_sizes_split_into_what_is_written_out() -> None:
    for least in range(1, 200):
        sizes = _dft.smooth_sizes(least, 3)
        assert sizes
        for size in sizes:
            first, second = _dft.split(size) or (0, 0)
            assert first * second == size >= least
            assert {first, second} <= set(_dft.SMALL)
    assert _dft.smooth_sizes(257, 3) == ()
    assert _dft.split(2 * 17) is None


@given(st.data())
def test_what_wraps_round_is_never_wanted(data: st.DataObject) -> None:
    """A circular product of the least length is the convolution, cropped taps and odd padding included."""
    size, kernel, dilation = (data.draw(st.integers(1, most)) for most in (12, 15, 3))
    before, after = data.draw(st.integers(0, 14)), data.draw(st.integers(0, 14))
    reach = (kernel - 1) * dilation
    assume(size + before + after > reach)
    spec = ConvSpec.parse(f"fprop n1c1 {size} k1 {kernel} p{before}:{after} d{dilation} corr")
    axis = _Axis.of(as_forward(spec), 2)
    assume(axis.taps > 0)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(size), rng.standard_normal(kernel)
    padded = np.pad(x, (before, after))
    expected = np.array([sum(w[t] * padded[p + t * dilation] for t in range(kernel)) for p in range(axis.out)])

    length = axis.least(axis.out)
    filters = np.zeros(length)
    for tap in range(axis.first, axis.end):
        filters[(tap * dilation - before) % length] += w[tap]
    spectrum = np.fft.fft(np.pad(x, (0, length - size))) * np.conj(np.fft.fft(filters))
    np.testing.assert_allclose(np.fft.ifft(spectrum).real[: axis.out], expected, atol=1e-12)
