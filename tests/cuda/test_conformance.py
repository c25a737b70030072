"""The conformance suite on the stand-in: kernels run on the host, array code on the host's memory.

A sample here; every problem by `make test-kernels`. `tests/gpu` runs the same suite on a device.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from autoconv import testing
from autoconv.device import find_device
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.testing import CASES

IDS = [name for name in BUILTIN if name.partition(".")[0] in ("cuda", "cupy")]  # cuDNN's has a test of its own
SAMPLE = 6  # cases of each implementation: a kernel compiles in a quarter of a second


def check(name: str, cases: list[str], *, problems: int | None = None) -> int:
    """Check an implementation on `cases`, so many problems of each, a config of each in turn; how many it took."""
    one, device = default_registry().get(name), find_device("cuda:0")
    taken = 0
    for number, case in enumerate(cases):
        able = [spec for spec in testing.problems(CASES[case]) if one.why_not(spec, device) is None]
        turned = able[number % max(1, len(able)) :] + able[: number % max(1, len(able))]
        for turn, spec in enumerate(turned[:problems]):
            configs = [config for config in one.configs(spec, device) if one.why_not(spec, device, config) is None]
            chosen = configs[(number + turn) % len(configs)]
            taken += testing.check_case(one, spec, device=device, configs=[chosen]) is None
    return taken


def able_cases(name: str) -> list[str]:
    one, device = default_registry().get(name), find_device("cuda:0")
    return [case for case in CASES if any(not one.why_not(spec, device) for spec in testing.problems(CASES[case]))]


@pytest.mark.parametrize("name", IDS)
def test_sample(name: str, standin: ModuleType) -> None:
    cases = able_cases(name)
    sample = cases[:: max(1, len(cases) // SAMPLE)]
    assert check(name, sample, problems=1) == len(sample)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IDS)
def test_every_problem(name: str, case: str, standin: ModuleType) -> None:
    if not check(name, [case]):
        pytest.skip("refused")
