"""The public surface: what `autoconv` exports, how its functions look, and what they refuse."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import (
    RegistryError,
    dispatch,
    settings,
    testing,
)
from autoconv.arrays import is_dense
from autoconv.cache import MemoryStore
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import Runner, Workspace
from autoconv.registry import default_registry

X = np.arange(2 * 3 * 6 * 7, dtype=np.float64).reshape(2, 3, 6, 7)
W = np.arange(4 * 3 * 3 * 2, dtype=np.float64).reshape(4, 3, 3, 2)
Y = np.ones((2, 4, 4, 6))

ROOT = Path(autoconv.__file__).parent


@pytest.fixture(autouse=True)
def _untuned() -> Any:
    """Choices by estimate, misses counted in memory: nothing here is about speed."""
    dispatch.use_store(MemoryStore(), settings.current().cache)
    with settings(on_miss="heuristic"):
        yield


# Names


def _modules_with_all() -> list[str]:
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        if any(
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for node in ast.parse(path.read_text()).body
        ):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(("autoconv", *(part for part in parts if part != "__init__"))))
    return names


@pytest.mark.parametrize("name", _modules_with_all())
def test_all_is_sorted_and_exists(name: str) -> None:
    module = importlib.import_module(name)
    exported = module.__all__
    assert len(set(exported)) == len(exported)
    assert list(exported) == _isort(exported)
    for word in exported:
        assert getattr(module, word) is not None


def _isort(names: list[str]) -> list[str]:
    """Constants, then classes, then the rest, each by letter."""
    return sorted(names, key=lambda name: (not name.isupper() or len(name) == 1, not name[:1].isupper(), name))


def test_all_is_what_is_exported() -> None:
    visible = {
        name for name, value in vars(autoconv).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert visible == set(autoconv.__all__)


def test_the_design_names_are_there() -> None:
    wanted = {
        "ConvSpec", "conv2d", "conv2d_grad_wrt_inputs", "conv2d_grad_wrt_weights", "conv3d", "conv3d_grad_wrt_inputs",
        "conv3d_grad_wrt_weights", "explain", "implementations", "plan", "register", "regress", "settings", "tune",
        "verify",
    }  # fmt: skip
    assert wanted <= set(autoconv.__all__)
    from autoconv import errors

    assert set(errors.__all__) <= set(autoconv.__all__)


def test_names_exist_in_a_fresh_interpreter() -> None:
    program = "import autoconv; [getattr(autoconv, name) for name in autoconv.__all__]; print(autoconv.__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == autoconv.__version__


KEYWORDS = {"border_mode": "valid", "num_groups": 1, "filter_flip": True, "out": None}
FAMILY = {
    "": (["input", "filters"], {"bias": None, "image_shape": None, "filter_shape": None}),
    "_grad_wrt_inputs": (["output_grad", "filters", "input_shape"], {}),
    "_grad_wrt_weights": (["input", "output_grad", "filter_shape"], {}),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ending", FAMILY)
def test_signatures(rank: int, ending: str) -> None:
    function = getattr(autoconv, f"conv{rank}d{ending}")
    positional, more = FAMILY[ending]
    parameters = inspect.signature(function).parameters
    assert [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    keywords = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    ones = (1,) * rank
    assert keywords == {**KEYWORDS, "subsample": ones, "filter_dilation": ones, **more}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ending", FAMILY)
def test_functions_made_for_a_rank_know_their_name(rank: int, ending: str) -> None:
    name = f"conv{rank}d{ending}"
    function = getattr(autoconv, name)
    assert (function.__module__, function.__name__) == ("autoconv.convolving", name)
    assert pickle.loads(pickle.dumps(function)) is function
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert f"{name}({FAMILY[ending][0][0]}: " in text
    assert f"autoconv.{name}(" in text
    assert "{" not in text, "a placeholder was left in the documentation"


@pytest.mark.parametrize("name", [name for name in autoconv.__all__ if callable(getattr(autoconv, name))])
def test_everything_public_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(autoconv, name))


# The three operations


def test_forward_by_hand() -> None:
    x = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    w = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    assert autoconv.conv2d(x, w).tolist() == [[[[23, 33], [53, 63]]]]
    assert autoconv.conv2d(x, w, filter_flip=False).tolist() == [[[[37, 47], [67, 77]]]]
    assert autoconv.conv2d(x, w, border_mode="full").shape == (1, 1, 4, 4)
    assert autoconv.conv2d(x, w, border_mode="half").shape == (1, 1, 4, 4)
    assert autoconv.conv2d(x, w, border_mode="same").shape == (1, 1, 3, 3)
    assert autoconv.conv2d(x, w, bias=np.array([0.5])).tolist() == [[[[23.5, 33.5], [53.5, 63.5]]]]


def test_gradients_of_the_forward_call() -> None:
    dx = autoconv.conv2d_grad_wrt_inputs(Y, W, X.shape)
    dw = autoconv.conv2d_grad_wrt_weights(X, Y, W.shape)
    forward = float(np.vdot(autoconv.conv2d(X, W), Y))
    assert np.vdot(X, dx) == pytest.approx(forward)
    assert np.vdot(W, dw) == pytest.approx(forward)


def test_gradients_fill_in_what_the_arrays_tell() -> None:
    assert autoconv.conv2d_grad_wrt_inputs(Y, W, (None, None, 6, 7)).shape == X.shape
    assert autoconv.conv2d_grad_wrt_weights(X, Y, (None, None, 3, 2)).shape == W.shape


@pytest.mark.parametrize("first", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("second", [np.float32, np.float64, np.float16])
def test_dtypes_are_promoted_as_numpy_does(first: Any, second: Any) -> None:
    result = autoconv.conv2d((X / 100).astype(first), W.astype(second))
    assert result.dtype == np.result_type(first, second)


def test_the_result_keeps_the_memory_format() -> None:
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)
    result = autoconv.conv2d(last, W)
    assert np.moveaxis(result, 1, -1).flags.c_contiguous
    assert np.allclose(result, autoconv.conv2d(X, W))
    dx = autoconv.conv2d_grad_wrt_inputs(result, W, X.shape)
    assert np.moveaxis(dx, 1, -1).flags.c_contiguous
    assert autoconv.conv2d_grad_wrt_weights(last, result, W.shape).flags.c_contiguous


def test_a_repeated_call_sees_its_own_operands() -> None:
    """The second call takes the short way: other values, `out`, a bias, unaligned memory, another thread's settings."""
    w, other = W.copy(), X[::-1].copy()
    first = autoconv.conv2d(X, w)
    assert np.allclose(autoconv.conv2d(X, w), first)
    assert not np.shares_memory(autoconv.conv2d(X, w), first)
    assert np.allclose(autoconv.conv2d(other, w), first[::-1])
    w *= 2
    assert np.allclose(autoconv.conv2d(X, w), 2 * first)
    out = np.empty_like(first)
    assert autoconv.conv2d(X, w, out=out) is out
    assert np.allclose(out, 2 * first)
    assert np.allclose(autoconv.conv2d(X, w, bias=np.ones(4)), 2 * first + 1)
    raw = np.zeros(X.nbytes + 1, np.uint8)[1:].view(float).reshape(X.shape)
    raw[...] = X
    assert np.allclose(autoconv.conv2d(raw, w), 2 * first)
    assert np.allclose(autoconv.conv2d(X, w, filter_flip=False), 2 * autoconv.conv2d(X, W, filter_flip=False))
    with settings(require=("numpy.direct",)):
        assert np.allclose(autoconv.conv2d(X, w), 2 * first)


