"""Verbose mode: what was decided, on standard error, as it is decided.

1: one line per decision; 2: every candidate with its time, error, refusal or failure as well;
3: the command line that repeats the tuning as well.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping

from autoconv.device import Device
from autoconv.evidence import Decision, Measurement
from autoconv.options import Settings, without_password
from autoconv.planning import Plan
from autoconv.spec import ConvSpec

__all__ = ["announce", "candidate_line", "format_time", "headline", "repeat_command"]

_ORIGINS = {
    "cache": "cache hit",
    "tuned": "tuned",
    "heuristic": "heuristic: estimated, not measured",
    "pinned": "pinned",
}


def format_time(seconds: float | None) -> str:
    """Seconds with a fitting unit and three digits: `1.23 ms`."""
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 100 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def headline(plan: Plan) -> str:
    """One line: spec, winner, time, runner-up and ratio, and where the decision came from."""
    parts = [f"{plan.spec}: {plan.choice}"]
    decision = plan.decision
    if decision is not None:
        parts.append(format_time(decision.winner.median_s))
        if decision.runner_up is not None:
            verb = "ties with" if decision.tie else "before"
            parts.append(f"{verb} {decision.runner_up.choice} by {decision.ratio or 0:.2f}x")
        if decision.partial:
            parts.append("race cut short")
        parts += [doubt for doubt in decision.doubts if not doubt.startswith("partial")]
    return ", ".join(parts) + f" ({_ORIGINS.get(plan.source, plan.source)})"


def candidate_line(row: Measurement, decision: Decision | None) -> str:
    """One candidate: time, spread, workspace, error and ratio to the winner, or why it has none."""
    name = f"{row.choice!s:<48}"
    if not row.usable or row.median_s is None:
        return f"{name} {row.status}: {row.reason}" if row.reason else f"{name} {row.status}"
    winner_s = decision.winner.median_s if decision else None
    ratio = f"{row.median_s / winner_s:5.2f}x" if winner_s else ""
    mark = "  chosen" if decision and row is decision.winner else ""
    state = "" if row.status == "ok" else f"  {row.status}"
    error = "" if row.error is None else f"  error {row.error:.1e}"
    spread = "" if row.spread is None else f" +/- {row.spread * 50:.0f} %"  # half the interquartile range
    room = f"workspace {row.workspace_bytes / 2**20:.1f} MiB"
    return f"{name} {format_time(row.median_s):>8}{spread}  {ratio}  {room}{error}{state}{mark}"


def repeat_command(spec: ConvSpec, device: Device, settings: Settings) -> str:
    """The command line that tunes `spec` again under the same settings."""
    words = ["autoconv", "tune", str(spec), "--retune", "--threads", str(device.threads)]
    for option in ("prefer", "require", "exclude"):
        for word in getattr(settings, option):
            words += [f"--{option}", word]
    variables = []
    for name in ("max_workspace", "max_rel_error", "deterministic", "strict_nan", "cache"):
        value = getattr(settings, name)
        if value not in (None, False):
            variables.append(f"AUTOCONV_{name.upper()}={shlex.quote(without_password(str(value)))}")
    return " ".join((*variables, shlex.join(words)))


def announce(plan: Plan, settings: Settings, rows: Iterable[Measurement], refusals: Mapping[str, str]) -> None:
    """Print what `settings.verbose` asks for about a decision just made."""
    if settings.verbose < 1:
        return
    lines = [f"autoconv: {headline(plan)}"]
    if settings.verbose >= 2:
        ordered = sorted(rows, key=lambda row: (not row.usable, row.median_s or 0.0, str(row.choice)))
        lines += [f"  {candidate_line(row, plan.decision)}" for row in ordered]
        lines += [f"  {name:<48} refused: {reason}" for name, reason in refusals.items()]
    if settings.verbose >= 3:
        lines.append(f"  repeat: {repeat_command(plan.spec, plan.device, settings)}")
    print("\n".join(lines), file=sys.stderr, flush=True)
