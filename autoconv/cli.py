"""The command line: parse, call one function, hand the result to `report`.

Errors of the library become one message on standard error and an exit status; standard output
carries the result alone, so that `--json` can be piped.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

import autoconv
from autoconv import benching, campaign, doctor, regressing, report, showing, workloads
from autoconv.device import find_device
from autoconv.dispatch import current_store
from autoconv.errors import AutoconvError, InvalidOption, InvalidSpec, RegistryError
from autoconv.evidence import Miss
from autoconv.options import Settings
from autoconv.registry import default_registry
from autoconv.spec import DTYPES, LAYOUTS, ConvSpec, Op
from autoconv.tables import Report, clean
from autoconv.verifying import SEEDS
from autoconv.workloads import Entry, Problem, Workload

__all__ = ["cli", "main"]

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
LIMITS = ("exclude", "require", "prefer")

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Boundary(click.Group):
    """Turns errors of the library into one message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except AutoconvError as error:
                _say(f"error: {error}")
                wrong = isinstance(error, InvalidSpec | InvalidOption | RegistryError)
                ctx.exit(WRONG_USAGE if wrong else FAILED)
            except KeyboardInterrupt:
                _say("interrupted")
                ctx.exit(INTERRUPTED)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(autoconv.__version__, prog_name="autoconv")
def cli() -> None:
    """Race every convolution engine of this machine, remember the winners, and say why they won.

    A SPEC is a text such as 'fprop n8c64 56x56 k64 3x3 p1'. Where TARGETS are asked for, each may also
    be a built-in network (alexnet, c3d, googlenet, image, mobilenet_v2, resnet18, resnet50, vgg16) or a
    workload file: text with one spec per line, JSON, or JSON lines.

    \b
    Exit status:
      0    done
      1    a spec failed, a workload line could not be read, nothing here can run what was asked for, or
           a remembered winner turned out to be wrong (verify)
      2    wrong usage, a spec that makes no sense, an unknown name
      130  interrupted with Ctrl-C; what was measured by then is kept
    """


def main() -> None:
    """Entry point of the `autoconv` command."""
    cli(prog_name="autoconv")


# Options shared by commands ----------------------------------------------------------------------


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _words(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in value.replace(",", " ").split())


def _directions(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Op, ...]:
    words = (value or "").replace(",", " ").split()
    unknown = [word for word in words if word not in list(Op)]
    if unknown or (value is not None and not words):
        raise click.BadParameter(f"expected some of {','.join(Op)}, got {value!r}")
    return tuple(dict.fromkeys(map(Op, words)))


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise click.BadParameter(f"expected a positive number of seconds, got {value}")
    return value


def _names(option: str, help_text: str) -> Callable[[_Command], _Command]:
    return click.option(option, multiple=True, callback=_words, metavar="NAMES", help=help_text)


_COMMON = _all(
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
    click.option("--device", metavar="NAME", help="Where to run: cpu (the default), cuda or cuda:N."),
    click.option("--threads", type=click.IntRange(1, 4096), help="Threads per call (default: every usable core)."),
    _names("--exclude", "Leave out these ids, providers or tags."),
    _names("--require", "Use nothing but these."),
    _names("--prefer", "Let these win ties, and go first where nothing is measured."),
    click.option("--cache", metavar="PATH", help="Database of measurements: a file or an SQLAlchemy URL."),
    click.option("-v", "--verbose", count=True, help="Say decisions; -vv: candidates too; -vvv: how to repeat it."),
)


