"""Where specs come from in bulk: built-in networks and workload files.

A workload file is text, JSON or JSON lines, told apart by its first character:

* text: one spec per line, a name before it if wanted, `#` starts a comment, and `# x3` says that a
  network contains the layer three times;
* JSON: a list, an object with a list `records`, or one value per line. An element is a spec's text,
  an object `{"spec": ..., "name": ...}`, or an object with the fields `n c [d] h w k [t] r s`,
  `stride`, `padding` (numbers or [before, after] pairs), `dilation`, `groups`, `op` (`conv`,
  `deconv`, `fprop`, `dgrad` or `wgrad`), `corr`, `layout`, `dtype`, `fixed`, `name`, `count`.

What cannot be read is data, not an exception: every problem carries file and line, and the good
lines are still there.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from autoconv.errors import InvalidOption, InvalidSpec
from autoconv.shapes import as_int, dilated, per_axis, resolve_padding
from autoconv.spec import DTYPES, ConvSpec, Op

__all__ = ["Entry", "Problem", "Workload", "adapt", "load", "network", "networks", "parse", "read_file"]

MAX_BYTES = 64 << 20  # the largest collection of published shapes known has 1.2 MB
MAX_PROBLEMS = 1000  # a file with more is not a workload
MAX_SIZE = 10**12  # as in a spec's text: more is a typo
MAX_MESSAGE = 300  # characters: a message may quote the input

_COMMENT = re.compile(r"(?:^|\s)#(.*)\Z")
_COUNT = re.compile(r"\s*x([0-9]{1,9})\b")
_AXES = {1: ("w", "s"), 2: ("hw", "rs"), 3: ("dhw", "trs")}  # names of the image's and the filter's axes


@dataclass(frozen=True, slots=True)
class Entry:
    """One spec of a workload; `count` is how often a network contains it."""

    spec: ConvSpec
    name: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that could not be read; `where` is `file:line`."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(slots=True)
class Workload:
    """What was read, and what could not be."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def extend(self, other: Workload) -> None:
        """Append another workload's entries and problems."""
        self.entries += other.entries
        self.problems += other.problems


def networks() -> tuple[str, ...]:
    """Names of the built-in networks."""
    files = resources.files("autoconv").joinpath("networks").iterdir()
    return tuple(sorted(file.name.removesuffix(".txt") for file in files if file.name.endswith(".txt")))


def network(name: str) -> Workload:
    """The layers of a built-in network, batch 1. Raises `InvalidOption`, with the nearest name, for an unknown one."""
    if name not in networks():
        raise InvalidOption(_unknown(name))
    return parse(resources.files("autoconv").joinpath("networks", f"{name}.txt").read_bytes(), name)


def load(words: Sequence[str]) -> Workload:
    """Specs, network names and workload files, as given on a command line, in order.

    The words of one spec may come apart (unquoted in a shell). Raises `InvalidSpec` for a spec that
    cannot be read, `InvalidOption` for a word that is none of the three, `OSError` for a file that
    cannot be opened.
    """
    found = Workload()
    for item in _joined(words):
        if item.split(maxsplit=1)[:1] and item.split(maxsplit=1)[0] in list(Op):
            found.entries.append(Entry(ConvSpec.parse(item)))
        elif item in networks():
            found.extend(network(item))
        elif os.path.exists(item):
            found.extend(read_file(item))
        elif os.sep in item or item.endswith((".json", ".jsonl", ".ndjson", ".txt")):
            raise FileNotFoundError(f"no such workload file: {item}")
        else:
            raise InvalidOption(_unknown(item))
    return found


def read_file(path: str | os.PathLike[str]) -> Workload:
    """The workload in a file. Raises `OSError` when it cannot be read, `InvalidSpec` above 64 MiB."""
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidSpec(f"{path}: more than {MAX_BYTES >> 20} MiB, which no list of shapes needs")
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Workload:
    """The workload in `data`; `where` names it in problems. Never raises, whatever the bytes are."""
    # undecodable bytes become U+FFFD: harmless in a comment, a problem with file and line elsewhere
    text = data.decode("utf-8-sig", errors="replace")
    elements = _json_elements(text) if text.lstrip()[:1] in ("{", "[", '"') else _text_lines(text)
    found = Workload()
    for line, element in elements:
        if isinstance(element, Exception):
            problem: Exception | None = element
        else:
            problem = None
            try:
                entry = _text_entry(element) if isinstance(element, str) else _record_entry(element)
            except InvalidSpec as error:
                problem = error
            else:
                found.entries.append(entry)
        if problem is not None:
            found.problems.append(Problem(f"{where}:{line}", _short(str(problem))))
        if len(found.problems) >= MAX_PROBLEMS:
            found.problems.append(Problem(f"{where}:{line}", f"{MAX_PROBLEMS} problems: the rest was not read"))
            break
    return found


