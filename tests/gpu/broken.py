"""GPU implementations that are broken on purpose, importable so that a worker can make them."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation, Runner
from autoconv.spec import ConvSpec
from autoconv.testing import reference
from autoconv.workspace import Workspace

WILD = r"""
extern "C" __global__ void wild(float* p) { p[1ull << 44] = 1.0f; }
"""


class Good(Implementation):
    """Right, by way of the CPU; the others do something after the answer."""

    name = "broken.gpu"
    devices = frozenset({"cuda"})
    dtypes = frozenset({"f32"})

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return 1e-9  # so little that no race thinks it hopeless

    def libraries(self, config: Config) -> tuple[str, ...]:
        return ("cupy",)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _Runner(self, spec)

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        """What happens after the answer."""


class _Runner(Runner):
    def __init__(self, owner: Good, spec: ConvSpec) -> None:
        self._owner = owner
        self._spec = spec

    def __call__(self, a: Any, b: Any, out: Any, workspace: Workspace) -> None:
        import cupy

        out[...] = cupy.asarray(reference(self._spec, a.get(), b.get()).astype(self._spec.np_dtype))
        self._owner.misbehave(cupy, out, workspace)


class Wild(Good):
    """Writes where no memory is: its process's context is lost."""

    name = "broken.wild"

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        cupy.RawModule(code=WILD).get_function("wild")((1,), (1,), (out,))


class Beyond(Good):
    """Writes past its result, into the guard bytes."""

    name = "broken.beyond"

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        end = cupy.ndarray((out.size + 4,), out.dtype, out.data)
        end[out.size :] = 7


class Wrong(Good):
    """Off by a little in one place."""

    name = "broken.wrong"

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        out[(0,) * out.ndim] += 0.1


class Greedy(Good):
    """Wants more memory than any device has."""

    name = "broken.greedy"

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        workspace.take(1 << 50, np.uint8)


class Hidden(Good):
    """Takes a hundred mebibytes without having declared them."""

    name = "broken.hidden"

    def misbehave(self, cupy: Any, out: Any, workspace: Workspace) -> None:
        cupy.zeros(100 << 20, np.uint8)
