"""Registry x cases x operations x memory formats, against the float64 reference."""

from __future__ import annotations

import pytest

from autoconv.impls import BUILTIN
from tests.cases import EDGE, NETWORKS, REGRESSION, SMOKE, refusal

CASES = {**SMOKE, **EDGE, **NETWORKS, **REGRESSION}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BUILTIN)
def test_matches_the_reference(name: str, case: str) -> None:
    reason = refusal(name, case, CASES[case], ("values",))
    if reason:
        pytest.skip(f"refused: {reason}")
