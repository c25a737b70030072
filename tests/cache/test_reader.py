"""The one read on the hot side: cheap to import, true to the schema, and at home in any directory."""

from __future__ import annotations

import re
import signal
import sqlite3
from pathlib import Path

import pytest

from autoconv.cache import SqlStore, open_store, reader, schema
from autoconv.cache.records import COLUMNS
from tests.cache.helpers import DEVICE, SPEC, one_warning, row, run_python, start_python

FOR_PEOPLE = {"id", "implementation", "version", "object_hash"}  # derived from the others, never read back


def test_select_and_schema_name_the_same_columns() -> None:
    assert {*COLUMNS} | FOR_PEOPLE | {"checksum"} == {column.name for column in schema.measurement.columns}
    assert not {*COLUMNS} & FOR_PEOPLE
    match = re.fullmatch(r"SELECT (.+) FROM measurement WHERE spec = \? AND device = \? ORDER BY id", reader.SELECT)
    assert match is not None
    assert match[1].split(", ") == [*COLUMNS, "checksum"]


def test_the_schema_documents_every_column_in_order() -> None:
    assert schema.__doc__ is not None
    for table in schema.metadata.tables.values():
        section = schema.__doc__.split(f"\n`{table.name}`:")[1].split("\n\n`")[0]
        documented = re.findall(r"^ *(\d+)\. (\w+) ", section, re.MULTILINE)
        assert documented == [(str(n), column.name) for n, column in enumerate(table.columns, 1)]


def test_a_remembered_row_is_found_without_sqlalchemy(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    open_store(str(path)).add([row()])
    script = """
        import sys
        import autoconv.cache
        heavy = {"sqlalchemy", "platformdirs", "sqlite3"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        store = autoconv.cache.open_store(sys.argv[1])
        found = store.rows(*sys.argv[2:])
        assert not (heavy - {"sqlite3"}) & set(sys.modules)
        print(repr(found))
    """
    assert run_python(script, path, SPEC, DEVICE).strip() == repr([row()])


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "no" / "m.sqlite"))
    assert store.rows(SPEC, DEVICE) == []
    assert store.misses() == []
    assert store.describe()["exists"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "Größe 寸法", "what?", "a#b", "100%25", "a;b&c=d", "it's"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name}.sqlite"
    open_store(str(path)).add([row()])
    assert open_store(str(path)).rows(SPEC, DEVICE) == [row()]
    assert path.is_file()


def test_the_files_are_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "m.sqlite"
    store = open_store(str(path))
    with store.measuring(DEVICE):
        store.add([row()])
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
    path.chmod(0o666)
    assert open_store(str(path)).describe()["permissions_loose"] is True


def test_a_writer_at_work_does_not_keep_readers_waiting(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    store = open_store(str(path))
    store.add([row()])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM measurement")
    assert store.rows(SPEC, DEVICE) == [row()]
    writer.execute("ROLLBACK")
    writer.close()


def test_the_journal_of_a_killed_writer_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    store = open_store(str(path))
    store.add([row()])
    script = """
        import sqlite3, sys, time
        database = sqlite3.connect(sys.argv[1], isolation_level=None)
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("PRAGMA cache_size=1")
        database.execute("PRAGMA cache_spill=1")
        database.execute("BEGIN")
        database.execute("DELETE FROM measurement")
        for number in range(2000):  # more than the page cache holds: the file itself is changed before the commit
            database.execute("INSERT INTO miss VALUES (?, 'd', 1, 0, '')", (f"{number:0200d}",))
        print("written", flush=True)
        time.sleep(60)
    """
    process = start_python(script, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.with_name("m.sqlite-journal").stat().st_size > 0
    assert store.rows(SPEC, DEVICE) == [row()]
    assert store.misses() == []


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_a_file_whose_log_holds_something_is_never_read_without_it(tmp_path: Path, log: str) -> None:
    path = tmp_path / "m.sqlite"
    assert "mode=ro&immutable=1" in reader._ways(path, 4096)
    path.with_name(path.name + log).write_bytes(b"committed or to be undone")
    assert "mode=ro&immutable=1" not in reader._ways(path, 4096)


def test_unreadable_rows_are_left_out_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    store = open_store(str(path))
    assert isinstance(store, SqlStore)
    store.add([row(race=str(number)) for number in range(8)])
    database = sqlite3.connect(path, isolation_level=None)
    for number, change in enumerate(
        (
            "status = 'splendid'",
            "median_s = -1",
            "median_s = 9e999",
            "samples = '[1,'",
            "choice = CAST(x'7bff7d' AS TEXT)",
            "reason = x'00ff'",
            "spec = spec",
        )
    ):
        database.execute(f"UPDATE measurement SET {change} WHERE race = '{number}'")
    database.close()
    with one_warning("6 unreadable row"):
        for _ in range(2):
            assert store.rows(SPEC, DEVICE) == [row(race="6"), row(race="7")]
        assert store.history(SPEC) == [row(race="6"), row(race="7")]
