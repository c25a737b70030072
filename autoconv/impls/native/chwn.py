"""`native.chwn`: images innermost, as cuda-convnet laid out its arrays, generated C.

Source: Krizhevsky, cuda-convnet (2012): arrays are (channels, height, width, images), and threads, here the lanes of a
        vector, take neighbouring images. Its restrictions are kept: they are what lets every block be whole.
Wins:   batches from about 16 on of small images, where other layouts leave lanes idle; arrays in its own layout,
        which it uses where they lie when no padding is asked for and whole vectors of images come.
Loses:  small batches; large images, whose transposing to and from this layout (counted) costs as much as it saves.
Error:  that of a plain sum over channels and taps in the array's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from autoconv.implementation import first_refusal
from autoconv.impls._convnet import FEW_CHANNELS, restrictions
from autoconv.impls.native._c import ITEM_BYTES, defines, lanes, prelude, registers, template
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import array_strides, three
from autoconv.planning import ALIGNMENT
from autoconv.spec import LAYOUTS, ConvSpec, Op

__all__ = ["Chwn"]

FLOPS_PER_S = 85e9  # of one thread with 64-byte vectors of f32; only the order of the candidates depends on it
MOVED_PER_S = 2e9  # bytes that one thread transposes


class Chwn(NativeFamily):
    """Lanes across images, register blocks of channels and images."""

    name = "native.chwn"
    version = 2
    layouts = frozenset(LAYOUTS)
    tags = frozenset({"native", "direct"})

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        return first_refusal(restrictions(spec))

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        many = registers(vector_bytes) == 32
        vectors = ceil(spec.batch / lanes(spec.dtype, vector_bytes))
        if spec.op is Op.WGRAD:
            blocks = [(4, 1), (8, 1)] if many and _wgrad_channels(spec) <= FEW_CHANNELS else [(4 if many else 2, 1)]
        else:
            blocks = [(8, 2), (16, 1), (8, 3), (4, 4)] if many else [(4, 2), (8, 1), (4, 3)]
        outputs = spec.in_channels if spec.op is Op.DGRAD else spec.out_channels
        found = [{"filters": min(filters, outputs), "images": images} for filters, images in blocks]
        whole = [one for one in found if one["images"] <= vectors]
        # images that fill the last block come first
        whole.sort(key=lambda one: ceil(vectors / one["images"]) * one["images"])
        return [one for index, one in enumerate(whole) if one not in whole[:index]]

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        sizes = _Sizes(spec, tunables["filters"], tunables["images"], threads, vector_bytes)
        return prelude(spec.dtype, vector_bytes, threads) + defines(sizes.constants) + template("chwn.c")

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _Sizes(spec, tunables["filters"], tunables["images"], threads, vector_bytes).scratch_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        if spec.op is Op.WGRAD:
            return 0
        ins, outs = spec.in_channels, spec.out_channels
        if spec.op is Op.DGRAD:
            ins, outs = outs, ins
        filters = int(tunables["filters"])
        return ceil(outs / filters) * filters * ins * prod(spec.kernel) * spec.itemsize

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        sizes = _Sizes(spec, tunables["filters"], tunables["images"], threads, vector_bytes)
        padded = sizes.padded_images / spec.batch
        rate = FLOPS_PER_S * vector_bytes / 64 * 4 / spec.itemsize
        moved = (sizes.stages * prod(spec.input_shape) + (not sizes.whole) * prod(spec.output_shape)) * spec.itemsize
        return padded * (2 * spec.macs / rate + moved / MOVED_PER_S) / threads


def _wgrad_channels(spec: ConvSpec) -> int:
    """Channels of a wgrad register block."""
    return spec.in_channels if spec.in_channels <= FEW_CHANNELS else 4


@dataclass(frozen=True)
class _Sizes:
    """The numbers of chwn.c, by the names they have there."""

    spec: ConvSpec
    filters: int
    images: int  # vectors of images per block
    threads: int
    vector_bytes: int

    @property
    def staged(self) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
        """What is brought into this layout: channels, where it begins in its rim, its size, the size with the rim."""
        spec = self.spec
        (pad, _), taps, stride = spec.padding[0], spec.kernel[0], spec.stride[0]
        height, width = spec.in_spatial
        p, q = spec.output_spatial
        if spec.op is not Op.DGRAD:
            return spec.in_channels, pad, (height, width), (height + 2 * pad, width + 2 * pad)
        at = max(0, ceil((taps - 1 - pad) / stride))
        rows, columns = (max(out, (size - 1 + pad) // stride + 1) for out, size in ((p, height), (q, width)))
        return spec.out_channels, at, (p, q), (at + rows, at + columns)

    @property
    def padded_images(self) -> int:
        block = self.images * self.vector_bytes // ITEM_BYTES[self.spec.dtype]
        return ceil(self.spec.batch / block) * block

    @property
    def whole(self) -> bool:
        """Whether the arrays have their images last already, in whole blocks."""
        return self.spec.layout == "chwn" and self.padded_images == self.spec.batch

    @property
    def stages(self) -> bool:
        """Whether the data has to be copied."""
        _, at, data, side = self.staged
        return not (self.whole and at == 0 and data == side)

    @property
    def staged_bytes(self) -> int:
        channels, _, _, side = self.staged
        return self.stages * _round_up(channels * prod(side) * self.padded_images * self.spec.itemsize)

    @property
    def staged_grad_bytes(self) -> int:
        """For wgrad: the output gradient in this layout."""
        spec = self.spec
        size = spec.out_channels * prod(spec.output_spatial) * self.padded_images * spec.itemsize
        return _round_up(size) if spec.op is Op.WGRAD and not self.whole else 0

    @property
    def thread_bytes(self) -> int:
        """Sums for every tap of a block (wgrad), or a row of results on its way out."""
        spec = self.spec
        if spec.op is Op.WGRAD:
            return prod(spec.kernel) * self.filters * _wgrad_channels(spec) * self.vector_bytes
        width = (spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial)[1]
        return self.filters * width * self.images * self.vector_bytes

    @property
    def scratch_bytes(self) -> int:
        return self.staged_bytes + self.staged_grad_bytes + self.threads * self.thread_bytes

    @property
    def constants(self) -> dict[str, int]:
        spec = self.spec
        channels, at, data, side = self.staged
        backward = spec.op is Op.DGRAD
        outputs = spec.in_channels if backward else spec.out_channels
        out_size = spec.in_spatial if backward else spec.output_spatial
        taps = prod(spec.kernel)
        to_output, to_input = spec.in_channels * taps, taps
        if backward:
            to_output, to_input = to_input, to_output
        names = {
            "N": spec.batch, "R": spec.kernel[0], "STRIDE": spec.stride[0], "PAD": spec.padding[0][0],
            "FLIP": int(spec.flip), "DGRAD": int(backward), "WGRAD": int(spec.op is Op.WGRAD),
            "A_CHANNELS": channels, "A_H": data[0], "A_W": data[1], "AT": at, "SIDE_H": side[0], "SIDE_W": side[1],
            "OUT_CHANNELS": outputs, "OUT_H": out_size[0], "OUT_W": out_size[1],
            "B_CHANNELS": spec.out_channels, "B_H": spec.output_spatial[0], "B_W": spec.output_spatial[1],
            "IB": self.images, "OB": self.filters, "CB": _wgrad_channels(spec),
            "W_OUT": to_output, "W_IN": to_input,
            "A_STAGED": int(self.stages), "B_STAGED": int(not self.whole), "OUT_STAGED": int(not self.whole),
            "STAGED_BYTES": self.staged_bytes, "STAGED_B_BYTES": self.staged_grad_bytes,
            "THREAD_BYTES": self.thread_bytes,
        }  # fmt: skip
        arrays = (("A", channels, data), ("OUT", outputs, out_size), ("B", spec.out_channels, spec.output_spatial))
        for name, depth, size in arrays:
            per_image, per_channel, _, per_row, per_column = array_strides(spec.layout, spec.batch, depth, three(size))
            names |= {f"{name}_N": per_image, f"{name}_C": per_channel}
            names |= {f"{name}_STEP_H": per_row, f"{name}_STEP_W": per_column}
        return names


def _round_up(size: int) -> int:
    return ceil(size / ALIGNMENT) * ALIGNMENT
