"""autoconv against what people would pick instead, shape by shape.

    python benchmarks/compare.py benchmarks/shapes/vgg_resnet_3x3.txt --json results.json
    python benchmarks/compare.py benchmarks/shapes/image.txt --engines autoconv,scipy-fft,opencv

Every engine lives in a process of its own and only one is active at a time; they take turns, in a
new random order each round, and rest in between so that no pool spins into the next one's turn. A
ratio is the peer's median time over autoconv's in the same run, the better memory format of each.

Shapes that the `--json` file holds already are not raced again, and `--seconds` ends the run after the shape in
which so much time has passed (exit status 3), so that a machine that has other work can be measured in pieces.
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
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autoconv.device import cpu
from autoconv.spec import ConvSpec, Op

HERE = Path(__file__).parent
REST_S = 0.06  # longer than any pool here spins: OpenBLAS's threads do for up to 40 ms
SAMPLE_S = 0.03
HOPELESS = 8.0  # an engine this much slower than the fastest is sampled twice, not in every round
LONG_S = 0.2  # a call this long needs no warming up
WRONG = 1e-3  # of the largest value: an engine this far from the first one was asked something else
FORMATS = {
    "autoconv": ("autoconv", "autoconv-nhwc"),
    "torch": ("torch", "torch-nhwc"),
    "scipy": ("scipy-fft", "scipy-oa"),
}
DEFAULT = "autoconv,autoconv-nhwc,torch,torch-nhwc,onnxruntime,openvino,ncnn,scipy-fft,scipy-oa,opencv"


class Worker:
    """One engine in its own process."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self._environment = environment
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "engines.py"), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer; a process that died is an answer too, and is replaced."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._start()
            return {"ok": False, "reason": f"its process ended with status {status}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def read_shapes(path: Path) -> list[tuple[str, ConvSpec]]:
    """Name and spec of every line that is no comment."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [(name, ConvSpec.parse(text)) for name, text in (line.split(None, 1) for line in lines if line)]


def race(workers: list[Worker], name: str, spec: ConvSpec, varying: bool, rounds: int, folder: Path) -> dict[str, Any]:
    """Every engine's samples on one shape, and how far its answer is from the first engine's."""
    record: dict[str, Any] = {"name": name, "spec": str(spec), "macs": spec.macs, "engines": {}}
    able, answers = [], {}
    for worker in workers:
        file = folder / f"{worker.name}.npy"
        said = worker.ask({"spec": str(spec), "varying": varying, "check": str(file)})
        entry: dict[str, Any] = {key: said[key] for key in ("label", "reason") if key in said}
        record["engines"][worker.name] = entry
        if said["ok"]:
            able.append(worker)
            entry["samples"] = []
            answers[worker.name] = np.load(file)
            file.unlink()
    judge = next(iter(answers.values()), None)
    for engine, answer in answers.items():
        assert judge is not None
        scale = float(np.abs(judge).max()) or 1.0
        record["engines"][engine]["difference"] = float(np.abs(answer - judge).max()) / scale
    for worker in list(able):
        entry = record["engines"][worker.name]
        if not entry["difference"] < WRONG:
            entry["reason"] = f"its answer differs by {entry['difference']:.1e} of the largest value"
            able.remove(worker)
    for _ in range(rounds):
        fastest = min((samples[0] for samples in _samples(record)), default=0.0)
        for worker in random.sample(able, len(able)):
            samples = record["engines"][worker.name]["samples"]
            if len(samples) > 1 and min(samples) > HOPELESS * fastest:
                continue  # two samples say all there is to say
            time.sleep(REST_S)
            said = worker.ask({"sample": SAMPLE_S, "warm": not samples or samples[0] < LONG_S})
            if "median_s" in said:
                samples.append(said["median_s"])
    return record


def _samples(record: dict[str, Any]) -> list[list[float]]:
    return [entry["samples"] for entry in record["engines"].values() if entry.get("samples")]


def best(record: dict[str, Any], names: tuple[str, ...]) -> list[float] | None:
    """The samples of the fastest of `names` on this shape."""
    entries = [record["engines"].get(name, {}).get("samples") for name in names]
    present = [samples for samples in entries if samples]
    return min(present, key=median) if present else None


def ratios(record: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Peer -> (median ratio, low, high) over the rounds, peer time / autoconv time, and the best peer's."""
    ours = best(record, FORMATS["autoconv"])
    if ours is None:
        return {}
    found = {}
    peers = {name for name in record["engines"] if not name.startswith("autoconv")}
    families = {next((f for f, names in FORMATS.items() if peer in names), peer) for peer in peers}
    for family in sorted(families):
        theirs = best(record, FORMATS.get(family, (family,)))
        if theirs is not None:
            paired = sorted(t / o for t, o in zip(theirs, ours, strict=False))
            found[family] = (median(theirs) / median(ours), paired[len(paired) // 5], paired[-1 - len(paired) // 5])
    if found:
        found["best peer"] = min(found.values())
    return found


def geometric_mean(values: list[float]) -> float:
    """exp of the mean log; NaN of nothing."""
    return exp(sum(map(log, values)) / len(values)) if values else float("nan")


def summary(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per peer: number of shapes, geometric mean, and the share of shapes where autoconv is ahead."""
    columns: dict[str, list[float]] = {}
    for record in records:
        for peer, (middle, _, _) in ratios(record).items():
            columns.setdefault(peer, []).append(middle)
    return {
        peer: {
            "shapes": len(values),
            "geometric_mean": round(geometric_mean(values), 3),
            "ahead": round(sum(v > 1 for v in values) / len(values), 3),
            "worst": round(min(values), 3),
        }
        for peer, values in sorted(columns.items())
    }


def main() -> None:
    """Race, print a line per shape and the summary, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=Path, nargs="+")
    parser.add_argument("--engines", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--varying", action="store_true", help="filters change with every call")
    parser.add_argument("--op", choices=[op.value for op in Op], default="fprop")
    parser.add_argument(
        "--core", action="store_true", help="autoconv with its own kernels and NumPy alone, as without extras"
    )
    parser.add_argument("--every", type=int, default=1, help="only every n-th shape")
    parser.add_argument("--tune-s", type=float, default=12.0, help="autoconv's tuning budget per shape")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    options = parser.parse_args()
    started = time.monotonic()

    environment = {**os.environ, "BENCH_TUNE_S": str(options.tune_s), "BENCH_THREADS": str(cpu().threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
    if options.core:
        environment["AUTOCONV_EXCLUDE"] = "torch.conv,onnxruntime.conv,onednn.conv"
        environment["BENCH_CORE"] = "1"
    shapes = [shape for path in options.shapes for shape in read_shapes(path)][:: options.every]
    shapes = [(name, replace(spec, op=Op(options.op))) for name, spec in shapes]
    records = _recorded(options.json, shapes)
    known = {record["name"] for record in records}
    left = [(name, spec) for name, spec in shapes if name not in known]
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(name, environment) for name in options.engines.split(",")] if left else []
        while left and time.monotonic() - started < options.seconds:
            name, spec = left.pop(0)
            record = race(workers, name, spec, options.varying, options.rounds, Path(folder))
            records.append(record)
            ours = best(record, FORMATS["autoconv"])
            shown = "  ".join(f"{peer} {middle:.2f}" for peer, (middle, _, _) in ratios(record).items())
            label = record["engines"].get("autoconv", {}).get("label", "")
            print(f"{name:<44} {(median(ours) if ours else 0) * 1e3:9.3f} ms  {shown}  [{label}]", flush=True)
            if options.json:
                _write(options, records)
        for worker in workers:
            worker.close()
    print(json.dumps(summary(records), indent=2))
    sys.exit(3 if left else 0)


def _recorded(path: Path | None, shapes: list[tuple[str, ConvSpec]]) -> list[dict[str, Any]]:
    """The records of `shapes` that a file holds already, in the order of the list."""
    if path is None or not path.exists():
        return []
    found = {(record["name"], record["spec"]): record for record in json.loads(path.read_text())["records"]}
    return [found[name, str(spec)] for name, spec in shapes if (name, str(spec)) in found]


def _write(options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    facts = {
        "device": cpu().fingerprint,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "command": " ".join(["python", *sys.argv]),
        "rounds": options.rounds,
    }
    whole = options.json.with_suffix(".new")
    whole.write_text(json.dumps({**facts, "summary": summary(records), "records": records}, indent=1))
    whole.replace(options.json)


if __name__ == "__main__":
    main()
