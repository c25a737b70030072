"""Which part of the image and of the output each kernel position joins: what tap-by-tap algorithms loop over."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

from autoconv.spec import ConvSpec

__all__ = ["Index", "taps"]

Index: TypeAlias = tuple[Any, ...]
"""One entry per spatial axis: a slice of the image or the output, or a position in the filters."""


def taps(spec: ConvSpec) -> Iterator[tuple[Index, Index, Index]]:
    """For every kernel position: its index in the filters, and the image and output windows it joins."""
    axes = []
    for size, kernel, (before, _), stride, dilation, out in zip(
        spec.in_spatial, spec.kernel, spec.padding, spec.stride, spec.dilation, spec.output_spatial, strict=True
    ):
        windows = []
        for tap in range(kernel):
            offset = tap * dilation - before  # image position under this tap for output 0
            first = max(0, -(offset // stride))
            last = min(out - 1, (size - 1 - offset) // stride)
            if first <= last:
                image = slice(first * stride + offset, last * stride + offset + 1, stride)
                index = kernel - 1 - tap if spec.flip else tap
                windows.append((index, image, slice(first, last + 1)))
        axes.append(windows)
    for combination in product(*axes):
        index, image, result = zip(*combination, strict=True)
        yield index, image, result
