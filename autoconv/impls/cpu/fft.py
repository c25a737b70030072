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
from math import log2, prod

from autoconv.device import Device
from autoconv.evidence import Config
from autoconv.implementation import Context
from autoconv.impls import _overlap, _spectra
from autoconv.impls._cuts import Cut, cut_whole
from autoconv.impls._tiles import sees_nothing, ufunc_bytes
from autoconv.impls.cpu._blas import BlasImplementation, guarded
from autoconv.planning import Runner
from autoconv.spec import LAYOUTS, ConvSpec

SIZES = ("padded", "unpadded")
LIBRARIES = ("numpy", "scipy")
BLOCK_BYTES = 8 << 20  # spectra of one block of boxes: what a shared cache holds, unless the filters' are larger
ELEMENT_S = {"numpy": 0.55e-9, "scipy": 0.5e-9}  # per element of a box and halving of its size; one thread
LINE_S = {"numpy": 0.17e-6, "scipy": 0.02e-6}  # one line along one axis
COPY_S = 1.0e-9  # per element cut or put back
CALL_S = {"numpy": 90e-6, "scipy": 160e-6}  # views and library calls of one block


def engine(library: str) -> _overlap.Engine:
    """NumPy's arithmetic, with the transforms of `library`."""

    def own_bytes(transform: int, products: int, itemsize: int) -> int:
        return _spectra.library_elements(library, transform) * itemsize + ufunc_bytes(products, 2 * itemsize)

    return _overlap.Engine(BLOCK_BYTES, padded=False, costs=_spectra.CPU_COSTS, own_bytes=own_bytes)


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

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """How `config` cuts the operands."""
        raise NotImplementedError

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """The spectra of the filters and of a block of boxes, twice where they are reordered."""
        return _overlap.workspace_bytes(spec, self.cut(spec, config), engine(str(config.get("lib", "numpy"))))

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Transforms, products, and the copies in and out of boxes."""
        library = str(config.get("lib", "numpy"))
        if sees_nothing(spec):
            return CALL_S[library]
        cut = self.cut(spec, config)
        layout = _overlap.Layout(spec, cut, engine(library))
        box = prod(cut.sizes)
        halvings = sum(log2(max(size, 2)) * _spectra.awkwardness(size) for size in cut.sizes)
        channels = layout.count * (layout.into + layout.outof)
        filters = 0 if spec.fixed else spec.out_channels * spec.filter_shape[1]
        per_box = box * halvings * ELEMENT_S[library] + sum(box / size for size in cut.sizes) * LINE_S[library] * 0.6
        lines = (channels + filters * 0.7) * per_box
        if library == "scipy":
            lines /= min(device.threads, 8) ** 0.8
        copies = channels * box * COPY_S * (1 if cut.whole else 2)
        return float(lines + copies + layout.product.seconds + -(-layout.count // layout.most) * CALL_S[library])

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Lay out the boxes."""
        library, device = str(config.get("lib", "numpy")), context.device
        fft = _spectra.library(library, device.threads)
        return guarded(_overlap.SpectralRunner(spec, self.cut(spec, config), engine(library), fft), device)


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

    def cut(self, spec: ConvSpec, config: Config) -> Cut:
        """One box per image."""
        return cut_whole(spec, exact=config.get("size") == "unpadded")
