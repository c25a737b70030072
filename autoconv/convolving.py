"""The nine functions: a convolution and its two gradients over lines, images and volumes.

A call that was made before with arrays of the same shapes, strides and dtypes costs one look-up before the
implementation runs; what happens the first time is in `calling`. The three ranks differ in the number of axes
alone, so each operation is written once, and `forward`, `input_gradient` and `filter_gradient` make the function
of a rank with its own name, defaults and documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import cleandoc
from typing import Any, Protocol

from autoconv import calling, options

__all__ = [
    "conv1d",
    "conv1d_grad_wrt_inputs",
    "conv1d_grad_wrt_weights",
    "conv2d",
    "conv2d_grad_wrt_inputs",
    "conv2d_grad_wrt_weights",
    "conv3d",
    "conv3d_grad_wrt_inputs",
    "conv3d_grad_wrt_weights",
    "introduce",
]


class Forward(Protocol):
    """What `conv1d`, `conv2d` and `conv3d` look like; an omitted option is one of its kind per axis."""

    def __call__(
        self,
        input: Any,
        filters: Any,
        *,
        border_mode: Any = "valid",
        subsample: Any = ...,
        filter_dilation: Any = ...,
        num_groups: int = 1,
        filter_flip: bool = True,
        bias: Any = None,
        image_shape: Sequence[int | None] | None = None,
        filter_shape: Sequence[int | None] | None = None,
        out: Any = None,
    ) -> Any: ...


class InputGradient(Protocol):
    """What the gradients of the input look like."""

    def __call__(
        self,
        output_grad: Any,
        filters: Any,
        input_shape: Sequence[int | None],
        *,
        border_mode: Any = "valid",
        subsample: Any = ...,
        filter_dilation: Any = ...,
        num_groups: int = 1,
        filter_flip: bool = True,
        out: Any = None,
    ) -> Any: ...


class FilterGradient(Protocol):
    """What the gradients of the filters look like."""

    def __call__(
        self,
        input: Any,
        output_grad: Any,
        filter_shape: Sequence[int | None],
        *,
        border_mode: Any = "valid",
        subsample: Any = ...,
        filter_dilation: Any = ...,
        num_groups: int = 1,
        filter_flip: bool = True,
        out: Any = None,
    ) -> Any: ...


def forward(rank: int) -> Forward:
    """The forward convolution over `rank` axes."""
    name, ones = f"conv{rank}d", (1,) * rank

    def conv(
        input: Any,
        filters: Any,
        *,
        border_mode: Any = "valid",
        subsample: Any = ones,
        filter_dilation: Any = ones,
        num_groups: int = 1,
        filter_flip: bool = True,
        bias: Any = None,
        image_shape: Sequence[int | None] | None = None,
        filter_shape: Sequence[int | None] | None = None,
        out: Any = None,
    ) -> Any:
        if image_shape is not None:
            calling.check_declared("image_shape", image_shape, "input", input)
        if filter_shape is not None:
            calling.check_declared("filter_shape", filter_shape, "filters", filters)
        key: Any = None
        try:
            key = (
                name, type(input), input.shape, input.strides, input.dtype, type(filters), filters.shape,
                filters.strides, filters.dtype, border_mode, subsample, filter_dilation, num_groups, filter_flip,
            )  # fmt: skip
            call = options.current_scope().calls.get(key)
        except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
            call = None
        if call is None:
            return calling.first_conv(
                key, rank, input, filters, border_mode, subsample, filter_dilation, num_groups, filter_flip, bias, out
            )
        return call(input, filters, bias, out)

    introduce(conv, name, FORWARD, rank)
    return conv


def input_gradient(rank: int) -> InputGradient:
    """The gradient of the input over `rank` axes."""
    name, ones = f"conv{rank}d_grad_wrt_inputs", (1,) * rank

    def conv_grad_wrt_inputs(
        output_grad: Any,
        filters: Any,
        input_shape: Sequence[int | None],
        *,
        border_mode: Any = "valid",
        subsample: Any = ones,
        filter_dilation: Any = ones,
        num_groups: int = 1,
        filter_flip: bool = True,
        out: Any = None,
    ) -> Any:
        key: Any = None
        try:
            key = (
                name, type(output_grad), output_grad.shape, output_grad.strides, output_grad.dtype, type(filters),
                filters.shape, filters.strides, filters.dtype, input_shape, border_mode, subsample, filter_dilation,
                num_groups, filter_flip,
            )  # fmt: skip
            call = options.current_scope().calls.get(key)
        except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
            call = None
        if call is None:
            return calling.first_dgrad(
                key, rank, output_grad, filters, input_shape, border_mode, subsample, filter_dilation, num_groups,
                filter_flip, out,
            )  # fmt: skip
        return call(output_grad, filters, None, out)

    introduce(conv_grad_wrt_inputs, name, INPUT_GRADIENT, rank)
    return conv_grad_wrt_inputs


def filter_gradient(rank: int) -> FilterGradient:
    """The gradient of the filters over `rank` axes."""
    name, ones = f"conv{rank}d_grad_wrt_weights", (1,) * rank

    def conv_grad_wrt_weights(
        input: Any,
        output_grad: Any,
        filter_shape: Sequence[int | None],
        *,
        border_mode: Any = "valid",
        subsample: Any = ones,
        filter_dilation: Any = ones,
        num_groups: int = 1,
        filter_flip: bool = True,
        out: Any = None,
    ) -> Any:
        key: Any = None
        try:
            key = (
                name, type(input), input.shape, input.strides, input.dtype, type(output_grad), output_grad.shape,
                output_grad.strides, output_grad.dtype, filter_shape, border_mode, subsample, filter_dilation,
                num_groups, filter_flip,
            )  # fmt: skip
            call = options.current_scope().calls.get(key)
        except (AttributeError, TypeError):  # not a NumPy array, or an unhashable spelling
            call = None
        if call is None:
            return calling.first_wgrad(
                key, rank, input, output_grad, filter_shape, border_mode, subsample, filter_dilation, num_groups,
                filter_flip, out,
            )  # fmt: skip
        return call(input, output_grad, None, out)

    introduce(conv_grad_wrt_weights, name, FILTER_GRADIENT, rank)
    return conv_grad_wrt_weights


# Documentation -----------------------------------------------------------------------------------

FORWARD = """
    {Rank}-dimensional convolution of a batch of {images} with a bank of filters, by the fastest engine here.

    Parameters
    ----------
    input : array, shape (N, C, {image})
        Float16, bfloat16, float32 or float64, any strides; channels-last memory is used as it is.
    filters : array, shape (K, C / num_groups, {taps})
    border_mode : "valid", "full", "half", "same", int, {ints} or {pairs}
        Zeros around the {one}. "full" is the dilated kernel - 1 on every side, "half" the dilated
        kernel // 2, "same" gives an output of ceil(input / subsample).
    subsample : int or {ints}
        Stride of the output.
    filter_dilation : int or {ints}
        Spacing of the kernel's taps.
    num_groups : int
        Groups of channels convolved apart; divides C and K.
    filter_flip : bool
        True is a true convolution (the filter is flipped), False a cross-correlation.
    bias : array, shape (K,), optional
        Added to every output of its channel.
    image_shape, filter_shape : sequence of int or None, optional
        Declared shapes, checked against the arrays; None leaves a dimension open.
    out : array, shape (N, K, {result}), optional
        Receives the result, and is returned.

    Returns
    -------
    array, shape (N, K, {result})
        Of the caller's kind, dtype (promoted as NumPy does) and memory format, with
        Q = floor((W + before + after - ((S - 1) * dilation + 1)) / stride) + 1, and so along every axis.

    Raises
    ------
    InvalidType
        Wrong rank or dtype (also a `TypeError`).
    InvalidSpec
        Sizes that do not fit together (also a `ValueError`).
    NoImplementation
        Nothing here may run it under the current settings.

    >>> import autoconv, numpy as np
    >>> autoconv.conv{rank}d(np.ones((1, 1, {fours})), np.ones((1, 1, {threes}))).shape
    (1, 1, {twos})
