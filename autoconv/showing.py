"""What the store holds, spec by spec: the facts behind `autoconv show`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from autoconv import dispatch, options
from autoconv.errors import InvalidSpec
from autoconv.evidence import Decision, Measurement, Miss, candidate_key, decide, latest, ratio_interval
from autoconv.registry import default_registry
from autoconv.spec import ConvSpec

__all__ = ["Memory", "candidates_data", "recollect", "remembered_specs"]


class _Browsable(Protocol):
    """What every store of `cache/` answers beyond `evidence.Store`."""

    def all_specs(self, device: str | None = None) -> list[tuple[str, str]]: ...

    def rows(self, spec: str, device: str) -> list[Measurement]: ...

    def misses(self, device: str | None = None) -> list[Miss]: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """The newest row of every candidate of one spec on one device, and what they decide now.

    `stale` maps a `candidate_key` to what has changed since its row was measured.
    """

    spec: str
    device: str
    decision: Decision | None
    rows: tuple[Measurement, ...]
    stale: Mapping[str, str]

    def candidates(self) -> list[dict[str, Any]]:
        """Every row as plain data, fastest first."""
        return candidates_data(self.rows, self.decision, self.stale)


def candidates_data(
    rows: Iterable[Measurement], decision: Decision | None, stale: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Rows as plain data, fastest first.

    `interval` is the 95 % interval of a row's time over the winner's, `stale` what has changed since it was measured.
    """
    winner = decision.winner if decision else None
    found = []
    for row in sorted(rows, key=lambda row: (not row.usable, row.median_s or 0.0, str(row.choice))):
        rival = winner is not None and row is not winner and row.usable
        interval = ratio_interval(row, winner) if winner is not None and rival else None
        found.append(
            {
                **row.to_dict(),
                "interval": list(interval) if interval else None,
                "stale": stale.get(candidate_key(row.choice), ""),
            }
        )
    return found


def recollect(device: str | None = None, specs: Sequence[ConvSpec] = ()) -> tuple[list[Memory], list[Miss]]:
    """Everything remembered on `device` (a fingerprint; None: on every device), and the open misses.

    `specs` restricts both. Decisions are made under the current settings. What is stale is said of the rows of
    `device` alone: another machine's versions are its own business.
    """
    store = cast("_Browsable", dispatch.current_store())
    wanted = {str(spec) for spec in specs}
    memories = []
    for spec, where in store.all_specs(device):
        if wanted and spec not in wanted:
            continue
        rows = latest(store.rows(spec, where))
        limits = options.current_scope().settings.limits(_dtype(spec))
        stale = default_registry().stale(rows) if where == device else {}
        memories.append(Memory(spec, where, decide(rows, limits, stale), tuple(rows), stale))
    return memories, [miss for miss in store.misses(device) if not wanted or miss.spec in wanted]


def remembered_specs(device: str, specs: Sequence[ConvSpec] = ()) -> list[ConvSpec]:
    """The specs that have rows on `device` (a fingerprint), only those among `specs` if some are given.

    A text that this version cannot read was written by another one, which will look after it.
    """
    wanted = {str(spec): spec for spec in specs}
    found = []
    for text, _ in cast("_Browsable", dispatch.current_store()).all_specs(device):
        try:
            found.append(wanted[text] if wanted else ConvSpec.parse(text))
        except (KeyError, InvalidSpec):
            continue
    return found


def _dtype(spec: str) -> str:
    """The dtype in a remembered text, which another version of autoconv may have written."""
    try:
        return ConvSpec.parse(spec).dtype
    except InvalidSpec:
        return "f32"
