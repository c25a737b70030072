"""Every built-in implementation: id -> "module:Class", in the order that serves when nothing is known.

Adding an algorithm is one file and one line here. Ids are rows in people's databases: they are
never derived from a class name and never reused; what is gone moves to `RETIRED` with its reason.
"""

from __future__ import annotations

__all__ = ["BUILTIN", "RETIRED"]

BUILTIN: dict[str, str] = {
    "native.winograd": "autoconv.impls.native.winograd:Winograd",
    "native.separable": "autoconv.impls.native.separable:Separable",
    "native.depthwise": "autoconv.impls.native.depthwise:Depthwise",
    "native.fft": "autoconv.impls.native.fft:Fft",
    "native.direct": "autoconv.impls.native.direct:Direct",
    "native.toom": "autoconv.impls.native.toom:ToomCook",
    "native.gemm": "autoconv.impls.native.gemm:Gemm",
    "native.chwn": "autoconv.impls.native.chwn:Chwn",
    "rewrite.gemm_1x1": "autoconv.impls.rewrite.gemm_1x1:Gemm1x1",
    "rewrite.patches": "autoconv.impls.rewrite.patches:Patches",
    "onednn.conv": "autoconv.impls.cpu.onednn:OneDnnConv",
    "torch.conv": "autoconv.impls.cpu.torch:TorchConv",
    "onnxruntime.conv": "autoconv.impls.cpu.onnxruntime:OnnxRuntimeConv",
    "numpy.winograd": "autoconv.impls.cpu.winograd:Winograd",
    "numpy.fft_tiled": "autoconv.impls.cpu.fft_tiled:TiledFft",
    "numpy.fft": "autoconv.impls.cpu.fft:Fft",
    "rewrite.dgrad_as_fprop": "autoconv.impls.rewrite.dgrad_as_fprop:DgradAsFprop",
    "rewrite.wgrad_as_fprop": "autoconv.impls.rewrite.wgrad_as_fprop:WgradAsFprop",
    "rewrite.layout": "autoconv.impls.rewrite.layout:Layout",
    "rewrite.groups": "autoconv.impls.rewrite.groups:Groups",
    "rewrite.split_batch": "autoconv.impls.rewrite.split_batch:SplitBatch",
    "rewrite.conv3d2d": "autoconv.impls.rewrite.conv3d2d:Conv3d2d",
    "rewrite.depth_to_channels": "autoconv.impls.rewrite.depth_to_channels:DepthToChannels",
    "numpy.separable": "autoconv.impls.cpu.separable:Separable",
    "numpy.im2col": "autoconv.impls.cpu.im2col:Im2col",
    "numpy.kn2row": "autoconv.impls.cpu.kn2row:Kn2row",
    "numpy.direct": "autoconv.impls.cpu.direct:Direct",  # refuses nothing: the end of every fallback
    "cudnn.graph": "autoconv.impls.cuda.cudnn:CudnnGraph",
    "torch.conv_cuda": "autoconv.impls.cuda.torch:CudaTorchConv",
    "cupy.im2col": "autoconv.impls.cuda.im2col:Im2col",
    "cuda.winograd": "autoconv.impls.cuda.winograd:Winograd",
    "cuda.depthwise": "autoconv.impls.cuda.depthwise:Depthwise",
    "cuda.direct": "autoconv.impls.cuda.direct:Direct",
    "cuda.chwn": "autoconv.impls.cuda.chwn:Chwn",
    "cupy.fft_tiled": "autoconv.impls.cuda.fft_tiled:TiledFft",
    "cupy.fft": "autoconv.impls.cuda.fft:Fft",
}

RETIRED: dict[str, str] = {}
