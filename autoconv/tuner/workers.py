"""Worker processes, kept warm: started, asked, watched, and killed when a candidate hangs or takes too much memory.

Each serves candidates of one kind: the same thread pools, and the same optional libraries, which it imports once.
Nothing of a worker outlives this process: the kernel kills it when its lifeline closes.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from autoconv.tuner import processes
from autoconv.tuner.processes import UNKNOWN, Fresh, Process, Template, processor_s
from autoconv.tuner.wire import IDLE_S, Channel, Garbled, Message

__all__ = ["WORKERS", "Ended", "Fault", "Kind", "Worker", "Workers", "available_bytes"]

WATCH_S = 5e-3  # between two looks at a worker's memory: at 10 GB/s, 50 MB
START_S = 120.0  # a framework from a slow disk
LAST_WORDS = 300  # characters of what a worker wrote before it died
DEATH_S = 10.0  # from the end of its messages to the end of the process
FEW_BYTES = 1 << 16  # what a pipe holds


class Kind(NamedTuple):
    """What a worker's candidates have in common: the thread pools that they use, the modules that they import."""

    runtimes: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


class Fault(Exception):
    """What a candidate did in a worker: the status that it means for its row, and a sentence."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Ended(Fault):
    """A worker's end, and what it means for the candidate that was being tried."""


class Worker:
    """One process, and the way to talk to it."""

    def __init__(self, kind: Kind, template: Template | None = None) -> None:
        """Start it, as a fork of `template` if given. Raises `OSError` when there can be none."""
        self.kind = kind
        self.used_at = time.monotonic()
        self._ready = False
        self._told: dict[str, str] = dict(os.environ)
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._words, words = os.pipe()
        os.set_blocking(self._words, False)
        os.set_blocking(words, False)  # who writes more than a pipe holds is not held up: the rest is lost
        self._channel = Channel(ours)
        self._buried = False
        self._process: Process
        try:
            if template is not None:
                self._process = template.fork(kind.libraries, (theirs.fileno(), lifeline, words))
            else:
                pass_on = (theirs.fileno(), lifeline)
                self._process = Fresh([*map(str, pass_on), *kind.libraries], pass_on, words)
        except BaseException:
            self._hang_up()
            raise
        finally:
            theirs.close()
            os.close(lifeline)
            os.close(words)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it is there and will not go for idleness just now."""
        return self._process.status() is None and time.monotonic() - self.used_at < IDLE_S / 2

    def is_ready(self, patience_s: float = START_S) -> bool:
        """Whether it has imported its libraries, within `patience_s` seconds. Raises `Ended`."""
        if not self._ready and self._channel.wait(patience_s):
            self.hear(START_S, available_bytes())
            self._ready = True
        return self._ready

    def ask(self, message: Message, *descriptors: int) -> None:
        """Ask for something. Raises `Ended`."""
        environment = dict(os.environ)
        if environment != self._told:
            message = {**message, "environment": environment}
            self._told = environment
        try:
            self._channel.send(message, descriptors)
        except OSError:
            raise self._obituary() from None

    def hear(self, limit_s: float, limit_bytes: int, watch_s: float = WATCH_S) -> Message:
        """Its next message. Raises `Ended`: it died, or took longer or more memory than this and was killed.

        Its memory is looked at every `watch_s` seconds.
        """
        deadline = time.monotonic() + limit_s
        while not self._channel.wait(watch_s):
            taken = self.resident_bytes()
            if taken > limit_bytes:
                self.kill()
                raise Ended("oom", f"took {taken / 2**20:.0f} MiB, {limit_bytes / 2**20:.0f} MiB were allowed; ended")
            if time.monotonic() > deadline:
                self.kill()
                raise Ended("timeout", f"not done after {limit_s:.3g} s; ended")
        try:
            received = self._channel.receive()
        except Garbled as error:
            self.kill()
            raise Ended("crashed", f"wrote over what its process says: {error}") from error
        if received is None:
            raise self._obituary()
        self.used_at = time.monotonic()
        return received[0]

    def resident_bytes(self) -> int:
        """Memory that it holds now; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_bytes().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor_s(self) -> float:
        """Processor time that it has used; 0 where the system does not say."""
        return processor_s(self.pid)

    def pause(self) -> None:
        """Stop it where it is, so that pools of threads that spin after a call disturb nobody's timing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it and all that it started; once is enough."""
        self._signal(signal.SIGKILL)
        if not self._buried:
            self._buried = True
            self._process.bury()
            self._hang_up()

    def abandon(self) -> None:
        """In a forked child: it is the parent's, so close what was inherited and leave it alone."""
        self._process.disown()
        self._buried = True
        self._hang_up()

    def _signal(self, number: signal.Signals) -> None:
        if not self._buried:  # after that its number may be somebody else's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _hang_up(self) -> None:
        self._channel.close()
        os.close(self._lifeline)
        os.close(self._words)

    def _obituary(self) -> Ended:
        """What the end of its messages means."""
        deadline = time.monotonic() + DEATH_S
        while (status := self._process.status()) is None:
            if time.monotonic() > deadline:
                self.kill()
                return Ended("crashed", "its process closed all files")
            time.sleep(1e-3)
        words = self._last_words()
        self.kill()  # what it started, and its number is free
        if status == -signal.SIGKILL:
            return Ended("oom", "killed by the system, as happens when memory runs out")
        if status == UNKNOWN:
            how = "unseen"
        elif status < 0:
            how = f"by {signal.Signals(-status).name}"
        else:
            how = f"with exit status {status}"
        return Ended("crashed", f"its process ended {how}{': ' * bool(words)}{words}")

    def _last_words(self) -> str:
        try:
            text = os.read(self._words, FEW_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:LAST_WORDS] if lines else ""


