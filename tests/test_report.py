"""Tables: what a terminal, a file and a program get to see."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from autoconv import report
from autoconv.benching import BenchRow
from autoconv.device import cpu
from autoconv.evidence import Choice, Config, Limits, Measurement, Miss, decide
from autoconv.options import Settings
from autoconv.showing import Memory
from autoconv.spec import ConvSpec
from autoconv.tables import Report, Table, clean
from autoconv.tuner import TuningResult
from autoconv.workloads import Entry, Problem

SPEC = ConvSpec.parse("fprop n1c8 16x16 k8 3x3 p1")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def row(name: str, median_s: float | None, status: str = "ok", **more: Any) -> Measurement:
    choice = Choice(name, 1, Config(m=4) if name == "a.slow" else Config())
    return Measurement(
        str(SPEC), cpu().fingerprint, choice, status, median_s=median_s, spread=0.02, error=1e-6,
        workspace_bytes=3 << 20, samples=(median_s,) * 8 if median_s else (), race="r", measured_at=1.8e9, **more,
    )  # fmt: skip


ROWS = (row("a.slow", 3e-3), row("a.fast", 1e-3), row("a.broken", None, "failed", reason="no | such\nluck"))


def result(rows: tuple[Measurement, ...] = ROWS, **more: Any) -> TuningResult:
    fields: dict[str, Any] = {
        "refusals": {"a.none": "needs more"},
        "built": None,
        "seconds": 0.5,
        "measured": 3,
        "partial": False,
    }
    return TuningResult(SPEC, cpu(), decide(rows, Limits()), rows, **{**fields, **more})


def drawn(told: Report, monkeypatch: pytest.MonkeyPatch, columns: int = 200) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    told.print(file)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of every table row of a Markdown text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.split("\n") if line[:1] == "|"
    ]


# Ways to print -----------------------------------------------------------------------------------

TABLE = Table(("name", "n"), (("a|b\nc", "1"), ("[bold]x[/bold]", "22")), "title", frozenset({"n"}))


def test_a_file_gets_markdown_with_bars_escaped() -> None:
    file = io.StringIO()
    Report((TABLE, "text"), None).print(file)
    assert file.getvalue() == (
        "**title**\n\n| name | n |\n| --- | ---: |\n| a\\|b c | 1 |\n| [bold]x[/bold] | 22 |\n\ntext\n"
    )


def test_a_terminal_gets_drawn_cells_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(Report((TABLE, "[red]text[/red]"), None), monkeypatch)
    assert "[bold]x[/bold]" in text
    assert "[red]text[/red]" in text
    assert "|" not in text.replace("a|b", "")


def test_programs_get_strict_json() -> None:
    file = io.StringIO()
    Report((), {"a": [float("nan"), float("inf"), 1.5], "b": (1, None)}).print(file, as_json=True)
    assert json.loads(file.getvalue()) == {"a": [None, None, 1.5], "b": [1, None]}


def test_str_gets_columns_under_one_another() -> None:
    table = Table(("name", "n", "why"), (("a", "1", "x\ny"), ("bcd", "22", "")), "title", frozenset({"n"}))
    assert Report((table, "text"), None).text() == "title\nname    n   why\na       1   x y\nbcd    22\n\ntext"


def test_what_steers_a_terminal_is_shown_not_sent() -> None:
    assert clean("ok é\n\x1b[2J\x07") == "ok é\n\\x1b[2J\\x07"


def test_a_narrow_terminal_loses_spare_columns_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(("a", "b", "c"), (("x" * 10, "y" * 10, "z" * 10),), spare=("b", "a"))
    assert table.fitted(36).columns == ("a", "b", "c")
    assert table.fitted(35).columns == ("a", "c")
    assert table.fitted(3).columns == ("c",)
    assert "(a wider terminal also shows: b)" in drawn(Report((table,), None), monkeypatch, 35)


# Tables ------------------------------------------------------------------------------------------


def test_winners_tell_who_won_and_by_how_much() -> None:
    told = report.winners(
        [(Entry(SPEC, "layer1"), result())], [(Entry(SPEC), "no way")], [Problem("f:3", "bad")], interrupted=True
    )
    header, _, cells = markdown_rows(told.markdown())[:3]
    assert dict(zip(header, cells, strict=True)) == {
        "name": "layer1",
        "spec": str(SPEC),
        "winner": "a.fast",
        "time": "1 ms",
        "ahead of": "a.slow[m=4]",
        "by": "3.00x",
        "GFLOP/s": f"{2 * SPEC.macs / 1e-3 / 1e9:.4g}",
        "state": "tuned",
    }
    assert "no way" in told.markdown()
    data = json.loads(told.json())
    assert data["interrupted"] is True
    assert data["results"][0]["winner"]["choice"] == "a.fast"
    assert data["results"][0]["ratio"] == pytest.approx(3)
    assert [one["status"] for one in data["results"][0]["candidates"]] == ["ok", "ok", "failed"]
    assert data["failures"] == [{"name": "", "spec": str(SPEC), "reason": "no way"}]
    assert data["problems"] == [{"where": "f:3", "message": "bad"}]


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"measured": 0}, "remembered"), ({"partial": True}, "tuned, cut short"), ({}, "tuned")],
)
def test_winners_tell_where_the_decision_came_from(changes: dict[str, Any], state: str) -> None:
    told = report.winners([(Entry(SPEC), result(**changes))])
    assert markdown_rows(told.markdown())[2][-1] == state


def test_winners_without_a_decision_have_empty_cells() -> None:
    told = report.winners([(Entry(SPEC), result(()))])
    assert markdown_rows(told.markdown())[2][1:] == ["-", "-", "-", "-", "-", "nothing measured"]
    assert json.loads(told.json())["results"][0]["winner"] is None


def test_ties_are_called_ties() -> None:
    told = report.winners([(Entry(SPEC), result((row("a.one", 1e-3), row("a.two", 1.001e-3))))])
    assert markdown_rows(told.markdown())[2][4] == "tie"


EXPLAINED = {
    "spec": str(SPEC),
    "device": "some cpu",
    "state": "remembered",
    "chosen": {"choice": "a.fast", "median_s": 1e-3},
    "why": "3 times as fast",
    "candidates": [
        {"choice": "a.fast", "status": "ok", "median_s": 1e-3, "spread": 0.02, "workspace_bytes": 100, "error": 1e-7,
         "samples": [1e-3] * 7, "interval": None, "reason": "", "stale": "numpy 2.0 -> 2.1"},
        {"choice": "a.slow", "status": "suspect", "median_s": 2e-3, "spread": 0.02, "workspace_bytes": 0, "error": 0.0,
         "samples": [2e-3] * 7, "interval": [1.95, 2.05], "reason": "load 9", "stale": ""},
        {"choice": "a.bad", "status": "wrong", "median_s": None, "spread": None, "workspace_bytes": 2048, "error": 0.3,
         "samples": [], "interval": None, "reason": "error 0.3", "stale": ""},
    ],
    "estimates": {"a.later": 0.25},
    "refusals": {"a.none": "needs a 3x3 filter"},
}  # fmt: skip


def test_an_explanation_has_the_choice_the_losers_and_the_refusals() -> None:
    told = report.explanation(EXPLAINED)
    text = told.markdown()
    assert "chosen: a.fast, 1 ms (remembered)" in text
    assert "why:    3 times as fast" in text
    cells = markdown_rows(text)
    assert ["a.fast", "1 ms", "+/- 1 %", "7", "1.00x", "-", "100 B", "1.0e-07", "stale: numpy 2.0 -> 2.1"] in cells
    slow = ["a.slow", "2 ms", "+/- 1 %", "7", "2.00x", "1.95 to 2.05", "0 B", "0.0e+00", "suspect: load 9"]
    assert slow in cells
    assert ["a.bad", "-", "-", "-", "-", "-", "2 KiB", "3.0e-01", "wrong: error 0.3"] in cells
    assert ["a.later", "250 ms"] in cells
    assert ["a.none", "needs a 3x3 filter"] in cells
    assert json.loads(told.json()) == EXPLAINED


def test_an_explanation_without_a_choice_says_so() -> None:
    told = report.explanation({**EXPLAINED, "chosen": None, "candidates": [], "estimates": {}})
    assert "nothing here may run it" in told.markdown()


def test_remembered_shows_winners_per_device_and_what_was_missed() -> None:
    stale = {"a.fast[]": "numpy 1.0 -> 2.0"}
    this = Memory(str(SPEC), "this", decide(ROWS, Limits(), stale), ROWS, stale)
    memories = [this, Memory(str(SPEC), "that", decide(ROWS, Limits()), ROWS, {})]
    misses = [Miss("fprop odd", "this", 3, 1.8e9, "on_miss=heuristic")]
    text = report.remembered(memories, misses).markdown()
    assert text.index("**that**") < text.index("**this**")
    for state in ("", "stale"):
        line = [str(SPEC), "a.fast", "1 ms", "a.slow[m=4]", "3.00x", "3", "2027-01-15 08:00", state]
        assert line in markdown_rows(text)
    assert ["fprop odd", "3", "2027-01-15 08:00", "on_miss=heuristic"] in markdown_rows(text)
    assert "a.broken" not in text
    every = report.remembered(memories, [], candidates=True).markdown()
    assert "failed: no \\| such luck" in every
    assert "stale: numpy 1.0 -> 2.0" in every
    assert report.remembered([], []).markdown() == "nothing is remembered"


def test_bench_shows_the_share_of_the_peak() -> None:
    fast = BenchRow("a.fast", "ok", 1e-3, 0.1, 5e10, 0.5, 1.0, 0, 1e-6, "")
    lost = BenchRow("a.lost", "crashed", None, None, None, None, None, 0, None, "signal 11")
    told = report.bench([(Entry(SPEC, "x"), [fast, lost])], [], [], {"f32": 1e11}, "some cpu")
    assert "f32 100 GFLOP/s" in told.markdown()
    cells = markdown_rows(told.markdown())
    assert ["a.fast", "1 ms", "+/- 5 %", "1.00x", "50", "50.0%", "0 B", "1.0e-06", ""] in cells
    assert ["a.lost", *["-"] * 5, "0 B", "-", "crashed: signal 11"] in cells
    assert json.loads(told.json())["specs"][0]["candidates"][0]["peak_share"] == 0.5


def test_doctor_lists_facts_and_faults() -> None:
    facts = {"cache": {"rows": 3, "degraded": None, "is_fine": True, "list": ["a", "b"]}, "empty": {}, "faults": ["oh"]}
    text = report.doctor(facts).markdown()
    assert markdown_rows(text)[2:] == [["rows", "3"], ["degraded", "-"], ["is fine", "yes"], ["list", "a, b"]]
    assert text.endswith("faults:\n  oh")
    assert "**empty**" not in text
    assert report.doctor({"faults": []}).markdown() == "no faults found"


@pytest.mark.parametrize("when", [0.0, -1.0, 1e300])
def test_a_date_that_is_none_is_an_empty_cell(when: float) -> None:
    memory = Memory(str(SPEC), "d", None, (replace(ROWS[0], measured_at=when),), {})
    assert markdown_rows(report.remembered([memory], []).markdown())[2][-2] == "-"


def test_the_repeating_command_carries_the_settings() -> None:
    steered = Settings().updated({"exclude": "fft,torch", "require": "numpy", "max_workspace": "1MiB", "strict_nan": 1})
    words = report.repeat_command(SPEC, cpu(1), steered)
    assert words == (
        "AUTOCONV_MAX_WORKSPACE=1048576 AUTOCONV_STRICT_NAN=True "
        f"autoconv tune '{SPEC}' --retune --threads 1 --require numpy --exclude fft --exclude torch"
    )
