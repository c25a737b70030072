"""Tuning many specs one after another: what `autoconv tune` and `autoconv bench` share.

Each spec is one call of `autoconv.tune`, so that an interruption, or a spec that nothing here can
run, leaves what the others gave. The store keeps every finished race as it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoconv import api, options
from autoconv.errors import AutoconvError
from autoconv.progress import Progress
from autoconv.verbose import format_time
from autoconv.workloads import Entry

if TYPE_CHECKING:
    from autoconv.tuner import TuningResult

__all__ = ["Campaign", "run"]

_Watch = Callable[[str, str, int, int], None]


@dataclass(slots=True)
class Campaign:
    """How far a list of specs was tuned: results with their entries, failures with their reasons."""

    total: int
    results: list[tuple[Entry, TuningResult]] = field(default_factory=list)
    failures: list[tuple[Entry, str]] = field(default_factory=list)
    interrupted: bool = False


def run(
    entries: Sequence[Entry],
    *,
    device: str | None = None,
    budget_s: float | None = None,
    retune: bool = False,
    say: Callable[[str], None],
) -> Campaign:
    """Tune `entries` in order; `budget_s` is for all together; see `api.tune`.

    A terminal on standard error gets a progress bar, anything else a line per spec through `say`.
    Ctrl-C ends the campaign, which then says `interrupted`.
    """
    settings = options.current_scope().settings
    campaign = Campaign(len(entries))
    terminal = sys.stderr.isatty()
    deadline = None if budget_s is None else time.perf_counter() + budget_s
    with Progress(len(entries), enabled=terminal) as bar:
        try:
            for done, entry in enumerate(entries):
                share = api.budget_share(settings, deadline, len(entries) - done)
                title = entry.name or str(entry.spec)
                watch = _watch(bar, title, deadline or time.perf_counter() + share)
                outcome = _tune(campaign, entry, device, share, retune, watch)
                bar.finish()
                if not terminal and not settings.verbose:
                    say(f"{done + 1}/{len(entries)} {title}: {outcome}")
        except KeyboardInterrupt:
            campaign.interrupted = True
    return campaign


def _tune(campaign: Campaign, entry: Entry, device: str | None, budget_s: float, retune: bool, watch: _Watch) -> str:
    """Tune one entry into `campaign`; gives a line on how it went."""
    try:
        (result,) = api.tune([entry.spec], device, budget_s=budget_s, retune=retune, watch=watch)
    except (AutoconvError, MemoryError) as error:
        reason = str(error) or "out of memory"
        campaign.failures.append((entry, reason))
        return f"failed: {reason.splitlines()[0]}"
    campaign.results.append((entry, result))
    return _outcome(result)


def _watch(bar: Progress, title: str, deadline: float) -> _Watch:
    """The tuner's callback for one spec: shows it with the budget that is left."""

    def watch(stage: str, detail: str, done: int, total: int) -> None:
        left = max(deadline - time.perf_counter(), 0.0)
        bar.start(f"{title}  {left:.1f} s left")
        bar.watch(stage, detail, done, total)

    watch("start", "", 0, 0)
    return watch


def _outcome(result: TuningResult) -> str:
    if result.decision is None:
        return "nothing measured"
    winner = result.decision.winner
    origin = "tuned" if result.measured else "remembered"
    short = ", cut short" if result.partial else ""
    return f"{winner.choice} {format_time(winner.median_s)} ({origin}{short})"
