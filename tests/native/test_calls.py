"""Calling kernels: without the GIL, without Python's headers, after a fork, with fewer threads than asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoconv.impls.native as native
from autoconv import ConvSpec, testing
from autoconv.arrays import Array, conform
from autoconv.device import cpu
from autoconv.errors import InvalidSpec
from autoconv.impls.native import _call, _compile
from autoconv.planning import Plan
from autoconv.registry import default_registry
from tests.native.conftest import forget

pytestmark = pytest.mark.usefixtures("gcc")

WAITS = """
#include <time.h>
int autoconv_threads = 1;
void autoconv_run(const void *a, const void *b, void *out, void *scratch) {
    const volatile float *flag = b;
    struct timespec start, now, pause = {0, 1000000};
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        nanosleep(&pause, 0);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (!*flag && now.tv_sec - start.tv_sec < 20);
    *(float *)out = *flag;
}
"""


@pytest.fixture
def no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_call.sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr(_call, "_found", {})
    assert "Python's headers are missing" in str(_call.trampoline_problem())


@pytest.fixture(params=["extension", "ctypes"])
def way(request: pytest.FixtureRequest) -> None:
    """Both ways into C."""
    if request.param == "ctypes":
        request.getfixturevalue("no_headers")
    elif _call.trampoline_problem():
        pytest.skip(str(_call.trampoline_problem()))


@pytest.mark.usefixtures("way")
def test_the_gil_is_released() -> None:
    """The kernel waits for what another Python thread does while it runs."""
    library = _compile.library(WAITS, openmp=False, may_compile=True)
    call = _call.kernel_call(library, "autoconv_run")
    flag, out = np.zeros(1, "f"), np.full(1, np.nan, "f")
    thread = threading.Thread(target=call, args=(flag, flag, out, 0))
    thread.start()
    flag[0] = 7
    thread.join()
    assert out[0] == 7


@pytest.mark.usefixtures("no_headers")
def test_ctypes_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("fprop n2c3 14x13 k4 3x3 p1 corr nhwc")
    one = default_registry().get("native.gemm")
    a, b = testing.operands(spec, np.random.default_rng(0))
    through_ctypes = testing.build(one, spec)
    monkeypatch.undo()
    forget()
    through_extension = testing.build(one, spec)
    assert testing.run(through_ctypes, a, b).tobytes() == testing.run(through_extension, a, b).tobytes()


def test_the_extension_refuses_what_is_no_array() -> None:
    if _call.trampoline_problem():
        pytest.skip(str(_call.trampoline_problem()))
    library = _compile.library(WAITS, openmp=False, may_compile=True)
    call = _call.kernel_call(library, "autoconv_run")
    array, constant = np.ones(1, "f"), np.ones(1, "f")
    constant.setflags(write=False)
    for arguments in ((), (array,), (array, array, array), (array, array, array, 0, 0)):
        with pytest.raises(TypeError, match="a kernel takes"):
            call(*arguments)
    for arguments in ((None, array, array, 0), (array, "text", array, 0), (array, array, array, "0")):
        with pytest.raises((TypeError, ValueError)):
            call(*arguments)
    with pytest.raises((BufferError, ValueError), match=r"read-only|not writable"):
        call(array, array, constant, 0)
    call(constant, constant, array, 0)
    with pytest.raises(ValueError, match="not null"):
        _call._trampoline(True).kernel(0)


# Without a look of the plan's ----------------------------------------------------------------------


@pytest.fixture(params=["nchw f32", "nhwc f64"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """A plan that offers the shortest way, and needs scratch."""
    if _call.trampoline_problem():
        pytest.skip(str(_call.trampoline_problem()))
    spec = ConvSpec.parse(f"fprop n2c3 9x8 k4 3x3 p1 corr {request.param}")
    built = testing.build(default_registry().get("native.gemm"), spec)
    plan = Plan(spec, cpu(), built.choice, built.runner, workspace_bytes=built.workspace_bytes)
    plan(*fitting(plan))  # this thread has its scratch from now on
    return plan


def fitting(plan: Plan) -> tuple[Array, Array]:
    """Operands that need no conversion."""
    x, w = testing.operands(plan.spec, np.random.default_rng(0))
    return conform(x, plan.spec.layout, x.dtype), w


def test_the_shortest_way_runs_what_fits_and_leaves_alone_what_does_not(plan: Plan) -> None:
    x, w = fitting(plan)
    expected = plan(x, w)
    memory = np.zeros(2 * expected.nbytes + x.nbytes + 64, np.uint8)

    def lying_at(byte: int, like: Array) -> Array:
        return np.ndarray(like.shape, like.dtype, memory, byte, like.strides)

    for direct, rest in ((plan._direct, (w,)), (plan.bind(w)._direct, ())):
        assert direct is not None
        y = np.full_like(expected, np.nan)
        misfits: list[Any] = [
            None, 3, y.tolist(), y[:1], y[..., ::-1], y.astype("f2"), y.astype(y.dtype.newbyteorder()), y[..., None],
            np.ma.array(y), np.empty((4, 2, 9, 8), y.dtype).swapaxes(0, 1), lying_at(1, y),
        ]  # fmt: skip
        for misfit in misfits:
            assert direct(x, *rest, misfit) is False
            assert direct(misfit, *rest, y) is False
        constant = y.copy(order="K")
        constant.setflags(write=False)
        assert direct(x, *rest, constant) is False
        here = lying_at(0, x)
        here[...] = x
        for overlap in (0, 8, x.nbytes - 8):
            assert direct(here, *rest, lying_at(overlap, y)) is False
        assert np.isnan(y).all()
        assert np.array_equal(here, x)
        assert direct(here, *rest, lying_at(x.nbytes, y)) is True
        assert direct(x, *rest, y) is True
        assert y.tobytes() == lying_at(x.nbytes, y).tobytes() == expected.tobytes()
        with pytest.raises(TypeError, match="takes its operands"):
            direct()


def test_a_plan_takes_the_long_way_where_the_short_one_ends(plan: Plan) -> None:
    x, w = fitting(plan)
    expected, bound, memory = plan(x, w), plan.bind(w), np.zeros(4 * x.nbytes, np.uint8)
    overlapping = np.ndarray(x.shape, x.dtype, memory, 0, x.strides)
    out = np.ndarray(expected.shape, expected.dtype, memory, 16, expected.strides)
    for call in (lambda a, **more: plan(a, w, **more), bound):
        overlapping[...] = x
        assert call(overlapping, out=out) is out
        assert out.tobytes() == expected.tobytes()
        assert call(x[:, :, ::-1])[...].tobytes() == plan(x[:, :, ::-1].copy(), w).tobytes()
        results: list[Any] = []
        # a thread without scratch yet
        thread = threading.Thread(target=lambda run=call, to=results: to.append(run(x)))
        thread.start()
        thread.join()
        assert results[0].tobytes() == expected.tobytes()
        with pytest.raises(InvalidSpec, match="out must have shape"):
            call(x, out=expected[:1])


def test_the_extension_refuses_forms_that_make_no_sense() -> None:
    if _call.trampoline_problem():
        pytest.skip(str(_call.trampoline_problem()))
    make, form = _call._trampoline(True).checked, ((1,), (4,))
    bad: list[tuple[Any, ...]] = [(), (1, None, np.ndarray, "f"), (0, None, np.ndarray, "f", form, form, form)]
    bad += [(1, None, np.ndarray, "f", form, form), (1, np.ones(1), np.ndarray, "f", form, form, form)]
    bad += [(1, None, np.ndarray, "f", form, form, ((1,) * 9, (4,) * 9)), (1, "text", np.ndarray, "f", form, form)]
    bad += [(1, None, np.ndarray, "f", form, form, ((1, 1), (4,))), (1, None, np.ndarray, "f", form, form, None)]
    for arguments in bad:
        with pytest.raises((TypeError, ValueError, IndexError)):
            make(*arguments)


# Threads -----------------------------------------------------------------------------------------


def test_templates_start_the_threads_that_fork_leaves() -> None:
    texts = {path.name: path.read_text() for path in Path(*native.__path__).glob("*.c")}
    asked = {name: re.findall(r"OMP\(parallel(?! for num_threads|.*num_threads)", text) for name, text in texts.items()}
    assert not {name for name, found in asked.items() if found}, "a parallel region without num_threads"
    counts = {count for text in texts.values() for count in re.findall(r"num_threads\((\w+)\)", text)}
    assert counts == {"autoconv_threads"}


THREADED = {
    "native.depthwise": ["fprop n2c16 40x40 k16 3x3 p1 g16 corr"],
    "native.direct": ["fprop n1c2 60x60 k2 5x5 p2"],
    "native.gemm": [f"{op} n2c16 20x20 k16 3x3 p1{layout}" for op in ("fprop", "wgrad") for layout in ("", " nhwc")],
    "native.winograd": ["fprop n2c16 24x24 k16 3x3 p1"],
    "native.separable": ["fprop n2c3 40x40 k3 7x7 p3 g3 fixed rank1"],
    "native.toom": ["fprop n1c1 60x60 k1 13x13 p6"],
    "native.fft": ["fprop n2c32 20x20 k32 9x9 p4 g32"],
    "native.chwn": ["fprop n16c4 12x12 k16 3x3 p1", "wgrad n16c4 12x12 k16 3x3 p1"],
}

SCRIPT = """
    import os, sys
    import numpy as np
    from autoconv import ConvSpec, testing
    from autoconv.device import cpu
    from autoconv.registry import default_registry

    def threaded(name, text):
        one, spec = default_registry().get(name), ConvSpec.parse(text)
        config = next(c for c in one.configs(spec, cpu(2)) if c["threads"] == 2)
        return testing.build(one, spec, config, cpu(2))

    def right(built):
        a, b = testing.operands(built.spec, np.random.default_rng(0))
        expected = testing.reference(built.spec, a, b)
        limit = testing.tolerance(built.spec, built.tags)
        assert testing.relative_error(testing.run(built, a, b), expected) <= limit, built.choice
        return True

    cases = {cases!r}
