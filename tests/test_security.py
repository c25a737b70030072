"""Nothing secret is printed, and what others may change is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import autoconv
from autoconv import dispatch, doctor
from autoconv.cache import MemoryStore
from autoconv.device import cpu
from autoconv.options import Settings, without_password
from autoconv.verbose import repeat_command

URLS = {
    "postgresql://me:s3cret@host/db": "postgresql://me:***@host/db",
    "postgresql+psycopg://me:p%40ss:s3cret@host:5432/db?x=1": "postgresql+psycopg://me:***@host:5432/db?x=1",
    "postgresql://host/db?user=me&password=s3cret&x=1": "postgresql://host/db?user=me&password=***&x=1",
    "mysql://me@host/db": "mysql://me@host/db",
    "sqlite:////home/a:b@c/m.sqlite": "sqlite:////home/a:b@c/m.sqlite",
    "/home/a:b@c/m.sqlite": "/home/a:b@c/m.sqlite",
}


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_urls_are_printed_without_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", [url for url in URLS if "s3cret" in url])
def test_no_password_in_commands_and_errors(url: str) -> None:
    command = repeat_command(autoconv.ConvSpec.parse("fprop n1c1 3x3 k1 3x3"), cpu(), Settings(cache=url))
    assert "AUTOCONV_CACHE=" in command
    assert "s3cret" not in command
    with autoconv.settings(cache=f"nonsense+{url}"):
        with pytest.raises(autoconv.CacheError) as error:
            autoconv.explain("fprop n1c1 3x3 k1 3x3")
        assert "s3cret" not in str(error.value)


def test_the_doctor_keeps_a_password() -> None:
    url = "postgresql://me:s3cret@host/db?password=s3cret"
    dispatch.use_store(MemoryStore(), url)
    with autoconv.settings(cache=url):
        facts = doctor.examine()
    assert facts["settings"]["cache"] == "postgresql://me:***@host/db?password=***"
    assert "s3cret" not in str(facts)


needs_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners on this system")


@needs_owners
@pytest.mark.parametrize(("mode", "what"), [(0o770, "writable"), (0o707, "writable"), (0o750, "readable")])
def test_the_doctor_reports_a_loose_directory_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, what: str
) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    folder.chmod(0o700)
    monkeypatch.setenv("AUTOCONV_NATIVE", str(folder))
    assert not [fault for fault in doctor.examine()["faults"] if str(folder) in fault]
    folder.chmod(mode)
    (fault,) = [fault for fault in doctor.examine()["faults"] if str(folder) in fault]
    assert ("not this user's alone" if what == "writable" else "others may look into") in fault


@needs_owners
@pytest.mark.parametrize("part", ["file", "directory"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_the_doctor_reports_a_loose_cache(tmp_path: Path, part: str, mode: int) -> None:
    path = tmp_path / "cache" / "m.sqlite"
    with autoconv.settings(cache=path):
        dispatch.current_store().miss("fprop", "nowhere")
        assert doctor.examine()["faults"] == []
        loose = path if part == "file" else path.parent
        loose.chmod(loose.stat().st_mode | mode)
        assert any("others may write to the cache" in fault for fault in doctor.examine()["faults"])
