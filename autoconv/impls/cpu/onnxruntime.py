"""ONNX Runtime's Conv on its CPU provider, reading and writing the caller's memory.

Source: a one-node model per spec; bound filters become a constant that the runtime packs beforehand.
Wins:   bound filters, many channels, large depthwise filters.  Loses: tiny problems (the call costs 10 us).
Error:  that of its MLAS kernels, plain sums in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.impls.cpu._onnx_model import conv_model
from autoconv.planning import BoundRunner, Workspace
from autoconv.spec import ConvSpec, Op

MACS_PER_S = 5e10
CALL_S = 15e-6
BYTES_PER_S = 6e9


class OnnxRuntimeConv(Implementation):
    """ONNX Runtime's convolution through bound buffers, constant or varying filters."""

    name = "onnxruntime.conv"
    ops = frozenset({Op.FPROP})
    dtypes = frozenset({"f32"})
    layouts = frozenset({"nchw"})
    tags = frozenset({"framework", "vendor"})
    runtime = "onnxruntime"
    strict_nan = False

    def unavailable(self) -> str | None:
        """Needs ONNX Runtime."""
        return None if _installed() else "ONNX Runtime is not installed (pip install autoconv[cpu])"

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The runtime's patches (at most im2col of a batch) and a flipped or packed copy of the filters."""
        patches = spec.batch * spec.in_channels * prod(spec.kernel) * prod(spec.output_spatial)
        return spec.itemsize * (patches + 2 * prod(spec.filter_shape) + prod(spec.result_shape))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The library near its usual rate."""
        few = 1 + 8 / (spec.in_channels // spec.groups)
        moved = (prod(spec.input_shape) + prod(spec.output_shape)) * spec.itemsize
        return CALL_S + spec.macs * few / (MACS_PER_S * device.threads) + moved / BYTES_PER_S

    def libraries(self, config: Config) -> tuple[str, ...]:
        """ONNX Runtime."""
        return ("onnxruntime",)

    def environment(self, config: Config) -> Mapping[str, str]:
        """ONNX Runtime's version, read without importing it."""
        return {"onnxruntime": _version()}

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A protocol buffer ends at 2 GiB."""
        size = prod(spec.filter_shape) * spec.itemsize
        yield size < 1 << 31, f"filters of a model stay below 2 GiB, got {size} bytes"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Build the session."""
        return _OnnxRunner(spec, context.device.threads)


@cache
def _installed() -> bool:
    return find_spec("onnxruntime") is not None


@cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "unknown"


class _OnnxRunner(Runner):
    def __init__(self, spec: ConvSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._varying = None if spec.fixed else self._session(None)

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._varying is None:
            self._varying = self._session(None)
        _run(self._varying, {"x": a, "w": self._filters(b)}, out)

    def bind(self, filters: Array) -> BoundRunner:
        session = self._session(self._filters(filters).tobytes())

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            _run(session, {"x": a}, out)

        return bound

    def _filters(self, array: Array) -> Array:
        return np.ascontiguousarray(np.flip(array, tuple(range(2, array.ndim)))) if self._spec.flip else array

    def _session(self, constant: bytes | None) -> Any:
        import onnxruntime

        spec = self._spec
        sides = [before for before, _ in spec.padding] + [after for _, after in spec.padding]
        attributes: dict[str, Any] = {
            "kernel_shape": spec.kernel,
            "pads": sides,
            "strides": spec.stride,
            "dilations": spec.dilation,
            "group": spec.groups,
        }
        shapes = {"x": spec.input_shape, "w": spec.filter_shape, "y": spec.output_shape}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # a pool that spins between calls would slow whatever runs next on the same cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = conv_model(spec.dtype, shapes, attributes, constant)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Mapping[str, Array], out: Array) -> None:
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding)
