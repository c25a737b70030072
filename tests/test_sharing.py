"""Measurements exported and imported: everything comes back, nothing bad comes in, and all or nothing."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import autoconv
from autoconv import BadExport, CacheError, cli, dispatch, export_measurements, import_measurements
from autoconv.cache import MemoryStore, open_store
from autoconv.device import cpu
from autoconv.evidence import Choice, Config, Measurement
from autoconv.registry import default_registry
from autoconv.sharing import Imported
from tests.cache.helpers import row

SPEC = "fprop n1c2 9x9 k3 3x3 p1 s1 d1 g1 conv nchw f32"
ELSEWHERE = "cpu Some Model (25.17.1) / avx512 / 8 cores / 8 threads"


def measured(**changes: Any) -> Measurement:
    """A row that an import accepts."""
    fields: dict[str, Any] = {
        "spec": SPEC,
        "device": ELSEWHERE,
        "choice": Choice("numpy.im2col", 1),
        "tags": ("gemm",),
        "measured_at": time.time() - 5.0,
    }
    return row(**{**fields, **changes})


def choice(name: str = "numpy.direct") -> Choice:
    """The plainest choice of an implementation of its present version."""
    one = default_registry().get(name)
    return Choice(name, one.version, one.configs(autoconv.ConvSpec.parse(SPEC), cpu())[0])


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache file that the settings name."""
    path = tmp_path / "here" / "m.sqlite"
    with autoconv.settings(cache=path):
        yield path


def exported() -> list[str]:
    file = io.StringIO()
    export_measurements(file)
    return file.getvalue().splitlines()


def lines_of(*rows: Measurement) -> list[str]:
    """The export of a cache that holds `rows`."""
    store = MemoryStore()
    store.add(rows)
    dispatch.use_store(store, ":memory:")
    with autoconv.settings(cache=":memory:"):
        return exported()


ROWS = (
    measured(choice=choice("numpy.im2col")),
    measured(choice=choice("numpy.direct"), reason="it's “odd”\nand long", race="r-2"),
    measured(
        choice=Choice("numpy.winograd", 0, Config(tile=4)), status="wrong", median_s=None, samples=(), error=math.inf
    ),
    measured(
        choice=choice("numpy.fft"),
        status="failed",
        median_s=None,
        spread=None,
        samples=(),
        error=None,
        device=cpu().fingerprint,
    ),
)


def test_everything_comes_back_under_its_own_fingerprint(cache: Path) -> None:
    assert import_measurements(lines_of(*ROWS)) == Imported(added=4, known=0)
    store = open_store(str(cache))
    assert store.rows(SPEC, ELSEWHERE) == list(ROWS[:3])
    assert store.rows(SPEC, cpu().fingerprint) == [ROWS[3]]
    assert sorted(exported()[1:]) == sorted(lines_of(*ROWS)[1:])


def test_rows_of_a_gpu_come_back_and_those_without_enqueueing_say_nothing_of_it(cache: Path) -> None:
    gpu = "cuda NVIDIA H200 / sm_90 / 132 multiprocessors / 139 GiB"
    row = measured(device=gpu, status="crashed", median_s=None, samples=(), enqueue_s=2e-5)
    assert import_measurements(lines_of(row)) == Imported(added=1, known=0)
    assert open_store(str(cache)).rows(SPEC, gpu) == [row]
    assert "enqueue_s" not in json.loads(lines_of(measured(enqueue_s=None))[1]), "as earlier versions read it"
    with pytest.raises(BadExport, match="no fingerprint"):
        import_measurements([line.replace("132 multi", "0 multi") for line in lines_of(row)])


