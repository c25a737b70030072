"""A world of its own for every test: no settings from outside, no cache but a temporary one."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from autoconv import dispatch, options
from autoconv.tuner import Tuner
from autoconv.tuner.contention import Calm

hypothesis.settings.register_profile(
    "autoconv",
    deadline=None,  # a loaded machine is no failure
    derandomize=True,  # the same examples every time: a red run can be repeated
    database=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("autoconv")

_number = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any("gpu" in item.keywords for item in items):
        return
    reason = _why_no_gpu()
    if reason:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    if find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"
    return None if count else "no GPU"


@pytest.fixture(scope="session")
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("autoconv")


@pytest.fixture(scope="session")
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache directory for this run; parallel workers share it, so that nothing is compiled twice."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "user-cache"


@pytest.fixture(autouse=True)
def _own_world(_scratch: Path, _user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Default settings, an empty cache of its own, and the user's cache directory out of reach."""
    for name in [name for name in os.environ if name.startswith("AUTOCONV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AUTOCONV_CACHE", str(_scratch / f"{next(_number)}.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(_user_cache))
    monkeypatch.setattr(options, "_default", None)
    options.forget_calls()
    yield
    options.forget_calls()
    for store in dispatch._stores.values():
        getattr(store, "close", lambda: None)()
    dispatch._stores.clear()


@pytest.fixture(autouse=True)
def _calm_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share their machine, so nothing would be settled if races noticed; the watchman's own tests call him."""
    defaults = Tuner.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "watchman", lambda device: Calm())


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on nothing but the test's name."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
