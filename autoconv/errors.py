"""Every error autoconv raises on purpose.

::

    AutoconvError
    ├── InvalidSpec (ValueError)         nobody could compute this
    │   └── InvalidType (TypeError)      wrong rank or dtype
    ├── InvalidOption (ValueError)       a setting or argument that has no meaning
    ├── NoImplementation                 nobody here can compute this; `.refusals` says why
    ├── BackendMissing (ImportError)     a library that was asked for by name is not installed
    ├── WrongAnswer                      an implementation disagreed with the reference
    ├── RegistryError                    unknown, duplicate or malformed implementation
    └── CacheError
        ├── SchemaTooNew                 written by a later autoconv
        └── BadExport                    an export file that cannot be imported

Slips in calling Python (an unknown keyword, say) stay `TypeError`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "AutoconvError",
    "BackendMissing",
    "BadExport",
    "CacheError",
    "InvalidOption",
    "InvalidSpec",
    "InvalidType",
    "NoImplementation",
    "RegistryError",
    "SchemaTooNew",
    "WrongAnswer",
]


class AutoconvError(Exception):
    """Base of every error below."""


class InvalidSpec(AutoconvError, ValueError):
    """The problem itself is impossible: shapes, padding, groups that do not fit together."""


class InvalidType(InvalidSpec, TypeError):
    """An operand has the wrong rank or a dtype that convolution is not defined for here."""


class InvalidOption(AutoconvError, ValueError):
    """A setting, environment variable or tuning argument has no meaning."""


class NoImplementation(AutoconvError):
    """No implementation on this machine may run the problem; `.refusals` maps each id to its reason."""

    def __init__(self, message: str, refusals: Mapping[str, str] | None = None) -> None:
        self.refusals: dict[str, str] = dict(refusals or {})
        lines = [message, *(f"  {name:<26} {reason}" for name, reason in self.refusals.items())]
        super().__init__("\n".join(lines))


class BackendMissing(AutoconvError, ImportError):
    """A library that was asked for by name is not installed."""


class WrongAnswer(AutoconvError):
    """An implementation's result differs from the float64 reference by more than its tolerance."""


class RegistryError(AutoconvError, LookupError):
    """An implementation id is unknown, taken, retired or malformed."""


class CacheError(AutoconvError):
    """The store of measurements cannot be used."""


class SchemaTooNew(CacheError):
    """The database was written by a later version of autoconv."""


class BadExport(CacheError, ValueError):
    """A line of an export file is not a measurement autoconv can accept."""
