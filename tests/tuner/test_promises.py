"""What other autotuners get wrong by their own trackers, and this one promises not to: evidence and decisions."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoconv
from autoconv import options
from autoconv.cache import CacheWarning, MemoryStore, open_store
from autoconv.cache.store import SqlStore
from autoconv.evidence import TIE_GAP, Limits, Measurement, decide
from tests.here import Here
from tests.tuner.fakes import DEVICE, SPEC, World, winner

# Timings that cannot be ------------------------------------------------------------------------------

BAD = [0.0, -1e-3, math.nan, math.inf, -math.inf]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | SqlStore:
    """Each kind of store."""
    return MemoryStore() if request.param == "memory" else open_store(str(tmp_path / "bad.sqlite"))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["median_s", "samples"])
def test_no_store_keeps_a_time_that_cannot_be(
    store: MemoryStore | SqlStore, world: World, bad: float, where: str
) -> None:
    world.add("test.one", 1e-3)
    (good,) = world.tune().rows
    spoilt = replace(good, **{where: bad if where == "median_s" else (1e-3, bad)})
    with pytest.warns(CacheWarning, match="not kept"):
        store.add([spoilt])
    assert store.rows(str(SPEC), DEVICE.fingerprint) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)  # a store warns once of each trouble
        store.add([spoilt, good])
    assert store.rows(str(SPEC), DEVICE.fingerprint) == [good]


@pytest.mark.parametrize("bad", BAD)
def test_a_row_with_such_a_time_would_not_win_either(world: World, bad: float) -> None:
    world.add("test.one", 1e-3)
    (good,) = world.tune().rows
    decision = decide([replace(good, median_s=bad), replace(good, median_s=5.0)], Limits())
    assert decision is not None
    assert decision.winner.median_s == 5.0


def test_a_clock_that_steps_back_costs_a_candidate_its_row_alone(world: World) -> None:
    world.add("test.good", 1e-3)
    world.add("test.back", -1e-3, estimate=2e-3)
    result = world.tune(budget_s=10)
    rows = {row.choice.implementation: row for row in result.rows}
    assert winner(result) == "test.good"
    assert rows["test.back"].median_s is None
    assert all(sample > 0 for row in world.rows() for sample in row.samples)


# Two tunings choose alike ------------------------------------------------------------------------------


def tuned(seed: int, paces: list[float], noise: float) -> Measurement:
    """The winner of candidates of these paces, measured with so much noise."""
    world, rng = World(seed), random.Random(seed)
    for number, pace in enumerate(paces):
        world.add(f"test.number{number}", lambda _, pace=pace: pace * (1 + noise * rng.random()), estimate=pace)
    result = world.tune(budget_s=60.0)
    assert result.decision is not None
    return result.decision.winner


@given(
    st.lists(st.floats(1e-3, 3e-3), min_size=2, max_size=6),
    st.floats(0.0, 0.3),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_two_tunings_agree_or_tie(paces: list[float], noise: float, one: int, other: int) -> None:
    chosen = [int(tuned(seed, paces, noise).choice.implementation.removeprefix("test.number")) for seed in (one, other)]
    first, second = (paces[number] for number in chosen)
    # of two that differ by more than a tie and what 25 rounds of this noise leave, the slower never wins
    assert max(first, second) / min(first, second) <= (1 + TIE_GAP) * (1 + 0.4 * noise)


@pytest.mark.parametrize("seed", range(5))
def test_identical_times_are_decided_alike_whatever_the_order(seed: int) -> None:
    world = World(seed)
    names = ["test.lean", "test.other", "test.big", "test.loose"]
    random.Random(seed).shuffle(names)
    facts = {
        "test.lean": {"workspace": 0},
        "test.other": {"workspace": 0},
        "test.big": {"workspace": 1 << 12},
        "test.loose": {"workspace": 0, "deterministic": False},
    }
    for name in names:
        world.add(name, 1e-3, **facts[name])
    result = world.tune(budget_s=10)
    assert winner(result) == "test.lean", "determinism, then workspace, then error (alike), then id"
    assert result.decision is not None
    assert result.decision.tie
    preferring = world.tune(limits=Limits(prefer=("test.loose",)), budget_s=10)
    assert winner(preferring) == "test.loose", "a preference breaks ties first"


# An upgrade throws nothing away --------------------------------------------------------------------------


def test_an_upgrade_of_everything_leaves_every_row_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(monkeypatch)
    fakes = [here.add(f"test.number{number}", (1 + number) * 1e-3) for number in range(3)]
    autoconv.tune(SPEC, budget_s=10)
    rows, races = here.stored(), here.races
    for fake in fakes:
        fake.uses = {"library": "2"}
    plan = autoconv.plan(SPEC)
    assert (plan.implementation, plan.source) == ("test.number0", "cache")
    (again,) = autoconv.tune(SPEC, budget_s=10)
    assert again.measured == 0, "tuning measures nothing again because of a version alone: regress does"
    assert here.stored() == rows
    assert here.races == races + 1


# Limits are filters over stored rows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loose", "limit"),
    [
        ({"workspace": 1 << 20}, {"max_workspace": 1 << 10}),
        ({"deterministic": False}, {"deterministic": True}),
        ({"strict_nan": False}, {"strict_nan": True}),
    ],
)
def test_a_stricter_limit_is_met_by_stored_rows_without_a_race(
    monkeypatch: pytest.MonkeyPatch, loose: dict[str, object], limit: dict[str, object]
) -> None:
    here = Here(monkeypatch)
    here.add("test.loose", 1e-3, **loose)
    strict = here.add("test.strict", 2e-3)
    here.add("test.slow", 3e-3)
    assert autoconv.plan(SPEC).implementation == "test.loose"
    races, calls = here.races, strict.calls
    with autoconv.settings(**limit):
        assert autoconv.plan(SPEC).implementation == "test.strict"
    assert autoconv.plan(SPEC).implementation == "test.loose", "lifting it needs none either"
    assert (here.races, strict.calls) == (races, calls)


def test_the_stored_error_is_a_limit_without_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(monkeypatch)
    here.add("test.rough", 1e-3, trick=lambda a, b, out, workspace: out.__imul__(1 + 1.2e-6))
    here.add("test.exact", 2e-3)
    assert autoconv.plan(SPEC).implementation == "test.rough"
    error = next(row.error for row in here.stored() if row.choice.implementation == "test.rough")
    assert error is not None
    assert error > 1e-6
    races = here.races
    with autoconv.settings(max_rel_error=1e-6):
        assert autoconv.plan(SPEC).implementation == "test.exact"
    assert here.races == races


def test_only_what_is_lacking_is_raced_when_no_stored_row_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(monkeypatch)
    greedy = here.add("test.greedy", 1e-3, workspace=1 << 20)
    other = here.add("test.other", 2e-3, workspace=1 << 20)
    autoconv.plan(SPEC)
    lean = here.add("test.lean", 5e-3)
    calls, races = (greedy.calls, other.calls), here.races
    options.forget_calls()
    with autoconv.settings(max_workspace=1 << 10):
        plan = autoconv.plan(SPEC)
        assert (plan.implementation, plan.source) == ("test.lean", "tuned")
        assert here.races == races + 1
        assert (greedy.calls, other.calls) == calls
        seen = lean.calls
    options.forget_calls()
    with autoconv.settings(max_workspace=1 << 10):
        assert autoconv.plan(SPEC).source == "cache"
    assert (here.races, lean.calls) == (races + 1, seen)
