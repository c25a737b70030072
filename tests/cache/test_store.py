"""What every store does alike: an SQLite file, the same through a general URL, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

import autoconv.cache
from autoconv.cache import MemoryStore, SqlStore, open_store
from autoconv.cache.records import SCHEMA_VERSION
from autoconv.errors import CacheError
from autoconv.evidence import Measurement, Miss, Store, latest
from tests.cache.helpers import DEVICE, OTHER_DEVICE, OTHER_SPEC, SPEC, candidate, one_warning, row

Stores: TypeAlias = SqlStore | MemoryStore
Reopen: TypeAlias = Callable[[], Stores]


@pytest.fixture(params=["file", "url", "memory"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Gives a store on one database however often it is called; memory is one store."""
    if request.param == "memory":
        only = open_store(":memory:")
        yield lambda: only
        return
    path = tmp_path / "new" / "m.sqlite"
    if request.param == "file":
        yield lambda: open_store(str(path))
        return
    path.parent.mkdir()
    opened: list[SqlStore] = []

    def at_url() -> SqlStore:
        store = open_store(f"sqlite+pysqlite:///{path}?timeout=5")  # a query: no shortcut, all through SQLAlchemy
        assert isinstance(store, SqlStore)
        assert store.path is None
        opened.append(store)
        return store

    yield at_url
    for store in opened:
        store.close()


def test_every_field_comes_back(reopen: Reopen) -> None:
    rows = [
        row(),
        Measurement(SPEC, DEVICE, candidate("a.b").choice, "skipped", reason="needs stride 1, got (2, 2)"),
        row(status="wrong", median_s=None, spread=None, samples=(), error=float("inf")),
    ]
    reopen().add(rows)
    assert reopen().rows(SPEC, DEVICE) == rows


def test_rows_are_kept_apart_and_in_order(reopen: Reopen) -> None:
    first = [candidate("a.b", measured_at=5.0), row(spec=OTHER_SPEC), row(device=OTHER_DEVICE)]
    second = [candidate("a.b", measured_at=6.0), candidate("c.d", measured_at=6.0)]
    reopen().add(first)
    reopen().add(second)
    assert reopen().rows(SPEC, DEVICE) == [first[0], *second]
    assert reopen().rows(OTHER_SPEC, DEVICE) == [first[1]]
    assert reopen().rows(SPEC, OTHER_DEVICE) == [first[2]]
    assert reopen().rows("fprop", "nowhere") == []
    assert reopen().all_specs() == [(OTHER_SPEC, DEVICE), (SPEC, OTHER_DEVICE), (SPEC, DEVICE)]
    assert reopen().all_specs(OTHER_DEVICE) == [(SPEC, OTHER_DEVICE)]
    assert sorted(reopen().history(SPEC), key=repr) == sorted([first[0], first[2], *second], key=repr)


def test_nothing_is_replaced(reopen: Reopen) -> None:
    for _ in range(3):
        reopen().add([row()])
    assert reopen().rows(SPEC, DEVICE) == [row()] * 3


def test_adding_nothing_does_nothing(reopen: Reopen) -> None:
    reopen().add([])
    assert reopen().all_specs() == []


def test_an_unstorable_row_is_reported_and_the_rest_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "m.sqlite"))
    with one_warning("not kept"):
        store.add([row(), row(median_s=float("nan")), row(status="splendid")])
        store.add([row(median_s=-1.0)])
    assert store.rows(SPEC, DEVICE) == [row()]


def test_misses_are_counted_and_settled(reopen: Reopen) -> None:
    before = time.time()
    for _ in range(2):
        reopen().miss(SPEC, DEVICE, "on_miss is heuristic")
    reopen().miss(SPEC, DEVICE)
    reopen().miss(OTHER_SPEC, OTHER_DEVICE)
    most, least = reopen().misses()
    assert (most.spec, most.device, most.count, most.reason) == (SPEC, DEVICE, 3, "on_miss is heuristic")
    assert before <= most.last_at <= time.time()
    assert (least.spec, least.count, least.reason) == (OTHER_SPEC, 1, "")
    assert reopen().misses(OTHER_DEVICE) == [least]
    reopen().add([row(status="failed", median_s=None), candidate("a.b")])
    assert reopen().misses() == [least]


def test_a_race_cut_short_leaves_its_miss_and_is_listed(reopen: Reopen) -> None:
    reopen().miss(SPEC, DEVICE, "asked")
    reopen().add([candidate("a.b", race="1"), candidate("c.d", race="1", status="partial")])
    reopen().add([row(spec=OTHER_SPEC, status="partial", measured_at=7.0)])
    asked, cut = reopen().misses(DEVICE)
    assert (asked.spec, asked.count, asked.reason) == (SPEC, 1, "asked")
    assert cut == Miss(OTHER_SPEC, DEVICE, 0, 7.0, "its last race was cut short")
    reopen().add([candidate("c.d", race="2"), row(spec=OTHER_SPEC, race="2")])
    assert reopen().misses() == []


