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
from autoconv.impls._cuts import SMALLEST, Cut, cut_tiles, reach, tile_sizes
from autoconv.impls.cpu.fft import SpectralImplementation
from autoconv.spec import ConvSpec


class TiledFft(SpectralImplementation):
    """Every operation at stride 1, any rank, padding, dilation and groups."""

    name = "numpy.fft_tiled"
    version = 2
    tags = frozenset({"fft"})

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """A tile that is even and larger than the filter's reach."""
        yield from super().needs(spec, config)
        if config is not None:
            tile, span = config.get("tile", SMALLEST), reach(spec)
            yield isinstance(tile, int) and tile % 2 == 0, f"needs an even tile, got {tile!r}"
            yield int(tile) > span, f"needs a tile larger than the dilated filter's reach of {span}, got {tile}"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tiles that suit the filter and are smaller than the image; SciPy's transforms with the best two."""
        tiles = tile_sizes(spec, 2)
        return tuple(Config(lib=lib, tile=tile) for lib in ("numpy", "scipy") for tile in tiles)

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """Tiles of the config's size."""
        return cut_tiles(spec, int(config.get("tile", SMALLEST)))
