"""Implementations that are broken on purpose, importable so that a worker can make them: each right but for one fault.

They run among the real ones of a registry of their own, so only `numpy.direct`'s loops are borrowed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import zlib
from importlib import import_module
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec

FAR_BYTES = 300_000  # beyond every guard byte, within the forbidden pages
TAKEN_BYTES = 100 << 20  # without a word about it


class Good(Implementation):
    """Nothing is wrong with this one; the others do something after the answer."""

    name = "broken.not"
    layouts = Direct.layouts

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return 1e-6  # so little that no race thinks it hopeless

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _Runner(self, Direct().prepare(spec, Config(), context))

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        """What happens after the answer."""


class _Runner(Runner):
    def __init__(self, owner: Good, truth: Runner) -> None:
        self._owner = owner
        self._truth = truth

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._truth(a, b, out, workspace)
        self._owner.misbehave(a, b, out, workspace)


class Segfault(Good):
    name = "broken.segfault"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.memset(8, 0, 8)


class Abort(Good):
    name = "broken.abort"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        os.write(2, b"something\nfree(): invalid pointer\n")
        os.abort()


class AbortWhenPrepared(Good):
    name = "broken.abort_when_prepared"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        os.abort()


class AbortLater(Good):
    """The second call ends the process."""

    name = "broken.abort_later"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _SecondCall(Direct().prepare(spec, Config(), context))


class _SecondCall(Runner):
    def __init__(self, truth: Runner) -> None:
        self._truth = truth
        self._calls = 0

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._calls += 1
        if self._calls > 1:
            os.abort()
        self._truth(a, b, out, workspace)


class _Later(Good):
    """Misbehaves as soon as there is a file that the test makes."""

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _LaterRunner(self, Direct().prepare(spec, Config(), context))


class _LaterRunner(_Runner):
    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._truth(a, b, out, workspace)
        if os.path.exists(os.environ["AUTOCONV_TEST_FAULT"]):
            self._owner.misbehave(a, b, out, workspace)


class AbortInARound(_Later):
    name = "broken.abort_in_a_round"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        os.write(2, b"free(): invalid pointer\n")
        os.abort()


class HangInARound(_Later):
    name = "broken.hang_in_a_round"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        time.sleep(3600)


class RaisesInARound(_Later):
    name = "broken.raises_in_a_round"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        raise ArithmeticError("tired")


class BlowUpInARound(_Later):
    name = "broken.blow_up_in_a_round"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        kept = []
        while True:
            kept.append(np.ones(1 << 24, np.uint8))


class Spinner(Good):
    """Its pool never goes to sleep."""

    name = "broken.spinner"
    runtime = "spinning"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        threading.Thread(target=_spin, daemon=True).start()
        return super().prepare(spec, config, context)


def _spin() -> None:
    while True:
        zlib.crc32(bytes(1 << 20))  # without the interpreter's lock


class Importing(Good):
    """Needs a module that nobody else does, and is slow."""

    name = "broken.importing"
    seconds = 2e-3

    def libraries(self, config: Config) -> tuple[str, ...]:
        return ("tests.tuner.library",)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        import_module("tests.tuner.library")
        return super().prepare(spec, config, context)

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        time.sleep(self.seconds)


class WrongAtHome(Good):
    """Right in a worker alone."""

    name = "broken.wrong_at_home"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if "pytest" in sys.modules:
            out[0, 0, 0, 0] += 0.01


class Hang(Good):
    name = "broken.hang"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        while True:
            pass


class HangHoldingTheLock(Good):
    """No other thread of its interpreter gets a turn."""

    name = "broken.hang_holding_the_lock"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.PyDLL(None).sleep(3600)


class MemoryBlowUp(Good):
    name = "broken.memory_blow_up"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        kept = []
        while True:
            kept.append(np.ones(1 << 24, np.uint8))


class OutOfMemory(Good):
    name = "broken.out_of_memory"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        np.empty(1 << 60, np.uint8)


class Greedy(Good):
    """Takes memory that it neither declares nor asks the workspace for."""

    name = "broken.greedy"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        np.ones(TAKEN_BYTES, np.uint8)


class ExitAtOnce(Good):
    name = "broken.exit_at_once"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        os._exit(0)


class Exit(Good):
    name = "broken.exit"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        sys.exit("enough")


class Killed(Good):
    """As the system does to who takes too much."""

    name = "broken.killed"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Wrong(Good):
    name = "broken.wrong"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        out[0, 0, 0, 0] += 0.01


class NearWrite(Good):
    name = "broken.near_write"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.memset(out.ctypes.data + out.nbytes, 0, 1)


class FarWrite(Good):
    name = "broken.far_write"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.memset(out.ctypes.data + out.nbytes + FAR_BYTES, 0, 1)


class FarWriteBefore(Good):
    name = "broken.far_write_before"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.memset(a.ctypes.data - FAR_BYTES, 0, 1)


class BesideAnOperand(Good):
    name = "broken.beside_an_operand"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        ctypes.memset(b.ctypes.data - 1, 0, 1)


class PastItsPiece(Good):
    name = "broken.past_its_piece"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        piece = workspace.take(64)
        ctypes.memset(piece.ctypes.data + 64, 0, 1)


class Undeclared(Good):
    name = "broken.undeclared"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        workspace.take(1 << 16)


class ChangedInput(Good):
    name = "broken.changed_input"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        a[0, 0, 0, 0] += 1


class LeakedThreads(Good):
    name = "broken.leaked_threads"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


class ManyThreads(Good):
    """A pool far beyond what the machine has cores for, made once and never dropped."""

    name = "broken.many_threads"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        for _ in range(40 * (os.cpu_count() or 1)):
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return super().prepare(spec, config, context)


class Babbler(Good):
    """Writes rubbish to every descriptor it finds, the tuner's socket among them."""

    name = "broken.babbler"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"\xff" * 64)
            except OSError:
                continue


class Closer(Good):
    """Closes every descriptor and lives on."""

    name = "broken.closer"

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        os.closerange(3, 256)
        time.sleep(3600)


class Rewrite(Good):
    """Right, by its child, which is asked for the problem padded beforehand."""

    name = "broken.rewrite"

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Any:
        yield any(map(any, spec.padding)), "needs padding to take away"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        size = [n + before + after for n, (before, after) in zip(spec.in_spatial, spec.padding, strict=True)]
        return ConvSpec.fprop((spec.batch, spec.in_channels, *size), spec.filter_shape, dtype=spec.dtype)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        lower = self.child_spec(spec)
        return int(np.prod(lower.input_shape)) * spec.itemsize

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _Padded(context.child().runner, spec)


class _Padded(Runner):
    def __init__(self, child: Runner, spec: ConvSpec) -> None:
        self._child = child
        self._spec = spec

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        padded = np.pad(a, ((0, 0), (0, 0), *self._spec.padding))
        self._child(padded, b, out, workspace)


class ParentOnly(Good):
    """Cannot be made by calling its class: it runs in the caller's process."""

    name = "broken.parent_only"

    def __init__(self, note: str) -> None:
        self.note = note
        self.process = 0

    def misbehave(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self.process = os.getpid()
