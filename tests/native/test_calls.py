"""Calling kernels: without the GIL, without Python's headers, after a fork, with fewer threads than asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import autoconv.impls.native as native
from autoconv import ConvSpec, testing
from autoconv.device import cpu
from autoconv.impls.native import _call, _compile
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
