"""The tuner: from a spec to a decision, by racing what is not known yet; children, memory, budgets.

Rules
-----
- No further candidate is tried once the time left is what those in the race need for their rounds.
- The first candidate (best known, else the untuned default) is measured whatever the budget, so that
  stopping early is never worse than not tuning.
- What is remembered is not measured again, but for the best of it, so that newcomers are compared with it
  round by round. `partial` and `suspect` rows are taken up again, and so are failures and wrong answers when
  a version (the implementation's own or a library's) changed. A rewrite is taken up again when its child is.
- Hopeless estimates are stored as `skipped`, without a run.
- In a race that the budget cut short, who was still running is `partial`, and so is who was not reached.
- A rewrite's child is raced first, on a share of what is left, and its rows are stored under its own spec.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from autoconv.device import Device
from autoconv.errors import BackendMissing, InvalidOption, NoImplementation, RegistryError
from autoconv.evidence import Choice, Decision, Limits, Measurement, Store, candidate_key, decide, latest
from autoconv.implementation import Built
from autoconv.registry import MAX_DEPTH, Candidate, Registry
from autoconv.spec import ConvSpec
from autoconv.tuner.contention import Sentry, Watchman
from autoconv.tuner.crew import Crew
from autoconv.tuner.gpu_contention import GpuSentry
from autoconv.tuner.race import Race, Watch, behind_kin, key_of, paces_of, patience_with, silent
from autoconv.tuner.timing import HOPELESS, Timer

__all__ = ["Tuner", "TuningResult"]


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What a race (or the memory of one) gave.

    `rows` are the newest of every candidate, measured now or before; `measured` counts those timed now;
    `partial` says that the budget ran out before the winner was settled.
    """

    spec: ConvSpec
    device: Device
    decision: Decision | None
    rows: tuple[Measurement, ...]
    refusals: dict[str, str]
    built: Built | None
    seconds: float
    measured: int
    partial: bool


def watchman_of(device: Device) -> Watchman:
    """Who looks out on this kind of device."""
    return GpuSentry(device) if device.kind == "cuda" else Sentry(device)


