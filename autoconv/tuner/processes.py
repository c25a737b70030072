"""Where worker processes come from: a fresh interpreter, or a fork of one that has imported NumPy and autoconv.

The template is such an interpreter: started once, it runs no candidate and no thread pool, so that forks of it are
safe, as forks of the caller's process would not be. It takes 0.3 s, each fork some milliseconds. Where `fork` is not
known to be sound beside the system's own libraries, each worker is an interpreter of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from autoconv.tuner.wire import Channel, Garbled, Message

__all__ = ["FORKS", "UNKNOWN", "Fresh", "Process", "Template", "processor_s"]

FORKS = sys.platform == "linux"  # macOS's Accelerate and Objective-C do not bear it
START_S = 120.0  # an interpreter and NumPy from a slow disk
ANSWER_S = 10.0  # of a template, which has nothing else to do
UNKNOWN = 1 << 16  # as an exit status: the one who would know has ended too


class Process(Protocol):
    """A worker's process."""

    pid: int

    def status(self) -> int | None:
        """How it ended, a signal below zero; None while it lives. Its number stays its own."""

    def bury(self) -> None:
        """Wait for its end and give its number back."""

    def disown(self) -> None:
        """In a forked child: it is the parent's."""


class Fresh:
    """An interpreter of its own."""

    def __init__(self, words: Sequence[str], pass_on: Sequence[int], errors: int) -> None:
        """Start it. Raises `OSError`."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autoconv.tuner._worker", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=pass_on,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            process_group=0,  # Ctrl-C is for us; and what a candidate starts can be killed with it
        )
        self.pid = self._process.pid

    def status(self) -> int | None:
        """As `Process` says."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody waits for all children
            return UNKNOWN
        if end is None:
            return None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def bury(self) -> None:
        """As `Process` says."""
        self._process.wait()

    def disown(self) -> None:
        """As `Process` says."""
        self._process.returncode = 0  # or `Popen` would complain that it still runs


class Forked:
    """A child of the template's."""

    def __init__(self, template: Template, pid: int) -> None:
        self.pid = pid
        self._template = template

    def status(self) -> int | None:
        """As `Process` says."""
        answer = self._template.ask({"do": "peek", "pid": self.pid})
        if answer is None:
            return UNKNOWN if not Path(f"/proc/{self.pid}").exists() else None
        status = answer["status"]
        return None if status is None else int(status)

    def bury(self) -> None:
        """As `Process` says."""
        self._template.ask({"do": "bury", "pid": self.pid})

    def disown(self) -> None:
        """As `Process` says."""


class Template:
    """The interpreter that forks workers."""

    def __init__(self) -> None:
        self._process: Fresh | None = None
        self._channel: Channel
        self._lifeline = -1
        self._ready = False
        self._lock = threading.RLock()

    @property
    def lives(self) -> bool:
        """Whether it was started and did not end."""
        with self._lock:
            return self._process is not None and self._process.status() is None

    def start(self) -> None:
        """Let it start; nothing waits. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._channel = Channel(ours)
        try:
            words = [str(theirs.fileno()), str(lifeline), "--template"]
            self._process = Fresh(words, (theirs.fileno(), lifeline), subprocess.DEVNULL)
        except BaseException:
            self._hang_up()
            raise
        finally:
            theirs.close()
            os.close(lifeline)

    def fork(self, libraries: Sequence[str], descriptors: Sequence[int]) -> Forked:
        """A worker that imports `libraries`. Raises `OSError` when there can be none."""
        request = {"do": "fork", "libraries": list(libraries), "environment": dict(os.environ), "path": sys.path}
        answer = self.ask(request, descriptors)
        if answer is None:
            raise OSError("the interpreter that forks workers does not start, or has ended")
        return Forked(self, answer["pid"])

    def ask(self, message: Message, descriptors: Sequence[int] = ()) -> Message | None:
        """Its answer; None when it is not there any more."""
        with self._lock:
            if self._process is None:
                return None
            try:
                if not self._ready:
                    self._hear(START_S)
                    self._ready = True
                self._channel.send(message, descriptors)
                return self._hear(ANSWER_S)
            except (OSError, Garbled):
                self.end()
                return None

    def _hear(self, patience_s: float) -> Message:
        received = self._channel.receive() if self._channel.wait(patience_s) else None
        if received is None:
            raise OSError("no answer")
        return received[0]

    def end(self) -> None:
        """Kill it. Its workers are to be ended before."""
        with self._lock:
            if self._process is None:
                return
            with suppress(ProcessLookupError, PermissionError):
                if self._process.status() != UNKNOWN:
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.bury()
            self._process = None
            self._hang_up()

    def abandon(self) -> None:
        """In a forked child: it is the parent's, so close what was inherited and leave it alone."""
        self._lock = threading.RLock()
        if self._process is not None:
            self._process.disown()
            self._process = None
            self._hang_up()

    def processor_s(self) -> float:
        """Processor time that it, and those of its workers that were buried, have used."""
        return 0.0 if self._process is None else processor_s(self._process.pid)

    def _hang_up(self) -> None:
        self._channel.close()
        os.close(self._lifeline)
        self._lifeline, self._ready = -1, False


def processor_s(pid: int) -> float:
    """Processor time that a process and those that it waited for have used; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
