"""CUDA C: a kernel's text joined to the constants of one problem, compiled, kept, and launched.

A `.cu` file holds `extern "C"` kernels whose sizes are macros; `common.cuh` stands before it. NVRTC compiles the text
for the device it will run on, CuPy keeps the binary on disk, and this module keeps what is loaded.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from autoconv.arrays import Array
from autoconv.device import Device
from autoconv.errors import BackendMissing
from autoconv.evidence import Config
from autoconv.implementation import Implementation, Runner
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec

__all__ = ["KernelImplementation", "LaunchRunner", "Module", "Source", "module", "options", "text"]

FOLDER = Path(__file__).parent
PLAIN_SHARED_BYTES = 48 * 1024  # a kernel that wants more dynamic shared memory must say so before its first launch

Constants = Mapping[str, int | str]
Source = tuple[str, Constants]
"""Name of a `.cu` file (without the suffix), and its constants."""


class Module:
    """A compiled `.cu` file with its constants, on one device."""

    __slots__ = ("_functions", "_lock", "_raw")

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._functions: dict[str, tuple[Any, int]] = {}  # a kernel, and the shared memory it was granted
        self._lock = threading.Lock()

    def launch(
        self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_bytes: int = 0
    ) -> None:
        """Enqueue `kernel` on the caller's current stream.

        `args` are CuPy arrays, addresses (int, passed in 64 bits) and NumPy scalars, each of exactly the type that
        the kernel declares: CuPy copies their bytes without looking. `shared_bytes` is dynamic shared memory.
        """
        known = self._functions.get(kernel)
        if known is None or known[1] < shared_bytes:
            known = self._ready(kernel, shared_bytes)
        known[0](grid, block, tuple(args), shared_mem=shared_bytes)

    def _ready(self, kernel: str, shared_bytes: int) -> tuple[Any, int]:
        with self._lock:
            known = self._functions.get(kernel)
            function = known[0] if known else self._raw.get_function(kernel)
            granted = max(shared_bytes, known[1] if known else PLAIN_SHARED_BYTES)
            if granted > PLAIN_SHARED_BYTES:
                function.max_dynamic_shared_size_bytes = granted
            self._functions[kernel] = function, granted
            return self._functions[kernel]


class LaunchRunner(Runner):
    """One launch of one kernel, which takes both operands and the result, and no scratch."""

    def __init__(self, module: Module, kernel: str, blocks: int, block: tuple[int, ...], shared_bytes: int = 0) -> None:
        self._module = module
        self._how = kernel, (blocks,), block
        self._shared_bytes = shared_bytes

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._module.launch(*self._how, (a, b, out), self._shared_bytes)


_modules: dict[tuple[str, tuple[tuple[str, int | str], ...], int], Module] = {}
_lock = threading.Lock()


def module(name: str, constants: Constants, device: Device) -> Module:
    """`<name>.cu` with `constants`, compiled for `device` and loaded; the same object whenever asked again.

    Compiling takes up to a second the first time; CuPy keeps the binary in its cache directory. Raises CuPy's
    `CompileException` for a text that does not compile, `BackendMissing` while the current stream is captured.
    """
    key = (name, tuple(sorted(constants.items())), device.index)
    found = _modules.get(key)
    if found is not None:
        return found
    import cupy

    if cupy.cuda.get_current_stream(device.index).is_capturing():
        raise BackendMissing(f"{name}.cu is not loaded yet, and nothing is compiled while a stream is captured")
    with cupy.cuda.Device(device.index):
        raw = cupy.RawModule(code=text(name), options=options(constants))
        raw.compile()
    with _lock:
        return _modules.setdefault(key, Module(raw))


@cache
def text(name: str) -> str:
    """What the compiler reads: `common.cuh`, then `<name>.cu`."""
    return "\n".join((FOLDER / file).read_text(encoding="utf-8") for file in ("common.cuh", f"{name}.cu"))


def options(constants: Constants) -> tuple[str, ...]:
    """The compiler's options: the language, and each constant as a macro."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in sorted(constants.items())))


class KernelImplementation(Implementation):
    """An implementation whose work is done by `.cu` kernels of our own.

    `specimens` are specs that between them need every kernel, element type and branch of the text: each of their
    sources is compiled for every supported architecture by the tests.
    """

    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})
    specimens: ClassVar[tuple[str, ...]]

    @abstractmethod
    def sources(self, spec: ConvSpec, device: Device, config: Config) -> Sequence[Source]:
        """What `prepare` hands to `module`, in this order; it needs neither CuPy nor a device."""

    def modules(self, spec: ConvSpec, device: Device, config: Config) -> list[Module]:
        """The `sources`, compiled and loaded."""
        return [module(name, constants, device) for name, constants in self.sources(spec, device, config)]

    def unavailable(self) -> str | None:
        """CuPy is all it takes."""
        if find_spec("cupy") is None:
            return "needs CuPy: pip install 'autoconv[cuda12]' or 'autoconv[cuda13]'"
        return None

    def libraries(self, config: Config) -> tuple[str, ...]:
        """CuPy compiles and launches."""
        return ("cupy",)

    def environment(self, config: Config) -> Mapping[str, str]:
        """CuPy brings the compiler and finds the driver."""
        from autoconv.impls.cuda._versions import versions

        return versions()
