"""Rewrites ask for a child: its race, its budget, its rows, and the chain that is stored."""

from __future__ import annotations

import pytest

from autoconv.arrays import Array
from autoconv.errors import BackendMissing
from autoconv.evidence import Choice, Limits
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec
from tests.tuner.fakes import World, winner

# Rewrites ----------------------------------------------------------------------------------------

LOWER = ConvSpec.parse("fprop n1c2 7x7 k2 3x3")


def test_a_rewrite_stores_its_child_and_replays_it(world: World) -> None:
    world.add("test.fast", 1e-3, restrictions=lambda spec, *_: [(spec == LOWER, "does the lower problem only")])
    world.add("test.slow", 4e-3)
    rewrite = world.rewrite("test.rewrite")
    result = world.tune()
    chain = Choice("test.rewrite", 1, child=Choice("test.fast", 1))
    assert result.decision is not None
    assert result.decision.winner.choice == chain
    assert result.decision.winner.workspace_bytes == 1 << 12
    lower = {row.choice.implementation: row.status for row in world.rows(LOWER)}
    assert lower == {"test.fast": "ok", "test.slow": "ok"}
    calls = rewrite.calls
    again = world.tune()
    assert again.measured == 0
    assert again.built is not None
    assert again.built.choice == chain
    assert rewrite.calls == calls


def test_a_remembered_child_is_not_raced_again(world: World) -> None:
    fast = world.add("test.fast", 1e-3)
    world.tune(LOWER)
    rows = len(world.rows(LOWER))
    world.rewrite("test.rewrite", 1e-3)
    world.tune()
    assert len(world.rows(LOWER)) == rows
    assert fast.calls > 0


def test_the_child_spends_its_parents_budget(world: World) -> None:
    for number in range(8):
        world.add(f"test.number{number}", 20e-3)
    world.rewrite("test.rewrite")
    before = world.clock.now
    result = world.tune(budget_s=0.5)
    assert world.clock.now - before < 0.75  # one candidate over
    assert result.partial
    assert result.seconds == pytest.approx(world.clock.now - before)


def test_a_rewrite_far_behind_has_no_race_of_its_child(world: World) -> None:
    world.add("test.direct", 2e-3)
    world.rewrite("test.rewrite", estimate=6e-3)
    result = world.tune()
    assert world.status(result) == {"test.direct": "ok", "test.rewrite": "skipped"}
    assert not world.rows(LOWER)
    assert world.tune().measured == 0


def test_rewrites_are_tried_after_those_that_need_no_child(world: World) -> None:
    world.add("test.slow", 4e-3, estimate=1e-3)
    world.rewrite("test.rewrite", estimate=1e-3)
    world.add("test.fast", 1e-3, estimate=3e-3)
    tried: list[str] = []
    world.tune(watch=lambda stage, detail, done, total: tried.append(detail) if stage == "verify" else None)
    assert [name.partition(" ")[0] for name in tried] == ["test.slow", "test.fast", "test.rewrite"]


def test_a_child_that_could_not_save_its_parent_is_left_out(world: World) -> None:
    world.add(
        "test.direct", 2e-3, estimate=1e-4, restrictions=lambda spec, *_: [(spec != LOWER, "not the lower problem")]
    )
    world.add("test.near", 3e-3, estimate=1e-3, restrictions=lambda spec, *_: [(spec == LOWER, "lower only")])
    world.add("test.far", 10e-3, estimate=9e-3, restrictions=lambda spec, *_: [(spec == LOWER, "lower only")])
    world.rewrite("test.rewrite", estimate=1e-3)
    world.tune()
    assert {row.choice.implementation: row.status for row in world.rows(LOWER)} == {
        "test.near": "ok", "test.far": "skipped",
    }  # fmt: skip
    world.tune(LOWER)  # on its own it is near enough to be tried
    assert {row.choice.implementation: row.status for row in world.rows(LOWER)[-2:]}["test.far"] == "ok"


