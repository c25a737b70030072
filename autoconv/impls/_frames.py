"""Volumes as batches of frames: what the two ways of doing a 3-D convolution by a 2-D one have in common.

A filter of T x R x S taps is T filters of R x S. A 2-D convolution of frames knows nothing of time, so on one of
its two sides, the *tap side*, a frame has its channels once for every tap in time; the other, the *plain side*, is
the volume's own frames. In every operation the tap side is tied to its volume along a diagonal, frame + before =
result stride + tap dilation: as an operand it is gathered along it, as a result it is summed along it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import ClassVar

import numpy as np

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls._products import move_s
from autoconv.impls._tiles import aligned, sees_nothing, split_channels, tap_windows
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["Frames"]

COPY_S = 0.5e-9  # per element folded, gathered or summed
CALL_S = 10e-6  # views


class Frames(Implementation):
    """A rewrite of rank 3 to rank 2; `taps_on_output` says which side of the 2-D convolution is the tap side."""

    ranks = frozenset({3})
    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"rewrite"})
    taps_on_output: ClassVar[bool]

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """There must be frames, and filters that see some of them."""
        yield spec.batch > 0, "needs a batch, got 0 volumes"
        yield not sees_nothing(spec), f"needs a result that sees the volume, got padding {spec.padding}"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The problem of the frames."""
        return _Fold(spec, self.taps_on_output).child

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The tap side, the frames of the plain side, and the filters, each unless it lies so already."""
        return aligned(*(size * spec.itemsize for size in _Fold(spec, self.taps_on_output).copied()))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The copies and the sums."""
        return CALL_S + move_s(spec, device, sum(_Fold(spec, self.taps_on_output).copied()), COPY_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the child ready."""
        return _FramesRunner(_Fold(spec, self.taps_on_output), context.child().runner)


class _Fold:
    """Which frames, channels and filters of the 3-D problem are which of the 2-D one."""

    def __init__(self, spec: ConvSpec, taps_on_output: bool) -> None:
        self.spec = spec
        self.taps_on_output = taps_on_output
        self.taps = taps = spec.kernel[0]
        frames, results = spec.in_spatial[0], spec.output_spatial[0]
        self.child = replace(
            spec,
            batch=spec.batch * (frames if taps_on_output else results),
            in_channels=spec.in_channels * (1 if taps_on_output else taps),
            in_spatial=spec.in_spatial[1:],
            out_channels=spec.out_channels * (taps if taps_on_output else 1),
            kernel=spec.kernel[1:],
            padding=spec.padding[1:],
            stride=spec.stride[1:],
            dilation=spec.dilation[1:],
            rank1=False,
        )
        plain = taps == 1 and spec.stride[0] == 1 and spec.padding[0] == (0, 0)
        self.whole_input = self._lies_in_frames(spec.in_channels, frames) and (taps_on_output or plain)
        self.whole_output = self._lies_in_frames(spec.out_channels, results) and (not taps_on_output or plain)

    def _lies_in_frames(self, channels: int, frames: int) -> bool:
        """Whether a volume's memory is that of its frames one after another."""
        return self.spec.layout == "nhwc" or channels == 1 or frames == 1

    def copied(self) -> Iterator[int]:
        """Elements of each piece of scratch."""
        if not self.whole_input:
            yield prod(self.child.input_shape)
        if not self.whole_output:
            yield prod(self.child.output_shape)
        if self.taps > 1:
            yield prod(self.spec.filter_shape)

    def diagonal(self) -> Iterator[tuple[int, slice, slice]]:
        """Every tap that sees something: its place in the filters, frames of the tap side, frames of its volume."""
        spec = self.spec
        sizes = (spec.in_spatial[0], self.taps, spec.padding[0][0], spec.stride[0], spec.dilation[0])
        for tap, images, results in tap_windows(*sizes, 0, spec.output_spatial[0]):
            place = self.taps - 1 - tap if spec.flip else tap
            yield (place, images, results) if self.taps_on_output else (place, results, images)

    def ordered(self, filters: Array) -> Array:
        """The 3-D filters as a view in the order of the child's, (..., its channels, R, S)."""
        groups, axes = self.spec.groups, filters.shape[3:]
        if not self.taps_on_output:
            return filters.swapaxes(1, 2)  # (K, taps, C/groups, ...)
        split = filters.reshape(groups, -1, filters.shape[1], self.taps, *axes)
        return split.transpose(0, 3, 1, 2, 4, 5)  # (groups, taps, K/groups, C/groups, ...)


class _FramesRunner(Runner):
    def __init__(self, fold: _Fold, runner: Runner) -> None:
        self._fold = fold
        self._runner = runner
        spec, links = fold.spec, list(fold.diagonal())
        tap_frames, frames = spec.in_spatial[0], spec.output_spatial[0]
        if not fold.taps_on_output:
            tap_frames, frames = frames, tap_frames
        linked = {place: range(tap_frames)[part] for place, part, _ in links}
        self._holes = [(p, f) for p in range(fold.taps) for f in range(tap_frames) if f not in linked.get(p, ())]
        # a sum begins with the tap that reaches most frames; those it does not reach begin with zero
        self._links = sorted(links, key=lambda link: -len(range(frames)[link[2]]))
        self._bare = sorted(set(range(frames)) - set(range(frames)[self._links[0][2]]))

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        fold = self._fold
        if fold.spec.op is Op.WGRAD:
            x, dy = self._read(a, False, workspace), self._read(b, True, workspace)
            filters = self._filter_room(out, workspace)
            self._runner(x, dy, filters, workspace)
            if fold.taps > 1:
                turned = fold.ordered(out)
                np.copyto(turned, filters.reshape(turned.shape))
            return
        filters = self._filter_room(b, workspace)
        if fold.taps > 1:
            turned = fold.ordered(b)
            np.copyto(filters.reshape(turned.shape), turned)
        self._through(lambda data, result: self._runner(data, filters, result, workspace), a, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        packed = self._fold.ordered(filters).copy().reshape(self._fold.child.filter_shape)
        inner = self._runner.bind(packed)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._through(lambda data, result: inner(data, result, workspace), a, out, workspace)

        return bound

    def _filter_room(self, filters: Array, workspace: Workspace) -> Array:
        """Where the child's filters are: with one tap in time the volume's own."""
        shape = self._fold.child.filter_shape
        return workspace.take(shape, filters.dtype) if self._fold.taps > 1 else filters.reshape(shape)

    def _through(self, run: Callable[[Array, Array], None], a: Array, out: Array, workspace: Workspace) -> None:
        forward = self._fold.spec.op is Op.FPROP
        data = self._read(a, not forward, workspace)
        result = self._room(out, forward, workspace)
        run(data, result)
        self._write(result, out, forward)

    def _room(self, volume: Array, output: bool, workspace: Workspace) -> Array:
        """The frames of one side (the input's or the output's): the volume's own memory, or scratch."""
        fold = self._fold
        shape = fold.child.output_shape if output else fold.child.input_shape
        if fold.whole_output if output else fold.whole_input:
            return volume.swapaxes(1, 2).reshape(shape)
        return as_layout(workspace.take(prod(shape), volume.dtype), shape, fold.child.layout)

    def _read(self, volume: Array, output: bool, workspace: Workspace) -> Array:
        """An operand's frames for the child."""
        fold = self._fold
        frames = self._room(volume, output, workspace)
        if fold.whole_output if output else fold.whole_input:
            return frames
        if output is not fold.taps_on_output:
            np.copyto(_split_batch(frames, fold.spec.batch), volume.swapaxes(1, 2))
            return frames
        sets, parts = self._sets(frames), self._parts(volume)
        for place, frame in self._holes:
            sets[:, frame, :, place] = 0
        for place, tap_part, part in self._links:
            sets[:, tap_part, :, place] = parts[:, part]
        return frames

    def _write(self, frames: Array, volume: Array, output: bool) -> None:
        """Bring the child's result into the volume."""
        fold = self._fold
        if fold.whole_output if output else fold.whole_input:
            return
        if output is not fold.taps_on_output:
            np.copyto(volume.swapaxes(1, 2), _split_batch(frames, fold.spec.batch))
            return
        sets, parts = self._sets(frames), self._parts(volume)
        for frame in self._bare:
            parts[:, frame] = 0
        (place, tap_part, part), *others = self._links
        parts[:, part] = sets[:, tap_part, :, place]
        for place, tap_part, part in others:
            parts[:, part] += sets[:, tap_part, :, place]

    def _sets(self, frames: Array) -> Array:
        """The tap side as a view (N, frames, groups, taps, channels per group, H, W)."""
        fold = self._fold
        split = split_channels(frames, 1, fold.spec.groups)
        split = split_channels(split, 2, fold.taps)
        return _split_batch(split, fold.spec.batch)

    def _parts(self, volume: Array) -> Array:
        """Its volume as a view (N, frames, groups, channels per group, H, W)."""
        return split_channels(volume, 1, self._fold.spec.groups).transpose(0, 3, 1, 2, 4, 5)


def _split_batch(frames: Array, batch: int) -> Array:
    """View with the axis of frames split into (N, frames of one volume)."""
    return split_channels(frames, 0, batch)
