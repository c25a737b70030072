"""Was the machine ours while we timed? What tells: the load of others, throttling, scatter, and a canary.

A race that was disturbed is no evidence to build on for good. What it timed is stored as `suspect`: it ranks, and is
raced again later. One slow round is no reason: rounds are paired, and deal with that by themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np

from autoconv.device import Device
from autoconv.tuner.workers import WORKERS

__all__ = ["Calm", "Load", "Sentry", "Watchman", "load_now", "of_scatter", "throttled_s"]

STEPS = 75  # times two passes over `ITEMS`: 0.1 ms where nothing disturbs
ITEMS = 4096  # float32, in a level-1 cache
WARM_UP = 2  # songs at a time, of which the quicker counts: the first wakes a core that slept
AT_FIRST = 5  # before a race: one of so many is undisturbed even on a busy machine, to compare the others with
SLOW = 2.5  # times the quickest song ever: a thread on the same core's other half makes it 2.0 times, our own pools do
LEAST_SONGS = 4  # fewer have no median worth the name
LEAST_WINDOW_S = 0.2  # the kernel counts load in ticks of 10 ms: 20 of them make a share
OTHERS = 0.45  # cores, of those that candidates use: up to 0.43 with little else to do, 0.50 to 0.74 beside one loop
THROTTLED = 0.01  # of the time: any longer and some samples were cut in two
SCATTER = 3.0  # times the median, of the middle half of the best's samples: 2.9 was seen when nothing else told


class Watchman(Protocol):
    """Who looks out during a race."""

    def begin(self) -> None:
        """The race begins."""

    def begin_rounds(self) -> None:
        """The candidates are tried; now they are timed round by round."""

    def look(self) -> None:
        """A round begins."""

    def spoilt(self) -> bool:
        """A round is over: whether what it timed must not count, and it should be taken again."""

    def complaint(self, spread: float | None) -> str:
        """What disturbed the race, of whose best the samples have this spread; empty for nothing."""


class Calm:
    """A `Watchman` who sees nothing: for races on a made-up clock."""

    def begin(self) -> None:
        """Nothing."""

    def begin_rounds(self) -> None:
        """Nothing."""

    def look(self) -> None:
        """Nothing."""

    def spoilt(self) -> bool:
        """Never."""
        return False

    def complaint(self, spread: float | None) -> str:
        """Never any."""
        return ""


@dataclass(frozen=True, slots=True)
class Load:
    """Readings at one moment, seconds each; what a system does not tell stays 0."""

    at: float
    all: float = 0.0  # that the cores this process may use have worked, for anybody
    own: float = 0.0  # that this process and its children have
    throttled: float = 0.0  # that its control group was held up


class Sentry:
    """A `Watchman` with a canary and an eye on the kernel's counters."""

    quickest_s = float("inf")  # song ever heard in this process

    def __init__(
        self, device: Device, clock: Callable[[], float] = time.perf_counter, read: Callable[[], Load] | None = None
    ) -> None:
        self._threads = device.threads
        self._clock = clock
        self._read = read or load_now
        self._spare = max(0, len(_cores()) - device.threads)  # cores that others may use without touching ours
        self._x = np.linspace(0.5, 1.0, ITEMS, dtype=np.float32)
        self._y = np.empty_like(self._x)
        self._songs: list[float] = []

    def begin(self) -> None:
        """Listen a few times before anything of ours runs, and read the counters."""
        self._start = self._rounds = self._read()
        for _ in range(AT_FIRST):
            self._sing()

    def begin_rounds(self) -> None:
        """Read the counters again."""
        self._rounds = self._read()

    def look(self) -> None:
        """Listen to the canary."""
        self._songs.append(self._sing())

    def spoilt(self) -> bool:
        """Never: what disturbs a processor disturbs single samples, and rounds are compared in pairs."""
        return False

    def complaint(self, spread: float | None) -> str:
        """The first that holds: load, throttling, canary, scatter."""
        now = self._read()
        since = self._rounds if now.at - self._rounds.at >= LEAST_WINDOW_S else self._start
        return self._of_load(since, now) or self._of_canary() or of_scatter(spread)

    def _of_load(self, since: Load, now: Load) -> str:
        window_s = now.at - since.at
        if window_s < LEAST_WINDOW_S:
            return ""
        others = ((now.all - since.all) - (now.own - since.own)) / window_s
        if others > self._spare + OTHERS:
            return f"other processes kept {others:.1f} of {self._spare + self._threads} cores busy"
        held_up = (now.throttled - since.throttled) / window_s
        if held_up > THROTTLED:
            return f"the control group was throttled for {100 * held_up:.0f} % of the time"
        return ""

    def _of_canary(self) -> str:
        if len(self._songs) < LEAST_SONGS:
            return ""
        slower = median(self._songs) / self.quickest_s
        return f"a fixed computation took {slower:.1f} times what it takes undisturbed" if slower > SLOW else ""

    def _sing(self) -> float:
        """Seconds of a fixed computation by one thread, in a level-1 cache."""
        song_s = min(self._once() for _ in range(WARM_UP))
        if 0 < song_s < Sentry.quickest_s:
            Sentry.quickest_s = song_s
        return song_s

    def _once(self) -> float:
        x, y = self._x, self._y
        started = self._clock()
        for _ in range(STEPS):
            np.multiply(x, x, out=y)
            np.add(y, x, out=y)
        return self._clock() - started


def of_scatter(spread: float | None) -> str:
    """A complaint about the spread of the best's samples; empty when there is none."""
    if spread is None or spread <= SCATTER:
        return ""
    return f"the best's samples scatter over {100 * spread:.0f} % of their median"


# What the kernel counts ----------------------------------------------------------------------------


def load_now() -> Load:
    """The counters, as far as this system has them."""
    times = os.times()
    children_s = times.children_user + times.children_system + WORKERS.processor_s()
    try:
        busy_s = _busy_s(_cores())
    except OSError:
        return Load(time.perf_counter(), throttled=throttled_s())
    return Load(time.perf_counter(), busy_s, time.process_time() + children_s, throttled_s())


def _cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _busy_s(cores: frozenset[int]) -> float:
    """Seconds that `cores` worked since the machine started; those stolen from a virtual machine too."""
    ticks = 0
    with open("/proc/stat") as file:
        for line in file:
            name, _, rest = line.partition(" ")
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _, _, irq, softirq, steal = map(int, rest.split()[:8])
                ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def throttled_s(root: str = "/sys/fs/cgroup", groups: str = "/proc/self/cgroup") -> float:
    """Seconds that this process's control group was held up by its quota; 0 where there is none."""
    for path, key, unit_s in (*_unified(root, groups), (f"{root}/cpu/cpu.stat", "throttled_time", 1e-9)):
        try:
            with open(path) as file:
                counters = dict(line.split() for line in file)
            return int(counters[key]) * unit_s
        except (OSError, KeyError, ValueError):
            continue
    return 0.0


def _unified(root: str, groups: str) -> Sequence[tuple[str, str, float]]:
    """Where version 2 keeps the counters: in the group's directory, or at the root inside a container."""
    own = ""
    with suppress(OSError), open(groups) as file:
        own = next((line.rstrip("\n")[3:] for line in file if line.startswith("0::")), "")
    return [(f"{root}{group}/cpu.stat", "throttled_usec", 1e-6) for group in (own.rstrip("/"), "")]
