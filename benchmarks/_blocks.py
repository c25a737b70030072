"""Measured tables inside Markdown files, between `<!-- name:begin -->` and `<!-- name:end -->`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ROOT", "fill"]

ROOT = Path(__file__).resolve().parent.parent


def fill(path: Path, name: str, body: str) -> None:
    """Replace what is between the marks called `name`; raises `ValueError` when they are not there once."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} has no single block {name!r}")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    path.write_text(f"{before}{begin}\n{body.strip()}\n{end}{after}", encoding="utf-8")
