"""The first call of its kind: check operands in the words of the public keywords, plan, remember the short way.

The short way is one entry in the scope's `calls`: a key of types, shapes, strides, dtypes and options,
and a function that goes straight into the runner. The public functions look there first. For CuPy arrays the entry
holds one such function for each GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from autoconv import arrays, dispatch, options, shapes
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import InvalidSpec, InvalidType
from autoconv.places import DEVICE_ALIGNMENT, Place, common_home, home_of, is_cupy, place_of
from autoconv.planning import Plan, thread_workspace
from autoconv.spec import ConvSpec, Op, dtype_code

__all__ = ["Call", "check_declared", "first_conv", "first_dgrad", "first_wgrad", "operand"]

Call: TypeAlias = Callable[[Any, Any, Any, Any], Any]
"""`(first operand, second operand, bias, out)` to the result."""


def first_conv(
    key: Any,
    rank: int,
    image: Any,
    filters: Any,
    border_mode: Any,
    subsample: Any,
    filter_dilation: Any,
    num_groups: Any,
    filter_flip: Any,
    bias: Any,
    out: Any,
) -> Any:
    """Plan and run a forward call, and remember it under `key` when both operands are plain NumPy or CuPy arrays."""
    home = _home(("input", "filters"), image, filters)
    x, w = operand(image, rank, "input"), operand(filters, rank, "filters")
    spec = _spec(Op.FPROP, x.shape, w.shape, x, w, border_mode, subsample, filter_dilation, num_groups, filter_flip)
    chosen = dispatch.plan_for(spec, home)

    def again(a: Any, b: Any, bias: Any, out: Any) -> Any:
        return first_conv(
            key, rank, a, b, border_mode, subsample, filter_dilation, num_groups, filter_flip, bias, out
        )  # fmt: skip

    _keep(key, chosen, image, filters, again)
    return chosen(image, filters, bias, out)


def first_dgrad(
    key: Any,
    rank: int,
    output_grad: Any,
    filters: Any,
    input_shape: Any,
    border_mode: Any,
    subsample: Any,
    filter_dilation: Any,
    num_groups: Any,
    filter_flip: Any,
    out: Any,
) -> Any:
    """The same for the gradient of the input."""
    home = _home(("output_grad", "filters"), output_grad, filters)
    dy, w = operand(output_grad, rank, "output_grad"), operand(filters, rank, "filters")
    groups = shapes.as_int(num_groups, "num_groups", 1)
    shape = _filled("input_shape", input_shape, (dy.shape[0], w.shape[1] * groups), rank)
    spec = _spec(Op.DGRAD, shape, w.shape, dy, w, border_mode, subsample, filter_dilation, num_groups, filter_flip)
    _check_output_grad(spec, dy)
    chosen = dispatch.plan_for(spec, home)

    def again(a: Any, b: Any, bias: Any, out: Any) -> Any:
        return first_dgrad(
            key, rank, a, b, input_shape, border_mode, subsample, filter_dilation, num_groups, filter_flip, out
        )

    _keep(key, chosen, output_grad, filters, again)
    return chosen(output_grad, filters, None, out)


def first_wgrad(
    key: Any,
    rank: int,
    image: Any,
    output_grad: Any,
    filter_shape: Any,
    border_mode: Any,
    subsample: Any,
    filter_dilation: Any,
    num_groups: Any,
    filter_flip: Any,
    out: Any,
) -> Any:
    """The same for the gradient of the filters."""
    home = _home(("input", "output_grad"), image, output_grad)
    x, dy = operand(image, rank, "input"), operand(output_grad, rank, "output_grad")
    groups = shapes.as_int(num_groups, "num_groups", 1)
    shape = _filled("filter_shape", filter_shape, (dy.shape[1], x.shape[1] // groups), rank)
    spec = _spec(Op.WGRAD, x.shape, shape, x, dy, border_mode, subsample, filter_dilation, num_groups, filter_flip)
    _check_output_grad(spec, dy)
    chosen = dispatch.plan_for(spec, home)

    def again(a: Any, b: Any, bias: Any, out: Any) -> Any:
        return first_wgrad(
            key, rank, a, b, filter_shape, border_mode, subsample, filter_dilation, num_groups, filter_flip, out
        )

    _keep(key, chosen, image, output_grad, again)
    return chosen(image, output_grad, None, out)


def operand(value: Any, rank: int, name: str) -> Array:
    """`value` as an array of its device's library with `rank` spatial axes. Raises `InvalidType` for what is none."""
    array = place_of(home_of(value)).array(value, name)
    if array.ndim != rank + 2:
        axes = "(batch, channels, " if not name.endswith("filters") else "(filters, channels, "
        raise InvalidType(
            f"{name} needs {rank + 2} dimensions {axes}{rank} spatial), got {array.ndim}: shape {array.shape}"
        )
    try:
        dtype_code(array.dtype)
    except InvalidType as error:
        raise InvalidType(f"{name}: {error}") from None
    return array


