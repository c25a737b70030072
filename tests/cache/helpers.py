"""Rows to store, and a way to do things in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoconv.cache import CacheWarning
from autoconv.evidence import Choice, Config, Measurement

ROOT = Path(__file__).parents[2]
SPEC = "fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32"
OTHER_SPEC = "dgrad n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32"
DEVICE = "cpu Some Model (25.17.1) / avx512 / 2 cores / 2 threads"
OTHER_DEVICE = "cpu Some Model (25.17.1) / avx512 / 2 cores / 1 threads"


def row(**changes: Any) -> Measurement:
    """A measurement that leaves no field at its default, with `changes`."""
    fields: dict[str, Any] = {
        "spec": SPEC,
        "device": DEVICE,
        "choice": Choice("rewrite.groups", 2, Config(width=8, kind="x", fast=True), Choice("numpy.im2col", 3)),
        "status": "ok",
        "environment": {"gcc": "12.2 “Debian”", "numpy": "2.4.6", "object": "5f2c9a7e"},
        "median_s": 0.1 + 0.2,
        "spread": 0.0125,
        "samples": (0.3, 0.30000000000000004, 1e-7),
        "workspace_bytes": 2**40 + 1,
        "error": 2.3e-7,
        "deterministic": False,
        "strict_nan": False,
        "tags": ("native", "winograd"),
        "reason": "it's “odd”\nand long",
        "race": "r-1",
        "measured_at": 1_767_225_600.123456,
        "host": "build-7",
        "enqueue_s": 1.25e-5,
    }
    return Measurement(**{**fields, **changes})


def candidate(name: str, **changes: Any) -> Measurement:
    """A row of the candidate called `name`."""
    return row(choice=Choice(name, 1), **changes)


def start_python(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Another interpreter running `script` with autoconv importable; every warning in it is an error."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """What the process wrote; fails with its error output unless it ended well."""
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == 0, error
    return out


def run_python(script: str, *arguments: object) -> str:
    """Run `script` in another interpreter; gives what it wrote."""
    return finish(start_python(script, *arguments))


@contextmanager
def one_warning(match: str = "") -> Iterator[None]:
    """All of the block together gives one `CacheWarning`, which says `match`, and no other warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [each.category for each in caught] == [CacheWarning], [str(each.message) for each in caught]
    assert re.search(match, str(caught[0].message)), caught[0].message
