"""Gaussian blurs: a bound separable filter against what users of SciPy and OpenCV call.

    python benchmarks/separable.py --json benchmarks/results/separable.json

An image of one or three channels meets a Gaussian of 5 to 101 taps a side, given as one 2-D filter, zeros around the
image. A user of SciPy calls `fftconvolve` or `oaconvolve` with it, a user of OpenCV `filter2D`. Who knows that the
filter is separable takes `ndimage.convolve1d` twice, or `sepFilter2D`; these two are told the rows, and are shown
besides. OpenCV gets its own format, channels last; SciPy and autoconv get planes. Each engine has a process of its own,
they take turns in a new random order each round, and rest in between. Records of earlier runs in the JSON are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ENGINES = ("autoconv", "scipy-fft", "scipy-oa", "opencv-filter2d", "scipy-convolve1d", "opencv-sepfilter2d")
GIVEN_2D = ENGINES[1:4]  # peers that are handed what autoconv is: the 2-D filter
TAPS = (5, 11, 25, 51, 101)
SIZES = ("512x512", "720x1280", "1080x1920")
REST_S = 0.06  # longer than any pool here spins
SAMPLE_S = 0.03
HOPELESS = 8.0  # this much slower than the fastest: two samples say all there is to say
WRONG = 1e-4  # of the largest value
THREADS = 2

Call = Callable[[], np.ndarray]


def problem(shape: tuple[int, int, int], taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels x height x width, and one row of the filter."""
    image = np.random.default_rng(taps).standard_normal(shape, dtype=np.float32)
    row = np.exp(-0.5 * np.linspace(-3, 3, taps) ** 2)
    return image, (row / row.sum()).astype(np.float32)


def make(name: str, shape: tuple[int, int, int], taps: int) -> tuple[Call, Callable[[np.ndarray], np.ndarray], str]:
    """A call that blurs, how its answer becomes planes, and what runs."""
    image, row = problem(shape, taps)
    kernel = np.outer(row, row)
    if name == "autoconv":
        import autoconv.signal

        autoconv.settings.set_default(tune_budget_s=float(os.environ.get("BENCH_TUNE_S", "3")))
        blur = autoconv.signal.bind(kernel)
        plan = blur.plan_for(image)
        data, out = image[:, None], np.empty_like(image[:, None])
        return lambda: plan(data, out=out), lambda a: a[:, 0], str(plan.plan.choice)
    if name.startswith("scipy"):
        import scipy
        from scipy import ndimage, signal

        label = f"scipy {scipy.__version__}"
        if name == "scipy-convolve1d":

            def both() -> np.ndarray:
                return ndimage.convolve1d(ndimage.convolve1d(image, row, 2, mode="constant"), row, 1, mode="constant")

            return both, np.asarray, label
        convolve = signal.fftconvolve if name == "scipy-fft" else signal.oaconvolve
        return lambda: convolve(image, kernel[None], "same", axes=(1, 2)), np.asarray, label
    import cv2

    cv2.setNumThreads(THREADS)
    last = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    room = np.empty_like(last)
    border = {"borderType": cv2.BORDER_CONSTANT}

    def planes(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a.reshape(last.shape), -1, 0)

    if name == "opencv-filter2d":
        return lambda: cv2.filter2D(last, -1, kernel, dst=room, **border), planes, f"opencv {cv2.__version__}"
    return lambda: cv2.sepFilter2D(last, -1, row, row, dst=room, **border), planes, f"opencv {cv2.__version__}"


def serve(name: str) -> None:
    """Answer requests until the input ends, as benchmarks/engines.py does."""
    call: Call | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "shape" in request:
            call, planes, label = make(name, tuple(request["shape"]), request["taps"])
            np.save(request["check"], np.ascontiguousarray(planes(call())))
            answer: dict[str, Any] = {"label": label}
        else:
            assert call is not None
            call()
            times: list[float] = []
            end = time.perf_counter() + SAMPLE_S
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            answer = {"median_s": median(times)}
        print(json.dumps(answer), flush=True)


