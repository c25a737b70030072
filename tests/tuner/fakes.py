"""A clock that only moves when told, implementations that take what time they like, and a world to race them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoconv.arrays import Array
from autoconv.cache import MemoryStore
from autoconv.device import Device
from autoconv.evidence import Config, Limits, Measurement
from autoconv.implementation import Context, Implementation, Runner
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import BoundRunner, Workspace
from autoconv.registry import Registry
from autoconv.spec import ConvSpec
from autoconv.tuner import Tuner, TuningResult
from autoconv.tuner.contention import Calm, Watchman

DEVICE = Device("cpu", "test", "none", 1, 1)
SPEC = ConvSpec.parse("fprop n1c2 5x5 k2 3x3 p1")

Trick = Callable[[Array, Array, Array, Workspace], None]


class Clock:
    """Seconds that pass only when somebody spends them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.spend(seconds)


class Fake(Implementation):
    """Right, and as fast as told: `seconds` is a number or a function of the config; `trick` runs after the answer."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        seconds: float | Callable[[Config], float] = 1e-3,
        *,
        trick: Trick | None = None,
        configs: Sequence[Config] = (Config(),),
        estimate: float | None = None,
        workspace: int = 0,
        **attributes: Any,
    ) -> None:
        self.name = name  # type: ignore[misc]
        self.clock = clock
        self.seconds = seconds
        self.trick = trick
        self.calls = 0
        self.bound = 0
        self.log: list[str] = []
        self._configs = configs
        self._estimate = estimate
        self._workspace = workspace
        self.uses: dict[str, str] = {"library": "1"}
        for key, value in attributes.items():
            setattr(self, key, value)

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        return self._configs

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return self._workspace

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return self.takes(config) if self._estimate is None else self._estimate

    def environment(self, config: Config) -> Mapping[str, str]:
        return dict(self.uses)

    def takes(self, config: Config) -> float:
        return self.seconds(config) if callable(self.seconds) else self.seconds

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _FakeRunner(self, config, Direct().prepare(spec, Config(), context))


class _FakeRunner(Runner):
    def __init__(self, fake: Fake, config: Config, truth: Runner) -> None:
        self.fake = fake
        self._config = config
        self._truth = truth

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self.fake.calls += 1
        self.fake.log.append(self.fake.name)
        self.fake.clock.spend(self.fake.takes(self._config))
        self._truth(a, b, out, workspace)
        if self.fake.trick is not None:
            self.fake.trick(a, b, out, workspace)

    def bind(self, filters: Array) -> BoundRunner:
        self.fake.bound += 1
        return super().bind(filters)


class FakeRewrite(Fake):
    """Maps a padded problem to itself without padding on a larger image: one child call, `seconds` more."""

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Iterator[tuple[bool, str]]:
        yield any(map(any, spec.padding)), "needs padding to take away"

    def child_spec(self, spec: ConvSpec) -> ConvSpec:
        size = [n + before + after for n, (before, after) in zip(spec.in_spatial, spec.padding, strict=True)]
        return ConvSpec.fprop((spec.batch, spec.in_channels, *size), spec.filter_shape, dtype=spec.dtype)

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return 1e-9 if self._estimate is None else self._estimate

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return _PaddingRunner(self, context.child().runner, spec)


class _PaddingRunner(Runner):
    def __init__(self, fake: Fake, child: Runner, spec: ConvSpec) -> None:
        self._fake = fake
        self._child = child
        self._spec = spec

    def __call__(self, a: Array, b: Array, out: Array, workspace: Workspace) -> None:
        self._fake.calls += 1
        self._fake.clock.spend(self._fake.takes(Config()))
        size = [n + sum(pads) for n, pads in zip(self._spec.in_spatial, self._spec.padding, strict=True)]
        padded = workspace.take((*a.shape[:2], *size), a.dtype)
        padded[...] = 0
        inner: Any = tuple(
            slice(p[0], p[0] + n) for p, n in zip(self._spec.padding, self._spec.in_spatial, strict=True)
        )
        padded[(..., *inner)] = a
        self._child(padded, b, out, workspace)


class World:
    """A clock, a registry of fakes, a store in memory, and a tuner on them."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Clock()
        self.registry = Registry()
        self.store = MemoryStore()
        self.seed = seed
        self.watchman: Callable[[Device], Watchman] = lambda device: Calm()

    def add(self, name: str, seconds: float | Callable[[Config], float] = 1e-3, **options: Any) -> Fake:
        fake = Fake(name, self.clock, seconds, **options)
        self.registry.register(fake, replace=True)
        return fake

    def rewrite(self, name: str, seconds: float = 1e-6, **options: Any) -> FakeRewrite:
        fake = FakeRewrite(name, self.clock, seconds, workspace=1 << 12, **options)
        self.registry.register(fake)
        return fake

    def tune(self, spec: ConvSpec = SPEC, limits: Limits | None = None, **options: Any) -> TuningResult:
        tuner = Tuner(
            self.registry, self.store, clock=self.clock, sleep=self.clock.sleep, seed=self.seed, watchman=self.watchman
        )
        return tuner.tune(spec, DEVICE, limits or Limits(), **options)

    def rows(self, spec: ConvSpec = SPEC) -> list[Measurement]:
        return self.store.rows(str(spec), DEVICE.fingerprint)

    def status(self, result: TuningResult) -> dict[str, str]:
        return {row.choice.implementation: row.status for row in result.rows}


class BusyStore(MemoryStore):
    """Whoever wants to measure finds that somebody else has just finished doing so."""

    def __init__(self, found: Sequence[Measurement]) -> None:
        super().__init__()
        self._found = list(found)
        self.holders = 0

    @contextmanager
    def measuring(self, device: str) -> Iterator[None]:
        self.add(self._found)
        self.holders += 1
        yield
        self.holders -= 1


def winner(result: TuningResult) -> str:
    """The id of the implementation that won."""
    assert result.decision is not None
    return result.decision.winner.choice.implementation
