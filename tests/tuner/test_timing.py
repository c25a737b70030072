"""Samples, calibration, rounds and order, on a clock that only moves when told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from autoconv.tuner.timing import MAX_LOOPS, Contestant, Finish, Timer, clocked, spread_of
from tests.tuner.fakes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> Timer:
    return Timer(clock, clock.sleep, random.Random(0))


def contestant(
    clock: Clock, seconds: float | Callable[[], float], name: str = "one", *, runtimes: tuple[str, ...] = ()
) -> Contestant:
    def call() -> None:
        clock.spend(seconds() if callable(seconds) else seconds)

    return Contestant(name, clocked(call, clock), runtimes)


@pytest.mark.parametrize(("seconds", "low", "high"), [(1e-6, 1000, 2500), (3e-4, 4, 9), (5e-3, 1, 1), (2.0, 1, 1)])
def test_a_sample_dwarfs_the_timer(clock: Clock, timer: Timer, seconds: float, low: int, high: int) -> None:
    one = contestant(clock, seconds)
    timer.first_sample(one, None)
    assert low <= one.loops <= high
    assert one.samples == [pytest.approx(seconds)]


def test_a_disturbed_first_call_does_not_fix_the_loop_count(clock: Clock, timer: Timer) -> None:
    times = iter([5e-3])
    one = contestant(clock, lambda: next(times, 1e-5))
    timer.first_sample(one, None)
    assert one.loops >= 100
    assert one.samples == [pytest.approx(1e-5)]


def test_a_hopeless_sample_is_confirmed_before_it_counts(clock: Clock, timer: Timer) -> None:
    times = iter([2e-3, 2e-3, 18e-3])  # calibration ends with a scheduler tick
    one = contestant(clock, lambda: next(times, 1e-3))
    one.loops = 2
    timer.first_sample(one, 1e-3)
    assert not one.left
    assert one.samples[0] < 4e-3


def test_who_is_hopeless_leaves_after_one_sample(clock: Clock, timer: Timer) -> None:
    one = contestant(clock, 50e-3)
    timer.first_sample(one, 10e-3)
    assert one.left == "5 times the best after one sample"
    assert not one.runs


def test_clock_steps_are_taken_again_and_then_given_up(clock: Clock, timer: Timer) -> None:
    steps = iter([-1.0, 0.0])
    one = contestant(clock, lambda: next(steps, 20e-3))
    timer.first_sample(one, None)
    assert one.samples == [pytest.approx(20e-3)]
    back = contestant(clock, -1.0)
    with pytest.raises(Exception, match="the clock gave"):
        timer.first_sample(back, None)


def test_readings_that_are_no_numbers_are_taken_again() -> None:
    readings = iter([0.0, float("nan"), 5.0, float("inf"), 10.0, 10.02])
    one = Contestant("one", clocked(lambda: None, lambda: next(readings)))
    Timer(lambda: 0.0, lambda seconds: None, random.Random(0)).first_sample(one, None)
    assert one.samples == [pytest.approx(20e-3)]


def _race(timer: Timer, clock: Clock, field: list[Contestant], seconds: float = 10.0) -> Finish:
    for one in field:
        timer.first_sample(one, None)
    return timer.race(field, clock.now + seconds)


def test_a_clear_winner_is_settled_in_few_rounds(clock: Clock, timer: Timer) -> None:
    field = [contestant(clock, 20e-3, "a"), contestant(clock, 30e-3, "b")]
    finish = _race(timer, clock, field)
    assert finish.settled
    assert 6 <= len(field[0].samples) <= 8
    assert field[1].left.startswith("1.5 to 1.5 times the best")


def test_a_race_without_time_is_not_settled(clock: Clock, timer: Timer) -> None:
    field = [contestant(clock, 20e-3, "a"), contestant(clock, 21e-3, "b")]
    finish = _race(timer, clock, field, seconds=50e-3)
    assert not finish.settled
    assert 1 <= len(field[1].samples) <= 3


def test_one_alone_is_settled_without_time(clock: Clock, timer: Timer) -> None:
    field = [contestant(clock, 20e-3)]
    assert _race(timer, clock, field, seconds=0.0).settled


def test_one_that_may_not_win_is_not_measured_against(clock: Clock, timer: Timer) -> None:
    field = [contestant(clock, 20e-3, "a"), contestant(clock, 30e-3, "b")]
    field[0].allowed = False
    _race(timer, clock, field)
    assert not field[1].left


def test_runtimes_stay_together_and_settle_between(clock: Clock, timer: Timer) -> None:
    log: list[str] = []

    def logged(name: str, runtime: str) -> Contestant:
        one = contestant(clock, 20e-3, name, runtimes=(runtime,) if runtime else ())
        inner = one.sample

        def sample(loops: int) -> float:
            log.append(runtime)
            return inner(loops)

        one.sample = sample
        return one

    field = [logged("a", "openmp"), logged("b", "blas"), logged("c", "openmp"), logged("d", ""), logged("e", "blas")]
    for one in field:
        timer.first_sample(one, None)
    log.clear()
    clock.naps.clear()
    timer.race(field, clock.now + 10.0)
    rounds = [log[i : i + 5] for i in range(0, len(log), 5)]
    for played in rounds:
        switches = sum(x != y for x, y in itertools.pairwise(played))
        assert switches == 2, "three runtimes, each in one block"
    assert len({tuple(played) for played in rounds}) > 1, "in a fresh order each round"
    changes = sum(x != y and x != "" for x, y in itertools.pairwise(log))
    assert abs(len(clock.naps) - changes) <= 1  # the first round follows the first samples


def test_a_worker_rests_while_others_have_their_turn_and_nobody_waits(clock: Clock, timer: Timer) -> None:
    log: list[str] = []

    def remote(name: str, runtime: str) -> Contestant:
        def sample(loops: int) -> float:
            log.append(runtime)
            clock.spend(20e-3 * loops)
            return 20e-3 * loops

        return Contestant(name, sample, (runtime,), rest=lambda: log.append(f"{runtime} rests"))

    field = [remote("a", "openmp"), remote("b", "blas"), remote("c", "openmp"), contestant(clock, 20e-3, "d")]
    for one in field:
        timer.first_sample(one, None)
    timer.race(field, clock.now + 10.0)
    assert clock.naps == []
    for before, after in itertools.pairwise(log):
        assert before == after or "rests" in before or after == f"{before} rests"
    assert log.count("openmp rests") >= 6


@pytest.mark.parametrize("seconds", [1e-6, 3e-4, 20e-3])
def test_one_whose_calls_are_prepared_for_is_sampled_call_by_call(timer: Timer, clock: Clock, seconds: float) -> None:
    asked: list[int] = []

    def sample(loops: int) -> float:
        asked.append(loops)
        clock.spend(1e-3)  # the preparation, which is no part of the sample
        return seconds * loops

    field = [Contestant("events", sample, most_loops=1), Contestant("slower", lambda loops: 2 * sample(loops))]
    field[1].most_loops = 1
    for one in field:
        timer.first_sample(one, None)
    assert timer.race(field, clock.now + 10.0).settled
    assert set(asked) == {1}
    assert field[0].samples == [seconds] * len(field[0].samples)
    assert field[1].left
    assert Contestant("clocked", sample).most_loops == MAX_LOOPS


def test_a_failure_while_timing_stops_only_its_own(clock: Clock, timer: Timer) -> None:
    calls = iter(range(3))

    def fragile() -> float:
        if next(calls, None) is None:
            raise RuntimeError("broke")
        return 20e-3

    field = [contestant(clock, fragile, "a"), contestant(clock, 21e-3, "b")]
    finish = _race(timer, clock, field)
    assert finish.settled
    assert isinstance(field[0].failure, RuntimeError)
    assert len(field[1].samples) >= 6


def test_the_spread_is_the_interquartile_range_over_the_median() -> None:
    assert spread_of([1.0, 2.0, 3.0]) is None
    assert spread_of([1.0] * 5) == 0
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1.0)
