"""What was measured, and what follows from it: rows, limits, and the rule that picks a winner.

Pure data and pure functions: no clock, no database, no implementation. The tuner makes rows, the
store keeps them, `decide` ranks them; the same rule serves a fresh race and rows read back years later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from math import comb, isfinite
from typing import Any, Protocol, TypeAlias

__all__ = [
    "TIE_GAP",
    "USABLE",
    "Choice",
    "Config",
    "Decision",
    "Limits",
    "Measurement",
    "Miss",
    "Store",
    "candidate_key",
    "decide",
    "doubts_about",
    "latest",
    "ratio_interval",
]

Value: TypeAlias = int | str | bool

TIE_GAP = 0.02  # medians closer than this are a tie: below what one machine reproduces from day to day
WIDEST_TIE = 0.05  # medians further apart than this are no tie, however wide noise has made the interval
CONFIDENCE = 0.95  # of the interval of a ratio
COARSE = {"tf32": 1e-3}
"""Tags of arithmetic that shortens the operands, and the `max_rel_error` from which on it is admitted."""
USABLE = frozenset({"ok", "partial", "suspect"})
"""Statuses whose time may rank. The others: skipped, wrong, failed, crashed, timeout, oom."""


class Config(Mapping[str, Value]):
    """An implementation's tunables: an immutable, hashable mapping with a one-line text form."""

    __slots__ = ("_hash", "_items")

    def __init__(self, values: Mapping[str, Value] | None = None, **more: Value) -> None:
        self._items: dict[str, Value] = dict(sorted({**(values or {}), **more}.items()))
        self._hash = hash(tuple(self._items.items()))

    def __getitem__(self, key: str) -> Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._items == other._items

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self._items.items())

    def __repr__(self) -> str:
        return f"Config({self._items!r})"