"""


def run(script: str, cases: list[tuple[str, str]], **environment: str) -> str:
    text = textwrap.dedent(SCRIPT).format(cases=cases) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def cases() -> list[tuple[str, str]]:
    known = default_registry().ids()
    return [(name, text) for name, texts in THREADED.items() if name in known for text in texts]


def test_every_family_with_threads_is_here() -> None:
    assert {name for name in default_registry().ids() if name.startswith("native.")} <= set(THREADED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_computes_with_one_thread() -> None:
    """libgomp's threads are not in the child: kernels met before the fork and after it must not wait for them."""
    script = """
    before = [threaded(*case) for case in cases]
    assert all(map(right, before))
    child = os.fork()
    if not child:
        assert all(map(right, before))
        from autoconv.impls.native import _compile
        _compile._loaded.clear()  # as kernels that the parent has not met
        after = [threaded(*case) for case in cases]
        os._exit(0 if all(map(right, after)) else 3)
    _, status = os.waitpid(child, 0)
    assert all(map(right, before)), "the parent goes on with its threads"
    print(os.waitstatus_to_exitcode(status))
    """
    assert run(script, cases()) == "0\n"


def test_fewer_threads_than_asked_for() -> None:
    run("assert all(right(threaded(*case)) for case in cases)", cases(), OMP_THREAD_LIMIT="1")


def test_more_threads_than_cores() -> None:
    script = """
    def many(name, text):
        one, spec = default_registry().get(name), ConvSpec.parse(text)
        config = next(c for c in one.configs(spec, cpu(5)) if c["threads"] == 5)
        return testing.build(one, spec, config, cpu(5))
    assert all(right(many(*case)) for case in cases)
    """
    run(script, cases()[:2])


def test_a_device_with_fewer_threads_refuses_a_config_of_more() -> None:
    one = default_registry().get("native.direct")
    spec = ConvSpec.parse(THREADED["native.direct"][0])
    config = next(config for config in one.configs(spec, cpu(4)) if config["threads"] == 4)
    assert one.why_not(spec, cpu(2), config) == "built for 4 threads, 2 may be used"
