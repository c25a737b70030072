"""Where each algorithm wins: every implementation along one size at a time.

    python benchmarks/algorithms.py --json benchmarks/results/algorithms.json
    python benchmarks/algorithms.py --draw benchmarks/results/algorithms.json

A sweep changes one number of a problem. At every point each implementation is tuned alone (in one race the hopeless are
not timed), and its best config counts, divided by the best of all: 1 is the winner. The second command draws one
picture per page of docs/explanation/algorithms, its implementations in colour before all others in grey.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import autoconv
from autoconv.device import cpu
from autoconv.errors import NoImplementation
from autoconv.spec import ConvSpec

PAGES = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "algorithms"

SWEEPS: dict[str, tuple[str, dict[int, str]]] = {
    # title, and the problem at each size
    "filter": (
        "filter size (16 channels, 64x64)",
        {r: f"fprop n1c16 64x64 k16 {r}x{r} p{r // 2} corr fixed" for r in (1, 3, 5, 9, 15, 31)},
    ),
    "channels": (
        "channels (3x3, batch 4, 28x28)",
        {c: f"fprop n4c{c} 28x28 k{c} 3x3 p1 corr fixed" for c in (1, 4, 16, 64, 256)},
    ),
    "image": (
        "image size (3x3, 32 channels)",
        {s: f"fprop n1c32 {s}x{s} k32 3x3 p1 corr fixed" for s in (7, 14, 28, 56, 112)},
    ),
    "batch": (
        "batch (5x5 stride 2, 16 channels, 16x16)",
        {n: f"fprop n{n}c16 16x16 k32 5x5 p2 s2 corr fixed" for n in (1, 8, 32, 128)},
    ),
    "depthwise": (
        "depthwise filter size (64 channels, 28x28)",
        {r: f"fprop n4c64 28x28 k64 {r}x{r} p{r // 2} g64 corr fixed" for r in (3, 5, 9, 15, 23)},
    ),
    "one channel": (
        "filter size on one 512x512 image",
        {r: f"fprop n1c1 512x512 k1 {r}x{r} p{r // 2} fixed" for r in (3, 5, 9, 17, 33)},
    ),
    "separable": (
        "separable filter size on one 512x512 image",
        {r: f"fprop n1c1 512x512 k1 {r}x{r} p{r // 2} fixed rank1" for r in (3, 5, 9, 17, 33)},
    ),
    "data gradient": (
        "data gradient, filter size (32 channels, 32x32)",
        {r: f"dgrad n2c32 32x32 k32 {r}x{r} p{r // 2} corr" for r in (1, 3, 5, 9)},
    ),
    "filter gradient": (
        "filter gradient, filter size (32 channels, 32x32)",
        {r: f"wgrad n2c32 32x32 k32 {r}x{r} p{r // 2} corr" for r in (1, 3, 5, 9)},
    ),
    "volume": (
        "filter depth on 8 frames of 28x28, 16 channels",
        {t: f"fprop n1c16 8x28x28 k16 {t}x3x3 p{t // 2},1,1 corr fixed" for t in (1, 3, 5)},
    ),
    "images last": (
        "batch, images last in memory (3x3, 16 channels, 12x12)",
        {n: f"fprop n{n}c16 12x12 k32 3x3 chwn corr fixed" for n in (4, 16, 64, 128)},
    ),
    "groups": (
        "groups of 64 channels (3x3, batch 4, 28x28)",
        {g: f"fprop n4c64 28x28 k64 3x3 p1 g{g} corr fixed" for g in (1, 2, 4, 16)},
    ),
}

DRAWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # page: its implementations, the sweeps that show them
    "direct": (("numpy.direct", "native.direct", "native.toom"), ("one channel", "filter", "channels")),
    "gemm": (
        ("numpy.im2col", "numpy.kn2row", "native.gemm", "rewrite.gemm_1x1"),
        ("filter", "channels", "filter gradient"),
    ),
    "fft": (("numpy.fft", "numpy.fft_tiled", "native.fft"), ("filter", "one channel", "depthwise")),
    "winograd": (("numpy.winograd", "native.winograd"), ("channels", "image", "filter")),
    "depthwise": (("native.depthwise",), ("depthwise", "groups")),
    "separable": (("numpy.separable", "native.separable"), ("separable", "one channel")),
    "chwn": (("native.chwn", "rewrite.layout"), ("images last", "batch")),
    "gradients": (("rewrite.dgrad_as_fprop", "rewrite.wgrad_as_fprop"), ("data gradient", "filter gradient")),
    "lower-problems": (
        ("rewrite.groups", "rewrite.conv3d2d", "rewrite.depth_to_channels"),
        ("volume", "groups"),
    ),
    "libraries": (("onednn.conv", "torch.conv", "onnxruntime.conv"), ("channels", "image", "depthwise")),
}  # fmt: skip

COLOURS = ("#c44e52", "#4c72b0", "#55a868", "#8172b3")


def measure(spec: ConvSpec, budget_s: float) -> dict[str, float]:
    """Median seconds of every implementation's best config."""
    best: dict[str, float] = {}
    for record in autoconv.implementations():
        with autoconv.settings(require=(record.id,)):
            try:
                [result] = autoconv.tune([spec], budget_s=budget_s)
            except NoImplementation:
                continue
        if result.decision is not None and result.decision.winner.median_s is not None:
            best[record.id] = result.decision.winner.median_s
    return best


