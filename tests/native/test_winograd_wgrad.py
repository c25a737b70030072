"""Weight gradients by `native.winograd` in several chunks and items, which take larger problems than the suite has."""

from __future__ import annotations

import pytest

from autoconv.evidence import Config
from autoconv.impls.native import _winograd_wgrad as wgrad
from autoconv.spec import ConvSpec
from tests.native.kernels import WIDTHS, Kernel, family, isa_device

pytestmark = pytest.mark.usefixtures("gcc")

SPECS = (
    "wgrad n3c21 13x11 k37 3x3 p1 s1 d1 g1 corr nchw f32",
    "wgrad n2c34 9x14 k20 3x3 p0:2,1 s1 d1 g2 conv nhwc f32",
    "wgrad n2c9 12x10 k18 5x5 p2 s1 d1 g1 corr nchw f64",
    "wgrad n4c40 6x17 k24 1x7 p0,3 s1 d1 g1 corr nhwc f32",
)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", SPECS)
def test_chunks_and_items(text: str, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgrad, "TILES", (5, 12))
    monkeypatch.setattr(wgrad, "ITEM_CHANNELS", (16, 16))
    spec, device, one = ConvSpec.parse(text), isa_device(width), family("native.winograd")
    number = SPECS.index(text) + WIDTHS.index(width)
    found = [b for b in wgrad.wgrad_candidates(spec, 2, device.vector_bytes) if b.chunks > 1 and b.items > 1]
    blocking = found[number % len(found)]
    Kernel(one, spec, device, Config({**blocking.config, "threads": 1 + number % 2})).check()
