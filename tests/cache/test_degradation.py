"""Databases that cannot be used: one warning, nothing lost for this process, no exception."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from autoconv.cache import CacheWarning, SqlStore, database, open_store
from autoconv.cache import store as store_module
from autoconv.cache.location import is_loose
from tests.cache.helpers import DEVICE, OTHER_SPEC, SPEC, candidate, one_warning, row, run_python


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database with one row is."""
    found = tmp_path / "m.sqlite"
    open_store(str(found)).add([row()])
    return found


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's."""
    made = Path(tempfile.mkdtemp(prefix="autoconv-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    store = open_store(str(tmp_path / "file" / "m.sqlite"))
    with one_warning("this process remembers in memory"):
        assert store.rows(SPEC, DEVICE) == []
        store.add([row()])
        store.miss(OTHER_SPEC, DEVICE, "asked")
        assert store.rows(SPEC, DEVICE) == [row()]
        assert [miss.count for miss in store.misses()] == [1]
        assert store.history(SPEC) == [row()]
        assert store.all_specs() == [(SPEC, DEVICE)]
        with store.measuring(DEVICE):
            assert store.describe()["pending"] == 1
        assert store.forget(SPEC) == 1
        assert store.rows(SPEC, DEVICE) == []
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_where_the_file_should_be(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with one_warning():
        assert store.rows(SPEC, DEVICE) == []
        store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]
    assert tmp_path.is_dir()


def test_a_locked_file_is_waited_for_then_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    monkeypatch.setattr(store_module, "RETRY_S", 0.0)
    store = open_store(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with one_warning("cannot be written, locked by another process"):
            store.add([candidate("a.b")])
            store.miss(OTHER_SPEC, DEVICE, "asked")
        assert store.rows(SPEC, DEVICE) == [row(), candidate("a.b")]  # in WAL readers need not wait
        assert len(store.misses()) == 1
        assert "locked" in store.describe()["degraded"]
        assert open_store(str(path)).rows(SPEC, DEVICE) == [row()]
        other.execute("COMMIT")
    store.add([candidate("c.d")])
    assert open_store(str(path)).rows(SPEC, DEVICE) == [row(), candidate("a.b"), candidate("c.d")]
    assert [miss.count for miss in open_store(str(path)).misses()] == [1]
    facts = store.describe()
    assert (facts["degraded"], facts["pending"]) == (None, 0)


def test_after_a_failure_nobody_waits_again_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    store = open_store(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(CacheWarning, match="locked"):
            store.add([candidate("a.b")])
        tried = []
        monkeypatch.setattr(database.Database, "write", lambda self, work: tried.append(work))
        store.add([candidate("c.d")])
        assert tried == []
        other.execute("COMMIT")
    assert store.rows(SPEC, DEVICE) == [row(), candidate("a.b"), candidate("c.d")]


def test_a_refused_transaction_is_tried_again(path: Path) -> None:
    def work(connection: sa.Connection) -> str:
        tries.append(connection)
        if len(tries) < 3:
            raise sa.exc.OperationalError("INSERT", {}, refusal)
        return "done"

    tries: list[sa.Connection] = []
    refusal = sqlite3.OperationalError("database is locked")
    refusal.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    assert database.Database(path).write(work) == "done"
    refusal.sqlite_errorcode = sqlite3.SQLITE_IOERR
    tries.clear()
    with pytest.raises(sa.exc.OperationalError):
        database.Database(path).write(work)
    assert len(tries) == 1


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_full_disk(path: Path) -> sqlite3.Connection:
        connection = usual(path)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        return connection

    usual = database._open_for_writing
    monkeypatch.setattr(database, "_open_for_writing", on_a_full_disk)
    store = open_store(str(path))
    big = [candidate("a.b", reason="long " * 1000, race=str(number)) for number in range(20)]
    with one_warning("the disk is full"):
        store.add(big)
    assert store.rows(SPEC, DEVICE) == [row(), *big]
    assert open_store(str(path)).rows(SPEC, DEVICE) == [row()]  # all or none


def test_wal_gives_way_where_there_is_no_shared_memory(tmp_path: Path) -> None:
    with closing(sqlite3.connect(f"file:{tmp_path}/a.sqlite?vfs=unix-dotfile", uri=True)) as without:
        assert database.choose_journal(without) == "delete"
    with closing(sqlite3.connect(tmp_path / "b.sqlite")) as with_it:
        assert database.choose_journal(with_it) == "wal"


def test_a_file_in_delete_mode_stays_so_and_works(tmp_path: Path) -> None:
    path = tmp_path / "shipped.sqlite"
    store = open_store(str(path))
    store.add([row()])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    store.add([candidate("a.b")])
    assert store.rows(SPEC, DEVICE) == [row(), candidate("a.b")]
    assert store.describe()["journal_mode"] == "delete"
    assert not path.with_name("shipped.sqlite-wal").exists()


READ_ONLY = """
    import os, sys, warnings
    from pathlib import Path
    from autoconv.cache import CacheWarning, database, open_store, queries, rescue  # before the rights are gone
    from tests.cache.helpers import DEVICE, SPEC, candidate, row
    os.seteuid(65534)
    path = Path(sys.argv[1])
    assert not os.access(path.parent, os.W_OK, effective_ids=True)
    store = open_store(sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        readable = store.rows(SPEC, DEVICE)
        store.add([candidate("a.b")])
        store.miss(SPEC, DEVICE)
        with store.measuring(DEVICE):
            print(len(readable), len(store.rows(SPEC, DEVICE)), len(store.misses()), store.describe()["rows"])
    print([str(each.category.__name__) for each in caught])
    print(caught[0].message)
"""

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to play another user"
)


@needs_root
@pytest.mark.parametrize("directory_too", [False, True], ids=["file", "directory"])
def test_a_file_of_somebody_else_is_read_and_left_alone(public_directory: Path, directory_too: bool) -> None:
    path = public_directory / "m.sqlite"
    open_store(str(path)).add([row()])
    path.chmod(0o444)
    if not directory_too:
        public_directory.chmod(0o1777)
        (public_directory / "other").mkdir()
    before = path.read_bytes()
    script = READ_ONLY.replace("assert not os.access(path.parent", "assert not os.access(path")
    counts, categories, message = run_python(script, path).splitlines()
    assert counts == "1 2 1 1"
    assert categories == "['CacheWarning']"
    assert "cannot be written, not permitted" in message
    assert path.read_bytes() == before


@needs_root
def test_a_file_that_may_not_be_read(public_directory: Path) -> None:
    path = public_directory / "m.sqlite"
    open_store(str(path)).add([row()])
    path.chmod(0o600)
    counts, categories, _ = run_python(READ_ONLY, path).splitlines()
    assert counts == "0 1 1 0"
    assert categories == "['CacheWarning']"


@needs_root
def test_a_file_others_may_change_is_loose(public_directory: Path) -> None:
    path = public_directory / "m.sqlite"
    open_store(str(path)).add([row()])
    assert not is_loose(path)
    os.chown(path, 65534, 65534)
    assert is_loose(path)


def test_a_deleted_file_is_made_anew(path: Path) -> None:
    store = open_store(str(path))
    assert store.rows(SPEC, DEVICE) == [row()]
    path.unlink()
    assert store.rows(SPEC, DEVICE) == []
    store.add([candidate("a.b")])
    assert open_store(str(path)).rows(SPEC, DEVICE) == [candidate("a.b")]


def test_a_deleted_directory_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "autoconv" / "m.sqlite"
    store = open_store(str(path))
    store.add([row()])
    shutil.rmtree(tmp_path / "cache")
    assert store.rows(SPEC, DEVICE) == []
    store.add([candidate("a.b")])
    assert open_store(str(path)).rows(SPEC, DEVICE) == [candidate("a.b")]


def test_a_file_exchanged_for_another_is_noticed(path: Path, tmp_path: Path) -> None:
    store = open_store(str(path))
    assert store.rows(SPEC, DEVICE) == [row()]
    other = tmp_path / "other.sqlite"
    open_store(str(other)).add([candidate("a.b")])
    other.replace(path)
    assert store.rows(SPEC, DEVICE) == [candidate("a.b")]


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    path.touch()
    store = open_store(str(path))
    assert store.rows(SPEC, DEVICE) == []
    assert store.misses() == []
    store.add([row()])
    assert open_store(str(path)).rows(SPEC, DEVICE) == [row()]


def test_a_missing_library_is_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SqlStore) -> None:
        raise ImportError("No module named 'sqlalchemy'")

    monkeypatch.setattr(SqlStore, "_opened", broken)
    store = open_store(str(path))
    with one_warning("No module named 'sqlalchemy'"):
        store.add([candidate("a.b")])
    assert store.rows(SPEC, DEVICE) == [row(), candidate("a.b")]


def test_a_file_that_another_process_replaces_under_a_write_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    store = open_store(str(path))
    assert isinstance(store, SqlStore)
    write, tries = store._opened().write, []

    def replaced(work: object) -> object:
        tries.append(work)
        if len(tries) == 1:  # what SQLite says of a file that was renamed since it was opened
            path.rename(path.with_name("elsewhere"))
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return write(work)  # type: ignore[arg-type]

    monkeypatch.setattr(store._opened(), "write", replaced)
    store.add([candidate("a.late")])
    assert [str(each.choice) for each in open_store(str(path)).rows(SPEC, DEVICE)] == ["a.late"]
    assert not recwarn.list
