"""What the conformance suite cannot know of the FFT algorithms: sizes, seams, and what is refused why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import Array
from autoconv.device import cpu
from autoconv.evidence import Config
from autoconv.impls import _overlap, _spectra
from autoconv.impls._cuts import cut_tiles, cut_whole
from autoconv.impls.cpu import fft as cpu_fft
from autoconv.impls.cpu.fft import Fft
from autoconv.impls.cpu.fft_tiled import TiledFft
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec

OPS = ("fprop", "dgrad", "wgrad")


def smallest_by_search(minimum: int, *, even: bool) -> int:
    size = minimum
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and not (even and size % 2):
            return size
        size += 1


@pytest.mark.parametrize("even", [False, True])
def test_fast_size_is_the_smallest_product_of_two_three_and_five(even: bool) -> None:
    for minimum in [*range(1, 400), 1021, 4097, 12289]:
        assert _spectra.fast_size(minimum, even=even) == smallest_by_search(minimum, even=even)


@pytest.mark.parametrize(
    ("pad", "kernel", "expected"),
    [(0, 5, 20), (4, 5, 24), (2, 5, 22), (9, 5, 24)],
    ids=["valid", "full", "half", "beyond"],
)
def test_transforms_are_no_longer_than_keeps_the_results_apart(pad: int, kernel: int, expected: int) -> None:
    spec = ConvSpec.fprop((1, 1, 20), (1, 1, kernel), padding=pad)
    assert cut_whole(spec, exact=True).sizes == (expected,)


def test_unpadded_refuses_an_odd_last_axis_only() -> None:
    odd_last, odd_first = ConvSpec.fprop((1, 1, 8, 9), (1, 1, 3, 3)), ConvSpec.fprop((1, 1, 9, 8), (1, 1, 3, 3))
    unpadded, padded = Config(size="unpadded", lib="numpy"), Config(size="padded", lib="numpy")
    assert "even last axis, got a transform of 9" in str(Fft().why_not(odd_last, cpu(), unpadded))
    assert Fft().why_not(odd_last, cpu(), padded) is None
    assert Fft().why_not(odd_first, cpu(), unpadded) is None


def test_refusals_say_what_came() -> None:
    strided = ConvSpec.fprop((1, 1, 9, 8), (1, 1, 3, 3), stride=(2, 1))
    long = ConvSpec.fprop((1, 1, 40, 40), (1, 1, 9, 9), dilation=2)
    assert Fft().why_not(strided, cpu()) == "needs stride 1, got (2, 1)"
    assert "reach of 16, got 16" in str(TiledFft().why_not(long, cpu(), Config(tile=16)))
    assert "even tile, got 19" in str(TiledFft().why_not(long, cpu(), Config(tile=19)))
    assert "knows the libraries" in str(Fft().why_not(long, cpu(), Config(lib="fftw")))


def test_scipy_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spectra, "find_spec", lambda name: None)
    spec = ConvSpec.fprop((1, 1, 9, 8), (1, 1, 3, 3))
    assert "SciPy, which is not installed" in str(Fft().why_not(spec, cpu(), Config(lib="scipy")))
    assert Fft().why_not(spec, cpu(), Config(lib="numpy")) is None
    assert Fft().libraries(Config(lib="scipy")) == ("scipy",)
    assert Fft().libraries(Config(lib="numpy")) == ()


def test_scipy_is_imported_by_its_own_config_only() -> None:
    code = (
        "import sys\n"
        "from autoconv import testing\n"
        "from autoconv.device import cpu\n"
        "from autoconv.evidence import Config\n"
        "from autoconv.impls.cpu.fft import Fft\n"
        "from autoconv.spec import ConvSpec\n"
        "spec = ConvSpec.parse('fprop n1c1 9x8 k1 3x3')\n"
        "fft = Fft()\n"
        "[fft.why_not(spec, cpu(), config) for config in fft.configs(spec, cpu())]\n"
        "testing.build(fft, spec, Config(lib='numpy', size='padded'))\n"
        "sys.exit('scipy' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tile", [8, 10, 16])
def test_tile_seams(op: str, tile: int) -> None:
    spec = ConvSpec.parse(f"{op} n2c2 23x17 k3 3x2 p1:3,2 s1 d2,1 g1 corr nhwc f64")
    rng = np.random.default_rng(5)
    a, b = testing.operands(spec, rng)
    built = testing.build(TiledFft(), spec, Config(tile=tile, lib="numpy"))
    assert testing.relative_error(testing.run(built, a, b), testing.reference(spec, a, b)) < 1e-12


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("by_terms", [True, False])
@pytest.mark.parametrize("implementation", [Fft(), TiledFft()], ids=["whole", "tiled"])
def test_both_products_in_many_small_blocks(
    op: str, by_terms: bool, implementation: Fft | TiledFft, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = replace(_spectra.CPU_COSTS, matrix_s=1e9 if by_terms else 0.0, term_s=0.0 if by_terms else 1e9)
    monkeypatch.setattr(_spectra, "CPU_COSTS", costs)
    monkeypatch.setattr(cpu_fft, "BLOCK_BYTES", 4096)
    spec = ConvSpec.parse(f"{op} n3c6 14x12 k4 3x4 p2 s1 d1 g2 conv nchw f64")
    rng = np.random.default_rng(6)
    a, b = testing.operands(spec, rng)
    built = testing.build(implementation, spec)
    assert testing.relative_error(testing.run(built, a, b), testing.reference(spec, a, b)) < 1e-12


@pytest.mark.parametrize("op", OPS)
def test_results_that_see_padding_alone_are_exact_zeros(op: str) -> None:
    spec = ConvSpec.parse(f"{op} n1c1 2x1 k2 1x2 p0,2 s1 d1,3 g1 conv nchw f32")
    rng = np.random.default_rng(7)
    a, b = testing.operands(spec, rng)
    for implementation in (Fft(), TiledFft()):
        assert not testing.run(testing.build(implementation, spec), a, b).any()


def test_float32_stays_float32() -> None:
    spectrum = np.zeros((4, 9), np.complex64)
    fft = _spectra.library("numpy", 1)
    data = np.random.default_rng(8).standard_normal((4, 12)).astype(np.float32)
    fft.real(data, 16, 1, spectrum)
    expected = np.fft.rfft(data, 16, norm="ortho")
    assert np.array_equal(spectrum, expected)
    assert expected.dtype == np.complex64


class WholeBoxes:
    """Transforms that want boxes with their zeros, as those on a GPU do; unscaled."""

    padded = True

    def scale(self, sizes: Sequence[int]) -> float:
        return 1 / prod(sizes)

    def transform(self, data: Array, spectrum: Array, sizes: Sequence[int]) -> None:
        assert data.flags.c_contiguous
        assert data.shape[2:] == tuple(sizes)
        spectrum[...] = np.fft.rfftn(data, axes=range(2, data.ndim))

    def untransform(self, spectrum: Array, box: Array, sizes: Sequence[int], wanted: Sequence[slice]) -> Array:
        assert spectrum.flags.c_contiguous
        box[...] = np.fft.irfftn(spectrum, sizes, range(2, spectrum.ndim)) * prod(sizes)
        return box[(..., *wanted)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tile", [0, 8, 12])
@pytest.mark.parametrize("by_terms", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "n3c4 23 k4 4 p2:1 d2 g2 conv nchw",
        "n2c2 23x17 k3 3x2 p1:3,2 d2,1 corr nhwc",
        "n1c2 9x8x10 k2 2x3x3 p1 conv chwn",
    ],
)
def test_transforms_of_whole_boxes(op: str, tile: int, by_terms: bool, text: str) -> None:
    spec = ConvSpec.parse(f"{op} {text} f64")
    costs = replace(_spectra.CPU_COSTS, matrix_s=1e9 if by_terms else 0.0, term_s=0.0 if by_terms else 1e9)
    engine = _overlap.Engine(1 << 15, padded=True, costs=costs, own_bytes=lambda *sizes: 0)
    cut = cut_tiles(spec, tile) if tile else cut_whole(spec, exact=False)
    runner = _overlap.SpectralRunner(spec, cut, engine, WholeBoxes())
    a, b = testing.operands(spec, np.random.default_rng(9))
    out = np.full(spec.result_shape, np.nan)
    runner(a, b, out, Workspace())
    assert testing.relative_error(out, testing.reference(spec, a, b)) < 1e-12
    if op != "wgrad":
        bound, again = runner.bind(b), np.full(spec.result_shape, np.nan)
        bound(a, again, Workspace())
        assert np.array_equal(out, again)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 11, 60, 1000])
def test_blocks_hold_every_box_once(most: int) -> None:
    cut = cut_tiles(ConvSpec.parse("fprop n3c1 20x9x13 k1 3x3x3"), 8)
    seen = [
        (image, *place)
        for block in cut.blocks(3, most)
        for image in range(block.first, block.last)
        for place in product(*map(range, block.begins, block.ends))
    ]
    assert len(seen) == len(set(seen)) == 3 * cut.boxes
    assert max(block.count for block in cut.blocks(3, most)) <= most
