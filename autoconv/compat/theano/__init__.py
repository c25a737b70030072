"""Theano's convolutions (2014), eager on arrays: their names, argument order, layouts and rules.

::

    from autoconv.compat import theano
    y = theano.nnet.conv2d(images, filters, border_mode="full", subsample=(2, 2))
    y = theano.dnn_conv(images, filters, border_mode=1, conv_mode="cross", algo="winograd")
    with theano.theano_flags("optimizer_including=conv_meta:conv_fft,metaopt.verbose=1"):
        ...

`nnet.conv2d` takes the fastest engine, as Theano's meta-optimizer did. Every other name stands for one
algorithm, and *pins* it: only implementations of that algorithm run (its tunables are still tuned), and when none
can, `NoImplementation` says why; nothing is replaced silently. Where Theano's name meant a GPU, NumPy arrays are
computed on the CPU by the same algorithm. With `settings(verbose=1)` each says what it pins.

Shapes that the original would refuse raise `InvalidSpec` (a `ValueError`) with the number that failed, wrong ranks
`InvalidType` (a `TypeError` too).
"""

from __future__ import annotations

import autoconv.compat.theano.conv3d2d as conv3d2d
import autoconv.compat.theano.nnet as nnet
from autoconv.compat.theano.conv3d import (
    conv3D,
    conv3d2d_to_conv3D,
    conv3D_to_conv3d2d,
    convGrad3D,
    convTransp3D,
)
from autoconv.compat.theano.corrmm import (
    Corr3dMM,
    Corr3dMM_gradInputs,
    Corr3dMM_gradWeights,
    CorrMM,
    CorrMM_gradInputs,
    CorrMM_gradWeights,
    GpuCorr3dMM,
    GpuCorr3dMM_gradInputs,
    GpuCorr3dMM_gradWeights,
    GpuCorrMM,
    GpuCorrMM_gradInputs,
    GpuCorrMM_gradWeights,
)
from autoconv.compat.theano.cuda_convnet import FilterActs, ImageActs, WeightActs
from autoconv.compat.theano.dnn import DnnConv, dnn_conv
from autoconv.compat.theano.fft import conv2d_fft, conv3d_fft, convgrad3d_fft, convtransp3d_fft
from autoconv.compat.theano.flags import theano_flags

__all__ = [
    "Corr3dMM",
    "Corr3dMM_gradInputs",
    "Corr3dMM_gradWeights",
    "CorrMM",
    "CorrMM_gradInputs",
    "CorrMM_gradWeights",
    "DnnConv",
    "FilterActs",
    "GpuCorr3dMM",
    "GpuCorr3dMM_gradInputs",
    "GpuCorr3dMM_gradWeights",
    "GpuCorrMM",
    "GpuCorrMM_gradInputs",
    "GpuCorrMM_gradWeights",
    "ImageActs",
    "WeightActs",
    "conv2d_fft",
    "conv3D",
    "conv3D_to_conv3d2d",
    "conv3d2d",
    "conv3d2d_to_conv3D",
    "conv3d_fft",
    "convGrad3D",
    "convTransp3D",
    "convgrad3d_fft",
    "convtransp3d_fft",
    "dnn_conv",
    "nnet",
    "theano_flags",
]
