"""Generated kernels as programs under AddressSanitizer and UBSan: a few here, every config in `make test-native`."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from autoconv.impls.native._compiler import Compiler, find_compiler
from tests.native.kernels import FAMILIES, Kernel, every_kernel, sample
from tests.native.programs import LEAKS, run

pytestmark = pytest.mark.usefixtures("sanitizers")

SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SAMPLE = 3

EDGES = (
    "plain", "image", "one_pixel_padded", "kernel_is_image", "padded_beyond_kernel", "only_before",
    "stride_leaves_rest", "stride_skips_pixels", "stride_and_padding", "dilated_strided", "pointwise_strided",
    "depthwise_multiplied", "depthwise_strided", "grouped_unevenly", "many_channels", "batch_of_seven",
    "tile_seams", "five_by_five", "long_filter", "first_layer", "double_strided", "line_strided", "volume_strided",
    "volume_dilated", "volume_skips_frames", "volume_padded_beyond", "volume_image", "volume_image_strided",
    "volume_depthwise_vector", "volume_depthwise_strided",
    "images_innermost", "images_innermost_strided", "images_innermost_skipping", "image_of_a_vector_and_one",
    "image_large_filter", "channels_and_one", "tiles_and_one", "depthwise_vector", "depthwise_large",
    "depthwise_larger_than_image", "depthwise_tall", "depthwise_in_place", "depthwise_in_place_strided",
    "tiles_of_a_stride", "tiles_of_two_strides", "cut_filter", "cut_line",
    "pointwise_large", "separable_channels", "separable_bank", "separable_summed", "separable_large",
)  # fmt: skip


@pytest.fixture
def sanitizers(gcc: str, tmp_path: Path) -> None:
    reason = _no_sanitizers(gcc, tmp_path)
    if reason:
        pytest.skip(reason)


@cache
def _no_sanitizers(gcc: str, folder: Path) -> str | None:
    program = folder / "probe"
    text = "#include <stdlib.h>\nint main(int n, char **v) { char *p = malloc(n); return p[n]; }"
    done = subprocess.run(
        [gcc, *SANITIZE, "-x", "c", "-", "-o", program], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        return f"the compiler has no sanitizers: {done.stderr[:200]}"
    ran = subprocess.run([program], env={**os.environ, **LEAKS}, capture_output=True, text=True, check=False)
    return None if "AddressSanitizer" in ran.stderr else f"sanitizers do not run here: {ran.stderr[:200]}"


def sanitized(kernel: Kernel, folder: Path, short: str | None = None) -> None:
    """Run and judge one kernel; `AssertionError` with what a sanitizer said."""
    compiler = find_compiler()
    assert isinstance(compiler, Compiler)
    run(kernel, folder, [*compiler.command, *compiler.tuning, *SANITIZE], short=short)


@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.parametrize("name", FAMILIES)
def test_sample(name: str, number: int, tmp_path: Path) -> None:
    sanitized(sample(name, number, SAMPLE), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_config(name: str, case: str, tmp_path: Path) -> None:
    kernels = list(every_kernel(name, case))
    if not kernels:
        pytest.skip("refused")
    for kernel in kernels:
        sanitized(kernel, tmp_path)


@pytest.mark.parametrize("name", ["A_BYTES", "B_BYTES", "OUT_BYTES", "WORKSPACE_BYTES"])
def test_one_element_less_shows(name: str, tmp_path: Path) -> None:
    """What a kernel that goes one element too far would meet."""
    # a vector that begins inside and ends outside is an unknown-crash to some versions of the sanitizer
    with pytest.raises(AssertionError, match=r"heap-buffer-overflow|unknown-crash"):
        sanitized(next(every_kernel("native.gemm", "plain")), tmp_path, short=name)
