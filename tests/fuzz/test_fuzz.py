"""The quick part of the fuzz, and proof that its judge can fail; `make fuzz` is the long one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoconv
from autoconv import workloads
from autoconv.arrays import Array
from autoconv.errors import InvalidSpec
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import Runner, Workspace
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op
from tests.fuzz.problems import Call, calls, check, check_native, pool


@settings(max_examples=60)
@given(calls())
def test_any_call_is_right_or_refused(call: Call) -> None:
    told = check(call)
    assert told["numpy.direct: right"] == 1, "the reference refuses nothing"


@settings(max_examples=20)
@given(st.integers(0, 2), calls())
def test_generated_kernels_are_right_or_refuse(number: int, call: Call) -> None:
    if not pool(3):
        pytest.skip("no generated kernels here")
    assert check_native(number, call) in ("right", "refused")


class _OffByOne(Runner):
    def __init__(self, truth: Runner) -> None:
        self._truth = truth

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._truth(a, b, out, workspace)
        out[(-1,) * out.ndim] += 1


class Broken(Direct):
    """The direct sum, but for its last element."""

    name = "broken.conv"

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _OffByOne(super().prepare(spec, config, context))


@pytest.fixture
def broken() -> Iterator[None]:
    autoconv.register(Broken())
    yield
    default_registry().unregister("broken.conv")


@pytest.mark.usefixtures("broken")
def test_a_wrong_result_is_found() -> None:
    spec = ConvSpec.parse("fprop n1c2 5x5 k2 3x3 f32")
    call = Call(spec, ("plain", "plain"), ("normal", "normal"), "none", bias=False, seed=1)
    with pytest.raises(AssertionError, match="off by"):
        check(call, ("broken.conv",))


# Parsers -----------------------------------------------------------------------------------------

OPERATIONS = ("fprop", "dgrad", "wgrad", "n1c3", "n0c1", "8x8", "k4", "3x3", "p1", "p1:2", "s2", "d2", "g2", "conv")
OTHERS = ("corr", "nhwc", "f64", "bf16", "fixed", "rank1", "n99999999999999c1", "p-1", "s0", "x", "×", "1x1x1x1", "\0")
WORDS = st.sampled_from((*OPERATIONS, *OTHERS))


@settings(max_examples=300)
@given(st.text(max_size=60) | st.lists(WORDS, max_size=12).map(" ".join))
def test_any_text_is_a_spec_or_the_documented_error(text: str) -> None:
    try:
        spec = ConvSpec.parse(text)
    except InvalidSpec:
        return
    assert ConvSpec.parse(str(spec)) == spec
    assert spec.op in list(Op)


NAMES = st.sampled_from(["n", "c", "h", "w", "k", "r", "s", "d", "spec", "records", "padding", "op", "stride"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["same", "conv"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_workload_or_problems(data: bytes) -> None:
    found = workloads.parse(data, "fuzz")
    assert all(isinstance(entry.spec, ConvSpec) for entry in found.entries)
    assert all(problem.where.startswith("fuzz:") for problem in found.problems)
