"""The measured error of every implementation: the table of docs/explanation/accuracy.md.

python benchmarks/accuracy.py            print it
python benchmarks/accuracy.py --write    put it into the page
"""

from __future__ import annotations

import sys

import numpy as np
from _blocks import ROOT, fill

from autoconv import testing
from autoconv.device import Device
from autoconv.impls import BUILTIN
from autoconv.impls.cpu._blas import NATURAL_THREADS
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec

PROBLEMS = {
    "3 channels": "fprop n1c3 64x64 k8 3x3 p1",
    "64 channels": "fprop n1c64 28x28 k64 3x3 p1",
    "512 channels": "fprop n1c512 7x7 k512 3x3 p1",
    "5x5": "fprop n1c16 28x28 k16 5x5 p2",
    "1x1": "fprop n1c256 14x14 k64 1x1",
    "25x25": "fprop n1c1 128x128 k1 25x25 p12",
    "dgrad": "dgrad n2c32 28x28 k32 3x3 p1",
    "wgrad": "wgrad n8c16 28x28 k16 3x3 p1",
    "4 groups": "fprop n1c32 28x28 k32 3x3 p1 g4",
}
SEED = 0


def errors(name: str, spec: ConvSpec) -> list[float]:
    """The error of every config of an implementation on `spec`; none when it refuses."""
    device = Device("cpu", "any", "avx2", NATURAL_THREADS, NATURAL_THREADS)
    one = default_registry().get(name)
    if one.why_not(spec, device) is not None:
        return []
    a, b = testing.operands(spec, np.random.default_rng(SEED))
    expected = testing.reference(spec, a, b)
    configs = [config for config in one.configs(spec, device) if one.why_not(spec, device, config) is None]
    return [testing.relative_error(testing.run(testing.build(one, spec, c, device), a, b), expected) for c in configs]


def table() -> str:
    """One row per implementation that is installed, one column per problem."""
    specs = {label: ConvSpec.parse(text) for label, text in PROBLEMS.items()}
    lines = [["", *specs], ["---"] * (len(specs) + 1)]
    missing = []
    for name in BUILTIN:
        if default_registry().get(name).unavailable():
            missing.append(f"`{name}`")
            continue
        found = [errors(name, spec) for spec in specs.values()]
        lines.append([f"`{name}`", *(f"{max(each):.1e}" if each else "·" for each in found)])
    tolerated = [f"{testing.tolerance(spec):.1e}" for spec in specs.values()]
    lines.append(["*tolerated of a sum*", *tolerated])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    problems = "\n".join(f"- {label}: `{spec}`" for label, spec in specs.items())
    note = f"\n\nNot installed where this was made: {', '.join(missing)}." if missing else ""
    return f"{rows}\n\n{problems}{note}\n\nA dot is a refusal. A rewrite was given `numpy.direct` as its child."


if __name__ == "__main__":
    made = table()
    if "--write" in sys.argv[1:]:
        fill(ROOT / "docs/explanation/accuracy.md", "accuracy", made)
    else:
        print(made)
