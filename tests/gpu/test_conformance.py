"""The conformance suite on the device: every CUDA implementation, case, operation and memory format."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from autoconv import testing
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.testing import CASES
from tests.cases import NETWORKS, REGRESSION

pytestmark = pytest.mark.gpu

ALL = {**CASES, **NETWORKS, **REGRESSION}
IDS = [name for name in BUILTIN if "cuda" in default_registry().get(name).devices]
HUGE = "fprop n65c64 1024x1024 k64 1x1 corr"  # more than 2^31 elements: asked about, not run
MOST_CONFIGS = 8  # of one problem: cuDNN alone has up to 94 plans


def some(configs: Sequence[Config]) -> list[Config]:
    """The first, the last, and others between them at equal distances."""
    step = max(1, -(-len(configs) // MOST_CONFIGS))
    return list(dict.fromkeys([*configs[::step], *configs[-1:]]))


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("name", IDS)
def test_conforms(name: str, case: str, gpu: Device) -> None:
    one = default_registry().get(name)
    refusals = []
    for spec in testing.problems(ALL[case]):
        configs = some(one.configs(spec, gpu)) if one.why_not(spec, gpu) is None else None
        refusals.append(testing.check_case(one, spec, device=gpu, configs=configs))
    if None not in refusals:
        pytest.skip(f"refused: {refusals[0]}")


@pytest.mark.parametrize("name", IDS)
def test_accepts_something(name: str, gpu: Device) -> None:
    one = default_registry().get(name)
    if one.unavailable():
        pytest.skip(f"{one.unavailable()}")
    reasons = {one.why_not(spec, gpu) for text in (*ALL.values(), HUGE) for spec in testing.problems(text)}
    assert None in reasons, f"{name} refuses every case: {sorted(map(str, reasons))}"
