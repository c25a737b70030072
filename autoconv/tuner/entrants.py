"""Who takes part in a race: candidates made ready, verified and given their first sample, and their rows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import Any

import numpy as np

from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice, Limits, Measurement
from autoconv.implementation import Built
from autoconv.places import place_of
from autoconv.registry import Candidate, Registry
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.containment import Allowance, Box, Trial, Unfit, cannot_contain
from autoconv.tuner.cuda_timing import EventSampler, Stopwatch
from autoconv.tuner.gpu_trouble import free_pool, is_out_of_memory
from autoconv.tuner.timing import HOPELESS, MAX_LOOPS, Contestant, Timer, clocked, spread_of
from autoconv.tuner.verify import Judge, Verdict
from autoconv.workspace import Workspace

__all__ = ["Entrant", "Stand", "Terms", "placed"]

GROSS = 20.0  # a first run this many times as long as the best is more than cold caches and imports
SLOW_CALL_S = 0.1  # a call this long is hardly disturbed by a cold cache: its first runs serve as samples
LEAST_RUN_S = 2.0  # no first run is cut off earlier: a busy machine holds one up for a second, not for two
UNKNOWN_RUN_S = 10.0  # a first run with nothing to compare it with may take this long, or `DOUBT` times its estimate
DOUBT = 100.0


@dataclass(eq=False, slots=True)
class Entrant:
    """A candidate in this race and what became of it. `built` and `contestant` are None when it never ran."""

    candidate: Candidate
    choice: Choice
    status: str = "ok"
    reason: str = ""
    error: float | None = None
    extra_bytes: int = 0
    built: Built | None = None
    contestant: Contestant | None = None
    child_partial: bool = False

    @property
    def runs(self) -> bool:
        """Whether it may still win."""
        return self.contestant is not None and self.contestant.failure is None and self.contestant.allowed

    @property
    def first_s(self) -> float:
        """Its sample of round 0."""
        assert self.contestant is not None
        return self.contestant.samples[0]


@dataclass(frozen=True, slots=True)
class Terms:
    """How much time there is, what is to be beaten, and whether a first run is contained and libraries waited for."""

    deadline: float
    budget_s: float
    best_s: float | None
    contained: bool = False
    patient: bool = True

    def run_s(self, estimate_s: float) -> float:
        """After how long a contained first run is a hang."""
        if self.best_s is not None:
            return max(LEAST_RUN_S, self.budget_s, GROSS * self.best_s)
        return max(UNKNOWN_RUN_S, self.budget_s, DOUBT * estimate_s if isfinite(estimate_s) else 0.0)


class Stand:
    """Where the candidates of one race are tried: operands, room for the result, workspace, one timer."""

    def __init__(
        self, registry: Registry, spec: ConvSpec, device: Device, limits: Limits, timer: Timer, race: str, stamp: float
    ) -> None:
        self._registry = registry
        self._spec = spec
        self._device = device
        self._limits = limits
        self._timer = timer
        self._race = race
        self._stamp = stamp
        self._box = Box(registry, spec, device)
        self._place = place_of(device)
        self._workspace: Workspace
        self._stopwatch: Stopwatch | None = None
        self._judge: Judge
        self._out: Any

    def open(self) -> None:
        """Make operands, their reference, and room for results; rows alone need none of it."""
        self._judge = Judge(self._spec, self._device)
        layout = "nchw" if self._spec.op is Op.WGRAD else self._spec.layout
        with self._place.current():
            self._out = self._place.empty(self._spec.result_shape, layout, self._spec.np_dtype)
        if self._device.kind == "cpu":
            self._workspace = Workspace()  # not the thread's, which would keep the greediest candidate's for good
        else:
            self._workspace = self._place.workspace()
            self._stopwatch = Stopwatch(self._device, self._timer.clock)

    def start_workers(self, choices: Sequence[Choice]) -> None:
        """Let workers for the first runs of `choices` start."""
        self._box.start(choices)

    def end_trials(self) -> None:
        """Give back what only trials need."""
        self._box.close()

    def close(self) -> None:
        """The race is over."""
        self._stopwatch = None
        free_pool(self._place)
        self._box.relax()

    def try_out(
        self, candidate: Candidate, choice: Choice, plan_child: Callable[[ConvSpec], Built], terms: Terms
    ) -> Entrant:
        """Make ready, verify, run once as in use, and take the first sample; a failure is the entrant's status.

        Raises `NoImplementation` or `BackendMissing` when the choice cannot be made ready: a refusal, not a failure.
        """
        entrant = Entrant(candidate, choice)
        try:
            trial = self._contained(entrant, plan_child, terms) if terms.contained else None
            if trial is not None and trial.status != "ok":
                entrant.status, entrant.reason, entrant.error = trial.status, trial.reason, trial.error
                return entrant
            with self._place.current():
                built = self._registry.build(self._spec, self._device, entrant.choice, plan_child)
                entrant.built, entrant.choice = built, built.choice
                self._try(entrant, built, terms, trial)
        except (BackendMissing, NoImplementation):
            raise
        except (Exception, SystemExit) as error:  # whatever it raises is its own row's business
            _fail(entrant, error)
        if entrant.status == "oom":
            free_pool(self._place)  # the others' turn: what the failure left there may be too small for them
        return entrant

    def _contained(self, entrant: Entrant, plan_child: Callable[[ConvSpec], Built], terms: Terms) -> Trial | None:
        """The candidate's first run, in a worker; None when it cannot be had there.

        A rewrite's child is chosen first, so that the worker is told the whole chain.
        """
        one, choice = entrant.candidate.implementation, entrant.choice
        lower = one.child_spec(self._spec)
        child = plan_child(lower) if lower is not None and choice.child is None else None
        if child is not None:
            choice = replace(choice, child=child.choice)
        if not self._box.holds(choice):
            return None
        entrant.choice = choice
        if not terms.patient and not self._box.is_ready(choice):
            return Trial("partial", "its library was still being loaded into the process of its first run")
        declared = one.workspace_bytes(self._spec, self._device, choice.config)
        tags = one.traits(choice.config).tags
        if child is not None:
            declared, tags = declared + child.workspace_bytes, tags.union(child.tags)
        try:
            allowance = Allowance(terms.run_s(entrant.candidate.estimate_s), declared, tags)
            trial = self._box.try_out(choice, self._judge, allowance)
        except Unfit:
            return None
        except OSError as error:
            cannot_contain(error)
            return None
        entrant.extra_bytes = trial.extra_bytes
        return trial

    def _try(self, entrant: Entrant, built: Built, terms: Terms, trial: Trial | None) -> None:
        run, clock, best_s = self._judge.runner(built), self._timer.clock, terms.best_s
        if trial is None:
            verdict = self._judge.verify(built, run, clock)
        else:
            verdict = Verdict(trial.error, seconds=trial.seconds)
        entrant.error = verdict.error
        if verdict.fault:
            entrant.status, entrant.reason = "wrong", verdict.fault
            return
        if best_s is not None and verdict.seconds > max(terms.budget_s, GROSS * best_s):
            took = f"one run took {verdict.seconds:.3g} s, more than the whole budget"
            entrant.status, entrant.reason = "timeout", f"{took}; the best takes {best_s:.3g} s"
            return
        contestant = Contestant(
            str(built.choice),
            sample=self._sampler(lambda: run(self._out, self._workspace)),
            runtimes=self._runtimes(built.choice),
            allowed=self._limits.refuses(self.row(entrant)) is None,
            most_loops=MAX_LOOPS if self._stopwatch is None else 1,
        )
        if verdict.seconds >= SLOW_CALL_S and clock() >= terms.deadline:  # no time for more
            contestant.samples.append(verdict.seconds)
            entrant.contestant = contestant
            return
        self._out[...] = np.nan
        seconds = contestant.sample(1)  # in the memory it will be used with: also the warm-up
        _, fault = self._judge.values(self._place.to_host(self._out), built.tags)
        if fault:
            entrant.status, entrant.reason = "wrong", f"right among guards, but then: {fault}"
            return
        behind = best_s is not None and seconds > HOPELESS * best_s
        if seconds >= SLOW_CALL_S and (behind or clock() >= terms.deadline):
            contestant.samples.append(seconds)
            contestant.left = f"{seconds / (best_s or 1):.3g} times the best after one sample" if behind else ""
        else:
            self._timer.first_sample(contestant, best_s)
        entrant.contestant = contestant

    def _sampler(self, call: Callable[[], None]) -> Callable[[int], float]:
        """How calls are timed: by the device's events, or by this process's clock."""
        return clocked(call, self._timer.clock) if self._stopwatch is None else EventSampler(self._stopwatch, call)

    def _runtimes(self, choice: Choice) -> tuple[str, ...]:
        """The thread pools a choice uses, its children's included."""
        names = {self._registry.get(link.implementation).runtime for link in choice.chain()}
        return tuple(sorted(names - {"none"}))

    def row(self, entrant: Entrant, samples: Sequence[float] = (), median_s: float | None = None) -> Measurement:
        """What is remembered of an entrant."""
        built = entrant.built
        traits = entrant.candidate.implementation.traits(entrant.choice.config)
        known: dict[str, Any] = {}
        if built is not None:
            known = {"workspace_bytes": built.workspace_bytes + entrant.extra_bytes, "tags": built.tags}
        if entrant.contestant is not None and isinstance(entrant.contestant.sample, EventSampler):
            known["enqueue_s"] = entrant.contestant.sample.enqueue_s
        return Measurement(
            spec=str(self._spec),
            device=self._device.fingerprint,
            choice=entrant.choice,
            status=entrant.status,
            environment=self._registry.environment(entrant.choice),
            median_s=median_s,
            spread=spread_of(samples),
            samples=tuple(samples),
            error=entrant.error,
            deterministic=traits.deterministic if built is None else built.deterministic,
            strict_nan=traits.strict_nan if built is None else built.strict_nan,
            reason="; ".join(filter(None, (entrant.reason, _greed(entrant)))),
            race=self._race,
            measured_at=self._stamp,
            host=platform.node(),
            **known,
        )


