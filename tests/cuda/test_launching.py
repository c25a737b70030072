"""Compiling and launching through CuPy, as the stand-in does it: refusals are CuPy's, or stricter."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoconv.impls.cuda import _kernels, _roofline
from autoconv.impls.cuda.direct import Direct
from autoconv.spec import ConvSpec
from tests.cuda.on_host import H200
from tests.cuda_shim import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")

TEXT = r"""
// Constants. FACTOR
extern "C" __global__ void scale(const float* from, float* to, float by, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i] * by * FACTOR;
}
extern "C" __global__ void roomy(float* to, long long last) {
  DYNAMIC_SHARED(float, shared);
  shared[last] = 1.0f;
  to[0] = shared[last];
}
"""


@pytest.fixture
def scaling(standin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _kernels.Module:
    """The text above, compiled with a factor of 3."""
    (tmp_path / "common.cuh").write_text((_kernels.FOLDER / "common.cuh").read_text())
    (tmp_path / "scaling.cu").write_text(TEXT)
    monkeypatch.setattr(_kernels, "FOLDER", tmp_path)
    made = _kernels.module("scaling", {"FACTOR": 3}, H200)
    assert _kernels.module("scaling", {"FACTOR": 3}, H200) is made
    return made


def test_a_kernel_runs(standin: Any, scaling: _kernels.Module) -> None:
    numbers, out = standin.arange(5, dtype=np.float32), standin.zeros(5, np.float32)
    scaling.launch("scale", (2,), (4,), (numbers, out, np.float32(2), np.int32(5)))
    assert out.get().tolist() == [0, 6, 12, 18, 24]
    scaling.launch("scale", (2,), (4,), (numbers.data.ptr, out.data, np.float32(1), np.int32(2)))
    assert out.get().tolist() == [0, 3, 12, 18, 24]


def test_much_shared_memory_is_asked_for_first(standin: Any, scaling: _kernels.Module) -> None:
    out = standin.zeros(1, np.float32)
    for size in (32 << 10, 100 << 10, 64 << 10, 200 << 10):
        scaling.launch("roomy", (1,), (1,), (out, np.int64(size // 4 - 1)), size)
        assert out.get()[0] == 1
    with pytest.raises(RuntimeError, match="at most 232448"):
        scaling.launch("roomy", (1,), (1,), (out, np.int64(0)), 228 << 10)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("half", "out", np.float32(2), np.int32(5)), "got an array of float16"),
        (("numbers", "out", 2.0, np.int32(5)), "got 8 bytes"),  # CuPy passes a double, of which a float reads half
        (("numbers", "out", np.float32(2), 5), "got 8 bytes"),
        (("numbers", "out", np.float32(2), np.float32(5)), "got 4 bytes"),
        (("numbers", "host", np.float32(2), np.int32(5)), "Unsupported type"),
        (("numbers", "out", "numbers", np.int32(5)), "got an array"),
    ],
)
def test_arguments_of_another_type_are_refused(
    standin: Any, scaling: _kernels.Module, args: tuple[Any, ...], said: str
) -> None:
    named = {
        "numbers": standin.zeros(5, np.float32), "out": standin.zeros(5, np.float32),
        "half": standin.zeros(5, np.float16), "host": np.zeros(5, np.float32),
    }  # fmt: skip
    values = tuple(named[arg] if isinstance(arg, str) else arg for arg in args)
    with pytest.raises(TypeError, match=said):
        scaling.launch("scale", (2,), (4,), values)


def test_launches_that_no_gpu_takes_are_refused(standin: Any, scaling: _kernels.Module) -> None:
    out = standin.zeros(1, np.float32)
    args = (out, np.int64(0))
    for grid, block, said in (
        ((1, 65536), (1,), "grid"),
        ((1,), (1, 1, 65), "block"),
        ((1,), (64, 32), "more than 1024 threads"),
    ):
        with pytest.raises(RuntimeError, match=said):
            scaling.launch("roomy", grid, block, args, 4)
    with pytest.raises(TypeError, match="expected tuple"):
        scaling.launch("roomy", [1], (1,), args, 4)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="takes 2 arguments"):
        scaling.launch("roomy", (1,), (1,), args[:1], 4)
    with pytest.raises(RuntimeError, match="named symbol not found"):
        scaling.launch("missing", (1,), (1,), args)


def test_a_text_that_does_not_compile_raises_when_it_is_prepared(standin: Any, scaling: _kernels.Module) -> None:
    with pytest.raises(standin.cuda.compiler.CompileException, match="FACTOR"):
        _kernels.module("scaling", {}, H200)


def test_constants_become_macros() -> None:
    assert _kernels.options({"TILE": 8, "ELEMENT": "f16"}) == ("-std=c++17", "-DELEMENT=f16", "-DTILE=8")


def test_texts_include_nothing() -> None:
    """NVRTC would need headers that a machine need not have."""
    for file in (*_kernels.FOLDER.glob("*.cu"), *_kernels.FOLDER.glob("*.cuh")):
        text = file.read_text()
        assert "#include" not in text, file
        assert file.suffix == ".cuh" or "AUTOCONV_HOST" not in text, file


def test_without_cupy_an_implementation_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "find_spec", lambda name: None)
    spec = ConvSpec.parse("fprop n1c1 8x8 k1 3x3")
    assert Direct().why_not(spec, H200) == "needs CuPy: pip install 'autoconv[cuda12]' or 'autoconv[cuda13]'"


def test_rooflines_follow_the_device() -> None:
    spec = ConvSpec.parse("fprop n32c64 56x56 k64 3x3 p1")
    flops = 2.0 * spec.macs
    strict = _roofline.seconds(spec, H200, flops, 0)
    assert _roofline.seconds(spec, H200, flops, 0, "tf32") < strict < _roofline.seconds(spec, H200, flops, 0, "f64")
    assert _roofline.seconds(spec, H200, flops, 0, efficiency=0.25) > 1.9 * (strict - _roofline.LAUNCH_S)
    assert _roofline.seconds(spec, H200, 0, 1e9) > 1e9 / 4.8e12
    for isa, like in (("sm_87", "sm_86"), ("sm_90a", "sm_90"), ("sm_103", "sm_100"), ("sm_61", "sm_70"), ("", "sm_70")):
        other = type(H200)("cuda", "another", isa, 10, 1)
        assert _roofline.peaks(other) == _roofline.peaks(type(H200)("cuda", "known", like, 10, 1))
