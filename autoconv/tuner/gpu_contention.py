"""Was the GPU ours while we timed, and did it keep its clocks? NVML tells where it can be asked, else a canary alone.

A round during which the clocks were held down (heat, power, a brake of the hardware's) is taken again. A race in which
that did not help, beside which other processes worked on the device, or whose canary sang slowly, is `suspect`.

NVML comes with the driver; `nvidia-ml-py` is how Python asks it. Without it nobody tells how long the clocks were held
down, or who else works there: what remains is the canary, a fixed number of the device's own clock cycles.
Sources: NVML's reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from statistics import median
from typing import Any, ClassVar, Protocol

from autoconv.device import Device
from autoconv.tuner.contention import of_scatter
from autoconv.tuner.cuda_timing import Stopwatch
from autoconv.tuner.workers import WORKERS

__all__ = ["GpuSentry", "Meter", "Nvml", "open_nvml"]

REASONS = {
    0x04: "the power limit",
    0x08: "the hardware",
    0x20: "heat",
    0x40: "heat",
    0x80: "the power brake",
}
"""Bits of nvmlClocksEventReasons that mean clocks below what was asked for, and what holds them down."""
POLICIES = {0: "the power limit", 1: "heat", 3: "the board's limit", 5: "reliability"}
"""Values of nvmlPerfPolicyType whose counters say for how long."""

HELD_SHARE = 0.01  # of a round: any longer and some samples were at other clocks
MOST_SPOILT = 12  # rounds taken again: a device that is always at its limit is timed as it is, and said to be
OTHERS_SHARE = 0.05  # of the multiprocessors' time, used by other processes
SLOW = 1.25  # times the quickest song ever: clocks within one boost range differ by less
LEAST_SONGS = 4  # fewer have no median worth the name


class Meter(Protocol):
    """What NVML tells of one device."""

    def held_s(self) -> dict[str, float]:
        """Seconds, since the driver was loaded, that something held the clocks down, by what it was."""

    def holds(self) -> frozenset[str]:
        """What holds the clocks down at this moment."""

    def others_share(self, since_us: int, own: Collection[int]) -> float | None:
        """Share of the device's time that processes other than `own` used since then; None when it cannot be told."""


class GpuSentry:
    """A `Watchman` for a GPU; `meter` and `song` are NVML and the stopwatch's canary unless a test has others."""

    quickest_s: ClassVar[dict[Device, float]] = {}  # song ever heard in this process

    def __init__(
        self,
        device: Device,
        clock: Callable[[], float] = time.perf_counter,
        meter: Meter | None = None,
        song: Callable[[], float] | None = None,
    ) -> None:
        self._device = device
        self._clock = clock
        self._meter = open_nvml(device) if meter is None and song is None else meter
        self._song = song
        self._songs: list[float] = []
        self._rounds = self._spoilt = 0
        self._spoiled_by: set[str] = set()

    def begin(self) -> None:
        """The race begins."""
        self._began_us = int(1e6 * time.time())
        if self._song is None:
            self._song = Stopwatch(self._device, flush=False).song

    def begin_rounds(self) -> None:
        """The candidates are tried; now they are timed."""
        self._began_us = int(1e6 * time.time())

    def look(self) -> None:
        """A round begins: read the meter, and listen to the canary."""
        assert self._song is not None, "begin() comes first"
        song_s = self._song()
        self._songs.append(song_s)
        if song_s > 0:
            self.quickest_s[self._device] = min(song_s, self.quickest_s.get(self._device, song_s))
        self._round_at = self._clock()
        self._held = self._meter.held_s() if self._meter else {}
        self._holds = self._meter.holds() if self._meter else frozenset()

    def spoilt(self) -> bool:
        """A round is over: whether it should be taken again, because something held the clocks down."""
        self._rounds += 1
        causes = self._causes()
        if not causes:
            return False
        self._spoilt += 1
        self._spoiled_by |= causes
        return self._spoilt <= MOST_SPOILT

    def complaint(self, spread: float | None) -> str:
        """The first that holds: clocks held down throughout, other processes, canary, scatter."""
        return self._of_clocks() or self._of_others() or self._of_canary() or of_scatter(spread)

    def _causes(self) -> set[str]:
        if self._meter is None:
            return set()
        room_s = HELD_SHARE * (self._clock() - self._round_at)
        causes = {what for what, held_s in self._meter.held_s().items() if held_s - self._held.get(what, 0.0) > room_s}
        return causes | self._holds | self._meter.holds()

    def _of_clocks(self) -> str:
        if self._spoilt <= MOST_SPOILT:
            return ""
        return f"clocks were held down by {' and '.join(sorted(self._spoiled_by))} in {self._spoilt} rounds"

    def _of_others(self) -> str:
        if self._meter is None:
            return ""
        share = self._meter.others_share(self._began_us, {os.getpid(), *WORKERS.pids()})
        if share is None or share <= OTHERS_SHARE:
            return ""
        return f"other processes used {100 * share:.0f} % of the GPU's time"

    def _of_canary(self) -> str:
        quickest_s = self.quickest_s.get(self._device)
        if len(self._songs) < LEAST_SONGS or not quickest_s:
            return ""
        slower = median(self._songs) / quickest_s
        return f"a fixed number of clock cycles took {slower:.2f} times the shortest ever" if slower > SLOW else ""


def open_nvml(device: Device) -> Nvml | None:
    """NVML's view of `device`; None where `nvidia-ml-py` is not installed, or the driver's part of it is missing."""
    try:
        import cupy
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()  # counted by NVML itself; never shut down, since others here may use it
        return Nvml(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(cupy.cuda.Device(device.index).pci_bus_id))
    except pynvml.NVMLError:
        return None


class Nvml:
    """A `Meter` by NVML. What a device or driver does not support it leaves out."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        # renamed in driver 535; the old name goes with CUDA 14
        self._reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(
            nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None
        )

    def held_s(self) -> dict[str, float]:
        """Seconds, by what held the clocks down."""
        found: dict[str, float] = {}
        for policy, cause in POLICIES.items():
            try:
                found[cause] = 1e-9 * self._nvml.nvmlDeviceGetViolationStatus(self._handle, policy).violationTime
            except self._nvml.NVMLError:
                continue
        return found

    def holds(self) -> frozenset[str]:
        """What holds the clocks down now."""
        try:
            bits = self._reasons(self._handle) if self._reasons else 0
        except self._nvml.NVMLError:
            return frozenset()
        return frozenset(cause for bit, cause in REASONS.items() if bits & bit)

    def others_share(self, since_us: int, own: Collection[int]) -> float | None:
        """Mean share of the multiprocessors' time that others used."""
        try:
            here = {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
            if here.isdisjoint(own):  # a container's numbers are not the system's: nobody can be told apart
                return None
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, since_us)
        except self._nvml.NVMLError:  # not supported, or no process did anything
            return None
        shares: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid not in own and sample.timeStamp >= since_us:
                shares.setdefault(sample.pid, []).append(sample.smUtil)
        return sum(sum(each) / len(each) for each in shares.values()) / 100
