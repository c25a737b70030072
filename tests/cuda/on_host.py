"""Runs a GPU implementation's kernels on the host, among guard bytes, without CuPy or a stand-in for it."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest

from autoconv import arrays, testing
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls.cuda import _kernels
from autoconv.impls.cuda._kernels import KernelImplementation, Source, options, text
from autoconv.spec import ConvSpec, Op
from autoconv.workspace import Workspace
from tests.cuda_shim import load

H200 = Device("cuda", "NVIDIA H200", "sm_90", 132, 1, 139 << 30)
GUARD_BYTES = 256
POISON = 0xFF  # NaN in every format


class HostModule:
    """What `_kernels.module` gives, on NumPy arrays."""

    def __init__(self, source: Source) -> None:
        self._program = load(text(source[0]), options(source[1]))

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Any, shared_bytes: int = 0
    ) -> None:
        values = [arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args]
        self._program.kernels[kernel].launch(grid, block, values, shared_bytes)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the test, kernels are compiled for the host."""
    monkeypatch.setattr(_kernels, "module", lambda name, constants, device: HostModule((name, constants)))


def guarded(shape: tuple[int, ...], layout: str, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """An array as a GPU's runner gets it, 16-byte aligned and dense, full of NaN; and the bytes around and in it."""
    size = prod(shape) * dtype.itemsize
    room = np.full(size + 2 * GUARD_BYTES + 16, POISON, np.uint8)
    start = GUARD_BYTES + -(room.ctypes.data + GUARD_BYTES) % 16
    inside = room[start : start + size].view(dtype)
    return arrays.as_layout(inside, shape, layout), room


def context() -> Context:
    """Where kernels are prepared."""
    return Context(H200, lambda: pytest.fail("no child was declared"))


def run(one: KernelImplementation, spec: ConvSpec, config: Config, a: Array, b: Array) -> Array:
    """The result of one call; what lies around it must not have changed."""
    of_filters = {Op.FPROP: 1, Op.DGRAD: 1, Op.WGRAD: 2}[spec.op]
    held = []
    for number, (shape, value) in enumerate(zip((*spec.operand_shapes, spec.result_shape), (a, b, None), strict=True)):
        array, room = guarded(shape, "nchw" if number == of_filters else spec.layout, spec.np_dtype)
        if value is not None:
            array[...] = value
        held.append((array, room))
    (left, _), (right, _), (out, room) = held
    runner = one.prepare(spec, config, context())
    runner(left, right, out, Workspace())
    size = out.size * out.itemsize
    start = out.ctypes.data - room.ctypes.data
    assert (room[:start] == POISON).all()
    assert (room[start + size :] == POISON).all()
    return out


def check(one: KernelImplementation, spec: ConvSpec, config: Config, rng: np.random.Generator) -> bytes:
    """Assert that the result is right; its bytes."""
    a, b = testing.operands(spec, rng)
    result = run(one, spec, config, a, b)
    error = testing.relative_error(result, testing.reference(spec, a, b), spec.reduction_length**0.5 / 3)
    assert error <= testing.tolerance(spec, one.tags), f"{spec} [{config}] is off by {error:.1e}"
    return result.tobytes()


def forms(text: str, layouts: tuple[str, ...] = ("nchw", "nhwc")) -> list[ConvSpec]:
    """The three operations of a forward problem in each layout."""
    spec = ConvSpec.parse(text)
    return [replace(spec, op=op, layout=layout) for op in Op for layout in layouts]
