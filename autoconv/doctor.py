"""What autoconv finds on this machine: the facts behind `autoconv doctor`, as plain data.

Optional libraries are looked up, not imported: a broken one must not take the doctor down with it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import stat
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

import autoconv
from autoconv import api, cuda_driver, dispatch, options
from autoconv.device import Device, find_device, gpu_of, missing_for_cuda
from autoconv.impls.native import _private
from autoconv.impls.native._compiler import find_compiler
from autoconv.registry import default_registry

__all__ = ["examine"]

OPTIONAL = {  # what to look for -> distributions that bring it, and the module it is imported as
    "SciPy": (("scipy",), "scipy"),
    "ONNX Runtime": (("onnxruntime", "onnxruntime-gpu"), "onnxruntime"),
    "oneDNN": (("onednn-cpu-gomp", "onednn"), ""),
    "PyTorch": (("torch",), "torch"),
    "JAX": (("jax",), "jax"),
    "CuPy": (("cupy-cuda13x", "cupy-cuda12x", "cupy"), "cupy"),
    "cuDNN": (("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"), ""),
    "cuDNN frontend": (("nvidia-cudnn-frontend",), "cudnn"),
    "ONNX": (("onnx",), "onnx"),
    "psycopg (PostgreSQL)": (("psycopg",), "psycopg"),
    "Dask distributed": (("distributed",), "distributed"),
    "ml_dtypes (bfloat16)": (("ml_dtypes",), "ml_dtypes"),
    "threadpoolctl": (("threadpoolctl",), "threadpoolctl"),
    "matplotlib": (("matplotlib",), "matplotlib"),
}
CORE = ("numpy", "sqlalchemy", "platformdirs", "rich", "click")


class _Described(Protocol):
    def describe(self) -> dict[str, Any]: ...


def examine(device: str | None = None) -> dict[str, Any]:
    """Python, NumPy and BLAS, libraries, compiler, cache, device and registry; `faults` lists what is wrong.

    A missing optional library or compiler is a fact, not a fault.
    """
    faults: list[str] = []
    where = find_device(device, options.current_scope().settings.threads)
    facts: dict[str, Any] = {
        "autoconv": {
            "version": autoconv.__version__,
            "installed at": str(Path(autoconv.__file__).parent),
            "python": f"{platform.python_version()} ({sys.executable})",
            "platform": platform.platform(),
            **{name: _version((name,)) or "not installed" for name in CORE},
        },
        "NumPy": _numpy(),
        "device": _device(where),
        "NVIDIA GPUs": _gpus(),
        "optional libraries": {name: _library(*found) for name, found in OPTIONAL.items()},
        "compiler": _compiler(),
        "compiled objects": _objects(faults),
        "cache": _cache(faults),
        "implementations": _implementations(faults),
        "settings": _settings(),
    }
    return {**facts, "faults": faults}


def _device(where: Device) -> dict[str, Any]:
    facts: dict[str, Any] = {"fingerprint": where.fingerprint, "model": where.model}
    if where.kind == "cpu":
        return {**facts, "instruction set": where.isa, "usable cores": where.cores, "threads": where.threads}
    return {
        **facts,
        "compute capability": where.isa,
        "multiprocessors": where.cores,
        "memory": where.memory,
        "largest workspace": options.current_scope().settings.limits("f32", where).max_workspace,
    }


def _gpus() -> dict[str, Any]:
    """What the driver says, asked without CuPy, and what lacks to use it."""
    found = cuda_driver.driver()
    if isinstance(found, str):
        return {"found": f"none: {found}"}
    gpus = {device.name: device.fingerprint for device in map(gpu_of, found.gpus)}
    return {"driver": f"CUDA {found.version}", **gpus, "missing": missing_for_cuda() or "nothing"}


def _numpy() -> dict[str, Any]:
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return {
        "version": np.__version__,
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "BLAS configuration": blas.get("openblas configuration", ""),
        "thread variables": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            if name in os.environ
        },
    }


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _library(distributions: tuple[str, ...], module: str) -> str:
    version = _version(distributions)
    if version is not None:
        return version
    try:
        present = bool(module) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError) as error:  # half-removed packages
        return f"broken: {error}"
    return "present, version unknown" if present else f"not installed (pip install {distributions[0]})"


def _compiler() -> dict[str, Any]:
    compiler = find_compiler()
    if isinstance(compiler, str):
        return {"found": f"{compiler}: generated kernels are refused, everything else works"}
    openmp = "yes" if compiler.openmp else "no: generated kernels use one thread"
    return {"found": " ".join(compiler.command), "version": compiler.version, "openmp": openmp}


def _objects(faults: list[str]) -> dict[str, Any]:
    """Where compiled kernels are kept, and who else may go there."""
    problem = _private.folder_problem()
    if problem:
        faults.append(f"{problem}: generated kernels are refused")
        return {"problem": problem}
    folder = _private.object_directory()
    mode = folder.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and hasattr(os, "getuid"):
        faults.append(f"others may look into {folder}, where compiled kernels are kept: chmod 700 it")
    return {"location": str(folder), "permissions": stat.filemode(mode)}


def _cache(faults: list[str]) -> dict[str, Any]:
    facts = cast("_Described", dispatch.current_store()).describe()
    if facts.get("integrity", "ok") not in ("ok", None):
        faults.append(f"the cache is damaged, rows may be hidden: {facts['integrity']}")
    if facts.get("degraded"):
        faults.append(f"the cache cannot be used, measurements are kept in memory only: {facts['degraded']}")
    if facts.get("permissions_loose"):
        faults.append(f"others may write to the cache {facts['location']}: take away their permission")
    path = Path(str(facts.get("location", "")))
    try:
        status = path.stat()
    except (OSError, ValueError):  # no such file yet, or no file at all
        return facts
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return {**facts, "permissions": stat.filemode(status.st_mode), "writable": writable}


def _implementations(faults: list[str]) -> dict[str, Any]:
    found = {one.id: "available" if one.available else f"not here: {one.reason}" for one in api.implementations()}
    broken = default_registry().faults
    faults += [f"entry point {name} cannot be loaded: {reason}" for name, reason in broken.items()]
    return {**found, **{f"entry point {name}": f"broken: {reason}" for name, reason in broken.items()}}


def _settings() -> dict[str, Any]:
    now, default = options.current_scope().settings, options.Settings()
    changed = {
        name: getattr(now, name)
        for name in options.Settings.__dataclass_fields__
        if getattr(now, name) != getattr(default, name)
    }
    return {name: options.without_password(value) if name == "cache" else value for name, value in changed.items()}
