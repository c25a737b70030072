"""From C text to a loaded library: find the compiler, build once per machine, load only what is ours.

Objects are kept in a per-user directory (mode 0700) as `<key>-<digest>.so`: `key` hashes the source,
the flags, the compiler and the CPU, `digest` the object's own bytes. A file that is not the user's,
that others may write, or whose bytes do not match its name is never loaded; it is built anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from autoconv.device import cpu
from autoconv.errors import BackendMissing

__all__ = ["CompileError", "Compiler", "find_compiler", "load", "object_directory", "stored_object"]

TIMEOUT_S = 60.0  # a kernel takes about a second; a compiler that needs a minute hangs
PROBE_TIMEOUT_S = 10.0  # the same for the lines it is tried out with
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w")
"""No -ffast-math: before GCC 13 linking with it sets flush-to-zero for the whole process."""


class CompileError(BackendMissing):
    """The compiler is missing, failed, or took too long."""


class Compiler:
    """A C compiler: its path, its version line, and the flags that fit this CPU."""

    def __init__(self, path: str, version: str, tuning: tuple[str, ...], openmp: bool) -> None:
        self.path = path
        self.version = version
        self.tuning = tuning
        self.openmp = openmp

    def __str__(self) -> str:
        return f"{self.path}: {self.version}"


@cache
def find_compiler() -> Compiler | str:
    """The system's C compiler, tried out once per process, or a sentence why there is none that works.

    `CC` in the environment comes first, then cc, gcc and clang.
    """
    asked = os.environ.get("CC", "").split()
    names = [asked[0]] if asked else ["cc", "gcc", "clang"]
    reasons = []
    for name in names:
        path = shutil.which(name)
        if path is None:
            reasons.append(f"{name} is not on the path")
            continue
        tried = _try_out(path)
        if isinstance(tried, Compiler):
            return tried
        reasons.append(tried)
    return f"needs a C compiler: {'; '.join(reasons)}"


def _try_out(path: str) -> Compiler | str:
    """Whether the compiler at `path` makes a shared object from two lines, and with which flags."""
    try:
        said = _run([path, "--version"], timeout_s=PROBE_TIMEOUT_S)
    except CompileError as error:
        return str(error)
    version = said.splitlines()[0].strip() if said.strip() else "unknown version"
    native = "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"
    probe = "int probe(int x) { return x + 1; }\n"
    omp = "#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n"
    with tempfile.TemporaryDirectory(prefix="autoconv-") as folder:
        try:
            _compile([path, *FLAGS], probe, Path(folder) / "probe.so", PROBE_TIMEOUT_S)
        except CompileError as error:
            return str(error)
        tuning = (native,) if _compiles([path, *FLAGS, native], probe, Path(folder) / "native.so") else ()
        openmp = _compiles([path, *FLAGS, "-fopenmp"], omp, Path(folder) / "omp.so")
    return Compiler(path, version, tuning, openmp)


def object_directory() -> Path:
    """Where objects are kept: `AUTOCONV_NATIVE` or the user's cache directory; made private when made."""
    override = os.environ.get("AUTOCONV_NATIVE")
    if override:
        folder = Path(override)
    else:
        from platformdirs import user_cache_path

        folder = user_cache_path("autoconv", appauthor=False) / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _key(source: str, flags: Sequence[str], compiler: Compiler) -> str:
    device = cpu()
    parts = (source, *flags, compiler.version, platform.machine(), device.model, device.isa)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def stored_object(source: str, openmp: bool) -> Path | None:
    """The object built from `source` earlier, if it is there and may be trusted."""
    compiler = find_compiler()
    if isinstance(compiler, str):
        return None
    try:
        folder = object_directory()
        return _trusted(folder, _key(source, _flags(compiler, openmp), compiler))
    except OSError:
        return None


def _flags(compiler: Compiler, openmp: bool) -> list[str]:
    return [*FLAGS, *compiler.tuning, *(["-fopenmp"] if openmp and compiler.openmp else [])]