class Workers:
    """The workers of this process; those that nobody uses, one of each kind, wait for the next race."""

    def __init__(self) -> None:
        self._template = Template()
        self._idle: dict[Kind, Worker] = {}
        self._all: set[Worker] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Let what workers are made of start, unless it is there. Raises `OSError`."""
        if processes.FORKS:
            with self._lock:
                self._living_template()

    def warm(self, kind: Kind) -> None:
        """Let one start, unless one waits already. Raises `OSError`."""
        if kind not in self._idle:
            self.give_back(self.take(kind))

    def is_ready(self, kind: Kind) -> bool:
        """Whether one waits that has imported its libraries, or died of it."""
        worker = self._idle.get(kind)
        try:
            return worker is not None and worker.is_ready(0)
        except Ended:
            return True

    def processor_s(self) -> float:
        """Processor time that those which live have used; the dead count among this process's children, in the end."""
        return self._template.processor_s() + sum(worker.processor_s() for worker in tuple(self._all))

    def pids(self) -> frozenset[int]:
        """The processes of those which live."""
        return frozenset(worker.pid for worker in tuple(self._all))

    @contextmanager
    def lend(self, kind: Kind) -> Iterator[Worker]:
        """A worker, given back afterwards. Any exception ends it. Raises `OSError` when there can be none."""
        worker = self.take(kind)
        try:
            yield worker
        except BaseException:
            self.end(worker)
            raise
        self.give_back(worker)

    def take(self, kind: Kind) -> Worker:
        """One that waits, or a new one. Raises `OSError` when there can be none."""
        with self._lock:
            found = self._idle.pop(kind, None)
        if found is not None:
            if found.usable:
                found.go_on()
                return found
            self.end(found)
        with self._lock:
            made = self._make(kind)
            self._all.add(made)
        return made

    def give_back(self, worker: Worker) -> None:
        """Let it sleep as it likes, and wait for the next race."""
        worker.go_on()
        with self._lock:
            kept = self._idle.setdefault(worker.kind, worker)
        if kept is not worker:  # another thread's came back meanwhile
            self.end(worker)

    def _make(self, kind: Kind) -> Worker:
        if not processes.FORKS:
            return Worker(kind)
        try:
            return Worker(kind, self._living_template())
        except OSError:  # it was just leaving, after minutes without work
            return Worker(kind, self._living_template())

    def _living_template(self) -> Template:
        if not self._template.lives:
            self._template.end()
            self._template = Template()
            self._template.start()
        return self._template

    def end(self, worker: Worker) -> None:
        """Kill `worker`, and forget it."""
        with self._lock:
            known = worker in self._all
            self._all.discard(worker)
        if known:
            worker.kill()

    def end_all(self) -> None:
        """Kill all of them."""
        self._idle.clear()
        for worker in tuple(self._all):
            self.end(worker)
        self._template.end()

    def abandon_all(self) -> None:
        """In a forked child: none of them is its own."""
        self._lock = threading.Lock()
        for worker in self._all:
            worker.abandon()
        self._template.abandon()
        self._idle.clear()
        self._all.clear()


def available_bytes() -> int:
    """Memory that processes may still take on this machine; a great number where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 1 << 62
    return int(line.split()[1]) * 1024


WORKERS = Workers()
"""Those of this process."""

atexit.register(WORKERS.end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKERS.abandon_all)
