"""Timing on a GPU: the device's own events around one run, on the caller's current stream.

A sample is, in the order of the stream: a memset that drives the operands out of the L2 cache, a kernel that holds the
device until the host has enqueued all that follows, an event, one run, an event. So it is the device's time, whatever
launching costs the host. What enqueueing costs is measured beside it and kept apart: whoever waits for every result
pays it too.

An idle device runs at a fraction of its clock, so one that has had nothing to do for a while is given the candidate's
own work for a tenth of a second before it is timed. Nothing here changes a setting of the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from statistics import median
from typing import Any

import numpy as np

from autoconv.device import Device

__all__ = ["SOURCE", "EventSampler", "Stopwatch"]

FLUSH_TIMES = 4  # the L2 cache's size: its replacement is not strictly the oldest first, and two halves keep copies
UNKNOWN_L2_BYTES = 64 << 20  # where the device does not tell
HOLD_TIMES = 1.5  # the usual time to enqueue: one that takes longer shows, and is taken again
HOLD_MORE_S = 20e-6  # for the events themselves
MOST_HOLD_S = 10e-3  # a run that takes the host longer than this is slow for that reason
RETAKES = 2  # samples whose launches came too late
ENQUEUES = 5  # times a run is enqueued on an idle device, to know how long that takes
LEARN_S = 0.1  # but no longer than this: a slow run's launches are nothing beside it
IDLE_S = 0.25  # after so long without work the clocks may have gone down
WARM_S = 0.1  # of work until they are up again: idle 345 MHz, busy 1980 MHz on an H200
BATCH = 16  # runs enqueued at a time while warming up
SONG_CYCLES = 100_000  # of the canary: 50 us at 2 GHz, a hundred times what an event resolves

SOURCE = r"""
// Keeps one multiprocessor busy for `cycles` of its clock. One block of one thread; no memory.
extern "C" __global__ void hold(long long cycles)
{
    const long long start = clock64();
    while (clock64() - start < cycles) {
    }
}
"""


class Stopwatch:
    """Takes samples on one device, each on the stream that is current by then. Needs CuPy.

    With `flush` it keeps a buffer of `FLUSH_TIMES` the L2 cache's size for as long as it lives, and raises
    `MemoryError` where that cannot be had; without, the cache holds what the run before left there.
    """

    def __init__(self, device: Device, clock: Callable[[], float] = time.perf_counter, *, flush: bool = True) -> None:
        import cupy

        self.clock = clock
        self._cuda: Any = cupy.cuda
        self._device: Any = cupy.cuda.Device(device.index)
        with self._device:
            traits = self._device.attributes
            self._cycles_per_s = 1e3 * traits["ClockRate"]  # the highest: at a lower one it holds longer
            self._flush_bytes = FLUSH_TIMES * (traits.get("L2CacheSize") or UNKNOWN_L2_BYTES)
            self._flush: Any = cupy.cuda.alloc(self._flush_bytes) if flush else None
            self._hold: Any = cupy.RawModule(code=SOURCE, options=("-std=c++17",)).get_function("hold")
            self._begin, self._end = cupy.cuda.Event(), cupy.cuda.Event()
        self._busy_at = -inf

    def time(self, call: Callable[[], None], hold_s: float) -> tuple[float, float]:
        """Seconds that one call takes the device, from a cold L2 cache, and seconds until the host has enqueued it."""
        with self._device:
            stream = self._cuda.get_current_stream()
            if self._flush is not None:
                self._flush.memset_async(0, self._flush_bytes, stream)
            self._hold((1,), (1,), (np.int64(hold_s * self._cycles_per_s),))
            self._begin.record(stream)
            started = self.clock()
            call()
            enqueue_s = self.clock() - started
            return self._elapsed_s(stream), enqueue_s

    def enqueue_s(self, call: Callable[[], None]) -> float:
        """Seconds that enqueueing one call takes the host while the device has nothing else to do."""
        with self._device:
            stream = self._cuda.get_current_stream()
            taken: list[float] = []
            started = self.clock()
            while len(taken) < ENQUEUES and (not taken or self.clock() - started < LEARN_S):
                before = self.clock()
                call()
                taken.append(self.clock() - before)
                stream.synchronize()
        self._busy_at = self.clock()
        return median(taken)

    def wake(self, call: Callable[[], None]) -> None:
        """Give a device that was idle work until its clocks are up."""
        started = self.clock()
        if started - self._busy_at < IDLE_S:
            return
        with self._device:
            stream = self._cuda.get_current_stream()
            while self.clock() - started < WARM_S:
                for _ in range(BATCH):
                    call()
                    if self.clock() - started >= WARM_S:
                        break  # a run that takes long is not enqueued sixteen times
                stream.synchronize()
        self._busy_at = self.clock()

    def song(self) -> float:
        """Seconds of a fixed number of clock cycles: longer when the clock is lower, or when others use the device."""
        with self._device:
            stream = self._cuda.get_current_stream()
            self._begin.record(stream)
            self._hold((1,), (1,), (np.int64(SONG_CYCLES),))
            return self._elapsed_s(stream)

    def _elapsed_s(self, stream: Any) -> float:
        self._end.record(stream)
        self._end.synchronize()
        self._busy_at = self.clock()
        return 1e-3 * float(self._cuda.get_elapsed_time(self._begin, self._end))


class EventSampler:
    """What a `Contestant` samples itself with: seconds of the device for so many calls, each from a cold L2 cache.

    `enqueue_s` is the median time that enqueueing one call took the host, None before the first sample.
    """

    def __init__(self, stopwatch: Stopwatch, call: Callable[[], None]) -> None:
        self._stopwatch = stopwatch
        self._call = call
        self._usual_s: float | None = None
        self._enqueued: list[float] = []

    @property
    def enqueue_s(self) -> float | None:
        """Seconds of the host's per call."""
        return median(self._enqueued) if self._enqueued else None

    def __call__(self, loops: int) -> float:
        """Seconds that `loops` calls take the device."""
        self._stopwatch.wake(self._call)
        if self._usual_s is None:
            self._usual_s = self._stopwatch.enqueue_s(self._call)
            self._enqueued.append(self._usual_s)
        return sum(self._one(self._usual_s) for _ in range(loops))

    def _one(self, usual_s: float) -> float:
        """One call; taken again when its launches came later than the device was held for them."""
        hold_s = min(MOST_HOLD_S, HOLD_TIMES * usual_s + HOLD_MORE_S)
        for _ in range(RETAKES):
            seconds, enqueue_s = self._stopwatch.time(self._call, hold_s)
            if enqueue_s <= hold_s:
                self._enqueued.append(enqueue_s)
                break
            if hold_s >= MOST_HOLD_S:
                break
            hold_s = min(MOST_HOLD_S, HOLD_TIMES * enqueue_s + HOLD_MORE_S)
        return seconds
