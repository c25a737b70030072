"""pylearn2's wrapper of cuda-convnet: images last in memory (`c01b`), filters as `c01o`, not flipped.

The three operations pin `native.chwn`, which keeps the original's restrictions and works in its layout. Results
follow cuda-convnet's rule for sizes: ceil((image + 2 pad - filter) / stride) + 1, zeros lying beyond the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from autoconv import convolving
from autoconv.arrays import Array
from autoconv.compat.theano._pins import operand, per_axis, pinned
from autoconv.errors import InvalidSpec

__all__ = ["FilterActs", "ImageActs", "WeightActs"]

ALGORITHM = "native.chwn"
IMAGES = "channels, rows, columns, batch"
FILTERS = "channels, rows, columns, filters"
RESULTS = "filters, rows, columns, batch"
FEW_CHANNELS = 3
FILTERS_MULTIPLE = 16


class _Acts:
    """Options that the three operations share.

    Parameters
    ----------
    stride : int
        Of both axes.
    partial_sum : int, optional
        Results that cuda-convnet summed at a time in `WeightActs`; it must divide their number, and changes nothing.
    pad : int
        Zeros on every side.
    """

    channels_multiple = 2

    def __init__(self, stride: int = 1, partial_sum: int | None = None, pad: int = 0) -> None:
        (self.stride,) = per_axis(stride, "stride", 1)
        (self.pad,) = per_axis(pad, "pad", 1, least=0)
        self.partial_sum = None if partial_sum is None else per_axis(partial_sum, "partial_sum", 1)[0]

    def _check(self, channels: int, filters: int, kernel: Sequence[int]) -> None:
        many = self.channels_multiple
        if channels > FEW_CHANNELS and channels % many:
            rule = "even" if many == 2 else f"a multiple of {many}"
            raise InvalidSpec(f"channels must be at most {FEW_CHANNELS} or {rule}, got {channels}")
        if filters % FILTERS_MULTIPLE:
            raise InvalidSpec(f"filters must be a multiple of {FILTERS_MULTIPLE}, got {filters}")
        if kernel[0] != kernel[1]:
            raise InvalidSpec(f"filters must be square, got {kernel[0]}x{kernel[1]}")

    def _surplus(self, size: Sequence[int], taps: int) -> tuple[int, int]:
        """Zeros that rounding the result's size up appends to rows and columns."""
        if min(size) + 2 * self.pad < taps:
            raise InvalidSpec(f"filters of {taps}x{taps} do not fit images of {tuple(size)} padded by {self.pad}")
        rows, columns = (-(pixels + 2 * self.pad - taps) % self.stride for pixels in size)
        return rows, columns

    def _out(self, size: Sequence[int], taps: int) -> tuple[int, ...]:
        return tuple(ceil((pixels + 2 * self.pad - taps) / self.stride) + 1 for pixels in size)

    @property
    def _options(self) -> dict[str, Any]:
        return {"border_mode": self.pad, "subsample": self.stride, "filter_flip": False}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stride={self.stride}, partial_sum={self.partial_sum}, pad={self.pad})"


class FilterActs(_Acts):
    """`FilterActs(stride, partial_sum, pad)(images, filters)`: the forward correlation.

    >>> from autoconv.compat.theano import FilterActs
    >>> FilterActs(stride=2, pad=1)
    FilterActs(stride=2, partial_sum=None, pad=1)
    """

    def __call__(self, images: Any, filters: Any) -> Any:
        """Responses (filters, rows, columns, batch) of `images` (c01b) to `filters` (c01o)."""
        x, w = operand(images, "images", IMAGES), operand(filters, "filters", FILTERS)
        self._check(x.shape[0], w.shape[3], w.shape[1:3])
        grown = _grow(x, self._surplus(x.shape[1:3], w.shape[1]))
        with pinned("FilterActs", ALGORITHM):
            return _images_last(convolving.conv2d(_images_first(grown), _images_first(w), **self._options))


class WeightActs(_Acts):
    """`WeightActs(stride, partial_sum, pad)(images, hid_grads, output_shape)`: gradient of the filters."""

    channels_multiple = 4

    def __call__(self, images: Any, hid_grads: Any, output_shape: Sequence[int]) -> Any:
        """Gradient (c01o) of filters of `output_shape` rows and columns.

        `hid_grads` is the gradient of the responses, (filters, rows, columns, batch).
        """
        x, dy = operand(images, "images", IMAGES), operand(hid_grads, "hid_grads", RESULTS)
        kernel = per_axis(output_shape, "output_shape", 2)
        self._check(x.shape[0], dy.shape[0], kernel)
        results = prod(dy.shape[1:3])
        if self.partial_sum is not None and results % self.partial_sum:
            raise InvalidSpec(f"partial_sum must divide the {results} results per image, got {self.partial_sum}")
        grown = _grow(x, self._surplus(x.shape[1:3], kernel[0]))
        shape = (dy.shape[0], x.shape[0], *kernel)
        with pinned("WeightActs", ALGORITHM):
            gradient = convolving.conv2d_grad_wrt_weights(
                _images_first(grown), _images_first(dy), shape, **self._options
            )
        return _images_last(gradient)


class ImageActs(_Acts):
    """`ImageActs(stride, partial_sum, pad)(hid_grads, filters, output_shape)`: gradient of the images."""

    def __call__(self, hid_grads: Any, filters: Any, output_shape: Sequence[int]) -> Any:
        """Gradient (c01b) of images of `output_shape` rows and columns."""
        dy, w = operand(hid_grads, "hid_grads", RESULTS), operand(filters, "filters", FILTERS)
        self._check(w.shape[0], w.shape[3], w.shape[1:3])
        size = per_axis(output_shape, "output_shape", 2)
        rows, columns = self._surplus(size, w.shape[1])
        if dy.shape[1:3] != self._out(size, w.shape[1]):
            raise InvalidSpec(
                f"hid_grads must have {self._out(size, w.shape[1])} rows and columns for images of {size}, "
                f"got {dy.shape[1:3]}"
            )
        shape = (None, None, size[0] + rows, size[1] + columns)
        with pinned("ImageActs", ALGORITHM):
            gradient = convolving.conv2d_grad_wrt_inputs(_images_first(dy), _images_first(w), shape, **self._options)
        return _images_last(gradient)[:, : size[0], : size[1]]


def _images_first(array: Array) -> Array:
    """(channels, rows, columns, last) as a view (last, channels, rows, columns): autoconv's `chwn` layout."""
    return array.transpose(3, 0, 1, 2)


def _images_last(array: Any) -> Any:
    return array.transpose(1, 2, 3, 0)


def _grow(images: Array, surplus: tuple[int, int]) -> Array:
    if surplus == (0, 0):
        return images
    return np.pad(images, ((0, 0), (0, surplus[0]), (0, surplus[1]), (0, 0)))
