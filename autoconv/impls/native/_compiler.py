"""The system's C compiler: found, tried out once, and run in bounds.

Trying it out takes some tenths of a second, which a call that only loads an object must not pay. So
the findings are kept beside the objects, under a name that hashes the compiler's file and the CPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from autoconv.device import cpu
from autoconv.errors import BackendMissing
from autoconv.impls.native import _private

if TYPE_CHECKING:
    import subprocess

__all__ = ["FLAGS", "CompileError", "Compiler", "compile_object", "find_compiler", "processor"]

TIMEOUT_S = 60.0  # a kernel takes about a second; a compiler that needs a minute hangs
PROBE_TIMEOUT_S = 10.0  # the same for the lines it is tried out with
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w")
"""No -ffast-math: before GCC 13 linking with it sets flush-to-zero for the whole process."""

_PROBE = "int probe(int x) { return x + 1; }\n"
_OPENMP_PROBE = """#include <omp.h>
int probe(int x) {
    int threads = 0;
    #pragma omp parallel num_threads(1)
    threads = omp_get_num_threads();
    return x + threads;
}
"""


class CompileError(BackendMissing):
    """The compiler is missing, failed, or took too long, or its objects cannot be kept or loaded."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how it is called, its version line, and the flags that fit this CPU."""

    command: tuple[str, ...]
    version: str
    tuning: tuple[str, ...]
    openmp: bool

    def flags(self, openmp: bool) -> tuple[str, ...]:
        """What a kernel is compiled with."""
        return (*FLAGS, *self.tuning, *(("-fopenmp",) if openmp and self.openmp else ()))

    def __str__(self) -> str:
        return f"{' '.join(self.command)}: {self.version}"


@cache
def find_compiler() -> Compiler | str:
    """The system's C compiler, tried out once, or a sentence why there is none that works.

    `CC` in the environment comes first (with its words, `ccache gcc` say), then cc, gcc and clang.
    """
    asked = os.environ.get("CC", "").split()
    reasons = []
    for name, *words in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        path = _on_path(name)
        if path is None:
            reasons.append(f"{name} is not on the path")
            continue
        command = (path, *words)
        try:
            return _recall(command) or _remember(_try_out(command))
        except (CompileError, OSError) as error:
            reasons.append(str(error))
    return f"needs a C compiler: {'; '.join(reasons)}"


def _on_path(name: str) -> str | None:
    """As `shutil.which`, whose module takes longer to import (it loads every compressor) than a cached call may."""
    if os.path.dirname(name) or os.name == "nt":
        import shutil

        return shutil.which(name)
    paths = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _try_out(command: tuple[str, ...]) -> Compiler:
    """What `command` can do; raises `CompileError` when it makes no object that loads and runs."""
    lines = _run([*command, "--version"], timeout_s=PROBE_TIMEOUT_S).strip().splitlines()
    version = _gist(lines[0]) if lines else "unknown version"
    native = "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"
    import tempfile  # as subprocess below: only building pays for the import, not a cached call

    with tempfile.TemporaryDirectory(prefix="autoconv-") as folder:
        _probe([*command, *FLAGS], _PROBE, Path(folder) / "plain.so")
        tuning = (native,) if _works([*command, *FLAGS, native], _PROBE, Path(folder) / "native.so") else ()
        openmp = _works([*command, *FLAGS, "-fopenmp"], _OPENMP_PROBE, Path(folder) / "openmp.so")
    return Compiler(command, version, tuning, openmp)


def _probe(command: Sequence[str], source: str, target: Path) -> None:
    compile_object(command, source, target, PROBE_TIMEOUT_S)
    try:
        answer = ctypes.CDLL(str(target)).probe(1)
    except (OSError, AttributeError) as error:
        raise CompileError(f"{command[0]} makes objects that do not load: {error}") from error
    if answer != 2:
        raise CompileError(f"{command[0]} makes wrong code: 1 + 1 is {answer}")


def _works(command: Sequence[str], source: str, target: Path) -> bool:
    try:
        _probe(command, source, target)
    except CompileError:
        return False
    return True


# The findings, kept ------------------------------------------------------------------------------


def _findings(command: tuple[str, ...]) -> Path:
    status = os.stat(command[0])
    parts = (*command, str(status.st_mtime_ns), str(status.st_size), *FLAGS, *processor())
    return _private.object_directory() / f"compiler-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.json"


def _recall(command: tuple[str, ...]) -> Compiler | None:
    """What was found out about this very file earlier, if that can be trusted."""
    try:
        kept = None if _private.folder_problem() else _private.read_private(_findings(command))
        if not kept:
            return None
        found = json.loads(kept)
        return Compiler(command, str(found["version"]), tuple(map(str, found["tuning"])), True)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is tried out anew


def _remember(compiler: Compiler) -> Compiler:
    """Keep what was found, if that is possible; not without OpenMP, which may be installed any time."""
    if compiler.openmp and not _private.folder_problem():
        with suppress(OSError):
            import tempfile

            target = _findings(compiler.command)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump(asdict(compiler), file)
                Path(name).replace(target)
            finally:
                Path(name).unlink(missing_ok=True)
    return compiler


@cache
def processor() -> tuple[str, ...]:
    """The CPU that `-march=native` means: model, widest vectors, and every feature the system lists."""
    device = cpu()
    features = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass  # not Linux: the model has to do
    return platform.machine(), device.model, device.isa, " ".join(features.split())


# Running it --------------------------------------------------------------------------------------


def compile_object(command: Sequence[str], source: str, target: Path, timeout_s: float | None = None) -> None:
    """Compile C text into a shared object at `target`. Raises `CompileError`."""
    limit_s = TIMEOUT_S if timeout_s is None else timeout_s
    said = _run([*command, "-x", "c", "-", "-o", str(target), "-lm"], source, timeout_s=limit_s)
    if not target.exists() or target.stat().st_size == 0:
        raise CompileError(f"{command[0]} wrote no object: {_gist(said)}")
    if not _is_whole(target.read_bytes()):
        raise CompileError(f"{command[0]} wrote an object that ends early")


def _is_whole(content: bytes) -> bool:
    """Whether an ELF file reaches as far as its headers say: the loader trusts them, and dies of a file cut short."""
    if content[:5] != b"\x7fELF\x02" or sys.byteorder != "little":
        return True  # the loader reads other kinds more carefully
    if len(content) < 64:
        return False
    (sections_at,) = struct.unpack_from("<Q", content, 0x28)
    entry_size, entries = struct.unpack_from("<HH", content, 0x3A)
    return bool(sections_at + entry_size * entries <= len(content))


def _run(command: Sequence[str], stdin: str = "", *, timeout_s: float) -> str:
    """Output of a command; raises `CompileError` when it fails, cannot start or exceeds `timeout_s`."""
    import subprocess

    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # one version line whatever the user's language
            start_new_session=True,  # a driver's children end with it
        )
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be started: {error}") from error
    with process:
        try:
            said, complaint = process.communicate(stdin, timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CompileError(f"{command[0]} did not finish within {timeout_s:g} s") from None
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise CompileError(f"{command[0]} failed with status {process.returncode}: {_gist(complaint)}")
    return said


def _gist(text: str) -> str:
    """The beginning of what a program said, on one line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:2000]).split())[:400]


def _end(process: subprocess.Popen[str]) -> None:
    import signal

    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
