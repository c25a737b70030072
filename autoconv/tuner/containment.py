"""First runs in a process that may be lost: what a candidate does there is its own row's business.

A candidate that has no usable row on this device in its present environment is made ready and run in a worker, on
copies of the operands in shared memory. The worker reports what it saw; the result, the guards and the operands are
judged here. Only then is it made ready in the caller's process, to be timed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice
from autoconv.implementation import Implementation
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner.arena import Arena
from autoconv.tuner.operands import SLACK_BYTES
from autoconv.tuner.verify import Judge, Verdict
from autoconv.tuner.wire import Message
from autoconv.tuner.workers import WORKERS, Ended, Worker, available_bytes

__all__ = ["Allowance", "Box", "Trial", "Unfit", "address_of", "cannot_contain", "libraries_of"]

PREPARE_S = 120.0  # to be made ready: a compiler may take a minute, the import of a framework half of one
ROOM_BYTES = 1 << 31  # what a library may take beyond what a candidate declares: code, buffers, pools
MOST_OF_FREE = 0.9  # of the memory that is free on the machine
EXTRA_BYTES = 64 << 20  # libraries keep buffers and touch code in a first run; up to 9 MiB were seen
MOST_THREADS_PER_CORE = 4  # left behind: one pool of a runtime, one of its library, and some to spare

_complained = False


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a first run may take."""

    run_s: float
    workspace_bytes: int
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a first run showed: `status` "ok" or why not, and bytes it took beyond what it declared."""

    status: str
    reason: str = ""
    error: float | None = None
    seconds: float = 0.0
    extra_bytes: int = 0


class Unfit(Exception):
    """The worker cannot make this candidate: it runs in the caller's process then."""


def address_of(one: Implementation) -> str | None:
    """`module:Class` under which a fresh interpreter finds `one` again; None when it cannot be had that way.

    An object with attributes of its own is not made anew by calling its class, and `__main__` is another module there.
    """
    kind = type(one)
    module = sys.modules.get(kind.__module__)
    importable = kind.__module__ != "__main__" and getattr(module, kind.__qualname__, None) is kind
    return f"{kind.__module__}:{kind.__qualname__}" if importable and not vars(one) else None


def libraries_of(registry: Registry, choice: Choice) -> tuple[str, ...]:
    """The optional modules that `choice` and its children import."""
    names = {name for link in choice.chain() for name in registry.get(link.implementation).libraries(link.config)}
    return tuple(sorted(names))


