"""From a spec to a plan: what is in this process, else what is remembered, else what the policy says.

The answer is kept per scope (one value of the settings), so a repeated call is one dictionary look-up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autoconv import options
from autoconv.captures import OutsideCaptures
from autoconv.device import Device
from autoconv.errors import BackendMissing, NoImplementation, RegistryError
from autoconv.evidence import Choice, Decision, Measurement, Store, decide, latest
from autoconv.implementation import Built
from autoconv.options import Scope, Settings
from autoconv.places import place_of
from autoconv.planning import Plan
from autoconv.registry import Registry, default_registry
from autoconv.spec import ConvSpec
from autoconv.verbose import announce

if TYPE_CHECKING:
    from autoconv.tuner import Tuner, TuningResult

__all__ = ["current_store", "make_tuner", "pin", "plan_for", "recall", "untuned_order", "use_store"]

_stores: dict[str | None, Store] = {}
_locks: dict[Any, threading.Lock] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    """A lock that another thread held at the fork would never be released in the child."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def current_store() -> Store:
    """The store that the current settings name, opened once per process."""
    url = options.current_scope().settings.cache
    store = _stores.get(url)
    if store is None:
        with _guard:
            if url not in _stores:
                from autoconv.cache import open_store

                _stores[url] = open_store(url)
            store = _stores[url]
    return store


def use_store(store: Store, url: str | None = None) -> None:
    """Let `store` stand for the cache setting `url` in this process, and forget what was decided."""
    _stores[url] = store
    options.forget_calls()


def make_tuner() -> Tuner:
    """A tuner on the default registry and the current store."""
    from autoconv.tuner import Tuner  # only a miss pays for it

    isolation = options.current_scope().settings.isolation
    return Tuner(default_registry(), current_store(), isolation=isolation)


def plan_for(spec: ConvSpec, device: Device) -> Plan:
    """The plan for `spec` under the current settings; decides on the first call and remembers.

    While a GPU's stream is being captured nothing is tuned or compiled: what is remembered runs, else the first of
    the untuned order that is ready, and neither is kept.

    Raises `RegistryError` for an unknown name in the settings, `NoImplementation` when nothing may
    run the spec or the policy forbids to find out.
    """
    scope = options.current_scope()
    key = (spec, device)
    plan: Plan | None = scope.calls.get(key)
    if plan is not None:
        return plan
    if place_of(device).capturing():
        return _decide_in_a_capture(spec, device, scope.settings)
    with _one_at_a_time(key):  # two threads that miss the same spec decide once
        plan = scope.calls.get(key)
        if plan is None:
            plan = _decide(spec, device, scope)
            scope.keep(key, plan)
    return plan


def pin(spec: ConvSpec, device: Device, choice: Choice) -> Plan:
    """The plan that runs `spec` by `choice` and nothing else, compiled now if it has to be; nothing is raced.

    A rewrite's child that `choice` leaves open is the remembered one, else the first of the untuned order.
    Raises `RegistryError` for an unknown id, `NoImplementation` when the choice cannot run the spec,
    `BackendMissing` when it needs what is not installed.
    """
    scope = options.current_scope()
    key = (spec, device, choice)
    plan: Plan | None = scope.calls.get(key)
    if plan is not None:
        return plan
    registry, settings = default_registry(), scope.settings

    def child(lower: ConvSpec) -> Built:
        remembered = recall(lower, device, settings)[2]
        return remembered or _first_that_builds(registry, lower, device, settings)[0]

    with _one_at_a_time(key):
        built = registry.build(spec, device, choice, child, may_compile=not place_of(device).capturing())
        plan = Plan(spec, device, built.choice, built.runner, workspace_bytes=built.workspace_bytes, rebind=plan_for)
        if settings.verbose:
            announce(plan, settings, (), {})
        scope.keep(key, plan)
    return plan


@contextmanager
def _one_at_a_time(key: Any) -> Iterator[None]:
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        yield
    with _guard:
        _locks.pop(key, None)


