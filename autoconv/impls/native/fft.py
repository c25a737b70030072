"""`native.fft`: depthwise convolution with large filters as a product of spectra, generated C.

Source: Mathieu, Henaff & LeCun, "Fast Training of Convolutional Networks through FFTs", 2013; vectors lie across
        neighbouring channels, so that every transform is scalar code (_dft.py, fft.c). Two planes that meet the same
        filter travel as real and imaginary part of one.
Wins:   one filter per channel, from about 9x9 on, long rows and columns of taps (5x51) included.
Loses:  small filters; few channels.
Error:  about 1e-7 of the largest result in float32, spread over all results alike; a NaN or an infinity anywhere
        spoils its whole pair of planes, so `strict_nan` is False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, prod

from autoconv.impls.native._c import ITEM_BYTES, prelude, template
from autoconv.impls.native._dft import c_transforms, operations, smooth_sizes, split
from autoconv.impls.native._family import NativeFamily, Tunables
from autoconv.impls.native._forward import Forward, as_forward
from autoconv.spec import ConvSpec, Op

__all__ = ["Fft"]

LENGTHS = 2  # tried along each axis
MOST_CONFIGS = 4
PLANE_BYTES = 1280 * 1024  # of one pair of planes: it lives in the second-level cache
OPERATIONS_PER_S = 3e9  # of a thread, as measured
BYTES_PER_S = 8e9  # operands and results that come from memory


class Fft(NativeFamily):
    """Whole rows, in strips of rows; one filter per channel."""

    name = "native.fft"
    version = 1
    ops = frozenset({Op.FPROP, Op.DGRAD})
    ranks = frozenset({1, 2})
    tags = frozenset({"native", "fft"})
    strict_nan = False

    def refusal(self, spec: ConvSpec, tunables: Tunables | None) -> str | None:
        if not spec.in_channels == spec.out_channels == spec.groups:
            return (
                f"needs one filter per channel, got {spec.out_channels} filters for {spec.in_channels} channels "
                f"in {spec.groups} groups"
            )
        if set(spec.stride) != {1}:
            return f"needs stride 1, got {spec.stride}"
        if min(spec.batch, *spec.output_spatial, *spec.in_spatial) < 1:
            return "needs a non-empty problem"
        height, width = _axes(as_forward(spec))
        if min(height.taps, width.taps) < 1:
            return f"needs filters that meet the image, got padding {spec.padding}"
        if not smooth_sizes(width.least(width.out), 1):
            return f"needs rows that one transform takes, got {width.least(width.out)} elements"
        if not tunables:
            return None
        rows, columns = tunables["height"], tunables["width"]
        least_rows, least_columns = height.least(tunables["rows"]), width.least(width.out)
        if rows < least_rows or split(rows) is None:
            return f"height must be a product of two small factors from {least_rows} on, got {rows}"
        if columns < least_columns or split(columns) is None:
            return f"width must be a product of two small factors from {least_columns} on, got {columns}"
        return None

    def tunables(self, spec: ConvSpec, threads: int, vector_bytes: int) -> Sequence[Tunables]:
        height, width = _axes(as_forward(spec))
        found = []
        for strips, columns in product(range(1, height.out + 1), smooth_sizes(width.least(width.out), LENGTHS)):
            rows = ceil(height.out / strips)
            if ceil(height.out / rows) != strips:
                continue
            for length in smooth_sizes(height.least(rows), LENGTHS):
                tunables = {"height": length, "rows": rows, "width": columns}
                plan = _Plan.of(spec, tunables, threads, vector_bytes)
                if plan.scratch_bytes <= PLANE_BYTES:
                    found.append((plan.seconds, tunables))
        found.sort(key=lambda pair: pair[0])
        return [tunables for seconds, tunables in found if seconds < 1.3 * found[0][0]][:MOST_CONFIGS]

    def source(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> str:
        return _Plan.of(spec, tunables, threads, vector_bytes).source()

    def scratch_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return threads * _Plan.of(spec, tunables, threads, vector_bytes).scratch_bytes

    def packed_bytes(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> int:
        return _Plan.of(spec, tunables, threads, vector_bytes).packed_bytes

    def seconds(self, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> float:
        return _Plan.of(spec, tunables, threads, vector_bytes).seconds


@dataclass(frozen=True)
class _Axis:
    """One axis, its filter cut down to the taps that meet the image somewhere."""

    size: int
    out: int
    dilation: int
    pad: int
    first: int  # tap
    end: int

    @classmethod
    def of(cls, forward: Forward, axis: int) -> _Axis:
        size, out, kernel = forward.in_spatial[axis], forward.out_spatial[axis], forward.kernel[axis]
        pad, dilation = forward.pad[axis], forward.dilation[axis]
        meets = [tap for tap in range(kernel) if pad - out < tap * dilation < pad + size]
        return cls(size, out, dilation, pad, min(meets, default=0), max(meets, default=-1) + 1)

    @property
    def taps(self) -> int:
        return self.end - self.first

    @property
    def low(self) -> int:
        """Offset of the first tap from the result it serves."""
        return self.first * self.dilation - self.pad

    @property
    def reach(self) -> int:
        return (self.taps - 1) * self.dilation

    def least(self, rows: int) -> int:
        """The shortest transform for `rows` results of `out`."""
        if rows < self.out:
            return rows + self.reach
        # what wraps round has to meet the zeros behind the image
        return max(self.size + max(0, -self.low), self.out + self.low + self.reach, self.out, self.size)


def _axes(forward: Forward) -> tuple[_Axis, _Axis]:
    return _Axis.of(forward, 1), _Axis.of(forward, 2)


@dataclass(frozen=True)
class _Plan:
    """One spec and config; the names in capitals are fft.c's."""

    forward: Forward
    itemsize: int
    vector_bytes: int
    threads: int
    height: int  # of the transforms
    width: int
    rows: int  # results of a strip

    @classmethod
    def of(cls, spec: ConvSpec, tunables: Tunables, threads: int, vector_bytes: int) -> _Plan:
        return cls(as_forward(spec), ITEM_BYTES[spec.dtype], vector_bytes, threads, **tunables)

    @property
    def lanes(self) -> int:
        return self.vector_bytes // self.itemsize

    @property
    def pitch(self) -> int:
        """Cells from a row of the plane to the next: odd, so that a column does not crowd a few sets of the cache."""
        return self.width | 1

    @cached_property
    def axes(self) -> tuple[_Axis, _Axis]:
        return _axes(self.forward)

    @property
    def whole(self) -> bool:
        return self.rows >= self.axes[0].out

    @property
    def rows_in(self) -> int:
        """Input rows that a strip reads."""
        return self.axes[0].size if self.whole else self.rows + self.axes[0].reach

    @property
    def strips(self) -> int:
        return ceil(self.axes[0].out / self.rows)

    @property
    def pairs(self) -> int:
        return ceil(self.forward.batch * self.strips / 2)

    @property
    def blocks(self) -> int:
        return ceil(self.forward.groups / self.lanes)

    @property
    def scratch_bytes(self) -> int:
        """Per thread: a pair of planes, and a row on its way in or out."""
        rows = max(self.rows_in, self.rows) * self.pitch + max(self.axes[1].size, self.axes[1].out)
        return 2 * self.vector_bytes * rows

    @property
    def packed_bytes(self) -> int:
        return self.blocks * (self.width // 2 + 1) * self.height * 2 * self.vector_bytes

    @property
    def seconds(self) -> float:
        """A rough time: vector instructions, and the arrays at memory speed."""
        f = self.forward
        along_rows = (self.rows_in + self.rows) * (operations(self.width) + 4 * f.out_spatial[2])
        along_columns = self.width * (2 * operations(self.height) + 10 * self.height)
        share = ceil(self.blocks * self.pairs / self.threads)
        moved = f.batch * f.groups * (prod(f.in_spatial) + prod(f.out_spatial)) * self.itemsize
        return share * (along_rows + along_columns) / OPERATIONS_PER_S + moved / BYTES_PER_S / self.threads

    def source(self) -> str:
        """The C text: this problem's numbers, the transforms, the template."""
        f, (height, width) = self.forward, self.axes
        origin = 0 if self.whole else height.low
        names: dict[str, object] = {
            "CHANNELS": f.groups, "N": f.batch, "H": height.size, "W": width.size, "P": height.out, "Q": width.out,
            "HEIGHT": self.height, "WIDTH": self.width, "PITCH": self.pitch, "STRIP": self.rows,
            "STRIP_IN": self.rows_in, "STRIPS": self.strips, "ORIGIN": f"({origin})",
            "PLANE_ROWS": max(self.rows_in, self.rows),
            "R_FIRST": height.first, "R_END": height.end, "S_FIRST": width.first, "S_END": width.end,
            "DH": height.dilation, "DW": width.dilation, "PT": f"({height.pad + origin})", "PL": f"({width.pad})",
            "X_LAST": int(f.x_strides[1] == 1), "W_BASE": f.w_base,
            "SCRATCH_BYTES": f"{self.scratch_bytes}L",
        }  # fmt: skip
        for array, steps in (("X", f.x_strides), ("Y", f.y_strides)):
            names |= {f"{array}_{axis}": f"{step}L" for axis, step in zip("NCDHW", steps, strict=True)}
        names |= {f"W_{axis}": f"({step})" for axis, step in zip("GKCDRS", f.w_strides, strict=True)}
        header = "".join(f"#define {name} {value}\n" for name, value in names.items())
        dtype = "f32" if self.itemsize == 4 else "f64"
        vocabulary = prelude(dtype, self.vector_bytes, self.threads)
        return vocabulary + header + c_transforms({self.height, self.width}) + template("fft.c")
