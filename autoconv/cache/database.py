"""One database through SQLAlchemy: transactions that are retried, its schema brought up to date.

An SQLite file gets a connection per transaction (opening costs less than a millisecond, and nothing is
left for a fork or a deleted file to upset), WAL, and `BEGIN IMMEDIATE` for writing, so that a transaction
waits for its turn at the start rather than failing in the middle. Other databases get SQLAlchemy's pool.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from autoconv.cache import queries, reader
from autoconv.cache.location import create_private
from autoconv.cache.migrations import migrate, version_of
from autoconv.cache.records import OLDEST_READABLE, SCHEMA_VERSION, check_version
from autoconv.cache.troubles import Trouble, trouble_of
from autoconv.errors import CacheError
from autoconv.options import without_password

__all__ = ["BUSY_S", "Database", "choose_journal"]

BUSY_S = 10.0  # a writer waits this long for its turn; one transaction takes milliseconds
PAUSE_S = 0.02  # mean wait before a refused transaction is tried again
JOURNAL_TRIES = 5  # processes that create one file together refuse each other the switch, without waiting

_TRANSIENT = frozenset({"40001", "40P01", "23505", "42P07"})
"""SQLSTATEs of two transactions in each other's way: serialisation, deadlock, both inserted, both created a table."""

T = TypeVar("T")


class Database:
    """The database in the SQLite file at `path`, or at `url`."""

    def __init__(self, path: Path | None, url: str | None = None) -> None:
        if path is not None:
            self.shown = str(path)
            self._reading = _sqlite_engine(partial(reader.connect, path), "BEGIN")
            self._writing = _sqlite_engine(partial(_open_for_writing, path), "BEGIN IMMEDIATE")
        else:
            self._reading = self._writing = _engine_at(url or "")
            self.shown = without_password(url or "")

    def read(self, work: Callable[[Connection], T], default: T) -> T:
        """`work` in a read transaction; `default` when the database has no tables yet. Raises `SchemaTooNew`."""
        with self._reading.connect() as connection, connection.begin():
            version = version_of(connection)
            check_version(version, self.shown)
            connection.info[queries.SCHEMA] = version
            return work(connection) if version >= OLDEST_READABLE else default

    def write(self, work: Callable[[Connection], T]) -> T:
        """`work` in a write transaction, after the schema was brought up to date. Raises `SchemaTooNew`.

        Refused for another writer's sake, it is tried again from the start for up to `BUSY_S` seconds.
        """
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                with self._writing.begin() as connection:
                    migrate(connection, self.shown)
                    connection.info[queries.SCHEMA] = SCHEMA_VERSION
                    return work(connection)
            except DBAPIError as error:
                if not _transient(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(random.uniform(0, 2 * PAUSE_S))

    def schema_version(self) -> int:
        """The schema's version, 0 without tables; never raises `SchemaTooNew`."""
        with self._reading.connect() as connection:
            return version_of(connection)

    def close(self) -> None:
        """Close idle connections."""
        for engine in {self._reading, self._writing}:
            engine.dispose()

    def after_fork(self) -> None:
        """In a forked child: forget the connections, which are the parent's, without closing them."""
        for engine in {self._reading, self._writing}:
            engine.dispose(close=False)


def _transient(error: DBAPIError) -> bool:
    return trouble_of(error) is Trouble.LOCKED or getattr(error.orig, "sqlstate", None) in _TRANSIENT


# SQLite -------------------------------------------------------------------------------------------


def _sqlite_engine(connect: Callable[[], sqlite3.Connection], begin: str) -> Engine:
    engine = sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)  # the driver's own BEGIN is deferred and skips DDL

    return engine


def _open_for_writing(path: Path) -> sqlite3.Connection:
    create_private(path)
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
    connection.text_factory = reader.lenient_text  # a migration reads rows, of which one may be damaged
    try:
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            choose_journal(connection)  # the file keeps it; an existing one keeps what it has
        connection.execute("PRAGMA synchronous=NORMAL")  # in WAL a power cut may lose the last rows, never the file
    except BaseException:
        connection.close()
        raise
    return connection


def choose_journal(connection: sqlite3.Connection) -> str:
    """Switch to WAL, or to DELETE where WAL cannot be had (no shared memory); gives the mode in force."""
    for _ in range(JOURNAL_TRIES):
        try:
            return _journal_mode(connection, "wal")  # where WAL cannot be had SQLite answers with the mode it keeps
        except sqlite3.OperationalError as error:
            if trouble_of(error) is not Trouble.LOCKED:
                return _journal_mode(connection, "delete")
        time.sleep(random.uniform(0, 2 * PAUSE_S))
    return _journal_mode(connection)


def _journal_mode(connection: sqlite3.Connection, wanted: str | None = None) -> str:
    with closing(connection.execute(f"PRAGMA journal_mode={wanted}" if wanted else "PRAGMA journal_mode")) as cursor:
        return str(cursor.fetchone()[0]).lower()


# Others -------------------------------------------------------------------------------------------


def _engine_at(url: str) -> Engine:
    """Raises `CacheError` for a URL that cannot be understood, or whose driver is missing."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        scheme = url.partition("://")[0]  # the rest may hold a password
        raise CacheError(f"cache={scheme}://...: not an SQLAlchemy URL ({type(error).__name__})") from None
    shown = without_password(url)
    options: dict[str, Any] = {} if parsed.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
    try:
        return sa.create_engine(parsed, **options)
    except NoSuchModuleError:
        raise CacheError(f"cache={shown!r}: SQLAlchemy has no dialect {parsed.drivername!r} here") from None
    except ImportError as error:
        raise CacheError(f"cache={shown!r}: its database driver is not installed ({error})") from None
    except (ArgumentError, TypeError, ValueError) as error:
        raise CacheError(f"cache={shown!r}: {error}") from None
