"""`native.depthwise`: one filter per channel, or m filters per channel, generated C.

Source: the sliding window of window.c, which `native.direct` shares.
Wins:   groups == channels, 3x3 to about 9x9, and volumes, both memory formats: lanes lie along the image's width,
        or across neighbouring channels (channels-last in whole lines, or where they lie (window_last.c); channels-first
        by a transposing copy, which pays on narrow images).  Loses: large filters, to `native.fft`.
Error:  as `native.direct`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.impls.native._c import ITEM_BYTES
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import Forward, as_forward
from autoconv.impls.native._volume import Volume, plane_of
from autoconv.impls.native._window import Window, blockings
from autoconv.impls.native._window_last import WindowInPlace, in_place_blockings, in_place_refusal
from autoconv.impls.native.direct import window_of
from autoconv.spec import ConvSpec, Op

__all__ = ["Depthwise"]

UNROLLED_TAPS = 5  # as for `native.direct`
IN_PLACE_CONFIGS = 4
STAGED_CONFIGS = 2  # raced beside those


class Depthwise(NativeFamily):
    """The sliding window, every input channel a group of its own."""

    name = "native.depthwise"
    version = 3
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({1, 2, 3})

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if spec.groups != spec.in_channels:
            return f"needs one group per input channel, got {spec.groups} groups of {spec.in_channels} channels"
        if spec.op == "dgrad" and set(spec.stride) != {1}:
            return f"dgrad needs stride 1, got {spec.stride}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        if not tunables:
            return None
        if tunables["across"] and spec.out_channels != spec.in_channels:
            return f"lanes across channels need one filter per channel, got {spec.out_channels // spec.in_channels}"
        filters = as_forward(spec).out_channels
        if filters % tunables["filters"]:
            return f"filters must divide the filters per channel: {filters} % {tunables['filters']}"
        if tunables.get("in_place"):
            return in_place_refusal(as_forward(spec), spec.layout == "nhwc", tunables["columns"])
        return None

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A vector in place must not reach beyond the channels."""
        yield from super().restrictions(spec, device, config)
        if config is not None and dict(config).get("in_place"):
            lanes = device.vector_bytes // ITEM_BYTES[spec.dtype]
            yield spec.in_channels >= lanes, f"in place it needs {lanes} channels, got {spec.in_channels}"

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        forward = as_forward(spec)
        found: list[tuple[float, Tunables]] = []
        for across in (False, True) if spec.out_channels == spec.in_channels else (False,):
            ranked = blockings(plane_of(forward), ITEM_BYTES[spec.dtype], vector_bytes, threads, across)
            moving = _moving(spec, forward, across)
            shape = {"across": across, "unrolled": forward.kernel[2] <= UNROLLED_TAPS}
            found += [(speed / moving, shape | block) for speed, block in ranked[:3]]
        found.sort(key=lambda pair: -pair[0])
        staged = [tunables for speed, tunables in found if speed > 0.4 * found[0][0]][:6]
        lanes = vector_bytes // ITEM_BYTES[spec.dtype]
        if spec.in_channels < lanes or in_place_refusal(forward, spec.layout == "nhwc"):
            return staged
        ranked = in_place_blockings(forward, vector_bytes)
        shape = {"across": True, "unrolled": True, "in_place": True}
        return [shape | block for _, block in ranked[:IN_PLACE_CONFIGS]] + staged[:STAGED_CONFIGS]

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        return _window(spec, tunables, threads, vector_bytes).source()

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _window(spec, tunables, threads, vector_bytes).workspace_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _window(spec, tunables, threads, vector_bytes).packed_bytes

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        seconds = _window(spec, tunables, threads, vector_bytes).seconds(90.0)
        return seconds * _moving(spec, as_forward(spec), tunables["across"])


def _moving(spec: ConvSpec, forward: Forward, across: bool) -> float:
    """How much longer copies make it: channels-first data is transposed for lanes across channels, and conversely."""
    cycles_per_element = 2.0 if across != (spec.layout == "nhwc") else 0.25
    return 1 + cycles_per_element / (forward.taps * forward.out_channels / 32)


def _window(spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> Window | Volume | WindowInPlace:
    window = window_of(spec, tunables, tunables["unrolled"], tunables["across"], threads, vector_bytes)
    return WindowInPlace(window) if tunables.get("in_place") and isinstance(window, Window) else window
