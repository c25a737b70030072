"""What is remembered is not measured again; what was cut short, skipped or outdated is taken up again."""

from __future__ import annotations

import pytest

from autoconv.evidence import Config, Limits, decide
from tests.tuner.fakes import SPEC, World, winner

# Memory ------------------------------------------------------------------------------------------


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


def test_a_disturbed_sample_of_the_best_does_not_make_a_loser_the_winner(world: World) -> None:
    disturbance = [100.0]
    world.add("test.best", lambda _: 1e-3 * disturbance[0], estimate=1e-3)
    world.add("test.second", 2e-3, estimate=2e-3)
    world.add("test.loser", 9e-3, estimate=9e-3)

    def watch(stage: str, detail: str, done: int, total: int) -> None:
        if stage == "time":
            disturbance[0] = 1.0  # only its trial fell into a busy moment

    result = world.tune(budget_s=10.0, watch=watch)
    assert winner(result) == "test.best"
    rows = {row.choice.implementation: row for row in result.rows}
    assert len(rows["test.loser"].samples) == 1
    assert rows["test.loser"].median_s == pytest.approx(9e-3)


# Hopeless estimates ------------------------------------------------------------------------------


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


# Kin ---------------------------------------------------------------------------------------------


def test_kernels_are_not_compiled_when_their_kin_were_far_behind(world: World) -> None:
    world.add("test.good", 1e-3)
    tiles = [Config(tile=number) for number in range(4)]
    estimates = {tile: (1.1 + 0.1 * number) * 1e-3 for number, tile in enumerate(tiles)}
    kin = world.add("test.kin", 3e-3, configs=tiles, compiled=True)
    kin.estimate_s = lambda spec, device, config: estimates[config]  # type: ignore[method-assign]
    result = world.tune(budget_s=10.0)
    rows = {str(row.choice.config): row for row in result.rows if row.choice.implementation == "test.kin"}
    assert [rows[str(tile)].status for tile in tiles] == ["ok", "skipped", "skipped", "skipped"]
    assert rows["tile=1"].reason == "expected at 0.00327 s by 1 others of its kind, 3.3 times the best"
    assert world.tune(budget_s=10.0).measured == 0, "nor the next time"


def test_another_switch_is_another_kind(world: World) -> None:
    world.add("test.good", 1e-3)
    both = [Config(across=False), Config(across=True)]
    kin = world.add("test.kin", lambda config: 0.5e-3 if config["across"] else 3e-3, configs=both, compiled=True)
    kin.estimate_s = lambda spec, device, config: 8e-3 if config["across"] else 1.1e-3  # type: ignore[method-assign]
    result = world.tune(budget_s=10.0)
    assert result.decision is not None
    assert result.decision.winner.choice.config == both[1], "one of each kind runs, unless it is beyond all hope"


def test_kin_near_the_best_all_run(world: World) -> None:
    world.add("test.good", 1e-3)
    tiles = [Config(tile=number) for number in range(4)]
    world.add("test.kin", lambda config: (1.5 - 0.2 * int(config["tile"])) * 1e-3, configs=tiles, compiled=True)
    result = world.tune(budget_s=10.0)
    assert result.decision is not None
    assert result.decision.winner.choice.config == tiles[3]


# Budgets -----------------------------------------------------------------------------------------


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
