"""What the conformance suite cannot know of cuda.chwn: orders of threads, blocks, parts of sums, its own layout."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import Device, cpu, find_device
from autoconv.evidence import Config
from autoconv.implementation import Built
from autoconv.impls.cuda.chwn import BLOCKS, WEIGHT_BLOCKS, Chwn
from autoconv.impls.native.chwn import Chwn as NativeChwn
from autoconv.spec import ConvSpec, Op
from tests.cuda_shim import compiler, thread_order

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")

ONE = Chwn()


def gpu() -> Device:
    return find_device("cuda:0")


def prepare(spec: ConvSpec, config: Config | None = None) -> Built:
    return testing.build(ONE, spec, config, gpu())


def operands(spec: ConvSpec, *, integers: bool = False) -> tuple[Array, Array]:
    return testing.operands(spec, np.random.default_rng(1), integers=integers)


def exactly(spec: ConvSpec, config: Config | None = None) -> None:
    """Small integers come out exactly, in three orders of threads."""
    built, pair = prepare(spec, config), operands(spec, integers=True)
    expected = testing.reference(spec, *pair)
    for order in ("forward", "backward", 7):
        with thread_order(order):
            result = testing.run(built, *pair, gpu())
        assert np.array_equal(np.asarray(result, np.float64), expected), f"{spec}, {config}, threads {order}"


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("case", ["n8c4 7x9 k16 3x3 p1 conv", "n5c2 9x8 k16 3x3 p2 s2 corr"], ids=["whole", "rest"])
def test_every_layout(standin: ModuleType, op: Op, case: str) -> None:
    """Runs of images that never cross pixels, and others that do; the kernel is the same for every layout."""
    for layout in ("chwn", "nchw", "nhwc"):
        exactly(ConvSpec.parse(f"{op} {case} {layout}"))


@pytest.mark.parametrize(
    "text",
    [
        "fprop n4c3 9x10 k32 5x5 p2 s3 conv chwn f32",
        "dgrad n4c3 9x10 k32 5x5 p2 s3 conv chwn f32",  # three channels, residues of different size
        "wgrad n4c3 9x10 k32 5x5 p2 s3 conv chwn f32",
        "dgrad n4c8 9x10 k32 2x2 s3 conv chwn f64",  # pixels that no tap meets
        "wgrad n4c8 9x10 k32 2x2 s3 conv chwn f64",
        "fprop n36c4 5x5 k16 3x3 p1 corr chwn f16",
        "wgrad n36c4 5x5 k16 3x3 p1 corr chwn f16",
        "fprop n1c4 5x5 k16 3x3 p1 conv nchw f32",  # one image is images innermost already
        "dgrad n3c1 3x3 k16 1x1 p5 corr chwn f32",  # tiles that see nothing but padding
    ],
)
def test_shapes_at_the_edge(standin: ModuleType, text: str) -> None:
    exactly(ConvSpec.parse(text))


@pytest.mark.parametrize("filters", BLOCKS)
def test_every_block(standin: ModuleType, filters: int) -> None:
    """Also blocks that are larger than the result, and results that fill none of them."""
    exactly(ConvSpec.parse("dgrad n8c20 5x6 k16 3x3 p1 chwn"), Config(filters=filters))


@pytest.mark.parametrize("filters", WEIGHT_BLOCKS)
@pytest.mark.parametrize("parts", [1, 5])
def test_every_block_of_the_gradient(standin: ModuleType, filters: int, parts: int) -> None:
    exactly(ConvSpec.parse("wgrad n33c4 5x6 k80 3x3 p1 chwn"), Config(filters=filters, parts=parts))


def test_parts_are_added_in_one_order(standin: ModuleType) -> None:
    """With random numbers another order would give other bits."""
    spec = ConvSpec.parse("wgrad n16c4 8x8 k16 3x3 p1 chwn f32")
    built, pair = prepare(spec, Config(filters=16, parts=9)), operands(spec)
    results = set()
    for order in ("forward", "backward", 3, 4):
        with thread_order(order):
            results.add(testing.run(built, *pair, gpu()).tobytes())
    assert len(results) == 1


def test_no_part_is_empty_and_all_are_declared(standin: ModuleType) -> None:
    for text in (
        "wgrad n33c4 5x6 k80 3x3 p1 chwn",
        "wgrad n128c64 24x24 k64 5x5 p2 chwn",
        "wgrad n2c1 4x4 k16 3x3 chwn",
    ):
        spec = ConvSpec.parse(text)
        for config in ONE.configs(spec, gpu()):
            parts = int(config["parts"])
            weights = int(np.prod(spec.filter_shape))
            assert ONE.workspace_bytes(spec, gpu(), config) == (0 if parts == 1 else -(-parts * weights * 4 // 64) * 64)
            assert ONE.why_not(spec, gpu(), config) is None
    assert "1 to" in str(ONE.why_not(spec, gpu(), Config(filters=16, parts=1000)))


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
def test_its_own_layout_takes_no_memory(standin: ModuleType, op: str) -> None:
    own, other = (ConvSpec.parse(f"{op} n32c16 9x9 k32 3x3 p1 {layout}") for layout in ("chwn", "nchw"))
    assert {ONE.workspace_bytes(own, gpu(), config) for config in ONE.configs(own, gpu())} == {0}
    copies = sum(int(np.prod(shape)) * 4 for shape in (own.input_shape, own.output_shape))
    assert {ONE.workspace_bytes(other, gpu(), config) for config in ONE.configs(other, gpu())} == {copies}
    assert max(ONE.estimate_s(own, gpu(), config) for config in ONE.configs(own, gpu())[:1]) < ONE.estimate_s(
        other, gpu(), ONE.configs(other, gpu())[0]
    )


@pytest.mark.parametrize(
    "text",
    [
        "fprop n8c5 9x9 k16 3x3 chwn",
        "wgrad n8c6 9x9 k16 3x3 chwn",
        "fprop n8c4 9x9 k24 3x3 chwn",
        "fprop n8c4 9x9 k16 3x2 chwn",
        "fprop n8c4 9x9 k16 3x3 s1,2 chwn",
        "fprop n8c4 9x9 k16 3x3 d2 chwn",
        "fprop n8c4 9x9 k16 3x3 g2 chwn",
        "fprop n8c4 9x9 k16 3x3 p1:0 chwn",
    ],
)
def test_restrictions_are_those_of_the_cpu(standin: ModuleType, text: str) -> None:
    spec = ConvSpec.parse(text)
    here, there = ONE.why_not(spec, gpu()), NativeChwn().refusal(spec, None)
    assert here is not None
    assert here == there
    assert ONE.why_not(spec, cpu()) == "runs on cuda, not on cpu"