@dataclass(frozen=True, slots=True)
class Choice:
    """Implementation, config and (for a rewrite) the child's choice: all it takes to repeat a decision."""

    implementation: str
    version: int
    config: Config = field(default_factory=Config)
    child: Choice | None = None

    def __str__(self) -> str:
        own = f"{self.implementation}[{self.config}]" if self.config else self.implementation
        return f"{own} > {self.child}" if self.child else own

    def chain(self) -> Iterator[Choice]:
        """This choice, its child, its child's child, ..."""
        link: Choice | None = self
        while link is not None:
            yield link
            link = link.child

    def to_json(self) -> str:
        """Canonical JSON, as stored."""
        import json  # 3 ms that only storing and reading pay for

        return json.dumps(self._plain(), sort_keys=True, separators=(",", ":"))

    def _plain(self) -> dict[str, Any]:
        child = {"child": self.child._plain()} if self.child else {}
        return {"id": self.implementation, "version": self.version, "config": dict(self.config), **child}

    @classmethod
    def from_json(cls, text: str) -> Choice:
        """Read `to_json`'s text; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        import json

        return cls._from_plain(json.loads(text))

    @classmethod
    def _from_plain(cls, plain: Any) -> Choice:
        identifier, version, config = plain["id"], plain["version"], plain["config"]
        values_fit = isinstance(config, dict) and all(isinstance(v, int | str) for v in config.values())
        if not (isinstance(identifier, str) and isinstance(version, int) and values_fit):
            raise ValueError(f"not a choice: {plain!r}")
        child = plain.get("child")
        return cls(identifier, version, Config(config), None if child is None else cls._from_plain(child))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row: a candidate, how it fared on one spec and device, and under which circumstances.

    Times are seconds, `spread` is the interquartile range over the median, `error` is
    max|y - reference| / max|reference|. `samples` holds one median per round of the race `race`, so
    that rows of one race can be compared round by round. On a GPU all of these are the device's time;
    `enqueue_s` is what enqueueing one call took the calling thread, None elsewhere.
    """

    spec: str
    device: str
    choice: Choice
    status: str
    environment: Mapping[str, str] = field(default_factory=dict)
    median_s: float | None = None
    spread: float | None = None
    samples: tuple[float, ...] = ()
    workspace_bytes: int = 0
    error: float | None = None
    deterministic: bool = True
    strict_nan: bool = True
    tags: tuple[str, ...] = ()
    reason: str = ""
    race: str = ""
    measured_at: float = 0.0
    host: str = ""
    enqueue_s: float | None = None

    @property
    def usable(self) -> bool:
        """Whether the row has a time that may rank."""
        return self.status in USABLE and self.median_s is not None and self.median_s > 0 and isfinite(self.median_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`; times in seconds, sizes in bytes."""
        return {
            "choice": str(self.choice),
            "id": self.choice.implementation,
            "version": self.choice.version,
            "config": dict(self.choice.config),
            "status": self.status,
            "median_s": self.median_s,
            "spread": self.spread,
            "samples": list(self.samples),
            "enqueue_s": self.enqueue_s,
            "race": self.race,
            "workspace_bytes": self.workspace_bytes,
            "error": self.error,
            "deterministic": self.deterministic,
            "strict_nan": self.strict_nan,
            "reason": self.reason,
            "environment": dict(self.environment),
            "measured_at": self.measured_at,
        }


@dataclass(frozen=True, slots=True)
class Miss:
    """A spec that was asked for on a device and not remembered: what `tune --missed` works off."""

    spec: str
    device: str
    count: int
    last_at: float
    reason: str = ""


class Store(Protocol):
    """What remembers measurements. `cache/` provides it; tests may use a dict.

    Specs and devices are texts: `str(spec)` and `device.fingerprint`. No method raises for a store
    that cannot be used: it degrades to memory with one warning.
    """

    def rows(self, spec: str, device: str) -> list[Measurement]:
        """Every row of `spec` on `device`, oldest first; the only call on the hot side, one SELECT."""

    def add(self, rows: Sequence[Measurement]) -> None:
        """Keep `rows`, all or none, and settle the misses they answer (`partial` ones do not)."""

    def miss(self, spec: str, device: str, reason: str = "") -> None:
        """Record that `spec` was asked for in vain (counted when repeated)."""

    def misses(self, device: str | None = None) -> list[Miss]:
        """Open misses and specs whose last race was cut short, most asked for first."""

    def measuring(self, device: str) -> AbstractContextManager[None]:
        """Held while timing on `device`: one at a time, across threads and processes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller allows: constraints on rows, never preferences over measured times (but for ties)."""

    max_workspace: int | None = None
    max_rel_error: float | None = None
    deterministic: bool = False
    strict_nan: bool = False
    require: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()

    def forbids(self, names: Sequence[str], tags: Iterable[str], perhaps: Iterable[str] = ()) -> str | None:
        """Why `require` and `exclude` rule out a candidate with these ids (its own first) and tags.

        `perhaps` are tags that only some of its configs have: they may be what is required.
        """
        words = {*names, *tags}
        for name in names:
            words.add(name.partition(".")[0])
        hit = next((word for word in self.exclude if word in words), None)
        if hit:
            return f"excluded by settings(exclude={hit!r})"
        if self.require and not words.union(perhaps).intersection(self.require):
            return f"not among settings(require={self.require!r})"
        return None

    def too_coarse(self, tags: Iterable[str]) -> str | None:
        """Why arithmetic with these tags is not admitted, whatever error was seen on the numbers it was tried with."""
        for tag in tags:
            if tag in COARSE and self.max_rel_error is not None and self.max_rel_error < COARSE[tag]:
                return f"rounds operands to {tag}, max_rel_error {self.max_rel_error:.1e} is below {COARSE[tag]:.0e}"
        return None

    def refuses(self, row: Measurement) -> str | None:
        """Why this row may not win under these limits, or None."""
        if self.max_workspace is not None and row.workspace_bytes > self.max_workspace:
            return f"needs {row.workspace_bytes} bytes of workspace, max_workspace is {self.max_workspace}"
        if self.max_rel_error is not None and row.error is not None and row.error > self.max_rel_error:
            return f"error {row.error:.1e} is above max_rel_error {self.max_rel_error:.1e}"
        if coarse := self.too_coarse(row.tags):
            return coarse
        if self.deterministic and not row.deterministic:
            return "not deterministic, and settings(deterministic=True)"
        if self.strict_nan and not row.strict_nan:
            return "does not carry NaN and infinity like the direct sum, and settings(strict_nan=True)"
        return self.forbids([link.implementation for link in row.choice.chain()], row.tags)

    def preference(self, choice: Choice, tags: Iterable[str] = ()) -> int:
        """Position in `prefer` of the first word that names this choice; past the end when none does."""
        words = {choice.implementation, choice.implementation.partition(".")[0], *tags}
        return next((i for i, word in enumerate(self.prefer) if word in words), len(self.prefer))


@dataclass(frozen=True, slots=True)
class Decision:
    """The winner and what supports it. `interval` bounds runner-up time / winner time (95 %).

    `doubts` says why the winner's own row deserves to be timed again: it is suspect, partial or stale. It wins
    all the same: the best that is known. `partial` says that some row that may win was cut short.
    """

    winner: Measurement
    runner_up: Measurement | None
    interval: tuple[float, float] | None
    tie: bool
    partial: bool
    why: str
    doubts: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Runner-up time / winner time."""
        if self.runner_up is None or not self.runner_up.median_s or not self.winner.median_s:
            return None
        return self.runner_up.median_s / self.winner.median_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return {
            "winner": self.winner.to_dict(),
            "runner_up": str(self.runner_up.choice) if self.runner_up else None,
            "ratio": self.ratio,
            "interval": list(self.interval) if self.interval else None,
            "tie": self.tie,
            "partial": self.partial,
            "doubts": list(self.doubts),
            "why": self.why,
        }


def ratio_interval(slower: Measurement, faster: Measurement) -> tuple[float, float] | None:
    """95 % interval of the median of slower/faster, from rounds both took part in; None without enough.

    Order statistics of the paired ratios (the sign test's interval): no assumption about the noise.
    """
    if slower.race != faster.race or not slower.race:
        return None
    ratios = sorted(a / b for a, b in zip(slower.samples, faster.samples, strict=False))
    rank = _outside(len(ratios))
    return None if rank < 0 else (ratios[rank], ratios[len(ratios) - 1 - rank])


@cache
def _outside(n: int) -> int:
    """How many of `n` ratios lie below the interval, and as many above; -1 when `n` are too few for one.

    The true median has fewer than `rank` + 1 of `n` ratios on one side as often as a fair coin shows so few heads.
    """
    tail, rank = 0.0, -1
    while rank + 1 < n and 2 * (tail := tail + comb(n, rank + 1) / 2**n) <= 1 - CONFIDENCE:
        rank += 1
    return rank


def doubts_about(row: Measurement, stale: str = "") -> tuple[str, ...]:
    """Why a row that may win deserves to be timed again; `stale` says which versions it was measured with."""
    doubts = []
    if row.status == "suspect":
        doubts.append(f"suspect: {row.reason or 'something disturbed the measurement'}")
    if row.status == "partial":
        doubts.append(f"partial: {row.reason or 'its race was cut short'}")
    if stale:
        doubts.append(f"stale: {stale}")
    return tuple(doubts)


def decide(rows: Iterable[Measurement], limits: Limits, stale: Mapping[str, str] | None = None) -> Decision | None:
    """The fastest row that `limits` allow; a tie goes by preference, determinism, workspace, error, id.

    A tie is medians within `TIE_GAP`, or within `WIDEST_TIE` with an interval of the paired ratio that
    contains 1: an interval that noise made wide is no reason to prefer a slower median. None when no row may win.

    `stale` maps a `candidate_key` to what has changed since its row was measured. Stale, suspect and partial rows
    rank like any other; when one wins, the decision's `doubts` and `why` say so.
    """
    allowed = [row for row in rows if row.usable and limits.refuses(row) is None]
    if not allowed:
        return None
    allowed.sort(key=lambda row: (row.median_s, str(row.choice)))
    best = allowed[0]
    tied = [row for row in allowed if row is best or _ties(row, best)]
    winner = min(tied, key=lambda row: _tie_order(row, limits))
    others = [row for row in allowed if row is not winner]
    runner_up = others[0] if others else None
    interval = ratio_interval(runner_up, winner) if runner_up else None
    doubts = doubts_about(winner, (stale or {}).get(candidate_key(winner.choice), ""))
    return Decision(
        winner=winner,
        runner_up=runner_up,
        interval=interval,
        tie=len(tied) > 1,
        partial=any(row.status == "partial" for row in allowed),
        why="; ".join((_sentence(winner, best, runner_up, interval, len(tied)), *doubts)),
        doubts=doubts,
    )


def _ties(row: Measurement, best: Measurement) -> bool:
    assert row.median_s is not None
    assert best.median_s is not None
    if row.median_s <= best.median_s * (1 + TIE_GAP):
        return True
    if row.median_s > best.median_s * (1 + WIDEST_TIE):
        return False
    interval = ratio_interval(row, best)
    return interval is not None and interval[0] <= 1.0


def _tie_order(row: Measurement, limits: Limits) -> tuple[Any, ...]:
    error = row.error or 0.0
    return (
        limits.preference(row.choice, row.tags),
        not row.deterministic,
        row.workspace_bytes,
        error,
        str(row.choice),
    )


def _sentence(
    winner: Measurement,
    fastest: Measurement,
    runner_up: Measurement | None,
    interval: tuple[float, float] | None,
    tied: int,
) -> str:
    if runner_up is None or not runner_up.median_s or not winner.median_s:
        return "the only candidate that was measured and is allowed"
    if tied > 1:
        lead = "first" if winner is fastest else f"level with {fastest.choice}, the fastest by median,"
        return f"{lead} among {tied} that tie: preference, determinism, workspace, error and id decide"
    spread = f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return f"{runner_up.median_s / winner.median_s:.2f} times as fast as {runner_up.choice}{spread}"


def latest(rows: Iterable[Measurement], version_of: Mapping[str, int] | None = None) -> list[Measurement]:
    """The newest row of every candidate; rows of another version of an implementation are left out."""
    newest: dict[str, Measurement] = {}
    for row in sorted(rows, key=lambda row: row.measured_at):
        versions = version_of or {}
        if all(versions.get(link.implementation, link.version) == link.version for link in row.choice.chain()):
            newest[candidate_key(row.choice)] = row
    return list(newest.values())


def candidate_key(choice: Choice) -> str:
    """Implementation and config without the child: what one place in a race is about."""
    return f"{choice.implementation}[{choice.config}]"