def _trusted(folder: Path, key: str) -> Path | None:
    """The object of `key` in `folder` if folder and file are the user's own and its bytes match its name."""
    if not _is_private(folder):
        return None
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _is_private(path) and hashlib.sha256(path.read_bytes()).hexdigest()[:32] == path.stem.partition("-")[2]:
            return path
    return None


def _is_private(path: Path) -> bool:
    """Owned by this user, not a link, and writable by nobody else."""
    if not hasattr(os, "getuid"):
        return True  # no owners to compare on this system
    status = path.lstat()
    mine = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    return mine and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


_failed: dict[str, str] = {}  # key -> why: nothing is compiled in vain twice in one process


def build(source: str, openmp: bool) -> Path:
    """The object of `source`, compiled unless it is stored. Raises `CompileError`; safe to run in threads."""
    compiler = find_compiler()
    if isinstance(compiler, str):
        raise CompileError(compiler)
    found = stored_object(source, openmp)
    if found is not None:
        return found
    flags = _flags(compiler, openmp)
    key = _key(source, flags, compiler)
    if key in _failed:
        raise CompileError(_failed[key])
    try:
        return _build(source, flags, key, compiler)
    except CompileError as error:
        _failed[key] = str(error)
        raise


def _build(source: str, flags: Sequence[str], key: str, compiler: Compiler) -> Path:
    try:
        folder = object_directory()
        if not _is_private(folder):
            raise CompileError(f"objects are kept in {folder}, which is not this user's alone")
        handle, name = tempfile.mkstemp(prefix=".new-", suffix=".so", dir=folder)
        os.close(handle)
    except OSError as error:
        raise CompileError(f"compiled objects cannot be kept: {error}") from error
    fresh = Path(name)
    try:
        _compile([compiler.path, *flags], source, fresh)
        fresh.chmod(0o700)
        digest = hashlib.sha256(fresh.read_bytes()).hexdigest()[:32]
        final = folder / f"{key}-{digest}.so"
        fresh.replace(final)  # atomic: another process sees all of it or nothing
    except OSError as error:
        raise CompileError(f"compiled objects cannot be kept: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return final


def _compile(command: list[str], source: str, target: Path, timeout_s: float = TIMEOUT_S) -> None:
    said = _run([*command, "-x", "c", "-", "-o", str(target), "-lm"], source, timeout_s)
    if not target.exists() or target.stat().st_size == 0:
        raise CompileError(f"{command[0]} wrote no object: {said.strip()[:400]}")


def _compiles(command: list[str], source: str, target: Path) -> bool:
    try:
        _compile(command, source, target, PROBE_TIMEOUT_S)
    except CompileError:
        return False
    return True


def _run(command: list[str], stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Output of a command; raises `CompileError` when it fails, cannot start or exceeds `timeout_s`."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"{command[0]} did not finish within {timeout_s:g} s") from None
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be started: {error}") from error
    if done.returncode:
        raise CompileError(f"{command[0]} failed with status {done.returncode}: {done.stderr.strip()[:400]}")
    return done.stdout


_loaded: dict[Path, ctypes.CDLL] = {}
_load_lock = threading.Lock()


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, loaded once per process. Raises `CompileError` when the loader refuses it."""
    with _load_lock:
        library = _loaded.get(path)
        if library is None:
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:
                raise CompileError(f"{path.name} cannot be loaded: {error}") from error
            _loaded[path] = library
        return library


def _serial_after_fork() -> None:
    """In a forked child the OpenMP pool's threads are gone and libgomp would wait for them: one thread then."""
    for library in _loaded.values():
        try:
            ctypes.c_int.in_dll(library, "autoconv_threads").value = 1
        except ValueError:
            continue  # a unit without threads


if hasattr(os, "register_at_fork") and sys.platform != "win32":
    os.register_at_fork(after_in_child=_serial_after_fork)
