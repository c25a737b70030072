"""Many processes and threads on one database; processes that die at the worst moment."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from autoconv.cache import MemoryStore, SqlStore, locks, open_store
from tests.cache.helpers import DEVICE, OTHER_DEVICE, SPEC, candidate, finish, row, run_python, start_python


def check_integrity(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_eight_processes_add_overlapping_specs_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.sqlite"
    script = """
        import sys
        from autoconv.cache import database, open_store
        from tests.cache.helpers import DEVICE, candidate
        path, me = sys.argv[1], int(sys.argv[2])
        store = open_store(path)
        print("ready", flush=True)
        sys.stdin.readline()
        for turn in range(6):
            for spec in (f"spec {turn}", f"spec {(turn + me) % 6}"):
                store.miss(spec, DEVICE, "asked")
                store.rows(spec, DEVICE)
                store.add([candidate(f"impl.{n}", spec=spec, race=f"{me}.{turn}") for n in range(3)])
        assert store.describe()["degraded"] is None, store.describe()
        assert store.describe()["pending"] == 0
    """
    processes = [start_python(script, path, number) for number in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    check_integrity(path)
    store = open_store(str(path))
    found = Counter((each.spec, each.race) for spec, device in store.all_specs() for each in store.rows(spec, device))
    expected: Counter[tuple[str, str]] = Counter()
    for me in range(8):
        for turn in range(6):
            for spec in (f"spec {turn}", f"spec {(turn + me) % 6}"):
                expected[spec, f"{me}.{turn}"] += 3
    assert found == expected
    assert store.misses() == []  # each was settled by an add that followed it


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "m.sqlite"))

    def work(me: int) -> None:
        for turn in range(10):
            store.add([candidate(f"a.b{me}", race=f"{turn}")])
            assert any(each.race == f"{turn}" for each in store.rows(SPEC, DEVICE))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.rows(SPEC, DEVICE)) == 40


ADD_FOR_EVER = """
    import itertools, sys
    from autoconv.cache import database, open_store
    from tests.cache.helpers import candidate
    store = open_store(sys.argv[1])
    for number in itertools.count():
        store.add([candidate(f"impl.{n}", race=f"{sys.argv[2]}.{number}") for n in range(5)])
        print(number, flush=True)
"""


def test_kill_9_while_adding_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    chance = random.Random(9)
    reported: dict[str, int] = {}
    for life in range(4):
        process = start_python(ADD_FOR_EVER, path, life)
        assert process.stdout is not None
        for _ in range(10):
            reported[str(life)] = int(process.stdout.readline())
        time.sleep(chance.random() * 0.02)  # somewhere in a transaction
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        reported[str(life)] = max([reported[str(life)], *map(int, rest)])
    check_integrity(path)
    races = Counter(each.race for each in open_store(str(path)).rows(SPEC, DEVICE))
    assert set(races.values()) == {5}  # all or none of each add
    for name, last in reported.items():
        assert all(f"{name}.{number}" in races for number in range(last + 1))
    store = open_store(str(path))
    store.add([row(race="after")])
    assert store.rows(SPEC, DEVICE)[-1] == row(race="after")


MEASURE = """
    import sys, time
    from autoconv.cache import open_store
    store = open_store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(10):
        with store.measuring(sys.argv[2]), store.measuring(sys.argv[2]), open(sys.argv[3], "a") as log:
            log.write("in ")
            log.flush()
            time.sleep(0.002)
            log.write("out ")
"""


def test_one_process_measures_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_python(MEASURE, tmp_path / "m.sqlite", DEVICE, log) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    assert log.read_text() == "in out " * 30


def test_a_killed_process_gives_its_turn_back(tmp_path: Path) -> None:
    script = """
        import sys, time
        from autoconv.cache import open_store
        with open_store(sys.argv[1]).measuring(sys.argv[2]):
            print("held", flush=True)
            time.sleep(60)
    """
    process = start_python(script, tmp_path / "m.sqlite", DEVICE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    taken = threading.Event()

    def measure() -> None:
        with open_store(str(tmp_path / "m.sqlite")).measuring(DEVICE):
            taken.set()

    thread = threading.Thread(target=measure)
    thread.start()
    assert not taken.wait(0.2)
    process.send_signal(signal.SIGKILL)
    assert taken.wait(30)
    thread.join()
    process.communicate()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_threads_take_turns_measuring_one_device(tmp_path: Path, kind: str) -> None:
    def store() -> SqlStore | MemoryStore:
        return open_store(":memory:" if kind == "memory" else str(tmp_path / "m.sqlite"))

    log = []

    def measure() -> None:
        for _ in range(5):
            with store().measuring(DEVICE), store().measuring(DEVICE):  # the same thread may enter again
                log.append("in")
                time.sleep(0.001)
                log.append("out")

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    with store().measuring(OTHER_DEVICE):  # another device waits for nobody
        for thread in threads:
            thread.join()
    assert log == ["in", "out"] * 20


def test_where_no_lock_file_can_be_made_threads_still_take_turns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lock = locks.FileLock(tmp_path / "file" / "lock")
    with lock.held():
        other = threading.Thread(target=lambda: lock.held().__enter__(), daemon=True)
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join(10)
    assert not other.is_alive()


@pytest.mark.parametrize("url", ["{}", "sqlite:///{}?timeout=10"], ids=["file", "url"])
def test_a_forked_child_uses_a_store_opened_before(tmp_path: Path, url: str) -> None:
    script = """
        import os, sys, threading
        from autoconv.cache import open_store
        from tests.cache.helpers import DEVICE, SPEC, candidate
        store = open_store(sys.argv[1])
        store.add([candidate("before.fork")])
        store.rows(SPEC, DEVICE)
        busy = threading.Event()
        def hold():  # a thread that is in the middle of something while the process forks
            with store._lock, store._pending._lock, store.measuring("busy"):
                busy.set()
                done.wait()
        done = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        busy.wait()
        with store.measuring(DEVICE):
            child = os.fork()
            if child == 0:
                store.add([candidate("in.child")])
                assert len(store.rows(SPEC, DEVICE)) == 2
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        thread.join()
        store.add([candidate("after.fork")])
        print(*(str(row.choice) for row in store.rows(SPEC, DEVICE)))
    """
    out = run_python(script, url.format(tmp_path / "m.sqlite"))
    assert out.split() == ["before.fork", "in.child", "after.fork"]


def test_a_child_forked_while_measuring_does_not_end_the_parents_turn(tmp_path: Path) -> None:
    script = """
        import fcntl, os, sys
        from autoconv.cache import locks, open_store
        path = sys.argv[1]
        store = open_store(path)
        def child(work):
            number = os.fork()
            if number == 0:
                work()
            return os.waitpid(number, 0)[1]
        def leave():
            raise SystemExit  # through the parent's `with`
        def try_lock():
            handle = os.open(locks.measuring_lock(store.path, "d").path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(7)
            os._exit(0)
        with store.measuring("d"):
            assert child(leave) == 0
            assert os.waitstatus_to_exitcode(child(try_lock)) == 7
        assert child(try_lock) == 0
    """
    run_python(script, tmp_path / "m.sqlite")
