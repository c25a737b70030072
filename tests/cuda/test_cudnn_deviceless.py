"""What cuDNN itself offers for an H200 that is not there, and makes again (`make test-cudnn`). Nothing is executed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoconv.evidence import Choice, Config
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans
from autoconv.impls.cuda.cudnn import WORKSPACE_CAP, CudnnGraph
from autoconv.spec import DTYPES, ConvSpec
from autoconv.testing import problems
from tests.cases import EDGE, NETWORKS, SMOKE
from tests.cuda.deviceless import H200, described, forget

pytestmark = pytest.mark.slow

CUDNN = CudnnGraph()
SAMPLE = 3  # plans of one problem that are made again in turn; those without a name for their knobs are all made
CASES = {**SMOKE, **EDGE, **NETWORKS}
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def target() -> lib.Target:
    found = described()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(autouse=True)
def _described(target: lib.Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    missing = lib.unavailable()
    assert missing is None or missing.startswith("CuPy is not installed")  # executing needs it, planning does not
    monkeypatch.setattr(lib, "unavailable", lambda: None)
    monkeypatch.setattr(lib, "target", lambda device: target)
    monkeypatch.setenv("AUTOCONV_NATIVE", str(tmp_path / "native"))
    forget()
    yield
    forget()


def examine(spec: ConvSpec) -> Iterator[str]:
    """What is wrong with the plans for one problem."""
    problem = plans.plain(spec)
    offers, reason = plans.survey(problem, H200)
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
        if "filters" in config and not problem.flip:
            yield f"{config} turns filters that need no turning"
    configs = list(offers)
    unnamed = [config for config in configs if "plan" in config]
    for config in dict.fromkeys([*configs[:: max(1, len(configs) // SAMPLE)], *unnamed]):
        made = plans.ready(problem, config, H200)
        if isinstance(made, str):
            yield made
        elif made.workspace_bytes != offers[config].workspace_bytes:
            yield f"{config}: {made.workspace_bytes} bytes when made again, {offers[config].workspace_bytes} before"
        else:
            seen["made again from the kept plan" if "plan" in config else "made again by engine and knobs"] += 1


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
    offers, _ = plans.survey(problem, H200)
    unnamed = [config for config in offers if "plan" in config]
    assert unnamed
    for config in unnamed:
        assert not isinstance(plans.ready(problem, config, H200), str)
    forget()
    monkeypatch.setattr(plans, "survey", None)
    for config in unnamed:
        made = plans.ready(problem, config, H200)
        assert not isinstance(made, str)
        assert made.workspace_bytes == offers[config].workspace_bytes
        assert callable(made.execute)


def test_large_volumes_are_capped() -> None:
    spec = ConvSpec.parse("dgrad n16c64 64x128x128 k64 3x3x3 p1 f32")
    offers, _ = plans.survey(plans.plain(spec), H200)
    beyond = [config for config, one in offers.items() if one.workspace_bytes > WORKSPACE_CAP]
    assert beyond, "the cap is not put to the test"
    assert CUDNN.why_not(spec, H200) is None
    assert all("the cap is" in str(CUDNN.why_not(spec, H200, config)) for config in beyond)


def test_more_than_a_config_says_is_not_made() -> None:
    problem = plans.plain(ConvSpec.parse("fprop n8c64 56x56 k64 3x3 p1 corr"))
    offers, _ = plans.survey(problem, H200)
    short = next(config for config in offers if config.get("math") == "tf32" and "knobs" in config)
    silent = Config({key: value for key, value in short.items() if key != "math"})
    assert "Deselecting" in str(plans.ready(problem, silent, H200))
    assert not isinstance(plans.ready(problem, short, H200), str)


def test_zz_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of docs/explanation/algorithms/libraries.md."""
    with capsys.disabled():
        print(f"\ncuDNN {lib.version_text()}:", ", ".join(f"{count} {what}" for what, count in seen.items()))
    assert seen["configs"] >= seen["problems"]
