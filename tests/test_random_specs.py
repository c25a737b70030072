"""500 random problems through the public functions, in every kind of memory, against a reference of this file's own.

The reference is one formula for all three operations: along each axis a 0/1 array says which tap
joins which image position to which output position, and a sum of products runs over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import dispatch
from autoconv.cache import MemoryStore

SPECS = 500
BATCHES = 20  # tests; the specs are divided among them
LIMITS = {
    "float32": 2e-5,
    "float64": 1e-12,
}  # of the sum of the magnitudes of what was added: Winograd's float32 included


@dataclass
class Problem:
    """A random call: everything that a user may write."""

    op: str
    keywords: dict[str, Any]
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    joins: list[Any]
    groups: int


def _extent(kernel: int, dilation: int) -> int:
    return (kernel - 1) * dilation + 1


def _padding(mode: Any, size: int, axis: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What the documentation says of each border mode."""
    extent = _extent(kernel, dilation)
    if mode == "valid":
        return 0, 0
    if mode == "full":
        return extent - 1, extent - 1
    if mode == "half":
        return extent // 2, extent // 2
    if mode == "same":
        total = max(0, (int(np.ceil(size / stride)) - 1) * stride + extent - size)
        return total // 2, total - total // 2
    if isinstance(mode, int):
        return mode, mode
    entry = mode[axis]
    return (entry, entry) if isinstance(entry, int) else entry


def _draw(rng: np.random.Generator) -> Problem:
    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    def pair(low: int, high: int) -> tuple[int, int]:
        first, second = rng.integers(low, high, 2, endpoint=True).tolist()
        return first, second

    flip = bool(rng.integers(2))
    groups = pick(1, 1, 1, 2, 3)
    channels, filters = groups * int(rng.integers(1, 6)), groups * int(rng.integers(1, 6))
    kernel = pick(pair(1, 5), (3, 3), (1, 1), (5, 5), (3, 3))
    stride, dilation = pick((1, 1), (1, 1), pair(1, 3)), pick((1, 1), (1, 1), pair(1, 3))
    mode = pick("valid", "full", "half", "same", int(rng.integers(0, 4)), pair(0, 4), (pair(0, 3), pair(0, 3)))
    batch = int(pick(0, 1, 1, 2, 3))
    size = tuple(_extent(k, d) + extra for k, d, extra in zip(kernel, dilation, pair(0, 9), strict=True))
    joins, output = [], []
    for axis in range(2):
        before, after = _padding(mode, size[axis], axis, kernel[axis], stride[axis], dilation[axis])
        count = (size[axis] + before + after - _extent(kernel[axis], dilation[axis])) // stride[axis] + 1
        join = np.zeros((kernel[axis], size[axis], count))
        for tap in range(kernel[axis]):
            for position in range(count):
                image = position * stride[axis] + tap * dilation[axis] - before
                if 0 <= image < size[axis]:
                    join[kernel[axis] - 1 - tap if flip else tap, image, position] = 1
        joins.append(join)
        output.append(count)
    return Problem(
        op=pick("fprop", "dgrad", "wgrad"),
        keywords={
            "border_mode": mode,
            "subsample": pick(stride, list(stride)) if stride[0] != stride[1] else pick(stride, stride[0]),
            "filter_dilation": pick(dilation, np.array(dilation)),
            "num_groups": groups,
            "filter_flip": flip,
        },
        x_shape=(batch, channels, *size),
        w_shape=(filters, channels // groups, *kernel),
        y_shape=(batch, filters, *output),
        joins=joins,
        groups=groups,
    )


def _expected(problem: Problem, a: Any, b: Any) -> Any:
    rows, columns = problem.joins
    g = problem.groups

    def grouped(array: Any, axis: int) -> Any:
        return array.reshape(*array.shape[:axis], g, array.shape[axis] // g, *array.shape[axis + 1 :])

    # n batch, g group, c and k channels; i, j image; r, s taps; p, q output
    if problem.op == "fprop":
        operands, labels = (grouped(a, 1), rows, columns, grouped(b, 0)), "ngcij,rip,sjq,gkcrs->ngkpq"
        shape = problem.y_shape
    elif problem.op == "dgrad":
        operands, labels = (grouped(a, 1), rows, columns, grouped(b, 0)), "ngkpq,rip,sjq,gkcrs->ngcij"
        shape = problem.x_shape
    else:
        operands, labels = (grouped(a, 1), rows, columns, grouped(b, 1)), "ngcij,rip,sjq,ngkpq->gkcrs"
        shape = problem.w_shape
    return np.einsum(labels, *operands, optimize=["einsum_path", (0, 1), (0, 2), (0, 1)]).reshape(shape)


def _channels_last(values: Any) -> Any:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


def _unaligned(values: Any) -> Any:
    raw = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    raw[...] = values
    return raw


def _every_other(values: Any) -> Any:
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), np.nan, values.dtype)
    wide[..., ::2] = values
    return wide[..., ::2]


