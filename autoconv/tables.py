"""Tables of text, written the way their destination wants them: drawn, as Markdown, or as JSON.

`rich` is imported only to draw on a terminal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

__all__ = ["Report", "Table", "clean"]

GAP = 3  # characters between columns as drawn


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text.

    `right` names the columns of numbers; `spare` those that a narrow terminal does without, the first to go first.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    right: frozenset[str] = frozenset()
    spare: tuple[str, ...] = ()

    def fitted(self, width: int) -> Table:
        """This table without as many of its spare columns as it takes to fit `width` characters."""
        keep = list(range(len(self.columns)))
        for name in self.spare:
            if sum(self._width(index) + GAP for index in keep) - GAP <= width:
                break
            keep.remove(self.columns.index(name))
        rows = tuple(tuple(row[index] for index in keep) for row in self.rows)
        return replace(self, columns=tuple(self.columns[index] for index in keep), rows=rows, spare=())

    def text(self) -> str:
        """Columns under one another, for whatever prints with one width per character."""
        widths = [self._width(index) for index in range(len(self.columns))]
        widths[-1] = 0  # nothing comes after the last column
        lines = [clean(self.title)] if self.title else []
        for row in (self.columns, *self.rows):
            cells = []
            for name, cell, width in zip(self.columns, row, widths, strict=True):
                shown = clean(cell).replace("\n", " ")
                cells.append(f"{shown:>{width}}" if name in self.right else f"{shown:<{width}}")
            lines.append((" " * GAP).join(cells).rstrip())
        return "\n".join(lines)

    def _width(self, index: int) -> int:
        return max(len(cell) for cell in (self.columns[index], *(row[index] for row in self.rows)))

    def markdown(self) -> str:
        """A Markdown table; a `|` in a cell is escaped."""
        lines = [f"**{_markdown_cell(self.title)}**", ""] if self.title else []
        lines.append(_markdown_row(self.columns))
        lines.append(_markdown_row(["---:" if name in self.right else "---" for name in self.columns]))
        lines += [_markdown_row([_markdown_cell(cell) for cell in row]) for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What a command has to say: `parts` to read, `data` the same for programs."""

    parts: tuple[Table | str, ...]
    data: Any

    def markdown(self) -> str:
        """The parts, one after another, tables in Markdown."""
        return "\n\n".join(part.markdown() if isinstance(part, Table) else clean(part) for part in self.parts)

    def text(self) -> str:
        """The parts, one after another, tables in columns: what `str()` of a result gives."""
        return "\n\n".join(part.text() if isinstance(part, Table) else clean(part) for part in self.parts)

    def json(self) -> str:
        """The data as strict JSON: what is not finite becomes null."""
        return json.dumps(_finite(self.data), indent=2, allow_nan=False, default=str)

    def print(self, file: TextIO, *, as_json: bool = False) -> None:
        """Write to `file`: JSON when asked for, drawn tables on a terminal, else Markdown."""
        if as_json:
            print(self.json(), file=file)
        elif file.isatty():
            self._draw(file)
        else:
            print(self.markdown(), file=file)

    def _draw(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file, highlight=False)
        for index, part in enumerate(self.parts):
            if index:
                console.print()
            if isinstance(part, str):
                console.print(Text(clean(part)))
                continue
            shown = part.fitted(console.width)
            if part.title:
                console.print(Text(clean(part.title), style="bold"))
            console.print(_drawn(shown))
            left_out = [name for name in part.columns if name not in shown.columns]
            if left_out:
                console.print(Text(f"(a wider terminal also shows: {', '.join(left_out)})", style="dim"))


def _drawn(table: Table) -> Any:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), collapse_padding=True
    )
    for name in table.columns:
        right = name in table.right
        drawn.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))  # Text: a cell is no markup
    return drawn


def clean(text: str) -> str:
    """`text` without characters that steer a terminal: reasons and names may come from another machine's rows."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(text: str) -> str:
    return clean(text).replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    """`value` with what JSON has no number for (infinity, NaN) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
