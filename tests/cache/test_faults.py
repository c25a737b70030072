"""A cache in trouble, for real: full disks, missing locks, dead writers, moved clocks, damaged bytes.

What each test asks: nothing that was committed is lost, no row comes back that was not written, there is one
warning, and calls go on. The tests marked slow are the same with the counts of docs/explanation/reliability.md.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import autoconv
from autoconv.cache import CacheWarning, open_store
from autoconv.evidence import Measurement
from tests.cache.helpers import DEVICE, ROOT, SPEC, candidate, finish, one_warning, row, run_python, start_python

MANY = pytest.mark.slow

# Many processes ----------------------------------------------------------------------------------

ADD_SPECS = """
    import sys
    from autoconv.cache import database, open_store
    from tests.cache.helpers import DEVICE, candidate
    path, me, specs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = open_store(path)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(specs):
        spec = f"spec {(number * 7 + me) % specs}"
        store.miss(spec, DEVICE, "asked")
        store.add([candidate(f"fake.{n}", spec=spec, race=str(me)) for n in range(3)])
        assert any(row.race == str(me) for row in store.rows(spec, DEVICE)), spec
    facts = store.describe()
    assert (facts["degraded"], facts["pending"]) == (None, 0), facts
"""


@pytest.mark.parametrize(
    ("processes", "specs"), [pytest.param(4, 8, id="4x8"), pytest.param(16, 200, id="16x200", marks=MANY)]
)
def test_processes_that_fill_one_file_together(tmp_path: Path, processes: int, specs: int) -> None:
    path = tmp_path / "m.sqlite"
    running = [start_python(ADD_SPECS, path, me, specs) for me in range(processes)]
    for each in running:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in running:
        finish(each, timeout=1200)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = open_store(str(path))
    for number in range(specs):
        found = Counter((each.race, str(each.choice)) for each in store.rows(f"spec {number}", DEVICE))
        assert found == Counter({(str(me), f"fake.{n}"): 1 for me in range(processes) for n in range(3)}), number
    assert store.misses() == []


WRITE_FOR_EVER = """
    import itertools, os, sys
    from autoconv.cache import database, open_store
    from tests.cache.helpers import candidate
    store = open_store(sys.argv[1])
    for life in itertools.count(int(sys.argv[2])):
        sys.stdin.readline()
        reader, writer = os.pipe()
        child = os.fork()  # an interpreter for each life would take most of the time
        if child == 0:
            for number in itertools.count():
                store.add([candidate(f"fake.{n}", race=f"{life}.{number}") for n in range(5)])
                os.write(1, f"{life}.{number}\\n".encode())
        print(f"child {child}", flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
"""


@pytest.mark.parametrize("lives", [pytest.param(8, id="8"), pytest.param(100, id="100", marks=MANY)])
def test_kill_9_at_random_points(tmp_path: Path, lives: int) -> None:
    path = tmp_path / "m.sqlite"
    chance = random.Random(lives)
    reported: set[str] = set()
    parent = start_python(WRITE_FOR_EVER, path, 0)
    assert parent.stdin is not None
    assert parent.stdout is not None
    for _ in range(lives):
        parent.stdin.write("go\n")
        parent.stdin.flush()
        child, said = 0, 0
        while not child or said < 2:
            line = parent.stdout.readline()
            if line.startswith("child"):
                child = int(line.split()[1])
            else:
                said += 1
                reported.add(line.strip())
        time.sleep(chance.random() * 0.02)  # somewhere in a transaction
        os.kill(child, signal.SIGKILL)
        while (line := parent.stdout.readline()) != "dead\n":
            reported.add(line.strip())
    parent.kill()
    parent.communicate()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    races = Counter(each.race for each in open_store(str(path)).rows(SPEC, DEVICE))
    assert set(races.values()) == {5}, "all or none of each transaction"
    assert reported <= races.keys(), "what was said to be committed is there"
    assert len({race.split(".")[0] for race in races}) == lives
    open_store(str(path)).add([row(race="after")])
    assert open_store(str(path)).rows(SPEC, DEVICE)[-1] == row(race="after")


# Disks -------------------------------------------------------------------------------------------

FILL_THE_DISK = """
    import os, sys, warnings
    from autoconv.cache import CacheWarning, database, open_store
    from tests.cache.helpers import DEVICE, SPEC, candidate, row
    folder = sys.argv[1]
    path = os.path.join(folder, "m.sqlite")
    store = open_store(path)
    store.add([row(race="first")])
    big = [candidate("a.b", reason="long " * 1500, race=str(number)) for number in range(60)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in big:
            store.add([each])
        assert store.rows(SPEC, DEVICE) == [row(race="first"), *big], "this process remembers all"
    assert [each.category for each in caught] == [CacheWarning], [str(each.message) for each in caught]
    said = str(caught[0].message)
    kept = open_store(path).rows(SPEC, DEVICE)
    assert kept == [row(race="first"), *big][:len(kept)], "the others what was committed"
    assert 1 <= len(kept) < 61, len(kept)
    print(len(kept), said)
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 400 KiB, in name spaces of the test's own."""
    mount = 'mount -t tmpfs -o size=400k,mode=700 none "$0"'
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount, tmp_path], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no name spaces here: {allowed.stderr.decode().strip()}")
    words = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', tmp_path]
    words += [sys.executable, "-c", dedent(FILL_THE_DISK), tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "the disk is full" in done.stdout


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A quota: no file of the process may exceed 150 KiB."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (150 << 10, 150 << 10))\n"  # fmt: skip
    out = run_python(limit + dedent(FILL_THE_DISK), tmp_path)
    assert "cannot be written" in out


# Locks, clocks, names ----------------------------------------------------------------------------


def test_where_no_file_can_be_locked(tmp_path: Path) -> None:
    """A network file system without locks or shared memory: SQLite takes neither, an ordinary journal serves."""
    script = """
        import sys, warnings
        from pathlib import Path
        from autoconv.cache import CacheWarning, database, locks, open_store, reader
        from tests.cache.helpers import DEVICE, SPEC, row
        import fcntl, sqlite3
        def refuse(*_):
            raise OSError(37, "No locks available")
        fcntl.flock = refuse
        connect = sqlite3.connect
        sqlite3.connect = lambda name, **options: connect(f"{name}&vfs=unix-none", **options)
        store = open_store(sys.argv[1])
        with store.measuring(DEVICE):
            pass  # within this process turns are still taken
        store.add([row()])
        facts = store.describe()
        print(len(store.rows(SPEC, DEVICE)), facts["journal_mode"], facts["degraded"])
    """
    assert run_python(script, tmp_path / "m.sqlite").split() == ["1", "delete", "None"]


@pytest.mark.parametrize("answer", ["delete", "raises"])
def test_where_wal_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Without shared memory SQLite keeps the old mode, or says so with an error: a rollback journal serves."""
    from autoconv.cache import database

    real = database._journal_mode

    def without_shared_memory(connection: sqlite3.Connection, wanted: str | None = None) -> str:
        if wanted == "wal" and answer == "raises":
            raise sqlite3.OperationalError("unable to open database file")
        return real(connection, None if wanted == "wal" else wanted)

    monkeypatch.setattr(database, "_journal_mode", without_shared_memory)
    path = tmp_path / "m.sqlite"
    store = open_store(str(path))
    store.add([row()])
    assert store.rows(SPEC, DEVICE) == [row()]
    facts = store.describe()
    assert (facts["journal_mode"], facts["degraded"]) == ("delete", None)
    assert not path.with_name("m.sqlite-wal").exists()
    script = """
        import sys
        from autoconv.cache import open_store
        from tests.cache.helpers import candidate
        for number in range(10):
            open_store(sys.argv[1]).add([candidate("a.b", race=f"{sys.argv[2]}.{number}")])
    """
    for process in [start_python(script, path, me) for me in range(3)]:
        finish(process)
    assert len(store.rows(SPEC, DEVICE)) == 31


def test_a_clock_moved_back_a_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoconv.evidence import latest

    store = open_store(str(tmp_path / "m.sqlite"))
    now = time.time()
    store.add([candidate("a.b", median_s=1.0, measured_at=now)])
    monkeypatch.setattr(time, "time", lambda: now - 365 * 86400)
    store.add([candidate("a.b", median_s=2.0, measured_at=now - 365 * 86400)])
    for each in (store, open_store(str(tmp_path / "m.sqlite"))):
        (newest,) = latest(each.rows(SPEC, DEVICE))
        assert newest.median_s == 2.0


@pytest.mark.parametrize("name", ["with space", "Größe 寸法 🧮", "100%25?#&;'\""])
def test_calls_with_a_cache_of_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name}.sqlite"
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    with autoconv.settings(cache=path, require=("numpy.direct",), tune_budget_s=0.05):
        assert autoconv.conv2d(x, w)[0, 0, 0, 0] == 9
    with autoconv.settings(cache=path, on_miss="error"):
        assert autoconv.conv2d(x, w)[0, 0, 0, 0] == 9


# Damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Measurement]]:
    """A database of many pages, and what is in it."""
    path = tmp_path_factory.mktemp("sound") / "m.sqlite"
    rows = [
        candidate(f"a.b{n}", race=str(n), samples=tuple(1e-3 + i * 1e-7 * n for i in range(1, 9))) for n in range(50)
    ]
    open_store(str(path)).add(rows)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes(), rows


@pytest.mark.parametrize("how", ["flip", "cut", "zero"])
@pytest.mark.parametrize("times", [pytest.param(25, id="25"), pytest.param(700, id="700", marks=MANY)])
def test_damage_anywhere(tmp_path: Path, sound: tuple[bytes, list[Measurement]], how: str, times: int) -> None:
    """Bits flipped, the end cut off, a stretch of zeros: what comes back was written, and writing goes on."""
    data, rows = sound
    written = set(map(repr, rows))
    chance = random.Random(f"{how} {times}")
    path = tmp_path / "m.sqlite"
    for turn in range(times):
        for stale in tmp_path.iterdir():
            stale.unlink()
        place = chance.randrange(len(data))
        damaged = bytearray(data)
        if how == "flip":
            for _ in range(chance.choice((1, 1, 1, 8))):
                damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif how == "cut":
            del damaged[place:]
        else:
            damaged[place : place + 512] = bytes(len(damaged[place : place + 512]))
        path.write_bytes(damaged)
        store = open_store(str(path))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = store.rows(SPEC, DEVICE)
            assert set(map(repr, found)) <= written, (how, turn)
            store.add([row(race="new")])
            after = store.rows(SPEC, DEVICE)
            assert set(map(repr, after)) <= {*written, repr(row(race="new"))}, (how, turn)
            assert repr(row(race="new")) in map(repr, after) or store.describe()["integrity"] != "ok", (how, turn)
        assert {each.category for each in caught} <= {CacheWarning}
        assert len(caught) <= 2, [str(each.message) for each in caught]  # rows left out, then the file set aside


def test_a_file_of_no_length_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    path.touch()
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    with autoconv.settings(cache=path, require=("numpy.direct",), tune_budget_s=0.05):
        assert autoconv.conv2d(x, w)[0, 0, 0, 0] == 9
    assert open_store(str(path)).all_specs()


def test_deleted_between_two_calls(tmp_path: Path) -> None:
    path = tmp_path / "here" / "m.sqlite"
    x, w = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))
    with autoconv.settings(cache=path, require=("numpy.direct",), tune_budget_s=0.05):
        for size in (5, 6, 7):
            assert autoconv.conv2d(np.ones((1, 1, size, size)), w)[0, 0, 0, 0] == 9
            shutil.rmtree(path.parent)
        assert autoconv.conv2d(x, w)[0, 0, 0, 0] == 9


def test_one_warning_for_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    """Calls, tuning and questions on a directory where the file should be: all work, one warning in all."""
    (tmp_path / "m.sqlite").mkdir()
    with (
        autoconv.settings(cache=tmp_path / "m.sqlite", require=("numpy.direct",), tune_budget_s=0.05),
        one_warning("this process remembers in memory"),
    ):
        for size in (5, 6, 7):
            assert autoconv.conv2d(np.ones((1, 1, size, size)), np.ones((1, 1, 3, 3)))[0, 0, 0, 0] == 9
        assert autoconv.explain("fprop n1c1 5x5 k1 3x3 f64").decision is not None
