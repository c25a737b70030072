"""What the conformance suite cannot know of cuda.winograd: orders of threads, seams, chunks, rounding, strictness."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import Device, find_device
from autoconv.evidence import Config
from autoconv.implementation import Built
from autoconv.impls.cuda import winograd
from autoconv.impls.cuda._kernels import Module
from autoconv.impls.cuda.winograd import CHUNKS_MIB, TILES, Winograd
from autoconv.places import place_of
from autoconv.spec import ConvSpec, Op
from autoconv.tuner.tolerance import tolerance
from tests.cuda_shim import compiler, thread_order

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")

ONE = Winograd()
SMALLEST = 0  # MiB: chunks of eight tiles, which no config offers


def gpu() -> Device:
    return find_device("cuda:0")


def prepare(spec: ConvSpec, config: Config | None = None) -> Built:
    return testing.build(ONE, spec, config, gpu())


def operands(spec: ConvSpec, *, integers: bool = False) -> tuple[Array, Array]:
    return testing.operands(spec, np.random.default_rng(1), integers=integers)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("op", list(Op))
def test_any_order_of_threads_gives_the_same_bits(standin: ModuleType, op: Op, layout: str) -> None:
    spec = ConvSpec.parse(f"{op} n2c6 9x11 k5 3x3 p1 {layout}")
    built, pair = prepare(spec, Config(m=4, mib=32)), operands(spec)
    results = []
    for order in ("forward", "backward", 7):
        with thread_order(order):
            results.append(testing.run(built, *pair, gpu()))
    assert testing.relative_error(results[0], testing.reference(spec, *pair)) < 2e-6
    assert all(result.tobytes() == results[0].tobytes() for result in results)


@pytest.mark.parametrize(
    ("op", "m", "layout"),
    [("fprop", 2, "nchw"), ("fprop", 6, "nhwc"), ("dgrad", 4, "nhwc"), ("wgrad", 6, "nchw"), ("wgrad", 2, "nhwc")],
)
def test_seams_between_tiles_groups_and_chunks(
    standin: ModuleType, op: str, m: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "CHUNKS_MIB", (SMALLEST,))
    spec = ConvSpec.parse(f"{op} n3c4 13x15 k6 3x3 p0:3,5 g2 conv {layout} f64")
    pair = operands(spec)
    result = testing.run(prepare(spec, Config(m=m, mib=SMALLEST)), *pair, gpu())
    assert testing.relative_error(result, testing.reference(spec, *pair)) < 1e-12


@pytest.mark.parametrize("size", ["8x8", "8x6", "7x9"])
def test_results_of_every_alignment(standin: ModuleType, size: str) -> None:
    """Rows of results that are written four, two or one at a time, and tiles that reach beyond them."""
    spec = ConvSpec.parse(f"fprop n2c3 {size} k3 3x3 p1 corr f32")
    pair = operands(spec)
    assert testing.relative_error(testing.run(prepare(spec), *pair, gpu()), testing.reference(spec, *pair)) < 2e-6


@pytest.mark.parametrize(("taps", "m", "most"), [(3, 2, 5e-7), (3, 4, 2e-6), (3, 6, 2e-5), (5, 2, 3e-6)])
def test_float32_errs_as_its_points_promise(standin: ModuleType, taps: int, m: int, most: float) -> None:
    spec = ConvSpec.parse(f"fprop n1c64 12x12 k4 {taps}x{taps} p1 f32")
    pair = operands(spec)
    result = testing.run(prepare(spec, Config(m=m, mib=32)), *pair, gpu())
    error = testing.relative_error(result, testing.reference(spec, *pair))
    assert error < most < tolerance("f32", spec.reduction_length, ONE.tags)


def test_products_are_strict_whatever_the_math_mode(standin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUPY_TF32 would have it, float32 products lose 13 bits."""
    from cupy_backends.cuda.libs import cublas  # the stand-in's

    monkeypatch.setattr(cublas, "getMathMode", _keeping(cublas, cublas.CUBLAS_TF32_TENSOR_OP_MATH))
    spec = ConvSpec.parse("fprop n1c32 8x8 k8 3x3 p1 f32")
    pair = operands(spec)
    result = testing.run(prepare(spec, Config(m=2, mib=32)), *pair, gpu())
    assert testing.relative_error(result, testing.reference(spec, *pair)) < 1e-6


