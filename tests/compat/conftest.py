"""What the tests of other libraries' names share."""

from __future__ import annotations

import pytest

from autoconv.registry import default_registry


@pytest.fixture(scope="session")
def gcc() -> None:
    """Skips where generated kernels cannot be built."""
    reason = default_registry().get("native.gemm").unavailable()
    if reason:
        pytest.skip(reason)
