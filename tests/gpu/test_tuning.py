"""Races on the device: what is stored, what is found again, and what broken candidates cost."""

from __future__ import annotations

import json

import pytest

import autoconv
from autoconv import dispatch
from autoconv.cache import MemoryStore
from autoconv.device import Device
from autoconv.evidence import Limits, Measurement
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner
from autoconv.tuner.cuda_timing import EventSampler, Stopwatch
from tests.gpu import broken
from tests.gpu.conftest import Problem
from tests.gpu.test_calls import Make

pytestmark = pytest.mark.gpu

SPEC = "fprop n2c8 14x13 k16 3x3 p1 corr"


def race(gpu: Device, *kinds: type[broken.Good], isolation: str = "process") -> dict[str, Measurement]:
    """Rows by id of a race of broken implementations and the good one."""
    registry = Registry({kind.name: f"{kind.__module__}:{kind.__qualname__}" for kind in (broken.Good, *kinds)})
    tuner = Tuner(registry, MemoryStore(), isolation=isolation, seed=0)
    result = tuner.tune(ConvSpec.parse(SPEC), gpu, Limits(), budget_s=5)
    assert result.decision is not None
    return {row.choice.implementation: row for row in result.rows}


def test_a_race_is_remembered_with_its_evidence(problem: Make, gpu: Device) -> None:
    one = problem(SPEC)
    (result,) = autoconv.tune([one.spec], device=gpu.name, budget_s=5, progress=False)
    assert result.decision is not None
    winner = result.decision.winner
    assert winner.device == gpu.fingerprint
    assert winner.enqueue_s is not None
    assert 0 < winner.enqueue_s < 0.1
    assert winner.median_s is not None
    assert len(winner.samples) >= 1
    assert winner.environment["cupy"] == str(one.place.xp.__version__)
    assert {"cuda driver", "cuda runtime", "CUPY_TF32"} <= winner.environment.keys()
    remembered = dispatch.current_store().rows(str(one.spec), gpu.fingerprint)
    assert winner in remembered
    assert not [row for row in remembered if row.status in ("wrong", "crashed")]
    with autoconv.settings(on_miss="error"):
        plan = autoconv.plan(one.spec, device=gpu.name)
        one.judge(plan(one.a, one.b))
    assert plan.source == "cache"


def test_a_lost_context_costs_its_row_and_nothing_else(problem: Make, gpu: Device) -> None:
    rows = race(gpu, broken.Wild)
    assert rows["broken.wild"].status == "crashed"
    assert rows["broken.gpu"].status in ("ok", "partial", "suspect")
    one = problem(SPEC)
    assert float(one.a.sum()) == pytest.approx(float(one.host[0].sum()), rel=1e-3, abs=1e-2), "this process goes on"


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_wrong_answers_and_trespassing_are_found_on_the_device(gpu: Device, isolation: str) -> None:
    with pytest.warns(RuntimeWarning, match="is wrong for"):
        rows = race(gpu, broken.Beyond, broken.Wrong, isolation=isolation)
    assert rows["broken.beyond"].status == rows["broken.wrong"].status == "wrong"
    assert "outside its result" in rows["broken.beyond"].reason
    assert "error" in rows["broken.wrong"].reason


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_out_of_memory_excludes_a_candidate_and_gives_the_pool_back(problem: Make, gpu: Device, isolation: str) -> None:
    rows = race(gpu, broken.Greedy, isolation=isolation)
    assert rows["broken.greedy"].status == "oom"
    assert rows["broken.gpu"].status in ("ok", "partial", "suspect")
    pool = problem(SPEC).place.xp.get_default_memory_pool()
    pool.free_all_blocks()
    assert pool.total_bytes() < 64 << 20


def test_memory_that_was_not_declared_counts(gpu: Device) -> None:
    rows = race(gpu, broken.Hidden)
    assert rows["broken.hidden"].workspace_bytes >= 100 << 20
    assert "beyond what it declares" in rows["broken.hidden"].reason
    assert rows["broken.gpu"].workspace_bytes == 0


def test_events_give_times_of_the_device_and_of_the_host(problem: Make, gpu: Device) -> None:
    """A copy of 64 MiB, and the canary."""
    one: Problem = problem(SPEC)
    xp, watch = one.place.xp, Stopwatch(gpu)
    source, target = xp.ones(1 << 24, xp.float32), xp.empty(1 << 24, xp.float32)

    def copy() -> None:
        target[...] = source

    sampler = EventSampler(watch, copy)
    times = sorted(sampler(1) for _ in range(9))
    assert 0 < times[4] < 1
    assert sampler.enqueue_s is not None
    assert 0 < sampler.enqueue_s < 1
    assert 0 < watch.song() < 1
    assert float(target[-1]) == 1


def test_cudnn_describes_the_device() -> None:
    """What deviceless planning needs of this GPU; `python benchmarks/gpu.py --describe FILE` keeps it."""
    cudnn = pytest.importorskip("cudnn")
    assert json.loads(cudnn.create_device_properties(0).serialize())["multiProcessorCount"] > 0
