"""First runs in a process that may be lost: what a candidate does there is its own row's business.

A candidate is made ready and run in a worker, on copies of the operands in shared memory. The worker reports what it
saw; the result, the guards and the operands are judged here. Only then is it timed, there too.
"""

from __future__ import annotations

import sys
import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count, pairwise

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice
from autoconv.implementation import Implementation
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner.arena import Arena
from autoconv.tuner.crew import MOST_OF_FREE, PREPARE_S, Crew, Limits, Remote
from autoconv.tuner.operands import SLACK_BYTES
from autoconv.tuner.verify import Judge, Verdict
from autoconv.tuner.wire import Message
from autoconv.tuner.workers import WORKERS, Ended, Kind, Worker, available_bytes

__all__ = ["Allowance", "Box", "Trial", "Unfit", "address_of", "cannot_contain", "kind_of"]

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
    """What a first run showed: `status` "ok" or why not, and bytes it took beyond what it declared.

    `remote` is how it is timed in its worker; None on a GPU, and where memory is too short for operands of its own.
    """

    status: str
    reason: str = ""
    error: float | None = None
    seconds: float = 0.0
    extra_bytes: int = 0
    remote: Remote | None = None


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


def kind_of(registry: Registry, choice: Choice) -> Kind:
    """The thread pools that `choice` and its children use, and the optional modules that they import."""
    links = [(registry.get(link.implementation), link.config) for link in choice.chain()]
    runtimes = {one.runtime for one, _ in links} - {"none"}
    libraries = {name for one, config in links for name in one.libraries(config)}
    return Kind(tuple(sorted(runtimes)), tuple(sorted(libraries)))


class Box:
    """Where the candidates of one race have their first run, in the workers of `crew`."""

    def __init__(self, registry: Registry, spec: ConvSpec, device: Device, crew: Crew) -> None:
        self._registry = registry
        self._spec = spec
        self._device = device
        self._crew = crew
        self._arena: Arena | None = None
        self._missed: set[Kind] = set()
        self._race = uuid.uuid4().hex
        self._numbers = count()
        self._settled: set[Kind] = set()

    def close(self) -> None:
        """Give the shared memory back; it is made again should somebody need it."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def leave(self) -> None:
        """After the race: give all memory back, and load what it could not wait for, for the next one."""
        self.close()
        self._crew.forget(self._race)
        for kind in self._missed:
            with suppress(OSError):
                WORKERS.warm(kind)

    def rest(self) -> None:
        """Let no worker run."""
        self._crew.rest()

    def holds(self, choice: Choice) -> bool:
        """Whether a worker can make `choice`."""
        return self._table(choice) is not None

    def is_ready(self, choice: Choice) -> bool:
        """Whether the libraries of `choice`, if it has any, need not be waited for; if not, it will be next time."""
        kind = kind_of(self._registry, choice)
        if not kind.libraries or self._crew.is_ready(kind):
            return True
        self._missed.add(kind)
        return False

    def try_out(self, choice: Choice, judge: Judge, allowance: Allowance) -> Trial:
        """Make `choice` ready and run it; give what is to be stored of it.

        Raises `NoImplementation` or `BackendMissing` when it refuses, `Unfit` when the worker cannot make it, `OSError`
        when there can be no worker.
        """
        table, kind = self._table(choice), kind_of(self._registry, choice)
        if table is None:
            raise Unfit(f"{choice} cannot be made by a fresh interpreter")
        arena = self._shared(judge)
        arena.poison()
        limits = Limits(allowance.run_s, arena.size + 2 * allowance.workspace_bytes)
        request = {
            "race": self._race, "number": next(self._numbers), "spec": str(self._spec),
            "device": asdict(self._device), "choice": choice.to_json(), "table": table,
        }  # fmt: skip
        try:
            with self._crew.turn(kind) as worker:
                answer = _ask(worker, request, arena, limits)
        except Ended as end:
            return Trial(end.status, end.reason)
        trial = self._read(answer, judge, allowance)
        if trial.status != "ok" or self._device.kind != "cpu" or not self._has_room(kind, allowance):
            return trial
        return replace(trial, remote=Remote(self._crew, kind, request, lambda: self._shared(judge).descriptor, limits))

    def settle(self, remote: Remote, judge: Judge, tags: frozenset[str]) -> tuple[float, str]:
        """Make a candidate ready to be timed, run it as it will be: seconds, and a sentence if the result is wrong.

        Raises what `Remote.ready` does.
        """
        seconds = remote.ready()
        _, fault = judge.values(self._shared(judge).out, tags)
        return seconds, fault

    def _shared(self, judge: Judge) -> Arena:
        """The operands in shared memory."""
        if self._arena is None:
            self._arena = Arena(self._spec)
            np.copyto(self._arena.a, judge.operands.a)
            np.copyto(self._arena.b, judge.operands.b)
        return self._arena

    def _has_room(self, kind: Kind, allowance: Allowance) -> bool:
        """Whether operands and a result of its own fit into memory beside what a candidate takes."""
        assert self._arena is not None
        if kind not in self._settled:
            if self._arena.size + 2 * allowance.workspace_bytes > MOST_OF_FREE * available_bytes():
                return False
            self._settled.add(kind)
        return True

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
        """A sentence about threads: counted before, and after each call."""
        before, *calls = threads
        left = calls[-1] - before
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


def _ask(worker: Worker, request: Message, arena: Arena, limits: Limits) -> Message:
    """The last word of a trial. Raises `Ended`, or `OSError` when the worker does not even start."""
    try:
        worker.is_ready()
    except Ended as end:
        if worker.kind.libraries:
            raise
        raise OSError(f"the worker does not start: {end.reason}") from None  # not the candidate's doing
    most_bytes = limits.most_bytes(worker)
    worker.ask({**request, "do": "try"}, arena.descriptor)
    answer = worker.hear(PREPARE_S, most_bytes)
    if answer.get("event") == "prepared":
        answer = worker.hear(limits.run_s, most_bytes)
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