class Box:
    """Where the candidates of one race have their first run."""

    def __init__(self, registry: Registry, spec: ConvSpec, device: Device) -> None:
        self._registry = registry
        self._spec = spec
        self._device = device
        self._arena: Arena | None = None
        self._missed: set[tuple[str, ...]] = set()

    def start(self, choices: Iterable[Choice]) -> None:
        """Let a worker start while there is something else to do, if one of `choices` has use for it."""
        if any(self.holds(choice) and not libraries_of(self._registry, choice) for choice in choices):
            with suppress(OSError):  # met again, and told, when it is needed
                WORKERS.warm(())

    def close(self) -> None:
        """Give the shared memory back."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def relax(self) -> None:
        """After the race: load what it could not wait for, for the next one, and let workers be."""
        for libraries in self._missed:
            with suppress(OSError):
                WORKERS.warm(libraries)
        WORKERS.relax()

    def holds(self, choice: Choice) -> bool:
        """Whether a worker can make `choice`."""
        return self._table(choice) is not None

    def is_ready(self, choice: Choice) -> bool:
        """Whether the libraries of `choice`, if it has any, need not be waited for; if not, it will be next time."""
        libraries = libraries_of(self._registry, choice)
        if not libraries or WORKERS.is_ready(libraries):
            return True
        self._missed.add(libraries)
        return False

    def try_out(self, choice: Choice, judge: Judge, allowance: Allowance) -> Trial:
        """Make `choice` ready and run it; give what is to be stored of it.

        Raises `NoImplementation` or `BackendMissing` when it refuses, `Unfit` when the worker cannot make it, `OSError`
        when there can be no worker.
        """
        table, libraries = self._table(choice), libraries_of(self._registry, choice)
        if table is None:
            raise Unfit(f"{choice} cannot be made by a fresh interpreter")
        if self._arena is None:
            self._arena = Arena(self._spec)
            np.copyto(self._arena.a, judge.operands.a)
            np.copyto(self._arena.b, judge.operands.b)
        self._arena.poison()
        request = {
            "spec": str(self._spec), "device": asdict(self._device), "choice": choice.to_json(), "table": table,
        }  # fmt: skip
        try:
            with WORKERS.lend(libraries) as worker:
                answer = _ask(worker, request, self._arena, allowance)
        except Ended as end:
            return Trial(end.status, end.reason)
        return self._read(answer, judge, allowance)

    def _read(self, answer: Message, judge: Judge, allowance: Allowance) -> Trial:
        """What the answer and the shared memory say."""
        assert self._arena is not None
        event, text = answer.get("event"), str(answer.get("text", ""))
        if event == "refused":
            raise NoImplementation(text, answer["refusals"])
        if event == "missing":
            raise BackendMissing(text)
        if event == "stranger":
            raise Unfit(text)
        if event in ("oom", "failed"):
            return Trial(str(event), text)
        verdict = self._judge(answer, judge, allowance)
        status = "wrong" if verdict.fault else "ok"
        extra_bytes = max(0, answer["extra_bytes"])
        leak = "" if verdict.fault else self._leak(answer["threads"])
        return Trial(
            "failed" if leak else status,
            leak or verdict.fault,
            verdict.error,
            answer["seconds"],
            extra_bytes if extra_bytes > EXTRA_BYTES else 0,
        )

    def _judge(self, answer: Message, judge: Judge, allowance: Allowance) -> Verdict:
        assert self._arena is not None
        arena = self._arena
        error, fault = judge.values(arena.out, allowance.tags)
        trespassed = arena.trespassed
        if _restore(arena.a, judge.operands.a) | _restore(arena.b, judge.operands.b):
            fault = "changes its operands"
        elif trespassed:
            fault = f"writes outside {trespassed}"
        elif answer["trespassed"]:
            fault = "writes outside its workspace"
        elif not fault and answer["workspace_bytes"] > allowance.workspace_bytes + SLACK_BYTES:
            fault = f"takes {answer['workspace_bytes']} bytes of workspace, declares {allowance.workspace_bytes}"
        return Verdict(error, fault)

    def _leak(self, threads: Sequence[int]) -> str:
        """A sentence about threads: counted before, after each call, and after all was dropped."""
        before, *calls, after = threads
        left = after - before
        grows = len(calls) > 2 and all(earlier < later for earlier, later in pairwise(calls))
        if grows and left >= len(calls):
            return f"leaves threads behind: {left} after {len(calls)} calls, more with each"
        if left > MOST_THREADS_PER_CORE * self._device.cores:
            return f"leaves {left} threads behind"
        return ""

    def _table(self, choice: Choice) -> dict[str, str] | None:
        table: dict[str, str] = {}
        for link in choice.chain():
            address = address_of(self._registry.get(link.implementation))
            if address is None:
                return None
            table[link.implementation] = address
        return table


def _ask(worker: Worker, request: Message, arena: Arena, allowance: Allowance) -> Message:
    """The last word of a trial. Raises `Ended`, or `OSError` when the worker does not even start."""
    try:
        worker.is_ready()
    except Ended as end:
        if worker.libraries:
            raise
        raise OSError(f"the worker does not start: {end.reason}") from None  # not the candidate's doing
    room = arena.size + ROOM_BYTES + 2 * allowance.workspace_bytes
    most_bytes = worker.resident_bytes() + min(room, int(MOST_OF_FREE * available_bytes()))
    worker.ask(request, arena.descriptor)
    answer = worker.hear(PREPARE_S, most_bytes)
    if answer.get("event") == "prepared":
        answer = worker.hear(allowance.run_s, most_bytes)
    if answer.get("event") == "crashed":  # its process lives, but the GPU's context is lost: no use to the next one
        raise Ended("crashed", str(answer.get("text", "")))
    return answer


def _restore(copy: Array, original: Array) -> bool:
    """Whether somebody wrote on a copy; it is whole again afterwards."""
    if np.array_equal(copy, original):
        return False
    np.copyto(copy, original)
    return True


def cannot_contain(error: OSError) -> None:
    """Say once that first runs happen in the caller's process, and why."""
    global _complained
    if not _complained:
        _complained = True
        warnings.warn(
            f"candidates have their first run in this process, since they cannot have it in a worker: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
