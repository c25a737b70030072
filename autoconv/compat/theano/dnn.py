"""`theano.sandbox.cuda.dnn.dnn_conv`: cuDNN's convolution, its algorithm named or chosen.

On NumPy arrays each algorithm is its counterpart on the CPU. The choosing modes are policies: `guess_*` takes the
best remembered or estimated engine (`on_miss="heuristic"`), `time_*` races them (`on_miss="tune"`); `*_once` keeps the
choice made for the first shape for all that follow, as long as it can run them, `*_on_shape_change` chooses for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoconv import arrays, dispatch, options
from autoconv.arrays import Array
from autoconv.compat.theano._pins import operand, per_axis, pinned, say
from autoconv.device import Device
from autoconv.errors import AutoconvError, InvalidOption, InvalidSpec
from autoconv.evidence import Choice
from autoconv.places import home_of
from autoconv.planning import Plan
from autoconv.spec import ConvSpec

__all__ = ["ALGORITHMS", "CHOOSING", "DnnConv", "dnn_conv"]

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "none": ("native.gemm", "numpy.direct"),  # implicit GEMM: no extra memory
    "small": ("native.gemm", "numpy.im2col"),  # implicit GEMM with a little memory
    "large": ("numpy.im2col",),  # explicit GEMM
    "fft": ("numpy.fft",),
    "fft_tiling": ("numpy.fft_tiled",),
    "winograd": ("native.winograd", "numpy.winograd"),
}
CHOOSING = {
    "guess_once": "heuristic",
    "guess_on_shape_change": "heuristic",
    "time_once": "tune",
    "time_on_shape_change": "tune",
}
DEFAULT = "small"  # Theano's dnn.conv.algo_fwd
HINTS = (None, "forward", "forward!", "bprop weights", "bprop inputs")
PRECISIONS = ("float16", "float32", "float64")


class DnnConv:
    """A convolution with its options, and for `*_once` the choice it has made; call it with images and filters.

    Parameters are those of `dnn_conv` beyond the arrays. One object stands for one operation of a program: its
    choice is its own.
    """

    def __init__(
        self,
        border_mode: Any = "valid",
        subsample: Any = (1, 1),
        conv_mode: str = "conv",
        direction_hint: str | None = None,
        workmem: str | None = None,
        algo: str | None = None,
        precision: str | None = None,
    ) -> None:
        if conv_mode not in ("conv", "cross"):
            raise InvalidSpec(f"conv_mode must be conv or cross, got {conv_mode!r}")
        if direction_hint not in HINTS:
            raise InvalidSpec(f"direction_hint must be one of {', '.join(map(str, HINTS))}, got {direction_hint!r}")
        if algo is not None and workmem is not None:
            raise InvalidSpec(f"give algo or workmem, its older name, not both: got {algo!r} and {workmem!r}")
        self.algo = algo or workmem or DEFAULT
        if self.algo not in (*ALGORITHMS, *CHOOSING):
            raise InvalidSpec(f"algo must be one of {', '.join((*ALGORITHMS, *CHOOSING))}, got {self.algo!r}")
        if precision not in (None, "as_input", "as_input_f32", *PRECISIONS):
            raise InvalidSpec(f"precision must be as_input, as_input_f32 or {', '.join(PRECISIONS)}, got {precision!r}")
        self.border_mode = border_mode
        self.subsample = per_axis(subsample, "subsample", 2)
        self.conv_mode = conv_mode
        self.direction_hint = direction_hint
        self.precision = precision
        self.choice: Choice | None = None

    def __call__(self, img: Any, kerns: Any) -> Any:
        """Convolve `img` (batch, channels, rows, columns) with `kerns` (filters, channels, rows, columns)."""
        x = operand(img, "img", "batch, channels, rows, columns")
        w = operand(kerns, "kerns", "filters, channels, rows, columns")
        given = np.result_type(x.dtype, w.dtype)
        computed = self._computed_in(given)
        if computed != given:
            x, w = x.astype(computed), w.astype(computed)
        result = self._route(x, w)
        return result if computed == given else result.astype(given)

    def _computed_in(self, given: np.dtype[Any]) -> np.dtype[Any]:
        if self.precision in (None, "as_input"):
            return given
        if self.precision == "as_input_f32":
            return max(given, np.dtype(np.float32), key=lambda dtype: dtype.itemsize)
        computed = np.dtype(self.precision)
        if computed.itemsize < given.itemsize:
            raise InvalidOption(f"precision must be at least that of the arrays, {given.name}, got {self.precision}")
        return computed

    def _route(self, x: Array, w: Array) -> Any:
        """The hint decides which of cuDNN's three functions computes the result: here, of the operations."""
        unit = self.subsample == (1, 1)
        flips = self.conv_mode == "conv"
        if unit and self.border_mode == "valid" and self.direction_hint == "bprop weights":
            # images as channels and channels as images, a valid correlation is the gradient of the filters
            filters = w[:, :, ::-1, ::-1] if flips else w
            size = tuple(pixels - taps + 1 for pixels, taps in zip(x.shape[2:], w.shape[2:], strict=True))
            shape = (w.shape[0], x.shape[0], *size)
            spec = _spec("wgrad", x.transpose(1, 0, 2, 3).shape, shape, x, w, 0, (1, 1), False)
            result = self._run(spec, x.transpose(1, 0, 2, 3), filters.transpose(1, 0, 2, 3))
            return result.transpose(1, 0, 2, 3)
        if unit and self.border_mode == "full" and self.direction_hint != "forward!":
            # a full convolution is the gradient of the images of a valid one with the filters turned round
            size = tuple(pixels + taps - 1 for pixels, taps in zip(x.shape[2:], w.shape[2:], strict=True))
            swapped = w.transpose(1, 0, 2, 3)
            shape = (x.shape[0], w.shape[0], *size)
            spec = _spec("dgrad", shape, swapped.shape, x, w, 0, (1, 1), not flips)
            return self._run(spec, x, swapped)
        return self._run(_spec("fprop", x.shape, w.shape, x, w, self.border_mode, self.subsample, flips), x, w)

    def _run(self, spec: ConvSpec, a: Array, b: Array) -> Any:
        device = home_of(a, options.current_scope().settings.threads)
        if self.algo in ALGORITHMS:
            with pinned(f"dnn_conv(algo={self.algo!r})", *ALGORITHMS[self.algo]):
                return dispatch.plan_for(spec, device)(a, b)
        with options.settings(on_miss=CHOOSING[self.algo]):
            plan = self._once(spec, device) if self.algo.endswith("once") else dispatch.plan_for(spec, device)
        return plan(a, b)

    def _once(self, spec: ConvSpec, device: Device) -> Plan:
        """The plan by the choice made before, if it can run this shape; else by a new choice, which is kept."""
        if self.choice is not None:
            try:
                return dispatch.pin(spec, device, self.choice)
            except AutoconvError as error:
                if options.current_scope().settings.verbose:
                    say(f"dnn_conv(algo={self.algo!r}): {self.choice} cannot run {spec} ({error}): chosen anew")
        plan = dispatch.plan_for(spec, device)
        self.choice = plan.choice
        return plan

    def __repr__(self) -> str:
        shown = f"border_mode={self.border_mode!r}, subsample={self.subsample}, conv_mode={self.conv_mode!r}"
        return f"DnnConv({shown}, algo={self.algo!r})"


