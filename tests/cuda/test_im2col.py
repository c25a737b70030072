"""`cupy.im2col`: both kernels, both orders of memory, every arithmetic."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import Device, find_device
from autoconv.evidence import Config
from autoconv.impls.cuda.im2col import Im2col
from autoconv.spec import ConvSpec
from tests.cuda_shim import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler to run kernels on the host")

CASES = [
    "fprop n3c4 7x6 k6 3x2 p1:0,2 s2,1 d1,2 g2 conv nchw f32",
    "fprop n2c3 5x9 k4 3x3 p1 corr nchw f64",
    "fprop n2c2 4x5x4 k4 2x3x2 p1 s1,2,1 g2 conv nchw f32",
    "fprop n3c3 17 k4 5 p2 d2 conv nchw f16",
    "fprop n1c2 3x4 k2 2x2 p5,4 conv nchw f32",
    "fprop n1c4 6x5 k4 3x3 p1 g4 corr nchw f32",  # one filter a group: matrices with an edge of one
]


@pytest.fixture
def device(standin: ModuleType) -> Device:
    return find_device("cuda:0")


@pytest.mark.parametrize("text", CASES)
def test_passes_the_suite(text: str, device: Device) -> None:
    testing.check_implementation(Im2col(), {"": text}, device=device)
    several = [Config(images=2, arithmetic="strict")]
    for spec in testing.problems(text):
        if spec.batch > 2 and spec.layout != "chwn":
            assert (
                testing.check_case(Im2col(), spec, device=device, checks=("values", "bound"), configs=several) is None
            )


def test_strict_float32_is_strict_whatever_the_handle_says(
    device: Device, standin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cupy.cuda import device as cupy_device
    from cupy_backends.cuda.libs import cublas

    monkeypatch.setenv("CUPY_TF32", "1")
    handle = cupy_device.get_cublas_handle()
    cublas.setMathMode(handle, cublas.CUBLAS_TF32_TENSOR_OP_MATH)
    spec = ConvSpec.parse("fprop n2c64 6x6 k8 3x3 p1 s1 d1 g1 corr nchw f32")
    a, b = testing.operands(spec, np.random.default_rng(3))
    expected = testing.reference(spec, a, b)
    errors = {}
    for arithmetic in ("strict", "3xtf32", "tf32"):
        built = testing.build(Im2col(), spec, Config(images=2, arithmetic=arithmetic), device)
        errors[arithmetic] = testing.relative_error(testing.run(built, a, b, device), expected)
        assert arithmetic == "strict" or arithmetic in built.tags
    assert cublas.getMathMode(handle) == cublas.CUBLAS_TF32_TENSOR_OP_MATH
    assert max(errors["strict"], errors["3xtf32"]) < 1e-6 < 1e-4 < errors["tf32"]
    assert cublas.calls[-1]["compute"] == cublas.CUBLAS_COMPUTE_32F_FAST_TF32


def test_arithmetic_follows_the_device() -> None:
    spec = ConvSpec.parse("fprop n2c4 6x6 k8 3x3")
    old, new = (Device("cuda", "a GPU", isa, 80, 1) for isa in ("sm_75", "sm_80"))
    assert {config["arithmetic"] for config in Im2col().configs(spec, old)} == {"strict"}
    assert {config["arithmetic"] for config in Im2col().configs(spec, new)} == {"strict", "tf32", "3xtf32"}
    refused = Im2col().restrictions(spec, old, Config(images=1, arithmetic="tf32"))
    assert [reason for holds, reason in refused if not holds] == [
        "computes in strict here, got arithmetic=tf32 images=1"
    ]


def test_numbers_near_the_largest_are_split_without_becoming_infinite(device: Device) -> None:
    spec = ConvSpec.parse("fprop n1c1 3 k1 1")
    built = testing.build(Im2col(), spec, Config(images=1, arithmetic="3xtf32"), device)
    largest = np.finfo(np.float32).max
    a = np.array([[[largest, 2.0**-100, np.nan]]], np.float32)
    result = testing.run(built, a, np.ones((1, 1, 1), np.float32), device)
    np.testing.assert_allclose(result[..., :2], a[..., :2], 2.0**-21)
    assert np.isnan(result[..., 2])