def test_a_file_imported_twice_changes_nothing(cache: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.jsonl"
    first.write_text("\n".join(lines_of(*ROWS[:2])) + "\n")
    assert import_measurements(first) == Imported(added=2, known=0)
    assert import_measurements(first) == Imported(added=0, known=2)
    assert import_measurements(io.BytesIO("\n".join(lines_of(*ROWS)).encode())) == Imported(added=2, known=2)
    assert len(open_store(str(cache)).rows(SPEC, ELSEWHERE)) == 3


def test_what_was_tuned_here_is_used_by_a_machine_that_imports_it(tmp_path: Path) -> None:
    x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 3), np.float32)
    file = tmp_path / "export.jsonl"
    with autoconv.settings(cache=tmp_path / "a.sqlite", require=("numpy.direct", "numpy.im2col"), tune_budget_s=0.1):
        expected = autoconv.conv2d(x, w, border_mode=1)
        assert export_measurements(file) >= 2
    assert file.stat().st_mode & 0o777 == 0o600
    with autoconv.settings(cache=tmp_path / "b.sqlite", on_miss="error"):
        with pytest.raises(autoconv.NoImplementation):
            autoconv.conv2d(x, w, border_mode=1)
        import_measurements(file)
        np.testing.assert_array_equal(autoconv.conv2d(x, w, border_mode=1), expected)
        assert autoconv.plan(SPEC).source == "cache"


def test_a_native_row_whose_object_is_not_here_gives_way_and_is_missed(cache: Path) -> None:
    """The imported winner was compiled elsewhere: the call takes the next best, compiles nothing, and says so."""
    native = default_registry().get("native.direct")
    spec = autoconv.ConvSpec.parse(SPEC)
    if native.why_not(spec, cpu()):
        pytest.skip(str(native.why_not(spec, cpu())))
    config = native.configs(spec, cpu())[0]
    here = {"device": cpu().fingerprint, "race": "far away", "samples": (), "deterministic": True, "strict_nan": True}
    rows = (
        measured(choice=Choice(native.name, native.version, config), median_s=1e-6, workspace_bytes=0, tags=(), **here),
        measured(choice=choice(), median_s=1e-3, workspace_bytes=0, tags=(), **here),
    )
    import_measurements(lines_of(*rows))
    with autoconv.settings(on_miss="error"):
        x, w = np.ones((1, 2, 9, 9), np.float32), np.ones((3, 2, 3, 3), np.float32)
        assert autoconv.conv2d(x, w, border_mode=1)[0, 0, 4, 4] == 18
        plan = autoconv.plan(spec)
    assert (plan.implementation, plan.source) == ("numpy.direct", "cache")
    (miss,) = open_store(str(cache)).misses()
    assert miss.spec == SPEC
    assert "nothing is compiled inside a call" in miss.reason


def test_a_row_that_understates_itself_gives_way(cache: Path) -> None:
    """Limits are held against what the implementation says here, not against the row alone."""
    one = choice("numpy.im2col")
    needed = (
        default_registry().get(one.implementation).workspace_bytes(autoconv.ConvSpec.parse(SPEC), cpu(), one.config)
    )
    here = {"device": cpu().fingerprint, "workspace_bytes": 0, "error": 0.0, "deterministic": True, "strict_nan": True}
    rows = (measured(choice=one, median_s=1e-6, **here), measured(choice=choice(), median_s=1e-3, **here))
    import_measurements(lines_of(*rows))
    with autoconv.settings(max_workspace=needed - 1, on_miss="error"):
        assert autoconv.plan(SPEC).implementation == "numpy.direct"


# What is refused ---------------------------------------------------------------------------------


