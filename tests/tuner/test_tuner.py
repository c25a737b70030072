"""Races between fake implementations: who is measured, in which order, who wins, what is stored."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from autoconv.errors import InvalidOption, NoImplementation
from autoconv.evidence import Choice, Config, Limits, candidate_key
from autoconv.tuner import Tuner
from tests.tuner.fakes import DEVICE, SPEC, BusyStore, Fake, World, winner

# The plain race ----------------------------------------------------------------------------------


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


# Ties --------------------------------------------------------------------------------------------


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


# Order and clock ---------------------------------------------------------------------------------


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