def _greed(entrant: Entrant) -> str:
    """A remark on memory that an entrant takes without having declared it; it counts as its workspace."""
    if not entrant.extra_bytes:
        return ""
    return f"takes {entrant.extra_bytes / 2**20:.0f} MiB beyond what it declares"


def _fail(entrant: Entrant, error: BaseException) -> None:
    entrant.status = "oom" if is_out_of_memory(error) else "failed"
    entrant.reason = f"{type(error).__name__}: {error}"
    entrant.contestant = None


def placed(stand: Stand, entrants: Sequence[Entrant], *, cut_short: bool, doubt: str = "") -> list[Measurement]:
    """The rows of a race. In one that was cut short, whoever was still running is `partial`.

    With a `doubt` (what disturbed the race, in words) whoever was timed is `suspect`.

    Who left early is placed by the paired ratio to the best, times the best's median: its own median would be
    of other minutes than the best's. But never ahead of its own median: one disturbed sample of the best must
    not turn a loser into the winner.
    """
    for entrant in entrants:
        contestant = entrant.contestant
        if contestant is None:
            continue
        if contestant.failure is not None:
            _fail(entrant, contestant.failure)
        elif not contestant.left:
            if cut_short or entrant.child_partial:
                entrant.status = "partial"
                entrant.reason = "cut short by the budget" if cut_short else "its child's race was cut short"
        else:
            entrant.reason = contestant.left
        if doubt and contestant.failure is None and contestant.samples:
            entrant.status, entrant.reason = "suspect", "; ".join(filter(None, (doubt, entrant.reason)))
    timed = [entrant for entrant in entrants if entrant.contestant is not None and entrant.contestant.samples]
    finishers = [one.contestant for one in timed if one.contestant and not one.contestant.left]
    best = min(finishers, key=lambda one: (not one.allowed, one.median_s), default=None)
    rows = []
    for entrant in entrants:
        contestant = entrant.contestant
        if contestant is None or not contestant.samples:
            rows.append(stand.row(entrant))
            continue
        median_s = contestant.median_s
        if contestant.left and best is not None:
            ratios = [a / b for a, b in zip(contestant.samples, best.samples, strict=False)]
            median_s = max(median_s, median(ratios) * best.median_s)
        rows.append(stand.row(entrant, contestant.samples, median_s))
    return rows
