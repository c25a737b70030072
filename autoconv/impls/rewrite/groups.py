"""Grouped convolution as a loop: one child plan, called once per group.

Source: the definition: groups do not see one another.
Wins:   few groups of many channels, where an engine that knows no groups is fastest.
Loses:  many small groups (depthwise): one call and two or three copies each.
Error:  the child's.

The child has one group, and a problem of one group is refused, so the recursion ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls._products import move_s
from autoconv.impls._tiles import aligned
from autoconv.places import DEVICE_ALIGNMENT
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

COPY_S = 0.4e-9  # per element of a group's slices, copied in or out
CALL_S = 8e-6  # one group's slices and call


class Groups(Implementation):
    """Every operation with two groups or more."""

    name = "rewrite.groups"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"rewrite"})

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Several groups."""
        yield spec.groups > 1, f"needs two groups or more, got {spec.groups}"
        if device.kind == "cuda":
            steps = [step * spec.itemsize for step in _steps(spec)]
            aligned_steps = all(step % DEVICE_ALIGNMENT == 0 for step in steps)
            yield aligned_steps, f"needs groups that begin at multiples of {DEVICE_ALIGNMENT} bytes, got {steps}"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The problem of one group."""
        channels, kernels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return replace(spec, in_channels=channels, out_channels=kernels, groups=1)

    def child_calls(self, spec: ConvSpec) -> int:
        """Once per group."""
        return spec.groups

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """One group's slices of the data arrays, where they are not dense as they lie."""
        return aligned(*(prod(shape) * spec.itemsize for shape in _copied(spec)))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The copies and the calls."""
        return spec.groups * (CALL_S + move_s(spec, device, sum(map(prod, _copied(spec))), COPY_S))

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the one child ready."""
        return _GroupsRunner(spec, self.child_spec(spec), context.child().runner)


def _copied(spec: ConvSpec) -> list[tuple[int, ...]]:
    """Shapes of one group's data arrays; none where a slice of channels is dense: one channels-first image."""
    if spec.batch == 1 and spec.layout == "nchw":
        return []
    sides = ((spec.in_channels, spec.in_spatial), (spec.out_channels, spec.output_spatial))
    return [(spec.batch, channels // spec.groups, *spatial) for channels, spatial in sides]


def _steps(spec: ConvSpec) -> list[int]:
    """Elements from one group to the next in each array that is used as it lies."""
    steps = [prod(spec.filter_shape) // spec.groups]
    if not _copied(spec):
        sides = (spec.input_shape, spec.output_shape)
        steps += [prod(shape) // spec.groups for shape in sides]
    return steps


class _Slices:
    """Cuts arrays of data by group, through scratch where a slice would not be dense."""

    def __init__(self, spec: ConvSpec, layout: str, workspace: Workspace, dtype: object) -> None:
        self._groups = spec.groups
        shapes = _copied(spec)
        pieces = [as_layout(workspace.take(prod(shape), dtype), shape, layout) for shape in shapes]
        self.image: Array | None = pieces[0] if pieces else None
        self.result: Array | None = pieces[1] if pieces else None

    def part(self, data: Array, group: int) -> Array:
        """The group's channels, a view."""
        size = data.shape[1] // self._groups
        return data[:, group * size : (group + 1) * size]

    def read(self, data: Array, group: int, scratch: Array | None) -> Array:
        """The group's channels, dense."""
        part = self.part(data, group)
        if scratch is None:
            return part
        scratch[...] = part
        return scratch


class _GroupsRunner(Runner):
    def __init__(self, spec: ConvSpec, child: ConvSpec, runner: Runner) -> None:
        self._spec = spec
        self._child = child
        self._runner = runner

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, workspace)
            return
        runners = [self._with_filters(b, group) for group in range(self._spec.groups)]
        self._each(runners, a, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        runners = [self._runner.bind(self._filters(filters, group)) for group in range(self._spec.groups)]

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._each(runners, a, out, workspace)

        return bound

    def _with_filters(self, filters: Array, group: int) -> BoundRunner:
        part = self._filters(filters, group)
        return lambda a, out, workspace: self._runner(a, part, out, workspace)

    def _filters(self, filters: Array, group: int) -> Array:
        size = self._child.out_channels
        return filters[group * size : (group + 1) * size]

    def _each(self, runners: list[BoundRunner], a: Array, out: Array, workspace: Workspace) -> None:
        slices = _Slices(self._spec, self._child.layout, workspace, a.dtype)
        source, target = slices.image, slices.result
        if self._spec.op is Op.DGRAD:
            source, target = target, source
        for group, run in enumerate(runners):
            mark = workspace.mark()
            part = slices.part(out, group)
            result = part if target is None else target
            run(slices.read(a, group, source), result, workspace)
            if target is not None:
                part[...] = result
            workspace.release(mark)

    def _wgrad(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        slices = _Slices(self._spec, self._child.layout, workspace, x.dtype)
        for group in range(self._spec.groups):
            mark = workspace.mark()
            image, gradient = slices.read(x, group, slices.image), slices.read(dy, group, slices.result)
            self._runner(image, gradient, self._filters(dw, group), workspace)
            workspace.release(mark)
