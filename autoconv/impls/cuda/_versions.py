"""Versions that times on a GPU depend on, as stored with each row."""

from __future__ import annotations

import os
from functools import cache

from autoconv import cuda_driver

__all__ = ["versions"]


def versions(*extra: str) -> dict[str, str]:
    """The driver, CuPy and its runtime, whether CuPy multiplies in TF32; "cudnn" adds cuDNN and its frontend.

    What is not here is left out, so that a row says what it was measured with and nothing else.
    """
    known = dict(_fixed())
    known["CUPY_TF32"] = os.environ.get("CUPY_TF32", "0")
    if "cudnn" in extra:
        known.update(_cudnn())
    return known


@cache
def _fixed() -> tuple[tuple[str, str], ...]:
    """What does not change while a process runs."""
    found: dict[str, str] = {}
    driver = cuda_driver.driver()
    if not isinstance(driver, str):
        found["cuda driver"] = driver.version
    try:
        import cupy
    except ImportError:
        return tuple(found.items())
    found["cupy"] = str(cupy.__version__)
    found["cuda runtime"] = _readable(cupy.cuda.runtime.runtimeGetVersion())
    return tuple(found.items())


@cache
def _cudnn() -> dict[str, str]:
    """The frontend and the library that it loads."""
    try:
        import cudnn
    except ImportError:
        return {}
    return {"cudnn": str(cudnn.backend_version_string()), "cudnn frontend": str(cudnn.__version__)}


def _readable(version: int) -> str:
    """CUDA's number of a version, 12080, as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"
