"""What every family of generated kernels shares: configs with threads, building, packing, calling.

A family states how to write the C of one spec and config; this makes it an `Implementation`. Each
unit exports `run(a, b, out, scratch)` and, where filters are packed, `pack(filters, packed)`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL
from typing import Any, ClassVar

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.impls.native import _call, _compile, _private
from autoconv.impls.native._compiler import Compiler, find_compiler
from autoconv.planning import ALIGNMENT, BoundRunner, Direct, Form, Workspace, aligned_bytes, thread_workspace
from autoconv.spec import ConvSpec

__all__ = ["NativeFamily"]

SERIAL_MACS = 30_000  # below this, waking a second thread costs more than it does
EITHER_MACS = 3_000_000  # up to this, one thread may win and is raced as well
TEAM_S = 20e-6  # measured, 15 to 32: what two threads take beyond half of what one takes

Tunables = dict[str, Any]

_EXPORTS = """
void autoconv_run(const void *a, const void *b, void *out, void *scratch) { run(a, b, out, scratch); }
"""
_PACK_EXPORTS = """
void autoconv_pack(const void *b, const void *unused, void *packed, void *scratch) { pack(b, packed); }
void autoconv_pack_run(const void *a, const void *b, void *out, void *scratch) {
    T *packed = (T *)((char *)scratch + %d);
    pack(b, packed);
    run(a, packed, out, scratch);
}
"""


class NativeFamily(Implementation):
    """One family of generated kernels; subclasses write the C."""

    dtypes = frozenset({"f32", "f64"})
    ranks: ClassVar[frozenset[int]] = frozenset({2})
    tags = frozenset({"native"})
    runtime = "openmp"
    compiled = True

    # What a family states -------------------------------------------------------------------------

    @abstractmethod
    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        """The first reason why the family cannot run `spec` (with `tunables`), or None."""

    @abstractmethod
    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        """Few promising sets of tunables, the best guess first."""

    @abstractmethod
    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        """The C text of `run` and, where filters are packed, `pack`."""

    @abstractmethod
    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        """Scratch that `run` takes, for all threads."""

    @abstractmethod
    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        """Size of the packed filters; 0 when `run` takes them as they are."""

    @abstractmethod
    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        """Rough seconds of one `run`."""

    # What follows from it -------------------------------------------------------------------------

    def unavailable(self) -> str | None:
        """Needs a compiler that works and a directory for its objects that is this user's alone."""
        compiler = find_compiler()
        return compiler if isinstance(compiler, str) else _private.folder_problem()

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """The family's own refusal."""
        reason = self.refusal(spec, None if config is None else _tunables(config)[0])
        yield reason is None, reason or ""
        if config is not None:
            threads = _tunables(config)[1]
            yield threads <= device.threads, f"built for {threads} threads, {device.threads} may be used"
            yield threads == 1 or _has_openmp(), f"needs OpenMP for {threads} threads, which {find_compiler()} lacks"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """The family's tunables, for all threads, for one, or for either, by the size of the problem."""
        most = device.threads if _has_openmp() else 1
        counts = [most] if spec.macs > SERIAL_MACS else [1]
        if most > 1 and SERIAL_MACS < spec.macs <= EITHER_MACS:
            counts.append(1)
        return [
            Config(tunables, threads=threads)
            for threads in counts
            for tunables in self.tunables(spec, threads, device.vector_bytes)
        ]

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Scratch of `run`, and the packed filters unless they are bound."""
        tunables, threads = _tunables(config)
        scratch = _round_up(self.scratch_bytes(spec, tunables, threads, device.vector_bytes))
        packed = 0 if spec.fixed else self.packed_bytes(spec, tunables, threads, device.vector_bytes)
        return scratch + _round_up(packed)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The family's guess for `run`, and what it takes to wake a team of threads and to wait for it."""
        tunables, threads = _tunables(config)
        return self.seconds(spec, tunables, threads, device.vector_bytes) + (TEAM_S if threads > 1 else 0.0)

    def environment(self, config: Config) -> Mapping[str, str]:
        """The compiler's version; NumPy has no part in it."""
        compiler = find_compiler()
        return {"cc": compiler if isinstance(compiler, str) else compiler.version}

    def prefetch(self, spec: ConvSpec, device: Device, config: Config) -> None:
        """Compile the unit of `config`; a failure is remembered, and met again when the candidate is prepared."""
        text, threads = self._unit(spec, config, device)
        with suppress(_compile.CompileError):
            _compile.build(text, threads > 1)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Load the kernel; build it first if the context allows."""
        text, threads = self._unit(spec, config, context.device)
        library = _compile.library(text, threads > 1, may_compile=context.may_compile)
        tunables, _ = _tunables(config)
        vector_bytes = context.device.vector_bytes
        scratch = _round_up(self.scratch_bytes(spec, tunables, threads, vector_bytes))
        packed = self.packed_bytes(spec, tunables, threads, vector_bytes)
        return _NativeRunner(library, scratch, _round_up(packed), context.may_compile)

    def _unit(self, spec: ConvSpec, config: Config, device: Device) -> tuple[str, int]:
        """The whole C text of a config, and its thread count."""
        tunables, threads = _tunables(config)
        text = self.source(spec, tunables, threads, device.vector_bytes) + _EXPORTS
        if self.packed_bytes(spec, tunables, threads, device.vector_bytes):
            text += _PACK_EXPORTS % _round_up(self.scratch_bytes(spec, tunables, threads, device.vector_bytes))
        return text, threads


class _NativeRunner(Runner):
    def __init__(self, library: CDLL, scratch_bytes: int, packed_bytes: int, may_compile: bool) -> None:
        self._library = library
        self._scratch_bytes = scratch_bytes
        self._packed_bytes = packed_bytes
        symbol = "autoconv_pack_run" if packed_bytes else "autoconv_run"
        self._call = _call.kernel_call(library, symbol, may_compile=may_compile)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        needed = self._scratch_bytes + self._packed_bytes
        self._call(a, b, out, workspace.take_address(needed) if needed else 0)

    def direct(self, forms: Sequence[Form]) -> Direct | None:
        symbol = "autoconv_pack_run" if self._packed_bytes else "autoconv_run"
        call = _call.checked_call(self._library, symbol, forms)
        return _with_scratch(call, self._scratch_bytes + self._packed_bytes)

    def bind(self, filters: Array) -> BoundRunner:
        packed = filters
        if self._packed_bytes:
            packed = aligned_bytes(self._packed_bytes)
            _call.kernel_call(self._library, "autoconv_pack")(filters, filters, packed, 0)
        return _BoundKernel(self._library, packed, self._scratch_bytes)


class _BoundKernel:
    """A kernel with its packed filters."""

    def __init__(self, library: CDLL, packed: Array, scratch_bytes: int) -> None:
        self._library = library
        self._packed = packed
        self._scratch_bytes = scratch_bytes
        self._call = _call.kernel_call(library, "autoconv_run")

    def __call__(self, a: Array, out: Array, workspace: Workspace) -> None:
        self._call(a, self._packed, out, workspace.take_address(self._scratch_bytes) if self._scratch_bytes else 0)

    def direct(self, forms: Sequence[Form]) -> Direct | None:
        call = _call.checked_call(self._library, "autoconv_run", forms, self._packed)
        return _with_scratch(call, self._scratch_bytes)


def _with_scratch(call: _call.CheckedCall | None, scratch_bytes: int) -> Direct | None:
    """`call` given this thread's scratch; where the thread has too little yet, the long way finds more."""
    if call is None or not scratch_bytes:
        return call

    def direct(*arrays: Any) -> bool:
        address = thread_workspace().free_address(scratch_bytes)
        return address != 0 and call(*arrays, address)

    return direct


def _has_openmp() -> bool:
    compiler = find_compiler()
    return isinstance(compiler, Compiler) and compiler.openmp


def _tunables(config: Config) -> tuple[Tunables, int]:
    """A config's tunables as the family wrote them, and its thread count."""
    values: Tunables = dict(config)
    return values, int(values.pop("threads", 1))


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
