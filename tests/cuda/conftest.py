"""GPU tests that run everywhere: `standin` puts a stand-in for CuPy and for the driver into this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from autoconv import cuda_driver, options, places
from autoconv.impls.cuda import _kernels
from tests.standin.driver import H200, Library

FOLDER = Path(__file__).parent.parent / "standin"
GPUS = 2


def _modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupy_backends", "cupyx")]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in `cupy`, on a machine with two H200s; what was installed under that name is back afterwards."""
    library = Library([replace(H200, index=index) for index in range(GPUS)])
    monkeypatch.setattr(cuda_driver, "load_library", lambda: library)
    monkeypatch.setattr(cuda_driver, "driver", lambda: cuda_driver.read_driver(library))
    monkeypatch.setattr(places, "_gpus", {})
    monkeypatch.setattr(_kernels, "_modules", {})  # what is loaded belongs to one `cupy`
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name) for name in _modules()}
    import cupy

    machine = cupy._machine.machine
    machine.update(gpus=GPUS, current=lambda index: setattr(library, "current", index), captures=library.captures)
    options.forget_calls()
    yield cupy
    options.forget_calls()
    for name in _modules():
        del sys.modules[name]
    sys.modules.update(before)
