"""What disturbs a race makes its rows `suspect`, with the reason; an undisturbed race has none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoconv.tuner import contention
from autoconv.tuner.contention import Calm, Load, Sentry, load_now, throttled_s
from autoconv.tuner.workers import WORKERS, Kind
from tests.tuner.fakes import DEVICE, Clock, World, winner

CORES = len(os.sched_getaffinity(0))
WIDE = replace(DEVICE, cores=CORES, threads=CORES)


class Machine:
    """A made-up machine: `busy` cores kept by others, a canary that sings for `song_s`, a group held up by `quota`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.own_s = self.others_s = self.throttled_s = 0.0
        self.songs = [1e-4]

    def read(self) -> Load:
        return Load(self.clock(), self.own_s + self.others_s, self.own_s, self.throttled_s)

    def ticks(self) -> float:
        """Each song takes the next of `songs`, the last for ever."""
        song_s = self.songs.pop(0) if len(self.songs) > 1 else self.songs[0]
        self.clock.spend(song_s / 2)
        return self.clock()

    def sentry(self, threads: int = CORES) -> Sentry:
        return Sentry(replace(WIDE, threads=threads), self.ticks, self.read)

    def spend(self, seconds: float, others: float = 0.0, throttled: float = 0.0) -> None:
        self.clock.spend(seconds)
        self.own_s += seconds
        self.others_s += others * seconds
        self.throttled_s += throttled * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(Sentry, "quickest_s", float("inf"))
    return Machine()


def watched(sentry: Sentry, machine: Machine, rounds_s: float = 1.0, **disturbance: float) -> str:
    """A race of ten rounds."""
    sentry.begin()
    machine.spend(1.0)
    sentry.begin_rounds()
    for _ in range(10):
        sentry.look()
        machine.spend(rounds_s / 10, **disturbance)
    return sentry.complaint(0.05)


def test_a_quiet_machine_has_nothing_to_complain_about(machine: Machine) -> None:
    assert watched(machine.sentry(), machine) == ""
    assert watched(machine.sentry(), machine, others=0.2) == ""


def test_load_of_others_shows(machine: Machine) -> None:
    assert watched(machine.sentry(), machine, others=1.0) == f"other processes kept 1.0 of {CORES} cores busy"


@pytest.mark.skipif(CORES < 2, reason="needs a core to spare")
def test_others_may_use_the_cores_that_candidates_leave(machine: Machine) -> None:
    assert watched(machine.sentry(threads=CORES - 1), machine, others=1.0) == ""
    assert "other processes kept 2.0" in watched(machine.sentry(threads=CORES - 1), machine, others=2.0)


def test_rounds_too_short_for_ticks_are_judged_with_what_went_before(machine: Machine) -> None:
    assert watched(machine.sentry(), machine, rounds_s=0.01, others=5.0) == ""
    sentry = machine.sentry()
    sentry.begin()
    machine.spend(0.01, others=20.0)
    assert sentry.complaint(None) == "", "one tick of the kernel's clock is no share of anything"


def test_a_throttled_group_shows(machine: Machine) -> None:
    said = watched(machine.sentry(), machine, throttled=0.3)
    assert said.startswith("the control group was throttled for 3")


def test_a_slow_canary_shows_against_the_quickest_ever(machine: Machine) -> None:
    assert watched(machine.sentry(), machine) == ""
    machine.songs = [3e-4]
    assert watched(machine.sentry(), machine) == "a fixed computation took 3.0 times what it takes undisturbed"
    machine.songs = [2e-4]  # our own pools on the core's other half do as much
    assert watched(machine.sentry(), machine) == ""


def test_one_slow_round_is_no_reason(machine: Machine) -> None:
    machine.songs = [1e-4] * 30 + [9e-4] * 6 + [1e-4]
    assert watched(machine.sentry(), machine) == ""


def test_scatter_of_the_best_shows(machine: Machine) -> None:
    sentry = machine.sentry()
    sentry.begin()
    assert sentry.complaint(4.0) == "the best's samples scatter over 400 % of their median"
    assert sentry.complaint(None) == sentry.complaint(0.3) == ""


