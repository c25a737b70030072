"""Calls of the signal functions: the first of its kind finds the problem and its plan, the next ones look it up.

A filter that is small beside its image is likely to come again: from a certain amount of work on, plans with the
filter bound are kept by its very bytes, so that separable ones are recognised and packing is done once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from autoconv import dispatch, options
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import InvalidSpec, InvalidType, NoImplementation
from autoconv.places import common_home, home_of, place_of
from autoconv.planning import BoundPlan
from autoconv.separable import is_separable
from autoconv.signal._geometry import Problem
from autoconv.spec import ConvSpec, dtype_code

__all__ = ["MAX_RANK", "Call", "as_array", "bound_plan", "check_pair", "first_call", "spec_of"]

MAX_RANK = 3
BIND_MACS = 1 << 20  # less work is done sooner than a filter is looked up
BIND_SHARE = 16  # results per tap: what is nearly as large as its image is another image, not a filter
KEPT = 8  # filters kept bound per kind of call

Call: TypeAlias = Callable[[Any, Any], Any]
"""`(first input, second input)` to the result."""


def as_array(value: Any, name: str) -> Array:
    """An array as one of its device's library; nested sequences of numbers as a NumPy array."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        return place_of(home_of(value)).array(value, name)
    array = np.asarray(value)
    if array.dtype == object:
        raise InvalidType(f"{name} must be an array or nested sequences of numbers, got {type(value).__name__}")
    return array


def check_pair(first: Array, second: Array) -> str:
    """The dtype code in which two inputs are convolved; refuses what has no answer."""
    if not first.size or not second.size:
        raise InvalidSpec(f"inputs must not be empty, got shapes {first.shape} and {second.shape}")
    return dtype_code(np.result_type(first.dtype, second.dtype))


def spec_of(problem: Problem, dtype: str, *, convolution: bool, batch: int = 1) -> ConvSpec:
    """The problem as a convolution of one channel."""
    return ConvSpec.fprop(
        (batch, 1, *problem.image_shape),
        (1, 1, *problem.kernel_shape),
        padding=problem.padding,
        flip=convolution,
        dtype=dtype,
    )


def first_call(key: Any, problem: Problem, first: Array, second: Array, *, convolution: bool) -> Any:
    """Plan and run; remember the call under `key` unless that is None."""
    spec = spec_of(problem, check_pair(first, second), convolution=convolution)
    home = common_home(("in1", "in2"), first, second, options.current_scope().settings.threads)
    with place_of(home).current():
        call = _make(problem, spec, home)
        if key is not None:
            options.current_scope().calls[key] = call
        return call(first, second)


def _make(problem: Problem, spec: ConvSpec, home: Device) -> Call:
    worth = spec.macs >= BIND_MACS and prod(spec.output_spatial) >= BIND_SHARE * prod(spec.kernel)
    on_host = home.kind == "cpu"  # to look at a filter on a GPU is to wait for it
    run: Call = _Bound(spec, home) if worth and on_host else dispatch.plan_for(spec, home)
    image_axes, back = (None, None), (0, 0, *(slice(None, None, -1),) * spec.rank)

    def plain(first: Array, second: Array) -> Any:
        return run(first[image_axes], second[image_axes])[0, 0]

    def general(first: Array, second: Array) -> Any:
        image, kernel = (second, first) if problem.swapped else (first, second)
        result = run(_cast(problem.see, image, spec)[image_axes], kernel[image_axes])
        return result[back] if problem.reversed else result[0, 0]

    simple = problem.crop is None and problem.pixels is None and not problem.swapped
    return plain if simple else general


def _cast(see: Callable[[Array], Array], image: Array, spec: ConvSpec) -> Array:
    """What is seen of an image; a value to fill with may need the wider dtype."""
    return see(image if image.dtype == spec.np_dtype else image.astype(spec.np_dtype))


class _Bound:
    """Runs one spec, the filters bound by their bytes; the latest few are kept."""

    def __init__(self, spec: ConvSpec, home: Device) -> None:
        self._spec = spec
        self._home = home
        self._kept: dict[bytes, BoundPlan] = {}
        self._lock = threading.Lock()

    def __call__(self, image: Array, kernel: Array) -> Any:
        content = kernel.tobytes()
        bound = self._kept.get(content)
        if bound is None:
            bound = bound_plan(self._spec, kernel, self._home)
            with self._lock:
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[content] = bound
        return bound(image)


def bound_plan(spec: ConvSpec, kernel: Array, home: Device) -> BoundPlan:
    """The plan of `spec` with `kernel` bound, decided for separable filters where it is; one race, not two.

    `kernel` is a NumPy array, wherever `home` is.
    """
    kernel = kernel.astype(spec.np_dtype, copy=False)
    filters = place_of(home).from_host(kernel)
    fixed = replace(spec, fixed=True)
    if sum(taps > 1 for taps in spec.kernel) > 1 and is_separable(kernel):
        try:
            return dispatch.plan_for(replace(fixed, rank1=True), home).bind(filters)
        except NoImplementation:  # under on_miss="error", what is decided without the promise serves
            pass
    return dispatch.plan_for(fixed, home).bind(filters)
