"""The second half of `make demo`: filter a real photograph and show what was decided.

A Gaussian blur, Sobel edges and a bank of Gabor filters over the photograph of Grace Hopper that
matplotlib ships, each timed against the better of SciPy's FFT convolutions on the same arrays.
Pictures go to `demo-output/`.

    python examples/demo.py [FOLDER]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.cbook import get_sample_data
from scipy.signal import fftconvolve, oaconvolve

import autoconv
from autoconv.verbose import format_time

ROUNDS = 7


def photograph() -> np.ndarray:
    """The photograph as a (3, 1, H, W) batch of colour planes, float32 in 0..1."""
    with get_sample_data("grace_hopper.jpg") as file:
        pixels = plt.imread(file, format="jpg")
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1)[:, None], dtype=np.float32) / 255


def gaussian(sigma: float, taps: int) -> np.ndarray:
    """A normalised (1, 1, taps, taps) Gaussian."""
    line = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / sigma) ** 2)
    plane = np.outer(line, line)
    return (plane / plane.sum()).astype(np.float32)[None, None]


def sobel() -> np.ndarray:
    """Horizontal and vertical derivative, (2, 1, 3, 3)."""
    across = np.outer([1, 2, 1], [1, 0, -1]).astype(np.float32)
    return np.stack([across, across.T])[:, None]


def gabor(orientations: int, taps: int, wavelength: float, sigma: float) -> np.ndarray:
    """A bank of zero-mean Gabor filters, (orientations, 1, taps, taps)."""
    y, x = np.mgrid[:taps, :taps] - taps // 2
    bank = []
    for angle in np.arange(orientations) * np.pi / orientations:
        along = x * np.cos(angle) + y * np.sin(angle)
        wave = np.exp(-(x**2 + y**2) / (2 * sigma**2)) * np.cos(2 * np.pi * along / wavelength)
        bank.append(wave - wave.mean())
    return np.asarray(bank, dtype=np.float32)[:, None]


def scipy_bank(convolve: Callable[..., np.ndarray], image: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """What a SciPy user writes: every filter over the whole stack of planes."""
    return np.concatenate([convolve(image, one[None], mode="same", axes=(2, 3)) for one in filters], axis=1)


def race(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call, taken in turn."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in samples.items()}


def apply(title: str, image: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Filter the photograph, say what ran and how it compares, and give the result."""
    spec = autoconv.ConvSpec.fprop(image.shape, filters.shape, padding="half", fixed=True)
    autoconv.tune(spec, budget_s=10, progress=True)
    bound = autoconv.plan(spec).bind(filters)
    result = bound(image)
    expected = scipy_bank(fftconvolve, image, filters)
    error = np.abs(result - expected).max() / np.abs(expected).max()
    times = race(
        {
            "autoconv": lambda: bound(image),
            "scipy fftconvolve": lambda: scipy_bank(fftconvolve, image, filters),
            "scipy oaconvolve": lambda: scipy_bank(oaconvolve, image, filters),
        }
    )
    ours = times.pop("autoconv")
    peer = min(times, key=lambda name: times[name])
    print(f"\n{title}: {format_time(ours)}; {peer} {format_time(times[peer])}: {times[peer] / ours:.1f} times faster")
    print(f"  largest difference from scipy {error:.1e} of the largest value")
    print(f"  decision: {bound.plan.choice}, {bound.plan.decision.why if bound.plan.decision else 'not measured'}")
    return result


def save(path: Path, title: str, planes: np.ndarray) -> None:
    """Write one picture: (H, W) grey or (H, W, 3) colour."""
    plt.imsave(path, np.clip(planes, 0, 1), cmap="gray" if planes.ndim == 2 else None)
    print(f"  {title}: {path}")


def main(folder: Path) -> None:
    """Filter, compare, write."""
    folder.mkdir(parents=True, exist_ok=True)
    image = photograph()
    print(f"photograph: {image.shape[2]}x{image.shape[3]} pixels, {image.shape[0]} colour planes, float32")

    blurred = apply("Gaussian blur, 41x41", image, gaussian(6.0, 41))
    edges = apply("Sobel edges, 3x3", image, sobel())
    texture = apply("Gabor bank, 8 x 31x31", image, gabor(8, 31, 9.0, 4.5))

    print("\npictures:")
    save(folder / "photograph.png", "photograph", image[:, 0].transpose(1, 2, 0))
    save(folder / "blur.png", "Gaussian blur", blurred[:, 0].transpose(1, 2, 0))
    strength = np.hypot(edges[:, 0], edges[:, 1]).max(axis=0)
    save(folder / "edges.png", "Sobel edges", strength / strength.max())
    response = np.abs(texture).max(axis=0).max(axis=0)
    save(folder / "gabor.png", "strongest Gabor response", response / response.max())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo-output"))
