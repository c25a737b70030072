"""Registry x cases x operations x memory formats, against the float64 reference."""

from __future__ import annotations

import pytest

from autoconv import testing
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from tests.cases import EDGE, NETWORKS, REGRESSION, SMOKE

CASES = {**SMOKE, **EDGE, **NETWORKS, **REGRESSION}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILTIN)
def test_matches_the_reference(name: str, case: str) -> None:
    one = default_registry().get(name)
    refusals = [testing.check_case(one, spec, checks=("values",)) for spec in testing.problems(CASES[case])]
    if None not in refusals:
        pytest.skip(f"refused: {refusals[0]}")