def change(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plain: {**plain, **changes}


def inside(field: str, **changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda plain: {**plain, field: {**plain[field], **changes}}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda plain: [plain], "expected an object, got list"),
    "a field too many": (change(code="import os"), "unknown field 'code'"),
    "a field too few": (lambda plain: {k: v for k, v in plain.items() if k != "race"}, "lacks 'race'"),
    "no spec": (change(spec="fprop of everything"), "expected|unknown|cannot|needs"),
    "a spec in other words": (change(spec="fprop n1c2 9x9 k3 3x3 p1"), "canonical form"),
    "a spec that is a number": (change(spec=7), "spec must be a text"),
    "no device": (change(device="my machine"), "no fingerprint"),
    "no cores": (change(device="cpu x / avx2 / 0 cores / 0 threads"), "no fingerprint"),
    "a long text": (change(race="r" * 300), "longer than 255"),
    "a status of its own": (change(status="splendid"), "status must be one of"),
    "a status that is a list": (change(status=[]), "status must be one of"),
    "no time": (change(median_s=0), "a time of 0.0 s"),
    "a time below zero": (change(median_s=-1e-3), "median_s must be a number from 0"),
    "a time that is a text": (change(median_s="1e-3"), "median_s must be a number"),
    "a time that is true": (change(median_s=True), "median_s must be a number"),
    "a sample below zero": (change(samples=[1e-3, -1e-3]), "samples must be a number"),
    "no list of samples": (change(samples="1e-3"), "samples must be a list"),
    "workspace beyond measure": (change(workspace_bytes=2**63), "workspace_bytes must be an integer"),
    "half a byte": (change(workspace_bytes=0.5), "workspace_bytes must be an integer"),
    "an endless error": (change(error="inf"), "error of inf"),
    "an error below zero": (change(error=-1e-9), "error must be a number"),
    "a flag that is a number": (change(deterministic=1), "must be true or false"),
    "tomorrow's measurement": (change(measured_at=time.time() + 1e6), "measured_at must be a number"),
    "an environment of numbers": (inside("environment", numpy=2), "must be a text"),
    "tags of sentences": (change(tags=["a tag; DROP TABLE measurement"]), "must be a word"),
    "an unknown id": (inside("choice", id="some.thing"), "'some.thing' is unknown here"),
    "an unknown child": (
        inside("choice", id="rewrite.groups", child={"id": "some.thing", "version": 1, "config": {}}),
        "'some.thing' is unknown here",
    ),
    "an id that is code": (inside("choice", id="os.system('true')"), "must be a word"),
    "a version that is none": (inside("choice", version="1"), "choice version must be an integer"),
    "tunables that it lacks": (inside("choice", config={"no_such": 4}), "has no config"),
    "tunables that are code": (inside("choice", config={"tile": "4; system(0)"}), "must be a word"),
    "tunables beyond measure": (inside("choice", config={"tile": 2**40}), "must be an integer"),
    "a child that it does not have": (
        inside("choice", child={"id": "numpy.direct", "version": 1, "config": {}}),
        "has no child",
    ),
    "an implementation of something else": (
        change(choice={"id": "rewrite.dgrad_as_fprop", "version": 1, "config": {}}),
        "does not compute",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), BAD.values(), ids=BAD.keys())
def test_one_bad_line_and_nothing_is_imported(cache: Path, damage: Callable[[dict[str, Any]], Any], says: str) -> None:
    lines = lines_of(*ROWS[:2])
    lines[2] = json.dumps(damage(json.loads(lines[2])))
    with pytest.raises(BadExport, match=f"line 3: .*({says})"):
        import_measurements(lines)
    assert not cache.exists()


RAW = {
    "an empty file": (b"", "line 1: empty"),
    "a database": (b"SQLite format 3\0" + bytes(range(256)) * 20, "line 1: "),
    "a pickle": (pickle.dumps({"format": "autoconv measurements"}), "line 1: "),
    "a bad head": (b'{"format": "autoconv measurements", "version": 1}\n', "line 1: lacks 'autoconv'"),
    "another format": (b'{"format": "wisdom"}\n', "line 1: not an export of autoconv"),
    "a later format": (b'{"format": "autoconv measurements", "version": 2, "extra": 0}\n', "line 1: format version 2"),
    "no JSON": (b"{} {}\n", "line 1: no JSON"),
    "a name twice": (b'{"format": "a", "format": "b"}\n', "line 1: a name appears twice"),
    "NaN": (b'{"format": NaN}\n', "line 1: NaN is no number"),
    "bytes": (b'{"format": "\xff"}\n', "line 1: .*utf-8"),
    "nesting": (b"[" * 100_000, "line 1: "),
    "digits": (b'{"rows": ' + b"9" * 10_000 + b"}", "line 1: "),
    "an endless line": (b" " * (3 << 20), "line 1: longer than"),
}


