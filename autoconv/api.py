"""The public functions. Each reads a problem off its arguments, asks dispatch for the plan, and runs it.

A call that was made before with arrays of the same shapes, strides and dtypes costs one look-up
before the implementation runs; what happens the first time is in `calling`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autoconv import calling, dispatch, options
from autoconv.catalogue import ImplementationRecord, implementations
from autoconv.device import find_device
from autoconv.errors import InvalidOption, InvalidType, NoImplementation
from autoconv.explaining import Explanation, explain_spec
from autoconv.implementation import Implementation
from autoconv.planning import Plan
from autoconv.progress import Progress
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op
from autoconv.verbose import announce

if TYPE_CHECKING:
    from autoconv.tuner import TuningResult

__all__ = [
    "ImplementationRecord",
    "conv2d",
    "conv2d_grad_wrt_inputs",
    "conv2d_grad_wrt_weights",
    "explain",
    "implementations",
    "plan",
    "register",
    "tune",
]


def conv2d(
    input: Any,
    filters: Any,
    *,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    filter_dilation: Any = (1, 1),
    num_groups: int = 1,
    filter_flip: bool = True,
    bias: Any = None,
    image_shape: Sequence[int | None] | None = None,
    filter_shape: Sequence[int | None] | None = None,
    out: Any = None,
) -> Any:
    """Two-dimensional convolution of a batch of images with a bank of filters, by the fastest engine here.

    Parameters
    ----------
    input : array, shape (N, C, H, W)
        Float16, bfloat16, float32 or float64, any strides; channels-last memory is used as it is.
    filters : array, shape (K, C / num_groups, R, S)
    border_mode : "valid", "full", "half", "same", int, (int, int) or ((before, after), (before, after))
        Zeros around the image. "full" is the dilated kernel - 1 on every side, "half" the dilated
        kernel // 2, "same" gives an output of ceil(input / subsample).
    subsample : int or (int, int)
        Stride of the output.
    filter_dilation : int or (int, int)
        Spacing of the kernel's taps.
    num_groups : int
        Groups of channels convolved apart; divides C and K.
    filter_flip : bool
        True is a true convolution (the filter is flipped), False a cross-correlation.
    bias : array, shape (K,), optional
        Added to every output of its channel.
    image_shape, filter_shape : sequence of int or None, optional
        Declared shapes, checked against the arrays; None leaves a dimension open.
    out : array, shape (N, K, P, Q), optional
        Receives the result, and is returned.

    Returns
    -------
    array, shape (N, K, P, Q)
        Of the caller's kind, dtype (promoted as NumPy does) and memory format, with
        P = floor((H + before + after - ((R - 1) * dilation + 1)) / stride) + 1.

    Raises
    ------
    InvalidType
        Wrong rank or dtype (also a `TypeError`).
    InvalidSpec
        Sizes that do not fit together (also a `ValueError`).
    NoImplementation
        Nothing here may run it under the current settings.

    >>> import autoconv, numpy as np
    >>> autoconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3))).shape
    (1, 1, 2, 2)
    """
    if image_shape is not None:
        calling.check_declared("image_shape", image_shape, "input", input)
    if filter_shape is not None:
        calling.check_declared("filter_shape", filter_shape, "filters", filters)
    key: Any = None
    try:
        key = (
            Op.FPROP, type(input), input.shape, input.strides, input.dtype, type(filters), filters.shape,
            filters.strides, filters.dtype, border_mode, subsample, filter_dilation, num_groups, filter_flip,
        )  # fmt: skip
        call = options.current_scope().calls.get(key)
    except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
        call = None
    if call is None:
        return calling.first_conv(
            key, 2, input, filters, border_mode, subsample, filter_dilation, num_groups, filter_flip, bias, out
        )
    return call(input, filters, bias, out)


def conv2d_grad_wrt_inputs(
    output_grad: Any,
    filters: Any,
    input_shape: Sequence[int | None],
    *,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    filter_dilation: Any = (1, 1),
    num_groups: int = 1,
    filter_flip: bool = True,
    out: Any = None,
) -> Any:
    """Gradient of a scalar with respect to the input of `conv2d`, from that with respect to its output.

    Parameters
    ----------
    output_grad : array, shape (N, K, P, Q)
    filters : array, shape (K, C / num_groups, R, S)
    input_shape : (N, C, H, W)
        Shape of the forward input; its first two entries may be None and are then read off the arrays.
    out : array, shape (N, C, H, W), optional

    The other keywords are those of the forward call. Returns an array of `input_shape`; raises as `conv2d`.
    """
    key: Any = None
    try:
        key = (
            Op.DGRAD, type(output_grad), output_grad.shape, output_grad.strides, output_grad.dtype, type(filters),
            filters.shape, filters.strides, filters.dtype, input_shape, border_mode, subsample, filter_dilation,
            num_groups, filter_flip,
        )  # fmt: skip
        call = options.current_scope().calls.get(key)
    except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
        call = None
    if call is None:
        return calling.first_dgrad(
            key,
            2,
            output_grad,
            filters,
            input_shape,
            border_mode,
            subsample,
            filter_dilation,
            num_groups,
            filter_flip,
            out,
        )
    return call(output_grad, filters, None, out)


def conv2d_grad_wrt_weights(
    input: Any,
    output_grad: Any,
    filter_shape: Sequence[int | None],
    *,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    filter_dilation: Any = (1, 1),
    num_groups: int = 1,
    filter_flip: bool = True,
    out: Any = None,
) -> Any:
    """Gradient of a scalar with respect to the filters of `conv2d`, from that with respect to its output.

    Parameters
    ----------
    input : array, shape (N, C, H, W)
    output_grad : array, shape (N, K, P, Q)
    filter_shape : (K, C / num_groups, R, S)
        Shape of the filters; its first two entries may be None and are then read off the arrays.
    out : array, shape (K, C / num_groups, R, S), optional

    The other keywords are those of the forward call. Returns an array of `filter_shape`; raises as `conv2d`.
    """
    key: Any = None
    try:
        key = (
            Op.WGRAD, type(input), input.shape, input.strides, input.dtype, type(output_grad), output_grad.shape,
            output_grad.strides, output_grad.dtype, filter_shape, border_mode, subsample, filter_dilation,
            num_groups, filter_flip,
        )  # fmt: skip
        call = options.current_scope().calls.get(key)
    except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
        call = None
    if call is None:
        return calling.first_wgrad(
            key,
            2,
            input,
            output_grad,
            filter_shape,
            border_mode,
            subsample,
            filter_dilation,
            num_groups,
            filter_flip,
            out,
        )
    return call(input, output_grad, None, out)


# Plans, tuning, explaining -----------------------------------------------------------------------


def plan(spec: ConvSpec | str, device: str | None = None) -> Plan:
    """The plan for `spec`, a `ConvSpec` or its text, decided once: call it many times without deciding again.

    `device` is None or "cpu". Raises `InvalidSpec` for a text that is no complete spec, and what `conv2d` raises.

    >>> import autoconv
    >>> autoconv.plan("fprop n1c8 16x16 k8 3x3 p1").spec.output_shape
    (1, 8, 16, 16)
    """
    return dispatch.plan_for(_as_spec(spec), find_device(device, options.current_scope().settings.threads))


def explain(spec: ConvSpec | str, device: str | None = None) -> Explanation:
    """What would run `spec`, what lost and by how much, and what refused and why; races nothing."""
    return explain_spec(_as_spec(spec), find_device(device, options.current_scope().settings.threads))


def tune(
    specs: Iterable[ConvSpec | str] | ConvSpec | str,
    device: str | None = None,
    budget_s: float | None = None,
    progress: bool = False,
    retune: bool = False,
    watch: Callable[[str, str, int, int], None] | None = None,
) -> list[TuningResult]:
    """Race every implementation on every spec and remember the winners.

    Parameters
    ----------
    specs : ConvSpec, text, or an iterable of them
    device : None or "cpu"
    budget_s : float, optional
        Seconds for all specs together; by default ten times `settings.tune_budget_s`, which is what a call
        may wait for, for each.
    progress : bool
        Show a progress bar on standard error.
    retune : bool
        Measure again what is already remembered.
    watch : callable, optional
        Called as `watch(stage, detail, done, total)` while a race goes on.

    Returns one `TuningResult` per spec. Raises `InvalidSpec` before anything is measured when a text
    cannot be read, `NoImplementation` when nothing may run a spec (the others are tuned first).
    """
    if isinstance(specs, ConvSpec | str):
        specs = [specs]
    problems = [_as_spec(spec) for spec in specs]
    if budget_s is not None and not 0 < budget_s < float("inf"):
        raise InvalidOption(f"budget_s must be a positive number of seconds, got {budget_s!r}")
    settings = options.current_scope().settings
    where = find_device(device, settings.threads)
    registry = default_registry()
    for name in ("require", "exclude", "prefer"):
        registry.check_words(name, getattr(settings, name))
    tuner = dispatch.make_tuner()
    deadline = None if budget_s is None else time.perf_counter() + budget_s
    results: list[TuningResult] = []

    failure: NoImplementation | None = None
    with Progress(len(problems), enabled=progress) as bar:
        for done, spec in enumerate(problems):
            share = budget_share(settings, deadline, len(problems) - done)
            bar.start(str(spec))
            try:
                result = tuner.tune(
                    spec, where, settings.limits(spec.dtype), budget_s=share, retune=retune, watch=watch or bar.watch
                )
            except NoImplementation as error:
                failure = failure or error
            else:
                results.append(result)
                _announce(result, settings)
            bar.finish()
    options.forget_calls()
    if failure is not None:
        raise failure
    return results


MIN_SHARE_S = 1e-3  # what a spec gets when the common budget is spent: its untuned default is still measured
PATIENCE = 10.0  # times what a race inside a call may take: whoever tunes beforehand wants it settled


def budget_share(settings: options.Settings, deadline: float | None, left: int) -> float:
    """Seconds for the next of `left` specs: its part of what remains until `deadline` (of `time.perf_counter`)."""
    if deadline is None:
        return PATIENCE * settings.tune_budget_s
    return max((deadline - time.perf_counter()) / left, MIN_SHARE_S)


def _announce(result: TuningResult, settings: options.Settings) -> None:
    if not settings.verbose or result.built is None:
        return
    built = result.built
    shown = Plan(
        result.spec,
        result.device,
        built.choice,
        built.runner,
        workspace_bytes=built.workspace_bytes,
        source="tuned" if result.measured else "cache",
        decision=result.decision,
    )
    announce(shown, settings, result.rows, result.refusals)


def _as_spec(spec: ConvSpec | str) -> ConvSpec:
    if isinstance(spec, ConvSpec):
        return spec
    if isinstance(spec, str):
        return ConvSpec.parse(spec)
    raise InvalidType(f"spec must be a ConvSpec or its text form, got {type(spec).__name__}")


def register(implementation: Implementation, *, replace: bool = False) -> None:
    """Add an implementation to the registry; it takes part in the next race of every spec it does not refuse.

    Raises `RegistryError` for an id that is taken, retired or not of the form 'provider.algorithm'.
    """
    default_registry().register(implementation, replace=replace)
    options.forget_calls()
