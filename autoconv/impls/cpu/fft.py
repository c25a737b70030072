"""Convolution as a product of spectra, the whole image at once.

Source: Mathieu, Henaff & LeCun, "Fast Training of Convolutional Networks through FFTs", 2013; Theano's conv2d_fft.
Wins:   large filters: the cost hardly depends on their size.
Loses:  small filters, and small images, whose filters are transformed at the image's size.
Error:  about 1e-7 of the largest result in float32, spread over all results alike; a NaN or an infinity
        anywhere spoils its whole image, so `strict_nan` is False.

A transform may be shorter than the full convolution: it only has to keep what wraps round out of the results.
Config `size=unpadded` transforms at exactly that length, which needs an even last axis (half a spectrum does not
say whether its box was odd; here as in Theano it stands for an even one); `size=padded` goes on to the next
product of 2, 3 and 5. `lib=scipy` uses SciPy's transforms with the device's threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls import _overlap, _spectra
from autoconv.impls._overlap import Axis, Cut
from autoconv.impls.cpu._blas import BlasImplementation, guarded
from autoconv.planning import Runner
from autoconv.spec import LAYOUTS, ConvSpec, Op

SIZES = ("padded", "unpadded")
LIBRARIES = ("numpy", "scipy")


class SpectralImplementation(BlasImplementation):
    """What the FFT algorithms have in common."""

    layouts = frozenset(LAYOUTS)
    strict_nan = False

    def libraries(self, config: Config) -> tuple[str, ...]:
        """SciPy for its own config, else nothing."""
        return ("scipy",) if config.get("lib") == "scipy" else ()

    def environment(self, config: Config) -> Mapping[str, str]:
        """SciPy's version too, where it does the work."""
        found = dict(super().environment(config))
        if config.get("lib") == "scipy" and _spectra.installed("scipy"):
            from importlib.metadata import version

            found["scipy"] = version("scipy")
        return found

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """Stride 1, and the library of the config."""
        yield spec.stride == (1,) * spec.rank, f"needs stride 1, got {spec.stride}"
        if config is not None:
            lib = config.get("lib", "numpy")
            yield lib in LIBRARIES, f"knows the libraries {' and '.join(LIBRARIES)}, got {lib!r}"
            yield _spectra.installed(str(lib)), "needs SciPy, which is not installed (pip install autoconv[cpu])"


class Fft(SpectralImplementation):
    """Every operation at stride 1, any rank, padding, dilation and groups."""

    name = "numpy.fft"
    tags = frozenset({"fft"})

    def needs(self, spec: ConvSpec, config: Config | None) -> Iterable[tuple[bool, str]]:
        """For `size=unpadded` an even last axis."""
        yield from super().needs(spec, config)
        if config is not None:
            size = config.get("size", "padded")
            yield size in SIZES, f"knows the sizes {' and '.join(SIZES)}, got {size!r}"
            if size == "unpadded":
                last = cut_whole(spec, exact=True).sizes[-1]
                yield last % 2 == 0, f"unpadded needs an even last axis, got a transform of {last}; padded takes it"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Both sizes where they differ, with both libraries."""
        sizes = ["padded"]
        if cut_whole(spec, exact=True).sizes != cut_whole(spec, exact=False).sizes:
            sizes.append("unpadded")
        return tuple(Config(lib=lib, size=size) for lib in LIBRARIES for size in sizes)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The spectra of the filters and of a block of images, twice where they are reordered."""
        return _overlap.workspace_bytes(spec, _cut(spec, config), str(config.get("lib", "numpy")))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Transforms and products."""
        return _overlap.estimate_s(spec, device, _cut(spec, config), str(config.get("lib", "numpy")))

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Choose the transforms' size."""
        lib = str(config.get("lib", "numpy"))
        threads = context.device.threads
        return guarded(_overlap.SpectralRunner(spec, _cut(spec, config), lib, threads), context.device)


def _cut(spec: ConvSpec, config: Config) -> Cut:
    return cut_whole(spec, exact=config.get("size") == "unpadded")


def cut_whole(spec: ConvSpec, *, exact: bool) -> Cut:
    """One box per image, of the least size that does, or of the next fast one."""
    return Cut(tuple(_axis(spec, axis, exact=exact) for axis in range(spec.rank)), whole=True)


def _axis(spec: ConvSpec, axis: int, *, exact: bool) -> Axis:
    pad, dilation, kernel = spec.padding[axis][0], spec.dilation[axis], spec.kernel[axis]
    image, out, reach = spec.in_spatial[axis], spec.output_spatial[axis], (kernel - 1) * dilation
    # the results are entries `first + step * i`, i < count, of the full convolution of two sequences
    data, other, first, count, step = {
        Op.FPROP: (image, reach + 1, reach - pad, out, 1),
        Op.DGRAD: (out, reach + 1, pad, image, 1),
        Op.WGRAD: (image, out, out - 1 - pad, kernel, dilation),
    }[spec.op]
    full = data + other - 1
    low = max(0, -(first // step))  # entries before the first and behind the last are zero: padding alone
    high = min(count, (full - 1 - first) // step + 1)
    begin, end = first + step * low, first + step * (high - 1) + 1
    # an entry may not meet what lies one size further on, and both operands have to fit
    size = max(end, full - begin, data, other) if low < high else 1
    if not exact:
        size = _spectra.fast_size(size, even=axis == spec.rank - 1)
    return Axis(size, 1, 0, 0, data, out, slice(begin, max(end, begin), step), slice(low, max(high, low)))
