"""The command line: every command, every kind of error, and what a real process does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import autoconv
from autoconv import api, benching, cache, cli, dispatch
from autoconv.device import cpu
from autoconv.errors import NoImplementation
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from autoconv.workloads import network, networks

SPEC = "fprop n1c2 8x8 k2 3x3 p1 s1 d1 g1 conv nchw f32"
QUICK = ("--budget", "0.1", "--require", "numpy.direct,numpy.im2col")
REPOSITORY = Path(autoconv.__file__).parents[1]


def run(*words: str, status: int = 0) -> Result:
    """Run a command in this process; its exit status must be `status`."""
    result = CliRunner().invoke(cli.cli, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def run_json(*words: str, status: int = 0) -> Any:
    return json.loads(run(*words, "--json", status=status).stdout)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The specs that were to be tuned, and nothing is."""
    specs: list[str] = []

    def refuse(wanted: Sequence[ConvSpec], *_: Any, **__: Any) -> None:
        specs.extend(map(str, wanted))
        raise NoImplementation("not today", {"a.b": "closed"})

    monkeypatch.setattr(api, "tune", refuse)
    return specs


# Help --------------------------------------------------------------------------------------------


def test_help_documents_the_exit_statuses_and_every_command() -> None:
    text = run("--help").stdout
    for status in ("0 ", "1 ", "2 ", "130"):
        assert f"\n    {status}" in text
    for name, command in cli.cli.commands.items():
        assert name in text
        assert command.help
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_names_the_built_in_networks() -> None:
    text = " ".join(run("--help").stdout.split())
    assert f"({', '.join(networks())})" in text


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_every_command_has_the_common_options(name: str) -> None:
    text = run(name, "--help").stdout
    for option in ("--json", "--verbose", "--cache", "--exclude", "--require", "--prefer", "--threads", "--device"):
        assert option in text


def test_version() -> None:
    assert autoconv.__version__ in run("--version").stdout


# tune --------------------------------------------------------------------------------------------


def test_tune_remembers_and_show_and_explain_tell() -> None:
    (first,) = run_json("tune", SPEC, *QUICK)["results"]
    assert first["measured"] > 0
    (again,) = run_json("tune", SPEC, *QUICK)["results"]
    assert not again["measured"] or {row["status"] for row in first["candidates"]} != {"ok"}  # what is open goes on
    assert "| spec | winner |" in run("tune", SPEC, *QUICK).stdout
    (shown,) = run_json("show")["specs"]
    assert shown["spec"] == SPEC
    assert shown["winner"]["id"] in ("numpy.direct", "numpy.im2col")
    told = run_json("explain", SPEC)
    assert told["state"] in ("remembered", "partial")
    assert told["chosen"]["id"] == shown["winner"]["id"]
    assert "chosen: numpy." in run("explain", *SPEC.split()).stdout
    assert "numpy.direct" in run("show", SPEC).stdout


def test_retune_measures_again() -> None:
    run("tune", SPEC, *QUICK)
    assert run_json("tune", SPEC, *QUICK, "--retune")["results"][0]["measured"] > 0


def test_a_line_per_spec_goes_to_standard_error() -> None:
    result = run("tune", SPEC, "--require", "numpy.direct")
    assert f"1/1 {SPEC}: numpy.direct" in result.stderr
    assert "1/1" not in result.stdout


def test_tune_takes_a_network_and_replaces_what_options_say(asked: list[str]) -> None:
    options = shlex.split("--batch 4 --directions fprop,wgrad --fixed --corr --layout nhwc --dtype f64")
    failures = run_json("tune", "alexnet", *options, status=1)["failures"]
    assert len(asked) == len(failures) == 2 * len(network("alexnet").entries)
    assert asked[:2] == [
        "fprop n4c3 224x224 k64 11x11 p2 s4 d1 g1 corr nhwc f64 fixed",
        "wgrad n4c3 224x224 k64 11x11 p2 s4 d1 g1 corr nhwc f64",
    ]
    assert failures[0]["name"] == "alexnet.conv1"


