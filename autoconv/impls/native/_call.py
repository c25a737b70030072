"""Calling a compiled kernel from Python: through a small extension where it can be built, else ctypes.

Measured with three arrays: ctypes with `.ctypes.data` about 3.7 us, the extension 0.35 us. It is C
against the stable ABI, compiled once per machine beside the kernels, so the package stays pure Python.
It can also look at the arrays before it calls (`checked_call`), for a fraction of what Python takes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sysconfig
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from autoconv.arrays import Array
from autoconv.impls.native import _compile
from autoconv.planning import Form

__all__ = ["CheckedCall", "KernelCall", "checked_call", "kernel_call", "trampoline_problem"]

KernelCall: TypeAlias = Callable[[Array, Array, Array, int], None]
"""`(a, b, out, scratch_address)`; the GIL is released while it runs."""

CheckedCall: TypeAlias = Callable[..., bool]
"""`(a, b, out[, scratch_address])`, without b when filters are bound: False, and nothing done, if an array does not
have its form or `out` overlaps an operand."""


def kernel_call(library: ctypes.CDLL, symbol: str, *, may_compile: bool = False) -> KernelCall:
    """A Python callable for `void symbol(const void *, const void *, void *, void *)` of `library`.

    The extension itself is compiled only if `may_compile`; until it is there ctypes serves.
    """
    function = getattr(library, symbol)
    extension = _trampoline(may_compile)
    if not isinstance(extension, str):
        made: KernelCall = extension.kernel(ctypes.cast(function, ctypes.c_void_p).value)
        return made
    function.argtypes = [ctypes.c_void_p] * 4
    function.restype = None

    def call(a: Array, b: Array, out: Array, scratch: int) -> None:
        function(a.ctypes.data, b.ctypes.data, out.ctypes.data, scratch)

    return call


def checked_call(
    library: ctypes.CDLL, symbol: str, forms: Sequence[Form], filters: Array | None = None
) -> CheckedCall | None:
    """A `CheckedCall` of `symbol` for arrays of `forms` (the last is the result's); None where the extension is not."""
    extension = _trampoline(may_compile=False)
    if isinstance(extension, str):
        return None
    address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    sizes = [(form.shape, form.strides) for form in forms]
    made: CheckedCall = extension.checked(address, filters, np.ndarray, forms[0].dtype, *sizes)
    return made


def trampoline_problem() -> str | None:
    """Why calls go through ctypes on this machine, or None when they need not; compiles the extension if need be."""
    found = _trampoline(may_compile=True)
    return found if isinstance(found, str) else None


_found: dict[bool, Any] = {}  # may_compile -> the extension module, or a sentence why it cannot be had


def _trampoline(may_compile: bool) -> Any:
    if may_compile not in _found:
        extension = _load_trampoline(may_compile)
        _found[may_compile] = extension
        if not isinstance(extension, str):
            _found.update({False: extension, True: extension})
    return _found[may_compile]


def _load_trampoline(may_compile: bool) -> Any:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's headers are missing ({header})"
    text = Path(__file__).with_name("_trampoline.c").read_text(encoding="utf-8")
    source = f'#define AUTOCONV_PYTHON_H "{header}"\n{text}'
    try:
        path = _compile.build(source, openmp=False) if may_compile else _compile.stored_object(source, openmp=False)
        if path is None:
            return "the extension for calls is not compiled yet, and nothing is compiled inside a call"
        loader = ExtensionFileLoader("_autoconv_trampoline", str(path))
        spec = importlib.util.spec_from_file_location("_autoconv_trampoline", path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (_compile.CompileError, ImportError) as error:
        return str(error)
    return module
