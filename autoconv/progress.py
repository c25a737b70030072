"""A progress bar for tuning, on standard error: of `rich`, imported only when one is asked for."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """k of n specs, the present spec and what is being done to it. Silent unless `enabled`."""

    def __init__(self, total: int, *, enabled: bool, verb: str = "tuning") -> None:
        self._total = total
        self._bar: Any = None
        self._task: Any = None
        self._done = 0
        self._spec = ""
        if enabled:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            self._bar = Progress(
                TextColumn(verb),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                # markup off: a config in brackets is no style; the one column that gives way on a narrow terminal
                TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
                console=Console(file=sys.stderr),
                expand=True,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, spec: str) -> None:
        """A spec begins."""
        self._spec = spec
        if self._bar is not None:
            self._bar.update(self._task, description=spec)

    def watch(self, stage: str, detail: str, done: int, total: int) -> None:
        """The race of the present spec goes on: `Tuner.tune`'s callback."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._spec}  [{stage} {done}/{total}] {detail}")

    def finish(self) -> None:
        """The present spec is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