def draw(facts: dict[str, Any]) -> None:
    """One picture per page."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    points: dict[str, list[dict[str, Any]]] = {}
    for point in facts["points"]:
        points.setdefault(point["sweep"], []).append(point)
    for page, (names, sweeps) in DRAWN.items():
        figure, panels = plt.subplots(
            1, len(sweeps), figsize=(3.6 * len(sweeps), 3.4), layout="constrained", squeeze=False
        )
        for axes, sweep in zip(panels[0], sweeps, strict=True):
            _panel(axes, SWEEPS[sweep][0], sorted(points[sweep], key=lambda point: point["size"]), names)
        panels[0][0].set_ylabel("time / the fastest's")
        handles = [
            plt.Line2D([], [], color=colour, marker="o", ms=4, label=name)
            for name, colour in zip(names, COLOURS, strict=False)
        ]
        handles.append(plt.Line2D([], [], color="0.75", label="others"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
        figure.savefig(PAGES / f"{page}.png", dpi=110)
        plt.close(figure)


def _panel(axes: Any, title: str, points: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    sizes = [point["size"] for point in points]
    every = sorted({name for point in points for name in point["seconds"]})
    for name in sorted(every, key=lambda name: name in names):
        curve = [point["seconds"].get(name, np.nan) / min(point["seconds"].values()) for point in points]
        if name in names:
            axes.plot(sizes, curve, "o-", ms=4, lw=1.6, color=COLOURS[names.index(name)])
        else:
            axes.plot(sizes, curve, "-", lw=0.8, color="0.75")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.9, 100)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
    axes.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"], fontsize=8)
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=8)


def main() -> None:
    """Measure and write, or read and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="measure, and write here; points that it holds are kept")
    parser.add_argument("--draw", type=Path, help="draw what was written")
    parser.add_argument("--budget-s", type=float, default=0.3, help="per point and implementation")
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="only these")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(options.draw.read_text()))
        return
    if options.json is None:
        parser.error("give --json or --draw")
    facts: dict[str, Any] = {
        "device": cpu().fingerprint,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "command": "python benchmarks/algorithms.py --json benchmarks/results/algorithms.json",
        "points": [],
    }
    if options.json.exists():
        facts["points"] = json.loads(options.json.read_text())["points"]
    done = {point["spec"] for point in facts["points"]}
    for sweep in options.sweeps.split(","):
        for size, text in SWEEPS[sweep][1].items():
            spec = ConvSpec.parse(text)
            if str(spec) in done:
                continue
            seconds = measure(spec, options.budget_s)
            facts["points"].append({"sweep": sweep, "size": size, "spec": str(spec), "seconds": seconds})
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
            winner = min(seconds, key=seconds.__getitem__)
            print(f"{sweep:16} {size:4}  {winner:20} {seconds[winner] * 1e3:9.4f} ms of {len(seconds)}", flush=True)


if __name__ == "__main__":
    main()
