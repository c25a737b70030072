"""The public functions on a GPU's arrays: where they run, what they give back, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import dispatch, places, testing
from autoconv.device import Device, cpu, find_device
from autoconv.errors import InvalidSpec, InvalidType, NoImplementation
from autoconv.evidence import Choice, Config, Measurement
from autoconv.implementation import Context, Implementation
from autoconv.planning import Runner, Workspace
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec, Op

pytestmark = pytest.mark.usefixtures("engine")


class Sum(Implementation):
    """The definition in CuPy's functions, with as much workspace as `extra` says."""

    name = "test.sum"
    devices = frozenset({"cuda"})
    layouts = frozenset({"nchw", "nhwc", "chwn"})
    tags = frozenset({"direct"})
    extra = 0
    seconds = 1e-3
    ready = True  # else it has to be compiled

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return self.seconds

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return self.extra

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        if not (self.ready or context.may_compile):
            raise autoconv.BackendMissing("not compiled yet")
        return SumRunner(spec, self.extra, type(self))


class Greedy(Sum):
    """Estimated to be faster, but needs memory."""

    name = "test.greedy"
    extra = 1 << 20
    seconds = 1e-4


class Library(Sum):
    """Cannot be captured."""

    name = "test.library"
    capturable = False
    seconds = 1e-5


class SumRunner(Runner):
    """Checks what it is promised, and sums by tap."""

    calls: list[str]

    def __init__(self, spec: ConvSpec, extra: int, kind: type[Sum]) -> None:
        import cupy

        self.spec, self.extra, self.kind, self.cupy = spec, extra, kind, cupy

    def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
        spec, cupy = self.spec, self.cupy
        CALLS.append((self.kind.name, cupy.cuda.runtime.getDevice()))
        for array in (a, b, out):
            assert type(array) is cupy.ndarray
            assert array.data.ptr % 16 == 0
            assert array.data.device_id == cupy.cuda.runtime.getDevice()
        if self.kind.capturable is False and cupy.cuda.get_current_stream().is_capturing():
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        scratch = workspace.take(self.extra)
        scratch[...] = 0
        _sum_into(spec, a, b, out, cupy)


def _sum_into(spec: ConvSpec, a: Any, b: Any, out: Any, cupy: Any) -> None:
    """fprop, dgrad and wgrad of ungrouped problems, one tap after the other."""
    image = a if spec.op is not Op.DGRAD else cupy.zeros(spec.input_shape, a.dtype)
    pads = spec.padding
    padded = cupy.pad(image, ((0, 0), (0, 0), *pads))
    total = out if spec.op is not Op.DGRAD else padded
    if spec.op is not Op.DGRAD:
        out[...] = 0
    for tap in np.ndindex(*spec.kernel):
        axes = zip(tap, spec.dilation, spec.stride, spec.output_spatial, strict=True)
        window = (..., *(slice(t * d, t * d + (p - 1) * s + 1, s) for t, d, s, p in axes))
        place = (..., *(k - 1 - t if spec.flip else t for t, k in zip(tap, spec.kernel, strict=True)))
        if spec.op is Op.FPROP:
            total += (padded[window][:, None] * _column(b[place], spec.rank)).sum(axis=2)
        elif spec.op is Op.DGRAD:
            padded[window] += (a[:, :, None] * _column(b[place], spec.rank)).sum(axis=1)
        else:
            out[place] = (b[:, :, None] * padded[window][:, None]).sum(axis=(0, *range(3, spec.rank + 3)))
    if spec.op is Op.DGRAD:
        inner = (..., *(slice(lo, lo + n) for (lo, _), n in zip(pads, spec.in_spatial, strict=True)))
        out[...] = padded[inner]


def _column(taps: Any, rank: int) -> Any:
    return taps.reshape(*taps.shape, *[1] * rank)


CALLS: list[tuple[str, int]] = []


@pytest.fixture
def engine(standin: Any) -> Iterator[None]:
    CALLS.clear()
    one = Sum()
    autoconv.register(one)
    with autoconv.settings(on_miss="heuristic", require=("test",)):
        yield
    for name in ("test.sum", "test.greedy", "test.library"):
        default_registry().unregister(name)


def pair(rng: np.random.Generator, dtype: str = "f4") -> tuple[Any, Any]:
    return rng.standard_normal((2, 3, 8, 9)).astype(dtype), rng.standard_normal((4, 3, 3, 3)).astype(dtype)