def _decide(spec: ConvSpec, device: Device, scope: Scope) -> Plan:
    registry, settings = default_registry(), scope.settings
    _check_settings(registry, settings)
    rows: Sequence[Measurement] = ()
    refusals: dict[str, str] = {}
    built: Built | None = None
    decision: Decision | None = None
    source = "pinned"
    if spec.batch == 0:  # nothing to compute, so nothing to race
        if device.kind == "cpu":
            built = registry.build(spec, device, _direct())
        else:
            built, refusals = _first_that_builds(registry, spec, device, settings)
    else:
        rows, decision, built = recall(spec, device, settings, look_for_changes=settings.verbose > 0)
        source = "cache"
    if built is None and settings.on_miss == "tune":
        result = _race(spec, device, settings)
        built, decision, rows, refusals = result.built, result.decision, result.rows, result.refusals
        source = "tuned"
    elif built is None:
        current_store().miss(str(spec), device.fingerprint, f"on_miss={settings.on_miss}")
        if settings.on_miss == "error":
            raise NoImplementation(
                f"nothing is remembered for {spec} on this device, and on_miss='error': run `autoconv tune '{spec}'`"
            )
        built, refusals = _first_that_builds(registry, spec, device, settings)
        source = "heuristic"
    assert built is not None
    plan = _plan_of(built, device, settings, source, decision)
    if settings.verbose:
        if settings.verbose > 1 and not refusals:
            _, refusals = registry.candidates(spec, device, settings.limits(spec.dtype, device))
        announce(plan, settings, rows, refusals)
    return plan


def _decide_in_a_capture(spec: ConvSpec, device: Device, settings: Settings) -> Plan:
    """A plan out of what is ready. Raises `NoImplementation` when nothing is."""
    registry = default_registry()
    _, decision, built = recall(spec, device, settings, in_a_capture=True)
    source = "cache"
    if built is None:
        source = "heuristic"
        try:
            built, _ = _first_that_builds(registry, spec, device, settings, in_a_capture=True)
        except NoImplementation as error:
            raise NoImplementation(
                f"the current stream is being captured, so nothing is tuned or compiled, and nothing that is ready "
                f"runs {spec}: call it once before the capture",
                error.refusals,
            ) from None
    return _plan_of(built, device, settings, source, decision)


def _relieved(settings: Settings, plan: Plan) -> Plan | None:
    """Who runs where `plan` found no memory: the best remembered row that takes less, else the first that builds."""
    tighter = replace(settings, max_workspace=plan.workspace_bytes - 1)
    capturing = place_of(plan.device).capturing()
    _, decision, built = recall(plan.spec, plan.device, tighter, in_a_capture=capturing)
    source = "cache"
    if built is None:
        source = "heuristic"
        try:
            built, _ = _first_that_builds(default_registry(), plan.spec, plan.device, tighter, in_a_capture=capturing)
        except NoImplementation:
            return None
    return _plan_of(built, plan.device, tighter, source, decision)


def _plan_of(built: Built, device: Device, settings: Settings, source: str, decision: Decision | None) -> Plan:
    runner = built.runner
    if device.kind != "cpu" and not default_registry().capturable(built.choice):
        decide_anew = partial(_decide_in_a_capture, built.spec, device, settings)
        runner = OutsideCaptures(runner, place_of(device), decide_anew)
    return Plan(
        built.spec,
        device,
        built.choice,
        runner,
        workspace_bytes=built.workspace_bytes,
        source=source,
        decision=decision,
        rebind=plan_for,
        relieve=partial(_relieved, settings),
    )


def _known_capturable(registry: Registry, choice: Choice) -> bool:
    try:
        return registry.capturable(choice)
    except RegistryError:  # an implementation that is not here any more
        return False


def _check_settings(registry: Registry, settings: Settings) -> None:
    for name in ("require", "exclude", "prefer"):
        registry.check_words(name, getattr(settings, name))


def _race(spec: ConvSpec, device: Device, settings: Settings) -> TuningResult:
    limits = settings.limits(spec.dtype, device)
    return make_tuner().tune(spec, device, limits, budget_s=settings.tune_budget_s, load_libraries=False)


