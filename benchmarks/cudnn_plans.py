"""What it costs to ask cuDNN for the plans of a problem, and to make one again; no device is needed.

    python benchmarks/cudnn_plans.py        with what `make test-cudnn` installs

Figures of docs/decisions/0016: the first problem of the process, then medians over rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans
from autoconv.spec import ConvSpec
from tests.cuda.deviceless import H200, described, forget

ROUNDS = 4
PROBLEMS = (
    "fprop n8c64 56x56 k64 3x3 p1 conv f32",
    "dgrad n8c128 28x28 k128 3x3 p1 conv f32",
    "fprop n8c64 56x56 k64 3x3 p1 corr f32",
    "fprop n8c64 56x56 k64 3x3 p1 corr nhwc f16",
    "fprop n8c64 56x56 k64 3x3 p1 corr f64",
)


def main() -> None:
    """Print a line per problem and per way of making a plan again."""
    target = described()
    if isinstance(target, str):
        sys.exit(target)
    lib.target = lambda device: target
    surveys: dict[str, list[float]] = {text: [] for text in PROBLEMS}
    again: dict[str, list[float]] = {"engine and knobs": [], "kept plan": []}
    for _ in range(ROUNDS):
        for text in PROBLEMS:
            problem = plans.plain(ConvSpec.parse(text))
            forget()
            start = time.perf_counter()
            offers, _ = plans.survey(problem, H200)
            surveys[text].append(time.perf_counter() - start)
            for config in offers:
                plans.ready(problem, config, H200)  # keeps what has no name
            forget()
            for config in offers:
                start = time.perf_counter()
                made = plans.ready(problem, config, H200)
                again["kept plan" if "plan" in config else "engine and knobs"].append(time.perf_counter() - start)
                assert not isinstance(made, str), made
    print(f"cuDNN {lib.version_text()}; first problem {surveys[PROBLEMS[0]].pop(0) * 1e3:.0f} ms")
    for text, times in surveys.items():
        print(f"{text:45} {median(times) * 1e3:6.1f} ms")
    for how, times in again.items():
        tenth = sorted(times)[int(0.9 * len(times))]
        print(f"by {how:42} {median(times) * 1e3:6.2f} ms, nine of ten below {tenth * 1e3:.2f} ({len(times)} plans)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOCONV_NATIVE"] = folder
        main()
