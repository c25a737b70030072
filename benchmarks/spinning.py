"""How long each thread pool goes on spinning after a call: processor time used while this thread sleeps.

python benchmarks/spinning.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import autoconv
from autoconv.device import cpu

REPEATS = 8
SLEEP_S = 0.1


def spin(name: str, call: Callable[[], Any]) -> None:
    """Print the least and the most processor time used in the `SLEEP_S` after a call."""
    for _ in range(3):
        call()
    used = []
    for _ in range(REPEATS):
        call()
        before = time.process_time()
        time.sleep(SLEEP_S)
        used.append(1e3 * (time.process_time() - before))
    print(f"{name:<12} {min(used):6.2f} to {max(used):6.2f} ms")


def main() -> None:
    """Measure what is installed."""
    matrix = np.random.default_rng(0).random((1000, 1000), dtype=np.float32)
    spin("blas", lambda: matrix @ matrix)
    spec = "fprop n1c16 64x64 k16 3x3 p1 fixed"
    with autoconv.settings(require=("native",), tune_budget_s=5, cache=":memory:"):
        try:
            bound = autoconv.plan(spec).bind(np.ones((16, 16, 3, 3), np.float32))
        except autoconv.NoImplementation as error:
            print(error)
        else:
            image = np.ones((1, 16, 64, 64), np.float32)
            spin("native", lambda: bound(image))
    try:
        import torch
    except ImportError:
        print("torch is not installed")
    else:
        torch.set_num_threads(cpu().threads)
        x, w = torch.randn(1, 64, 56, 56), torch.randn(64, 64, 3, 3)
        spin("torch", lambda: torch.conv2d(x, w, padding=1))
    try:
        import scipy.fft
    except ImportError:
        print("scipy is not installed")
    else:
        spin("scipy.fft", lambda: scipy.fft.rfft2(matrix, workers=cpu().threads))


if __name__ == "__main__":
    main()
