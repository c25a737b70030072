"""conv1d, conv2d, conv3d and their gradients: sums written out, adjoints, finite differences, and `half` by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import InvalidSpec, InvalidType, NoImplementation, dispatch, settings
from autoconv.cache import MemoryStore

RANKS = (1, 2, 3)
SIZES, STRIDES, DILATIONS = (6, 7, 5), (2, 1, 2), (1, 2, 1)
ODD, EVEN = (3, 3, 1), (2, 4, 2)


@pytest.fixture(autouse=True)
def _untuned() -> Any:
    dispatch.use_store(MemoryStore(), settings.current().cache)
    with settings(on_miss="heuristic"):
        yield


def function(rank: int, ending: str = "") -> Any:
    return getattr(autoconv, f"conv{rank}d{ending}")


# What a border mode means, along one axis of size n under a kernel of k taps, stride s, dilation d
HALF = {(2, 1): 1, (3, 1): 1, (4, 1): 2, (1, 1): 0, (3, 2): 2, (4, 2): 3, (2, 2): 1}  # (k, d), counted out


def zeros(mode: Any, n: int, k: int, s: int, d: int) -> tuple[int, int]:
    if mode == "valid":
        return 0, 0
    if mode == "full":
        return (k - 1) * d, (k - 1) * d
    if mode == "half":
        return HALF[k, d], HALF[k, d]
    if mode == "same":
        lacking = max(((n + s - 1) // s - 1) * s + (k - 1) * d + 1 - n, 0)
        return lacking // 2, lacking - lacking // 2
    return mode, mode


def forward(
    x: Any, w: Any, pads: Sequence[tuple[int, int]], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Any:
    """A true convolution, result by result, in float64."""
    rank = x.ndim - 2
    w = w[(..., *(slice(None, None, -1),) * rank)]
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    size = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    into, outof = w.shape[1], w.shape[0] // groups
    for place in np.ndindex(*size):
        seen = (slice(p * s, p * s + r, d) for p, s, r, d in zip(place, stride, reach, dilation, strict=True))
        patch = x[(slice(None), slice(None), *seen)]
        for g in range(groups):
            some = slice(g * outof, (g + 1) * outof)
            products = patch[:, None, g * into : (g + 1) * into] * w[None, some]
            y[(slice(None), some, *place)] = products.reshape(*products.shape[:2], -1).sum(2)
    return y


@pytest.mark.parametrize("mode", ["valid", "full", "half", "same", 2])
@pytest.mark.parametrize("kernel", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("rank", RANKS)
def test_all_three_operations_against_sums_written_out(rank: int, kernel: tuple[int, ...], mode: Any) -> None:
    """Forward from the definition; each gradient as what makes the forward's bilinear form come out, entry by entry."""
    rng = np.random.default_rng(rank)
    sizes, taps, stride, dilation = SIZES[:rank], kernel[:rank], STRIDES[:rank], DILATIONS[:rank]
    axes = zip(sizes, taps, stride, dilation, strict=True)
    pads = [zeros(mode, *axis) for axis in axes]
    groups = 2
    x, w = rng.standard_normal((2, 4, *sizes)), rng.standard_normal((6, 2, *taps))
    options = {"border_mode": mode, "subsample": stride, "filter_dilation": dilation, "num_groups": groups}
    expected = forward(x, w, pads, stride, dilation, groups)
    y = function(rank)(x, w, **options)
    assert y.shape == expected.shape
    assert np.allclose(y, expected)
    turned = w[(..., *(slice(None, None, -1),) * rank)].copy()
    assert np.allclose(function(rank)(x, turned, filter_flip=False, **options), expected)
    assert np.allclose(function(rank)(x.astype("f"), w.astype("f"), **options), expected, atol=1e-4)

    dy = rng.standard_normal(y.shape)
    dx = function(rank, "_grad_wrt_inputs")(dy, w, (None, None, *sizes), **options)
    dw = function(rank, "_grad_wrt_weights")(x, dy, (None, None, *taps), **options)
    assert dx.shape == x.shape
    assert dw.shape == w.shape, "the group-aware shape"
    assert np.vdot(dx, x) == pytest.approx(np.vdot(y, dy))
    assert np.vdot(dw, w) == pytest.approx(np.vdot(y, dy))
    for gradient, array, call in (
        (dx, x, lambda moved: forward(moved, w, pads, stride, dilation, groups)),
        (dw, w, lambda moved: forward(x, moved, pads, stride, dilation, groups)),
    ):
        for at in rng.integers(0, array.size, 6):  # the form is linear in each: a difference of any width is exact
            ahead, behind = array.copy(), array.copy()
            ahead.flat[at] += 0.5
            behind.flat[at] -= 0.5
            assert gradient.flat[at] == pytest.approx(np.vdot(call(ahead) - call(behind), dy), abs=1e-9)


