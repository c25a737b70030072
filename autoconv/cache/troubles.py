"""What can be wrong with a database, told apart by the codes that SQLite and the system give."""

from __future__ import annotations

import errno
from enum import Enum

from autoconv.errors import SchemaTooNew

__all__ = ["CacheWarning", "Trouble", "trouble_of"]


class CacheWarning(UserWarning):
    """Measurements cannot be read, written or kept; calls go on without."""


class Trouble(Enum):
    """Kinds of failure that are met differently, or at least told apart in the warning."""

    CORRUPT = "damaged, or not a database"
    LOCKED = "locked by another process"
    FORBIDDEN = "not permitted"
    FULL = "the disk is full"
    TOO_NEW = "written by a later autoconv"
    OTHER = "unusable"


_SQLITE = {  # primary result codes, sqlite.org/rescode.html
    5: Trouble.LOCKED,  # SQLITE_BUSY
    6: Trouble.LOCKED,  # SQLITE_LOCKED
    8: Trouble.FORBIDDEN,  # SQLITE_READONLY
    11: Trouble.CORRUPT,  # SQLITE_CORRUPT
    13: Trouble.FULL,  # SQLITE_FULL
    26: Trouble.CORRUPT,  # SQLITE_NOTADB
}
_SYSTEM = {
    errno.ENOSPC: Trouble.FULL,
    errno.EDQUOT: Trouble.FULL,
    errno.EROFS: Trouble.FORBIDDEN,
    errno.EACCES: Trouble.FORBIDDEN,
    errno.EPERM: Trouble.FORBIDDEN,
}


def trouble_of(error: BaseException) -> Trouble:
    """The kind of a failure raised by `sqlite3`, by SQLAlchemy around a driver, or by the system."""
    if isinstance(error, SchemaTooNew):
        return Trouble.TOO_NEW
    cause = getattr(error, "orig", None) or error  # SQLAlchemy keeps the driver's exception in `orig`
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _SQLITE.get(code & 0xFF, Trouble.OTHER)  # the low byte of an extended code is the primary one
    if isinstance(cause, UnicodeDecodeError):
        return Trouble.CORRUPT  # SQLite's own message quotes what it found in the schema
    if isinstance(cause, OSError):
        return _SYSTEM.get(cause.errno or 0, Trouble.OTHER)
    return Trouble.OTHER
