"""Contestants that are wrong, raise, hang or trespass cost nothing but their own row."""

from __future__ import annotations

import numpy as np
import pytest

from autoconv.arrays import Array
from autoconv.errors import NoImplementation
from autoconv.evidence import Limits
from autoconv.planning import Workspace
from tests.tuner.fakes import SPEC, World, winner

# Contestants that misbehave ----------------------------------------------------------------------


def _wrong(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    out[0, 0, 0, 0] += 0.01


def _unwritten(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    out[0, -1, -1, -1] = np.nan


def _outside(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[-1] = 0


def _before(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    np.lib.stride_tricks.as_strided(out, (2,), (-out.itemsize,))[-1] = 0


def _operand(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    b[0, 0, 0, 0] += 1


def _greedy(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    workspace.take(1 << 16)


def _greedy_by_address(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    workspace.take_address(1 << 16)


def _past_its_piece(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    piece = workspace.take(64)
    np.lib.stride_tricks.as_strided(piece, (65,), (1,))[-1] = 0


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        (_wrong, r"error .* at \(0, 0, 0, 0\)"),
        (_unwritten, "not finite or never written"),
        (_outside, "writes outside its result"),
        (_before, "writes outside its result"),
        (_operand, "changes its operands"),
        (_greedy, "takes 65536 bytes of workspace, declares 0"),
        (_greedy_by_address, "takes 65536 bytes of workspace, declares 0"),
        (_past_its_piece, "writes outside its workspace"),
    ],
)
def test_wrong_is_stored_and_reported_and_never_tried_again(world: World, trick: object, reason: str) -> None:
    bad = world.add("test.bad", 1e-3, trick=trick)
    world.add("test.good", 3e-3)
    with pytest.warns(RuntimeWarning, match=rf"test\.bad is wrong for {SPEC}: .*{reason}") as heard:
        result = world.tune()
    assert len(heard) == 1
    assert winner(result) == "test.good"
    assert world.status(result) == {"test.bad": "wrong", "test.good": "ok"}
    assert bad.calls == 1
    again = world.tune()
    assert (again.measured, bad.calls) == (0, 1)


def test_wrong_is_tried_again_in_a_new_version_and_after_a_library_changed(world: World) -> None:
    bad = world.add("test.bad", 1e-3, trick=_wrong)
    world.add("test.good", 3e-3)
    with pytest.warns(RuntimeWarning, match="is wrong"):
        world.tune()
    bad.uses["library"] = "2"
    with pytest.warns(RuntimeWarning, match="is wrong"):
        world.tune()
    mended = world.add("test.bad", 1e-3, version=2)
    assert winner(world.tune()) == "test.bad"
    assert mended.calls > 0


def test_a_candidate_that_is_wrong_only_outside_verification_is_caught(world: World) -> None:
    def second_time(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if fake.calls > 1:
            out[...] = 0

    fake = world.add("test.bad", 1e-3, trick=second_time)
    world.add("test.good", 3e-3)
    with pytest.warns(RuntimeWarning, match="right among guards, but then"):
        assert winner(world.tune()) == "test.good"


def test_the_operands_are_mended_for_the_next(world: World) -> None:
    world.add("test.bad", 1e-3, trick=_operand, estimate=1e-6)
    world.add("test.good", 3e-3)
    with pytest.warns(RuntimeWarning, match="changes its operands"):
        result = world.tune()
    assert world.status(result)["test.good"] == "ok"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("odd"), "failed", "ValueError: odd"),
        (MemoryError("too much"), "oom", "MemoryError: too much"),
    ],
)
@pytest.mark.parametrize("call", [1, 2, 8])
def test_what_raises_costs_nothing_but_its_own_row(
    world: World, error: Exception, status: str, reason: str, call: int
) -> None:
    def fail(*_: object) -> None:
        if bad.calls >= call:
            raise error

    bad = world.add("test.bad", 1e-3, trick=fail)
    world.add("test.good", 1.01e-3)
    result = world.tune()
    assert winner(result) == "test.good"
    row = next(row for row in result.rows if row.choice.implementation == "test.bad")
    assert (row.status, row.reason) == (status, reason)
    assert len(row.samples) <= call
    calls = bad.calls
    assert world.tune().measured == 0
    assert bad.calls == calls
    bad.uses["library"] = "2"
    world.tune()
    assert bad.calls > calls


def test_one_that_hangs_is_not_timed_again(world: World) -> None:
    world.add("test.good", 1e-3)
    slow = world.add("test.hangs", 3600.0, estimate=2e-3)
    world.add("test.last", 0.5e-3, estimate=3e-3)
    result = world.tune(budget_s=1.0)
    assert world.status(result) == {"test.good": "partial", "test.hangs": "timeout", "test.last": "partial"}
    assert slow.calls == 1
    result = world.tune(budget_s=1.0)
    assert winner(result) == "test.last"
    assert not result.partial
    assert slow.calls == 1


def test_when_all_fail_the_reasons_are_told(world: World) -> None:
    world.add("test.bad", trick=_wrong)
    with (
        pytest.warns(RuntimeWarning, match="is wrong"),
        pytest.raises(NoImplementation, match="nothing that was tried") as caught,
    ):
        world.tune()
    assert "wrong: error" in caught.value.refusals["test.bad"]
    assert [row.status for row in world.rows()] == ["wrong"]


def test_right_but_above_max_rel_error_is_kept_and_does_not_win(world: World) -> None:
    def rough(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        out *= np.float32(1 + 3e-4)

    world.add("test.rough", 1e-3, trick=rough, tags=frozenset({"winograd"}))
    world.add("test.exact", 3e-3)
    result = world.tune(limits=Limits(max_rel_error=1e-4))
    assert winner(result) == "test.exact"
    assert world.status(result) == {"test.rough": "ok", "test.exact": "ok"}
    row = next(row for row in result.rows if row.choice.implementation == "test.rough")
    assert row.error == pytest.approx(3e-4, rel=0.05)
    assert winner(world.tune(limits=Limits(max_rel_error=1e-3))) == "test.rough"
