"""Measurements as JSON lines: written for other machines, and read back with distrust.

The first line says what the file is and how many rows follow; each further line is a row, a JSON object
with the fields of a `Measurement`. A file is data from outside: every field is checked for its type, its
range and, where it names an implementation, against the registry; nothing in it is ever executed. One bad
line, and nothing is imported.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TextIO, TypeAlias, cast

import autoconv
from autoconv import dispatch
from autoconv.cache.records import ADDED, COLUMNS
from autoconv.errors import AutoconvError, BadExport
from autoconv.evidence import Measurement
from autoconv.registry import default_registry
from autoconv.scrutiny import MAX_LINE, fields, integer, measurement, plain_object

__all__ = ["FORMAT", "Imported", "read_rows", "receive", "send"]

FORMAT = "autoconv measurements"
FORMAT_VERSION = 1
MAX_ROWS = 2_000_000
FUTURE_S = 86_400.0  # clocks differ; a row from a later day would outrank every measurement until then

Source: TypeAlias = str | os.PathLike[str] | IO[bytes] | Iterable[str]


class _Keeper(Protocol):
    """What every store of `cache/` does beyond `evidence.Store`."""

    def all_specs(self, device: str | None = None) -> list[tuple[str, str]]: ...

    def rows(self, spec: str, device: str) -> list[Measurement]: ...

    def take_in(self, rows: Sequence[Measurement]) -> None: ...


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: rows `added`, rows that were `known` already, and rows `skipped` for an unknown id."""

    added: int
    known: int
    skipped: int = 0


def send(target: str | os.PathLike[str] | TextIO) -> int:
    """Write every remembered row to a path or text file; gives their number. Raises `OSError`.

    A file appears whole or not at all, readable by its owner alone.
    """
    store = cast("_Keeper", dispatch.current_store())
    rows = [row for spec, device in store.all_specs() for row in store.rows(spec, device)]
    head = {"format": FORMAT, "version": FORMAT_VERSION, "rows": len(rows), "autoconv": autoconv.__version__}
    lines = (f"{line}\n" for line in (json.dumps(head), *map(_to_line, rows)))
    if isinstance(target, str | os.PathLike):
        _write(Path(target), lines)
    else:
        target.writelines(lines)
    return len(rows)


def receive(source: Source, *, skip_unknown: bool = False) -> Imported:
    """Add the rows of a path, a binary file or lines to the store: all of them, or none.

    Raises `BadExport` with the number of the first bad line, `CacheError` when the store cannot be written,
    `OSError` for a file that cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return receive(file, skip_unknown=skip_unknown)
    lines = _lines(source) if isinstance(source, io.BufferedIOBase) else source
    rows, skipped = read_rows(lines, skip_unknown=skip_unknown)
    store = cast("_Keeper", dispatch.current_store())
    known = {
        _to_line(row) for key in {(row.spec, row.device) for row in rows} for row in store.rows(*key)
    }  # importing a file twice changes nothing
    fresh = {line: row for row in rows if (line := _to_line(row)) not in known}
    if fresh:
        store.take_in(list(fresh.values()))
    return Imported(len(fresh), len(rows) - len(fresh), skipped)


# Writing -----------------------------------------------------------------------------------------


def _to_line(row: Measurement) -> str:
    error = row.error if row.error is None or math.isfinite(row.error) else "inf"
    plain = {name: getattr(row, name) for name in COLUMNS}
    plain = {name: value for name, value in plain.items() if name not in ADDED or value is not None}
    plain |= {
        "choice": json.loads(row.choice.to_json()),
        "environment": dict(row.environment),
        "samples": list(row.samples),
        "tags": list(row.tags),
        "error": error,
    }
    return json.dumps(plain, sort_keys=True, allow_nan=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a terminal is written to, not replaced
            with path.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            return
    handle, name = tempfile.mkstemp(prefix=".export-", dir=path.parent)  # mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


# Reading -----------------------------------------------------------------------------------------


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines of a file; one that is longer than any row may be comes in pieces, each too long as well."""
    return iter(lambda: file.readline(MAX_LINE + 1), b"")


def _decoded(line: str | bytes, number: int) -> str:
    return line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")


def read_rows(lines: Iterable[str | bytes], *, skip_unknown: bool = False) -> tuple[list[Measurement], int]:
    """The rows of an export, and how many were left out for an unknown id. Raises `BadExport`."""
    registry = default_registry()
    newest = time.time() + FUTURE_S
    declared: int | None = None
    rows: list[Measurement] = []
    skipped = number = 0
    for number, line in enumerate(lines, 1):
        try:
            if declared is None:
                declared = _head(plain_object(_decoded(line, number)))
            elif line.strip():
                row, unknown = measurement(plain_object(_decoded(line, number)), registry, newest)
                if unknown and not skip_unknown:
                    raise ValueError(f"{unknown!r} is unknown here: install what brings it, or skip unknown ids")
                skipped += bool(unknown)
                if not unknown:
                    rows.append(row)
                if len(rows) > MAX_ROWS:
                    raise ValueError(f"more than {MAX_ROWS} rows")
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadExport(f"line {number}: {_said(error)}") from None
    if declared is None:
        raise BadExport("line 1: empty, expected an export's first line")
    if len(rows) + skipped != declared:
        raise BadExport(f"line {number}: ends after {len(rows) + skipped} rows, the first line announces {declared}")
    return rows, skipped


def _said(error: Exception) -> str:
    if isinstance(error, KeyError) and not isinstance(error, AutoconvError):
        return f"lacks {error.args[0]!r}"
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _head(value: dict[str, Any]) -> int:
    if value.get("format") != FORMAT:
        raise ValueError(f"not an export of autoconv: its first line has no 'format': {FORMAT!r}")
    if integer(value.get("version"), "version", 0, MAX_ROWS) != FORMAT_VERSION:
        raise ValueError(f"format version {value['version']}, this autoconv reads {FORMAT_VERSION}")
    fields(value, ("format", "version", "rows", "autoconv"))
    return integer(value["rows"], "rows", 0, MAX_ROWS)