"""

INPUT_GRADIENT = """
    Gradient of a scalar with respect to the input of `conv{rank}d`, from that with respect to its output.

    Parameters
    ----------
    output_grad : array, shape (N, K, {result})
    filters : array, shape (K, C / num_groups, {taps})
    input_shape : (N, C, {image})
        Shape of the forward input; its first two entries may be None and are then read off the arrays.
    out : array, shape (N, C, {image}), optional

    The other keywords are those of the forward call. Returns an array of `input_shape`; raises as `conv{rank}d`.

    >>> import autoconv, numpy as np
    >>> gradient, filters = np.ones((1, 1, {twos})), np.ones((1, 1, {threes}))
    >>> autoconv.conv{rank}d_grad_wrt_inputs(gradient, filters, (1, 1, {fours})).shape
    (1, 1, {fours})
"""

FILTER_GRADIENT = """
    Gradient of a scalar with respect to the filters of `conv{rank}d`, from that with respect to its output.

    Parameters
    ----------
    input : array, shape (N, C, {image})
    output_grad : array, shape (N, K, {result})
    filter_shape : (K, C / num_groups, {taps})
        Shape of the filters; its first two entries may be None and are then read off the arrays.
    out : array, shape (K, C / num_groups, {taps}), optional

    The other keywords are those of the forward call. Returns an array of `filter_shape`; raises as `conv{rank}d`.

    >>> import autoconv, numpy as np
    >>> images, gradient = np.ones((1, 1, {fours})), np.ones((1, 1, {twos}))
    >>> autoconv.conv{rank}d_grad_wrt_weights(images, gradient, (1, 1, {threes})).shape
    (1, 1, {threes})
"""

WORDS = {1: ("One", "line"), 2: ("Two", "image"), 3: ("Three", "volume")}


def introduce(function: Any, name: str, text: str, rank: int) -> None:
    """Give a function of `rank` axes its name and documentation, for `help`, for tracebacks and for pickle."""
    number, one = WORDS[rank]
    pair, comma = "(before, after)", "," * (rank == 1)
    axes = {
        "image": "DHW",
        "taps": "TRS",
        "result": "ZPQ",
        "fours": "444",
        "threes": "333",
        "twos": "222",
        "fives": "555",
    }
    function.__name__ = function.__qualname__ = name
    function.__doc__ = cleandoc(text).format(
        Rank=number,
        rank=rank,
        one=one,
        images=f"{one}s",
        ints=f"({', '.join(['int'] * rank)}{comma})",
        pairs=f"({', '.join([pair] * rank)}{comma})",
        **{key: ", ".join(letters[-rank:]) for key, letters in axes.items()},
    )


conv1d, conv2d, conv3d = map(forward, (1, 2, 3))
conv1d_grad_wrt_inputs, conv2d_grad_wrt_inputs, conv3d_grad_wrt_inputs = map(input_gradient, (1, 2, 3))
conv1d_grad_wrt_weights, conv2d_grad_wrt_weights, conv3d_grad_wrt_weights = map(filter_gradient, (1, 2, 3))
