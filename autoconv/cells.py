"""What stands in one cell of a table: times, ratios, sizes and dates as text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from autoconv.evidence import Decision
from autoconv.verbose import format_time

__all__ = [
    "NONE",
    "decision",
    "doubts",
    "error",
    "fact",
    "gflops",
    "interval",
    "size",
    "span",
    "spread",
    "status",
    "times",
    "when",
]

NONE = "-"
"""An empty cell."""


def decision(one: Decision | None) -> tuple[str, str, str, str]:
    """winner, time, runner-up, ratio."""
    if one is None:
        return (NONE,) * 4
    runner_up = str(one.runner_up.choice) if one.runner_up else NONE
    by = "tie" if one.tie else times(one.ratio)
    return str(one.winner.choice), format_time(one.winner.median_s), runner_up, by


def doubts(one: Decision | None) -> list[str]:
    """What is doubtful about a winner, a word each."""
    return [doubt.partition(":")[0] for doubt in one.doubts] if one else []


def status(word: str, reason: str) -> str:
    """Nothing to say of "ok"."""
    return "" if word == "ok" else f"{word}: {reason}" if reason else word


def gflops(macs: int, one: Decision | None) -> str:
    """What the direct method would have to reach for this time."""
    seconds = one.winner.median_s if one else None
    return f"{2e-9 * macs / seconds:.4g}" if seconds else NONE


def times(ratio: float | None) -> str:
    """A ratio."""
    return NONE if ratio is None else f"{ratio:.2f}x"


def interval(bounds: Sequence[float] | None) -> str:
    """Both ends of the interval of a ratio."""
    return NONE if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def spread(share: float | None) -> str:
    """Half the interquartile range, as a share of the median."""
    return NONE if share is None else f"+/- {share * 50:.0f} %"


def error(value: float | None) -> str:
    """An error relative to the largest result."""
    return NONE if value is None else f"{value:.1e}"


def size(count: int) -> str:
    """Bytes with a fitting unit."""
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / (1 << 10):.0f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def when(seconds: float) -> str:
    """Seconds since 1970 as a date."""
    if not 0 < seconds < 32503680000:  # up to the year 3000: what a damaged row says is no date
        return NONE
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def span(numbers: Sequence[int]) -> str:
    """`1-8` for neighbours, else each number."""
    together = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if together else " ".join(map(str, numbers))


def fact(value: Any) -> str:
    """Anything that `doctor` or the registry states."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    return NONE if value is None or value == "" else str(value)
