"""The real cuDNN planning for an H200 that is not there, described by `h200_by_hand.json`.

The description was written by hand after NVIDIA's tables; on a device `cudnn.create_device_properties(0).serialize()`
gives the true one.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoconv.device import Device
from autoconv.impls.cuda import _cudnn_lib as lib
from autoconv.impls.cuda import _cudnn_plans as plans

__all__ = ["H200", "described", "forget"]

H200 = Device("cuda", "NVIDIA H200", "sm_90", 132, 1, 150_109_880_320, 0)


def described() -> lib.Target | str:
    """What plans for the described device are made for, or why none can be made here."""
    if find_spec("cudnn") is None:
        return "nvidia-cudnn-frontend is not installed"
    libraries = find_spec("nvidia")
    folders = [Path(folder) for folder in (libraries.submodule_search_locations if libraries else None) or ()]
    for name in ("libcublas.so.*", "libcublasLt.so.*"):
        paths = sorted(path for folder in folders for path in folder.glob(f"*/lib/{name}"))
        if not paths:
            return f"{name} is not installed, without which cuDNN ends the process"
        ctypes.CDLL(str(paths[0]), ctypes.RTLD_GLOBAL)  # cuDNN loads it by its name alone
    import cudnn

    try:
        known: Any = cudnn.create_device_properties((Path(__file__).parent / "h200_by_hand.json").read_text())
    except RuntimeError as error:
        return f"this cuDNN does not plan without a driver: {error}"
    return lib.Target({"device_property": known})


def forget() -> None:
    """What a new process does not know."""
    plans._surveys.clear()
    plans.ready.cache_clear()
