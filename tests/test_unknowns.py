"""Sizes that are not known: named, refused by plan and tune, and explained by the untuned order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

import autoconv
from autoconv import ConvSpec, InvalidSpec, dispatch, settings
from autoconv.cache import MemoryStore
from autoconv.cli import cli
from autoconv.unknowns import stand_in

TEXT = "fprop n?c8 ?x16 k8 3x3 p1"
SAID = "cannot tune: 2 of 8 dimensions unknown: input batch, input height"


@pytest.fixture(autouse=True)
def _store() -> None:
    dispatch.use_store(MemoryStore(), settings.current().cache)


@pytest.mark.parametrize("ask", [ConvSpec.parse, autoconv.plan, autoconv.tune])
def test_what_needs_every_size_names_those_that_lack(ask: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        ask(TEXT)
    assert str(caught.value) == SAID


def test_shapes_with_none_say_the_same() -> None:
    with pytest.raises(InvalidSpec) as caught:
        ConvSpec.fprop((None, 8, None, 16), (8, 8, 3, 3), padding=1)  # type: ignore[list-item]
    assert str(caught.value) == SAID


@pytest.mark.parametrize(
    ("text", "unknown", "filled"),
    [
        (TEXT, SAID, "fprop n1c8 56x16 k8 3x3 p1 s1 d1 g1 conv nchw f32"),
        (
            "dgrad n2c? 9x9x9 k? ?x?x? g5",
            "cannot tune: 6 of 10 dimensions unknown: input channels, filter count, filter channels, filter depth, "
            "filter height, filter width",
            "dgrad n2c65 9x9x9 k65 3x3x3 p0 s1 d1 g5 conv nchw f32",
        ),
        (
            "fprop n1c1 ? k1 101 d2",
            "cannot tune: 1 of 6 dimensions unknown: input width",
            "fprop n1c1 224 k1 101 p0 s1 d2 g1 conv nchw f32",
        ),
    ],
)
def test_explain_gives_the_untuned_order(text: str, unknown: str, filled: str) -> None:
    told = autoconv.explain(text)
    assert told.unknown == unknown
    assert str(told.spec) == filled
    order, refusals = dispatch.untuned_order(ConvSpec.parse(filled), told.device, settings.current())
    assert list(told.estimates) == order
    assert told.refusals == refusals
    assert told.chosen == told.estimates[0][0]
    assert not told.rows
    assert unknown in told.why


def test_explain_keeps_what_is_remembered_of_the_stand_in_out() -> None:
    with settings(require=("numpy.direct",), tune_budget_s=0.05):
        autoconv.tune(str(stand_in(TEXT)))
    assert autoconv.explain(str(stand_in(TEXT))).rows
    assert not autoconv.explain(TEXT).rows


@pytest.mark.parametrize("text", ["fprop n?c8 5x5 k8 9x9", "fprop n?c8 5x5 k8 3x3 g3", "fprop n?c8 5x5", "fprop ? ?"])
def test_what_no_size_would_mend_is_an_error(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        autoconv.explain(text)
    assert "unknown" not in str(caught.value)


def test_the_command_line_explains_and_refuses_alike() -> None:
    told = CliRunner().invoke(cli, ["explain", *TEXT.split()])
    assert told.exit_code == 0, told.output
    assert "2 of 8 dimensions unknown: input batch, input height" in " ".join(told.output.split())
    refused = CliRunner().invoke(cli, ["tune", TEXT])
    assert refused.exit_code != 0
    assert "2 of 8 dimensions unknown" in refused.output
