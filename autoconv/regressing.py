"""Remembered rows that deserve it are timed again: what `autoconv.regress` does with one spec after another.

A row deserves it when it is suspect, partial, or stale (measured with other versions of the libraries, compiler or
driver that it uses). Only the top candidates of such a spec race again: what lost by far does not become the winner
by an upgrade often enough to pay for. Rows are added, never removed; who is not timed again keeps its row and rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoconv import dispatch, options
from autoconv.device import Device
from autoconv.evidence import Decision, Measurement, candidate_key, decide, doubts_about, latest, ratio_interval
from autoconv.registry import default_registry
from autoconv.showing import remembered_specs
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner, TuningResult
from autoconv.tuner.race import Watch

__all__ = ["Doubtful", "Regression", "doubtful", "race_again"]

NEAR = 3.0  # times the best: neither a new release nor a disturbed sample often changes one engine alone by so much
MOST = 8  # candidates that race again, not counting those that never had their turn


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A spec with rows that deserve to be timed again: which, and why."""

    spec: ConvSpec
    device: Device
    decision: Decision | None
    contenders: frozenset[str]
    """`candidate_key` of everyone who is to race: the doubtful rows and those near the best."""
    reasons: tuple[str, ...]

    @property
    def weight(self) -> int:
        """Whose turn comes first: 0 where the winner itself is doubtful."""
        return 0 if self.decision is None or self.decision.doubts else 1


@dataclass(frozen=True, slots=True)
class Regression:
    """One spec timed again: what was decided before, what is decided now, and the evidence for it.

    `ratio` is the time of the old winner over the new one's, both from the race just run, `interval` its 95 %
    interval; `drift` is the old winner's time now over its time then. Each is None where one of the two was not timed.
    `partial` says that the budget ended the race before everyone was settled; who was not stays doubtful.
    """

    spec: ConvSpec
    device: Device
    reasons: tuple[str, ...]
    before: Decision | None
    after: Decision
    rows: tuple[Measurement, ...]
    """The rows of the race."""
    partial: bool
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether another candidate wins now."""
        return self.before is None or _key(self.before.winner) != _key(self.after.winner)

    @property
    def ratio(self) -> float | None:
        """The old winner's time over the new one's, in the new race."""
        old, new = self._timed()
        return old.median_s / new.median_s if old and new and old.median_s and new.median_s else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `ratio`."""
        old, new = self._timed()
        return ratio_interval(old, new) if old and new and old is not new else None

    @property
    def drift(self) -> float | None:
        """The old winner's time now over its time then."""
        old, _ = self._timed()
        then = self.before.winner.median_s if self.before else None
        return old.median_s / then if old and old.median_s and then else None

    @property
    def verdict(self) -> str:
        """What became of the winner, in one sentence."""
        new = self.after.winner.choice
        if self.before is None:
            return f"{new} wins: {self.after.why}"
        if not self.changed:
            return f"kept: {self.after.why}"
        old = self.before.winner.choice
        if self.ratio is None:
            return f"{old} gives way to {new}: {self.after.why}"
        spread = f", 95 % interval {self.interval[0]:.2f} to {self.interval[1]:.2f}" if self.interval else ""
        tie = ", a tie" if self.after.tie and self.ratio < 1.1 else ""
        return f"{old} gives way to {new}, {self.ratio:.2f} times as fast{spread}{tie}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `autoconv regress --json` prints it."""
        statuses = {_key(row): row.status for row in self.rows}
        return {
            "spec": str(self.spec),
            "device": self.device.fingerprint,
            "reasons": list(self.reasons),
            "changed": self.changed,
            "verdict": self.verdict,
            "old": self.before.to_dict() if self.before else None,
            "new": self.after.to_dict(),
            "ratio": self.ratio,
            "interval": list(self.interval) if self.interval else None,
            "drift": self.drift,
            "timed": statuses,
            "partial": self.partial,
            "seconds": self.seconds,
        }

    def _timed(self) -> tuple[Measurement | None, Measurement | None]:
        """The rows of the old and the new winner in this race."""
        rows = {_key(row): row for row in self.rows if row.usable}
        old = rows.get(_key(self.before.winner)) if self.before else None
        return old, rows.get(_key(self.after.winner))


def doubtful(device: Device, specs: Sequence[ConvSpec] = ()) -> list[Doubtful]:
    """Remembered specs (among `specs`, if given) with rows to be timed again, those with a doubtful winner first."""
    found = [_look_at(spec, device) for spec in remembered_specs(device.fingerprint, specs)]
    return sorted((one for one in found if one is not None), key=lambda one: one.weight)


def _look_at(spec: ConvSpec, device: Device) -> Doubtful | None:
    registry = default_registry()
    limits = options.current_scope().settings.limits(spec.dtype, device)
    here = {one.name: one.version for one in registry}
    known = latest(dispatch.current_store().rows(str(spec), device.fingerprint), here)
    rows = [row for row in known if all(link.implementation in here for link in row.choice.chain())]
    stale = registry.stale(row for row in rows if row.usable)
    decision = decide(rows, limits, stale)
    unreached = [row for row in rows if row.status == "partial" and not row.usable]
    ranked = sorted(
        (row for row in rows if row.usable and limits.refuses(row) is None), key=lambda row: row.median_s or 0.0
    )
    near = [row for row in ranked if (row.median_s or 0.0) <= NEAR * (ranked[0].median_s or 0.0)][:MOST]
    reasons: dict[str, None] = {}  # a set that keeps its order
    for row in (*near, *unreached):
        reasons.update(dict.fromkeys(doubts_about(row, stale.get(_key(row), ""))))
    if not reasons:
        return None
    return Doubtful(spec, device, decision, frozenset(map(_key, (*near, *unreached))), tuple(reasons))


def race_again(doubt: Doubtful, tuner: Tuner, budget_s: float, watch: Watch | None = None) -> Regression:
    """Time the contenders of one spec again. Raises `NoImplementation` when none of them can run any more."""
    limits = options.current_scope().settings.limits(doubt.spec.dtype, doubt.device)
    known = {row.race for row in dispatch.current_store().rows(str(doubt.spec), doubt.device.fingerprint)}
    result: TuningResult = tuner.tune(
        doubt.spec, doubt.device, limits, budget_s=budget_s, only=doubt.contenders, watch=watch
    )
    assert result.decision is not None, "a race without a winner raises"
    after = decide(result.rows, limits, default_registry().stale(row for row in result.rows if row.usable))
    rows = tuple(row for row in result.rows if row.race not in known)
    settled = {_key(row) for row in rows if row.status != "partial"}
    refused = {key for key in doubt.contenders if {key, key.partition("[")[0]} & result.refusals.keys()}
    return Regression(
        spec=doubt.spec,
        device=doubt.device,
        reasons=doubt.reasons,
        before=doubt.decision,
        after=after or result.decision,
        rows=rows,
        partial=not doubt.contenders <= settled | refused,
        seconds=result.seconds,
    )


def _key(row: Measurement) -> str:
    return candidate_key(row.choice)
