"""The registry, seen from outside: what there is, what it reaches, and whether it can run here."""

from __future__ import annotations

from dataclasses import dataclass

from autoconv.registry import default_registry
from autoconv.spec import Op

__all__ = ["ImplementationRecord", "implementations"]


@dataclass(frozen=True, slots=True)
class ImplementationRecord:
    """One line of `implementations()`: what is registered, and whether it can run here."""

    id: str
    version: int
    summary: str
    ops: tuple[str, ...]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    tags: tuple[str, ...]
    deterministic: bool
    strict_nan: bool
    available: bool
    reason: str


def implementations() -> list[ImplementationRecord]:
    """Every registered implementation in fallback order, with its reach and whether it is available here."""
    records = []
    for one in default_registry():
        reason = one.unavailable()
        doc = (type(one).__doc__ or "").strip().splitlines()
        records.append(
            ImplementationRecord(
                id=one.name,
                version=one.version,
                summary=doc[0] if doc else "",
                ops=tuple(op.value for op in Op if op in one.ops),
                ranks=tuple(sorted(one.ranks)),
                dtypes=tuple(sorted(one.dtypes)),
                layouts=tuple(sorted(one.layouts)),
                tags=tuple(sorted(one.tags | one.config_tags)),
                deterministic=one.deterministic,
                strict_nan=one.strict_nan,
                available=reason is None,
                reason=reason or "",
            )
        )
    return records
