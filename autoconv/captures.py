"""Calls while a GPU's stream is being captured into a graph, where not everything may run.

CuPy refuses cuBLAS there. A plan whose implementation uses it gets a second one, made of what may be captured; which
of them runs is decided in every call, so that whoever holds the plan need not know.
"""

from __future__ import annotations

from collections.abc import Callable

from autoconv.arrays import Array
from autoconv.places import Place
from autoconv.planning import BoundRunner, Plan, Runner
from autoconv.workspace import Workspace

__all__ = ["OutsideCaptures"]


class OutsideCaptures(Runner):
    """Runs `runner`, and while the current stream is captured the plan that `decide` gives, asked for once."""

    def __init__(self, runner: Runner, place: Place, decide: Callable[[], Plan]) -> None:
        self._runner = runner
        self._capturing = place.capturing
        self._decide = decide
        self._other: Plan | None = None

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._capturing():
            self._in_a_capture().run(a, b, out, workspace)
        else:
            self._runner(a, b, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        """The bound runner; in a capture the other plan gets the filters unpacked."""
        bound = self._runner.bind(filters)

        def run(a: Array, out: Array, workspace: Workspace) -> None:
            if self._capturing():
                self._in_a_capture().run(a, filters, out, workspace)
            else:
                bound(a, out, workspace)

        return run

    def _in_a_capture(self) -> Plan:
        if self._other is None:
            self._other = self._decide()
        return self._other
