"""Many specs one after another: what `autoconv tune`, `bench`, `regress` and `verify` share.

Each spec is one call of the public function, so that an interruption, or a spec that nothing here can
run, leaves what the others gave. The store keeps every finished race as it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from autoconv import api, options
from autoconv.errors import AutoconvError
from autoconv.progress import Progress
from autoconv.verbose import format_time
from autoconv.workloads import Entry

if TYPE_CHECKING:
    from autoconv.regressing import Regression
    from autoconv.tuner import TuningResult
    from autoconv.verifying import Verification

__all__ = ["Campaign", "regress", "tune", "verify"]

Result = TypeVar("Result")
Watch: TypeAlias = Callable[[str, str, int, int], None]
Work: TypeAlias = Callable[[Entry, float, Watch], list[Result]]
"""`(entry, seconds, watch)` to the results of one spec: one, or none where there was nothing to do."""


@dataclass(slots=True)
class Campaign(Generic[Result]):
    """How far a list of specs came: results with their entries, failures with their reasons.

    `left` counts those that the budget did not reach.
    """

    total: int
    results: list[tuple[Entry, Result]] = field(default_factory=list)
    failures: list[tuple[Entry, str]] = field(default_factory=list)
    left: int = 0
    interrupted: bool = False


def tune(
    entries: Sequence[Entry],
    *,
    device: str | None = None,
    budget_s: float | None = None,
    retune: bool = False,
    say: Callable[[str], None],
) -> Campaign[TuningResult]:
    """Tune `entries` in order; `budget_s` is for all together, and each gets at least its first try; see `api.tune`."""

    def work(entry: Entry, share_s: float, watch: Watch) -> list[TuningResult]:
        return api.tune([entry.spec], device, budget_s=share_s, retune=retune, watch=watch)

    return _run(entries, work, _tuned, say, "tuning", budget_s)


def regress(
    entries: Sequence[Entry], *, device: str | None = None, budget_s: float | None = None, say: Callable[[str], None]
) -> Campaign[Regression]:
    """Time the doubtful rows of `entries` again, as long as the budget lasts; see `api.regress`."""

    def work(entry: Entry, share_s: float, watch: Watch) -> list[Regression]:
        return api.regress([entry.spec], device, budget_s=share_s, watch=watch)

    return _run(entries, work, lambda one: one.verdict, say, "timing again", budget_s, strict=True)


def verify(
    entries: Sequence[Entry], *, device: str | None = None, seed: int | None = None, say: Callable[[str], None]
) -> Campaign[Verification]:
    """Check the winners of `entries`; see `api.verify`."""

    from autoconv.verifying import checked_seed

    seed = checked_seed(seed)  # one for all

    def work(entry: Entry, share_s: float, watch: Watch) -> list[Verification]:
        return api.verify([entry.spec], device, seed)

    return _run(entries, work, _verified, say, "verifying", None, timed=False)


def _run(
    entries: Sequence[Entry],
    work: Work[Result],
    outcome: Callable[[Result], str],
    say: Callable[[str], None],
    verb: str,
    budget_s: float | None,
    *,
    strict: bool = False,
    timed: bool = True,
) -> Campaign[Result]:
    """Do `work` on each entry; a `strict` budget leaves those out that it does not reach.

    A terminal on standard error gets a progress bar, anything else a line per spec through `say`.
    Ctrl-C ends the campaign, which then says `interrupted`.
    """
    settings = options.current_scope().settings
    campaign: Campaign[Result] = Campaign(len(entries))
    terminal = sys.stderr.isatty()
    deadline = None if budget_s is None else time.perf_counter() + budget_s
    with Progress(len(entries), enabled=terminal, verb=verb) as bar:
        try:
            for done, entry in enumerate(entries):
                if strict and deadline is not None and time.perf_counter() >= deadline:
                    campaign.left = len(entries) - done
                    break
                share_s = api.budget_share(settings, deadline, len(entries) - done)
                title = entry.name or str(entry.spec)
                watch = _watch(bar, title, (deadline or time.perf_counter() + share_s) if timed else None)
                told = _do(campaign, entry, work, outcome, share_s, watch)
                bar.finish()
                if not terminal and not settings.verbose:
                    say(f"{done + 1}/{len(entries)} {title}: {told}")
        except KeyboardInterrupt:
            campaign.interrupted = True
    return campaign


def _do(
    campaign: Campaign[Result],
    entry: Entry,
    work: Work[Result],
    outcome: Callable[[Result], str],
    share_s: float,
    watch: Watch,
) -> str:
    """Work on one entry; gives a line on how it went."""
    try:
        results = work(entry, share_s, watch)
    except (AutoconvError, MemoryError) as error:
        reason = str(error) or "out of memory"
        campaign.failures.append((entry, reason))
        return f"failed: {reason.splitlines()[0]}"
    campaign.results += [(entry, result) for result in results]
    return "; ".join(map(outcome, results)) or "nothing to do"


def _watch(bar: Progress, title: str, deadline: float | None) -> Watch:
    """The tuner's callback for one spec: shows it, with the budget that is left if there is one."""

    def watch(stage: str, detail: str, done: int, total: int) -> None:
        left = "" if deadline is None else f"  {max(deadline - time.perf_counter(), 0.0):.1f} s left"
        bar.start(f"{title}{left}")
        bar.watch(stage, detail, done, total)

    watch("start", "", 0, 0)
    return watch


def _tuned(result: TuningResult) -> str:
    if result.decision is None:
        return "nothing measured"
    winner = result.decision.winner
    origin = "tuned" if result.measured else "remembered"
    short = ", cut short" if result.partial else ""
    return f"{winner.choice} {format_time(winner.median_s)} ({origin}{short})"


def _verified(result: Verification) -> str:
    return "; ".join(
        f"{check.row.choice} {check.status}" + (f": {check.reason}" if check.reason else "") for check in result.checks
    )
