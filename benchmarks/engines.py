"""The engines that `compare.py` races, one process each: `python benchmarks/engines.py NAME`.

A worker reads one JSON request a line: `{"spec": text, "varying": bool}` prepares a problem and gives
`{"ok": bool, "reason": text, "error": number, "label": text}`; `{"sample": seconds}` gives the median
seconds of calls made for about that long. Between requests it waits for input and burns nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from autoconv.spec import ConvSpec, Op

Call = Callable[[], Any]
Made = tuple[Call, Callable[[], np.ndarray], str]
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
CORE = "BENCH_CORE" in os.environ  # autoconv as it is with nothing but its core installed


class Declined(Exception):
    """This engine does not do this problem; the message says why."""


def operands(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """The same random operands in every process."""
    rng = np.random.default_rng(spec.macs)
    first, second = (rng.standard_normal(shape, dtype=np.float32) for shape in spec.operand_shapes)
    return first, second


def autoconv_engine(spec: ConvSpec, varying: bool, layout: str) -> Made:
    """autoconv, tuned beforehand: bound when filters are fixed, planned when they vary."""
    from dataclasses import replace

    import autoconv

    if CORE:
        sys.modules["scipy"] = None  # type: ignore[assignment]  # as if it were not installed
    fixed = not varying and spec.op is not Op.WGRAD
    spec = replace(spec, layout=layout, fixed=fixed)
    autoconv.tune(spec, budget_s=float(os.environ.get("BENCH_TUNE_S", "12")))
    first, second = operands(spec)
    if layout == "nhwc":
        first = channels_last(first)
        second = channels_last(second) if spec.op is Op.WGRAD else second
    plan = autoconv.plan(spec)
    if fixed:
        bound = plan.bind(second)
        out = bound(first)
        return (lambda: bound(first, out=out)), (lambda: bound(first)), str(bound.plan.choice)
    out = plan(first, second)
    return (lambda: plan(first, second, out=out)), (lambda: plan(first, second)), str(plan.choice)


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same logical array, dense in channels-last order."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def torch_engine(spec: ConvSpec, varying: bool, layout: str) -> Made:
    """PyTorch's functional convolution and its gradients, in either memory format."""
    import torch

    torch.set_num_threads(THREADS)
    form = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    first, second = (torch.from_numpy(a).contiguous(memory_format=form) for a in operands(spec))
    if any(before != after for before, after in spec.padding):
        raise Declined("PyTorch pads alike on both sides")
    if spec.flip:
        raise Declined("the shapes are written as cross-correlations")
    padding = [before for before, _ in spec.padding]

    def call() -> Any:
        with torch.no_grad():
            if spec.op is Op.FPROP:
                return torch.conv2d(first, second, None, spec.stride, padding, spec.dilation, spec.groups)
            if spec.op is Op.DGRAD:
                return torch.nn.grad.conv2d_input(
                    spec.input_shape, second, first, spec.stride, padding, spec.dilation, spec.groups
                )
            return torch.nn.grad.conv2d_weight(
                first, spec.filter_shape, second, spec.stride, padding, spec.dilation, spec.groups
            )

    return call, lambda: call().numpy(), f"torch {torch.__version__}"


