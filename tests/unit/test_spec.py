"""`ConvSpec`: derived sizes, the grammar of its text, and every way to be impossible."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from autoconv.errors import BackendMissing, InvalidSpec, InvalidType
from autoconv.spec import ConvSpec, Op, dtype_code, numpy_dtype

RESNET_STEM = "fprop n8c3 224x224 k64 7x7 p3 s2 d1 g1 corr nchw f32"


def test_shapes_of_the_three_operations() -> None:
    spec = ConvSpec.parse("fprop n2c6 9x11 k4 3x5 p1:0,2 s2,1 d1,2 g2 corr nchw f64")
    x, w, y = (2, 6, 9, 11), (4, 3, 3, 5), (2, 4, 4, 7)
    assert (spec.input_shape, spec.filter_shape, spec.output_shape) == (x, w, y)
    by_op = {
        Op.FPROP: ((x, w), y, 3 * 15),
        Op.DGRAD: ((y, w), x, 2 * 15),
        Op.WGRAD: ((x, y), w, 2 * 4 * 7),
    }
    for op, (taken, given, length) in by_op.items():
        one = replace(spec, op=op)
        assert (one.operand_shapes, one.result_shape, one.reduction_length) == (taken, given, length)
        assert one.forward == spec
        assert one.macs == 2 * 4 * 4 * 7 * 3 * 15
    assert (spec.rank, spec.itemsize, spec.np_dtype) == (2, 8, np.float64)


def test_builders_differ_in_the_operation_alone() -> None:
    arguments: tuple[Any, ...] = ((8, 64, 56, 56), (64, 64, 3, 3))
    forward = ConvSpec.fprop(*arguments, padding="half")
    assert str(forward) == "fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32"
    assert ConvSpec.dgrad(*arguments, padding=1) == replace(forward, op=Op.DGRAD)
    assert ConvSpec.wgrad(*arguments, padding=((1, 1), (1, 1))) == replace(forward, op=Op.WGRAD)


def test_spellings_hash_alike() -> None:
    arguments: tuple[Any, ...] = ((1, 3, 9, 9), (2, 3, 3, 3))
    one = ConvSpec.fprop(*arguments, padding="half", stride=2, dtype=np.float32)
    for padding in (1, (1, 1), [1, 1], ((1, 1), (1, 1)), "half"):
        other = ConvSpec.fprop(*arguments, padding=padding, stride=[2, 2], dtype="f32")
        assert other == one
        assert hash(other) == hash(one)
    assert len({one, ConvSpec.fprop(*arguments, padding="half", stride=(2, 2))}) == 1


def test_one_channel_has_one_layout() -> None:
    assert ConvSpec.parse("fprop n1c1 9x9 k1 3x3 nhwc") == ConvSpec.parse("fprop n1c1 9x9 k1 3x3 nchw")
    assert ConvSpec.parse("fprop n1c1 9x9 k2 3x3 nhwc").layout == "nhwc"


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ConvSpec.parse(RESNET_STEM).batch = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fprop n1c1 3x3 k1 3x3", "fprop n1c1 3x3 k1 3x3 p0 s1 d1 g1 conv nchw f32"),
        (RESNET_STEM, RESNET_STEM),
        ("  wgrad  n1c2 5x5 k2 3x3 f64\n", "wgrad n1c2 5x5 k2 3x3 p0 s1 d1 g1 conv nchw f64"),
        ("fprop n1c2 5x5 k2 3x3 p1,1 s1,1 d1,1", "fprop n1c2 5x5 k2 3x3 p1 s1 d1 g1 conv nchw f32"),
        ("fprop n1c2 5x5 k2 3x3 p1:2,0:1", "fprop n1c2 5x5 k2 3x3 p1:2,0:1 s1 d1 g1 conv nchw f32"),
        ("fprop n1c2 5x5 k2 3x3 p1:2,1:2", "fprop n1c2 5x5 k2 3x3 p1:2 s1 d1 g1 conv nchw f32"),
        ("fprop n1c2 5x5 k2 3x3 p1:1,0:1", "fprop n1c2 5x5 k2 3x3 p1,0:1 s1 d1 g1 conv nchw f32"),
        ("fprop n1c2 5x6x7 k2 1x2x3 s1,2,1", "fprop n1c2 5x6x7 k2 1x2x3 p0 s1,2,1 d1 g1 conv nchw f32"),
        ("fprop n1c2 50 k2 3 d4", "fprop n1c2 50 k2 3 p0 s1 d4 g1 conv nchw f32"),
        ("dgrad n1c2 5x5 k2 3x3 rank1 fixed", "dgrad n1c2 5x5 k2 3x3 p0 s1 d1 g1 conv nchw f32 fixed rank1"),
        ("fprop n0c2 5x5 k2 3x3 bf16 nhwc", "fprop n0c2 5x5 k2 3x3 p0 s1 d1 g1 conv nhwc bf16"),
        ("fprop n007c2 5x5 k2 3x3 p00", "fprop n7c2 5x5 k2 3x3 p0 s1 d1 g1 conv nchw f32"),
    ],
)
def test_grammar(text: str, canonical: str) -> None:
    assert str(ConvSpec.parse(text)) == canonical
    assert str(ConvSpec.parse(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs at least operation"),
        ("fprop n1c1 3x3 k1", "needs at least operation"),
        ("conv n1c1 3x3 k1 3x3", "'conv'.*expected fprop, dgrad or wgrad"),
        ("fprop c1n1 3x3 k1 3x3", "'c1n1'.*as n8c64"),
        ("fprop n1c1 3X3 k1 3x3", "'3X3'.*image's size"),
        ("fprop n1c1 3x k1 3x3", "'3x'.*image's size"),
        ("fprop n1c1 3x3 1 3x3", "'1'.*number of filters"),
        ("fprop n1c1 3x3 k1 3x-3", "'3x-3'.*filter's size"),
        ("fprop n1c1 3x3 k1 3x3 q1", "'q1'.*one of p"),
        ("fprop n1c1 3x3 k1 3x3 p1:2:3", "'p1:2:3'"),
        ("fprop n1c1 3x3 k1 3x3 p1,", "'p1,'"),
        ("fprop n1c1 3x3 k1 3x3 s1:2", "'s1:2'"),
        ("fprop n2c2 3x3 k2 3x3 g1,2", "'g1,2'"),
        ("fprop n1c1 3x3 k1 3x3 p1 p2", "'p2'.*padding only once"),
        ("fprop n1c1 3x3 k1 3x3 conv corr", "'corr'.*flip only once"),
        ("fprop n1c1 3x3 k1 3x3 p1,1,1", "border_mode needs 2 entries"),
        ("fprop n1c1 3x3x3 k1 3x3", "input needs 4 dimensions, got 5"),
        ("fprop n1c1 3x3 k1 3x3 i8", "'i8'.*f16, bf16, f32, f64"),
        ("fprop n1c9999999999999 3x3 k1 3x3", "'n1c9999999999999'"),
        ("fprop n1c1 3x3 k1 3x3 s0", "stride must be at least 1, got 0"),
        ("fprop n1c1 3x3 k1 3x3 d0", "dilation must be at least 1, got 0"),
        ("fprop n1c1 3x3 k1 3x3 g0", "groups must divide"),
        ("fprop n1c3 3x3 k2 3x3 g2", "groups must divide the input channels: 3 channels, 2 groups"),
        ("fprop n1c2 3x3 k3 3x3 g2", "groups must divide the output channels: 3 filters, 2 groups"),
        ("fprop n1c0 3x3 k1 3x3", "input channels must be at least 1"),
        ("fprop n1c1 0x3 k1 1x1", "input size must be at least 1"),
        ("fprop n1c1 3x3 k0 3x3", "output channels must be at least 1"),
        ("fprop n1c1 3x3 k1 0x3", "kernel must be at least 1"),
        ("fprop n1c1 3x3 k1 4x3", "kernel larger than the padded image along spatial axis 0: kernel 4 .*image 3"),
        ("fprop n1c1 3x5 k1 3x3 d1,3", "axis 1: kernel 3 with dilation 3 covers 7, image 5 with padding 0.0 has 5"),
        ("wgrad n1c1 3x3 k1 3x3 fixed", "wgrad takes no filters"),
        ("fprop n1c1 3x3 k1 3x3 rank1", "rank1 .* follows fixed"),
    ],
)
def test_what_cannot_be_read_or_be(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        ConvSpec.parse(text)


@pytest.mark.parametrize(
    ("input_shape", "filter_shape", "options", "error", "message"),
    [
        ((1, 3, 9), (2, 3, 3, 3), {}, InvalidType, "input needs 4 dimensions, got 3"),
        ((1, 3, 9, 9), (2, 3), {}, InvalidType, "filters need at least 3 dimensions"),
        ((1, 3, 9, 9), (2, 4, 3, 3), {}, InvalidSpec, "expect 4 input channels per group.*has 3"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"groups": 2}, InvalidSpec, r"in 2 group\(s\) has 2"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"groups": 1.0}, InvalidSpec, "groups must be an integer"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"groups": -1}, InvalidSpec, "groups must be at least 1"),
        ((-1, 4, 9, 9), (2, 4, 3, 3), {}, InvalidSpec, "batch must be at least 0"),
        ((None, 4, 9, 9), (2, 4, 3, 3), {}, InvalidSpec, "1 of 8 dimensions unknown: input batch"),
        ((1, 4, 9, None), (2, 4, 3, 3), {}, InvalidSpec, "1 of 8 dimensions unknown: input width"),
        ((1, 4, None, None), (2, 4, None, 3), {}, InvalidSpec, "3 of 8 dim.* input height, input width, .*height"),
        ((1, 4, 9.0, 9), (2, 4, 3, 3), {}, InvalidSpec, "input size must be an integer, got 9.0"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"layout": "hwcn"}, InvalidSpec, "layout must be one of nchw, nhwc, chwn"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"dtype": np.int32}, InvalidType, "int32: convert first"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"dtype": "nonsense"}, InvalidType, "got nonsense"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"stride": (1, 1, 1)}, InvalidSpec, "stride needs 2 entries"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"dilation": 0}, InvalidSpec, "dilation must be at least 1"),
        ((1, 4, 9, 9), (2, 4, 3, 3), {"padding": "circular"}, InvalidSpec, "border_mode must be one of"),
    ],
)
def test_what_cannot_be_built(
    input_shape: Any, filter_shape: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ConvSpec.fprop(input_shape, filter_shape, **options)


def test_fields_of_different_ranks_are_refused() -> None:
    spec = ConvSpec.parse(RESNET_STEM)
    for name in ("stride", "dilation", "in_spatial", "padding"):
        with pytest.raises(InvalidSpec, match=f"{name} needs 2 entries"):
            replace(spec, **{name: getattr(spec, name)[:1]})


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (np.dtype("int64"), "astype"),
        (np.dtype("uint8"), "astype"),
        (np.dtype("bool"), "astype"),
        (np.dtype("complex64"), "real and imaginary parts"),
        (np.dtype("O"), "convert to float32 or float64"),
        (np.dtype("longdouble"), "convert to float32 or float64"),
    ],
)
def test_dtypes_that_are_refused(dtype: Any, advice: str) -> None:
    with pytest.raises(InvalidType, match=f"got {dtype.name}: .*{advice}") as caught:
        dtype_code(dtype)
    assert isinstance(caught.value, TypeError)


def test_dtype_codes() -> None:
    codes = {"float16": "f16", "float32": "f32", "float64": "f64", ">f4": "f32", float: "f64"}
    assert {dtype: dtype_code(dtype) for dtype in codes} == codes
    assert numpy_dtype("f16") == np.float16


def test_bfloat16_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(BackendMissing, match="pip install ml_dtypes"):
        numpy_dtype("bf16")


def test_huge_problems_are_only_numbers() -> None:
    """Nothing is allocated for a spec, so one that this machine cannot hold is still a spec; none can hold 2**63."""
    assert ConvSpec.parse("fprop n99999c64 9999x9999 k64 3x3").macs > 10**17
    with pytest.raises(InvalidSpec, match=r"input of shape .* is larger than any address space"):
        ConvSpec.parse("fprop n999999999999c4 99999x99999 k4 3x3")
