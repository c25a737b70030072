"""What the store holds, spec by spec: the facts behind `autoconv show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from autoconv import dispatch, options
from autoconv.errors import InvalidSpec
from autoconv.evidence import Decision, Measurement, Miss, decide, latest
from autoconv.spec import ConvSpec

__all__ = ["Memory", "recollect"]


class _Browsable(Protocol):
    """What every store of `cache/` answers beyond `evidence.Store`."""

    def all_specs(self, device: str | None = None) -> list[tuple[str, str]]: ...

    def rows(self, spec: str, device: str) -> list[Measurement]: ...

    def misses(self, device: str | None = None) -> list[Miss]: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """The newest row of every candidate of one spec on one device, and what they decide now."""

    spec: str
    device: str
    decision: Decision | None
    rows: tuple[Measurement, ...]


def recollect(device: str | None = None, specs: Sequence[ConvSpec] = ()) -> tuple[list[Memory], list[Miss]]:
    """Everything remembered on `device` (a fingerprint; None: on every device), and the open misses.

    `specs` restricts both. Decisions are made under the current settings.
    """
    store = cast("_Browsable", dispatch.current_store())
    wanted = {str(spec) for spec in specs}
    memories = []
    for spec, where in store.all_specs(device):
        if wanted and spec not in wanted:
            continue
        rows = latest(store.rows(spec, where))
        limits = options.current_scope().settings.limits(_dtype(spec))
        memories.append(Memory(spec, where, decide(rows, limits), tuple(rows)))
    return memories, [miss for miss in store.misses(device) if not wanted or miss.spec in wanted]


def _dtype(spec: str) -> str:
    """The dtype in a remembered text, which another version of autoconv may have written."""
    try:
        return ConvSpec.parse(spec).dtype
    except InvalidSpec:
        return "f32"
