"""A stand-in for nvidia-cudnn-frontend 1.28 that computes on the host: what autoconv calls, and no kinder.

Its plans are few and made to differ in what matters: knobs that have no name, notes of every kind, scratch beyond
any cap, an engine without convolution, one that cannot be built. Executing reads and writes through the addresses,
dimensions and strides that the graph was told, spoils its scratch, and keeps to what cuDNN notes: TF32 shortens.
"""

from __future__ import annotations

import itertools
import json
from enum import Enum
from types import SimpleNamespace
from typing import Any

from cudnn import _convolve

__version__ = "1.28.0"
SERIALISED = "stand-in plan "


class cudnnGraphNotSupportedError(Exception):  # noqa: N801
    """What the frontend raises for a graph or a plan that is not to be had."""


class data_type(Enum):  # noqa: N801
    NOT_SET, FLOAT, DOUBLE, HALF, BFLOAT16 = range(5)


class heur_mode(Enum):  # noqa: N801
    A, B, FALLBACK, OPENSOURCE = range(4)


class knob_type(Enum):  # noqa: N801
    NOT_SET, TILE_SIZE, STAGES = range(3)


class convolution_mode(Enum):  # noqa: N801
    NOT_SET, CONVOLUTION, CROSS_CORRELATION = range(3)


numerical_note = Enum(  # type: ignore[misc]
    "numerical_note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD WINOGRAD_TILE_4x4 "
    "WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP",
)
_pybind_module = SimpleNamespace(convolution_mode=convolution_mode)

ENGINES = {  # engine -> notes
    0: {"STRICT_NAN_PROP"},
    1: set(),
    9: {"DOWN_CONVERT_INPUTS"},
    20: {"NONDETERMINISTIC"},
    41: {"TENSOR_CORE", "NONDETERMINISTIC"},
    47: {"TENSOR_CORE", "REDUCED_PRECISION_REDUCTION"},
    48: {"TENSOR_CORE"},
    51: set(),
    67: {"TENSOR_CORE"},
    70: set(),
}
CORRELATES_ONLY = {48}
BROKEN = {51}
PLANS = [  # engine, knobs by cuDNN's numbers, scratch in bytes
    (67, {2: 5, 14: 3}, 4096),
    (67, {2: 1, 14: 4}, 66 << 30),
    (48, {2: 2, 6: 1}, 512),
    (48, {2: 2, 6: 2}, 512),
    (41, {2: 3}, 128),
    (51, {}, 0),
    (47, {2: 1}, 0),
    (9, {}, 0),
    (70, {2: 4}, 0),
    (67, {2: 5, 14: 3}, 4096),  # named by two heuristics
    (20, {2: 6, 3: 0}, 0),
    (1, {}, 100),
    (20, {}, 0),
    (0, {}, 0),
]
KNOBS = {2: knob_type.TILE_SIZE, 14: knob_type.STAGES}

calls: list[str] = []
"""What was asked for that takes long: `heuristics`, `handle`, and `stream` for each change of one."""


def backend_version() -> int:
    return 91900


def backend_version_string() -> str:
    return "9.19.0"


class Handle:
    """A number with a stream."""

    numbers = itertools.count(0x1000, 16)
    known: dict[int, Handle] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.backend_handle = next(Handle.numbers)
        self.stream = 0
        Handle.known[self.backend_handle] = self


def create_handle() -> Handle:
    calls.append("handle")
    return Handle()


def set_stream(handle: Handle, stream: int) -> None:
    if not isinstance(handle, Handle):
        raise TypeError(f"cudnn.set_stream expects a cudnn.Handle, got {type(handle).__name__}")
    calls.append("stream")
    handle.stream = stream


class Tensor:
    """A description, filled in by setters that give it back."""

    def __init__(self, dim: Any, stride: Any, data_type: Any, uid: int) -> None:
        self.dim, self.stride, self.data_type, self.uid = dim, stride, data_type, uid
        self.is_output = False

    def set_output(self, value: bool) -> Tensor:
        self.is_output = value
        return self

    def set_data_type(self, value: Any) -> Tensor:
        self.data_type = value
        return self

    def set_dim(self, value: list[int]) -> Tensor:
        self.dim = value
        return self

    def set_stride(self, value: list[int]) -> Tensor:
        self.stride = value
        return self

    def set_uid(self, value: int) -> Tensor:
        self.uid = value
        return self


