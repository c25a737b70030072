"""Reading callers' arrays, and making them what implementations want."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autoconv import arrays
from autoconv.errors import InvalidType

F32 = np.dtype(np.float32)


class Foreign:
    """An array of another library, as far as the protocol goes."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_namespace__(self) -> type[Foreign]:
        return Foreign

    @staticmethod
    def from_dlpack(array: Any) -> Foreign:
        return Foreign(np.from_dlpack(array))


def test_reading_shares_memory() -> None:
    values = np.arange(6.0)
    assert arrays.as_numpy(values, "input") is values
    assert np.shares_memory(arrays.as_numpy(Foreign(values), "input"), values)
    records = values.view(np.recarray)
    assert type(arrays.as_numpy(records, "input")) is np.ndarray


@pytest.mark.parametrize("value", [[[1.0]], 3.0, None, "text", memoryview(b"abc")])
def test_what_is_no_array(value: Any) -> None:
    with pytest.raises(
        InvalidType, match=f"filters must be a NumPy array or have __dlpack__, got {type(value).__name__}"
    ):
        arrays.as_numpy(value, "filters")


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(InvalidType, match=r"input is a masked array; fill it first"):
        arrays.as_numpy(np.ma.masked_array(np.ones(3), [0, 1, 0]), "input")


def test_foreign_memory_that_cannot_be_read() -> None:
    class Elsewhere(Foreign):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("lives on a GPU")

    with pytest.raises(InvalidType, match=r"input \(.*Elsewhere\) cannot be read as a CPU array: lives on a GPU"):
        arrays.as_numpy(Elsewhere(np.ones(3)), "input")


def test_results_are_of_the_callers_kind() -> None:
    result = np.ones((2, 3))
    assert arrays.like_caller(result, np.zeros(1)) is result
    foreign = arrays.like_caller(result, Foreign(np.zeros(1)))
    assert isinstance(foreign, Foreign)
    assert np.array_equal(foreign.values, result)


def _last(shape: tuple[int, ...]) -> Any:
    return np.moveaxis(np.zeros((shape[0], *shape[2:], shape[1]), F32), -1, 1)


@pytest.mark.parametrize(
    ("array", "layout"),
    [
        (np.zeros((2, 3, 4, 5)), "nchw"),
        (_last((2, 3, 4, 5)), "nhwc"),
        (_last((2, 1, 4, 5)), "nchw"),  # both formats fit
        (_last((2, 3, 1, 1)), "nchw"),
        (_last((2, 3, 4, 5))[:, :, ::2], "nchw"),  # neither fits: copied
        (np.zeros((2, 3, 4, 5))[..., ::-1], "nchw"),
        (_last((0, 3, 4, 5)), "nchw"),
        (np.zeros((2, 3, 4)), "nchw"),
        (_last((2, 3, 4)), "nhwc"),
        (_last((2, 3, 4, 5, 6)), "nhwc"),
        (np.asfortranarray(np.zeros((2, 3, 4, 5))), "nchw"),
    ],
)
def test_memory_format_is_read_off_the_strides(array: Any, layout: str) -> None:
    assert arrays.memory_layout(array) == layout


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_empty_is_dense_in_its_layout(layout: str) -> None:
    made = arrays.empty((2, 3, 4, 5), layout, F32)
    assert made.shape == (2, 3, 4, 5)
    assert arrays.is_dense(made, layout)
    assert arrays.memory_layout(made) == layout
    assert arrays.conform(made, layout, F32) is made


def _unaligned() -> Any:
    raw = np.zeros(24 * 4 + 1, np.uint8)[1:]
    made = raw.view(F32).reshape(1, 2, 3, 4)
    made[...] = np.arange(24).reshape(made.shape)
    return made


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=F32).reshape(1, 2, 3, 4)[..., ::-1],
        np.arange(96, dtype=F32).reshape(1, 4, 6, 4)[:, ::2, 1::2],
        np.arange(24, dtype=">f4").reshape(1, 2, 3, 4),
        np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4),
        np.broadcast_to(np.arange(4, dtype=F32), (1, 2, 3, 4)),
        _unaligned(),
    ],
    ids=["negative", "every other", "big-endian", "float16", "broadcast", "unaligned"],
)
def test_conform_copies_what_does_not_fit(array: Any, layout: str) -> None:
    before = array.tobytes()
    made = arrays.conform(array, layout, F32)
    assert not np.shares_memory(made, array)
    assert arrays.is_dense(made, layout)
    assert made.dtype == F32
    assert made.dtype.isnative
    assert made.flags.aligned
    assert np.array_equal(made, array)
    assert array.tobytes() == before
