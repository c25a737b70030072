"""Which cores there are, and what a device is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoconv import device
from autoconv.device import Device, cpu, find_device, usable_cores
from autoconv.errors import InvalidOption, InvalidSpec


def test_fingerprint_names_all_that_changes_speed() -> None:
    one = Device("cpu", "Some CPU", "avx2", 8, 4)
    assert one.fingerprint == str(one) == "cpu Some CPU / avx2 / 8 cores / 4 threads"
    others = (Device("cpu", "Other CPU", "avx2", 8, 4), Device("cpu", "Some CPU", "avx512", 8, 4))
    more = (Device("cpu", "Some CPU", "avx2", 16, 4), Device("cpu", "Some CPU", "avx2", 8, 8))
    assert len({one.fingerprint, *(other.fingerprint for other in others + more)}) == 5


def test_this_machine() -> None:
    here = cpu()
    assert here.kind == "cpu"
    assert here.model
    assert 1 <= here.threads == here.cores <= (os.cpu_count() or 1)
    assert cpu() is cpu()
    assert cpu(1).threads == 1
    assert cpu(1).cores == here.cores
    with pytest.raises(InvalidSpec, match="threads must be at least 1"):
        cpu(0)


@pytest.mark.parametrize(("isa", "width"), [("avx512", 64), ("avx2", 32), ("sse", 16), ("neon", 16)])
def test_vector_width(isa: str, width: int) -> None:
    assert Device("cpu", "a CPU", isa, 1, 1).vector_bytes == width


def test_finding_by_name() -> None:
    assert find_device(None) == find_device("cpu") == cpu()
    assert find_device("cpu", 1).threads == 1
    for wrong in ("tpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda0", 3):
        with pytest.raises(InvalidOption, match="device must be None, 'cpu', 'cuda' or 'cuda:N'"):
            find_device(wrong)  # type: ignore[arg-type]


def test_affinity_and_quota_limit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    for quota, cores in ((None, 3), (2.0, 2), (2.9, 2), (0.5, 1), (64.0, 3)):
        monkeypatch.setattr(device, "_cgroup_quota", lambda quota=quota: quota)
        assert usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "rubbish\n"}, None),
        ({}, None),
    ],
)
def test_control_group_quota(
    files: dict[str, str], quota: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(device, "_text", lambda path: (tmp_path / Path(path).name).read_text())
    assert device._cgroup_quota() == quota
