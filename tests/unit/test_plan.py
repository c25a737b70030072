"""Plans: operands of every kind, `out` anywhere, bias, bound filters, empty batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import is_dense
from autoconv.device import Device, cpu
from autoconv.errors import InvalidSpec, InvalidType
from autoconv.evidence import Choice, Decision, Measurement
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import BoundRunner, Plan, Runner, Workspace, thread_workspace
from autoconv.spec import ConvSpec, Op

SPEC = ConvSpec.parse("fprop n2c3 6x7 k4 3x2 p1,0 f64")


def plan_of(spec: ConvSpec = SPEC, **more: Any) -> Plan:
    built = testing.build(Direct(), spec)
    return Plan(spec, cpu(), built.choice, built.runner, workspace_bytes=built.workspace_bytes, **more)


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[Any, Any]:
    return testing.operands(SPEC, rng)


# Operands


@pytest.mark.parametrize("text", testing.CASES.values(), ids=list(testing.CASES))
def test_runs_every_case(text: str, rng: np.random.Generator) -> None:
    for spec in testing.problems(text):
        if spec.dtype == "bf16":
            pytest.importorskip("ml_dtypes")
        a, b = testing.operands(spec, rng)
        result = plan_of(spec)(a, b)
        assert result.shape == spec.result_shape
        assert result.dtype == spec.np_dtype
        assert is_dense(result, "nchw" if spec.op is Op.WGRAD else spec.layout)
        assert testing.relative_error(result, testing.reference(spec, a, b)) <= testing.tolerance(spec)


def test_operands_are_named_when_they_do_not_fit(pair: tuple[Any, Any]) -> None:
    x, w = pair
    y = np.zeros(SPEC.output_shape)
    backward, weights = replace(SPEC, op=Op.DGRAD), replace(SPEC, op=Op.WGRAD)
    for plan, a, b, message in (
        (plan_of(), x[:1], w, r"input must have shape \(2, 3, 6, 7\) .*got \(1, 3, 6, 7\)"),
        (plan_of(), x, w[:1], r"filters must have shape \(4, 3, 3, 2\)"),
        (plan_of(), x[0], w, "input must have shape"),
        (plan_of(backward), y[:, :1], w, r"output_grad must have shape \(2, 4, 6, 6\)"),
        (plan_of(backward), y, w[:, :1], "filters must have shape"),
        (plan_of(weights), x, y[:, :1], r"output_grad must have shape \(2, 4, 6, 6\)"),
        (plan_of(weights), x[:, :1], y, "input must have shape"),
    ):
        with pytest.raises(InvalidSpec, match=message):
            plan(a, b)


def test_dtypes_widen_and_never_narrow(pair: tuple[Any, Any]) -> None:
    x, w = pair
    narrow = x.astype(np.float32)
    assert np.allclose(plan_of()(narrow, w), testing.reference(SPEC, narrow, w))
    single = plan_of(replace(SPEC, dtype="f32"))
    with pytest.raises(InvalidType, match=r"input must be float32 .*got float64"):
        single(x, w.astype(np.float32))
    with pytest.raises(InvalidType, match=r"filters must be float32 .*got complex"):
        single(narrow, w.astype(np.complex64))
    with pytest.raises(InvalidType, match="input must be a NumPy array"):
        single(x.tolist(), w)


# out=


def _gap(shape: tuple[int, ...]) -> Any:
    return np.full((*shape[:-1], 2 * shape[-1]), np.nan)[..., ::2]


OUTS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "plain": lambda shape: np.full(shape, np.nan),
    "gaps": _gap,
    "backwards": lambda shape: np.full(shape, np.nan)[::-1, :, ::-1],
    "channels last": lambda shape: np.moveaxis(np.full((shape[0], *shape[2:], shape[1]), np.nan), -1, 1),
    "fortran": lambda shape: np.full(shape, np.nan, order="F"),
    "foreign bytes": lambda shape: np.full(shape, np.nan, ">f8"),
    "unaligned": lambda shape: np.zeros(int(np.prod(shape)) * 8 + 1, np.uint8)[1:].view(float).reshape(shape),
}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("op", Op)
def test_out_of_any_strides(kind: str, op: Op, rng: np.random.Generator) -> None:
    spec = replace(SPEC, op=op)
    a, b = testing.operands(spec, rng)
    out = OUTS[kind](spec.result_shape)
    if kind == "foreign bytes":
        assert out.dtype != spec.np_dtype
    result = plan_of(spec)(a, b, out=out)
    assert result is out
    assert np.allclose(out, testing.reference(spec, a, b))


def test_what_lies_between_the_elements_of_out_stays(pair: tuple[Any, Any]) -> None:
    whole = np.full((*SPEC.output_shape[:-1], 2 * SPEC.output_shape[-1]), 7.0)
    plan_of()(*pair, out=whole[..., ::2])
    assert (whole[..., 1::2] == 7).all()
    assert np.allclose(whole[..., ::2], testing.reference(SPEC, *pair))


@pytest.mark.parametrize("shift", [0, 1, 5, -3])
def test_out_may_overlap_an_operand(shift: int, rng: np.random.Generator) -> None:
    spec = ConvSpec.parse("fprop n1c2 6x6 k2 3x3 p1 f64")
    x, w = testing.operands(spec, rng)
    expected = testing.reference(spec, x, w)
    memory = np.zeros(x.size + 20)
    mine = memory[10 : 10 + x.size].reshape(x.shape)
    mine[...] = x
    out = memory[10 + shift : 10 + shift + x.size].reshape(x.shape)
    assert plan_of(spec)(mine, w, out=out) is out
    assert np.allclose(out, expected)


def test_out_may_overlap_the_filters(rng: np.random.Generator) -> None:
    spec = ConvSpec.parse("wgrad n2c3 3x3 k2 3x3 p1 f64")
    x, dy = testing.operands(spec, rng)
    expected = testing.reference(spec, x, dy)
    memory = np.zeros(x.size)
    mine = memory.reshape(x.shape)
    mine[...] = x
    out = memory[: expected.size].reshape(expected.shape)
    plan_of(spec)(mine, dy, out=out)
    assert np.allclose(out, expected)


def test_wrong_outs(pair: tuple[Any, Any]) -> None:
    plan = plan_of()
    frozen = np.zeros(SPEC.output_shape)
    frozen.setflags(write=False)
    for out, error, message in (
        (np.zeros((2, 4, 6, 5)), InvalidSpec, r"out must have shape \(2, 4, 6, 6\), got \(2, 4, 6, 5\)"),
        (np.zeros(SPEC.output_shape, np.float32), InvalidType, "out must be float64, got float32"),
        (frozen, InvalidSpec, "out is read-only"),
        ([], InvalidType, "out must be a NumPy array"),
    ):
        with pytest.raises(error, match=message):
            plan(*pair, out=out)


# Memory of the caller


@pytest.mark.parametrize("kind", ["read-only", "backwards", "gaps", "broadcast", "fortran", "foreign bytes"])
def test_inputs_of_any_strides_are_not_written(kind: str, pair: tuple[Any, Any]) -> None:
    def dress(values: Any) -> Any:
        if kind == "read-only":
            values = values.copy()
            values.setflags(write=False)
            return values
        if kind == "backwards":
            return values[:, :, ::-1, ::-1]
        if kind == "gaps":
            return np.repeat(values, 2, axis=3)[..., ::2]
        if kind == "broadcast":
            return np.broadcast_to(values[:1, :1], values.shape)
        if kind == "fortran":
            return np.asfortranarray(values)
        return values.astype(values.dtype.newbyteorder())

    x, w = map(dress, pair)
    before = x.tobytes(), w.tobytes()
    result = plan_of()(x, w)
    assert np.allclose(result, testing.reference(SPEC, x, w))
    assert (x.tobytes(), w.tobytes()) == before
    assert result.flags.writeable
    assert not np.shares_memory(result, x)


def test_both_operands_may_be_one_array(rng: np.random.Generator) -> None:
    spec = ConvSpec.parse("fprop n2c2 3x3 k2 3x3 p1 f64")
    x = rng.standard_normal((2, 2, 3, 3))
    assert np.allclose(plan_of(spec)(x, x), testing.reference(spec, x, x))


@pytest.mark.parametrize("op", Op)
def test_an_empty_batch(op: Op) -> None:
    spec = replace(SPEC, op=op, batch=0)
    first, second = spec.operand_shapes
    result = plan_of(spec)(np.zeros(first), np.ones(second))
    assert result.shape == spec.result_shape
    assert not result.any(), "the gradient of nothing is zero"
    if op is Op.FPROP:
        assert plan_of(spec)(np.zeros(first), np.ones(second), bias=np.ones(4)).shape == spec.result_shape


# Bias


def test_bias_is_added_per_channel(pair: tuple[Any, Any]) -> None:
    bias = np.array([1.0, -2.0, 0.5, 3.0])
    expected = testing.reference(SPEC, *pair) + bias[:, None, None]
    plan = plan_of()
    assert np.allclose(plan(*pair, bias=bias), expected)
    assert np.allclose(plan(*pair, bias), expected)
    assert np.allclose(plan(*pair, bias=bias.astype(np.float32)), expected)
    for kind in OUTS.values():
        out = kind(SPEC.output_shape)
        assert np.allclose(plan(*pair, bias=bias, out=out), expected)


def test_wrong_biases(pair: tuple[Any, Any]) -> None:
    plan = plan_of()
    for bias, error, message in (
        (np.zeros(3), InvalidSpec, r"bias must have shape \(4,\), got \(3,\)"),
        (np.zeros((4, 1)), InvalidSpec, r"bias must have shape \(4,\)"),
        (np.zeros(4, complex), InvalidType, "bias must be float64 .*got complex128"),
        (1.0, InvalidType, "bias must be a NumPy array"),
    ):
        with pytest.raises(error, match=message):
            plan(*pair, bias=bias)
    backward = replace(SPEC, op=Op.DGRAD)
    with pytest.raises(InvalidSpec, match="bias is added to a forward result only"):
        plan_of(backward)(np.zeros(SPEC.output_shape), pair[1], bias=np.zeros(4))


# Bound filters


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD])
def test_bound_filters_are_the_plans_own(op: Op, rng: np.random.Generator) -> None:
    spec = replace(SPEC, op=op)
    a, w = testing.operands(spec, rng)
    expected = testing.reference(spec, a, w)
    bound = plan_of(spec).bind(w)
    w[...] = np.nan  # the caller's array is the caller's
    assert np.allclose(bound(a), expected)
    out = _gap(spec.result_shape)
    assert bound(a, out=out) is out
    assert np.allclose(out, expected)
    if op is Op.FPROP:
        assert np.allclose(bound(a, bias=np.ones(4)), expected + 1)
    with pytest.raises(InvalidSpec, match="data must have shape"):
        bound(a[:1])


def test_binding_decides_anew_for_fixed_filters(pair: tuple[Any, Any]) -> None:
    asked: list[tuple[ConvSpec, Device]] = []

    def rebind(spec: ConvSpec, device: Device) -> Plan:
        asked.append((spec, device))
        return plan_of(spec)

    x, w = pair
    bound = plan_of(rebind=rebind).bind(w)
    assert asked == [(replace(SPEC, fixed=True), cpu())]
    assert bound.plan.spec.fixed
    assert np.allclose(bound(x), testing.reference(SPEC, x, w))
    plan_of(replace(SPEC, fixed=True), rebind=rebind).bind(w)
    assert len(asked) == 1, "a fixed spec is decided already"


def test_wrong_filters_to_bind(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidSpec, match="filters must have shape"):
        plan_of().bind(pair[1][:1])
    with pytest.raises(InvalidSpec, match="wgrad takes no filters"):
        plan_of(replace(SPEC, op=Op.WGRAD)).bind(pair[1])


def test_a_runner_packs_its_filters_once(pair: tuple[Any, Any]) -> None:
    packed = []

    class Packing(Runner):
        def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
            raise AssertionError("the bound form is there to be used")

        def bind(self, filters: Any) -> BoundRunner:
            packed.append(filters)
            return lambda a, out, workspace: np.copyto(out, 1)

    bound = Plan(SPEC, cpu(), Choice("test.packing", 1), Packing()).bind(pair[1])
    for _ in range(3):
        assert (bound(pair[0]) == 1).all()
    assert len(packed) == 1


# Workspace, threads, words


def test_scratch_is_given_back_even_when_a_runner_raises(pair: tuple[Any, Any]) -> None:
    class Raising(Runner):
        def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
            workspace.take(1000)
            raise ZeroDivisionError

    level = thread_workspace().mark()
    with pytest.raises(ZeroDivisionError):
        Plan(SPEC, cpu(), Choice("test.raising", 1), Raising())(*pair)
    assert thread_workspace().mark() == level


def test_one_plan_in_many_threads(rng: np.random.Generator) -> None:
    plan = plan_of()
    pairs = [testing.operands(SPEC, rng) for _ in range(6)]
    results: list[Any] = [None] * len(pairs)

    def call(number: int) -> None:
        for _ in range(5):
            results[number] = plan(*pairs[number])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, (x, w) in zip(results, pairs, strict=True):
        assert np.allclose(result, testing.reference(SPEC, x, w))


def test_a_plan_tells_its_story() -> None:
    row = Measurement(str(SPEC), "a device", Choice("numpy.direct", 1), "ok", median_s=2e-3)
    decision = Decision(row, None, None, tie=False, partial=False, why="nobody else came")
    plan = plan_of(source="cache", decision=decision)
    assert repr(plan) == f"<Plan {SPEC}: numpy.direct (cache)>"
    assert "\n" not in repr(plan)
    for part in (str(SPEC), "numpy.direct", "cache", "2 ms", "nobody else came", f"{plan.workspace_bytes} bytes"):
        assert part in str(plan)
    assert str(SPEC) in repr(plan.bind(np.zeros(SPEC.filter_shape)))
    assert plan.implementation == "numpy.direct"
