"""Generated kernels against the conformance suite: a sample here, every config in `make test-native`."""

from __future__ import annotations

import pytest

from autoconv.device import cpu
from autoconv.spec import ConvSpec, Op
from tests.native.kernels import ALL, FAMILIES, every_kernel, family, sample

pytestmark = pytest.mark.usefixtures("gcc")

SAMPLE = 12  # of every family: each costs about a second of compiling


@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.parametrize("name", FAMILIES)
def test_sample(name: str, number: int) -> None:
    sample(name, number, SAMPLE).check()


@pytest.mark.parametrize("name", FAMILIES)
def test_sample_has_every_operation_and_format(name: str) -> None:
    specs = [sample(name, number, SAMPLE).spec for number in range(SAMPLE)]
    assert {spec.op for spec in specs} == family(name).ops
    assert {spec.layout for spec in specs} == family(name).layouts


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_config(name: str, case: str) -> None:
    kernels = list(every_kernel(name, case))
    if not kernels:
        pytest.skip(str(family(name).why_not(ConvSpec.parse(ALL[case]), cpu())))
    for kernel in kernels:
        kernel.check()


# What the families refuse ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fprop n16c5 8x8 k16 3x3", "fprop needs 3 channels or fewer, or a multiple of 2, got 5"),
        ("dgrad n16c7 8x8 k16 3x3", "dgrad needs 3 channels or fewer, or a multiple of 2, got 7"),
        ("wgrad n16c6 8x8 k16 3x3", "wgrad needs 3 channels or fewer, or a multiple of 4, got 6"),
        ("fprop n16c4 8x8 k24 3x3", "needs a multiple of 16 filters, got 24"),
        ("fprop n16c4 8x8 k16 3x2", "needs square filters, got (3, 2)"),
        ("fprop n16c4 8x8 k16 3x3 s1,2", "needs one stride for both axes, got (1, 2)"),
        ("fprop n16c4 9x9 k16 3x3 d2", "needs dilation 1, got (2, 2)"),
        ("fprop n16c4 8x8 k16 3x3 g2", "does not do groups, got 2"),
        ("fprop n16c4 8x8 k16 3x3 p1:2", "needs the same padding on every side, got ((1, 2), (1, 2))"),
        ("fprop n16c4 8x8 k16 3x3 p1,2", "needs the same padding on every side, got ((1, 1), (2, 2))"),
        ("fprop n0c4 8x8 k16 3x3", "needs a non-empty problem, got 0 images of (8, 8)"),
        ("fprop n16c4 8x8x8 k16 3x3x3", "does rank 2, got 3"),
    ],
)
def test_chwn_keeps_the_restrictions_of_its_model(text: str, reason: str) -> None:
    assert family("native.chwn").why_not(ConvSpec.parse(text), cpu()) == reason


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_chwn_takes_what_its_model_took(op: Op, channels: int) -> None:
    spec = ConvSpec.parse(f"{op} n16c{channels} 8x9 k32 5x5 p2 s3")
    assert family("native.chwn").why_not(spec, cpu()) is None
