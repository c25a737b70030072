"""What the conformance suite cannot know of numpy.im2col: its seams between bands of rows and between images."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.evidence import Config
from autoconv.impls.cpu import _blas
from autoconv.impls.cpu.im2col import Im2col
from autoconv.spec import ConvSpec

SPECS = [
    "fprop n5c4 11x9 k6 3x2 p1:2,0 s2,1 d1,2 g2 conv nchw f64",
    "dgrad n5c4 11x9 k6 3x2 p1:2,0 s2,1 d1,2 g2 conv nchw f64",
    "wgrad n5c4 11x9 k6 3x2 p1:2,0 s2,1 d1,2 g2 corr nchw f64",
    "fprop n4c3 9x10 k5 3x3 p4 s1 d1 g1 corr nhwc f64",
    "dgrad n4c3 9x10 k5 3x3 p4 s1 d1 g1 conv nhwc f64",
    "wgrad n4c3 9x10 k5 3x3 p4 s1 d1 g1 conv nhwc f64",
]


@pytest.mark.parametrize("text", SPECS)
def test_every_way_of_cutting_gives_the_same(text: str) -> None:
    spec = ConvSpec.parse(text)
    rng = np.random.default_rng(3)
    a, b = testing.operands(spec, rng)
    expected = testing.reference(spec, a, b)
    for images, rows in product((1, 2, 3, 9), (1, 2, 5, 99)):
        built = testing.build(Im2col(), spec, Config(images=images, rows=rows))
        assert testing.relative_error(testing.run(built, a, b), expected) < 1e-13, (images, rows)


def test_small_images_are_offered_together_and_large_ones_in_bands() -> None:
    small = Im2col().configs(ConvSpec.parse("fprop n8c64 7x7 k64 3x3 p1"), cpu())
    large = Im2col().configs(ConvSpec.parse("fprop n1c64 224x224 k64 3x3 p1"), cpu())
    assert small[0]["images"] == 8
    assert int(large[0]["rows"]) < 224
    assert large[-1]["rows"] == 224


def test_threads_that_cannot_be_set_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[object, ...]:
        raise ImportError("threadpoolctl")

    wanted = _blas.NATURAL_THREADS + 1
    monkeypatch.setattr(_blas, "_pools", missing)
    _blas.threads_refusal.cache_clear()
    try:
        reason = Im2col().why_not(ConvSpec.parse("fprop n1c1 8x8 k1 3x3"), cpu(wanted))
        natural = Im2col().why_not(ConvSpec.parse("fprop n1c1 8x8 k1 3x3"), cpu(_blas.NATURAL_THREADS))
    finally:
        _blas.threads_refusal.cache_clear()
    assert natural is None
    assert reason is not None
    assert f"uses {_blas.NATURAL_THREADS} threads" in reason
    assert f"hold it to {wanted} install threadpoolctl" in reason


def test_threads_are_held_during_the_call_and_put_back() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def used() -> list[int]:
        pools = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        return [pool.get_num_threads() for pool in pools]

    before = used()
    with _blas._hold(1):
        assert set(used()) <= {1}
        with _blas._hold(1):
            pass
        assert set(used()) <= {1}
    assert used() == before
