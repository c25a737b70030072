"""Settings: the environment, blocks, threads, decorators, and values without meaning."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from autoconv import options
from autoconv.errors import InvalidOption
from autoconv.options import Settings, current_scope, forget_calls, parse_bytes, settings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("verbose", "2", 2),
        ("cache", "/tmp/somewhere.sqlite", "/tmp/somewhere.sqlite"),
        ("cache", "", None),
        ("on_miss", "heuristic", "heuristic"),
        ("tune_budget_s", "0.25", 0.25),
        ("prefer", "numpy.fft, numpy", ("numpy.fft", "numpy")),
        ("require", "numpy onednn", ("numpy", "onednn")),
        ("exclude", "", ()),
        ("max_workspace", "512MiB", 512 * 2**20),
        ("max_workspace", "", None),
        ("max_rel_error", "1e-5", 1e-5),
        ("max_rel_error", "", None),
        ("deterministic", "1", True),
        ("deterministic", "off", False),
        ("strict_nan", "True", True),
        ("threads", "3", 3),
        ("threads", "", None),
    ],
)
def test_the_environment_sets_every_field(name: str, text: str, value: Any) -> None:
    found = Settings.from_environment({f"AUTOCONV_{name.upper()}": text, "AUTOCONV_OF_THE_FUTURE": "?"})
    assert getattr(found, name) == value
    assert Settings().updated({name: getattr(found, name)}) == found


def test_every_field_is_documented_and_settable() -> None:
    assert Settings.__doc__
    for field in fields(Settings):
        assert f"{field.name}:" in Settings.__doc__ or f"{field.name}, " in Settings.__doc__, field.name
        assert Settings().updated({field.name: getattr(Settings(), field.name)}) == Settings()


WRONG: list[tuple[str, Any, str]] = [
    ("verbose", 4, "from 0 to 3, got 4"),
    ("verbose", -1, "from 0 to 3, got -1"),
    ("verbose", 1.0, "from 0 to 3, got 1.0"),
    ("verbose", "loud", "invalid literal"),
    ("verbose", None, ""),
    ("cache", 3, ""),
    ("on_miss", "guess", "one of tune, heuristic, error, got 'guess'"),
    ("on_miss", None, "one of"),
    ("tune_budget_s", 0, "positive"),
    ("tune_budget_s", float("nan"), "positive"),
    ("tune_budget_s", float("inf"), "positive"),
    ("tune_budget_s", "soon", "could not convert"),
    ("require", (3,), "expected names"),
    ("exclude", 3, ""),
    ("prefer", ("",), "expected names"),
    ("max_workspace", "a lot", "got 'a lot'"),
    ("max_workspace", "3 parsecs", "got '3 parsecs'"),
    ("max_workspace", -1, "number of bytes"),
    ("max_workspace", True, "number of bytes"),
    ("max_workspace", float("nan"), "number of bytes"),
    ("max_workspace", [], ""),
    ("max_rel_error", 0.0, "positive"),
    ("max_rel_error", -1e-3, "positive"),
    ("deterministic", "perhaps", "true or false, got 'perhaps'"),
    ("strict_nan", 1.5, "true or false"),
    ("threads", 0, "from 1 to 4096"),
    ("threads", 2.0, "from 1 to 4096"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_values_without_meaning(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        settings(**{name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert message in str(caught.value)
    assert settings.current() == Settings.from_environment()


def test_a_variable_without_meaning_is_named() -> None:
    with pytest.raises(InvalidOption, match=r"^AUTOCONV_VERBOSE: expected an integer from 0 to 3, got '9'"):
        Settings.from_environment({"AUTOCONV_VERBOSE": "9"})


def test_a_variable_without_meaning_stops_the_first_call_not_the_import() -> None:
    program = "import autoconv\ntry:\n autoconv.settings.current()\nexcept autoconv.InvalidOption as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "AUTOCONV_ON_MISS": "never"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("AUTOCONV_ON_MISS: expected one of tune, heuristic, error")


def test_an_unknown_name_is_a_slip() -> None:
    with pytest.raises(TypeError, match=r"settings\(\) has no 'verbos'; it has .*verbose") as caught:
        settings(verbos=1)
    assert not isinstance(caught.value, InvalidOption)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("1000000", 10**6), ("1 KiB", 1024), ("1.5GiB", 3 * 2**29), ("2MB", 2 * 10**6), ("7b", 7),
        ("none", None), (None, None), (12, 12), (1e3, 1000),
    ],
)  # fmt: skip
def test_bytes(text: Any, value: int | None) -> None:
    assert parse_bytes(text) == value


# Where settings hold


def test_blocks_nest_and_end() -> None:
    outside = settings.current()
    with settings(verbose=1, exclude="numpy.fft") as outer:
        assert outer == settings.current()
        with settings(verbose=2):
            assert settings.current().verbose == 2
            assert settings.current().exclude == ("numpy.fft",)
        assert settings.current() == outer
    assert settings.current() == outside


def test_a_block_ends_when_it_raises() -> None:
    outside = settings.current()
    with pytest.raises(KeyError), settings(verbose=3):
        raise KeyError
    assert settings.current() == outside


def test_a_block_can_be_entered_again() -> None:
    block = settings(verbose=2)
    with block:
        with block:
            assert settings.current().verbose == 2
        assert settings.current().verbose == 2
    assert settings.current().verbose == 0


def test_a_decorated_function_has_its_settings_each_time() -> None:
    @settings(verbose=2, tune_budget_s=0.5)
    def inside(depth: int) -> list[Settings]:
        return [settings.current(), *(inside(depth - 1) if depth else [])]

    assert {one.verbose for one in inside(3)} == {2}
    assert settings.current().verbose == 0


def test_every_thread_has_its_own_blocks() -> None:
    ready, seen = threading.Barrier(3), {}

    def work(level: int) -> None:
        with settings(verbose=level):
            ready.wait(20)
            seen[level] = settings.current().verbose
            ready.wait(20)

    threads = [threading.Thread(target=work, args=(level,)) for level in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: 1, 2: 2, 3: 3}
    assert settings.current().verbose == 0


def test_tasks_have_their_own_blocks() -> None:
    async def work(level: int) -> int:
        with settings(verbose=level):
            await asyncio.sleep(0)
            return settings.current().verbose

    async def together() -> list[int]:
        return await asyncio.gather(*map(work, (1, 2, 3)))

    assert asyncio.run(together()) == [1, 2, 3]


def test_the_default_holds_in_other_threads() -> None:
    settings.set_default(verbose=1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(settings.current().verbose))
    thread.start()
    thread.join()
    assert seen == [1]
    with settings(verbose=2):
        settings.set_default(verbose=3)
        assert settings.current().verbose == 2, "a block stands above the default"
    assert settings.current().verbose == 3
    with pytest.raises(InvalidOption):
        settings.set_default(verbose=9)
    assert settings.current().verbose == 3


def test_the_environment_is_read_once_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCONV_VERBOSE", "2")
    assert settings.current().verbose == 2
    monkeypatch.setenv("AUTOCONV_VERBOSE", "1")
    assert settings.current().verbose == 2


def test_settings_are_a_frozen_value() -> None:
    with pytest.raises(FrozenInstanceError):
        settings.current().verbose = 2  # type: ignore[misc]
    assert hash(Settings()) == hash(Settings(verbose=0))


# Decided calls


def test_equal_settings_share_what_was_decided() -> None:
    with settings(verbose=1):
        first = current_scope()
        first.calls["a key"] = "a plan"
    with settings(verbose=1):
        assert current_scope() is first
    with settings(verbose=2):
        assert "a key" not in current_scope().calls


def test_forgetting_reaches_every_scope() -> None:
    with settings(verbose=1):
        outer = current_scope()
        outer.calls["a key"] = "a plan"
        with settings(verbose=2):
            current_scope().calls["a key"] = "a plan"
            forget_calls()
            assert not current_scope().calls
        assert not outer.calls


def test_scopes_do_not_grow_for_ever() -> None:
    for number in range(options.MAX_SCOPES + 50):
        with settings(max_workspace=number + 1):
            assert settings.current().max_workspace == number + 1
    assert len(options._scopes) <= options.MAX_SCOPES + 1


# Limits


def test_limits_take_the_dtypes_error_unless_told() -> None:
    assert Settings().limits("f32").max_rel_error == 1e-4
    assert Settings().limits("f64").max_rel_error == 1e-9
    told = Settings().updated(
        {"max_rel_error": 1e-3, "max_workspace": 5, "deterministic": True, "strict_nan": True, "prefer": "a.b",
         "require": ["c"], "exclude": ("d", "e")}
    ).limits("f32")  # fmt: skip
    assert (told.max_rel_error, told.max_workspace, told.deterministic, told.strict_nan) == (1e-3, 5, True, True)
    assert (told.prefer, told.require, told.exclude) == (("a.b",), ("c",), ("d", "e"))


def test_a_path_may_be_a_path(tmp_path: Path) -> None:
    with settings(cache=tmp_path / "here.sqlite"):
        assert settings.current().cache == str(tmp_path / "here.sqlite")
