"""Random calls, as Hypothesis draws them, and the judge of each: right within tolerance, or a refusal.

A call is a problem with every option, operands in any memory and with any values, and room for the result that may
be strided or overlap an operand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

import autoconv
from autoconv import dispatch, testing
from autoconv.arrays import Array
from autoconv.cache import MemoryStore
from autoconv.device import cpu
from autoconv.errors import BackendMissing, NoImplementation
from autoconv.evidence import Choice
from autoconv.impls import BUILTIN
from autoconv.planning import Plan
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op
from tests.test_random_specs import MEMORY

__all__ = ["POOL_SIZE", "Call", "calls", "check", "check_native", "pool"]

MAX_MACS = 1_500_000  # of a problem: the direct reference does it in a fraction of a second
POOL_SIZE = 500
ANY_RANK = ("plain", "channels last", "every other", "fortran", "read-only", "unaligned", "foreign bytes")
MARGIN = 4.0  # times what rounding explains: the tolerance is a statement about typical data, these are not

VALUES = ("normal", "normal", "integers", "zeros", "denormals", "tiny", "large", "mixed", "spike", "nonfinite")


@dataclass(frozen=True)
class Call:
    """A problem and how it is written in memory."""

    spec: ConvSpec
    memory: tuple[str, str]
    values: tuple[str, str]
    out: str
    bias: bool
    seed: int


@st.composite
def _sizes(draw: st.DrawFn) -> ConvSpec:
    spec = draw(testing.specs(ranks=(1, 2, 2, 2, 3), dtypes=("f32", "f32", "f64", "f16"), layouts=("nchw",)))
    if draw(st.booleans()):  # what fast algorithms are made for is rare among all problems
        side = draw(st.sampled_from((1, 3, 3, 5)))
        ones = (1,) * spec.rank
        sizes = tuple(max(n, side) for n in spec.in_spatial)
        spec = replace(spec, kernel=(side,) * spec.rank, stride=ones, dilation=ones, in_spatial=sizes)
    grown = spec
    for change in draw(st.lists(st.sampled_from(("wide", "deep", "many", "kernel", "batch", "nothing")), max_size=2)):
        if change == "wide":
            grown = replace(grown, in_spatial=(grown.in_spatial[0] + draw(st.integers(1, 600)), *grown.in_spatial[1:]))
        elif change == "deep":
            grown = replace(grown, in_channels=grown.groups * draw(st.integers(5, 70)))
        elif change == "many":
            grown = replace(grown, out_channels=grown.groups * draw(st.integers(5, 70)))
        elif change == "kernel":
            size = draw(st.integers(5, 17))
            image = max(grown.in_spatial[-1], (size - 1) * grown.dilation[-1] + 1)
            grown = replace(grown, kernel=(*grown.kernel[:-1], size), in_spatial=(*grown.in_spatial[:-1], image))
        elif change == "batch":
            grown = replace(grown, batch=draw(st.sampled_from((0, 17, 33))))
    return grown if grown.macs <= MAX_MACS else spec


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call of anything."""
    spec = draw(_sizes())
    kinds = tuple(MEMORY) if spec.rank == 2 else ANY_RANK
    return Call(
        spec,
        (draw(st.sampled_from(kinds)), draw(st.sampled_from(kinds))),
        (draw(st.sampled_from(VALUES)), draw(st.sampled_from(VALUES))),
        draw(st.sampled_from(("none", "none", "new", "strided", "operand", "overlapping"))),
        draw(st.booleans()),
        draw(st.integers(0, 2**32 - 1)),
    )


# Operands ----------------------------------------------------------------------------------------


