"""`benchmarks/gpu.py` from the first argument to the page, on stand-ins for CuPy and PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPES = """
network.asymmetric  fprop n1c4 8x8 k4 3x3 p1:2,0:1 corr
double.plain        fprop n2c3 7x6 k5 3x3 p1 corr f64
"""


RUN = "import cupy, runpy, sys; sys.argv[:1] = []; runpy.run_path(sys.argv[0], run_name='__main__')"
"""The program, once the stand-in has put its driver there."""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = (ROOT, ROOT / "benchmarks", ROOT / "tests/standin", ROOT / "tests/standin_torch")
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "AUTOCONV_ISOLATION": "none", "AUTOCONV_REQUIRE": "cupy",
        "AUTOCONV_CACHE": str(folder / "m.sqlite"), "MPLBACKEND": "agg",
    }  # fmt: skip
    (folder / "shapes.txt").write_text(SHAPES)
    command = [
        sys.executable, "-c", RUN, str(ROOT / "benchmarks/gpu.py"), str(folder / "shapes.txt"), "--rounds", "4",
        "--tune-s", "0.2", "--host-calls", "20", "--json", str(folder / "gpu_standin.json"), "--docs", str(folder),
        *arguments,
    ]  # fmt: skip
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def records(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "gpu_standin.json").read_text())["records"]
    return {(record["name"], record["mode"]): record for record in found}


def test_measures_in_pieces_and_writes_the_page(tmp_path: Path) -> None:
    first = bench(tmp_path, "--modes", "strict,tf32,f64", "--seconds", "0.001")
    assert first.returncode == 3, first.stderr
    assert records(tmp_path) == {}
    second = bench(tmp_path, "--modes", "strict,tf32,f64")
    assert second.returncode == 0, second.stderr
    assert "3 of 3 cases" in second.stdout
    found = records(tmp_path)
    assert set(found) == {("network.asymmetric", "strict"), ("network.asymmetric", "tf32"), ("double.plain", "f64")}
    for record in found.values():
        assert set(record["engines"]) == {"autoconv", "autoconv-nhwc", "torch", "torch-nhwc"}
        for name, entry in record["engines"].items():
            assert "reason" not in entry, (name, entry)
            assert len(entry["samples"]) >= 3
            assert entry["enqueue_s"] > 0
    errors = {mode: found["network.asymmetric", mode]["engines"]["torch"]["error"] for mode in ("strict", "tf32")}
    assert errors["strict"] < 1e-6 < 1e-5 < errors["tf32"], "TF32 where it is allowed, and nowhere else"
    page = (tmp_path / "gpu.md").read_text()
    assert "## cuda NVIDIA H200 / sm_90" in page
    assert "torch 2.13.0+standin" in page
    assert "| strict | 1 |" in page
    assert "`fprop n2c3 7x6 k5 3x3 p1 s1 d1 g1 corr nchw f64`" in page


def test_the_page_without_results_says_so(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks/gpu_page.py"), "--results", str(tmp_path), "--docs", str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "Nothing has been measured on a device yet" in (tmp_path / "gpu.md").read_text()
