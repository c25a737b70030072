"""cuda-convnet's layout on a GPU: images innermost, threads over images and filters.

Source: Krizhevsky, cuda-convnet (2012) and cuda-convnet2 (2014): filterActs, imgActs and weightActs, with their
        restrictions; see chwn.cu and chwn_weights.cu. Heir of Theano's cuda-convnet wrapper.
Wins:   arrays that have their images last, batches from about 32 on: nothing is brought into order, and stride and
        padding cost nothing, the gradient of strided layers above all.
Loses:  to matrix units wherever those are admitted; other layouts, whose way there and back (counted) is long.
Error:  that of a plain sum over channels and taps in the array's precision (float32 for half types); the gradient of
        the filters is summed in parts, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls._convnet import restrictions
from autoconv.impls._tiles import aligned
from autoconv.impls.cuda import _roofline
from autoconv.impls.cuda._kernels import KernelImplementation, Module, Source
from autoconv.planning import Runner, Workspace
from autoconv.spec import DTYPES, LAYOUTS, ConvSpec, Op

__all__ = ["Chwn"]

WARP = 32
RUN_BYTES = 16  # of neighbouring images, in the accumulator's type, that a thread takes
MOST_CONFIGS = 4

# Rows of a block of `acts`: rows per thread, warps down, warps across, steps between two barriers.
BLOCKS = {
    128: (16, 8, 1, 8),
    64: (16, 4, 1, 8),
    32: (16, 2, 2, 8),
    16: (16, 1, 4, 4),
    8: (8, 1, 4, 4),
    4: (4, 1, 4, 4),
}
# Filters of a block of `weight_acts`: filters per thread.
WEIGHT_BLOCKS = {64: 8, 32: 4, 16: 2}
WEIGHT_THREADS_ACROSS = 16
DEPTH = 16  # places of the sum between two barriers
LEAST_CHUNKS = 4  # of a part: fewer are not worth writing it
WAVES = (4, 12)  # blocks per multiprocessor that parts of the sum are made for: one residence, or more to level out

TURN_EDGE = 32
GRID_LIMIT = 65535  # of a grid's second and third axis


class Chwn(KernelImplementation):
    """Every operation within cuda-convnet's restrictions, any layout.

    Configs: `filters` is how many channels of the result (filters of a gradient) a block of threads makes; `parts`
    into how many sums, added in order, the gradient of the filters is cut.
    """

    name = "cuda.chwn"
    ranks = frozenset({2})
    dtypes = frozenset(DTYPES)
    layouts = frozenset(LAYOUTS)
    tags = frozenset({"legacy", "direct"})
    specimens = (
        "fprop n128c64 24x24 k64 5x5 p2 chwn f32",
        "fprop n128c3 224x224 k96 11x11 s4 chwn f32",
        "fprop n18c16 13x13 k16 3x3 p1 corr nchw f32",
        "fprop n32c32 14x14 k128 3x3 p1 nhwc f16",
        "fprop n33c32 14x14 k64 3x3 p1 chwn bf16",
        "fprop n64c32 14x14 k64 3x3 p1 chwn f64",
        "dgrad n128c64 27x27 k128 3x3 p1 s2 chwn f32",
        "dgrad n128c3 32x32 k32 5x5 p2 corr chwn f32",
        "dgrad n30c6 12x12 k16 3x3 s4 nhwc f64",
        "wgrad n128c64 24x24 k64 5x5 p2 chwn f32",
        "wgrad n128c3 32x32 k32 5x5 p2 s2 corr chwn f32",
        "wgrad n31c4 9x9 k16 3x3 nchw f32",
        "wgrad n64c16 9x9 k48 3x3 p1 chwn f64",
        "wgrad n64c16 9x9 k64 3x3 p1 nhwc bf16",
    )

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Those of cuda-convnet, and a config of ours."""
        yield from restrictions(spec)
        if config is not None:
            blocks = WEIGHT_BLOCKS if spec.op is Op.WGRAD else BLOCKS
            keys = {"filters", "parts"} if spec.op is Op.WGRAD else {"filters"}
            known = set(config) == keys and config["filters"] in blocks
            yield known, f"needs {' and '.join(sorted(keys))}, filters one of {sorted(blocks)}, got {config}"
            parts, most = config.get("parts", 1), _chunks(spec)
            fits = isinstance(parts, int) and 1 <= parts <= most
            yield fits, f"needs 1 to {most} parts, one per chunk of the sum at most, got {parts!r}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Blocks that waste least of their rows, the largest first; sums cut for one and for several waves of them."""
        if spec.op is Op.WGRAD:
            found = dict.fromkeys(
                Config(filters=filters, parts=_parts(spec, filters, device.cores * wave))
                for filters in _fitting(spec.out_channels, WEIGHT_BLOCKS)[:2]
                for wave in WAVES
            )
        else:
            found = dict.fromkeys(Config(filters=rows) for rows in _fitting(spec.result_shape[1], BLOCKS))
        ranked = sorted(found, key=lambda config: self.estimate_s(spec, device, config))
        return ranked[:MOST_CONFIGS]

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Data arrays in this layout unless they lie so already, and the parts of the filters' gradient."""
        sizes = _Sizes(spec, config)
        return aligned(*(size * spec.itemsize for size in sizes.staged), sizes.parts_bytes)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Arithmetic, with what blocks waste and multiprocessors that stay idle; the way from and to other layouts."""
        sizes = _Sizes(spec, config)
        busy = min(1.0, sizes.warps / (device.cores * 12))  # three sums and more under way in every lane
        rows = BLOCKS[sizes.filters][0] if spec.op is not Op.WGRAD else 2 * WEIGHT_BLOCKS[sizes.filters]
        efficiency = 0.65 * busy * sizes.used * rows / (rows + 3)
        arrays = sum(map(prod, (*spec.operand_shapes, spec.result_shape))) * spec.itemsize
        seconds = _roofline.seconds(spec, device, 2 * spec.macs, arrays, efficiency=efficiency)
        for size in sizes.staged:
            seconds += _roofline.seconds(spec, device, 0, 2 * size * spec.itemsize)
        if sizes.parts_bytes:
            seconds += _roofline.seconds(spec, device, 0, 2 * sizes.parts_bytes)
        return seconds

    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """The kernels of the operation; and the one that turns, unless images are innermost."""
        sizes = _Sizes(spec, config)
        found: list[Source] = [("chwn_weights" if spec.op is Op.WGRAD else "chwn", sizes.constants)]
        if sizes.staged:
            found.append(("turn", {"ELEMENT": spec.dtype}))
        return found

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Compile for this spec."""
        return _ChwnRunner(_Sizes(spec, config), self.modules(spec, context.device, config))


