"""What tuning costs and what it misses: time against an exhaustive race, regret, agreement of two tunings.

    python benchmarks/bench_tuning.py benchmarks/shapes/tuning.txt --json benchmarks/results/tuning.json
    python benchmarks/bench_tuning.py benchmarks/shapes/tuning.txt --json benchmarks/results/tuning.json \\
        --page docs/benchmarks/tuning.md

For each shape, in this order, each with nothing remembered and nothing compiled:

exhaustive  every candidate that does not refuse, however hopeless its estimate, is compiled, run once, and gives
            `ROUNDS` samples of `SAMPLE_S`, interleaved; only who takes `HOPELESS` times as long as the fastest
            gives no more than `FEW_ROUNDS`. Written apart from the tuner, so that it cannot share its faults; a rewrite
            gets the child that a tuning of it finds.
tunings     two tunings as `autoconv tune` runs them, with its default budget.
apart       the winners of all three and the exhaustive race's next best, each choice once, compiled anew, in a
            process of its own, and timed in interleaved rounds: what the figures are made of.

Regret is the tuned winner's time over the best one's, less 1, the median of the rounds; the best is the one with the
lowest median apart. Two tunings agree when they choose alike, or when `evidence.decide` calls their winners' times
apart a tie.

Shapes and phases that the file holds already are not repeated, and `--seconds` ends the run after the phase in
which so much time has passed (exit status 3), so that a machine that has other work can be measured in pieces.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from _blocks import fill
from compare import read_shapes

from autoconv import arrays, options
from autoconv.api import PATIENCE
from autoconv.cache import MemoryStore
from autoconv.device import cpu
from autoconv.evidence import Choice, Limits, Measurement, decide
from autoconv.implementation import Built
from autoconv.planning import Workspace
from autoconv.registry import Candidate, default_registry
from autoconv.spec import ConvSpec, Op
from autoconv.tuner import Tuner, TuningResult
from autoconv.tuner.containment import kind_of
from autoconv.tuner.race import Paces, behind_kin, hopeless, note_pace, patience_with
from autoconv.tuner.verify import Judge
from autoconv.tuner.workers import WORKERS

ROUNDS = 25  # as many as a race takes at most
SAMPLE_S = 0.02  # twenty times as long as a race's
HOPELESS = 8.0
FEW_ROUNDS = 3
DISTURBED = 1.5  # a choice that takes so many times as long apart as in the exhaustive race: something else ran
NEXT_BEST = 2  # of the exhaustive race, beside its winner
APART_REST_S = 0.02  # before each sample apart: the last one's pool sleeps, and the next process is awake for it alone
NAP_S = 2e-3
QUIET_SHARE = 0.1  # of one core, used by this process asleep: no pool spins any more
PHASES = ("exhaustive", "tunings", "apart")

Record = dict[str, Any]


def limits(spec: ConvSpec) -> Limits:
    """What a tuning under default settings allows."""
    return options.Settings().limits(spec.dtype)


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """An empty directory of compiled objects."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        os.environ["AUTOCONV_NATIVE"] = folder
        yield


def exhaustive(spec: ConvSpec) -> Record:
    """Every candidate's median, fastest first."""
    device, registry = cpu(), default_registry()
    candidates, _ = registry.candidates(spec, device, limits(spec))
    started = time.perf_counter()
    compiled = [one for one in candidates if one.implementation.compiled]
    with ThreadPoolExecutor(device.cores) as pool:
        list(pool.map(lambda one: one.implementation.prefetch(spec, device, one.config), compiled))
    compile_s = time.perf_counter() - started

    def tuned_child(lower: ConvSpec) -> Built:
        found = Tuner(registry, MemoryStore()).tune(lower, device, limits(lower), budget_s=budget_s()).built
        assert found is not None
        return found

    judge, rows, runs = Judge(spec, device), [], []
    for candidate in candidates:
        row: Record = {"choice": str(candidate.choice), "estimate_s": candidate.estimate_s}
        rows.append(row)
        try:
            built = registry.build(spec, device, candidate.choice, tuned_child)
            run = judge.runner(built)
            verdict = judge.verify(built, run, time.perf_counter)
        except Exception as error:  # what fails is a row too
            row["fault"] = f"{type(error).__name__}: {error}"
            continue
        row.update(choice=str(built.choice), json=built.choice.to_json(), error=verdict.error)
        barred = verdict.error is not None and verdict.error > (limits(spec).max_rel_error or 1.0)
        if verdict.fault or barred:
            row["fault"] = verdict.fault or "beyond max_rel_error"
            continue
        runs.append((row, runtimes(built.choice), run))
    sample([(row["choice"], pools, run) for row, pools, run in runs], spec, [row for row, _, _ in runs])
    rows.sort(key=lambda row: row.get("median_s", float("inf")))
    return {"seconds": time.perf_counter() - started, "compile_s": compile_s, "rows": rows}