def test_forgetting(reopen: Reopen) -> None:
    assert reopen().forget(SPEC) == 0
    reopen().add([row(), row(device=OTHER_DEVICE), row(spec=OTHER_SPEC)])
    reopen().miss(SPEC, OTHER_DEVICE)
    assert reopen().forget(SPEC, DEVICE) == 1
    assert len(reopen().misses()) == 1
    assert reopen().forget(SPEC) == 1
    assert reopen().misses() == []
    assert reopen().all_specs() == [(OTHER_SPEC, DEVICE)]


def test_describing(reopen: Reopen) -> None:
    reopen().add([row(), row(), row(spec=OTHER_SPEC)])
    reopen().miss(SPEC, OTHER_DEVICE)
    facts = reopen().describe()
    assert (facts["rows"], facts["specs"], facts["misses"], facts["degraded"]) == (3, 2, 1, None)
    if facts["kind"] == "sqlite":
        assert (facts["schema_version"], facts["journal_mode"], facts["integrity"]) == (SCHEMA_VERSION, "wal", "ok")
        assert facts["permissions_loose"] is False
        assert facts["size_bytes"] > 4096


def test_a_clock_moved_back_does_not_bring_old_rows_to_the_front(reopen: Reopen) -> None:
    future = time.time() + 1e6
    reopen().add([candidate("a.b", median_s=1.0, measured_at=future)])
    reopen().add([candidate("a.b", median_s=2.0, measured_at=time.time())])
    (newest,) = latest(reopen().rows(SPEC, DEVICE))
    assert newest.median_s == 2.0
    assert newest.measured_at == future


def test_the_default_is_the_users_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store()
    assert isinstance(store, SqlStore)
    assert store.path is not None
    assert store.path.name == "measurements.sqlite"
    assert store.path.parent.name == "autoconv"


@pytest.mark.parametrize("url", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_memory_by_name(url: str) -> None:
    assert isinstance(open_store(url), MemoryStore)


def test_sqlite_urls_and_paths_name_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "my rows.sqlite"
    ways = [name, str(tmp_path / name), f"~/{name}", f"sqlite:///{name}", f"sqlite:///{tmp_path}/my%20rows.sqlite"]
    for way in ways:
        open_store(way).add([row()])
    assert len(open_store(ways[0]).rows(SPEC, DEVICE)) == len(ways)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://u:secret@host/d", "no dialect 'nonsense'"),
        ("postgresql+nonsense://u:secret@host/d", "no dialect 'postgresql\\+nonsense'"),
        ("mssql+pymssql://u:secret@host/d", "driver is not installed"),
        ("postgresql://u:secret@host:port/d", "not an SQLAlchemy URL"),
    ],
)
def test_a_bad_url_is_an_error_at_once_and_keeps_its_password(url: str, says: str) -> None:
    with pytest.raises(CacheError, match=says) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_reached_degrades(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/no/such/directory/m.sqlite?timeout=1")
    with one_warning("unable to open"):
        assert store.rows(SPEC, DEVICE) == []
        store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]
    assert "unable to open" in store.describe()["degraded"]


def test_stores_keep_the_protocol(tmp_path: Path) -> None:
    stores: list[Store] = [open_store(str(tmp_path / "m.sqlite")), MemoryStore()]
    for store in stores:
        with store.measuring(DEVICE):
            store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]


def test_rows_on_their_way_from_memory_to_the_file_are_never_out_of_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqlStore(tmp_path / "m.sqlite")
    store.add([row(spec=OTHER_SPEC)])
    store._quiet_until["written"] = time.monotonic() + 60
    store.add([row()])
    usual = store._read_rows

    def read_while_another_thread_commits(spec: str, device: str) -> list[Measurement]:
        found = usual(spec, device)
        store._quiet_until["written"] = 0.0
        store._write_pending()
        return found

    monkeypatch.setattr(store, "_read_rows", read_while_another_thread_commits)
    assert store.rows(SPEC, DEVICE) == [row()]
    assert open_store(str(tmp_path / "m.sqlite")).rows(SPEC, DEVICE) == [row()]


def test_memory_gives_up_only_what_was_written() -> None:
    store = MemoryStore()
    store.add([row()])
    store.miss(OTHER_SPEC, DEVICE)
    rows, misses = store.contents()
    store.add([row()])  # equal, yet another
    store.miss(OTHER_SPEC, DEVICE)
    store.miss(SPEC, OTHER_DEVICE)
    store.remove(rows, misses)
    assert store.rows(SPEC, DEVICE) == [row()]
    assert [(miss.spec, miss.count) for miss in store.misses()] == [(SPEC, 1), (OTHER_SPEC, 1)]


def test_public_names_are_sorted() -> None:
    assert autoconv.cache.__all__ == sorted(autoconv.cache.__all__)
