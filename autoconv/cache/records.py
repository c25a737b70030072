"""Measurements as database rows and back, and what a set of rows says about its race.

Knows column names and values but no database: the reader, SQLAlchemy and the memory store share it.
What comes back from a database is checked value by value, and all together by a checksum: a file may have
been damaged or edited, and SQLite does not notice a digit that became another.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from autoconv.errors import CacheError, SchemaTooNew
from autoconv.evidence import USABLE, Choice, Measurement, latest

__all__ = [
    "ADDED",
    "CHECKED_SINCE",
    "COLUMNS",
    "OLDEST_READABLE",
    "SCHEMA_VERSION",
    "STATUSES",
    "Key",
    "answered",
    "check_own",
    "check_version",
    "checksum",
    "columns_at",
    "cut_short",
    "decode",
    "encode",
    "in_sequence",
    "key_of",
    "sift",
]

SCHEMA_VERSION = 4
"""The schema that this autoconv writes; `migrations` holds the steps up to it."""

OLDEST_READABLE = 1
"""The oldest schema that is read as it is where it cannot be migrated."""

CHECKED_SINCE = 3
"""The first schema whose rows have a checksum."""

COLUMNS = (
    "spec",
    "device",
    "choice",
    "status",
    "environment",
    "median_s",
    "spread",
    "samples",
    "workspace_bytes",
    "error",
    "deterministic",
    "strict_nan",
    "tags",
    "reason",
    "race",
    "measured_at",
    "host",
    "enqueue_s",
)
"""The columns of `measurement` that make up a `Measurement`, in the order of its fields."""

ADDED = {"enqueue_s": 4}
"""The columns that the first schema did not have, all optional and the last of `COLUMNS`, and since when."""

STATUSES = USABLE | {"skipped", "wrong", "failed", "crashed", "timeout", "oom"}
MAX_INTEGER = 2**63 - 1  # what an integer column holds

Key: TypeAlias = tuple[str, str]
"""(spec, device)."""


def columns_at(version: int) -> tuple[str, ...]:
    """Those of `COLUMNS` that a schema of this version has."""
    return tuple(name for name in COLUMNS if ADDED.get(name, 0) <= version)


def key_of(row: Measurement) -> Key:
    """What a row is about."""
    return row.spec, row.device


def check_version(version: int, where: str) -> None:
    """Raise `SchemaTooNew` for a schema that a later autoconv made."""
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{where} has schema version {version}, this autoconv knows up to {SCHEMA_VERSION}: "
            "upgrade autoconv, or name another file in AUTOCONV_CACHE"
        )


def check_own(tables: Sequence[str], where: str) -> None:
    """Raise `CacheError` for an SQLite file that has `tables`, but not ours: some other program's data."""
    if tables:
        raise CacheError(f"{where} is somebody else's database, with tables {', '.join(sorted(tables)[:4])}")


def encode(row: Measurement) -> dict[str, Any]:
    """The columns of `measurement` but its id. Raises what `decode` raises for a row that it would refuse."""
    error = row.error
    values: dict[str, Any] = {
        "spec": row.spec,
        "device": row.device,
        "choice": row.choice.to_json(),
        "status": row.status,
        "environment": _json(dict(row.environment)),
        "median_s": _optional_float(row.median_s),
        "spread": _optional_float(row.spread),
        "samples": _json([float(sample) for sample in row.samples]),
        "workspace_bytes": int(row.workspace_bytes),
        "error": None if error is None or math.isnan(error) else float(error),  # databases hold no NaN
        "deterministic": bool(row.deterministic),
        "strict_nan": bool(row.strict_nan),
        "tags": _json(list(row.tags)),
        "reason": _clean(row.reason),
        "race": row.race,
        "measured_at": float(row.measured_at),
        "host": _clean(row.host),
        "enqueue_s": _optional_float(row.enqueue_s),
    }
    if error is not None and math.isnan(error) and row.status in USABLE:
        raise ValueError(f"a row of status {row.status!r} whose error is not a number")
    stored = [values[name] for name in COLUMNS]
    decode(stored)
    values["checksum"] = checksum(stored)
    values["implementation"] = row.choice.implementation
    values["version"] = row.choice.version
    values["object_hash"] = row.environment.get("object", "")
    return values


