"""Whole processes: a decision found by the next one, many tuning at once, one killed half-way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import autoconv
from autoconv import dispatch
from autoconv.cache import open_store
from autoconv.device import cpu
from autoconv.evidence import decide
from autoconv.options import Settings
from autoconv.spec import ConvSpec

SPECS = [f"fprop n1c1 {size}x{size} k1 3x3 p1" for size in range(4, 16)]
FAKES = ("fake.one", "fake.two", "fake.three")

# Tunes the specs of its arguments, over and over if told to, with implementations that are right and fast.
TUNE = """
import random, sys
from autoconv.cache import open_store
from autoconv.device import cpu
from autoconv.impls.cpu.direct import Direct
from autoconv.options import Settings
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner

path, fakes, seed, rounds, *texts = sys.argv[1:]
registry = Registry()
for name in fakes.split(","):
    registry.register(type(name, (Direct,), {"name": name})())
store = open_store(path)
random.Random(int(seed)).shuffle(texts)
for number in range(int(rounds)):
    for text in texts:
        spec = ConvSpec.parse(text)
        limits = Settings().limits(spec.dtype)
        Tuner(registry, store).tune(spec, cpu(), limits, budget_s=0.05, retune=number > 0)
        print(text, flush=True)
"""


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process, warnings being errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def check_database(path: Path) -> None:
    """The file is whole."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_eight_processes_tune_overlapping_specs_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    shares = [[SPECS[(first + step) % len(SPECS)] for step in range(8)] for first in range(8)]
    running = [start(TUNE, str(path), ",".join(FAKES), str(seed), "1", *share) for seed, share in enumerate(shares)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert errors == ""
    check_database(path)
    store = open_store(str(path))
    for text in {text for share in shares for text in share}:
        spec = ConvSpec.parse(text)
        rows = store.rows(str(spec), cpu().fingerprint)
        assert {row.choice.implementation for row in rows} == set(FAKES)
        assert {row.status for row in rows} <= {"ok", "partial", "suspect"}  # eight at once: they disturb one another
        assert decide(rows, Settings().limits("f32")) is not None


def test_a_process_killed_while_tuning_leaves_what_it_committed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    for attempt in range(4):
        process = start(TUNE, str(path), ",".join(FAKES), str(attempt), "1000", *SPECS)
        assert process.stdout is not None
        done = {process.stdout.readline().strip() for _ in range(4 + attempt)}
        time.sleep(0.013 * attempt)  # somewhere else in the race each time
        process.send_signal(signal.SIGKILL)
        process.communicate()
        check_database(path)
        store = open_store(str(path))
        for text in done:
            rows = store.rows(str(ConvSpec.parse(text)), cpu().fingerprint)
            assert {row.choice.implementation for row in rows} == set(FAKES)
    survivor = start(TUNE, str(path), ",".join(FAKES), "9", "1", *SPECS)
    _, errors = survivor.communicate(timeout=60)
    assert (survivor.returncode, errors) == (0, ""), "the next process neither waits for the dead nor complains"


CALL = """
import json, sys
import numpy as np
import autoconv
x, w = np.ones((1, 2, 12, 12), np.float32), np.ones((3, 2, 3, 3), np.float32)
y = autoconv.conv2d(x, w, border_mode="half")
plan = autoconv.plan("fprop n1c2 12x12 k3 3x3 p1")
heavy = {"sqlalchemy", "scipy", "rich", "click", "autoconv.tuner", "importlib.metadata"} & set(sys.modules)
print(json.dumps({"sum": float(y.sum()), "source": plan.source, "choice": str(plan.choice), "heavy": sorted(heavy)}))
"""


def test_the_next_process_finds_the_decision_and_imports_nothing_heavy(tmp_path: Path) -> None:
    options = {"AUTOCONV_CACHE": str(tmp_path / "store.sqlite"), "AUTOCONV_REQUIRE": "numpy.im2col,numpy.direct"}
    answers = []
    for _ in range(2):
        process = start(CALL, **options)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        answers.append(json.loads(said))
    first, second = answers
    assert first["source"] == "tuned"
    assert "sqlalchemy" in first["heavy"], "the first process writes, and shows that this test can tell"
    assert second == {**first, "source": "cache", "heavy": []}


def test_two_threads_that_miss_one_spec_tune_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    races = []
    race = dispatch._race

    def counting(*arguments: object) -> object:
        races.append(arguments)
        time.sleep(0.05)
        return race(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatch, "_race", counting)
    x, w = np.ones((1, 1, 9, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    autoconv.settings.set_default(require=("numpy.direct", "numpy.im2col"))
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(autoconv.conv2d(x, w))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(races) == 1
    assert len(results) == 4
    for result in results:
        np.testing.assert_allclose(result, 9)
