"""From SciPy's modes and boundaries to a convolution: who is the image, what of it is seen, what lies around it.

Everything is told by indices of the full result: along an axis of n and k elements it has n + k - 1. Element m of a
convolution is the sum over j of first[m - j] * second[j], that of a correlation of first[m - (k - 1) + j] * second[j].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.errors import InvalidOption, InvalidSpec
from autoconv.places import home_of, is_cupy, place_of

__all__ = ["Problem", "arrange", "boundary_of", "fill_of"]

MODES = ("full", "same", "valid")
BOUNDARIES = {
    "fill": "fill", "pad": "fill", "wrap": "wrap", "circular": "wrap", "symm": "symm", "symmetric": "symm",
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A convolution or correlation of an image with a filter: both inputs as they will be handed on."""

    swapped: bool  # the second input is the image
    reversed: bool  # the result comes out backwards
    image_shape: tuple[int, ...]  # what is handed on of the image: cropped, or extended beyond its boundary
    kernel_shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    result_shape: tuple[int, ...]
    crop: tuple[slice, ...] | None = None
    pixels: tuple[Array, ...] | None = None  # per axis, the pixel at each place of the extended image; -1 is `fill`
    fill: float = 0.0

    def see(self, image: Array) -> Array:
        """What of the image, and around it, the filter meets."""
        if self.pixels is not None and is_cupy(image):
            seen: Array = self._see_on_gpu(image)
            return seen
        if self.pixels is not None:
            seen = image[np.ix_(*self.pixels)]
            if self.fill:
                for axis, pixels in enumerate(self.pixels):
                    seen[(slice(None),) * axis + (pixels < 0,)] = self.fill
            return seen
        return image if self.crop is None else image[self.crop]

    def _see_on_gpu(self, image: Any) -> Any:
        """The same where every index has to be on the GPU too, one axis after the other."""
        assert self.pixels is not None
        cupy = place_of(home_of(image)).xp
        for axis, pixels in enumerate(self.pixels):
            image = cupy.take(image, cupy.asarray(np.maximum(pixels, 0)), axis=axis)
        for axis, pixels in enumerate(self.pixels):
            outside = np.flatnonzero(pixels < 0)
            if len(outside):  # before the image and behind it
                last = int(np.searchsorted(pixels >= 0, True)) if pixels[0] < 0 else 0
                for part in (slice(0, last), slice(last + int((pixels >= 0).sum()), None)):
                    image[(slice(None),) * axis + (part,)] = self.fill
        return image


def boundary_of(word: Any) -> str:
    """SciPy's name of a boundary, or its longer form, as "fill", "wrap" or "symm"."""
    found = BOUNDARIES.get(word) if isinstance(word, str) else None
    if found is None:
        raise InvalidOption(f"boundary must be 'fill', 'wrap' (or 'circular') or 'symm' (or 'symmetric'), got {word!r}")
    return found


def fill_of(value: Any) -> float:
    """One real number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise InvalidOption(f"fillvalue must be one real number, got {value!r}")
    return float(array.item())


def arrange(
    first: tuple[int, ...],
    second: tuple[int, ...],
    mode: Any,
    *,
    convolution: bool,
    late: bool = False,
    boundary: str = "fill",
    fill: float = 0.0,
    may_swap: bool = True,
) -> Problem:
    """The problem of two shapes. `late` centres "same" as `correlate2d` does, half an element later for even sizes.

    Where both inputs have zeros around them either may be the filter; the smaller one is, if they may be swapped.

    Raises `InvalidOption` for an unknown mode, `InvalidSpec` for shapes that do not fit together in mode "valid".
    """
    if mode not in MODES:
        raise InvalidOption(f"mode must be 'full', 'same' or 'valid', got {mode!r}")
    whole = [n + k - 1 for n, k in zip(first, second, strict=True)]
    windows = _windows(first, second, mode, late)
    extended = mode != "valid" and (boundary != "fill" or fill != 0)
    swapped = may_swap and not extended and prod(second) > prod(first)
    if swapped:
        first, second = second, first
        if not convolution:  # the correlation of the second with the first is that of the first with it, backwards
            windows = [(size - high, size - low) for size, (low, high) in zip(whole, windows, strict=True)]
    seen = [(low - (k - 1), high) for (low, high), k in zip(windows, second, strict=True)]
    result = tuple(high - low for low, high in windows)
    if extended:
        pixels = tuple(_pixels(start, stop, size, boundary) for (start, stop), size in zip(seen, first, strict=True))
        shape, padding = tuple(map(len, pixels)), ((0, 0),) * len(first)
        return Problem(False, False, shape, second, padding, result, pixels=pixels, fill=fill)
    crop = tuple(slice(max(start, 0), min(stop, size)) for (start, stop), size in zip(seen, first, strict=True))
    return Problem(
        swapped=swapped,
        reversed=swapped and not convolution,
        image_shape=tuple(part.stop - part.start for part in crop),
        kernel_shape=second,
        padding=tuple((max(-start, 0), max(stop - size, 0)) for (start, stop), size in zip(seen, first, strict=True)),
        result_shape=result,
        crop=None if all(part == slice(0, size) for part, size in zip(crop, first, strict=True)) else crop,
    )


def _windows(first: Sequence[int], second: Sequence[int], mode: str, late: bool) -> list[tuple[int, int]]:
    """Per axis, the part of the full result that the mode keeps."""
    axes = list(zip(first, second, strict=True))
    if mode == "full":
        return [(0, n + k - 1) for n, k in axes]
    if mode == "same":
        return [(start, start + n) for n, k in axes for start in [k // 2 if late else (k - 1) // 2]]
    if not (all(n >= k for n, k in axes) or all(n <= k for n, k in axes)):
        raise InvalidSpec(
            "mode 'valid' needs one input at least as large as the other along every axis, "
            f"got shapes {tuple(first)} and {tuple(second)}"
        )
    return [(min(n, k) - 1, max(n, k)) for n, k in axes]


def _pixels(start: int, stop: int, size: int, boundary: str) -> Array:
    places = np.arange(start, stop)
    if boundary == "wrap":
        return places % size
    if boundary == "symm":
        folded = places % (2 * size)
        return np.minimum(folded, 2 * size - 1 - folded)
    return np.where((places >= 0) & (places < size), places, -1)
