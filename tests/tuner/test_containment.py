"""First runs in a worker: every fault becomes a row, the race goes on, and this process does not notice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoconv.cache import MemoryStore
from autoconv.evidence import Limits, Measurement
from autoconv.implementation import Implementation
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner, TuningResult, containment, crew, entrants, workers
from autoconv.tuner.wire import Message
from autoconv.tuner.workers import WORKERS, Kind
from tests.tuner import broken
from tests.tuner.fakes import DEVICE, SPEC, winner

BUDGET_S = 1.0


class Ring:
    """A registry of a few implementations, and a store."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.store = MemoryStore()

    def tune(self, *implementations: Implementation, isolation: str = "process", **options: Any) -> TuningResult:
        for one in implementations:
            self.registry.register(one, replace=True)
        tuner = Tuner(self.registry, self.store, isolation=isolation)
        return tuner.tune(SPEC, DEVICE, options.pop("limits", Limits()), **{"budget_s": BUDGET_S, **options})

    def row(self, name: str) -> Measurement:
        return [row for row in self.store.rows(str(SPEC), DEVICE.fingerprint) if row.choice.implementation == name][-1]


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Ring:
    monkeypatch.setattr(entrants, "LEAST_RUN_S", 0.4)
    monkeypatch.setattr(entrants, "UNKNOWN_RUN_S", 0.4)
    with WORKERS.lend(Kind()) as worker:
        worker.is_ready()  # that it starts is no part of a test's budget
    return Ring()


FAULTS: list[tuple[type[broken.Good], str, str]] = [
    (broken.Segfault, "crashed", "its process ended by SIGSEGV"),
    (broken.Abort, "crashed", r"its process ended by SIGABRT: free\(\): invalid pointer"),
    (broken.AbortWhenPrepared, "crashed", "its process ended by SIGABRT"),
    (broken.AbortLater, "crashed", "its process ended by SIGABRT"),
    (broken.ExitAtOnce, "crashed", "its process ended with exit status 0"),
    (broken.FarWrite, "crashed", "its process ended by SIG(SEGV|BUS)"),
    (broken.FarWriteBefore, "crashed", "its process ended by SIG(SEGV|BUS)"),
    (broken.Babbler, "crashed", "wrote over what its process says"),
    (broken.Exit, "failed", "SystemExit: enough"),
    (broken.Hang, "timeout", "not done after 1 s; ended"),
    (broken.HangHoldingTheLock, "timeout", "not done after 1 s; ended"),
    (broken.OutOfMemory, "oom", "MemoryError: "),
    (broken.Killed, "oom", "killed by the system, as happens when memory runs out"),
    (broken.NearWrite, "wrong", "writes outside its result"),
    (broken.BesideAnOperand, "wrong", "writes outside an operand"),
    (broken.PastItsPiece, "wrong", "writes outside its workspace"),
    (broken.Undeclared, "wrong", "takes 65536 bytes of workspace, declares 0"),
    (broken.ChangedInput, "wrong", "changes its operands"),
    (broken.Wrong, "wrong", r"error .* at \(0, 0, 0, 0\)"),
    (broken.LeakedThreads, "failed", "leaves threads behind: 4 after 4 calls, more with each"),
    (broken.ManyThreads, "failed", r"leaves \d+ threads behind"),
]


