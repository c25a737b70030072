"""What to do with a file that turned out to be damaged: keep it under another name, make room for a new one."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from autoconv.cache.locks import FileLock
from autoconv.cache.reader import connect
from autoconv.cache.troubles import Trouble, trouble_of

__all__ = ["is_damaged", "set_aside"]

COMPANIONS = ("-wal", "-journal", "-shm")  # what SQLite keeps beside a database


def is_damaged(path: Path) -> bool:
    """Whether SQLite finds the structure of the file at `path` broken, or is not shown a database at all."""
    try:
        with closing(connect(path)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except FileNotFoundError:
        return False
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return trouble_of(error) is Trouble.CORRUPT


def set_aside(path: Path) -> Path | None:
    """Rename a damaged database and its companions to `<name>.corrupt-<time>`; gives the new path.

    None when it is not damaged (any more): another process may have set it aside and made a new one.
    Raises `OSError` where it cannot be renamed.
    """
    with FileLock(path.with_name(f"{path.name}.rescue.lock")).held():
        if not is_damaged(path):
            return None
        target = _free_name(path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}"))
        for suffix in COMPANIONS:  # first: a new database must not find the old one's log
            companion = path.with_name(path.name + suffix)
            if companion.exists():
                companion.rename(target.with_name(target.name + suffix))
        path.rename(target)
        return target


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
