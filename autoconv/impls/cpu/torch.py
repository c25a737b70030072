"""PyTorch's convolution on the CPU, on the caller's memory.

Source: torch.nn.functional.conv{1,2,3}d and aten::convolution_backward; on x86 mostly oneDNN beneath.
Wins:   many channels, 1x1 filters, large batches.  Loses: tiny problems, few channels, large filters.
Error:  that of the library's own choice, which for some shapes of later versions may be Winograd.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.planning import BoundRunner, Workspace
from autoconv.spec import ConvSpec, Op

MACS_PER_S = 6e10
CALL_S = 12e-6
BYTES_PER_S = 6e9


__all__ = ["TorchConv", "TorchRunner"]


class TorchConv(Implementation):
    """PyTorch's convolution, in either memory format, result copied into place."""

    name = "torch.conv"
    tags = frozenset({"framework", "vendor"})
    runtime = "torch"
    deterministic = False  # the library promises nothing of the sort
    strict_nan = False

    def unavailable(self) -> str | None:
        """Needs PyTorch."""
        return None if _installed() else "PyTorch is not installed (pip install autoconv[torch])"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Compute in the memory format the operands have, or convert to the other."""
        if spec.rank == 1:
            return (Config(memory="plain"),)
        formats = ("plain", "channels_last") if spec.layout == "nchw" else ("channels_last", "plain")
        return tuple(Config(memory=memory) for memory in formats)

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """1-D has no channels-last format in PyTorch."""
        wanted = config["memory"] if config else "plain"
        yield spec.rank > 1 or wanted == "plain", "PyTorch has no channels-last format in one dimension"

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The library's own result and, where converted or padded by hand, copies of the operands."""
        data, second = spec.operand_shapes
        padded = 0 if _symmetric(spec) else spec.batch * spec.in_channels * prod(_padded(spec))
        return spec.itemsize * (prod(spec.result_shape) + prod(data) + prod(second) + 2 * padded)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The library near its usual rate, and one copy of the result."""
        rate = MACS_PER_S * device.threads * (1.0 if spec.dtype == "f32" else 0.5)
        few = 1 + 8 / (spec.in_channels // spec.groups)
        return CALL_S + spec.macs * few / rate + prod(spec.result_shape) * spec.itemsize / BYTES_PER_S

    def libraries(self, config: Config) -> tuple[str, ...]:
        """PyTorch."""
        return ("torch",)

    def environment(self, config: Config) -> Mapping[str, str]:
        """PyTorch's version, read without importing it."""
        return {"torch": _version()}

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Import PyTorch and fix the arguments."""
        return TorchRunner(spec, config["memory"] == "channels_last", context.device.threads)


@cache
def _installed() -> bool:
    return find_spec("torch") is not None


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _symmetric(spec: ConvSpec) -> bool:
    return all(before == after for before, after in spec.padding)


def _padded(spec: ConvSpec) -> tuple[int, ...]:
    return tuple(size + sum(pads) for size, pads in zip(spec.in_spatial, spec.padding, strict=True))


class TorchRunner(Runner):
    """Calls PyTorch on tensors that share the operands' memory."""

    def __init__(self, spec: ConvSpec, channels_last: bool, threads: int) -> None:
        import torch

        self._torch = torch
        self._spec = spec
        self._threads = threads
        self._format = (
            {2: torch.channels_last, 3: torch.channels_last_3d}.get(spec.rank) if channels_last else None
        ) or torch.contiguous_format
        self._convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[spec.rank]
        self._taps = tuple(range(2, 2 + spec.rank))
        symmetric = _symmetric(spec)
        self._pad = () if symmetric else tuple(amount for pads in reversed(spec.padding) for amount in pads)
        self._padding = [before for before, _ in spec.padding] if symmetric else [0] * spec.rank
        self._shape = spec.input_shape if symmetric else (*spec.input_shape[:2], *_padded(spec))
        self._inside = (..., *(slice(b, b + n) for (b, _), n in zip(spec.padding, spec.in_spatial, strict=True)))

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        second = self._data(b) if self._spec.op is Op.WGRAD else self._filters(b)
        self._run(self._data(a), second, out)

    def bind(self, filters: Array) -> BoundRunner:
        weights = self._filters(filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(self._data(a), weights, out)

        return bound

    def _data(self, array: Array) -> Any:
        return self._tensor(array).contiguous(memory_format=self._format)

    def _filters(self, array: Array) -> Any:
        weights = self._tensor(array)
        if self._spec.flip:
            weights = weights.flip(self._taps)
        return weights.contiguous(memory_format=self._format)

    def _tensor(self, array: Array) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else _writeable_alias(array))

    def _run(self, first: Any, second: Any, out: Array) -> None:
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
        with self._torch.no_grad():
            self._tensor(out).copy_(self._result(first, second))

    def _result(self, first: Any, second: Any) -> Any:
        torch, spec = self._torch, self._spec
        if spec.op is Op.DGRAD:
            image = first.new_empty(1).expand(self._shape)  # only its shape is used
            result = self._backward(first, image, second, 0)
            return result[self._inside] if self._pad else result
        image = torch.nn.functional.pad(first, self._pad) if self._pad else first
        if spec.op is Op.FPROP:
            return self._convolve(image, second, None, spec.stride, self._padding, spec.dilation, spec.groups)
        weights = first.new_empty(1).expand(spec.filter_shape)
        result = self._backward(second, image, weights, 1)
        return result.flip(self._taps) if spec.flip else result

    def _backward(self, gradient: Any, image: Any, weights: Any, which: int) -> Any:
        spec = self._spec
        mask = [which == 0, which == 1, False]
        return self._torch.ops.aten.convolution_backward(
            gradient, image, weights, None, spec.stride, self._padding, spec.dilation, False, [0] * spec.rank,
            spec.groups, mask,
        )[which]  # fmt: skip


def _writeable_alias(array: Array) -> Array:
    """The same memory without the read-only mark, which PyTorch cannot express; it is only read."""
    extent = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize
    buffer = (ctypes.c_char * extent).from_address(array.ctypes.data)
    return np.ndarray(array.shape, array.dtype, buffer, 0, array.strides)
