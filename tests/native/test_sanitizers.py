"""Generated kernels as programs under AddressSanitizer and UBSan: a few here, every config in `make test-native`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest

from autoconv import testing
from autoconv.arrays import Array
from autoconv.impls.native._compiler import FLAGS, Compiler, find_compiler
from autoconv.planning import ALIGNMENT
from autoconv.spec import Op
from tests.native.kernels import FAMILIES, Kernel, every_kernel, sample

pytestmark = pytest.mark.usefixtures("sanitizers")

MAIN = Path(__file__).with_name("sanitized.c").read_text()
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LEAKS = {"ASAN_OPTIONS": "detect_leaks=0"}  # nothing is given back here, nor by OpenMP's pool
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
    "depthwise_larger_than_image", "depthwise_tall",
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


def run(kernel: Kernel, folder: Path, short: str | None = None) -> None:
    """Compile, run and judge one kernel; `AssertionError` with what a sanitizer said.

    The block called `short` is an element (scratch: a cache line) less than the kernel may use.
    """
    compiler = find_compiler()
    assert isinstance(compiler, Compiler)
    one, spec, device, config = kernel.implementation, kernel.spec, kernel.device, kernel.config
    text, threads = one._unit(spec, config, device)
    tunables = {name: value for name, value in config.items() if name != "threads"}
    rest = (tunables, threads, device.vector_bytes)
    packed = one.packed_bytes(spec, *rest)
    a, b = testing.operands(spec, np.random.default_rng(0))
    second_layout = spec.layout if spec.op is Op.WGRAD else "nchw"
    result_layout = "nchw" if spec.op is Op.WGRAD else spec.layout
    sizes = {
        "A_BYTES": a.nbytes,
        "B_BYTES": b.nbytes,
        "OUT_BYTES": prod(spec.result_shape) * spec.itemsize,
        "PACKED_BYTES": packed,
        "SCRATCH_BYTES_DECLARED": one.workspace_bytes(replace(spec, fixed=spec.op is not Op.WGRAD), device, config),
        "WORKSPACE_BYTES": one.workspace_bytes(replace(spec, fixed=False, rank1=False), device, config),
    }
    if short:
        sizes[short] -= ALIGNMENT if "WORKSPACE" in short else spec.itemsize
    # the kernel's own names end before these begin
    names = "".join(f"#undef {name}\n#define {name} {size}L\n" for name, size in sizes.items())
    flags = [flag for flag in FLAGS if flag not in ("-O3", "-shared")]
    program = folder / "kernel"
    openmp = ["-fopenmp"] if threads > 1 else []
    built = subprocess.run(
        [*compiler.command, *flags, *compiler.tuning, *openmp, *SANITIZE, "-x", "c", "-", "-o", program, "-lm"],
        input=text + names + MAIN,
        text=True,
        capture_output=True,
        check=False,
    )
    assert built.returncode == 0, f"{kernel}: {built.stderr[:2000]}"
    fed = _in_memory(a, spec.layout) + _in_memory(b, second_layout)
    environment = {**os.environ, **LEAKS}
    done = subprocess.run([program], input=fed, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, f"{kernel}: {done.stderr.decode(errors='replace')[:4000]}"
    results = np.frombuffer(done.stdout, spec.np_dtype).reshape(2 if packed else 1, -1)
    expected = testing.reference(spec, a, b)
    for result in results:
        values = _shaped(result, spec.result_shape, result_layout)
        error = testing.relative_error(values, expected, spec.reduction_length**0.5 / 3)
        assert error <= testing.tolerance(spec, one.tags), f"{kernel}: off by {error:.2e}"


def _in_memory(array: Array, layout: str) -> bytes:
    return (array if layout == "nchw" else np.moveaxis(array, 1, -1)).tobytes()


def _shaped(flat: Array, shape: tuple[int, ...], layout: str) -> Array:
    if layout == "nchw":
        return flat.reshape(shape)
    return np.moveaxis(flat.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


@pytest.mark.parametrize("number", range(SAMPLE))
@pytest.mark.parametrize("name", FAMILIES)
def test_sample(name: str, number: int, tmp_path: Path) -> None:
    run(sample(name, number, SAMPLE), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_config(name: str, case: str, tmp_path: Path) -> None:
    kernels = list(every_kernel(name, case))
    if not kernels:
        pytest.skip("refused")
    for kernel in kernels:
        run(kernel, tmp_path)


@pytest.mark.parametrize("name", ["A_BYTES", "B_BYTES", "OUT_BYTES", "WORKSPACE_BYTES"])
def test_one_element_less_shows(name: str, tmp_path: Path) -> None:
    """What a kernel that goes one element too far would meet."""
    # a vector that begins inside and ends outside is an unknown-crash to some versions of the sanitizer
    with pytest.raises(AssertionError, match=r"heap-buffer-overflow|unknown-crash"):
        run(sample("native.gemm", 0, SAMPLE), tmp_path, short=name)
