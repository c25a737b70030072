"""What containment costs: starting a worker, and a first run in it against the same among guards in this process.

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
from autoconv.tuner.verify import Judge
from autoconv.tuner.workers import WORKERS

SPECS = ("fprop n1c8 32x32 k8 3x3 p1", "fprop n1c64 56x56 k64 3x3 p1")
IDS = ("numpy.im2col", "numpy.kn2row", "numpy.winograd", "native.gemm", "native.direct", "onednn.conv",
       "onnxruntime.conv", "torch.conv")  # fmt: skip
STARTS = 5
REPEATS = 9
ENOUGH_S = 60.0
SETTLE_S = 0.05  # pools of the process that ran before spin for so long


def start_s() -> float:
    """Seconds from nothing to a worker that is ready."""
    WORKERS.end_all()
    started = time.perf_counter()
    with WORKERS.lend(()) as worker:
        worker.is_ready()
    return time.perf_counter() - started


def compare(spec: ConvSpec, name: str) -> None:
    """Print the first trial's time (libraries included), and of the later ones the medians beyond the run itself."""
    registry, device = default_registry(), cpu()
    one = registry.get(name)
    reason = one.why_not(spec, device)
    if reason:
        print(f"  {name:<18} refuses: {reason}")
        return
    config = one.configs(spec, device)[0]
    choice = Choice(name, one.version, config)
    one.prefetch(spec, device, config)
    judge, box = Judge(spec, device), Box(registry, spec, device)
    allowance = Allowance(ENOUGH_S, one.workspace_bytes(spec, device, config), one.tags)
    there, here, extra_bytes = [], [], 0
    for _ in range(REPEATS):
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        trial = box.try_out(choice, judge, allowance)
        there.append(time.perf_counter() - started - trial.seconds)
        extra_bytes = max(extra_bytes, trial.extra_bytes)
        time.sleep(SETTLE_S)
        started = time.perf_counter()
        built = registry.build(spec, device, choice)
        verdict = judge.verify(built, judge.runner(built), time.perf_counter)
        here.append(time.perf_counter() - started - verdict.seconds)
    box.close()
    print(
        f"  {name:<18} first {1e3 * there[0]:7.1f} ms, later {1e3 * median(there):5.1f} ms; "
        f"in this process {1e3 * median(here):5.1f} ms; {trial.status}, {extra_bytes >> 20} MiB undeclared"
    )


def main() -> None:
    """Measure."""
    starts = [start_s() for _ in range(STARTS)]
    print(f"a worker is ready after {1e3 * min(starts):.0f} to {1e3 * max(starts):.0f} ms")
    for text in SPECS:
        print(text)
        for name in IDS:
            compare(ConvSpec.parse(text), name)


if __name__ == "__main__":
    main()
