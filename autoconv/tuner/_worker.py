"""The process in which candidates have their first run: `python -m autoconv.tuner._worker SOCKET LIFELINE [MODULE...]`.

It imports the modules, says so, and then does one trial after another until the socket's other end is closed, nothing
was asked for a while, or a candidate ends it. It judges nothing: the tuner looks at the shared memory.
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
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice
from autoconv.places import Place, place_of
from autoconv.registry import Registry
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.arena import Arena
from autoconv.tuner.gpu_trouble import PoolGrowth, free_pool, is_lost, is_out_of_memory
from autoconv.tuner.operands import GuardedWorkspace
from autoconv.tuner.verify import Run, as_used
from autoconv.tuner.wire import IDLE_S, Channel, Message
from autoconv.workspace import Workspace

REPEATS = 3  # further calls while the number of threads grows: in the first two a pool may fill, later it leaks
REPEAT_BELOW_S = 50e-3  # of processor time: longer calls are not repeated, nobody should wait for it


def main(words: list[str]) -> None:
    """Serve the tuner on the socket numbered `words[0]` until it is done."""
    channel = Channel(socket.socket(fileno=int(words[0])))
    _end_with_the_tuner(int(words[1]))
    _be_modest()
    for module in words[2:]:
        import_module(module)
    gc.freeze()  # what is there now stays: collections after trials, to find what those left, are quick then
    channel.send({"event": "ready"})
    while channel.wait(IDLE_S):
        received = channel.receive()
        if received is None:
            return
        message, descriptor = received
        if descriptor is not None:
            _serve(channel, message, descriptor)


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


def _serve(channel: Channel, message: Message, descriptor: int) -> None:
    """One trial, and its answers."""
    arena = None
    try:
        if "environment" in message:
            os.environ.clear()
            os.environ.update(message["environment"])
        spec = ConvSpec.parse(message["spec"])
        arena = Arena(spec, descriptor)
        answer = _try(channel, spec, arena, message)
    except NoImplementation as refusal:
        answer = {"event": "refused", "text": str(refusal), "refusals": dict(refusal.refusals)}
    except BackendMissing as missing:
        answer = {"event": "missing", "text": str(missing)}
    except BaseException as error:  # SystemExit too: whatever it raises is its own row's business
        answer = {"event": _name_of(error, message), "text": f"{type(error).__name__}: {error}"}
    finally:
        if arena is not None:
            arena.close()
    channel.send(answer)


def _name_of(error: BaseException, message: Message) -> str:
    """What the error of a trial means for its row."""
    if is_out_of_memory(error):
        return "oom"
    try:
        return "crashed" if is_lost(place_of(Device(**message["device"]))) else "failed"
    except (BackendMissing, KeyError, TypeError):
        return "failed"


def _try(channel: Channel, spec: ConvSpec, arena: Arena, message: Message) -> dict[str, Any]:
    """Make a candidate ready, run it once among guards and, if that is quick, a few times more."""
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
        channel.send({"event": "prepared", "choice": built.choice.to_json()})
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
    del run, built, registry, mirror
    gc.collect()
    free_pool(place)
    return {
        "event": "done",
        "seconds": seconds,
        "workspace_bytes": workspace.peak_bytes,
        "trespassed": workspace.trespassed,
        "extra_bytes": extra_bytes,
        "threads": [*threads, _threads()],
    }


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
