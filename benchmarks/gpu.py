"""autoconv against PyTorch on one GPU, shape by shape: the same operands, in one process, on one stream.

    python benchmarks/gpu.py                              # benchmarks/shapes/gpu.txt on cuda:0, every mode
    python benchmarks/gpu.py --seconds 540                # as far as nine minutes go; run again to go on
    python benchmarks/gpu.py --modes strict --every 4     # a first look

PyTorch has `cudnn.benchmark` on, and both memory formats are tried on either side. Modes of a float32 shape: `strict`
(no TF32 on either side), `tf32` (allowed on both) and `bf16`; other dtypes have one of their own. Time is the device's,
between events, from a cold L2 cache, and a sample of each in a random order per round; what enqueueing a call takes the
host is measured beside it. An answer that rounding does not explain is no result.

What the results file holds already is not measured again, and `--seconds` ends the run after the shape in which so much
time has passed (exit status 3). The page in docs/benchmarks is written anew at the end of every run.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare import best, ratios, read_shapes
from gpu_page import write_page
from gpu_torch import TorchSide

import autoconv
from autoconv.device import Device, find_device
from autoconv.errors import BackendMissing
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.cuda_timing import EventSampler, Stopwatch
from autoconv.tuner.verify import Judge

HERE = Path(__file__).resolve().parent
MODES = {"f32": ("strict", "tf32", "bf16"), "f64": ("f64",), "f16": ("f16",), "bf16": ("bf16",)}
TF32_ERROR = 1e-3  # the max_rel_error that admits TF32
ROUNDS = 15
HOPELESS = 4.0  # times the best after three rounds: no more samples
TINY = "fprop n1c1 8x8 k1 3x3 corr"  # whose host time is nothing but the call's
HOST_CALLS = 2000
HOST_BATCH = 100  # fewer at a time than a stream holds, or the host waits for the device
PACKAGES = ("numpy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One shape in one mode."""

    name: str
    mode: str
    spec: ConvSpec

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is recorded under."""
        return self.name, self.mode, str(self.spec)


def cases_of(paths: Sequence[Path], modes: set[str] | None, op: Op, batch: int | None, every: int) -> list[Case]:
    """Every shape of the files in each of its modes."""
    shapes = [shape for path in paths for shape in read_shapes(path)][::every]
    found = []
    for name, given in shapes:
        spec = replace(given, op=op, batch=batch or given.batch)
        found += [
            Case(name, mode, replace(spec, dtype="bf16") if mode == "bf16" else spec)
            for mode in MODES[spec.dtype]
            if modes is None or mode in modes
        ]
    return found


class Bench:
    """One GPU, both sides, and a stopwatch."""

    def __init__(self, device: Device, options: argparse.Namespace) -> None:
        import cupy

        self._cupy = cupy
        self.device = device
        self._name = f"cuda:{device.index}"
        self._options = options
        self._torch = TorchSide(device.index)
        self._watch = Stopwatch(device)
        self._rng = random.Random(0)

    def run(self, case: Case) -> Record:
        """Both sides of one case: samples, or why there are none."""
        record: Record = {
            "name": case.name, "mode": case.mode, "spec": str(case.spec), "macs": case.spec.macs, "engines": {},
        }  # fmt: skip
        samplers: dict[str, EventSampler] = {}
        for layout, suffix in (("nchw", ""), ("nhwc", "-nhwc")):
            spec = replace(case.spec, layout=layout)
            try:
                judge = Judge(spec, self.device)
            except (BackendMissing, MemoryError) as error:  # a dtype that nobody here has, or a card that is too small
                record["engines"].update({side + suffix: {"reason": str(error)} for side in ("autoconv", "torch")})
                continue
            for side, make in (("autoconv", self._autoconv), ("torch", self._torch.prepare)):
                entry: Record = {}
                record["engines"][side + suffix] = entry
                try:
                    call, label = make(spec, case.mode, *judge.operands.placed)
                    entry["label"] = label
                    entry["error"], fault = judge.values(self._torch.to_numpy(call()), self._tags(case))
                    if fault:
                        entry["reason"] = fault
                    else:
                        samplers[side + suffix] = EventSampler(self._watch, _discarding(call))
                except Exception as error:  # a side's failure is its result for this shape
                    entry["reason"] = f"{type(error).__name__}: {error}".splitlines()[0]
                    self._forget()
        self._race(record, samplers)
        return record

    def host_us(self) -> dict[str, float]:
        """Microseconds of the host's per call of a problem that is nothing to the device, already decided."""
        spec = ConvSpec.parse(TINY)
        a, b = Judge(spec, self.device).operands.placed
        autoconv.tune(spec, device=self._name, budget_s=self._options.tune_s, progress=False)
        plan = autoconv.plan(spec, device=self._name)
        bound = plan.bind(b)
        out = plan(a, b)
        peer, _ = self._torch.prepare(spec, "strict", a, b)
        calls: dict[str, Callable[[], Any]] = {
            "conv2d": lambda: autoconv.conv2d(a, b, filter_flip=spec.flip),
            "plan": lambda: plan(a, b),
            "plan, out=": lambda: plan(a, b, out=out),
            "bound, out=": lambda: bound(a, out=out),
            "torch.conv2d": peer,
        }
        return {name: 1e6 * self._host_s(call) for name, call in calls.items()}

    def close(self) -> None:
        """Give memory back."""
        self._forget()

    def _autoconv(self, spec: ConvSpec, mode: str, a: Any, b: Any) -> tuple[Callable[[], Any], str]:
        settings: dict[str, Any] = {"max_workspace": self._options.max_workspace}
        if mode == "tf32":
            settings["max_rel_error"] = TF32_ERROR
        with autoconv.settings(**settings):
            autoconv.tune(spec, device=self._name, budget_s=self._options.tune_s, progress=False)
            plan = autoconv.plan(spec, device=self._name)
        return (lambda: plan(a, b)), f"{plan.choice}, {plan.workspace_bytes} bytes of workspace"

    def _tags(self, case: Case) -> tuple[str, ...]:
        return ("tf32",) if case.mode == "tf32" else ("winograd",) if case.mode == "strict" else ()

    def _race(self, record: Record, samplers: dict[str, EventSampler]) -> None:
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        for number in range(self._options.rounds):
            for name in self._rng.sample(sorted(samplers), len(samplers)):
                hopeless = number >= 3 and median(samples[name]) > HOPELESS * min(map(median, samples.values()))
                if not hopeless:
                    samples[name].append(samplers[name](1))
        for name, sampler in samplers.items():
            record["engines"][name].update(samples=samples[name], enqueue_s=sampler.enqueue_s)
        samplers.clear()
        self._forget()

    def _host_s(self, call: Callable[[], Any]) -> float:
        taken = []
        batch = min(HOST_BATCH, self._options.host_calls)
        for _ in range(self._options.host_calls // batch):
            started = time.perf_counter()
            for _ in range(batch):
                call()
            taken.append((time.perf_counter() - started) / batch)
            self._cupy.cuda.Device(self.device.index).synchronize()
        return median(taken)

    def _forget(self) -> None:
        autoconv.options.forget_calls()  # plans hold workspace of their own
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._torch.forget()


def _discarding(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()

    return run


# What is recorded ----------------------------------------------------------------------------------


def facts_of(device: Device, side: TorchSide) -> dict[str, Any]:
    """Device, driver and versions: results of others are kept apart."""
    import cupy

    found = {"python": platform.python_version(), "autoconv": autoconv.__version__, **side.versions()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["driver's CUDA"] = str(cupy.cuda.runtime.driverGetVersion())
    found["CUDA runtime"] = str(cupy.cuda.runtime.runtimeGetVersion())
    return {"device": device.fingerprint, "versions": found}


def default_file(device: Device) -> Path:
    """Where the results of this kind of GPU are kept."""
    slug = "".join(letter if letter.isalnum() else "_" for letter in device.model.lower())
    return HERE / "results" / f"gpu_{slug}.json"


def load(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The results so far. Raises `SystemExit` when they are of another device or other versions."""
    if not path.exists():
        return {**facts, "host_us": {}, "records": []}
    found: dict[str, Any] = json.loads(path.read_text())
    for key, value in facts.items():
        if found[key] != value:
            raise SystemExit(f"{path} holds results of {found[key]}, this is {value}: --fresh begins anew")
    return found


def save(path: Path, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the results, whole or not at all."""
    results.update(date=str(date.today()), command=" ".join(["python", *sys.argv]), rounds=options.rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(results, indent=1))
    whole.replace(path)


def left_of(cases: Sequence[Case], results: dict[str, Any]) -> Iterator[Case]:
    """The cases that are not recorded yet."""
    known = {(record["name"], record["mode"], record["spec"]) for record in results["records"]}
    return (case for case in cases if case.key not in known)


def describe(record: Record) -> str:
    """One line."""
    ours = best(record, ("autoconv", "autoconv-nhwc"))
    if ours is None:
        return "autoconv: " + record["engines"]["autoconv"].get("reason", "no result")
    found = ratios(record).get("torch")
    ratio = f"torch {found[0]:.2f}" if found else "torch: " + record["engines"]["torch"].get("reason", "no result")
    return f"{median(ours) * 1e6:9.1f} us  {ratio}"


def main() -> None:
    """Measure what is left, print a line per case, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=Path, nargs="*", default=[HERE / "shapes" / "gpu.txt"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--modes", help="comma-separated: strict, tf32, bf16, f16, f64; all if not given")
    parser.add_argument("--op", choices=[op.value for op in Op], default="fprop")
    parser.add_argument("--batch", type=int, help="instead of the files' batches")
    parser.add_argument("--every", type=int, default=1, help="only every n-th shape")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tune-s", type=float, default=4.0, help="autoconv's tuning budget per shape and format")
    parser.add_argument("--max-workspace", default="4GiB", help="what autoconv may take beside operands and result")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    parser.add_argument("--host-calls", type=int, default=HOST_CALLS, help="to measure what a call costs the host")
    parser.add_argument("--json", type=Path, help="the results file; one per kind of GPU if not given")
    parser.add_argument("--fresh", action="store_true", help="forget what the results file holds")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "benchmarks", help="where the page goes")
    parser.add_argument("--describe", type=Path, metavar="FILE", help="only write cuDNN's description of the device")
    options = parser.parse_args()
    started = time.monotonic()

    device = find_device(options.device)
    if options.describe:
        import cudnn

        options.describe.write_text(cudnn.create_device_properties(device.index).serialize())
        return
    path = options.json or default_file(device)
    if options.fresh:
        path.unlink(missing_ok=True)
    modes = set(options.modes.split(",")) if options.modes else None
    cases = cases_of(options.shapes, modes, Op(options.op), options.batch, options.every)
    bench = Bench(device, options)
    results = load(path, facts_of(device, TorchSide(device.index)))
    if not results["host_us"]:
        results["host_us"] = bench.host_us()
        save(path, results, options)
    np.set_printoptions(precision=3)
    pending = list(left_of(cases, results))
    while pending and time.monotonic() - started < options.seconds:
        case = pending.pop(0)
        record = bench.run(case)
        results["records"].append(record)
        save(path, results, options)
        print(f"{case.mode:<7}{case.name:<70} {describe(record)}", flush=True)
    bench.close()
    write_page(path.parent, options.docs)
    print(f"{len(cases) - len(pending)} of {len(cases)} cases are in {path}")
    sys.exit(3 if pending else 0)


if __name__ == "__main__":
    main()
