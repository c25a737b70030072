"""The convolution that the stand-in's plans compute, tap by tap, through addresses and strides."""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import numpy as np

Described = tuple[int, list[int], list[int], str]  # address, dimensions, strides in elements, format

DTYPES = {"FLOAT": np.float32, "DOUBLE": np.float64, "HALF": np.float16}


def enqueue(stream: int, *arguments: Any) -> None:
    """`convolve` on the stream that the handle was told, which must be the caller's current one."""
    import cupy

    current = cupy.cuda.get_current_stream().ptr
    if stream != current:
        raise RuntimeError(f"the handle works on stream {stream}, the caller on {current}")
    cupy._machine.enqueue(lambda: convolve(*arguments))


def convolve(
    op: str,
    tensors: dict[str, Described],
    geometry: tuple[list[int], list[int], list[int], list[int]],
    flip: bool,
    short: bool,
    scratch: tuple[int, int],
) -> None:
    """One operation. `short` rounds float32 operands to TF32; scratch is filled with rubbish."""
    address, size = scratch
    ctypes.memset(address, 0xA5, size)
    arrays = {role: _view(*one) for role, one in tensors.items()}
    result = {"fprop": "y", "dgrad": "x", "wgrad": "w"}[op]
    wide = np.float64 if tensors["x"][3] == "DOUBLE" else np.float32
    values = {role: np.ascontiguousarray(one, wide) for role, one in arrays.items()}
    values[result] = np.zeros(arrays[result].shape, wide)
    if short and tensors["x"][3] == "FLOAT":
        values = {role: _tf32(one) for role, one in values.items()}
    x, w, y = (values[role] for role in "xwy")
    before, after, steps, spread = geometry
    pads = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    padded = np.pad(x, pads)
    groups = x.shape[1] // w.shape[1]
    grouped_w = w.reshape(groups, -1, *w.shape[1:])
    grouped_y = y.reshape(y.shape[0], groups, -1, *y.shape[2:])
    grouped_x = padded.reshape(x.shape[0], groups, -1, *padded.shape[2:])
    for tap in product(*map(range, w.shape[2:])):
        places = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, spread, y.shape[2:], steps, strict=True)
        )
        window = (slice(None),) * 3 + places
        own = tuple(n - 1 - t for n, t in zip(w.shape[2:], tap, strict=True)) if flip else tap
        at = (slice(None),) * 3 + own
        if op == "fprop":
            grouped_y += np.einsum("ngc...,gkc->ngk...", grouped_x[window], grouped_w[at])
        elif op == "dgrad":
            grouped_x[window] += np.einsum("ngk...,gkc->ngc...", grouped_y, grouped_w[at])
        else:
            flat_x = grouped_x[window].reshape(*grouped_x.shape[:3], -1)
            grouped_w[at] += np.einsum("ngcs,ngks->gkc", flat_x, grouped_y.reshape(*grouped_y.shape[:3], -1))
    inside = tuple(slice(b, b + n) for b, n in zip(before, x.shape[2:], strict=True))
    arrays[result][...] = padded[(slice(None), slice(None), *inside)] if op == "dgrad" else values[result]


def _view(address: int, dim: list[int], stride: list[int], dtype: str) -> Any:
    if dtype == "BFLOAT16":
        from ml_dtypes import bfloat16

        kind = np.dtype(bfloat16)
    else:
        kind = np.dtype(DTYPES[dtype])
    extent = 1 + sum((n - 1) * s for n, s in zip(dim, stride, strict=True))
    block = (ctypes.c_char * (extent * kind.itemsize)).from_address(address)
    return np.ndarray(dim, kind, block, 0, [s * kind.itemsize for s in stride])


def _tf32(values: Any) -> Any:
    """Rounded to ten bits of mantissa."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)
