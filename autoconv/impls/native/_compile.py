"""From C text to a loaded library: build once per machine, keep, load only what is ours.

Objects are kept in a per-user directory (mode 0700) as `<key>-<digest>.so`: `key` hashes the source,
the flags, the compiler and the CPU, `digest` the object's own bytes. A file that is not the user's,
that others may write, or whose bytes do not match its name is never loaded; it is built anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoconv.impls.native import _compiler, _private
from autoconv.impls.native._compiler import CompileError, Compiler, find_compiler

__all__ = ["CompileError", "build", "library", "load", "stored_object"]

_failed: dict[str, str] = {}  # key -> why: nothing is compiled in vain twice in one process


def library(source: str, openmp: bool, *, may_compile: bool) -> ctypes.CDLL:
    """The loaded object of `source`: the stored one, or if `may_compile` a new one. Raises `CompileError`."""
    path = stored_object(source, openmp)
    if path is not None:
        try:
            return load(path)
        except CompileError:
            if not may_compile:
                raise
            path.unlink(missing_ok=True)  # kept as it was written, but written badly: a full disk does that
    if not may_compile:
        raise CompileError("its compiled object is gone, and nothing is compiled inside a call")
    return load(build(source, openmp))


def stored_object(source: str, openmp: bool) -> Path | None:
    """The object built from `source` earlier, if it is there and may be trusted."""
    compiler = find_compiler()
    if isinstance(compiler, str) or _private.folder_problem():
        return None
    return _trusted(_private.object_directory(), _key(source, openmp, compiler))


def build(source: str, openmp: bool) -> Path:
    """The object of `source`, compiled unless it is stored. Raises `CompileError`; safe to run in threads."""
    compiler = find_compiler()
    if isinstance(compiler, str):
        raise CompileError(compiler)
    problem = _private.folder_problem()
    if problem:
        raise CompileError(problem)
    folder, key = _private.object_directory(), _key(source, openmp, compiler)
    found = _trusted(folder, key)
    if found is not None:
        return found
    with _one_at_a_time(folder / f".lock-{key}"):
        found = _trusted(folder, key)  # another thread or process may have made it meanwhile
        if found is not None:
            return found
        if key in _failed:
            raise CompileError(_failed[key])
        try:
            return _build(source, folder, key, [*compiler.command, *compiler.flags(openmp)])
        except CompileError as error:
            _failed[key] = str(error)
            raise
        except OSError as error:
            raise CompileError(f"compiled objects cannot be kept: {error}") from error


def _key(source: str, openmp: bool, compiler: Compiler) -> str:
    parts = (source, *compiler.flags(openmp), compiler.version, *_compiler.processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _trusted(folder: Path, key: str) -> Path | None:
    """The object of `key` in `folder` that is the user's own and whose bytes match its name."""
    try:
        names = os.listdir(folder)  # not `glob`, which matches thousands of names against a pattern, for 10 ms
    except FileNotFoundError:
        return None
    for path in sorted(folder / name for name in names if name.startswith(f"{key}-") and name.endswith(".so")):
        content = _private.read_private(path)
        if content is not None and _digest(content) == path.stem.partition("-")[2]:
            return path
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _build(source: str, folder: Path, key: str, command: list[str]) -> Path:
    import tempfile  # only building pays for the import, not a cached call

    handle, name = tempfile.mkstemp(prefix=".new-", suffix=".so", dir=folder)
    os.close(handle)
    fresh = Path(name)
    try:
        _compiler.compile_object(command, source, fresh)
        fresh.chmod(0o700)
        final = folder / f"{key}-{_digest(fresh.read_bytes())}.so"
        fresh.replace(final)  # atomic: another process sees all of it or nothing
    finally:
        fresh.unlink(missing_ok=True)
    try:
        load(final)
    except CompileError:
        final.unlink(missing_ok=True)
        raise
    return final


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Held by one thread of one process; given up waiting for after a compiler's time limit, or where files cannot
    be locked: two compilers at work waste time, no more."""
    try:
        import fcntl

        handle = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except (ImportError, OSError):
        yield
        return
    try:
        deadline = time.monotonic() + _compiler.TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break  # a file system without locks
            else:
                break
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # who still waits on it holds the same file; newcomers find the object
        os.close(handle)


# Loading -----------------------------------------------------------------------------------------

_loaded: dict[Path, ctypes.CDLL] = {}
_load_lock = threading.Lock()
_forked = False


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, loaded once per process. Raises `CompileError` when the loader refuses it."""
    with _load_lock:
        found = _loaded.get(path)
        if found is None:
            try:
                found = ctypes.CDLL(str(path))
            except OSError as error:
                raise CompileError(f"{path.name} cannot be loaded: {error}") from error
            if _forked:
                _use_one_thread(found)
            _loaded[path] = found
        return found


def _use_one_thread(loaded: ctypes.CDLL) -> None:
    with suppress(ValueError):  # a unit without threads
        ctypes.c_int.in_dll(loaded, "autoconv_threads").value = 1


def _serial_after_fork() -> None:
    """In a forked child the OpenMP pool's threads are gone and libgomp would wait for them: one thread then."""
    global _forked, _load_lock
    _forked = True
    _load_lock = threading.Lock()  # another thread of the parent may have held it
    for loaded in _loaded.values():
        _use_one_thread(loaded)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_serial_after_fork)