def _reversed(values: Any) -> Any:
    return np.ascontiguousarray(values[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1]


def _read_only(values: Any) -> Any:
    values = values.copy()
    values.setflags(write=False)
    return values


def _overlapping(values: Any) -> Any:
    """Rows that share memory, as a sliding window makes them: other values, of the same shape."""
    flat = values.reshape(-1) if values.size else np.zeros(1, values.dtype)
    strides = [values.itemsize] * 4
    need = sum(max(size - 1, 0) for size in values.shape) + 1
    return np.lib.stride_tricks.as_strided(np.resize(flat, need), values.shape, strides, writeable=False)


def _broadcast(values: Any) -> Any:
    return np.broadcast_to(values[:, :, :1], values.shape)


MEMORY = {
    "plain": np.ascontiguousarray,
    "channels last": _channels_last,
    "negative strides": _reversed,
    "every other": _every_other,
    "fortran": np.asfortranarray,
    "swapped axes": lambda values: np.ascontiguousarray(values.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "overlapping": _overlapping,
    "broadcast": _broadcast,
    "foreign bytes": lambda values: values.astype(values.dtype.newbyteorder()),
}


def _out(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, operand: Any) -> Any:
    """None, or room for the result: plain, strided, or the very memory of an operand."""
    kind = rng.integers(5)
    if kind == 1:
        return np.full(shape, np.nan, dtype)
    if kind == 2:
        return _every_other(np.full(shape, np.nan, dtype))
    if kind == 3 and operand.flags.writeable and operand.dtype == dtype and operand.shape == shape:
        return operand
    return None


@pytest.mark.parametrize("part", range(BATCHES))
def test_random_specs_agree(part: int) -> None:
    """No implementation is named: whatever an untuned call picks must be right, and nothing is refused."""
    rng = np.random.default_rng(part)
    used = set()
    dispatch.use_store(MemoryStore(), autoconv.settings.current().cache)  # no disk is needed to count misses
    with autoconv.settings(on_miss="heuristic"):
        for number in range(SPECS // BATCHES):
            used.add(_check(rng, f"spec {part}.{number}"))
    assert used == {"fprop", "dgrad", "wgrad"}


def _check(rng: np.random.Generator, label: str) -> str:
    problem = _draw(rng)
    dtype = np.dtype(rng.choice(["float32", "float64"]))
    other = dtype if rng.integers(6) else np.dtype("float32" if dtype == np.float64 else "float64")
    shapes = {
        "fprop": (problem.x_shape, problem.w_shape),
        "dgrad": (problem.y_shape, problem.w_shape),
        "wgrad": (problem.x_shape, problem.y_shape),
    }[problem.op]
    kinds = rng.choice(list(MEMORY), 2)
    operands = [
        MEMORY[kind](rng.standard_normal(shape).astype(kind_dtype))
        for kind, shape, kind_dtype in zip(kinds, shapes, (dtype, other), strict=True)
    ]
    a, b = operands
    wanted = np.result_type(dtype, other)
    weakest = min(dtype, other, key=lambda one: one.itemsize) if wanted == np.float32 else wanted
    exact = [np.asarray(operand, np.float64) for operand in operands]
    expected = _expected(problem, *exact)
    magnitude = float(np.max(_expected(problem, *map(np.abs, exact)), initial=0.0)) or 1.0
    before = a.tobytes(), b.tobytes()
    out = _out(rng, expected.shape, wanted, a)
    told = f"{label}: {problem}, {dtype} {kinds[0]}, {other} {kinds[1]}, out={out is not None}"
    if problem.op == "fprop":
        bias = rng.standard_normal(problem.w_shape[0]).astype(wanted) if rng.integers(3) == 0 else None
        result = autoconv.conv2d(a, b, **problem.keywords, bias=bias, out=out)
        if bias is not None:
            expected = expected + bias.astype(np.float64)[:, None, None]
            magnitude += float(np.max(np.abs(bias)))
    elif problem.op == "dgrad":
        result = autoconv.conv2d_grad_wrt_inputs(a, b, problem.x_shape, **problem.keywords, out=out)
    else:
        result = autoconv.conv2d_grad_wrt_weights(a, b, problem.w_shape, **problem.keywords, out=out)
    assert result.shape == expected.shape, told
    assert result.dtype == wanted, told
    assert out is None or result is out, told
    error = float(np.max(np.abs(np.asarray(result, np.float64) - expected), initial=0.0)) / magnitude
    assert error <= LIMITS[weakest.name], f"{told}: off by {error:.2e}"
    assert out is a or a.tobytes() == before[0], f"{told}: changed its first operand"
    assert b.tobytes() == before[1], f"{told}: changed its second operand"
    return problem.op
