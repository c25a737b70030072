"""Which GPUs there are, as the driver tells it, and what is missing where there is none."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner

from autoconv import cli, cuda_driver, device, doctor
from autoconv.cuda_driver import Driver, read_driver
from autoconv.device import Device, find_device
from autoconv.errors import BackendMissing, InvalidOption
from tests.standin.driver import A100, H200, Library

TWO = (H200, replace(A100, index=1))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """CuPy is said to be installed, and a driver with two GPUs to be there."""
    provide(monkeypatch, Library(TWO))
    monkeypatch.setattr(device, "_has_cupy", lambda: True)
    return monkeypatch


def provide(monkeypatch: pytest.MonkeyPatch, library: Library | None) -> None:
    monkeypatch.setattr(cuda_driver, "load_library", lambda: library)
    monkeypatch.setattr(cuda_driver, "driver", lambda: read_driver(library))


def test_a_driver_is_read() -> None:
    assert read_driver(Library(TWO)) == Driver((12, 8), TWO)
    found = read_driver(Library([H200], version=13010))
    assert isinstance(found, Driver)
    assert found.version == "13.1"


@pytest.mark.parametrize(
    ("library", "sentence"),
    [
        (None, "NVIDIA's driver is not installed: libcuda.so.1 cannot be loaded"),
        (Library([]), "NVIDIA's driver is installed, but sees no GPU"),
        (Library([H200], broken={"cuInit": 3}), "NVIDIA's driver does not work: cuInit says initialization error"),
        (Library([H200], broken={"cuDeviceTotalMem_v2": 999}), "NVIDIA's driver does not work: cuDeviceTotalMem says"),
        (object(), "NVIDIA's driver does not work: 'object' object has no attribute 'cuInit'"),
    ],
)
def test_what_is_wrong_with_a_driver_is_a_sentence(library: object, sentence: str) -> None:
    found = read_driver(library)
    assert isinstance(found, str)
    assert found.startswith(sentence)


@pytest.mark.usefixtures("installed")
def test_a_gpu_is_found_by_its_name() -> None:
    one = find_device("cuda:0")
    assert one == Device("cuda", "NVIDIA H200", "sm_90", 132, 1, H200.memory_bytes, 0)
    assert one.fingerprint == str(one) == "cuda NVIDIA H200 / sm_90 / 132 multiprocessors / 139 GiB"
    assert one.name == "cuda:0"
    assert find_device("cuda:1").model == A100.name
    assert find_device("cuda", threads=4) == one


def test_cuda_alone_is_the_current_gpu(installed: pytest.MonkeyPatch) -> None:
    library = Library(TWO)
    provide(installed, library)
    assert find_device("cuda").index == 0
    library.current = 1
    assert find_device("cuda").index == 1
    provide(installed, None)
    assert cuda_driver.current_index() == 0


def test_gpus_of_one_kind_share_rows_but_are_not_equal() -> None:
    first, second = (device.gpu_of(replace(H200, index=index)) for index in (0, 1))
    assert first.fingerprint == second.fingerprint
    assert first != second
    others = (
        replace(H200, multiprocessors=60),
        replace(H200, memory_bytes=80 << 30),
        replace(H200, capability=(10, 0)),
    )
    assert len({first.fingerprint, *(device.gpu_of(gpu).fingerprint for gpu in (*others, A100))}) == 5


def test_what_is_missing_is_said(installed: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOption, match=r"no device 'cuda:2' here; there is cuda:0 \(NVIDIA H200\), cuda:1"):
        find_device("cuda:2")
    installed.setattr(device, "_has_cupy", lambda: False)
    for version, line in (
        (12080, r"'autoconv\[cuda12\]', for the driver's CUDA 12\.8"),
        (13000, r"autoconv\[cuda13\]"),
    ):
        provide(installed, Library(TWO, version))
        with pytest.raises(BackendMissing, match=rf"'cuda:0' cannot be used: CuPy is not installed .*{line}"):
            find_device("cuda:0")
    installed.setattr(device, "_has_cupy", lambda: True)
    for library, words in ((None, "driver is not installed"), (Library([]), "sees no GPU")):
        provide(installed, library)
        for name in ("cuda", "cuda:0"):
            with pytest.raises(BackendMissing, match=f"device '{name}' cannot be used: NVIDIA's.*{words}"):
                find_device(name)


def test_a_capture_has_a_number(installed: pytest.MonkeyPatch) -> None:
    library = Library(TWO)
    provide(installed, library)
    assert cuda_driver.capture_id(0x1234) == 0
    library.captures[0x1234] = 7
    assert cuda_driver.capture_id(0x1234) == 7
    assert cuda_driver.capture_id(0) == 0
    provide(installed, None)
    assert cuda_driver.capture_id(0x1234) == 0


def test_the_doctor_tells_of_gpus(installed: pytest.MonkeyPatch) -> None:
    facts = doctor.examine()["NVIDIA GPUs"]
    assert facts["driver"] == "CUDA 12.8"
    assert facts["cuda:1"] == "cuda NVIDIA A100-SXM4-80GB / sm_80 / 108 multiprocessors / 79 GiB"
    assert facts["missing"] == "nothing"
    where = doctor.examine("cuda:0")["device"]
    assert where["compute capability"] == "sm_90"
    assert where["largest workspace"] == where["memory"] // 8
    installed.setattr(device, "_has_cupy", lambda: False)
    assert doctor.examine()["NVIDIA GPUs"]["missing"].startswith("CuPy is not installed")
    provide(installed, None)
    assert doctor.examine()["NVIDIA GPUs"] == {
        "found": "none: NVIDIA's driver is not installed: libcuda.so.1 cannot be loaded"
    }


def test_the_command_line_says_what_is_missing(installed: pytest.MonkeyPatch) -> None:
    """One line and a status, whatever it is."""
    provide(installed, None)
    for words in ("tune alexnet --device cuda:0", "doctor --device cuda", "show --device cuda:1"):
        result = CliRunner().invoke(cli.cli, shlex.split(words))
        assert result.exit_code == 1, result.output
        assert "cannot be used: NVIDIA's driver is not installed" in result.output
        assert "Traceback" not in result.output
    provide(installed, Library(TWO))
    result = CliRunner().invoke(cli.cli, ["tune", "alexnet", "--device", "cuda:7"])
    assert result.exit_code == 2
    assert "there is no device 'cuda:7' here" in result.output