@pytest.mark.filterwarnings("ignore:.* is wrong for:RuntimeWarning")
@pytest.mark.parametrize(("fault", "status", "reason"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_is_a_row_and_the_race_goes_on(ring: Ring, fault: type[broken.Good], status: str, reason: str) -> None:
    threads = threading.active_count()
    result = ring.tune(fault(), broken.Good())
    row = ring.row(fault.name)
    assert (row.status, bool(re.match(reason, row.reason))) == (status, True), row
    assert winner(result) == "broken.not"
    assert ring.row("broken.not").status == "ok"
    assert threading.active_count() == threads
    again = ring.tune()
    assert again.measured == 0, "what broke is not tried again"


def test_a_fault_of_the_first_candidate_is_survived_too(ring: Ring) -> None:
    result = ring.tune(broken.Good(), broken.Hang())
    assert ring.row("broken.hang").status == "timeout"
    assert winner(result) == "broken.not"


def test_memory_without_end_is_stopped(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "ROOM_BYTES", 256 << 20)
    monkeypatch.setattr(entrants, "LEAST_RUN_S", 30.0)
    ring.tune(broken.MemoryBlowUp(), broken.Good())
    row = ring.row("broken.memory_blow_up")
    assert row.status == "oom"
    assert re.match(r"took \d+ MiB, \d+ MiB were allowed; ended", row.reason)


def test_a_worker_that_closes_its_files_and_lives_on_is_ended(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DEATH_S", 0.2)
    ring.tune(broken.Closer(), broken.Good())
    row = ring.row("broken.closer")
    assert (row.status, row.reason) == ("crashed", "its process closed all files")


def test_memory_beyond_the_declared_counts_as_workspace(ring: Ring) -> None:
    result = ring.tune(broken.Greedy(), broken.Good(), budget_s=5.0)
    row = ring.row("broken.greedy")
    assert row.status == "ok"
    assert row.workspace_bytes == pytest.approx(broken.TAKEN_BYTES, rel=0.1)
    assert "MiB beyond what it declares" in row.reason
    assert ring.row("broken.not").workspace_bytes == 0
    assert "beyond" not in ring.row("broken.not").reason
    limited = ring.tune(limits=Limits(max_workspace=1 << 20))
    assert winner(limited) == "broken.not"
    assert result.decision is not None


def test_a_rewrite_has_its_first_run_with_its_child(ring: Ring, pids: list[int]) -> None:
    result = ring.tune(broken.Rewrite(), broken.Good(), budget_s=10.0)
    row = ring.row("broken.rewrite")
    assert row.status == "ok"
    assert str(row.choice) == "broken.rewrite > broken.not"
    lower = broken.Rewrite().child_spec(SPEC)
    assert [row.status for row in ring.store.rows(str(lower), DEVICE.fingerprint)] == ["ok"]
    assert len(pids) == 3, "the two of this problem and the one of the child's"
    assert len(set(pids)) == 1, "one worker for all"
    assert not result.partial


def test_a_crash_in_the_child_is_the_childs(ring: Ring) -> None:
    ring.tune(broken.Rewrite(), broken.Segfault(), broken.Good(), budget_s=10.0)
    lower = broken.Rewrite().child_spec(SPEC)
    found = {row.choice.implementation: row.status for row in ring.store.rows(str(lower), DEVICE.fingerprint)}
    assert found == {"broken.not": "ok", "broken.segfault": "crashed"}


# Who goes there ------------------------------------------------------------------------------------


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process of every trial, as they are made."""
    found: list[int] = []
    ask = workers.Worker.ask

    def spy(worker: workers.Worker, message: Message, *descriptors: int) -> None:
        if message["do"] == "try":
            found.append(worker.pid)
        ask(worker, message, *descriptors)

    monkeypatch.setattr(workers.Worker, "ask", spy)
    return found


def test_who_was_seen_to_run_is_tried_apart_too(ring: Ring, pids: list[int]) -> None:
    ring.tune(broken.Good())
    ring.tune(retune=True)
    assert len(pids) == 2


def test_without_isolation_there_is_no_worker(ring: Ring, pids: list[int]) -> None:
    result = ring.tune(broken.Good(), isolation="none")
    assert winner(result) == "broken.not"
    assert pids == []


def test_the_setting_reaches_the_tuner(pids: list[int]) -> None:
    import autoconv

    spec = "fprop n1c1 6x6 k1 3x3"
    with autoconv.settings(require=("numpy.direct",), isolation="none"):
        autoconv.tune([spec], budget_s=0.2)
    assert pids == []
    with autoconv.settings(require=("numpy.direct",)):
        autoconv.tune(["fprop n1c1 7x7 k1 3x3"], budget_s=0.2)
    assert len(pids) == 1


def test_an_object_that_a_fresh_interpreter_cannot_make_runs_here(ring: Ring, pids: list[int]) -> None:
    one = broken.ParentOnly("state")
    assert containment.address_of(one) is None
    result = ring.tune(one)
    assert winner(result) == "broken.parent_only"
    assert one.process == os.getpid()
    assert pids == []


def test_a_class_of_another_version_there_runs_here(ring: Ring, pids: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(broken.Good, "version", 7)
    assert winner(ring.tune(broken.Good())) == "broken.not"
    assert ring.row("broken.not").choice.version == 7


def test_a_library_is_not_waited_for_inside_a_call(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    import colorsys  # a module of no consequence, imported here as the rule wants

    assert colorsys
    monkeypatch.setattr(broken.Wrong, "libraries", lambda self, config: ("colorsys",))
    monkeypatch.setattr(broken.Wrong, "misbehave", broken.Good.misbehave)
    ring.tune(broken.Wrong(), broken.Good(), load_libraries=False)
    row = ring.row("broken.wrong")
    assert (row.status, row.median_s) == ("partial", None)
    assert "still being loaded" in row.reason
    until(lambda: WORKERS.is_ready(Kind((), ("colorsys",))))
    with pytest.warns(RuntimeWarning, match="is wrong for"):  # the worker imports the class afresh, without the patch
        ring.tune(load_libraries=False)
    assert ring.row("broken.wrong").status == "wrong"


@pytest.mark.parametrize("program", ["/nonexistent/python", "/bin/false"])
def test_without_a_worker_the_race_is_run_here_with_one_warning(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    WORKERS.end_all()
    monkeypatch.setattr(containment, "_complained", False)
    monkeypatch.setattr(sys, "executable", program)
    with pytest.warns(RuntimeWarning, match="first run in this process"):
        result = ring.tune(broken.Good())
    assert winner(result) == "broken.not"
    assert winner(Ring().tune(broken.Good())) == "broken.not"


# Life and death ------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, were it not yet buried by its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_worker_is_kept_and_a_dead_one_replaced(ring: Ring, pids: list[int]) -> None:
    ring.tune(broken.Rewrite(), broken.Good())
    assert len(set(pids)) == 1
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: is_gone(pids[0]))
    result = Ring().tune(broken.Good())
    assert winner(result) == "broken.not"
    assert len(set(pids)) == 2


def test_one_that_was_idle_for_long_is_replaced(ring: Ring, pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ring.tune(broken.Good())
    monkeypatch.setattr(workers, "IDLE_S", 0.0)
    Ring().tune(broken.Good())
    assert len(set(pids)) == 2
    assert is_gone(pids[0])


def test_threads_have_workers_of_their_own(pids: list[int]) -> None:
    results: list[TuningResult] = []
    threads = [threading.Thread(target=lambda: results.append(Ring().tune(broken.Good()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [winner(result) for result in results] == ["broken.not"] * 2


def test_a_forked_child_leaves_its_parents_worker_alone(ring: Ring, pids: list[int]) -> None:
    ring.tune(broken.Good())
    child = os.fork()
    if child == 0:
        os._exit(len(WORKERS._all))
    assert os.waitpid(child, 0)[1] == 0
    Ring().tune(broken.Good())
    assert len(set(pids)) == 1


SCRIPT = """
import sys, threading, time
print("begins", flush=True)
from autoconv.cache import MemoryStore
from autoconv.evidence import Limits
from autoconv.registry import Registry
from autoconv.tuner import Tuner, workers
from tests.tuner import broken
from tests.tuner.fakes import DEVICE, SPEC

ask = workers.Worker.ask
def spy(worker, message, *descriptors):
    ask(worker, message, *descriptors)
    if message["do"] == "try":
        print(worker.pid, flush=True)
workers.Worker.ask = spy
registry = Registry()
registry.register(getattr(broken, sys.argv[1])())
result = Tuner(registry, MemoryStore()).tune(SPEC, DEVICE, Limits(), budget_s=0.2)
print(result.decision.winner.choice)
"""


def start(fault: str) -> tuple[subprocess.Popen[str], int]:
    """A script without a guard around its `__main__` that tunes, and its worker's number."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), fault],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process, int(process.stdout.readline())


def test_a_script_needs_no_guard_and_leaves_no_worker() -> None:
    process, worker = start("Good")
    printed, errors = process.communicate(timeout=60)
    assert (printed, errors, process.returncode) == ("broken.not\n", "", 0)
    until(lambda: is_gone(worker))


@pytest.mark.parametrize(("fault", "number"), [("Hang", signal.SIGINT), ("HangHoldingTheLock", signal.SIGKILL)])
def test_whatever_ends_the_caller_ends_the_worker(fault: str, number: signal.Signals) -> None:
    process, worker = start(fault)
    assert not is_gone(worker)
    os.killpg(process.pid, number)  # as a terminal does, to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    until(lambda: is_gone(worker))


def test_what_the_caller_imports_from_is_where_the_worker_looks(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from tests.tuner.broken import Good\nclass Mine(Good):\n    name = 'else.where'\n"
    )
    sys.path.append(str(tmp_path))
    WORKERS.end_all()  # one that started before knows nothing of it
    try:
        import elsewhere  # type: ignore[import-not-found]

        ring = Ring()
        assert winner(ring.tune(elsewhere.Mine())) == "else.where"
    finally:
        sys.path.remove(str(tmp_path))
        WORKERS.end_all()


def test_what_is_measured_here_and_there_agrees() -> None:
    """A worker's verdict is the caller's: error and all."""
    here, there = Ring(), Ring()
    here.tune(broken.Good(), isolation="none")
    there.tune(broken.Good())
    assert here.row("broken.not").error == there.row("broken.not").error


@pytest.mark.parametrize(
    "text",
    [
        "fprop n2c3 5x6 k4 3x2 p1 nhwc",
        "wgrad n2c3 5x6 k4 3x2 p1 nhwc",
        "dgrad n2c3 5x6 k4 3x2 p1 s2 f64",
        "fprop n2c3 5x6 k4 3x2 p1 chwn",
        "fprop n2c2 7 k2 3 fixed",
        "fprop n1c2 4x5x6 k2 3x2x1 p1",
    ],
)
def test_any_layout_and_operation_is_shared_rightly(text: str, pids: list[int]) -> None:
    registry, store, spec = Registry(), MemoryStore(), ConvSpec.parse(text)
    registry.register(broken.Good())
    Tuner(registry, store).tune(spec, DEVICE, Limits(), budget_s=1.0)
    (row,) = store.rows(str(spec), DEVICE.fingerprint)
    assert row.status in ("ok", "partial")
    assert len(pids) == 1
