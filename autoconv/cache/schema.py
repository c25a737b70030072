"""The database's tables, column by column. SQLAlchemy Core: any database it knows can hold them.

`measurement`: one row per candidate measured, never changed after it was written (`forget` removes rows)

 1. id               order of writing
 2. spec             what was computed, the text of a `ConvSpec`
 3. device           where, a `Device.fingerprint` (it names the thread count)
 4. implementation   the candidate's id, for people's queries; the authority is `choice`
 5. version          the implementation's version, likewise
 6. choice           canonical JSON: id, version, config, and the child's for a rewrite
 7. status           ok, partial, suspect, skipped, wrong, failed, crashed, timeout or oom
 8. environment      JSON object: versions of the libraries, compiler and driver that the time depends on
 9. median_s         seconds per call, NULL when there is no time
10. spread           interquartile range / median
11. samples          JSON list: one median in seconds per round of the race
12. workspace_bytes  scratch that a call takes
13. error            max|y - reference| / max|reference|
14. deterministic    whether the bits repeat
15. strict_nan       whether NaN and infinity are carried like by the direct sum
16. tags             JSON list of words for `require` and `exclude`
17. reason           why there is no time, or what is odd about it
18. race             what was timed together shares this text
19. measured_at      seconds since 1970, UTC
20. host             name of the machine
21. object_hash      hash of the compiled object that was measured, '' for none (environment's "object"); since 2
22. checksum         CRC-32 of what the row says, in hexadecimal: a row that it does not fit is left out; since 3
23. enqueue_s        on a GPU: seconds that enqueueing one call took the calling thread, NULL elsewhere; since 4

`miss`: one row per spec and device that was asked for and not remembered

 1. spec             as above
 2. device           as above
 3. count            how often
 4. last_at          seconds since 1970 of the last time
 5. reason           why it was not tuned then

`schema_version`: one row per migration step that was taken; the largest number is the schema's version

 1. version          number of the step
 2. applied_at       seconds since 1970
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = ["KEY_LENGTH", "measurement", "metadata", "miss", "schema_version"]

KEY_LENGTH = 255  # what every database can index; the longest spec and fingerprint known are about 150

_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by themselves only under this name

metadata = MetaData()

measurement = Table(
    "measurement",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("spec", String(KEY_LENGTH), nullable=False),
    Column("device", String(KEY_LENGTH), nullable=False),
    Column("implementation", String(KEY_LENGTH), nullable=False),
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
    Column("race", String(KEY_LENGTH), nullable=False),
    Column("measured_at", Double, nullable=False),
    Column("host", String(KEY_LENGTH), nullable=False),
    Column("object_hash", String(KEY_LENGTH), nullable=False, server_default=""),
    Column("checksum", String(8), nullable=False, server_default=""),
    Column("enqueue_s", Double),
    Index("ix_measurement_spec_device", "spec", "device"),
)

miss = Table(
    "miss",
    metadata,
    Column("spec", String(KEY_LENGTH), primary_key=True),
    Column("device", String(KEY_LENGTH), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("reason", Text, nullable=False),
)

schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_at", Double, nullable=False),
)