@pytest.mark.parametrize(("content", "says"), RAW.values(), ids=RAW.keys())
def test_a_file_that_is_no_export(cache: Path, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BadExport, match=says):
        import_measurements(tmp_path / "file")
    assert not cache.exists()


def test_a_file_cut_short_is_refused(cache: Path) -> None:
    with pytest.raises(BadExport, match=r"line 3: ends after 2 rows, the first line announces 4"):
        import_measurements(lines_of(*ROWS)[:3])
    assert not cache.exists()


def test_rows_of_unknown_ids_may_be_left_out(cache: Path) -> None:
    lines = lines_of(*ROWS[:2])
    lines[1] = lines[1].replace("numpy.im2col", "outside.conv")
    assert import_measurements(lines, skip_unknown=True) == Imported(added=1, known=0, skipped=1)
    assert [str(each.choice) for each in open_store(str(cache)).rows(SPEC, ELSEWHERE)] == ["numpy.direct"]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        autoconv.settings(cache=tmp_path / "file" / "m.sqlite"),
        pytest.warns(autoconv.cache.CacheWarning),
        pytest.raises(CacheError, match="cannot be written"),
    ):
        import_measurements(lines_of(*ROWS))


def test_an_import_that_fails_half_way_leaves_nothing(cache: Path) -> None:
    store = open_store(str(cache))
    store.add([measured(race="before")])
    with sqlite3.connect(cache) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON measurement WHEN NEW.race = 'r-2' "
                         "BEGIN SELECT RAISE(ABORT, 'no room'); END")  # fmt: skip
    database.close()
    with pytest.raises(CacheError, match="no room"):
        import_measurements(lines_of(*ROWS))
    assert [each.race for each in open_store(str(cache)).rows(SPEC, ELSEWHERE)] == ["before"]


PIECES = st.sampled_from(
    [b'"spec"', b'"choice"', b":", b"{", b"}", b"[", b"]", b",", b"null", b"1e999", b"-1", b'"\\ud800"', b"\xff", b"\n"]
)


@given(st.data())
def test_any_bytes_give_rows_or_the_documented_error(data: st.DataObject) -> None:
    """An export with a few bytes replaced, removed or put in."""
    content = bytearray("\n".join(lines_of(*ROWS)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.integers(0, 8))
        content[start:stop] = data.draw(st.binary(max_size=8) | PIECES)
    dispatch.use_store(MemoryStore(), ":memory:")
    with autoconv.settings(cache=":memory:"):
        try:
            added = import_measurements(io.BytesIO(bytes(content))).added
        except BadExport:
            added = 0
        assert len(exported()) - 1 == added


# Files and the command line ----------------------------------------------------------------------


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "export.jsonl"
    target.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        export_measurements(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_device_is_written_to_not_replaced() -> None:
    with autoconv.settings(cache=":memory:"):
        export_measurements("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_the_commands(cache: Path, tmp_path: Path) -> None:
    def run(*words: str, given: str | None = None, status: int = 0) -> str:
        done = CliRunner().invoke(cli.cli, words, input=given)
        assert done.exit_code == status, (done.output, done.exception)
        return done.output

    import_measurements(lines_of(*ROWS))
    file = str(tmp_path / "export.jsonl")
    assert run("export", file, "--cache", str(cache)) == f"exported 4 rows to {file}\n"
    other = ("--cache", str(tmp_path / "other.sqlite"))
    assert json.loads(run("import", file, "--json", *other)) == {"added": 4, "known": 0, "skipped": 0}
    assert run("import", "-", *other, given=run("export", "-", "--cache", str(cache))).startswith("imported 0 rows; 4")
    assert "error: line 1: " in run("import", "-", *other, given="nonsense", status=1)
    assert "cannot read the export" in run("import", str(tmp_path / "none"), status=2)
    assert "cannot write the export" in run("export", str(tmp_path / "no" / "file"), status=2)