@pytest.mark.parametrize(
    ("w", "flip", "expected"),
    [
        ([1, 10, 100], False, [210, 321, 32]),  # (0 1 2) (1 2 3) (2 3 0)
        ([1, 10, 100], True, [12, 123, 230]),
        ([1, 10], False, [10, 21, 32, 3]),  # an even kernel grows the result by one: (0 1) (1 2) (2 3) (3 0)
        ([1, 10], True, [1, 12, 23, 30]),
        ([1, 10, 100, 1000], False, [2100, 3210, 321, 32]),  # two zeros on both sides
        ([1], True, [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("rank", RANKS)
def test_half_by_hand(rank: int, w: list[float], flip: bool, expected: list[float]) -> None:
    """Worked on paper along one axis, which is each in turn; the other axes have one tap."""
    for axis in range(rank):
        line = [1] * (rank + 2)
        line[2 + axis] = -1
        x, filters = np.array([1.0, 2, 3]).reshape(line), np.array(w, float).reshape(line)
        y = function(rank)(x, filters, border_mode="half", filter_flip=flip)
        assert y.ravel().tolist() == expected
        assert y.shape[2 + axis] == len(expected)


@pytest.mark.parametrize("rank", RANKS)
def test_channels_last_is_kept_and_means_the_same(rank: int) -> None:
    rng = np.random.default_rng(1)
    last = rng.standard_normal((2, *SIZES[:rank], 3))
    x, w = np.moveaxis(last, -1, 1), rng.standard_normal((4, 3, *ODD[:rank]))
    y = function(rank)(x, w, border_mode="half")
    assert np.moveaxis(y, 1, -1).flags.c_contiguous
    assert np.allclose(y, function(rank)(x.copy(), w, border_mode="half"))


def test_a_rank_is_never_mistaken_for_another() -> None:
    """The same arrays and options, decided for one rank, are refused by another."""
    x, w = np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3))
    autoconv.conv2d(x, w, subsample=1, filter_dilation=1)
    for other in (autoconv.conv1d, autoconv.conv3d):
        with pytest.raises(InvalidType, match="dimensions"):
            other(x, w, subsample=1, filter_dilation=1)
    with pytest.raises(InvalidSpec, match="subsample needs 3 entries"):
        autoconv.conv3d(np.ones((1, 1, 4, 4, 4)), np.ones((1, 1, 2, 2, 2)), subsample=(1, 2))


def test_a_pinned_candidate_is_never_replaced() -> None:
    """What cannot run the problem raises with its reason; what can is what runs, in every rank."""
    for rank in RANKS:
        x, w = np.ones((1, 2, *(6,) * rank)), np.ones((2, 2, *(3,) * rank))
        with settings(require=("numpy.fft",)):
            spec = autoconv.ConvSpec.fprop(x.shape, w.shape, dtype="f64")
            assert autoconv.plan(spec).implementation == "numpy.fft"
            with pytest.raises(NoImplementation) as caught:
                function(rank)(x, w, subsample=2)
        assert "stride" in caught.value.refusals["numpy.fft"]
    volume, taps = np.ones((1, 2, 4, 4, 4)), np.ones((2, 2, 2, 2, 2))
    with settings(require=("rewrite.conv3d2d",)):
        plan = autoconv.plan(autoconv.ConvSpec.fprop(volume.shape, taps.shape, dtype="f64"))
        assert plan.implementation == "rewrite.conv3d2d"
        assert plan.choice.child is not None
        assert np.all(autoconv.conv3d(volume, taps) == 16)
        with pytest.raises(NoImplementation) as caught:
            autoconv.conv2d(volume[:, :, 0], taps[:, :, 0])
    assert caught.value.refusals["rewrite.conv3d2d"] == "does rank 3, got 2"
