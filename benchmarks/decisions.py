"""The measurements behind docs/decisions, one function each.

python benchmarks/decisions.py            all
python benchmarks/decisions.py rows       one: registry rows rewrites read evidence workspace calls skipped
                                               checksum
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from _blocks import ROOT, fill

import autoconv
from autoconv import dispatch, options, workloads
from autoconv.cache import reader
from autoconv.convolving import conv2d
from autoconv.device import cpu
from autoconv.errors import CacheError
from autoconv.evidence import Limits, decide, latest
from autoconv.impls import BUILTIN
from autoconv.planning import thread_workspace
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op
from autoconv.verbose import format_time

LAYER = "fprop n1c32 28x28 k32 3x3 p1"
PROCESSES = 7
FLIPS = 1000


def seconds_per_call(call: Callable[[], object], rounds: int = 9, sample_s: float = 0.01) -> float:
    """Median seconds of a call over `rounds` loops of about `sample_s`."""
    call()
    started = time.perf_counter()
    call()
    loops = max(1, int(sample_s / max(time.perf_counter() - started, 1e-9)))
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(loops):
            call()
        samples.append((time.perf_counter() - started) / loops)
    return median(samples)


def seconds_in_process(code: str, before: str = "") -> float:
    """Median seconds that `code` takes in a fresh process, after `before`."""
    script = f"{before}\nimport time\nt = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    runs = [
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        for _ in range(PROCESSES)
    ]
    return median(float(run.stdout.splitlines()[-1]) for run in runs)


lines: list[str] = []


def say(what: str, value: object) -> None:
    """One line of the report."""
    lines.append(f"{what:<66} {value}")


def registry() -> None:
    """0001: what importing every implementation would add to `import autoconv`."""
    modules = ", ".join(sorted({where.partition(":")[0] for where in BUILTIN.values()}))
    say("import autoconv, beyond NumPy", format_time(seconds_in_process("import autoconv", "import numpy")))
    besides = seconds_in_process(f"import {modules}", "import autoconv")
    say("importing all implementations besides", format_time(besides))


def rows() -> None:
    """0002: what keeping every row costs, and what it saves when a limit changes."""
    layers = [entry.spec for entry in workloads.network("alexnet").entries]
    before = _store_bytes()
    results = autoconv.tune(layers, budget_s=8)
    count = sum(len(result.rows) for result in results)
    say("rows per spec", f"{count / len(layers):.1f}")
    say("bytes per row", f"{(_store_bytes() - before) / count:.0f}")
    spec, device = results[-1].spec, cpu()
    settings = options.Settings(max_workspace=1 << 20)
    say(
        "a decision under a new limit, from the rows",
        format_time(seconds_per_call(lambda: dispatch.recall(spec, device, settings))),
    )
    say("the race that it spares", format_time(results[-1].seconds))


def _store_bytes() -> int:
    path = Path(str(options.Settings.from_environment().cache))
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def rewrites() -> None:
    """0003: replaying the child from the row against looking it up."""
    spec = ConvSpec.parse(LAYER.replace("fprop", "dgrad"))
    autoconv.tune(spec, budget_s=5)
    found = latest(dispatch.current_store().rows(str(spec), cpu().fingerprint))
    row = next(row for row in found if row.choice.child and row.usable)
    say("row", row.choice)
    lower = default_registry().get(row.choice.implementation).child_spec(spec)
    assert lower is not None
    own = len(replace(row.choice, child=None).to_json())
    say("bytes that the child adds to the row", len(row.choice.to_json()) - own)
    replay = seconds_per_call(lambda: default_registry().build(spec, cpu(), row.choice))
    look_up = seconds_per_call(lambda: dispatch.recall(lower, cpu(), options.Settings()))
    say("making it ready, child replayed from the row", format_time(replay))
    say("looking the child's rows up and deciding, which that spares", format_time(look_up))


def read() -> None:
    """0004: the read on the path of a call, by sqlite3 and by SQLAlchemy."""
    autoconv.tune(LAYER, budget_s=2)
    store, spec, device = dispatch.current_store(), str(ConvSpec.parse(LAYER)), cpu().fingerprint
    say("import sqlite3, after NumPy", format_time(seconds_in_process("import sqlite3", "import numpy")))
    say("import sqlalchemy, after that", format_time(seconds_in_process("import sqlalchemy", "import numpy, sqlite3")))
    say("the read itself: connection, SELECT, rows", format_time(seconds_per_call(lambda: store.rows(spec, device))))


def evidence() -> None:
    """0005: what judging again costs, since a decision is never stored."""
    spec = ConvSpec.parse(LAYER)
    result = autoconv.tune(spec, budget_s=3)[0]
    say("rows judged", len(result.rows))
    say("samples in the longest", max(len(row.samples) for row in result.rows))
    say("decide", format_time(seconds_per_call(lambda: decide(result.rows, Limits()))))


def workspace() -> None:
    """0006: scratch from the thread's arena against new memory in each call."""
    for size in (1 << 20, 16 << 20, 64 << 20):
        scratch = thread_workspace()

        def from_arena(size: int = size, scratch: object = scratch) -> None:
            thread_workspace().take(size)[...] = 1
            thread_workspace().release()

        def new(size: int = size) -> None:
            np.empty(size, np.uint8)[...] = 1

        arena_s, new_s = seconds_per_call(from_arena), seconds_per_call(new)
        say(f"{size >> 20} MiB written, taken from the arena", format_time(arena_s))
        say(f"{size >> 20} MiB written, newly allocated", format_time(new_s))


