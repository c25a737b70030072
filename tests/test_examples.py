"""The examples run, each as a user would start it."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import autoconv
from autoconv.impls import BUILTIN

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

RUNS = {  # file -> (arguments, what it prints)
    "quickstart.py": ([], "adjoint:"),
    "tune_a_network.py": (["net.txt", "1"], "planned, packed and run"),
    "own_implementation.py": ([], "example.separable"),
}
COMPILED = "native" if any(name.startswith("native.") for name in BUILTIN) else ""  # seconds of compiling
NETWORK = "stem fprop n1c3 32x32 k8 3x3 p1\nbody fprop n1c8 32x32 k8 3x3 p1  # x4\n"


def run(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AUTOCONV_CACHE": str(folder / "store.sqlite"),
        "AUTOCONV_TUNE_BUDGET_S": "0.1",
        "AUTOCONV_EXCLUDE": COMPILED,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "error",
    }
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text(NETWORK, encoding="utf-8")
    arguments, printed = RUNS[name]
    done = run(name, arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_a_second_run_remembers(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text(NETWORK, encoding="utf-8")
    for expected in ("measured", "remembered"):
        doubtful = disturbed(tmp_path / "store.sqlite")
        done = run("tune_a_network.py", ["net.txt", "4"], tmp_path)
        assert (expected if not doubtful else "measured") in done.stdout, done.stdout + done.stderr


def disturbed(file: Path) -> bool:
    """Whether a race there was disturbed by other work on this machine, or cut short: it is held again then."""
    if not file.exists():
        return False
    with closing(sqlite3.connect(file)) as database:
        query = "SELECT count(*) FROM measurement WHERE status IN ('suspect', 'partial')"
        return bool(database.execute(query).fetchone()[0])


def test_the_demo_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy.signal")
    demo = load(EXAMPLES / "demo.py")
    whole = demo.photograph()
    assert whole.shape[:2] == (3, 1)
    assert 0 <= whole.min() < whole.max() <= 1
    monkeypatch.setattr(demo, "photograph", lambda: np.ascontiguousarray(whole[:, :, 100:164, 100:180]))
    monkeypatch.setenv("AUTOCONV_EXCLUDE", COMPILED)
    tune = autoconv.tune
    monkeypatch.setattr(autoconv, "tune", lambda spec, **_: tune(spec, budget_s=0.5))
    demo.main(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("decision: ") == 3
    assert {file.name for file in tmp_path.glob("*.png")} == {"photograph.png", "blur.png", "edges.png", "gabor.png"}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {*RUNS, "demo.py"}
