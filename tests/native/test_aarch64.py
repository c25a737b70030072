"""Generated kernels built for AArch64 and run under an emulator: a few here, every config in `make test-native`.

Needs a cross compiler and QEMU, on Debian `apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user`.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from tests.native.kernels import FAMILIES, Kernel, every_kernel, sample
from tests.native.programs import run
from tests.native.test_sanitizers import EDGES

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
SAMPLE = 3

pytestmark = [
    pytest.mark.skipif(platform.machine() == "aarch64", reason="this is an AArch64: the other tests run there"),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not on the path"),
    pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"{EMULATOR} is not on the path"),
]


def emulated(kernel: Kernel, folder: Path) -> None:
    """Run and judge one kernel as an AArch64 program."""
    run(kernel, folder, [COMPILER, "-O2", "-static"], [EMULATOR])


@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.parametrize("name", FAMILIES)
def test_sample(name: str, number: int, tmp_path: Path) -> None:
    emulated(sample(name, number, SAMPLE, ("neon",)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_config(name: str, case: str, tmp_path: Path) -> None:
    kernels = list(every_kernel(name, case, ("neon",)))
    if not kernels:
        pytest.skip("refused")
    for kernel in kernels:
        emulated(kernel, tmp_path)
