"""A spec's sizes and a config's tunables as the constants of a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd, prod

from autoconv import arrays
from autoconv.evidence import Config
from autoconv.spec import ConvSpec

__all__ = ["distances", "index_type", "listed", "number", "pack", "wants"]

WIDEST_LOAD = 16  # bytes that one instruction of a thread reads or writes


def listed(values: Iterable[int]) -> str:
    """A list for braces in C."""
    return ",".join(map(str, values))


def number(config: Config, key: str) -> int:
    """A tunable that is a number."""
    value = config[key]
    assert isinstance(value, int)
    return value


def wants(config: Config, keys: set[str]) -> tuple[bool, str]:
    """Whether a config consists of positive numbers under `keys`, and the refusal of one that does not."""
    known = set(config) == keys and all(isinstance(value, int) and value > 0 for value in config.values())
    return known, f"needs a config with {', '.join(sorted(keys))}, got {config}"


def distances(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Elements from one index to the next along each axis of a dense array."""
    return arrays.dense_strides(shape, layout, 1)


def index_type(spec: ConvSpec) -> str:
    """`int`, or `i64` where an offset into an array, padding counted, may reach 2^31."""
    padded = [size + sum(pads) for size, pads in zip(spec.in_spatial, spec.padding, strict=True)]
    largest = max(
        max(spec.batch, 1) * spec.in_channels * prod(padded), *map(prod, (spec.filter_shape, spec.output_shape))
    )
    return "i64" if largest >= 2**31 - 2**20 else "int"  # what the last block counts beyond the end is less than 2^20


def pack(spec: ConvSpec, distance: int, *multiples: int) -> int:
    """Neighbouring channels that one instruction may take, `distance` apart: they divide each of `multiples`."""
    return gcd(WIDEST_LOAD // spec.itemsize, *multiples) if distance == 1 else 1