def _spec(
    op: Op,
    input_shape: tuple[int, ...],
    filter_shape: tuple[int, ...],
    first: Array,
    second: Array,
    border_mode: Any,
    subsample: Any,
    filter_dilation: Any,
    num_groups: Any,
    filter_flip: Any,
) -> ConvSpec:
    """The spec of a call, every refusal in the words of the public keywords."""
    rank = len(filter_shape) - 2
    groups = shapes.as_int(num_groups, "num_groups", 1)
    for name, count in (("input", input_shape[1]), ("filters", filter_shape[0])):
        if count % groups:
            raise InvalidSpec(f"num_groups must divide the {count} channels of {name}, got {groups}")
    return ConvSpec._build(
        op,
        input_shape,
        filter_shape,
        padding=border_mode,
        stride=shapes.per_axis(subsample, rank, "subsample"),
        dilation=shapes.per_axis(filter_dilation, rank, "filter_dilation"),
        groups=groups,
        flip=bool(filter_flip),
        layout=arrays.memory_layout(first),
        dtype=np.result_type(first.dtype, second.dtype),
    )


def _filled(name: str, declared: Any, known: tuple[int, int], rank: int) -> tuple[int, ...]:
    """A gradient's target shape with None in its first two places replaced by what the arrays say."""
    if not hasattr(declared, "__iter__"):
        raise InvalidType(f"{name} needs {rank + 2} entries, got {declared!r}")
    entries = tuple(declared)
    if len(entries) != rank + 2:
        raise InvalidType(f"{name} needs {rank + 2} entries, got {len(entries)}: {entries}")
    filled = [known[i] if i < 2 and entry is None else entry for i, entry in enumerate(entries)]
    return tuple(shapes.as_int(entry, f"{name}[{i}]") for i, entry in enumerate(filled))


def _check_output_grad(spec: ConvSpec, output_grad: Array) -> None:
    if output_grad.shape != spec.output_shape:
        raise InvalidSpec(
            f"output_grad must have the forward output's shape {spec.output_shape}, got {output_grad.shape}"
        )


def check_declared(name: str, declared: Sequence[int | None], operand: str, value: Any) -> None:
    """Raise unless `declared`, which may hold None, agrees with the shape of `value`."""
    if not hasattr(declared, "__iter__"):
        raise InvalidType(f"{name} must be a sequence with an entry per dimension of {operand}, got {declared!r}")
    shape = tuple(getattr(value, "shape", ()))
    entries = tuple(declared)
    if len(entries) != len(shape):
        raise InvalidType(f"{name} declares {len(entries)} dimensions, {operand} has {len(shape)}: {shape}")
    if any(want is not None and want != got for want, got in zip(entries, shape, strict=True)):
        raise InvalidSpec(f"{name} declares {entries}, {operand} has shape {shape}")


