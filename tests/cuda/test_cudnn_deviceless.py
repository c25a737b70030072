"""The real cuDNN plans for an H200 that is not there (`make test-cudnn`): what it offers, and makes again.

`h200_by_hand.json` describes the device. It was written by hand after NVIDIA's tables; on a device
`cudnn.create_device_properties(0).serialize()` gives the true one. Nothing is executed.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from autoconv.device import Device
from autoconv.evidence import Choice, Config
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans
from autoconv.impls.cuda.cudnn import WORKSPACE_CAP, CudnnGraph
from autoconv.spec import DTYPES, ConvSpec
from autoconv.testing import problems
from tests.cases import EDGE, NETWORKS, SMOKE

pytestmark = pytest.mark.slow

DEVICE = Device("cuda", "NVIDIA H200", "sm_90", 132, 1, 150_109_880_320, 0)
CUDNN = CudnnGraph()
SAMPLE = 3  # plans of one problem that are made again in turn; those without a name for their knobs are all made
CASES = {**SMOKE, **EDGE, **NETWORKS}
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def properties() -> Any:
    """The described device, once what cuDNN loads by name is there to be loaded."""
    if find_spec("cudnn") is None:
        pytest.skip("nvidia-cudnn-frontend is not installed")
    libraries = find_spec("nvidia")
    folders = [Path(folder) for folder in (libraries.submodule_search_locations if libraries else None) or ()]
    for name in ("libcublas.so.*", "libcublasLt.so.*"):
        paths = sorted(path for folder in folders for path in folder.glob(f"*/lib/{name}"))
        if not paths:
            pytest.skip(f"{name} is not installed, without which cuDNN ends the process")
        ctypes.CDLL(str(paths[0]), ctypes.RTLD_GLOBAL)
    import cudnn

    try:
        return cudnn.create_device_properties((Path(__file__).parent / "h200_by_hand.json").read_text())
    except RuntimeError as error:
        pytest.skip(f"this cuDNN does not plan without a driver: {error}")


@pytest.fixture(autouse=True)
def _described(properties: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(lib, "target", lambda device: lib.Target({"device_property": properties}))
    monkeypatch.setenv("AUTOCONV_NATIVE", str(tmp_path / "native"))
    forget()
    yield
    forget()


def forget() -> None:
    plans._surveys.clear()
    plans.ready.cache_clear()


def examine(spec: ConvSpec) -> Iterator[str]:
    """What is wrong with the plans for one problem."""
    problem = plans.plain(spec)
    offers, reason = plans.survey(problem, DEVICE)
    seen["problems"] += 1
    if not offers:
        seen["without a plan"] += 1
        yield f"no plan: {reason}"
    for config, one in offers.items():
        seen["configs"] += 1
        seen["without a name for a knob"] += "plan" in config
        seen["nondeterministic"] += bool(config.get("nondeterministic"))
        seen["tf32"] += config.get("math") == "tf32"
        seen["with turned filters"] += "filters" in config
        seen["beyond the cap"] += one.workspace_bytes > WORKSPACE_CAP
        choice = Choice(CUDNN.name, CUDNN.version, config)
        if Choice.from_json(choice.to_json()) != choice or Config(json.loads(json.dumps(dict(config)))) != config:
            yield f"{config} does not survive being stored"
        if ("math" in config and spec.dtype != "f32") or bool(one.serialised) != ("plan" in config):
            yield f"{config}: not what it says"
        if ("filters" in config) > (problem.flip and spec.dtype in DTYPES):
            yield f"{config} turns filters that need no turning"
    configs = list(offers)
    for config in [*configs[:: max(1, len(configs) // SAMPLE)], *(one for one in configs if "plan" in one)]:
        made = plans.ready(problem, config, DEVICE)
        if isinstance(made, str):
            yield made
        elif made.workspace_bytes != offers[config].workspace_bytes:
            yield f"{config}: {made.workspace_bytes} bytes when made again, {offers[config].workspace_bytes} before"
        else:
            seen["made again, serialised" if "plan" in config else "made again by engine and knobs"] += 1


@pytest.mark.parametrize("name", CASES)
def test_every_problem_is_planned(name: str) -> None:
    wrong = [
        f"{spec}: {mistake}"
        for dtype in DTYPES
        for spec in problems(CASES[name])
        if spec.layout in CUDNN.layouts
        for mistake in examine(replace(spec, dtype=dtype))
    ]
    assert not wrong, "\n".join(wrong)


def test_kept_plans_serve_without_the_heuristics(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = plans.plain(ConvSpec.parse("fprop n8c64 56x56 k64 3x3 p1"))
    offers, _ = plans.survey(problem, DEVICE)
    unnamed = [config for config in offers if "plan" in config]
    assert unnamed
    for config in unnamed:
        assert not isinstance(plans.ready(problem, config, DEVICE), str)
    forget()
    monkeypatch.setattr(plans, "survey", None)
    for config in unnamed:
        made = plans.ready(problem, config, DEVICE)
        assert not isinstance(made, str)
        assert made.workspace_bytes == offers[config].workspace_bytes
        assert callable(made.execute)


def test_large_volumes_are_capped() -> None:
    spec = ConvSpec.parse("dgrad n16c64 64x128x128 k64 3x3x3 p1 f32")
    offers, _ = plans.survey(plans.plain(spec), DEVICE)
    beyond = [config for config, one in offers.items() if one.workspace_bytes > WORKSPACE_CAP]
    assert beyond, "the cap is not put to the test"
    assert CUDNN.why_not(spec, DEVICE) is None
    assert all("the cap is" in str(CUDNN.why_not(spec, DEVICE, config)) for config in beyond)


def test_more_than_a_config_says_is_not_made() -> None:
    problem = plans.plain(ConvSpec.parse("fprop n8c64 56x56 k64 3x3 p1 corr"))
    offers, _ = plans.survey(problem, DEVICE)
    short = next(config for config in offers if config.get("math") == "tf32" and "knobs" in config)
    silent = Config({key: value for key, value in short.items() if key != "math"})
    assert "Deselecting" in str(plans.ready(problem, silent, DEVICE))
    assert not isinstance(plans.ready(problem, short, DEVICE), str)


def test_zz_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of docs/explanation/algorithms.md."""
    with capsys.disabled():
        print(f"\ncuDNN {lib.version_text()}:", ", ".join(f"{count} {what}" for what, count in seen.items()))
    assert seen["configs"] >= seen["problems"]
