"""Where measurements are kept, and the care that files in a home directory deserve."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

__all__ = ["FILE_NAME", "create_private", "default_directory", "is_loose", "is_memory", "make_directory", "sqlite_path"]

FILE_NAME = "measurements.sqlite"

_MEMORY = frozenset({":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]*://")
_SQLITE_URL = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<path>[^?]+)")  # with a query it is SQLAlchemy's to read


def default_directory() -> Path:
    """The user's cache directory for autoconv."""
    import platformdirs  # a few milliseconds that a named location need not pay

    return Path(platformdirs.user_cache_dir("autoconv", appauthor=False))


def is_memory(url: str) -> bool:
    """Whether `url` names a database that lives and dies with the process."""
    return url in _MEMORY


def sqlite_path(url: str | None) -> Path | None:
    """The file that `url` names, or None for a URL that is not simply an SQLite file."""
    if url is None:
        return default_directory() / FILE_NAME
    if _URL.match(url) is None:
        return _absolute(url)
    match = _SQLITE_URL.fullmatch(url)
    if match is None:
        return None
    from urllib.parse import unquote

    return _absolute(unquote(match["path"]))


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))  # the working directory may change later


def make_directory(directory: Path) -> None:
    """Create `directory` and its missing parents for this user alone; what exists stays as it is."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        if directory.parent == directory:
            break
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def create_private(path: Path) -> None:
    """Create `path` empty, readable by this user alone, unless it exists: SQLite would follow the umask."""
    make_directory(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))


def is_loose(path: Path) -> bool:
    """Whether somebody else may change `path` or what its directory holds."""
    if not hasattr(os, "getuid"):
        return False  # no such permissions here
    for each in (path, path.parent):
        try:
            status = each.stat()
        except OSError:
            continue
        if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) & ~_sticky(status):
            return True
    return False


def _sticky(status: os.stat_result) -> int:
    """In a sticky directory (/tmp) others may add files but not replace ours."""
    return stat.S_IWGRP | stat.S_IWOTH if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX else 0
