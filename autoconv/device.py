"""What a measurement was made on: the CPU, its instruction set, and how many cores may be used.

`Device.fingerprint` is the key under which measurements are remembered. Two machines of one
fingerprint share them; anything that changes speed for all implementations alike belongs in it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

from autoconv.errors import InvalidOption, NoImplementation
from autoconv.shapes import as_int

__all__ = ["Device", "cpu", "find_device", "usable_cores"]


@dataclass(frozen=True, slots=True)
class Device:
    """One place to run: `kind` is `"cpu"`; `threads` is how many an implementation may use."""

    kind: str
    model: str
    isa: str
    cores: int
    threads: int

    @property
    def fingerprint(self) -> str:
        """The text under which measurements of this device are stored."""
        return f"{self.kind} {self.model} / {self.isa} / {self.cores} cores / {self.threads} threads"

    def __str__(self) -> str:
        return self.fingerprint

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
    """The device called `name`: None or `"cpu"`. Raises `NoImplementation` for a GPU, which nothing here drives."""
    if name is None or name == "cpu":
        return cpu(threads)
    if isinstance(name, str) and name.split(":")[0] == "cuda":
        raise NoImplementation(f"no implementation for device {name!r} is built in: this version runs on the CPU")
    raise InvalidOption(f"device must be None or 'cpu', got {name!r}")


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
