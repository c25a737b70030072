"""Every line of the registry's table leads to an implementation that says what it is and does something."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from autoconv import testing
from autoconv.device import cpu
from autoconv.errors import RegistryError
from autoconv.implementation import Implementation
from autoconv.impls import BUILTIN, RETIRED
from autoconv.registry import MAX_DEPTH, Registry, default_registry
from autoconv.spec import ConvSpec, Op
from tests.cases import EDGE, NETWORKS, SMOKE

CASES = {**SMOKE, **EDGE, **NETWORKS}
PROBLEMS = [spec for text in CASES.values() for spec in testing.problems(text)]


def implementations() -> Iterator[Implementation]:
    return map(default_registry().get, BUILTIN)


@pytest.mark.parametrize("name", BUILTIN)
def test_loads_under_its_own_id(name: str) -> None:
    one = default_registry().get(name)
    assert one.name == name
    assert name.count(".") == 1
    assert name == name.lower()
    assert isinstance(one.version, int)
    assert one.version >= 1
    assert isinstance(one, Implementation)
    assert not vars(one), "implementations hold no state"


@pytest.mark.parametrize("name", BUILTIN)
def test_docstring_tells_source_strength_and_error(name: str) -> None:
    module = sys.modules[type(default_registry().get(name)).__module__]
    lines = (module.__doc__ or "").splitlines()
    for label in ("Source:", "Wins:", "Error:"):
        told = [line.removeprefix(label).strip() for line in lines if line.startswith(label)]
        assert any(told), f"{module.__name__}'s docstring lacks a {label} line"


@pytest.mark.parametrize("name", BUILTIN)
def test_accepts_something(name: str) -> None:
    one = default_registry().get(name)
    if "cpu" not in one.devices or one.unavailable():
        pytest.skip(one.unavailable() or "runs on a GPU: tests/gpu asks there")
    reasons = {one.why_not(spec, cpu()) for spec in PROBLEMS}
    assert None in reasons, f"{name} refuses every case: {sorted(map(str, reasons))}"


@pytest.mark.parametrize("name", BUILTIN)
def test_does_every_operation_it_declares(name: str) -> None:
    one = default_registry().get(name)
    if "cpu" not in one.devices or one.unavailable():
        pytest.skip(one.unavailable() or "runs on a GPU: tests/gpu asks there")
    done = {spec.op for spec in PROBLEMS if one.why_not(spec, cpu()) is None}
    assert done == one.ops


def test_every_2d_problem_has_a_choice() -> None:
    """One implementation besides the reference for every operation; at stride 1 two."""
    poor = []
    for spec in PROBLEMS:
        if spec.rank == 2 and spec.dtype in ("f32", "f64"):
            able = [one.name for one in implementations() if one.why_not(spec, cpu()) is None]
            assert "numpy.direct" in able
            if len(able) < (3 if spec.stride == (1, 1) else 2):
                poor.append(f"{spec}: {able}")
    assert not poor, "\n".join(poor)


def test_rewrites_come_to_an_end() -> None:
    def depth(spec: ConvSpec, chain: tuple[str, ...]) -> int:
        assert len(chain) <= MAX_DEPTH, f"{spec}: {' > '.join(chain)}"
        lower = []
        for one in implementations():
            child = one.child_spec(spec) if one.why_not(spec, cpu()) is None else None
            if child is not None:
                assert child != spec
                lower.append(depth(child, (*chain, one.name)))
        return 1 + max(lower, default=0)

    assert max(depth(spec, ()) for spec in PROBLEMS) > 1, "no rewrite rewrote anything"


def test_the_reference_refuses_nothing() -> None:
    direct = default_registry().get("numpy.direct")
    assert not [spec for spec in PROBLEMS if direct.why_not(spec, cpu())]
    assert direct.ops == frozenset(Op)


def test_retired_ids_stay_retired() -> None:
    assert not set(BUILTIN) & set(RETIRED)
    for name, reason in RETIRED.items():
        with pytest.raises(RegistryError, match="retired"):
            default_registry().get(name)
        assert reason


def test_a_table_that_misnames_is_caught() -> None:
    registry = Registry({"numpy.other": BUILTIN["numpy.direct"]})
    with pytest.raises(RegistryError, match=r"calls itself 'numpy\.direct', the table calls it 'numpy\.other'"):
        registry.get("numpy.other")
