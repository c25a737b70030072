"""cuDNN's convolutions through NVIDIA's frontend: every plan of its heuristics is a candidate.

Source: cuDNN 9's graph interface (nvidia-cudnn-frontend). Lists come from heuristics A, B and the fallback, which
        rank plans well on average and badly for single shapes (pytorch issue 146096): here they are raced.
Wins:   half types and TF32 on matrix units, many channels.  Loses: float64, depthwise, large filters, 1x1.
Error:  plain sums in float32 (float64 for float64). Plans in TF32 or with a Winograd or Fourier transform say so in
        their config and by a tag; none shortens half types' sums or float32's operands further.

Memory formats are strides, groups follow from the filters' shape, lines are planes of one row. True convolution is
cuDNN's own where the engine has it; for the others filters are turned in scratch, once when they are bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import NoImplementation
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner, Traits
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans
from autoconv.impls.cuda import _roofline
from autoconv.impls.cuda._versions import versions
from autoconv.planning import BoundRunner, Workspace
from autoconv.spec import ConvSpec, Op

__all__ = ["CudnnGraph"]

WORKSPACE_CAP = 8 << 30  # bytes; plans for large 3-D gradients ask for up to 66 GB
MEMORY_SHARE = 4  # and no plan may have more than a quarter of the device's memory
ALIGNMENT = 256
RANK_STEP = 0.01  # what a place further down cuDNN's list adds to the estimate
UNITS = {"f32": "f32", "f64": "f64", "f16": "half", "bf16": "half"}


class CudnnGraph(Implementation):
    """cuDNN, each of its plans a config; TF32 only where the config says so."""

    name = "cudnn.graph"
    dtypes = frozenset(lib.DTYPES)
    devices = frozenset({"cuda"})
    tags = frozenset({"vendor"})
    config_tags = frozenset({*plans.MATHS, *plans.TF32})
    strict_nan = False

    def unavailable(self) -> str | None:
        """Needs the frontend, the library and CuPy."""
        return lib.unavailable()

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A version that is not known to be wrong, and a plan that cuDNN offers, within the cap on scratch."""
        wrong = lib.known_wrong(spec)
        yield wrong is None, str(wrong)
        problem, cap = plans.plain(spec), _cap(device)
        if config is None:
            offers, reason = plans.survey(problem, device)
            yield bool(offers), reason
            least = min(_scratch_bytes(problem, one.config, one.workspace_bytes) for one in offers.values())
            yield least <= cap, f"every plan of cuDNN's wants {least} bytes of scratch or more, the cap is {cap}"
        elif plans.offer(problem, device, config) is None:
            made = plans.ready(problem, config, device)
            yield not isinstance(made, str), str(made)
        if config is not None:
            needed = self.workspace_bytes(spec, device, config)
            yield needed <= cap, f"wants {needed} bytes of scratch, the cap is {cap}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Every plan, in cuDNN's order."""
        return () if self.unavailable() else tuple(plans.survey(plans.plain(spec), device)[0])

    def traits(self, config: Config) -> Traits:
        """What cuDNN notes about the plan's numbers."""
        return Traits(self.tags | plans.words(config), not config.get("nondeterministic", False), False)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """What the plan itself asks for, and the turned filters: exact."""
        problem = plans.plain(spec)
        known = plans.offer(problem, device, config)
        if known is not None:
            return _scratch_bytes(problem, config, known.workspace_bytes)
        made = plans.ready(problem, config, device)
        return 0 if isinstance(made, str) else _scratch_bytes(problem, config, made.workspace_bytes)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The device's peaks, and among plans the order that cuDNN lists them in."""
        listed = list(plans.survey(plans.plain(spec), device)[0])
        place = listed.index(config) if config in listed else len(listed)
        unit = "tf32" if "tf32" in plans.words(config) else UNITS[spec.dtype]
        moved = sum(map(prod, (*spec.operand_shapes, spec.result_shape))) * spec.itemsize
        base = _roofline.seconds(spec, device, 2 * spec.macs, moved, unit, efficiency=0.7)
        return base * (1 + RANK_STEP * place)

    def libraries(self, config: Config) -> tuple[str, ...]:
        """CuPy and the frontend."""
        return ("cupy", "cudnn")

    def environment(self, config: Config) -> Mapping[str, str]:
        """cuDNN and its frontend beside what every GPU row names."""
        return versions("cudnn")

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Make the plan; the heuristics are asked only for a plan that is neither kept nor named by its knobs."""
        made = plans.ready(plans.plain(spec), config, context.device)
        if isinstance(made, str):
            raise NoImplementation(f"cannot run {spec}", {self.name: made})
        return _CudnnRunner(spec, made, context.device.index, config.get("filters") == "turned")


def _cap(device: Device) -> int:
    return min(WORKSPACE_CAP, device.memory // MEMORY_SHARE) if device.memory else WORKSPACE_CAP


def _scratch_bytes(spec: ConvSpec, config: Config, plan_bytes: int) -> int:
    """The plan's scratch, and filters turned beside it."""
    turned = prod(spec.filter_shape) * spec.itemsize if config.get("filters") == "turned" else 0
    return plan_bytes + -(-turned // ALIGNMENT) * ALIGNMENT


class _CudnnRunner(Runner):
    def __init__(self, spec: ConvSpec, made: plans.Ready, index: int, turned: bool) -> None:
        import cupy

        self._plan = made  # keeps the graph
        self._execute = made.execute
        self._bytes = made.workspace_bytes
        self._roles = plans.ROLES[spec.op]
        self._index = index
        self._stream = cupy.cuda.get_current_stream
        self._turned = turned
        self._wgrad = spec.op is Op.WGRAD
        self._shape = spec.filter_shape
        self._bits = f"u{spec.itemsize}"  # filters are moved, not computed with: any format will do

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if not self._turned:
            self._run(a, b, out, workspace)
        elif self._wgrad:
            gradient = workspace.take(self._shape, self._bits)
            self._run(a, b, gradient, workspace)
            out.view(self._bits)[...] = _reversed(gradient)
        else:
            filters = workspace.take(self._shape, self._bits)
            filters[...] = _reversed(b.view(self._bits))
            self._run(a, filters, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        if not self._turned:
            return super().bind(filters)
        turned = _reversed(filters.view(self._bits)).copy()

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, turned, out, workspace)

        return bound

    def _run(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
        first, second, result = self._roles
        scratch = workspace.take_address(self._bytes) if self._bytes else 0
        handle = lib.handle(self._index).on(self._stream().ptr)
        self._execute({first: a.data.ptr, second: b.data.ptr, result: out.data.ptr}, scratch, 0, handle)


def _reversed(filters: Any) -> Any:
    """A view with every tap axis turned round."""
    return filters[(..., *(slice(None, None, -1),) * (filters.ndim - 2))]
