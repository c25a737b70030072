"""`SqlStore`: measurements in an SQLite file or any database of SQLAlchemy's, with memory to fall back on.

Reading an SQLite file goes through `reader`, all else through `database`, imported when first needed.
What is to be written is put in memory first and leaves it once it is committed, so a database that
cannot be written costs nobody but later processes. No method raises: trouble is told by one
`CacheWarning` per kind, and calls go on.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoconv.cache.location import default_directory, is_loose
from autoconv.cache.locks import measuring_lock
from autoconv.cache.memory import MemoryStore, merge_misses
from autoconv.cache.records import Key, answered, sift
from autoconv.cache.troubles import CacheWarning, Trouble, trouble_of
from autoconv.errors import CacheError
from autoconv.evidence import Measurement, Miss

if TYPE_CHECKING:
    from autoconv.cache.database import Database

__all__ = ["SqlStore"]

RETRY_S = 30.0  # after a failure, this long without another try: a locked file costs ten seconds each time
MOVES = 2  # times that the file may be replaced under one attempt

T = TypeVar("T")


class SqlStore:
    """The store in the SQLite file at `path`; `at_url` makes one for another database."""

    def __init__(self, path: Path | None, database: Database | None = None) -> None:
        self.path = path
        self._database = database
        self._pending = MemoryStore()  # what could not be written yet
        self._quiet_until = {"read": 0.0, "written": 0.0}
        self._trouble: dict[str, str] = {}  # "read" or "written" -> what is wrong at present
        self._warned: set[Trouble | str] = set()
        self._lock = threading.Lock()  # one writer at a time; readers take no part
        _stores.add(self)

    @classmethod
    def at_url(cls, url: str) -> SqlStore:
        """A store at an SQLAlchemy URL. Raises `CacheError` when its dialect or driver is not there."""
        from autoconv.cache.database import Database

        return cls(None, Database(None, url))

    # The protocol of `evidence.Store` -------------------------------------------------------------

    def rows(self, spec: str, device: str) -> list[Measurement]:
        """Every row of `spec` on `device`, oldest first."""
        pending = self._pending.rows(spec, device)  # before the database: what leaves memory is there already
        found: list[Measurement] = self._attempt("read", lambda: self._read_rows(spec, device), [])
        return [*found, *pending]

    def add(self, rows: Sequence[Measurement]) -> None:
        """Keep `rows`, all or none, and settle the misses they answer."""
        storable = self._storable(rows)
        if storable:
            self._pending.add(storable)
            self._write_pending()

    def take_in(self, rows: Sequence[Measurement]) -> None:
        """Commit `rows` from elsewhere, all or none. Unlike `add` it raises: `CacheError` when that cannot be done."""

        def work(connection: Any) -> None:
            from autoconv.cache import queries

            queries.add(connection, rows)

        with self._lock:
            try:
                self._opened().write(work)
            except CacheError:
                raise
            except Exception as error:  # whatever the driver raises: the caller gets one kind, and the cause
                cause = getattr(error, "orig", None) or error
                raise CacheError(f"{self._shown()} cannot be written, {trouble_of(error).value}: {cause}") from error

    def miss(self, spec: str, device: str, reason: str = "") -> None:
        """Record that `spec` was asked for in vain."""
        self._pending.miss(spec, device, reason)
        self._write_pending()

    def misses(self, device: str | None = None) -> list[Miss]:
        """Open misses and specs whose last race was cut short, most asked for first."""
        waiting, _ = self._pending.contents()
        pending = self._pending.misses(device)
        found: list[Miss] = self._ask(lambda queries, connection: queries.misses(connection, device), [])
        settled = answered(waiting)
        return merge_misses([miss for miss in found if (miss.spec, miss.device) not in settled], pending)

    def measuring(self, device: str) -> AbstractContextManager[None]:
        """Held while timing on `device`: one at a time, across threads and processes of this machine."""
        beside = self.path
        if beside is None:
            try:
                beside = default_directory() / "measuring"  # the database is elsewhere, the device is here
            except Exception as error:  # no home directory, say: threads still take turns
                self._report("written", error)
        return measuring_lock(beside, device).held()

    # What the command line asks ---------------------------------------------------------------------

    def all_specs(self, device: str | None = None) -> list[Key]:
        """(spec, device) pairs that have rows, sorted."""
        pending = self._pending.all_specs(device)
        found: list[Key] = self._ask(lambda queries, connection: queries.all_specs(connection, device), [])
        return sorted({*found, *pending})

    def history(self, spec: str) -> list[Measurement]:
        """Every row of `spec` on every device, oldest first."""
        pending = self._pending.history(spec)
        nothing: tuple[list[Measurement], list[str]] = ([], [])
        found, faults = self._ask(lambda queries, connection: queries.history(connection, spec), nothing)
        self._report_faults(faults)
        return sorted([*found, *pending], key=lambda row: row.measured_at)

    def forget(self, spec: str, device: str | None = None) -> int:
        """Remove the rows and misses of `spec`; gives the number of rows removed."""

        def remove() -> int:
            from autoconv.cache import queries

            return self._opened().write(lambda connection: queries.forget(connection, spec, device))

        with self._lock:
            removed = self._pending.forget(spec, device)
            if self.path is None or self.path.exists():
                removed += self._attempt("written", remove, 0)
            return removed

    def describe(self) -> dict[str, Any]:
        """What this store is and holds, for `autoconv doctor`: nothing secret, and no trouble left out."""
        facts: dict[str, Any] = {
            "kind": "url" if self.path is None else "sqlite",
            "location": self._shown(),
            "exists": self.path is None or self.path.exists(),
            "schema_version": None,
            **dict.fromkeys(("rows", "specs", "misses"), 0),
        }
        if facts["exists"]:
            facts["schema_version"] = self._attempt("read", lambda: self._opened().schema_version(), None)
            facts.update(self._ask(lambda queries, connection: queries.count(connection), {}))
        if self.path is not None:
            companions = [self.path, self.path.with_name(self.path.name + "-wal")]
            facts["size_bytes"] = sum(each.stat().st_size for each in companions if each.exists())
            for name, pragma in (("journal_mode", "journal_mode"), ("integrity", "integrity_check(1)")):
                facts[name] = self._attempt("read", partial(self._pragma, pragma), None) if facts["exists"] else None
            facts["permissions_loose"] = is_loose(self.path)
        facts["pending"] = len(self._pending)
        facts["degraded"] = "; ".join(self._trouble.values()) or None
        return facts

    # Reading ------------------------------------------------------------------------------------------

    def _read_rows(self, spec: str, device: str) -> list[Measurement]:
        if self.path is not None:
            from autoconv.cache import reader  # sqlite3 and no more

            found, faults = reader.read(self.path, spec, device)
        else:
            from autoconv.cache import queries

            nothing: tuple[list[Measurement], list[str]] = ([], [])
            found, faults = self._opened().read(lambda connection: queries.rows(connection, spec, device), nothing)
        self._report_faults(faults)
        return found

    def _ask(self, question: Callable[[Any, Any], T], default: T) -> T:
        """The answer to `question(queries, connection)`; `default` when the database cannot or need not be asked."""

        def ask() -> T:
            from autoconv.cache import queries

            return self._opened().read(lambda connection: question(queries, connection), default)

        return self._attempt("read", ask, default)

    def _pragma(self, name: str) -> str:
        from autoconv.cache import reader

        assert self.path is not None
        connection = reader.connect(self.path)
        try:
            return str(connection.execute(f"PRAGMA {name}").fetchone()[0])
        finally:
            connection.close()

    # Writing ------------------------------------------------------------------------------------------

    def _storable(self, rows: Sequence[Measurement]) -> list[Measurement]:
        """The rows that can be read back; what a row lacks for that is reported, and never stored."""
        storable, faults = sift(rows)
        self._report_faults(faults, "not kept")
        return storable

    def _write_pending(self) -> None:
        """Commit what is in memory, in one transaction, and empty it."""

        def commit() -> None:
            from autoconv.cache import queries

            rows, misses = self._pending.contents()

            def work(connection: Any) -> None:
                if rows:
                    queries.add(connection, rows)
                queries.add_misses(connection, misses)

            self._opened().write(work)
            self._pending.remove(rows, misses)

        with self._lock:
            self._attempt("written", commit, None)

    # Trouble ------------------------------------------------------------------------------------------

    def _attempt(self, what: str, work: Callable[[], T], default: T) -> T:
        """`work()`, or `default` with a warning when it fails; a damaged file is set aside and a new one tried."""
        if time.monotonic() < self._quiet_until[what]:
            return default
        try:
            result = self._insist(work)
        except Exception as error:  # whatever keeps us from remembering must not stop a convolution; the warning tells
            if what == "written" or not isinstance(error, FileNotFoundError):  # reading: nothing was remembered yet
                self._report(what, error)
            return default
        self._trouble.pop(what, None)
        return result

    def _insist(self, work: Callable[[], T]) -> T:
        """`work()`, again after a damaged file was set aside, by this process or, in the middle of it, by another."""
        for _ in range(MOVES):
            file = _identity(self.path)
            try:
                return work()
            except Exception as error:
                if self.path is None:
                    raise
                if trouble_of(error) is Trouble.CORRUPT:
                    self._set_aside(self.path)
                elif _identity(self.path) == file:
                    raise
        return work()

    def _set_aside(self, path: Path) -> None:
        from autoconv.cache.rescue import set_aside

        try:
            kept = set_aside(path)
        except OSError as error:
            raise CacheError(f"{Trouble.CORRUPT.value}, and cannot be set aside: {error}") from error
        if kept is not None:
            _warn(f"{path} is {Trouble.CORRUPT.value}: it was kept as {kept}, and remembering starts anew")

    def _report(self, what: str, error: Exception) -> None:
        kind = trouble_of(error)
        cause = getattr(error, "orig", None) or error
        trouble = f"cannot be {what}: {cause}" if kind is Trouble.OTHER else f"cannot be {what}, {kind.value}: {cause}"
        announced = kind in self._warned or bool(self._trouble)  # one failure shows on both sides
        self._trouble[what] = trouble
        self._quiet_until[what] = time.monotonic() + RETRY_S
        if not announced:
            self._warned.add(kind)
            _warn(f"{self._shown()} {trouble}; this process remembers in memory")

    def _report_faults(self, faults: Sequence[str], met: str = "left out") -> None:
        if faults and met not in self._warned:
            self._warned.add(met)
            _warn(f"{self._shown()}: {len(faults)} unreadable row(s) {met}, the first for {faults[0]}")

    def _shown(self) -> str:
        return str(self.path) if self.path is not None else self._opened().shown

    def _opened(self) -> Database:
        if self._database is None:
            from autoconv.cache.database import Database

            self._database = Database(self.path)
        return self._database

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._pending.after_fork()
        if self._database is not None:
            self._database.after_fork()

    def close(self) -> None:
        """Give up connections; whatever is asked next opens them again."""
        if self._database is not None:
            self._database.close()

    def __repr__(self) -> str:
        return f"<SqlStore {self._shown()}>"


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file is there, if one is."""
    try:
        facts = path.stat() if path is not None else None
    except OSError:
        return None
    return None if facts is None else (facts.st_dev, facts.st_ino)


def _warn(message: str) -> None:
    warnings.warn(f"autoconv: {message}", CacheWarning, stacklevel=2)


_stores: weakref.WeakSet[SqlStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