def runtimes(choice: Choice) -> tuple[str, ...]:
    """The thread pools that a choice uses."""
    names = {default_registry().get(link.implementation).runtime for link in choice.chain()}
    return tuple(sorted(names - {"none"}))


def sample(
    runs: Sequence[tuple[str, tuple[str, ...], Callable[[Any, Workspace], None]]],
    spec: ConvSpec,
    rows: Sequence[Record],
) -> None:
    """Medians of interleaved samples into `rows`, those of one thread pool after another."""
    workspace, out = Workspace(), result_of(spec)
    for row, (_, _, run) in zip(rows, runs, strict=True):
        run(out, workspace)
        row["samples"] = []
    order = list(range(len(runs)))
    last: tuple[str, ...] = ()
    for index in range(ROUNDS):
        random.shuffle(order)
        pools = {pool: random.random() for pool in sorted({runs[i][1] for i in order})}
        fastest = min((median(row["samples"]) for row in rows if row["samples"]), default=0.0)
        for i in sorted(order, key=lambda i: pools[runs[i][1]]):
            samples = rows[i]["samples"]
            if index >= FEW_ROUNDS and median(samples) > HOPELESS * fastest:
                continue
            if runs[i][1] != last:
                rest()
                last = runs[i][1]
            samples.append(one_sample(partial(runs[i][2], out, workspace)))
    for row in rows:
        samples = row.pop("samples")
        row.update(median_s=median(samples), rounds=len(samples))


def rest() -> None:
    """Sleep until no thread pool of this process spins any more."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(NAP_S)
        if time.process_time() - before < QUIET_SHARE * NAP_S:
            return


def budget_s() -> float:
    """What `autoconv tune` gives one spec."""
    return PATIENCE * options.Settings().tune_budget_s


def tuning(spec: ConvSpec) -> Record:
    """One tuning that remembers nothing."""
    spent: dict[str, float] = {}
    mark = [time.perf_counter(), "enter"]

    def watch(stage: str, *_: Any) -> None:
        now = time.perf_counter()
        spent[str(mark[1])] = spent.get(str(mark[1]), 0.0) + now - float(mark[0])
        mark[:] = [now, stage]

    started = time.perf_counter()
    tuner = Tuner(default_registry(), MemoryStore())
    result: TuningResult = tuner.tune(spec, cpu(), limits(spec), budget_s=budget_s(), watch=watch)
    seconds = time.perf_counter() - started
    assert result.built is not None
    status = [row.status for row in result.rows]
    return {
        "seconds": seconds,
        "stages": spent,
        "choice": str(result.built.choice),
        "json": result.built.choice.to_json(),
        "partial": result.partial,
        "timed": sum(bool(row.samples) for row in result.rows),
        "skipped": status.count("skipped"),
        "suspect": status.count("suspect"),
    }


def apart(spec: ConvSpec, record: Record) -> Record:
    """The winners and the next best, each choice once and in a process of its own, timed in turn."""
    ranked = [row for row in record["exhaustive"]["rows"] if "median_s" in row]
    texts = [row["json"] for row in ranked[: 1 + NEXT_BEST]] + [one["json"] for one in record["tunings"]]
    rows: dict[str, Record] = {}
    servants: dict[str, subprocess.Popen[str]] = {}
    try:
        for text in dict.fromkeys(texts):
            servants[text] = subprocess.Popen(
                [sys.executable, __file__, "--serve", str(spec), text],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            rows[text] = {"json": text, "choice": str(Choice.from_json(text)), "samples": []}
            ask(servants[text])  # it is ready
        for _ in range(ROUNDS):
            for text in random.sample(list(servants), len(servants)):
                rows[text]["samples"].append(ask(servants[text]))
    finally:
        for servant in servants.values():
            servant.communicate()
    for row in rows.values():
        row["median_s"] = median(row["samples"])
    return rows


def ask(servant: subprocess.Popen[str]) -> float:
    """A sample of another process, which sleeps otherwise."""
    assert servant.stdin is not None
    assert servant.stdout is not None
    time.sleep(APART_REST_S)
    servant.stdin.write("go\n")
    servant.stdin.flush()
    return float(servant.stdout.readline())


def serve(spec: ConvSpec, choice: Choice) -> None:
    """The other side of `ask`: seconds per call, for every line that comes."""
    run = Judge(spec, cpu()).runner(default_registry().build(spec, cpu(), choice))
    out, workspace = result_of(spec), Workspace()
    for _ in sys.stdin:
        print(one_sample(lambda: run(out, workspace)), flush=True)


def result_of(spec: ConvSpec) -> Any:
    """Room for a result."""
    return arrays.empty(spec.result_shape, "nchw" if spec.op is Op.WGRAD else spec.layout, spec.np_dtype)


def one_sample(call: Callable[[], None]) -> float:
    """Seconds per call over `SAMPLE_S`, after one that does not count."""
    call()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SAMPLE_S or not calls:
        call()
        calls += 1
    return elapsed / calls


# Figures -----------------------------------------------------------------------------------------


def figures(record: Record) -> Record:
    """Regret, share of the time and agreement on one shape."""
    times = record["apart"]
    best = min(times.values(), key=lambda row: row["median_s"])
    one, two = (times[tuned["json"]] for tuned in record["tunings"])
    rows = [as_row(row, error=0.0) for row in (one, two)]
    decision = decide(rows, Limits())
    assert decision is not None
    return {
        "regret": [
            median(a / b for a, b in zip(row["samples"], best["samples"], strict=True)) - 1 for row in (one, two)
        ],
        "share": [tuned["seconds"] / record["exhaustive"]["seconds"] for tuned in record["tunings"]],
        "agree": one is two or decision.tie,
        "best": best["choice"],
    }


def disturbed(record: Record) -> bool:
    """Whether the times apart are not this machine's own; such a shape is to be measured again."""
    before = {row["json"]: row["median_s"] for row in record["exhaustive"]["rows"] if "median_s" in row}
    return any(row["median_s"] > DISTURBED * before.get(text, row["median_s"]) for text, row in record["apart"].items())