def adapt(
    entries: Iterable[Entry],
    *,
    directions: Sequence[Op] = (),
    batch: int | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    fixed: bool = False,
    corr: bool = False,
) -> list[Entry]:
    """`entries` with what is given replaced, each in every one of `directions`; equal specs are merged.

    `fixed` leaves wgrad alone, which takes no filters.
    """
    merged: dict[ConvSpec, Entry] = {}
    for entry in entries:
        for op in directions or (entry.spec.op,):
            old = entry.spec
            binds = (fixed or old.fixed) and op is not Op.WGRAD
            spec = replace(
                old,
                op=op,
                batch=old.batch if batch is None else batch,
                layout=old.layout if layout is None else layout,
                dtype=old.dtype if dtype is None else dtype,
                flip=old.flip and not corr,
                fixed=binds,
                rank1=old.rank1 and binds,
            )
            known = merged.get(spec)
            merged[spec] = replace(known, count=known.count + entry.count) if known else replace(entry, spec=spec)
    return list(merged.values())


# Command line words ------------------------------------------------------------------------------


def _joined(words: Sequence[str]) -> Iterator[str]:
    """`words`, with those that follow a bare `fprop`, `dgrad` or `wgrad` joined to it."""
    pending: list[str] = []
    for word in words:
        starts = word in list(Op)
        if pending and not starts and not any(map(str.isspace, word)):
            pending.append(word)
            continue
        if pending:
            yield " ".join(pending)
            pending = []
        if starts:
            pending = [word]
        else:
            yield word
    if pending:
        yield " ".join(pending)