class Strict(Direct):
    """Direct, but its runner insists on all that runners are promised."""

    name = "test.strict"

    def estimate_s(self, *arguments: Any) -> float:
        return 1e-12

    def prepare(self, spec: autoconv.ConvSpec, config: Config, context: Context) -> Runner:
        return StrictRunner(spec, super().prepare(spec, config, context))


class StrictRunner(Runner):
    def __init__(self, spec: autoconv.ConvSpec, inner: Runner) -> None:
        self.spec, self.inner = spec, inner

    def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
        spec = self.spec
        layouts = [spec.layout, "nchw", spec.layout]
        if spec.op is autoconv.Op.WGRAD:
            layouts = [spec.layout, spec.layout, "nchw"]
        shapes = (*spec.operand_shapes, spec.result_shape)
        for array, shape, layout in zip((a, b, out), shapes, layouts, strict=True):
            assert array.shape == shape
            assert array.size
            assert array.dtype == spec.np_dtype
            assert array.dtype.isnative
            assert array.flags.aligned
            assert is_dense(array, layout)
        assert out.flags.writeable
        assert not np.may_share_memory(out, a)
        assert not np.may_share_memory(out, b)
        self.inner(a, b, out, workspace)


@pytest.fixture
def _strict() -> Iterator[None]:
    autoconv.register(Strict())
    yield
    default_registry().unregister("test.strict")


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("op", autoconv.Op)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_runners_get_what_they_are_promised(op: autoconv.Op, layout: str) -> None:
    """Whatever memory callers bring, on the first call and on the later, shorter ones."""
    rng = np.random.default_rng(0)
    spec = autoconv.ConvSpec.parse(f"{op} n2c3 6x6 k3 3x3 p1 {layout} f64")
    (first, second), shape = spec.operand_shapes, spec.result_shape
    call = {
        autoconv.Op.FPROP: autoconv.conv2d,
        autoconv.Op.DGRAD: lambda a, b, **more: autoconv.conv2d_grad_wrt_inputs(a, b, spec.input_shape, **more),
        autoconv.Op.WGRAD: lambda a, b, **more: autoconv.conv2d_grad_wrt_weights(a, b, spec.filter_shape, **more),
    }[op]

    def in_format(values: Any) -> Any:
        if layout == "nchw" or values.shape[2:] == (3, 3):
            return values.copy()
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)

    def unaligned(values: Any) -> Any:
        dense = values if values.flags.c_contiguous else np.moveaxis(values, 1, -1)
        raw = np.zeros(dense.nbytes + 1, np.uint8)[1:].view(dense.dtype).reshape(dense.shape)
        raw[...] = dense
        return raw if values.flags.c_contiguous else np.moveaxis(raw, -1, 1)

    a, b = in_format(rng.standard_normal(first)), in_format(rng.standard_normal(second))
    expected = testing.reference(spec, a, b)
    assert autoconv.plan(spec).implementation == "test.strict"
    backwards = a[..., ::-1].copy()[..., ::-1]
    for x, y in ((a, b), (unaligned(a), b), (a, unaligned(b)), (backwards, b), (a, b.astype(">f8"))):
        for _ in range(3):
            assert np.allclose(call(x, y, border_mode=1), expected)
    mine = [operand for operand in (a, b) if operand.shape == shape]
    for out in (np.empty(shape), in_format(np.empty(shape)), unaligned(np.empty(shape)), *mine):
        left, right = a.copy("K"), b.copy("K")
        own = left if out is a else right if out is b else out
        assert np.allclose(call(left, right, border_mode=1, out=own), expected)
    if op is not autoconv.Op.DGRAD:
        empty = call(a[:0], b if op is autoconv.Op.FPROP else b[:0], border_mode=1)
        assert empty.shape == (shape if op is autoconv.Op.WGRAD else (0, *shape[1:]))