def _fitting(outputs: int, blocks: Iterable[int]) -> list[int]:
    """Block sizes that make hardly more rows than there are, the largest first."""
    padded = {size: ceil(outputs / size) * size for size in blocks}
    return [size for size, rows in padded.items() if rows <= 1.25 * min(padded.values())]


def _chunks(spec: ConvSpec) -> int:
    """Chunks of places that the gradient of the filters sums over."""
    return ceil(spec.batch * prod(spec.output_spatial) / DEPTH)


def _parts(spec: ConvSpec, filters: int, blocks: int) -> int:
    """Parts of the sum that make about so many blocks of threads, none of them empty."""
    tiles = ceil(spec.out_channels / filters) * ceil(_taps(spec) / _taps_per_block(spec))
    wanted = max(1, min(blocks // tiles, _chunks(spec) // LEAST_CHUNKS))
    return ceil(_chunks(spec) / ceil(_chunks(spec) / wanted))


def _taps(spec: ConvSpec) -> int:
    return spec.in_channels * prod(spec.kernel)


def _taps_per_block(spec: ConvSpec) -> int:
    return WEIGHT_THREADS_ACROSS * (2 if _taps(spec) <= 2 * WEIGHT_THREADS_ACROSS else 4)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Grids, scratch, and the numbers of the kernels by the names they have there."""

    spec: ConvSpec
    config: Config

    @property
    def filters(self) -> int:
        """Rows of a block."""
        return int(self.config["filters"])

    @property
    def staged(self) -> tuple[int, ...]:
        """Elements of the data arrays that have to be turned, in the order of the input and the output."""
        spec = self.spec
        return () if spec.layout == "chwn" or spec.batch == 1 else (prod(spec.input_shape), prod(spec.output_shape))

    @property
    def sum_dtype(self) -> np.dtype[Any]:
        """What sums are kept in."""
        return np.dtype(np.float64 if self.spec.dtype == "f64" else np.float32)

    @property
    def per_part(self) -> int:
        """Chunks of one part; a config's parts are such that none is empty."""
        return ceil(_chunks(self.spec) / int(self.config["parts"]))

    @property
    def parts(self) -> int:
        """Parts of the sum that have something to add."""
        return ceil(_chunks(self.spec) / self.per_part)

    @property
    def parts_bytes(self) -> int:
        """Scratch for the parts of the filters' gradient, in the accumulator's type."""
        if self.spec.op is not Op.WGRAD or self.parts == 1:
            return 0
        return self.parts * prod(self.spec.filter_shape) * self.sum_dtype.itemsize

    @property
    def run(self) -> int:
        """Neighbouring images that a thread takes."""
        return RUN_BYTES // self.sum_dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks of the kernel that multiplies."""
        spec = self.spec
        rows = ceil(self.outputs / self.filters)
        if spec.op is Op.WGRAD:
            return rows * ceil(_taps(spec) / _taps_per_block(spec)), self.parts
        columns = ceil(self.columns / self.columns_per_block)
        return rows * columns, 1, self.residues**2

    @property
    def threads(self) -> int:
        """Threads of one of its blocks."""
        if self.spec.op is Op.WGRAD:
            return 8 * WEIGHT_THREADS_ACROSS
        _, down, across, _ = BLOCKS[self.filters]
        return WARP * down * across

    @property
    def outputs(self) -> int:
        """Rows of the product: channels of the result, or filters of their gradient."""
        return self.spec.in_channels if self.spec.op is Op.DGRAD else self.spec.out_channels

    @property
    def residues(self) -> int:
        """Residues of the stride along an axis, each a problem of its own in dgrad."""
        return self.spec.stride[0] if self.spec.op is Op.DGRAD else 1

    @property
    def columns(self) -> int:
        """Columns of the product: pixels of all images, at most, of one residue."""
        spec = self.spec
        size = spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial
        return spec.batch * prod(ceil(extent / self.residues) for extent in size)

    @property
    def columns_per_block(self) -> int:
        """Those of a block of `acts`."""
        return WARP * BLOCKS[self.filters][2] * self.run

    @property
    def warps(self) -> int:
        """Warps of the whole grid."""
        return prod(self.grid) * self.threads // WARP

    @property
    def used(self) -> float:
        """The part of the blocks' rows and columns that is wanted."""
        spec = self.spec
        rows = self.outputs / (ceil(self.outputs / self.filters) * self.filters)
        wanted, block = (
            (_taps(spec), _taps_per_block(spec)) if spec.op is Op.WGRAD else (self.columns, self.columns_per_block)
        )
        return rows * wanted / (ceil(wanted / block) * block)

    @property
    def constants(self) -> dict[str, int | str]:
        """The macros."""
        spec = self.spec
        names: dict[str, int | str] = {
            "ELEMENT": spec.dtype, "IMAGES": spec.batch, "KERNEL": spec.kernel[0], "STRIDE": spec.stride[0],
            "PAD": spec.padding[0][0], "FLIP": int(spec.flip),
        }  # fmt: skip
        sides = {"IN": spec.input_shape, "OUT": spec.output_shape}
        if spec.op is Op.WGRAD:
            names |= {
                "ROWS": WEIGHT_BLOCKS[self.filters], "ACROSS": _taps_per_block(spec) // WEIGHT_THREADS_ACROSS,
                "DEPTH": DEPTH, "PARTS": self.parts, "PER": self.per_part,
            }  # fmt: skip
        else:
            rows, down, across, steps = BLOCKS[self.filters]
            to_filter, to_channel = _taps(spec), prod(spec.kernel)
            backward = spec.op is Op.DGRAD
            if backward:
                sides = {"IN": spec.output_shape, "OUT": spec.input_shape}
                to_filter, to_channel = to_channel, to_filter
            names |= {
                "BACKWARD": int(backward), "ROWS": rows, "WARPS_DOWN": down, "WARPS_ACROSS": across, "STEPS": steps,
                "W_OUT": to_filter, "W_IN": to_channel,
            }  # fmt: skip
        for side, shape in sides.items():
            names |= {f"{side}_CHANNELS": shape[1], f"{side}_H": shape[2], f"{side}_W": shape[3]}
        return names


class _ChwnRunner(Runner):
    def __init__(self, sizes: _Sizes, modules: Sequence[Module]) -> None:
        self._sizes = sizes
        self._kernels = modules[0]
        self._turn = modules[1] if len(modules) > 1 else None

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        sizes = self._sizes
        if sizes.spec.op is Op.WGRAD:
            self._weights(self._staged(a, workspace), self._staged(b, workspace), out, workspace)
            return
        data = self._staged(a, workspace)
        result = out if self._turn is None else workspace.take(out.size, out.dtype)
        self._kernels.launch("acts", sizes.grid, (sizes.threads,), (data, b, result))
        if self._turn is not None:
            self._turn_layout(out.shape, result, out, back=True)

    def _weights(self, x: Array, dy: Array, dw: Array, workspace: Workspace) -> None:
        sizes = self._sizes
        sums = workspace.take((sizes.parts, dw.size), sizes.sum_dtype) if sizes.parts > 1 else dw
        self._kernels.launch("weight_acts", sizes.grid, (sizes.threads,), (x, dy, sums))
        if sizes.parts > 1:
            self._kernels.launch("sum_parts", (ceil(dw.size / WARP),), (WARP, 8), (sums, dw))

    def _staged(self, array: Array, workspace: Workspace) -> Array:
        """The array with its images innermost: itself, or a copy."""
        if self._turn is None:
            return array
        staged = workspace.take(array.size, array.dtype)
        self._turn_layout(array.shape, array, staged, back=False)
        return staged

    def _turn_layout(self, shape: tuple[int, ...], source: Array, target: Array, *, back: bool) -> None:
        """Bring images innermost, or back again, by transposing matrices: see turn.cu."""
        assert self._turn is not None
        images, channels, height, width = shape
        pixels = height * width
        # From the caller's layout: layers of (images x columns), each column `apart` from the next in the target.
        if self._sizes.spec.layout == "nchw":
            layers, columns, step = 1, channels * pixels, 0
            apart, step_there = images, 0
        else:
            layers, columns, step = pixels, channels, channels
            apart, step_there = pixels * images, images
        image = channels * pixels
        if back:
            order = (columns, images, layers, apart, image, step_there, step)
        else:
            order = (images, columns, layers, image, apart, step, step_there)
        rows, across, *_ = order
        grid = (ceil(across / TURN_EDGE), min(ceil(rows / TURN_EDGE), GRID_LIMIT), min(layers, GRID_LIMIT))
        kinds = (np.int32, np.int64, np.int32, np.int64, np.int64, np.int64, np.int64)
        numbers = [kind(value) for kind, value in zip(kinds, order, strict=True)]
        self._turn.launch("turn", grid, (TURN_EDGE, 8), (source, target, *numbers))