class Tuner:
    """Races every implementation that may run a spec, and stores what it finds.

    `clock` and `sleep` are those of `time` unless a test injects its own; `seed` fixes the random order
    within the rounds. `isolation` says where candidates are tried and timed: "process", in workers, which may be lost,
    one for each thread runtime, or "none", in this process. `watchman` looks out for what disturbs a race.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
        seed: int | None = None,
        isolation: str = "process",
        watchman: Callable[[Device], Watchman] = watchman_of,
    ) -> None:
        self._registry = registry
        self._store = store
        self._timer = Timer(clock, sleep, random.Random(seed))
        self._isolation = isolation
        self._watchman = watchman

    def tune(
        self,
        spec: ConvSpec,
        device: Device,
        limits: Limits,
        *,
        budget_s: float = 1.0,
        load_libraries: bool = True,
        retune: bool = False,
        only: Collection[str] | None = None,
        watch: Watch | None = None,
    ) -> TuningResult:
        """Find the fastest implementation of `spec` that `limits` allow, within about `budget_s` seconds.

        `load_libraries=False` leaves out candidates whose optional libraries are not imported yet.
        `retune` measures anew what is remembered, `only` anew these candidates (by `candidate_key`) and no others;
        a race of them that is cut short takes nothing from what is settled.
        `watch(stage, detail, done, total)` is called as it goes.

        Raises `InvalidOption` for a budget that is not a positive number of seconds, `NoImplementation`
        when nothing may run the spec, or nothing that ran may win.
        """
        if not (isfinite(budget_s) and budget_s > 0):
            raise InvalidOption(f"budget_s must be a positive number of seconds, got {budget_s!r}")
        with self._store.measuring(device.fingerprint):
            # rows are read only now: whoever held the device before may have tuned this very spec
            session = _Session(
                self._registry,
                self._store,
                self._timer,
                device,
                load_libraries,
                retune,
                only,
                self._isolation,
                self._watchman,
            )
            try:
                return session.tune(spec, limits, budget_s, watch or silent)
            finally:
                session.crew.release()


class _Session:
    """One call of `Tuner.tune`: the spec's race and its children's."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        timer: Timer,
        device: Device,
        load_libraries: bool,
        retune: bool,
        only: Collection[str] | None,
        isolation: str,
        watchman: Callable[[Device], Watchman],
    ) -> None:
        self._registry = registry
        self._store = store
        self._timer = timer
        self._device = device
        self._load_libraries = load_libraries
        self._retune = retune
        self._only = only
        self._isolation = isolation
        self._watchman = watchman
        self.crew = Crew()
        self._versions = {one.name: one.version for one in registry}
        self._children: dict[tuple[ConvSpec, Limits], TuningResult] = {}

    def tune(
        self,
        spec: ConvSpec,
        limits: Limits,
        budget_s: float,
        watch: Watch,
        depth: int = 0,
        rival_s: float | None = None,
    ) -> TuningResult:
        """The decision on `spec`, by a race of what is still open; a child (`depth` above 0) is not made ready.

        What can hardly take less than `rival_s`, the parent's rival's time over the child's calls, is left out.
        """
        started = self._timer.clock()
        candidates, refusals = self._candidates(spec, limits)
        if not candidates:
            raise NoImplementation(f"nothing here may run {spec}", refusals)
        if spec.batch == 0:  # nothing to compute, so nothing to race
            built = self._registry.build(spec, self._device, _plainest(candidates, spec).choice)
            return TuningResult(spec, self._device, None, (), refusals, built, self._timer.clock() - started, 0, False)

        def ask_child(parent: Candidate, lower: ConvSpec, share_s: float, rival_s: float | None) -> tuple[Choice, bool]:
            return self._child(parent, spec, lower, limits, share_s, rival_s, depth)

        race = Race(
            self._registry, self._store, self._timer, self._device, spec, limits, candidates, refusals,
            self._remembered(spec), budget_s, started + budget_s, watch, ask_child, self._retune, self.crew,
            self._isolation, self._load_libraries, self._watchman(self._device), rival_s,
        )  # fmt: skip
        race.run(self._open(spec, limits, candidates, depth))
        decision, built_winner = self._choose(race, limits, depth)
        if decision is None:
            complaints = {**refusals, **_complaints(race.rows, limits)}
            raise NoImplementation(f"nothing that was tried may be used for {spec}", complaints)
        watch("done", str(decision.winner.choice), len(race.measured), len(race.measured))
        return TuningResult(
            spec=spec,
            device=self._device,
            decision=decision,
            rows=tuple(race.rows),
            refusals=refusals,
            built=built_winner,
            seconds=self._timer.clock() - started,
            measured=len(race.measured),
            partial=any(row.status == "partial" for row in race.rows),
        )

    def _candidates(self, spec: ConvSpec, limits: Limits) -> tuple[list[Candidate], dict[str, str]]:
        return self._registry.candidates(spec, self._device, limits, load_libraries=self._load_libraries)

    def _remembered(self, spec: ConvSpec) -> list[Measurement]:
        """The newest row of every candidate, of implementations that are here in their present version."""
        rows = latest(self._store.rows(str(spec), self._device.fingerprint), self._versions)
        return [row for row in rows if all(link.implementation in self._versions for link in row.choice.chain())]

    def _choose(self, race: Race, limits: Limits, depth: int) -> tuple[Decision | None, Built | None]:
        """The decision, and its winner made ready; a row that cannot run here any more, or not rightly, gives way."""
        unable: set[Choice] = set()
        while (decision := decide((row for row in race.rows if row.choice not in unable), limits)) is not None:
            choice = decision.winner.choice
            try:
                if depth == 0:
                    built = race.confirm(decision.winner)
                    if built is not None:
                        return decision, built
                elif self._registry.why_not(race.spec, self._device, choice) is None:
                    return decision, None
            except (BackendMissing, NoImplementation, RegistryError):
                pass
            unable.add(choice)
        return None, None

    # Children -----------------------------------------------------------------------------------

    def _child(
        self,
        parent: Candidate,
        spec: ConvSpec,
        lower: ConvSpec,
        limits: Limits,
        budget_s: float,
        rival_s: float | None,
        depth: int,
    ) -> tuple[Choice, bool]:
        """A rewrite's child, and whether its race was cut short; raced once per session."""
        if depth >= MAX_DEPTH:
            raise NoImplementation(f"cannot run {spec}", {parent.implementation.name: "rewrites nest too deeply"})
        allowed = self._child_limits(parent, spec, limits)
        result = self._children.get((lower, allowed))
        if result is None:
            result = self.tune(lower, allowed, budget_s, silent, depth + 1, rival_s)
            self._children[lower, allowed] = result
        assert result.decision is not None, "a race without a winner raises, and no child has an empty batch"
        return result.decision.winner.choice, result.partial

    def _child_limits(self, parent: Candidate, spec: ConvSpec, limits: Limits) -> Limits:
        """What a child may need: its parent meets `require` already, and has used up some workspace."""
        room = limits.max_workspace
        if room is not None:
            room = max(0, room - parent.implementation.workspace_bytes(spec, self._device, parent.config))
        return replace(limits, require=(), max_workspace=room)

    # What is left to measure ----------------------------------------------------------------------

    def _open(self, spec: ConvSpec, limits: Limits, candidates: Sequence[Candidate], depth: int) -> list[Candidate]:
        """Candidates whose place is not settled by what is remembered, those never timed first."""
        if self._only is not None and depth == 0:
            return [candidate for candidate in candidates if key_of(candidate) in self._only]
        if self._retune:
            return _rewrites_last(candidates)
        rows = {candidate_key(row.choice): row for row in self._remembered(spec)}
        leader = decide(rows.values(), limits)
        best_s = leader.winner.median_s if leader else None
        paces = paces_of(candidates, rows.values())

        def is_open(candidate: Candidate) -> bool:
            row = rows.get(key_of(candidate))
            if row is None or row.status in ("partial", "suspect"):
                return True
            if row.status == "skipped":
                patience = min(HOPELESS, patience_with(candidate, paces))  # well within what skipped it
                near = best_s is None or candidate.estimate_s <= patience * best_s
                return near and not behind_kin(candidate, best_s, paces)
            if row.status != "ok":
                return dict(row.environment) != self._registry.environment(row.choice)
            return self._child_is_open(candidate, spec, limits, depth)

        timed = {key for key, row in rows.items() if row.usable}
        return _rewrites_last(sorted(filter(is_open, candidates), key=lambda candidate: key_of(candidate) in timed))

    def _child_is_open(self, candidate: Candidate, spec: ConvSpec, limits: Limits, depth: int) -> bool:
        lower = candidate.implementation.child_spec(spec)
        if lower is None or depth >= MAX_DEPTH:
            return False
        allowed = self._child_limits(candidate, spec, limits)
        below, _ = self._candidates(lower, allowed)
        return bool(self._open(lower, allowed, below, depth + 1))


def _rewrites_last(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first, then the others; those that need a race of their own when the best of the rest is known."""
    return [*candidates[:1], *sorted(candidates[1:], key=lambda one: one.implementation.asks_child)]


def _plainest(candidates: Sequence[Candidate], spec: ConvSpec) -> Candidate:
    """The reference where it may run, else the first that needs no child."""
    return min(
        candidates,
        key=lambda one: (one.implementation.name != "numpy.direct", one.implementation.child_spec(spec) is not None),
    )


def _complaints(rows: Iterable[Measurement], limits: Limits) -> dict[str, str]:
    """Why each row may not win."""
    return {str(row.choice): limits.refuses(row) or f"{row.status}: {row.reason}" for row in rows}
