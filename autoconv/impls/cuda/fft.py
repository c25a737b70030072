"""Convolution as a product of spectra on a GPU, the whole image at once, by cuFFT.

Source: Mathieu, Henaff & LeCun, "Fast Training of Convolutional Networks through FFTs", 2013; Theano's conv2d_fft on
        CUDA. The algorithm is that of `numpy.fft`, on CuPy arrays.
Wins:   large filters, volumes: the cost hardly depends on the filters' size.
Loses:  small filters, and small images, whose filters are transformed at the image's size.
Error:  about 1e-7 of the largest result in float32, spread over all results alike; a NaN or an infinity
        anywhere spoils its whole image, so `strict_nan` is False.

Long sums over channels are complex matrix products, one per frequency, in one batch of cuBLAS's.
"""

from __future__ import annotations

from autoconv.evidence import Config
from autoconv.impls._cuts import Cut, cut_whole
from autoconv.impls.cuda._cufft import CufftImplementation
from autoconv.spec import ConvSpec

__all__ = ["Fft"]


class Fft(CufftImplementation):
    """Every operation at stride 1, any padding, dilation and groups, lines to volumes."""

    name = "cupy.fft"

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """One box per image, of a size that transforms fast."""
        return cut_whole(spec, exact=False)
