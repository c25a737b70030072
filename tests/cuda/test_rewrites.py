"""Rewrites on a GPU's arrays: what the suite cannot know, and batches in parts."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import Device, cpu, find_device
from autoconv.evidence import Config
from autoconv.implementation import Implementation
from autoconv.impls.rewrite.conv3d2d import Conv3d2d
from autoconv.impls.rewrite.depth_to_channels import DepthToChannels
from autoconv.impls.rewrite.dgrad_as_fprop import DgradAsFprop
from autoconv.impls.rewrite.gemm_1x1 import Gemm1x1
from autoconv.impls.rewrite.groups import Groups
from autoconv.impls.rewrite.layout import Layout
from autoconv.impls.rewrite.patches import Patches
from autoconv.impls.rewrite.split_batch import LIMIT, SplitBatch
from autoconv.impls.rewrite.wgrad_as_fprop import WgradAsFprop
from autoconv.spec import ConvSpec
from tests.cuda_shim import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler to run kernels on the host")


@pytest.fixture
def device(standin: ModuleType) -> Device:
    return find_device("cuda:0")


class SmallParts(SplitBatch):
    """Parts of three or four small images."""

    limit = 1000


@needs_compiler
@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Gemm1x1(), "fprop n3c4 7x5 k6 1x1 p1,0 s2,1 g2 corr f32"),
        (Gemm1x1(), "fprop n2c5 6x7 k4 1x1 f16"),
        (Patches(), "fprop n3c4 9x13 k6 2x3 s2,3 g2 conv f32"),
        (Patches(), "fprop n2c3 8x8 k4 4x4 s4 corr f16"),
        (Groups(), "fprop n2c8 5x6 k8 2x2 p1 g2 conv f32"),
        (Layout(), "fprop n3c2 5x6 k3 3x2 p1 conv f32"),
        (Layout(), "fprop n3c4 5x6 k6 3x2 p1 g2 corr nhwc f16"),
        (Conv3d2d(), "fprop n2c2 4x5x6 k3 2x3x2 p1 s2,1,1 conv f32"),
        (DepthToChannels(), "fprop n2c2 4x5x6 k3 2x3x2 p1 s2,1,1 conv f32"),
        (DgradAsFprop(), "fprop n2c3 9x8 k4 3x3 p1 s2 conv f32"),
        (WgradAsFprop(), "fprop n2c3 9x8 k4 3x3 p1 s2 conv f32"),
        (SmallParts(), "fprop n7c4 8x8 k3 3x3 p1 conv f32"),
        (SmallParts(), "fprop n5c4 8x8 k4 3x3 p1 corr f16"),
    ],
    ids=lambda value: value.name if isinstance(value, Implementation) else "",
)
def test_passes_the_suite(one: Implementation, text: str, device: Device) -> None:
    testing.check_implementation(one, {"": text}, device=device)


def test_parts_are_equal_aligned_and_within_the_limit(device: Device) -> None:
    large = ConvSpec.parse("fprop n64c64 1024x1024 k64 3x3 p1")
    assert SplitBatch().why_not(large, device) is None
    child = SplitBatch().child_spec(large)
    assert (child.batch, SplitBatch().child_calls(large)) == (22, 3)
    assert child.batch * 64 * 1024 * 1024 <= LIMIT
    assert "more than" in str(SplitBatch().why_not(child, device))
    odd = ConvSpec.parse("fprop n7c1 9x9 k1 3x3 p1 f32")
    part = SmallParts().child_spec(odd)
    assert part.batch * 81 * 4 % 16 == 0
    assert SmallParts().why_not(ConvSpec.parse("fprop n9c1 19x19 k1 3x3 p1"), device) == (
        "needs parts of 4 images with at most 1000 elements, got 361 in one"
    )


def test_batches_stay_whole_on_the_cpu() -> None:
    spec = ConvSpec.parse("fprop n64c64 1024x1024 k64 3x3 p1")
    assert SplitBatch().why_not(spec, cpu()) == "runs on cuda, not on cpu"


def test_groups_that_no_wide_load_may_begin_at_are_refused() -> None:
    gpu = Device("cuda", "a GPU", "sm_90", 132, 1)
    spec = ConvSpec.parse("fprop n2c6 5x5 k6 3x3 g2")
    assert Groups().why_not(spec, gpu) == "needs groups that begin at multiples of 16 bytes, got [324]"
    assert Groups().why_not(spec, cpu()) is None


@pytest.mark.parametrize("one", [Gemm1x1(), Patches()], ids=lambda one: one.name)
def test_configs_are_arithmetics_on_a_gpu_and_none_on_the_cpu(one: Gemm1x1 | Patches) -> None:
    gpu = Device("cuda", "a GPU", "sm_80", 108, 1)
    spec = ConvSpec.parse("fprop n2c4 8x8 k4 2x2 s2" if one.name.endswith("patches") else "fprop n2c4 8x8 k4 1x1")
    assert one.configs(spec, cpu()) == (Config(),)
    assert [config["arithmetic"] for config in one.configs(spec, gpu)] == ["strict", "3xtf32", "tf32"]
    assert one.why_not(spec, cpu(), Config(arithmetic="strict")) == "has no configs on the CPU, got arithmetic=strict"
    short = one.traits(Config(arithmetic="tf32"))
    assert ("tf32" in short.tags, short.strict_nan, one.traits(Config()).strict_nan) == (True, False, True)
    assert not one.capturable
    a, b = testing.operands(spec, np.random.default_rng(0))
    assert testing.relative_error(testing.run(testing.build(one, spec), a, b), testing.reference(spec, a, b)) < 1e-6
