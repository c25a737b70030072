"""Verification: is the answer right, and does the implementation keep its hands off everything else?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.implementation import Built
from autoconv.places import place_of
from autoconv.planning import BoundPlan, Plan
from autoconv.spec import ConvSpec
from autoconv.tuner.operands import SLACK_BYTES, GuardedResult, GuardedWorkspace, Operands
from autoconv.tuner.reference import positions_to_judge, reference_at
from autoconv.tuner.tolerance import tolerance
from autoconv.workspace import Workspace

__all__ = ["Judge", "Run", "Verdict", "as_used"]

Run: TypeAlias = Callable[[Any, Workspace], None]
"""A candidate on the judge's operands: `(out, workspace)`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed. `fault` is empty when all is well; `seconds` is how long the run took, cold."""

    error: float | None
    fault: str = ""
    seconds: float = 0.0


class Judge:
    """Operands of one spec, and what the results must be at the positions that are looked at; `seed` gives others."""

    def __init__(self, spec: ConvSpec, device: Device, seed: int = 0) -> None:
        self._spec = spec
        self._device = device
        self._place = place_of(device)
        self.operands = Operands(spec, seed, self._place)
        positions = positions_to_judge(spec, np.random.default_rng(zlib.crc32(str(spec).encode()) + seed))
        self._at = tuple(positions.T)
        self._expected = reference_at(spec, self.operands.a, self.operands.b, positions)
        # where few results happen to cancel, their size says little: a sum of L products of
        # numbers uniform on [-1, 1) has the standard deviation sqrt(L) / 3
        self._scale = max(float(np.max(np.abs(self._expected))), spec.reduction_length**0.5 / 3)

    def runner(self, built: Built) -> Run:
        """`built` on the judge's operands, as users call it."""
        return as_used(self._spec, self._device, built, *self.operands.placed)

    def verify(self, built: Built, run: Run, clock: Callable[[], float]) -> Verdict:
        """Run once among guards; the first fault found, the gravest first. What `run` raises passes through."""
        with self._place.current():
            return self._verify(built, run, clock)

    def _verify(self, built: Built, run: Run, clock: Callable[[], float]) -> Verdict:
        out, workspace = GuardedResult(self._spec, self._place), GuardedWorkspace(self._place)
        started = clock()
        run(out.array, workspace)
        self._place.synchronize()
        seconds = clock() - started
        error, fault = self.values(self._place.to_host(out.array), built.tags)
        if self.operands.restore_if_changed():
            fault = "changes its operands"
        elif out.trespassed:
            fault = "writes outside its result"
        elif workspace.trespassed:
            fault = "writes outside its workspace"
        elif not fault and workspace.peak_bytes > built.workspace_bytes + SLACK_BYTES:
            fault = f"takes {workspace.peak_bytes} bytes of workspace, declares {built.workspace_bytes}"
        return Verdict(error, fault, seconds)

    def values(self, out: Array, tags: Iterable[str]) -> tuple[float | None, str]:
        """The error of results on the CPU, None when they are not even finite, and a sentence when it is too much."""
        if not np.isfinite(out).all():
            return None, f"{int((~np.isfinite(out)).sum())} of {out.size} results are not finite or never written"
        off = np.abs(out[self._at].astype(np.float64) - self._expected)
        error = float(off.max()) / self._scale
        limit = tolerance(self._spec.dtype, self._spec.reduction_length, tags)
        if error <= limit:
            return error, ""
        worst = tuple(int(axis[off.argmax()]) for axis in self._at)
        return error, f"error {error:.1e} at {worst}, rounding explains {limit:.1e}"


def as_used(spec: ConvSpec, device: Device, built: Built, a: Any, b: Any) -> Run:
    """`built` as users call it: through a plan, or for a `fixed` spec with the filters bound once."""
    plan = Plan(spec, device, built.choice, built.runner, workspace_bytes=built.workspace_bytes)
    if spec.fixed:
        bound = BoundPlan(plan, built.runner.bind(b))
        return lambda out, workspace: bound.run(a, out, workspace)
    return lambda out, workspace: plan.run(a, b, out, workspace)
