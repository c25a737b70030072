"""Every statement beyond the hot read, in SQLAlchemy Core; each function works within the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, distinct, func, insert, literal_column, select, update

from autoconv.cache.memory import CUT_SHORT, merge_misses
from autoconv.cache.reader import decode_all
from autoconv.cache.records import CHECKED_SINCE, Key, answered, columns_at, cut_short, encode, in_sequence, key_of
from autoconv.cache.schema import measurement, miss
from autoconv.evidence import Measurement, Miss

__all__ = ["add", "add_misses", "all_specs", "count", "forget", "history", "misses", "rows"]

SCHEMA = "autoconv_schema"
"""Where `Connection.info` says the version of the schema that is read."""


def _row(connection: Connection) -> list[ColumnElement[Any]]:
    """What `reader.decode_all` takes, unconverted: it checks every value."""
    columns = columns_at(connection.info[SCHEMA])
    names = (*columns, "checksum") if connection.info[SCHEMA] >= CHECKED_SINCE else columns
    return [literal_column(name) for name in names]


def _decoded(connection: Connection, wanted: Any, spec: str, device: str | None) -> tuple[list[Measurement], list[str]]:
    known = len(columns_at(connection.info[SCHEMA]))
    return decode_all(map(tuple, connection.execute(wanted)), spec, device, known)


def _same(table: Any, spec: str, device: str) -> Any:
    return (table.c.spec == spec) & (table.c.device == device)


def rows(connection: Connection, spec: str, device: str) -> tuple[list[Measurement], list[str]]:
    """As `reader.read`, for any database."""
    wanted = (
        select(*_row(connection))
        .select_from(measurement)
        .where(_same(measurement, spec, device))
        .order_by(measurement.c.id)
    )
    return _decoded(connection, wanted, spec, device)


def add(connection: Connection, new: Sequence[Measurement]) -> None:
    """Append rows and settle the misses they answer."""
    newest: dict[Key, float] = {}
    for key in {key_of(row) for row in new}:
        known, _ = rows(connection, *key)  # not max(measured_at): a damaged stamp would be passed on to new rows
        newest[key] = max((row.measured_at for row in known), default=0.0)
    connection.execute(insert(measurement), [encode(row) for row in in_sequence(new, newest, time.time())])
    for key in answered(new):
        connection.execute(delete(miss).where(_same(miss, *key)))


def add_misses(connection: Connection, new: Iterable[Miss]) -> None:
    """Add the counts of `new` to what is there."""
    for one in new:
        values: dict[str, Any] = {"count": miss.c["count"] + one.count, "last_at": one.last_at}
        if one.reason:
            values["reason"] = one.reason
        if connection.execute(update(miss).where(_same(miss, one.spec, one.device)).values(values)).rowcount == 0:
            connection.execute(
                insert(miss).values(
                    spec=one.spec, device=one.device, count=one.count, last_at=one.last_at, reason=one.reason
                )
            )


def misses(connection: Connection, device: str | None) -> list[Miss]:
    """Open misses and specs whose last race was cut short, most asked for first."""
    asked = select(miss.c.spec, miss.c.device, miss.c["count"], miss.c.last_at, miss.c.reason)
    partial = select(measurement.c.spec, measurement.c.device).where(measurement.c.status == "partial").distinct()
    if device is not None:
        asked = asked.where(miss.c.device == device)
        partial = partial.where(measurement.c.device == device)
    cut = []
    for key in connection.execute(partial).all():
        found, _ = rows(connection, *key)
        if cut_short(found):
            cut.append(Miss(*key, 0, found[-1].measured_at, CUT_SHORT))
    return merge_misses([Miss(*found) for found in connection.execute(asked)], cut)


def all_specs(connection: Connection, device: str | None) -> list[Key]:
    """(spec, device) pairs that have rows."""
    wanted = select(measurement.c.spec, measurement.c.device).distinct()
    if device is not None:
        wanted = wanted.where(measurement.c.device == device)
    return [(spec, where) for spec, where in connection.execute(wanted)]


def history(connection: Connection, spec: str) -> tuple[list[Measurement], list[str]]:
    """Every row of `spec` on every device, oldest first."""
    wanted = select(*_row(connection)).select_from(measurement).where(measurement.c.spec == spec)
    wanted = wanted.order_by(measurement.c.measured_at, measurement.c.id)
    return _decoded(connection, wanted, spec, None)


def forget(connection: Connection, spec: str, device: str | None) -> int:
    """Remove the rows and misses of `spec`; gives the number of rows."""
    removed = 0
    for table in (miss, measurement):
        gone = delete(table).where(table.c.spec == spec)
        if device is not None:
            gone = gone.where(table.c.device == device)
        removed = connection.execute(gone).rowcount
    return removed


def count(connection: Connection) -> dict[str, int]:
    """Numbers of rows, specs and misses."""
    total, specs = connection.execute(
        select(func.count(measurement.c.id), func.count(distinct(measurement.c.spec)))
    ).one()
    open_misses = connection.execute(select(func.count()).select_from(miss)).scalar()
    return {"rows": int(total), "specs": int(specs), "misses": int(open_misses or 0)}
