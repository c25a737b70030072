"""The host shim itself: it must do what a GPU does, and notice what a GPU would get wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from autoconv.impls.cuda._kernels import text
from tests.cuda_shim import Kernel, ShimError, compiler, load, thread_order

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")

KERNELS = r"""
extern "C" __global__ void rotate(const float* from, float* to) {
  DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void rotate_unsynchronised(const float* from, float* to) {
  __shared__ float shared[64];
  shared[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void total(const float* from, float* to) {
  __shared__ float parts[32];
  const float sum = warp_sum(from[threadIdx.x]);
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    const float all = warp_sum(threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) *to = all;
  }
}
extern "C" __global__ void shuffles(int* to) {
  const int lane = threadIdx.x;
  to[lane] = __shfl_sync(0xffffffffu, lane, 5);
  to[32 + lane] = __shfl_down_sync(0xffffffffu, lane, 3);
  to[64 + lane] = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  to[96 + lane] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
}
extern "C" __global__ void where(int* to, int width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  to[y * width + x] = atomicAdd(&to[y * width + x], 1) + 100 * (blockIdx.z + 1) * (y * width + x);
}
extern "C" __global__ void leak(float* to) {
  DYNAMIC_SHARED(float, shared);
  if (blockIdx.x == 0) shared[threadIdx.x] = 1;
  __syncthreads();
  to[blockIdx.x] = shared[0];
}
extern "C" __global__ void beyond(float* to) {
  DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x] = to[0];
}
extern "C" __global__ void split_barrier(float* to) {
  if (threadIdx.x < 3) {
    __syncthreads();
  } else {
    to[0] = 1;
    __syncthreads();
  }
}
extern "C" __global__ void half_warp_gone(float* to) {
  if (threadIdx.x < 16) to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, to[threadIdx.x], 1);
}
extern "C" __global__ void to_half(const float* from, f16* half, bf16* brain, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) half[i] = narrow<f16>(from[i]), brain[i] = narrow<bf16>(from[i]);
}
extern "C" __global__ void from_half(const f16* half, const bf16* brain, float* a, float* b) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  a[i] = widen(half[i]);
  b[i] = widen(brain[i]);
}
"""
ORDERS = ("forward", "backward", 7, 8)

Get = Callable[[str], Kernel]


@pytest.fixture(scope="module")
def kernel() -> Get:
    common = text("direct").partition("// Direct convolution")[0]
    return lambda name: load(common + KERNELS, ("-std=c++17",)).kernels[name]


def rotated(found: Kernel) -> list[bytes]:
    """What each order of the threads gives."""
    results = []
    numbers = np.arange(64, dtype=np.float32)
    for order in ORDERS:
        out = np.zeros(64, np.float32)
        with thread_order(order):
            found.launch((1,), (64,), [numbers.ctypes.data, out.ctypes.data], 64 * 4)
        results.append(out.tobytes())
    return results


def test_a_barrier_makes_every_order_alike(kernel: Get) -> None:
    assert set(rotated(kernel("rotate"))) == {np.roll(np.arange(64, dtype=np.float32), -1).tobytes()}


def test_a_missing_barrier_shows(kernel: Get) -> None:
    results = rotated(kernel("rotate_unsynchronised"))
    assert len(set(results)) > 1
    assert np.isnan(np.frombuffer(results[0], np.float32)).any(), "shared memory begins as NaN"


@pytest.mark.parametrize("order", ORDERS)
def test_warps_and_blocks_do_as_on_a_gpu(kernel: Get, order: int | str) -> None:
    with thread_order(order):
        numbers, out = np.arange(96, dtype=np.float32), np.zeros(1, np.float32)
        kernel("total").launch((1,), (96,), [numbers.ctypes.data, out.ctypes.data])
        assert out[0] == numbers.sum()
        lanes, found = np.arange(32), np.zeros((4, 32), np.int32)
        kernel("shuffles").launch((1,), (32,), [found.ctypes.data])
        assert (found[0] == 5).all()
        assert (found[1] == np.where(lanes + 3 < 32, lanes + 3, lanes)).all()
        assert (found[2] == np.where(lanes % 8 >= 3, lanes - 3, lanes)).all()
        assert (found[3].view(np.uint32) == sum(1 << lane for lane in range(0, 32, 3))).all()
        grid = np.zeros((6, 8), np.int32)
        kernel("where").launch((2, 3), (4, 2), [grid.ctypes.data, np.int32(8)])
        assert (grid.ravel() == 100 * np.arange(48)).all()


def test_shared_memory_is_poisoned_before_each_block(kernel: Get) -> None:
    out = np.zeros(2, np.float32)
    kernel("leak").launch((2,), (8,), [out.ctypes.data], 32)
    assert out[0] == 1
    assert np.isnan(out[1])


@pytest.mark.parametrize(
    ("name", "shared_bytes", "said"),
    [
        ("split_barrier", 0, "different barriers"),
        ("half_warp_gone", 0, "names lane 16, which is not there"),
        ("beyond", 4 * 31, "writes beyond its dynamic shared memory"),
    ],
)
def test_what_a_gpu_may_not_survive_is_an_error(kernel: Get, name: str, shared_bytes: int, said: str) -> None:
    room = np.zeros(32, np.float32)
    for _ in range(2):  # the fibers left waiting are of no harm to the next launch
        with pytest.raises(ShimError, match=said):
            kernel(name).launch((1,), (32,), [room.ctypes.data], shared_bytes)
    kernel("beyond").launch((1,), (32,), [room.ctypes.data], 4 * 32)


def test_arguments_are_checked(kernel: Get) -> None:
    room = np.zeros(8, np.int32)
    assert [(p.kind, p.size, p.pointee, p.pointee_size) for p in kernel("to_half").parameters] == [
        ("p", 8, "f", 4), ("p", 8, "h", 2), ("p", 8, "b", 2), ("i", 4, "", 0),
    ]  # fmt: skip
    with pytest.raises(ShimError, match="takes 2 arguments, got 1"):
        kernel("where").launch((1,), (1,), [room.ctypes.data])
    with pytest.raises(ShimError, match="got 8 bytes"):
        kernel("where").launch((1,), (1,), [room.ctypes.data, np.int64(8)])


def test_a_text_that_does_not_compile_says_why() -> None:
    with pytest.raises(ShimError, match="undeclared_word"):
        load('extern "C" __global__ void broken(int* to) { *to = undeclared_word; }')


def test_half_types_are_rounded_as_numpy_rounds_them(kernel: Get, rng: np.random.Generator) -> None:
    exponents = rng.integers(-30, 20, 5000)
    values = np.ldexp(rng.standard_normal(5000), exponents).astype(np.float32)
    ties = np.ldexp(np.float32(1 + 2.0**-11), np.arange(-14, 15)).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 2.0**-24, 2.0**-25, 3e38], np.float32)
    values = np.concatenate([values, ties, special])
    half, brain = np.zeros(values.size, np.uint16), np.zeros(values.size, np.uint16)
    kernel("to_half").launch(
        (values.size // 64 + 1,), (64,),
        [values.ctypes.data, half.ctypes.data, brain.ctypes.data, np.int32(values.size)],
    )  # fmt: skip
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half.view(np.float16), values.astype(np.float16))
    bits = values.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    there = ~np.isnan(values)
    np.testing.assert_array_equal(brain[there], nearest[there])
    assert np.isnan((brain[~there].astype(np.uint32) << 16).view(np.float32)).all()


def test_every_half_number_is_widened_exactly(kernel: Get) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wide, brain = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    kernel("from_half").launch((256,), (256,), [every.ctypes.data] * 2 + [wide.ctypes.data, brain.ctypes.data])
    np.testing.assert_array_equal(wide, every.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(brain.view(np.uint32), every.astype(np.uint32) << 16)
