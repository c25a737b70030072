"""cuDNN's plans on a stand-in for its frontend: what is offered, stored, made again, and computed through addresses."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoconv import testing
from autoconv.device import Device, find_device
from autoconv.errors import NoImplementation
from autoconv.evidence import Choice, Config, Limits
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans
from autoconv.impls.cuda import _cudnn_store as store
from autoconv.impls.cuda.cudnn import WORKSPACE_CAP, CudnnGraph
from autoconv.places import place_of
from autoconv.planning import Plan
from autoconv.registry import Registry
from autoconv.spec import ConvSpec, Op
from autoconv.testing.truth import operands, reference, relative_error, tolerance
from tests.cases import EDGE, SMOKE

SPEC = ConvSpec.parse("fprop n2c4 8x9 k6 3x3 p1:2,0 s1,2 g2")
CUDNN = CudnnGraph()


def forget() -> None:
    """What a new process does not know."""
    plans._surveys.clear()
    plans.ready.cache_clear()


@pytest.fixture
def frontend(standin: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in `cudnn`, in a process that has asked it nothing, and an object directory of its own."""
    monkeypatch.setenv("AUTOCONV_NATIVE", str(tmp_path / "native"))
    monkeypatch.setattr(lib, "_local", threading.local())
    monkeypatch.setattr(lib, "_idle", {})
    names = [name for name in sys.modules if name.partition(".")[0] == "cudnn"]
    before = {name: sys.modules.pop(name) for name in names}
    lib.unavailable.cache_clear()
    forget()
    import cudnn

    cudnn.calls.clear()
    yield cudnn
    lib.unavailable.cache_clear()
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cudnn"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def device(frontend: Any) -> Device:
    return find_device("cuda:0")


def build(spec: ConvSpec, device: Device, config: Config) -> Plan:
    registry = Registry()
    registry.register(CUDNN)
    built = registry.build(spec, device, Choice(CUDNN.name, CUDNN.version, config))
    return Plan(spec, device, built.choice, built.runner, workspace_bytes=built.workspace_bytes)


def on_device(values: Any, layout: str, spec: ConvSpec, device: Device) -> Any:
    return place_of(device).conform(place_of(device).from_host(np.ascontiguousarray(values)), layout, spec.np_dtype)


def call(plan: Plan, a: Any, b: Any, *, bound: bool = False) -> Any:
    spec, device = plan.spec, plan.device
    left = on_device(a, spec.layout, spec, device)
    right = on_device(b, spec.layout if spec.op is Op.WGRAD else "nchw", spec, device)
    result = plan.bind(right)(left) if bound else plan(left, right)
    return place_of(device).to_host(result)


# What is missing ---------------------------------------------------------------------------------


