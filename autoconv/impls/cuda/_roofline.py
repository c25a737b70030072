"""Rough seconds of a computation on a GPU: what its arithmetic needs or what its memory needs, whichever is more.

Only the order of untuned choices and what a race skips depend on it. Figures are per multiprocessor and compute
capability, from NVIDIA's architecture white papers and the tables of the CUDA C++ Programming Guide
(arithmetic instructions, results per clock cycle per multiprocessor).
"""

from __future__ import annotations

from typing import NamedTuple

from autoconv.device import Device
from autoconv.spec import ConvSpec

__all__ = ["LAUNCH_S", "Peaks", "peaks", "seconds"]

LAUNCH_S = 4e-6  # from one kernel's end to the next one's beginning, enqueued ahead


class Peaks(NamedTuple):
    """What one multiprocessor does: clock in Hz, its share of the memory's bytes/s, multiply-adds per clock by format.

    `tf32`, `half` and `double` are the matrix units' (those of the vector units where there are none).
    """

    clock: float
    bytes_per_s: float
    f32: int
    f64: int
    tf32: int
    half: int
    double: int


_PEAKS: dict[str, Peaks] = {
    "sm_70": Peaks(1.53e9, 11.2e9, 64, 32, 64, 512, 32),  # V100: 80 multiprocessors, 900 GB/s
    "sm_75": Peaks(1.59e9, 8.0e9, 64, 2, 64, 512, 2),  # T4: 40, 320 GB/s
    "sm_80": Peaks(1.41e9, 14.4e9, 64, 32, 512, 1024, 64),  # A100: 108, 1555 GB/s
    "sm_86": Peaks(1.70e9, 9.1e9, 128, 2, 128, 512, 2),  # RTX 3090: 82, 936 GB/s; A10: 72, 600 GB/s
    "sm_89": Peaks(2.52e9, 7.9e9, 128, 2, 128, 512, 2),  # RTX 4090: 128, 1008 GB/s
    "sm_90": Peaks(1.83e9, 30.0e9, 128, 64, 1024, 2048, 128),  # H100: 132, 3350 GB/s; H200 4800 GB/s
    "sm_100": Peaks(1.85e9, 54.0e9, 128, 64, 2048, 4096, 64),  # B200: 148, 8000 GB/s
    "sm_120": Peaks(2.40e9, 10.5e9, 128, 2, 128, 512, 2),  # RTX 5090: 170, 1792 GB/s
}


def peaks(device: Device) -> Peaks:
    """Those of the device's compute capability, or of the nearest older one known."""
    wanted = _number(device.isa)
    older = [isa for isa in _PEAKS if _number(isa) <= wanted]
    return _PEAKS[max(older, key=_number) if older else min(_PEAKS, key=_number)]


def seconds(
    spec: ConvSpec, device: Device, flops: float, bytes_: float, dtype: str = "", efficiency: float = 0.5
) -> float:
    """Rough seconds for `flops` operations (a multiply-add is two) that move `bytes_` to or from memory.

    `dtype` names the unit that computes: "f32" or "f64" (half types are widened and computed in float32), or a matrix
    unit, "tf32", "half" or "double"; empty is the spec's own format. `efficiency` is the part of the arithmetic peak
    that the algorithm reaches when it fills the device. One launch is included.
    """
    peak = peaks(device)
    units = {"f64": peak.f64, "tf32": peak.tf32, "half": peak.half, "double": peak.double}
    arithmetic = flops / (2 * units.get(dtype or spec.dtype, peak.f32) * peak.clock * device.cores * efficiency)
    return LAUNCH_S + max(arithmetic, bytes_ / (0.8 * peak.bytes_per_s * device.cores))


def _number(isa: str) -> int:
    """`sm_90a` -> 90."""
    digits = "".join(letter for letter in isa.partition("_")[2] if letter.isdigit())
    return int(digits or 0)
