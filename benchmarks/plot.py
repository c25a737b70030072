"""A picture and a table of what `compare.py` wrote.

    python benchmarks/plot.py benchmarks/results/{vgg_*,networks,depthwise_large,image}.json --out docs/benchmarks

Per result file one plot, the ratio of every shape to PyTorch and to the best peer, sorted, on a log
scale, and one Markdown page with all tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from compare import FORMATS, best, ratios, summary

COLOURS = {"torch": "#c44e52", "best peer": "#4c72b0"}


def draw(title: str, records: list[dict[str, Any]], path: Path) -> None:
    """Sorted ratios, one dot per shape, the line at 1 marked."""
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for peer, colour in COLOURS.items():
        values = sorted(found[peer][0] for record in records if peer in (found := ratios(record)))
        if values:
            axes.plot(range(1, len(values) + 1), values, "o-", ms=3.5, lw=1, color=colour, label=peer)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("shapes, sorted by ratio")
    axes.set_ylabel("peer's time / autoconv's time")
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tables(title: str, facts: dict[str, Any], picture: str) -> str:
    """The summary and every shape as Markdown."""
    records = facts["records"]
    lines = [f"## {title}", "", f"`{facts['command']}` on {facts['device']}, NumPy {facts['numpy']}.", ""]
    lines += [
        f"![ratios]({picture})",
        "",
        "| peer | shapes | geometric mean | autoconv ahead | worst |",
        "|---|---|---|---|---|",
    ]
    for peer, row in summary(records).items():
        share = f"{100 * row['ahead']:.0f} %"
        lines.append(f"| {peer} | {row['shapes']} | {row['geometric_mean']:.2f} | {share} | {row['worst']:.2f} |")
    lines += ["", "| shape | ms | torch | best peer (interval) | winner |", "|---|---|---|---|---|"]
    for record in records:
        ours, found = best(record, FORMATS["autoconv"]), ratios(record)
        if ours is None:
            continue
        fastest = min(
            (name for name in FORMATS["autoconv"] if record["engines"].get(name, {}).get("samples")),
            key=lambda name: median(record["engines"][name]["samples"]),
        )
        torch = f"{found['torch'][0]:.2f}" if "torch" in found else "-"
        peer = "{:.2f} ({:.2f} to {:.2f})".format(*found["best peer"]) if "best peer" in found else "-"
        label = record["engines"][fastest]["label"].partition("[")[0] + (" nhwc" if fastest.endswith("nhwc") else "")
        lines.append(f"| `{record['spec']}` | {median(ours) * 1e3:.3f} | {torch} | {peer} | {label} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw every file and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    page = [
        "# Measured against the peers\n",
        "Ratios are the peer's median time over autoconv's in one run;"
        " above 1 autoconv is faster. Written by `benchmarks/plot.py`.\n",
    ]
    for path in options.results:
        facts = json.loads(path.read_text())
        title = path.stem.replace("_", " ")
        draw(title, facts["records"], options.out / f"{path.stem}.png")
        page.append(tables(title, facts, f"{path.stem}.png"))
    (options.out / "index.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
