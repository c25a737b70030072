"""Arrays with images or channels last in memory as a problem with the channels first: transpose in, transpose out.

Source: the definition: a layout is an order of the same numbers.
Wins:   images-last arrays, where the copies cost less than a faster engine saves; on a GPU channels-last ones
        too, where an engine has no kernel of its own for them, as for many groups.
Loses:  to an engine that works in the caller's layout, wherever that is as fast.
Error:  the child's.

The child's layout is channels-first, and such a problem is refused, so the recursion ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import numpy as np

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls._products import move_s
from autoconv.impls._tiles import aligned
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Layout"]

COPY_S = 2e-9  # per element transposed
CALL_S = 3e-6


class Layout(Implementation):
    """Every operation on images-last arrays, and on a GPU on channels-last ones."""

    name = "rewrite.layout"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    layouts = frozenset({"nhwc", "chwn"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"rewrite"})

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """On the CPU images last: engines there take channels-last arrays as they are."""
        yield device.kind == "cuda" or spec.layout == "chwn", f"needs images last on the CPU, got {spec.layout}"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The same problem on channels-first arrays."""
        return replace(spec, layout="nchw")

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Copies of the data arrays: filters and their gradient are plain in either layout."""
        return aligned(*(prod(shape) * spec.itemsize for shape in (spec.input_shape, spec.output_shape)))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The copies."""
        return CALL_S + move_s(spec, device, prod(spec.input_shape) + prod(spec.output_shape), COPY_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the child ready."""
        return _LayoutRunner(spec, context.child().runner)


class _LayoutRunner(Runner):
    def __init__(self, spec: ConvSpec, child: Runner) -> None:
        self._spec = spec
        self._child = child

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        left = _first(a, workspace)
        if self._spec.op is Op.WGRAD:
            self._child(left, _first(b, workspace), out, workspace)
            return
        result = _room(out, workspace)
        self._child(left, b, result, workspace)
        np.copyto(out, result)

    def bind(self, filters: Array) -> BoundRunner:
        child = self._child.bind(filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            left, result = _first(a, workspace), _room(out, workspace)
            child(left, result, workspace)
            np.copyto(out, result)

        return bound


def _room(array: Array, workspace: Workspace) -> Array:
    return as_layout(workspace.take(array.size, array.dtype), array.shape, "nchw")


def _first(array: Array, workspace: Workspace) -> Array:
    """A channels-first copy."""
    copy = _room(array, workspace)
    np.copyto(copy, array)
    return copy
