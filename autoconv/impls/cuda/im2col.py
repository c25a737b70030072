"""Convolution as a matrix product on a GPU: the Toeplitz matrix is written out by a kernel, cuBLAS does the rest.

Source: Chellapilla, Puri & Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006;
        Theano's GpuCorrMM after Caffe, image by image. Here several images are one launch and one batched product.
Wins:   float64, where cuBLAS has matrix units and cuDNN's convolution has none; float32 as 3xTF32; strange strides.
Loses:  large filters and few channels: the matrix holds every pixel once per tap, and goes through memory twice.
Error:  that of cuBLAS summing C*R*S products; half types are summed in float32, in dgrad and wgrad throughout.

Channels-first images make a matrix (taps, places) of each; channels-last ones keep channels innermost, and all their
places are one edge. dgrad multiplies first; each pixel then gathers what it gave (im2col.cu), so the bits repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context, Traits
from autoconv.impls._products import arithmetic_traits, arithmetics, product_s
from autoconv.impls._tiles import taps_in_order
from autoconv.impls.cuda import _cublas, _roofline
from autoconv.impls.cuda._constants import distances, index_type, listed
from autoconv.impls.cuda._kernels import Constants, KernelImplementation, Module, Source
from autoconv.planning import BoundRunner, Runner, Workspace
from autoconv.spec import DTYPES, ConvSpec, Op

__all__ = ["Im2col"]

THREADS = 256
ENOUGH_BYTES = 64 << 20  # a matrix this large keeps every multiprocessor busy
MOST_BYTES = 2 << 30  # and one beyond this only costs memory


class Im2col(KernelImplementation):
    """Every operation and option, any rank; `images` says how many images one product takes."""

    name = "cupy.im2col"
    ranks = frozenset(range(1, 9))
    dtypes = frozenset(DTYPES)
    tags = frozenset({"gemm"})
    config_tags = frozenset({"tf32", "3xtf32"})
    capturable = False
    specimens = (
        "fprop n8c64 28x28 k64 3x3 p1 f32",
        "fprop n4c8 15x15 k8 3x3 p1 s2 g2 corr nhwc f16",
        "dgrad n8c64 28x28 k64 3x3 p1 f64",
        "dgrad n4c8 15x15 k8 3x3 p1 s2 d2 g2 corr nhwc bf16",
        "wgrad n2c4 8x9x10 k4 3x3x3 p1 f16",
        "wgrad n2c4 500 k4 9 nhwc f32",
        "dgrad n3c700 30000x1100 k2 2x2 s300,500 nhwc f32",  # more than 2^31 elements
    )

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Matrices with edges that cuBLAS can count, in an arithmetic that the device has."""
        if config is None:
            edge = max(_depth(spec) * spec.groups, prod(spec.output_spatial))
            yield edge <= _cublas.LONGEST, f"needs matrices with edges below 2^31, got {edge}"
            return
        images, known = config.get("images"), arithmetics(spec, device)
        yield isinstance(images, int) and 0 < images <= max(spec.batch, 1), f"needs images of the batch, got {config}"
        yield config.get("arithmetic") in known, f"computes in {' or '.join(known)} here, got {config}"
        places = _Sizes(spec, config).images * prod(spec.output_spatial) * 3
        yield places <= _cublas.LONGEST, f"needs matrices with edges below 2^31, got {places}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Enough images to fill the device, one, and all; each in every arithmetic of the device."""
        one = _depth(spec) * spec.groups * prod(spec.output_spatial) * spec.itemsize
        batch = max(spec.batch, 1)
        counts = dict.fromkeys(
            [max(1, min(batch, ENOUGH_BYTES // one)), 1, max(1, min(batch, MOST_BYTES // one))]
        )  # in this order, each once
        return tuple(Config(images=count, arithmetic=how) for how in arithmetics(spec, device) for count in counts)

    def traits(self, config: Config) -> Traits:
        """TF32 shortens the operands."""
        return arithmetic_traits(super().traits(config), config)

    def environment(self, config: Config) -> Mapping[str, str]:
        """CuPy's version, which brings cuBLAS's, and the driver's."""
        from autoconv.impls.cuda._versions import versions

        return versions()

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The matrix of some images, what has to be rearranged, and for 3xtf32 both operands three times."""
        return _Sizes(spec, config).bytes

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Writing and reading the matrix, and the products."""
        sizes = _Sizes(spec, config)
        depth, kernels, places = _depth(spec), spec.out_channels // spec.groups, prod(spec.output_spatial)
        chunks = -(-max(spec.batch, 1) // sizes.images)
        edges = {
            Op.FPROP: (kernels, depth, places),
            Op.DGRAD: (depth, kernels, places),
            Op.WGRAD: (kernels, places, depth),
        }[spec.op]
        moved = 2.0 * spec.groups * depth * places * sizes.images * spec.itemsize
        matrix = _roofline.seconds(spec, device, 0, moved)
        return chunks * (matrix + product_s(*edges, spec.groups * sizes.images, spec, device, config))

    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """Both kernels of one text."""
        x = distances(spec.input_shape, spec.layout)
        items = max(spec.batch, 1) * spec.in_channels * prod(spec.output_spatial)
        constants: Constants = {
            "ELEMENT": spec.dtype, "MATRIX": _wide(spec), "RANK": spec.rank,
            "INDEX": "i64" if items >= 2**31 - 2**20 else index_type(spec),
            "X_SIZES": listed(spec.in_spatial), "Y_SIZES": listed(spec.output_spatial), "TAPS": listed(spec.kernel),
            "STRIDES": listed(spec.stride), "DILATIONS": listed(spec.dilation),
            "PADS": listed(before for before, _ in spec.padding), "GROUPS": spec.groups,
            "C": spec.in_channels // spec.groups, "X_N": x[0], "X_C": x[1], "X_AXES": listed(x[2:]),
            "CHANNELS_LAST": int(spec.layout == "nhwc"), "TURNED": int(spec.flip and spec.layout == "nchw"),
        }  # fmt: skip
        return [("im2col", constants)]

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Compile for this spec."""
        (kernels,) = self.modules(spec, context.device, config)
        return _Im2colRunner(spec, config, kernels, _cublas.Multiply(context.device, str(config["arithmetic"])))


def _depth(spec: ConvSpec) -> int:
    """Rows of the matrix per group: channels times taps."""
    return spec.in_channels // spec.groups * prod(spec.kernel)


def _wide(spec: ConvSpec) -> str:
    """What sums are kept in: float32 for half types."""
    return spec.dtype if spec.dtype in ("f32", "f64") else "f32"


class _Sizes:
    """What one chunk of images holds, and how large its arrays are."""

    def __init__(self, spec: ConvSpec, config: Config) -> None:
        self.spec = spec
        self.images = max(1, min(int(config.get("images", 1)), spec.batch))
        self.last = spec.layout == "nhwc"
        self.places = prod(spec.output_spatial)
        self.kernels = spec.out_channels // spec.groups
        self.matrix = self.images * spec.groups * _depth(spec) * self.places
        results = self.images * spec.out_channels * self.places
        wgrad, size, wide = spec.op is Op.WGRAD, spec.itemsize, DTYPES[_wide(spec)]
        filters = prod(spec.filter_shape)
        # channels first, a channel's places of several images do not follow each other
        self.staged = wgrad and not self.last and self.images > 1
        self.summed = wgrad and (self.last or wide != size)
        pieces = [self.matrix * (wide if spec.op is Op.DGRAD else size)]
        pieces += [results * size] * self.staged + [filters * wide] * self.summed
        pieces += [filters * size] * (self.last and not wgrad)
        operands = {Op.FPROP: (filters, self.matrix), Op.DGRAD: (filters, results), Op.WGRAD: (results, self.matrix)}
        pieces += [n * size for n in _cublas.scratch(str(config.get("arithmetic")), *([n] for n in operands[spec.op]))]
        self.bytes = sum(-(-piece // 256) * 256 for piece in pieces)


class _Im2colRunner(Runner):
    def __init__(self, spec: ConvSpec, config: Config, kernels: Module, multiply: _cublas.Multiply) -> None:
        self._spec = spec
        self._sizes = _Sizes(spec, config)
        self._kernels = kernels
        self._multiply = multiply
        self._wide = np.dtype({"f32": np.float32, "f64": np.float64}[_wide(spec)])
        self._chunks = [
            (first, min(first + self._sizes.images, spec.batch)) for first in range(0, spec.batch, self._sizes.images)
        ]

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        if self._spec.op is Op.WGRAD:
            self._wgrad(a, b, out, workspace)
            return
        packed = workspace.take(b.shape, b.dtype) if self._sizes.last else b
        self._run(a, self._pack(b, packed), out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        matrix = self._pack(filters, np.empty_like(filters) if self._sizes.last else filters)

        def bound(a: Array, out: Array, workspace: Workspace) -> None:
            self._run(a, matrix, out, workspace)

        return bound

    def _run(self, a: Array, filters: Array, out: Array, workspace: Workspace) -> None:
        step = self._fprop if self._spec.op is Op.FPROP else self._dgrad
        for first, last in self._chunks:
            mark = workspace.mark()
            step(a[first:last], filters, out[first:last], workspace)
            workspace.release(mark)

    def _pack(self, filters: Array, packed: Array) -> Array:
        """Filters as (groups, filters per group, depth), in the order of the matrix's depth."""
        spec = self._spec
        if packed is not filters:
            rows = np.moveaxis(taps_in_order(filters, spec), 1, -1)
            np.copyto(packed.reshape(rows.shape), rows)
        return packed.reshape(spec.groups, self._sizes.kernels, -1)

    # Matrices -------------------------------------------------------------------------------------

    def _matrix(self, flat: Array, images: int) -> Array:
        """Scratch as (..., depth, places): of each image and group, or of each group with the places of all images."""
        spec, places, depth = self._spec, self._sizes.places, _depth(self._spec)
        if not self._sizes.last:
            return flat.reshape(images, spec.groups, depth, places)
        return flat.reshape(images * places, spec.groups, depth).transpose(1, 2, 0)

    def _results(self, data: Array) -> Array:
        """Results as (..., filters, places), in the order of `_matrix`."""
        spec, sizes = self._spec, self._sizes
        if not sizes.last:
            return data.reshape(len(data), spec.groups, sizes.kernels, sizes.places)
        flat = data.transpose(0, *range(2, data.ndim), 1).reshape(-1, spec.groups, sizes.kernels)
        return flat.transpose(1, 2, 0)

    def _fill(self, x: Array, flat: Array, image_step: int, row_step: int) -> None:
        count = len(x) * self._spec.in_channels * self._sizes.places
        args = x, flat, np.int64(count), np.int64(image_step), np.int64(row_step)
        self._kernels.launch("im2col", (-(-count // THREADS),), (THREADS,), args)

    def _take(self, images: int, workspace: Workspace, dtype: np.dtype[np.generic]) -> Array:
        return workspace.take(images * self._spec.groups * _depth(self._spec) * self._sizes.places, dtype)

    # The operations -------------------------------------------------------------------------------

    def _fprop(self, x: Array, filters: Array, y: Array, workspace: Workspace) -> None:
        places = self._sizes.places
        flat = self._take(len(x), workspace, x.dtype)
        self._fill(x, flat, self._spec.groups * _depth(self._spec) * places, places)
        self._multiply(filters, self._matrix(flat, len(x)), self._results(y), workspace)

    def _dgrad(self, dy: Array, filters: Array, dx: Array, workspace: Workspace) -> None:
        flat = self._take(len(dy), workspace, self._wide)
        self._multiply(filters.swapaxes(-1, -2), self._results(dy), self._matrix(flat, len(dy)), workspace)
        self._kernels.launch("col2im", (-(-dx.size // THREADS),), (THREADS,), (flat, dx, np.int64(dx.size)))

    def _wgrad(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        spec, sizes = self._spec, self._sizes
        total = workspace.take(dw.shape, self._wide) if sizes.summed else dw
        sums = total.reshape(spec.groups, sizes.kernels, -1)
        for first, last in self._chunks:
            mark = workspace.mark()
            matrix, gradient = self._columns(x[first:last], dy[first:last], workspace)
            self._multiply(gradient, matrix.swapaxes(-1, -2), sums, workspace, accumulate=first > 0)
            workspace.release(mark)
        if sizes.summed:
            plain = np.moveaxis(taps_in_order(dw, spec), 1, -1) if sizes.last else dw
            plain[...] = total.reshape(plain.shape)

    def _columns(self, x: Array, dy: Array, workspace: Workspace) -> tuple[Array, Array]:
        """Matrix (groups, depth, places of all images) and gradient (groups, filters, places of all images)."""
        spec, sizes, images = self._spec, self._sizes, len(x)
        flat = self._take(images, workspace, x.dtype)
        if sizes.last:
            self._fill(x, flat, 0, 0)
            return self._matrix(flat, images), self._results(dy)
        self._fill(x, flat, sizes.places, images * sizes.places)
        gradient = self._results(dy).transpose(1, 2, 0, 3)
        if images > 1:
            staged = workspace.take(gradient.shape, dy.dtype)
            np.copyto(staged, gradient)
            gradient = staged
        shape = spec.groups, -1, images * sizes.places
        return flat.reshape(shape), gradient.reshape(shape)
