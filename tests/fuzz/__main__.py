"""The long fuzz, in chunks that can be run apart: `python -m tests.fuzz [--first N] [--count N]`.

Each chunk is a hundred calls from a seed of its own, so that a count is always the same calls, whatever
was run before. A failure is shrunk by Hypothesis and printed with the call that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import hypothesis

from tests.fuzz.problems import POOL_SIZE, Call, calls, check, check_native, pool

CHUNK = 100


def run_chunk(number: int, natives: int) -> Counter[str]:
    """Chunk `number`; every call also with one of the first `natives` kernels of the pool."""
    told: Counter[str] = Counter()

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=CHUNK, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(calls())
    def fuzz(call: Call) -> None:
        told.update(check(call))
        told["calls"] += 1
        if natives:
            told[f"native: {check_native(call.seed % natives, call)}"] += 1

    fuzz()
    return told


def main() -> int:
    """Run the chunks asked for; 1 when one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--count", type=int, default=10_000, help="how many calls")
    parser.add_argument("--natives", type=int, default=POOL_SIZE, help="kernels of the pool to use")
    given = parser.parse_args()
    natives = min(given.natives, len(pool())) if given.natives else 0
    total: Counter[str] = Counter()
    failed = 0
    started = time.perf_counter()
    for chunk in range(given.first // CHUNK, -(-(given.first + given.count) // CHUNK)):
        try:
            total.update(run_chunk(chunk, natives))
        except Exception as error:  # the next chunk may find something else; the status tells
            failed += 1
            print(f"chunk {chunk}: {type(error).__name__}: {error}", *getattr(error, "__notes__", ()), sep="\n")
        print(f"chunk {chunk}: {total['calls']} calls, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for what, count in sorted(total.items()):
        print(f"{count:8} {what}")
    print(f"{failed} chunks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
