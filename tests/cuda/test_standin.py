"""The stand-in is no kinder than CuPy: it refuses what CuPy refuses, and has nothing that CuPy has not."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest


def test_what_cupy_refuses(standin: Any) -> None:
    a = standin.ones((2, 3), np.float32)
    host = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(a)
    refused: list[tuple[type[Exception], Any]] = [
        (TypeError, lambda: a + host),
        (TypeError, lambda: host + a),
        (TypeError, lambda: np.matmul(a, host.T)),
        (TypeError, lambda: np.add(a, a, out=host)),
        (TypeError, lambda: np.add(a, a, where=a > 0)),
        (TypeError, lambda: standin.fft.rfft(host)),
        (TypeError, lambda: standin.fft.rfft(a, out=a)),
        (TypeError, lambda: np.einsum("ij->i", host, out=a)),
        (TypeError, lambda: np.copyto(host, a)),
        (TypeError, lambda: hash(a)),
        (ValueError, lambda: np.copyto(a, host)),
        (ValueError, lambda: a.__setitem__(..., host)),
        (ValueError, lambda: standin.empty(3, object)),
        (ValueError, lambda: standin.ndarray((2,), np.float32, strides=(4,))),
        (AttributeError, lambda: a.flags.writeable),
        (AttributeError, lambda: a.ctypes),
        (AttributeError, lambda: a.setflags(write=False)),
        (AttributeError, lambda: standin.lib.format),
    ]
    for kind, act in refused:
        with pytest.raises(kind):
            act()


def test_arrays_of_another_gpu(standin: Any) -> None:
    with standin.cuda.Device(1):
        there = standin.ones(3)
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        there + 1
    assert there[1:].data.device_id == 1  # a view takes no kernel
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
        standin.cuda.Device(2).use()
    with standin.cuda.Device(1):
        stream = standin.cuda.Stream()
    with pytest.raises(RuntimeError, match="not created on the current device"):
        stream.use()


def test_memory_is_poisoned_and_given_again(standin: Any) -> None:
    a = standin.ones(1000, np.float32)
    address, view = a.data.ptr, a[10:20]
    assert np.isnan(standin.empty(7, np.float32).get()).all()
    del a
    assert (view.get() == 1).all()  # a view keeps its memory
    del view
    assert np.isnan(standin.ndarray((1000,), np.float32).get()).all()
    assert standin.empty(1000, np.float32).data.ptr == address
    with standin.cuda.Stream():
        assert standin.empty(1000, np.float32).data.ptr != address  # another stream's


def test_a_capture_runs_nothing(standin: Any) -> None:
    a = standin.zeros(3)
    stream = standin.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        a += 1
        b = a * 2
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            a @ a
        graph = stream.end_capture()
        assert not a.get().any()
        for times in (1, 2):
            graph.launch()
            assert (b.get() == 2 * times).all()
        for wait in (a.get, stream.synchronize, lambda: standin.asarray(np.ones(3)), lambda: float(a[0])):
            stream.begin_capture()
            with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnsupported"):
                wait()
            with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
                stream.end_capture()
    with pytest.raises(RuntimeError, match="default"):
        standin.cuda.Stream.null.begin_capture()


def test_out_of_memory(standin: Any) -> None:
    pool = standin.get_default_memory_pool()
    pool.set_limit(1 << 20)
    kept = standin.empty(1 << 19, np.uint8)
    with pytest.raises(MemoryError) as caught:
        standin.empty(1 << 20, np.uint8)
    assert type(caught.value) is standin.cuda.memory.OutOfMemoryError
    del kept
    standin.empty(1 << 20, np.uint8)  # what is free is given back first


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")
def test_it_has_nothing_that_cupy_has_not(standin: Any) -> None:
    """Names, and the parameters of functions, beside those of the CuPy that is installed."""
    program = """
import inspect, json, sys
import cupy
def parameters(one):
    try:
        return [p.name for p in inspect.signature(one).parameters.values()]
    except (TypeError, ValueError):
        return None
def names(module):
    return {name: parameters(getattr(module, name)) for name in dir(module)}
parts = (cupy, cupy.fft, cupy.linalg, cupy.cuda, cupy.cuda.runtime, cupy.ndarray,
         cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.Device, cupy.cuda.MemoryPointer, cupy.cuda.MemoryPool)
print(json.dumps([names(part) for part in parts]))
"""
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=without)
    parts = (
        standin, standin.fft, standin.linalg, standin.cuda, standin.cuda.runtime, standin.ndarray, standin.cuda.Stream,
        standin.cuda.Event, standin.cuda.Device, standin.cuda.MemoryPointer, standin.cuda.MemoryPool,
    )  # fmt: skip
    wrong = []
    for part, theirs in zip(parts, json.loads(done.stdout.splitlines()[-1]), strict=True):
        for name in dir(part):
            own = getattr(part, name)
            if name.startswith("_") or inspect.ismodule(own) or name in ("annotations", "FUNCTIONS", "FFTS", "NAMES"):
                continue
            if getattr(own, "__module__", None) in ("typing", "collections.abc"):
                continue
            if name not in theirs:
                wrong.append(f"{part.__name__}.{name} is not CuPy's")
            elif inspect.isfunction(own) and theirs[name] is not None and not hasattr(own, "__wrapped__"):
                mine = [one.name for one in inspect.signature(own).parameters.values()]
                if mine != theirs[name] and "args" not in mine:
                    wrong.append(f"{part.__name__}.{name}{tuple(mine)}, CuPy's is {tuple(theirs[name])}")
    assert not wrong, "\n".join(wrong)
