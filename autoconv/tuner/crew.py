"""The workers of one tuning: one of each kind, of which one runs while the others stand still, and candidates in them.

A candidate that passed its trial is given operands in ordinary memory of its worker's, and gives samples by that
worker's clock. Between turns a worker is stopped by a signal, pools that spin included, so nobody has to wait for them.
A worker that ended while one of its candidates was timed is replaced, and the others are made ready there anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autoconv.tuner.wire import Message
from autoconv.tuner.workers import WORKERS, Ended, Fault, Kind, Worker, available_bytes

__all__ = ["Crew", "Limits", "Remote"]

PREPARE_S = 120.0  # to be made ready: a compiler may take a minute, the import of a framework half of one
ROOM_BYTES = 1 << 31  # what a library may take beyond what a candidate declares: code, buffers, pools
MOST_OF_FREE = 0.9  # of the memory that is free on the machine
SLOWER = 20.0  # than its first run: such a sample is a hang, unless all of it takes less than a first run may
WATCH_S = 25e-3  # between two looks at a worker that is timed: each wakes this process


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate may take in its worker: seconds for a run, bytes beyond what the library needs."""

    run_s: float
    more_bytes: int

    def most_bytes(self, worker: Worker) -> int:
        """How large the worker may become from now on."""
        return worker.resident_bytes() + min(self.more_bytes + ROOM_BYTES, int(MOST_OF_FREE * available_bytes()))


class Crew:
    """The workers of one tuning. They are taken when first needed, and go back by `release`."""

    def __init__(self) -> None:
        self._held: dict[Kind, Worker] = {}
        self._awake: Worker | None = None
        self._most_bytes: dict[Kind, int] = {}

    @contextmanager
    def turn(self, kind: Kind) -> Iterator[Worker]:
        """The worker of this kind, awake, all others stopped. Any exception ends it. Raises `OSError` without one."""
        worker = self._held.get(kind)
        if worker is None:
            worker = self._held[kind] = WORKERS.take(kind)
        if self._awake is not worker:
            self.rest()
            worker.go_on()
            self._awake = worker
        try:
            yield worker
        except BaseException:
            del self._held[kind]
            self._awake = None
            WORKERS.end(worker)
            raise

    def allow(self, kind: Kind, most_bytes: int) -> int:
        """Let the worker of this kind become so large, as one more candidate moves in; how large it may be now."""
        self._most_bytes[kind] = max(most_bytes, self._most_bytes.get(kind, 0))
        return self._most_bytes[kind]

    def most_bytes(self, kind: Kind) -> int:
        """How large the worker of this kind may be, with all who live there."""
        return self._most_bytes[kind]

    def is_ready(self, kind: Kind) -> bool:
        """Whether a worker has imported this kind's libraries already, or died of it."""
        return kind in self._held or WORKERS.is_ready(kind)

    def rest(self) -> None:
        """Stop the one that is awake."""
        if self._awake is not None:
            self._awake.pause()
            self._awake = None

    def forget(self, race: str) -> None:
        """Let workers drop what they hold of a race."""
        for kind in tuple(self._held):
            try:
                with self.turn(kind) as worker:
                    worker.ask({"do": "forget", "race": race})
            except Ended:
                continue  # it has forgotten everything
        self.rest()

    def release(self) -> None:
        """Give all back."""
        self._awake = None
        while self._held:
            WORKERS.give_back(self._held.popitem()[1])


class Remote:
    """A candidate in its worker: made ready on operands of its own there, and sampled."""

    def __init__(self, crew: Crew, kind: Kind, request: Message, share: Callable[[], int], limits: Limits) -> None:
        """`share` gives the descriptor of shared memory with the operands, and with room for a result."""
        self._crew = crew
        self._kind = kind
        self._request = request
        self._place = {key: request[key] for key in ("race", "number")}
        self._share = share
        self._limits = limits
        self._where: Worker | None = None
        self._call_s = 0.0

    def ready(self) -> float:
        """Make it ready and run it once as it will be timed; seconds of that. The result is in the shared memory.

        Raises `Fault`: what went wrong, in the words of a row; `OSError` when there can be no worker.
        """
        with self._crew.turn(self._kind) as worker:
            worker.is_ready()
            most_bytes = self._crew.allow(self._kind, self._limits.most_bytes(worker))
            worker.ask({**self._request, "do": "ready"}, self._share())
            answer = worker.hear(PREPARE_S, most_bytes)
            if answer.get("event") == "prepared":
                answer = worker.hear(self._limits.run_s, most_bytes)
        self._call_s = _seconds(answer)
        self._where = worker
        return self._call_s

    def sample(self, loops: int) -> float:
        """Seconds that so many calls take, by the worker's clock. Raises as `ready` does."""
        with self._crew.turn(self._kind) as worker:
            if worker is self._where:
                limit_s = max(self._limits.run_s, SLOWER * loops * self._call_s)
                worker.ask({**self._place, "do": "sample", "loops": loops})
                answer = worker.hear(limit_s, self._crew.most_bytes(self._kind), WATCH_S)
        if worker is self._where:
            return _seconds(answer)
        self.ready()  # another candidate has ended the worker
        return self.sample(loops)

    def rest(self) -> None:
        """Stop its worker until its next turn."""
        self._crew.rest()


def _seconds(answer: Message) -> float:
    """What a worker measured. Raises `Fault` when it has something else to tell."""
    event = answer.get("event")
    if event == "done":
        return float(answer["seconds"])
    raise Fault("oom" if event == "oom" else "failed", str(answer.get("text", "")))
