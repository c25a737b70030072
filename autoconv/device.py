"""What a measurement was made on: the CPU, its instruction set and usable cores, or a GPU and its multiprocessors.

`Device.fingerprint` is the key under which measurements are remembered. Two machines of one
fingerprint share them; anything that changes speed for all implementations alike belongs in it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from autoconv import cuda_driver
from autoconv.errors import BackendMissing, InvalidOption
from autoconv.shapes import as_int

__all__ = ["Device", "cpu", "cuda", "find_device", "gpu_of", "missing_for_cuda", "usable_cores"]

GPU_SHARE = 8  # the part of a GPU's memory that scratch may take is one of so many


@dataclass(frozen=True, slots=True)
class Device:
    """One place to run: `kind` is `"cpu"` or `"cuda"`.

    On a CPU `isa` is its widest vector extension and `threads` how many an implementation may use. On a GPU `isa` is
    its compute capability ("sm_90"), `cores` counts its multiprocessors, `memory` its bytes, and `index` tells GPUs
    of one machine apart.
    """

    kind: str
    model: str
    isa: str
    cores: int
    threads: int
    memory: int = 0
    index: int = 0

    @property
    def name(self) -> str:
        """What `find_device` and `--device` call it."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def fingerprint(self) -> str:
        """The text under which measurements of this device are stored; GPUs of one kind share them."""
        if self.kind == "cuda":
            memory = f"{self.memory >> 30} GiB"
            return f"{self.kind} {self.model} / {self.isa} / {self.cores} multiprocessors / {memory}"
        return f"{self.kind} {self.model} / {self.isa} / {self.cores} cores / {self.threads} threads"

    def __str__(self) -> str:
        return self.fingerprint

    @property
    def workspace_cap(self) -> int | None:
        """Bytes of scratch that a winner may need where no setting says so; None is no limit.

        An eighth of a GPU's memory, which models and their data fill too: 17 GiB of an H200's 139, 3 GiB of 24. It is
        a share of all there is, not of what is free just now, so that the same rows win every time.
        """
        return self.memory // GPU_SHARE if self.kind == "cuda" and self.memory else None

    @property
    def vector_bytes(self) -> int:
        """Width of the widest vector register in bytes: 64 (AVX-512), 32 (AVX2), else 16."""
        return {"avx512": 64, "avx2": 32}.get(self.isa, 16)


@cache
def cpu(threads: int | None = None) -> Device:
    """The CPU of this process, to be used with `threads` threads (default: every usable core)."""
    cores = usable_cores()
    model, isa = _model_and_isa()
    return Device("cpu", model, isa, cores, cores if threads is None else as_int(threads, "threads", 1))


def find_device(name: str | None, threads: int | None = None) -> Device:
    """The device called `name`: None or `"cpu"`, `"cuda"` (the current GPU) or `"cuda:N"`.

    Raises `BackendMissing` when driver, GPU or CuPy are missing for a GPU, `InvalidOption` for a name without meaning.
    """
    if name is None or name == "cpu":
        return cpu(threads)
    kind, _, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind != "cuda" or not (name == kind or (number.isascii() and number.isdigit())):
        raise InvalidOption(f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    missing = missing_for_cuda()
    if missing:
        raise BackendMissing(f"device {name!r} cannot be used: {missing}")
    return cuda(int(number) if number else cuda_driver.current_index())


def cuda(index: int) -> Device:
    """The GPU with this index, as its driver describes it.

    Raises `BackendMissing` without a driver or GPUs, `InvalidOption` for an index that none of them has.
    """
    found = cuda_driver.driver()
    if isinstance(found, str):
        raise BackendMissing(f"device 'cuda:{index}' cannot be used: {found}")
    if index >= len(found.gpus):
        known = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in found.gpus)
        raise InvalidOption(f"there is no device 'cuda:{index}' here; there is {known}")
    return gpu_of(found.gpus[index])


def gpu_of(gpu: cuda_driver.Gpu) -> Device:
    """A GPU of the driver's as a device."""
    isa = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
    return Device("cuda", gpu.name, isa, gpu.multiprocessors, 1, gpu.memory_bytes, gpu.index)


def missing_for_cuda() -> str | None:
    """What this machine lacks to convolve on a GPU, in a sentence, and how to get it; None when it lacks nothing."""
    found = cuda_driver.driver()
    if isinstance(found, str):
        return found
    if not _has_cupy():
        extra = "cuda13" if found.cuda >= (13, 0) else "cuda12"
        return f"CuPy is not installed (pip install 'autoconv[{extra}]', for the driver's CUDA {found.version})"
    return None


def _has_cupy() -> bool:
    from importlib.util import find_spec  # only who asks for a GPU pays for it

    return find_spec("cupy") is not None


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def _text(path: str) -> str:
    with open(path) as file:  # not pathlib, whose import costs more than all of this
        return file.read()


def _cgroup_quota() -> float | None:
    """CPUs' worth of time this process's control group grants, when it limits them."""
    for path, per in (("/sys/fs/cgroup/cpu.max", None), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = _text(path).split()
            if per:
                words.append(_text(os.path.join(os.path.dirname(path), per)).strip())
            quota, period = words[:2]
            if quota not in ("max", "-1") and float(period) > 0:
                return float(quota) / float(period)
        except (OSError, ValueError):
            continue
    return None


def _model_and_isa() -> tuple[str, str]:
    """CPU model and widest vector extension: avx512, avx2, sse, neon, or the machine's name."""
    machine = platform.machine().lower()
    fields: dict[str, str] = {}
    try:
        for line in _text("/proc/cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if not line.strip() and fields:
                break  # the first processor tells
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # not Linux: the platform module still names the machine
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or platform.processor() or machine
    if "cpu family" in fields:
        # hypervisors hide the marketing name; family, model and stepping still tell processors apart
        model += f" ({fields['cpu family']}.{fields.get('model', '?')}.{fields.get('stepping', '?')})"
    elif "CPU part" in fields:
        model += f" ({fields.get('CPU implementer', '?')}.{fields['CPU part']})"
    if {"avx512f", "avx512vl", "avx512dq"} <= flags:
        isa = "avx512"
    elif {"avx2", "fma"} <= flags:
        isa = "avx2"
    elif machine in ("x86_64", "amd64"):
        isa = "sse"
    elif machine in ("aarch64", "arm64"):
        isa = "neon"
    else:
        isa = machine
    return model, isa
