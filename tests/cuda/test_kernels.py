"""`cuda.direct` and `cuda.depthwise` on the host: the right answer, in every order of the threads the same bits."""

from __future__ import annotations

import mmap
from itertools import cycle

import numpy as np
import pytest

from autoconv.impls.cuda import _constants, depthwise, direct
from autoconv.impls.cuda._kernels import KernelImplementation
from autoconv.spec import ConvSpec, Op
from autoconv.workspace import Workspace
from tests.cuda.on_host import H200, check, context, forms, on_host
from tests.cuda_shim import compiler, thread_order

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures(on_host.__name__),
]

ORDERS = ("forward", "backward", 3)
MAP_NORESERVE = 0x4000  # of Linux; Python names it from 3.11 on in some builds only

ANY = (
    "fprop n2c5 9x8 k6 3x3 p1",
    "fprop n1c6 9x13 k10 2x3 p1:2,0 s2,3 d3,2 g2 corr f64",
    "fprop n2c9 17 k12 4 p1:2 d2 f16",
    "fprop n1c2 5x6x7 k4 3x2x3 p1,0,1 s2,1,2",
    "fprop n2c2 2x3x2x3 k3 2x2x1x2 p1",
    "fprop n3c4 7x5 k6 3x3 p1 s2 chwn",
)
DEPTHWISE = (
    "fprop n2c5 8x7 k5 3x3 p1 g5",
    "fprop n1c3 7x9 k6 3x3 p1 g3 corr f64",
    "fprop n1c8 9x13 k8 3x4 p1:2,0:3 s2,3 d2,1 g8",
    "fprop n1c4 16 k8 5 p2 g4 f16",
    "fprop n1c3 4x5x5 k6 3x2x3 p1,0,1 s1,2,2 g3",
    "fprop n1c1 25x21 k1 15x15 p7 corr",
)
CASES = [(direct.Direct(), text) for text in ANY] + [(depthwise.Depthwise(), text) for text in DEPTHWISE]


@pytest.mark.parametrize(("one", "text"), CASES, ids=lambda value: getattr(value, "name", value))
def test_every_order_of_threads_gives_the_same_right_answer(
    one: KernelImplementation, text: str, rng: np.random.Generator
) -> None:
    turn = cycle(range(5))
    for spec in forms(text, ("chwn",) if "chwn" in text else ("nchw", "nhwc")):
        configs = one.configs(spec, H200)
        config = configs[next(turn) % len(configs)]  # a compilation each: one config per form, each in its turn
        assert one.why_not(spec, H200, config) in (None, one.unavailable())
        seed = rng.integers(1 << 30)
        results = set()
        for order in ORDERS:
            with thread_order(order):
                results.add(check(one, spec, config, np.random.default_rng(seed)))
        assert len(results) == 1, f"{spec} [{config}] depends on the order of threads"


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (direct.Direct(), "fprop n2c3 7x8 k4 3x3 p1 s2"),
        (depthwise.Depthwise(), "fprop n2c4 7x8 k4 3x3 p1 s2 g4"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_wide_offsets_compute_the_same(
    one: KernelImplementation, text: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (direct, depthwise):
        monkeypatch.setattr(module, "index_type", lambda spec: "i64")
    for spec in forms(text):
        check(one, spec, one.configs(spec, H200)[0], rng)


def test_offsets_are_wide_from_where_they_must_be() -> None:
    assert _constants.index_type(ConvSpec.parse("fprop n1c1 2146435071 k1 1")) == "int"
    assert _constants.index_type(ConvSpec.parse("fprop n1c1 2146435072 k1 1")) == "i64"
    assert _constants.index_type(ConvSpec.parse("fprop n1c1 8 k1 4 p1073741824")) == "i64"


@pytest.mark.parametrize("op", [Op.FPROP, Op.WGRAD])
def test_an_axis_beyond_32_bits(op: Op) -> None:
    """Four GiB of which a few pages are touched: the address space is all that it takes."""
    spec = ConvSpec.parse(f"{op} n1c1 {2**31 + 8} k1 1 s{2**29} f16")
    try:
        room = mmap.mmap(-1, 2 * spec.in_spatial[0], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"no address space for 4 GiB: {error}")
    image = np.frombuffer(room, np.float16)
    image[0], image[2**31] = 2, 3
    one = direct.Direct()
    constants = one.sources(spec, H200, one.configs(spec, H200)[0])[0][1]
    assert constants["INDEX"] == "i64"
    runner = one.prepare(spec, one.configs(spec, H200)[0], context())
    other = np.full((1, 1, 1) if op is Op.FPROP else spec.output_shape, 0.5, np.float16)
    result = np.zeros(spec.result_shape, np.float16)
    runner(image.reshape(1, 1, -1), other, result, Workspace())
    assert result.ravel().tolist() == ([1, 0, 0, 0, 1.5] if op is Op.FPROP else [2.5])


def test_a_deep_window_is_declined_with_its_size() -> None:
    one = depthwise.Depthwise()
    for text, said in (
        ("fprop n1c2 9x300 k2 3x80 g2", "within 64 pixels of a row, got 80"),
        ("dgrad n1c2 9x30 k2 3x3 s1,5 g2", "stride of at most 4 along rows, got 5"),
        ("fprop n1c2 3000x64 k2 900x9 g2", "bytes of shared memory, more than 49152"),
        ("fprop n1c4 9x9 k4 3x3 g2", "a group per input channel, got 2 groups of 4 channels"),
    ):
        spec = ConvSpec.parse(text)
        reasons = [reason for holds, reason in one.restrictions(spec, H200, None) if not holds]
        assert said in reasons[0]