def recall(
    spec: ConvSpec, device: Device, settings: Settings, *, look_for_changes: bool = False, in_a_capture: bool = False
) -> tuple[list[Measurement], Decision | None, Built | None]:
    """The remembered rows of `spec`, the decision they support and its runner, as far as there is one.

    `look_for_changes` lets the decision tell when its winner is stale: asking a compiler for its version takes
    longer than a call may.

    A row whose implementation is gone, changed its version or cannot run any more gives way to the
    next best, and a miss is recorded so that `autoconv tune --missed` mends it. `in_a_capture` leaves out what cannot
    be captured or is not ready, and records nothing.
    """
    registry, store = default_registry(), current_store()
    rows = latest(store.rows(str(spec), device.fingerprint))
    limits = settings.limits(spec.dtype, device)
    able = [row for row in rows if not in_a_capture or _known_capturable(registry, row.choice)]
    reason = ""
    while (decision := decide(able, limits)) is not None:
        winner = decision.winner
        try:
            built = registry.build(spec, device, winner.choice, may_compile=device.kind != "cpu" and not in_a_capture)
        except (NoImplementation, RegistryError, BackendMissing) as gone:
            reason = str(gone)
        else:
            if built.choice != winner.choice:
                reason = f"{winner.choice} has a new version"
            elif refusal := limits.refuses(_as_built(winner, built)):  # a row from elsewhere may say anything
                reason = f"{winner.choice}: {refusal}"
            else:
                if reason and not in_a_capture:
                    store.miss(str(spec), device.fingerprint, reason)
                if look_for_changes:
                    decision = decide(able, limits, registry.stale([winner]))
                return rows, decision, built
        able = [row for row in able if row is not winner]
    return rows, None, None


def _as_built(row: Measurement, built: Built) -> Measurement:
    """`row` with what its implementation says here of its workspace and properties."""
    return replace(
        row,
        workspace_bytes=built.workspace_bytes,
        deterministic=built.deterministic,
        strict_nan=built.strict_nan,
        tags=built.tags,
    )


def untuned_order(
    spec: ConvSpec, device: Device, settings: Settings
) -> tuple[list[tuple[Choice, float]], dict[str, str]]:
    """Choices by estimate with their estimated seconds, as an untuned call would try them, and the refusals."""
    accepted, refusals = default_registry().candidates(
        spec, device, settings.limits(spec.dtype, device), load_libraries=False
    )
    return [(candidate.choice, candidate.estimate_s) for candidate in accepted], refusals


def _first_that_builds(
    registry: Registry, spec: ConvSpec, device: Device, settings: Settings, *, in_a_capture: bool = False
) -> tuple[Built, dict[str, str]]:
    # a C compiler takes seconds, a GPU's what the first call of any of CuPy's functions takes
    may_compile = device.kind != "cpu" and not in_a_capture
    order, refusals = untuned_order(spec, device, settings)
    free = replace(settings, require=())  # a rewrite that meets `require` does so for its child
    for choice, _ in order:
        if in_a_capture and not registry.capturable(choice):
            refusals[str(choice)] = "cannot run while a stream is being captured"
            continue
        try:
            built = registry.build(
                spec,
                device,
                choice,
                lambda child: _first_that_builds(registry, child, device, free, in_a_capture=in_a_capture)[0],
                may_compile=may_compile,
            )
        except (NoImplementation, BackendMissing) as error:
            reasons = getattr(error, "refusals", {}).values()
            refusals[str(choice)] = "; ".join(reasons) or str(error)
            continue
        cap = settings.limits(spec.dtype, device).max_workspace
        if cap is None or built.workspace_bytes <= cap:
            return built, refusals
        refusals[str(choice)] = f"needs {built.workspace_bytes} bytes of workspace with its child's, the limit is {cap}"
    raise NoImplementation(f"nothing here may run {spec}", refusals)


def _direct() -> Choice:
    return Choice("numpy.direct", default_registry().get("numpy.direct").version)
