"""How a candidate on a GPU is sampled, on a made-up device; tests/cuda and tests/gpu have the events themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from autoconv.tuner.cuda_timing import HOLD_MORE_S, MOST_HOLD_S, EventSampler, Stopwatch
from autoconv.tuner.timing import Contestant, Timer
from tests.tuner.fakes import Clock


class Made:
    """A stopwatch whose device takes `device_s` for any call; launches that come late leave a gap."""

    def __init__(self, device_s: float, host_s: Callable[[], float]) -> None:
        self.device_s = device_s
        self.host_s = host_s
        self.holds: list[float] = []
        self.woken = 0

    def wake(self, call: Callable[[], None]) -> None:
        self.woken += 1

    def enqueue_s(self, call: Callable[[], None]) -> float:
        return self.host_s()

    def time(self, call: Callable[[], None], hold_s: float) -> tuple[float, float]:
        self.holds.append(hold_s)
        call()
        host_s = self.host_s()
        return self.device_s + max(0.0, host_s - hold_s), host_s


def sampler(made: Made, call: Callable[[], None] = lambda: None) -> EventSampler:
    return EventSampler(cast("Stopwatch", made), call)


def test_what_the_host_takes_is_hidden_and_kept_apart() -> None:
    made = Made(4e-6, lambda: 30e-6)
    one = sampler(made)
    assert one.enqueue_s is None
    assert [one(1) for _ in range(3)] == [4e-6] * 3
    assert one.enqueue_s == 30e-6
    assert made.holds == [pytest.approx(1.5 * 30e-6 + HOLD_MORE_S)] * 3
    assert made.woken == 3


def test_several_calls_are_several_samples() -> None:
    calls: list[int] = []
    assert sampler(Made(4e-6, lambda: 1e-6), lambda: calls.append(1))(5) == pytest.approx(20e-6)
    assert len(calls) == 5


def test_launches_that_came_too_late_are_taken_again() -> None:
    times = iter([10e-6, 200e-6, 10e-6])
    made = Made(4e-6, lambda: next(times, 10e-6))
    one = sampler(made)
    assert one(1) == 4e-6
    assert len(made.holds) == 2
    assert made.holds[1] > 200e-6
    assert one.enqueue_s == 10e-6, "the late one is no measure of the others"


def test_a_run_that_waits_for_the_device_itself_does_not_hold_it_for_ever() -> None:
    waiting = Made(4e-6, lambda: 60e-3)
    assert sampler(waiting)(1) > 4e-6
    assert max(waiting.holds) == MOST_HOLD_S
    assert len(waiting.holds) == 1


def test_a_race_by_events_takes_one_run_a_round() -> None:
    clock, calls = Clock(), {"fast": 0, "slow": 0}

    def count(name: str) -> Callable[[], None]:
        def call() -> None:
            calls[name] += 1
            clock.spend(1e-4)

        return call

    field = [
        Contestant(name, sampler(Made(seconds, lambda: 2e-5), count(name)), most_loops=1)
        for name, seconds in (("fast", 5e-6), ("slow", 8e-6))
    ]
    timer = Timer(clock, clock.sleep, random.Random(0))
    for one in field:
        timer.first_sample(one, None)
    assert timer.race(field, clock.now + 10).settled
    assert field[0].samples == [5e-6] * len(field[0].samples)
    assert field[1].left.startswith("1.6 to 1.6 times the best")
    assert calls["fast"] == len(field[0].samples)


def test_a_spoilt_round_counts_for_nobody() -> None:
    clock = Clock()
    seconds = {"a": 20e-3, "b": 30e-3}

    def sample(name: str) -> Callable[[int], float]:
        def take(loops: int) -> float:
            clock.spend(loops * seconds[name])
            return loops * seconds[name]

        return take

    field = [Contestant(name, sample(name), most_loops=1) for name in seconds]
    timer = Timer(clock, clock.sleep, random.Random(0))
    for one in field:
        timer.first_sample(one, None)
    said: list[Any] = []

    def spoilt() -> bool:
        """The second round is held up, and says so."""
        said.append(seconds["a"])
        held_up = seconds["a"] > 20e-3
        seconds["a"] = 90e-3 if len(said) == 1 else 20e-3
        return held_up

    assert timer.race(field, clock.now + 10, spoilt=spoilt).settled
    assert 90e-3 in said
    assert field[0].samples == [20e-3] * len(field[0].samples)
    assert len(field[0].samples) == len(field[1].samples) == 6
