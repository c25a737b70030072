"""Every table of the command line and the benchmarks: on a terminal, as Markdown, and as JSON.

A builder (`winners`, `explanation`, ...) turns results into a `Report`: parts to read, and the same
facts as plain data. `Report.print` writes it the way the destination wants it. No numbers are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from autoconv.benching import BenchRow
from autoconv.catalogue import ImplementationRecord
from autoconv.evidence import Decision, Measurement, Miss
from autoconv.showing import Memory
from autoconv.tables import Report, Table
from autoconv.verbose import format_time, repeat_command
from autoconv.workloads import Entry, Problem

if TYPE_CHECKING:
    from autoconv.tuner import TuningResult

__all__ = [
    "Report",
    "Table",
    "bench",
    "doctor",
    "explanation",
    "implementations",
    "remembered",
    "repeat_command",
    "winners",
]

NONE = "-"  # an empty cell
SPARE = ("error", "workspace", "spread")  # of a table of candidates


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
        cells = (
            *((entry.name,) if named else ()),
            str(entry.spec),
            *_decision_cells(decision),
            _gflops(entry.spec.macs, decision),
            _state(result),
        )
        rows.append(cells)
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
                *_decision_cells(memory.decision),
                str(len(memory.rows)),
                _when(max((row.measured_at for row in memory.rows), default=0.0)),
            )
            for memory in here
        )
        columns = ("spec", "winner", "time", "ahead of", "by", "rows", "measured")
        parts.append(Table(columns, rows, device, frozenset({"time", "by", "rows"}), ("rows", "measured", "ahead of")))
        if candidates:
            parts += [_measurements(memory) for memory in here]
    if misses:
        rows_missed = tuple((miss.spec, str(miss.count), _when(miss.last_at), miss.reason) for miss in misses)
        parts.append(
            Table(("spec", "asked for", "last", "why"), rows_missed, "missed or cut short", frozenset({"asked for"}))
        )
    data = {
        "specs": [
            {
                "spec": memory.spec,
                "device": memory.device,
                **_decision_data(memory.decision),
                "candidates": [_row_data(row) for row in memory.rows],
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
            _range(one.ranks),
            " ".join(one.dtypes),
            " ".join(one.layouts),
            _fact(one.deterministic),
            _fact(one.strict_nan),
            " ".join(one.tags),
            _fact(one.available),
        )
        for one in records
    )
    spare = ("strict nan", "deterministic", "layouts", "ranks", "tags", "version", "dtypes")
    parts = [Table(columns, rows, right=frozenset({"version"}), spare=spare)]
    missing = [(one.id, one.reason) for one in records if not one.available]
    if missing:
        parts.append(_two_columns("not available here", "id", "reason", missing))
    return Report(tuple(parts), [asdict(one) for one in records])


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
    parts: list[Table | str] = [f"{device}\nmeasured peak (large matrix product): {told or NONE}"]
    columns = ("candidate", "time", "spread", "ratio", "GFLOP/s", "of peak", "workspace", "error", "state")
    right = frozenset(columns[1:8])
    for entry, rows in tables:
        cells = tuple(
            (
                row.choice,
                format_time(row.median_s),
                _spread(row.spread),
                _times(row.ratio),
                NONE if row.flops is None else f"{row.flops / 1e9:.4g}",
                NONE if row.peak_share is None else f"{row.peak_share:.1%}",
                _bytes(row.workspace_bytes),
                _error(row.error),
                _status(row.status, row.reason),
            )
            for row in rows
        )
        parts.append(Table(columns, cells, f"{entry.name}  {entry.spec}".strip(), right, SPARE))
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
        _two_columns(topic, "what", "found", ((name.replace("_", " "), _fact(value)) for name, value in found.items()))
        for topic, found in facts.items()
        if isinstance(found, Mapping) and found
    ]
    faults = facts["faults"]
    parts.append("\n".join(["faults:", *(f"  {fault}" for fault in faults)]) if faults else "no faults found")
    return Report(tuple(parts), dict(facts))


# Cells -------------------------------------------------------------------------------------------


def _candidate_table(rows: Sequence[Mapping[str, Any]], winner_s: float | None, title: str) -> Table:
    columns = ("candidate", "time", "spread", "ratio", "workspace", "error", "state")
    cells = []
    for row in rows:
        seconds = row["median_s"]
        state = _status(row["status"], row["reason"])
        if row.get("stale"):
            state = f"{state}; stale: {row['stale']}".removeprefix("; ")
        ratio = seconds / winner_s if seconds and winner_s else None
        cells.append(
            (
                row["choice"],
                format_time(seconds),
                _spread(row["spread"]),
                _times(ratio),
                _bytes(row["workspace_bytes"]),
                _error(row["error"]),
                state,
            )
        )
    return Table(columns, tuple(cells), title, frozenset(columns[1:6]), SPARE)


def _measurements(memory: Memory) -> Table:
    rows = sorted(memory.rows, key=lambda row: (not row.usable, row.median_s or 0.0, str(row.choice)))
    winner_s = memory.decision.winner.median_s if memory.decision else None
    return _candidate_table([_row_data(row) for row in rows], winner_s, memory.spec)


def _failure_table(title: str, failures: Sequence[tuple[Entry, str]]) -> Table:
    return _two_columns(title, "spec", "reason", ((str(entry.spec), reason) for entry, reason in failures))


def _two_columns(title: str, left: str, right: str, rows: Iterable[tuple[str, str]], *, numbers: bool = False) -> Table:
    return Table((left, right), tuple(rows), title, frozenset({right} if numbers else ()))


def _decision_cells(decision: Decision | None) -> tuple[str, str, str, str]:
    """winner, time, runner-up, ratio."""
    if decision is None:
        return (NONE,) * 4
    runner_up = str(decision.runner_up.choice) if decision.runner_up else NONE
    by = "tie" if decision.tie else _times(decision.ratio)
    return str(decision.winner.choice), format_time(decision.winner.median_s), runner_up, by


def _state(result: TuningResult) -> str:
    if result.decision is None:
        return "nothing measured"
    return ("tuned" if result.measured else "remembered") + (", cut short" if result.partial else "")


def _status(status: str, reason: str) -> str:
    return "" if status == "ok" else f"{status}: {reason}" if reason else status


def _gflops(macs: int, decision: Decision | None) -> str:
    seconds = decision.winner.median_s if decision else None
    return f"{2e-9 * macs / seconds:.4g}" if seconds else NONE


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def _spread(spread: float | None) -> str:
    return NONE if spread is None else f"+/- {spread * 50:.0f} %"  # half the interquartile range


def _error(error: float | None) -> str:
    return NONE if error is None else f"{error:.1e}"


def _bytes(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    return f"{size / (1 << 10):.0f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


def _when(seconds: float) -> str:
    if not 0 < seconds < 32503680000:  # up to the year 3000: what a damaged row says is no date
        return NONE
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _range(numbers: Sequence[int]) -> str:
    """`1-8` for neighbours, else each number."""
    together = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if together else " ".join(map(str, numbers))


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    return NONE if value is None or value == "" else str(value)


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
        "candidates": [_row_data(row) for row in result.rows],
        "refusals": dict(result.refusals),
    }


def _trouble_data(failures: Sequence[tuple[Entry, str]], problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "failures": [{"name": entry.name, "spec": str(entry.spec), "reason": why} for entry, why in failures],
        "problems": [asdict(problem) for problem in problems],
    }


def _decision_data(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"winner": None, "runner_up": None, "ratio": None, "interval": None, "tie": False, "why": ""}
    return {
        "winner": _row_data(decision.winner),
        "runner_up": str(decision.runner_up.choice) if decision.runner_up else None,
        "ratio": decision.ratio,
        "interval": list(decision.interval) if decision.interval else None,
        "tie": decision.tie,
        "why": decision.why,
    }


def _row_data(row: Measurement) -> dict[str, Any]:
    """As in `Explanation.to_dict()`'s candidates."""
    return {
        "choice": str(row.choice),
        "id": row.choice.implementation,
        "version": row.choice.version,
        "config": dict(row.choice.config),
        "status": row.status,
        "median_s": row.median_s,
        "spread": row.spread,
        "rounds": len(row.samples),
        "workspace_bytes": row.workspace_bytes,
        "error": row.error,
        "deterministic": row.deterministic,
        "strict_nan": row.strict_nan,
        "reason": row.reason,
        "environment": dict(row.environment),
        "measured_at": row.measured_at,
    }
