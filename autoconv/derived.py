"""Convolutions made of the nine: transposed ones, the causal one of signals in time, depthwise-separable ones.

A transposed convolution is the gradient of the input under another name, and is planned, tuned and remembered as
that; what it adds is the size of its output, which its input alone does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from autoconv import calling, options, shapes
from autoconv.convolving import conv1d, conv2d, introduce
from autoconv.errors import InvalidSpec, InvalidType

__all__ = ["causal_conv1d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose", "separable_conv2d"]


class Transposed(Protocol):
    """What the transposed convolutions look like; an omitted option is one of its kind per axis."""

    def __call__(
        self,
        input: Any,
        filters: Any,
        output_shape: Sequence[int | None] | None = None,
        *,
        border_mode: Any = "valid",
        input_dilation: Any = ...,
        filter_dilation: Any = ...,
        num_groups: int = 1,
        filter_flip: bool = True,
        output_padding: Any = ...,
        out: Any = None,
    ) -> Any: ...


def transposed(rank: int) -> Transposed:
    """The transposed convolution over `rank` axes."""
    name, ones, zeros = f"conv{rank}d_transpose", (1,) * rank, (0,) * rank

    def conv_transpose(
        input: Any,
        filters: Any,
        output_shape: Sequence[int | None] | None = None,
        *,
        border_mode: Any = "valid",
        input_dilation: Any = ones,
        filter_dilation: Any = ones,
        num_groups: int = 1,
        filter_flip: bool = True,
        output_padding: Any = zeros,
        out: Any = None,
    ) -> Any:
        key: Any = None
        try:
            key = (
                name, type(input), input.shape, input.strides, input.dtype, type(filters), filters.shape,
                filters.strides, filters.dtype, output_shape, border_mode, input_dilation, filter_dilation,
                num_groups, filter_flip, output_padding,
            )  # fmt: skip
            call = options.current_scope().calls.get(key)
        except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
            call = None
        if call is None:
            given, taps = (calling.operand(one, rank, of).shape for one, of in ((input, "input"), (filters, "filters")))
            target = _target(
                given, taps, output_shape, border_mode, input_dilation, filter_dilation, num_groups, output_padding
            )
            return calling.first_dgrad(
                key, rank, input, filters, target, border_mode, input_dilation, filter_dilation, num_groups,
                filter_flip, out,
            )  # fmt: skip
        return call(input, filters, None, out)

    introduce(conv_transpose, name, TRANSPOSED, rank)
    return conv_transpose


def _target(
    given: tuple[int, ...],
    taps: tuple[int, ...],
    output_shape: Any,
    border_mode: Any,
    input_dilation: Any,
    filter_dilation: Any,
    num_groups: Any,
    output_padding: Any,
) -> tuple[int, ...]:
    """Shape of the output, from that of input and filters; raises in the words of the transposed convolution."""
    rank, (batch, channels, *sizes), (count, per_group, *kernel) = len(given) - 2, given, taps
    groups = shapes.as_int(num_groups, "num_groups", 1)
    if channels % groups:
        raise InvalidSpec(f"num_groups must divide the {channels} channels of input, got {groups}")
    if channels != count:
        raise InvalidSpec(f"filters of shape {taps} take {count} channels, input of shape {given} has {channels}")
    strides = shapes.per_axis(input_dilation, rank, "input_dilation")
    dilations = shapes.per_axis(filter_dilation, rank, "filter_dilation")
    extra = shapes.per_axis(output_padding, rank, "output_padding", 0)
    if output_shape is None:
        return batch, per_group * groups, *_grown(sizes, kernel, border_mode, strides, dilations, extra)
    if any(extra):
        raise InvalidSpec(f"output_shape says all: output_padding must then be 0, got {output_padding!r}")
    entries = tuple(output_shape) if hasattr(output_shape, "__iter__") else (output_shape,)
    if len(entries) != rank + 2:
        raise InvalidType(f"output_shape needs {rank + 2} entries, got {len(entries)}: {output_shape!r}")
    known = (batch, per_group * groups)
    if any(entry not in (None, own) for entry, own in zip(entries, known, strict=False)):
        raise InvalidSpec(f"output_shape must begin with {known}, or None in their places, got {entries}")
    wanted = tuple(shapes.as_int(entry, f"output_shape[{at + 2}]", 1) for at, entry in enumerate(entries[2:]))
    pads = shapes.resolve_padding(border_mode, wanted, kernel, strides, dilations)
    axes = zip(wanted, kernel, pads, strides, dilations, strict=True)
    source = tuple(shapes.output_extent(size, k, *pad, s, d) for size, k, pad, s, d in axes)
    if source != tuple(sizes):
        raise InvalidSpec(
            f"output_shape {entries} is what an input of size {source} gives, got input of {tuple(sizes)}"
        )
    return *known, *wanted


def _grown(
    sizes: Sequence[int],
    kernel: Sequence[int],
    border_mode: Any,
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
) -> tuple[int, ...]:
    """The smallest output that an input of `sizes` may come from, and `extra` more at the end of each axis."""
    if border_mode == "same":
        raise InvalidSpec("border_mode 'same' needs output_shape: its padding depends on the size of the output")
    if any(more >= stride for more, stride in zip(extra, strides, strict=True)):
        raise InvalidSpec(f"output_padding must be below input_dilation {tuple(strides)}, got {tuple(extra)}")
    pads = shapes.resolve_padding(border_mode, sizes, kernel, strides, dilations)
    axes = zip(sizes, kernel, pads, strides, dilations, extra, strict=True)
    grown = tuple((n - 1) * s + shapes.dilated(k, d) - sum(pad) + more for n, k, pad, s, d, more in axes)
    if min(grown) < 1:
        raise InvalidSpec(f"border_mode crops everything: the output would be of size {grown}")
    return grown


TRANSPOSED = """
    {Rank}-dimensional transposed convolution, by the fastest engine here: `conv{rank}d` turned round.

    Every pixel of `input` is multiplied with a whole filter, and the products are added up `input_dilation` apart.
    It is the gradient of `conv{rank}d` with respect to its input, `input` being that with respect to its output.

    Parameters
    ----------
    input : array, shape (N, K, {result})
    filters : array, shape (K, C / num_groups, {taps})
        Those of the convolution that this one turns round: its input channels come second.
    output_shape : (N, C, {image}), optional
        Needed where several sizes would do, which is where `input_dilation` is above one, unless `output_padding`
        tells; its first two entries may be None.
    border_mode : "valid", "full", "half", "same", int, {ints} or {pairs}
        What the forward convolution pads, which this one crops. "same" needs `output_shape`.
    input_dilation : int or {ints}
        Stride of the forward convolution: the distance between the pixels of `input` in the output.
    filter_dilation : int or {ints}
        Spacing of the kernel's taps.
    num_groups : int
        Groups of channels convolved apart; divides K.
    filter_flip : bool
        Whether the forward convolution flips the filter.
    output_padding : int or {ints}
        Size of the output beyond the smallest that fits, below `input_dilation`; instead of `output_shape`.
    out : array, shape (N, C, {image}), optional

    Returns an array of shape (N, C, {image}), where `output_shape` is omitted with
    W = (Q - 1) * input_dilation + (S - 1) * filter_dilation + 1 - before - after + output_padding, and so along
    every axis. Raises as `conv{rank}d`.

    >>> import autoconv, numpy as np
    >>> autoconv.conv{rank}d_transpose(np.ones((1, 1, {twos})), np.ones((1, 1, {threes})), input_dilation=2).shape
    (1, 1, {fives})