def calls() -> None:
    """0007: the look-up of a decided call, and what settings in the key would add."""
    x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    conv2d(x, w)
    decided = options.current_scope().calls
    key = next(key for key in decided if isinstance(key, tuple) and key[0] is Op.FPROP and len(key) > 2)
    values = options.current_scope().settings
    found = seconds_per_call(lambda: options.current_scope().calls[key])
    say("scope found, key hashed, call found", format_time(found))
    say("hashing the settings besides, were they in the key", format_time(seconds_per_call(lambda: hash(values))))


def skipped() -> None:
    """0008: what skipping by estimate saves, and whether a skipped candidate would have won."""
    with autoconv.settings(cache=":memory:"):
        specs = [entry.spec for entry in workloads.network("resnet18").entries]
        results = autoconv.tune(specs, budget_s=20)
    saved, wrong, count, total = 0.0, 0, 0, 0
    for result in results:
        assert result.decision is not None
        total += len(result.rows)
        for row in result.rows:
            if row.status != "skipped" or row.choice.child or row.choice.implementation.startswith("rewrite."):
                continue
            built = default_registry().build(result.spec, result.device, row.choice)
            first, second = (np.ones(shape, np.float32) for shape in result.spec.operand_shapes)
            out = np.empty(result.spec.result_shape, np.float32)
            started = time.perf_counter()
            built.runner(first, second, out, thread_workspace())
            elapsed = time.perf_counter() - started
            thread_workspace().release()
            count += 1
            saved += elapsed
            wrong += elapsed < (result.decision.winner.median_s or 0)
    say("candidates, and skipped among them", f"{total}, {count}")
    say("one run of each skipped one would have taken", format_time(saved))
    say("the races took", format_time(sum(result.seconds for result in results)))
    say("skipped ones faster than the winner", wrong)


def checksum() -> None:
    """0010: what checking every row costs, and what would go unnoticed without."""
    spec, device = str(ConvSpec.parse(LAYER)), cpu().fingerprint
    result = autoconv.tune(LAYER, budget_s=3)[0]
    path = Path(str(options.Settings.from_environment().cache))
    checked, query = seconds_per_call(lambda: reader.read(path, spec, device)), reader.SELECT
    say("rows read", len(result.rows))
    say("reading them, checked", format_time(checked))
    written, data = set(map(repr, reader.read(path, spec, device)[0])), path.read_bytes()
    chance = np.random.default_rng(1)
    flips = [(int(chance.integers(len(data))), 1 << int(chance.integers(8))) for _ in range(FLIPS)]
    for how, text in (("checked", query), ("unchecked", query.replace(", checksum", ""))):
        reader.SELECT = text
        if how == "unchecked":
            say("reading them, unchecked", format_time(seconds_per_call(lambda: reader.read(path, spec, device))))
        altered = sum(_altered(path.with_name("flipped"), data, *flip, spec, device, written) for flip in flips)
        say(f"of {FLIPS} files with one bit flipped, those that give an altered row, {how}", altered)
    reader.SELECT = query


def _altered(path: Path, data: bytes, place: int, bit: int, spec: str, device: str, written: set[str]) -> bool:
    path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
    try:
        found, _ = reader.read(path, spec, device)
    except (sqlite3.Error, UnicodeDecodeError, CacheError):
        return False
    return any(repr(row) not in written for row in found)


SECTIONS = {
    one.__name__: one for one in (registry, rows, rewrites, read, evidence, workspace, calls, skipped, checksum)
}


def main(names: list[str], write: bool) -> None:
    """Run the sections named, on a cache of their own; print them, or put them into their pages."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOCONV_CACHE"] = f"{folder}/store.sqlite"
        for name in names or SECTIONS:
            lines.clear()
            SECTIONS[name]()
            report = "\n".join((*lines, f"({datetime.now(UTC):%Y-%m-%d}, {cpu().fingerprint})"))
            print(f"{name}: {SECTIONS[name].__doc__}\n{report}\n", flush=True)
            if write:
                number = (SECTIONS[name].__doc__ or "")[:4]
                (page,) = (ROOT / "docs/decisions").glob(f"{number}-*.md")
                fill(page, "measured", f"```text\n{report}\n```")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--write"], "--write" in sys.argv[1:])
