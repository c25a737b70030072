"""What is doubtful is timed again; what is not stays as it is, and nothing is ever thrown away."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import autoconv
from autoconv import cli, dispatch, regressing
from autoconv.device import cpu
from autoconv.errors import InvalidOption, InvalidSpec
from autoconv.evidence import Measurement
from autoconv.spec import ConvSpec
from tests.here import Here
from tests.tuner.fakes import SPEC

OTHER = ConvSpec.parse("fprop n2c2 5x5 k2 3x3 p1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Fakes behind the public functions."""
    return Here(monkeypatch)


def mark(here: Here, status: str, reason: str = "", spec: ConvSpec = SPEC, *names: str) -> None:
    """As if the last race had ended with `status` for every candidate, or those named."""
    rows = [row for row in here.stored(spec) if row.usable and (not names or row.choice.implementation in names)]
    here.store.add([replace(row, status=status, reason=reason) for row in rows])


def statuses(here: Here, spec: ConvSpec = SPEC) -> dict[str, str]:
    return {row.choice.implementation: row.status for row in here.stored(spec)}  # the newest come last


# Stale -------------------------------------------------------------------------------------------


def test_an_upgrade_makes_rows_stale_and_regress_finds_the_new_winner(here: Here) -> None:
    one, two, far = here.add("test.one", 1e-3), here.add("test.two", 1.5e-3), here.add("test.far", 3.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    kept = here.stored()
    one.uses, one.seconds = {"library": "2"}, 3e-3
    told = autoconv.explain(SPEC)
    assert told.state == "stale"
    assert told.why.endswith("; stale: library 1 -> 2")
    assert told.decision is not None
    assert told.decision.winner.choice.implementation == "test.one", "a stale row still ranks"
    calls = far.calls
    (again,) = autoconv.regress(budget_s=10)
    assert again.reasons == ("stale: library 1 -> 2",)
    assert again.changed
    assert again.ratio == pytest.approx(2.0)
    assert again.interval == pytest.approx((2.0, 2.0))
    assert again.drift == pytest.approx(3.0)
    assert again.verdict == "test.one gives way to test.two, 2.00 times as fast, 95 % interval 2.00 to 2.00"
    assert two.calls
    assert far.calls == calls, "what lost by far does not race again"
    assert here.stored()[: len(kept)] == kept, "rows are added, never removed"
    assert autoconv.explain(SPEC).state == "remembered"
    assert autoconv.plan(SPEC).implementation == "test.two"
    assert autoconv.regress() == []


def test_an_upgrade_alone_costs_no_call_a_race(here: Here) -> None:
    one = here.add("test.one", 1e-3)
    here.add("test.two", 1.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    one.uses = {"library": "2"}
    races = here.races
    plan = autoconv.plan(SPEC)
    assert (plan.implementation, plan.source, here.races) == ("test.one", "cache", races)


def test_a_winner_that_is_as_fast_as_before_is_kept_with_new_evidence(here: Here) -> None:
    fakes = [here.add("test.one", 1e-3), here.add("test.two", 1.5e-3)]
    autoconv.tune(SPEC, budget_s=10)
    for fake in fakes:
        fake.uses = {"library": "2"}
    (again,) = autoconv.regress(SPEC, budget_s=10)
    assert not again.changed
    assert again.verdict.startswith("kept: 1.50 times as fast as test.two, 95 % interval 1.50 to 1.50")
    assert again.drift == pytest.approx(1.0)
    assert {row.environment["library"] for row in again.rows} == {"2"}


def test_a_version_that_only_one_side_knows_is_no_change(here: Here) -> None:
    one = here.add("test.one", 1e-3)
    autoconv.tune(SPEC, budget_s=10)
    one.uses = {"library": "1", "driver": "9"}
    assert autoconv.explain(SPEC).state == "remembered"
    assert autoconv.regress() == []


# Suspect and partial -----------------------------------------------------------------------------


def test_suspect_rows_are_raced_again_and_settled(here: Here) -> None:
    here.add("test.one", 1e-3)
    here.add("test.two", 1.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    mark(here, "suspect", "the canary took 3 times as long")
    told = autoconv.explain(SPEC)
    assert told.state == "suspect"
    assert told.why.endswith("; suspect: the canary took 3 times as long")
    (again,) = autoconv.regress(budget_s=10)
    assert again.reasons == ("suspect: the canary took 3 times as long",)
    assert statuses(here) == {"test.one": "ok", "test.two": "ok"}
    assert autoconv.explain(SPEC).state == "remembered"


def test_a_suspect_loser_near_the_winner_is_reason_enough(here: Here) -> None:
    here.add("test.one", 1e-3)
    two = here.add("test.two", 1.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    mark(here, "suspect", "", SPEC, "test.two")
    two.seconds = 0.5e-3
    assert autoconv.explain(SPEC).state == "remembered"
    (again,) = autoconv.regress(budget_s=10)
    assert again.after.winner.choice.implementation == "test.two"


def test_a_race_that_was_cut_short_is_finished_with_those_it_did_not_reach(here: Here) -> None:
    here.add("test.one", 20e-3)
    here.add("test.two", 21e-3)
    last = here.add("test.three", 15e-3, estimate=22e-3)
    (first,) = autoconv.tune(SPEC, budget_s=0.15)
    assert (first.partial, last.calls) == (True, 0)
    (again,) = autoconv.regress(budget_s=10)
    assert again.after.winner.choice.implementation == "test.three"
    assert not again.partial
    assert set(statuses(here).values()) == {"ok"}
    assert here.store.misses() == []


def test_a_regress_that_is_cut_short_takes_nothing_away(here: Here) -> None:
    fakes = [here.add("test.one", 50e-3), here.add("test.two", 52e-3)]
    autoconv.tune(SPEC, budget_s=10)
    before = autoconv.explain(SPEC)
    fakes[0].uses = {"library": "2"}
    (again,) = autoconv.regress(budget_s=0.2)
    assert again.partial
    assert not again.changed
    after = autoconv.explain(SPEC)
    assert after.decision is not None
    assert before.decision is not None
    assert after.decision.winner == before.decision.winner
    assert len(autoconv.regress(budget_s=10)) == 1, "it stays doubtful until it is settled"


# Which, in what order, and what else may come --------------------------------------------------------


def test_what_is_fresh_is_left_alone(here: Here) -> None:
    one = here.add("test.one", 1e-3)
    autoconv.tune([SPEC, OTHER], budget_s=10)
    calls, rows = one.calls, here.stored()
    assert autoconv.regress() == autoconv.regress(SPEC) == autoconv.regress([]) == []
    assert (one.calls, here.stored()) == (calls, rows)


def test_specs_with_a_doubtful_winner_come_first(here: Here) -> None:
    here.add("test.one", 1e-3)
    here.add("test.two", 1.5e-3)
    autoconv.tune([SPEC, OTHER], budget_s=10)
    mark(here, "suspect", "", SPEC, "test.two")
    mark(here, "suspect", "", OTHER, "test.one")
    assert [doubt.spec for doubt in regressing.doubtful(cpu())] == [OTHER, SPEC]
    assert [one.spec for one in autoconv.regress(SPEC, budget_s=10)] == [SPEC]


def test_a_winner_that_is_gone_leaves_the_others_to_race(here: Here) -> None:
    here.add("test.one", 1e-3)
    two = here.add("test.two", 1.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    here.registry.unregister("test.one")
    two.uses = {"library": "2"}
    (again,) = autoconv.regress(budget_s=10)
    assert again.after.winner.choice.implementation == "test.two"
    two.unavailable = lambda: "its library is gone"  # type: ignore[method-assign]
    two.uses = {"library": "3"}
    assert autoconv.regress(budget_s=10) == []


def test_a_text_of_another_version_is_passed_over(here: Here) -> None:
    here.add("test.one", 1e-3)
    autoconv.tune(SPEC, budget_s=10)
    here.store.add([replace(here.stored()[0], spec="fprop of another age", status="suspect")])
    assert autoconv.regress() == []


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_none(budget: float) -> None:
    with pytest.raises(InvalidOption, match="budget_s"):
        autoconv.regress(budget_s=budget)


def test_a_spec_that_is_none() -> None:
    with pytest.raises(InvalidSpec):
        autoconv.regress("fprop n1")


# Explain -----------------------------------------------------------------------------------------


def test_explain_has_samples_interval_and_what_is_stale(here: Here) -> None:
    here.add("test.one", 1e-3)
    two = here.add("test.two", 1.5e-3)
    autoconv.tune(SPEC, budget_s=10)
    two.uses = {"library": "2"}
    told = autoconv.explain(SPEC)
    best, loser = told.to_dict()["candidates"]
    assert best["interval"] is None
    assert loser["interval"] == pytest.approx([1.5, 1.5])
    assert loser["samples"] == pytest.approx([1.5e-3] * len(loser["samples"]))
    assert len(loser["samples"]) >= 6
    assert (best["stale"], loser["stale"]) == ("", "library 1 -> 2")
    assert told.state == "remembered", "the winner itself is not stale"
    text = str(told)
    assert "why:    1.50 times as fast as test.two, 95 % interval 1.50 to 1.50" in text
    line = next(line for line in text.splitlines() if line.startswith("test.two"))
    assert line.split()[:4] == ["test.two", "1.5", "ms", "+/-"]
    assert "1.50x   1.50 to 1.50" in line
    assert line.endswith("stale: library 1 -> 2")


def test_verbose_and_show_tell_doubts(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    one = here.add("test.one", 1e-3)
    autoconv.tune(SPEC, budget_s=10)
    one.uses = {"library": "2"}
    with autoconv.settings(verbose=1):
        autoconv.plan(SPEC)
    assert "stale: library 1 -> 2" in capsys.readouterr().err
    shown = CliRunner().invoke(cli.cli, ["show"]).stdout
    assert "| stale |" in shown


# The command -------------------------------------------------------------------------------------


def test_the_command_tells_what_changed(here: Here) -> None:
    one = here.add("test.one", 1e-3)
    here.add("test.two", 1.5e-3)
    autoconv.tune([SPEC, OTHER], budget_s=10)
    one.uses, one.seconds = {"library": "2"}, 3e-3
    result = CliRunner().invoke(cli.cli, ["regress", str(SPEC)])
    assert result.exit_code == 0, result.output
    assert f"| {SPEC} | stale | test.two | test.one | 2.00x | 2.00 to 2.00 | 3.00x | settled |" in result.stdout
    assert f"1/1 {SPEC}: test.one gives way to test.two" in result.stderr
    data = json.loads(CliRunner().invoke(cli.cli, ["regress", "--json", "--budget", "30"]).stdout)
    (told,) = data["results"]
    assert (told["spec"], told["changed"], data["left"]) == (str(OTHER), True, 0)
    assert told["old"]["winner"]["choice"] == "test.one"
    assert told["new"]["winner"]["choice"] == "test.two"
    assert told["timed"] == {"test.one[]": "ok", "test.two[]": "ok"}
    assert "nothing that is remembered is doubtful" in CliRunner().invoke(cli.cli, ["regress"]).stdout


def test_a_spent_budget_leaves_the_rest_for_another_time(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.add("test.one", 1e-3)
    autoconv.tune([SPEC, OTHER], budget_s=10)
    for spec in (SPEC, OTHER):
        mark(here, "suspect", "", spec)
    moments = iter([0.0, 0.0, *[100.0] * 100])
    monkeypatch.setattr("autoconv.campaign.time.perf_counter", lambda: next(moments))
    data = json.loads(CliRunner().invoke(cli.cli, ["regress", "--json", "--budget", "1"]).stdout)
    assert (len(data["results"]), data["left"]) == (1, 1)


def test_wrong_arguments_are_refused() -> None:
    for words, message in (
        (["regress", "--budget", "0"], "expected a positive number of seconds"),
        (["regress", "fprop n1"], "cannot read"),
        (["verify", "--seed", "-1"], "Invalid value for '--seed'"),
        (["verify", "nosuch.txt"], "nosuch.txt"),
    ):
        result = CliRunner().invoke(cli.cli, words)
        assert result.exit_code in (1, 2), result.output
        assert message in result.stderr


def test_rows_survive_in_the_database_too() -> None:
    spec = "fprop n1c2 6x6 k2 3x3"
    with autoconv.settings(require=("numpy.direct", "numpy.im2col")):
        autoconv.tune(spec, budget_s=5)
        store, where = dispatch.current_store(), cpu().fingerprint

        def old(row: Measurement) -> Measurement:
            return replace(row, environment={**row.environment, "numpy": "1.0"})

        store.add([old(row) for row in store.rows(str(ConvSpec.parse(spec)), where)])
        before = store.rows(str(ConvSpec.parse(spec)), where)
        (again,) = autoconv.regress(budget_s=5)
        after = store.rows(str(ConvSpec.parse(spec)), where)
    assert "stale: numpy 1.0 -> " in again.reasons[0]
    assert after[: len(before)] == before
    assert len(after) > len(before)
