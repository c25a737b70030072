"""Runs one implementation on a GPU's arrays, whatever the GPU is made of, and compares with the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Built, Implementation
from autoconv.places import place_of
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec, Op
from autoconv.testing import truth

__all__ = ["check", "on_device", "run"]


def on_device(spec: ConvSpec, device: Device, a: Array, b: Array) -> tuple[Any, Any, Any]:
    """Operands and poisoned room for the result, as a runner gets them."""
    place = place_of(device)
    second = spec.layout if spec.op is Op.WGRAD else "nchw"
    result = "nchw" if spec.op is Op.WGRAD else spec.layout
    operands = []
    for values, layout in ((a, spec.layout), (b, second)):
        array = place.empty(values.shape, layout, spec.np_dtype)
        array[...] = place.from_host(np.ascontiguousarray(values))
        operands.append(array)
    out = place.empty(spec.result_shape, result, spec.np_dtype)
    out.fill(np.nan)
    return operands[0], operands[1], out


def run(built: Built, device: Device, a: Array, b: Array, *, bound: bool = False, workspace: Any = None) -> Array:
    """The result of one call, on the host."""
    place = place_of(device)
    scratch: Workspace = place.workspace() if workspace is None else workspace
    left, right, out = on_device(built.spec, device, a, b)
    mark = scratch.mark()
    if bound:
        built.runner.bind(right)(left, out, scratch)
    else:
        built.runner(left, right, out, scratch)
    scratch.release(mark)
    return place.to_host(out)


def check(one: Implementation, text: str, device: Device, configs: list[Config] | None = None) -> int:
    """Every operation and layout of a case, every config: compares, and counts what was not refused."""
    done = 0
    for spec in testing.problems(text):
        if one.why_not(spec, device) is not None:
            continue
        rng = np.random.default_rng(len(str(spec)))
        a, b = testing.operands(spec, rng)
        expected = testing.reference(spec, a, b)
        for config in one.configs(spec, device) if configs is None else configs:
            if one.why_not(spec, device, config) is not None:
                continue
            built = testing.build(one, spec, config, device)
            limit = truth.tolerance(spec, built.tags)
            for bound in (False, True) if spec.op is not Op.WGRAD else (False,):
                result = run(built, device, a, b, bound=bound)
                error = testing.relative_error(result, expected, spec.reduction_length**0.5 / 3)
                assert error <= limit, f"{built.choice} on {spec}, bound={bound}: {error:.2e} > {limit:.2e}"
            done += 1
    return done
