"""Convolution as a product of spectra on a GPU, tile by tile (overlap-save), by cuFFT.

Source: Stockham, "High-speed convolution and correlation", 1966. The algorithm is that of `numpy.fft_tiled`, on CuPy
        arrays.
Wins:   filters of middling size on large images: filters are transformed at the tile's size.
Loses:  filters nearly as large as the image, where one transform does; 3x3 with many channels.
Error:  about 1e-7 of the largest result in float32; a NaN or an infinity spoils its whole tile, so `strict_nan`
        is False.

All tiles of a block are cut out by one copy with overlapping strides, and transformed by one plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.impls._cuts import SMALLEST, Cut, cut_tiles, reach, tile_sizes
from autoconv.impls.cuda._cufft import CufftImplementation
from autoconv.spec import ConvSpec

__all__ = ["TiledFft"]

MOST_TILES = 3  # sizes worth racing


class TiledFft(CufftImplementation):
    """Every operation at stride 1, any padding, dilation and groups, lines to volumes."""

    name = "cupy.fft_tiled"

    def needs(self, spec: ConvSpec, config: Config) -> Iterable[tuple[bool, str]]:
        """A tile that is even and larger than the filter's reach."""
        tile, span = config.get("tile", SMALLEST), reach(spec)
        yield isinstance(tile, int) and tile % 2 == 0, f"needs an even tile, got {tile!r}"
        yield int(tile) > span, f"needs a tile larger than the dilated filter's reach of {span}, got {tile}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles that suit the filter and are smaller than the image."""
        return tuple(Config(tile=tile) for tile in tile_sizes(spec, MOST_TILES))

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """Tiles of the config's size."""
        return cut_tiles(spec, int(config.get("tile", SMALLEST)))
