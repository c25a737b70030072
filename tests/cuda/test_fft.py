"""`cupy.fft` and `cupy.fft_tiled`: plans, blocks, both products; and what cuFFT is handed."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import Device, find_device
from autoconv.evidence import Config
from autoconv.impls import _spectra
from autoconv.impls.cuda import _cufft
from autoconv.impls.cuda.fft import Fft
from autoconv.impls.cuda.fft_tiled import TiledFft
from autoconv.spec import ConvSpec

CASES = [
    "fprop n2c4 13x16 k6 3x4 p1:2,3 d2,1 g2 conv nchw f32",
    "fprop n3c2 40 k3 7 p3 corr nchw f64",
    "fprop n1c3 6x9x8 k2 2x3x3 p1 conv nchw f64",
    "fprop n1c5 30x20 k5 5x5 p2 g5 corr nchw f32",
    "fprop n1c2 3x4 k2 2x2 p5,4",
]


@pytest.fixture
def device(standin: ModuleType) -> Device:
    return find_device("cuda:0")


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize("one", [Fft(), TiledFft()], ids=["whole", "tiled"])
@pytest.mark.parametrize("by_terms", [True, False])
def test_passes_the_suite(
    one: Fft | TiledFft, text: str, by_terms: bool, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = replace(_cufft.COSTS, matrix_s=1e9 if by_terms else 0.0, term_s=0.0 if by_terms else 1e9)
    small = replace(_cufft.engine(), block_bytes=1 << 14, costs=costs)
    monkeypatch.setattr(_cufft, "engine", lambda: small)
    testing.check_implementation(one, {"": text}, device=device)


def test_a_plan_serves_one_stream_of_one_thread(device: Device, standin: ModuleType) -> None:
    spec = ConvSpec.parse("fprop n2c3 12x12 k4 5x5 p2 f64")
    a, b = testing.operands(spec, np.random.default_rng(1))
    built = testing.build(Fft(), spec, Config(), device)
    expected = testing.reference(spec, a, b)
    results: list[object] = []

    def call() -> None:
        for stream in [standin.cuda.Stream(non_blocking=True) for _ in range(_cufft.MOST_STREAMS + 2)]:
            with stream:
                results.append(testing.relative_error(testing.run(built, a, b, device), expected))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 * (_cufft.MOST_STREAMS + 2)
    assert max(results) < 1e-12  # type: ignore[type-var]


def test_transforms_that_cufft_cannot_count_are_refused() -> None:
    device = Device("cuda", "a GPU", "sm_90", 132, 1)
    spec = ConvSpec.parse("fprop n1c1 1400x1400x1400 k1 3x3x3")
    refused = [reason for holds, reason in Fft().restrictions(spec, device, Config()) if not holds]
    assert refused
    assert "2^31" in refused[0]
    assert _spectra.fast_size(1400) ** 3 > 2**31
