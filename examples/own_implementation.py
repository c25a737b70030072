"""An implementation of your own, from outside autoconv: checked, registered, raced.

    python examples/own_implementation.py

It convolves images with separable filters: R + S products per pixel where the definition takes R * S.
Whether filters are separable is part of the spec (`rank1`), so refusing all others is one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

import autoconv
from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import BoundRunner, Context, Implementation, Runner
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec, Op

MACS_PER_S = 5e8  # one multiplication and one addition of whole arrays


class Separable(Implementation):
    """A row of taps along one axis, a column along the other."""

    name = "example.separable"
    ops = frozenset({Op.FPROP})
    ranks = frozenset({2})
    layouts = frozenset({"nchw"})
    strict_nan = False  # dividing by the filter's peak does not keep infinities where the direct sum has them

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Filters known to be separable, one channel, no gaps."""
        return (
            (spec.rank1, "needs separable filters (rank1), got any"),
            (spec.in_channels == 1, f"needs one input channel, got {spec.in_channels}"),
            (spec.stride == (1, 1), f"needs stride 1, got {spec.stride}"),
            (spec.dilation == (1, 1), f"needs dilation 1, got {spec.dilation}"),
        )

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The padded images, the images after their rows were done, and one product."""
        return sum(-(-prod(shape) * spec.itemsize // 64) * 64 for shape in _scratch_shapes(spec))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """R + S products per pixel and filter."""
        return spec.out_channels * sum(spec.kernel) * prod(_scratch_shapes(spec)[1]) / MACS_PER_S

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Nothing to prepare before the filters are known."""
        return _SeparableRunner(spec)


def _scratch_shapes(spec: ConvSpec) -> Sequence[tuple[int, ...]]:
    height, width = (size + sum(pads) for size, pads in zip(spec.in_spatial, spec.padding, strict=True))
    across = (spec.batch, height, spec.output_spatial[1])
    return (spec.batch, height, width), across, across


class _SeparableRunner(Runner):
    def __init__(self, spec: ConvSpec) -> None:
        self._spec = spec

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._convolve(a, self._factors(b), out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        factors = self._factors(filters)  # once, not per call
        return lambda a, out, workspace: self._convolve(a, factors, out, workspace)

    def _factors(self, filters: Array) -> list[tuple[Array, Array]]:
        """Column and row of every filter, in the order in which they meet the image."""
        found = []
        for (taps,) in filters:
            r, s = np.unravel_index(np.abs(taps).argmax(), taps.shape)
            column, row = taps[:, s], taps[r] / (taps[r, s] or 1)
            found.append((column[::-1], row[::-1]) if self._spec.flip else (column, row))
        return found

    def _convolve(self, a: Array, factors: Sequence[tuple[Array, Array]], out: Array, workspace: Workspace) -> None:
        padded, across, product = (workspace.take(shape, a.dtype) for shape in _scratch_shapes(self._spec))
        (top, _), (left, _) = self._spec.padding
        height, width = self._spec.in_spatial
        padded[...] = 0
        padded[:, top : top + height, left : left + width] = a[:, 0]
        rows, columns = self._spec.output_spatial
        for index, (column, row) in enumerate(factors):
            across[...] = 0
            for s, weight in enumerate(row):
                across += np.multiply(padded[:, :, s : s + columns], weight, out=product)
            result = out[:, index]
            result[...] = 0
            for r, weight in enumerate(column):
                result += np.multiply(across[:, r : r + rows], weight, out=product[:, :rows])


def main() -> None:
    """Check it, register it, let it race."""
    refusals = testing.check_implementation(Separable())  # raises when anything is wrong
    print(f"passes the conformance suite; refuses {len(refusals)} of its problems, the first:")
    print("  " + ": ".join(next(iter(refusals.items()))))

    autoconv.register(Separable())
    line = np.exp(-0.5 * (np.arange(-12, 13, dtype=np.float32) / 4) ** 2)
    blur = (np.outer(line, line) / line.sum() ** 2)[None, None]
    image = np.random.default_rng(0).random((1, 1, 512, 512), dtype=np.float32)
    spec = autoconv.ConvSpec.fprop(image.shape, blur.shape, padding="half", fixed=True, rank1=True)
    autoconv.tune(spec)
    print(autoconv.explain(spec))

    separably = autoconv.plan(spec).bind(blur)(image)
    as_any_filter = autoconv.conv2d(image, blur, border_mode="half")
    print(f"\nlargest difference from an ordinary call: {np.abs(separably - as_any_filter).max():.1e}")


if __name__ == "__main__":
    main()
