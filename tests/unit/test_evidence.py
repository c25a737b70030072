"""Rows, limits and the rule that picks a winner."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv.evidence import (
    TIE_GAP,
    Choice,
    Config,
    Limits,
    Measurement,
    candidate_key,
    decide,
    latest,
    ratio_interval,
)

FREE = Limits()


def row(name: str, median_s: float | None = 1.0, **more: Any) -> Measurement:
    config = more.pop("config", Config())
    child = more.pop("child", None)
    version = more.pop("version", 1)
    return Measurement(
        spec="a spec", device="a device", choice=Choice(name, version, config, child),
        status=more.pop("status", "ok"), median_s=median_s, **more,
    )  # fmt: skip


# Config and Choice


def test_config_is_a_value() -> None:
    one, other = Config(tile=4, fast=True), Config({"fast": True}, tile=4)
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "fast=True tile=4"
    assert dict(one) == {"fast": True, "tile": 4}
    assert len({one, other, Config()}) == 2
    assert not Config()
    assert one != Config(tile=4)
    assert one != {"fast": True, "tile": 4}
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(TypeError):
        one["tile"] = 5  # type: ignore[index]


CONFIGS = st.dictionaries(
    st.text("abc_", min_size=1, max_size=4),
    st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=4)),
    max_size=3,
).map(Config)
CHOICES = st.recursive(
    st.builds(Choice, st.sampled_from(["a.b", "c.d"]), st.integers(1, 9), CONFIGS),
    lambda child: st.builds(Choice, st.just("rewrite.x"), st.integers(1, 9), CONFIGS, child),
    max_leaves=3,
)


@given(CHOICES)
def test_a_choice_survives_being_stored(choice: Choice) -> None:
    text = choice.to_json()
    again = Choice.from_json(text)
    assert again == choice
    assert again.to_json() == text
    assert [link.implementation for link in again.chain()] == [link.implementation for link in choice.chain()]
    assert list(choice.chain())[-1].child is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "null", '"x"', '{"id":1,"version":1,"config":{}}', '{"id":"a.b","version":"1","config":{}}',
        '{"id":"a.b","version":1,"config":[]}', '{"id":"a.b","version":1,"config":{"x":[1]}}',
        '{"id":"a.b","version":1,"config":{},"child":{}}', '{"id":"a.b","version":1,"config":{"x":null}}',
    ],
)  # fmt: skip
def test_a_choice_that_is_none(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Choice.from_json(text)


def test_choices_print_their_chain() -> None:
    choice = Choice("rewrite.groups", 1, Config(), Choice("numpy.fft", 2, Config(padded=True)))
    assert str(choice) == "rewrite.groups > numpy.fft[padded=True]"
    assert candidate_key(choice) == "rewrite.groups[]"


# Limits


@pytest.mark.parametrize(
    ("limits", "fields", "reason"),
    [
        (Limits(max_workspace=100), {"workspace_bytes": 101}, "needs 101 bytes of workspace, max_workspace is 100"),
        (Limits(max_workspace=100), {"workspace_bytes": 100}, None),
        (Limits(max_workspace=0), {}, None),
        (Limits(max_rel_error=1e-4), {"error": 2e-4}, "error 2.0e-04 is above max_rel_error 1.0e-04"),
        (Limits(max_rel_error=1e-4), {"error": 1e-4}, None),
        (Limits(max_rel_error=1e-4), {"error": None}, None),
        (Limits(max_rel_error=1e-4), {"error": 9e-5, "tags": ("tf32",)}, "rounds operands to tf32"),
        (Limits(max_rel_error=1e-3), {"error": 9e-5, "tags": ("tf32",)}, None),
        (FREE, {"error": 9e-5, "tags": ("tf32",)}, None),
        (Limits(deterministic=True), {"deterministic": False}, "not deterministic"),
        (Limits(strict_nan=True), {"strict_nan": False}, "NaN and infinity"),
        (Limits(exclude=("numpy",)), {}, "excluded by settings(exclude='numpy')"),
        (Limits(exclude=("numpy.fft",)), {}, "excluded by settings(exclude='numpy.fft')"),
        (Limits(exclude=("fast",)), {"tags": ("fast",)}, "excluded by settings(exclude='fast')"),
        (Limits(exclude=("numpy.ff",)), {}, None),
        (Limits(require=("native",)), {}, "not among settings(require=('native',))"),
        (Limits(require=("native", "fast")), {"tags": ("fast",)}, None),
        (Limits(require=("numpy",)), {}, None),
        (Limits(require=("numpy",), exclude=("fast",)), {"tags": ("fast",)}, "excluded"),
    ],
)
def test_limits_on_a_row(limits: Limits, fields: dict[str, Any], reason: str | None) -> None:
    found = limits.refuses(row("numpy.fft", **fields))
    assert found is None if reason is None else found is not None and reason in found


def test_limits_look_at_the_whole_chain() -> None:
    rewritten = row("rewrite.groups", child=Choice("onednn.conv", 1))
    assert Limits(exclude=("onednn",)).refuses(rewritten)
    assert Limits(require=("onednn",)).refuses(rewritten) is None


# Deciding


def test_nothing_to_decide() -> None:
    assert decide([], FREE) is None
    for status in ("skipped", "wrong", "failed", "crashed", "timeout", "oom"):
        assert decide([row("a.b", status=status)], FREE) is None
    for median in (None, 0.0, -1.0, float("nan"), float("inf")):
        assert decide([row("a.b", median)], FREE) is None
    assert decide([row("a.b", workspace_bytes=5)], Limits(max_workspace=4)) is None


def test_the_fastest_wins() -> None:
    rows = [row("a.slow", 3.0), row("b.fast", 1.0), row("c.middle", 2.0), row("d.wrong", 0.1, status="wrong")]
    for order in itertools.permutations(rows):
        decision = decide(order, FREE)
        assert decision
        assert decision.winner.choice.implementation == "b.fast"
        assert decision.runner_up is not None
        assert decision.runner_up.choice.implementation == "c.middle"
        assert decision.ratio == 2.0
        assert not decision.tie
        assert not decision.partial
        assert "2.00 times as fast as c.middle" in decision.why


def test_the_only_one_wins() -> None:
    decision = decide([row("a.b", status="partial")], FREE)
    assert decision
    assert decision.partial
    assert decision.ratio is None
    assert decision.runner_up is None
    assert "the only candidate" in decision.why


def test_limits_come_before_speed() -> None:
    rows = [row("a.fast", 1.0, workspace_bytes=10), row("b.lean", 9.0)]
    decision = decide(rows, Limits(max_workspace=5))
    assert decision
    assert decision.winner.choice.implementation == "b.lean"
    preferring = decide(rows, Limits(prefer=("b.lean",)))
    assert preferring
    assert preferring.winner.choice.implementation == "a.fast", "a preference never beats a measurement"


@pytest.mark.parametrize(
    ("limits", "first", "second"),
    [
        (Limits(prefer=("z",)), {"name": "z.z", "deterministic": False}, {"name": "a.a"}),
        (Limits(prefer=("tag", "a")), {"name": "z.z", "tags": ("tag",)}, {"name": "a.a"}),
        (FREE, {"name": "z.z"}, {"name": "a.a", "deterministic": False}),
        (
            FREE,
            {"name": "z.z", "workspace_bytes": 9, "error": 1e-6},
            {"name": "a.a", "deterministic": False, "error": 0.0},
        ),
        (
            FREE,
            {"name": "z.z", "workspace_bytes": 1, "error": 1e-6},
            {"name": "a.a", "workspace_bytes": 2, "error": 0.0},
        ),
        (FREE, {"name": "z.z", "error": 1e-7}, {"name": "a.a", "error": 1e-6}),
        (FREE, {"name": "a.a"}, {"name": "z.z"}),
    ],
    ids=[
        "preference",
        "preferred tag",
        "determinism",
        "determinism before workspace",
        "workspace before error",
        "error",
        "id",
    ],
)
def test_ties_break_in_order(limits: Limits, first: dict[str, Any], second: dict[str, Any]) -> None:
    gap = 1 + TIE_GAP / 2
    for times in ((1.0, gap), (gap, 1.0)):
        rows = [row(median_s=time, **fields) for time, fields in zip(times, (first, second), strict=True)]
        for order in (rows, rows[::-1]):
            decision = decide(order, limits)
            assert decision
            assert decision.tie
            assert decision.winner.choice.implementation == first["name"]
            assert "tie" in decision.why


def test_a_gap_of_the_tie_is_the_last_tie() -> None:
    assert decide([row("a.a", 1.0), row("b.b", 1.0 + TIE_GAP * 1.01)], FREE).tie is False  # type: ignore[union-attr]
    assert decide([row("a.a", 1.0), row("b.b", 1.0 + TIE_GAP * 0.99)], FREE).tie is True  # type: ignore[union-attr]


def test_paired_rounds_make_a_tie_that_medians_would_not() -> None:
    noisy = (1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0)
    fast = row("b.b", 1.45, samples=noisy, race="r")
    slow = row("a.a", 1.5, samples=tuple(reversed(noisy)), race="r")
    decision = decide([fast, slow], FREE)
    assert decision
    assert decision.tie
    assert decision.winner is slow
    apart = decide([fast, replace(slow, race="other")], FREE)
    assert apart
    assert not apart.tie
    assert apart.winner is fast


def test_ratio_interval_needs_rounds_of_one_race() -> None:
    fast = row("a.a", 1.0, samples=(1.0,) * 8, race="r")
    slow = row("b.b", 2.0, samples=(2.0,) * 8, race="r")
    assert ratio_interval(slow, fast) == (2.0, 2.0)
    assert ratio_interval(slow, replace(fast, race="s")) is None
    assert ratio_interval(replace(slow, race=""), replace(fast, race="")) is None
    assert ratio_interval(slow, replace(fast, samples=(1.0,) * 5)) is None


@given(st.lists(st.floats(0.5, 2.0), min_size=6, max_size=40))
def test_ratio_interval_holds_the_median(samples: list[float]) -> None:
    steady = row("a.a", 1.0, samples=(1.0,) * len(samples), race="r")
    other = row("b.b", 1.0, samples=tuple(samples), race="r")
    interval = ratio_interval(other, steady)
    assert interval
    ordered = sorted(samples)
    assert interval[0] <= ordered[(len(ordered) - 1) // 2] <= ordered[len(ordered) // 2] <= interval[1]


@pytest.mark.parametrize("n", [6, 7, 8, 9, 11, 12, 15, 20, 25, 60])
def test_the_interval_holds_what_it_promises_and_is_no_wider_than_need_be(n: int) -> None:
    """The chance that a median lies outside, exactly: as many heads of a fair coin."""
    steady = row("a.a", 1.0, samples=(1.0,) * n, race="r")
    interval = ratio_interval(row("b.b", 1.0, samples=tuple(range(1, n + 1)), race="r"), steady)
    assert interval is not None
    outside = int(interval[0]) - 1
    assert interval[1] == n - outside
    chance = [2 * sum(comb(n, k) for k in range(most + 1)) / 2**n for most in (outside, outside + 1)]
    assert chance[0] <= 0.05 < chance[1]


def test_a_doubtful_winner_wins_and_the_decision_says_so() -> None:
    suspect = row("a.a", 1.0, status="suspect", reason="load 9.1 on 2 cores")
    rows = [suspect, row("b.b", 2.0), row("c.c", 3.0, status="partial")]
    decision = decide(rows, FREE, {"a.a[]": "numpy 1.0 -> 2.0", "b.b[]": "numpy 1.0 -> 2.0"})
    assert decision
    assert decision.winner is suspect
    assert decision.partial
    assert decision.doubts == ("suspect: load 9.1 on 2 cores", "stale: numpy 1.0 -> 2.0")
    assert decision.why == "2.00 times as fast as b.b; suspect: load 9.1 on 2 cores; stale: numpy 1.0 -> 2.0"
    sure = decide(rows[1:], FREE)
    assert sure
    assert sure.doubts == ()
    assert json.loads(json.dumps(decision.to_dict()))["doubts"] == list(decision.doubts)


ROWS = st.lists(
    st.builds(
        lambda name, median, status, space, exact: row(
            name, median, status=status, workspace_bytes=space, deterministic=exact
        ),
        st.sampled_from(["a.a", "b.b", "c.c", "d.d"]),
        st.floats(0.1, 10.0),
        st.sampled_from(["ok", "partial", "suspect", "wrong", "failed", "oom"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=8,
)


@given(ROWS, st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_any_decision_keeps_the_rules(rows: list[Measurement], space: int, exact: bool, random: Any) -> None:
    limits = Limits(max_workspace=space, deterministic=exact)
    decision = decide(rows, limits)
    allowed = [one for one in rows if one.usable and limits.refuses(one) is None]
    assert (decision is None) == (not allowed)
    if decision:
        assert decision.winner in allowed
        best = min(one.median_s or 0 for one in allowed)
        assert (decision.winner.median_s or 0) <= best * (1 + TIE_GAP)
        shuffled = list(rows)
        random.shuffle(shuffled)
        again = decide(shuffled, limits)
        assert again
        assert again.winner.choice == decision.winner.choice


# Rows over time


def test_the_newest_row_of_each_candidate_counts() -> None:
    old, new = row("a.b", 1.0, measured_at=1.0), row("a.b", 2.0, measured_at=2.0)
    other = row("a.b", 3.0, measured_at=0.0, config=Config(tile=2))
    assert latest([new, old, other]) in ([new, other], [other, new])


def test_rows_of_another_version_are_left_out() -> None:
    old, new = row("a.b", 1.0, version=1), row("a.b", 2.0, version=2)
    child = row("rewrite.x", child=Choice("a.b", 1))
    assert latest([old, new, child], {"a.b": 2}) == [new]
    assert latest([old], {"c.d": 7}) == [old]
