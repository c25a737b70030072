"""Timing as an experiment: samples that dwarf the timer, taken in rounds, compared in pairs.

Every contestant gives one sample per round, in a fresh random order, so that drift hits all alike and
the ratio of two contestants within a round is free of it. Who is hopeless leaves after one sample, who
is slower beyond doubt (`evidence.ratio_interval`) leaves as soon as that shows, and the race ends when the
best is separated from, or tied with, all that are left.

A contestant says itself how long so many of its calls take: by this process's clock, by a worker's, or by events of a
device.

Thread pools disturb one another: a pool that has just worked spins for a while. So contestants of one
runtime follow one another within a round. Then its worker is told to rest, or, where it works in this process, a
change of runtime waits until nothing spins any more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from statistics import median, quantiles

from autoconv.evidence import TIE_GAP, Choice, Measurement, ratio_interval

__all__ = [
    "HOPELESS",
    "MAX_ROUNDS",
    "Contestant",
    "Finish",
    "Timer",
    "clocked",
    "needed_s",
    "spread_of",
    "spread_of_best",
]

MIN_SAMPLE_S = 1e-3  # 2e4 times what one perf_counter call costs
FINAL_SAMPLE_S = 5e-3  # of those still in after `MIN_ROUNDS`, few by then: longer than a scheduler's slice
MAX_LOOPS = 100_000  # a call that takes no time at all is not timed for ever
WARM_LOOPS = 4  # from here on one untimed call, to wake pools and caches, costs less than a quarter sample
WARM_BELOW_S = 5e-3  # calls this short get one in any case: waking a pool takes 50 us, a percent of them
HOPELESS = 4.0  # slower than this times the best after one sample: no noise explains it
CONFIRM_BELOW_S = 20e-3  # but one scheduler tick does in a short sample: those are taken twice
MIN_ROUNDS = 6  # the fewest samples that `ratio_interval` draws a conclusion from
MAX_ROUNDS = 25  # what is not separated by then is a tie for all that a user can notice
SETTLE_S = 2e-3  # one step of waiting until the pools of another runtime have gone to sleep
SETTLED_SHARE = 0.2  # of one core, used by this process while the racing thread sleeps: nothing spins any more
MAX_SETTLE_STEPS = (
    25  # after a product OpenBLAS's threads were seen to spin for 40 ms, PyTorch's for 8, libgomp's for 5
)
TRIAL_SAMPLES = 4  # what verification, warm-up, calibration and the first sample cost, in samples
RETAKES = 3  # samples that are not positive finite numbers: the clock stepped


@dataclass(eq=False, slots=True)
class Contestant:
    """One candidate in a race. `samples[i]` is its time in round i; who has left has a shorter list.

    `sample` makes so many calls and gives the seconds that they took together (`clocked`, where they are made in this
    process). `most_loops` is 1 where each call must be prepared for. `rest` lets the process that makes the calls stand
    still until the next; None: it is this one, whose pools must be waited for. `allowed` says that it may win under the
    caller's limits: only such ones are measured against.
    """

    name: str
    sample: Callable[[int], float]
    runtimes: tuple[str, ...] = ()
    allowed: bool = True
    most_loops: int = MAX_LOOPS
    rest: Callable[[], None] | None = None
    loops: int = 1
    samples: list[float] = field(default_factory=list)
    left: str = ""  # why it takes no further part
    failure: BaseException | None = None

    @property
    def median_s(self) -> float:
        return median(self.samples)

    @property
    def runs(self) -> bool:
        """Whether it takes part in the next round."""
        return not self.left and self.failure is None and bool(self.samples)


@dataclass(frozen=True, slots=True)
class Finish:
    """How a race ended: rounds completed, and whether the winner was settled before the deadline."""

    rounds: int
    settled: bool


def needed_s(contestants: Sequence[Contestant]) -> float:
    """Seconds for trying one more like the fastest of those who run, and then all rounds that a conclusion takes."""
    samples_s = [one.samples[0] * one.loops for one in contestants if one.runs]
    if not samples_s:
        return 0.0
    return (MIN_ROUNDS - 1) * (sum(samples_s) + min(samples_s)) + TRIAL_SAMPLES * min(samples_s)


def clocked(call: Callable[[], None], clock: Callable[[], float]) -> Callable[[int], float]:
    """A `Contestant.sample` of calls in this process."""

    def sample(loops: int) -> float:
        started = clock()
        for _ in range(loops):
            call()
        return clock() - started

    return sample


class ClockError(Exception):
    """The clock gave no positive finite duration, repeatedly."""


class Timer:
    """Takes samples with an injected clock and runs races."""

    def __init__(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        rng: random.Random,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self.clock = clock
        self._sleep = sleep
        self._processor = processor
        self._rng = rng
        self._last: Contestant | None = None

    def first_sample(self, contestant: Contestant, best_s: float | None) -> None:
        """Round 0: choose the loop count and take the sample; who is hopeless beside `best_s` leaves."""
        self._settle(contestant)
        sample_s = self._calibrate(contestant)
        if best_s is not None and sample_s > HOPELESS * best_s:
            if sample_s * contestant.loops < CONFIRM_BELOW_S:
                sample_s = min(sample_s, self._sample(contestant))
            if sample_s > HOPELESS * best_s:
                contestant.left = f"{sample_s / best_s:.3g} times the best after one sample"
        contestant.samples.append(sample_s)

    def race(
        self,
        contestants: Sequence[Contestant],
        deadline: float,
        report: Callable[[int, Contestant], None] = lambda rounds, best: None,
        look: Callable[[], None] = lambda: None,
        spoilt: Callable[[], bool] = lambda: False,
    ) -> Finish:
        """Rounds until the winner is settled, or the deadline has passed, or `MAX_ROUNDS`. Round 0 was done.

        `report` hears who leads, and `look` is called, before each round; one that `spoilt` says so of afterwards
        counts for nothing.
        """
        rounds = 1
        while True:
            running = [one for one in contestants if one.runs]
            best = min((one for one in running if one.allowed), key=lambda one: one.median_s, default=None)
            if best is None:
                return Finish(rounds, settled=not running)
            report(rounds, best)
            if _settled(best, running) and rounds >= MIN_ROUNDS:
                return Finish(rounds, settled=True)
            if rounds >= MAX_ROUNDS:
                return Finish(rounds, settled=True)
            running = [one for one in running if one.runs]
            if self.clock() >= deadline:
                rivals = [one for one in running if one.allowed]
                return Finish(rounds, settled=rounds >= MIN_ROUNDS or len(rivals) < 2)
            look()
            for one in self._order(running):
                try:
                    self._settle(one)
                    one.samples.append(self._sample(one))
                except (Exception, SystemExit) as error:  # its own row tells; the others go on
                    one.failure = error
                if self.clock() >= deadline:
                    break
            else:
                if spoilt():
                    for one in running:
                        if one.failure is None:
                            one.samples.pop()
                    continue
                rounds += 1
                if rounds == MIN_ROUNDS:
                    for one in running:
                        one.loops = max(one.loops, min(one.most_loops, ceil(FINAL_SAMPLE_S / one.median_s)))

    def _order(self, running: Sequence[Contestant]) -> list[Contestant]:
        groups: dict[tuple[bool, tuple[str, ...]], list[Contestant]] = {}
        for one in running:
            groups.setdefault(_turn(one), []).append(one)
        order = list(groups.values())
        self._rng.shuffle(order)
        for group in order:
            self._rng.shuffle(group)
        return [one for group in order for one in group]

    def _settle(self, contestant: Contestant) -> None:
        """Before another runtime's turn, let the last one's worker rest, or wait until its pools have gone to sleep."""
        last, self._last = self._last, contestant
        if last is None or _turn(last) == _turn(contestant):
            return
        if last.rest is not None:
            last.rest()
        elif last.runtimes:
            self._wait_for_pools()

    def _wait_for_pools(self) -> None:
        for _ in range(MAX_SETTLE_STEPS):
            before = self._processor()
            self._sleep(SETTLE_S)
            if self._processor() - before < SETTLED_SHARE * SETTLE_S:
                return

    def _calibrate(self, contestant: Contestant) -> float:
        """Seconds per call, with a loop count at which a sample lasts `MIN_SAMPLE_S`."""
        while True:
            sample_s = self._sample(contestant)
            elapsed = sample_s * contestant.loops
            if elapsed >= MIN_SAMPLE_S and (contestant.loops > 1 or elapsed >= 10 * MIN_SAMPLE_S):
                return sample_s
            if elapsed >= MIN_SAMPLE_S:  # one call, perhaps a disturbed one
                sample_s = min(sample_s, self._sample(contestant))
                if sample_s >= MIN_SAMPLE_S:
                    return sample_s
                elapsed = sample_s
            if contestant.loops >= contestant.most_loops:
                return sample_s
            wanted = ceil(1.2 * MIN_SAMPLE_S * contestant.loops / elapsed)
            contestant.loops = min(contestant.most_loops, 100 * contestant.loops, max(2 * contestant.loops, wanted))

    def _sample(self, contestant: Contestant) -> float:
        """Seconds per call over one loop; a duration that cannot be is taken again."""
        loops = contestant.loops
        for _ in range(RETAKES):
            brief = contestant.samples and contestant.samples[0] < WARM_BELOW_S
            if loops >= WARM_LOOPS or (brief and contestant.most_loops > 1):
                contestant.sample(1)
            elapsed = contestant.sample(loops)
            if isfinite(elapsed) and elapsed > 0:
                return elapsed / loops
        raise ClockError(f"the clock gave {elapsed} s for {loops} calls, {RETAKES} times in a row")


def _turn(one: Contestant) -> tuple[bool, tuple[str, ...]]:
    """What those have in common who follow one another within a round."""
    return one.rest is not None, one.runtimes


def _settled(best: Contestant, running: Sequence[Contestant]) -> bool:
    """Let those leave that are slower beyond doubt; whether `best` is separated from or tied with the rest."""
    settled = True
    for one in running:
        if one is best:
            continue
        interval = ratio_interval(_as_row(one), _as_row(best))
        if interval is not None and interval[0] > 1:
            one.left = f"{interval[0]:.3g} to {interval[1]:.3g} times the best after {len(one.samples)} rounds"
        elif interval is None or interval[1] > 1 + TIE_GAP:
            settled &= not one.allowed  # one that may not win anyway keeps nobody waiting
    return settled


def _as_row(contestant: Contestant) -> Measurement:
    return Measurement("", "", Choice(contestant.name, 0), "ok", samples=tuple(contestant.samples), race="this")


def spread_of_best(contestants: Sequence[Contestant]) -> float | None:
    """The spread of the one that leads to the end; None without one, or with few samples."""
    finishers = [one for one in contestants if one.runs and one.allowed]
    return spread_of(min(finishers, key=lambda one: one.median_s).samples) if finishers else None


def spread_of(samples: Sequence[float]) -> float | None:
    """Interquartile range over the median, from four samples on."""
    if len(samples) < 4:
        return None
    lower, middle, upper = quantiles(samples, n=4)
    return (upper - lower) / middle