def sift(rows: Iterable[Measurement]) -> tuple[list[Measurement], list[str]]:
    """The rows that can be stored and read back, and what is wrong with each of the others: a time below 0, say."""
    storable, faults = [], []
    for row in rows:
        try:
            encode(row)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            faults.append(f"{type(error).__name__}: {error}")
        else:
            storable.append(row)
    return storable, faults


def decode(values: Sequence[Any]) -> Measurement:
    """The measurement in the values of `COLUMNS`. Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    row = dict(zip(COLUMNS, values, strict=True))
    enqueue_s = row["enqueue_s"]
    for name in ("spec", "device", "reason", "race", "host"):
        row[name].encode()  # a lone surrogate stands for a byte that was no UTF-8
    status = row["status"]
    if status not in STATUSES:
        raise ValueError(f"unknown status {status!r}")
    if row["deterministic"] not in (0, 1) or row["strict_nan"] not in (0, 1):
        raise ValueError("a flag that is neither true nor false")
    workspace = row["workspace_bytes"]
    if not isinstance(workspace, int) or not 0 <= workspace <= MAX_INTEGER:
        raise ValueError(f"workspace of {workspace!r} bytes")
    error = row["error"]
    if error is not None and not (0 <= error < math.inf or (status not in USABLE and error == math.inf)):
        raise ValueError(f"error of {error!r}")
    return Measurement(
        spec=row["spec"],
        device=row["device"],
        choice=Choice.from_json(row["choice"]),
        status=status,
        environment=_texts_by_name(json.loads(row["environment"])),
        median_s=None if row["median_s"] is None else _time(row["median_s"]),
        spread=None if row["spread"] is None else _finite(row["spread"]),
        samples=tuple(_time(sample) for sample in _list(json.loads(row["samples"]))),
        workspace_bytes=workspace,
        error=None if error is None else float(error),
        deterministic=bool(row["deterministic"]),
        strict_nan=bool(row["strict_nan"]),
        tags=tuple(_text(tag) for tag in _list(json.loads(row["tags"]))),
        reason=row["reason"],
        race=row["race"],
        measured_at=_finite(row["measured_at"]),
        host=row["host"],
        enqueue_s=None if enqueue_s is None else _time(enqueue_s),
    )


def checksum(values: Iterable[Any]) -> str:
    """CRC-32 of a row's values, whichever database held them; raises `TypeError` for a value that no column holds.

    It finds damage, not forgery: who may write to the database may also write a checksum. A column of `ADDED` counts
    where it holds something, so that rows from before it keep their checksums.
    """
    plain = [int(value) if isinstance(value, bool) else value for value in values]  # SQLite has no booleans
    while len(plain) > len(COLUMNS) - len(ADDED) and plain[-1] is None:
        plain.pop()
    return f"{zlib.crc32(json.dumps(plain).encode()):08x}"


# What rows say together -------------------------------------------------------------------------


def answered(rows: Iterable[Measurement]) -> set[Key]:
    """The (spec, device) pairs among `rows` whose race ran to its end."""
    listed = list(rows)
    return {key_of(row) for row in listed} - {key_of(row) for row in listed if row.status == "partial"}


def cut_short(rows: Sequence[Measurement]) -> bool:
    """Whether the last race of one spec on one device (`rows`, oldest first) ended before it was decided."""
    if not rows:
        return False
    last_race = [row for row in rows if row.race == rows[-1].race]
    return any(row.status == "partial" for row in latest(last_race))


def in_sequence(rows: Iterable[Measurement], newest: Mapping[Key, float], now: float) -> list[Measurement]:
    """`rows`, new ones, stamped no earlier than what is `newest` when that lies in the future.

    Rows are ranked by the time of measuring. A clock that was moved back would make new rows look
    older than those they replace; a remembered time later than `now` proves that it was.
    """
    kept = []
    for row in rows:
        before = newest.get(key_of(row), 0.0)
        kept.append(replace(row, measured_at=before) if before > max(now, row.measured_at) else row)
    return kept


# Values -----------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _clean(text: str) -> str:
    """Text that every database takes: a compiler's or library's message may hold any bytes."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _optional_float(value: float | None) -> float | None:
    return None if value is None else float(value)  # NumPy's scalars too


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)


def _time(value: Any) -> float:
    seconds = _finite(value)
    if seconds <= 0:
        raise ValueError(f"a time of {seconds!r} s")
    return seconds


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return value


def _texts_by_name(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return {name: _text(text) for name, text in value.items()}
