"""Settings: one frozen dataclass, read from `AUTOCONV_*`, overridden in a `with` block or for good.

::

    with autoconv.settings(verbose=1, exclude=("onednn",), max_workspace="512MiB"):
        ...
    @autoconv.settings(on_miss="heuristic")
    def filter_all(images): ...
    autoconv.settings.set_default(verbose=2)      # this process, from now on
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields, replace
from typing import Any

from autoconv.device import Device
from autoconv.errors import InvalidOption
from autoconv.evidence import Limits

__all__ = ["ON_MISS", "Scope", "Settings", "current_scope", "parse_bytes", "settings", "without_password"]

ON_MISS = ("tune", "heuristic", "error")
ISOLATION = ("process", "none")
DEFAULT_REL_ERROR = {"f32": 1e-4, "f64": 1e-9, "f16": 1e-2, "bf16": 5e-2}
"""Largest error admitted when `max_rel_error` is not set; float32's admits Winograd F(4) and excludes TF32."""

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that steers autoconv; each field is also the variable `AUTOCONV_<NAME>`.

    verbose: 0 silent, 1 a line per decision, 2 every candidate, 3 and the command that repeats it.
    cache: path of the SQLite file or an SQLAlchemy URL; None is the user's cache directory.
    on_miss: what a call does without a remembered decision: "tune", "heuristic" or "error".
    tune_budget_s: seconds one race inside a call may take.
    prefer, require, exclude: ids, providers or tags; see `Limits`.
    max_workspace: bytes (or "512MiB") of scratch a winner may need; None is no limit on a CPU, and an eighth of its
        memory on a GPU.
    max_rel_error: largest max|y - ref| / max|ref| of a winner; None is the dtype's default.
    deterministic: only winners whose bits repeat. strict_nan: only winners that carry NaN like the direct sum.
    threads: threads per call; None is every usable core.
    isolation: where candidates are tried and timed: "process", in workers that may be lost, or "none", in this one.
    """

    verbose: int = 0
    cache: str | None = None
    on_miss: str = "tune"
    tune_budget_s: float = 1.0
    prefer: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_workspace: int | None = None
    max_rel_error: float | None = None
    deterministic: bool = False
    strict_nan: bool = False
    threads: int | None = None
    isolation: str = "process"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Defaults overridden by `AUTOCONV_*`; raises `InvalidOption` naming a variable that cannot be read."""
        found = {
            f.name: environ[f"AUTOCONV_{f.name.upper()}"]
            for f in fields(cls)
            if f"AUTOCONV_{f.name.upper()}" in environ
        }
        return cls().updated(found, origin="AUTOCONV_")

    def updated(self, changes: Mapping[str, Any], origin: str = "") -> Settings:
        """A copy with `changes`, each checked and converted. Raises `InvalidOption`, `TypeError` for a wrong name."""
        known = {f.name for f in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise TypeError(f"settings() has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        converted = {}
        for name, value in changes.items():
            shown = f"{origin}{name.upper()}" if origin else name
            try:
                converted[name] = _READERS[name](value)
            except (TypeError, ValueError) as error:
                raise InvalidOption(f"{shown}: {error}") from None
        return replace(self, **converted)

    def limits(self, dtype: str, device: Device | None = None) -> Limits:
        """The part that constrains which row may win, for a spec of `dtype` on `device`."""
        cap = device.workspace_cap if device is not None and self.max_workspace is None else self.max_workspace
        error = DEFAULT_REL_ERROR[dtype] if self.max_rel_error is None else self.max_rel_error
        return Limits(
            max_workspace=cap,
            max_rel_error=error,
            deterministic=self.deterministic,
            strict_nan=self.strict_nan,
            require=self.require,
            exclude=self.exclude,
            prefer=self.prefer,
        )


def parse_bytes(value: Any) -> int | None:
    """A number of bytes from an int or a text such as "512MiB"; None stays None."""
    if value is None or value == "" or value == "none":
        return None
    if isinstance(value, str):
        digits = value.strip().lower()
        number = digits.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = digits[len(number) :].strip()
        if unit not in _UNITS:
            raise ValueError(f"expected bytes as 1000000 or '512MiB', got {value!r}")
        value = float(number) * _UNITS[unit]
    if isinstance(value, bool) or not value >= 0 or value == float("inf"):
        raise ValueError(f"expected a number of bytes, got {value!r}")
    return int(value)


def without_password(url: str) -> str:
    """A database's URL as it may be printed; a path stays as it is."""
    import re  # only what prints needs it

    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    rest = re.sub(r"^([^/?]*?):[^/?]*@", r"\1:***@", rest)
    secret = r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*"
    return f"{scheme}://" + re.sub(secret, r"\1***", rest, flags=re.IGNORECASE)


def _words(value: Any) -> tuple[str, ...]:
    words = value.replace(",", " ").split() if isinstance(value, str) else tuple(value)
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"expected names, got {value!r}")
    return tuple(words)


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        lowered = value.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("", "0", "false", "no", "off"):
            return False
    elif isinstance(value, bool | int):
        return bool(value)
    raise ValueError(f"expected true or false, got {value!r}")


def _integer(minimum: int, maximum: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value)
        if isinstance(value, float) or not minimum <= number <= maximum:
            raise ValueError(f"expected an integer from {minimum} to {maximum}, got {value!r}")
        return number

    return read


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"expected a positive number, got {value!r}")
    return number


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None or value == "" else read(value)


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}, got {value!r}")
        return str(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "verbose": _integer(0, 3),
    "cache": _optional(lambda value: os.fspath(value)),
    "on_miss": _one_of(ON_MISS),
    "tune_budget_s": _positive,
    "prefer": _words,
    "require": _words,
    "exclude": _words,
    "max_workspace": parse_bytes,
    "max_rel_error": _optional(_positive),
    "deterministic": _flag,
    "strict_nan": _flag,
    "threads": _optional(_integer(1, 4096)),
    "isolation": _one_of(ISOLATION),
}


