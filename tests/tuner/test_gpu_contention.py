"""A GPU's clocks, its other users and the canary, as a made-up meter tells them; and NVML's own words for them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from autoconv.device import Device
from autoconv.tuner.gpu_contention import MOST_SPOILT, GpuSentry, Nvml
from tests.tuner.fakes import SPEC, Clock, World, winner

GPU = Device("cuda", "test", "sm_90", 1, 1)


class Gpu:
    """A made-up GPU: what holds its clocks down, for how long so far, who else uses it, and how long a song takes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.now: frozenset[str] = frozenset()
        self.so_far: dict[str, float] = {"heat": 0.0, "the power limit": 0.0}
        self.others: float | None = 0.0
        self.song_s = 50e-6

    def held_s(self) -> dict[str, float]:
        return dict(self.so_far)

    def holds(self) -> frozenset[str]:
        return self.now

    def others_share(self, since_us: int, own: Any) -> float | None:
        assert os.getpid() in own
        return self.others

    def sentry(self, *, metered: bool = True) -> GpuSentry:
        GpuSentry.quickest_s.pop(GPU, None)
        return GpuSentry(GPU, self.clock, self if metered else None, lambda: self.song_s)

    def round(self, sentry: GpuSentry, seconds: float = 0.01) -> bool:
        sentry.look()
        self.clock.spend(seconds)
        return sentry.spoilt()


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def test_an_undisturbed_race_has_no_complaint(gpu: Gpu) -> None:
    sentry = gpu.sentry()
    sentry.begin()
    sentry.begin_rounds()
    assert not any(gpu.round(sentry) for _ in range(8))
    assert sentry.complaint(0.01) == ""


def test_a_round_at_lower_clocks_is_spoilt_and_the_next_is_not(gpu: Gpu) -> None:
    sentry = gpu.sentry()
    sentry.begin()
    gpu.now = frozenset({"heat"})
    assert gpu.round(sentry)
    gpu.now = frozenset()
    assert not gpu.round(sentry)
    assert sentry.complaint(None) == ""


def test_clocks_held_down_between_two_looks_are_noticed(gpu: Gpu) -> None:
    sentry = gpu.sentry()
    sentry.begin()
    sentry.look()
    gpu.clock.spend(0.01)
    gpu.so_far["the power limit"] += 0.005
    assert sentry.spoilt()
    sentry.look()
    gpu.clock.spend(0.01)
    gpu.so_far["the power limit"] += 0.00005
    assert not sentry.spoilt(), "a two-hundredth of a round"


def test_a_device_that_is_always_at_its_limit_is_timed_as_it_is_and_said_to_be(gpu: Gpu) -> None:
    sentry = gpu.sentry()
    sentry.begin()
    gpu.now = frozenset({"the power limit"})
    spoilt = [gpu.round(sentry) for _ in range(MOST_SPOILT + 5)]
    assert spoilt == [True] * MOST_SPOILT + [False] * 5
    assert sentry.complaint(0.01) == f"clocks were held down by the power limit in {MOST_SPOILT + 5} rounds"


@pytest.mark.parametrize(
    ("share", "said"), [(0.02, ""), (None, ""), (0.4, "other processes used 40 % of the GPU's time")]
)
def test_other_processes(gpu: Gpu, share: float | None, said: str) -> None:
    sentry = gpu.sentry()
    sentry.begin()
    gpu.others = share
    assert sentry.complaint(None) == said


@pytest.mark.parametrize("metered", [True, False])
def test_a_slow_canary_without_anybody_to_say_why(gpu: Gpu, metered: bool) -> None:
    sentry = gpu.sentry(metered=metered)
    sentry.begin()
    gpu.round(sentry)
    gpu.song_s = 75e-6
    assert not any(gpu.round(sentry) for _ in range(5))
    assert sentry.complaint(0.01) == "a fixed number of clock cycles took 1.50 times the shortest ever"


def test_scatter(gpu: Gpu) -> None:
    sentry = gpu.sentry(metered=False)
    sentry.begin()
    assert "scatter" in sentry.complaint(4.0)


def test_spoilt_rounds_are_taken_again(world: World, gpu: Gpu) -> None:
    """A race in which the second and third round are spoilt: as many samples as in any other."""
    rounds = iter([False, True, True])

    class Watching(GpuSentry):
        def spoilt(self) -> bool:
            return next(rounds, False)

    world.add("test.fast", 20e-3)
    world.add("test.slow", 25e-3)
    world.watchman = lambda device: Watching(GPU, gpu.clock, gpu, lambda: gpu.song_s)
    result = world.tune(SPEC, budget_s=10)
    assert winner(result) == "test.fast"
    assert next(rounds, None) is None
    assert {len(row.samples) for row in result.rows} == {6}
    assert world.status(result) == {"test.fast": "ok", "test.slow": "ok"}


class _Error(Exception):
    pass


def _nvml(**functions: Any) -> Nvml:
    return Nvml(SimpleNamespace(NVMLError=_Error, **functions), "handle")


def _refuse(*arguments: Any) -> Any:
    raise _Error


def test_nvml_tells_what_holds_the_clocks_down() -> None:
    meter = _nvml(
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x1 | 0x4 | 0x20 | 0x40,
        nvmlDeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(violationTime=policy * 10**9),
    )
    assert meter.holds() == {"the power limit", "heat"}, "idleness is no reason"
    assert meter.held_s() == {"the power limit": 0.0, "heat": 1.0, "the board's limit": 3.0, "reliability": 5.0}
    old = _nvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x8)
    assert old.holds() == {"the hardware"}


def test_what_nvml_does_not_support_is_left_out() -> None:
    meter = _nvml(
        nvmlDeviceGetCurrentClocksEventReasons=_refuse,
        nvmlDeviceGetViolationStatus=_refuse,
        nvmlDeviceGetComputeRunningProcesses=_refuse,
    )
    assert (meter.holds(), meter.held_s(), meter.others_share(0, {1})) == (frozenset(), {}, None)
    assert _nvml().holds() == frozenset()


def test_nvml_tells_others_from_us_where_numbers_of_processes_mean_something() -> None:
    sample = SimpleNamespace
    samples = [
        sample(pid=1, timeStamp=50, smUtil=90),
        sample(pid=2, timeStamp=50, smUtil=20),
        sample(pid=2, timeStamp=60, smUtil=40),
        sample(pid=3, timeStamp=60, smUtil=5),
        sample(pid=4, timeStamp=10, smUtil=100),
    ]
    meter = _nvml(
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [sample(pid=pid) for pid in (1, 2, 3)],
        nvmlDeviceGetProcessUtilization=lambda handle, since: samples,
    )
    assert meter.others_share(20, {1}) == pytest.approx(0.35)
    assert meter.others_share(20, {77}) is None, "a container's own numbers are not among NVML's"
