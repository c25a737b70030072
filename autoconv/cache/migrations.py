"""Numbered steps from an empty database to the present schema, each taken once and in order.

A step is never edited after a release: it describes tables as they were, so it does not use `schema`.
A new database takes the same steps as an old one; a test holds their result and `schema` together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    func,
    inspect,
    literal_column,
    select,
    text,
)

from autoconv.cache.records import check_own, check_version, checksum
from autoconv.cache.schema import schema_version

__all__ = ["STEPS", "migrate", "version_of"]


def version_of(connection: Connection) -> int:
    """The number of the last step taken; 0 for a database without our tables."""
    if not inspect(connection).has_table(schema_version.name):
        return 0
    return int(connection.execute(select(func.max(schema_version.c.version))).scalar() or 0)


def migrate(connection: Connection, where: str) -> None:
    """Take the steps that `connection`'s database lacks, within its transaction.

    Raises `SchemaTooNew`, and `CacheError` for an SQLite file of another program; a database server may
    be shared with others.
    """
    version = version_of(connection)
    check_version(version, where)
    if version == 0 and connection.dialect.name == "sqlite":
        check_own(inspect(connection).get_table_names(), where)
    for number in range(version + 1, max(STEPS) + 1):
        STEPS[number](connection)
        connection.execute(schema_version.insert().values(version=number, applied_at=time.time()))


def _first_schema(connection: Connection) -> None:
    """1: measurements, misses and the record of steps."""
    metadata = MetaData()
    Table(
        "measurement",
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("spec", String(255), nullable=False),
        Column("device", String(255), nullable=False),
        Column("implementation", String(255), nullable=False),
        Column("version", Integer, nullable=False),
        Column("choice", Text, nullable=False),
        Column("status", String(16), nullable=False),
        Column("environment", Text, nullable=False),
        Column("median_s", Double),
        Column("spread", Double),
        Column("samples", Text, nullable=False),
        Column("workspace_bytes", BigInteger, nullable=False),
        Column("error", Double),
        Column("deterministic", Boolean, nullable=False),
        Column("strict_nan", Boolean, nullable=False),
        Column("tags", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("race", String(255), nullable=False),
        Column("measured_at", Double, nullable=False),
        Column("host", String(255), nullable=False),
        Index("ix_measurement_spec_device", "spec", "device"),
    )
    Table(
        "miss",
        metadata,
        Column("spec", String(255), primary_key=True),
        Column("device", String(255), primary_key=True),
        Column("count", Integer, nullable=False),
        Column("last_at", Double, nullable=False),
        Column("reason", Text, nullable=False),
    )
    Table(
        "schema_version",
        metadata,
        Column("version", Integer, primary_key=True, autoincrement=False),
        Column("applied_at", Double, nullable=False),
    )
    metadata.create_all(connection, checkfirst=False)  # somebody else's table of that name is an error, not ours


def _object_hash(connection: Connection) -> None:
    """2: the hash of the compiled object gets a column of its own, so that its rows can be found by it."""
    connection.execute(text("ALTER TABLE measurement ADD COLUMN object_hash VARCHAR(255) DEFAULT '' NOT NULL"))
    table = Table(
        "measurement", MetaData(), Column("id", BigInteger), Column("environment", Text), Column("object_hash", Text)
    )
    hashes = []
    for number, environment in connection.execute(select(table.c.id, table.c.environment)):
        try:
            found = json.loads(environment)["object"]
        except (ValueError, KeyError, TypeError):
            continue  # not a compiled one, or a row that no reader will accept either
        if isinstance(found, str):
            hashes.append({"row": number, "hash": found})
    if hashes:
        change = table.update().where(table.c.id == bindparam("row")).values(object_hash=bindparam("hash"))
        connection.execute(change, hashes)


def _checksums(connection: Connection) -> None:
    """3: a checksum of what each row says, so that a damaged one is not taken for a measurement."""
    connection.execute(text("ALTER TABLE measurement ADD COLUMN checksum VARCHAR(8) DEFAULT '' NOT NULL"))
    columns = (
        "spec", "device", "choice", "status", "environment", "median_s", "spread", "samples", "workspace_bytes",
        "error", "deterministic", "strict_nan", "tags", "reason", "race", "measured_at", "host",
    )  # fmt: skip
    table = Table("measurement", MetaData(), Column("id", BigInteger), Column("checksum", Text))
    sums = []
    wanted = select(table.c.id, *map(literal_column, columns)).select_from(table)
    for number, *values in connection.execute(wanted):
        try:
            sums.append({"row": number, "sum": checksum(values)})
        except TypeError:
            continue  # bytes where a text should be: no reader will accept the row, with or without
    if sums:
        change = table.update().where(table.c.id == bindparam("row")).values(checksum=bindparam("sum"))
        connection.execute(change, sums)


def _enqueueing(connection: Connection) -> None:
    """4: what enqueueing a call on a GPU takes the host, apart from the device's time."""
    kind = Double().compile(connection.dialect)
    connection.execute(text(f"ALTER TABLE measurement ADD COLUMN enqueue_s {kind}"))


STEPS: dict[int, Callable[[Connection], None]] = {1: _first_schema, 2: _object_hash, 3: _checksums, 4: _enqueueing}
