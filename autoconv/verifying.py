"""Remembered winners are judged again: what `autoconv.verify` does with one spec after another.

A winner was right when it was raced. Since then a library, a driver, a compiled object or the machine itself may
have changed, and the race saw one set of operands. Here it runs on fresh ones and is compared with the float64
reference, as in a race. Who fails gets a new row that says so, and is not used any more; the next best is
judged in its place, until one passes.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoconv import arrays, dispatch, options
from autoconv.device import Device
from autoconv.errors import BackendMissing, InvalidOption, NoImplementation, RegistryError
from autoconv.evidence import Limits, Measurement, Store, decide, latest
from autoconv.implementation import Built
from autoconv.planning import Workspace
from autoconv.registry import Registry, default_registry
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.verify import Judge

__all__ = ["SEEDS", "Check", "Verification", "checked_seed", "verify_spec"]

SEEDS = 2**31


@dataclass(frozen=True, slots=True)
class Check:
    """How one remembered winner fared on fresh operands.

    `status` is "ok", "wrong" (its result, or what else it wrote), "inexact" (right, but with an error beyond
    `max_rel_error`), "failed" (it raised) or "gone" (it cannot be made ready any more). `error` is
    max|y - reference| / max|reference|, `remembered_error` that of the race.
    """

    row: Measurement
    status: str
    reason: str = ""
    error: float | None = None

    @property
    def remembered_error(self) -> float | None:
        """The error that is stored with its time."""
        return self.row.error


@dataclass(frozen=True, slots=True)
class Verification:
    """What checking one spec gave: its winner, and where that failed, whoever is next, until one passed."""

    spec: ConvSpec
    device: Device
    seed: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no remembered winner gave a wrong, inexact or no answer."""
        return all(check.status in ("ok", "gone") for check in self.checks)

    @property
    def status(self) -> str:
        """That of the first winner that could be tried; "gone" when none could."""
        return next((check.status for check in self.checks if check.status != "gone"), "gone")

    @property
    def used(self) -> Measurement | None:
        """The row that passed, and is used from now on; None when a call has to race again."""
        return next((check.row for check in self.checks if check.status == "ok"), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `autoconv verify --json` prints it."""
        return {
            "spec": str(self.spec),
            "device": self.device.fingerprint,
            "seed": self.seed,
            "ok": self.ok,
            "status": self.status,
            "used": str(self.used.choice) if self.used else None,
            "checks": [
                {
                    "choice": str(check.row.choice),
                    "status": check.status,
                    "reason": check.reason,
                    "error": check.error,
                    "remembered_error": check.remembered_error,
                }
                for check in self.checks
            ],
        }


def checked_seed(seed: int | None) -> int:
    """`seed`, or a new one for None. Raises `InvalidOption` for what is none."""
    if seed is None:
        return int.from_bytes(os.urandom(4), "little") % SEEDS
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InvalidOption(f"seed must be an integer from 0 to {SEEDS - 1}, got {seed!r}")
    return seed


def verify_spec(spec: ConvSpec, device: Device, seed: int) -> Verification:
    """Check the remembered winner of `spec`, and who takes its place; rows of those that fail are added."""
    limits = options.current_scope().settings.limits(spec.dtype, device)
    registry, store = default_registry(), dispatch.current_store()
    rows = latest(store.rows(str(spec), device.fingerprint))
    checks: list[Check] = []
    judge: Judge | None = None
    while (decision := decide(rows, limits)) is not None:
        winner = decision.winner
        try:
            built = registry.build(spec, device, winner.choice)
            if built.choice != winner.choice:
                raise NoImplementation(f"{winner.choice} has a new version")
        except (NoImplementation, RegistryError, BackendMissing) as gone:
            checks.append(Check(winner, "gone", str(gone).replace("\n", " ")))
        else:
            judge = judge or Judge(spec, device, seed)
            checks.append(_check(judge, spec, built, winner, limits))
            if checks[-1].status == "ok":
                break
            _mark(store, registry, checks[-1], seed)
        rows = [row for row in rows if row is not winner]
    return Verification(spec, device, seed, tuple(checks))


def _check(judge: Judge, spec: ConvSpec, built: Built, row: Measurement, limits: Limits) -> Check:
    """Run as users do, among guards, and again into ordinary memory."""
    layout = "nchw" if spec.op is Op.WGRAD else spec.layout
    outs = [arrays.empty(spec.result_shape, layout, spec.np_dtype) for _ in range(2)]
    try:
        run = judge.runner(built)
        verdict = judge.verify(built, run, time.perf_counter)
        for out in outs:
            out[...] = np.nan
            run(out, Workspace())
    except Exception as error:  # whatever it raises is what this check is about
        return Check(row, "failed", f"{type(error).__name__}: {error}")
    if verdict.fault:
        return Check(row, "wrong", verdict.fault, verdict.error)
    if row.deterministic and outs[0].tobytes() != outs[1].tobytes():
        return Check(row, "wrong", "two runs differ, and it is said to be deterministic", verdict.error)
    found, fault = judge.values(outs[1], built.tags)
    if fault:
        return Check(row, "wrong", f"right among guards, but then: {fault}", found)
    reason = limits.refuses(replace(row, error=found))
    return Check(row, "inexact", reason, found) if reason else Check(row, "ok", error=found)


def _mark(store: Store, registry: Registry, check: Check, seed: int) -> None:
    """Add the row that keeps the candidate out: without a time, or for an inexact one with the larger error."""
    row = check.row
    changes: dict[str, Any] = {"error": check.error}
    if check.status != "inexact":
        told = f"found by a later check, operands of seed {seed}: {check.reason}"
        changes |= {"status": check.status, "reason": told, "median_s": None, "spread": None, "samples": ()}
        changes |= {"race": uuid.uuid4().hex, "environment": registry.environment(row.choice)}
    stamp = max(time.time(), row.measured_at)  # the newest row counts, even if the clock was set back
    store.add([replace(row, measured_at=stamp, host=platform.node(), **changes)])