def onnxruntime_engine(spec: ConvSpec, varying: bool) -> Made:
    """ONNX Runtime on bound buffers, spinning allowed as it ships."""
    import onnxruntime

    from autoconv.impls.cpu._onnx_model import conv_model

    if spec.op is not Op.FPROP:
        raise Declined("has no gradients")
    first, second = operands(spec)
    attributes: dict[str, Any] = {
        "kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
        "pads": [b for b, _ in spec.padding] + [a for _, a in spec.padding],
    }  # fmt: skip
    shapes = {"x": spec.input_shape, "w": spec.filter_shape, "y": spec.output_shape}
    model = conv_model(spec.dtype, shapes, attributes, None if varying else second.tobytes())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = np.empty(spec.output_shape, np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, first.shape, first.ctypes.data)
    if varying:
        binding.bind_input("w", "cpu", 0, np.float32, second.shape, second.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    held = (first, second)  # bound by address: they must live as long as the session is called

    def call() -> None:
        assert held
        session.run_with_iobinding(binding)

    def result() -> np.ndarray:
        call()
        return out

    return call, result, f"onnxruntime {onnxruntime.__version__}"


def openvino_engine(spec: ConvSpec, varying: bool) -> Made:
    """OpenVINO's CPU plugin, latency hint, float32."""
    import openvino as ov
    from openvino import opset13 as ops

    if spec.op is not Op.FPROP:
        raise Declined("has no gradients")
    if varying:
        raise Declined("compiles its filters in")
    first, second = operands(spec)
    data = ops.parameter(first.shape, np.float32)
    begin, end = [b for b, _ in spec.padding], [a for _, a in spec.padding]
    if spec.groups == 1:
        node = ops.convolution(data, ops.constant(second), list(spec.stride), begin, end, list(spec.dilation))
    else:
        grouped = second.reshape(spec.groups, -1, *second.shape[1:])
        node = ops.group_convolution(data, ops.constant(grouped), list(spec.stride), begin, end, list(spec.dilation))
    options = {
        "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = ov.Core().compile_model(ov.Model([node], [data]), "CPU", options).create_infer_request()
    shared = ov.Tensor(first, shared_memory=True)
    request.set_input_tensor(shared)
    held = (first, second, shared)  # their memory must live as long as the request

    def call() -> None:
        assert held
        request.infer()

    def result() -> np.ndarray:
        call()
        return np.array(request.get_output_tensor().data)

    return call, result, f"openvino {ov.__version__}"


def ncnn_engine(spec: ConvSpec, varying: bool) -> Made:
    """ncnn's convolution layer, packed and Winograd on, one image at a time."""
    import ncnn

    if spec.op is not Op.FPROP or varying or spec.batch != 1:
        raise Declined("one image, fixed filters, forward")
    if spec.groups not in (1, spec.in_channels):
        raise Declined("groups: one or depthwise")
    first, second = operands(spec)
    net = ncnn.Net()
    net.opt.num_threads = THREADS
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    (r, s), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    (top, bottom), (left, right) = spec.padding
    kind = "Convolution" if spec.groups == 1 else "ConvolutionDepthWise"
    arguments = f"0={spec.out_channels} 1={s} 11={r} 2={dw} 12={dh} 3={sw} 13={sh}"
    arguments += f" 4={left} 14={top} 15={right} 16={bottom} 6={second.size}"
    arguments += "" if spec.groups == 1 else f" 7={spec.groups}"
    with tempfile.TemporaryDirectory() as folder:
        param, weights = f"{folder}/net.param", f"{folder}/net.bin"
        with open(param, "w") as file:
            file.write(f"7767517\n2 2\nInput in 0 1 x\n{kind} conv 1 1 x y {arguments}\n")
        with open(weights, "wb") as binary:
            binary.write(b"\0\0\0\0" + second.tobytes())
        net.load_param(param)
        net.load_model(weights)
    image = ncnn.Mat(np.ascontiguousarray(first[0])).clone()  # a copy of its own: Mat does not keep the array alive

    def call() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", image)
        return extractor.extract("y")[1]

    return call, lambda: np.array(call())[None], f"ncnn {ncnn.__version__}"


def scipy_engine(spec: ConvSpec, varying: bool, which: str) -> Made:
    """SciPy's FFT convolution or its overlap-add, one plane and filter at a time or by broadcasting."""
    import scipy
    import scipy.fft
    import scipy.signal

    if spec.op is not Op.FPROP or set(spec.stride) != {1} or set(spec.dilation) != {1}:
        raise Declined("forward, stride 1")
    if spec.in_channels // spec.groups != 1:
        raise Declined("sums over no channels")
    first, second = operands(spec)
    filters = np.ascontiguousarray(second[:, 0, ::-1, ::-1])
    per_group = spec.out_channels // spec.groups
    convolve = getattr(scipy.signal, which)
    crop = []
    for (before, _), kernel, size in zip(spec.padding, spec.kernel, spec.output_spatial, strict=True):
        crop.append(slice(kernel - 1 - before, kernel - 1 - before + size))
    if any(part.start < 0 for part in crop):
        raise Declined("padding beyond the full result")

    def call() -> np.ndarray:
        with scipy.fft.set_workers(THREADS):
            image = np.repeat(first, per_group, axis=1) if per_group > 1 else first
            full = convolve(image, filters[None], mode="full", axes=(2, 3))
            return full[:, :, crop[0], crop[1]]

    return call, call, f"scipy {scipy.__version__}"


def opencv_engine(spec: ConvSpec, varying: bool) -> Made:
    """OpenCV's filter2D, plane by plane, zeros around."""
    import cv2

    if spec.op is not Op.FPROP or set(spec.stride) != {1} or set(spec.dilation) != {1}:
        raise Declined("forward, stride 1")
    if spec.in_channels // spec.groups != 1:
        raise Declined("sums over no channels")
    if any(size != out for size, out in zip(spec.in_spatial, spec.output_spatial, strict=True)):
        raise Declined("gives results of the image's size")
    cv2.setNumThreads(THREADS)
    first, second = operands(spec)
    per_group = spec.out_channels // spec.groups
    out = np.empty(spec.output_shape, np.float32)
    anchor = (spec.padding[1][0], spec.padding[0][0])

    def call() -> np.ndarray:
        for n in range(spec.batch):
            for k in range(spec.out_channels):
                cv2.filter2D(
                    first[n, k // per_group], -1, second[k, 0], dst=out[n, k], anchor=anchor,
                    borderType=cv2.BORDER_CONSTANT,
                )  # fmt: skip
        return out

    return call, call, f"opencv {cv2.__version__}"


ENGINES: dict[str, Callable[[ConvSpec, bool], Made]] = {
    "autoconv": lambda spec, varying: autoconv_engine(spec, varying, "nchw"),
    "autoconv-nhwc": lambda spec, varying: autoconv_engine(spec, varying, "nhwc"),
    "torch": lambda spec, varying: torch_engine(spec, varying, "nchw"),
    "torch-nhwc": lambda spec, varying: torch_engine(spec, varying, "nhwc"),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "ncnn": ncnn_engine,
    "scipy-fft": lambda spec, varying: scipy_engine(spec, varying, "fftconvolve"),
    "scipy-oa": lambda spec, varying: scipy_engine(spec, varying, "oaconvolve"),
    "opencv": opencv_engine,
}


def serve(name: str) -> None:
    """Answer requests until the input ends."""
    call: Call | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "spec" in request:
            call = None
            spec = ConvSpec.parse(request["spec"])
            try:
                call, result, label = ENGINES[name](spec, request["varying"])
                answer: dict[str, Any] = {"ok": True, "label": label}
                if request.get("check"):
                    np.save(request["check"], np.ascontiguousarray(result()))
            except (Declined, ImportError) as reason:
                answer = {"ok": False, "reason": str(reason)}
            except Exception as error:  # a peer's failure is its result for this shape
                answer = {"ok": False, "reason": f"{type(error).__name__}: {error}"}
        else:
            assert call is not None
            if request.get("warm", True):
                call()
            times = []
            end = time.perf_counter() + request["sample"]
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            answer = {"median_s": median(times), "calls": len(times)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
