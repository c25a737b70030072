"""The judge: its reference, its operands, its guards, and how far a right answer may lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import testing
from autoconv.arrays import Array, is_dense
from autoconv.evidence import Choice, Config
from autoconv.implementation import Built, Context, Runner
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import Workspace
from autoconv.spec import DTYPES, ConvSpec, Op
from autoconv.tuner.operands import GuardedResult, GuardedWorkspace, Operands
from autoconv.tuner.reference import positions_to_judge, reference_at
from autoconv.tuner.tolerance import CEILING, EPSILON, tolerance
from autoconv.tuner.verify import Judge
from tests.tuner.fakes import DEVICE, Clock

LARGE = "{op} n2c32 40x41 k48 5x3 p2,1 s1 d1 g2 conv {layout} f32"


def _built(spec: ConvSpec, runner: Runner, workspace_bytes: int = 0) -> Built:
    return Built(spec, Choice("test.one", 1), runner, workspace_bytes, True, True, ())


def _direct(spec: ConvSpec) -> Runner:
    return Direct().prepare(spec, Config(), Context(DEVICE, lambda: pytest.fail("direct has no child")))


# Reference -----------------------------------------------------------------------------------------


@given(testing.specs(ranks=(1, 2, 3)))
def test_every_result_of_a_small_problem_is_judged_rightly(spec: ConvSpec) -> None:
    operands = Operands(spec)
    positions = positions_to_judge(spec, np.random.default_rng(0))
    found = reference_at(spec, operands.a, operands.b, positions).reshape(spec.result_shape)
    np.testing.assert_allclose(found, testing.reference(spec, operands.a, operands.b), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_large_problem_is_sampled_with_corners_and_faces(op: Op, layout: str) -> None:
    spec = ConvSpec.parse(LARGE.format(op=op, layout=layout))
    operands = Operands(spec)
    positions = positions_to_judge(spec, np.random.default_rng(0))
    size = int(np.prod(spec.result_shape))
    assert 8 <= len(positions) < size
    found = reference_at(spec, operands.a, operands.b, positions)
    expected = testing.reference(spec, operands.a, operands.b)[tuple(positions.T)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    if op is not Op.WGRAD:  # too long a reduction for all corners
        chosen = {tuple(position) for position in positions}
        last = [n - 1 for n in spec.result_shape]
        assert {(0, 0, 0, 0), (0, 0, 0, last[3]), (last[0], last[1], last[2], 0), tuple(last)} <= chosen
        for axis, end in enumerate(last):
            assert {0, end} <= {position[axis] for position in chosen}


def test_a_problem_of_many_axes_has_a_bounded_number_of_positions() -> None:
    spec = ConvSpec.fprop((2, 2, *[4] * 8), (2, 2, *[3] * 8), padding=1)
    positions = positions_to_judge(spec, np.random.default_rng(0))
    assert 8 <= len(positions) <= 192
    assert (positions < spec.result_shape).all()


# Operands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_operands_repeat_and_are_dense(layout: str, dtype: str) -> None:
    spec = ConvSpec.parse(f"wgrad n2c3 8x9 k4 3x3 p1 {layout} {dtype}")
    one, two = Operands(spec), Operands(spec)
    for array, again, shape in zip((one.a, one.b), (two.a, two.b), spec.operand_shapes, strict=True):
        np.testing.assert_array_equal(array, again)
        assert array.shape == shape
        assert array.dtype == spec.np_dtype
        assert is_dense(array, layout)
        assert 0.5 < np.abs(array).max() <= 1
    assert not np.array_equal(one.a, Operands(ConvSpec.parse(f"wgrad n2c3 8x9 k4 3x3 p2 {layout} {dtype}")).a)


def test_filters_said_to_be_separable_are() -> None:
    spec = ConvSpec.parse("fprop n1c2 9x9 k3 5x4 fixed rank1 f64")
    assert (np.linalg.matrix_rank(Operands(spec).b, tol=1e-9) == 1).all()


@pytest.mark.parametrize("which", ["a", "b"])
def test_changed_operands_get_their_values_back(which: str) -> None:
    operands = Operands(ConvSpec.parse("fprop n2c3 8x9 k4 3x3 nhwc"))
    assert not operands.restore_if_changed()
    array = getattr(operands, which)
    before = array.copy()
    array[0, 1, 0, 0] = 7
    assert operands.restore_if_changed()
    np.testing.assert_array_equal(array, before)
    assert not operands.restore_if_changed()


# Guards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("offset", [-1, 0])
def test_a_write_beside_the_result_shows(layout: str, offset: int) -> None:
    spec = ConvSpec.parse(f"fprop n2c3 8x9 k4 3x3 {layout}")
    result = GuardedResult(spec)
    assert np.isnan(result.array).all()
    assert is_dense(result.array, layout)
    assert result.array.ctypes.data % 64 == 16
    result.array[...] = 0
    assert not result.trespassed
    flat = result.array if layout == "nchw" else np.moveaxis(result.array, 1, -1)
    step = -flat.itemsize if offset < 0 else flat.itemsize
    count = 2 if offset < 0 else flat.size + 1
    np.lib.stride_tricks.as_strided(flat, (count,), (step,))[-1] = 1
    assert result.trespassed


def test_the_guarded_workspace_counts_what_is_held_at_once() -> None:
    workspace = GuardedWorkspace()
    first = workspace.take((3, 5), np.float32)
    assert first.shape == (3, 5)
    assert np.isnan(first).all()
    assert first.ctypes.data % 64 == 0
    mark = workspace.mark()
    workspace.take(100)
    workspace.release(mark)
    assert workspace.take_address(40) % 64 == 0
    workspace.release(0)
    assert workspace.peak_bytes == 160
    assert not workspace.trespassed


def test_a_write_beside_a_piece_shows_when_it_is_released() -> None:
    workspace = GuardedWorkspace()
    workspace.take(64)
    piece = workspace.take(8)
    np.lib.stride_tricks.as_strided(piece, (9,), (1,))[-1] = 0
    workspace.release(0)
    assert workspace.trespassed


# Verdicts ------------------------------------------------------------------------------------------------------


class _Tampered(Runner):
    def __init__(self, spec: ConvSpec, change: float, position: tuple[int, ...]) -> None:
        self._truth = _direct(spec)
        self._change = change
        self._position = position

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._truth(a, b, out, workspace)
        out[self._position] += self._change


@pytest.mark.parametrize("text", [LARGE.format(op=op, layout="nchw") for op in Op] + ["fprop n1c2 9x9 k2 3x3 f64"])
def test_a_right_answer_passes_and_its_error_is_that_of_rounding(text: str) -> None:
    spec = ConvSpec.parse(text)
    judge = Judge(spec, DEVICE)
    built = _built(spec, _direct(spec), 1 << 22)
    verdict = judge.verify(built, judge.runner(built), Clock())
    assert verdict.fault == ""
    assert verdict.error is not None
    assert verdict.error < 10 * EPSILON[spec.dtype]


@pytest.mark.parametrize("position", [(0, 0, 0, 0), (1, 47, 39, 40), (0, 47, 0, 40)])
def test_one_product_left_out_at_a_corner_of_a_large_problem_is_seen(position: tuple[int, ...]) -> None:
    spec = ConvSpec.parse(LARGE.format(op="fprop", layout="nchw"))
    judge = Judge(spec, DEVICE)
    built = _built(spec, _Tampered(spec, 0.05, position), 1 << 22)
    verdict = judge.verify(built, judge.runner(built), Clock())
    assert f"at {position}" in verdict.fault


def test_a_value_never_written_anywhere_is_seen() -> None:
    spec = ConvSpec.parse(LARGE.format(op="fprop", layout="nchw"))
    judge = Judge(spec, DEVICE)
    built = _built(spec, _Tampered(spec, float("nan"), (1, 13, 17, 19)), 1 << 22)
    verdict = judge.verify(built, judge.runner(built), Clock())
    assert verdict.error is None
    assert verdict.fault.startswith("1 of ")


def test_a_single_result_that_cancels_is_judged_by_what_it_sums() -> None:
    """One output of 4096 products may come out near zero: rounding is then large beside it."""
    spec = ConvSpec.parse("fprop n1c64 8x8 k1 8x8 f32")
    judge = Judge(spec, DEVICE)
    built = _built(spec, _Tampered(spec, 1e-5, (0, 0, 0, 0)), 1 << 22)
    verdict = judge.verify(built, judge.runner(built), Clock())
    assert verdict.error is not None
    assert verdict.error < 1e-5 / (64 / 3) + 1e-6


# Tolerance -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(DTYPES)), st.integers(1, 1 << 24), st.sets(st.sampled_from(["fft", "winograd", "x"])))
def test_tolerance_grows_with_length_and_tags(dtype: str, length: int, tags: set[str]) -> None:
    limit = tolerance(dtype, length, tags)
    assert EPSILON[dtype] < limit <= CEILING
    assert tolerance(dtype, 2 * length, tags) >= limit
    assert tolerance(dtype, length, tags | {"winograd"}) >= limit


def test_tolerances_admit_what_is_known_and_no_more() -> None:
    assert 2e-4 < tolerance("f32", 576, ["winograd"]) < 1e-3  # F(6, 3) errs by up to 1e-4
    assert tolerance("f32", 576, ["tf32"]) > 2.9e-4
    assert tolerance("f32", 576) < 1e-5
    assert tolerance("f64", 576, ["winograd"]) < 1e-9
