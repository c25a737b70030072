"""Separable filters: recognised when bound, a spec of their own, run by passes that keep to the allowed error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoconv
from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import cpu
from autoconv.errors import InvalidSpec, NoImplementation
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.separable import is_separable, rows_of
from autoconv.spec import ConvSpec, Op


def products(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "f8") -> Array:
    """Filters (K, C, kernel...) that are products of random rows."""
    filters = np.ones(shape)
    for axis in range(2, len(shape)):
        row = rng.standard_normal([size if i in (0, 1, axis) else 1 for i, size in enumerate(shape)])
        filters = filters * row
    return filters.astype(dtype)


# What is separable --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (3, 2, 1, 7), (2, 1, 101, 4), (20, 1, 3, 3), (2, 2, 4, 3, 5)])
def test_products_of_rows_are_separable_and_come_apart(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    filters = products(rng, shape, dtype)
    assert is_separable(filters)
    product = np.ones(shape)
    for axis, row in enumerate(rows_of(filters)):
        product = product * row.reshape(*shape[:2], *(n if i == axis else 1 for i, n in enumerate(shape[2:])))
    assert testing.relative_error(product, filters.astype(np.float64)) < 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("where", [(0, 0, 1, 2), (19, 1, 0, 0)])
def test_one_slice_that_is_not_is_enough(where: tuple[int, ...], rng: np.random.Generator) -> None:
    filters = products(rng, (20, 2, 3, 4))
    filters[where] += 1e-6 * np.abs(filters).max()
    assert not is_separable(filters)
    assert not is_separable(rng.standard_normal((1, 1, 3, 3)))
    assert not is_separable(rng.standard_normal((1, 1, 1, 3, 3)))


def test_a_bound_that_follows_the_dtype(rng: np.random.Generator) -> None:
    """What rounding to float32 leaves of a product is separable in float32 and no longer in float64."""
    rounded = products(rng, (1, 1, 9, 9), "f4")
    assert is_separable(rounded)
    assert not is_separable(rounded.astype(np.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_separable(value: float) -> None:
    filters = np.ones((1, 1, 3, 3))
    filters[0, 0, 1, 1] = value
    assert not is_separable(filters)


def test_zeros_are_separable_and_stay_zeros() -> None:
    zeros = np.zeros((2, 1, 3, 3), np.float32)
    assert is_separable(zeros)
    assert not any(row.any() for row in rows_of(zeros))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_singular_values_agree(height: int, width: int, seed: int) -> None:
    filters = np.random.default_rng(seed).integers(-2, 3, (1, 1, height, width)).astype(float)
    assert is_separable(filters) == (np.linalg.matrix_rank(filters[0, 0]) <= 1)


# Recognised when bound ----------------------------------------------------------------------------

SPEC = ConvSpec.parse("fprop n2c3 12x15 k3 5x4 p2:1,0 g3")


@pytest.fixture
def untuned() -> object:
    with autoconv.settings(on_miss="heuristic", exclude=("torch", "onnxruntime")):
        yield


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize("text", [str(SPEC), f"{SPEC} fixed"])
def test_binding_recognises_separable_filters(text: str, rng: np.random.Generator) -> None:
    filters = products(rng, SPEC.filter_shape, "f4")
    bound = autoconv.plan(text).bind(filters)
    assert str(bound.plan.spec) == f"{SPEC} fixed rank1"
    x = rng.standard_normal(SPEC.input_shape).astype("f4")
    error = testing.relative_error(bound(x), testing.reference(SPEC, x, filters))
    assert error < testing.tolerance(SPEC)
    other = autoconv.plan(text).bind(rng.standard_normal(SPEC.filter_shape).astype("f4"))
    assert str(other.plan.spec) == f"{SPEC} fixed"


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize("kernel", ["1x7", "7x1", "1x1"])
def test_one_row_is_no_product(kernel: str) -> None:
    plan = autoconv.plan(f"fprop n1c1 9x9 k1 {kernel}")
    assert not plan.bind(np.ones(plan.spec.filter_shape, "f4")).plan.spec.rank1


@pytest.mark.usefixtures("untuned")
def test_filters_that_break_the_promise_are_refused(rng: np.random.Generator) -> None:
    plan = autoconv.plan(f"{SPEC} fixed rank1")
    x, full = rng.standard_normal(SPEC.input_shape).astype("f4"), rng.standard_normal(SPEC.filter_shape).astype("f4")
    with pytest.raises(InvalidSpec, match="must be separable"):
        plan.bind(full)
    with pytest.raises(InvalidSpec, match="must be separable"):
        plan(x, full)
    filters = products(rng, SPEC.filter_shape, "f4")
    expected = testing.reference(SPEC, x, filters)
    assert testing.relative_error(plan(x, filters), expected) < testing.tolerance(SPEC)


def test_a_call_that_may_not_tune_is_served_by_what_was_tuned_without_the_promise() -> None:
    ones = np.ones((1, 1, 3, 3), "f4")
    text = "fprop n1c1 8x8 k1 3x3 fixed"
    autoconv.tune(text, budget_s=0.01)
    with autoconv.settings(on_miss="error"):
        assert str(autoconv.plan(text).bind(ones).plan.spec) == str(ConvSpec.parse(text))
        with pytest.raises(NoImplementation, match="rank1"):
            autoconv.plan(f"{text} rank1")


def test_passes_race_and_their_error_is_held_to_the_limit() -> None:
    spec = "fprop n1c1 96x96 k1 15x15 p7 fixed rank1"
    with autoconv.settings(exclude=("native", "torch", "onnxruntime", "onednn")):
        (result,) = autoconv.tune(spec, budget_s=0.3)
        errors = {row.choice.implementation: row.error for row in result.rows if row.error is not None}
        assert errors["numpy.separable"] < 1e-5
        strict = autoconv.settings(max_rel_error=errors["numpy.separable"] / 8, require="numpy.separable")
        with strict, pytest.raises(NoImplementation):
            autoconv.tune(spec, budget_s=0.01)


# Who runs them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BUILTIN if name.endswith(".separable")])
def test_passes_refuse_any_other_filters(name: str) -> None:
    one = default_registry().get(name)
    for text in (str(SPEC), f"{SPEC} fixed"):
        assert "found separable (fixed rank1)" in str(one.why_not(ConvSpec.parse(text), cpu()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fprop n1c1 9x9 k1 3x3 s2,1 fixed rank1", "needs stride 1, got (2, 1)"),
        ("fprop n1c1 9x9 k1 3x3 d1,2 fixed rank1", "needs dilation 1, got (1, 2)"),
        ("fprop n1c1 9x9x9 k1 3x3x3 fixed rank1", "does rank 2, got 3"),
        ("fprop n1c1 9x9 k1 3x3 f16 fixed rank1", "does f32 or f64, got f16"),
    ],
)
def test_native_passes_say_what_they_need(text: str, reason: str) -> None:
    assert default_registry().get("native.separable").why_not(ConvSpec.parse(text), cpu()) == reason


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD])
def test_most_implementations_run_separable_filters_as_any_others(op: Op) -> None:
    plain = ConvSpec.parse(f"{op} n1c2 12x12 k2 3x3 p1")
    rank1 = ConvSpec.parse(f"{op} n1c2 12x12 k2 3x3 p1 fixed rank1")
    for one in map(default_registry().get, BUILTIN):
        if not one.name.endswith(".separable"):
            assert one.why_not(rank1, cpu()) == one.why_not(plain, cpu())
