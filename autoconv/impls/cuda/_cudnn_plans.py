"""cuDNN's plans for one problem: asked for once, told apart, and made again from a stored config.

A config is the engine with its knobs where the frontend has a name for each knob, else cuDNN's own name of the plan,
for which the serialised plan is kept (`_cudnn_store`). `math` holds what it does to numbers beyond plain sums,
`nondeterministic` says that sums may be ordered differently from call to call, `filters="turned"` that it correlates
with turned filters, because its engine has no convolution. A plan made again may do no more than its config says.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

from autoconv.arrays import dense_strides
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_store as store
from autoconv.spec import ConvSpec, Op

__all__ = ["ROLES", "Offer", "Ready", "offer", "plain", "ready", "survey", "words"]

X, W, Y = 1, 2, 3  # what the graph calls image, filters and output
ROLES = {Op.FPROP: (X, W, Y), Op.DGRAD: (Y, W, X), Op.WGRAD: (X, Y, W)}
"""The two operands and the result of each operation."""

NEVER = ("DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION")  # f16 for f32, and sums of half types in half types
MATHS = {"winograd": ("WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13"), "fft": ("FFT",)}
TF32 = {"tf32": ("TENSOR_CORE",)}  # in float32 alone: in other formats the matrix units are exact
UNSTEADY = ("NONDETERMINISTIC",)

_UNNAMED = "NOT_SET"
_BACKEND = re.compile(r"eng\d+(_k\d+=-?\d+)*")  # the library's plans; the frontend has some of its own
_REMEMBERED = 512  # problems whose plans are known in this process

Execute: TypeAlias = Callable[[Mapping[int, int], int, int, int], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """One plan: its config and scratch, and where the config does not suffice to make it again, the plan itself."""

    config: Config
    workspace_bytes: int
    serialised: bytes = b""


@dataclass(frozen=True, slots=True)
class Ready:
    """A plan that runs: `execute(addresses by role, address of the scratch, 0, handle)`."""

    execute: Execute
    workspace_bytes: int
    graph: Any  # lives as long as it may be executed


def plain(spec: ConvSpec) -> ConvSpec:
    """The problem as cuDNN sees it: bound or not, with one image where there are none, and turned filters or not."""
    flip = spec.flip and prod(spec.kernel) > 1
    return replace(spec, fixed=False, rank1=False, batch=max(spec.batch, 1), flip=flip)


def words(config: Config) -> frozenset[str]:
    """What `config` says of its arithmetic: a tag at most."""
    return frozenset({str(config["math"])} if "math" in config else ())


# The graph of a problem --------------------------------------------------------------------------


def _graph(spec: ConvSpec, turned: bool, target: lib.Target) -> Any:
    """`spec` as a graph of one node; `turned` correlates where the spec convolves."""
    cudnn = lib.frontend()
    dtype = getattr(cudnn.data_type, lib.DTYPES[spec.dtype])
    compute = cudnn.data_type.DOUBLE if spec.dtype == "f64" else cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=dtype, intermediate_data_type=compute, compute_data_type=compute, **target.arguments
    )
    shapes = {X: spec.input_shape, W: spec.filter_shape, Y: spec.output_shape}
    dims = {role: _planar(shape, spec.rank, 1, skip=2) for role, shape in shapes.items()}
    strides = {role: list(dense_strides(dims[role], "nchw" if role == W else spec.layout, 1)) for role in dims}

    def operand(role: int) -> Any:
        return graph.tensor(name="?xwy"[role], dim=dims[role], stride=strides[role], data_type=dtype, uid=role)

    first, second, result = ROLES[spec.op]
    node = {Op.FPROP: graph.conv_fprop, Op.DGRAD: graph.conv_dgrad, Op.WGRAD: graph.conv_wgrad}[spec.op]
    modes = cudnn._pybind_module.convolution_mode  # exported nowhere else
    output = node(
        operand(first),
        operand(second),
        pre_padding=_planar([before for before, _ in spec.padding], spec.rank, 0),
        post_padding=_planar([after for _, after in spec.padding], spec.rank, 0),
        stride=_planar(spec.stride, spec.rank, 1),
        dilation=_planar(spec.dilation, spec.rank, 1),
        convolution_mode=modes.CONVOLUTION if spec.flip and not turned else modes.CROSS_CORRELATION,
        compute_data_type=compute,
    )
    output.set_output(True).set_data_type(dtype).set_dim(dims[result]).set_stride(strides[result])
    output.set_uid(result)
    graph.validate()
    graph.build_operation_graph()
    return graph


def _planar(values: Sequence[int], rank: int, filler: int, skip: int = 0) -> list[int]:
    """One value per axis, with an axis more in front of the only spatial one: cuDNN knows no lines."""
    return [*values[:skip], *[filler] * (rank == 1), *values[skip:]]


# What cuDNN offers -------------------------------------------------------------------------------

_surveys: OrderedDict[tuple[ConvSpec, Device], tuple[dict[Config, Offer], str]] = OrderedDict()
_lock = threading.Lock()


def survey(spec: ConvSpec, device: Device) -> tuple[dict[Config, Offer], str]:
    """Every plan for a `plain` problem, in cuDNN's order, and why there is none. Takes about 0.1 s the first time."""
    key = spec, device
    with _lock:
        found = _surveys.get(key)
    if found is None:
        found = _survey(spec, lib.target(device))
        with _lock:
            _surveys[key] = found
            while len(_surveys) > _REMEMBERED:
                _surveys.popitem(last=False)
    return found


