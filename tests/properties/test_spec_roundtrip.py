"""The text form of a spec: canonical, parseable, and one text per problem."""

from __future__ import annotations

import pickle
from dataclasses import replace

from hypothesis import assume, example, given
from hypothesis import strategies as st

from autoconv.errors import InvalidSpec
from autoconv.spec import DTYPES, ConvSpec, Op
from autoconv.testing import specs

ANY = specs(ranks=(1, 2, 3), dtypes=tuple(DTYPES))


@given(ANY, st.booleans(), st.booleans())
def test_text_survives_a_round_trip(spec: ConvSpec, fixed: bool, rank1: bool) -> None:
    if spec.op is not Op.WGRAD:
        spec = replace(spec, fixed=fixed, rank1=fixed and rank1)
    text = str(spec)
    again = ConvSpec.parse(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert str(again) == text
    assert "\n" not in text
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(ANY, st.randoms(use_true_random=False))
def test_options_come_in_any_order(spec: ConvSpec, random: object) -> None:
    words = str(spec).split()
    tail = words[5:]
    random.shuffle(tail)  # type: ignore[attr-defined]
    assert ConvSpec.parse("  ".join(words[:5] + tail)) == spec


@given(ANY, ANY)
def test_different_problems_have_different_texts(one: ConvSpec, other: ConvSpec) -> None:
    assume(one != other)
    assert str(one) != str(other)


@given(specs())
def test_spellings_of_padding_are_one_problem(spec: ConvSpec) -> None:
    forward = replace(spec, op=Op.FPROP)
    options = {
        "stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups, "flip": spec.flip,
        "layout": spec.layout, "dtype": spec.dtype,
    }  # fmt: skip
    assert ConvSpec.fprop(spec.input_shape, spec.filter_shape, padding=spec.padding, **options) == forward
    if all(before == after for before, after in spec.padding):
        ints = tuple(before for before, _ in spec.padding)
        assert ConvSpec.fprop(spec.input_shape, spec.filter_shape, padding=list(ints), **options) == forward
        if len(set(ints)) == 1:
            assert ConvSpec.fprop(spec.input_shape, spec.filter_shape, padding=ints[0], **options) == forward


@given(st.text(alphabet="fpropdgwncksx:, 0123456789²٣-\n", max_size=60))
@example("fprop n1c1 3x3 k1 3x3 p٣")
@example("fprop n1c1 3x3 k1 3x3 g0")
@example("fprop n1c1 3x3 k1 3x3 s0")
@example("fprop n1c1 3x3 k0 3x3")
@example("fprop n1c0 3x3 k1 3x3")
@example("fprop n1c1 3x3 k1 3x3x3")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = ConvSpec.parse(text)
    except InvalidSpec:
        return
    else:
        assert ConvSpec.parse(str(spec)) == spec
