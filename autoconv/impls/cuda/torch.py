"""PyTorch's convolution on a GPU, on the caller's CuPy arrays.

Source: torch.nn.functional.conv{1,2,3}d and aten::convolution_backward, mostly cuDNN beneath, with PyTorch's own
        kernels for depthwise problems.
Wins:   where cuDNN is not installed for itself, or PyTorch's own kernels are what suits.
Loses:  the library allocates its result and chooses by itself among cuDNN's plans, which `cudnn.graph` races.
Error:  that of the library's choice; float32 is strict but for the config that says TF32.

Arrays pass by DLPack, both ways, without a copy; PyTorch works on the caller's current stream. Its search
(`torch.backends.cudnn.benchmark`) is off during a call: the race is what searches here. The flags of a call are put
back after it; they belong to the process, so another thread of PyTorch's sees them meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Runner, Traits
from autoconv.impls._products import arithmetic_traits, arithmetics
from autoconv.impls.cpu.torch import TorchConv, TorchRunner
from autoconv.impls.cuda import _roofline
from autoconv.planning import BoundRunner, Workspace
from autoconv.spec import DTYPES, ConvSpec

__all__ = ["CudaTorchConv"]


class CudaTorchConv(TorchConv):
    """PyTorch's convolution, in either memory format, result copied into place."""

    name = "torch.conv_cuda"
    devices = frozenset({"cuda"})
    dtypes = frozenset(DTYPES)
    config_tags = frozenset({"tf32"})
    runtime = "none"
    capturable = False  # PyTorch's allocator knows only its own captures

    def unavailable(self) -> str | None:
        """Needs PyTorch for CUDA, and CuPy, whose arrays it is for. Whether PyTorch finds the GPU, preparing shows."""
        from autoconv.impls.cpu import torch as host

        if not host._installed() or "+cpu" in host._version():
            return "PyTorch for CUDA is not installed (pip install torch)"
        from importlib.util import find_spec

        return None if find_spec("cupy") else "needs CuPy: pip install 'autoconv[cuda12]' or 'autoconv[cuda13]'"

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """An arithmetic that the device has."""
        yield from super().restrictions(spec, device, config)
        if config is not None:
            known = _arithmetics(spec, device)
            yield config.get("arithmetic") in known, f"computes in {' or '.join(known)} here, got {config}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Both memory formats, and TF32 where the device has it."""
        formats = super().configs(spec, device)
        return tuple(Config(one, arithmetic=how) for how in _arithmetics(spec, device) for one in formats)

    def traits(self, config: Config) -> Traits:
        """TF32 shortens the operands."""
        return arithmetic_traits(super().traits(config), config)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The library near half of the device's peak, and one copy of the result."""
        unit = "tf32" if config.get("arithmetic") == "tf32" else {"f16": "half", "bf16": "half"}.get(spec.dtype, "")
        moved = float(self.workspace_bytes(spec, device, config))
        return 3 * _roofline.LAUNCH_S + _roofline.seconds(spec, device, 2.0 * spec.macs, moved, unit)

    def libraries(self, config: Config) -> tuple[str, ...]:
        """PyTorch, and CuPy for the arrays."""
        return ("torch", "cupy")

    def environment(self, config: Config) -> Mapping[str, str]:
        """PyTorch's version, which brings its cuDNN, and the driver's."""
        from autoconv.impls.cuda._versions import versions

        return {**versions(), **super().environment(config)}

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Import PyTorch and fix the arguments."""
        return CudaTorchRunner(spec, config, context.device.index)


def _arithmetics(spec: ConvSpec, device: Device) -> tuple[str, ...]:
    return tuple(how for how in arithmetics(spec, device) if how != "3xtf32")


class CudaTorchRunner(TorchRunner):
    """The same, on tensors that share CuPy arrays' memory, under flags of its own."""

    def __init__(self, spec: ConvSpec, config: Config, index: int) -> None:
        super().__init__(spec, config["memory"] == "channels_last", 0)
        self._tf32 = config["arithmetic"] == "tf32"
        self._index = index

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        with self._flags(), self._stream():
            super().__call__(a, b, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        with self._stream():
            inner = super().bind(filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            with self._flags(), self._stream():
                inner(a, out, workspace)

        return bound

    def _tensor(self, array: Array) -> Any:
        return self._torch.from_dlpack(array)

    def _run(self, first: Any, second: Any, out: Array) -> None:
        with self._torch.no_grad():
            self._tensor(out).copy_(self._result(first, second))

    @contextmanager
    def _flags(self) -> Iterator[None]:
        """No search of PyTorch's own, TF32 as the config says."""
        backends = self._torch.backends
        matmul = backends.cuda.matmul.allow_tf32
        try:
            backends.cuda.matmul.allow_tf32 = self._tf32
            with backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=self._tf32):
                yield
        finally:
            backends.cuda.matmul.allow_tf32 = matmul

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """PyTorch on the caller's current stream."""
        import cupy

        cuda = self._torch.cuda
        pointer = cupy.cuda.get_current_stream().ptr
        with cuda.device(self._index), cuda.stream(cuda.ExternalStream(pointer, device=self._index)):
            yield
