"""What workers cost: starting them, a trial against the same among guards in this process, a turn, a sample.

python benchmarks/isolation.py
"""

from __future__ import annotations

import time
from statistics import median

from autoconv.device import cpu
from autoconv.evidence import Choice
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from autoconv.tuner.containment import Allowance, Box
from autoconv.tuner.crew import Crew, Remote
from autoconv.tuner.verify import Judge
from autoconv.tuner.workers import WORKERS, Kind

SPECS = ("fprop n1c8 32x32 k8 3x3 p1", "fprop n1c64 56x56 k64 3x3 p1")
IDS = ("numpy.im2col", "numpy.kn2row", "numpy.winograd", "native.gemm", "native.direct", "onednn.conv",
       "onnxruntime.conv", "torch.conv")  # fmt: skip
STARTS = 5
REPEATS = 9
ENOUGH_S = 60.0
SETTLE_S = 0.05  # pools of the process that ran before spin for so long
TURNS = 30
FIRST = 8  # calls after a turn begins
OTHER = Kind(("other",))


def start_s() -> tuple[float, float]:
    """Seconds from nothing to a first worker that is ready, and from there to a second of another kind."""
    WORKERS.end_all()
    marks = [time.perf_counter()]
    for kind in (Kind(), OTHER):
        with WORKERS.lend(kind) as worker:
            worker.is_ready()
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1]


def compare(spec: ConvSpec, name: str) -> None:
    """Print what a trial and being made ready take beyond the runs themselves (libraries included in the first)."""
    registry, device, crew = default_registry(), cpu(), Crew()
    one = registry.get(name)
    reason = one.why_not(spec, device)
    if reason:
        print(f"  {name:<18} refuses: {reason}")
        return
    config = one.configs(spec, device)[0]
    choice = Choice(name, one.version, config)
    one.prefetch(spec, device, config)
    judge, box = Judge(spec, device), Box(registry, spec, device, crew)
    allowance = Allowance(ENOUGH_S, one.workspace_bytes(spec, device, config), one.tags)
    there, ready, here, extra_bytes = [], [], [], 0
    remote: Remote | None = None
    for _ in range(REPEATS):
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        trial = box.try_out(choice, judge, allowance)
        there.append(time.perf_counter() - started - trial.seconds)
        remote, extra_bytes = trial.remote, max(extra_bytes, trial.extra_bytes)
        if remote is None:
            print(f"  {name:<18} {trial.status}: {trial.reason}")
            return
        started = time.perf_counter()
        run_s, _ = box.settle(remote, judge, one.tags)
        ready.append(time.perf_counter() - started - run_s)
        crew.rest()
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        built = registry.build(spec, device, choice)
        verdict = judge.verify(built, judge.runner(built), time.perf_counter)
        here.append(time.perf_counter() - started - verdict.seconds)
    assert remote is not None
    print(
        f"  {name:<18} first {1e3 * there[0]:7.1f}, later {1e3 * median(there):5.1f} + {1e3 * median(ready):4.1f} ms; "
        f"in this process {1e3 * median(here):5.1f} ms; {extra_bytes >> 20} MiB undeclared; {turns(crew, remote)}"
    )
    box.leave()
    crew.release()


def turns(crew: Crew, remote: Remote) -> str:
    """What the first calls after a worker's turn began take, and what a sample costs beyond its calls."""
    calls: list[list[float]] = [[] for _ in range(FIRST)]
    spare, change = [], []
    for _ in range(TURNS):
        with crew.turn(OTHER) as worker:
            worker.is_ready()
        for index in range(FIRST):
            started = time.perf_counter()
            seconds = remote.sample(1)
            beyond = time.perf_counter() - started - seconds
            calls[index].append(seconds)
            (spare if index else change).append(beyond)
    shown = " ".join(f"{1e3 * median(one):.3f}" for one in calls)
    return (
        f"calls of a turn {shown} ms; a sample {1e6 * median(spare):.0f} us, a first {1e6 * median(change):.0f} us more"
    )


def main() -> None:
    """Measure."""
    starts = [start_s() for _ in range(STARTS)]
    for which, label in enumerate(("a first worker", "a further one")):
        times = [start[which] for start in starts]
        print(f"{label} is ready after {1e3 * min(times):.0f} to {1e3 * max(times):.0f} ms")
    for text in SPECS:
        print(text)
        for name in IDS:
            compare(ConvSpec.parse(text), name)


if __name__ == "__main__":
    main()