def offer(spec: ConvSpec, device: Device, config: Config) -> Offer | None:
    """The plan of `config` if this process has surveyed the problem and found it."""
    with _lock:
        known = _surveys.get((spec, device))
    return None if known is None else known[0].get(config)


def _survey(spec: ConvSpec, target: lib.Target) -> tuple[dict[Config, Offer], str]:
    errors = _errors()
    offers: dict[Config, Offer] = {}
    engines: set[int] = set()
    reason = ""
    for turned in (False, True) if spec.flip else (False,):
        try:
            listed = list(_listed(spec, turned, target))
        except errors as error:
            reason = reason or f"cuDNN {lib.version_text()} has no plan for this: {_first_line(error)}"
            continue
        for engine, one in listed:
            if not (turned and engine in engines):  # turning filters is for engines that do not do it themselves
                offers.setdefault(one.config, one)
        engines.update(engine for engine, _ in listed)
    return offers, reason or f"cuDNN {lib.version_text()} has no plan for this that sums in {spec.dtype} or wider"


@dataclass(frozen=True, slots=True)
class _Built:
    """A plan as the graph lists it."""

    name: str
    engine: int
    knobs: Mapping[str, int]
    workspace_bytes: int
    serialised: bytes

    def names(self) -> dict[str, int | str | bool]:
        """What it takes to make it again."""
        if _UNNAMED in self.knobs:
            return {"plan": self.name}
        return {"engine": self.engine, "knobs": ",".join(f"{knob}={self.knobs[knob]}" for knob in sorted(self.knobs))}


def _listed(spec: ConvSpec, turned: bool, target: lib.Target) -> Iterator[tuple[int, Offer]]:
    """Engine and offer of each plan, in the order of the heuristics."""
    graph, plans = _built(spec, turned, target)
    for index in _barred(graph, plans, NEVER):
        del plans[index]
    # what was barred stays barred: a second graph tells both of an engine that is TF32 and nondeterministic
    other = _built(spec, turned, target)[0] if spec.dtype == "f32" else graph
    maths: dict[int, str] = {}
    for word, notes in (MATHS | TF32 if spec.dtype == "f32" else MATHS).items():
        rest = [index for index in plans if index not in maths]
        maths.update(dict.fromkeys(_barred(other, rest, notes), word))
    unsteady = set(_barred(graph, [index for index in plans if other is not graph or index not in maths], UNSTEADY))
    for index, one in plans.items():
        values = one.names()
        values |= {"math": maths[index]} if index in maths else {}
        values |= {"nondeterministic": True} if index in unsteady else {}
        values |= {"filters": "turned"} if turned else {}
        yield one.engine, Offer(Config(values), one.workspace_bytes, one.serialised)


