"""The conformance suite against implementations broken on purpose: each must be caught, by the right check."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import RegistryError
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import ConvSpec, Op

CASES = {name: testing.CASES[name] for name in ("plain", "dilated_strided")}

Break = Callable[[Runner, ConvSpec, Array, Array, Array, Workspace], None]


class _Broken(Direct):
    """`numpy.direct` with one fault."""

    name = "test.broken"

    def __init__(self, fault: Break, bind: Callable[[Runner, Array], BoundRunner] | None = None) -> None:
        self._fault = fault
        self._bind = bind

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _BrokenRunner(spec, super().prepare(spec, config, context), self._fault, self._bind)


class _BrokenRunner(Runner):
    def __init__(
        self, spec: ConvSpec, good: Runner, fault: Break, bind: Callable[[Runner, Array], BoundRunner] | None
    ) -> None:
        self.spec, self.good, self.fault, self._bind = spec, good, fault, bind
        self.memory: dict[str, Any] = {}

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self.fault(self, self.spec, a, b, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        return self._bind(self, filters) if self._bind else super().bind(filters)


def _good(runner: Any, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    runner.good(a, b, out, workspace)


def wrong_flip(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    if spec.op is Op.WGRAD:
        _good(runner, a, b, out, workspace)
        out[...] = out[:, :, ::-1, ::-1].copy()
    else:
        _good(runner, a, np.ascontiguousarray(b[:, :, ::-1, ::-1]), out, workspace)


def off_by_one(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    out[...] = np.roll(out, 1, axis=-1)


def last_row_left(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    keep = out[..., -1, :].copy()
    _good(runner, a, b, out, workspace)
    out[..., -1, :] = keep


def adds_to_rubbish(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    before = out.copy()
    _good(runner, a, b, out, workspace)
    out += before


def ignores_dilation(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    if spec.dilation == (1, 1) or spec.op is not Op.FPROP:
        _good(runner, a, b, out, workspace)
    else:
        wider = tuple(
            (before, after + 2 * (d - 1)) for (before, after), d in zip(spec.padding, spec.dilation, strict=True)
        )
        undilated = replace(spec, dilation=(1, 1), padding=wider)
        full = testing.reference(undilated, a, b)
        out[...] = full[tuple(slice(size) for size in out.shape)]


def half_precision_inside(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a.astype(np.float16).astype(a.dtype), b, out, workspace)


def drops_small_parts(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    out *= 1 + 4 * np.finfo(out.dtype).eps  # within every tolerance, but integers are no integers any more


def writes_beyond(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    dense = out if out.flags.c_contiguous else np.moveaxis(out, 1, -1)
    longer = np.lib.stride_tricks.as_strided(dense.reshape(-1), (out.size + 1,), (out.itemsize,))
    longer[-1] = 0


def writes_before(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    dense = out if out.flags.c_contiguous else np.moveaxis(out, 1, -1)
    address = dense.ctypes.data - out.itemsize
    import ctypes

    ctypes.memset(address, 0, out.itemsize)


def changes_its_input(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    import ctypes

    ctypes.memset(a.ctypes.data, 0, 4)  # as C does, which knows nothing of read-only arrays


def writes_beyond_workspace(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    piece = workspace.take(100)
    np.lib.stride_tricks.as_strided(piece, (101,), (1,))[-1] = 7


def takes_too_much_workspace(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    workspace.take(1 << 20)
    _good(runner, a, b, out, workspace)


def allocates_too_much(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    np.empty(1 << 20, np.uint8)
    _good(runner, a, b, out, workspace)


def reads_old_workspace(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    out[(0,) * out.ndim] *= 1 + (int(workspace.take(1)[0]) & 1) * np.finfo(out.dtype).eps * 2


def reads_old_workspace_from_c(
    runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace
) -> None:
    _good(runner, a, b, out, workspace)
    import ctypes

    old = ctypes.c_ubyte.from_address(workspace.take_address(1)).value
    out[(0,) * out.ndim] *= 1 + (old & 1) * np.finfo(out.dtype).eps * 2


def changes_its_mind(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    runner.memory["calls"] = runner.memory.get("calls", 0) + 1
    out *= 1 + runner.memory["calls"] % 2 * np.finfo(out.dtype).eps * 2


def remembers_filters_by_address(
    runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace
) -> None:
    if runner.memory.get("address") != b.ctypes.data:
        runner.memory.update(address=b.ctypes.data, filters=b.copy())
    _good(runner, a, runner.memory["filters"], out, workspace)


def shares_a_buffer(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    buffer = runner.memory.setdefault("buffer", np.empty_like(a))
    buffer[...] = a
    meeting = runner.memory.setdefault("meeting", threading.Barrier(testing.THREADS))
    if threading.current_thread() is not threading.main_thread():
        meeting.wait(20)  # every thread has filled the buffer: the last one's operand is what all see
    _good(runner, buffer, b, out, workspace)


def swallows_nan(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, np.nan_to_num(a), b, out, workspace)


def spreads_nan(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    _good(runner, a, b, out, workspace)
    out += 0 * a.sum(dtype=out.dtype)  # as a Fourier transform does


def raises(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    raise ZeroDivisionError("on purpose")


FAULTS: list[tuple[Break, str]] = [
    (wrong_flip, "values: .* off by"),
    (off_by_one, "values: .* off by"),
    (last_row_left, "values: .* off by nan"),
    (adds_to_rubbish, "values: .* off by nan"),
    (ignores_dilation, "dilated_strided: values: .* off by"),
    (half_precision_inside, "values: .* off by"),
    (drops_small_parts, "integers: .* small integers"),
    (writes_beyond, "writes outside the arrays"),
    (writes_before, "writes outside the arrays"),
    (changes_its_input, "changes an operand"),
    (writes_beyond_workspace, "writes outside its workspace"),
    (takes_too_much_workspace, "workspace: .* declares"),
    (allocates_too_much, "workspace: .* declares"),
    (reads_old_workspace, "repeatable: .* other bits"),
    (reads_old_workspace_from_c, "repeatable: .* other bits"),
    (changes_its_mind, "repeatable: .* other bits"),
    (remembers_filters_by_address, "stateless: .* second call"),
    (shares_a_buffer, "threads: .* beside other threads"),
    (swallows_nan, "nonfinite: .* does not reach"),
    (spreads_nan, "nonfinite: "),
    (raises, "raises ZeroDivisionError: on purpose"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_catches(fault: Break, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_implementation(_Broken(fault), CASES)


def test_passes_what_is_not_broken() -> None:
    assert (
        testing.check_implementation(_Broken(lambda runner, spec, *arrays: _good(runner, *arrays)), testing.SMOKE) == {}
    )


def test_memory_of_another_thread_is_not_held_against_a_call() -> None:
    """Allocations are counted for the whole process: what only some calls seem to need is somebody else's."""

    def sometimes(runner: Any, spec: ConvSpec, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        runner.memory["calls"] = runner.memory.get("calls", 0) + 1
        if runner.memory["calls"] % 3 == 2:
            runner.memory["elsewhere"] = np.empty(1 << 21, np.uint8)
        _good(runner, a, b, out, workspace)
        runner.memory.pop("elsewhere", None)

    testing.check_case(_Broken(sometimes), testing.CASES["plain"], checks=["workspace"])


def test_catches_a_wrong_bind() -> None:
    def bind(runner: Any, filters: Array) -> BoundRunner:
        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            _good(runner, a, filters[:, :, ::-1], out, workspace)

        return bound

    broken = _Broken(lambda runner, spec, *arrays: _good(runner, *arrays), bind)
    with pytest.raises(AssertionError, match=r"bound: .* with bound filters"):
        testing.check_implementation(broken, CASES)


class _Declares(Direct):
    """`numpy.direct` with other words about itself."""

    name = "test.declares"

    def __init__(self, **words: Any) -> None:
        self._words = words

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return self._words.get("workspace", 10**9)  # type: ignore[no-any-return]

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return self._words.get("estimate", 1.0)  # type: ignore[no-any-return]

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        return self._words.get("configs", (Config(),))  # type: ignore[no-any-return]

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        return self._words.get("restrictions", ())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"workspace": -1}, "not a number of bytes"),
        ({"workspace": 1.5}, "not a number of bytes"),
        ({"estimate": 0.0}, "not a positive number of seconds"),
        ({"estimate": float("nan")}, "not a positive number of seconds"),
        ({"configs": ()}, "none of its configs"),
        ({"configs": (Config(tile=4), Config(tile=4))}, "lists a config twice"),
        ({"restrictions": ((False, "no"),)}, "a refusal is a sentence"),
        ({"restrictions": ((False, "two\nlines"),)}, "a refusal is a sentence"),
        ({"restrictions": ((False, "does nothing at all"),)}, r"refuses all \d+ problems: \['does nothing at all'\]"),
    ],
)
def test_catches_wrong_words(words: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_implementation(_Declares(**words), CASES)


def test_refusals_come_back_by_spec() -> None:
    class Picky(Direct):
        name = "test.picky"
        ops = frozenset({Op.FPROP})

    refusals = testing.check_implementation(Picky(), {"plain": testing.CASES["plain"]})
    assert {text.split()[0] for text in refusals} == {"dgrad", "wgrad"}
    assert set(refusals.values()) == {"does fprop, not dgrad", "does fprop, not wgrad"}


def test_only_implementations_are_checked() -> None:
    with pytest.raises((RegistryError, AttributeError)):
        testing.build(object(), ConvSpec.parse(testing.CASES["plain"]))  # type: ignore[arg-type]
    assert issubclass(_Broken, Implementation)
