"""A directory for compiled objects that nobody but this user writes to, and its files.

What is loaded into the process must not come from somebody else, so everything here asks for the
owner and the permissions first. Files are opened once and judged through the descriptor.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["folder_problem", "is_private", "object_directory", "read_private"]

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def object_directory() -> Path:
    """Where objects are kept: `AUTOCONV_NATIVE` or the user's cache directory; made private when made.

    Raises `OSError` when it is not there and cannot be made.
    """
    override = os.environ.get("AUTOCONV_NATIVE")
    if override:
        folder = Path(override)
    else:
        from platformdirs import user_cache_path

        folder = user_cache_path("autoconv", appauthor=False) / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def folder_problem() -> str | None:
    """Why no object can be taken from the object directory, or None."""
    try:
        folder = object_directory()
        private = is_private(folder.lstat())
    except OSError as error:
        return f"compiled objects cannot be kept: {error}"
    return None if private else f"objects are kept in {folder}, which is not this user's alone"


def is_private(status: os.stat_result) -> bool:
    """Owned by this user, not a link, and writable by nobody else."""
    if not hasattr(os, "getuid"):
        return True  # no owners to compare on this system
    mine = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    return mine and not status.st_mode & WRITABLE_BY_OTHERS


def read_private(path: Path) -> bytes | None:
    """The bytes of a plain file that is this user's alone; None for anything else, or when there is none."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe must not block
    try:
        handle = os.open(path, flags)
    except OSError:
        return None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or not is_private(status):
        os.close(handle)
        return None
    with open(handle, "rb") as file:
        return file.read()