def as_row(row: Record, **more: Any) -> Measurement:
    """A timing apart as evidence."""
    return Measurement(
        "", "", Choice.from_json(row["json"]), "ok", median_s=row["median_s"], samples=tuple(row["samples"]),
        race="apart", **more,
    )  # fmt: skip


def totals(records: Sequence[Record]) -> Record:
    """The figures of all shapes together."""
    each = [figures(record) for record in records]
    tuned_s = [one["seconds"] for record in records for one in record["tunings"]]
    full_s = [record["exhaustive"]["seconds"] for record in records]
    return {
        "shapes": len(records),
        "mean_regret": mean(regret for one in each for regret in one["regret"]),
        "median_regret": median(regret for one in each for regret in one["regret"]),
        "largest_regret": max(regret for one in each for regret in one["regret"]),
        "mean_time_share": mean(share for one in each for share in one["share"]),
        "total_time_share": sum(tuned_s) / 2 / sum(full_s),
        "mean_tuning_s": mean(tuned_s),
        "mean_exhaustive_s": mean(full_s),
        "agreement": mean(one["agree"] for one in each),
    }


def table(records: Sequence[Record]) -> str:
    """Every shape's figures, and all together, in Markdown."""
    lines = [
        "| shape | exhaustive, s | tunings, s | regret | agree | best apart, ms | by |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    quiet = [record for record in records if not disturbed(record)]
    for record in quiet:
        found = figures(record)
        seconds = " ".join(f"{one['seconds']:.1f}" for one in record["tunings"])
        regret = " ".join(f"{100 * value:.1f} %" for value in found["regret"])
        best = min(record["apart"].values(), key=lambda row: row["median_s"])
        agree = "yes" if found["agree"] else "no"
        lines.append(
            f"| `{record['spec']}` | {record['exhaustive']['seconds']:.0f} | {seconds} | {regret} | {agree} "
            f"| {1e3 * best['median_s']:.3f} | {Choice.from_json(best['json']).implementation} |"
        )
    said = totals(quiet)
    lines += [
        "",
        f"{said['shapes']} shapes: mean regret {100 * said['mean_regret']:.1f} %, median "
        f"{100 * said['median_regret']:.1f} %, largest {100 * said['largest_regret']:.0f} %; tuning took "
        f"{100 * said['total_time_share']:.0f} % of the exhaustive time ({said['mean_tuning_s']:.1f} s against "
        f"{said['mean_exhaustive_s']:.1f} s a shape); two tunings agree or tie in {100 * said['agreement']:.0f} %. "
        f"Left out as disturbed, a choice taking {DISTURBED} times as long apart: {len(records) - len(quiet)}.",
        "",
        f"({cpu().fingerprint})",
    ]
    return "\n".join(lines)


def spared(record: Record) -> tuple[int, int, int, float]:
    """What a tuning skips, replayed with the exhaustive race's times.

    Generated kernels, those left out by their estimate, those left out by their kin, and what the best of the rest
    takes over the best of all, less 1.
    """
    rows = [row for row in record["exhaustive"]["rows"] if "median_s" in row]
    paces: Paces = {}
    best_s: float | None = None
    compiled = far = behind = 0
    for row in sorted(rows, key=lambda row: float(row["estimate_s"])):
        choice = Choice.from_json(row["json"])
        candidate = Candidate(default_registry().get(choice.implementation), choice.config, row["estimate_s"])
        generated = candidate.implementation.compiled
        compiled += generated
        if hopeless(candidate.estimate_s, best_s, budget_s(), patience_with(candidate, paces)):
            far += generated
        elif behind_kin(candidate, best_s, paces):
            behind += generated
        else:
            best_s = min(best_s or row["median_s"], row["median_s"])
            note_pace(paces, candidate, row["median_s"])
    assert best_s is not None
    return compiled, far, behind, best_s / min(row["median_s"] for row in rows) - 1


def replay(records: Sequence[Record]) -> str:
    """What skipping spares and costs, on all shapes together."""
    found = [spared(record) for record in records]
    compiled, far, behind = (sum(one[index] for one in found) for index in range(3))
    losses = [one[3] for one in found]
    return "\n".join(
        (
            "```text",
            f"shapes                                                             {len(found)}",
            f"generated kernels                                                  {compiled}",
            f"not compiled for their own estimate, for the times of their kin    {far}, {behind}",
            f"best of the rest behind the best of all: mean, most                {mean(losses):.2%}, {max(losses):.1%}",
            f"({cpu().fingerprint})",
            "```",
        )
    )


# Running -----------------------------------------------------------------------------------------


def work_off(shapes: Sequence[tuple[str, ConvSpec]], file: Path, phases: Sequence[str], seconds: float) -> bool:
    """Do what the file lacks, until `seconds` have passed; whether nothing is left."""
    deadline = time.perf_counter() + seconds
    for name, spec in shapes:
        for phase in phases:
            records = load(file)
            record = records.get(name, {"spec": str(spec)})
            if record["spec"] != str(spec):
                raise SystemExit(f"{file} holds another {name}: {record['spec']}")
            if phase in record or any(before not in record for before in PHASES[: PHASES.index(phase)]):
                continue
            if time.perf_counter() >= deadline:
                return False
            import_libraries(spec)
            if phase == "exhaustive":
                with nothing_compiled():
                    found: Any = exhaustive(spec)
            elif phase == "tunings":
                found = []
                for _ in range(2):
                    with nothing_compiled():
                        found.append(tuning(spec))
            else:
                with nothing_compiled():
                    found = apart(spec, record)
            records = load(file)
            records.setdefault(name, record)[phase] = found
            file.write_text(json.dumps(records, indent=1) + "\n")
            print(f"{name}: {phase}", flush=True)
    return True


def import_libraries(spec: ConvSpec) -> None:
    """What candidates import once, here and in the workers, is no part of one spec's tuning."""
    for candidate in default_registry().candidates(spec, cpu(), limits(spec))[0]:
        for library in candidate.implementation.libraries(candidate.config):
            importlib.import_module(library)
        with WORKERS.lend(kind_of(default_registry(), candidate.choice)) as worker:
            worker.is_ready()


def load(file: Path) -> dict[str, Record]:
    """The records of the file."""
    found: dict[str, Record] = json.loads(file.read_text()) if file.exists() else {}
    return found


def main() -> None:
    """Measure what is missing, or print the figures."""
    if sys.argv[1] == "--serve":
        serve(ConvSpec.parse(sys.argv[2]), Choice.from_json(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--page", type=Path, help="write the figures into this page's blocks `tuning` and `skipped`")
    arguments = parser.parse_args()
    shapes = read_shapes(arguments.shapes)
    if arguments.page:
        known = load(arguments.json)
        here = [known[name] for name, _ in shapes if name in known]
        fill(arguments.page, "tuning", table([record for record in here if "apart" in record]))
        fill(arguments.page, "skipped", replay([record for record in here if "exhaustive" in record]))
        return
    if not work_off(shapes, arguments.json, arguments.phases.split(","), arguments.seconds):
        sys.exit(3)


if __name__ == "__main__":
    main()
