"""Old databases are brought up to date, new ones built by the same steps, later ones left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from autoconv.cache import CacheWarning, migrations, open_store, schema
from autoconv.cache.records import SCHEMA_VERSION
from tests.cache.helpers import DEVICE, SPEC, one_warning, row

OLD_DEVICE = "cpu AMD EPYC 9R14 (25.17.1) / avx512 / 2 cores / 2 threads"


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A database as step 1 left it, with three rows and a miss."""
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / "store_v1.sql").read_text())
    return path


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_steps_are_numbered_up_to_the_present() -> None:
    assert list(migrations.STEPS) == list(range(1, SCHEMA_VERSION + 1))


def test_the_steps_end_in_the_documented_schema(tmp_path: Path) -> None:
    def shape(path: Path) -> dict[str, Any]:
        engine = sa.create_engine(f"sqlite:///{path}")
        inspector = sa.inspect(engine)
        found = {
            name: (
                [{**column, "type": repr(column["type"])} for column in inspector.get_columns(name)],
                inspector.get_pk_constraint(name),
                inspector.get_indexes(name),
            )
            for name in inspector.get_table_names()
        }
        engine.dispose()
        return found

    direct = sa.create_engine(f"sqlite:///{tmp_path}/direct.sqlite")
    schema.metadata.create_all(direct)
    direct.dispose()
    open_store(str(tmp_path / "stepped.sqlite")).add([row()])
    assert shape(tmp_path / "stepped.sqlite") == shape(tmp_path / "direct.sqlite")


@pytest.mark.parametrize("through_url", [False, True])
def test_an_old_file_is_read_as_it_is(old_file: Path, through_url: bool) -> None:
    before = old_file.read_bytes()
    store = open_store(f"sqlite:///{old_file}?timeout=5" if through_url else str(old_file))
    rows = store.rows(SPEC, OLD_DEVICE)
    assert store.history(SPEC) == rows
    assert [str(each.choice) for each in rows] == [
        "native.winograd[tile=4]",
        "rewrite.groups > numpy.im2col",
        "numpy.fft",
    ]
    assert [each.status for each in rows] == ["ok", "partial", "failed"]
    assert rows[0].samples == (0.0023, 0.00231, 0.00234)
    assert old_file.read_bytes() == before


def test_the_first_write_migrates_an_old_file(old_file: Path) -> None:
    store = open_store(str(old_file))
    before = store.rows(SPEC, OLD_DEVICE)
    store.add([row()])
    assert store.rows(SPEC, OLD_DEVICE) == before
    assert store.rows(SPEC, DEVICE) == [row()]
    assert [miss.count for miss in store.misses()] == [3, 0]  # what was asked in vain, and what was cut short
    steps = ask(old_file, "SELECT version FROM schema_version ORDER BY version")
    assert [number for (number,) in steps] == list(migrations.STEPS)
    hashes = ask(old_file, "SELECT object_hash FROM measurement ORDER BY id")
    assert hashes == [("5f2c9a7e41d0b6c3",), ("",), ("",), ("5f2c9a7e",)]
    assert store.describe()["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("through_url", [False, True])
def test_rows_from_before_a_column_keep_their_checksums(tmp_path: Path, through_url: bool) -> None:
    """A file of schema 3: no times of enqueueing, but checksums."""
    path = tmp_path / "third.sqlite"
    open_store(str(path)).add([row(enqueue_s=None)])
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE measurement DROP COLUMN enqueue_s")
        database.execute("DELETE FROM schema_version WHERE version > 3")
        database.commit()
    store = open_store(f"sqlite:///{path}?timeout=5" if through_url else str(path))
    assert store.rows(SPEC, DEVICE) == store.history(SPEC) == [row(enqueue_s=None)]
    store.add([row()])
    assert store.rows(SPEC, DEVICE) == [row(enqueue_s=None), row()]
    assert ask(path, "SELECT max(version) FROM schema_version") == [(SCHEMA_VERSION,)]
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE measurement SET enqueue_s = 1")
        database.commit()
    with one_warning("2 unreadable row.*checksum does not fit"):
        assert store.rows(SPEC, DEVICE) == []


def test_a_damaged_row_of_an_old_file_does_not_stop_its_migration(old_file: Path) -> None:
    with closing(sqlite3.connect(old_file)) as database:
        database.execute("UPDATE measurement SET environment = CAST(x'7bff7d' AS TEXT) WHERE id = 2")
        database.execute("UPDATE measurement SET reason = x'00' WHERE id = 3")
        database.commit()
    store = open_store(str(old_file))
    store.add([row()])
    with one_warning("2 unreadable row"):
        assert [str(each.choice) for each in store.rows(SPEC, OLD_DEVICE)] == ["native.winograd[tile=4]"]
    assert ask(old_file, "SELECT checksum = '' FROM measurement ORDER BY id") == [(0,), (0,), (1,), (0,)]


def test_a_step_that_fails_leaves_the_file_as_it_was(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sa.Connection) -> None:
        migrations._object_hash(connection)
        raise RuntimeError("half way")

    monkeypatch.setitem(migrations.STEPS, 2, fail)
    store = open_store(str(old_file))
    with pytest.warns(CacheWarning, match="half way"):
        store.add([row()])
    assert store.rows(SPEC, DEVICE) == [row()]
    assert ask(old_file, "SELECT max(version) FROM schema_version") == [(1,)]
    assert "object_hash" not in [column[1] for column in ask(old_file, "PRAGMA table_info(measurement)")]


@pytest.mark.parametrize("through_url", [False, True])
def test_a_later_schema_is_left_alone(tmp_path: Path, through_url: bool) -> None:
    path = tmp_path / "later.sqlite"
    open_store(str(path)).add([row()])
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO schema_version VALUES (99, 0)")
        database.execute("ALTER TABLE measurement RENAME COLUMN samples TO specimens")
        database.commit()
        database.execute("PRAGMA journal_mode=DELETE")
    before = path.read_bytes()
    store = open_store(f"sqlite:///{path}?timeout=5" if through_url else str(path))
    with one_warning(f"schema version 99, this autoconv knows up to {SCHEMA_VERSION}"):
        assert store.rows(SPEC, DEVICE) == []
        store.add([row(race="mine")])
        store.miss(SPEC, DEVICE)
        assert store.rows(SPEC, DEVICE) == [row(race="mine")]
        assert len(store.misses()) == 1
    assert "99" in store.describe()["degraded"]
    assert path.read_bytes() == before


def test_nothing_is_written_under_a_later_schema(tmp_path: Path) -> None:
    path = tmp_path / "later.sqlite"
    open_store(str(path)).add([row()])
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO schema_version VALUES (99, 0)")
        database.commit()
    with one_warning("cannot be written, written by a later autoconv"):
        open_store(str(path)).add([row()])
    assert ask(path, "SELECT count(*) FROM measurement") == [(1,)]


@pytest.mark.parametrize("through_url", [False, True])
@pytest.mark.parametrize("table", ["measurement", "bookmarks"])
def test_somebody_elses_database_is_left_alone(tmp_path: Path, table: str, through_url: bool) -> None:
    path = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE {table} (length REAL)")
        database.execute(f"INSERT INTO {table} VALUES (3.5)")
        database.commit()
    before = path.read_bytes()
    store = open_store(f"sqlite:///{path}?timeout=5" if through_url else str(path))
    with one_warning(f"somebody else's database, with tables {table}"):
        assert store.rows(SPEC, DEVICE) == []
        store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]
    assert path.read_bytes() == before
