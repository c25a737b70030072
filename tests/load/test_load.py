"""Sixteen threads on one process: right results, and memory that stays where it was."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import autoconv
from autoconv import dispatch, options
from autoconv.cache import MemoryStore
from tests.load.calling import run

needs_statm = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")


@needs_statm
@pytest.mark.parametrize("calls", [pytest.param(150, id="150"), pytest.param(1000, id="1000", marks=pytest.mark.slow)])
def test_threads_get_right_results_and_leak_nothing(calls: int) -> None:
    dispatch.use_store(MemoryStore(), autoconv.settings.current().cache)
    autoconv.settings.set_default(on_miss="heuristic")  # `with settings` is each thread's own
    load = run(threads=16, calls=calls, warm=calls // 2)
    assert load.wrong == 0
    assert load.after_bytes <= load.before_bytes * 1.01 + (1 << 20), load


def test_what_a_process_remembers_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose shapes never repeat does not grow for ever: the decided calls start over."""
    monkeypatch.setattr(options, "MAX_CALLS", 50)
    dispatch.use_store(MemoryStore(), autoconv.settings.current().cache)
    w = np.ones((1, 1, 2, 2), np.float32)
    with autoconv.settings(on_miss="heuristic", require=("numpy.direct",)):
        for size in range(2, 102):
            result = autoconv.conv2d(np.ones((1, 1, 2, size), np.float32), w)
            assert result[0, 0, 0, -1] == 4
            assert len(options.current_scope().calls) <= 51
