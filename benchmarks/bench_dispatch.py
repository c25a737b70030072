"""What autoconv itself costs: a cached call, a plan's call, the first call of a process, the import.

    python -m pytest benchmarks/bench_dispatch.py --benchmark-only
    python benchmarks/bench_dispatch.py              # start-up costs, each in fresh processes

The decision is the time of a cached call less the time of its runner alone, measured with a runner
that does nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.planning import Workspace, thread_workspace
from autoconv.spec import ConvSpec

SHAPES = {"tiny": ((1, 1, 8, 8), (1, 1, 3, 3)), "layer": ((1, 64, 56, 56), (64, 64, 3, 3))}


class Nothing(Runner):
    """Computes nothing."""

    def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
        return


class NothingImplementation(Implementation):
    """Does nothing, so that what is left is the price of getting there."""

    name = "bench.nothing"

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """None."""
        return 0.0

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """A runner that does nothing."""
        return Nothing()


@pytest.fixture
def nothing(tmp_path: Path) -> Any:
    """The public functions, deciding for an implementation that does nothing."""
    from autoconv.registry import default_registry

    autoconv.register(NothingImplementation(), replace=True)
    options = {"require": ("bench.nothing",), "on_miss": "heuristic", "cache": str(tmp_path / "store.sqlite")}
    with autoconv.settings(**options):
        yield
    default_registry().unregister("bench.nothing")


def operands(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 data and filters of a named shape."""
    rng = np.random.default_rng(0)
    data, filters = SHAPES[shape]
    return rng.standard_normal(data, dtype=np.float32), rng.standard_normal(filters, dtype=np.float32)


def test_empty_output(benchmark: Any) -> None:
    """The part no implementation can avoid: allocating the result."""
    benchmark(np.empty, (1, 1, 6, 6), np.float32)


@pytest.mark.usefixtures("nothing")
def test_cached_call(benchmark: Any) -> None:
    """conv2d on arrays seen before: key, look-up, result allocated, an empty runner."""
    x, w = operands("tiny")
    autoconv.conv2d(x, w)
    benchmark(autoconv.conv2d, x, w)


@pytest.mark.usefixtures("nothing")
def test_plan_call_with_out(benchmark: Any) -> None:
    """A plan with its result given: operands checked, nothing allocated."""
    x, w = operands("tiny")
    plan = autoconv.plan(ConvSpec.fprop(x.shape, w.shape))
    out = plan(x, w)
    benchmark(plan, x, w, out=out)


@pytest.mark.usefixtures("nothing")
def test_bound_plan_call_with_out(benchmark: Any) -> None:
    """A bound plan with its result given."""
    x, w = operands("tiny")
    bound = autoconv.plan(ConvSpec.fprop(x.shape, w.shape)).bind(w)
    out = bound(x)
    benchmark(bound, x, out=out)


@pytest.fixture
def kernels(tmp_path: Path) -> Any:
    """The public functions, deciding among generated kernels."""
    with autoconv.settings(require=("native",), tune_budget_s=10, cache=str(tmp_path / "store.sqlite")):
        yield


@pytest.mark.usefixtures("kernels")
def test_kernel_by_cached_call(benchmark: Any) -> None:
    """conv2d by a generated kernel."""
    x, w = operands("tiny")
    autoconv.conv2d(x, w)
    benchmark(autoconv.conv2d, x, w)


@pytest.mark.usefixtures("kernels")
def test_kernel_by_plan_with_out(benchmark: Any) -> None:
    """A plan on a generated kernel: the extension looks at the arrays."""
    x, w = operands("tiny")
    plan = autoconv.plan(ConvSpec.fprop(x.shape, w.shape))
    out = plan(x, w)
    benchmark(plan, x, w, out=out)


@pytest.mark.usefixtures("kernels")
def test_kernel_by_bound_plan_with_out(benchmark: Any) -> None:
    """The same with the filters bound."""
    x, w = operands("tiny")
    bound = autoconv.plan(ConvSpec.fprop(x.shape, w.shape)).bind(w)
    out = bound(x)
    benchmark(bound, x, out=out)


@pytest.mark.usefixtures("nothing")
def test_runner_alone(benchmark: Any) -> None:
    """The empty runner, called directly: to be subtracted from the above."""
    x, w = operands("tiny")
    out = np.empty((1, 1, 6, 6), np.float32)
    benchmark(Nothing(), x, w, out, thread_workspace())


START_UP = """
import time, sys
t0 = time.perf_counter(); import numpy as np
t1 = time.perf_counter(); import autoconv
t2 = time.perf_counter()
x = np.ones((1, 16, 32, 32), np.float32); w = np.ones((16, 16, 3, 3), np.float32)
t3 = time.perf_counter(); autoconv.conv2d(x, w, border_mode="half"); t4 = time.perf_counter()
import json; print(json.dumps({"numpy_import_ms": (t1 - t0) * 1e3, "autoconv_import_ms": (t2 - t1) * 1e3,
    "cached_first_call_ms": (t4 - t3) * 1e3,
    "heavy_modules": sorted({"sqlalchemy", "scipy", "rich", "click", "torch"} & set(sys.modules))}))
"""


def start_up(rounds: int = 9) -> dict[str, Any]:
    """Medians over fresh processes: imports, and the first call whose decision is already stored."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "AUTOCONV_CACHE": str(Path(folder) / "store.sqlite")}
        environment["AUTOCONV_NATIVE"] = str(Path(folder) / "native")  # the first call looks through its names
        # as installed packages are: byte-compiled, which the first process sees to
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        tune = "import autoconv; autoconv.tune('fprop n1c16 32x32 k16 3x3 p1', budget_s=5)"
        subprocess.run([sys.executable, "-c", tune], env=environment, check=True)
        subprocess.run([sys.executable, "-c", START_UP], env=environment, check=True, capture_output=True)
        runs = []
        for _ in range(rounds):
            done = subprocess.run(
                [sys.executable, "-c", START_UP], env=environment, check=True, capture_output=True, text=True
            )
            runs.append(json.loads(done.stdout))
    numbers: dict[str, Any] = {
        key: round(median(run[key] for run in runs), 1) for key in runs[0] if key.endswith("_ms")
    }
    return {**numbers, "heavy_modules": runs[0]["heavy_modules"], "rounds": rounds}


if __name__ == "__main__":
    print(json.dumps(start_up(), indent=2))
