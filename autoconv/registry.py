"""The registry: ids to implementations, loaded when asked for, and choices made ready to run.

Built-ins come from the table in `impls`, others from `register()` or the entry-point group
`autoconv.implementations`, which is scanned only when tuning or when an id is unknown.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import NamedTuple

from autoconv.device import Device
from autoconv.errors import NoImplementation, RegistryError
from autoconv.evidence import Choice, Config, Limits, Measurement, candidate_key
from autoconv.implementation import Built, Context, Implementation
from autoconv.impls import BUILTIN, RETIRED
from autoconv.spec import ConvSpec

__all__ = ["ENTRY_POINTS", "Candidate", "Declared", "Registry", "default_registry"]

ENTRY_POINTS = "autoconv.implementations"
MAX_DEPTH = 6  # rewrites nest op, groups and rank: a deeper chain is a cycle
QUICK = frozenset({"cupy", "cudnn"})  # whoever calls with a GPU's arrays has the one, and the other takes 0.07 s


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place in a race."""

    implementation: Implementation
    config: Config
    estimate_s: float

    @property
    def choice(self) -> Choice:
        """What it stands for, a child still open."""
        return Choice(self.implementation.name, self.implementation.version, self.config)


class Declared(NamedTuple):
    """What a choice says of itself, its children included."""

    workspace_bytes: int
    deterministic: bool
    strict_nan: bool
    tags: tuple[str, ...]