def test_a_spec_that_nothing_can_run_leaves_the_others() -> None:
    pointwise = "fprop n1c2 8x8 k2 1x1"
    result = run("tune", SPEC, pointwise, "--require", "rewrite.gemm_1x1", "--budget", "0.2", status=1)
    assert "**not tuned**" in result.stdout
    assert f"1/2 {SPEC}: failed: nothing here may run" in result.stderr
    assert f"2/2 {ConvSpec.parse(pointwise)}: rewrite.gemm_1x1" in result.stderr


def test_a_bad_line_names_file_and_line_and_the_good_ones_are_tuned(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(f"good {SPEC}\nbad fprop n1c1\n")
    result = run("tune", str(file), *QUICK, status=1)
    assert f"{file}:2: cannot read spec" in result.stderr
    assert "| good |" in result.stdout
    data = run_json("tune", str(file), *QUICK, status=1)
    assert [problem["where"] for problem in data["problems"]] == [f"{file}:2"]
    assert len(data["results"]) == 1


def test_missed_specs_are_tuned_once() -> None:
    store = dispatch.current_store()
    with autoconv.settings(on_miss="heuristic", require=("numpy.direct",)):
        autoconv.plan(SPEC)
    store.miss("fprop of another age", cpu().fingerprint)
    assert SPEC in run("show").stdout
    result = run("tune", "--missed", "--require", "numpy.direct", "--budget", "5", status=1)
    assert f"1/1 {SPEC}" in result.stderr
    assert "a recorded miss: cannot read spec 'fprop of another age'" in result.stderr
    assert SPEC not in {miss.spec for miss in store.misses(cpu().fingerprint)}


def test_nothing_missed_is_no_failure() -> None:
    assert "nothing was missed" in run("tune", "--missed").stderr


def test_an_interruption_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = api.tune

    def tune(specs: Sequence[ConvSpec], *rest: Any, **more: Any) -> Any:
        if specs[0].batch == 2:
            raise KeyboardInterrupt
        return real(specs, *rest, **more)

    monkeypatch.setattr(api, "tune", tune)
    words = [SPEC.replace("n1", f"n{n}") for n in (1, 2, 3)]
    result = run("tune", *words, *QUICK, status=130)
    assert "interrupted: 1 of 3 specs were done; what was measured is kept" in result.stderr
    assert words[0] in result.stdout
    assert run_json("tune", *words, *QUICK, status=130)["interrupted"] is True
    assert [one["spec"] for one in run_json("show")["specs"]] == [words[0]]


def test_an_interruption_anywhere_else_ends_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(autoconv, "implementations", interrupt)
    assert run("impls", status=130).stderr == "autoconv: interrupted\n"


def test_the_cache_option_names_the_database(tmp_path: Path) -> None:
    file = tmp_path / "own.sqlite"
    run("tune", SPEC, *QUICK, "--cache", str(file))
    assert file.exists()
    assert not run_json("show")["specs"]
    assert run_json("show", "--cache", str(file))["specs"]


# Verbose -----------------------------------------------------------------------------------------


def test_verbose_levels() -> None:
    lines = [run("tune", SPEC, "--retune", *QUICK, *more).stderr for more in ((), ("-v",), ("-vv",), ("-vvvv",))]
    assert lines[0].startswith("autoconv: 1/1")
    assert lines[1].count("\n") == 1
    assert "(tuned)" in lines[1]
    assert "refused:" not in lines[1]
    assert "refused: not among settings" in lines[2]
    assert "repeat:" not in lines[2]
    assert "repeat:" in lines[3]


def test_the_printed_command_repeats_the_tuning() -> None:
    told = run("tune", SPEC, *QUICK, "-vvv").stderr
    words = shlex.split(told.split("repeat: ")[1])
    command = words[words.index("autoconv") + 1 :]
    assert command[:2] == ["tune", SPEC]
    (repeated,) = run_json(*command)["results"]
    assert repeated["spec"] == SPEC
    assert repeated["measured"] > 0
    assert {row["id"] for row in repeated["candidates"]} == {"numpy.direct", "numpy.im2col"}


# explain, impls, show ----------------------------------------------------------------------------


def test_explain_without_a_measurement_says_so() -> None:
    told = run_json("explain", SPEC)
    assert told["state"] == "unknown"
    assert told["chosen"]["source"] == "heuristic"


def test_explain_fails_when_nothing_can_run_it() -> None:
    result = run("explain", SPEC, "--require", "rewrite.gemm_1x1", status=1)
    assert "nothing here may run it" in result.stdout


def test_impls_lists_the_registry() -> None:
    text = run("impls").stdout
    assert all(name in text for name in default_registry().ids())
    assert [one["id"] for one in run_json("impls")] == list(default_registry().ids())


def test_show_of_what_is_not_remembered_fails() -> None:
    assert "nothing is remembered" in run("show").stdout
    assert "nothing is remembered" in run("show", SPEC, status=1).stdout


# bench -------------------------------------------------------------------------------------------


@pytest.fixture
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "MATRIX", 64)
    benching.measured_peak.cache_clear()


