"""One measurement at a time: a lock per device that threads and processes share.

Across processes it is an advisory lock on a small file beside the database, which the system drops
when its holder dies. Where the file cannot be made or locked (read-only directory, some network file
systems) the lock still holds within the process: a disturbed measurement is better than none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoconv.cache.location import make_directory

__all__ = ["FileLock", "measuring_lock"]

POLL_S = 0.05  # where the system cannot wait for a lock by itself (Windows)

_locks: dict[str, FileLock] = {}
_guard = threading.Lock()


def measuring_lock(beside: Path | None, device: str) -> FileLock:
    """The lock of `device` for the database at `beside`; None: within this process only."""
    import hashlib  # loads OpenSSL, which a mere look-up need not

    digest = hashlib.blake2b(device.encode("utf-8", "replace"), digest_size=6).hexdigest()
    path = None if beside is None else beside.with_name(f"{beside.name}.{digest}.lock")
    return _shared(path, f"memory {device}" if path is None else str(path))


def _shared(path: Path | None, key: str) -> FileLock:
    with _guard:
        return _locks.setdefault(key, FileLock(path))


class FileLock:
    """An exclusive lock on the file at `path`, or on nothing but this object when `path` is None.

    A thread that holds it may take it again. Use `held()` in a `with` statement.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._thread_lock = threading.RLock()
        self._depth = 0
        self._handle: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, hold it within the block."""
        with self._thread_lock:
            if self._depth == 0 and self.path is not None:
                self._handle = _lock_file(self.path)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._handle is not None:
                    handle, self._handle = self._handle, None
                    _unlock_file(handle)

    def leave_to_parent(self) -> None:
        """In a forked child: give up the copy of a handle whose lock is the parent's, without unlocking it."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _lock_file(path: Path) -> int | None:
    """A handle on `path` that is locked, or None where that cannot be had."""
    try:
        make_directory(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError:
        return None
    try:
        _wait_for(handle)
    except OSError:
        os.close(handle)
        return None
    except BaseException:  # Ctrl-C while waiting
        os.close(handle)
        raise
    return handle


def _unlock_file(handle: int) -> None:
    with suppress(OSError):  # closing unlocks as well, once no forked child shares the handle
        _release(handle)
    os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _wait_for(handle: int) -> None:
        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                time.sleep(POLL_S)
            else:
                return

    def _release(handle: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _wait_for(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX)

    def _release(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    for lock in _locks.values():
        lock.leave_to_parent()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
