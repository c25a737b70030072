"""Convolution by spectra: fast sizes, transforms that skip what is zero or not wanted, and the products between.

All three operations are windows of one thing, a full linear convolution along every axis:

======  ==========  ============================  ==================
        data        filter                        summed over
======  ==========  ============================  ==================
fprop   x           w in order of convolution     input channels
dgrad   dy          w in order of correlation     output channels
wgrad   x           dy turned round               images
======  ==========  ============================  ==================

Dilated filters are spread out with zeros; for wgrad the result is read at every dilation-th place instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod, sqrt
from typing import Any, Literal, Protocol

import numpy as np

from autoconv.arrays import Array
from autoconv.impls._tiles import last_axes, reversed_taps
from autoconv.spec import ConvSpec, Op

__all__ = [
    "COMPLEX",
    "ByLines",
    "Library",
    "Product",
    "ProductCosts",
    "awkwardness",
    "fast_size",
    "filter_extents",
    "half_shape",
    "installed",
    "library",
    "library_elements",
    "load_filters",
]

COMPLEX: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.complex64), "f64": np.dtype(np.complex128)}
NORM: Literal["ortho"] = "ortho"
"""NumPy computes float32 transforms in float32 only when they are scaled; the square root is made good at the end."""


@cache
def fast_size(minimum: int, *, even: bool = False) -> int:
    """The smallest 2^a 3^b 5^c that is at least `minimum` (and even)."""
    best = 1 << max(minimum - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three * (1 << max(-(-minimum // three) - 1, 0).bit_length())
            if even and size % 2:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def awkwardness(size: int) -> float:
    """How many times as long as a fast size's a transform takes: 1 for 2^a 3^b 5^c, up to 4 for large primes."""
    rest = size
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return min(1.0 + 0.06 * (rest - 1), 4.0)