def test_nan_and_infinity_flow_through() -> None:
    x = X.copy()
    x[0, 0, 2, 3], x[1, 1, 4, 4] = np.nan, np.inf
    spec = autoconv.ConvSpec.fprop(X.shape, W.shape, dtype="f64")
    with np.errstate(invalid="ignore"), settings(strict_nan=True):
        result, expected = autoconv.conv2d(x, W + 1), testing.reference(spec, x, W + 1)
    assert np.array_equal(np.isnan(result), np.isnan(expected))
    assert np.array_equal(np.isinf(result), np.isinf(expected))
    assert np.allclose(result, expected, equal_nan=True)


def test_foreign_arrays_come_back_in_kind() -> None:
    from tests.unit.test_arrays import Foreign

    x = Foreign(X)
    x.shape = X.shape  # type: ignore[attr-defined]
    result = autoconv.conv2d(x, W)
    assert isinstance(result, Foreign)
    assert np.allclose(result.values, autoconv.conv2d(X, W))


# The registry, seen from outside


def test_implementations_lists_the_registry() -> None:
    records = {record.id: record for record in autoconv.implementations()}
    assert list(records) == list(default_registry().ids())
    direct = records["numpy.direct"]
    assert direct.ops == ("fprop", "dgrad", "wgrad")
    assert direct.available
    assert direct.reason == ""
    for record in records.values():
        assert record.summary
        assert record.available == (not record.reason)


def test_register_takes_part_at_once() -> None:
    class Mine(Direct):
        """Mine."""

        name = "test.mine"

        def estimate_s(self, *arguments: Any) -> float:
            return 1e-12

    autoconv.conv2d(X, W)
    try:
        autoconv.register(Mine())
        assert autoconv.plan("fprop n2c3 6x7 k4 3x2 f64").implementation == "test.mine"
        assert np.allclose(autoconv.conv2d(X, W), testing.reference(autoconv.ConvSpec.fprop(X.shape, W.shape), X, W))
        with pytest.raises(RegistryError, match="taken"):
            autoconv.register(Mine())
    finally:
        default_registry().unregister("test.mine")
