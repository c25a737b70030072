"""What the conformance suite cannot know of `onednn.conv`: its list, its threads, forks, and being absent."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autoconv.device import cpu
from autoconv.errors import BackendMissing
from autoconv.evidence import Config
from autoconv.impls.cpu import _onednn_lib
from autoconv.impls.cpu.onednn import OneDnnConv
from autoconv.planning import Plan, Workspace
from autoconv.spec import ConvSpec
from autoconv.testing import build, check_case, operands, reference, run

ABSENT = _onednn_lib.unavailable()
needs_library = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
ONE, HERE = OneDnnConv(), cpu()


def _configs(text: str) -> Sequence[Config]:
    return ONE.configs(ConvSpec.parse(text), HERE)


# Being absent, or of no use -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "cannot open shared object file"),
        ("int dnnl_nothing;", "undefined symbol"),
        ("2, 1", "is oneDNN 2.1.0, and version 3 is needed"),
        ("3, 0", "no CPU runtime of its own"),
        ("3, 512", "no CPU runtime of its own"),
        ("3, 8", "thread pool"),
        ("3, 2", "lacks a function of oneDNN 3"),
    ],
)
def test_a_library_of_no_use_is_declined_with_the_reason(
    source: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "libdnnl.so"
    if source is not None:
        _compile(_pretender(source), path)
    monkeypatch.setenv(_onednn_lib.VARIABLE, str(path))
    reason = ONE.why_not(ConvSpec.parse("fprop n1c8 9x9 k8 3x3"), HERE)
    assert reason is not None
    assert sentence in reason
    assert str(path) in reason
    assert "\n" not in reason
    assert list(ONE.configs(ConvSpec.parse("fprop n1c8 9x9 k8 3x3"), HERE)) == []
    with pytest.raises(BackendMissing, match="libdnnl"):
        _onednn_lib.library()


def _pretender(source: str) -> str:
    if "int" in source:
        return source
    major, runtime = source.split(",")
    minor = 1 if int(major) < 3 else 5
    return (
        "struct version { int major, minor, patch; const char *hash; unsigned cpu, gpu; };\n"
        f'static struct version it = {{ {major}, {minor}, 0, "", {runtime}, 0 }};\n'
        "const struct version *dnnl_version(void) { return &it; }\n"
    )


def _compile(text: str, target: Path) -> None:
    source = target.with_suffix(".c")
    source.write_text(text)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(target), str(source)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no C compiler to make a pretended library with")


# The list ----------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("text", ["fprop n2c32 14x14 k32 3x3 p1", "dgrad n2c32 14x14 k32 3x3 p1", "wgrad n2c8 9 k8 3"])
def test_the_list_is_short_and_names_no_implementation_twice_for_one_memory(text: str) -> None:
    configs = _configs(text)
    assert 1 <= len(configs) <= 8
    kinds = [(str(config["impl"]).split(":avx")[0].split(":sse")[0], config["memory"]) for config in configs]
    assert len(set(kinds)) == len(kinds)
    assert not any(str(config["impl"]).startswith("ref") for config in configs)


@needs_library
def test_channels_last_arrays_are_not_reordered_for_a_channels_last_implementation() -> None:
    spec = ConvSpec.parse("fprop n2c32 28x28 k32 3x3 p1 corr nhwc")
    image = 4 * int(np.prod(spec.input_shape))
    scratch = {str(c): ONE.workspace_bytes(spec, HERE, c) for c in ONE.configs(spec, HERE)}
    assert scratch
    for text, needed in scratch.items():
        assert ("channels_last" in text) == (needed < image) or "gemm" in text, (text, needed)


@needs_library
def test_an_unknown_implementation_is_refused() -> None:
    spec = ConvSpec.parse("fprop n2c32 14x14 k32 3x3 p1")
    reason = ONE.why_not(spec, HERE, Config(impl="jit:imaginary", memory="plain"))
    assert reason is not None
    assert "lists no jit:imaginary in plain memory" in reason


@needs_library
def test_the_scratch_taken_is_the_scratch_declared() -> None:
    for text in ("fprop n2c20 14x14 k24 3x3 p1", "wgrad n2c20 14x14 k24 3x3 p1", "dgrad n1c16 9x9 k8 1x1 nhwc"):
        spec = ConvSpec.parse(text)
        for config in ONE.configs(spec, HERE):
            taken = _Counting()
            built = build(ONE, spec, config)
            a, b = operands(spec, np.random.default_rng(0))
            out = np.empty(spec.result_shape, np.float32)
            plan = Plan(spec, HERE, built.choice, built.runner)
            a = np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if spec.layout == "nhwc" else a
            result = np.moveaxis(np.moveaxis(out, 1, -1).copy(), -1, 1) if spec.layout == "nhwc" else out
            plan.run(a, b, result, taken)
            assert taken.bytes == built.workspace_bytes == ONE.workspace_bytes(spec, HERE, config)


class _Counting(Workspace):
    __slots__ = ("bytes",)

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def take(self, shape: Sequence[int] | int, dtype: object = np.uint8) -> np.ndarray:
        piece = super().take(shape, dtype)
        self.bytes += piece.nbytes
        return piece


# Values ------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize(
    "text",
    [
        "fprop n2c16 11x9 k32 3x2 p0:1,2:0 s2,1 d1,2",  # every option at once, full blocks of channels
        "dgrad n1c32 4x7x6 k16 2x3x3 p1 s1,2,1 g2 nhwc",
        "wgrad n3c17 10x10 k19 3x3 p1 nhwc",  # a tail in every block
        "fprop n1c24 9x9 k24 3x3 p1 g24 fixed",  # depthwise
        "fprop n2c8 40 k16 5 p2 fixed",
    ],
)
def test_small_integers_come_out_exactly(text: str) -> None:
    spec = ConvSpec.parse(text)
    a, b = operands(spec, np.random.default_rng(3), integers=True)
    for config in ONE.configs(spec, HERE):
        result = run(build(ONE, spec, config), a, b)
        assert np.array_equal(result, reference(spec, a, b)), config


@needs_library
def test_one_thread_and_all_agree_with_the_reference() -> None:
    for threads in (1, HERE.cores):
        assert check_case(ONE, "fprop n2c16 14x14 k16 3x3 p1", device=cpu(threads), checks=("values", "bound")) is None


@needs_library
def test_the_callers_number_of_openmp_threads_is_left_as_it_was() -> None:
    lib = _onednn_lib.library()
    if not lib.obeys:
        pytest.skip("a TBB build has no number of OpenMP threads")
    before = lib.limit_threads(3)
    try:
        check_case(ONE, "fprop n2c16 14x14 k16 3x3 p1", device=cpu(1), checks=("values",))
        assert lib.limit_threads(3) == 3
    finally:
        lib.limit_threads(before)


IN_A_CHILD = """
import os, signal
import numpy as np
from autoconv.device import cpu
from autoconv.impls.cpu.onednn import OneDnnConv
from autoconv.planning import Plan
from autoconv.spec import ConvSpec
from autoconv.testing import build, operands, reference