def test_is_there_and_runs_on_gpus_alone(device: Device) -> None:
    assert CUDNN.unavailable() is None
    assert CUDNN.why_not(SPEC, device) is None
    assert CUDNN.why_not(SPEC, find_device(None)) == "runs on cuda, not on cpu"
    assert {"cudnn": "9.19.0", "cudnn frontend": "1.28.0"}.items() <= dict(CUDNN.environment(Config())).items()


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [
        ("__version__", "1.26.3", "needs nvidia-cudnn-frontend >= 1.27 and < 1.29, found 1.26.3"),
        ("__version__", "1.29.0", "needs nvidia-cudnn-frontend >= 1.27 and < 1.29, found 1.29.0"),
        ("__version__", "2.0.0rc1", "needs nvidia-cudnn-frontend >= 1.27 and < 1.29, found 2.0.0rc1"),
        ("__version__", "unknown", "needs nvidia-cudnn-frontend >= 1.27 and < 1.29, found unknown"),
        ("backend_version", lambda: 8907, "needs cuDNN 9 or later"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    frontend: Any, monkeypatch: pytest.MonkeyPatch, attribute: str, value: object, sentence: str
) -> None:
    monkeypatch.setattr(frontend, attribute, value)
    assert str(lib.unavailable()).startswith(sentence)


def test_what_is_missing_is_a_sentence(frontend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    monkeypatch.setattr(frontend, "backend_version", no_library)
    assert "cuDNN's library cannot be loaded: Unable to find symbol" in str(lib.unavailable())
    for absent, sentence in (("cudnn", "nvidia-cudnn-frontend is not installed"), ("cupy", "CuPy is not installed")):
        monkeypatch.undo()
        lib.unavailable.cache_clear()
        monkeypatch.setattr(frontend, "backend_version", lambda: 91900)
        monkeypatch.setattr(lib, "find_spec", lambda name, absent=absent: None if name == absent else find_spec(name))
        with monkeypatch.context() as kept:
            kept.setitem(sys.modules, "cudnn", frontend)
            assert str(lib.unavailable()).startswith(sentence)
        assert "pip install" in str(lib.unavailable())


@pytest.mark.parametrize(
    ("number", "text", "wrong"),
    [
        (90701, "fprop n1c2 5x6x7 k3 3x3x3 bf16", False),
        (90800, "fprop n1c2 5x6x7 k3 3x3x3 bf16", True),
        (91002, "wgrad n1c2 5x6x7 k3 3x3x3 f16", True),
        (91400, "dgrad n1c2 5x6x7 k3 3x1x1 bf16", True),
        (91500, "fprop n1c2 5x6x7 k3 3x3x3 bf16", False),
        (91002, "fprop n1c2 5x6x7 k3 3x3x3 bf16 nhwc", False),
        (91002, "fprop n1c2 5x6x7 k3 1x1x1 bf16", False),
        (91002, "fprop n1c2 5x6x7 k3 3x3x3 f32", False),
        (91002, "fprop n1c2 6x7 k3 3x3 bf16", False),
    ],
)
def test_versions_known_to_be_wrong_are_refused(
    frontend: Any, device: Device, monkeypatch: pytest.MonkeyPatch, number: int, text: str, wrong: bool
) -> None:
    monkeypatch.setattr(frontend, "backend_version", lambda: number)
    reason = CUDNN.why_not(ConvSpec.parse(text), device)
    assert (reason is not None and "pytorch/pytorch/issues/163539" in reason) == wrong, reason


# What is offered ---------------------------------------------------------------------------------


def test_every_plan_is_a_config(device: Device) -> None:
    configs = CUDNN.configs(SPEC, device)
    assert [str(config) for config in configs] == [
        "engine=67 knobs=STAGES=3,TILE_SIZE=5 math=tf32",
        "engine=67 knobs=STAGES=4,TILE_SIZE=1 math=tf32",
        "engine=41 knobs=TILE_SIZE=3 math=tf32 nondeterministic=True",
        "engine=70 knobs=TILE_SIZE=4",
        "nondeterministic=True plan=eng20_k2=6_k3=0",
        "engine=1 knobs=",
        "engine=20 knobs= nondeterministic=True",
        "engine=0 knobs=",
        "filters=turned math=tf32 plan=eng48_k2=2_k6=1",
        "filters=turned math=tf32 plan=eng48_k2=2_k6=2",
    ]
    for config in configs:
        choice = Choice(CUDNN.name, 1, Config(json.loads(json.dumps(dict(config)))))
        assert Choice.from_json(choice.to_json()).config == config
    straight = CUDNN.configs(replace(SPEC, flip=False), device)
    assert not any("filters" in config for config in straight)
    assert straight[2] == Config(plan="eng48_k2=2_k6=1", math="tf32")


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16"])
def test_only_float32_can_be_shortened(device: Device, dtype: str) -> None:
    configs = CUDNN.configs(replace(SPEC, dtype=dtype), device)
    assert any("math" in config for config in configs) == (dtype == "f32")
    engines = {config.get("engine") for config in configs}
    assert not engines & {9, 47, 51}  # shortened operands or sums, and what cannot be built
    assert (67 in engines) == (dtype != "f64")


def test_limits_look_at_what_a_plan_does(device: Device) -> None:
    registry = Registry()
    registry.register(CUDNN)

    def names(limits: Limits) -> set[str]:
        return {str(one.config) for one in registry.candidates(SPEC, device, limits)[0]}

    everything = names(Limits())
    assert not any("TILE_SIZE=1" in name for name in everything)  # 66 GiB of scratch
    assert names(Limits(max_rel_error=1e-4)) == {name for name in everything if "tf32" not in name}
    assert names(Limits(deterministic=True)) == {name for name in everything if "nondeterministic" not in name}
    assert names(Limits(require=("tf32",))) == {name for name in everything if "tf32" in name}
    assert names(Limits(max_workspace=0)) == {
        "engine=70 knobs=TILE_SIZE=4", "nondeterministic=True plan=eng20_k2=6_k3=0",
        "engine=20 knobs= nondeterministic=True", "engine=0 knobs=",
    }  # fmt: skip
    assert not names(Limits(strict_nan=True))


def test_scratch_is_exact_and_capped(device: Device) -> None:
    by_text = {str(config): config for config in CUDNN.configs(SPEC, device)}
    turned = by_text["filters=turned math=tf32 plan=eng48_k2=2_k6=1"]
    filters = 4 * 6 * 2 * 9
    assert CUDNN.workspace_bytes(SPEC, device, turned) == 512 + -(-filters // 256) * 256
    assert CUDNN.workspace_bytes(SPEC, device, by_text["engine=1 knobs="]) == 100
    huge = by_text["engine=67 knobs=STAGES=4,TILE_SIZE=1 math=tf32"]
    assert CUDNN.workspace_bytes(SPEC, device, huge) == 66 << 30
    assert CUDNN.why_not(SPEC, device, huge) == f"wants {66 << 30} bytes of scratch, the cap is {WORKSPACE_CAP}"
    small = replace(device, memory=1 << 10)
    assert str(CUDNN.why_not(SPEC, small, turned)).endswith("the cap is 256")


def test_a_problem_without_plans_is_refused(frontend: Any, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "PLANS", [plan for plan in frontend.PLANS if plan[0] in (9, 51)])
    assert CUDNN.why_not(SPEC, device) == "cuDNN 9.19.0 has no plan for this that sums in f32 or wider"
    forget()

    def unheard_of(graph: Any) -> None:
        raise frontend.cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED\nand more")

    monkeypatch.setattr(frontend.pygraph, "validate", unheard_of)
    assert CUDNN.why_not(SPEC, device) == "cuDNN 9.19.0 has no plan for this: CUDNN_STATUS_NOT_SUPPORTED"


def test_the_heuristics_are_asked_once_for_a_problem(frontend: Any, device: Device) -> None:
    for spec in (SPEC, replace(SPEC, fixed=True)):
        for config in CUDNN.configs(spec, device):
            CUDNN.estimate_s(spec, device, config)
            CUDNN.workspace_bytes(spec, device, config)
            CUDNN.why_not(spec, device, config)
    assert frontend.calls.count("heuristics") == 4  # convolving and correlating, in float32 twice each
    estimates = [CUDNN.estimate_s(SPEC, device, config) for config in CUDNN.configs(SPEC, device)]
    strict = [estimates[index] for index in (3, 4, 5, 6, 7)]
    assert strict == sorted(strict)
    CUDNN.configs(replace(SPEC, flip=False, dtype="f64"), device)
    assert frontend.calls.count("heuristics") == 5


# Made again --------------------------------------------------------------------------------------


def test_a_new_process_makes_plans_without_the_heuristics(frontend: Any, device: Device) -> None:
    configs = [config for config in CUDNN.configs(SPEC, device) if not CUDNN.why_not(SPEC, device, config)]
    for config in configs:
        build(SPEC, device, config)  # keeps what has no name
    for config in configs:
        before = CUDNN.workspace_bytes(SPEC, device, config)
        forget()
        frontend.calls.clear()
        assert build(SPEC, device, config).workspace_bytes == before
        assert "heuristics" not in frontend.calls
        assert CUDNN.traits(config).deterministic != bool(config.get("nondeterministic"))


def kept_file(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "native" / "plans").glob("*.plan")
    return found


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "open to all", "a link"])
def test_a_kept_plan_is_used_only_when_it_can_be_trusted(
    frontend: Any, device: Device, tmp_path: Path, damage: str
) -> None:
    config = Config(plan="eng20_k2=6_k3=0", nondeterministic=True)
    build(SPEC, device, config)
    path = kept_file(tmp_path)
    content = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif damage == "open to all":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    forget()
    frontend.calls.clear()
    build(SPEC, device, config)
    assert "heuristics" in frontend.calls
    assert path.read_bytes() == content  # kept anew


def test_without_a_place_for_plans_the_heuristics_serve(
    frontend: Any, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOCONV_NATIVE", str(tmp_path / "file" / "native"))
    store.keep("key", b"plan")
    assert store.kept("key") is None
    build(SPEC, device, Config(plan="eng20_k2=6_k3=0", nondeterministic=True))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(plan="eng99_k2=1", math="tf32"), "it lists no plan of that name"),
        (Config(plan="eng20_k2=6_k3=0"), "it lists no plan of that name"),  # it sums in any order, the config denies it
        (Config(engine=99, knobs=""), "Invalid engine id."),
        (Config(engine=67, knobs="TILE_SIZE=77", math="tf32"), "CUDNN_STATUS_NOT_SUPPORTED"),
        (Config(engine=67, knobs="STAGES=3,TILE_SIZE=5"), "Deselecting execution plan"),
        (Config(engine=41, knobs="TILE_SIZE=3", math="tf32"), "Deselecting execution plan"),
        (Config(engine=47, knobs="TILE_SIZE=1", math="tf32"), "Deselecting execution plan"),
        (Config(engine=9, knobs="", nondeterministic=True, math="tf32"), "Deselecting execution plan"),
        (Config(engine=1, knobs="WIDTH=3"), "WIDTH"),
        (Config(engine=1, knobs="TILE_SIZE=x"), "invalid literal"),
        (Config(), "knobs"),
        (Config(engine="many", knobs=""), "invalid literal"),
    ],
    ids=str,
)
def test_what_cannot_be_made_again_is_refused(device: Device, config: Config, sentence: str) -> None:
    reason = CUDNN.why_not(SPEC, device, config)
    assert reason is not None
    assert reason.startswith("cuDNN 9.19.0 does not make ")
    assert sentence in reason
    with pytest.raises(NoImplementation, match="does not make"):
        build(SPEC, device, config)


