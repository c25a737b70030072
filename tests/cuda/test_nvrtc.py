"""Every `.cu` text compiles for every supported architecture, with the constants that implementations declare.

A new text is found by itself: one that no implementation's specimens need must compile without constants.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autoconv.device import Device
from autoconv.impls import BUILTIN
from autoconv.impls.cuda._kernels import FOLDER, KernelImplementation, Source, options, text
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec
from tests.cuda import nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
H200 = Device("cuda", "NVIDIA H200", "sm_90", 132, 1, 139 << 30)
MOST_SPILLED_BYTES = 64  # of a thread's registers, to its stack: more is a tile too large

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12"
)


def implementations() -> list[KernelImplementation]:
    loaded = map(default_registry().get, BUILTIN)
    return [one for one in loaded if isinstance(one, KernelImplementation)]


def sources(one: KernelImplementation, every_config: bool = False) -> Iterator[tuple[str, Source]]:
    """What the specimens need: (id, source)."""
    for specimen in one.specimens:
        spec = ConvSpec.parse(specimen)
        for config in one.configs(spec, H200)[: None if every_config else 1]:
            for source in one.sources(spec, H200, config):
                yield f"{one.name}[{config}] {specimen} {source[0]}", source


def quick() -> Iterator[object]:
    """Each file's first source for every architecture, the others for one in turn."""
    seen: set[str] = set()
    for one in implementations():
        for number, (name, source) in enumerate(sources(one)):
            new = source[0] not in seen
            seen.add(source[0])
            for architecture in ARCHITECTURES if new else (ARCHITECTURES[number % 3],):
                yield pytest.param(architecture, source, id=f"{architecture} {name}")
    for name in sorted({file.stem for file in FOLDER.glob("*.cu")} - seen):  # helpers: they take no constants
        for architecture in ARCHITECTURES:
            yield pytest.param(architecture, (name, {}), id=f"{architecture} {name}")


@pytest.mark.parametrize(("architecture", "source"), [*quick()])
def test_compiles(architecture: str, source: Source) -> None:
    compiled = nvrtc.compile_for(architecture, text(source[0]), options(source[1]))
    assert compiled.cubin_bytes > 0
    for kernel, (registers, spilled) in compiled.kernels.items():
        assert spilled <= MOST_SPILLED_BYTES, f"{kernel} uses {registers} registers and spills {spilled} bytes"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("one", implementations(), ids=lambda one: one.name)
def test_every_config_compiles(one: KernelImplementation, architecture: str) -> None:
    for _, (name, constants) in sources(one, every_config=True):
        nvrtc.compile_for(architecture, text(name), options(constants))
