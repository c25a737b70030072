"""The process in which candidates run and are timed: `python -m autoconv.tuner._worker SOCKET LIFELINE [MODULE...]`.

It imports the modules, says so, and then does what the tuner asks (`try`, `ready`, `sample`) until the socket's other
end is closed, nothing was asked for a while, or a candidate ends it. It judges nothing: the tuner looks at the shared
memory.

With `--template` in place of modules it runs no candidate. It has imported what all workers need, and forks one
whenever it is asked to: that takes milliseconds where a fresh interpreter takes 0.3 s. No thread pool but BLAS's, which
survives a fork, was ever started in it.
"""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice
from autoconv.implementation import Built
from autoconv.places import Place, place_of
from autoconv.registry import Registry
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.arena import Arena
from autoconv.tuner.gpu_trouble import PoolGrowth, free_pool, is_lost, is_out_of_memory
from autoconv.tuner.operands import GuardedWorkspace
from autoconv.tuner.timing import clocked
from autoconv.tuner.verify import Run, as_used
from autoconv.tuner.wire import IDLE_S, Channel, Message
from autoconv.workspace import Workspace

WOKEN_S = 10.0  # one that stood still finds that `IDLE_S` have passed, just before it is asked again
REPEATS = 3  # further calls while the number of threads grows: in the first two a pool may fill, later it leaks
REPEAT_BELOW_S = 50e-3  # of processor time: longer calls are not repeated, nobody should wait for it


def main(words: list[str]) -> None:
    """Serve the tuner on the socket numbered `words[0]` until it is done."""
    channel, lifeline = Channel(socket.socket(fileno=int(words[0]))), int(words[1])
    _end_with_the_tuner(lifeline)
    _be_modest()
    if words[2:] != ["--template"]:
        _work(channel, words[2:])
        return
    forked = _Template(channel, lifeline).serve()
    if forked is not None:
        _work(*forked)


def _work(channel: Channel, modules: Sequence[str]) -> None:
    """Be a worker."""
    for module in modules:
        import_module(module)
    gc.freeze()  # what is there now stays: collections are quick then
    channel.send({"event": "ready"})
    servant = _Servant(channel)
    while channel.wait(IDLE_S) or channel.wait(WOKEN_S):
        received = channel.receive()
        if received is None:
            return
        servant.serve(*received)


def _end_with_the_tuner(lifeline: int) -> None:
    """Be killed by the kernel when the other end of the pipe `lifeline` closes, whatever a candidate is doing then."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _be_modest() -> None:
    """Leave no core file behind, and when memory runs out be the one that goes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError):  # not Linux, or not allowed: the kernel chooses by size then
        Path("/proc/self/oom_score_adj").write_text("1000")


class _Template:
    """Forks workers, and tells how they ended, for they are its children and not the tuner's."""

    def __init__(self, channel: Channel, lifeline: int) -> None:
        self._channel = channel
        self._lifeline = lifeline
        self._children: set[int] = set()

    def serve(self) -> tuple[Channel, Sequence[str]] | None:
        """Until nobody needs it. In a worker that it forked: what that is to serve, and with which modules."""
        gc.freeze()  # collections in workers do not touch, and so copy, what they share
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside BLAS's threads, which bear it
        self._channel.send({"event": "ready"})
        while self._channel.wait(IDLE_S) or self._is_needed():
            if not self._channel.wait(0):
                continue
            received = self._channel.receive()
            if received is None:
                return None
            message, descriptors = received
            if message["do"] == "fork":
                pid = os.fork()
                if pid == 0:
                    return self._become(message, *descriptors)
                os.setpgid(pid, pid)  # both sides do: whoever is first
                self._children.add(pid)
                for descriptor in descriptors:
                    os.close(descriptor)
                self._channel.send({"event": "forked", "pid": pid})
            elif message["do"] == "peek":
                self._channel.send({"event": "ended", "status": self._status(message["pid"])})
            else:
                os.waitpid(message["pid"], 0)
                self._children.discard(message["pid"])
                self._channel.send({"event": "buried"})
        return None

    def _become(self, message: Message, end: int, lifeline: int, words: int) -> tuple[Channel, Sequence[str]]:
        """In the child: be a worker of the tuner's with its own socket, lifeline and standard error."""
        os.setpgid(0, 0)  # Ctrl-C is for the tuner; and what a candidate starts can be killed with it
        self._channel.close()
        os.close(self._lifeline)
        os.dup2(words, 2)
        os.close(words)
        _end_with_the_tuner(lifeline)
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.path[:] = message["path"]
        return Channel(socket.socket(fileno=end)), message["libraries"]

    def _is_needed(self) -> bool:
        return any(self._status(pid) is None for pid in self._children)

    def _status(self, pid: int) -> int | None:
        """How a child ended, a signal below zero; None while it lives."""
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is None:
            return None
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


class _Ground:
    """One race's operands in ordinary memory of this process, and the candidates that are timed on them."""

    def __init__(self, spec: ConvSpec, arena: Arena) -> None:
        second, result = (spec.layout, "nchw") if spec.op is Op.WGRAD else ("nchw", spec.layout)
        self.a, self.b = _own(arena.a, spec.layout), _own(arena.b, second)
        self.out = arrays.empty(spec.result_shape, result, spec.np_dtype)
        self.workspace = Workspace()
        self.samples: dict[int, Callable[[int], float]] = {}


def _own(array: Array, layout: str) -> Array:
    copy = arrays.empty(array.shape, layout, array.dtype)
    np.copyto(copy, array)
    return copy


