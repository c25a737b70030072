"""Calls on the device: streams, threads, graphs, bound filters, out=, and what a decided call costs the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import pytest

import autoconv
from autoconv import dispatch
from autoconv.device import Device
from autoconv.places import Place
from tests.gpu.conftest import Problem
from tests.gpu.test_conformance import IDS

pytestmark = pytest.mark.gpu

SPEC = "fprop n2c8 14x13 k16 3x3 p1 corr"
TINY = "fprop n1c1 8x8 k1 3x3 corr"
Make = Callable[[str], Problem]
UNTUNED: dict[str, Any] = {"on_miss": "heuristic"}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_plans_on_cupy_arrays(problem: Make, gpu: Device, op: str, layout: str) -> None:
    one = problem(f"{SPEC.replace('fprop', op)} {layout}")
    with autoconv.settings(**UNTUNED):
        plan = autoconv.plan(one.spec, device=gpu.name)
        result = plan(one.a, one.b)
        one.judge(result)
        assert isinstance(result, one.place.xp.ndarray)
        one.renew()
        assert plan(one.a, one.b, out=result) is result
        one.judge(result)


def test_public_functions_follow_their_operands(problem: Make) -> None:
    one = problem(SPEC)
    with autoconv.settings(**UNTUNED):
        y = autoconv.conv2d(one.a, one.b, border_mode=1, filter_flip=False)
        one.judge(y)
        one.judge(autoconv.conv2d(one.a[:, :, ::-1][:, :, ::-1], one.b, border_mode=1, filter_flip=False))
        bias = one.place.xp.ones(16, np.float32)
        one.judge(autoconv.conv2d(one.a, one.b, border_mode=1, filter_flip=False, bias=bias) - 1)
    with pytest.raises(autoconv.InvalidType, match="one device"):
        autoconv.conv2d(one.a, one.host[1])


def test_bound_filters(problem: Make, gpu: Device) -> None:
    one = problem(SPEC)
    with autoconv.settings(**UNTUNED):
        bound = autoconv.plan(one.spec, device=gpu.name).bind(one.b)
    kept = one.host[1]
    one.b[...] = 0
    out = bound(one.a)
    one.host = (one.host[0], kept)
    one.judge(out)
    assert bound(one.a, out=out) is out
    one.judge(out)


def test_work_goes_to_the_callers_stream(problem: Make, gpu: Device, place: Place) -> None:
    """Two streams at once, each with its own operands, while a third thing keeps the device busy."""
    cuda = place.xp.cuda
    problems = [problem(SPEC) for _ in range(2)]
    streams = [cuda.Stream(non_blocking=True) for _ in problems]
    cuda.Device(gpu.index).synchronize()  # the operands were made on another stream
    results = []
    with autoconv.settings(**UNTUNED):
        plan = autoconv.plan(SPEC, device=gpu.name)
        for one, stream in zip(problems, streams, strict=True):
            with stream:
                results.append([plan(one.a, one.b) for _ in range(20)])
    for one, stream, made in zip(problems, streams, results, strict=True):
        stream.synchronize()
        for result in made:
            one.judge(result)


def test_one_plan_in_many_threads(problem: Make, gpu: Device, place: Place) -> None:
    problems = [problem(SPEC) for _ in range(4)]
    place.synchronize()
    with autoconv.settings(**UNTUNED):
        plan = autoconv.plan(SPEC, device=gpu.name)

    def work(one: Problem) -> list[Any]:
        with place.xp.cuda.Device(gpu.index), place.xp.cuda.Stream(non_blocking=True) as stream:
            made = [plan(one.a, one.b) for _ in range(20)]
            stream.synchronize()
            return made

    with ThreadPoolExecutor(len(problems)) as pool:
        for one, made in zip(problems, pool.map(work, problems), strict=True):
            for result in made:
                one.judge(result)


@pytest.mark.parametrize("name", IDS)
def test_capture_and_replay(name: str, problem: Make, gpu: Device, place: Place) -> None:
    """A graph computes with what its buffers hold when it is launched, whatever else was done since it was recorded."""
    one = autoconv.registry.default_registry().get(name)
    text = next((text for text in (SPEC, SPEC.replace("3x3", "1x1"), f"{SPEC} f64") if one.why_not(
        autoconv.ConvSpec.parse(text), gpu) is None), None)  # fmt: skip
    if text is None or not one.capturable:
        pytest.skip("refuses these problems" if text is None else "cannot be captured")
    case = problem(text)
    cuda = place.xp.cuda
    with autoconv.settings(require=(name,), **UNTUNED):
        plan = autoconv.plan(case.spec, device=gpu.name)
    chain = [autoconv.registry.default_registry().get(link.implementation) for link in plan.choice.chain()]
    if not all(link.capturable for link in chain):
        pytest.skip("its child cannot be captured")
    out = plan(case.a, case.b)
    place.synchronize()
    stream = cuda.Stream(non_blocking=True)
    with stream:
        plan(case.a, case.b, out=out)
        stream.synchronize()
        stream.begin_capture()
        plan(case.a, case.b, out=out)
        graph = stream.end_capture()
    for _ in range(2):
        case.renew()
        plan(case.a, case.b)  # takes and gives back scratch memory between two launches
        out[...] = np.nan
        place.synchronize()
        graph.launch(stream)
        stream.synchronize()
        case.judge(out)


def test_nothing_is_tuned_while_a_stream_is_captured(problem: Make, gpu: Device, place: Place) -> None:
    one = problem(SPEC)
    stream = place.xp.cuda.Stream(non_blocking=True)
    out = place.empty(one.spec.result_shape, "nchw", one.spec.np_dtype)
    place.synchronize()
    with stream:
        stream.begin_capture()
        try:
            autoconv.conv2d(one.a, one.b, border_mode=1, filter_flip=False, out=out)
        finally:
            graph = stream.end_capture()
    assert dispatch.current_store().rows(str(one.spec), gpu.fingerprint) == []
    graph.launch(stream)
    stream.synchronize()
    one.judge(out)


def test_what_a_decided_call_costs_the_host(
    problem: Make, gpu: Device, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed, not judged: a busy machine is no failure. The goal is 10 us."""
    one = problem(TINY)
    plan = autoconv.plan(one.spec, device=gpu.name)
    bound, out = plan.bind(one.b), plan(one.a, one.b)
    calls: dict[str, Callable[[], Any]] = {
        "conv2d": lambda: autoconv.conv2d(one.a, one.b, filter_flip=False),
        "plan": lambda: plan(one.a, one.b),
        "plan, out=": lambda: plan(one.a, one.b, out=out),
        "bound, out=": lambda: bound(one.a, out=out),
    }
    for name, call in calls.items():
        taken = []
        for _ in range(10):
            started = time.perf_counter()
            for _ in range(100):
                call()
            taken.append((time.perf_counter() - started) / 100)
            place.synchronize()
        with capsys.disabled():
            print(f"\n{name}: {1e6 * median(taken):.1f} us of the host's per call, by {plan.choice}", end="")
    one.judge(out)
