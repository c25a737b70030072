"""Damaged files are set aside whole, never deleted, and remembering goes on in a new one."""

from __future__ import annotations

import random
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from autoconv.cache import CacheWarning, open_store, rescue
from tests.cache.helpers import DEVICE, OTHER_SPEC, SPEC, candidate, one_warning, row, run_python

ROWS = [candidate(f"a.b{number}", race=str(number)) for number in range(60)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database of several pages, nothing left in its log."""
    path = tmp_path_factory.mktemp("sound") / "m.sqlite"
    open_store(str(path)).add(ROWS)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def smashed(data: bytes, *, page: int) -> bytes:
    start = (page - 1) * 4096
    return data[:start] + b"\xa5" * 4096 + data[start + 4096 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda data: b"these are not the rows you are looking for\n" * 200,
    "noise": lambda data: random.Random(1).randbytes(len(data)),
    "a few bytes": lambda data: b"SQLite format",
    "cut inside the header": lambda data: data[:60],
    "cut inside a page": lambda data: data[: len(data) // 2 + 100],
    "first page": lambda data: smashed(data, page=1),
    "first page, header kept": lambda data: data[:100] + smashed(data, page=1)[100:],
    "root of the table": lambda data: smashed(data, page=2),
    "schema of no text": lambda data: data.replace(b"CREATE TABLE measurement", b"CREATE \xb5ABLE measurement"),
    "zeros": lambda data: data[:4096] + bytes(len(data) - 4096),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("first", ["read", "write", "ask"])
def test_a_damaged_file_is_set_aside(
    tmp_path: Path, sound: bytes, damage: Callable[[bytes], bytes], first: str
) -> None:
    path = tmp_path / "m.sqlite"
    broken = damage(sound)
    path.write_bytes(broken)
    store = open_store(str(path))
    with one_warning("kept as .*corrupt-.*remembering starts anew"):
        if first == "read":
            assert store.rows(SPEC, DEVICE) == []
        elif first == "ask":
            assert store.misses() == []
        store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]
    (kept,) = [each for each in tmp_path.glob("m.sqlite.corrupt-*") if each.name[-4:] not in ("-wal", "-shm")]
    assert kept.read_bytes() == broken
    assert open_store(str(path)).rows(SPEC, DEVICE) == [row()]


def test_the_log_goes_with_its_file(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(DAMAGES["text"](sound))
    path.with_name("m.sqlite-wal").write_bytes(b"log")
    kept = rescue.set_aside(path)
    assert kept is not None
    assert kept.with_name(kept.name + "-wal").read_bytes() == b"log"
    assert not path.with_name("m.sqlite-wal").exists()


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "m.sqlite"
    kept = set()
    for number in range(3):
        path.write_bytes(b"damage %d\n" % number * 100)
        kept.add(rescue.set_aside(path))
    assert len(kept) == 3
    assert all(each is not None and each.exists() for each in kept)


def test_a_sound_file_is_not_set_aside(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "m.sqlite"
    assert rescue.set_aside(path) is None  # another process did it first
    path.write_bytes(sound)
    assert rescue.set_aside(path) is None
    assert path.read_bytes() == sound


def test_damage_that_cannot_be_set_aside(tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "m.sqlite"
    path.write_bytes(DAMAGES["text"](sound))
    monkeypatch.setattr(Path, "rename", refuse)
    store = open_store(str(path))
    with one_warning("cannot be set aside: .*Permission denied"):
        assert store.rows(SPEC, DEVICE) == []
        store.add([row()])
        assert store.rows(SPEC, DEVICE) == [row()]
    assert path.read_bytes() == DAMAGES["text"](sound)


def test_flipped_bits_never_raise_and_never_invent(tmp_path: Path, sound: bytes) -> None:
    """Any single byte may be hit: what is still given is what was written, to the last digit."""
    chance = random.Random(20)
    path = tmp_path / "m.sqlite"
    written = {each.race: each for each in ROWS}
    places = [*range(0, 100, 3), *(chance.randrange(len(sound)) for _ in range(40))]
    for place in places:
        for stale in tmp_path.glob("m.sqlite*"):
            stale.unlink()
        path.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << chance.randrange(8))]) + sound[place + 1 :])
        store = open_store(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            for each in store.rows(SPEC, DEVICE):
                assert each == written[each.race], place
            store.misses()
            store.add([row(spec=OTHER_SPEC)])
            found = store.rows(OTHER_SPEC, DEVICE)  # a damaged index may hide rows: then `doctor` says so
            assert row(spec=OTHER_SPEC) in found or store.describe()["integrity"] != "ok", place
        assert list(tmp_path.glob("m.sqlite*")), place


def test_a_digit_that_became_another_costs_its_row(tmp_path: Path) -> None:
    """SQLite does not notice, and the row makes sense: the checksum tells."""
    path = tmp_path / "m.sqlite"
    open_store(str(path)).add([row(race=str(number)) for number in range(9)])
    changes = (
        "median_s = 0.2", "samples = '[0.3,0.1,1e-7]'", "error = NULL", "deterministic = 1", "workspace_bytes = 0",
        "choice = replace(choice, 'im2col', 'direct')", "measured_at = measured_at + 1", "tags = '[]'",
    )  # fmt: skip
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for number, change in enumerate(changes):
            database.execute(f"UPDATE measurement SET {change} WHERE race = '{number}'")
    store = open_store(str(path))
    with one_warning("8 unreadable row.*checksum does not fit"):
        assert store.rows(SPEC, DEVICE) == [row(race="8")]
        assert store.history(SPEC) == [row(race="8")]


def test_a_damaged_time_is_not_passed_on_to_new_rows(tmp_path: Path) -> None:
    """New rows are stamped no earlier than those they replace: but for one that a flipped bit put in the future."""
    path = tmp_path / "m.sqlite"
    store = open_store(str(path))
    store.add([row()])
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE measurement SET measured_at = 2.4e163")
    with one_warning("1 unreadable row"):
        store.add([row(race="new")])
        assert store.rows(SPEC, DEVICE) == [row(race="new")]


def test_a_damaged_index_does_not_pass_one_spec_off_as_another(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "m.sqlite"
    damaged = bytearray(sound)
    leaves = [at for at in range(4096, len(sound), 4096) if sound[at] == 10 and SPEC.encode() in sound[at : at + 4096]]
    cells = int.from_bytes(damaged[leaves[-1] + 3 : leaves[-1] + 5], "big")
    pointer = leaves[-1] + 8 + 2 * (cells * 5 // 8)  # right of the middle: the search for the first entry passes by
    hit = damaged.index(SPEC.encode(), leaves[-1] + int.from_bytes(damaged[pointer : pointer + 2], "big"))
    damaged[hit + 4] = ord("0")
    path.write_bytes(damaged)
    with one_warning("1 unreadable row.* about 'fpro0 "):
        rows = open_store(str(path)).rows(SPEC, DEVICE)
    assert len(rows) == len(ROWS) - 1


def test_processes_that_meet_the_damage_together_lose_nothing(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(DAMAGES["root of the table"](sound))
    script = """
        import os, sys, warnings
        from autoconv.cache import CacheWarning, open_store
        from tests.cache.helpers import candidate
        warnings.simplefilter("ignore", CacheWarning)
        children = []
        for number in range(4):  # forked, so that they start together
            child = os.fork()
            if child == 0:
                try:
                    open_store(sys.argv[1]).add([candidate(f"a.b{number}")])
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
    """
    run_python(script, path)
    assert sorted(str(each.choice) for each in open_store(str(path)).rows(SPEC, DEVICE)) == [
        f"a.b{number}" for number in range(4)
    ]
    kept = [each for each in tmp_path.glob("m.sqlite.corrupt-*") if each.name[-4:] not in ("-wal", "-shm")]
    assert len(kept) == 1
    shutil.copy(kept[0], tmp_path / "copy")  # readable, whole
    assert (tmp_path / "copy").read_bytes() == DAMAGES["root of the table"](sound)