class pygraph:  # noqa: N801
    """A graph of one convolution."""

    def __init__(
        self,
        name: str = "test_graph",
        io_data_type: Any = None,
        intermediate_data_type: Any = None,
        compute_data_type: Any = None,
        handle: Any = None,
    ) -> None:
        if not isinstance(handle, Handle):
            raise TypeError(f"expected a cudnn.Handle, got {type(handle).__name__}")
        self._compute = compute_data_type
        self._tensors: dict[str, Tensor] = {}
        self._built_graph = False
        self._plans: list[tuple[int, dict[int, int], int]] = []
        self._asked = False
        self._barred: set[int] = set()
        self._made: set[int] = set()
        self._candidate = -1
        self._lowered_graph: Any = None

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any, uid: int) -> Tensor:
        if not all(isinstance(value, list) and all(type(one) is int for one in value) for value in (dim, stride)):
            raise TypeError("dim and stride are lists of int")
        return Tensor(dim, stride, data_type, uid)

    def conv_fprop(self, image: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return self._node("fprop", {"x": image, "w": weight}, "y", **options)

    def conv_dgrad(self, loss: Tensor, filter: Tensor, **options: Any) -> Tensor:
        return self._node("dgrad", {"y": loss, "w": filter}, "x", **options)

    def conv_wgrad(self, image: Tensor, loss: Tensor, **options: Any) -> Tensor:
        return self._node("wgrad", {"x": image, "y": loss}, "w", **options)

    def _node(
        self,
        op: str,
        operands: dict[str, Tensor],
        result: str,
        *,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
        convolution_mode: Any,
        compute_data_type: Any,
    ) -> Tensor:
        self._op, self._mode, self._compute = op, convolution_mode, compute_data_type
        self._geometry = pre_padding, post_padding, stride, dilation
        output = Tensor(None, None, None, -1)
        self._tensors = {**operands, result: output}
        return output

    def validate(self) -> None:
        """Rank, lengths, and the sizes that follow from one another."""
        x, w, y = (self._tensors[role] for role in "xwy")
        pre, post, stride, dilation = self._geometry
        rank = len(x.dim) - 2
        if rank not in (2, 3) or any(len(one) != rank for one in self._geometry):
            raise cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED: 2 or 3 spatial dimensions")
        if min(pre + post) < 0 or x.dim[1] % w.dim[1] or w.dim[0] % (x.dim[1] // w.dim[1]):
            raise cudnnGraphNotSupportedError("CUDNN_STATUS_BAD_PARAM: padding or groups")
        for axis in range(rank):
            window = (w.dim[2 + axis] - 1) * dilation[axis] + 1
            if y.dim[2 + axis] != (x.dim[2 + axis] + pre[axis] + post[axis] - window) // stride[axis] + 1:
                raise cudnnGraphNotSupportedError("CUDNN_STATUS_BAD_PARAM: sizes")
        if y.dim[:2] != [x.dim[0], w.dim[0]] or sum(one.is_output for one in (x, w, y)) != 1:
            raise cudnnGraphNotSupportedError("CUDNN_STATUS_BAD_PARAM: operands")

    def build_operation_graph(self) -> None:
        self._built_graph = True
        self._lowered_graph = _Lowered(self)

    def create_execution_plans(self, modes: list[Any]) -> None:
        """Ask the heuristics, once."""
        if self._asked or not self._built_graph:
            raise RuntimeError("create_execution_plans() was already called on this graph; planning is one-shot")
        if not all(isinstance(mode, heur_mode) for mode in modes):
            raise TypeError("heuristics are a list of heur_mode")
        calls.append("heuristics")
        self._asked = True
        fits = [
            plan
            for plan in PLANS
            if not (plan[0] in CORRELATES_ONLY and self._mode is convolution_mode.CONVOLUTION)
            and not ("TENSOR_CORE" in ENGINES[plan[0]] and self._compute is data_type.DOUBLE)
        ]
        self._plans += fits

    def create_execution_plan(self, engine_id: int, knobs: dict[Any, int]) -> None:
        """One plan by engine and knobs."""
        numbers = {value: key for key, value in KNOBS.items()}
        if engine_id not in ENGINES:
            raise RuntimeError("Invalid engine id.")
        if any(knob not in numbers for knob in knobs):
            raise RuntimeError("convert_to_backend_knob_type(type, backend_type) failed")
        chosen = {numbers[knob]: value for knob, value in sorted(knobs.items(), key=lambda one: numbers[one[0]])}
        known = [plan for plan in PLANS if plan[:2] == (engine_id, chosen)]
        if not known or (engine_id in CORRELATES_ONLY and self._mode is convolution_mode.CONVOLUTION):
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        self._plans.append(known[0])

    def deselect_numeric_notes(self, notes: list[Any]) -> pygraph:
        names = {note.name for note in notes}
        self._barred |= {index for index, plan in enumerate(self._plans) if ENGINES[plan[0]] & names}
        return self

    def get_execution_plan_count(self) -> int:
        return len(self._plans)

    def get_plan_name_at_index(self, index: int) -> str:
        engine, knobs, _ = self._plans[index]
        return "".join((f"eng{engine}", *(f"_k{number}={value}" for number, value in knobs.items())))

    def get_engine_and_knobs_at_index(self, index: int) -> tuple[int, dict[Any, int]]:
        engine, knobs, _ = self._plans[index]
        return engine, {KNOBS.get(number, knob_type.NOT_SET): value for number, value in knobs.items()}

    def build_plan_at_index(self, index: int) -> None:
        if index in self._barred:
            raise cudnnGraphNotSupportedError("Deselecting execution plan")
        if self._plans[index][0] in BROKEN:
            raise cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED")
        self._made.add(index)
        self._candidate = index

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        if index not in self._made:
            raise RuntimeError("the plan is not built")
        return self._plans[index][2]

    def serialize(self) -> list[int]:
        """The plan that was built last."""
        tensors = {role: [one.dim, one.stride, one.data_type.name, one.uid] for role, one in self._tensors.items()}
        content = {
            "plan": [self._plans[self._candidate][0], *self._plans[self._candidate][2:]],
            "op": self._op,
            "mode": self._mode.name,
            "geometry": self._geometry,
            "tensors": tensors,
        }
        return list((SERIALISED + json.dumps(content)).encode())

    def deserialize(self, handle: Handle, data: list[int]) -> None:
        if not isinstance(handle, Handle) or not isinstance(data, list):
            raise TypeError("deserialize(handle, list of int)")
        text = bytes(data).decode()
        if not text.startswith(SERIALISED):
            raise RuntimeError("[json.exception.parse_error.112] parse error")
        content = json.loads(text.removeprefix(SERIALISED))
        self._op, self._mode = content["op"], convolution_mode[content["mode"]]
        self._geometry = content["geometry"]
        for role, (dim, stride, dtype, uid) in content["tensors"].items():
            self._tensors[role] = Tensor(dim, stride, data_type[dtype], uid)
        self._plans, self._made = [(content["plan"][0], {}, content["plan"][1])], {0}
        self._lowered_graph = _Lowered(self)


class _Lowered:
    """The compiled graph beneath."""

    def __init__(self, graph: pygraph) -> None:
        self._graph = graph

    def _execute_plan_at_index(self, var_pack: dict[int, int], workspace: int, index: int, handle: int) -> None:
        graph = self._graph
        if index not in graph._made:
            raise RuntimeError("No plan found to execute!")
        if not all(type(value) is int for value in (*var_pack.values(), workspace, index, handle)):
            raise TypeError("incompatible function arguments")
        stream = Handle.known[handle].stream
        engine, _, size = graph._plans[index]
        if size and not workspace:
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: no workspace")
        if set(var_pack) != {one.uid for one in graph._tensors.values()}:
            raise RuntimeError("CUDNN_STATUS_BAD_PARAM: variant pack")
        _convolve.enqueue(
            stream,
            graph._op,
            {
                role: (var_pack[one.uid], one.dim, one.stride, one.data_type.name)
                for role, one in graph._tensors.items()
            },
            graph._geometry,
            graph._mode is convolution_mode.CONVOLUTION,
            "TENSOR_CORE" in ENGINES[engine],
            (workspace, size),
        )