class _Servant:
    """Does what the tuner asks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._grounds: dict[str, _Ground] = {}
        self._tried: tuple[str, int, Built] | None = None

    def serve(self, message: Message, descriptors: Sequence[int]) -> None:
        """One request, and its answers."""
        if "environment" in message:
            os.environ.clear()
            os.environ.update(message["environment"])
        do, race = message["do"], message["race"]
        if do == "forget":
            self._grounds.pop(race, None)
            self._tried = None
            return
        try:
            if do == "sample":
                seconds = self._grounds[race].samples[message["number"]](message["loops"])
                answer: dict[str, Any] = {"event": "done", "seconds": seconds}
            else:
                answer = self._on_arena(do, message, *descriptors)
        except NoImplementation as refusal:
            answer = {"event": "refused", "text": str(refusal), "refusals": dict(refusal.refusals)}
        except BackendMissing as missing:
            answer = {"event": "missing", "text": str(missing)}
        except BaseException as error:  # SystemExit too: whatever it raises is its own row's business
            answer = {"event": _name_of(error, message), "text": f"{type(error).__name__}: {error}"}
        self._channel.send(answer)

    def _on_arena(self, do: str, message: Message, descriptor: int) -> dict[str, Any]:
        spec = ConvSpec.parse(message["spec"])
        arena = Arena(spec, descriptor)
        try:
            return self._try(spec, arena, message) if do == "try" else self._ready(spec, arena, message)
        finally:
            arena.close()

    def _try(self, spec: ConvSpec, arena: Arena, message: Message) -> dict[str, Any]:
        """Make a candidate ready, run it once among guards and, if that is quick, a few times more."""
        self._tried = None
        device, choice = Device(**message["device"]), Choice.from_json(message["choice"])
        registry = Registry(message["table"])
        try:
            if any(registry.get(link.implementation).version != link.version for link in choice.chain()):
                return {"event": "stranger", "text": "another version here"}
        except Exception as error:
            return {"event": "stranger", "text": f"{type(error).__name__}: {error}"}
        threads = [_threads()]
        place = place_of(device)
        with place.current():
            built = registry.build(spec, device, choice)
            mirror = arena.mirror(place)
            run = as_used(spec, device, built, mirror.a, mirror.b)
            self._channel.send({"event": "prepared"})
            memory = _Memory() if device.kind == "cpu" else PoolGrowth(place)
            workspace = GuardedWorkspace(place)
            started, worked = time.perf_counter(), time.process_time()
            run(mirror.out, workspace)
            place.synchronize()
            seconds, worked = time.perf_counter() - started, time.process_time() - worked
            extra_bytes = memory.grown_bytes() - workspace.peak_bytes
            mirror.take_back()
            threads.append(_threads())
            if worked < REPEAT_BELOW_S:
                _repeat(run, spec, threads, place)
        if device.kind == "cpu":  # where it is timed in this process too
            self._tried = message["race"], message["number"], built
        else:
            del run, built, registry, mirror
            gc.collect()
            free_pool(place)
        return {
            "event": "done",
            "seconds": seconds,
            "workspace_bytes": workspace.peak_bytes,
            "trespassed": workspace.trespassed,
            "extra_bytes": extra_bytes,
            "threads": threads,
        }

    def _ready(self, spec: ConvSpec, arena: Arena, message: Message) -> dict[str, Any]:
        """Let a candidate take its place in a race, and run it once as it will be timed; the result is shared."""
        race, number = message["race"], message["number"]
        device = Device(**message["device"])
        if self._tried is not None and self._tried[:2] == (race, number):
            built = self._tried[2]
        else:  # it was tried in a worker that has ended since
            built = Registry(message["table"]).build(spec, device, Choice.from_json(message["choice"]))
        self._tried = None
        ground = self._grounds.get(race)
        if ground is None:
            ground = self._grounds[race] = _Ground(spec, arena)
        run, out, workspace = as_used(spec, device, built, ground.a, ground.b), ground.out, ground.workspace
        self._channel.send({"event": "prepared"})
        sample = clocked(lambda: run(out, workspace), time.perf_counter)
        out[...] = np.nan
        seconds = sample(1)
        np.copyto(arena.out, out)
        ground.samples[number] = sample
        return {"event": "done", "seconds": seconds}


def _name_of(error: BaseException, message: Message) -> str:
    """What the error of a candidate means for its row."""
    if is_out_of_memory(error):
        return "oom"
    try:
        return "crashed" if is_lost(place_of(Device(**message["device"]))) else "failed"
    except (BackendMissing, KeyError, TypeError):
        return "failed"


def _repeat(run: Run, spec: ConvSpec, threads: list[int], place: Place) -> None:
    """Call again in ordinary memory, as it will be used, and count threads."""
    layout = "nchw" if spec.op is Op.WGRAD else spec.layout
    out = place.empty(spec.result_shape, layout, spec.np_dtype)
    workspace = Workspace() if place.device.kind == "cpu" else place.workspace()
    for _ in range(REPEATS):
        run(out, workspace)
        place.synchronize()
        threads.append(_threads())
        if threads[-1] <= threads[-2]:
            break


def _threads() -> int:
    """Threads of this process; where the system does not list them, those that Python knows."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


class _Memory:
    """How far this process's memory grows at its highest from here on, as the kernel counts it."""

    def __init__(self) -> None:
        self._before: int | None = None
        with suppress(OSError, StopIteration):  # a kernel that does not count has nothing to tell
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present level
            self._before = self._high_water()

    def grown_bytes(self) -> int:
        """Bytes by which the highest level since the start exceeds the level then; 0 when nobody counts."""
        return 0 if self._before is None else self._high_water() - self._before

    def _high_water(self) -> int:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