def _steered(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options every command has, and run it under the settings they make."""

    @_COMMON
    @functools.wraps(command)
    def run(*arguments: Any, verbose: int, cache: str | None, threads: int | None, **rest: Any) -> None:
        given = {"verbose": min(verbose, 3), "cache": cache, "threads": threads}
        given |= {name: rest.pop(name) for name in LIMITS}
        with autoconv.settings(**{name: value for name, value in given.items() if value}) as settings:
            _check_names(settings)
            find_device(rest["device"], settings.threads)  # an unknown one is refused before anything is done
            command(*arguments, **rest)

    return run


def _check_names(settings: Settings) -> None:
    for name in LIMITS:
        default_registry().check_words(name, getattr(settings, name))


_TARGETS = click.argument("targets", nargs=-1, metavar="[TARGETS]...")
_PROBLEM = _all(
    click.option(
        "--directions",
        callback=_directions,
        metavar="OPS",
        help="Every spec in each of these, as fprop,dgrad,wgrad (default: as it says).",
    ),
    click.option("--batch", type=click.IntRange(min=1), help="Replace the batch size."),
    click.option("--fixed", is_flag=True, help="Filters bound beforehand, so that packing them is not timed."),
    click.option("--corr", is_flag=True, help="Cross-correlation: filters are not flipped."),
    click.option("--layout", type=click.Choice(LAYOUTS), help="Replace the memory format."),
    click.option("--dtype", type=click.Choice(tuple(DTYPES)), help="Replace the dtype."),
)
_BUDGET = click.option(
    "--budget",
    type=float,
    callback=_seconds,
    metavar="SECONDS",
    help="For all specs together (default: AUTOCONV_TUNE_BUDGET_S, one second, for each).",
)


# Commands ----------------------------------------------------------------------------------------


@cli.command()
@_TARGETS
@click.option("--missed", is_flag=True, help="Also what calls asked for in vain, and races that were cut short.")
@_PROBLEM
@_BUDGET
@click.option("--retune", is_flag=True, help="Measure again what is already remembered.")
@_steered
def tune(
    targets: tuple[str, ...],
    missed: bool,
    budget: float | None,
    retune: bool,
    device: str | None,
    as_json: bool,
    **problem: Any,
) -> None:
    """Race every implementation on every spec and remember the winners.

    By default filters vary from call to call, are flipped (a true convolution), and data is float32,
    channels first, batch 1. A progress bar is shown on a terminal; Ctrl-C keeps what was measured.

    \b
      autoconv tune resnet50 --batch 8 --directions fprop,dgrad,wgrad
      autoconv tune 'fprop n1c1 1080x1920 k1 25x25 p12' --fixed
      autoconv tune --missed --budget 60
    """
    if not targets and not missed:
        raise click.UsageError("name specs, networks or workload files, or give --missed")
    work = _load(targets)
    if missed:
        work.extend(_missed(device))
    entries = workloads.adapt(work.entries, **problem)
    _tell(work.problems)
    if not entries and not work.problems:
        _say("nothing was missed on this device")
    done = campaign.tune(entries, device=device, budget_s=budget, retune=retune, say=_say)
    told = report.winners(done.results, done.failures, work.problems, interrupted=done.interrupted)
    _finish(told, as_json, done, work.problems)


@cli.command()
@_TARGETS
@_PROBLEM
@_BUDGET
@_steered
def regress(targets: tuple[str, ...], budget: float | None, device: str | None, as_json: bool, **problem: Any) -> None:
    """Time again what is remembered but doubtful, and say who was promoted and on what evidence.

    Doubtful are rows that are suspect (something disturbed the measurement), partial (the race was cut
    short) or stale (a library, compiler or driver has another version now). Only the top candidates of a
    spec race again; nothing is removed. Without TARGETS, everything remembered on the device is looked at,
    specs with a doubtful winner first; what the budget does not reach stays as it is.

    \b
      autoconv regress --budget 60
      autoconv regress resnet50 --batch 8
    """
    work = _load(targets)
    specs = [entry.spec for entry in workloads.adapt(work.entries, **problem)]
    _tell(work.problems)
    where = find_device(device, autoconv.settings.current().threads)
    doubts = regressing.doubtful(where, specs) if specs or not targets else []
    entries = [Entry(doubt.spec) for doubt in doubts]
    done = campaign.regress(entries, device=device, budget_s=budget, say=_say)
    told = report.regressions(done.results, done.failures, work.problems, left=done.left, interrupted=done.interrupted)
    _finish(told, as_json, done, work.problems)


@cli.command()
@_TARGETS
@_PROBLEM
@click.option("--seed", type=click.IntRange(0, SEEDS - 1), help="Repeat a check: the seed of its operands.")
@_steered
def verify(targets: tuple[str, ...], seed: int | None, device: str | None, as_json: bool, **problem: Any) -> None:
    """Check remembered winners against the float64 reference on fresh operands.

    A winner that gives a wrong answer, or one beyond max_rel_error, is marked and not used any more; the
    next best is checked in its place. Without TARGETS, everything remembered on the device is checked.
    Exits with 0 when every winner was right, with 1 when one was not.
    """
    work = _load(targets)
    specs = [entry.spec for entry in workloads.adapt(work.entries, **problem)]
    _tell(work.problems)
    where = find_device(device, autoconv.settings.current().threads).fingerprint
    known = showing.remembered_specs(where, specs) if specs or not targets else []
    done = campaign.verify([Entry(spec) for spec in known], device=device, seed=seed, say=_say)
    told = report.verifications(done.results, done.failures, work.problems, interrupted=done.interrupted)
    _finish(told, as_json, done, work.problems)
    _exit(0 if all(one.ok for _, one in done.results) and (known or not targets) else FAILED)


@cli.command()
@_TARGETS
@_PROBLEM
@click.option("--all-devices", is_flag=True, help="Also what was measured on other devices.")
@_steered
def show(targets: tuple[str, ...], all_devices: bool, device: str | None, as_json: bool, **problem: Any) -> None:
    """Show what is remembered: winners, and what was missed. With TARGETS, every candidate of those."""
    work = _load(targets)
    specs = [entry.spec for entry in workloads.adapt(work.entries, **problem)]
    _tell(work.problems)
    where = None if all_devices else find_device(device, autoconv.settings.current().threads).fingerprint
    memories, misses = showing.recollect(where, specs) if specs or not targets else ([], [])
    report.remembered(memories, misses, candidates=bool(targets)).print(sys.stdout, as_json=as_json)
    _exit(FAILED if work.problems or (targets and not memories) else 0)


@cli.command()
@click.argument("spec", nargs=-1, required=True)
@_steered
def explain(spec: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Say which implementation would run SPEC, why, what lost and by how much, and what refused."""
    told = autoconv.explain(" ".join(spec), device).to_dict()
    report.explanation(told).print(sys.stdout, as_json=as_json)
    _exit(0 if told["chosen"] else FAILED)


@cli.command()
@_steered
def impls(device: str | None, as_json: bool) -> None:
    """List every implementation, what it does, and whether it can run here."""
    report.implementations(autoconv.implementations()).print(sys.stdout, as_json=as_json)


@cli.command()
@_TARGETS
@_PROBLEM
@_BUDGET
@_steered
def bench(targets: tuple[str, ...], budget: float | None, device: str | None, as_json: bool, **problem: Any) -> None:
    """Time every candidate anew, as a share of the peak that this machine reaches in a matrix product.

    The share counts the multiply-adds of the direct method: FFT and Winograd do fewer and may exceed
    100 %. The measurements are remembered like those of `autoconv tune`.
    """
    if not targets:
        raise click.UsageError("name specs, networks or workload files")
    work = _load(targets)
    entries = workloads.adapt(work.entries, **problem)
    _tell(work.problems)
    where = find_device(device, autoconv.settings.current().threads)
    peaks = benching.measured_peaks([entry.spec for entry in entries], where.threads)
    done = campaign.tune(entries, device=device, budget_s=budget, retune=True, say=_say)
    tables = [(entry, benching.bench_rows(result, peaks)) for entry, result in done.results]
    told = report.bench(tables, done.failures, work.problems, peaks, where.fingerprint, interrupted=done.interrupted)
    _finish(told, as_json, done, work.problems)


@cli.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@_steered
def export_command(file: str, device: str | None, as_json: bool) -> None:
    """Write every remembered measurement to FILE as JSON lines, for another machine; - is standard output.

    Rows carry the fingerprint of the device they were measured on. The file appears whole or not at all.
    """
    try:
        if file == "-":
            autoconv.export_measurements(sys.stdout)
        else:
            report.exported(autoconv.export_measurements(file), file).print(sys.stdout, as_json=as_json)
    except OSError as error:
        raise InvalidOption(f"cannot write the export: {error}") from None


@cli.command("import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--skip-unknown", is_flag=True, help="Leave out rows of implementations that are not known here.")
@_steered
def import_command(file: str, skip_unknown: bool, device: str | None, as_json: bool) -> None:
    """Add the measurements that `autoconv export` wrote to FILE; - is standard input.

    Every field of every line is checked first: one bad line, and nothing is imported. What is known
    already is not added again.
    """
    try:
        result = autoconv.import_measurements(sys.stdin.buffer if file == "-" else file, skip_unknown=skip_unknown)
    except OSError as error:
        raise InvalidOption(f"cannot read the export: {error}") from None
    report.imported(result).print(sys.stdout, as_json=as_json)


@cli.command("doctor")
@_steered
def doctor_command(device: str | None, as_json: bool) -> None:
    """Report what autoconv finds here: libraries, BLAS, compiler, cache, device, broken entry points.

    Exits with 1 when something is wrong; a missing optional library is not wrong.
    """
    facts = doctor.examine(device)
    report.doctor(facts).print(sys.stdout, as_json=as_json)
    _exit(FAILED if facts["faults"] else 0)


# What commands share -----------------------------------------------------------------------------


def _load(targets: Sequence[str]) -> Workload:
    try:
        return workloads.load(targets)
    except OSError as error:
        raise InvalidOption(f"cannot read the workload: {error}") from None


def _missed(device: str | None) -> Workload:
    """Open misses as a workload; a text that this version cannot read is a problem like any other."""
    found = Workload()
    fingerprint = find_device(device, autoconv.settings.current().threads).fingerprint
    for miss in current_store().misses(fingerprint):
        _read_miss(miss, found)
    return found


def _read_miss(miss: Miss, found: Workload) -> None:
    try:
        found.entries.append(Entry(ConvSpec.parse(miss.spec)))
    except InvalidSpec as error:
        found.problems.append(Problem("a recorded miss", str(error)))


def _tell(problems: Sequence[Problem]) -> None:
    for problem in problems:
        _say(f"error: {problem}")


def _finish(told: Report, as_json: bool, done: campaign.Campaign[Any], problems: Sequence[Problem]) -> None:
    """Print what there is, then leave with the status that fits."""
    told.print(sys.stdout, as_json=as_json)
    if done.interrupted:
        _say(f"interrupted: {len(done.results)} of {done.total} specs were done; what was measured is kept")
        _exit(INTERRUPTED)
    _exit(FAILED if done.failures or problems else 0)


def _exit(status: int) -> None:
    if status:
        click.get_current_context().exit(status)


def _say(message: str) -> None:
    click.echo(f"autoconv: {clean(message)}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {str(message).removeprefix('autoconv: ')}")
