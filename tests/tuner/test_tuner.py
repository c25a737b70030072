"""Races between fake implementations: who is measured, who wins, what is stored."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from autoconv.arrays import Array
from autoconv.errors import BackendMissing, InvalidOption, NoImplementation
from autoconv.evidence import Choice, Config, Limits, candidate_key, decide
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner, TuningResult
from tests.tuner.fakes import DEVICE, SPEC, BusyStore, Fake, World


@pytest.fixture
def world() -> World:
    return World()


def winner(result: TuningResult) -> str:
    assert result.decision is not None
    return result.decision.winner.choice.implementation


# The plain race ------------------------------------------------------------------------------------


def test_the_fastest_wins_whatever_was_estimated(world: World) -> None:
    world.add("test.slow", 3e-3, estimate=1e-3)
    world.add("test.fast", 2e-3, estimate=2e-3)
    world.add("test.middle", 2.5e-3, estimate=3e-3)
    result = world.tune()
    assert winner(result) == "test.fast"
    assert (result.measured, result.partial) == (3, False)
    medians = {row.choice.implementation: row.median_s for row in result.rows}
    assert medians == {
        "test.slow": pytest.approx(3e-3),
        "test.fast": pytest.approx(2e-3),
        "test.middle": pytest.approx(2.5e-3),
    }
    assert result.decision is not None
    assert result.built is not None
    assert result.built.choice == result.decision.winner.choice
    assert result.decision.ratio == pytest.approx(1.25)
    assert list(result.decision.interval or ()) == pytest.approx([1.25, 1.25])
    assert not result.decision.tie


def test_rows_say_all_there_is_to_know(world: World) -> None:
    world.add("test.one", 1e-3, tags=frozenset({"gemm"}), strict_nan=False, workspace=640)
    world.add("test.two", 2e-3)
    world.tune()
    rows = world.rows()
    one = next(row for row in rows if row.choice.implementation == "test.one")
    assert (one.spec, one.device) == (str(SPEC), DEVICE.fingerprint)
    assert one.status == "ok"
    assert one.environment == {"library": "1"}
    assert one.workspace_bytes == 640
    assert one.tags == ("gemm",)
    assert not one.strict_nan
    assert one.error is not None
    assert one.error < 1e-6
    assert one.spread is not None
    assert one.spread < 1e-6
    assert one.host
    assert one.measured_at > 1e9
    assert len({row.race for row in rows}) == 1
    assert len(rows[0].race) == 32
    assert len(rows[0].samples) == len(rows[1].samples) >= 6


def test_samples_are_aligned_by_round_when_one_leaves(world: World) -> None:
    world.add("test.best", 1e-3)
    world.add("test.tied", 1.001e-3)
    world.add("test.behind", 1.5e-3)
    world.add("test.hopeless", 10e-3)
    rows = {row.choice.implementation: row for row in world.tune().rows}
    assert len(rows["test.hopeless"].samples) == 1
    assert "after one sample" in rows["test.hopeless"].reason
    assert rows["test.hopeless"].status == "ok"
    assert len(rows["test.best"].samples) == len(rows["test.tied"].samples) >= len(rows["test.behind"].samples)


def test_the_untuned_default_is_measured_first_however_small_the_budget(world: World) -> None:
    first = world.add("test.first", 5.0, estimate=1e-3)
    second = world.add("test.second", 1.0, estimate=2e-3)
    result = world.tune(budget_s=1e-6)
    assert winner(result) == "test.first"
    assert result.partial
    assert (first.calls, second.calls) == (1, 0)
    assert world.status(result) == {"test.first": "partial", "test.second": "partial"}


def test_prefer_decides_who_is_first(world: World) -> None:
    world.add("test.first", 5.0, estimate=1e-3)
    world.add("test.second", 5.0, estimate=2e-3)
    assert winner(world.tune(limits=Limits(prefer=("test.second",)), budget_s=1e-6)) == "test.second"


def test_a_default_that_fails_does_not_count_as_measured(world: World) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    world.add("test.first", 1.0, estimate=1e-3, trick=fail)
    world.add("test.second", 1.0, estimate=2e-3)
    result = world.tune(budget_s=1e-6)
    assert winner(result) == "test.second"


def test_configs_are_candidates(world: World) -> None:
    tiles = [Config(tile=tile) for tile in (8, 16, 32)]
    world.add("test.tiled", lambda config: {8: 3e-3, 16: 1e-3, 32: 2e-3}[int(config["tile"])], configs=tiles)
    result = world.tune()
    assert result.decision is not None
    assert result.decision.winner.choice.config == Config(tile=16)
    assert result.measured == 3


def test_watch_hears_every_stage(world: World) -> None:
    heard: list[tuple[str, str, int, int]] = []
    world.add("test.one", 1e-3)
    world.add("test.two", 2e-3)
    world.tune(watch=lambda *news: heard.append(news))
    assert [news[:1] + news[2:] for news in heard[:2]] == [("verify", 0, 2), ("verify", 1, 2)]
    assert {news[0] for news in heard} == {"verify", "time", "done"}
    assert heard[-1][:2] == ("done", "test.one")


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
def test_a_budget_without_meaning_is_refused(world: World, budget: float) -> None:
    world.add("test.one")
    with pytest.raises(InvalidOption, match="budget_s"):
        world.tune(budget_s=budget)


def test_nothing_that_may_run_raises_with_the_refusals(world: World) -> None:
    world.add("test.one", dtypes=frozenset({"f64"}))
    with pytest.raises(NoImplementation) as caught:
        world.tune()
    assert caught.value.refusals == {"test.one": "does f64, got f32"}


def test_refusals_come_with_the_result(world: World) -> None:
    world.add("test.one")
    world.add("test.two", ranks=frozenset({3}))
    assert world.tune().refusals == {"test.two": "does rank 3, got 2"}


def test_an_empty_batch_is_not_raced(world: World) -> None:
    fake = world.add("test.one")
    result = world.tune(replace(SPEC, batch=0))
    assert (result.decision, result.rows, result.measured, fake.calls) == (None, (), 0, 0)
    assert result.built is not None
    assert result.built.choice == Choice("test.one", 1)


def test_filters_are_bound_once_for_a_fixed_spec(world: World) -> None:
    fake = world.add("test.one")
    world.tune(replace(SPEC, fixed=True))
    assert fake.bound == 1
    assert fake.calls > 6


def test_the_device_is_held_while_measuring_and_rows_read_after() -> None:
    other = World()
    other.add("test.one", 1e-3)
    other.tune()
    fake = Fake("test.one", other.clock, 1e-3)
    fake.trick = lambda *_: pytest.fail("somebody else has measured it meanwhile")
    other.registry.register(fake, replace=True)
    store = BusyStore(other.rows())
    result = Tuner(other.registry, store, clock=other.clock).tune(SPEC, DEVICE, Limits())
    assert result.measured == 0
    assert winner(result) == "test.one"

    held: list[int] = []
    newcomer = Fake("test.new", other.clock, 1e-3, trick=lambda *_: held.append(store.holders))
    other.registry.register(newcomer)
    fake.trick = None
    Tuner(other.registry, store, clock=other.clock).tune(SPEC, DEVICE, Limits())
    assert set(held) == {1}


# Contestants that misbehave --------------------------------------------------------------------------


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


# Ties ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "limits"),
    [
        ({}, {}, Limits(prefer=("test.b",))),
        ({"deterministic": False}, {"workspace": 64}, Limits()),
        ({"workspace": 64}, {"workspace": 0}, Limits()),
    ],
    ids=["preference", "determinism", "workspace"],
)
def test_a_tie_is_broken_as_documented(
    world: World, first: dict[str, object], second: dict[str, object], limits: Limits
) -> None:
    world.add("test.a", 1e-3, **first)
    world.add("test.b", 1.005e-3, **second)
    result = world.tune(limits=limits)
    assert result.decision is not None
    assert result.decision.tie
    assert winner(result) == "test.b"
    assert not result.partial


def test_a_tie_of_equals_goes_by_id(world: World) -> None:
    world.add("test.b", 1e-3)
    world.add("test.a", 1e-3)
    assert winner(world.tune()) == "test.a"


def test_noise_that_never_settles_ends_as_a_tie(world: World) -> None:
    beat = iter([1.0, 1.3, 0.7] * 1000)
    world.add("test.a", lambda _: 20e-3 * next(beat), estimate=20e-3)
    world.add("test.b", 20e-3)
    result = world.tune(budget_s=100.0)
    assert result.decision is not None
    assert result.decision.tie
    assert not result.partial
    assert len(result.rows[0].samples) == 25


# Memory ------------------------------------------------------------------------------------------------


def test_what_is_settled_is_not_measured_again(world: World) -> None:
    fakes = [world.add("test.one", 1e-3), world.add("test.two", 2e-3)]
    world.tune()
    calls, rows = [fake.calls for fake in fakes], len(world.rows())
    result = world.tune()
    assert (result.measured, result.partial, winner(result)) == (0, False, "test.one")
    assert [fake.calls for fake in fakes] == calls
    assert len(world.rows()) == rows
    assert result.built is not None


def test_a_newcomer_is_measured_with_the_remembered_winner_alone(world: World) -> None:
    best, loser = world.add("test.best", 2e-3), world.add("test.loser", 3e-3)
    world.tune()
    calls, before = loser.calls, best.calls
    world.add("test.new", 1e-3)
    result = world.tune()
    assert winner(result) == "test.new"
    assert result.measured == 2
    assert loser.calls == calls
    assert best.calls > before
    assert result.decision is not None
    assert result.decision.runner_up is not None
    assert result.decision.runner_up.race == result.decision.winner.race
    assert result.decision.interval is not None


def test_only_the_implementation_with_a_new_version_is_measured_again(world: World) -> None:
    world.add("test.best", 2e-3)
    world.add("test.loser", 3e-3)
    still = world.add("test.still", 4e-3)
    world.tune()
    calls = still.calls
    world.add("test.loser", 1e-3, version=2)
    result = world.tune()
    assert winner(result) == "test.loser"
    assert {row.choice.version for row in result.rows if row.choice.implementation == "test.loser"} == {2}
    assert still.calls == calls


def test_retune_measures_everything_anew(world: World) -> None:
    fakes = [world.add("test.one", 1e-3), world.add("test.two", 2e-3)]
    world.tune()
    for fake in fakes:
        fake.calls = 0
    fakes[0].seconds = 5e-3
    result = world.tune(retune=True)
    assert winner(result) == "test.two"
    assert all(fake.calls for fake in fakes)
    assert len(world.rows()) == 4  # the old ones stay


def test_an_excluded_winner_is_replaced_by_the_next_without_a_new_race(world: World) -> None:
    world.add("test.one", 1e-3)
    two = world.add("test.two", 2e-3)
    world.tune()
    calls = two.calls
    result = world.tune(limits=Limits(exclude=("test.one",)))
    assert (winner(result), result.measured, two.calls) == ("test.two", 0, calls)


def test_an_implementation_that_is_gone_gives_way(world: World) -> None:
    world.add("test.one", 1e-3)
    world.add("test.two", 2e-3)
    world.tune()
    world.registry.unregister("test.one")
    result = world.tune()
    assert (winner(result), result.measured) == ("test.two", 0)


def test_a_remembered_winner_that_cannot_run_any_more_gives_way(world: World) -> None:
    one = world.add("test.one", 1e-3)
    world.add("test.two", 2e-3)
    world.tune()
    one.unavailable = lambda: "its library is gone"  # type: ignore[method-assign]
    result = world.tune()
    assert winner(result) == "test.two"
    assert result.refusals == {"test.one": "its library is gone"}


def test_a_slower_machine_does_not_make_old_losers_win(world: World) -> None:
    best, loser = world.add("test.best", 1e-3), world.add("test.loser", 1.2e-3)
    world.tune()
    best.seconds, loser.seconds = 2e-3, 2.4e-3  # the machine has become slower
    world.add("test.new", 3e-3)
    result = world.tune(budget_s=10.0)
    assert winner(result) == "test.best"
    assert result.decision is not None
    assert result.decision.runner_up is not None
    assert result.decision.runner_up.choice.implementation == "test.loser"
    assert result.decision.ratio == pytest.approx(1.2)


def test_who_left_early_is_placed_by_paired_ratio(world: World) -> None:
    pace = [1.0]
    world.add("test.best", lambda _: 1e-3 * pace[0], estimate=1e-3)
    noise = iter([1.0, 0.97, 1.03] * 1000)
    world.add("test.tied", lambda _: 1e-3 * pace[0] * next(noise), estimate=1.1e-3)
    world.add("test.early", lambda _: 1.2e-3 * pace[0], estimate=1.2e-3)

    def watch(stage: str, detail: str, done: int, total: int) -> None:
        if stage == "time" and done > 8:
            pace[0] = 2.0  # drift: all get slower after one has left

    result = world.tune(budget_s=10.0, watch=watch)
    assert winner(result) in ("test.best", "test.tied")
    rows = {row.choice.implementation: row for row in result.rows}
    assert len(rows["test.early"].samples) < len(rows["test.best"].samples)
    assert rows["test.early"].median_s == pytest.approx(1.2 * (rows["test.best"].median_s or 0), rel=0.05)


# Hopeless estimates --------------------------------------------------------------------------------------


def test_a_hopeless_estimate_is_skipped_with_its_reason(world: World) -> None:
    world.add("test.good", 1e-3)
    direct = world.add("test.direct", 1.0, estimate=0.5)
    result = world.tune(budget_s=10.0)
    row = next(row for row in result.rows if row.choice.implementation == "test.direct")
    assert (row.status, direct.calls) == ("skipped", 0)
    assert row.reason == "estimated at 0.5 s, 500 times the best measured"
    assert not result.partial
    assert world.tune(budget_s=10.0).measured == 0


def test_a_slow_estimate_that_eats_the_budget_is_skipped(world: World) -> None:
    world.add("test.good", 0.1)
    direct = world.add("test.direct", 1.0, estimate=1.0)
    result = world.tune(budget_s=0.9)
    assert (world.status(result)["test.direct"], direct.calls) == ("skipped", 0)


def test_a_skipped_candidate_runs_when_nothing_else_may(world: World) -> None:
    world.add("test.good", 1e-3)
    direct = world.add("test.direct", 1.0, estimate=0.5)
    world.tune(budget_s=10.0)
    result = world.tune(limits=Limits(require=("test.direct",)), budget_s=10.0)
    assert winner(result) == "test.direct"
    assert direct.calls > 0


def test_a_hopeless_newcomer_does_not_make_the_winner_run_again(world: World) -> None:
    good = world.add("test.good", 1e-3)
    world.tune()
    calls = good.calls
    world.add("test.direct", 1.0)
    result = world.tune()
    assert (good.calls, result.measured, world.status(result)["test.direct"]) == (calls, 0, "skipped")


# Budgets -----------------------------------------------------------------------------------------------


def test_a_race_cut_short_is_partial_and_taken_up_again(world: World) -> None:
    world.add("test.one", 20e-3)
    world.add("test.two", 21e-3)
    last = world.add("test.three", 15e-3, estimate=22e-3)
    first = world.tune(budget_s=0.15)
    assert first.partial
    assert winner(first) in ("test.one", "test.two")
    assert {row.status for row in first.rows} == {"partial"}
    assert last.calls == 0
    assert [miss.spec for miss in world.store.misses()] == [str(SPEC)]
    second = world.tune(budget_s=10.0)
    assert winner(second) == "test.three"
    assert not second.partial
    assert {row.status for row in second.rows} == {"ok"}
    assert world.store.misses() == []


def test_small_budgets_get_there_in_the_end(world: World) -> None:
    for number in range(6):
        world.add(f"test.number{number}", (10 + 3 * (5 - number)) * 1e-3, estimate=(10 + number) * 1e-3)
    for _ in range(12):
        result = world.tune(budget_s=0.4)
        if not result.partial:
            break
    assert not result.partial
    assert winner(result) == "test.number5"


def test_a_cut_short_newcomer_does_not_spoil_the_remembered_winner(world: World) -> None:
    world.add("test.best", 50e-3)
    world.tune(budget_s=10.0)
    world.add("test.new", 60e-3)
    result = world.tune(budget_s=0.25)
    assert result.partial
    rows = {row.choice.implementation: row for row in result.rows}
    assert rows["test.best"].status == "ok"
    assert len(rows["test.best"].samples) >= 6
    assert rows["test.new"].status == "partial"


def test_a_budget_spent_after_enough_rounds_is_not_partial(world: World) -> None:
    beat = iter([1.0, 1.3, 0.7] * 1000)
    world.add("test.a", lambda _: 10e-3 * next(beat), estimate=10e-3)
    world.add("test.b", 10e-3)
    result = world.tune(budget_s=0.3)
    assert 6 <= len(result.rows[0].samples) < 25
    assert not result.partial


@pytest.mark.parametrize("call", [4, 12, 25])
def test_ctrl_c_keeps_what_was_measured(world: World, call: int) -> None:
    def interrupt(*_: object) -> None:
        if two.calls == call:
            raise KeyboardInterrupt

    beat = iter([1.0, 1.3, 0.7] * 1000)
    world.add("test.one", 20e-3)
    two = world.add("test.two", lambda _: 20e-3 * next(beat), trick=interrupt, estimate=21e-3)
    with pytest.raises(KeyboardInterrupt):
        world.tune(budget_s=10.0)
    rows = world.rows()
    assert {row.choice.implementation for row in rows} >= {"test.one"}
    assert {row.status for row in rows} == {"partial"}
    assert decide(rows, Limits()) is not None
    two.trick = None
    assert not world.tune(budget_s=10.0).partial


# Rewrites -----------------------------------------------------------------------------------------------

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
    world.rewrite("test.rewrite", estimate=0.1)
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


# Order and clock ---------------------------------------------------------------------------------------------


def _order_of_calls(seed: int) -> list[str]:
    world = World(seed)
    fakes = [world.add(f"test.{letter}", 2e-3) for letter in "abcd"]
    log: list[str] = []
    for fake in fakes:
        fake.log = log
    world.tune(budget_s=10.0)
    return log


def test_the_order_is_random_yet_repeats_with_the_seed() -> None:
    assert _order_of_calls(1) == _order_of_calls(1)
    assert _order_of_calls(1) != _order_of_calls(2)


def test_a_clock_that_steps_back_spoils_no_sample(world: World) -> None:
    def step(*_: object) -> None:
        if one.calls in (7, 11, 12):
            world.clock.spend(-5.0)

    one = world.add("test.one", 2e-3, trick=step)
    world.add("test.two", 3e-3)
    result = world.tune(budget_s=100.0)
    assert winner(result) == "test.one"
    assert all(sample > 0 for row in result.rows for sample in row.samples)
    assert result.rows[0].median_s == pytest.approx(2e-3)


def test_a_clock_that_stands_still_fails_the_candidate(world: World) -> None:
    world.add("test.timeless", 0.0, estimate=1e-6)
    world.add("test.good", 1e-3)
    result = world.tune()
    assert winner(result) == "test.good"
    assert world.status(result)["test.timeless"] == "failed"


def test_nothing_is_warned_of_in_an_ordinary_race(world: World) -> None:
    world.add("test.one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.tune()


def test_keys_tell_configs_apart(world: World) -> None:
    world.add("test.tiled", 1e-3, configs=[Config(tile=1), Config(tile=2)])
    rows = world.tune().rows
    assert {candidate_key(row.choice) for row in rows} == {"test.tiled[tile=1]", "test.tiled[tile=2]"}
