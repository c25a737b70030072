"""What every convolution algorithm states about itself, and the context it is prepared in.

An `Implementation` is stateless: it says which problems it does (`why_not`), with which tunables
(`configs`), in how much scratch (`workspace_bytes`), at what rough cost (`estimate_s`), and makes a
`Runner` (`prepare`). Whether it is any good is for the tuner to find out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from autoconv.device import Device
from autoconv.evidence import Choice, Config
from autoconv.planning import BoundRunner, Runner
from autoconv.spec import ConvSpec, Op

__all__ = ["ALL_OPS", "BoundRunner", "Built", "Context", "Implementation", "Runner", "Traits", "first_refusal"]

ALL_OPS = frozenset(Op)


@dataclass(frozen=True, slots=True)
class Traits:
    """What holds for the results of one config: the words it goes by, and what it promises."""

    tags: frozenset[str]
    deterministic: bool
    strict_nan: bool


@dataclass(frozen=True, slots=True)
class Built:
    """A choice made ready: its runner, the scratch it needs with its children's, and its properties."""

    spec: ConvSpec
    choice: Choice
    runner: Runner
    workspace_bytes: int
    deterministic: bool
    strict_nan: bool
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """Where `prepare` happens: the device, and for a rewrite the means to get its child made ready."""

    device: Device
    child: Callable[[], Built]
    may_compile: bool = True  # False inside a call: then only what is built already serves


def first_refusal(checks: Iterable[tuple[bool, str]]) -> str | None:
    """The sentence of the first check that fails, or None."""
    return next((reason for holds, reason in checks if not holds), None)


class Implementation(ABC):
    """One algorithm. Class attributes state its reach; `restrictions` what else must hold.

    `tags` are words for `require` and `exclude` beside the id and its provider. `runtime` names the
    thread pool that works for it, so that pools are kept apart while timing. `strict_nan` says that
    NaN and infinity in the operands reach exactly the results that the direct sum gives them to
    (where padding meets a non-finite filter value the result is unspecified). Where configs differ in
    these, the attributes state the best of them, `traits` each, and `config_tags` the words of some only.
    `capturable` says that a GPU's stream may be captured into a graph while it runs.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    ops: ClassVar[frozenset[Op]] = ALL_OPS
    ranks: ClassVar[frozenset[int]] = frozenset({1, 2, 3})
    dtypes: ClassVar[frozenset[str]] = frozenset({"f32", "f64"})
    layouts: ClassVar[frozenset[str]] = frozenset({"nchw", "nhwc"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    tags: ClassVar[frozenset[str]] = frozenset()
    config_tags: ClassVar[frozenset[str]] = frozenset()
    runtime: ClassVar[str] = "none"
    compiled: ClassVar[bool] = False  # preparing a config for the first time takes a compiler about a second
    deterministic: ClassVar[bool] = True
    strict_nan: ClassVar[bool] = True
    capturable: ClassVar[bool] = True

    def why_not(self, spec: ConvSpec, device: Device, config: Config | None = None) -> str | None:
        """None when this can compute `spec` (with `config`), else a sentence with what failed."""
        reach = first_refusal(
            (
                (device.kind in self.devices, f"runs on {_join(self.devices)}, not on {device.kind}"),
                (spec.op in self.ops, f"does {_join(self.ops)}, not {spec.op}"),
                (spec.rank in self.ranks, f"does rank {_join(map(str, self.ranks))}, got {spec.rank}"),
                (spec.dtype in self.dtypes, f"does {_join(self.dtypes)}, got {spec.dtype}"),
                (spec.layout in self.layouts, f"does {_join(self.layouts)}, got {spec.layout}"),
            )
        )
        return reach or self.unavailable() or first_refusal(self.restrictions(spec, device, config))

    def unavailable(self) -> str | None:
        """Why this cannot run on this machine at all (a missing library, say), or None."""
        return None

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterable[tuple[bool, str]]:
        """(holds, what is needed and what came) pairs: what is correct here, never what is slow."""
        return ()

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        """Tunables worth racing, the most promising first; each is a candidate."""
        return (Config(),)

    def traits(self, config: Config) -> Traits:
        """Tags and promises of `config`: the class's, unless configs differ."""
        return Traits(self.tags, self.deterministic, self.strict_nan)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        """Bytes of scratch one call takes beyond operands and result, a child's not counted."""
        return 0

    @abstractmethod
    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        """Rough seconds of one call, a child's not counted: orders untuned choices and spares hopeless tries."""

    def child_spec(self, spec: ConvSpec) -> ConvSpec | None:
        """For a rewrite: the problem it turns `spec` into. It must be strictly lower, so that recursion ends."""
        return None

    @property
    def asks_child(self) -> bool:
        """Whether this is a rewrite that leaves the work to a child, whose race comes with its own."""
        return type(self).child_spec is not Implementation.child_spec

    def child_calls(self, spec: ConvSpec) -> int:
        """How often one call runs the child."""
        return 1

    def libraries(self, config: Config) -> tuple[str, ...]:
        """Optional modules that `config` imports; a race inside a call does not load them."""
        return ()

    def prefetch(self, spec: ConvSpec, device: Device, config: Config) -> None:
        """For `compiled` implementations: build what preparing `config` loads. The tuner runs several side by side."""
        return

    def environment(self, config: Config) -> Mapping[str, str]:
        """Versions of what the time of `config` depends on, as stored with each row."""
        return {"numpy": np.__version__}

    @abstractmethod
    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        """Make a runner; everything that need not be repeated per call happens here."""


def _join(words: Iterable[str]) -> str:
    return " or ".join(sorted(words))