def expected(x: Any, w: Any, **keywords: Any) -> Any:
    with autoconv.settings(require=("numpy.direct",)):
        return autoconv.conv2d(x, w, **keywords)


def test_results_stay_on_the_gpu(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    for _ in range(3):
        y = autoconv.conv2d(gx, gw, border_mode="half", subsample=2)
        assert type(y) is standin.ndarray
        np.testing.assert_allclose(y.get(), expected(x, w, border_mode="half", subsample=2), rtol=1e-4, atol=1e-5)
    assert CALLS == [("test.sum", 0)] * 3
    dx = autoconv.conv2d_grad_wrt_inputs(y, gw, x.shape, border_mode="half", subsample=2)
    dw = autoconv.conv2d_grad_wrt_weights(gx, y, w.shape, border_mode="half", subsample=2)
    with autoconv.settings(require=("numpy.direct",)):
        host = y.get()
        keywords: dict[str, Any] = {"border_mode": "half", "subsample": 2}
        np.testing.assert_allclose(
            dx.get(), autoconv.conv2d_grad_wrt_inputs(host, w, x.shape, **keywords), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            dw.get(), autoconv.conv2d_grad_wrt_weights(x, host, w.shape, **keywords), rtol=1e-4, atol=1e-4
        )


def test_a_repeated_call_asks_nobody(standin: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    gx, gw = map(standin.asarray, pair(rng))
    first = autoconv.conv2d(gx, gw)
    monkeypatch.setattr(dispatch, "plan_for", None)
    assert (autoconv.conv2d(gx, gw).get() == first.get()).all()


def test_memory_format_dtype_bias_and_out(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    place = places.place_of(find_device("cuda:0"))
    gl, gw = place.from_host(last), standin.asarray(w)
    bias = rng.standard_normal(4).astype("f4")
    want = expected(x, w) + bias.reshape(-1, 1, 1)
    y = autoconv.conv2d(gl, gw, bias=standin.asarray(bias))
    assert y.strides == expected(last, w).strides
    np.testing.assert_allclose(y.get(), want, rtol=1e-4, atol=1e-5)
    assert autoconv.conv2d(gl, gw.astype("f8")).dtype == np.float64
    out = standin.full((2, 4, 12, 14), np.nan, np.float32)
    for target in (out[:, :, ::2, ::2], out[:, :, :6, :7], standin.empty((2, 4, 6, 7), np.float32)):
        assert autoconv.conv2d(standin.asarray(x), gw, bias=standin.asarray(bias), out=target) is target
        np.testing.assert_allclose(target.get(), want, rtol=1e-4, atol=1e-5)


def test_strides_alignment_and_overlap(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    memory = standin.zeros(2 * x.size + 8, np.float32)
    for start in (0, 1, 2, 4):
        view = memory[start : start + x.size].reshape(x.shape)
        view[...] = standin.asarray(x)
        np.testing.assert_allclose(
            autoconv.conv2d(view, standin.asarray(w)).get(), expected(x, w), rtol=1e-4, atol=1e-5
        )
    turned = standin.asarray(x[:, :, ::-1, ::-1].copy())[:, :, ::-1, ::-1]
    np.testing.assert_allclose(autoconv.conv2d(turned, standin.asarray(w)).get(), expected(x, w), rtol=1e-4, atol=1e-5)
    shared = memory[: 2 * 3 * 72].reshape(2, 3, 8, 9)
    shared[...] = standin.asarray(x)
    out = memory[: 2 * 3 * 72].reshape(2, 3, 8, 9)
    square = rng.standard_normal((3, 3, 3, 3)).astype("f4")
    autoconv.conv2d(shared, standin.asarray(square), border_mode="half", out=out)
    np.testing.assert_allclose(out.get(), expected(x, square, border_mode="half"), rtol=1e-4, atol=1e-5)


def test_every_gpu_has_its_own_plan(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    results = []
    for index in (0, 1, 1, 0):
        with standin.cuda.Device(index):
            gx, gw = map(standin.asarray, (x, w))
        results.append(autoconv.conv2d(gx, gw))  # device 0 is the current one
        assert results[-1].data.device_id == index
        assert standin.cuda.runtime.getDevice() == 0
    assert [index for _, index in CALLS] == [0, 1, 1, 0]
    for result in results:
        np.testing.assert_allclose(result.get(), expected(x, w), rtol=1e-4, atol=1e-5)


def test_homes_do_not_mix(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    with standin.cuda.Device(1):
        there = standin.asarray(w)
    good = autoconv.conv2d(gx, gw)
    for operands, words in (
        ((x, gw), r"input is a NumPy array, filters are on cuda:0"),
        ((gx, w), r"input is on cuda:0, filters are a NumPy array"),
        ((gx, there), r"input is on cuda:0, filters are on cuda:1"),
    ):
        for _ in range(2):
            with pytest.raises(InvalidType, match=words):
                autoconv.conv2d(*operands)
    with pytest.raises(InvalidType, match="output_grad is a NumPy array, filters are on cuda:0"):
        autoconv.conv2d_grad_wrt_inputs(good.get(), gw, x.shape)
    plan = autoconv.plan(ConvSpec.fprop(x.shape, w.shape), device="cuda:0")
    for arguments, words in (
        ({"a": x, "b": gw}, "input is a NumPy array, filters are on cuda:0"),
        ({"a": gx, "b": there}, "input is on cuda:0, filters are on cuda:1"),
        ({"a": gx, "b": gw, "bias": np.ones(4, "f4")}, "bias is a NumPy array"),
        ({"a": gx, "b": gw, "out": good.get()}, "out is a NumPy array"),
        ({"a": there, "b": there}, "input is on cuda:1, but the plan is for cuda:0"),
        ({"a": gx, "b": gw, "out": [1.0]}, "out must be a CuPy array or have __dlpack__, got list"),
    ):
        with pytest.raises(InvalidType, match=words):
            plan(**arguments)
    with autoconv.settings(require=()), pytest.raises(InvalidType, match="input is on cuda:0, but the plan is for the"):
        autoconv.plan(ConvSpec.fprop(x.shape, w.shape))(gx, gw)
    with pytest.raises(InvalidSpec, match="out must have shape"):
        plan(gx, gw, out=gx)
    with pytest.raises(InvalidType, match="int32"):
        autoconv.conv2d(gx.astype("i4"), gw)


class Foreign:
    """An array of another library's on a GPU: what a torch tensor looks like from outside."""

    def __init__(self, array: Any, log: list[str]) -> None:
        self.array, self.log, self.shape = array, log, array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.array.data.device_id

    def __dlpack__(self, *, stream: int) -> Any:
        self.log.append("read")
        return self.array

    def __array_namespace__(self) -> Any:
        from types import SimpleNamespace

        def from_dlpack(array: Any) -> Foreign:
            self.log.append("wait")
            return Foreign(array, self.log)

        return SimpleNamespace(from_dlpack=from_dlpack)


def test_arrays_of_other_libraries(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    log: list[str] = []
    with standin.cuda.Device(1):
        fx, fw, out = (Foreign(standin.asarray(one), log) for one in (x, w, np.zeros((2, 4, 6, 7), "f4")))
    y = autoconv.conv2d(fx, fw)
    assert isinstance(y, Foreign)
    assert y.array.data.device_id == 1
    np.testing.assert_allclose(y.array.get(), expected(x, w), rtol=1e-4, atol=1e-5)
    log.clear()
    assert autoconv.conv2d(fx, fw, out=out) is out
    np.testing.assert_allclose(out.array.get(), expected(x, w), rtol=1e-4, atol=1e-5)
    assert log[-1] == "wait"  # the other library's stream waits for ours before it looks at `out`
    with pytest.raises(InvalidType, match=r"input is on cuda:1, filters are a NumPy array"):
        autoconv.conv2d(fx, w)


def test_bound_filters(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    bound = autoconv.plan(ConvSpec.fprop(x.shape, w.shape), device="cuda").bind(gw)
    gw.fill(0)  # the plan has its own
    for out in (None, standin.empty((2, 4, 6, 7), np.float32)):
        y = bound(gx, out=out)
        np.testing.assert_allclose(y.get(), expected(x, w), rtol=1e-4, atol=1e-5)
    row = np.array([1.0, 2.0, 1.0], "f4")
    separable = np.multiply.outer(row, row)[None, None] * np.ones((4, 3, 1, 1), "f4")
    bound = autoconv.plan(ConvSpec.fprop(x.shape, w.shape), device="cuda").bind(standin.asarray(separable))
    assert bound.plan.spec.rank1
    np.testing.assert_allclose(bound(gx).get(), expected(x, separable), rtol=1e-4, atol=1e-4)


def test_nothing_to_compute(standin: Any) -> None:
    x, w = standin.zeros((0, 3, 8, 9), np.float32), standin.ones((4, 3, 3, 3), np.float32)
    assert autoconv.conv2d(x, w).shape == (0, 4, 6, 7)
    dw = autoconv.conv2d_grad_wrt_weights(x, standin.zeros((0, 4, 6, 7), np.float32), w.shape)
    assert dw.shape == w.shape
    assert not dw.get().any()
    assert not CALLS


def test_other_functions(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    line = autoconv.causal_conv1d(gx[:, :, 0], gw[:, :, 0])
    with autoconv.settings(require=("numpy.direct",)):
        np.testing.assert_allclose(line.get(), autoconv.causal_conv1d(x[:, :, 0], w[:, :, 0]), rtol=1e-4, atol=1e-5)
        want = autoconv.conv2d_transpose(x, w.transpose(1, 0, 2, 3).copy(), input_dilation=2)
    found = autoconv.conv2d_transpose(gx, standin.asarray(w.transpose(1, 0, 2, 3).copy()), input_dilation=2)
    np.testing.assert_allclose(found.get(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_signal(standin: Any, rng: np.random.Generator, mode: str, boundary: str) -> None:
    from autoconv import signal

    image, kernel = rng.standard_normal((11, 13)), rng.standard_normal((4, 3))
    gi, gk = map(standin.asarray, (image, kernel))
    for name in ("convolve2d", "correlate2d"):
        function = getattr(signal, name)
        with autoconv.settings(require=("numpy.direct",)):
            want = function(image, kernel, mode, boundary, fillvalue=1.5)
        for _ in range(2):
            found = function(gi, gk, mode, boundary, fillvalue=1.5)
            assert type(found) is standin.ndarray
            np.testing.assert_allclose(found.get(), want, rtol=1e-9, atol=1e-9)
    with autoconv.settings(require=("numpy.direct",)):
        want = signal.bind(kernel, mode, boundary)(np.stack([image, -image]))
    blur = signal.bind(gk, mode, boundary)
    np.testing.assert_allclose(blur(standin.stack([gi, -gi])).get(), want, rtol=1e-9, atol=1e-9)


def test_signal_does_not_mix_homes(standin: Any) -> None:
    from autoconv import signal

    with pytest.raises(InvalidType, match="in1 is on cuda:0, in2 is a NumPy array"):
        signal.convolve2d(standin.ones((5, 5)), np.ones((3, 3)))


# What is decided --------------------------------------------------------------------------------------


def test_implementations_for_other_devices_are_no_refusals() -> None:
    gpu = find_device("cuda:0")
    spec = ConvSpec.parse(testing.SMOKE["plain"])
    with autoconv.settings(require=()):
        assert not any(name.startswith("numpy.") for name in autoconv.explain(spec, "cuda:0").refusals)
        assert not any(name.startswith("test.") for name in autoconv.explain(spec).refusals)
    with autoconv.settings(require=("numpy.direct",)), pytest.raises(NoImplementation) as caught:
        dispatch.plan_for(spec, gpu)
    assert caught.value.refusals["numpy.direct"] == "runs on cpu, not on cuda"
    assert "numpy.im2col" not in caught.value.refusals
    assert "not among settings" in caught.value.refusals["test.sum"]


def test_workspace_is_capped_by_the_card() -> None:
    gpu, settings = find_device("cuda:0"), autoconv.settings.current()
    assert settings.limits("f32").max_workspace is settings.limits("f32", cpu()).max_workspace is None
    assert gpu.workspace_cap == gpu.memory // 8
    assert settings.limits("f32", gpu).max_workspace == gpu.memory // 8
    spec = ConvSpec.parse("fprop n1c3 8x9 k4 3x3")
    default_registry().register(greedy := Greedy())
    greedy_bytes = Greedy.extra
    try:
        assert dispatch.plan_for(spec, gpu).implementation == greedy.name
        Greedy.extra = gpu.memory // 8 + 1
        with autoconv.settings(verbose=0, strict_nan=True):
            assert dispatch.plan_for(spec, gpu).implementation == "test.sum"
        with autoconv.settings(max_workspace=gpu.memory):
            assert dispatch.plan_for(spec, gpu).implementation == greedy.name
    finally:
        Greedy.extra = greedy_bytes


def remember(spec: ConvSpec, device: Device, implementation: Implementation, seconds: float) -> None:
    row = Measurement(
        str(spec), device.fingerprint, Choice(implementation.name, 1), "ok", median_s=seconds,
        samples=(seconds,), race="race", workspace_bytes=implementation.workspace_bytes(spec, device, Config()),
        measured_at=1.0, error=1e-7,
    )  # fmt: skip
    dispatch.current_store().add([row])


@pytest.mark.parametrize("remembered", [False, True])
def test_out_of_memory_falls_to_who_needs_less(standin: Any, rng: np.random.Generator, remembered: bool) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    gpu, spec = find_device("cuda:0"), ConvSpec.fprop(x.shape, w.shape)
    default_registry().register(Greedy())
    if remembered:
        remember(spec, gpu, Greedy(), 1e-5)
        remember(spec, gpu, Sum(), 1e-4)
    plan = autoconv.plan(spec, "cuda:0")
    bound = autoconv.plan(spec, "cuda:0").bind(gw)
    assert plan.implementation == bound.plan.implementation == "test.greedy"
    pool = standin.get_default_memory_pool()
    pool.free_all_blocks()
    autoconv.conv2d(gx, gw)
    pool.free_all_blocks()
    pool.set_limit(pool.used_bytes() + (1 << 18))
    CALLS.clear()
    takes_over = "test.greedy takes 1048576 bytes of workspace .* test.sum, which takes 0, runs instead"
    results = []
    for call in (lambda: plan(gx, gw), lambda: bound(gx)):
        with pytest.warns(RuntimeWarning, match=takes_over):
            results.append(call())
    results.append(autoconv.conv2d(gx, gw))  # the same plan, which has warned
    assert CALLS.count(("test.sum", 0)) == 3
    for result in results:
        np.testing.assert_allclose(result.get(), expected(x, w), rtol=1e-4, atol=1e-5)
    assert ("test.sum", 0) in CALLS
    pool.set_limit(0)
    CALLS.clear()
    plan(gx, gw)
    assert CALLS == [("test.greedy", 0)]  # there is memory again


def test_out_of_memory_with_nobody_left(standin: Any, rng: np.random.Generator) -> None:
    gx, gw = map(standin.asarray, pair(rng))
    default_registry().register(Greedy())
    with autoconv.settings(require=("test.greedy",)):
        plan = autoconv.plan(ConvSpec.fprop(gx.shape, gw.shape), "cuda:0")
        pool = standin.get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(pool.used_bytes() + (1 << 18))
        with pytest.raises(MemoryError, match="1,048,576 bytes"):
            plan(gx, gw)


# Graphs ---------------------------------------------------------------------------------------------


def capture(standin: Any, work: Any) -> tuple[Any, Any]:
    stream = standin.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        result = work()
        return stream.end_capture(), result


def test_a_graph_replays_on_new_values(standin: Any, rng: np.random.Generator) -> None:
    """Strided operands and a greedy implementation: copies and workspace must outlive the call."""
    x, w = pair(rng)
    default_registry().register(Greedy())
    turned = standin.asarray(x[:, :, ::-1].copy())[:, :, ::-1]
    gw = standin.asarray(w)
    target = standin.full((2, 4, 6, 14), np.nan, np.float32)[..., ::2]
    autoconv.conv2d(turned, gw)
    graph, y = capture(standin, lambda: autoconv.conv2d(turned, gw, out=target))
    assert y is target
    assert np.isnan(y.get()).all()
    for _ in range(3):
        other = rng.standard_normal(x.shape).astype("f4")
        turned[...] = standin.asarray(other)
        rubbish = [standin.full(size, np.nan, np.float32) for size in (432, 336, 1 << 18, 1 << 18)]
        graph.launch()
        np.testing.assert_allclose(y.get(), expected(other, w), rtol=1e-4, atol=1e-5)
        del rubbish


def test_a_capture_shares_scratch_with_itself_alone(standin: Any) -> None:
    workspace = places.place_of(find_device("cuda:0")).workspace()

    def two_calls() -> list[int]:
        found = []
        for _ in range(2):
            mark = workspace.mark()
            found += [workspace.take_address(1000), workspace.take_address(500)]
            workspace.release(mark)
        return found

    addresses = [capture(standin, two_calls)[1] for _ in range(2)]
    for one in addresses:
        assert one[:2] == one[2:]  # calls of one graph run one after another
        assert len(set(one)) == 2
    assert not set(addresses[0]) & set(addresses[1])  # two graphs may run at once
    assert not set(two_calls()) & {*addresses[0], *addresses[1]}


def test_a_capture_neither_tunes_nor_compiles(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    with autoconv.settings(on_miss="tune"):
        graph, y = capture(standin, lambda: autoconv.conv2d(gx, gw))
        graph.launch()
        np.testing.assert_allclose(y.get(), expected(x, w), rtol=1e-4, atol=1e-5)
        assert not autoconv.options.current_scope().calls, "what a capture had to make do with is not kept"
        Sum.ready = False
        try:
            with pytest.raises(NoImplementation, match=r"stream is being captured.*call it once before") as caught:
                capture(standin, lambda: autoconv.conv2d(gx, gw))
            assert caught.value.refusals["test.sum"] == "not compiled yet"
        finally:
            Sum.ready = True


def test_kernels_are_not_compiled_in_a_capture(standin: Any) -> None:
    gpu, spec = find_device("cuda:0"), ConvSpec.parse(testing.SMOKE["plain"])
    direct = default_registry().get("cuda.direct")
    choice = Choice(direct.name, direct.version, direct.configs(spec, gpu)[0])

    def build() -> None:
        with pytest.raises(autoconv.BackendMissing, match="nothing is compiled while a stream is captured"):
            default_registry().build(spec, gpu, choice)

    capture(standin, build)


def test_what_cannot_be_captured_is_replaced_within_the_capture(standin: Any, rng: np.random.Generator) -> None:
    x, w = pair(rng)
    gx, gw = map(standin.asarray, (x, w))
    default_registry().register(Library())
    plan = autoconv.plan(ConvSpec.fprop(x.shape, w.shape), "cuda:0")
    bound = plan.bind(gw)
    autoconv.conv2d(gx, gw)
    assert plan.implementation == "test.library"
    for call in (lambda: plan(gx, gw), lambda: bound(gx), lambda: autoconv.conv2d(gx, gw)):
        CALLS.clear()
        graph, y = capture(standin, call)
        graph.launch()
        np.testing.assert_allclose(y.get(), expected(x, w), rtol=1e-4, atol=1e-5)
        assert {name for name, _ in CALLS} == {"test.sum"}
        CALLS.clear()
        call()
        assert {name for name, _ in CALLS} == {"test.library"}


# The suite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "strided", "no_batch", "volume"])
def test_the_suite_runs_on_a_gpu(case: str) -> None:
    for spec in testing.problems(testing.CASES[case]):
        assert testing.check_case(Sum(), spec, device=find_device("cuda:1")) is None


class Astray(Sum):
    """One fault after the other, to see that the suite finds it there."""

    name = "test.astray"
    fault = ""

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        runner, fault = super().prepare(spec, config, context), self.fault

        class Faulty(Runner):
            def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
                runner(a, b, out, workspace)
                import cupy

                beyond = cupy.ndarray((4,), np.uint8, cupy.cuda.MemoryPointer(out.data.mem, 0) + 0)
                if fault == "ring":
                    at = out.data.ptr - out.data.mem.ptr - 4
                    beyond = cupy.ndarray((4,), np.uint8, cupy.cuda.MemoryPointer(out.data.mem, at))
                    beyond[...] = 1
                elif fault == "operand":
                    a += 1
                elif fault == "value":
                    out[0, 0, 0, 0] += 1
                elif fault == "memory":
                    cupy.empty(1 << 20, np.uint8)
                elif fault == "workspace":
                    piece = workspace.take(100)
                    at = piece.data.ptr - piece.data.mem.ptr + 100
                    cupy.ndarray((4,), np.uint8, cupy.cuda.MemoryPointer(piece.data.mem, at))[...] = 1

        return Faulty()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("ring", "writes outside the arrays it was given"),
        ("operand", "changes an operand"),
        ("value", "result is off by"),
        ("memory", r"uses \d+ bytes of workspace, declares 0"),
        ("workspace", "writes outside its workspace"),
    ],
)
def test_the_suite_fails_on_a_gpu(fault: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Astray, "fault", fault)
    with pytest.raises(AssertionError, match=sentence):
        testing.check_case(Astray(), testing.SMOKE["plain"], device=find_device("cuda:0"))