def _home(names: tuple[str, str], first: Any, second: Any) -> Device:
    return common_home(names, first, second, options.current_scope().settings.threads)


def _keep(key: Any, chosen: Plan, first: Any, second: Any, again: Call) -> None:
    """Remember the call for `key` if the operands are NumPy's or CuPy's, shortened where they need no conversion.

    `again` is the long way: the key says nothing of which GPU the operands are on.
    """
    kind = type(first)
    if type(second) is not kind or not (kind is np.ndarray or is_cupy(first, exactly=True)):
        return
    scope, place = options.current_scope(), place_of(chosen.device)
    try:
        if kind is np.ndarray:
            scope.keep(key, _ready(chosen, first, second))
        elif not place.capturing():  # what is decided in a capture is what was ready, not what is best
            known = scope.calls.get(key)
            calls = known if isinstance(known, _OnGpus) else _OnGpus(again)
            calls.ready[chosen.device.index] = _ready_on_gpu(chosen, first, second, place)
            scope.keep(key, calls)
    except TypeError:  # a list among the options: works, but is looked up the long way every time
        return


class _OnGpus:
    """A call on CuPy arrays: what was decided for each GPU."""

    __slots__ = ("_again", "ready")

    def __init__(self, again: Call) -> None:
        self._again = again
        self.ready: dict[int, Call] = {}

    def __call__(self, a: Any, b: Any, bias: Any, out: Any) -> Any:
        return self.ready.get(a.data.device_id, self._again)(a, b, bias, out)


def _ready_on_gpu(chosen: Plan, first: Any, second: Any, place: Place) -> Call:
    """The same as `_ready` for CuPy arrays of one GPU, in any layout."""
    spec, dtype, index = chosen.spec, chosen.spec.np_dtype, chosen.device.index
    second_layout = spec.layout if spec.op is Op.WGRAD else "nchw"
    conform = all(
        array.dtype == dtype and arrays.is_dense(array, form)
        for array, form in ((first, spec.layout), (second, second_layout))
    )
    if not conform or spec.rank1 or not first.size or not second.size or not all(spec.result_shape):
        return chosen
    new, run, workspace_of, current = chosen._new, chosen.run, place.workspace, place.xp.cuda.runtime.getDevice

    def call(a: Any, b: Any, bias: Any, out: Any) -> Any:
        left, right = a.data, b.data
        if (
            bias is not None
            or out is not None
            or (left.ptr | right.ptr) % DEVICE_ALIGNMENT
            or right.device_id != index
            or current() != index
        ):
            return chosen(a, b, bias, out)
        result = new()
        run(a, b, result, workspace_of())
        return result

    return call


def _ready(chosen: Plan, first: Array, second: Array) -> Call:
    """A call on operands like these: straight into the runner when nothing is to be converted."""
    spec, dtype = chosen.spec, chosen.spec.np_dtype
    layout = spec.layout
    second_layout = layout if spec.op is Op.WGRAD else "nchw"
    conforms = all(
        array.dtype == dtype and array.dtype.isnative and arrays.is_dense(array, form)
        for array, form in ((first, layout), (second, second_layout))
    )
    shape = spec.result_shape
    if not conforms or layout != "nchw" or not first.size or not second.size or not all(shape):
        return chosen
    runner, new = chosen._runner, np.empty

    def call(a: Array, b: Array, bias: Any, out: Any) -> Any:
        if bias is not None or out is not None or not (a.flags.aligned and b.flags.aligned):
            return chosen(a, b, bias, out)
        result = new(shape, dtype)
        workspace = thread_workspace()  # from here on as `Plan.run`, less one call of a microsecond's hot path
        mark = workspace.mark()
        try:
            runner(a, b, result, workspace)
        except MemoryError as error:
            workspace.release(mark)
            chosen.relief(error).run(a, b, result, workspace)
        finally:
            workspace.release(mark)
        return result

    return call
