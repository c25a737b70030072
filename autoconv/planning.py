"""Plans: a spec joined to the implementation that will run it, made once and called many times.

`Plan` never chooses: it is handed a runner that somebody chose. It checks operands, finds room for
the result and the scratch memory, and calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import InvalidSpec, InvalidType, NoImplementation
from autoconv.evidence import Choice, Decision
from autoconv.places import Form, check_one_home, place_of
from autoconv.separable import is_separable
from autoconv.spec import ConvSpec, Op
from autoconv.workspace import ALIGNMENT, Workspace, aligned_bytes, thread_workspace

__all__ = [
    "ALIGNMENT",
    "BoundPlan",
    "BoundRunner",
    "Direct",
    "Form",
    "Plan",
    "Runner",
    "Workspace",
    "aligned_bytes",
    "thread_workspace",
]

BoundRunner = Callable[[Array, Array, Workspace], None]
"""A runner whose filters are bound: `(data, out, workspace)`."""

Direct = Callable[..., bool]
"""Runs on operands and result as the caller brought them, without any look of the plan's.

`(a, b, out)`, or `(a, out)` when filters are bound. True when it ran; False, and nothing done, when an array
is not exactly of its `Form`, is misaligned, or `out` overlaps an operand or is read-only.
"""


@runtime_checkable
class OffersDirect(Protocol):
    """What a `Runner`, or what its `bind` gives, may have beside the call."""

    def direct(self, forms: Sequence[Form]) -> Direct | None:
        """The shortest way for arrays of `forms`, operands first and the result last; None if there is none here."""


class Runner(ABC):
    """A prepared computation. Whatever must outlive one call (tables, kernels, handles) is its state."""

    @abstractmethod
    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        """Compute the operation of `a` and `b` into `out`.

        fprop: (x, w) -> y; dgrad: (dy, w) -> dx; wgrad: (x, dy) -> dw. Arrays are aligned, dense in
        the spec's layout (filters plain), never empty; `out` overlaps neither operand and holds rubbish.
        """

    def bind(self, filters: Array) -> BoundRunner:
        """The computation with `filters` as second operand for good. Override to pack them once."""

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self(a, filters, out, workspace)

        return bound


class Rebind(Protocol):
    """Decides anew for a `fixed` spec; dispatch provides it."""

    def __call__(self, spec: ConvSpec, device: Device) -> Plan: ...


class Relieve(Protocol):
    """Decides anew with less workspace than a plan takes; dispatch provides it. None when nothing takes less."""

    def __call__(self, plan: Plan) -> Plan | None: ...


class Plan:
    """A spec, the implementation that runs it, and why. Call it with operands; `bind` filters to it.

    `source` says where the choice came from: "cache", "tuned", "heuristic" or "pinned".
    """

    __slots__ = (
        "_direct", "_dtype", "_forms", "_out_form", "_out_shape", "_place", "_rebind", "_relief", "_relieve",
        "_result_layout", "_runner", "_workspace", "choice", "decision", "device", "source", "spec",
        "workspace_bytes",
    )  # fmt: skip

    def __init__(
        self,
        spec: ConvSpec,
        device: Device,
        choice: Choice,
        runner: Runner,
        *,
        workspace_bytes: int = 0,
        source: str = "pinned",
        decision: Decision | None = None,
        rebind: Rebind | None = None,
        relieve: Relieve | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.choice = choice
        self.workspace_bytes = workspace_bytes
        self.source = source
        self.decision = decision
        self._runner = runner
        self._rebind = rebind
        self._relieve = relieve
        self._relief: Plan | None = None
        self._place = place_of(device)
        self._workspace = self._place.workspace
        self._dtype = spec.np_dtype
        self._out_shape = spec.result_shape
        self._result_layout = "nchw" if spec.op is Op.WGRAD else spec.layout
        layouts = (spec.layout, self._second_layout)
        self._forms = [
            self._place.form(shape, layout, self._dtype)
            for shape, layout in zip(spec.operand_shapes, layouts, strict=True)
        ]
        if spec.rank1:
            self._forms[1] = Form((-1,), "nchw", self._dtype)  # fits nothing: filters are looked at in every call
        self._out_form = self._place.form(self._out_shape, self._result_layout, self._dtype)
        self._direct = _direct(runner, [*self._forms, self._out_form])

    @property
    def implementation(self) -> str:
        """Id of the implementation that runs."""
        return self.choice.implementation

    def __call__(self, a: Any, b: Any, bias: Any = None, out: Any = None) -> Any:
        """Run on two operands: (x, w), (dy, w) or (x, dy), in the order of the operation.

        `bias` (one value per output channel) is added to an fprop's result. `out` receives the
        result: it must have the result's shape and dtype, may have any strides and may overlap the
        operands. Raises `InvalidSpec` or `InvalidType` when an array does not fit the spec.
        """
        if bias is None and self._direct is not None:
            result = self._new() if out is None else out
            if self._direct(a, b, result):
                return result
        if bias is None and self._forms[0].matches(a) and self._forms[1].matches(b):
            result = self._room(out, a, b)
            if result is not None:
                self.run(a, b, result, self._workspace())
                return result
        first, second = self.spec.operand_shapes
        names = {Op.FPROP: ("input", "filters"), Op.DGRAD: ("output_grad", "filters")}.get(
            self.spec.op, ("input", "output_grad")
        )
        check_one_home(names, a, b)
        with self._place.current():
            left = self._operand(a, first, names[0], self.spec.layout)
            right = self._operand(b, second, names[1], self._second_layout)
            return self._finish(
                lambda result, scratch: self.run(left, right, result, scratch), (a, b), (left, right), bias, out
            )

    def run(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        """Run on arrays that are already as `Runner.__call__` wants them; nothing is checked."""
        if not a.size or not b.size or not out.size:
            out[...] = 0  # an empty batch: no result, or a gradient that sums nothing
            return
        mark = workspace.mark()
        try:
            self._runner(a, b, out, workspace)
        except MemoryError as error:
            workspace.release(mark)
            self.relief(error).run(a, b, out, workspace)
        finally:
            workspace.release(mark)

    @property
    def may_be_relieved(self) -> bool:
        """Whether another plan may take over when memory runs out."""
        return self._relieve is not None and self.workspace_bytes > 0

    def relief(self, error: MemoryError) -> Plan:
        """The plan that runs where this one ran out of memory; raises `error` when there is none that needs less."""
        if self._relief is None:
            less = self._relieve(self) if self._relieve is not None and self.workspace_bytes else None
            if less is None:
                raise error
            import warnings  # only trouble needs it

            warnings.warn(
                f"out of memory: {self.choice} takes {self.workspace_bytes} bytes of workspace for {self.spec}; "
                f"{less.choice}, which takes {less.workspace_bytes}, runs instead",
                RuntimeWarning,
                stacklevel=4,
            )
            self._relief = less
        return self._relief

    def bind(self, filters: Any) -> BoundPlan:
        """Fix the filters: decides anew for the `fixed` spec and packs them once.

        Separable filters (see `autoconv.separable`) are recognised and become a spec of their own, `fixed rank1`,
        for which passes along one axis after the other compete. Raises `InvalidSpec` or `InvalidType` when the
        filters do not fit, or are not separable where the spec says `rank1`.
        """
        if self.spec.op is Op.WGRAD:
            raise InvalidSpec("wgrad takes no filters, so none can be bound")
        with self._place.current():
            weights = self._operand(filters, self.spec.filter_shape, "filters", "nchw")
            plan = self._for_filters(weights)
            private = weights.copy()  # the caller may change theirs
            return BoundPlan(plan, plan._runner.bind(private), private)

    def _for_filters(self, weights: Array) -> Plan:
        """The plan for `weights` bound: decided anew for the `fixed` spec, and as `rank1` where they are separable."""
        spec, rebind = self.spec, self._rebind
        if spec.rank1 or rebind is None:
            return self
        from dataclasses import replace

        if sum(taps > 1 for taps in spec.kernel) > 1 and is_separable(self._place.to_host(weights)):
            # a property of the values must not make a call fail that can be decided without it
            with suppress(NoImplementation):
                return rebind(replace(spec, fixed=True, rank1=True), self.device)
        return self if spec.fixed else rebind(replace(spec, fixed=True), self.device)

    def _room(self, out: Any, *operands: Array) -> Array | None:
        """Where a runner may write at once: a new array, or `out` if it fits and overlaps nothing; else None."""
        if out is None:
            return self._new()
        if not self._out_form.admits(out):
            return None
        overlap = self._place.overlap
        if any(overlap(out, operand) for operand in operands):
            return None
        room: Array = out
        return room

    def _new(self) -> Array:
        return self._place.empty(self._out_shape, self._result_layout, self._dtype)

    @property
    def _second_layout(self) -> str:
        return self.spec.layout if self.spec.op is Op.WGRAD else "nchw"

    def _operand(self, value: Any, shape: tuple[int, ...], name: str, layout: str) -> Array:
        array = self._place.array(value, name)
        if array.shape != shape:
            raise InvalidSpec(f"{name} must have shape {shape} for {self.spec}, got {array.shape}")
        if array.dtype != self._dtype and not np.can_cast(array.dtype, self._dtype, "safe"):
            raise InvalidType(f"{name} must be {self._dtype.name} for {self.spec}, got {array.dtype.name}")
        conforming = self._place.conform(array, layout, self._dtype)
        if self.spec.rank1 and name == "filters" and not is_separable(self._place.to_host(conforming)):
            raise InvalidSpec(f"filters must be separable for {self.spec}: products of one row per axis")
        return conforming

    def _finish(
        self,
        run: Callable[[Array, Workspace], None],
        callers: tuple[Any, ...],
        operands: tuple[Array, ...],
        bias: Any,
        out: Any,
    ) -> Any:
        """Run into `out` or a new array, add the bias, and give back what the caller understands."""
        place, scratch = self._place, self._workspace()
        column = None if bias is None else self._bias(bias)
        target = None if out is None else self._target(out)
        if target is not None and self._fits(target, operands):
            result = target
        else:
            result = self._new()
        run(result, scratch)
        if column is not None:
            result += column
        for caller, operand in zip(callers, operands, strict=True):
            place.join(caller, operand)
        if target is None:
            return place.like_caller(result, callers[0])
        if result is not target:
            place.hold(result)
            target[...] = result
        place.join(out, target)
        return out

    def _bias(self, bias: Any) -> Array:
        if self.spec.op is not Op.FPROP:
            raise InvalidSpec(f"bias is added to a forward result only, not to {self.spec.op}")
        values = self._place.array(bias, "bias")
        if values.shape != (self.spec.out_channels,):
            raise InvalidSpec(f"bias must have shape ({self.spec.out_channels},), got {values.shape}")
        if not np.can_cast(values.dtype, self._dtype, "same_kind"):
            raise InvalidType(f"bias must be {self._dtype.name} for {self.spec}, got {values.dtype.name}")
        values = values.astype(self._dtype, copy=False)
        self._place.hold(values)
        return values.reshape(-1, *[1] * self.spec.rank)

    def _target(self, out: Any) -> Array:
        """`out` as an array that a result may be copied to."""
        target = self._place.array(out, "out")
        if target.shape != self._out_shape:
            raise InvalidSpec(f"out must have shape {self._out_shape}, got {target.shape}")
        if target.dtype.newbyteorder("=") != self._dtype:  # of either byte order, as operands are
            raise InvalidType(f"out must be {self._dtype.name}, got {target.dtype.name}")
        if not self._place.is_writeable(target):
            raise InvalidSpec("out is read-only")
        return target

    def _fits(self, target: Array, operands: Sequence[Array]) -> bool:
        """Whether a runner may write into `target` at once."""
        place = self._place
        conforms = place.conforms(target, self._result_layout, self._dtype)
        return conforms and not any(place.overlap(target, operand) for operand in operands)

    def __repr__(self) -> str:
        return f"<Plan {self.spec}: {self.choice} ({self.source})>"

    def __str__(self) -> str:
        lines = [str(self.spec), f"  runs      {self.choice}", f"  from      {self.source}"]
        if self.decision is not None:
            lines += [
                f"  time      {(self.decision.winner.median_s or 0) * 1e3:.4g} ms",
                f"  because   {self.decision.why}",
            ]
        lines += [f"  workspace {self.workspace_bytes} bytes", f"  device    {self.device}"]
        return "\n".join(lines)


class BoundPlan:
    """A plan whose filters are bound: call it with the data alone."""

    __slots__ = ("_direct", "_filters", "_relief", "_run", "plan")

    def __init__(self, plan: Plan, run: BoundRunner, filters: Array | None = None) -> None:
        """`filters` are what `run` was bound to: with them, a plan that needs less memory can take over."""
        self.plan = plan
        self._run = run
        self._filters = filters if plan.may_be_relieved else None
        self._relief: BoundPlan | None = None
        self._direct = _direct(run, [plan._forms[0], plan._out_form])

    def __call__(self, a: Any, bias: Any = None, out: Any = None) -> Any:
        """Run on the data operand; `bias` and `out` as in `Plan`."""
        plan = self.plan
        if bias is None and self._direct is not None:
            result = plan._new() if out is None else out
            if self._direct(a, result):
                return result
        if bias is None and plan._forms[0].matches(a):
            result = plan._room(out, a)
            if result is not None:
                self.run(a, result, plan._workspace())
                return result
        with plan._place.current():
            data = plan._operand(a, plan.spec.operand_shapes[0], "data", plan.spec.layout)
            return plan._finish(lambda result, scratch: self.run(data, result, scratch), (a,), (data,), bias, out)

    def run(self, a: Array, out: Array, workspace: Workspace) -> None:
        """Run on arrays that are already as a runner wants them; nothing is checked."""
        if not a.size or not out.size:
            out[...] = 0
            return
        mark = workspace.mark()
        try:
            self._run(a, out, workspace)
        except MemoryError as error:
            workspace.release(mark)
            self._relieved(error).run(a, out, workspace)
        finally:
            workspace.release(mark)

    def _relieved(self, error: MemoryError) -> BoundPlan:
        """The same filters bound to a plan that needs less; raises `error` where there is none."""
        if self._relief is None:
            if self._filters is None:
                raise error
            plan = self.plan.relief(error)
            self._relief = BoundPlan(plan, plan._runner.bind(self._filters), self._filters)
        return self._relief

    def __repr__(self) -> str:
        return f"<BoundPlan {self.plan.spec}: {self.plan.choice} ({self.plan.source})>"


def _direct(run: object, forms: Sequence[Form]) -> Direct | None:
    """The shortest way into `run`, if it offers one; with nothing to compute there is none."""
    if not isinstance(run, OffersDirect) or not all(all(form.shape) for form in forms):
        return None
    return run.direct(forms)