def _unknown(word: str) -> str:
    from difflib import get_close_matches  # only an error needs it

    near = get_close_matches(word.lower(), networks(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"networks: {', '.join(networks())}"
    return f"{_short(repr(word))} is no spec, network or file; {hint}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."


# Text --------------------------------------------------------------------------------------------


def _text_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: editors count newlines only
        if _COMMENT.sub("", line).strip():
            yield number, line


def _text_entry(line: str) -> Entry:
    """`[name] spec [# xN]`."""
    comment = _COMMENT.search(line)
    count = _COUNT.match(comment[1]) if comment else None
    name, _, rest = _COMMENT.sub("", line).strip().partition(" ")
    if name in list(Op):
        name, rest = "", f"{name} {rest}"
    elif rest.split()[:1] and rest.split()[0] not in list(Op):
        raise InvalidSpec(f"expected [name] fprop|dgrad|wgrad nNcC size kK filter ..., got {line.strip()!r}")
    return Entry(ConvSpec.parse(rest), name, int(count[1]) if count else 1)


# Records -----------------------------------------------------------------------------------------


def _record_entry(record: Any) -> Entry:
    if not isinstance(record, Mapping):
        raise InvalidSpec(f"expected an object or a spec's text, got {_short(repr(record))}")
    name = record.get("name", "")
    count = record.get("count", 1)
    if not isinstance(name, str):
        raise InvalidSpec(f"name must be a text, got {_short(repr(name))}")
    text = record.get("spec")
    if text is not None and not isinstance(text, str):
        raise InvalidSpec(f"spec must be a text, got {_short(repr(text))}")
    spec = _record_spec(record) if text is None else ConvSpec.parse(text)
    return Entry(spec, name, _size(count, "count", 1))


def _record_spec(record: Mapping[str, Any]) -> ConvSpec:
    rank = record.get("ndim", 3 if "d" in record or "t" in record else 2)
    if not isinstance(rank, int) or rank not in _AXES:
        raise InvalidSpec(f"ndim must be 1, 2 or 3, got {_short(repr(rank))}")
    image_axes, filter_axes = _AXES[rank]
    batch, channels, filters = (_field(record, key, minimum) for key, minimum in (("n", 0), ("c", 1), ("k", 1)))
    image = tuple(_field(record, key, 1) for key in image_axes)
    kernel = tuple(_field(record, key, 1) for key in filter_axes)
    groups = _size(record.get("groups", 1), "groups", 1)
    stride, dilation = (
        tuple(_size(value, name, 1) for value in per_axis(record.get(name, 1), rank, name))
        for name in ("stride", "dilation")
    )
    padding = resolve_padding(_tuples(record.get("padding", 0)), image, kernel, stride, dilation)
    op = record.get("op", "conv")
    if op == "deconv":
        # filters of a transposed convolution are (c, k/groups, ...): it is the dgrad of a convolution from k to c
        extra = per_axis(record.get("output_padding", 0), rank, "output_padding", 0)
        target = image
        axes = zip(image, kernel, padding, stride, dilation, extra, strict=True)
        image = tuple((n - 1) * s - sum(pads) + dilated(k, d) + e for n, k, pads, s, d, e in axes)
        if min(image) < 1:
            raise InvalidSpec(f"deconv crops everything: its output would be {image}")
        channels, filters = filters, channels
    elif op != "conv" and op not in list(Op):
        raise InvalidSpec(f"op must be conv, deconv, fprop, dgrad or wgrad, got {_short(repr(op))}")
    if channels % groups:
        raise InvalidSpec(f"groups must divide the channels: {channels} channels, {groups} groups")
    build = {"deconv": ConvSpec.dgrad, "dgrad": ConvSpec.dgrad, "wgrad": ConvSpec.wgrad}.get(op, ConvSpec.fprop)
    spec = build(
        (batch, channels, *image),
        (filters, channels // groups, *kernel),
        padding=padding,
        stride=stride,
        dilation=dilation,
        groups=groups,
        flip=not _flag(record, "corr"),
        layout=record.get("layout", "nchw"),
        dtype=_dtype(record.get("dtype", "f32")),
        fixed=_flag(record, "fixed"),
    )
    if op == "deconv" and spec.output_spatial != target:
        raise InvalidSpec(f"output_padding must be below the stride {stride}, got {extra}")
    return spec


def _field(record: Mapping[str, Any], key: str, minimum: int) -> int:
    if key not in record:
        raise InvalidSpec(f"record has no {key!r}")
    return _size(record[key], key, minimum)


def _size(value: Any, name: str, minimum: int) -> int:
    number = as_int(value, name, minimum)
    if number > MAX_SIZE:
        raise InvalidSpec(f"{name} must be at most {MAX_SIZE}, got {_short(str(number))}")
    return number


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples; pads bounded like every other size."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value if isinstance(value, str) else _size(value, "padding", 0)


def _flag(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key, False)
    if not isinstance(value, bool):
        raise InvalidSpec(f"{key} must be true or false, got {_short(repr(value))}")
    return value


def _dtype(value: Any) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise InvalidSpec(f"dtype must be one of {', '.join(DTYPES)}, got {_short(repr(value))}")
    return value


# JSON --------------------------------------------------------------------------------------------


def _json_elements(text: str) -> Iterator[tuple[int, Any]]:
    """(line, element) of every record; an exception stands for what cannot be decoded."""
    newlines = [match.start() for match in re.finditer("\n", text)]

    def line_of(position: int) -> int:
        return bisect_right(newlines, position - 1) + 1

    reader = _Reader(text)
    for position, element in reader.elements():
        yield line_of(position), element


class _Reader:
    """A JSON text, decoded value by value, so that each record's place is known.

    The standard decoder reads scalars and records; only the containers around records are walked here.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Records of all top-level values: a document has one, JSON lines have many."""
        while self._peek():
            start = self._at
            try:
                if self._peek() == "[":
                    yield from self._list()
                elif self._peek() == "{":
                    yield from self._object()
                else:
                    yield start, self._value()
            except _Unreadable as error:
                yield error.position, InvalidSpec(str(error))
                self._next_line(start)

    def _list(self) -> Iterator[tuple[int, Any]]:
        self._expect("[")
        first = True
        while self._peek() != "]":
            start = self._at
            try:
                if not first:
                    self._expect(",")
                    self._peek()
                    start = self._at
                first = False
                yield start, self._value()
            except _Unreadable as error:
                yield error.position, InvalidSpec(str(error))
                if not self._next_record(start):
                    self._at = len(self._text)
                    return
                first = True  # no comma before it: the broken record's remains were skipped
        self._expect("]")

    def _object(self) -> Iterator[tuple[int, Any]]:
        """The elements of `records`, or the object itself when it has none."""
        start, own, nested = self._at, {}, False
        self._expect("{")
        while self._peek() != "}":
            if own or nested:
                self._expect(",")
            if self._peek() != '"':
                raise self._unreadable("expected a name in quotes")
            key = self._value()
            self._expect(":")
            if key == "records" and self._peek() == "[":
                nested = True
                yield from self._list()
                if self._at >= len(self._text):
                    return  # a broken record without another after it: said already
            else:
                own[key] = self._value()
        self._expect("}")
        if not nested:
            yield start, own

    def _value(self) -> Any:
        self._peek()
        start = self._at
        try:
            value, self._at = self._decode(self._text, start)
        except json.JSONDecodeError as error:
            raise _Unreadable(f"cannot read JSON: {error.msg}", error.pos) from None
        except RecursionError:
            raise _Unreadable("cannot read JSON: nested too deeply", start) from None
        except ValueError as error:  # an integer of thousands of digits
            raise _Unreadable(f"cannot read JSON: {error}", start) from None
        return value

    def _peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise self._unreadable(f"expected {mark!r}")
        self._at += 1

    def _unreadable(self, wanted: str) -> _Unreadable:
        return _Unreadable(f"cannot read JSON: {wanted}, got {self._text[self._at : self._at + 20]!r}", self._at)

    def _next_line(self, start: int) -> None:
        """Go on at the first line after `start`, and after what was read, that may begin a value."""
        match = re.compile(r'\n(?=[ \t]*[\[{"])').search(self._text, max(start, self._at))
        self._at = match.end() if match else len(self._text)

    def _next_record(self, start: int) -> bool:
        """Go on at the next line that is indented like the record at `start` and begins one; False without one."""
        line_start = self._text.rfind("\n", 0, start) + 1
        indent = self._text[line_start:start]
        if indent.strip():
            return False
        match = re.compile(rf"\n{re.escape(indent)}(?=[{{\"])").search(self._text, start)
        self._at = match.end() if match else self._at
        return match is not None


class _Unreadable(Exception):
    """JSON that cannot be decoded, and where."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position
