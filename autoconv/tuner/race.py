"""One spec's race: who enters, in which order, until when, and what is stored of it."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import isfinite

from autoconv.device import Device, usable_cores
from autoconv.errors import BackendMissing, NoImplementation, RegistryError
from autoconv.evidence import Choice, Limits, Measurement, Store, candidate_key, decide, latest
from autoconv.implementation import Built
from autoconv.registry import Candidate, Registry
from autoconv.spec import ConvSpec
from autoconv.tuner.contention import Calm, Watchman
from autoconv.tuner.crew import Crew
from autoconv.tuner.entrants import Entrant, Stand, Terms, placed
from autoconv.tuner.timing import HOPELESS, MAX_ROUNDS, Timer, needed_s, spread_of_best
from autoconv.tuner.verify import Judge

__all__ = [
    "CHILD_SHARE",
    "AskChild",
    "Race",
    "Watch",
    "behind_kin",
    "hopeless",
    "key_of",
    "note_pace",
    "paces_of",
    "patience_with",
    "silent",
]

HOPELESS_ESTIMATE = 20.0  # estimates err by less than this; so far beyond the best measured, a run is wasted
BEHIND_KIN = 1.7  # among candidates of a kind, estimates times the best pace err by less: measured up to 1.6
BEHIND_REWRITE = 2.5  # estimates of rewrites, which need a race of their own, err by less: measured up to 1.8
CHILD_SHARE = 0.5  # of what is left when a rewrite asks for its child
MAX_REMATCHES = 3  # races that a drifted machine may cause, by making remembered rows look like winners

Watch = Callable[[str, str, int, int], None]
"""`watch(stage, detail, done, total)`: how far a race has come."""

Paces = dict[str, dict[str, float]]
"""Kind -> candidate -> its time over its estimate."""

AskChild = Callable[[Candidate, ConvSpec, float, float | None], tuple[Choice, bool]]
"""`(parent, child's spec, budget, seconds to beat)` to the child, and whether its race was cut short."""


def silent(stage: str, detail: str, done: int, total: int) -> None:
    """A `Watch` that looks away."""


def key_of(candidate: Candidate) -> str:
    """The candidate's place in a race, as `evidence.candidate_key` writes it."""
    return candidate_key(candidate.choice)


def hopeless(estimate_s: float, best_s: float | None, budget_s: float, patience: float = HOPELESS_ESTIMATE) -> str:
    """Why a candidate is not worth a run beside one that takes `best_s`; empty when it is."""
    if best_s is None or not isfinite(estimate_s):  # no able child, perhaps: trying finds the reason
        return ""
    times = estimate_s / best_s
    if times > patience:
        return f"estimated at {estimate_s:.3g} s, {times:.0f} times the best measured"
    if times > HOPELESS and estimate_s > budget_s:
        return f"estimated at {estimate_s:.3g} s, {times:.0f} times the best measured and more than the budget"
    return ""


def paces_of(candidates: Iterable[Candidate], rows: Iterable[Measurement]) -> Paces:
    """The paces of `candidates` that have a time among `rows`."""
    taken = {candidate_key(row.choice): row.median_s for row in rows if row.usable and row.median_s}
    paces: Paces = {}
    for candidate in candidates:
        seconds = taken.get(key_of(candidate))
        if seconds:
            note_pace(paces, candidate, seconds)
    return paces


def note_pace(paces: Paces, candidate: Candidate, seconds: float) -> None:
    """Remember how a candidate's time compares with its estimate."""
    if isfinite(candidate.estimate_s) and candidate.estimate_s > 0:
        kin = paces.setdefault(_kind(candidate), {})
        kin[key_of(candidate)] = seconds / candidate.estimate_s


def _kind(candidate: Candidate) -> str:
    """Implementation and switches: flags and words choose another code path, whose estimates err in another way."""
    switches = (f"{key}={value}" for key, value in candidate.config.items() if isinstance(value, bool | str))
    return " ".join((candidate.implementation.name, *switches))


def patience_with(candidate: Candidate, paces: Paces) -> float:
    """How many times the best an estimate may be: compiling is dear, but one of each kind shows how its kin err."""
    if candidate.implementation.asks_child:
        return BEHIND_REWRITE
    compiled = candidate.implementation.compiled
    return HOPELESS if compiled and _kind(candidate) in paces else HOPELESS_ESTIMATE