def _spec(
    op: str, input_shape: Any, filter_shape: Any, a: Array, b: Array, border_mode: Any, subsample: Any, flip: bool
) -> ConvSpec:
    make = {"fprop": ConvSpec.fprop, "dgrad": ConvSpec.dgrad, "wgrad": ConvSpec.wgrad}[op]
    layout = arrays.memory_layout(a) if op != "wgrad" else "nchw"
    return make(
        input_shape, filter_shape, padding=border_mode, stride=subsample, flip=flip, layout=layout,
        dtype=np.result_type(a.dtype, b.dtype),
    )  # fmt: skip


_operations: dict[tuple[Any, ...], DnnConv] = {}
MAX_OPERATIONS = 1024  # options are words and small numbers; a program that has more makes new ones every call


def dnn_conv(
    img: Any,
    kerns: Any,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    conv_mode: str = "conv",
    direction_hint: str | None = None,
    workmem: str | None = None,
    algo: str | None = None,
    precision: str | None = None,
) -> Any:
    """Convolve images with filters as cuDNN does.

    Parameters
    ----------
    img : array, shape (batch, channels, rows, columns)
    kerns : array, shape (filters, channels, rows, columns)
    border_mode : "valid", "full", "half", int or (int, int)
    subsample : int or (int, int)
    conv_mode : "conv" or "cross"
        Filters flipped or not.
    direction_hint : "forward", "forward!", "bprop weights" or "bprop inputs", optional
        "bprop weights" computes a valid convolution of stride 1 as the gradient of filters; a full one of stride 1 is
        computed as the gradient of images unless "forward!".
    workmem : str, optional
        The older name of `algo`.
    algo : str, optional
        "none", "small" (default), "large", "fft", "fft_tiling" or "winograd" name an algorithm; "guess_once",
        "guess_on_shape_change", "time_once" and "time_on_shape_change" choose one. What "once" chooses is kept for
        all calls with the same options (`DnnConv` objects each keep their own).
    precision : "as_input", "as_input_f32", "float16", "float32" or "float64", optional
        What is computed in, at least the arrays' own; the result has theirs.

    Raises `InvalidType` for a wrong rank, `InvalidSpec` for shapes or words without meaning, `NoImplementation`
    when the algorithm cannot run the problem.

    >>> import numpy as np
    >>> from autoconv.compat.theano import dnn_conv
    >>> dnn_conv(np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3)), border_mode="half", algo="fft").shape
    (1, 3, 6, 6)
    """
    key = (_frozen(border_mode), _frozen(subsample), conv_mode, direction_hint, workmem, algo, precision)
    operation = _operations.get(key)
    if operation is None:
        operation = DnnConv(border_mode, subsample, conv_mode, direction_hint, workmem, algo, precision)
        if len(_operations) >= MAX_OPERATIONS:
            _operations.clear()
        _operations[key] = operation
    return operation(img, kerns)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
