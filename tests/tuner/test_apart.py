"""Each thread runtime timed in a worker of its own that stands still between turns; what happens there stays there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoconv.cache import MemoryStore
from autoconv.evidence import Limits, Measurement
from autoconv.implementation import Implementation
from autoconv.registry import Registry
from autoconv.tuner import Tuner, TuningResult, containment, crew, entrants, processes, workers
from autoconv.tuner.contention import Calm
from autoconv.tuner.timing import Timer
from autoconv.tuner.wire import Message
from autoconv.tuner.workers import WORKERS, Kind, Worker
from tests.tuner import broken
from tests.tuner.fakes import DEVICE, SPEC, winner

NAME = "tests.tuner.library"


class Ring:
    """A registry of a few implementations, a store, and what the workers were asked."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.store = MemoryStore()
        self.asked: list[tuple[Worker, str]] = []

    def tune(self, *implementations: Implementation, **options: Any) -> TuningResult:
        for one in implementations:
            self.registry.register(one, replace=True)
        tuner = Tuner(self.registry, self.store, watchman=lambda device: Calm())
        return tuner.tune(SPEC, DEVICE, Limits(), **{"budget_s": 5.0, **options})

    def row(self, name: str) -> Measurement:
        return [row for row in self.store.rows(str(SPEC), DEVICE.fingerprint) if row.choice.implementation == name][-1]


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ring]:
    monkeypatch.setattr(entrants, "LEAST_RUN_S", 0.4)
    monkeypatch.setattr(entrants, "UNKNOWN_RUN_S", 0.4)
    with WORKERS.lend(Kind()) as worker:
        worker.is_ready()  # that it starts is no part of a test's budget
    made, ask = Ring(), Worker.ask

    def spy(worker: Worker, message: Message, *descriptors: int) -> None:
        made.asked.append((worker, message["do"]))
        ask(worker, message, *descriptors)

    monkeypatch.setattr(Worker, "ask", spy)
    yield made
    for pid in [worker.pid for worker in WORKERS._all]:
        assert state(pid) != "T", "after a race all may run, and go when nobody needs them"


