"""`theano.tensor.nnet.corr` and `theano.sandbox.cuda.blas`: correlation by Toeplitz matrix and GEMM.

Operations are objects, made with the options and called with the arrays, as in Theano. None flips the
filters. All pin `numpy.im2col`, the same algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from autoconv import convolving
from autoconv.compat.theano._pins import operand, per_axis, pinned
from autoconv.errors import InvalidSpec

__all__ = [
    "Corr3dMM",
    "Corr3dMM_gradInputs",
    "Corr3dMM_gradWeights",
    "CorrMM",
    "CorrMM_gradInputs",
    "CorrMM_gradWeights",
    "GpuCorr3dMM",
    "GpuCorr3dMM_gradInputs",
    "GpuCorr3dMM_gradWeights",
    "GpuCorrMM",
    "GpuCorrMM_gradInputs",
    "GpuCorrMM_gradWeights",
]

ALGORITHM = "numpy.im2col"
AXES = {2: "{0}, {1}, rows, columns", 3: "{0}, {1}, rows, columns, time"}
FORWARD = {2: convolving.conv2d, 3: convolving.conv3d}
INPUT_GRADIENT = {2: convolving.conv2d_grad_wrt_inputs, 3: convolving.conv3d_grad_wrt_inputs}
FILTER_GRADIENT = {2: convolving.conv2d_grad_wrt_weights, 3: convolving.conv3d_grad_wrt_weights}


class _Correlation:
    """Options that the three operations of a rank share.

    Parameters
    ----------
    border_mode : "valid", "full", "half", int or one int per axis
        Zeros around the images.
    subsample : one int per axis
        Stride of the output.
    pad : one int per axis
        Zeros around the images, in the older spelling; not together with a `border_mode` other than "valid".
    """

    rank: ClassVar[int]

    def __init__(self, border_mode: Any = "valid", subsample: Any = None, pad: Any = None) -> None:
        self.subsample = per_axis(1 if subsample is None else subsample, "subsample", self.rank)
        self.border_mode = border_mode
        if pad is not None and (pads := per_axis(pad, "pad", self.rank, least=0)) != (0,) * self.rank:
            if border_mode != "valid":
                raise InvalidSpec(f"give border_mode or pad, not both: got {border_mode!r} and {pad!r}")
            self.border_mode = pads

    @property
    def _options(self) -> dict[str, Any]:
        return {"border_mode": self.border_mode, "subsample": self.subsample, "filter_flip": False}

    def _axes(self, first: str, second: str) -> str:
        return AXES[self.rank].format(first, second)

    def _spatial(self, shape: Sequence[int] | None, needed: bool, what: str) -> tuple[int, ...] | None:
        """`shape`, which Theano asks for wherever it does not follow from the operands."""
        if shape is None:
            if needed:
                raise InvalidSpec(
                    f"{type(self).__name__} needs shape={what} with subsample {self.subsample} "
                    f"and border_mode {self.border_mode!r}"
                )
            return None
        return per_axis(shape, "shape", self.rank)

    def _pads(self, kernel: Sequence[int]) -> tuple[int, ...]:
        """Zeros before and after together, per axis."""
        if not isinstance(self.border_mode, str):
            return tuple(2 * pad for pad in per_axis(self.border_mode, "border_mode", self.rank, least=0))
        if self.border_mode not in ("valid", "full", "half"):
            raise InvalidSpec(f"border_mode must be valid, full, half or integers, got {self.border_mode!r}")
        whole = {"valid": 0, "full": 2}.get(self.border_mode)
        return tuple(2 * (taps // 2) if whole is None else whole * (taps - 1) for taps in kernel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(border_mode={self.border_mode!r}, subsample={self.subsample})"


class _Forward(_Correlation):
    def __call__(self, img: Any, kern: Any) -> Any:
        """Correlate `img` (batch, channels, spatial...) with `kern` (filters, channels, spatial...)."""
        operand(img, "img", self._axes("batch", "channels"))
        operand(kern, "kern", self._axes("filters", "channels"))
        with pinned(type(self).__name__, ALGORITHM):
            return FORWARD[self.rank](img, kern, **self._options)


class _GradWeights(_Correlation):
    def __call__(self, img: Any, topgrad: Any, shape: Sequence[int] | None = None) -> Any:
        """Gradient of the filters; `shape` is their spatial size, needed when strided or with border_mode "half"."""
        images = operand(img, "img", self._axes("batch", "channels"))
        gradient = operand(topgrad, "topgrad", self._axes("batch", "filters"))
        strided = self.subsample != (1,) * self.rank
        kernel = self._spatial(shape, strided or self.border_mode == "half", "the filters' spatial size")
        if kernel is None:
            pairs = zip(images.shape[2:], gradient.shape[2:], strict=True)
            if self.border_mode == "full":
                kernel = tuple(out - size + 1 for size, out in pairs)
            else:
                extra = self._pads((1,) * self.rank)
                kernel = tuple(size + pad - out + 1 for (size, out), pad in zip(pairs, extra, strict=True))
        with pinned(type(self).__name__, ALGORITHM):
            return FILTER_GRADIENT[self.rank](img, topgrad, (None, None, *kernel), **self._options)


class _GradInputs(_Correlation):
    def __call__(self, kern: Any, topgrad: Any, shape: Sequence[int] | None = None) -> Any:
        """Gradient of the images; `shape` is their spatial size, needed when strided."""
        filters = operand(kern, "kern", self._axes("filters", "channels"))
        gradient = operand(topgrad, "topgrad", self._axes("batch", "filters"))
        size = self._spatial(shape, self.subsample != (1,) * self.rank, "the images' spatial size")
        if size is None:
            kernel = filters.shape[2:]
            sizes = zip(gradient.shape[2:], kernel, self._pads(kernel), strict=True)
            size = tuple(out + taps - 1 - pad for out, taps, pad in sizes)
        with pinned(type(self).__name__, ALGORITHM):
            return INPUT_GRADIENT[self.rank](topgrad, kern, (None, None, *size), **self._options)


class CorrMM(_Forward):
    """`CorrMM(border_mode, subsample, pad)(img, kern)`: correlation of images with filters.

    >>> import numpy as np
    >>> from autoconv.compat.theano import CorrMM
    >>> CorrMM(subsample=(2, 2))(np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3))).shape
    (1, 1, 2, 2)
    """

    rank = 2


class CorrMM_gradWeights(_GradWeights):  # noqa: N801  Theano's name
    """`CorrMM_gradWeights(border_mode, subsample, pad)(img, topgrad, shape)`: gradient of the filters."""

    rank = 2


class CorrMM_gradInputs(_GradInputs):  # noqa: N801
    """`CorrMM_gradInputs(border_mode, subsample, pad)(kern, topgrad, shape)`: gradient of the images."""

    rank = 2


class Corr3dMM(_Forward):
    """`Corr3dMM(border_mode, subsample, pad)(img, kern)`: correlation of volumes with filters."""

    rank = 3


class Corr3dMM_gradWeights(_GradWeights):  # noqa: N801
    """`Corr3dMM_gradWeights(border_mode, subsample, pad)(img, topgrad, shape)`: gradient of the filters."""

    rank = 3


class Corr3dMM_gradInputs(_GradInputs):  # noqa: N801
    """`Corr3dMM_gradInputs(border_mode, subsample, pad)(kern, topgrad, shape)`: gradient of the volumes."""

    rank = 3


class GpuCorrMM(CorrMM):
    """`CorrMM` under the name it has on a GPU."""


class GpuCorrMM_gradWeights(CorrMM_gradWeights):  # noqa: N801
    """`CorrMM_gradWeights` under the name it has on a GPU."""


class GpuCorrMM_gradInputs(CorrMM_gradInputs):  # noqa: N801
    """`CorrMM_gradInputs` under the name it has on a GPU."""


class GpuCorr3dMM(Corr3dMM):
    """`Corr3dMM` under the name it has on a GPU."""


class GpuCorr3dMM_gradWeights(Corr3dMM_gradWeights):  # noqa: N801
    """`Corr3dMM_gradWeights` under the name it has on a GPU."""


class GpuCorr3dMM_gradInputs(Corr3dMM_gradInputs):  # noqa: N801
    """`Corr3dMM_gradInputs` under the name it has on a GPU."""
