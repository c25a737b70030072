"""Plans made beforehand: what `autoconv` offers about problems, apart from convolving arrays (`convolving`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, TextIO

from autoconv import dispatch, options
from autoconv.catalogue import ImplementationRecord, implementations
from autoconv.device import find_device
from autoconv.errors import InvalidOption, InvalidType, NoImplementation
from autoconv.explaining import Explanation, explain_spec
from autoconv.implementation import Implementation
from autoconv.planning import Plan
from autoconv.progress import Progress
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from autoconv.unknowns import explain_unknown
from autoconv.verbose import announce

if TYPE_CHECKING:
    from autoconv.regressing import Regression
    from autoconv.sharing import Imported
    from autoconv.tuner import TuningResult
    from autoconv.verifying import Verification

__all__ = [
    "ImplementationRecord",
    "explain",
    "export_measurements",
    "implementations",
    "import_measurements",
    "plan",
    "register",
    "regress",
    "tune",
    "verify",
]


def plan(spec: ConvSpec | str, device: str | None = None) -> Plan:
    """The plan for `spec`, a `ConvSpec` or its text, decided once: call it many times without deciding again.

    `device` is None or "cpu", "cuda" (the current GPU) or "cuda:N". Raises `InvalidSpec` for a text that is no
    complete spec, `BackendMissing` when driver, GPU or CuPy are missing for a GPU, and what `conv2d` raises.

    >>> import autoconv
    >>> autoconv.plan("fprop n1c8 16x16 k8 3x3 p1").spec.output_shape
    (1, 8, 16, 16)
    """
    return dispatch.plan_for(_as_spec(spec), find_device(device, options.current_scope().settings.threads))


def explain(spec: ConvSpec | str, device: str | None = None) -> Explanation:
    """What would run `spec`, what lost and by how much, and what refused and why; races nothing.

    A size that is not known may be written `?` in a text: the explanation names those sizes and gives the order in
    which an untuned call would try the implementations.

    >>> import autoconv
    >>> autoconv.explain("fprop n?c8 ?x16 k8 3x3").unknown
    'cannot tune: 2 of 8 dimensions unknown: input batch, input height'
    """
    where = find_device(device, options.current_scope().settings.threads)
    if isinstance(spec, str) and "?" in spec:
        return explain_unknown(spec, where)
    return explain_spec(_as_spec(spec), where)


def tune(
    specs: Iterable[ConvSpec | str] | ConvSpec | str,
    device: str | None = None,
    budget_s: float | None = None,
    progress: bool = False,
    retune: bool = False,
    watch: Callable[[str, str, int, int], None] | None = None,
) -> list[TuningResult]:
    """Race every implementation on every spec and remember the winners.

    Parameters
    ----------
    specs : ConvSpec, text, or an iterable of them
    device : None, "cpu", "cuda" or "cuda:N"
    budget_s : float, optional
        Seconds for all specs together; by default ten times `settings.tune_budget_s`, which is what a call
        may wait for, for each.
    progress : bool
        Show a progress bar on standard error.
    retune : bool
        Measure again what is already remembered.
    watch : callable, optional
        Called as `watch(stage, detail, done, total)` while a race goes on.

    Returns one `TuningResult` per spec. Raises `InvalidSpec` before anything is measured when a text
    cannot be read, `NoImplementation` when nothing may run a spec (the others are tuned first).
    """
    problems = _as_specs(specs)
    deadline = _deadline(budget_s)
    settings = _checked_settings()
    where = find_device(device, settings.threads)
    tuner = dispatch.make_tuner()
    results: list[TuningResult] = []

    failure: NoImplementation | None = None
    with Progress(len(problems), enabled=progress) as bar:
        for done, spec in enumerate(problems):
            share = budget_share(settings, deadline, len(problems) - done)
            bar.start(str(spec))
            try:
                limits = settings.limits(spec.dtype, where)
                result = tuner.tune(spec, where, limits, budget_s=share, retune=retune, watch=watch or bar.watch)
            except NoImplementation as error:
                failure = failure or error
            else:
                results.append(result)
                _announce(result, settings)
            bar.finish()
    options.forget_calls()
    if failure is not None:
        raise failure
    return results


def regress(
    specs: Iterable[ConvSpec | str] | ConvSpec | str | None = None,
    device: str | None = None,
    budget_s: float | None = None,
    progress: bool = False,
    watch: Callable[[str, str, int, int], None] | None = None,
) -> list[Regression]:
    """Time again what is remembered but doubtful: rows that are suspect, partial, or of an older environment.

    Only the top candidates of a spec race again; rows are added, none is removed. Specs whose winner is doubtful
    come first.

    Parameters
    ----------
    specs : ConvSpec, text, or an iterable of them, optional
        Look at these alone; by default at everything remembered on the device.
    device : None, "cpu", "cuda" or "cuda:N"
    budget_s : float, optional
        Seconds for all specs together, by default as for `tune`. What it does not reach stays as it is.
    progress : bool
        Show a progress bar on standard error.
    watch : callable, optional
        Called as `watch(stage, detail, done, total)` while a race goes on.

    Returns one `Regression` per spec that was timed again: the decision before and after, and the ratio and interval
    behind it. Raises `InvalidSpec` for a text that cannot be read.

    >>> import autoconv
    >>> autoconv.regress("fprop n1c3 7x7 k3 3x3")  # nothing is remembered of it
    []
    """
    from autoconv import regressing  # with the tuner, which a call does not need

    deadline = _deadline(budget_s)
    settings = _checked_settings()
    where = find_device(device, settings.threads)
    doubts = [] if specs == [] else regressing.doubtful(where, [] if specs is None else _as_specs(specs))
    tuner = dispatch.make_tuner()
    results: list[Regression] = []
    with Progress(len(doubts), enabled=progress, verb="timing again") as bar:
        for done, doubt in enumerate(doubts):
            if deadline is not None and time.perf_counter() >= deadline:
                break
            share = budget_share(settings, deadline, len(doubts) - done)
            bar.start(str(doubt.spec))
            with suppress(NoImplementation):  # none of them can run here any more: a call says so, and `explain` why
                results.append(regressing.race_again(doubt, tuner, share, watch or bar.watch))
            bar.finish()
    options.forget_calls()
    return results


def verify(
    specs: Iterable[ConvSpec | str] | ConvSpec | str | None = None,
    device: str | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> list[Verification]:
    """Check remembered winners against the float64 reference on fresh operands: do they still give right answers?

    A winner that does not gets a row that says so and is not used any more, here and in other processes; the next
    best is checked in its place. Nothing is timed.

    Parameters
    ----------
    specs : ConvSpec, text, or an iterable of them, optional
        Check these alone; by default everything remembered on the device.
    device : None, "cpu", "cuda" or "cuda:N"
    seed : int, optional
        Fixes the operands, to repeat a check; by default they are new ones every time.
    progress : bool
        Show a progress bar on standard error.

    Returns one `Verification` per remembered spec. Raises `InvalidSpec` for a text that cannot be read.

    >>> import autoconv
    >>> all(one.ok for one in autoconv.verify())
    True
    """
    from autoconv import showing, verifying

    settings = _checked_settings()
    where = find_device(device, settings.threads)
    seed = verifying.checked_seed(seed)
    wanted = None if specs is None else _as_specs(specs)
    known = [] if wanted == [] else showing.remembered_specs(where.fingerprint, wanted or ())
    results: list[Verification] = []
    with Progress(len(known), enabled=progress, verb="verifying") as bar:
        for spec in known:
            bar.start(str(spec))
            results.append(verifying.verify_spec(spec, where, seed))
            bar.finish()
    options.forget_calls()
    return results


MIN_SHARE_S = 1e-3  # what a spec gets when the common budget is spent: its untuned default is still measured
PATIENCE = 10.0  # times what a race inside a call may take: whoever tunes beforehand wants it settled


def budget_share(settings: options.Settings, deadline: float | None, left: int) -> float:
    """Seconds for the next of `left` specs: its part of what remains until `deadline` (of `time.perf_counter`)."""
    if deadline is None:
        return PATIENCE * settings.tune_budget_s
    return max((deadline - time.perf_counter()) / left, MIN_SHARE_S)


def _announce(result: TuningResult, settings: options.Settings) -> None:
    if not settings.verbose or result.built is None:
        return
    built = result.built
    shown = Plan(
        result.spec,
        result.device,
        built.choice,
        built.runner,
        workspace_bytes=built.workspace_bytes,
        source="tuned" if result.measured else "cache",
        decision=result.decision,
    )
    announce(shown, settings, result.rows, result.refusals)


def _deadline(budget_s: float | None) -> float | None:
    """When a common budget ends, of `time.perf_counter`."""
    if budget_s is None:
        return None
    if not 0 < budget_s < float("inf"):
        raise InvalidOption(f"budget_s must be a positive number of seconds, got {budget_s!r}")
    return time.perf_counter() + budget_s


def _checked_settings() -> options.Settings:
    """The settings in force. Raises `RegistryError` for an unknown name in them."""
    settings = options.current_scope().settings
    registry = default_registry()
    for name in ("require", "exclude", "prefer"):
        registry.check_words(name, getattr(settings, name))
    return settings


def _as_specs(specs: Iterable[ConvSpec | str] | ConvSpec | str) -> list[ConvSpec]:
    return [_as_spec(spec) for spec in ([specs] if isinstance(specs, ConvSpec | str) else specs)]


def _as_spec(spec: ConvSpec | str) -> ConvSpec:
    if isinstance(spec, ConvSpec):
        return spec
    if isinstance(spec, str):
        return ConvSpec.parse(spec)
    raise InvalidType(f"spec must be a ConvSpec or its text form, got {type(spec).__name__}")


def register(implementation: Implementation, *, replace: bool = False) -> None:
    """Add an implementation to the registry; it takes part in the next race of every spec it does not refuse.

    Raises `RegistryError` for an id that is taken, retired or not of the form 'provider.algorithm'.
    """
    default_registry().register(implementation, replace=replace)
    options.forget_calls()


def export_measurements(target: str | os.PathLike[str] | TextIO) -> int:
    """Write every remembered measurement as JSON lines, to a path or an open text file; gives their number.

    Another machine adds them with `import_measurements`. A file appears whole or not at all, readable by its
    owner alone; the rows name this machine's host. Raises `OSError` when it cannot be written.

    >>> import autoconv, io
    >>> with autoconv.settings(cache=":memory:"):
    ...     autoconv.export_measurements(io.StringIO())
    0
    """
    from autoconv import sharing  # with SQLAlchemy, which a call does not need

    return sharing.send(target)


def import_measurements(
    source: str | os.PathLike[str] | IO[bytes] | Iterable[str], *, skip_unknown: bool = False
) -> Imported:
    """Add the measurements of an export to what is remembered: all of them, or none.

    Parameters
    ----------
    source : path, open binary file, or lines of text
        What `export_measurements` wrote. Every field is checked; nothing in it is executed.
    skip_unknown : bool
        Leave out rows of implementations that are not known here, instead of refusing the file.

    Rows keep the fingerprint of the device they were measured on: other machines of that fingerprint use them.
    Returns an `Imported`, the numbers of rows added, known already, and skipped. Raises `BadExport` with the number
    of the first bad line, `CacheError` when the cache cannot be written, `OSError` for a file that cannot be read.

    >>> import autoconv, io
    >>> file = io.StringIO()
    >>> with autoconv.settings(cache=":memory:"):
    ...     _ = autoconv.export_measurements(file)
    ...     autoconv.import_measurements(file.getvalue().splitlines())
    Imported(added=0, known=0, skipped=0)
    """
    from autoconv import sharing

    result = sharing.receive(source, skip_unknown=skip_unknown)
    options.forget_calls()
    return result
