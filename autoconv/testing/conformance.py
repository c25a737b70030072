"""The checks of the suite, and the two functions that run them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device, cpu
from autoconv.errors import BackendMissing
from autoconv.evidence import Choice, Config
from autoconv.implementation import Implementation
from autoconv.spec import ConvSpec, Op
from autoconv.testing.cases import CASES, problems
from autoconv.testing.running import EXACT_TAGS, OTHER_FILL, THREADS, Case, Rings, build, fresh_workspace
from autoconv.testing.truth import operands, reference
from autoconv.tuner.tolerance import ALGORITHMS

__all__ = ["CHECKS", "check_case", "check_implementation"]

SLACK_BYTES = 1 << 18  # NumPy's iterators buffer 8192 elements of up to three operands, whatever the problem's size
WORKSPACE_CALLS = 4  # calls that must all exceed the declaration before it counts as exceeded

# The checks: each yields what is wrong -----------------------------------------------------------


def _values(case: Case) -> Iterator[str]:
    a, b = operands(case.spec, case.rng)
    yield from case.wrong(case.call(a, b), reference(case.spec, a, b))


def _integers(case: Case) -> Iterator[str]:
    tags = set(case.built.tags)
    digits = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}[case.spec.dtype]
    if not tags & EXACT_TAGS or tags & ALGORITHMS.keys() or 9 * case.spec.reduction_length > 2**digits:
        return
    a, b = operands(case.spec, case.rng, integers=True)
    result, expected = case.call(a, b), reference(case.spec, a, b)
    if not np.array_equal(np.asarray(result, np.float64), expected):
        yield f"small integers do not come out exactly, though tagged {sorted(tags & EXACT_TAGS)}"


def _declarations(case: Case) -> Iterator[str]:
    one, spec, device, config = case.implementation, case.spec, case.device, case.built.choice.config
    size = one.workspace_bytes(spec, device, config)
    if not isinstance(size, int) or size < 0:
        yield f"workspace_bytes is {size!r}, not a number of bytes"
    estimate = one.estimate_s(spec, device, config)
    if not isfinite(estimate) or estimate < 0 or (spec.macs and not estimate):
        yield f"estimate_s is {estimate!r}, not a positive number of seconds"
    if not all(isinstance(word, str) for item in one.environment(config).items() for word in item):
        yield "environment is not a mapping of texts to texts"
    if Choice.from_json(case.built.choice.to_json()) != case.built.choice:
        yield f"config {config} does not survive being stored"


def _repeatable(case: Case) -> Iterator[str]:
    if case.built.deterministic:
        a, b = operands(case.spec, case.rng)
        if case.call(a, b).tobytes() != case.call(a, b, OTHER_FILL).tobytes():
            yield "claims to be deterministic, but a second call over other rubbish gives other bits"


def _stateless(case: Case) -> Iterator[str]:
    """The same buffers, new values: nothing of the first call may be left."""
    with case.place.current():
        rings = Rings(case.place)
        left, right, out = rings.operands(case.spec, *operands(case.spec, case.rng))
        workspace = fresh_workspace(case.place)
        case.plan.run(left, right, out, workspace)
        a, b = operands(case.spec, case.rng)
        for array, values in ((left, a), (right, b)):
            rings.write(array, values)
        case.plan.run(left, right, out, workspace)
        result = case.place.to_host(out)
    yield from case.wrong(result, reference(case.spec, a, b), "a second call's result")


def _bound(case: Case) -> Iterator[str]:
    if case.spec.op is not Op.WGRAD:
        a, b = operands(case.spec, case.rng)
        yield from case.wrong(case.call(a, b, bound=True), reference(case.spec, a, b), "result with bound filters")


def _threads(case: Case) -> Iterator[str]:
    """One runner, several threads, each with its own operands and workspace."""
    pairs = [operands(case.spec, case.rng) for _ in range(THREADS)]

    def call_twice(pair: tuple[Array, Array]) -> Array:
        with case.place.current():
            left, right, out = Rings(case.place).operands(case.spec, *pair)
            workspace = fresh_workspace(case.place)
            for _ in range(2):
                case.plan.run(left, right, out, workspace)
            return case.place.to_host(out)

    with ThreadPoolExecutor(THREADS) as pool:
        for pair, result in zip(pairs, pool.map(call_twice, pairs), strict=True):
            yield from case.wrong(result, reference(case.spec, *pair), "result beside other threads")


def _workspace(case: Case) -> Iterator[str]:
    """What one call allocates, in the arena or behind its back; memory that C takes for itself is not seen.

    On a GPU the pool is watched. On the CPU the counter sees the whole process, so what other threads allocate
    meanwhile counts too: the least of several calls is what the implementation itself needs.
    """
    on_host = case.device.kind == "cpu"
    with case.place.current():
        left, right, out = Rings(case.place).operands(case.spec, *operands(case.spec, case.rng))

    def call() -> None:
        with case.place.current():
            case.plan.run(left, right, out, fresh_workspace(case.place))

    call()
    allowed = case.built.workspace_bytes + SLACK_BYTES
    uses: list[int] = []
    while len(uses) < WORKSPACE_CALLS:
        uses.append(_peak_bytes(call) if on_host else _peak_pool_bytes(call))
        if uses[-1] <= allowed:
            return
    yield f"uses {min(uses)} bytes of workspace, declares {case.built.workspace_bytes}"


def _peak_bytes(call: Callable[[], None]) -> int:
    """How much more than before is allocated at the worst moment of `call`."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start(1)
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