def _built(spec: ConvSpec, turned: bool, target: lib.Target) -> tuple[Any, dict[int, _Built]]:
    """A graph with the plans of all heuristics, and by index those that can be built."""
    modes = lib.frontend().heur_mode
    graph = _graph(spec, turned, target)
    graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
    plans: dict[int, _Built] = {}
    names: set[str] = set()
    for index in range(graph.get_execution_plan_count()):
        name = graph.get_plan_name_at_index(index)
        if name in names or not _BACKEND.fullmatch(name):  # 1.27 lists what several heuristics name several times
            continue
        try:
            graph.build_plan_at_index(index)
        except _errors():
            continue
        names.add(name)
        engine, knobs = graph.get_engine_and_knobs_at_index(index)
        named = {knob.name: int(value) for knob, value in knobs.items()}
        serialised = bytes(graph.serialize()) if _UNNAMED in named else b""
        workspace = int(graph.get_workspace_size_plan_at_index(index))
        plans[index] = _Built(name, int(engine), named, workspace, serialised)
    return graph, plans


def _barred(graph: Any, indices: Iterable[int], notes: Iterable[str]) -> list[int]:
    """Which of `indices` carry one of `notes`: the frontend tells only by not giving them any more."""
    numerical = lib.frontend().numerical_note
    graph.deselect_numeric_notes([getattr(numerical, note) for note in notes])
    refused = lib.frontend().cudnnGraphNotSupportedError
    barred = []
    for index in indices:
        try:
            graph.build_plan_at_index(index)  # built already: costs nothing
        except refused:
            barred.append(index)
    return barred


def _errors() -> tuple[type[Exception], ...]:
    """What the frontend raises for what cuDNN does not do, and Python for a config of another version's words."""
    return lib.frontend().cudnnGraphNotSupportedError, RuntimeError, ValueError, LookupError, AttributeError


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Made again --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def ready(spec: ConvSpec, config: Config, device: Device) -> Ready | str:
    """The plan of `config` for a `plain` problem, or why it cannot be made any more. The heuristics are asked last."""
    target, errors = lib.target(device), _errors()
    try:
        if "plan" not in config:
            graph = _by_knobs(spec, config, target)
        else:
            graph = lib.frontend().pygraph(**target.arguments)
            target.load(graph, _plan(spec, config, device))
        lowered = graph._lowered_graph  # its own entry spends 11 us on finding what is here at index 0
        return Ready(lowered._execute_plan_at_index, int(graph.get_workspace_size_plan_at_index(0)), graph)
    except errors as error:
        return f"cuDNN {lib.version_text()} does not make {config} any more: {_first_line(error)}"


def _by_knobs(spec: ConvSpec, config: Config, target: lib.Target) -> Any:
    """A graph with this one plan, which must not do more than the config says."""
    cudnn = lib.frontend()
    pairs = [pair.partition("=") for pair in str(config["knobs"]).split(",") if pair]
    knobs = {getattr(cudnn.knob_type, name): int(value) for name, _, value in pairs}
    graph = _graph(spec, config.get("filters") == "turned", target)
    graph.create_execution_plan(int(config["engine"]), knobs)
    own = {} if spec.dtype != "f32" else TF32
    unsaid = [notes for word, notes in {**MATHS, **own}.items() if word not in words(config)]
    unsaid += [NEVER] if config.get("nondeterministic") else [NEVER, UNSTEADY]
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, note) for notes in unsaid for note in notes])
    graph.build_plan_at_index(0)
    return graph


def _plan(spec: ConvSpec, config: Config, device: Device) -> bytes:
    """The serialised plan: the kept one, else that of the plan of this name, which is kept from now on."""
    versions = (lib.version_text(), str(lib.frontend().__version__))
    key = store.plan_key(str(spec), str(config), device.fingerprint, *versions)
    found = store.kept(key)
    if found is None:
        offered, reason = survey(spec, device)
        if config not in offered:
            raise ValueError("it lists no plan of that name" if offered else reason)
        found = offered[config].serialised
        store.keep(key, found)
    return found
