"""Who takes part in a race: candidates made ready, verified and given their first sample, and their rows.

Each is tried and timed in a worker of its kind, or in this process: where `isolation` says so, on other devices, and
those that no worker can make.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from autoconv.tuner.containment import Allowance, Box, Trial, Unfit, cannot_contain, kind_of
from autoconv.tuner.crew import Crew, Remote
from autoconv.tuner.cuda_timing import EventSampler, Stopwatch
from autoconv.tuner.gpu_trouble import free_pool, is_out_of_memory
from autoconv.tuner.timing import HOPELESS, MAX_LOOPS, Contestant, Timer, clocked, spread_of
from autoconv.tuner.verify import Judge, Verdict
from autoconv.tuner.workers import WORKERS, Fault
from autoconv.workspace import Workspace

__all__ = ["Entrant", "Stand", "Terms", "placed"]

GROSS = 20.0  # a first run this many times as long as the best is more than cold caches and imports
SLOW_CALL_S = 0.1  # a call this long is hardly disturbed by a cold cache: its first runs serve as samples
LEAST_RUN_S = 2.0  # no first run is cut off earlier: a busy machine holds one up for a second, not for two
UNKNOWN_RUN_S = 10.0  # a first run with nothing to compare it with may take this long, or `DOUBT` times its estimate
DOUBT = 100.0
QUICK = frozenset({"cupy", "cudnn"})  # imported in half a second; PyTorch takes ten times as long


@dataclass(eq=False, slots=True)
class Entrant:
    """A candidate in this race and what became of it.

    `contestant` is None when it never ran, `built` when it did not run in this process.
    """

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
    """How much time there is, what is to be beaten, and where: `apart`, in a worker, or here.

    Who was not `seen` to run here is never run in this process because a worker is still importing its library. If
    `patient`, libraries are waited for.
    """

    deadline: float
    budget_s: float
    best_s: float | None
    apart: bool = False
    seen: bool = False
    patient: bool = True

    def run_s(self, estimate_s: float) -> float:
        """After how long a first run in a worker is a hang."""
        if self.best_s is not None:
            return max(LEAST_RUN_S, self.budget_s, GROSS * self.best_s)
        return max(UNKNOWN_RUN_S, self.budget_s, DOUBT * estimate_s if isfinite(estimate_s) else 0.0)


class Stand:
    """Where the candidates of one race are tried: operands, room for the result, workspace, one timer."""

    def __init__(
        self,
        registry: Registry,
        spec: ConvSpec,
        device: Device,
        limits: Limits,
        timer: Timer,
        crew: Crew,
        race: str,
        stamp: float,
    ) -> None:
        self._registry = registry
        self._spec = spec
        self._device = device
        self._limits = limits
        self._timer = timer
        self._race = race
        self._stamp = stamp
        self._box = Box(registry, spec, device, crew)
        self._place = place_of(device)
        self._workspace: Workspace
        self._stopwatch: Stopwatch | None = None
        self._judge: Judge
        self._out: Any

    def open(self, judge: Judge) -> None:
        """Take the operands, and make room for results; rows alone need none of it."""
        self._judge = judge
        layout = "nchw" if self._spec.op is Op.WGRAD else self._spec.layout
        with self._place.current():
            self._out = self._place.empty(self._spec.result_shape, layout, self._spec.np_dtype)
        if self._device.kind == "cpu":
            self._workspace = Workspace()  # not the thread's, which would keep the greediest candidate's for good
        else:
            self._workspace = self._place.workspace()
            self._stopwatch = Stopwatch(self._device, self._timer.clock)

    def start_workers(self, choices: Sequence[Choice]) -> None:
        """Let workers start beside other work, as far as `choices` have use for them.

        On the CPU what they are forked from; on a GPU those whose libraries are not waited for elsewhere: all do.
        """
        held = [choice for choice in choices if self._box.holds(choice)]
        with suppress(OSError):  # met again, and told, when they are needed
            if held:
                WORKERS.start()
            for kind in {kind_of(self._registry, choice) for choice in held if self._is_quick(choice)}:
                WORKERS.warm(kind)

    def end_trials(self) -> None:
        """Give back what only trials need."""
        self._box.close()

    def close(self) -> None:
        """The race is over."""
        self._stopwatch = None
        free_pool(self._place)
        self._box.leave()

    def try_out(
        self, candidate: Candidate, choice: Choice, plan_child: Callable[[ConvSpec], Choice], terms: Terms
    ) -> Entrant:
        """Make ready, verify, run once as in use, and take the first sample; a failure is the entrant's status.

        Raises `NoImplementation` or `BackendMissing` when the choice cannot be made ready: a refusal, not a failure.
        """
        entrant = Entrant(candidate, choice)
        try:
            lower = candidate.implementation.child_spec(self._spec)
            if lower is not None and choice.child is None:  # chosen first, so that a worker is told the whole chain
                choice = entrant.choice = replace(choice, child=plan_child(lower))
            trial = self._contained(entrant, terms) if terms.apart else None
            if trial is not None and trial.status != "ok":
                entrant.status, entrant.reason, entrant.error = trial.status, trial.reason, trial.error
            elif trial is not None and trial.remote is not None:
                self._try_apart(entrant, trial, trial.remote, terms)
            else:
                with self._place.current():
                    built = self._registry.build(self._spec, self._device, choice)
                    entrant.built, entrant.choice = built, built.choice
                    self._try_here(entrant, built, terms, trial)
        except (BackendMissing, NoImplementation):
            raise
        except (Exception, SystemExit) as error:  # whatever it raises is its own row's business
            _fail(entrant, error)
        finally:
            self._box.rest()
        if entrant.status == "oom":
            free_pool(self._place)  # the others' turn: what the failure left there may be too small for them
        return entrant

    def _is_quick(self, choice: Choice) -> bool:
        """Whether the libraries of `choice` are waited for even inside a call: without CuPy no GPU has a candidate."""
        libraries = kind_of(self._registry, choice).libraries
        return self._device.kind != "cpu" and QUICK.issuperset(libraries)

    def _contained(self, entrant: Entrant, terms: Terms) -> Trial | None:
        """The candidate's first run, in a worker; None when it cannot be had there."""
        choice = entrant.choice
        if not self._box.holds(choice):
            return None
        if not (terms.patient or self._is_quick(choice) or self._box.is_ready(choice)):
            if terms.seen:
                return None
            return Trial("partial", "its library was still being loaded into the process of its first run")
        declared = self._registry.declared(self._spec, self._device, choice)
        try:
            allowance = Allowance(
                terms.run_s(entrant.candidate.estimate_s), declared.workspace_bytes, frozenset(declared.tags)
            )
            trial = self._box.try_out(choice, self._judge, allowance)
        except Unfit:
            return None
        except OSError as error:
            cannot_contain(error)
            return None
        entrant.extra_bytes = trial.extra_bytes
        return trial

    def _try_apart(self, entrant: Entrant, trial: Trial, remote: Remote, terms: Terms) -> None:
        """In a worker, where it ran among guards already."""

        def once() -> tuple[float, str]:
            tags = self._registry.declared(self._spec, self._device, entrant.choice).tags
            return self._box.settle(remote, self._judge, frozenset(tags))

        self._enter(entrant, Verdict(trial.error, seconds=trial.seconds), remote.sample, once, terms, remote.rest)

    def _try_here(self, entrant: Entrant, built: Built, terms: Terms, trial: Trial | None) -> None:
        """In this process."""
        run, clock = self._judge.runner(built), self._timer.clock
        if trial is None:
            verdict = self._judge.verify(built, run, clock)
        else:
            verdict = Verdict(trial.error, seconds=trial.seconds)
        sample = self._sampler(lambda: run(self._out, self._workspace))

        def once() -> tuple[float, str]:
            self._out[...] = np.nan
            return sample(1), self._judge.values(self._place.to_host(self._out), built.tags)[1]

        self._enter(entrant, verdict, sample, once, terms)

    def _sampler(self, call: Callable[[], None]) -> Callable[[int], float]:
        """How calls in this process are timed: by the device's events, or by the clock."""
        return clocked(call, self._timer.clock) if self._stopwatch is None else EventSampler(self._stopwatch, call)

    def _enter(
        self,
        entrant: Entrant,
        verdict: Verdict,
        sample: Callable[[int], float],
        once: Callable[[], tuple[float, str]],
        terms: Terms,
        rest: Callable[[], None] | None = None,
    ) -> None:
        """Into the race, by what its first run showed.

        `once` runs it in the memory it will be used with: seconds, and what is wrong with the result.
        """
        best_s = terms.best_s
        entrant.error = verdict.error
        if verdict.fault:
            entrant.status, entrant.reason = "wrong", verdict.fault
            return
        if best_s is not None and verdict.seconds > max(terms.budget_s, GROSS * best_s):
            took = f"one run took {verdict.seconds:.3g} s, more than the whole budget"
            entrant.status, entrant.reason = "timeout", f"{took}; the best takes {best_s:.3g} s"
            return
        contestant = Contestant(
            str(entrant.choice),
            sample=sample,
            runtimes=kind_of(self._registry, entrant.choice).runtimes,
            allowed=self._limits.refuses(self.row(entrant)) is None,
            most_loops=MAX_LOOPS if self._stopwatch is None else 1,
            rest=rest,
        )
        late = self._timer.clock() >= terms.deadline
        if verdict.seconds >= SLOW_CALL_S and late:  # no time for more
            contestant.samples.append(verdict.seconds)
            entrant.contestant = contestant
            return
        seconds, fault = once()  # also the warm-up
        if fault:
            entrant.status, entrant.reason = "wrong", f"right among guards, but then: {fault}"
            return
        behind = best_s is not None and seconds > HOPELESS * best_s
        if seconds >= SLOW_CALL_S and (behind or self._timer.clock() >= terms.deadline):
            contestant.samples.append(seconds)
            contestant.left = f"{seconds / (best_s or 1):.3g} times the best after one sample" if behind else ""
        else:
            self._timer.first_sample(contestant, best_s)
        entrant.contestant = contestant

    def row(self, entrant: Entrant, samples: Sequence[float] = (), median_s: float | None = None) -> Measurement:
        """What is remembered of an entrant."""
        declared = self._registry.declared(self._spec, self._device, entrant.choice)
        sample = None if entrant.contestant is None else entrant.contestant.sample
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
            deterministic=declared.deterministic,
            strict_nan=declared.strict_nan,
            reason="; ".join(filter(None, (entrant.reason, _greed(entrant)))),
            race=self._race,
            measured_at=self._stamp,
            host=platform.node(),
            workspace_bytes=declared.workspace_bytes + entrant.extra_bytes,
            tags=declared.tags,
            enqueue_s=sample.enqueue_s if isinstance(sample, EventSampler) else None,
        )


def _greed(entrant: Entrant) -> str:
    """A remark on memory that an entrant takes without having declared it; it counts as its workspace."""
    if not entrant.extra_bytes:
        return ""
    return f"takes {entrant.extra_bytes / 2**20:.0f} MiB beyond what it declares"


def _fail(entrant: Entrant, error: BaseException) -> None:
    if isinstance(error, Fault):
        entrant.status, entrant.reason = error.status, error.reason
    else:
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
