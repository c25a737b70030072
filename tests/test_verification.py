"""Remembered winners are judged again on fresh operands, and who fails is not used any more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner

import autoconv
from autoconv import cli
from autoconv.arrays import Array
from autoconv.errors import InvalidOption
from autoconv.planning import Workspace
from autoconv.spec import ConvSpec
from tests.here import Here
from tests.tuner.fakes import SPEC

OTHER = ConvSpec.parse("fprop n2c2 5x5 k2 3x3 p1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Two fakes behind the public functions, tuned."""
    here = Here(monkeypatch)
    here.add("test.one", 1e-3)
    here.add("test.two", 2e-3)
    autoconv.tune(SPEC, budget_s=10)
    return here


def off_by(share: float) -> Callable[[Array, Array, Array, Workspace], None]:
    """Adds `share` of the largest result to one of them."""

    def trick(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        out[0, 0, 0, 0] += share * abs(out).max()

    return trick


def spoil(here: Here, trick: Callable[[Array, Array, Array, Workspace], None], name: str = "test.one") -> None:
    """What was right when it was raced goes wrong from now on."""
    fake = here.registry.get(name)
    fake.trick = trick  # type: ignore[attr-defined]


def raising(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
    raise RuntimeError("the driver is not what it was")


def test_right_winners_stay_as_they_are(here: Here) -> None:
    rows = here.stored()
    (told,) = autoconv.verify()
    assert told.ok
    assert told.status == "ok"
    assert told.used == rows[-2] or told.used in rows
    assert [check.row.choice.implementation for check in told.checks] == ["test.one"]
    error = told.checks[0].error
    assert error is not None
    assert 0 <= error < 1e-5
    assert here.stored() == rows


def test_a_wrong_winner_is_marked_and_the_next_best_serves(here: Here) -> None:
    before = here.stored()
    spoil(here, off_by(0.01))
    (told,) = autoconv.verify(SPEC, seed=7)
    assert not told.ok
    assert [(check.row.choice.implementation, check.status) for check in told.checks] == [
        ("test.one", "wrong"), ("test.two", "ok"),
    ]  # fmt: skip
    assert "rounding explains" in told.checks[0].reason
    assert here.stored()[: len(before)] == before
    (row,) = here.stored()[len(before) :]
    assert (row.status, row.median_s, row.samples) == ("wrong", None, ())
    assert row.reason.startswith("found by a later check, operands of seed 7: error ")
    races = here.races
    assert autoconv.plan(SPEC).implementation == "test.two"
    assert autoconv.explain(SPEC).to_dict()["candidates"][-1]["status"] == "wrong"
    assert here.races == races
    (tuned,) = autoconv.tune(SPEC, budget_s=10)
    assert tuned.measured == 0, "and is not tried again in this environment"


def test_a_wrong_winner_gets_another_chance_with_another_library(here: Here) -> None:
    spoil(here, off_by(0.01))
    autoconv.verify()
    fake = here.registry.get("test.one")
    fake.trick, fake.uses = None, {"library": "2"}  # type: ignore[attr-defined]
    (tuned,) = autoconv.tune(SPEC, budget_s=10)
    assert tuned.decision is not None
    assert tuned.decision.winner.choice.implementation == "test.one"


def test_a_plan_decided_before_is_decided_anew(here: Here) -> None:
    assert autoconv.plan(SPEC).implementation == "test.one"
    spoil(here, off_by(0.01))
    autoconv.verify()
    assert autoconv.plan(SPEC).implementation == "test.two"


def test_who_raises_has_failed(here: Here) -> None:
    spoil(here, raising)
    (told,) = autoconv.verify()
    assert told.status == "failed"
    assert told.checks[0].reason == "RuntimeError: the driver is not what it was"
    assert here.stored()[-1].status == "failed"


def test_an_error_beyond_the_limit_keeps_its_time_but_not_its_place(here: Here) -> None:
    with autoconv.settings(max_rel_error=1e-6):
        spoil(here, off_by(1.5e-6))
        (told,) = autoconv.verify()
        assert told.status == "inexact"
        assert "above max_rel_error" in told.checks[0].reason
        assert autoconv.plan(SPEC).implementation == "test.two"
    assert autoconv.plan(SPEC).implementation == "test.one", "where more error is allowed, it is still the fastest"


def test_bits_that_change_break_a_claim(here: Here) -> None:
    turns = itertools.count()

    def trick(a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        out[0, 0, 0, 0] *= 1 + 2e-7 * (next(turns) % 2)

    spoil(here, trick)
    (told,) = autoconv.verify()
    assert told.status == "wrong"
    assert told.checks[0].reason == "two runs differ, and it is said to be deterministic"


def test_nobody_right_leaves_the_next_call_to_race(here: Here) -> None:
    for name in ("test.one", "test.two"):
        spoil(here, off_by(0.01), name)
    (told,) = autoconv.verify()
    assert told.used is None
    assert len(told.checks) == 2
    here.add("test.new", 5e-3)
    assert autoconv.plan(SPEC).implementation == "test.new"


def test_a_winner_that_is_gone_is_no_wrong_answer(here: Here) -> None:
    here.registry.unregister("test.one")
    rows = here.stored()
    (told,) = autoconv.verify()
    assert [check.status for check in told.checks] == ["gone", "ok"]
    assert (told.ok, told.status) == (True, "ok")
    assert here.stored() == rows


def test_every_check_has_operands_of_its_own_unless_told(here: Here) -> None:
    errors = {told.checks[0].error for _ in range(8) for told in autoconv.verify()}
    assert len(errors) > 1
    assert len({told.checks[0].error for _ in range(3) for told in autoconv.verify(seed=3)}) == 1
    for seed in (-1, 2**31, True):
        with pytest.raises(InvalidOption, match="seed"):
            autoconv.verify(seed=seed)


def test_only_what_is_remembered_is_checked(here: Here) -> None:
    assert autoconv.verify(OTHER) == autoconv.verify([]) == []
    assert [told.spec for told in autoconv.verify([OTHER, SPEC])] == [SPEC]


def test_the_command_says_who_failed_and_exits_with_1(here: Here) -> None:
    right = CliRunner().invoke(cli.cli, ["verify"])
    assert right.exit_code == 0, right.output
    assert "specs checked: 1; every winner was right" in right.stdout
    assert f"1/1 {SPEC}: test.one ok" in right.stderr
    spoil(here, off_by(0.01))
    wrong = CliRunner().invoke(cli.cli, ["verify", "--seed", "5"])
    assert wrong.exit_code == 1
    assert f"| {SPEC} | test.one | wrong |" in wrong.stdout
    assert f"| {SPEC} | test.two | ok |" in wrong.stdout
    assert "specs checked: 1; 1 had a winner that failed" in wrong.stdout
    again = CliRunner().invoke(cli.cli, ["verify", "--json"])
    assert again.exit_code == 0, "the wrong one is out of use"
    data = json.loads(again.stdout)
    assert data["ok"] is True
    assert data["results"][0]["used"] == "test.two"
    assert CliRunner().invoke(cli.cli, ["verify", str(OTHER)]).exit_code == 1, "asked about, and not remembered"


def test_real_winners_pass() -> None:
    with autoconv.settings(require=("numpy",), tune_budget_s=0.3):
        specs = [
            "fprop n2c4 9x9 k6 3x3 p1",
            "dgrad n1c4 9x9 k4 3x3 s2",
            "wgrad n2c4 9x9 k4 3x3",
            "fprop n1c3 12x12 k3 5x5 fixed",
        ]
        autoconv.tune(specs, budget_s=2)
        told = autoconv.verify()
    assert {ConvSpec.parse(text) for text in specs} <= {one.spec for one in told}
    assert all(one.ok and one.used is not None for one in told)
