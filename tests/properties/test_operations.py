"""What must hold of any convolution, whatever computes it: linearity, shift, impulse, adjoints.

Every property is checked for every implementation that accepts the random problem, but for those that
would have to be compiled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import cpu
from autoconv.implementation import Implementation
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op

SEEDS = st.integers(0, 2**32 - 1)
Compute = Callable[[Array, Array], Array]


def _takes(one: Implementation, spec: ConvSpec) -> bool:
    return one.why_not(spec, cpu()) is None


def _able(*needed: ConvSpec) -> Iterator[tuple[str, list[Compute]]]:
    """Every implementation that does all of these, by id, as functions of two operands."""
    for name in BUILTIN:
        one = default_registry().get(name)
        if not one.compiled and all(_takes(one, spec) for spec in needed):
            yield name, [_function(one, spec) for spec in needed]


def _function(one: Implementation, spec: ConvSpec) -> Compute:
    built = testing.build(one, spec)
    return lambda a, b: testing.run(built, a, b)


def _operands(spec: ConvSpec, seed: int) -> tuple[Array, Array]:
    return testing.operands(spec, np.random.default_rng(seed))


def _close(name: str, spec: ConvSpec, result: Any, expected: Any, scale: float = 1.0) -> None:
    limit = 4 * testing.tolerance(spec, ("winograd",) if "winograd" in name else ()) * scale
    largest = max(float(np.max(np.abs(expected))), 1.0)
    error = float(np.max(np.abs(np.asarray(result, np.float64) - expected))) / largest
    assert error <= limit, f"{name} on {spec}: off by {error:.2e}, limit {limit:.2e}"


@given(testing.specs(), SEEDS)
def test_any_spec_equals_the_reference(spec: ConvSpec, seed: int) -> None:
    a, b = _operands(spec, seed)
    expected = testing.reference(spec, a, b)
    for name, (compute,) in _able(spec):
        _close(name, spec, compute(a, b), expected)


@given(testing.specs(ranks=(1, 3), largest=3), SEEDS)
def test_other_ranks_equal_the_reference(spec: ConvSpec, seed: int) -> None:
    a, b = _operands(spec, seed)
    expected = testing.reference(spec, a, b)
    for name, (compute,) in _able(spec):
        _close(name, spec, compute(a, b), expected)


@given(testing.specs(dtypes=("f64",)), SEEDS)
def test_linear_in_both_operands(spec: ConvSpec, seed: int) -> None:
    (a, b), (a2, b2) = _operands(spec, seed), _operands(spec, seed + 1)
    for name, (compute,) in _able(spec):
        both = np.asarray(compute(2 * a + a2, b))
        _close(name, spec, both, 2 * compute(a, b) + compute(a2, b), 4)
        both = np.asarray(compute(a, 2 * b - b2))
        _close(name, spec, both, 2 * compute(a, b) - compute(a, b2), 4)


@given(testing.specs(ops=(Op.FPROP,), dtypes=("f64",)), SEEDS)
def test_a_shifted_image_gives_a_shifted_result(spec: ConvSpec, seed: int) -> None:
    """Moving the image by one stride in a frame of zeros moves the result by one."""
    x, w = _operands(spec, seed)
    frame = tuple(
        ((k - 1) * d + s, (k - 1) * d + 2 * s) for k, d, s in zip(spec.kernel, spec.dilation, spec.stride, strict=True)
    )
    unpadded = ((0, 0),) * spec.rank
    wide = replace(
        spec,
        padding=unpadded,
        in_spatial=tuple(size + sum(edge) for size, edge in zip(spec.in_spatial, frame, strict=True)),
    )
    image = np.pad(x, ((0, 0), (0, 0), *frame))
    moved = np.roll(image, spec.stride, axis=(2, 3))
    for name, (compute,) in _able(wide):
        still, shifted = compute(image, w), compute(moved, w)
        _close(name, wide, shifted[:, :, 1:, 1:], still[:, :, :-1, :-1])


@given(testing.specs(ops=(Op.FPROP,), dtypes=("f32",)), SEEDS)
def test_an_impulse_reproduces_the_filters(spec: ConvSpec, seed: int) -> None:
    """A single one, fully padded at stride 1, draws each filter: as it is for a convolution, else mirrored."""
    _, w = _operands(spec, seed)
    full = tuple(((k - 1) * d, (k - 1) * d) for k, d in zip(spec.kernel, spec.dilation, strict=True))
    spec = replace(spec, batch=1, in_spatial=(1,) * spec.rank, padding=full, stride=(1,) * spec.rank)
    channel = seed % spec.in_channels
    x = np.zeros(spec.input_shape, np.float32)
    x[0, channel] = 1
    per_group_in, per_group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    expected = np.zeros(spec.output_shape)
    own = slice(channel // per_group_in * per_group_out, (channel // per_group_in + 1) * per_group_out)
    drawn = w[own, channel % per_group_in]
    if not spec.flip:
        drawn = drawn[:, ::-1, ::-1]
    expected[(0, own, *(slice(None, None, d) for d in spec.dilation))] = drawn
    for name, (compute,) in _able(spec):
        _close(name, spec, compute(x, w), expected)


@given(testing.specs(ops=(Op.FPROP,), dtypes=("f64",)), SEEDS)
def test_gradients_are_adjoint(spec: ConvSpec, seed: int) -> None:
    """<y(x, w), dy> = <x, dx(dy, w)> = <w, dw(x, dy)>, whoever computes each."""
    x, w = _operands(spec, seed)
    dy = np.random.default_rng(seed + 1).standard_normal(spec.output_shape)
    backward = replace(spec, op=Op.DGRAD), replace(spec, op=Op.WGRAD)
    products = {f"{name} fprop": float(np.vdot(compute(x, w), dy)) for name, (compute,) in _able(spec)}
    products |= {f"{name} dgrad": float(np.vdot(x, compute(dy, w))) for name, (compute,) in _able(backward[0])}
    products |= {f"{name} wgrad": float(np.vdot(w, compute(x, dy))) for name, (compute,) in _able(backward[1])}
    size = float(np.linalg.norm(x) * np.linalg.norm(w) * np.linalg.norm(dy))
    expected = products["numpy.direct fprop"]
    assert {key.split()[1] for key in products} == {"fprop", "dgrad", "wgrad"}
    for name, value in products.items():
        assert value == pytest.approx(expected, abs=1e-11 * size), f"{name} on {spec}"


@given(testing.specs(ops=(Op.FPROP,), dtypes=("f64",)), SEEDS)
def test_flipped_filters_turn_one_into_the_other(spec: ConvSpec, seed: int) -> None:
    x, w = _operands(spec, seed)
    other = replace(spec, flip=not spec.flip)
    turned = np.ascontiguousarray(w[:, :, ::-1, ::-1])
    for name, (compute, compute_other) in _able(spec, other):
        _close(name, spec, compute(x, w), compute_other(x, turned))


def test_small_filters_by_hand() -> None:
    """Worked on paper: the one place where no computed reference is trusted."""
    x = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    w = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    correlation, convolution = [[37, 47], [67, 77]], [[23, 33], [53, 63]]
    for flip, layout in product((False, True), ("nchw", "nhwc")):
        spec = ConvSpec.fprop((1, 1, 3, 3), (1, 1, 2, 2), flip=flip, layout=layout, dtype="f64")
        expected = np.array(convolution if flip else correlation, float).reshape(1, 1, 2, 2)
        for name, (compute,) in _able(spec):
            assert np.allclose(compute(x, w), expected, atol=1e-11), name
        assert np.array_equal(testing.reference(spec, x, w), expected)
