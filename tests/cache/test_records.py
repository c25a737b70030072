"""Rows and measurements: nothing lost on the way, nothing accepted that is not sound."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv.cache.records import COLUMNS, STATUSES, answered, cut_short, decode, encode, in_sequence
from autoconv.evidence import Choice, Config, Measurement
from tests.cache.helpers import DEVICE, OTHER_SPEC, SPEC, candidate, row

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TIMES = st.floats(min_value=1e-12, max_value=1e9)
NAMES = st.from_regex(r"[a-z]{1,8}\.[a-z0-9_]{1,8}", fullmatch=True)
CONFIGS = st.builds(Config, st.dictionaries(TEXT, st.integers(-(2**70), 2**70) | TEXT | st.booleans(), max_size=3))
CHOICES = st.recursive(
    st.builds(Choice, NAMES, st.integers(0, 99), CONFIGS),
    lambda child: st.builds(Choice, NAMES, st.integers(0, 99), CONFIGS, child),
    max_leaves=3,
)
MEASUREMENTS = st.builds(
    Measurement,
    spec=TEXT,
    device=TEXT,
    choice=CHOICES,
    status=st.sampled_from(sorted(STATUSES)),
    environment=st.dictionaries(TEXT, TEXT, max_size=3),
    median_s=st.none() | TIMES,
    spread=st.none() | st.floats(0, 1e6),
    samples=st.lists(TIMES, max_size=5).map(tuple),
    workspace_bytes=st.integers(0, 2**63 - 1),
    error=st.none() | st.floats(0, 1e300),
    deterministic=st.booleans(),
    strict_nan=st.booleans(),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    reason=TEXT,
    race=TEXT,
    measured_at=st.floats(0, 1e11),
    host=TEXT,
    enqueue_s=st.none() | TIMES,
)


def stored(measurement: Measurement) -> list[Any]:
    values = encode(measurement)
    return [values[name] for name in COLUMNS]


def damaged(**changes: Any) -> list[Any]:
    return [changes.get(name, value) for name, value in zip(COLUMNS, stored(row()), strict=True)]


def test_columns_are_the_fields() -> None:
    assert tuple(field.name for field in fields(Measurement)) == COLUMNS


@given(MEASUREMENTS)
def test_every_field_comes_back(measurement: Measurement) -> None:
    assert decode(stored(measurement)) == measurement


def test_numpy_scalars_become_plain() -> None:
    measured = row(
        median_s=np.float32(0.25),
        samples=(np.float64(0.5),),
        workspace_bytes=np.int64(7),
        error=np.float32(0.125),
        deterministic=np.bool_(True),
    )
    back = decode(stored(measured))
    assert back == row(median_s=0.25, samples=(0.5,), workspace_bytes=7, error=0.125, deterministic=True)
    assert type(back.median_s) is float
    assert type(back.deterministic) is bool


def test_text_no_database_takes_is_made_presentable() -> None:
    assert decode(stored(row(reason="a\udc80b\0c", host="h\udcff"))) == row(reason="a?b?c", host="h?")


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "splendid"},
        {"status": None},
        {"median_s": 0.0},
        {"median_s": -1.0},
        {"median_s": math.inf},
        {"median_s": math.nan},
        {"median_s": "0.1"},
        {"median_s": True},
        {"samples": "[0.1,NaN]"},
        {"samples": "[0.1,-1]"},
        {"samples": "[0.1"},
        {"samples": "{}"},
        {"samples": None},
        {"error": math.inf},
        {"error": math.nan},
        {"error": -1.0},
        {"error": "small"},
        {"choice": "numpy.fft"},
        {"choice": "{}"},
        {"choice": '{"id":1,"version":1,"config":{}}'},
        {"choice": "[" * 100_000},
        {"environment": "[]"},
        {"environment": '{"numpy":2}'},
        {"workspace_bytes": -1},
        {"workspace_bytes": 1.5},
        {"deterministic": 2},
        {"strict_nan": None},
        {"tags": "[1]"},
        {"measured_at": math.inf},
        {"spec": "fprop \udc80"},
        {"enqueue_s": 0.0},
        {"enqueue_s": "1e-5"},
        {"reason": None},
        {"reason": b"bytes"},
    ],
    ids=lambda changes: "-".join(f"{key}={str(value)[:20]}" for key, value in changes.items()),
)
def test_unsound_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError, RecursionError)):
        decode(damaged(**changes))


@pytest.mark.parametrize("measured", [row(median_s=math.nan), row(error=math.nan), row(samples=(math.inf,))], ids=repr)
def test_unsound_measurements_are_not_encoded(measured: Measurement) -> None:
    with pytest.raises(ValueError, match=r"number|JSON|time|nan|inf"):
        encode(measured)


def test_a_wrong_answer_may_have_any_error() -> None:
    assert decode(stored(row(status="wrong", median_s=None, error=math.inf))).error == math.inf
    assert decode(stored(row(status="wrong", median_s=None, error=math.nan))).error is None


def test_a_partial_row_leaves_its_spec_unanswered() -> None:
    rows = [row(), candidate("a.b", status="partial"), row(spec=OTHER_SPEC)]
    assert answered(rows) == {(OTHER_SPEC, DEVICE)}


def test_the_last_race_tells_whether_it_was_cut_short() -> None:
    first = [candidate("a.b", race="1"), candidate("c.d", race="1", status="partial")]
    assert cut_short(first)
    assert not cut_short([*first, candidate("c.d", race="2")])
    assert not cut_short([*first, candidate("e.f", race="2")])  # the next race was free to leave it out
    assert cut_short([candidate("c.d", race="0"), *first])
    assert not cut_short([candidate("a.b", race="", status="partial"), candidate("a.b", race="")])
    assert not cut_short([])


def test_new_rows_stay_newest_after_the_clock_was_moved_back() -> None:
    new = row(measured_at=100.0)
    assert in_sequence([new], {(SPEC, DEVICE): 900.0}, now=101.0)[0].measured_at == 900.0
    assert in_sequence([new], {(SPEC, DEVICE): 100.5}, now=101.0) == [new]  # two processes at once, no more
    assert in_sequence([new], {}, now=101.0) == [new]
