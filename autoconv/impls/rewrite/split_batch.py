"""A batch in parts, one child plan called for each.

Source: the definition: images do not see one another, and the gradient of the filters is a sum over them.
Wins:   above 2^31 elements, where cuDNN falls back to kernels that count in 64 bits: 1.193 s for 64 images and 0.019 s
        for 63 were seen (pytorch issue 128936); where memory for the scratch of a whole batch is short.
Loses:  otherwise: each part is a call of its own, and shorter.
Error:  the child's, and for wgrad one addition per part in order.

The child's batch is smaller than `limit` allows, and such a problem is refused, so the recursion ends. On the CPU it
refuses: engines count in 64 bits there, and take images in blocks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from math import gcd, lcm, prod

from autoconv.arrays import Array, as_layout
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Implementation
from autoconv.impls._products import move_s
from autoconv.impls._tiles import aligned
from autoconv.places import DEVICE_ALIGNMENT
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import DTYPES, ConvSpec, Op, numpy_dtype

__all__ = ["LIMIT", "SplitBatch"]

LIMIT = 2**31 - 1  # elements of one operand that 32-bit offsets reach
CALL_S = 5e-6  # views and one call
COPY_S = 0.5e-9  # per element added up, or brought together
SUMMED = {"f16": "f32", "bf16": "f32", "f32": "f32", "f64": "f64"}


class SplitBatch(Implementation):
    """Every operation with an operand or result of more than `limit` elements, in the fewest equal parts."""

    name = "rewrite.split_batch"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset(SUMMED)
    devices = frozenset({"cuda"})
    tags = frozenset({"rewrite"})
    limit = LIMIT

    def unavailable(self) -> str | None:
        """What it is for needs CuPy."""
        return None if find_spec("cupy") else "needs CuPy: pip install 'autoconv[cuda12]' or 'autoconv[cuda13]'"

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Several images, too many for one call."""
        yield spec.batch > 1, f"needs two images or more, got {spec.batch}"
        largest = _image(spec) * spec.batch
        yield largest > self.limit, f"needs an array of more than {self.limit} elements, got {largest}"
        step, most = _aligned_images(spec), self.limit // _image(spec)
        size = _image(spec)
        yield most >= step, f"needs parts of {step} images with at most {self.limit} elements, got {size} in one"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        """The same problem for fewer images."""
        return replace(spec, batch=_part(spec, self.limit))

    def child_calls(self, spec: ConvSpec) -> int:
        """How many parts there are."""
        return -(-spec.batch // _part(spec, self.limit))

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """A last part that is shorter is filled up with zeros; wgrad's parts and their sum."""
        return aligned(*_pieces(spec, _part(spec, self.limit)))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """The calls, and what is copied or added."""
        elements = sum(_pieces(spec, _part(spec, self.limit))) // spec.itemsize
        return self.child_calls(spec) * CALL_S + move_s(spec, device, elements, COPY_S)

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Get the one child ready."""
        return _SplitRunner(spec, _part(spec, self.limit), context.child().runner)


def _image(spec: ConvSpec) -> int:
    """Elements of one image of the input or of the result, whichever is larger."""
    return max(prod(spec.input_shape[1:]), prod(spec.output_shape[1:]))


def _aligned_images(spec: ConvSpec) -> int:
    """How many images lie between two that both begin at a multiple of `DEVICE_ALIGNMENT`."""
    sides = (prod(shape[1:]) * spec.itemsize for shape in (spec.input_shape, spec.output_shape))
    return lcm(*(DEVICE_ALIGNMENT // gcd(DEVICE_ALIGNMENT, size) for size in sides))


def _part(spec: ConvSpec, limit: int) -> int:
    """Images of one call: parts as equal as they can be."""
    step, most = _aligned_images(spec), limit // _image(spec)
    even = -(-spec.batch // -(-spec.batch // most))
    return min(-(-even // step) * step, most - most % step)


def _pieces(spec: ConvSpec, part: int) -> list[int]:
    """Bytes of each piece of workspace."""
    images = [prod(shape[1:]) * part * spec.itemsize for shape in (spec.input_shape, spec.output_shape)]
    pieces = images if spec.batch % part else []
    if spec.op is Op.WGRAD:
        pieces = pieces + [prod(spec.filter_shape) * size for size in (spec.itemsize, DTYPES[SUMMED[spec.dtype]])]
    return pieces


class _SplitRunner(Runner):
    def __init__(self, spec: ConvSpec, part: int, child: Runner) -> None:
        self._spec = spec
        self._part = part
        self._child = child
        self._sum_dtype = numpy_dtype(SUMMED[spec.dtype])

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, workspace)
            return
        self._each(lambda data, result: self._child(data, b, result, workspace), a, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        child = self._child.bind(filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._each(lambda data, result: child(data, result, workspace), a, out, workspace)

        return bound

    def _each(self, run: Callable[[Array, Array], None], a: Array, out: Array, workspace: Workspace) -> None:
        whole = self._whole
        for first in range(0, whole, self._part):
            mark = workspace.mark()
            run(a[first : first + self._part], out[first : first + self._part])
            workspace.release(mark)
        if whole < self._spec.batch:
            result = self._room(out, workspace)
            run(self._filled(a[whole:], workspace), result)
            out[whole:] = result[: self._spec.batch - whole]

    def _wgrad(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        total, term = workspace.take(dw.shape, self._sum_dtype), workspace.take(dw.shape, dw.dtype)
        for first in range(0, self._spec.batch, self._part):
            mark = workspace.mark()
            image, gradient = x[first : first + self._part], dy[first : first + self._part]
            if len(image) < self._part:
                image, gradient = self._filled(image, workspace), self._filled(gradient, workspace)
            self._child(image, gradient, term, workspace)
            if first:
                total += term
            else:
                total[...] = term
            workspace.release(mark)
        dw[...] = total

    @property
    def _whole(self) -> int:
        """Images in parts that are full."""
        return self._spec.batch - self._spec.batch % self._part

    def _room(self, like: Array, workspace: Workspace) -> Array:
        shape = (self._part, *like.shape[1:])
        return as_layout(workspace.take(prod(shape), like.dtype), shape, self._spec.layout)

    def _filled(self, images: Array, workspace: Workspace) -> Array:
        """A copy with images of zeros behind."""
        copy = self._room(images, workspace)
        copy[: len(images)] = images
        copy[len(images) :] = 0
        return copy
