"""What the conformance suite cannot know of numpy.winograd: its matrices, its seams, its refusals."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.evidence import Config
from autoconv.impls._winograd import POINTS, apply, largest, matrices
from autoconv.impls.cpu import winograd
from autoconv.impls.cpu.winograd import Winograd
from autoconv.spec import ConvSpec

FORMS = [(m, r) for m, r in product(range(1, 9), range(1, 8)) if m + r - 1 in POINTS]


@pytest.mark.parametrize(("m", "r"), FORMS)
def test_matrices_give_the_correlation_and_its_transposes(m: int, r: int) -> None:
    found = matrices(m, r)
    # y[i] = sum over t of d[i + t] g[t]: the trilinear form behind all three operations
    form = np.einsum("in,nt,nj->itj", found.inverse, found.filters, found.data)
    expected = np.zeros((m, r, m + r - 1))
    for i, t in product(range(m), range(r)):
        expected[i, t, i + t] = 1
    assert np.allclose(form, expected, atol=1e-11)


def test_matrices_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        matrices(4, 3).data[0, 0] = 1


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_apply_works_along_every_axis(rank: int) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((4, 3))
    values = rng.standard_normal((3,) * rank + (5,))
    size = largest(4, 3, rank) * 5
    first, second = np.full(size, np.nan), np.full(size, np.nan)
    first[: values.size] = values.ravel()
    done, other = apply(matrix, rank, first, second, 5)
    expected = values
    for axis in range(rank):
        expected = np.moveaxis(np.tensordot(matrix, expected, axes=(1, axis)), 0, axis)
    assert np.allclose(done[: expected.size].reshape(expected.shape), expected)
    assert done is not other


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_seams_between_tiles_and_blocks(op: str, layout: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "BLOCK_BYTES", 1 << 14)
    spec = ConvSpec.parse(f"{op} n3c2 25x19 k4 3x3 p0:3,5 s1 d1 g2 conv {layout} f64")
    rng = np.random.default_rng(2)
    a, b = testing.operands(spec, rng)
    built = testing.build(Winograd(), spec, Config(m=m))
    assert testing.relative_error(testing.run(built, a, b), testing.reference(spec, a, b)) < 1e-12


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fprop n1c2 9x9 k2 3x5", "needs 3 or 5 taps along every axis, got (3, 5)"),
        ("fprop n1c2 9x9 k2 3x3 s1,2", "needs stride 1, got (1, 2)"),
        ("dgrad n1c2 9x9 k2 3x3 d2", "needs dilation 1, got (2, 2)"),
    ],
)
def test_refusals_say_what_came(text: str, sentence: str) -> None:
    assert Winograd().why_not(ConvSpec.parse(text), cpu()) == sentence


def test_what_is_offered_is_not_refused() -> None:
    for text in ("fprop n1c2 9 k2 5", "wgrad n1c2 9x9 k2 5x5", "dgrad n1c2 9x9x9 k2 5x5x5", "fprop n1c1 3x3 k1 3x3"):
        spec = ConvSpec.parse(text)
        offered = Winograd().configs(spec, cpu())
        assert offered
        assert all(Winograd().why_not(spec, cpu(), config) is None for config in offered)
    steep = ConvSpec.parse("fprop n1c2 9x9x9 k2 5x5x5")
    assert "m of 2 or 4" in str(Winograd().why_not(steep, cpu(), Config(m=6)))
    assert "got 3" in str(Winograd().why_not(steep, cpu(), Config(m=3)))