"""

conv1d_transpose, conv2d_transpose, conv3d_transpose = map(transposed, (1, 2, 3))


def causal_conv1d(
    input: Any,
    filters: Any,
    *,
    subsample: Any = 1,
    filter_dilation: Any = 1,
    num_groups: int = 1,
    filter_flip: bool = True,
    bias: Any = None,
    out: Any = None,
) -> Any:
    """One-dimensional convolution in time: a result sees its own moment and those before it, none that come later.

    It is `conv1d` with (S - 1) * filter_dilation zeros before the line and none after it, as in WaveNet (van den Oord
    et al. 2016, arXiv:1609.03499).

    Parameters
    ----------
    input : array, shape (N, C, W)
    filters : array, shape (K, C / num_groups, S)
        With `filter_flip` its first tap meets the present, without it the last one does.
    out : array, shape (N, K, ceil(W / subsample)), optional

    The other keywords are those of `conv1d`. Returns an array of shape (N, K, ceil(W / subsample)); raises as `conv1d`.

    >>> import autoconv, numpy as np
    >>> autoconv.causal_conv1d(np.array([[[1.0, 2, 3, 4]]]), np.array([[[1.0, 10]]])).tolist()
    [[[1.0, 12.0, 23.0, 34.0]]]
    """
    (dilation,) = shapes.per_axis(filter_dilation, 1, "filter_dilation")
    shape: tuple[int, ...] = getattr(filters, "shape", ())
    before = max(shape[-1] - 1, 0) * dilation if len(shape) == 3 else 0  # other shapes: conv1d says what is wrong
    return conv1d(
        input,
        filters,
        border_mode=((before, 0),),
        subsample=subsample,
        filter_dilation=dilation,
        num_groups=num_groups,
        filter_flip=filter_flip,
        bias=bias,
        out=out,
    )


def separable_conv2d(
    input: Any,
    depthwise_filters: Any,
    pointwise_filters: Any,
    *,
    border_mode: Any = "valid",
    subsample: Any = (1, 1),
    filter_dilation: Any = (1, 1),
    filter_flip: bool = True,
    bias: Any = None,
    out: Any = None,
) -> Any:
    """Depthwise-separable convolution: every channel with filters of its own, then a mix of channels at every pixel.

    Two calls of `conv2d`, each tuned for itself (Chollet 2017, "Xception", arXiv:1610.02357).

    Parameters
    ----------
    input : array, shape (N, C, H, W)
    depthwise_filters : array, shape (C * M, 1, R, S)
        M filters for each channel, those of one channel one after another.
    pointwise_filters : array, shape (K, C * M, 1, 1)
    bias : array, shape (K,), optional
        Added to the result.
    out : array, shape (N, K, P, Q), optional

    The other keywords are those of `conv2d` and go to the first convolution. Returns an array of shape (N, K, P, Q);
    raises as `conv2d`.

    >>> import autoconv, numpy as np
    >>> images, depthwise, pointwise = np.ones((1, 3, 8, 8)), np.ones((6, 1, 3, 3)), np.ones((4, 6, 1, 1))
    >>> autoconv.separable_conv2d(images, depthwise, pointwise).shape
    (1, 4, 6, 6)
    """
    depthwise = calling.operand(depthwise_filters, 2, "depthwise_filters").shape
    pointwise = calling.operand(pointwise_filters, 2, "pointwise_filters").shape
    channels = calling.operand(input, 2, "input").shape[1]
    if depthwise[1] != 1 or depthwise[0] % max(channels, 1):
        raise InvalidSpec(
            f"depthwise_filters must have shape ({channels} * M, 1, rows, columns) for input of {channels} channels, "
            f"got {depthwise}"
        )
    if pointwise[1:] != (depthwise[0], 1, 1):
        raise InvalidSpec(f"pointwise_filters must have shape (K, {depthwise[0]}, 1, 1), got {pointwise}")
    between = conv2d(
        input,
        depthwise_filters,
        border_mode=border_mode,
        subsample=subsample,
        filter_dilation=filter_dilation,
        num_groups=channels,
        filter_flip=filter_flip,
    )
    return conv2d(between, pointwise_filters, bias=bias, out=out)
