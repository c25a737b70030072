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

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from autoconv import jsonstream
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
    elements = jsonstream.elements(text) if text.lstrip()[:1] in ("{", "[", '"') else _text_lines(text)
    found = Workload()
    for line, element in elements:
        if isinstance(element, jsonstream.Unreadable):
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