def _values(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    info = np.finfo(dtype)
    values = rng.standard_normal(shape)
    if kind == "integers":
        values = rng.integers(-3, 4, shape).astype(float)
    elif kind == "zeros":
        values = values * 0
    elif kind == "denormals":
        values = values * float(info.tiny) / 8
    elif kind == "tiny":
        values = values * float(info.tiny) ** 0.4
    elif kind == "large":
        values = values * float(info.max) ** 0.3
    elif kind == "mixed":
        values = values * 10.0 ** rng.integers(-4, 3, shape)
    elif kind in ("spike", "nonfinite") and values.size:
        where = np.unravel_index(int(rng.integers(values.size)), shape)
        values[where] = 100.0 if kind == "spike" else rng.choice([np.nan, np.inf, -np.inf])
    return values.astype(dtype)


def _operands(call: Call) -> tuple[Array, Array, bool]:
    """Both operands, and whether one holds what is not finite where the result of that is specified."""
    spec, rng = call.spec, np.random.default_rng(call.seed)
    arrays = []
    finite = True
    for place, (shape, memory, kind) in enumerate(zip(spec.operand_shapes, call.memory, call.values, strict=True)):
        told = kind
        if kind == "nonfinite" and place and (spec.op is Op.DGRAD or any(map(sum, spec.padding))):
            told = "spike"  # padding times a filter that is not finite: unspecified
        finite &= told != "nonfinite"
        arrays.append(MEMORY[memory](_values(told, shape, spec.np_dtype, rng)))
    return arrays[0], arrays[1], finite and all(bool(np.isfinite(array).all()) for array in arrays)


def _out(call: Call, a: Array) -> tuple[Array, Array] | tuple[None, Array]:
    """Room for the result, or None, and the first operand, which may lie in the same memory."""
    spec = call.spec
    shape, dtype = spec.result_shape, spec.np_dtype
    if call.out == "new":
        return np.full(shape, np.nan, dtype), a
    if call.out == "strided":
        return np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)[..., ::2], a
    if call.out == "operand" and a.shape == shape and a.flags.writeable and a.dtype == dtype:
        return a, a
    if call.out == "overlapping" and a.size and prod(shape):
        block = np.zeros(a.size + prod(shape), dtype)
        inside = block[: a.size].reshape(a.shape)
        inside[...] = a
        return block[a.size // 2 : a.size // 2 + prod(shape)].reshape(shape), inside
    return None, a


# Judging -----------------------------------------------------------------------------------------


def _public(call: Call, a: Array, b: Array, bias: Array | None, out: Array | None) -> Any:
    spec = call.spec
    words = {
        "border_mode": spec.padding,
        "subsample": spec.stride,
        "filter_dilation": spec.dilation,
        "num_groups": spec.groups,
        "filter_flip": spec.flip,
        "out": out,
    }
    name = f"conv{spec.rank}d"
    if spec.op is Op.FPROP:
        return getattr(autoconv, name)(a, b, bias=bias, **words)
    if spec.op is Op.DGRAD:
        return getattr(autoconv, f"{name}_grad_wrt_inputs")(a, b, spec.input_shape, **words)
    return getattr(autoconv, f"{name}_grad_wrt_weights")(a, b, spec.filter_shape, **words)


def check(call: Call, implementations: tuple[str, ...] | None = None) -> Counter[str]:
    """Make the call with every implementation forced in turn; "right" and "refused" counted by id.

    Raises `AssertionError` for anything else.
    """
    told: Counter[str] = Counter()
    for name in implementations or _plain():
        one = default_registry().get(name)
        told[f"{name}: {_judge(call, name, _forced(call, name), one.strict_nan)}"] += 1
    return told


@cache
def _plain() -> tuple[str, ...]:
    """Every implementation that needs no compiler and can run here."""
    found = (default_registry().get(name) for name in BUILTIN)
    return tuple(one.name for one in found if not one.compiled and one.unavailable() is None)


def _forced(call: Call, name: str) -> Any:
    def run(a: Array, b: Array, bias: Array | None, out: Array | None, strict: bool) -> Any:
        dispatch.use_store(MemoryStore(), ":memory:")
        limits = {"max_rel_error": 1.0, "strict_nan": strict, "require": (name,), "exclude": ("native",)}
        with autoconv.settings(cache=":memory:", on_miss="heuristic", **limits):
            return _public(call, a, b, bias, out)

    return run


def _judge(call: Call, name: str, run: Any, strict: bool) -> str:
    spec = call.spec
    a, b, finite = _operands(call)
    out, a = _out(call, a)
    exact = np.array(a, np.float64), np.array(b, np.float64)  # copies: the result may overwrite an operand
    rng = np.random.default_rng(call.seed ^ 1)
    bias = rng.standard_normal(spec.out_channels).astype(spec.np_dtype) if call.bias and spec.op is Op.FPROP else None
    before = a.tobytes(), b.tobytes()
    shares = out is not None and np.may_share_memory(out, a)
    with np.errstate(all="ignore"):
        try:
            result = run(a, b, bias, out, not finite)
        except (NoImplementation, BackendMissing):
            return "refused"
        expected = testing.reference(spec, *exact)
        if bias is not None:
            expected = expected + bias.astype(np.float64).reshape(-1, *[1] * spec.rank)
    where = f"{name} on {call}"
    assert result.shape == spec.result_shape, where
    assert result.dtype == spec.np_dtype, where
    assert b.tobytes() == before[1], f"{where}: changes its second operand"
    assert shares or a.tobytes() == before[0], f"{where}: changes its first operand"
    if out is None:
        assert not np.may_share_memory(result, a), where
        assert not np.may_share_memory(result, b), where
    else:
        assert result is out, where
    _compare(where, spec, np.asarray(result, np.float64), expected, exact, bias)
    return "right"


def _compare(where: str, spec: ConvSpec, result: Array, expected: Array, exact: Any, bias: Any) -> None:
    if not result.size:
        return
    overflow = np.abs(expected) > float(np.finfo(spec.np_dtype).max) / 4  # may be infinite, or not quite
    sure = np.isfinite(expected) & ~overflow
    wrong = np.isnan(result) != np.isnan(expected)
    assert not (wrong & ~overflow).any(), f"{where}: NaN where there should be none, or none where there should be"
    assert (result == expected)[np.isinf(expected)].all(), f"{where}: an infinity is not carried"
    if not sure.any():
        return
    sizes = [float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0)) for one in exact]
    added = 0.0 if bias is None else float(np.max(np.abs(bias)))
    scale = max(float(np.max(np.abs(expected[sure]))), prod(sizes) * spec.reduction_length**0.5 / 3, added)
    floor = float(np.finfo(spec.np_dtype).tiny) * spec.reduction_length  # what is below is flushed or rounded away
    if scale > float(np.finfo(spec.np_dtype).max) / 64:
        return  # intermediate sums may overflow
    limit = MARGIN * testing.tolerance(spec, ("winograd",)) * scale + floor
    off = float(np.max(np.abs(result[sure] - expected[sure])))
    assert off <= limit, f"{where}: off by {off:.3g}, limit {limit:.3g}"


