"""Convolution as a product of spectra, tile by tile (overlap-save).

Source: Stockham, "High-speed convolution and correlation", 1966; Highlander & Rodriguez, "Very Efficient Training
        of Convolutional Neural Networks using Fast Fourier Transform and Overlap-and-Add", 2015.
Wins:   filters of middling size on large images: filters are transformed at the tile's size, and tiles stay in cache.
Loses:  filters nearly as large as the image, where one transform does; 3x3 with many channels.
Error:  about 1e-7 of the largest result in float32; a NaN or an infinity spoils its whole tile, so `strict_nan`
        is False.

Every tile reads as much beyond its edge as the filter reaches, and only what did not wrap round is kept. For
wgrad the tiles cut the output gradient, and their spectra are summed before the one transform back. Config
`tile` is the transform's size along every axis that is longer than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls import _overlap, _spectra
from autoconv.impls._overlap import Axis, Cut
from autoconv.impls.cpu._blas import guarded
from autoconv.impls.cpu.fft import SpectralImplementation
from autoconv.planning import Runner
from autoconv.spec import ConvSpec, Op

TILES = {1: (256, 1024, 4096), 2: (32, 64, 128, 256), 3: (16, 32, 64)}
WORTH = 3  # tiles this many times as large as the filter's reach keep most of what they compute
SMALLEST = 8


class TiledFft(SpectralImplementation):
    """Every operation at stride 1, any rank, padding, dilation and groups."""

    name = "numpy.fft_tiled"
    tags = frozenset({"fft"})

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A tile that is even and larger than the filter's reach."""
        yield from super().needs(spec, config)
        if config is not None:
            tile, reach = config.get("tile", SMALLEST), _reach(spec)
            yield isinstance(tile, int) and tile % 2 == 0, f"needs an even tile, got {tile!r}"
            yield int(tile) > reach, f"needs a tile larger than the dilated filter's reach of {reach}, got {tile}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles that suit the filter and are smaller than the image; SciPy's transforms with the best two."""
        reach, longest = _reach(spec), max(_counts(spec)) + _reach(spec)
        first = _spectra.fast_size(max(SMALLEST, 2 * reach + 2), even=True)
        fitting = [tile for tile in TILES[spec.rank] if WORTH * reach <= tile < longest]
        tiles = sorted({*fitting[:2]} or {first})
        return tuple(Config(lib=lib, tile=tile) for lib in ("numpy", "scipy") for tile in tiles)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The spectra of the filters and of a block of tiles, twice where they are reordered."""
        return _overlap.workspace_bytes(spec, cut_tiles(spec, config), str(config.get("lib", "numpy")))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Transforms, products, and cutting the tiles."""
        return _overlap.estimate_s(spec, device, cut_tiles(spec, config), str(config.get("lib", "numpy")))

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Lay out the tiles."""
        lib, threads = str(config.get("lib", "numpy")), context.device.threads
        return guarded(_overlap.SpectralRunner(spec, cut_tiles(spec, config), lib, threads), context.device)


def _reach(spec: ConvSpec) -> int:
    """How far the dilated filter looks beyond one pixel, along its longest axis."""
    return max(size - 1 for size in _spectra.filter_extents(spec))


def _counts(spec: ConvSpec) -> tuple[int, ...]:
    """Length of what the tiles cut, per axis: the result, or the output gradient for wgrad."""
    return spec.in_spatial if spec.op is Op.DGRAD else spec.output_spatial


def cut_tiles(spec: ConvSpec, config: Config) -> Cut:
    """Tiles of the config's size; an axis that is shorter gets one tile just as long."""
    return Cut(tuple(_axis(spec, axis, int(config.get("tile", SMALLEST))) for axis in range(spec.rank)), whole=False)


def _axis(spec: ConvSpec, axis: int, tile: int) -> Axis:
    reach = (spec.kernel[axis] - 1) * spec.dilation[axis]
    count, pad = _counts(spec)[axis], spec.padding[axis][0]
    size = min(tile, _spectra.fast_size(count + reach, even=axis == spec.rank - 1))
    step = size - reach
    boxes = -(-count // step)
    if spec.op is Op.WGRAD:
        keep = slice(step - 1, step + reach, spec.dilation[axis])
        return Axis(size, boxes, step, -pad, size, step, keep, slice(0, spec.kernel[axis]))
    start = -pad if spec.op is Op.FPROP else pad - reach
    return Axis(size, boxes, step, start, size, 0, slice(reach, size), slice(0, step))