def test_another_version_shares_no_kept_plan(frontend: Any, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(plan="eng20_k2=6_k3=0", nondeterministic=True)
    build(SPEC, device, config)
    forget()
    monkeypatch.setattr(frontend, "backend_version", lambda: 92000)
    monkeypatch.setattr(frontend, "PLANS", [plan for plan in frontend.PLANS if plan[0] != 20])
    reason = CUDNN.why_not(SPEC, device, config)
    assert reason == f"cuDNN 9.20.0 does not make {config} any more: it lists no plan of that name"


# What is computed --------------------------------------------------------------------------------


def wrong(spec: ConvSpec, device: Device, config: Config, *, bound: bool = False) -> str:
    a, b = operands(spec, np.random.default_rng(7))
    got = call(build(spec, device, config), a, b, bound=bound)
    error = relative_error(got, reference(spec, a, b), spec.reduction_length**0.5 / 3)
    limit = tolerance(spec, CUDNN.traits(config).tags)
    return "" if error <= limit else f"{spec} [{config}]: {error:.1e}, limit {limit:.1e}"


def able(spec: ConvSpec, device: Device) -> list[Config]:
    return [config for config in CUDNN.configs(spec, device) if CUDNN.why_not(spec, device, config) is None]


def computable() -> Iterator[ConvSpec]:
    for text in {**SMOKE, **EDGE}.values():
        for spec in testing.problems(text):
            if spec.batch and spec.dtype != "bf16" and spec.layout in CUDNN.layouts:
                yield spec


def test_conforms(device: Device) -> None:
    """The suite: shapes, strides, padding and the operands' roles, as the graph was told them, decide the result."""
    mistakes = []
    for number, spec in enumerate(computable()):
        configs = able(spec, device)  # those with turned filters stand last
        chosen = configs[-1] if number % 3 == 0 else configs[number % len(configs)]
        try:
            checks = testing.CHECKS if number % 4 == 0 else ("values",)
            refusal = testing.check_case(CUDNN, spec, device=device, configs=[chosen], checks=tuple(checks))
        except AssertionError as mistake:
            refusal = str(mistake)
        mistakes += [] if refusal is None else [refusal]
    assert not mistakes, "\n".join(mistakes)


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16"])
def test_every_plan_computes(device: Device, op: Op, dtype: str) -> None:
    spec = replace(SPEC, op=op, dtype=dtype, layout="nhwc")
    for config in able(spec, device):
        assert not wrong(spec, device, config)
        assert op is Op.WGRAD or not wrong(spec, device, config, bound=True)


def test_tf32_is_what_the_tag_says(device: Device) -> None:
    spec = replace(SPEC, in_channels=64, out_channels=64)
    a, b = operands(spec, np.random.default_rng(7))
    (config,) = (one for one in able(spec, device) if one.get("engine") == 67)
    error = relative_error(call(build(spec, device, config), a, b), reference(spec, a, b), 1.0)
    assert tolerance(spec, ()) < error < tolerance(spec, ["tf32"])


def test_calls_go_to_the_callers_stream(standin: Any, frontend: Any, device: Device) -> None:
    plan = build(SPEC, device, able(SPEC, device)[-1])
    a, b = operands(SPEC, np.random.default_rng(1))
    expected = call(plan, a, b)
    stream = standin.cuda.Stream(non_blocking=True)
    frontend.calls.clear()
    with stream:
        for _ in range(3):
            assert np.array_equal(call(plan, a, b), expected)
    assert frontend.calls == ["stream"]
    call(plan, a, b)
    assert frontend.calls == ["stream", "stream"]


def test_a_handle_per_thread_that_the_next_one_takes_over(frontend: Any, device: Device) -> None:
    plan = build(SPEC, device, able(SPEC, device)[0])
    a, b = operands(SPEC, np.random.default_rng(1))
    expected = call(plan, a, b)
    for _ in range(3):
        results: list[Any] = []
        thread = threading.Thread(target=lambda into=results: into.append(call(plan, a, b)))
        thread.start()
        thread.join()
        assert np.array_equal(results[0], expected)
    assert frontend.calls.count("handle") == 2
    lib.handle(1)
    assert frontend.calls.count("handle") == 3


def test_a_graph_that_was_recorded_computes_again(standin: Any, device: Device) -> None:
    for config in able(SPEC, device):
        plan = build(SPEC, device, config)
        a, b = operands(SPEC, np.random.default_rng(1))
        x, w = (on_device(values, "nchw", SPEC, device) for values in (a, b))
        out = place_of(device).empty(SPEC.result_shape, "nchw", SPEC.np_dtype)
        plan(x, w, out=out)
        stream = standin.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            plan(x, w, out=out)
            graph = stream.end_capture()
        x[...] = x * 2
        graph.launch(stream)
        error = relative_error(place_of(device).to_host(out), 2 * reference(SPEC, a, b), 1.0)
        assert error <= tolerance(SPEC, CUDNN.traits(config).tags)
