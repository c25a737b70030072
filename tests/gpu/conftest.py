"""The GPU that the tests of this folder run on; tests/conftest.py skips them, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from autoconv.device import Device, find_device
from autoconv.places import Place, place_of
from autoconv.spec import ConvSpec
from autoconv.testing import operands, reference, tolerance
from autoconv.testing.truth import relative_error


@pytest.fixture
def gpu() -> Device:
    return find_device("cuda:0")


@pytest.fixture
def place(gpu: Device) -> Iterator[Place]:
    """The GPU's memory, given back after the test."""
    here = place_of(gpu)
    yield here
    here.synchronize()
    here.xp.get_default_memory_pool().free_all_blocks()


@pytest.fixture
def problem(place: Place, rng: np.random.Generator) -> Callable[[str], Problem]:
    """Operands of a spec on the GPU, and the means to judge a result."""
    return lambda text: Problem(ConvSpec.parse(text), place, rng)


class Problem:
    """One spec's random operands, on the CPU and on the GPU."""

    def __init__(self, spec: ConvSpec, place: Place, rng: np.random.Generator) -> None:
        self.spec = spec
        self.place = place
        self._rng = rng
        self.renew()

    def renew(self) -> None:
        """New values: in the same memory of the GPU if there are some already."""
        self.host = operands(self.spec, self._rng)
        fresh = tuple(map(self.place.from_host, self.host))
        if not hasattr(self, "a"):
            self.a, self.b = fresh
        else:
            self.a[...], self.b[...] = fresh

    def judge(self, result: Any) -> None:
        """Fail unless `result` is right for the present operands."""
        expected = reference(self.spec, *self.host)
        error = relative_error(self.place.to_host(result), expected, self.spec.reduction_length**0.5 / 3)
        assert error <= tolerance(self.spec, ["winograd"]), f"off by {error:.1e}"
