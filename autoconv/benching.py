"""Every candidate's time against what this machine can do: the numbers behind `autoconv bench`.

The peak is measured, not looked up: the fastest of a few large matrix products by NumPy's BLAS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from autoconv.spec import ConvSpec, numpy_dtype

if TYPE_CHECKING:
    from autoconv.tuner import TuningResult

__all__ = ["BenchRow", "bench_rows", "measured_peak", "measured_peaks"]

MATRIX = 1536  # three float32 matrices of 9 MiB: beyond the caches of a core, and 50 ms on a slow laptop
REPEATS = 5  # the best of these: a peak is what the machine can do, so noise only lowers it


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One candidate: its time, the multiply-adds of the direct method per second, and their share of the peak.

    FFT and Winograd do fewer multiplications than the direct method, so their share may exceed 1.
    """

    choice: str
    status: str
    median_s: float | None
    spread: float | None
    flops: float | None
    peak_share: float | None
    ratio: float | None
    workspace_bytes: int
    error: float | None
    reason: str


def bench_rows(result: TuningResult, peaks: Mapping[str, float]) -> list[BenchRow]:
    """Rows of a race, fastest first, against `measured_peaks`; `ratio` is against the winner.

    A ratio below 1 belongs to a candidate that tied with the winner, or that the limits do not allow to win.
    """
    peak_flops = peaks[_yardstick(result.spec)]
    winner_s = result.decision.winner.median_s if result.decision else None
    rows = sorted(result.rows, key=lambda row: (not row.usable, row.median_s or 0.0, str(row.choice)))
    table = []
    for row in rows:
        seconds = row.median_s if row.usable else None
        flops = 2 * result.spec.macs / seconds if seconds else None
        table.append(
            BenchRow(
                choice=str(row.choice),
                status=row.status,
                median_s=seconds,
                spread=row.spread,
                flops=flops,
                peak_share=flops / peak_flops if flops else None,
                ratio=seconds / winner_s if seconds and winner_s else None,
                workspace_bytes=row.workspace_bytes,
                error=row.error,
                reason=row.reason,
            )
        )
    return table


def measured_peaks(specs: Iterable[ConvSpec], threads: int | None = None) -> dict[str, float]:
    """`measured_peak` of every dtype that `specs` need."""
    return {dtype: measured_peak(dtype, threads) for dtype in sorted({_yardstick(spec) for spec in specs})}


def _yardstick(spec: ConvSpec) -> str:
    """The dtype whose matrix product is compared with: half types have no BLAS, so float32 stands for them."""
    return spec.dtype if spec.dtype in ("f32", "f64") else "f32"


@cache
def measured_peak(dtype: str, threads: int | None = None) -> float:
    """Floating-point operations per second of a large matrix product, measured once per process.

    `threads` limits BLAS where threadpoolctl is installed; without it BLAS uses what it was started with.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((MATRIX, MATRIX)).astype(numpy_dtype(dtype)) for _ in range(2))
    out = np.empty_like(left)
    best = float("inf")
    with _blas_threads(threads):
        np.matmul(left, right, out=out)  # pages touched, threads started
        for _ in range(REPEATS):
            start = time.perf_counter()
            np.matmul(left, right, out=out)
            best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best


@contextmanager
def _blas_threads(threads: int | None) -> Iterator[None]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # optional: the documented behaviour is BLAS's own number of threads
        yield
        return
    with threadpool_limits(limits=threads, user_api="blas"):
        yield
