"""`Explanation`: what would run a spec, what lost and by how much, what refused and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoconv import dispatch, options
from autoconv.device import Device
from autoconv.evidence import Choice, Decision, Measurement, candidate_key
from autoconv.registry import default_registry
from autoconv.showing import candidates_data
from autoconv.spec import ConvSpec

__all__ = ["Explanation", "explain_spec"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Answer of `autoconv.explain`: `str()` tells it, `to_dict()` gives it as plain data.

    `state` is "remembered" (a settled decision is stored), "partial" (its race was cut short), "suspect" (something
    disturbed the winner's measurement), "stale" (it was measured with other versions of what it uses) or "unknown"
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
    unknown: str = ""
    """Which sizes are not known, where they are not; `spec` then stands in for the problem."""

    @property
    def why(self) -> str:
        """The sentence why this one."""
        if self.decision is not None:
            return self.decision.why
        if self.chosen is None:
            return "every implementation refuses"
        if self.unknown:
            return f"{self.unknown}; this is the untuned order of the spec above, which stands in for it"
        return "nothing is remembered: the lowest estimate, to be replaced by a measurement at the first tuning"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `autoconv explain --json` prints it; times in seconds, sizes in bytes.

        A candidate's `interval` bounds its time over the winner's (95 %), where both were in one race;
        `stale` says which versions have changed since it was measured.
        """
        decision = self.decision
        winner = decision.winner if decision else None
        chosen = None
        if self.chosen is not None:
            chosen = {
                "id": self.chosen.implementation,
                "version": self.chosen.version,
                "config": dict(self.chosen.config),
                "choice": str(self.chosen),
                "source": "cache" if decision else "heuristic",
                "median_s": winner.median_s if winner else None,
                "error": winner.error if winner else None,
                "workspace_bytes": winner.workspace_bytes if winner else None,
            }
        return {
            "spec": str(self.spec),
            "device": self.device.fingerprint,
            "state": self.state,
            "chosen": chosen,
            "why": self.why,
            "doubts": list(decision.doubts) if decision else [],
            "tie": bool(decision and decision.tie),
            "runner_up": str(decision.runner_up.choice) if decision and decision.runner_up else None,
            "ratio": decision.ratio if decision else None,
            "interval": list(decision.interval) if decision and decision.interval else None,
            "candidates": candidates_data(self.rows, decision, self.stale),
            "estimates": {str(choice): seconds for choice, seconds in self.estimates},
            "refusals": dict(self.refusals),
        }

    def __str__(self) -> str:
        from autoconv import report  # what only printing needs

        return report.explanation(self.to_dict()).text()


def explain_spec(spec: ConvSpec, device: Device) -> Explanation:
    """Explain `spec` under the current settings without racing anything."""
    settings = options.current_scope().settings
    registry, limits = default_registry(), settings.limits(spec.dtype, device)
    rows, decision, built = dispatch.recall(spec, device, settings, look_for_changes=True)
    order, _ = dispatch.untuned_order(spec, device, settings)
    candidates, refusals = registry.candidates(spec, device, limits)
    measured = {candidate_key(row.choice) for row in rows}
    entrants = [(one.choice, one.estimate_s) for one in candidates]
    barred = {str(row.choice): reason for row in rows if row.usable and (reason := limits.refuses(row))}
    return Explanation(
        spec=spec,
        device=device,
        state=_state(decision),
        chosen=built.choice if built else (order[0][0] if order else None),
        decision=decision,
        rows=rows,
        stale=registry.stale(rows),
        estimates=[(choice, seconds) for choice, seconds in entrants if candidate_key(choice) not in measured],
        refusals={**refusals, **barred},
    )


def _state(decision: Decision | None) -> str:
    if decision is None:
        return "unknown"
    if decision.partial:
        return "partial"
    return decision.doubts[0].partition(":")[0] if decision.doubts else "remembered"