class Worker:
    """One engine in its own process."""

    def __init__(self, name: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        )
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def race(workers: list[Worker], shape: tuple[int, int, int], taps: int, rounds: int) -> dict[str, Any]:
    """Every engine's samples on one blur; their answers must agree."""
    record: dict[str, Any] = {"shape": list(shape), "taps": taps, "engines": {}}
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        judge = None
        for worker in workers:
            check = Path(folder) / f"{worker.name}.npy"
            said = worker.ask({"shape": shape, "taps": taps, "check": str(check)})
            answer = np.load(check)
            judge = answer if judge is None else judge
            difference = float(np.abs(answer - judge).max() / np.abs(judge).max())
            assert difference < WRONG, f"{worker.name} differs by {difference:.1e}"
            samples[worker.name] = []
            record["engines"][worker.name] = {**said, "difference": difference, "samples": samples[worker.name]}
    for _ in range(rounds):
        fastest = min((own[0] for own in samples.values() if own), default=0.0)
        for worker in random.sample(workers, len(workers)):
            own = samples[worker.name]
            if len(own) < 2 or min(own) <= HOPELESS * fastest:
                time.sleep(REST_S)
                own.append(worker.ask({})["median_s"])
    return record


def middle(record: dict[str, Any], name: str) -> float:
    """An engine's median seconds."""
    return median(record["engines"][name]["samples"])


def spread(record: dict[str, Any]) -> float:
    """Interquartile range of autoconv's samples over their median."""
    own = sorted(record["engines"]["autoconv"]["samples"])
    return (own[-1 - len(own) // 4] - own[len(own) // 4]) / median(own)


def ratios(records: list[dict[str, Any]], names: tuple[str, ...]) -> list[float]:
    """The fastest of `names` over autoconv, per record."""
    return [min(middle(record, name) for name in names) / middle(record, "autoconv") for record in records]


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table and the summary."""
    lines = [
        "| image | taps | ms (spread) | filter2D | fftconvolve | oaconvolve | sepFilter2D | convolve1d x 2 | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        ours = middle(record, "autoconv")
        told = [
            f"{middle(record, name) / ours:.2f}"
            for name in ("opencv-filter2d", "scipy-fft", "scipy-oa", "opencv-sepfilter2d", "scipy-convolve1d")
        ]
        runs = record["engines"]["autoconv"]["label"].partition("[")[0]
        size, shown = "x".join(map(str, record["shape"])), f"{ours * 1e3:.3f} ({100 * spread(record):.0f} %)"
        lines.append(f"| {' | '.join((size, str(record['taps']), shown, *told, runs))} |")
    for title, names in (
        ("best of filter2D, fftconvolve, oaconvolve", GIVEN_2D),
        *((name, (name,)) for name in ENGINES[1:]),
        ("best of all", ENGINES[1:]),
    ):
        found = ratios(records, names)
        mean = exp(sum(map(log, found)) / len(found))
        lines.append(f"\n{title}: geometric mean {mean:.2f}, least {min(found):.2f}, over {len(found)} blurs")
    return "\n".join(lines)


def main() -> None:
    """Race, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--channels", default="1,3")
    parser.add_argument("--taps", default=",".join(map(str, TAPS)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker)
        return
    from autoconv.device import cpu

    facts = {"device": cpu().fingerprint, "python": sys.version.split()[0], "numpy": np.__version__}
    records: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text())["records"]
    workers = [Worker(name) for name in ENGINES]
    for size in options.sizes.split(","):
        for channels in map(int, options.channels.split(",")):
            for taps in map(int, options.taps.split(",")):
                height, width = map(int, size.split("x"))
                record = race(workers, (channels, height, width), taps, options.rounds)
                key = (record["shape"], taps)
                records = [one for one in records if (one["shape"], one["taps"]) != key] + [record]
                records.sort(key=lambda one: (one["shape"], one["taps"]))
                print(size, channels, taps, f"{middle(record, 'autoconv') * 1e3:.3f} ms", flush=True)
                if options.json:
                    options.json.write_text(json.dumps({**facts, "records": records}, indent=1) + "\n")
    for worker in workers:
        worker.close()
    print(table(records))


if __name__ == "__main__":
    main()