spec = ConvSpec.parse("fprop n4c32 28x28 k32 3x3 p1")
a, b = operands(spec, np.random.default_rng(0))
plans = [
    Plan(spec, cpu(), built.choice, built.runner)
    for config in OneDnnConv().configs(spec, cpu(2))
    for built in [build(OneDnnConv(), spec, config, cpu(2))]
]
bound = [plan.bind(b) for plan in plans]
calls = [lambda plan=plan: plan(a, b) for plan in plans] + [lambda one=one: one(a) for one in bound]
before = [call() for call in calls]
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that waits for threads of its parent ends here
    good = all(np.allclose(call(), was, atol=1e-3) for call, was in zip(calls, before))
    os._exit(0 if good else 1)
status = os.waitpid(child, 0)[1]
assert np.allclose(calls[0](), before[0], atol=1e-3)
print("child", status)
"""


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_and_does_not_wait_for_its_parents_threads() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_CHILD], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "child 0", done.stderr


@needs_library
def test_what_is_made_is_destroyed() -> None:
    destroyed: list[int] = []
    handle = _onednn_lib.Handle(7, destroyed.append)
    del handle
    assert destroyed == [7]
    lib = _onednn_lib.library()
    desc = lib.memory_desc((2, 3, 4, 5), "f32", _onednn_lib.PLAIN[4])
    assert lib.size(desc) == ctypes.sizeof(ctypes.c_float) * 120
    assert lib.same(desc, lib.memory_desc((2, 3, 4, 5), "f32", _onednn_lib.PLAIN[4]))
    assert not lib.same(desc, lib.memory_desc((2, 3, 4, 5), "f32", _onednn_lib.CHANNELS_LAST[4]))


@needs_library
def test_a_failing_call_is_an_error_with_its_name() -> None:
    lib = _onednn_lib.library()
    with pytest.raises(RuntimeError, match="some_function of oneDNN failed: invalid arguments"):
        lib.judge(2, "some_function")
    with pytest.raises(MemoryError, match="ran out of memory"):
        lib.judge(1, "some_function")
