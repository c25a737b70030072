"""Records of a JSON text one by one, each with the line where it starts.

Reads one document (a list, or an object with a list `records`) as well as one value per line. What
cannot be decoded is yielded as an `Unreadable`, and reading goes on at the next line that begins a record.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

__all__ = ["Unreadable", "elements"]


class Unreadable(Exception):
    """JSON that cannot be decoded, and where."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def elements(text: str) -> Iterator[tuple[int, Any]]:
    """(line, element) of every record; an exception stands for what cannot be decoded."""
    newlines = [match.start() for match in re.finditer("\n", text)]

    def line_of(position: int) -> int:
        return bisect_right(newlines, position - 1) + 1

    for position, element in _Reader(text).elements():
        line = line_of(position)
        if isinstance(element, Unreadable) and line_of(element.position) != line:
            element = Unreadable(f"{element} (at line {line_of(element.position)})", element.position)
        yield line, element


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
            except Unreadable as error:
                yield start, error
                self._resume(start)

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
            except Unreadable as error:
                yield start, error
                if not self._resume(start):
                    return
                first = True  # no comma before it: the broken record's remains were skipped
        self._expect("]")

    def _object(self) -> Iterator[tuple[int, Any]]:
        """The elements of `records`, or the object itself when it has none."""
        start, nested = self._at, False
        own: dict[str, Any] = {}
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
            raise Unreadable(f"cannot read JSON: {error.msg}", error.pos) from None
        except RecursionError:
            raise Unreadable("cannot read JSON: nested too deeply", start) from None
        except ValueError as error:  # an integer of thousands of digits
            raise Unreadable(f"cannot read JSON: {error}", start) from None
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

    def _unreadable(self, wanted: str) -> Unreadable:
        return Unreadable(f"cannot read JSON: {wanted}, got {self._text[self._at : self._at + 20]!r}", self._at)

    def _resume(self, start: int) -> bool:
        """Go on at the next line that is indented like the record at `start` and begins one; False without one."""
        indent = self._text[self._text.rfind("\n", 0, start) + 1 : start]
        next_one = rf"\n{re.escape(indent)}(?=[{{\[\"])" if not indent.strip() else r"\n[ \t]*(?=[{\[\"])"
        match = re.compile(next_one).search(self._text, start)
        self._at = match.end() if match else len(self._text)
        return match is not None
