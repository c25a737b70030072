"""PyTorch's side of `gpu.py`: its convolutions and gradients on the very arrays that autoconv has, by DLPack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autoconv.spec import ConvSpec, Op

__all__ = ["TorchSide"]


class TorchSide:
    """PyTorch on one GPU, as a user who cares for speed sets it up: `cudnn.benchmark` on, no deterministic detours."""

    def __init__(self, index: int) -> None:
        import torch

        self._torch = torch
        self._index = index
        torch.backends.cudnn.benchmark = True

    def versions(self) -> dict[str, str]:
        """PyTorch's and the libraries' that it brought."""
        torch = self._torch
        return {
            "torch": torch.__version__,
            "torch's CUDA": str(torch.version.cuda),
            "torch's cuDNN": str(torch.backends.cudnn.version()),
        }

    def prepare(self, spec: ConvSpec, mode: str, a: Any, b: Any) -> tuple[Callable[[], Any], str]:
        """A call of `spec` on two CuPy arrays, TF32 allowed in mode `tf32` alone, and what to call it."""
        torch = self._torch
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        first, second = self._tensor(a), self._tensor(b)
        form = None
        if spec.layout == "nhwc" and spec.rank > 1:
            form = torch.channels_last if spec.rank == 2 else torch.channels_last_3d
            first = first.contiguous(memory_format=form)  # shares the memory: it is dense in that order already
            second = second.contiguous(memory_format=form)  # as `model.to(memory_format=...)` converts the filters
        if spec.flip and spec.op is not Op.WGRAD:
            second = second.flip(tuple(range(2, spec.rank + 2)))
        convolve = {Op.FPROP: self._fprop, Op.DGRAD: self._dgrad, Op.WGRAD: self._wgrad}[spec.op]
        return convolve(spec, first, second, form), f"torch {torch.__version__}"

    def to_numpy(self, result: Any) -> np.ndarray[Any, Any]:
        """A result of either side's on the CPU; bfloat16, which NumPy has not, as float32."""
        if not isinstance(result, self._torch.Tensor):
            values: np.ndarray[Any, Any] = result.get()
        else:
            values = (result.float() if result.dtype is self._torch.bfloat16 else result).cpu().numpy()
        return values

    def forget(self) -> None:
        """Give cached memory back."""
        self._torch.cuda.empty_cache()

    def _tensor(self, array: Any) -> Any:
        """A tensor that shares an array's memory; bfloat16 goes by its bits, which every DLPack knows."""
        if array.dtype.name != "bfloat16":
            return self._torch.from_dlpack(array)
        return self._torch.from_dlpack(array.view(np.int16)).view(self._torch.bfloat16)

    def _fprop(self, spec: ConvSpec, x: Any, w: Any, form: Any) -> Callable[[], Any]:
        torch = self._torch
        convolve = getattr(torch.nn.functional, f"conv{spec.rank}d")
        pads, room = _padding(spec)

        def call() -> Any:
            with torch.no_grad():
                padded = torch.nn.functional.pad(x, room) if room else x
                return convolve(padded, w, None, spec.stride, pads, spec.dilation, spec.groups)

        return call

    def _dgrad(self, spec: ConvSpec, dy: Any, w: Any, form: Any) -> Callable[[], Any]:
        return self._backward(spec, dy, self._like(dy, spec.input_shape, form), w, 0)

    def _wgrad(self, spec: ConvSpec, x: Any, dy: Any, form: Any) -> Callable[[], Any]:
        call = self._backward(spec, dy, x, self._like(dy, spec.filter_shape, form), 1)
        if not spec.flip:
            return call
        axes = tuple(range(2, spec.rank + 2))
        return lambda: call().flip(axes)

    def _backward(self, spec: ConvSpec, dy: Any, x: Any, w: Any, which: int) -> Callable[[], Any]:
        torch = self._torch
        pads, room = _padding(spec)
        if room:
            raise ValueError("PyTorch's gradients pad alike on both sides")
        wanted = [index == which for index in range(3)]

        def call() -> Any:
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, spec.stride, pads, spec.dilation, False, [0] * spec.rank, spec.groups, wanted
            )[which]

        return call

    def _like(self, other: Any, shape: tuple[int, ...], form: Any) -> Any:
        made = other.new_empty(shape)
        return made if form is None else made.contiguous(memory_format=form)


def _padding(spec: ConvSpec) -> tuple[list[int], list[int]]:
    """Zeros on both sides of each axis; and where the sides differ, what `pad` takes, last axis first, instead."""
    if all(before == after for before, after in spec.padding):
        return [before for before, _ in spec.padding], []
    return [0] * spec.rank, [zeros for pair in reversed(spec.padding) for zeros in pair]