@pytest.mark.usefixtures("_small_peak")
def test_bench_times_every_candidate_against_the_peak() -> None:
    data = run_json("bench", SPEC, *QUICK)
    (peak,) = data["peak_flops"].values()
    (spec,) = data["specs"]
    assert {row["choice"].partition("[")[0] for row in spec["candidates"]} == {"numpy.direct", "numpy.im2col"}
    timed = [row for row in spec["candidates"] if row["median_s"]]  # a loaded machine may not reach the second
    assert 1 in {row["ratio"] for row in timed}
    for row in timed:
        assert row["peak_share"] == pytest.approx(2 * spec["macs"] / row["median_s"] / peak)
    assert "of peak" in run("bench", SPEC, *QUICK).stdout


@pytest.mark.usefixtures("_small_peak")
def test_the_peak_is_measured_once_per_dtype() -> None:
    specs = [ConvSpec.parse(f"{SPEC.removesuffix('f32')}{dtype}") for dtype in ("f16", "f32", "f64", "f64")]
    peaks = benching.measured_peaks(specs, 1)
    assert set(peaks) == {"f32", "f64"}
    assert all(flops > 0 for flops in peaks.values())
    assert benching.measured_peaks(specs, 1) == peaks


# doctor ------------------------------------------------------------------------------------------


def test_doctor_reports_what_is_here() -> None:
    run("tune", SPEC, *QUICK)
    facts = run_json("doctor")
    assert not facts["faults"]
    assert facts["autoconv"]["version"] == autoconv.__version__
    assert facts["device"]["fingerprint"] == cpu().fingerprint
    assert facts["cache"]["rows"] > 0
    assert facts["cache"]["schema_version"]
    assert facts["cache"]["permissions"] == "-rw-------"
    assert facts["implementations"]["numpy.direct"] == "available"
    text = run("doctor").stdout
    for topic in ("NumPy", "BLAS", "SciPy", "compiler", "cache", "fingerprint"):
        assert topic in text


def test_doctor_fails_for_a_broken_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    default_registry().ids()
    monkeypatch.setitem(default_registry().faults, "theirs", "ImportError: gone")
    result = run("doctor", status=1)
    assert "entry point theirs cannot be loaded: ImportError: gone" in result.stdout


def test_doctor_fails_for_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    run("tune", SPEC, *QUICK, "--cache", str(newer))
    with closing(sqlite3.connect(newer)) as connection, connection:
        newest = "(SELECT max(version) FROM schema_version)"
        connection.execute(f"UPDATE schema_version SET version = 999 WHERE version = {newest}")
    result = process("doctor", "--cache", str(newer))  # pytest turns the warning into an error
    assert result.returncode == 1
    assert "the cache cannot be used" in result.stdout
    assert f"autoconv: warning: {newer} cannot be read" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("compiler", ["", "/nonexistent/cc", "false"])