def _peak_pool_bytes(call: Callable[[], None]) -> int:
    """How much more than before CuPy's pool has lent at the worst moment of `call`."""
    import cupy

    class Meter(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "autoconv"
        now = peak = 0

        def malloc_postprocess(self, **what: int) -> None:
            self.now += what["mem_size"]
            self.peak = max(self.peak, self.now)

        def free_postprocess(self, **what: int) -> None:
            self.now -= what["mem_size"]

    with Meter() as meter:
        call()
    return int(meter.peak)


def _nonfinite(case: Case) -> Iterator[str]:
    spec = case.spec
    if not case.built.strict_nan or not spec.batch:
        return
    unpadded = not any(map(sum, spec.padding))
    for value, position in ((np.nan, 0), (np.inf, 0), (np.nan, 1), (-np.inf, 1)):
        if position and (spec.op is Op.DGRAD or not unpadded or spec.rank1):
            continue  # padding times a filter that is not finite: unspecified; nor is such a filter separable
        pair = operands(spec, case.rng)
        pair[position][(0, 0, *(size // 2 for size in pair[position].shape[2:]))] = value
        with np.errstate(invalid="ignore"):  # infinity less infinity is what is asked for here
            result = np.asarray(case.call(*pair), np.float64)
            expected = reference(spec, *pair)
        finite = np.isfinite(expected)
        if not np.array_equal(result[~finite], expected[~finite], equal_nan=True):
            yield f"claims strict_nan, but {value} in operand {position} does not reach what it should"
        yield from case.wrong(result[finite], expected[finite], f"result away from {value} in operand {position}")


CHECKS: Mapping[str, Callable[[Case], Iterator[str]]] = {
    "values": _values,
    "integers": _integers,
    "declarations": _declarations,
    "repeatable": _repeatable,
    "stateless": _stateless,
    "bound": _bound,
    "threads": _threads,
    "workspace": _workspace,
    "nonfinite": _nonfinite,
}


def _is_sentence(refusal: object) -> bool:
    return isinstance(refusal, str) and " " in refusal and "\n" not in refusal


def check_case(
    implementation: Implementation,
    spec: ConvSpec | str,
    *,
    device: Device | None = None,
    checks: Sequence[str] = tuple(CHECKS),
    configs: Sequence[Config] | None = None,
) -> str | None:
    """Check one implementation on one spec, every config of it unless told which; the reason when it refuses.

    Raises `AssertionError` listing what is wrong. Buffers and operands are watched in every check.
    """
    spec = ConvSpec.parse(spec) if isinstance(spec, str) else spec
    place = device or cpu()
    refusal = implementation.why_not(spec, place)
    if refusal is not None:
        assert _is_sentence(refusal), (
            f"{implementation.name} refuses {spec} with {refusal!r}: a refusal is a sentence on one line"
        )
        return refusal
    try:
        _ = spec.np_dtype
    except BackendMissing as missing:
        return str(missing)
    configs = list(implementation.configs(spec, place) if configs is None else configs)
    able = [config for config in configs if implementation.why_not(spec, place, config) is None]
    assert able, f"{implementation.name} accepts {spec} but none of its configs {configs} does"
    assert len(set(configs)) == len(configs), f"{implementation.name} lists a config twice for {spec}: {configs}"
    wrong: list[str] = []
    for config in able:
        case = Case(implementation, build(implementation, spec, config, place), place)
        for name in checks:
            found = [*CHECKS[name](case), *dict.fromkeys(case.trouble)]
            case.trouble.clear()
            wrong += [f"{name}: {case.built.choice} on {spec}: {sentence}" for sentence in found]
    assert not wrong, "\n".join(wrong)
    return None


def check_implementation(
    implementation: Implementation,
    cases: Mapping[str, str] = CASES,
    *,
    device: Device | None = None,
    checks: Sequence[str] = tuple(CHECKS),
) -> dict[str, str]:
    """Check one implementation on every problem of `cases`; the refusals by spec text.

    Raises `AssertionError` with everything that is wrong, an exception while running included, or
    when every problem was refused.
    """
    refusals: dict[str, str] = {}
    wrong: list[str] = []
    count = 0
    for name, text in cases.items():
        for spec in problems(text):
            count += 1
            try:
                refusal = check_case(implementation, spec, device=device, checks=checks)
            except AssertionError as failure:
                wrong.append(f"{name}: {failure}")
            except Exception as error:  # one case that raises must not hide how the others fare
                wrong.append(f"{name}: {spec}: raises {type(error).__name__}: {error}")
            else:
                if refusal is not None:
                    refusals[str(spec)] = refusal
    assert not wrong, f"{implementation.name} fails:\n" + "\n".join(wrong)
    assert len(refusals) < count, (
        f"{implementation.name} refuses all {count} problems: {sorted(set(refusals.values()))}"
    )
    return refusals
