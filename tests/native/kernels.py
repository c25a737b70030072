"""Which kernels to compile: problems, configs, thread counts and vector widths of the native families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from autoconv import testing
from autoconv.device import Device, cpu
from autoconv.evidence import Config
from autoconv.impls import BUILTIN
from autoconv.impls.native._family import NativeFamily
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from tests.cases import EDGE, NETWORKS, REGRESSION, SMOKE

__all__ = ["ALL", "FAMILIES", "Kernel", "every_kernel", "family", "isa_device", "sample"]

FAMILIES = [name for name in BUILTIN if name.startswith("native.")]

OWN: dict[str, str] = {
    # sizes at which generated kernels change their course: whole and broken vectors, blocks and images
    "images_innermost": "fprop n20c3 9x8 k16 3x3 p1",
    "images_innermost_strided": "fprop n17c2 11x12 k16 3x3 p2 s2 corr",
    "images_innermost_many": "fprop n33c8 6x7 k32 3x3 p1 corr",
    "images_innermost_whole": "fprop n5c4 5x5 k16 5x5",
    "images_innermost_skipping": "fprop n16c4 4x4 k16 2x2 p3 s3 f64",
    "images_innermost_in_place": "fprop n64c4 6x7 k16 3x3",
    "images_innermost_in_place_strided": "fprop n64c2 7x9 k16 2x2 s2 corr f64",
    "image_of_one_vector": "fprop n1c1 18x18 k1 3x3 corr",
    "image_of_a_vector_and_one": "fprop n1c1 19x19 k1 3x3 corr",
    "image_bank": "fprop n3c3 35x34 k5 7x7 p3",
    "image_large_filter": "fprop n1c1 60x61 k1 25x25 p12",
    "vector_of_channels": "fprop n1c32 9x9 k16 3x3 p1 corr",
    "channels_and_one": "fprop n2c33 9x9 k17 3x3 p1",
    "tiles_and_one": "fprop n2c8 17x13 k8 3x3 p1 corr",
    "tiles_of_five": "fprop n1c6 18x17 k10 5x5 p2 corr",
    "tiles_of_a_stride": "fprop n2c6 13x14 k10 4x4 p1 s2",
    "tiles_of_two_strides": "fprop n3c17 14x23 k18 5x5 p2:1,0:3 s2,1 corr",
    "tiles_of_a_wide_stride": "fprop n5c4 6x7 k16 6x6 p3 s3,2",
    "tiles_of_many_phases": "fprop n1c3 33x31 k5 18x17 p3 s4 corr",
    "cut_filter": "fprop n3c6 17x15 k10 9x9 p2",
    "cut_filter_in_groups": "fprop n2c8 16x19 k20 11x10 p5,4 g2 f64",
    "cut_line": "fprop n3c5 9x10 k6 1x9 p0,4 corr",
    "depthwise_vector": "fprop n1c16 11x10 k16 3x3 p1 g16",
    "depthwise_line": "fprop n2c7 40 k7 9 p4 g7",
    "depthwise_large": "fprop n1c3 40x37 k3 13x13 p6 g3 corr",
    "depthwise_larger_than_image": "fprop n3c17 7x6 k17 13x5 p6,2 g17 corr",
    "depthwise_in_place": "fprop n2c33 9x21 k33 3x3 p1 g33 corr",
    "depthwise_in_place_strided": "fprop n3c17 10x11 k17 5x4 p2,1 s2 g17",
    "depthwise_in_place_dilated": "fprop n1c40 8x23 k40 3x3 p2 d2,3 g40 corr f64",
    "depthwise_tall": "fprop n1c16 70x17 k16 9x4 p4,3:0 g16",
    "pointwise_large": "fprop n1c40 12x12 k36 1x1",
    "pointwise_heavy": "fprop n2c512 5x4 k520 1x1 corr nhwc",  # filters that outweigh the pixels
    "first_layer_strided": "fprop n2c3 33x35 k16 7x7 p3 s2 corr",
    "volume_of_channels": "fprop n1c5 4x6x7 k6 3x3x3 p1",
    "volume_image": "fprop n3c1 6x9x21 k2 3x3x3 p1 corr",
    "volume_image_strided": "fprop n1c2 9x11x34 k3 3x5x4 p1,2,0:3 s2,1,2 f64",
    "volume_depthwise_vector": "fprop n2c17 5x8x7 k17 3x3x3 p1 g17 corr",
    "volume_depthwise_strided": "fprop n1c16 11x9x10 k16 5x2x3 p2,0,1 s2 d1,2,1 g16 f64",
    "volume_depthwise_many": "fprop n1c2 8x40x39 k6 3x3x3 p1 g2",
}

ALL = {**SMOKE, **EDGE, **NETWORKS, **REGRESSION, **OWN}

WIDTHS = ("avx512", "avx2", "sse")  # of the vectors in the C text; a CPU without them gets narrower instructions


@dataclass(frozen=True)
class Kernel:
    """One unit of C."""

    implementation: NativeFamily
    spec: ConvSpec
    device: Device
    config: Config

    def check(self) -> None:
        """The conformance suite."""
        refusal = testing.check_case(self.implementation, self.spec, device=self.device, configs=[self.config])
        assert refusal is None, refusal

    def __str__(self) -> str:
        return f"{self.implementation.name}[{self.config}] on {self.spec}, {self.device.isa}"


def family(name: str) -> NativeFamily:
    """The family called `name`."""
    one = default_registry().get(name)
    assert isinstance(one, NativeFamily)
    return one


def every_kernel(name: str, case: str, widths: Sequence[str] = WIDTHS) -> Iterator[Kernel]:
    """Every config of a family for the problems of a case; thread counts and vector widths take turns."""
    one = family(name)
    for number, spec in enumerate(testing.problems(ALL[case])):
        device = isa_device(widths[number % len(widths)])
        if one.why_not(spec, device):
            continue
        tunables = {Config({**config, "threads": 1}) for config in one.configs(spec, device)}
        for turn, config in enumerate(sorted(tunables, key=str)):
            yield Kernel(one, spec, device, Config({**config, "threads": 1 + (number + turn) % 2}))


@cache
def _problems(name: str) -> tuple[ConvSpec, ...]:
    one, specs = family(name), (spec for text in ALL.values() for spec in testing.problems(text))
    return tuple(spec for spec in specs if one.why_not(spec, cpu()) is None)


def sample(name: str, number: int, count: int, widths: Sequence[str] = WIDTHS) -> Kernel:
    """The `number`-th of `count` kernels of a family that lie evenly among all; its turn decides on the rest."""
    able = _problems(name)
    index = (2 * number + 1) * len(able) // (2 * count)
    spec, device, one = able[index], isa_device(widths[number % 4 % len(widths)]), family(name)
    configs = one.configs(spec, device)
    return Kernel(one, spec, device, Config({**configs[index % len(configs)], "threads": 1 + number % 2}))


def isa_device(isa: str) -> Device:
    """This machine's CPU with the instruction set `isa` and two threads."""
    here = cpu()
    return Device(here.kind, here.model, isa, here.cores, 2)
