"""Algorithms that are matrix products on whatever device: NumPy's BLAS on the CPU, cuBLAS on a GPU.

What is for GPUs is imported where it is used: a plan for the CPU does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Protocol

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Traits
from autoconv.impls.cpu._blas import BlasImplementation, gemm_s
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec

__all__ = [
    "GemmImplementation",
    "Multiplier",
    "arithmetic_traits",
    "arithmetics",
    "move_s",
    "multiplier",
    "product_s",
    "scratch",
]

UNITS = {"tf32": "tf32", "3xtf32": "tf32"}  # of a GPU, where they are not the dtype's own
DENSE = 0.7  # of a GPU's peak, for a large product


class Multiplier(Protocol):
    """`out = a @ b`, or `out += a @ b`, for stacks of matrices whose rows or columns are contiguous."""

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace, *, accumulate: bool = False) -> None: ...


class _HostMultiply:
    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace, *, accumulate: bool = False) -> None:
        if not accumulate:
            np.matmul(a, b, out=out)
            return
        mark = workspace.mark()
        term = workspace.take(out.shape, out.dtype)
        np.matmul(a, b, out=term)
        out += term
        workspace.release(mark)


def multiplier(device: Device, config: Config) -> Multiplier:
    """The device's product, in the arithmetic of `config`."""
    if device.kind == "cpu":
        return _HostMultiply()
    from autoconv.impls.cuda import _cublas

    return _cublas.Multiply(device, str(config["arithmetic"]))


def arithmetics(spec: ConvSpec, device: Device) -> tuple[str, ...]:
    """What matrix products of a GPU may compute `spec` in, the most promising first."""
    from autoconv.impls.cuda import _cublas

    return ("strict", "3xtf32", "tf32") if spec.dtype == "f32" and _cublas.has_tf32(device) else ("strict",)


def arithmetic_traits(plain: Traits, config: Config) -> Traits:
    """Those of a product in the arithmetic of `config`: an infinity's low part times zero is no number."""
    arithmetic = config.get("arithmetic", "strict")
    return plain if arithmetic == "strict" else Traits(plain.tags | {str(arithmetic)}, plain.deterministic, False)


def move_s(spec: ConvSpec, device: Device, elements: int, element_s: float) -> float:
    """Rough seconds to copy so many elements, at `element_s` each on the CPU."""
    if device.kind == "cpu" or not elements:
        return elements * element_s
    from autoconv.impls.cuda import _roofline

    return _roofline.seconds(spec, device, 0, 2.0 * elements * spec.itemsize)


class GemmImplementation(BlasImplementation):
    """A rewrite into matrix products, a leaf: on a GPU a config per arithmetic, on the CPU one."""

    dtypes = frozenset({"f16", "bf16", "f32", "f64"})
    devices = frozenset({"cpu", "cuda"})
    tags = frozenset({"gemm", "rewrite"})
    config_tags = frozenset({"tf32", "3xtf32"})
    capturable = False

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A library for the dtype, and on a GPU an arithmetic that it has."""
        if device.kind == "cpu":
            yield spec.dtype in ("f32", "f64"), f"does f32 or f64 on the CPU, got {spec.dtype}"
            yield not config, f"has no configs on the CPU, got {config}"
            yield from super().restrictions(spec, device, config)
            return
        from autoconv.impls.cuda import _cublas

        if config is not None:
            known = arithmetics(spec, device)
            yield config.get("arithmetic") in known, f"computes in {' or '.join(known)} here, got {config}"
        largest = max(*spec.input_shape, *spec.output_shape, prod(spec.output_spatial) * max(spec.batch, 1))
        yield largest <= _cublas.LONGEST, f"needs matrices with edges below 2^31, got {largest}"
        yield from self.needs(spec, config)

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Nothing to tune on the CPU; on a GPU how float32 is multiplied."""
        if device.kind == "cpu":
            return (Config(),)
        return tuple(Config(arithmetic=arithmetic) for arithmetic in arithmetics(spec, device))

    def traits(self, config: Config) -> Traits:
        """TF32 shortens the operands."""
        return arithmetic_traits(super().traits(config), config)

    def libraries(self, config: Config) -> tuple[str, ...]:
        """CuPy, on a GPU."""
        return ("cupy",) if "arithmetic" in config else ()

    def environment(self, config: Config) -> Mapping[str, str]:
        """The BLAS's version, or CuPy's and the driver's."""
        if "arithmetic" not in config:
            return super().environment(config)
        from autoconv.impls.cuda._versions import versions

        return versions()


def product_s(m: int, k: int, n: int, count: int, spec: ConvSpec, device: Device, config: Config) -> float:
    """Rough seconds of `count` products (m, k) x (k, n) on the device."""
    if device.kind == "cpu":
        return gemm_s(m, k, n, count, spec, device)
    from autoconv.impls.cuda import _roofline

    arithmetic = str(config.get("arithmetic", "strict"))
    times = 3 if arithmetic == "3xtf32" else 1
    unit = {"f64": "double", "f16": "half", "bf16": "half"}.get(spec.dtype, UNITS.get(arithmetic, ""))
    moved = count * (m * k + k * n + m * n) * spec.itemsize * times
    return _roofline.seconds(spec, device, 2.0 * times * count * m * k * n, float(moved), unit, DENSE)


def scratch(config: Config, *shapes: Sequence[int]) -> list[int]:
    """Elements of the pieces of workspace that a product of operands of these shapes takes on a GPU."""
    if config.get("arithmetic", "strict") == "strict":
        return []
    from autoconv.impls.cuda import _cublas

    return _cublas.scratch(str(config["arithmetic"]), *shapes)
