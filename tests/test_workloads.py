"""Networks and workload files: what is read, and that what cannot be read says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoconv import workloads
from autoconv.errors import InvalidOption, InvalidSpec
from autoconv.spec import ConvSpec, Op
from autoconv.workloads import Entry, adapt, load, network, networks, parse

SPEC = "fprop n1c1 8x8 k1 3x3 p0 s1 d1 g1 conv nchw f32"
RECORD = {"n": 1, "c": 1, "h": 8, "w": 8, "k": 1, "r": 3, "s": 3}


def specs_of(data: str) -> list[str]:
    """The specs in `data`, which must be without problems."""
    work = parse(data.encode(), "f")
    assert not work.problems
    return [str(entry.spec) for entry in work.entries]


def record(**changes: object) -> str:
    return json.dumps({**RECORD, **changes})


# Networks ----------------------------------------------------------------------------------------

PUBLISHED_GMAC = {  # convolutions of one image (c3d: one clip), and how many layers there are
    "alexnet": (0.6556, 5),
    "c3d": (38.497, 8),
    "googlenet": (1.5816, 57),
    "mobilenet_v2": (0.2995, 52),
    "resnet18": (1.8136, 20),
    "resnet50": (4.0871, 53),
    "vgg16": (15.3466, 13),
}


@pytest.mark.parametrize("name", networks())
def test_a_network_reads_without_problems_at_batch_one(name: str) -> None:
    work = network(name)
    assert work.entries
    assert not work.problems
    assert {entry.spec.batch for entry in work.entries} == {1}
    assert all(entry.name.startswith(f"{name}.") for entry in work.entries)
    assert len({entry.spec for entry in work.entries}) == len(work.entries)


@pytest.mark.parametrize("name", PUBLISHED_GMAC)
def test_a_network_is_whole(name: str) -> None:
    gmac, layers = PUBLISHED_GMAC[name]
    entries = network(name).entries
    assert sum(entry.count for entry in entries) == layers
    assert sum(entry.count * entry.spec.macs for entry in entries) / 1e9 == pytest.approx(gmac, rel=1e-3)


def test_the_networks_of_the_command_line_exist() -> None:
    assert set(networks()) == {*PUBLISHED_GMAC, "image"}


def test_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(InvalidOption, match="did you mean 'resnet50'"):
        network("resnet51")


# Formats -----------------------------------------------------------------------------------------


def test_text_has_specs_names_comments_and_counts() -> None:
    text = f"# a comment\n\nfirst  {SPEC}  # x3 in all\r\n{SPEC.replace('n1', 'n2')}\n   # only a comment"
    work = parse(text.encode(), "f.txt")
    assert not work.problems
    assert [(entry.name, entry.spec.batch, entry.count) for entry in work.entries] == [("first", 1, 3), ("", 2, 1)]


@pytest.mark.parametrize(
    "data",
    [
        f"[{record()}]",
        f'{{"description": "x", "records": [{record()}], "count": 1}}',
        record(),
        f"{record()}\n",
        f'["{SPEC}"]',
        f'"{SPEC}"',
        f'"name {SPEC}"',
        json.dumps({"spec": SPEC, "name": "x", "anything": [1]}),
        "\ufeff" + record(),
    ],
)
def test_json_has_records_and_texts(data: str) -> None:
    assert specs_of(data) == [SPEC]


def test_json_lines_are_read_one_by_one() -> None:
    assert specs_of(f"{record()}\n\n{record(n=2)}\n") == [SPEC, SPEC.replace("n1", "n2")]


def test_every_field_of_a_record_counts() -> None:
    full = record(
        ndim=2, c=4, k=6, stride=[2, 1], padding=[[1, 0], [2, 2]], dilation=[1, 2], groups=2,
        corr=True, layout="nhwc", dtype="f64", fixed=True, op="dgrad", h=9, name="layer", count=4,
    )  # fmt: skip
    work = parse(full.encode(), "f")
    assert work.entries == [
        Entry(ConvSpec.parse("dgrad n1c4 9x8 k6 3x3 p1:0,2 s2,1 d1,2 g2 corr nhwc f64 fixed"), "layer", 4)
    ]


def test_three_axes_and_one() -> None:
    assert specs_of(record(d=4, t=2)) == ["fprop n1c1 4x8x8 k1 2x3x3 p0 s1 d1 g1 conv nchw f32"]
    assert specs_of(json.dumps({"ndim": 1, "n": 1, "c": 1, "w": 8, "k": 1, "s": 3})) == [
        "fprop n1c1 8 k1 3 p0 s1 d1 g1 conv nchw f32"
    ]


def test_a_deconvolution_is_the_gradient_of_the_convolution_with_its_filters() -> None:
    # DCGAN's first layers: 100 channels 1x1 -> 512 channels 4x4, then 512 4x4 -> 256 8x8 (4x4 filters)
    assert specs_of(record(op="deconv", c=100, k=512, h=1, w=1, r=4, s=4)) == [
        "dgrad n1c512 4x4 k100 4x4 p0 s1 d1 g1 conv nchw f32"
    ]
    second = record(op="deconv", c=512, k=256, h=4, w=4, r=4, s=4, stride=2, padding=1)
    assert specs_of(second) == ["dgrad n1c256 8x8 k512 4x4 p1 s2 d1 g1 conv nchw f32"]


def test_output_padding_enlarges_a_deconvolution() -> None:
    data = record(op="deconv", h=4, w=4, stride=2, padding=1, output_padding=[1, 1])
    assert specs_of(data) == ["dgrad n1c1 8x8 k1 3x3 p1 s2 d1 g1 conv nchw f32"]


# Problems ----------------------------------------------------------------------------------------


def test_a_bad_text_line_names_file_and_line_and_leaves_the_others() -> None:
    work = parse(f"{SPEC}\nbad fprop n1c1 8x8 k1 oops\n{SPEC.replace('n1', 'n2')}\n".encode(), "nets/my.txt")
    assert [entry.spec.batch for entry in work.entries] == [1, 2]
    (problem,) = work.problems
    assert str(problem).startswith("nets/my.txt:2: cannot read 'oops'")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (f"[\n {record()},\n {record(n='x')},\n {record()}\n]", 3),  # a value that makes no sense
        (f'[\n {record()},\n {{"n": 1,, }},\n {record()}\n]', 3),  # what is no JSON
        (f'{record()}\n{{"n": oops}}\n{record()}\n', 2),
        (f'{record()}\n{{"n": [\n{record()}\n', 2),  # an open bracket, which shows only later
        (f'{{\n "records": [\n  {record()},\n  oops,\n  {record()}\n ]\n}}', 4),
    ],
)
def test_bad_json_names_file_and_line_and_leaves_the_others(data: str, line: int) -> None:
    work = parse(data.encode(), "f.json")
    assert [problem.where for problem in work.problems] == [f"f.json:{line}"]
    assert len(work.entries) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": None}, "n must be an integer, got None"),
        ({"n": True}, "n must be an integer"),
        ({"h": 2}, "kernel larger than the padded image"),
        ({"h": 8.0}, "h must be an integer, got 8.0"),
        ({"k": 10**13}, "k must be at most"),
        ({"padding": [1, 2, 3]}, "border_mode needs 2 entries"),
        ({"padding": [[0, -1], [0, 0]]}, "padding must be at least 0"),
        ({"padding": {"a": 1}}, "padding must be an integer"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"groups": 2}, "groups must divide"),
        ({"ndim": 4}, "ndim must be 1, 2 or 3"),
        ({"op": "pool"}, "op must be conv"),
        ({"op": []}, "op must be conv"),
        ({"corr": "yes"}, "corr must be true or false"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"layout": ["nchw"]}, "layout must be one of"),
        ({"name": 3}, "name must be a text"),
        ({"count": 0}, "count must be at least 1"),
        ({"spec": 3}, "spec must be a text"),
        ({"op": "deconv", "output_padding": 1}, "output_padding must be below the stride"),
        ({"op": "deconv", "padding": 9}, "crops everything"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(changes: dict[str, object], message: str) -> None:
    work = parse(f"\n{record(**changes)}".encode(), "f.json")
    assert not work.entries
    (problem,) = work.problems
    assert problem.where == "f.json:2"
    assert message in problem.message


def test_a_missing_field_is_named() -> None:
    assert parse(b'{"n": 1, "c": 1}', "f").problems[0].message == "record has no 'k'"


def test_messages_and_their_number_are_bounded() -> None:
    work = parse(b"x" * 10_000 + b" y\n" + b"oops\n" * 5000, "f")
    assert len(work.problems) <= workloads.MAX_PROBLEMS + 1
    assert "the rest was not read" in work.problems[-1].message
    assert max(len(problem.message) for problem in work.problems) < 400


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 10_000 + b"]", b"\xff\xfe\x00\x01", b"[NaN]", b'{"n": 1e999}'],
    ids=["lists", "objects", "digits", "binary", "nan", "infinity"],
)
def test_hostile_files_are_problems(data: bytes) -> None:
    work = parse(data, "f")
    assert not work.entries
    assert work.problems


PIECES = [b"[", b"]", b"{", b"}", b",", b":", b"\n", b'"n"', b'"records"', b"null", b"1e999", b"fprop", b"x3", b"#",
          SPEC.encode(), record().encode(), b"\xff"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join))
def test_any_bytes_give_a_value(data: bytes) -> None:
    work = parse(data, "f")
    last = data.count(b"\n") + 1
    assert all(isinstance(entry.spec, ConvSpec) for entry in work.entries)
    assert all(1 <= int(problem.where.removeprefix("f:")) <= last for problem in work.problems)


# Words of a command line -------------------------------------------------------------------------


def test_words_are_specs_networks_or_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(f"{SPEC}\n")
    work = load([SPEC.replace("n1", "n7"), "alexnet", str(file)])
    assert [entry.spec.batch for entry in work.entries] == [7, 1, 1, 1, 1, 1, 1]


def test_the_words_of_an_unquoted_spec_are_joined() -> None:
    work = load([*SPEC.split(), *SPEC.replace("n1", "n2").split(), SPEC.replace("n1", "n3")])
    assert [entry.spec.batch for entry in work.entries] == [1, 2, 3]


def test_a_word_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="'lenet' is no spec, network or file"):
        load(["lenet"])
    with pytest.raises(FileNotFoundError, match=r"nope\.json"):
        load(["nope.json"])
    with pytest.raises(IsADirectoryError):
        load([str(tmp_path)])
    with pytest.raises(InvalidSpec, match="cannot read 'oops'"):
        load(["fprop n1c1 8x8 k1 oops"])


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "MAX_BYTES", 1 << 20)
    file = tmp_path / "huge.txt"
    file.write_bytes(b"\n" * ((1 << 20) + 1))
    with pytest.raises(InvalidSpec, match="more than 1 MiB"):
        workloads.read_file(file)


# Adapting ----------------------------------------------------------------------------------------


def test_adapt_replaces_what_is_given() -> None:
    entries = [Entry(ConvSpec.parse("fprop n1c2 8x8 k2 3x3"), "a", 2)]
    assert adapt(entries) == entries
    (one,) = adapt(entries, batch=4, layout="nhwc", dtype="f64", fixed=True, corr=True)
    assert str(one.spec) == "fprop n4c2 8x8 k2 3x3 p0 s1 d1 g1 corr nhwc f64 fixed"
    assert (one.name, one.count) == ("a", 2)


def test_adapt_races_every_direction_and_never_binds_the_filters_of_wgrad() -> None:
    entries = [Entry(ConvSpec.parse("fprop n1c2 8x8 k2 3x3 fixed rank1"))]
    told = [str(entry.spec).split(" g1 ")[1] for entry in adapt(entries, directions=tuple(Op))]
    assert told == ["conv nchw f32 fixed rank1", "conv nchw f32 fixed rank1", "conv nchw f32"]


def test_adapt_merges_equal_specs() -> None:
    entries = [Entry(ConvSpec.parse(f"fprop n{n}c2 8x8 k2 3x3"), f"a{n}", n) for n in (1, 2)]
    assert [(entry.name, entry.count) for entry in adapt(entries, batch=8)] == [("a1", 3)]