class Registry:
    """Implementations by id. The order of registration is the order of last resort: later ids come first."""

    def __init__(self, table: dict[str, str] | None = None) -> None:
        self._table: dict[str, str | Implementation] = dict(table or {})
        self._loaded: dict[str, Implementation] = {}
        self._scanned = table is None  # an empty registry (tests) has no outside world
        self._lock = threading.RLock()
        self.faults: dict[str, str] = {}  # entry points that could not be loaded, and why

    def register(self, implementation: Implementation, *, replace: bool = False) -> None:
        """Add an implementation. Raises `RegistryError` for a taken, retired or malformed id."""
        name = getattr(implementation, "name", None)
        if not isinstance(implementation, Implementation):
            raise RegistryError(f"register() takes an Implementation object, got {implementation!r}")
        if not isinstance(name, str) or name.count(".") != 1 or not all(name.split(".")):
            raise RegistryError(f"an id is 'provider.algorithm', got {name!r}")
        if name in RETIRED:
            raise RegistryError(f"id {name!r} is retired and never reused: {RETIRED[name]}")
        with self._lock:
            if name in self._table and not replace:
                raise RegistryError(f"id {name!r} is taken; pass replace=True to replace it")
            rest = {key: value for key, value in self._table.items() if key != name}
            self._table = {name: implementation, **rest}
            self._loaded[name] = implementation

    def unregister(self, name: str) -> None:
        """Take an implementation out again; its measurements stay."""
        with self._lock:
            self._table = {key: value for key, value in self._table.items() if key != name}
            self._loaded.pop(name, None)

    def ids(self) -> tuple[str, ...]:
        """Every known id, in fallback order; entry points are scanned first."""
        self._scan()
        return tuple(self._table)

    def get(self, name: str) -> Implementation:
        """The implementation called `name`. Raises `RegistryError`, with the nearest id, for an unknown one."""
        found = self._loaded.get(name)
        if found is not None:
            return found
        if name not in self._table:
            self._scan()
        if name not in self._table:
            raise RegistryError(self._unknown(name))
        with self._lock:
            return self._loaded.setdefault(name, self._load(name, self._table[name]))

    def __iter__(self) -> Iterator[Implementation]:
        return (self.get(name) for name in self.ids())

    def check_words(self, setting: str, words: Iterable[str]) -> None:
        """Raise `RegistryError` for a word of `require`/`exclude`/`prefer` that is no id, provider or tag."""
        plain = {word for name in self._table for word in (name, name.partition(".")[0])}
        if plain.issuperset(words):
            return
        known = {word for one in self for word in (one.name, one.name.partition(".")[0], *one.tags, *one.config_tags)}
        for word in words:
            if word not in known:
                raise RegistryError(f"{setting}: {self._unknown(word, known)}")

    # What can run a spec ------------------------------------------------------------------------

    def candidates(
        self,
        spec: ConvSpec,
        device: Device,
        limits: Limits,
        *,
        load_libraries: bool = True,
        may_compile: bool = True,
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Every implementation x config that may run `spec`, best estimate first, and each refusal.

        What is for other kinds of device is no refusal worth telling, unless `require` asks for it by name.
        `may_compile=False` leaves out what a compiler builds: an untuned call has nothing built to use.
        """
        accepted: list[Candidate] = []
        refusals: dict[str, str] = {}
        for one in self:
            if device.kind not in one.devices and not (
                limits.require and limits.forbids((one.name,), one.tags) is None
            ):
                continue
            reason = self._refusal(one, spec, device, limits)
            if reason is None and one.compiled and not may_compile:
                reason = "compiled when tuned, not inside an untuned call"
            if reason is not None:
                refusals[one.name] = reason
                continue
            for config in one.configs(spec, device):
                reason = one.why_not(spec, device, config) or _config_refusal(
                    one, spec, device, config, limits, load_libraries
                )
                if reason is None:
                    accepted.append(Candidate(one, config, self.estimate_s(one, spec, device, config, may_compile)))
                else:
                    refusals[f"{one.name}[{config}]" if config else one.name] = reason
        accepted.sort(key=lambda c: (limits.preference(c.choice, c.implementation.traits(c.config).tags), c.estimate_s))
        return accepted, refusals

    def _refusal(self, one: Implementation, spec: ConvSpec, device: Device, limits: Limits) -> str | None:
        """Why an implementation is out whatever its config; an applicability check that raises declines itself."""
        try:
            reason = limits.forbids((one.name,), one.tags, one.config_tags) or one.why_not(spec, device)
        except Exception as error:  # an outsider's bug must not stop the others; the reason keeps it visible
            return f"its own check failed: {type(error).__name__}: {error}"
        if reason is not None:
            return reason
        if limits.strict_nan and not one.strict_nan:
            return "does not carry NaN and infinity like the direct sum, and settings(strict_nan=True)"
        if limits.deterministic and not one.deterministic:
            return "not deterministic, and settings(deterministic=True)"
        return None

    def estimate_s(
        self, one: Implementation, spec: ConvSpec, device: Device, config: Config, may_compile: bool = True
    ) -> float:
        """Rough seconds of one call, the best child included."""
        own = one.estimate_s(spec, device, config)
        child = one.child_spec(spec)
        if child is None:
            return own
        able = [
            self.estimate_s(other, child, device, other_config, may_compile)
            for other in self
            if (may_compile or not other.compiled) and other.why_not(child, device) is None
            for other_config in other.configs(child, device)[:1]
        ]
        return own + one.child_calls(spec) * min(able, default=float("inf"))

    # Making a choice ready ----------------------------------------------------------------------

    def build(
        self,
        spec: ConvSpec,
        device: Device,
        choice: Choice,
        plan_child: Callable[[ConvSpec], Built] | None = None,
        *,
        may_compile: bool = True,
        depth: int = 0,
    ) -> Built:
        """Prepare `choice` for `spec`. A rewrite's child is replayed from the choice, or asked of `plan_child`.

        Raises `NoImplementation` when the choice does not fit the spec or this machine any more, `BackendMissing`
        when what it needs is not installed, or is not compiled yet and `may_compile` is False.
        """
        one = self.get(choice.implementation)
        reason = one.why_not(spec, device, choice.config)
        if reason is None and depth > MAX_DEPTH:
            reason = "rewrites nest too deeply"
        if reason is not None:
            raise NoImplementation(f"cannot run {spec}", {one.name: reason})
        child: list[Built] = []

        def build_child() -> Built:
            lower = one.child_spec(spec)
            assert lower is not None, f"{one.name} asked for a child it does not declare"
            if choice.child is not None:
                child.append(
                    self.build(lower, device, choice.child, plan_child, may_compile=may_compile, depth=depth + 1)
                )
            elif plan_child is not None:
                child.append(plan_child(lower))
            else:
                raise NoImplementation(f"{one.name} needs a child for {lower}, and none was chosen")
            return child[0]

        runner = one.prepare(spec, choice.config, Context(device, build_child, may_compile))
        made = Choice(one.name, one.version, choice.config, child[0].choice if child else None)
        return Built(spec, made, runner, **self.declared(spec, device, made)._asdict())

    def declared(self, spec: ConvSpec, device: Device, choice: Choice) -> Declared:
        """What `choice` and its children say of themselves; nothing is prepared."""
        one = self.get(choice.implementation)
        traits, workspace_bytes = one.traits(choice.config), one.workspace_bytes(spec, device, choice.config)
        lower = one.child_spec(spec)
        if choice.child is None or lower is None:
            return Declared(workspace_bytes, traits.deterministic, traits.strict_nan, tuple(sorted(traits.tags)))
        child = self.declared(lower, device, choice.child)
        return Declared(
            workspace_bytes + child.workspace_bytes,
            traits.deterministic and child.deterministic,
            traits.strict_nan and child.strict_nan,
            tuple(sorted({*traits.tags, *child.tags})),
        )

    def why_not(self, spec: ConvSpec, device: Device, choice: Choice) -> str | None:
        """The first reason for which `choice`, or one of its children, cannot run `spec`; nothing is prepared."""
        one = self.get(choice.implementation)
        lower = one.child_spec(spec)
        below = None if choice.child is None or lower is None else self.why_not(lower, device, choice.child)
        return one.why_not(spec, device, choice.config) or below

    def capturable(self, choice: Choice) -> bool:
        """Whether a GPU's stream may be captured while a choice, its children's included, runs."""
        return all(self.get(link.implementation).capturable for link in choice.chain())

    def environment(self, choice: Choice) -> dict[str, str]:
        """Versions that the time of a choice depends on, its children's included."""
        merged: dict[str, str] = {}
        for link in choice.chain():
            merged.update(self.get(link.implementation).environment(link.config))
        return merged

    def stale(self, rows: Iterable[Measurement]) -> dict[str, str]:
        """`candidate_key` of each row that was measured with other versions, to what has changed since."""
        return {candidate_key(row.choice): text for row in rows if (text := self._changes(row))}

    def _changes(self, row: Measurement) -> str:
        """Versions that differ now; one that only one side knows does not count: autoconv may note more than it did."""
        try:
            now = self.environment(row.choice)
        except (RegistryError, ImportError, OSError):
            return "its implementation cannot be loaded any more"
        changed = [f"{name} {old} -> {now[name]}" for name, old in row.environment.items() if now.get(name, old) != old]
        return ", ".join(changed)

    # Finding ------------------------------------------------------------------------------------

    def _scan(self) -> None:
        if self._scanned:
            return
        with self._lock:
            self._scanned = True
            from importlib.metadata import entry_points

            for point in entry_points(group=ENTRY_POINTS):
                try:
                    loaded = point.load()
                    self.register(loaded() if isinstance(loaded, type) else loaded)
                except Exception as error:  # someone else's package: `autoconv doctor` shows what is wrong with it
                    self.faults[point.name] = f"{type(error).__name__}: {error}"

    def _load(self, name: str, where: str | Implementation) -> Implementation:
        if isinstance(where, Implementation):
            return where
        module, _, attribute = where.partition(":")
        cls: Callable[[], Implementation] = getattr(import_module(module), attribute)
        one = cls()
        if one.name != name:
            raise RegistryError(f"{where} calls itself {one.name!r}, the table calls it {name!r}")
        return one

    def _unknown(self, name: str, known: Iterable[str] | None = None) -> str:
        if name in RETIRED:
            return f"{name!r} is retired: {RETIRED[name]}"
        from difflib import get_close_matches  # only an error needs it

        pool = sorted(known if known is not None else self._table)
        near = get_close_matches(name, pool, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(pool)}"
        return f"no implementation is called {name!r}; {hint}"


def _config_refusal(
    one: Implementation, spec: ConvSpec, device: Device, config: Config, limits: Limits, load_libraries: bool
) -> str | None:
    needed = one.workspace_bytes(spec, device, config)
    if limits.max_workspace is not None and needed > limits.max_workspace:
        return f"needs {needed} bytes of workspace, max_workspace is {limits.max_workspace}"
    traits = one.traits(config)
    reason = limits.forbids((one.name,), traits.tags) or limits.too_coarse(traits.tags)
    if reason is not None:
        return reason
    if limits.strict_nan and not traits.strict_nan:
        return "does not carry NaN and infinity like the direct sum, and settings(strict_nan=True)"
    if limits.deterministic and not traits.deterministic:
        return "not deterministic, and settings(deterministic=True)"
    missing = [name for name in one.libraries(config) if name not in sys.modules and name not in QUICK]
    if missing and not load_libraries:
        return f"would import {', '.join(missing)}: raced by `autoconv tune`, not inside a call"
    return None


@cache
def default_registry() -> Registry:
    """The registry that the public functions use."""
    return Registry(BUILTIN)