class Scope:
    """One `Settings` value and the calls already decided under it; equal settings share a scope."""

    __slots__ = ("calls", "settings")

    def __init__(self, values: Settings) -> None:
        self.settings = values
        self.calls: dict[Any, Any] = {}

    def keep(self, key: Any, decided: Any) -> None:
        """Remember a decided call; a program whose shapes never repeat starts over rather than grow for ever."""
        if len(self.calls) >= MAX_CALLS:
            self.calls.clear()
        self.calls[key] = decided


_scopes: dict[Settings, Scope] = {}
_active: ContextVar[Scope | None] = ContextVar("autoconv_settings", default=None)
_default: Scope | None = None
MAX_CALLS = 20_000  # a few kilobytes each; the largest networks known have some hundred shapes
MAX_SCOPES = 256  # more distinct settings than any program needs: then start over rather than grow for ever


def _scope_of(values: Settings) -> Scope:
    if len(_scopes) > MAX_SCOPES:
        _scopes.clear()
    return _scopes.setdefault(values, Scope(values))


def current_scope() -> Scope:
    """The scope in force here: the innermost `with settings(...)`, else the process's default."""
    scope = _active.get()
    return scope if scope is not None else _default_scope()


def _default_scope() -> Scope:
    global _default
    if _default is None:
        _default = _scope_of(Settings.from_environment())
    return _default


def forget_calls() -> None:
    """Drop every decided call: after a tuning, or when the registry or the store changed."""
    for scope in list(_scopes.values()):
        scope.calls.clear()
    active = _active.get()
    if active is not None:
        active.calls.clear()


class settings(ContextDecorator):  # noqa: N801  it reads as a verb where it is used
    """Override settings in a `with` block or a decorated function; see `Settings` for the fields.

    Raises `InvalidOption` for a value without meaning, `TypeError` for an unknown name. Blocks nest;
    each thread and task has its own. `settings.current()` reads, `settings.set_default(...)` changes
    what holds outside every block, in all threads.
    """

    def __init__(self, **changes: Any) -> None:
        Settings().updated(changes)  # refuse now what __enter__ would refuse
        self._changes = dict(changes)
        self._tokens: list[Token[Scope | None]] = []

    def __enter__(self) -> Settings:
        values = current_scope().settings.updated(self._changes)
        self._tokens.append(_active.set(_scope_of(values)))
        return values

    def __exit__(self, *exc: object) -> None:
        _active.reset(self._tokens.pop())

    def _recreate_cm(self) -> settings:
        return settings(**self._changes)  # a decorated function may run in many threads at once

    @staticmethod
    def current() -> Settings:
        """The settings in force here."""
        return current_scope().settings

    @staticmethod
    def set_default(**changes: Any) -> Settings:
        """Change what holds outside every `with settings(...)` block, for the whole process."""
        global _default
        _default = _scope_of(_default_scope().settings.updated(changes))
        return _default.settings
