"""What goes wrong on a GPU, told apart: memory that is used up, which is given back, and a context that is lost.

After an illegal address or a failed assertion every further call in the process fails, whoever makes it: CUDA calls
such errors sticky. Only another process can go on.
"""

from __future__ import annotations

from autoconv.places import Place

__all__ = ["PoolGrowth", "free_pool", "is_lost", "is_out_of_memory"]

NO_MEMORY = ("ALLOC_FAILED", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")
"""How cuBLAS, cuFFT and cuDNN, CUDA's runtime and driver, and PyTorch put it; CuPy raises a `MemoryError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, the CPU's or a GPU's, was used up."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def free_pool(place: Place) -> None:
    """Give the memory that CuPy's pool keeps for later back to the device; on the CPU there is none."""
    if place.device.kind == "cuda":
        with place.current():
            place.xp.get_default_memory_pool().free_all_blocks()


class PoolGrowth:
    """How much CuPy's pool grows at its highest from here on; what others take of the device's memory goes unseen."""

    def __init__(self, place: Place) -> None:
        free_pool(place)
        self._pool = place.xp.get_default_memory_pool()
        self._before: int = self._pool.total_bytes()

    def grown_bytes(self) -> int:
        """Bytes that the pool took from the device; it gives none back by itself."""
        return int(self._pool.total_bytes()) - self._before


def is_lost(place: Place) -> bool:
    """Whether nothing can be done on this device in this process any more."""
    if place.device.kind != "cuda":
        return False
    runtime = place.xp.cuda.runtime
    try:
        with place.current():
            runtime.deviceSynchronize()
    except runtime.CUDARuntimeError:
        return True
    return False
