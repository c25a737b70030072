"""Races on a stand-in for a GPU: faults found by guards and in workers, what rows say, and what makes them stale."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

import autoconv
from autoconv import cuda_driver, dispatch
from autoconv.device import find_device
from autoconv.impls.cuda import _versions
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from autoconv.tuner.cuda_timing import SOURCE, EventSampler, Stopwatch
from autoconv.tuner.gpu_contention import GpuSentry
from tests.cuda import nvrtc
from tests.gpu import broken
from tests.gpu.test_tuning import race
from tests.standin.driver import Library

SPEC = ConvSpec.parse("fprop n1c2 6x5 k2 3x3 corr")
TIMED = ("ok", "partial", "suspect")


def test_candidates_are_timed_by_events_and_rows_keep_what_enqueueing_took(standin: ModuleType) -> None:
    rows = race(find_device("cuda:0"), isolation="none")
    good = rows["broken.gpu"]
    assert good.status in TIMED
    assert good.enqueue_s is not None
    assert good.enqueue_s > 0
    assert good.device == "cuda NVIDIA H200 / sm_90 / 132 multiprocessors / 139 GiB"


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_faults_on_the_device_are_their_own_rows_business(standin: ModuleType, isolation: str) -> None:
    with pytest.warns(RuntimeWarning, match="is wrong for"):
        rows = race(find_device("cuda:0"), broken.Beyond, broken.Wrong, broken.Greedy, isolation=isolation)
    assert {name: row.status for name, row in rows.items() if row.status not in TIMED} == {
        "broken.beyond": "wrong", "broken.wrong": "wrong", "broken.greedy": "oom",
    }  # fmt: skip
    assert rows["broken.beyond"].reason == "writes outside its result"
    assert rows["broken.gpu"].status in TIMED


def test_a_process_that_is_lost_costs_one_row(standin: ModuleType) -> None:
    rows = race(find_device("cuda:0"), broken.Wild, broken.Hidden)
    assert rows["broken.wild"].status == "crashed"
    assert rows["broken.gpu"].status in TIMED
    assert rows["broken.hidden"].workspace_bytes >= 100 << 20
    assert "beyond what it declares" in rows["broken.hidden"].reason


def test_the_pool_is_given_back_after_a_race(standin: ModuleType) -> None:
    race(find_device("cuda:0"), broken.Hidden, isolation="none")
    pool = standin.get_default_memory_pool()
    pool.free_all_blocks()
    assert pool.total_bytes() < 16 << 20


def test_samples_go_to_the_callers_stream(standin: ModuleType) -> None:
    watch, seen = Stopwatch(find_device("cuda:0")), []
    stream = standin.cuda.Stream(non_blocking=True)
    sampler = EventSampler(watch, lambda: seen.append(standin.cuda.get_current_stream()))
    with stream:
        assert sampler(1) > 0
    assert set(seen) == {stream}


def test_the_canary_sings_on_the_device(standin: ModuleType) -> None:
    device = find_device("cuda:1")
    sentry = GpuSentry(device)
    sentry.begin()
    sentry.begin_rounds()
    for _ in range(5):
        sentry.look()
        assert not sentry.spoilt()
    assert GpuSentry.quickest_s.pop(device) >= 1e-4, "a hundred thousand cycles of a gigahertz"


def test_gpus_of_one_kind_share_rows_and_another_driver_makes_them_stale(
    standin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"require": ("cupy.im2col",), "isolation": "none"}
    with autoconv.settings(**settings):
        (result,) = autoconv.tune([SPEC], device="cuda:0", budget_s=0.2, progress=False)
        assert result.decision is not None
        winner = result.decision.winner
        assert {"cupy", "cuda driver", "cuda runtime", "CUPY_TF32"} <= winner.environment.keys()
        assert default_registry().stale([winner]) == {}
    with autoconv.settings(on_miss="error", **settings):
        assert autoconv.plan(SPEC, device="cuda:1").source == "cache", "another GPU of the kind"
        monkeypatch.setenv("CUPY_TF32", "1")
        (changed,) = default_registry().stale([winner]).values()
        assert changed == "CUPY_TF32 0 -> 1"
        monkeypatch.delenv("CUPY_TF32")
        newer = Library([replace(gpu) for gpu in cuda_driver.load_library().gpus], version=13010)
        monkeypatch.setattr(cuda_driver, "driver", lambda: cuda_driver.read_driver(newer))
        _versions._fixed.cache_clear()
        try:
            (changed,) = default_registry().stale([winner]).values()
            assert changed == "cuda driver 12.8 -> 13.1"
            autoconv.options.forget_calls()
            assert autoconv.plan(SPEC, device="cuda:0").source == "cache", "stale, and the best that is known"
        finally:
            _versions._fixed.cache_clear()
    assert [miss.spec for miss in dispatch.current_store().misses()] in ([], [str(SPEC)])


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_the_kernel_that_holds_the_device_compiles(architecture: str) -> None:
    assert "hold" in nvrtc.compile_for(architecture, SOURCE, ("-std=c++17",)).kernels
