"""The README's table: autoconv against SciPy, and PyTorch, ONNX Runtime and OpenCV where installed.

    python benchmarks/readme_table.py            print it
    python benchmarks/readme_table.py --write    put it into README.md

Measured as `compare.py` does: each engine in a process of its own, taking turns in random order, the
better memory format of each; autoconv tuned afresh and without the peers' libraries among its candidates.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import compare
from _blocks import ROOT, fill

from autoconv.device import cpu
from autoconv.verbose import format_time

SHAPES = ROOT / "benchmarks/shapes/readme.txt"
OURS = ("autoconv", "autoconv-nhwc")
PEERS = {  # engines of compare.py -> (column, module, distributions whose version is told)
    "scipy-fft": ("SciPy", "scipy", ("scipy",)),
    "scipy-oa": ("SciPy", "scipy", ("scipy",)),
    "torch": ("PyTorch", "torch", ("torch",)),
    "torch-nhwc": ("PyTorch", "torch", ("torch",)),
    "onnxruntime": ("ONNX Runtime", "onnxruntime", ("onnxruntime",)),
    "opencv": ("OpenCV", "cv2", ("opencv-python-headless", "opencv-python")),
}
FAMILIES = {"SciPy": "scipy", "PyTorch": "torch", "ONNX Runtime": "onnxruntime", "OpenCV": "opencv"}

FAILURE = re.compile(r"\w+: |its process ended|gave no sample")  # else it is the reason why a peer declines


def measure(engines: list[str], rounds: int, tune_s: float) -> list[dict[str, Any]]:
    """A record of `compare.race` per problem."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "AUTOCONV_CACHE": str(Path(folder) / "store.sqlite"),
            "AUTOCONV_EXCLUDE": "torch.conv,onnxruntime.conv",
            "BENCH_TUNE_S": str(tune_s),
            "BENCH_THREADS": str(cpu().threads),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        workers = [compare.Worker(name, environment) for name in engines]
        records = []
        for name, spec in compare.read_shapes(SHAPES):
            records.append(compare.race(workers, name, spec, False, rounds, Path(folder)))
        for worker in workers:
            worker.close()
    return records


def absence(record: dict[str, Any], column: str) -> str:
    """A dot for a peer that does not do the problem, a word for one that should and did not; why, on standard error."""
    reasons = [
        record["engines"][name].get("reason", "gave no sample")
        for name, (family, _, _) in PEERS.items()
        if family == column and name in record["engines"]
    ]
    print(f"{record['spec']}: {column}: {'; '.join(reasons)}", file=sys.stderr)
    return "failed" if any(FAILURE.match(reason) for reason in reasons) else "·"


def table(records: list[dict[str, Any]], engines: list[str], rounds: int, tune_s: float) -> str:
    """Markdown: times of autoconv, and per peer the median ratio with its range over the rounds."""
    columns = [name for name in FAMILIES if any(PEERS.get(engine, ("",))[0] == name for engine in engines)]
    lines = [["problem", "autoconv", "by", *columns], ["---"] * (3 + len(columns))]
    for record in records:
        samples = compare.best(record, OURS)
        if samples is None:
            raise RuntimeError(f"autoconv did not run {record['spec']}: {record['engines']['autoconv']}")
        ours = next(record["engines"][name] for name in OURS if record["engines"][name].get("samples") is samples)
        ratios = compare.ratios(record)
        cells = []
        for column in columns:
            middle, low, high = ratios.get(FAMILIES[column], (0.0, 0.0, 0.0))
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})" if middle else absence(record, column))
        choice = ours["label"].partition("[")[0]
        lines.append([f"`{record['spec']}`", format_time(median(samples)), f"`{choice}`", *cells])
    versions = [f"NumPy {metadata.version('numpy')}"]
    for column, _, distributions in dict.fromkeys(PEERS[name] for name in engines if name in PEERS):
        found = next((v for d in distributions if (v := _version(d))), "of unknown version")
        versions.append(f"{column} {found}")
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"Filters bound beforehand, float32. Under each peer, its time over autoconv's: above 1, autoconv is faster. "
        f"Median of {rounds} rounds, in parentheses the middle three fifths of the rounds. A dot: not something it "
        f"computes.\n\n{rows}\n\n"
        f"`python benchmarks/readme_table.py`, {datetime.now(UTC):%Y-%m-%d}, on {cpu().fingerprint}; "
        f"Python {platform.python_version()}, {', '.join(versions)}. {tune_s:g} s of tuning per problem "
        "and memory format. "
        "More shapes: `python benchmarks/compare.py benchmarks/shapes/networks.txt`."
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Measure what is installed, print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tune-s", type=float, default=8.0, help="tuning budget per problem and memory format")
    options = parser.parse_args()
    engines = [*OURS, *(name for name, (_, module, _) in PEERS.items() if importlib.util.find_spec(module))]
    records = measure(engines, options.rounds, options.tune_s)
    made = table(records, engines, options.rounds, options.tune_s)
    if options.write:
        fill(ROOT / "README.md", "table", made)
    else:
        print(made)


if __name__ == "__main__":
    main()