# Generated kernels -------------------------------------------------------------------------------


@cache
def pool(size: int = POOL_SIZE) -> tuple[tuple[str, ConvSpec, Choice], ...]:
    """`size` problems to compile kernels for, always the same, the families in turn as far as they take them."""
    rng = np.random.default_rng(size)
    families = [one for one in map(default_registry().get, BUILTIN) if one.compiled and one.unavailable() is None]
    found: list[tuple[str, ConvSpec, Choice]] = []
    texts = [spec for text in testing.CASES.values() for spec in testing.problems(text)]
    for turn in range(100 * size if families else 0):
        if len(found) == size:
            break
        one = families[turn % len(families)]
        base = texts[int(rng.integers(len(texts)))]
        spec = replace(
            base,
            batch=int(rng.choice((1, 2, 3, 17))),
            in_spatial=tuple(n + int(rng.integers(0, 9)) for n in base.in_spatial),
            flip=bool(rng.integers(2)),
        )
        if spec.macs > MAX_MACS or spec.fixed or one.why_not(spec, cpu()):
            continue
        configs = one.configs(spec, cpu())
        config = configs[int(rng.integers(len(configs)))]
        if one.why_not(spec, cpu(), config) is None:
            found.append((one.name, spec, Choice(one.name, one.version, config)))
    return tuple(found)


def check_native(number: int, call: Call) -> str:
    """Make `call` with the problem of the pool's kernel `number` in place of its own; compiles it the first time."""
    name, spec, choice = pool()[number % POOL_SIZE]
    memory = tuple(kind if spec.rank == 2 or kind in ANY_RANK else "plain" for kind in call.memory)
    own = replace(call, spec=spec, memory=(memory[0], memory[1]))

    def run(a: Array, b: Array, bias: Array | None, out: Array | None, strict: bool) -> Any:
        built = default_registry().build(spec, cpu(), choice)
        if strict and not built.strict_nan:
            raise NoImplementation(f"{choice} does not claim to carry what is not finite")
        plan = Plan(spec, cpu(), built.choice, built.runner, workspace_bytes=built.workspace_bytes)
        return plan(a, b, bias, out)

    return _judge(own, str(choice), run, default_registry().get(name).strict_nan)
