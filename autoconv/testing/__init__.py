"""The conformance suite: what every implementation must do, for built-in ones and for yours.

::

    import pytest
    from autoconv import testing

    @pytest.mark.parametrize("case", testing.CASES)
    def test_mine(case):
        for spec in testing.problems(testing.CASES[case]):
            testing.check_case(Mine(), spec)

    def test_all_at_once():
        testing.check_implementation(Mine())        # also fails when every case is refused

The judge is `reference`, a float64 sum over taps that shares no code with any implementation.
Buffers are ringed with NaN and sit off 64-byte boundaries, results and scratch start as NaN, and
operands are read-only: reading or writing outside one's arrays shows.
"""

from autoconv.testing.cases import CASES, EDGE, SMOKE, problems, specs
from autoconv.testing.conformance import CHECKS, check_case, check_implementation
from autoconv.testing.running import EXACT_TAGS, THREADS, build, run
from autoconv.testing.truth import operands, reference, relative_error, tolerance

__all__ = [
    "CASES",
    "CHECKS",
    "EDGE",
    "EXACT_TAGS",
    "SMOKE",
    "THREADS",
    "build",
    "check_case",
    "check_implementation",
    "operands",
    "problems",
    "reference",
    "relative_error",
    "run",
    "specs",
    "tolerance",
]
