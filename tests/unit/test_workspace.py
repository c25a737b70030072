"""The arena: pieces apart, aligned, and nothing allocated once it has grown."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoconv.planning import ALIGNMENT, Workspace, thread_workspace


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["f4", "f8", "c16", "u1"])), max_size=8), st.integers(1, 3)
)
def test_pieces_never_overlap(sizes: list[tuple[int, str]], calls: int) -> None:
    workspace = Workspace()
    for _ in range(calls):
        mark = workspace.mark()
        pieces = [workspace.take(size, dtype) for size, dtype in sizes]
        for number, piece in enumerate(pieces):
            assert piece.ctypes.data % ALIGNMENT == 0 or not piece.size
            piece[...] = number
        for number, piece in enumerate(pieces):
            assert (piece == number).all()
        workspace.release(mark)


def test_shapes_and_dtypes() -> None:
    workspace = Workspace()
    assert workspace.take((2, 3), np.float32).shape == (2, 3)
    assert workspace.take((2, 3), np.float32).dtype == np.float32
    assert workspace.take(7).dtype == np.uint8


def test_the_second_call_takes_the_same_memory() -> None:
    workspace = Workspace()
    addresses = []
    for _ in range(3):
        mark = workspace.mark()
        addresses.append([workspace.take(1000, np.float64).ctypes.data, workspace.take_address(50)])
        workspace.release(mark)
    assert addresses[1] == addresses[2]


def test_nested_marks_give_back_what_came_after() -> None:
    workspace = Workspace()
    workspace.take(4096)
    workspace.release()
    outer = workspace.take(100)
    outer[...] = 1
    mark = workspace.mark()
    inner = workspace.take(100).ctypes.data
    workspace.release(mark)
    assert workspace.take(100).ctypes.data == inner
    assert (outer == 1).all()


def test_every_thread_has_its_own() -> None:
    found: list[Workspace] = []
    thread = threading.Thread(target=lambda: found.append(thread_workspace()))
    thread.start()
    thread.join()
    assert thread_workspace() is thread_workspace()
    assert found[0] is not thread_workspace()
