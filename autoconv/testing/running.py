"""One implementation made ready for one spec, and called among rings of poison."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from autoconv import arrays
from autoconv.arrays import Array
from autoconv.device import Device, cpu
from autoconv.evidence import Choice, Config
from autoconv.implementation import Built, Implementation
from autoconv.places import DEVICE_ALIGNMENT, Place, place_of
from autoconv.planning import ALIGNMENT, BoundPlan, Plan, Workspace
from autoconv.registry import Registry, default_registry
from autoconv.spec import ConvSpec, Op
from autoconv.testing.truth import relative_error, tolerance
from autoconv.tuner.operands import GuardedWorkspace

__all__ = ["EXACT_TAGS", "OTHER_FILL", "POISON", "THREADS", "Case", "Rings", "build", "run"]

EXACT_TAGS = frozenset({"direct", "gemm", "reference"})
"""Tags of algorithms that only add products, so that small integers come out exactly."""

GUARD_BYTES = 512
POISON = 0xFF  # every float made of these bytes is a NaN
OTHER_FILL = 0x3C  # an ordinary number in every float format
THREADS = 3
REFERENCE = {"cpu": "numpy.direct", "cuda": "cuda.direct"}  # what a rewrite's child is, by kind of device


def build(
    implementation: Implementation, spec: ConvSpec, config: Config | None = None, device: Device | None = None
) -> Built:
    """`implementation` made ready for `spec`; a rewrite gets the plain sum of the device as its child."""
    where = device or cpu()
    registry = Registry()
    registry.register(implementation)

    def child(lower: ConvSpec) -> Built:
        direct = default_registry().get(REFERENCE[where.kind])
        if direct.name != implementation.name:
            registry.register(direct, replace=True)
        return registry.build(lower, where, Choice(direct.name, direct.version, direct.configs(lower, where)[0]))

    chosen = implementation.configs(spec, where)[0] if config is None else config
    return registry.build(spec, where, Choice(implementation.name, implementation.version, chosen), child)


def run(built: Built, a: Array, b: Array, device: Device | None = None) -> Array:
    """One call on plain arrays of the CPU's, on `device`; the result on the CPU."""
    place = place_of(device or cpu())
    with place.current():
        plan = _plan(built, device)
        left, right, out = Rings(place).operands(built.spec, a, b)
        plan.run(left, right, out, fresh_workspace(place))
        return place.to_host(out)


def fresh_workspace(place: Place) -> Workspace:
    """A workspace that holds nothing yet; a GPU's is its pool's."""
    return Workspace() if place.device.kind == "cpu" else place.workspace()


def _plan(built: Built, device: Device | None = None) -> Plan:
    return Plan(built.spec, device or cpu(), built.choice, built.runner, workspace_bytes=built.workspace_bytes)