def behind_kin(candidate: Candidate, best_s: float | None, paces: Paces) -> str:
    """Why a candidate is not worth compiling, by the times of others of its kind; empty when it is.

    The estimates of one kind err alike, so the best pace of those measured says what another may reach.
    """
    kin = paces.get(_kind(candidate), {})
    if best_s is None or not candidate.implementation.compiled or not kin:
        return ""
    expected_s = candidate.estimate_s * min(kin.values())
    if expected_s <= BEHIND_KIN * best_s:
        return ""
    return f"expected at {expected_s:.3g} s by {len(kin)} others of its kind, {expected_s / best_s:.2g} times the best"


def _warn_of_wrong(spec: ConvSpec, row: Measurement) -> None:
    if row.status == "wrong":
        warnings.warn(
            f"{row.choice} is wrong for {spec}: {row.reason}. It is not used, and not tried again "
            f"in this version ({row.choice.version})",
            RuntimeWarning,
            stacklevel=3,
        )


@dataclass(slots=True)
class Race:
    """Races candidates of one spec and stores their rows; `rows` are the newest of all, old and new."""

    registry: Registry
    store: Store
    timer: Timer
    device: Device
    spec: ConvSpec
    limits: Limits
    candidates: Sequence[Candidate]
    refusals: dict[str, str]
    rows: list[Measurement]
    budget_s: float
    deadline: float
    watch: Watch
    ask_child: AskChild
    afresh: bool  # race as if nothing were remembered
    crew: Crew
    isolation: str = "none"  # "process": candidates are tried and timed in workers
    patient: bool = True  # wait for libraries to be loaded in a worker
    watchman: Watchman = field(default_factory=Calm)
    rival_s: float | None = None  # for a child: what one call may take, or else its parent is beaten already
    disturbed: bool = False
    ready: dict[Choice, Built] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)
    races: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)
    judge: Judge | None = None
    paces: Paces = field(default_factory=dict)

    def run(self, pending: Sequence[Candidate]) -> None:
        """Race `pending` against the best that is remembered."""
        if not self.afresh:
            self.paces = paces_of(self.candidates, self.rows)
        lineup = self._lineup(pending)
        if lineup:
            self._heat(lineup)
        for _ in range(MAX_REMATCHES):
            lineup = self._rematch()
            if not lineup or self.disturbed or self.timer.clock() >= self.deadline:
                return
            self._heat(lineup)

    def _lineup(self, pending: Sequence[Candidate]) -> list[tuple[Candidate, Choice]]:
        """Who starts, in this order: the remembered best, then `pending`. Empty when none of these has hopes."""
        by_key = {key_of(candidate): candidate for candidate in self.candidates}
        lineup = [(candidate, candidate.choice) for candidate in pending]
        leader = (
            None
            if self.afresh
            else decide((row for row in self.rows if candidate_key(row.choice) in by_key), self.limits)
        )
        if leader is None or not lineup:
            return lineup
        best = by_key[candidate_key(leader.winner.choice)]
        if best in pending:
            return [(best, best.choice), *(one for one in lineup if one[0] is not best)]
        reasons = [self._hopeless(one, leader.winner.median_s) for one in pending]
        if all(reasons):
            skipped = [Entrant(*one, "skipped", reason) for one, reason in zip(lineup, reasons, strict=True)]
            self._keep(self._stand(), skipped, cut_short=False)
            return []
        return [(best, leader.winner.choice), *lineup]

    def _rematch(self) -> list[tuple[Candidate, Choice]]:
        """The best of this session and the remembered row that beats it, if one does.

        Their times are of different hours; when the machine has become slower since, an old loser looks
        like a winner.
        """
        now = decide((row for row in self.rows if row.race in self.races), self.limits)
        ever = decide(self.rows, self.limits)
        if now is None or ever is None or ever.winner.race in self.races:
            return []
        by_key = {key_of(candidate): candidate for candidate in self.candidates}
        pair = [now.winner.choice, ever.winner.choice]
        if any(candidate_key(choice) not in by_key for choice in pair):
            return []
        return [(by_key[candidate_key(choice)], choice) for choice in pair]

    def _heat(self, lineup: Sequence[tuple[Candidate, Choice]]) -> None:
        """One race. Whatever ends it early, Ctrl-C too, what was measured is kept."""
        stand = self._stand()
        self.watchman.begin()
        stand.start_workers([choice for candidate, choice in lineup if self._is_apart(candidate)])
        self.judge = self.judge or Judge(self.spec, self.device)
        stand.open(self.judge)
        entrants: list[Entrant] = []
        try:
            try:
                all_tried = self._enter(stand, lineup, entrants)
            finally:
                stand.end_trials()
            contestants = [one.contestant for one in entrants if one.contestant is not None]
            self.watchman.begin_rounds()
            finish = self.timer.race(
                contestants,
                self.deadline,
                lambda rounds, best: self.watch("time", best.name, rounds, MAX_ROUNDS),
                self.watchman.look,
                self.watchman.spoilt,
            )
            doubt = self.watchman.complaint(spread_of_best(contestants))
            self.disturbed = bool(doubt)
        except BaseException:
            self._keep(stand, entrants, cut_short=True)
            raise
        finally:
            stand.close()
        for row in self._keep(stand, entrants, cut_short=not (all_tried and finish.settled), doubt=doubt):
            _warn_of_wrong(self.spec, row)

    def _stand(self) -> Stand:
        race = uuid.uuid4().hex
        self.races.add(race)
        stamp = max([time.time(), *(row.measured_at for row in self.rows)])  # newest, even if the clock was set back
        return Stand(self.registry, self.spec, self.device, self.limits, self.timer, self.crew, race, stamp)

    def _enter(self, stand: Stand, lineup: Sequence[tuple[Candidate, Choice]], entrants: list[Entrant]) -> bool:
        """Try the lineup out, as long as time is left for rounds of those that run; whether all had a turn."""
        all_tried = True
        for index, (candidate, choice) in enumerate(lineup):
            best_s = min((one.first_s for one in entrants if one.runs), default=None)
            left_s = self.deadline - self.timer.clock()
            reason = self._hopeless(candidate, best_s)
            if reason:
                entrants.append(Entrant(candidate, choice, "skipped", reason))
            elif best_s is not None and left_s <= self._reserved_s(entrants):
                all_tried = False
                if not self._is_timed(candidate):
                    entrants.append(Entrant(candidate, choice, "partial", "not reached within the budget"))
            else:
                self._prefetch(lineup[index:], best_s, index, len(lineup))
                self.watch("verify", str(choice), index, len(lineup))
                self._try(stand, candidate, choice, best_s, entrants)
        return all_tried

    def _prefetch(self, ahead: Sequence[tuple[Candidate, Choice]], best_s: float | None, done: int, total: int) -> None:
        """Compile the next candidate, and beside it, one per core, those after it that will be tried too."""
        if not ahead[0][0].implementation.compiled or key_of(ahead[0][0]) in self.fetched:
            return
        batch = []
        for candidate, choice in ahead:
            due = candidate.implementation.compiled and key_of(candidate) not in self.fetched
            if due and not self._hopeless(candidate, best_s):
                batch.append((candidate, choice))
        batch = batch[: min(self.device.cores, usable_cores())]  # a GPU's multiprocessors do not compile
        self.fetched |= {key_of(candidate) for candidate, _ in batch}
        self.watch("compile", str(ahead[0][1]), done, total)
        with ThreadPoolExecutor(len(batch)) as pool:
            jobs = [pool.submit(one.implementation.prefetch, self.spec, self.device, one.config) for one, _ in batch]
        for job in jobs:
            job.result()

    def _reserved_s(self, entrants: Sequence[Entrant]) -> float:
        """Seconds that another trial must leave; the first rival of the best is tried while there is any time."""
        running = [one.contestant for one in entrants if one.contestant is not None]
        return needed_s(running) if len(running) > 1 else 0.0

    def _hopeless(self, candidate: Candidate, best_s: float | None) -> str:
        """Why not to run a candidate, by its estimate; what was measured before is judged by measuring."""
        if self._is_timed(candidate):
            return ""
        patience = patience_with(candidate, self.paces)
        reason = hopeless(candidate.estimate_s, best_s, self.budget_s, patience)
        if not reason and best_s is not None and self.rival_s is not None:
            reason = hopeless(candidate.estimate_s, self.rival_s, self.budget_s, HOPELESS)
        return reason or behind_kin(candidate, best_s, self.paces)

    def _is_timed(self, candidate: Candidate) -> bool:
        return any(row.usable and candidate_key(row.choice) == key_of(candidate) for row in self.rows)

    def _is_apart(self, candidate: Candidate) -> bool:
        """Whether a candidate is tried in a worker: on the CPU each, to be timed there too, on a GPU who is new."""
        return self.isolation == "process" and (self.device.kind == "cpu" or not self._was_seen(candidate))

    def _was_seen(self, candidate: Candidate) -> bool:
        """Whether a candidate ran on this device before, with these libraries."""
        row = next((row for row in self.rows if row.usable and candidate_key(row.choice) == key_of(candidate)), None)
        return row is not None and self.registry.environment(row.choice).items() <= dict(row.environment).items()

    def _try(
        self, stand: Stand, candidate: Candidate, choice: Choice, best_s: float | None, entrants: list[Entrant]
    ) -> None:
        cut_short = False

        def plan_child(lower: ConvSpec) -> Choice:
            nonlocal cut_short
            left_s = max(0.0, self.deadline - self.timer.clock())
            rival_s = None if best_s is None else best_s / candidate.implementation.child_calls(self.spec)
            child, child_cut_short = self.ask_child(candidate, lower, CHILD_SHARE * left_s, rival_s)
            cut_short |= child_cut_short
            return child

        try:
            apart, seen = self._is_apart(candidate), self._was_seen(candidate)
            terms = Terms(self.deadline, self.budget_s, best_s, apart, seen, self.patient)
            entrant = stand.try_out(candidate, choice, plan_child, terms)
        except (BackendMissing, NoImplementation) as error:
            reasons = getattr(error, "refusals", {}).items()
            self.refusals[str(choice)] = "; ".join(f"{name}: {why}" for name, why in reasons) or str(error)
            return
        entrant.child_partial = cut_short
        entrants.append(entrant)
        if entrant.runs:
            note_pace(self.paces, candidate, entrant.first_s)

    def confirm(self, winner: Measurement) -> Built | None:
        """The winner made ready here; if it ran in workers only, its result here is judged too. None: it is not right.

        Raises as `Registry.build` does.
        """
        if winner.choice in self.ready or self.judge is None or winner.race not in self.races:
            return self.ready.get(winner.choice) or self.registry.build(self.spec, self.device, winner.choice)
        try:
            built = self.registry.build(self.spec, self.device, winner.choice)
            fault = self.judge.verify(built, self.judge.runner(built), self.timer.clock).fault
            status = "wrong" if fault else ""
        except (BackendMissing, NoImplementation, RegistryError):
            raise
        except (Exception, SystemExit) as error:  # whatever it raises is its own row's business
            status, fault = "failed", f"{type(error).__name__}: {error}"
        if not status:
            return built
        reason = f"right in a worker, but not here: {fault}"
        row = replace(winner, status=status, reason=reason, median_s=None, spread=None, samples=())
        self.store.add([row])
        self.rows = latest([*self.rows, row])
        _warn_of_wrong(self.spec, row)
        return None

    def _keep(
        self, stand: Stand, entrants: Sequence[Entrant], *, cut_short: bool, doubt: str = ""
    ) -> list[Measurement]:
        """Store the rows of `entrants`, and remember them and what was made ready here."""
        rows = placed(stand, entrants, cut_short=cut_short, doubt=doubt)
        if doubt and not self.afresh:  # a disturbed race takes nothing from what an undisturbed one settled
            sure = {row.choice: row.environment for row in self.rows if row.status == "ok"}
            rows = [row for row in rows if row.status != "suspect" or sure.get(row.choice) != row.environment]
        if cut_short and not self.afresh:  # a remembered best that was timed again, but less well than before
            settled = {row.choice: len(row.samples) for row in self.rows if row.status == "ok"}
            rows = [row for row in rows if len(row.samples) >= settled.get(row.choice, 0) or row.status != "partial"]
        if rows:
            self.store.add(rows)
        self.rows = latest([*self.rows, *rows])
        self.ready.update({one.choice: one.built for one in entrants if one.built is not None})
        self.measured |= {candidate_key(row.choice) for row in rows if row.samples}
        return rows
