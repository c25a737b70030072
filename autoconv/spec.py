"""`ConvSpec`: one convolution problem, fully specified, hashable, with a one-line text form.

Two spellings of one problem are one spec: border modes become explicit pairs, ints become tuples.
The text form is canonical and parseable, and the same in logs, on the command line, in workload
files and in the database::

    fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32
    dgrad n1c3 16x112x112 k64 3x7x7 p0:1,3,3 s1,2,2 d1 g1 corr nhwc f64 fixed

A gradient's text carries the shapes of the forward problem it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import import_module
from math import prod
from typing import Any, cast

import numpy as np

from autoconv import shapes
from autoconv.errors import BackendMissing, InvalidSpec, InvalidType

__all__ = ["DTYPES", "LAYOUTS", "ConvSpec", "Op", "dtype_code", "numpy_dtype"]

LAYOUTS = ("nchw", "nhwc", "chwn")  # channels first, channels last or images last in memory, at any rank
DTYPES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}  # code -> bytes

MAX_BYTES = 1 << 62  # beyond it sizes overflow the index type of every array library

_NUMPY_NAMES = {"f16": "float16", "f32": "float32", "f64": "float64"}
_CODES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}


class Op(StrEnum):
    """The three operations of one convolution."""

    FPROP = "fprop"  # (input, filters) -> output
    DGRAD = "dgrad"  # (output gradient, filters) -> gradient of the input
    WGRAD = "wgrad"  # (input, output gradient) -> gradient of the filters


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """What to compute. Build one with `fprop`, `dgrad`, `wgrad` or `parse`.

    Shapes are logical (batch, channels, spatial...) whatever the `layout` in memory; filters are
    (out_channels, in_channels / groups, kernel...) and always plain. `flip=True` is a true
    convolution, `False` a cross-correlation. `fixed` says that the filters are bound beforehand,
    `rank1` that they were found to be separable.
    """

    op: Op
    batch: int
    in_channels: int
    in_spatial: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    padding: shapes.Pads
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    flip: bool = True
    layout: str = "nchw"
    dtype: str = "f32"
    fixed: bool = False
    rank1: bool = False

    def __post_init__(self) -> None:
        _check(self)
        one_channel = self.in_channels == 1 and self.out_channels == 1
        if (self.layout == "nhwc" and one_channel) or (self.layout == "chwn" and self.batch == 1):
            object.__setattr__(self, "layout", "nchw")  # the same bytes

    @classmethod
    def fprop(cls, input_shape: Sequence[int], filter_shape: Sequence[int], **options: Any) -> ConvSpec:
        """The forward problem of `input_shape` (N, C, spatial...) and `filter_shape` (K, C/groups, kernel...).

        Options: `padding` (any spelling of `border_mode`), `stride`, `dilation`, `groups`, `flip`,
        `layout`, `dtype`, `fixed`, `rank1`. Raises `InvalidType` for a wrong rank, `InvalidSpec` for
        sizes that do not fit together.
        """
        return cls._build(Op.FPROP, input_shape, filter_shape, **options)

    @classmethod
    def dgrad(cls, input_shape: Sequence[int], filter_shape: Sequence[int], **options: Any) -> ConvSpec:
        """The gradient of the input; shapes and options are those of the forward problem."""
        return cls._build(Op.DGRAD, input_shape, filter_shape, **options)

    @classmethod
    def wgrad(cls, input_shape: Sequence[int], filter_shape: Sequence[int], **options: Any) -> ConvSpec:
        """The gradient of the filters; shapes and options are those of the forward problem."""
        return cls._build(Op.WGRAD, input_shape, filter_shape, **options)

    @classmethod
    def _build(
        cls,
        op: Op,
        input_shape: Sequence[int],
        filter_shape: Sequence[int],
        *,
        padding: Any = "valid",
        stride: Any = 1,
        dilation: Any = 1,
        groups: Any = 1,
        flip: bool = True,
        layout: str = "nchw",
        dtype: Any = "f32",
        fixed: bool = False,
        rank1: bool = False,
    ) -> ConvSpec:
        rank = len(filter_shape) - 2
        if rank < 1:
            raise InvalidType(f"filters need at least 3 dimensions (K, C, kernel), got {tuple(filter_shape)}")
        _refuse_unknown(input_shape, filter_shape)
        batch, channels, *spatial = shapes.check_rank(input_shape, rank, "input")
        out_channels, per_group, *taps = filter_shape
        kernel = shapes.per_axis(taps, rank, "kernel")
        in_spatial = shapes.per_axis(spatial, rank, "input size")
        strides = shapes.per_axis(stride, rank, "stride")
        dilations = shapes.per_axis(dilation, rank, "dilation")
        group_count = shapes.as_int(groups, "groups", 1)
        channels = shapes.as_int(channels, "input channels", 1)
        per_group = shapes.as_int(per_group, "filter channels", 1)
        if channels % group_count:
            raise InvalidSpec(f"groups must divide the input channels: {channels} channels, {group_count} groups")
        if per_group != channels // group_count:
            raise InvalidSpec(
                f"filters of shape {tuple(filter_shape)} expect {per_group} input channels per group, "
                f"but input of shape {tuple(input_shape)} in {group_count} group(s) has {channels // group_count}"
            )
        return cls(
            op=op,
            batch=shapes.as_int(batch, "batch"),
            in_channels=channels,
            in_spatial=in_spatial,
            out_channels=shapes.as_int(out_channels, "output channels", 1),
            kernel=kernel,
            padding=shapes.resolve_padding(padding, in_spatial, kernel, strides, dilations),
            stride=strides,
            dilation=dilations,
            groups=group_count,
            flip=bool(flip),
            layout=layout,
            dtype=dtype if isinstance(dtype, str) and dtype in DTYPES else dtype_code(dtype),
            fixed=fixed,
            rank1=rank1,
        )

    # Derived sizes -----------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def output_spatial(self) -> tuple[int, ...]:
        """Spatial size of the forward output."""
        axes = zip(self.in_spatial, self.kernel, self.padding, self.stride, self.dilation, strict=True)
        return tuple(shapes.output_extent(size, k, *pads, s, d) for size, k, pads, s, d in axes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, spatial...) of the forward input."""
        return (self.batch, self.in_channels, *self.in_spatial)

    @property
    def filter_shape(self) -> tuple[int, ...]:
        """(K, C/groups, kernel...)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K, spatial...) of the forward output."""
        return (self.batch, self.out_channels, *self.output_spatial)

    @property
    def operand_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the two arrays this operation takes, in order."""
        if self.op is Op.FPROP:
            return self.input_shape, self.filter_shape
        if self.op is Op.DGRAD:
            return self.output_shape, self.filter_shape
        return self.input_shape, self.output_shape

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the array this operation gives."""
        if self.op is Op.FPROP:
            return self.output_shape
        return self.input_shape if self.op is Op.DGRAD else self.filter_shape

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct method, the same for all three operations."""
        return prod(self.output_shape) * self.dot_length

    @property
    def dot_length(self) -> int:
        """Products summed into one element of the forward output."""
        return shapes.dot_length(self.in_channels, self.groups, self.kernel)

    @property
    def reduction_length(self) -> int:
        """Products summed into one element of this operation's result (at most)."""
        if self.op is Op.FPROP:
            return self.dot_length
        if self.op is Op.DGRAD:
            return self.out_channels // self.groups * prod(self.kernel)
        return max(self.batch * prod(self.output_spatial), 1)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype]

    @property
    def np_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; bfloat16 needs the `ml_dtypes` package."""
        return numpy_dtype(self.dtype)

    @property
    def forward(self) -> ConvSpec:
        """The forward problem this operation belongs to."""
        return self if self.op is Op.FPROP else replace(self, op=Op.FPROP)

    # Text form ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        words = [
            f"{self.op} n{self.batch}c{self.in_channels} {_by_x(self.in_spatial)} "
            f"k{self.out_channels} {_by_x(self.kernel)}",
            f"p{_collapse([_pad_text(pads) for pads in self.padding])}",
            f"s{_collapse([str(s) for s in self.stride])}",
            f"d{_collapse([str(d) for d in self.dilation])}",
            f"g{self.groups} {'conv' if self.flip else 'corr'} {self.layout} {self.dtype}",
        ]
        words += ["fixed"] * self.fixed + ["rank1"] * self.rank1
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> ConvSpec:
        """Read the text form; what follows the filter size may be left out or come in any order.

        >>> str(ConvSpec.parse("fprop n8c64 56x56 k64 3x3 p1"))
        'fprop n8c64 56x56 k64 3x3 p1 s1 d1 g1 conv nchw f32'

        Raises `InvalidSpec` naming the word that cannot be read.
        """
        return _parse(text)


def _check(spec: ConvSpec) -> None:
    """Raise `InvalidSpec` unless the fields describe a problem that has an answer."""
    rank = len(spec.kernel)
    for name in ("in_spatial", "padding", "stride", "dilation"):
        if len(getattr(spec, name)) != rank:
            raise InvalidSpec(f"{name} needs {rank} entries, one per spatial axis, got {getattr(spec, name)!r}")
    if spec.layout not in LAYOUTS:
        raise InvalidSpec(f"layout must be one of {', '.join(LAYOUTS)}, got {spec.layout!r}")
    if spec.dtype not in DTYPES:
        raise InvalidType(f"dtype must be one of {', '.join(DTYPES)}, got {spec.dtype!r}")
    if spec.in_channels % spec.groups:
        raise InvalidSpec(f"groups must divide the input channels: {spec.in_channels} channels, {spec.groups} groups")
    if spec.out_channels % spec.groups:
        raise InvalidSpec(f"groups must divide the output channels: {spec.out_channels} filters, {spec.groups} groups")
    if spec.fixed and spec.op is Op.WGRAD:
        raise InvalidSpec("wgrad takes no filters, so they cannot be fixed")
    if spec.rank1 and not spec.fixed:
        raise InvalidSpec("rank1 says something of bound filters: it follows fixed")
    _check_extents(spec)
    for name, shape in (("input", spec.input_shape), ("filters", spec.filter_shape), ("output", spec.output_shape)):
        if prod(shape) * spec.itemsize > MAX_BYTES:
            raise InvalidSpec(f"{name} of shape {shape} is larger than any address space")


def _check_extents(spec: ConvSpec) -> None:
    """Raise `InvalidSpec` when the kernel does not fit into the padded image."""
    axes = zip(spec.in_spatial, spec.kernel, spec.padding, spec.dilation, spec.output_spatial, strict=True)
    for axis, (size, kernel, (before, after), dilation, out) in enumerate(axes):
        if out < 1:
            raise InvalidSpec(
                f"kernel larger than the padded image along spatial axis {axis}: "
                f"kernel {kernel} with dilation {dilation} covers {shapes.dilated(kernel, dilation)}, "
                f"image {size} with padding {before}+{after} has {size + before + after}"
            )


def _refuse_unknown(input_shape: Sequence[int | None], filter_shape: Sequence[int | None]) -> None:
    """Raise `InvalidSpec` listing the dimensions that are None."""
    axes = ["depth", "height", "width"]
    spatial = axes[-(len(filter_shape) - 2) :] if len(filter_shape) <= 5 else []
    names = [f"input {word}" for word in ("batch", "channels", *spatial)]
    names += [f"filter {word}" for word in ("count", "channels", *spatial)]
    sizes = (*input_shape, *filter_shape)
    unknown = [names[i] if i < len(names) else f"axis {i}" for i, size in enumerate(sizes) if size is None]
    if unknown:
        raise InvalidSpec(f"cannot tune: {len(unknown)} of {len(sizes)} dimensions unknown: {', '.join(unknown)}")


def _by_x(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _pad_text(pads: tuple[int, int]) -> str:
    before, after = pads
    return str(before) if before == after else f"{before}:{after}"


def _collapse(words: Sequence[str]) -> str:
    return words[0] if len(set(words)) == 1 else ",".join(words)


# `[0-9]`, not `\d`: other scripts' digits are no part of the grammar. At most 12 digits: sizes beyond are typos.
# Texts, compiled by `re` when first used: a program that never parses does not pay for them at import.
_SIZE = r"([0-9]{1,12}|\?)"  # `?`: not known, so not a complete spec
_SIZES = rf"{_SIZE}(x{_SIZE})*\Z"
_BATCH = rf"n{_SIZE}c{_SIZE}\Z"
_FILTERS = rf"k{_SIZE}\Z"
_OPTION = r"([psdg])([0-9:,]{1,200})\Z"
_FLAGS = {"conv": ("flip", True), "corr": ("flip", False), "fixed": ("fixed", True), "rank1": ("rank1", True)}


def _parse(text: str) -> ConvSpec:
    words = text.split()
    if len(words) < 5:
        raise InvalidSpec(
            f"cannot read spec {text!r}: needs at least operation, nNcC, size, kK and filter size, "
            "as in 'fprop n8c64 56x56 k64 3x3 p1'"
        )

    def fail(word: str, wanted: str) -> InvalidSpec:
        return InvalidSpec(f"cannot read {word!r} in spec {text!r}: expected {wanted}")

    op_word, batch_word, size_word, filters_word, kernel_word, *rest = words
    if op_word not in list(Op):
        raise fail(op_word, "fprop, dgrad or wgrad")
    batch = re.match(_BATCH, batch_word)
    if not batch:
        raise fail(batch_word, "batch and input channels, as n8c64")
    if not re.match(_SIZES, size_word):
        raise fail(size_word, "the image's size, as 56x56")
    filters = re.match(_FILTERS, filters_word)
    if not filters:
        raise fail(filters_word, "the number of filters, as k64")
    if not re.match(_SIZES, kernel_word):
        raise fail(kernel_word, "the filter's size, as 3x3")
    taps = tuple(map(_known, kernel_word.split("x")))
    options: dict[str, Any] = {}
    names = {"p": "padding", "s": "stride", "d": "dilation", "g": "groups"}

    def put(word: str, name: str, value: Any) -> None:
        if name in options:
            raise fail(word, f"{name} only once")
        options[name] = value

    for word in rest:
        match = re.match(_OPTION, word)
        if word in _FLAGS:
            put(word, *_FLAGS[word])
        elif word in LAYOUTS:
            put(word, "layout", word)
        elif word in DTYPES:
            put(word, "dtype", word)
        elif match and (value := _option_value(match[1], match[2], len(taps))) is not None:
            put(word, names[match[1]], value)
        else:
            raise fail(word, "one of p.. s.. d.. g.., conv, corr, nchw, nhwc, f16, bf16, f32, f64, fixed, rank1")
    channels, groups = _known(batch[2]), options.get("groups", 1)
    if groups < 1 or (channels or 0) % groups:
        raise InvalidSpec(f"groups must divide the input channels: {channels} channels, {groups} groups")
    image = (_known(batch[1]), channels, *map(_known, size_word.split("x")))
    bank = (_known(filters[1]), None if channels is None else channels // groups, *taps)
    _refuse_unknown(image, bank)
    return ConvSpec._build(Op(op_word), cast("tuple[int, ...]", image), cast("tuple[int, ...]", bank), **options)


def _known(word: str) -> int | None:
    return None if word == "?" else int(word)


def _option_value(letter: str, text: str, rank: int) -> Any:
    """The value of `p1:2,0:1`, `s2`, ... for that many axes; None when it cannot be read."""
    entries: list[Any] = []
    for word in text.split(","):
        numbers = word.split(":")
        if any(not n or len(n) > 12 for n in numbers) or len(numbers) > (2 if letter == "p" else 1):
            return None
        pair = tuple(map(int, numbers))
        entries.append(pair if len(pair) == 2 else pair[0])
    if letter == "g":
        return entries[0] if len(entries) == 1 else None
    return tuple(entries * rank) if len(entries) == 1 else tuple(entries)


def dtype_code(dtype: Any) -> str:
    """The short code of a NumPy dtype: f16, bf16, f32 or f64.

    Raises `InvalidType`, saying what to do, for integers, complex numbers and anything else.
    """
    try:
        found = np.dtype(dtype)
        name, kind = found.name, found.kind
    except TypeError:
        name, kind = str(dtype), ""
    code = _CODES.get(name)
    if code is None:
        advice = {
            "c": "convolve the real and imaginary parts apart",
            "i": "convert first, for example with .astype(np.float32)",
            "u": "convert first, for example with .astype(np.float32)",
            "b": "convert first, for example with .astype(np.float32)",
        }.get(kind, "convert to float32 or float64 first")
        raise InvalidType(f"dtype must be float16, bfloat16, float32 or float64, got {name}: {advice}")
    return code


def numpy_dtype(code: str) -> np.dtype[Any]:
    """The NumPy dtype of a code; `BackendMissing` for bf16 without `ml_dtypes`."""
    if code == "bf16":
        try:
            bfloat16 = import_module("ml_dtypes").bfloat16
        except ImportError:
            raise BackendMissing("bfloat16 arrays need the ml_dtypes package: pip install ml_dtypes") from None
        dtype: np.dtype[Any] = np.dtype(bfloat16)
        return dtype
    return np.dtype(_NUMPY_NAMES[code])
