"""`theano.tensor.nnet.conv2d`: the standard operator, tuned; with ConvOp's options, generated C with those."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoconv import arrays, convolving, dispatch, options
from autoconv.compat.theano._pins import check_shapes, operand, per_axis
from autoconv.device import Device
from autoconv.errors import InvalidSpec
from autoconv.evidence import Choice, Config
from autoconv.places import home_of
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec

__all__ = ["conv2d"]

GENERATED = "native.direct"  # the heir of ConvOp's C, with the same tunables


def conv2d(
    input: Any,
    filters: Any,
    image_shape: Sequence[int | None] | None = None,
    filter_shape: Sequence[int | None] | None = None,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    *,
    unroll_batch: int | None = None,
    unroll_kern: int | None = None,
    unroll_patch: bool | None = None,
    openmp: bool | None = None,
    version: int | str = -1,
) -> Any:
    """Convolve a batch of images with a bank of filters, which are flipped, by the fastest engine here.

    Parameters
    ----------
    input : array, shape (batch, channels, rows, columns)
    filters : array, shape (filters, channels, rows, columns)
    image_shape, filter_shape : four ints or None, optional
        Declared shapes, checked against the arrays.
    border_mode : "valid", "full", or what `autoconv.conv2d` takes
    subsample : int or (int, int)
    unroll_batch, unroll_kern : int, optional
        Images and filters that ConvOp's C takes at a time. A value that does not divide their number is lowered to
        its largest divisor, with a warning.
    unroll_patch : bool, optional
        Whether it has the taps of the filters written out.
    openmp : bool, optional
        Whether it uses every thread or one.
    version : "no_fft" or an int
        "no_fft" leaves FFT out. Integers chose among ConvOp's loops, and choose nothing here.

    With any of `unroll_batch`, `unroll_kern`, `unroll_patch` and `openmp` the call runs `native.direct` with these
    tunables and nothing else; where that cannot run, a warning says why, and the options have no effect.

    Raises `InvalidType` for a wrong rank, `InvalidSpec` for shapes that do not fit.

    >>> import numpy as np
    >>> from autoconv.compat.theano import nnet
    >>> nnet.conv2d(np.ones((2, 1, 5, 5)), np.ones((4, 1, 3, 3)), border_mode="full").shape
    (2, 4, 7, 7)
    """
    x = operand(input, "input", "batch, channels, rows, columns")
    w = operand(filters, "filters", "filters, channels, rows, columns")
    check_shapes(x, w, image_shape, filter_shape)
    if isinstance(version, str) and version != "no_fft":
        raise InvalidSpec(f"version must be an integer or 'no_fft', got {version!r}")
    wanted = {"unroll_batch": unroll_batch, "unroll_kern": unroll_kern, "unroll_patch": unroll_patch}
    if openmp is not None or any(value is not None for value in wanted.values()):
        spec = ConvSpec.fprop(
            x.shape, w.shape, padding=border_mode, stride=per_axis(subsample, "subsample", 2),
            layout=arrays.memory_layout(x), dtype=np.result_type(x.dtype, w.dtype),
        )  # fmt: skip
        device = home_of(x, options.current_scope().settings.threads)
        choice = _generated(spec, device, wanted, openmp)
        if choice is not None:
            return dispatch.pin(spec, device, choice)(input, filters)
    if version != "no_fft":
        return convolving.conv2d(input, filters, border_mode=border_mode, subsample=subsample)
    current = options.current_scope().settings.exclude
    with options.settings(exclude=(*current, "fft")):
        return convolving.conv2d(input, filters, border_mode=border_mode, subsample=subsample)


def _generated(spec: ConvSpec, device: Device, wanted: dict[str, Any], openmp: bool | None) -> Choice | None:
    """`native.direct` with the tunables asked for, those left open as its best guess has them; None with a warning."""
    one = default_registry().get(GENERATED)
    reason = one.why_not(spec, device)
    configs = [] if reason else list(one.configs(spec, device))
    if not configs:
        warnings.warn(f"{_given(wanted, openmp)} without effect: {GENERATED} {reason}", RuntimeWarning, stacklevel=3)
        return None
    asked: dict[str, int | str | bool] = {}
    for name, whole in (("unroll_batch", spec.batch), ("unroll_kern", spec.out_channels)):
        if wanted[name] is not None:
            asked[name] = _divisor(name, wanted[name], whole)
    if wanted["unroll_patch"] is not None:
        asked["unroll_patch"] = bool(wanted["unroll_patch"])
    if openmp is not None:
        asked["threads"] = device.threads if openmp else 1
    config = max(configs, key=lambda config: sum(config[name] == value for name, value in asked.items()))
    return Choice(one.name, one.version, Config({**config, **asked}))


def _divisor(name: str, value: int, whole: int) -> int:
    """`value`, or the largest divisor of `whole` below it."""
    (value,) = per_axis(value, name, 1)
    divisor = next(size for size in range(min(value, whole), 0, -1) if whole % size == 0)
    if divisor != value:
        warnings.warn(f"{name}={value} does not divide {whole}: lowered to {divisor}", RuntimeWarning, stacklevel=4)
    return divisor


def _given(wanted: dict[str, Any], openmp: bool | None) -> str:
    return ", ".join(name for name, value in {**wanted, "openmp": openmp}.items() if value is not None)