# What becomes of it ----------------------------------------------------------------------------------


class Alarmed(Calm):
    """A watchman who always finds something."""

    def complaint(self, spread: float | None) -> str:
        return "somebody knocked"


def test_rows_of_a_disturbed_race_are_suspect_and_rank(world: World) -> None:
    world.add("test.fast", 1e-3)
    world.add("test.slow", 2e-3)
    world.add("test.hopeless", 1.0, estimate=1.0)
    world.watchman = lambda device: Alarmed()
    result = world.tune()
    assert winner(result) == "test.fast"
    found = {row.choice.implementation: (row.status, row.reason.split(";")[0]) for row in result.rows}
    assert found["test.fast"] == found["test.slow"] == ("suspect", "somebody knocked")
    assert found["test.hopeless"][0] == "skipped", "never timed, so nothing to doubt"


def test_suspect_rows_are_raced_again_and_settled(world: World) -> None:
    world.add("test.fast", 1e-3)
    world.add("test.slow", 2e-3)
    world.watchman = lambda device: Alarmed()
    world.tune()
    world.watchman = lambda device: Calm()
    result = world.tune()
    assert result.measured == 2
    assert world.status(result) == {"test.fast": "ok", "test.slow": "ok"}
    assert world.tune().measured == 0


def test_a_disturbed_race_takes_nothing_from_what_is_settled(world: World) -> None:
    settled = world.add("test.settled", 2e-3)
    world.tune()
    world.watchman = lambda device: Alarmed()
    settled.seconds = 5e-3
    world.add("test.new", 1e-3)
    result = world.tune()
    assert world.status(result) == {"test.settled": "ok", "test.new": "suspect"}
    assert next(row for row in result.rows if row.status == "ok").median_s == pytest.approx(2e-3)


def test_a_disturbed_retune_says_so(world: World) -> None:
    world.add("test.only", 1e-3)
    world.tune()
    world.watchman = lambda device: Alarmed()
    assert world.status(world.tune(retune=True)) == {"test.only": "suspect"}


# What the kernel counts ------------------------------------------------------------------------------


def test_own_work_is_not_the_work_of_others() -> None:
    WORKERS.end_all()  # some may still be starting
    before = load_now()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    child = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", child], check=True)
    after = load_now()
    assert after.own - before.own == pytest.approx(0.6, abs=0.15)
    assert after.all - before.all >= 0.5


def test_workers_count_as_own(tmp_path: Path) -> None:
    with WORKERS.lend(Kind()) as worker:
        worker.is_ready()
        before = load_now().own
        assert WORKERS.processor_s() > 0.02, "importing NumPy takes more"
        assert WORKERS.processor_s() >= worker.processor_s()
    WORKERS.end_all()
    assert load_now().own >= before - 0.03, "its time is that of a child that was waited for"


@pytest.mark.parametrize(
    ("group", "file", "text", "seconds"),
    [
        ("0::/user/one\n", "user/one/cpu.stat", "usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000\n", 2.5),
        ("0::/gone\n", "cpu.stat", "nr_throttled 3\nthrottled_usec 500000\n", 0.5),
        ("4:cpu:/x\n", "cpu/cpu.stat", "nr_throttled 3\nthrottled_time 1500000000\n", 1.5),
        ("0::/\n", "cpu.stat", "usage_usec 9\n", 0.0),
        ("", "other", "", 0.0),
    ],
)
def test_throttling_is_read_of_either_version(tmp_path: Path, group: str, file: str, text: str, seconds: float) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    groups = tmp_path / "groups"
    groups.write_text(group)
    assert throttled_s(str(tmp_path), str(groups)) == seconds


def test_without_the_kernels_counters_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(cores: frozenset[int]) -> float:
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(contention, "_busy_s", missing)
    load = load_now()
    assert (load.all, load.own) == (0.0, 0.0)