def _keeping(cublas: ModuleType, mode: int) -> object:
    """`getMathMode` of a handle that somebody set to `mode`."""
    handles: set[int] = set()
    get = cublas.getMathMode

    def ask(handle: int) -> int:
        if handle not in handles:
            handles.add(handle)
            cublas.setMathMode(handle, mode)
        return int(get(handle))

    return ask


def test_bound_filters_are_transformed_once(standin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    launch = Module.launch

    def record(self: Module, kernel: str, *rest: object, **more: object) -> None:
        launched.append(kernel)
        launch(self, kernel, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Module, "launch", record)
    spec = ConvSpec.parse("fprop n1c2 8x8 k3 3x3 p1 f32 fixed")
    built, pair = prepare(spec, Config(m=4, mib=32)), operands(spec)
    free = testing.run(built, *pair, gpu())
    assert launched == ["filter_tiles", "data_tiles", "result_tiles"]
    bound = built.runner.bind(standin.asarray(pair[1]))
    del launched[:]
    data, out = standin.asarray(pair[0]), standin.empty(spec.result_shape, np.float32)
    for _ in range(2):
        bound(data, out, place_of(gpu()).workspace())
    assert launched == ["data_tiles", "result_tiles"] * 2
    assert out.get().tobytes() == free.tobytes()


@pytest.mark.parametrize("op", list(Op))
def test_a_chunk_stays_below_its_cap(standin: ModuleType, op: Op) -> None:
    spec = ConvSpec.parse(f"{op} n64c128 56x56 k256 3x3 p1 f32")
    for config in ONE.configs(spec, gpu()):
        filters = (int(config["m"]) + 2) ** 2 * 128 * 256 * 4
        assert ONE.workspace_bytes(spec, gpu(), config) - filters <= int(config["mib"]) << 20
    assert {config["mib"] for config in ONE.configs(spec, gpu())} == set(CHUNKS_MIB)


def test_small_problems_are_one_chunk(standin: ModuleType) -> None:
    spec = ConvSpec.parse("fprop n1c8 14x14 k8 3x3 p1 f32")
    configs = ONE.configs(spec, gpu())
    assert [config["m"] for config in configs] == list(TILES[3])
    assert ONE.workspace_bytes(spec, gpu(), configs[0]) < 1 << 18


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fprop n1c2 9x9 k2 3x5", "needs 3x3 or 5x5 filters, got (3, 5)"),
        ("fprop n1c2 9x9 k2 7x7", "needs 3x3 or 5x5 filters, got (7, 7)"),
        ("fprop n1c2 9x9 k2 3x3 s1,2", "needs stride 1, got (1, 2)"),
        ("dgrad n1c2 9x9 k2 3x3 d2", "needs dilation 1, got (2, 2)"),
        ("fprop n1c2 9x9x9 k2 3x3x3", "does rank 2, got 3"),
        ("fprop n1c2 9x9 k2 3x3 f16", "does f32 or f64, got f16"),
    ],
)
def test_refusals_say_what_came(standin: ModuleType, text: str, sentence: str) -> None:
    assert ONE.why_not(ConvSpec.parse(text), gpu()) == sentence


def test_what_is_offered_is_not_refused(standin: ModuleType) -> None:
    for op, case in product(Op, ("n1c2 9x9 k2 5x5", "n8c64 56x56 k64 3x3 p1", "n1c1 3x3 k1 3x3")):
        spec = ConvSpec.parse(f"{op} {case}")
        offered = ONE.configs(spec, gpu())
        assert offered
        assert len(set(offered)) == len(offered)
        assert all(ONE.why_not(spec, gpu(), config) is None for config in offered)
    assert "knows m of 2" in str(ONE.why_not(ConvSpec.parse("fprop n1c2 9x9 k2 5x5"), gpu(), Config(m=4, mib=32)))
    assert "knows mib" in str(ONE.why_not(ConvSpec.parse("fprop n1c2 9x9 k2 3x3"), gpu(), Config(m=4, mib=1)))


def test_graphs_cannot_capture_it() -> None:
    assert not ONE.capturable, "CuPy refuses cuBLAS while a stream is captured"
