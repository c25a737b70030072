"""What tuning costs and what it misses: time against the exhaustive race, regret, agreement of two tunings.

    python benchmarks/bench_tuning.py benchmarks/shapes/networks.txt --most-gmac 0.3 --count 30

For each shape: one exhaustive tuning (a long budget), two short ones in fresh stores, then the winners
timed apart, in turn, in fresh plans. Regret is the short winner's time over the best winner's, less 1;
two tunings agree when they choose alike or their winners differ by less than `TIE_GAP`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from compare import read_shapes

from autoconv.cache import MemoryStore
from autoconv.device import cpu
from autoconv.evidence import TIE_GAP
from autoconv.options import Settings
from autoconv.planning import Workspace
from autoconv.registry import Registry, default_registry
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner, TuningResult
from autoconv.tuner.verify import Judge

ROUNDS = 15
SAMPLE_S = 0.02


def tune(registry: Registry, spec: ConvSpec, budget_s: float) -> tuple[TuningResult, float]:
    """A tuning that remembers nothing from before, and its seconds."""
    start = time.perf_counter()
    result = Tuner(registry, MemoryStore()).tune(spec, cpu(), Settings().limits(spec.dtype), budget_s=budget_s)
    return result, time.perf_counter() - start


def apart(spec: ConvSpec, results: list[TuningResult]) -> list[float]:
    """Median seconds of each result's winner, timed in turn."""
    judge, workspace = Judge(spec, cpu()), Workspace()
    import numpy as np

    out = np.empty(spec.result_shape, spec.np_dtype)
    runs = []
    for result in results:
        assert result.built is not None
        runs.append(judge.runner(result.built))
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(out, workspace)
    for _ in range(ROUNDS):
        for index in random.sample(range(len(runs)), len(runs)):
            time.sleep(2e-3)
            runs[index](out, workspace)
            calls, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < SAMPLE_S:
                runs[index](out, workspace)
                calls += 1
            samples[index].append(elapsed / calls)
    return [median(values) for values in samples]


def main() -> None:
    """Tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("--most-gmac", type=float, default=0.3)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds per short tuning")
    parser.add_argument("--exhaustive", type=float, default=120.0, help="seconds per exhaustive tuning")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    registry = default_registry()
    pool = [(name, spec) for name, spec in read_shapes(options.shapes) if spec.macs <= options.most_gmac * 1e9]
    step = max(1, len(pool) // options.count)
    records: list[dict[str, Any]] = []
    for name, spec in pool[::step][: options.count]:
        full, full_s = tune(registry, spec, options.exhaustive)
        one, one_s = tune(registry, spec, options.budget)
        two, two_s = tune(registry, spec, options.budget)
        times = apart(spec, [full, one, two])
        best = min(times)
        choices = [str(result.built.choice) for result in (full, one, two) if result.built]
        agree = choices[1] == choices[2] or abs(times[1] / times[2] - 1) < TIE_GAP
        records.append(
            {
                "name": name,
                "spec": str(spec),
                "choices": choices,
                "regret": [times[1] / best - 1, times[2] / best - 1],
                "time_share": [one_s / full_s, two_s / full_s],
                "seconds": [full_s, one_s, two_s],
                "agree": agree,
            }
        )
        regret = 100 * max(records[-1]["regret"])
        print(f"{name:<44} {full_s:6.1f} s {one_s:5.1f} s  regret {regret:5.1f} %  {choices[1]}", flush=True)
    totals = {
        "shapes": len(records),
        "mean_regret": mean(r for record in records for r in record["regret"]),
        "time_share": sum(s for r in records for s in r["seconds"][1:]) / 2 / sum(r["seconds"][0] for r in records),
        "agreement": mean(record["agree"] for record in records),
        "device": cpu().fingerprint,
    }
    print(json.dumps(totals, indent=2))
    if options.json:
        options.json.write_text(json.dumps({**totals, "records": records}, indent=1))


if __name__ == "__main__":
    main()