def test_a_newcomer_below_reopens_the_rewrite_above(world: World) -> None:
    world.add("test.slow", 4e-3)
    world.rewrite("test.rewrite")
    world.tune()
    only_lower = {"restrictions": lambda spec, *_: [(spec == LOWER, "does the lower problem only")]}
    world.add("test.fast", 1e-3, **only_lower)
    result = world.tune()
    assert result.decision is not None
    assert str(result.decision.winner.choice) == "test.rewrite > test.fast"


def test_a_rewrite_without_an_able_child_is_a_refusal(world: World) -> None:
    world.add("test.slow", 4e-3, restrictions=lambda spec, *_: [(spec != LOWER, "not the lower problem")])
    world.rewrite("test.rewrite")
    result = world.tune()
    assert "not the lower problem" in result.refusals["test.rewrite"]
    assert winner(result) == "test.slow"


def test_a_required_rewrite_may_have_any_child(world: World) -> None:
    world.add("test.slow", 4e-3)
    world.rewrite("other.rewrite")
    result = world.tune(limits=Limits(require=("other",)))
    assert result.decision is not None
    assert str(result.decision.winner.choice) == "other.rewrite > test.slow"


def test_the_child_gets_the_workspace_that_is_left(world: World) -> None:
    world.add("test.greedy", 1e-3, workspace=3000)
    world.add("test.modest", 4e-3, workspace=100)
    world.rewrite("test.rewrite")
    result = world.tune(limits=Limits(max_workspace=5000, require=("test.rewrite",)))
    assert result.decision is not None
    assert str(result.decision.winner.choice) == "test.rewrite > test.modest"


def test_a_child_cut_short_keeps_its_parent_open(world: World) -> None:
    world.add("test.a", 30e-3, restrictions=lambda spec, *_: [(spec == LOWER, "lower only")])
    world.add("test.b", 31e-3, restrictions=lambda spec, *_: [(spec == LOWER, "lower only")])
    world.rewrite("test.rewrite", estimate=1e-3)
    first = world.tune(budget_s=0.5)
    assert first.partial
    second = world.tune(budget_s=10.0)
    assert not second.partial
    assert {row.status for row in world.rows(LOWER)[-2:]} == {"ok"}


def test_ctrl_c_in_a_childs_race_keeps_the_parents_rows_too(world: World) -> None:
    def interrupt(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if a.shape[2] == 7 and below.calls > 4:
            raise KeyboardInterrupt

    world.add("test.above", 20e-3, restrictions=lambda spec, *_: [(spec != LOWER, "not the lower problem")])
    world.add("test.below", 20e-3)
    below = world.add("test.lowest", 20e-3, trick=interrupt, restrictions=lambda spec, *_: [(spec == LOWER, "lower")])
    world.rewrite("test.rewrite", estimate=0.01)
    with pytest.raises(KeyboardInterrupt):
        world.tune(budget_s=100.0)
    assert {row.status for row in world.rows()} == {"partial"}
    assert {row.status for row in world.rows(LOWER)} == {"partial"}


def test_libraries_that_are_not_imported_are_left_to_a_thorough_tuning(world: World) -> None:
    world.add("test.plain", 2e-3)
    world.add("test.library", 1e-3, libraries=lambda config: ("no_such_module",))
    inside = world.tune(load_libraries=False)
    assert winner(inside) == "test.plain"
    assert "no_such_module" in inside.refusals["test.library"]
    assert winner(world.tune()) == "test.library"


def test_what_cannot_be_made_ready_is_a_refusal_and_no_row(world: World) -> None:
    def missing(*_: object) -> None:
        raise BackendMissing("needs the other library")

    world.add("test.plain", 2e-3)
    world.add("test.backend", 1e-3, prepare=missing)
    result = world.tune()
    assert result.refusals == {"test.backend": "needs the other library"}
    assert [row.choice.implementation for row in world.rows()] == ["test.plain"]
