"""The one question that a convolution asks: every row of a spec on a device, by one SELECT.

The standard `sqlite3` module on a read-only connection, opened for the question and closed after it
(about 0.2 ms in all): nothing is left over that a fork, a thread or a deleted file could upset.
SQLAlchemy, whose import alone costs 230 ms, is not involved; a test holds `SELECT` and its schema together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from autoconv.cache.records import (
    CHECKED_SINCE,
    COLUMNS,
    OLDEST_READABLE,
    check_own,
    check_version,
    checksum,
    columns_at,
    decode,
)
from autoconv.evidence import Measurement

__all__ = ["SELECT", "connect", "decode_all", "lenient_text", "read"]

SELECT = f"SELECT {', '.join(COLUMNS)}, checksum FROM measurement WHERE spec = ? AND device = ? ORDER BY id"
VERSION = "SELECT max(version) FROM schema_version"

TIMEOUT_S = 2.0  # a reader waits only where WAL could not be had, and then for one commit


def read(path: Path, spec: str, device: str) -> tuple[list[Measurement], list[str]]:
    """The rows of `spec` on `device`, oldest first, and why each unreadable one was left out.

    Raises `FileNotFoundError` without a file, `SchemaTooNew` or `CacheError` for a file that is not for us,
    and `sqlite3.Error` for one that cannot be read.
    """
    with closing(connect(path)) as connection:
        version = schema_version(connection, path)
        if version < OLDEST_READABLE:
            return [], []
        columns = columns_at(version)
        names = [*columns, "checksum"] if version >= CHECKED_SINCE else columns  # an old file, not written to since
        query = SELECT.replace(f"{', '.join(COLUMNS)}, checksum", ", ".join(names))
        return decode_all(connection.execute(query, (spec, device)), spec, device, len(columns))


def decode_all(
    rows: Iterable[Sequence[Any]], spec: str, device: str | None, known: int = len(COLUMNS)
) -> tuple[list[Measurement], list[str]]:
    """Measurements of the rows of `spec` (on `device`) that can be read, and what is wrong with each other one.

    A row is the values of the first `known` of `COLUMNS`, which is all that its schema has, and its checksum where the
    schema has one.
    """
    lacking = [None] * (len(COLUMNS) - known)
    found, faults = [], []
    for row in rows:
        try:
            values, checksums = [*row[:known], *lacking], row[known:]
            measurement = decode(values)
            if measurement.spec != spec or device not in (None, measurement.device):
                raise ValueError(f"it is about {measurement.spec!r} on {measurement.device!r}")  # a damaged index
            if any(each != checksum(values) for each in checksums):
                raise ValueError("its checksum does not fit: it was damaged, or edited")
            found.append(measurement)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            faults.append(f"{type(error).__name__}: {error}")
    return found, faults


def connect(path: Path) -> sqlite3.Connection:
    """A read-only connection to the SQLite file at `path`, which must exist."""
    size = path.stat().st_size  # FileNotFoundError: there is nothing to read
    failure: sqlite3.Error | None = None
    for query in _ways(path, size):
        connection = sqlite3.connect(f"{path.as_uri()}?{query}", uri=True, timeout=TIMEOUT_S, isolation_level=None)
        connection.text_factory = lenient_text
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opening is lazy: this opens
        except sqlite3.Error as error:
            connection.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            failure = failure or error
        else:
            return connection
    assert failure is not None
    raise failure


def _ways(path: Path, size: int) -> list[str]:
    """URI parameters to try in turn.

    A rollback journal left by a killed process takes a writer to undo. WAL cannot be read in a directory
    that cannot be written, unless nobody writes at all (`immutable`) and neither log holds anything.
    """
    ways = ["mode=ro", "mode=rw"]
    logs = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    if size and not any(log.exists() and log.stat().st_size for log in logs):
        ways.append("mode=ro&immutable=1")
    return ways


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 for an empty file. Raises `SchemaTooNew`, and `CacheError` for somebody else's file."""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if "schema_version" not in tables:
        check_own(tables, str(path))
        return 0
    version = int(connection.execute(VERSION).fetchone()[0] or 0)
    check_version(version, str(path))
    return version


def lenient_text(raw: bytes) -> str:
    """A text of the database, whatever its bytes."""
    return raw.decode("utf-8", "surrogateescape")  # one bad byte must cost its row, not the whole answer