def half_shape(sizes: Sequence[int]) -> tuple[int, ...]:
    """Shape of the spectrum of a real box: the last axis is half there, the rest follows by symmetry."""
    return (*sizes[:-1], sizes[-1] // 2 + 1)


# Libraries ----------------------------------------------------------------------------------------


class Library(Protocol):
    """Transforms of boxes. One that is not `padded` takes operands as they are, shorter than the box."""

    padded: bool

    def scale(self, sizes: Sequence[int]) -> float:
        """What a transform, a product with another, and the transform back must be multiplied by."""

    def transform(self, data: Array, spectrum: Array, sizes: Sequence[int]) -> None:
        """Spectrum (..., half shape) of real `data` (..., extents) at the low corner of a box of `sizes`."""

    def untransform(self, spectrum: Array, box: Array, sizes: Sequence[int], wanted: Sequence[slice]) -> Array:
        """The `wanted` window of the real box whose spectrum is given, a view of `box`; the spectrum is overwritten."""


class ByLines:
    """Transforms along one axis after the other, so that lines of zeros, or of what is not wanted, are left out.

    Each is scaled by 1/sqrt(n) both ways; `real` pads input that is shorter than n.
    """

    padded = False

    def scale(self, sizes: Sequence[int]) -> float:
        """Of the three square roots two cancel."""
        return sqrt(prod(sizes))

    def transform(self, data: Array, spectrum: Array, sizes: Sequence[int]) -> None:
        """Lines that are nothing but zeros are not transformed."""
        rank = len(sizes)
        extents = data.shape[-rank:]
        filled = tuple(slice(0, extent) for extent in extents[:-1])
        corner = last_axes(spectrum, *filled, slice(None))
        self.real(data, sizes[-1], data.ndim - 1, corner)
        for axis in range(rank - 2, -1, -1):
            filled = tuple(slice(0, extent) for extent in extents[:axis])
            behind = (slice(None),) * (rank - axis - 1)
            part = last_axes(spectrum, *filled, slice(None), *behind)
            last_axes(part, slice(extents[axis], None), *behind)[...] = 0
            self.forward(part, part.ndim - rank + axis)

    def untransform(self, spectrum: Array, box: Array, sizes: Sequence[int], wanted: Sequence[slice]) -> Array:
        """Lines outside the window are not transformed."""
        rank = len(sizes)
        part = spectrum
        for axis in range(rank - 1):
            at = part.ndim - rank + axis
            self.backward(part, at)
            part = last_axes(part, wanted[axis], *(slice(None),) * (rank - axis - 1))
        rows = last_axes(box, *wanted[:-1], slice(None))
        self.unreal(part, sizes[-1], part.ndim - 1, rows)
        return last_axes(rows, wanted[-1])

    def real(self, data: Array, n: int, axis: int, out: Array) -> None:
        """Half the spectrum of real lines."""
        raise NotImplementedError

    def forward(self, data: Array, axis: int) -> None:
        """Complex lines, in place."""
        raise NotImplementedError

    def backward(self, data: Array, axis: int) -> None:
        """Back again, in place."""
        raise NotImplementedError

    def unreal(self, data: Array, n: int, axis: int, out: Array) -> None:
        """Real lines from half their spectrum."""
        raise NotImplementedError


class _NumpyFft(ByLines):
    """numpy.fft: one thread, works in place without memory of its own."""

    def real(self, data: Array, n: int, axis: int, out: Array) -> None:
        np.fft.rfft(data, n, axis, NORM, out=out)

    def forward(self, data: Array, axis: int) -> None:
        np.fft.fft(data, axis=axis, norm=NORM, out=data)

    def backward(self, data: Array, axis: int) -> None:
        np.fft.ifft(data, axis=axis, norm=NORM, out=data)

    def unreal(self, data: Array, n: int, axis: int, out: Array) -> None:
        np.fft.irfft(data, n, axis, NORM, out=out)


class _ScipyFft(ByLines):
    """scipy.fft: several lines at once in vector registers, several threads; results are new arrays."""

    def __init__(self, workers: int) -> None:
        import scipy.fft

        self._fft = scipy.fft
        self._workers = workers

    def real(self, data: Array, n: int, axis: int, out: Array) -> None:
        out[...] = self._fft.rfft(data, n, axis, NORM, workers=self._workers)

    def forward(self, data: Array, axis: int) -> None:
        self._store(self._fft.fft(data, None, axis, NORM, overwrite_x=True, workers=self._workers), data)

    def backward(self, data: Array, axis: int) -> None:
        self._store(self._fft.ifft(data, None, axis, NORM, overwrite_x=True, workers=self._workers), data)

    def unreal(self, data: Array, n: int, axis: int, out: Array) -> None:
        out[...] = self._fft.irfft(data, n, axis, NORM, workers=self._workers)

    @staticmethod
    def _store(result: Array, target: Array) -> None:
        if not np.may_share_memory(result, target):  # in place when SciPy can
            target[...] = result


def library(name: str, threads: int) -> ByLines:
    """The transforms of `"numpy"` or `"scipy"`; the latter is imported here and nowhere else."""
    return _ScipyFft(threads) if name == "scipy" else _NumpyFft()


def installed(name: str) -> bool:
    """Whether the transforms of `"numpy"` or `"scipy"` are there; nothing is imported to find out."""
    return name == "numpy" or find_spec("scipy") is not None


def library_elements(name: str, box: int) -> int:
    """Real elements the library allocates itself to transform boxes of so many elements."""
    # SciPy gives new arrays, as large as the spectrum, and pads its input in a copy; NumPy is told where to write
    return 2 * box + 2 * (box + box // 8) if name == "scipy" else 0


# Filters ------------------------------------------------------------------------------------------


def filter_extents(spec: ConvSpec) -> tuple[int, ...]:
    """Size of the filters with zeros between their taps."""
    return tuple((kernel - 1) * dilation + 1 for kernel, dilation in zip(spec.kernel, spec.dilation, strict=True))


def load_filters(filters: Array, spread: Array, spec: ConvSpec) -> None:
    """Filters with zeros between their taps, turned so that an operation is a true convolution with them."""
    turned = filters if spec.flip == (spec.op is Op.FPROP) else reversed_taps(filters, spec.rank)
    if max(spec.dilation) > 1:
        spread[...] = 0
    last_axes(spread, *(slice(None, None, d) for d in spec.dilation))[...] = turned


# Products -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProductCosts:
    """Seconds: a complex multiply-add term by term, a small matrix product, a multiply-add inside it, and per number
    brought into or out of the order of matrix products."""

    term_s: float
    matrix_s: float
    matrix_term_s: float
    copy_s: float


CPU_COSTS = ProductCosts(1.6e-9, 0.35e-6, 0.20e-9, 7e-9)

Matmul = Callable[[Array, Array, Array], Any]
"""`(a, b, out)`, on stacks of matrices that may lie by rows or by columns."""


def numpy_matmul(a: Array, b: Array, out: Array) -> None:
    """NumPy's."""
    np.matmul(a, b, out=out)


class Product:
    """The sum over channels (or, for wgrad, over boxes) at every frequency.

    Spectra come as (boxes, channels, frequencies) and, for filters, (K, C/groups, frequencies). Short
    sums go term by term. Long ones are matrix products, one per frequency and group, on copies with the
    frequencies first: (frequencies, groups, boxes, channels per group) and (frequencies, groups, K/groups, C/groups).
    """

    def __init__(
        self,
        spec: ConvSpec,
        frequencies: int,
        boxes: int,
        costs: ProductCosts = CPU_COSTS,
        matmul: Matmul = numpy_matmul,
    ) -> None:
        self._matmul = matmul
        self._op = spec.op
        self._groups = spec.groups
        self._channels, self._kernels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self.frequencies = frequencies
        self.summed = {Op.FPROP: self._channels, Op.DGRAD: self._kernels, Op.WGRAD: boxes}[spec.op]
        terms, matrices = self._seconds(boxes, costs, fixed=spec.fixed)
        self.by_terms = terms <= matrices
        self.seconds = min(terms, matrices)  # for all boxes

    def _seconds(self, boxes: int, costs: ProductCosts, *, fixed: bool) -> tuple[float, float]:
        sites = self.frequencies * self._groups
        terms = boxes * self._channels * self._kernels
        copied = boxes * (self._channels + self._kernels) + (0 if fixed else self._channels * self._kernels)
        by_matrices = costs.matrix_s + terms * costs.matrix_term_s + copied * costs.copy_s
        return sites * terms * costs.term_s, sites * by_matrices

    def box_shape(self, boxes: int, channels: int) -> tuple[int, ...]:
        """Shape in which a product takes or gives the spectra of boxes."""
        if self.by_terms:
            return boxes, channels, self.frequencies
        return self.frequencies, self._groups, boxes, channels // self._groups

    def filter_shape(self) -> tuple[int, ...]:
        """Shape in which a product takes or gives the spectra of filters."""
        if self.by_terms:
            return self._groups * self._kernels, self._channels, self.frequencies
        return self.frequencies, self._groups, self._kernels, self._channels

    def box_view(self, ordered: Array) -> Array:
        """Spectra in a product's order as (boxes, groups, channels per group, frequencies)."""
        if self.by_terms:
            boxes, channels, frequencies = ordered.shape
            return ordered.reshape(boxes, self._groups, channels // self._groups, frequencies)
        return ordered.transpose(2, 1, 3, 0)

    def filter_view(self, ordered: Array) -> Array:
        """Filter spectra in a product's order as (groups, K/groups, C/groups, frequencies)."""
        if self.by_terms:
            return ordered.reshape(self._groups, self._kernels, self._channels, self.frequencies)
        return ordered.transpose(1, 2, 3, 0)

    def multiply(self, data: Array, filters: Array, out: Array, term: Array) -> None:
        """fprop and dgrad: boxes times filters into boxes, all in a product's order; `term` is like `out`."""
        if not self.by_terms:
            self._matmul(data, filters.swapaxes(-1, -2) if self._op is Op.FPROP else filters, out)
            return
        left, right, result = self.box_view(data), self.filter_view(filters), self.box_view(out)
        scratch = self.box_view(term) if self.summed > 1 else result
        for index in range(self.summed):
            factor = right[:, :, index] if self._op is Op.FPROP else right[:, index]
            np.multiply(left[:, :, index, None], factor, out=scratch if index else result)
            if index:
                result += scratch

    def accumulate(self, image: Array, gradient: Array, total: Array, term: Array, *, first: bool) -> None:
        """wgrad: add the sum over some boxes to `total`, or begin it."""
        if not self.by_terms:
            self._matmul(gradient.swapaxes(-1, -2), image, total if first else term)
            if not first:
                total += term
            return
        left, right = self.box_view(gradient), self.box_view(image)
        result, scratch = self.filter_view(total), self.filter_view(term)
        for box in range(left.shape[0]):
            begin = first and not box
            np.multiply(left[box, :, :, None], right[box, :, None], out=result if begin else scratch)
            if not begin:
                result += scratch