def state(pid: int) -> str:
    """The letter of a process's state; Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1e-3)


def test_a_pool_that_never_sleeps_disturbs_no_others_samples(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Kind, float]] = []
    hear = Worker.hear

    def watched(worker: Worker, *arguments: Any) -> Message:
        others = {one for one, _ in ring.asked if one is not worker}
        sampling = ring.asked[-1] == (worker, "sample")
        if sampling:
            until(lambda: all(state(one.pid) == "T" for one in others))
        before = sum(one.processor_s() for one in others)
        answer = hear(worker, *arguments)
        if sampling:
            seen.append((worker.kind, sum(one.processor_s() for one in others) - before))
        return answer

    monkeypatch.setattr(Worker, "hear", watched)
    ring.tune(broken.Spinner(), broken.Good())
    assert {kind for kind, _ in seen} == {Kind(), Kind(("spinning",))}
    assert all(used_s == 0 for _, used_s in seen)
    assert {ring.row(name).status for name in ("broken.spinner", "broken.not")} == {"ok"}
    for worker in {worker for worker, _ in ring.asked if worker.kind.runtimes}:
        WORKERS.end(worker)  # it would spin on


FAULTS = [
    (broken.AbortInARound, "crashed", r"its process ended by SIGABRT: free\(\): invalid pointer"),
    (broken.HangInARound, "timeout", r"not done after .* s; ended"),
    (broken.RaisesInARound, "failed", "ArithmeticError: tired"),
    (broken.BlowUpInARound, "oom", r"took \d+ MiB, \d+ MiB were allowed; ended"),
]


@pytest.mark.parametrize(("fault", "status", "reason"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("when", ["in the first sample", "in a round"])
def test_a_fault_while_timing_is_a_row_and_the_race_goes_on(
    ring: Ring, fault: type[broken.Good], status: str, reason: str, when: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if fault is broken.BlowUpInARound:
        monkeypatch.setattr(crew, "ROOM_BYTES", 256 << 20)
        monkeypatch.setattr(entrants, "LEAST_RUN_S", 30.0)
    monkeypatch.setenv("AUTOCONV_TEST_FAULT", str(tmp_path / "now"))
    monkeypatch.setattr(Calm, "look", lambda calm: (tmp_path / "now").touch())  # called when a round begins
    if when == "in the first sample":
        first_sample = Timer.first_sample
        monkeypatch.setattr(Timer, "first_sample", lambda *them: (tmp_path / "now").touch() or first_sample(*them))
    result = ring.tune(broken.Good(), fault(), budget_s=1.0 if fault is broken.HangInARound else 5.0)
    row = ring.row(fault.name)
    assert (row.status, bool(re.match(reason, row.reason))) == (status, True), row
    assert row.median_s is None
    assert winner(result) == "broken.not"
    assert len(ring.row("broken.not").samples) >= 1


def test_who_loses_is_never_imported_here(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.modules.pop(NAME, None)
    ring.tune(broken.Importing(), broken.Good())
    assert len(ring.row("broken.importing").samples) >= 1
    assert ring.row("broken.importing").status == "ok"
    assert NAME not in sys.modules
    result = ring.tune(only=["nobody"])
    assert NAME not in sys.modules
    assert winner(result) == "broken.not"
    ring.registry.unregister("broken.not")
    assert winner(ring.tune()) == "broken.importing"
    assert sys.modules.pop(NAME)


def test_the_winner_must_be_right_here_too(ring: Ring) -> None:
    with pytest.warns(RuntimeWarning, match="is wrong for"):
        result = ring.tune(broken.WrongAtHome(), broken.Importing())
    row = ring.row("broken.wrong_at_home")
    assert (row.status, row.median_s) == ("wrong", None)
    assert row.reason.startswith("right in a worker, but not here: error")
    assert winner(result) == "broken.importing"


def test_a_chains_pools_and_libraries_name_its_worker(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken.Rewrite, "runtime", "lower")
    ring.registry.register(broken.Importing())
    monkeypatch.setattr(broken.Importing, "runtime", "upper")
    ring.tune(broken.Rewrite())
    assert str(ring.row("broken.rewrite").choice) == "broken.rewrite > broken.importing"
    sampled = {worker.kind for worker, do in ring.asked if do == "sample"}
    assert sampled == {Kind(("upper",), (NAME,)), Kind(("lower", "upper"), (NAME,))}


def test_operands_that_do_not_fit_again_are_timed_on_here(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "available_bytes", lambda: 0)
    assert winner(ring.tune(broken.Good())) == "broken.not"
    assert {do for _, do in ring.asked} == {"try", "forget"}


def test_workers_forget_a_race(ring: Ring) -> None:
    ring.tune(broken.Good(), broken.Rewrite())
    assert [do for _, do in ring.asked].count("forget") == 2, "the race's and the child's"
    worker = ring.asked[-1][0]
    Ring.tune(ring, broken.Good(), retune=True)
    assert ring.asked[-1][0] is worker, "and are kept"


def test_where_forks_are_unsound_each_worker_is_an_interpreter(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    WORKERS.end_all()
    monkeypatch.setattr(processes, "FORKS", False)
    ring.tune(broken.Good(), broken.AbortLater())
    assert ring.row("broken.abort_later").status == "crashed"
    assert ring.row("broken.not").status == "ok"
    WORKERS.end_all()


def test_a_template_that_ended_is_replaced(ring: Ring) -> None:
    assert WORKERS._template._process is not None
    pid = WORKERS._template._process.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: state(pid) == "Z")
    with WORKERS.lend(Kind(("new",))) as worker:
        assert worker.is_ready()
    WORKERS.end_all()
    assert state(worker.pid) == "Z"


SCRIPT = """
import os
from autoconv.cache import MemoryStore
from autoconv.evidence import Limits
from autoconv.registry import Registry
from autoconv.tuner import Tuner
from autoconv.tuner.workers import WORKERS
from tests.tuner import broken
from tests.tuner.fakes import DEVICE, SPEC

def tune():
    registry = Registry()
    registry.register(broken.Good())
    registry.register(broken.Spinner())
    Tuner(registry, MemoryStore()).tune(SPEC, DEVICE, Limits(), budget_s=60.0)
    print(*(worker.pid for worker in WORKERS._all), WORKERS._template._process.pid, flush=True)

tune()
child = os.fork()
tune()
if child:
    os.waitpid(child, 0)
"""


def test_neither_a_fork_nor_an_exit_leaves_a_process_behind() -> None:
    """Parent and forked child have workers of their own; all end with them."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    lines = [set(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [len(line) for line in lines] == [3, 3, 3]
    assert len(set.union(*lines)) == 6, "the parent's twice, the child's"
    for pid in set.union(*lines):
        until(lambda pid=pid: state(pid) == "Z")  # type: ignore[misc]


def test_an_interrupt_ends_the_worker_that_was_asked(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    hear = Worker.hear

    def interrupted(worker: Worker, *arguments: Any) -> Message:
        if [do for _, do in ring.asked].count("sample") == 3:
            raise KeyboardInterrupt
        return hear(worker, *arguments)

    monkeypatch.setattr(Worker, "hear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ring.tune(broken.Good())
    worker = ring.asked[-1][0]
    assert state(worker.pid) == "Z"
    assert worker not in WORKERS._all
    monkeypatch.setattr(Worker, "hear", hear)
    assert winner(ring.tune(broken.Good())) == "broken.not"


def test_one_worker_runs_at_a_time_and_rest_stops_it() -> None:
    held = crew.Crew()
    with held.turn(Kind()) as one:
        one.is_ready()
    with held.turn(Kind(("other",))) as other:
        other.is_ready()
        until(lambda: state(one.pid) == "T")
    held.rest()
    until(lambda: state(other.pid) == "T")
    held.release()
    until(lambda: state(one.pid) != "T" and state(other.pid) != "T")
    assert workers.WORKERS.is_ready(Kind(("other",)))
