"""NVIDIA's run-time compiler by ctypes, from the `nvidia-cuda-nvrtc-cu12` wheel: it needs neither driver nor GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Compiled", "compile_for", "library"]

CUPYS_OPTIONS = ("-ftz=true",)  # what CuPy adds to ours


@dataclass(frozen=True)
class Compiled:
    """What came of a text: the machine code's size, and per kernel (registers, bytes spilled) as ptxas says."""

    cubin_bytes: int
    kernels: dict[str, tuple[int, int]]


@cache
def library() -> ctypes.CDLL | None:
    """The compiler, or None where the wheel is not installed."""
    found = find_spec("nvidia.cuda_nvrtc") if find_spec("nvidia") else None
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder, "lib").glob("libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def compile_for(architecture: str, text: str, options: Sequence[str]) -> Compiled:
    """Compile `text` for `architecture` ("sm_90"). Raises `AssertionError` with the compiler's words."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    uselocale = ctypes.CDLL(None).uselocale
    uselocale.argtypes, uselocale.restype = [ctypes.c_void_p], ctypes.c_void_p
    _must(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None))
    try:
        all_options = [*options, *CUPYS_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v"]
        pointers = (ctypes.c_char_p * len(all_options))(*(option.encode() for option in all_options))
        before = uselocale(None)
        status = nvrtc.nvrtcCompileProgram(program, len(all_options), pointers)
        uselocale(before)  # the compiler leaves this thread in the C locale, where files are ASCII
        log = _log(nvrtc, program)
        assert status == 0, f"{architecture} {' '.join(options)}:\n{log[:4000]}"
        size = ctypes.c_size_t()
        _must(nvrtc, nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        return Compiled(size.value, _resources(log))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _must(nvrtc, nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _must(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return text.value.decode(errors="replace")


def _resources(log: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes by kernel, from what ptxas -v says."""
    found = {}
    for part in log.split("Compiling entry function")[1:]:
        name, registers = re.search(r"'(\w+)'", part), re.search(r"Used (\d+) registers", part)
        spilled = re.search(r"(\d+) bytes spill stores", part)
        if name and registers:
            found[name[1]] = int(registers[1]), int(spilled[1]) if spilled else 0
    return found


def _must(nvrtc: ctypes.CDLL, status: int) -> None:
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    assert status == 0, nvrtc.nvrtcGetErrorString(status)
