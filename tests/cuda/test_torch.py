"""`torch.conv_cuda` as far as PyTorch without CUDA goes: numbers, flags, refusals; arrays pass by DLPack."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.impls.cpu import torch as host
from autoconv.impls.cuda.torch import CudaTorchConv, CudaTorchRunner
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec

GPU = Device("cuda", "a GPU", "sm_90", 132, 1)
needs_torch = pytest.mark.skipif(not host._installed(), reason="PyTorch is not installed")


def test_configs_are_formats_and_arithmetics() -> None:
    spec = ConvSpec.parse("fprop n2c3 8x8 k4 3x3")
    found = [dict(config) for config in CudaTorchConv().configs(spec, GPU)]
    assert found == [
        {"memory": memory, "arithmetic": how} for how in ("strict", "tf32") for memory in ("plain", "channels_last")
    ]
    assert "tf32" in CudaTorchConv().traits(Config(arithmetic="tf32", memory="plain")).tags
    assert "tf32" not in CudaTorchConv().traits(Config(arithmetic="strict", memory="plain")).tags


def test_pytorch_for_the_cpu_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_installed", lambda: True)
    monkeypatch.setattr(host, "_version", lambda: "2.13.0+cpu")
    assert "PyTorch for CUDA is not installed" in str(CudaTorchConv().unavailable())


@needs_torch
@pytest.mark.parametrize("text", ["n2c4 7x9 k6 3x2 p1:0,2 s2,1 g2 conv nchw f32", "n2c3 9 k2 3 p1 corr nchw f64"])
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_matches_the_reference_and_puts_flags_back(op: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen: list[tuple[bool, bool, bool]] = []
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    plain = CudaTorchRunner._result

    def watched(self: CudaTorchRunner, first: object, second: object) -> object:
        seen.append((cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32))
        return plain(self, first, second)

    monkeypatch.setattr(CudaTorchRunner, "_result", watched)
    monkeypatch.setattr(CudaTorchRunner, "_stream", lambda self: nullcontext())
    monkeypatch.setattr(cudnn, "benchmark", True)
    spec = ConvSpec.parse(f"{op} {text}")
    a, b = testing.operands(spec, np.random.default_rng(0))
    expected = testing.reference(spec, a, b)
    for how in ("strict", "tf32"):
        before = cudnn.allow_tf32, matmul.allow_tf32
        runner = CudaTorchRunner(spec, Config(memory="plain", arithmetic=how), 0)
        out = np.full(spec.result_shape, np.nan, spec.np_dtype)
        runner(a, b, out, Workspace())
        assert testing.relative_error(out, expected) < 1e-6
        if op != "wgrad":
            out[...] = np.nan
            runner.bind(b)(a, out, Workspace())
            assert testing.relative_error(out, expected) < 1e-6
        assert set(seen) == {(False, how == "tf32", how == "tf32")}
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, *before)
        seen.clear()
