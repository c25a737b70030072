"""Tune the layers of a network beforehand, then run them without a race.

    python examples/tune_a_network.py [NETWORK] [BUDGET_S]

NETWORK is a built-in name (`autoconv tune --help` lists them) or a workload file; BUDGET_S is for all
layers together. Running it again finds everything in the cache.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import autoconv
from autoconv import workloads
from autoconv.verbose import format_time


def main(target: str, budget_s: float) -> None:
    """Tune, show the winners, and run every layer once."""
    work = workloads.load([target])
    for problem in work.problems:
        print(problem, file=sys.stderr)
    layers = workloads.adapt(work.entries, fixed=True)  # filters do not change between calls
    results = autoconv.tune([layer.spec for layer in layers], budget_s=budget_s, progress=sys.stderr.isatty())

    total_s = 0.0
    for layer, result in zip(layers, results, strict=True):
        assert result.decision is not None
        winner = result.decision.winner
        total_s += layer.count * (winner.median_s or 0.0)
        measured = f"measured {result.measured}" if result.measured else "remembered"
        print(f"{layer.name or layer.spec!s:<28} {winner.choice!s:<40} {format_time(winner.median_s):>8}  {measured}")
    print(f"all {sum(layer.count for layer in layers)} convolutions: {format_time(total_s)}")

    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for layer in layers:
        image_shape, filter_shape = layer.spec.operand_shapes
        filters = rng.standard_normal(filter_shape, dtype=np.float32)
        layer_call = autoconv.plan(layer.spec).bind(filters)  # found in the cache: nothing is measured here
        layer_call(rng.standard_normal(image_shape, dtype=np.float32))
    print(f"planned, packed and run once each in {format_time(time.perf_counter() - started)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resnet18", float(sys.argv[2]) if len(sys.argv) > 2 else 20.0)
