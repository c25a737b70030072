"""Shape arithmetic of convolutions: pure functions on integers, any rank.

Every function takes one entry per spatial axis. Nothing here knows arrays, layouts or dtypes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

from autoconv.errors import InvalidSpec, InvalidType

__all__ = ["Pads", "as_int", "dilated", "dot_length", "output_extent", "per_axis", "resolve_padding", "same_pads"]

Pads = tuple[tuple[int, int], ...]

MODES = ("valid", "full", "half", "same")


def as_int(value: Any, name: str, minimum: int = 0) -> int:
    """`value` as a Python int of at least `minimum`; booleans and fractions are refused."""
    if isinstance(value, bool):
        raise InvalidSpec(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidSpec(f"{name} must be an integer, got {value!r}") from None
    if number < minimum:
        raise InvalidSpec(f"{name} must be at least {minimum}, got {number}")
    return number


def per_axis(value: Any, rank: int, name: str, minimum: int = 1) -> tuple[int, ...]:
    """One int for every axis, or one int per axis, as a tuple of `rank` ints."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return (as_int(value, name, minimum),) * rank
    entries = tuple(value)
    if len(entries) != rank:
        raise InvalidSpec(f"{name} needs {rank} entries, one per spatial axis, got {entries!r}")
    return tuple(as_int(entry, name, minimum) for entry in entries)


def dilated(kernel: int, dilation: int) -> int:
    """Extent of a dilated kernel: (kernel - 1) * dilation + 1."""
    return (kernel - 1) * dilation + 1


def output_extent(size: int, kernel: int, before: int, after: int, stride: int, dilation: int) -> int:
    """floor((size + before + after - dilated kernel) / stride) + 1; not positive when nothing fits."""
    return (size + before + after - dilated(kernel, dilation)) // stride + 1


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding that makes the output ceil(size / stride); an odd zero goes after."""
    total = max((-(-size // stride) - 1) * stride + dilated(kernel, dilation) - size, 0)
    return total // 2, total - total // 2


def resolve_padding(
    border_mode: Any,
    in_spatial: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """Explicit (before, after) zeros per axis for any spelling of `border_mode`.

    `"valid"` pads nothing, `"full"` by the dilated kernel - 1, `"half"` by the dilated kernel // 2,
    `"same"` so that the output is ceil(input / stride); an int, a tuple of ints (one per axis) or a
    tuple of (before, after) pairs is taken as it is. Raises `InvalidSpec` for anything else.
    """
    rank = len(kernel)
    if isinstance(border_mode, str):
        extents = [dilated(k, d) for k, d in zip(kernel, dilation, strict=True)]
        if border_mode == "valid":
            return ((0, 0),) * rank
        if border_mode == "full":
            return tuple((extent - 1, extent - 1) for extent in extents)
        if border_mode == "half":
            return tuple((extent // 2, extent // 2) for extent in extents)
        if border_mode == "same":
            axes = zip(in_spatial, kernel, stride, dilation, strict=True)
            return tuple(same_pads(*axis) for axis in axes)
        raise InvalidSpec(
            f"border_mode must be one of {', '.join(MODES)}, an int, ints or (before, after) pairs, got {border_mode!r}"
        )
    if not hasattr(border_mode, "__iter__"):
        return ((as_int(border_mode, "border_mode"),) * 2,) * rank
    entries = tuple(border_mode)
    if len(entries) != rank:
        raise InvalidSpec(f"border_mode needs {rank} entries, one per spatial axis, got {border_mode!r}")
    return tuple(_pair(entry) for entry in entries)


def _pair(entry: Any) -> tuple[int, int]:
    if isinstance(entry, str) or not hasattr(entry, "__iter__"):
        pad = as_int(entry, "border_mode")
        return pad, pad
    pair = tuple(entry)
    if len(pair) != 2:
        raise InvalidSpec(f"border_mode's pairs are (before, after), got {entry!r}")
    return as_int(pair[0], "border_mode"), as_int(pair[1], "border_mode")


def dot_length(in_channels: int, groups: int, kernel: Sequence[int]) -> int:
    """Number of products summed into one output of the forward operation."""
    return in_channels // groups * prod(kernel)


def check_rank(shape: Sequence[int], rank: int, name: str) -> tuple[int, ...]:
    """`shape` as a tuple, if it has `rank` spatial axes after its first two."""
    if len(shape) != rank + 2:
        raise InvalidType(f"{name} needs {rank + 2} dimensions, got {len(shape)}: {tuple(shape)}")
    return tuple(shape)
