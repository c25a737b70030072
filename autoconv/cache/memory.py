"""A store that lives and dies with the process: what others degrade to, and what tests use."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from autoconv.cache.locks import measuring_lock
from autoconv.cache.records import Key, answered, cut_short, in_sequence, key_of, sift
from autoconv.cache.troubles import CacheWarning
from autoconv.evidence import Measurement, Miss

__all__ = ["CUT_SHORT", "MemoryStore", "merge_misses"]

CUT_SHORT = "its last race was cut short"


class MemoryStore:
    """Measurements and misses in dicts. Safe to use from many threads."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[Measurement]] = {}
        self._misses: dict[Key, Miss] = {}
        self._lock = threading.Lock()

    def rows(self, spec: str, device: str) -> list[Measurement]:
        """Every row of `spec` on `device`, oldest first."""
        with self._lock:
            return list(self._rows.get((spec, device), ()))

    def add(self, rows: Sequence[Measurement]) -> None:
        """Keep `rows` and settle the misses they answer; what no database would take is left out with a warning."""
        rows, faults = sift(rows)
        if faults:
            message = f"autoconv: {len(faults)} unreadable row(s) not kept, the first for {faults[0]}"
            warnings.warn(message, CacheWarning, stacklevel=2)
        with self._lock:
            newest = {
                key: max(row.measured_at for row in self._rows[key])
                for key in {key_of(row) for row in rows} & self._rows.keys()
            }
            for row in in_sequence(rows, newest, time.time()):
                self._rows.setdefault(key_of(row), []).append(row)
            for key in answered(rows):
                self._misses.pop(key, None)

    take_in = add  # nothing here can fail to be written

    def miss(self, spec: str, device: str, reason: str = "") -> None:
        """Record that `spec` was asked for in vain."""
        with self._lock:
            before = self._misses.get((spec, device))
            count = before.count if before else 0
            reason = reason or (before.reason if before else "")
            self._misses[spec, device] = Miss(spec, device, count + 1, time.time(), reason)

    def misses(self, device: str | None = None) -> list[Miss]:
        """Open misses and specs whose last race was cut short, most asked for first."""
        with self._lock:
            asked = [miss for miss in self._misses.values() if device in (None, miss.device)]
            cut = [
                Miss(*key, 0, rows[-1].measured_at, CUT_SHORT)
                for key, rows in self._rows.items()
                if device in (None, key[1]) and cut_short(rows)
            ]
        return merge_misses(asked, cut)

    def measuring(self, device: str) -> AbstractContextManager[None]:
        """Held while timing on `device`, across the threads of this process."""
        return measuring_lock(None, device).held()

    # What the command line asks ------------------------------------------------------------------

    def all_specs(self, device: str | None = None) -> list[Key]:
        """(spec, device) pairs that have rows, sorted."""
        with self._lock:
            return sorted(key for key in self._rows if device in (None, key[1]))

    def history(self, spec: str) -> list[Measurement]:
        """Every row of `spec` on every device, oldest first."""
        with self._lock:
            found = [row for key, rows in self._rows.items() if key[0] == spec for row in rows]
        return sorted(found, key=lambda row: row.measured_at)

    def forget(self, spec: str, device: str | None = None) -> int:
        """Drop the rows and misses of `spec`; gives the number of rows."""
        with self._lock:
            keys = {key for key in (*self._rows, *self._misses) if key[0] == spec and device in (None, key[1])}
            for key in keys:
                self._misses.pop(key, None)
            return sum(len(self._rows.pop(key, ())) for key in keys)

    def describe(self) -> dict[str, Any]:
        """What this store is and holds, for `autoconv doctor`."""
        with self._lock:
            return {
                "kind": "memory",
                "location": ":memory:",
                "rows": sum(map(len, self._rows.values())),
                "specs": len(self._rows),
                "misses": len(self._misses),
                "degraded": None,
            }

    # What a store that wraps this one needs -------------------------------------------------------

    def contents(self) -> tuple[list[Measurement], list[Miss]]:
        """All rows, in the order of each spec, and all misses."""
        with self._lock:
            return [row for rows in self._rows.values() for row in rows], list(self._misses.values())

    def remove(self, rows: Sequence[Measurement], misses: Sequence[Miss]) -> None:
        """Drop what `contents` gave; what came since stays."""
        gone = set(map(id, rows))
        with self._lock:
            for key in {key_of(row) for row in rows}:
                kept = [row for row in self._rows.pop(key, ()) if id(row) not in gone]
                if kept:
                    self._rows[key] = kept
            for miss in misses:
                now = self._misses.get((miss.spec, miss.device))
                if now is not None and now.count > miss.count:
                    self._misses[miss.spec, miss.device] = replace(now, count=now.count - miss.count)
                else:
                    self._misses.pop((miss.spec, miss.device), None)

    def after_fork(self) -> None:
        """In a forked child the lock may be held by a thread that does not exist there."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._rows.values()))


def merge_misses(*groups: Sequence[Miss]) -> list[Miss]:
    """One miss per spec and device, counts added, the first group's reason before later ones; most asked for first."""
    merged: dict[Key, Miss] = {}
    for miss in (miss for group in groups for miss in group):
        key = miss.spec, miss.device
        known = merged.get(key, Miss(*key, 0, 0.0))
        last_at = max(known.last_at, miss.last_at)
        merged[key] = Miss(*key, known.count + miss.count, last_at, known.reason or miss.reason)
    return sorted(merged.values(), key=lambda miss: (-miss.count, -miss.last_at, miss.spec, miss.device))