def test_doctor_survives_any_compiler(monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CC", compiler)
    assert run_json("doctor")["compiler"]


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("tune", 2, "name specs, networks or workload files"),
        ("bench", 2, "name specs, networks or workload files"),
        ("explain", 2, "Missing argument"),
        ("unknown", 2, "No such command"),
        ("tune resnet51", 2, "did you mean 'resnet50'"),
        ("tune none.json", 2, "no such workload file: none.json"),
        ("tune .", 2, "cannot read the workload"),
        ("tune fprop n1c1 8x8 k1 9x9", 2, "kernel larger than the padded image"),
        ("explain fprop n1c1 8x8 k1 oops", 2, "cannot read 'oops'"),
        ("explain resnet50", 2, "cannot read spec 'resnet50'"),
        ("tune alexnet --exclude numpy.im2cl", 2, "did you mean 'numpy.im2col'"),
        ("explain fprop n1c1 8x8 k1 3x3 --require nobody", 2, "no implementation is called 'nobody'"),
        ("tune alexnet --directions forward", 2, "expected some of fprop,dgrad,wgrad"),
        ("tune alexnet --directions ,", 2, "expected some of fprop,dgrad,wgrad"),
        ("tune alexnet --budget 0", 2, "positive number of seconds"),
        ("tune alexnet --budget nan", 2, "positive number of seconds"),
        ("tune alexnet --budget inf", 2, "positive number of seconds"),
        ("tune alexnet --batch 0", 2, "--batch"),
        ("tune alexnet --threads 0", 2, "--threads"),
        ("tune alexnet --layout hwcn", 2, "--layout"),
        ("tune alexnet --dtype i8", 2, "--dtype"),
        ("tune alexnet --device tpu", 2, "device must be None, 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_errors_are_one_message_and_a_status(words: str, status: int, message: str) -> None:
    result = run(*shlex.split(words), status=status)
    assert message in result.stderr
    assert not result.stdout
    assert "Traceback" not in result.stderr


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCONV_TUNE_BUDGET_S", "soon")
    assert "AUTOCONV_TUNE_BUDGET_S" in run("impls", status=2).stderr


def test_out_of_memory_is_that_spec_s_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(api, "tune", tune)
    assert run_json("tune", SPEC, status=1)["failures"][0]["reason"] == "out of memory"


def test_a_spec_beyond_the_memory_leaves_the_others() -> None:
    monster = "fprop n1000000c1 1000000x1000000 k1 1x1"
    data = run_json("tune", monster, SPEC, *QUICK, status=1)
    assert "allocate" in data["failures"][0]["reason"]
    assert len(data["results"]) == 1


# Real processes ----------------------------------------------------------------------------------


def process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoconv", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)


def test_a_process_tunes_and_another_remembers() -> None:
    first = process("tune", SPEC, *QUICK, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["results"][0]["measured"] > 0
    again = process("explain", SPEC, "--json")
    assert json.loads(again.stdout)["chosen"]["source"] == "cache"


def test_a_process_refuses_wrong_arguments() -> None:
    result = process("tune", "--wrong")
    assert result.returncode == 2
    assert "No such option" in result.stderr
    assert not result.stdout


def test_ctrl_c_keeps_rows_and_exits_with_130(tmp_path: Path) -> None:
    file, database = tmp_path / "many.txt", tmp_path / "c.sqlite"
    file.write_text("\n".join(f"fprop n{n}c1 8x8 k1 3x3" for n in range(1, 500)))
    # Python ignores SIGINT where the parent did, as a background job's does
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = [sys.executable, "-c", start + "runpy.run_module('autoconv', run_name='__main__', alter_sys=True)"]
    words += ["tune", str(file), "--cache", str(database), "--require", "numpy.direct,numpy.im2col"]
    environment = {**os.environ, "AUTOCONV_TUNE_BUDGET_S": "0.05"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if " 3/499 " in line:
                break
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert running.returncode == 130, stderr
    assert "of 499 specs were done; what was measured is kept" in stderr
    assert "Traceback" not in stderr
    assert stdout.count("| fprop ") >= 3
    assert len(cache.open_store(str(database)).all_specs()) >= 3


def test_a_reader_that_leaves_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "autoconv", "impls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
    assert b"Traceback" not in errors


def test_importing_autoconv_imports_no_part_of_the_command_line() -> None:
    code = (
        "import autoconv, sys; print(sorted({'click', 'rich', 'autoconv.cli', 'autoconv.report'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "[]\n"
