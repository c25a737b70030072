"""cuFFT: one plan transforms all boxes of a block along all their axes.

A plan has a work area, so it serves one stream of one thread at a time: every runner keeps its own, by thread and
stream. cuFFT does not scale; what three transforms of size n leave is a factor n.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls import _overlap, _spectra
from autoconv.impls._cuts import Cut
from autoconv.impls._tiles import last_axes, sees_nothing
from autoconv.impls.cuda import _cublas, _roofline
from autoconv.places import place_of
from autoconv.planning import Runner
from autoconv.spec import LAYOUTS, ConvSpec

__all__ = ["CufftImplementation", "engine"]

BLOCK_BYTES = 256 << 20  # spectra of one block: enough to keep the device busy, little of its memory
FORWARD, INVERSE = -1, 1
MOST_STREAMS = 4  # of one thread, for which plans are kept
WORK_AREAS = 3  # of a block's spectra, that plans for its transforms were allowed to take
# a broadcast multiply-add moves 20 bytes; a product of a few numbers is one of a large batch; a copy moves 16 bytes
COSTS = _spectra.ProductCosts(1.0e-11, 2.0e-9, 2.0e-12, 1.0e-11)
LARGEST = 2**31 - 1  # elements of a batch, in cuFFT's 32-bit interface


@cache
def engine() -> _overlap.Engine:
    """CuPy's arithmetic with cuFFT's transforms."""

    def own_bytes(transform: int, products: int, itemsize: int) -> int:
        return WORK_AREAS * 2 * transform * itemsize

    def matmul(a: Array, b: Array, out: Array) -> None:
        _cublas.matmul(a, b, out)

    return _overlap.Engine(BLOCK_BYTES, padded=True, costs=COSTS, own_bytes=own_bytes, matmul=matmul)


class CufftImplementation(Implementation):
    """What the FFT algorithms on a GPU have in common."""

    layouts = frozenset(LAYOUTS)
    devices = frozenset({"cuda"})
    tags = frozenset({"fft"})
    strict_nan = False
    capturable = False  # products by cuBLAS

    def unavailable(self) -> str | None:
        """CuPy is all it takes."""
        return None if find_spec("cupy") else "needs CuPy: pip install 'autoconv[cuda12]' or 'autoconv[cuda13]'"

    def libraries(self, config: Config) -> tuple[str, ...]:
        """CuPy brings cuFFT."""
        return ("cupy",)

    def environment(self, config: Config) -> Mapping[str, str]:
        """CuPy's version, which brings cuFFT's, and the driver's."""
        from autoconv.impls.cuda._versions import versions

        return versions()

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """How `config` cuts the operands."""
        raise NotImplementedError

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Stride 1, and transforms that cuFFT can count."""
        yield spec.stride == (1,) * spec.rank, f"needs stride 1, got {spec.stride}"
        if config is not None:
            yield from self.needs(spec, config)
            if not sees_nothing(spec):
                largest = _overlap.Layout(spec, self.cut(spec, config), engine()).largest_transform
                yield largest <= LARGEST, f"needs transforms of less than 2^31 elements, got {largest}"

    def needs(self, spec: ConvSpec, config: Config) -> Iterable[tuple[bool, str]]:
        """What a config must be like."""
        return ()

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The spectra of the filters and of a block of boxes, twice where they are reordered, and cuFFT's own."""
        return _overlap.workspace_bytes(spec, self.cut(spec, config), engine())

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Every array goes through memory a few times; the products are arithmetic."""
        if sees_nothing(spec):
            return _roofline.LAUNCH_S
        layout = _overlap.Layout(spec, self.cut(spec, config), engine())
        box, blocks = prod(layout.cut.sizes), -(-layout.count // layout.most)
        filters = 0 if spec.fixed else spec.out_channels * spec.filter_shape[1]
        moved = box * spec.itemsize * (10.0 * layout.count * (layout.into + layout.outof) + 6.0 * filters)
        flops = 8.0 * prod(layout.half) * layout.count * layout.into * layout.outof / spec.groups
        launches = blocks * (12 if not layout.product.by_terms else 6 + 2 * layout.product.summed)
        return _roofline.seconds(spec, device, flops, moved) + launches * _roofline.LAUNCH_S

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Lay out the boxes; plans are made when they are first used."""
        workspace = place_of(context.device).workspace
        return _overlap.SpectralRunner(spec, self.cut(spec, config), engine(), Cufft(), workspace)


class Cufft:
    """Transforms of whole boxes, (count, channels, sizes), contiguous."""

    padded = True

    def __init__(self) -> None:
        self._local = threading.local()

    def scale(self, sizes: Sequence[int]) -> float:
        """Nothing was scaled: the transform back would divide by the size."""
        return 1.0 / prod(sizes)

    def transform(self, data: Array, spectrum: Array, sizes: Sequence[int]) -> None:
        """Real to complex."""
        self._plan(data, spectrum, sizes, forward=True).fft(data, spectrum, FORWARD)

    def untransform(self, spectrum: Array, box: Array, sizes: Sequence[int], wanted: Sequence[slice]) -> Array:
        """Complex to real; cuFFT overwrites the spectrum."""
        self._plan(box, spectrum, sizes, forward=False).fft(spectrum, box, INVERSE)
        return last_axes(box, *wanted)

    def _plan(self, box: Array, spectrum: Array, sizes: Sequence[int], *, forward: bool) -> Any:
        """The plan of this thread and stream for so many boxes."""
        import cupy
        from cupy.cuda import cufft

        stream = cupy.cuda.get_current_stream()
        kept: dict[int, dict[Any, Any]] = self._local.__dict__.setdefault("plans", {})
        plans = kept.get(stream.ptr)
        if plans is None:
            if len(kept) >= MOST_STREAMS:
                del kept[next(iter(kept))]
            plans = kept[stream.ptr] = {}
        count = box.size // prod(sizes)
        key = count, forward, box.dtype.char
        found = plans.get(key)
        if found is None:
            single = box.dtype.char == "f"
            kind = (
                (cufft.CUFFT_R2C if single else cufft.CUFFT_D2Z)
                if forward
                else (cufft.CUFFT_C2R if single else cufft.CUFFT_Z2D)
            )
            half = _spectra.half_shape(sizes)
            source, target = (tuple(sizes), half) if forward else (half, tuple(sizes))
            found = plans[key] = cufft.PlanNd(
                tuple(sizes), source, 1, prod(source), target, 1, prod(target), kind, count, "C",
                len(spectrum.shape) - 1, target[-1],
            )  # fmt: skip
        return found
