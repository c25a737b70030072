"""What everything built on NumPy's matrix product shares: its threads, its version, its speed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, ClassVar

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Implementation
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec

__all__ = ["BlasImplementation", "gemm_s", "guarded", "threads_refusal"]

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
MACS_PER_CYCLE_AND_BYTE = 0.45  # of vector width, float32: two vectors of multiply-adds, less what OpenBLAS loses
CYCLES_PER_S = 2.0e9
PRODUCT_S = 0.5e-6  # one small product among many: library call and packing


class BlasImplementation(Implementation):
    """An implementation whose time is spent in NumPy's matrix product."""

    runtime: ClassVar[str] = "blas"

    def environment(self, config: Config) -> Mapping[str, str]:
        """NumPy's version and its BLAS's."""
        return {"numpy": np.__version__, "blas": _blas_version()}

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """The library must be able to use as many threads as the device grants."""
        reason = threads_refusal(device.threads)
        yield reason is None, reason or ""
        yield from self.needs(spec, config)

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """The algorithm's own restrictions."""
        return ()


@cache
def _blas_version() -> str:
    found: Any = np.show_config(mode="dicts")
    blas = found.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


@cache
def gemm_rate(dtype: str, vector_bytes: int, threads: int) -> float:
    """Multiply-adds per second of a large product."""
    per_thread = MACS_PER_CYCLE_AND_BYTE * vector_bytes * CYCLES_PER_S * (1.0 if dtype == "f32" else 0.5)
    return per_thread * threads


def gemm_s(m: int, k: int, n: int, count: int, spec: ConvSpec, device: Device) -> float:
    """Rough seconds of `count` products (m, k) x (k, n)."""
    # short edges waste vector lanes and packing; the constants fit 1 to 512 channels on two AVX-512 cores
    m, k, n = max(m, 1), max(k, 1), max(n, 1)
    efficiency = min(1.0, (m / (m + 6.0)) * (k / (k + 24.0)) * (n / (n + 24.0)) * 1.2)
    threads = device.threads if m * k * n > 1 << 18 else 1
    return count * (PRODUCT_S + m * k * n / (gemm_rate(spec.dtype, device.vector_bytes, threads) * efficiency))


# Threads ------------------------------------------------------------------------------------------


def _natural_threads() -> int:
    """Threads the library takes when nobody tells it otherwise."""
    for variable in THREAD_VARIABLES:
        words = os.environ.get(variable, "").split(",")
        if words[0].strip().isdigit() and int(words[0]) > 0:
            return int(words[0])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


NATURAL_THREADS = _natural_threads()  # as NumPy found the process when it loaded its BLAS


@cache
def threads_refusal(threads: int) -> str | None:
    """Why matrix products cannot be held to `threads` threads, or None."""
    if threads == NATURAL_THREADS:
        return None
    try:
        pools = _pools()
    except ImportError:
        return (
            f"BLAS uses {NATURAL_THREADS} threads by itself; to hold it to {threads} "
            "install threadpoolctl (pip install autoconv[cpu])"
        )
    return None if pools else f"BLAS uses {NATURAL_THREADS} threads, and threadpoolctl cannot hold it to {threads}"


@cache
def _pools() -> tuple[Any, ...]:
    from threadpoolctl import ThreadpoolController

    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)


class _Pools:
    """Sets the libraries' thread count while calls run, and puts it back after the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    @contextmanager
    def __call__(self, threads: int) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = [pool.get_num_threads() for pool in _pools()]
            self._inside += 1
            for pool in _pools():
                pool.set_num_threads(threads)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    for pool, before in zip(_pools(), self._before, strict=True):
                        pool.set_num_threads(before)


_hold = _Pools()


class _Guarded(Runner):
    """A runner whose calls leave BLAS's threads and NumPy's warnings as they found them."""

    def __init__(self, runner: Runner, threads: int) -> None:
        self._runner = runner
        self._threads = threads

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        with np.errstate(all="ignore"), _threads(self._threads):
            self._runner(a, b, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        with np.errstate(all="ignore"), _threads(self._threads):
            inner = self._runner.bind(filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            with np.errstate(all="ignore"), _threads(self._threads):
                inner(a, out, workspace)

        return bound


_UNCHANGED: AbstractContextManager[None] = nullcontext()


def _threads(threads: int) -> AbstractContextManager[None]:
    return _UNCHANGED if threads == NATURAL_THREADS else _hold(threads)


def guarded(runner: Runner, device: Device) -> Runner:
    """`runner` with BLAS held to the device's threads, if it takes another number by itself, and without warnings.

    BLAS raises floating-point flags for lanes that are no part of the result, so NumPy's warnings would be chance.
    On a GPU there is neither to hold nor to hush.
    """
    return _Guarded(runner, device.threads) if device.kind == "cpu" else runner
