"""Throughput and memory of many threads making cached calls in one process.

python benchmarks/load.py [THREADS [CALLS]]       default: 16 threads, 1,000 mixed calls each
"""

from __future__ import annotations

import sys

from _blocks import ROOT

sys.path.insert(0, str(ROOT))

import autoconv
from autoconv.device import cpu
from tests.load.calling import PROBLEMS, run


def main(threads: int = 16, calls: int = 1000) -> None:
    """Tune the problems with the core's own implementations, then let the threads loose."""
    autoconv.settings.set_default(cache=":memory:", require=("numpy", "native"))
    autoconv.tune(PROBLEMS, budget_s=10)
    for count in (1, threads):
        load = run(count, calls * threads // count, calls // 4)
        growth = load.after_bytes / load.before_bytes - 1
        print(
            f"{count:3} threads: {load.calls_per_s:9,.0f} calls/s, {load.wrong} wrong, "
            f"{load.after_bytes / 2**20:.1f} MiB resident, {growth:+.2%} since the warm-up"
        )
    print(f"({cpu().fingerprint})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
