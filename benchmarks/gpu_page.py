"""The page about GPUs: what `gpu.py` measured, as tables and pictures.

    python benchmarks/gpu_page.py        # docs/benchmarks/gpu.md from benchmarks/results/gpu_*.json

Without results it says that there are none, and how to get them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from compare import FORMATS, best, geometric_mean, ratios

HERE = Path(__file__).resolve().parent
NETWORK = "network."
LEAST = 0.97  # of PyTorch's speed: no shape may fall below
GOAL = 1.1  # of the geometric mean over network layers
HOST_GOAL_US = 10.0
COLOURS = {"strict": "#c44e52", "tf32": "#4c72b0", "bf16": "#55a868", "f64": "#8172b2", "f16": "#937860"}

HEAD = f"""# Measured on GPUs

autoconv against PyTorch with `cudnn.benchmark` on, by `benchmarks/gpu.py`: the same operands in one process, each
side's better memory format, TF32 forbidden (`strict`) or allowed (`tf32`) alike on both. Device time between events,
from a cold L2 cache. A ratio is PyTorch's median over autoconv's: above 1 autoconv is faster. The goals: a geometric
mean of {GOAL} over the network layers, no shape below {LEAST}, {HOST_GOAL_US:g} us of the host's time for a cached
call. Written by `benchmarks/gpu_page.py`.
"""

NOTHING = """
Nothing has been measured on a device yet. On a machine with an NVIDIA GPU and its driver:

```text
pip install '.[cuda12,report]' torch      # cuda13 for drivers of CUDA 13
python benchmarks/gpu.py --seconds 540    # again and again until it says that every case is done
```

[How the GPU path works and what is still unverified](../explanation/gpu.md).
"""


def write_page(results: Path, docs: Path) -> Path:
    """Write `docs`/gpu.md and its pictures from the gpu_*.json files in `results`."""
    docs.mkdir(parents=True, exist_ok=True)
    files = sorted(results.glob("gpu_*.json"))
    sections = [section(json.loads(file.read_text()), docs, file.stem) for file in files]
    page = docs / "gpu.md"
    page.write_text(HEAD + ("".join(sections) if sections else NOTHING), encoding="utf-8")
    return page


def section(results: dict[str, Any], docs: Path, stem: str) -> str:
    """What is to be said of one kind of GPU."""
    records = results["records"]
    modes = [mode for mode in COLOURS if any(record["mode"] == mode for record in records)]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        f"\n## {results['device']}\n",
        f"`{results['command']}`, {results['date']}, {results['rounds']} rounds; {versions}.\n",
    ]
    if drawn := draw(results["device"], records, docs / f"{stem}.png"):
        lines.append(f"![ratios]({drawn})\n")
    lines += ["| mode | layers of networks | geometric mean | ahead | worst of all shapes |", "|---|---|---|---|---|"]
    lines += [f"| {mode} | {' | '.join(_summary(records, mode))} |" for mode in modes]
    lines += ["", "Host time of a call that is already decided, on a problem that is nothing to the device:\n"]
    lines += ["| call | us |", "|---|---|", *(f"| `{call}` | {us:.1f} |" for call, us in results["host_us"].items())]
    for mode in modes:
        lines += [f"\n### {mode}\n", "| shape | us | PyTorch (interval) | winner | error | host us |"]
        lines += ["|---|---|---|---|---|---|", *(_row(record) for record in records if record["mode"] == mode)]
    return "\n".join(lines) + "\n"


def _ratio(record: dict[str, Any]) -> tuple[float, float, float] | None:
    return ratios(record).get("torch")


def _summary(records: list[dict[str, Any]], mode: str) -> Iterator[str]:
    found = {r["name"]: ratio[0] for r in records if r["mode"] == mode and (ratio := _ratio(r))}
    layers = [ratio for name, ratio in found.items() if name.startswith(NETWORK)]
    yield str(len(layers))
    yield f"{geometric_mean(layers):.2f}" if layers else "-"
    yield f"{100 * sum(ratio > 1 for ratio in layers) / len(layers):.0f} %" if layers else "-"
    worst = min(found, key=found.__getitem__, default=None)
    yield f"{found[worst]:.2f}, {worst}" if worst else "-"


def _row(record: dict[str, Any]) -> str:
    engines, ours = record["engines"], best(record, FORMATS["autoconv"])
    name = f"{record['name']} `{record['spec']}`"
    if ours is None:
        reasons = {entry.get("reason", "") for side, entry in engines.items() if side.startswith("autoconv")}
        return f"| {name} | - | - | {'; '.join(sorted(filter(None, reasons)))} | - | - |"
    format_ = next(side for side in FORMATS["autoconv"] if engines.get(side, {}).get("samples") == ours)
    entry, ratio = engines[format_], _ratio(record)
    label = entry["label"].partition(",")[0] + (" nhwc" if format_.endswith("nhwc") else "")
    shown = "{:.2f} ({:.2f} to {:.2f})".format(*ratio) if ratio else engines["torch"].get("reason", "-")
    host = f"{1e6 * entry['enqueue_s']:.0f}" if entry.get("enqueue_s") else "-"
    return f"| {name} | {1e6 * median(ours):.1f} | {shown} | {label} | {entry['error']:.1e} | {host} |"


def draw(title: str, records: list[dict[str, Any]], path: Path) -> str:
    """Every shape's ratio, sorted, one line per mode; the file's name, or nothing where there is nothing to draw."""
    series = {mode: sorted(r[0] for one in records if one["mode"] == mode and (r := _ratio(one))) for mode in COLOURS}
    if not any(series.values()):
        return ""
    try:
        import matplotlib
    except ImportError:  # the extra `report` brings it; the tables do without
        return ""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for mode, values in series.items():
        if values:
            axes.plot(range(1, len(values) + 1), values, "o-", ms=3.5, lw=1, color=COLOURS[mode], label=mode)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="shapes, sorted by ratio", ylabel="PyTorch's time / autoconv's time", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path.name


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "benchmarks")
    options = parser.parse_args()
    print(write_page(options.results, options.docs))


if __name__ == "__main__":
    main()
