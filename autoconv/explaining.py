"""`Explanation`: what would run a spec, what lost and by how much, what refused and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoconv import dispatch, options
from autoconv.device import Device
from autoconv.errors import NoImplementation
from autoconv.evidence import Choice, Decision, Measurement, candidate_key
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from autoconv.verbose import candidate_line, format_time

__all__ = ["Explanation", "explain_spec"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Answer of `autoconv.explain`: `str()` tells it, `to_dict()` gives it as plain data.

    `state` is "remembered" (a decision is stored), "partial" (its race was cut short) or "unknown"
    (nothing is stored: `chosen` is what the estimate would pick).
    """

    spec: ConvSpec
    device: Device
    state: str
    chosen: Choice | None
    decision: Decision | None
    rows: Sequence[Measurement]
    stale: Mapping[str, str]
    """Candidate -> which version it was measured with that has changed since."""
    estimates: Sequence[tuple[Choice, float]]
    refusals: Mapping[str, str]

    @property
    def why(self) -> str:
        """The sentence why this one."""
        if self.decision is not None:
            return self.decision.why
        if self.chosen is None:
            return "every implementation refuses"
        return "nothing is remembered: the lowest estimate, to be replaced by a measurement at the first tuning"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `autoconv explain --json` prints it; times in seconds, sizes in bytes."""
        decision = self.decision
        interval = decision.interval if decision else None
        chosen = None
        if self.chosen is not None:
            chosen = {
                "id": self.chosen.implementation,
                "version": self.chosen.version,
                "config": dict(self.chosen.config),
                "choice": str(self.chosen),
                "source": "cache" if decision else "heuristic",
                "median_s": decision.winner.median_s if decision else None,
                "error": decision.winner.error if decision else None,
                "workspace_bytes": decision.winner.workspace_bytes if decision else None,
            }
        return {
            "spec": str(self.spec),
            "device": self.device.fingerprint,
            "state": self.state,
            "chosen": chosen,
            "why": self.why,
            "tie": bool(decision and decision.tie),
            "runner_up": str(decision.runner_up.choice) if decision and decision.runner_up else None,
            "ratio": decision.ratio if decision else None,
            "interval": list(interval) if interval else None,
            "candidates": [self._row(row) for row in self._ranked()],
            "estimates": {str(choice): seconds for choice, seconds in self.estimates},
            "refusals": dict(self.refusals),
        }

    def _row(self, row: Measurement) -> dict[str, Any]:
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
            "stale": self.stale.get(candidate_key(row.choice), ""),
            "environment": dict(row.environment),
            "measured_at": row.measured_at,
        }

    def _ranked(self) -> list[Measurement]:
        return sorted(self.rows, key=lambda row: (not row.usable, row.median_s or 0.0, str(row.choice)))

    def __str__(self) -> str:
        lines = [f"{self.spec}", f"on {self.device}", ""]
        if self.chosen is None:
            lines.append("nothing here may run it")
        else:
            seconds = f", {format_time(self.decision.winner.median_s)}" if self.decision else ""
            lines += [f"chosen: {self.chosen}{seconds} ({self.state})", f"why:    {self.why}"]
        if self.rows:
            lines += ["", "measured:"]
            for row in self._ranked():
                stale = self.stale.get(candidate_key(row.choice))
                lines.append(f"  {candidate_line(row, self.decision)}" + (f"  stale: {stale}" if stale else ""))
        if self.estimates:
            lines += ["", "not measured, by estimate:"]
            lines += [f"  {choice!s:<48} {format_time(seconds):>8}" for choice, seconds in self.estimates]
        if self.refusals:
            lines += ["", "refused:"]
            lines += [f"  {name:<48} {reason}" for name, reason in self.refusals.items()]
        return "\n".join(lines)


def explain_spec(spec: ConvSpec, device: Device) -> Explanation:
    """Explain `spec` under the current settings without racing anything."""
    settings = options.current_scope().settings
    registry = default_registry()
    rows, decision, built = dispatch.recall(spec, device, settings)
    order, _ = dispatch.untuned_order(spec, device, settings)
    candidates, refusals = registry.candidates(spec, device, settings.limits(spec.dtype))
    measured = {candidate_key(row.choice) for row in rows}
    entrants = [(one.choice, one.estimate_s) for one in candidates]
    estimates = [(choice, seconds) for choice, seconds in entrants if candidate_key(choice) not in measured]
    chosen = built.choice if built else (order[0][0] if order else None)
    state = "unknown" if decision is None else ("partial" if decision.partial else "remembered")
    limits = settings.limits(spec.dtype)
    barred = {str(row.choice): reason for row in rows if row.usable and (reason := limits.refuses(row))}
    return Explanation(
        spec=spec,
        device=device,
        state=state,
        chosen=chosen,
        decision=decision,
        rows=rows,
        stale={candidate_key(row.choice): text for row in rows if (text := _staleness(registry, row))},
        estimates=estimates,
        refusals={**refusals, **barred},
    )


def _staleness(registry: Any, row: Measurement) -> str:
    """Which library versions differ from those the row was measured with, or an empty text."""
    try:
        now = registry.environment(row.choice)
    except (NoImplementation, LookupError, ImportError):
        return "its implementation cannot be loaded any more"
    changed = [f"{name} {old} -> {now[name]}" for name, old in row.environment.items() if now.get(name, old) != old]
    return ", ".join(changed)
