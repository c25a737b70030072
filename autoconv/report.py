"""Every table of the command line and the benchmarks: on a terminal, as Markdown, and as JSON.

A builder (`winners`, `explanation`, ...) turns results into a `Report`: parts to read, and the same
facts as plain data. `Report.print` writes it the way the destination wants it. No numbers are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autoconv import cells
from autoconv.benching import BenchRow
from autoconv.catalogue import ImplementationRecord
from autoconv.evidence import Decision, Miss
from autoconv.showing import Memory
from autoconv.tables import Report, Table
from autoconv.verbose import format_time, repeat_command
from autoconv.workloads import Entry, Problem

if TYPE_CHECKING:
    from autoconv.regressing import Regression
    from autoconv.sharing import Imported
    from autoconv.tuner import TuningResult
    from autoconv.verifying import Verification

__all__ = [
    "Report",
    "Table",
    "bench",
    "doctor",
    "explanation",
    "exported",
    "implementations",
    "imported",
    "regressions",
    "remembered",
    "repeat_command",
    "verifications",
    "winners",
]

SPARE = ("error", "workspace", "rounds", "spread", "interval")  # of a table of candidates
NO_DECISION: dict[str, Any] = {
    "winner": None, "runner_up": None, "ratio": None, "interval": None, "tie": False, "partial": False, "doubts": [],
    "why": "",
}  # fmt: skip


# Builders ----------------------------------------------------------------------------------------


def winners(
    results: Sequence[tuple[Entry, TuningResult]],
    failures: Sequence[tuple[Entry, str]] = (),
    problems: Sequence[Problem] = (),
    *,
    title: str = "",
    interrupted: bool = False,
) -> Report:
    """What won each spec of a tuning, by how much, and what could not be tuned."""
    named = any(entry.name for entry, _ in results)
    rows = []
    for entry, result in results:
        decision = result.decision
        line = (
            *((entry.name,) if named else ()),
            str(entry.spec),
            *cells.decision(decision),
            cells.gflops(entry.spec.macs, decision),
            _state(result),
        )
        rows.append(line)
    columns = (*(("name",) if named else ()), "spec", "winner", "time", "ahead of", "by", "GFLOP/s", "state")
    spare = ("spec", "GFLOP/s") if named else ("GFLOP/s",)
    table = Table(columns, tuple(rows), title, frozenset({"time", "by", "GFLOP/s"}), (*spare, "ahead of"))
    parts: list[Table | str] = [table] if rows else []
    if failures:
        parts.append(_failure_table("not tuned", failures))
    data = {
        "interrupted": interrupted,
        "results": [_result_data(entry, result) for entry, result in results],
        **_trouble_data(failures, problems),
    }
    return Report(tuple(parts), data)


def remembered(memories: Sequence[Memory], misses: Sequence[Miss], *, candidates: bool = False) -> Report:
    """What the store holds: per device a table of winners, and the open misses; `candidates` adds every row."""
    parts: list[Table | str] = []
    for device in sorted({memory.device for memory in memories}):
        here = [memory for memory in memories if memory.device == device]
        rows = tuple(
            (
                memory.spec,
                *cells.decision(memory.decision),
                str(len(memory.rows)),
                cells.when(max((row.measured_at for row in memory.rows), default=0.0)),
                ", ".join(cells.doubts(memory.decision)),
            )
            for memory in here
        )
        columns = ("spec", "winner", "time", "ahead of", "by", "rows", "measured", "state")
        parts.append(Table(columns, rows, device, frozenset({"time", "by", "rows"}), ("rows", "measured", "ahead of")))
        if candidates:
            parts += [_measurements(memory) for memory in here]
    if misses:
        rows_missed = tuple((miss.spec, str(miss.count), cells.when(miss.last_at), miss.reason) for miss in misses)
        parts.append(
            Table(("spec", "asked for", "last", "why"), rows_missed, "missed or cut short", frozenset({"asked for"}))
        )
    data = {
        "specs": [
            {
                "spec": memory.spec,
                "device": memory.device,
                **_decision_data(memory.decision),
                "candidates": memory.candidates(),
            }
            for memory in memories
        ],
        "misses": [asdict(miss) for miss in misses],
    }
    return Report(tuple(parts) or ("nothing is remembered",), data)


def explanation(told: Mapping[str, Any]) -> Report:
    """`Explanation.to_dict()` to read: the choice, the measured, the estimated, the refused."""
    chosen = told["chosen"]
    head = [told["spec"], f"on {told['device']}", ""]
    if chosen is None:
        head.append("nothing here may run it")
    else:
        seconds = f", {format_time(chosen['median_s'])}" if chosen.get("median_s") else ""
        head.append(f"chosen: {chosen['choice']}{seconds} ({told['state']})")
        head.append(f"why:    {told['why']}")
    parts: list[Table | str] = ["\n".join(head)]
    if told["candidates"]:
        parts.append(_candidate_table(told["candidates"], chosen.get("median_s") if chosen else None, "measured"))
    if told.get("estimates"):
        guesses = ((name, format_time(seconds)) for name, seconds in told["estimates"].items())
        parts.append(_two_columns("not measured, by estimate", "candidate", "estimate", guesses, numbers=True))
    if told["refusals"]:
        parts.append(_two_columns("refused", "candidate", "reason", told["refusals"].items()))
    return Report(tuple(parts), dict(told))


def implementations(records: Sequence[ImplementationRecord]) -> Report:
    """The registry in fallback order: reach, properties, and whether each can run here."""
    columns = (
        "id",
        "version",
        "operations",
        "ranks",
        "dtypes",
        "layouts",
        "deterministic",
        "strict nan",
        "tags",
        "here",
    )
    rows = tuple(
        (
            one.id,
            str(one.version),
            " ".join(one.ops),
            cells.span(one.ranks),
            " ".join(one.dtypes),
            " ".join(one.layouts),
            cells.fact(one.deterministic),
            cells.fact(one.strict_nan),
            " ".join(one.tags),
            cells.fact(one.available),
        )
        for one in records
    )
    spare = ("strict nan", "deterministic", "layouts", "ranks", "tags", "version", "dtypes")
    parts = [Table(columns, rows, right=frozenset({"version"}), spare=spare)]
    missing = [(one.id, one.reason) for one in records if not one.available]
    if missing:
        parts.append(_two_columns("not available here", "id", "reason", missing))
    return Report(tuple(parts), [asdict(one) for one in records])


def regressions(
    results: Sequence[tuple[Entry, Regression]],
    failures: Sequence[tuple[Entry, str]] = (),
    problems: Sequence[Problem] = (),
    *,
    left: int = 0,
    interrupted: bool = False,
) -> Report:
    """What was timed again, why, and what became of the winners."""
    columns = ("spec", "why again", "winner", "was", "by", "interval", "drift", "state")
    rows = []
    for _, one in results:
        old = one.before.winner if one.before and one.changed else None
        rows.append(
            (
                str(one.spec),
                ", ".join(dict.fromkeys(reason.partition(":")[0] for reason in one.reasons)),
                str(one.after.winner.choice),
                str(old.choice) if old else cells.NONE,
                cells.times(one.ratio) if old else cells.NONE,
                cells.interval(one.interval),
                cells.times(one.drift),
                ", ".join(["cut short"] if one.partial else cells.doubts(one.after)) or "settled",
            )
        )
    table = Table(columns, tuple(rows), "timed again", frozenset({"by", "interval", "drift"}), ("drift", "interval"))
    parts: list[Table | str] = [table] if rows else []
    if failures:
        parts.append(_failure_table("not timed again", failures))
    if left:
        parts.append(f"{left} more are doubtful: the budget did not reach them")
    data = {
        "interrupted": interrupted,
        "left": left,
        "results": [one.to_dict() for _, one in results],
        **_trouble_data(failures, problems),
    }
    return Report(tuple(parts) or ("nothing that is remembered is doubtful",), data)


def verifications(
    results: Sequence[tuple[Entry, Verification]],
    failures: Sequence[tuple[Entry, str]] = (),
    problems: Sequence[Problem] = (),
    *,
    interrupted: bool = False,
) -> Report:
    """How remembered winners fared on fresh operands."""
    columns = ("spec", "candidate", "check", "error", "remembered", "reason")
    rows = tuple(
        (
            str(one.spec),
            str(check.row.choice),
            check.status,
            cells.error(check.error),
            cells.error(check.row.error),
            check.reason,
        )
        for _, one in results
        for check in one.checks
    )
    parts: list[Table | str] = []
    if rows:
        right = frozenset({"error", "remembered"})
        parts.append(Table(columns, rows, f"operands of seed {results[0][1].seed}", right, ("remembered",)))
        bad = sum(not one.ok for _, one in results)
        verdict = f"{bad} had a winner that failed, which is not used any more" if bad else "every winner was right"
        parts.append(f"specs checked: {len(results)}; {verdict}")
    if failures:
        parts.append(_failure_table("not checked", failures))
    data = {
        "interrupted": interrupted,
        "ok": all(one.ok for _, one in results) and not failures,
        "results": [one.to_dict() for _, one in results],
        **_trouble_data(failures, problems),
    }
    return Report(tuple(parts) or ("nothing is remembered",), data)


def bench(
    tables: Sequence[tuple[Entry, Sequence[BenchRow]]],
    failures: Sequence[tuple[Entry, str]],
    problems: Sequence[Problem],
    peaks: Mapping[str, float],
    device: str,
    *,
    interrupted: bool = False,
) -> Report:
    """Every candidate of every spec with its share of the measured peak."""
    told = ", ".join(f"{dtype} {flops / 1e9:.4g} GFLOP/s" for dtype, flops in peaks.items())
    parts: list[Table | str] = [f"{device}\nmeasured peak (large matrix product): {told or cells.NONE}"]
    columns = ("candidate", "time", "spread", "ratio", "GFLOP/s", "of peak", "workspace", "error", "state")
    right = frozenset(columns[1:8])
    for entry, rows in tables:
        lines = tuple(
            (
                row.choice,
                format_time(row.median_s),
                cells.spread(row.spread),
                cells.times(row.ratio),
                cells.NONE if row.flops is None else f"{row.flops / 1e9:.4g}",
                cells.NONE if row.peak_share is None else f"{row.peak_share:.1%}",
                cells.size(row.workspace_bytes),
                cells.error(row.error),
                cells.status(row.status, row.reason),
            )
            for row in rows
        )
        parts.append(Table(columns, lines, f"{entry.name}  {entry.spec}".strip(), right, SPARE))
    if failures:
        parts.append(
            _two_columns("not measured", "spec", "reason", ((str(entry.spec), why) for entry, why in failures))
        )
    data = {
        "device": device,
        "peak_flops": dict(peaks),
        "interrupted": interrupted,
        "specs": [
            {
                "name": entry.name,
                "spec": str(entry.spec),
                "macs": entry.spec.macs,
                "candidates": [asdict(r) for r in rows],
            }
            for entry, rows in tables
        ],
        **_trouble_data(failures, problems),
    }
    return Report(tuple(parts), data)


def doctor(facts: Mapping[str, Any]) -> Report:
    """`doctor.examine()` to read: a table per topic, then what is wrong."""
    parts: list[Table | str] = [
        _two_columns(
            topic, "what", "found", ((name.replace("_", " "), cells.fact(value)) for name, value in found.items())
        )
        for topic, found in facts.items()
        if isinstance(found, Mapping) and found
    ]
    faults = facts["faults"]
    parts.append("\n".join(["faults:", *(f"  {fault}" for fault in faults)]) if faults else "no faults found")
    return Report(tuple(parts), dict(facts))


def exported(rows: int, where: str) -> Report:
    """How many rows an export holds."""
    return Report((f"exported {rows} rows to {where}",), {"rows": rows, "file": where})


def imported(result: Imported) -> Report:
    """What an import added."""
    told = f"imported {result.added} rows; {result.known} were known already"
    return Report((told + (f", {result.skipped} are of unknown ids" if result.skipped else ""),), asdict(result))


# What tables share -------------------------------------------------------------------------------


def _candidate_table(rows: Sequence[Mapping[str, Any]], winner_s: float | None, title: str) -> Table:
    columns = ("candidate", "time", "spread", "rounds", "ratio", "interval", "workspace", "error", "state")
    lines = []
    for row in rows:
        seconds = row["median_s"]
        state = cells.status(row["status"], row["reason"])
        if row["stale"]:
            state = f"{state}; stale: {row['stale']}".removeprefix("; ")
        ratio = seconds / winner_s if seconds and winner_s else None
        lines.append(
            (
                row["choice"],
                format_time(seconds),
                cells.spread(row["spread"]),
                str(len(row["samples"]) or cells.NONE),
                cells.times(ratio),
                cells.interval(row["interval"]),
                cells.size(row["workspace_bytes"]),
                cells.error(row["error"]),
                state,
            )
        )
    return Table(columns, tuple(lines), title, frozenset(columns[1:8]), SPARE)


def _measurements(memory: Memory) -> Table:
    winner_s = memory.decision.winner.median_s if memory.decision else None
    return _candidate_table(memory.candidates(), winner_s, memory.spec)


def _failure_table(title: str, failures: Sequence[tuple[Entry, str]]) -> Table:
    return _two_columns(title, "spec", "reason", ((str(entry.spec), reason) for entry, reason in failures))


def _two_columns(title: str, left: str, right: str, rows: Iterable[tuple[str, str]], *, numbers: bool = False) -> Table:
    return Table((left, right), tuple(rows), title, frozenset({right} if numbers else ()))


def _state(result: TuningResult) -> str:
    if result.decision is None:
        return "nothing measured"
    doubts = [word for word in cells.doubts(result.decision) if word != "partial"]
    words = ["tuned" if result.measured else "remembered", *(["cut short"] if result.partial else []), *doubts]
    return ", ".join(words)


# Data --------------------------------------------------------------------------------------------


def _result_data(entry: Entry, result: TuningResult) -> dict[str, Any]:
    return {
        "name": entry.name,
        "spec": str(entry.spec),
        "count": entry.count,
        "device": result.device.fingerprint,
        **_decision_data(result.decision),
        "partial": result.partial,
        "measured": result.measured,
        "seconds": result.seconds,
        "candidates": [row.to_dict() for row in result.rows],
        "refusals": dict(result.refusals),
    }


def _trouble_data(failures: Sequence[tuple[Entry, str]], problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "failures": [{"name": entry.name, "spec": str(entry.spec), "reason": why} for entry, why in failures],
        "problems": [asdict(problem) for problem in problems],
    }


def _decision_data(decision: Decision | None) -> dict[str, Any]:
    return NO_DECISION if decision is None else decision.to_dict()
