"""A generated kernel as a program of its own, so that it can be built and run in other ways than it is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from autoconv import testing
from autoconv.arrays import as_layout, axis_order
from autoconv.impls.native._compiler import FLAGS
from autoconv.planning import ALIGNMENT
from autoconv.spec import Op
from tests.native.kernels import Kernel

__all__ = ["run"]

MAIN = Path(__file__).with_name("program.c").read_text()
LEAKS = {"ASAN_OPTIONS": "detect_leaks=0"}  # nothing is given back here, nor by OpenMP's pool


def run(
    kernel: Kernel, folder: Path, compiler: Sequence[str], emulator: Sequence[str] = (), short: str | None = None
) -> None:
    """Compile with the words of `compiler`, run behind those of `emulator`, and judge one kernel.

    Raises `AssertionError` with what the program said. The block called `short` is an element (scratch: a cache line)
    less than the kernel may use.
    """
    one, spec, device, config = kernel.implementation, kernel.spec, kernel.device, kernel.config
    text, threads = one._unit(spec, config, device)
    tunables = {name: value for name, value in config.items() if name != "threads"}
    packed = one.packed_bytes(spec, tunables, threads, device.vector_bytes)
    a, b = testing.operands(spec, np.random.default_rng(0))
    second_layout = spec.layout if spec.op is Op.WGRAD else "nchw"
    result_layout = "nchw" if spec.op is Op.WGRAD else spec.layout
    sizes = {
        "A_BYTES": a.nbytes,
        "B_BYTES": b.nbytes,
        "OUT_BYTES": prod(spec.result_shape) * spec.itemsize,
        "PACKED_BYTES": packed,
        "SCRATCH_BYTES_DECLARED": one.workspace_bytes(replace(spec, fixed=spec.op is not Op.WGRAD), device, config),
        "WORKSPACE_BYTES": one.workspace_bytes(replace(spec, fixed=False, rank1=False), device, config),
    }
    if short:
        sizes[short] -= ALIGNMENT if "WORKSPACE" in short else spec.itemsize
    # the kernel's own names end before these begin
    names = "".join(f"#undef {name}\n#define {name} {size}L\n" for name, size in sizes.items())
    flags = [flag for flag in FLAGS if flag not in ("-O3", "-shared")]
    openmp = ["-fopenmp"] if threads > 1 else []
    program = folder / "kernel"
    built = subprocess.run(
        [*compiler, *flags, *openmp, "-x", "c", "-", "-o", program, "-lm"],
        input=text + names + MAIN,
        text=True,
        capture_output=True,
        check=False,
    )
    assert built.returncode == 0, f"{kernel}: {built.stderr[:2000]}"
    fed = _in_memory(a, spec.layout) + _in_memory(b, second_layout)
    done = subprocess.run(
        [*emulator, program], input=fed, env={**os.environ, **LEAKS}, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{kernel}: {done.stderr.decode(errors='replace')[:4000]}"
    results = np.frombuffer(done.stdout, spec.np_dtype).reshape(2 if packed else 1, -1)
    expected = testing.reference(spec, a, b)
    for result in results:
        values = as_layout(result, spec.result_shape, result_layout)
        error = testing.relative_error(values, expected, spec.reduction_length**0.5 / 3)
        assert error <= testing.tolerance(spec, one.tags), f"{kernel}: off by {error:.2e}"


def _in_memory(array: testing.Array, layout: str) -> bytes:
    return array.transpose(axis_order(layout, array.ndim)).tobytes()