class Rings:
    """Arrays with a ring of poison around each, in the place given, which must be the current device."""

    def __init__(self, place: Place | None = None) -> None:
        self._place = place or place_of(cpu())
        self._blocks: list[tuple[Any, int, int]] = []

    def bytes(self, size: int, skew: int = 0, fill: int = POISON) -> Any:
        """`size` bytes, 64-byte aligned but for `skew`."""
        xp = self._place.xp
        block = xp.full(size + 2 * GUARD_BYTES + ALIGNMENT + skew, POISON, xp.uint8)
        address = block.ctypes.data if xp is np else block.data.ptr
        start = GUARD_BYTES + -(address + GUARD_BYTES) % ALIGNMENT + skew
        self._blocks.append((block, start, start + size))
        block[start : start + size] = fill
        return block[start : start + size]

    def array(self, shape: Sequence[int], layout: str, dtype: np.dtype[Any], fill: int = POISON) -> Array:
        """An array dense in `layout`, aligned as a runner may rely on and no better."""
        skew = dtype.itemsize if self._place.device.kind == "cpu" else DEVICE_ALIGNMENT
        flat = self.bytes(prod(shape) * dtype.itemsize, skew, fill).view(dtype)
        return arrays.as_layout(flat, shape, layout)

    def operands(self, spec: ConvSpec, a: Array, b: Array, fill: int = POISON) -> tuple[Array, Array, Array]:
        """Read-only copies of the operands, and room for the result."""
        layouts = {
            Op.FPROP: (spec.layout, "nchw", spec.layout),
            Op.DGRAD: (spec.layout, "nchw", spec.layout),
            Op.WGRAD: (spec.layout, spec.layout, "nchw"),
        }[spec.op]
        copies = []
        for value, shape, layout in zip((a, b), spec.operand_shapes, layouts, strict=False):
            copy = self.array(shape, layout, spec.np_dtype)
            self.write(copy, value)
            copies.append(copy)
        return copies[0], copies[1], self.array(spec.result_shape, layouts[2], spec.np_dtype, fill)

    def write(self, array: Array, values: Array) -> None:
        """Give an operand other values, from the CPU; it is read-only before and after where arrays can be."""
        on_host = isinstance(array, np.ndarray)
        if on_host:
            array.setflags(write=True)
        array[...] = self._place.from_host(np.asarray(values, array.dtype))
        if on_host:
            array.setflags(write=False)

    def broken(self) -> bool:
        """Whether somebody wrote on a ring."""
        for block, start, stop in self._blocks:
            found = self._place.to_host(block)
            if (found[:start] != POISON).any() or (found[stop:] != POISON).any():
                return True
        return False


class _Scratch(GuardedWorkspace):
    """A guarded workspace whose pieces are full of `fill`."""

    __slots__ = ("_fill",)

    def __init__(self, fill: int, place: Place) -> None:
        super().__init__(place)
        self._fill = fill

    def take(self, shape: Sequence[int] | int, dtype: Any = np.uint8) -> Array:
        piece: Array = super().take(shape, dtype)
        self._pieces[-1].inside[...] = self._fill
        return piece

    def take_address(self, size: int) -> int:
        address = super().take_address(size)
        self._pieces[-1].inside[...] = self._fill
        return address


class Case:
    """One implementation made ready for one spec, and the means to call it."""

    def __init__(self, implementation: Implementation, built: Built, device: Device) -> None:
        self.implementation = implementation
        self.built = built
        self.spec = built.spec
        self.device = device
        self.place = place_of(device)
        self.plan = _plan(built, device)
        self.rng = np.random.default_rng(zlib.crc32(str(built.spec).encode()))
        self.limit = tolerance(built.spec, built.tags)
        self.trouble: list[str] = []

    def call(self, a: Array, b: Array, fill: int = POISON, *, bound: bool = False) -> Array:
        """The result of one call among rings, on the CPU; what it broke goes to `trouble`."""
        to_host = self.place.to_host
        with self.place.current():
            rings, workspace = Rings(self.place), _Scratch(fill, self.place)
            left, right, out = rings.operands(self.spec, a, b, fill)
            before = to_host(left).tobytes(), to_host(right).tobytes()
            if bound:
                BoundPlan(self.plan, self.built.runner.bind(right)).run(left, out, workspace)
            else:
                self.plan.run(left, right, out, workspace)
            if (to_host(left).tobytes(), to_host(right).tobytes()) != before:
                self.trouble.append("changes an operand")
            if rings.broken():
                self.trouble.append("writes outside the arrays it was given")
            if workspace.trespassed:
                self.trouble.append("writes outside its workspace")
            return to_host(out)

    def wrong(self, result: Array, expected: Array, what: str = "result") -> Iterator[str]:
        """A sentence when `result` is further from `expected` than rounding explains."""
        error = relative_error(result, expected, self.spec.reduction_length**0.5 / 3)
        if not error <= self.limit:
            off = np.abs(np.asarray(result, np.float64) - expected)
            worst = np.unravel_index(int(np.argmax(np.where(np.isnan(off), np.inf, off))), off.shape)
            yield f"{what} is off by {error:.2e} (limit {self.limit:.2e}), worst at {tuple(map(int, worst))}"
