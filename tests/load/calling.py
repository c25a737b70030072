"""Many threads making cached calls: what the test and the benchmark share."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import numpy as np

import autoconv
from autoconv import testing
from autoconv.arrays import Array
from autoconv.spec import ConvSpec

__all__ = ["PROBLEMS", "Load", "resident_bytes", "run"]

PROBLEMS = [
    ConvSpec.parse(text)
    for text in (
        "fprop n1c1 8x8 k1 3x3 f32",
        "fprop n1c4 12x12 k4 3x3 p1 f32",
        "fprop n2c3 9x10 k4 3x3 p1 s2 f64",
        "fprop n1c6 11x9 k6 3x3 p1 g6 f32",
        "fprop n1c3 16x16 k8 1x1 f32",
        "fprop n1c2 20x20 k2 5x5 p2 d2 corr f32",
        "dgrad n1c4 12x12 k4 3x3 p1 f32",
        "wgrad n2c3 9x10 k4 3x3 p1 f32",
    )
]


@dataclass(frozen=True)
class Load:
    """What a run came to: wrong results, calls per second, and resident bytes after the warm-up and at the end."""

    wrong: int
    calls_per_s: float
    before_bytes: int
    after_bytes: int


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(threads: int, calls: int, warm: int) -> Load:
    """`calls` mixed calls in each of `threads`, after `warm` calls in each that are not counted."""
    rng = np.random.default_rng(7)
    work: list[tuple[ConvSpec, Array, Array, Array]] = []
    for spec in PROBLEMS:
        a, b = testing.operands(spec, rng, integers=True)
        work.append((spec, a, b, testing.reference(spec, a, b)))
    for spec, a, b, _ in work:
        _call(spec, a, b)  # decided before the threads start
    wrong = [0] * threads
    stage = threading.Barrier(threads + 1)

    def worker(me: int) -> None:
        for count in (warm, calls):
            stage.wait()
            for number in range(count):
                spec, a, b, expected = work[(number * 5 + me) % len(work)]
                result = _call(spec, a, b)
                wrong[me] += not np.allclose(result, expected, rtol=0, atol=1e-3)
            stage.wait()

    running = [threading.Thread(target=worker, args=(me,), daemon=True) for me in range(threads)]
    for thread in running:
        thread.start()
    stage.wait()
    stage.wait()
    before, started = resident_bytes(), time.perf_counter()
    stage.wait()
    stage.wait()
    seconds, after = time.perf_counter() - started, resident_bytes()
    for thread in running:
        thread.join()
    return Load(sum(wrong), threads * calls / seconds, before, after)


def _call(spec: ConvSpec, a: Array, b: Array) -> Array:
    words = {
        "border_mode": spec.padding,
        "subsample": spec.stride,
        "filter_dilation": spec.dilation,
        "num_groups": spec.groups,
        "filter_flip": spec.flip,
    }
    result: Array
    if spec.op == "fprop":
        result = autoconv.conv2d(a, b, **words)
    elif spec.op == "dgrad":
        result = autoconv.conv2d_grad_wrt_inputs(a, b, spec.input_shape, **words)
    else:
        result = autoconv.conv2d_grad_wrt_weights(a, b, spec.filter_shape, **words)
    return result
