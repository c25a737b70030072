"""A stand-in for what `benchmarks/gpu.py` uses of PyTorch on a GPU, over the stand-in for CuPy.

Found as `torch` only by processes that a test gives this folder's parent on their path. With TF32 allowed it rounds
operands as TF32 does.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np

from autoconv import arrays
from autoconv.spec import ConvSpec
from autoconv.testing import reference

__version__ = "2.13.0+standin"
version = SimpleNamespace(cuda="12.8")
backends = SimpleNamespace(
    cudnn=SimpleNamespace(benchmark=False, allow_tf32=True, version=lambda: 91900),
    cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False)),
)
cuda = SimpleNamespace(empty_cache=lambda: None)
bfloat16, channels_last, channels_last_3d = "bfloat16", "channels_last", "channels_last_3d"
no_grad = nullcontext
TF32_BITS = 13  # of float32's mantissa, which TF32 has not


class Tensor:
    """An array on the device."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.dtype = array.dtype.name
        self.shape = array.shape

    def contiguous(self, memory_format: str) -> Tensor:
        if arrays.is_dense(self.array, "nhwc"):
            return self
        values = np.ascontiguousarray(np.moveaxis(self.array.get(), 1, -1))
        return Tensor(cupy.moveaxis(cupy.asarray(values), -1, 1))

    def flip(self, axes: tuple[int, ...]) -> Tensor:
        return Tensor(cupy.flip(self.array, axes))

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        return np.asarray(self.array.get())


def from_dlpack(array: Any) -> Tensor:
    return Tensor(cupy.from_dlpack(array))


def _rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if values.dtype != np.float32 or not backends.cudnn.allow_tf32:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32) + np.uint32(1 << (TF32_BITS - 1))
    return (bits >> TF32_BITS << TF32_BITS).view(np.float32)


def _conv(x: Tensor, w: Tensor, bias: None, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    spec = ConvSpec.fprop(
        x.shape, w.shape, padding=tuple((pad, pad) for pad in padding), stride=stride, dilation=dilation,
        groups=groups, flip=False, dtype={"float32": "f32", "float64": "f64"}[x.dtype],
    )  # fmt: skip
    result = reference(spec, _rounded(x.numpy()), _rounded(w.numpy())).astype(x.array.dtype)
    return Tensor(cupy.asarray(result))


def _pad(x: Tensor, room: list[int]) -> Tensor:
    pairs = [(room[i], room[i + 1]) for i in range(0, len(room), 2)][::-1]
    return Tensor(cupy.pad(x.array, [(0, 0), (0, 0), *pairs]))


nn = SimpleNamespace(functional=SimpleNamespace(conv1d=_conv, conv2d=_conv, conv3d=_conv, pad=_pad))
