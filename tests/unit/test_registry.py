"""The registry: what may be added, what is found, and when the outside world is looked at."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest

from autoconv.device import Device, cpu
from autoconv.errors import NoImplementation, RegistryError
from autoconv.evidence import Choice, Config, Limits
from autoconv.implementation import Built, Context, Implementation, Traits
from autoconv.impls import BUILTIN
from autoconv.impls.cpu.direct import Direct
from autoconv.planning import Runner
from autoconv.registry import ENTRY_POINTS, Registry
from autoconv.spec import ConvSpec, Op

SPEC = ConvSpec.parse("fprop n1c2 6x6 k2 3x3")
FREE = Limits()


class Quick(Direct):
    """Direct under another name, said to be quick."""

    name = "test.quick"
    tags = frozenset({"quick"})

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return 1e-9


class Tuned(Direct):
    name = "test.tuned"

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        return tuple(Config(tile=tile) for tile in (2, 4, 8))

    def restrictions(self, spec: ConvSpec, device: Device, config: Config | None) -> Any:
        return ((config is None or config["tile"] != 8, "needs a tile below 8, got 8"),)

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return int(config["tile"]) * 100

    def libraries(self, config: Config) -> tuple[str, ...]:
        return ("a_library_nobody_has",) if config["tile"] == 4 else ()


class Coarse(Direct):
    """Two ways of multiplying, the second with shortened operands."""

    name = "test.coarse"
    tags = frozenset({"gemm"})
    config_tags = frozenset({"tf32"})

    def configs(self, spec: ConvSpec, device: Device) -> Sequence[Config]:
        return (Config(short=False), Config(short=True))

    def traits(self, config: Config) -> Traits:
        short = bool(config["short"])
        return Traits(self.tags | (self.config_tags if short else frozenset()), not short, not short)


class Lowering(Implementation):
    """A rewrite of dgrad into fprop, in name only."""

    name = "test.lowering"
    ops = frozenset({Op.DGRAD})
    deterministic = True

    def estimate_s(self, spec: ConvSpec, device: Device, config: Config) -> float:
        return 1.0

    def child_spec(self, spec: ConvSpec) -> ConvSpec | None:
        return SPEC

    def child_calls(self, spec: ConvSpec) -> int:
        return 3

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return 1000

    def prepare(self, spec: ConvSpec, config: Config, context: Context) -> Runner:
        return context.child().runner


class Shaky(Direct):
    name = "test.shaky"
    tags = frozenset({"shaky"})
    deterministic = False
    strict_nan = False

    def workspace_bytes(self, spec: ConvSpec, device: Device, config: Config) -> int:
        return 7


class Faulty(Direct):
    name = "test.faulty"

    def why_not(self, spec: ConvSpec, device: Device, config: Config | None = None) -> str | None:
        raise ZeroDivisionError("its author slipped")


def with_(*ones: Implementation) -> Registry:
    registry = Registry()
    for one in ones:
        registry.register(one)
    return registry


# Adding


def test_later_ones_come_first() -> None:
    registry = with_(Direct(), Quick())
    assert registry.ids() == ("test.quick", "numpy.direct")
    assert [one.name for one in registry] == ["test.quick", "numpy.direct"]
    registry.unregister("test.quick")
    assert registry.ids() == ("numpy.direct",)
    with pytest.raises(RegistryError):
        registry.get("test.quick")


def test_ids_are_taken_once() -> None:
    registry, second = with_(Quick()), Quick()
    with pytest.raises(RegistryError, match=r"'test\.quick' is taken; pass replace=True"):
        registry.register(second)
    registry.register(second, replace=True)
    assert registry.get("test.quick") is second


@pytest.mark.parametrize("name", ["", "plain", "a.b.c", ".b", "a.", 3, None])
def test_malformed_ids(name: Any) -> None:
    one = Quick()
    one.name = name  # type: ignore[misc]
    with pytest.raises(RegistryError, match=r"an id is 'provider\.algorithm'"):
        Registry().register(one)


def test_only_objects_are_registered() -> None:
    for wrong in (Quick, "test.quick", None):
        with pytest.raises(RegistryError, match="takes an Implementation object"):
            Registry().register(wrong)  # type: ignore[arg-type]


def test_retired_ids_are_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoconv.registry.RETIRED", {"test.quick": "too quick"})
    registry = Registry()
    with pytest.raises(RegistryError, match="retired and never reused: too quick"):
        registry.register(Quick())
    with pytest.raises(RegistryError, match=r"'test\.quick' is retired: too quick"):
        registry.get("test.quick")


# Finding


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("numpy.dirct", "numpy.direct"), ("numpy.ftt", "numpy.fft"), ("nunpy.im2col", "numpy.im2col")],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(RegistryError, match=f"no implementation is called '{asked}'; did you mean '{nearest}'"):
        Registry(BUILTIN).get(asked)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(RegistryError, match=r"known: numpy\.direct, test\.quick"):
        with_(Direct(), Quick()).get("zzzzzzzz")


def test_words_of_the_settings() -> None:
    registry = with_(Direct(), Quick())
    registry.check_words("require", ("numpy", "test.quick", "quick", "reference"))
    with pytest.raises(RegistryError, match="exclude: no implementation is called 'quack'; did you mean 'quick'"):
        registry.check_words("exclude", ("numpy", "quack"))


class Point:
    """An entry point of an installed package."""

    def __init__(self, name: str, found: Any) -> None:
        self.name = name
        self._found = found

    def load(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that were looked for; the outside world has a class, an object and two faults."""
    asked: list[str] = []
    points = [
        Point("quick", Quick),
        Point("tuned", Tuned()),
        Point("broken", ImportError("no such library")),
        Point("nonsense", object()),
    ]

    def entry_points(*, group: str) -> list[Point]:
        asked.append(group)
        return points

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


def test_known_ids_scan_nothing(scans: list[str]) -> None:
    registry = Registry(BUILTIN)
    registry.get("numpy.direct")
    registry.check_words("exclude", ("numpy.fft", "numpy"))
    registry.build(SPEC, cpu(), Choice("numpy.direct", 1))
    assert scans == []


def test_an_unknown_id_scans_once(scans: list[str]) -> None:
    registry = Registry(BUILTIN)
    assert isinstance(registry.get("test.quick"), Quick)
    assert isinstance(registry.get("test.tuned"), Tuned)
    assert registry.ids()[-len(BUILTIN) :] == tuple(BUILTIN)
    assert scans == [ENTRY_POINTS]


def test_candidates_scan(scans: list[str]) -> None:
    accepted, _ = Registry({"numpy.direct": BUILTIN["numpy.direct"]}).candidates(SPEC, cpu(), FREE)
    assert scans == [ENTRY_POINTS]
    assert accepted[0].implementation.name == "test.quick"


def test_a_faulty_entry_point_is_kept_as_a_fault(scans: list[str]) -> None:
    registry = Registry({"numpy.direct": BUILTIN["numpy.direct"]})
    assert set(registry.ids()) == {"test.quick", "test.tuned", "numpy.direct"}
    assert registry.faults["broken"] == "ImportError: no such library"
    assert registry.faults["nonsense"].startswith("RegistryError: register() takes an Implementation object")


def test_the_outside_world_is_found_in_a_fresh_process(tmp_path: Any) -> None:
    """A real distribution on the path: its metadata, its module, its implementation."""
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autoconv.implementations]\nmine = outsider:Mine\nbad = outsider:Gone\n")
    (tmp_path / "outsider.py").write_text(
        "from autoconv.impls.cpu.direct import Direct\n"
        "class Mine(Direct):\n"
        "    '''Somebody else's.'''\n"
        "    name = 'outsider.mine'\n"
    )
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import autoconv
        from autoconv.registry import default_registry
        assert "outsider" not in sys.modules
        print([record.id for record in autoconv.implementations() if record.id.startswith("outsider")])
        print(default_registry().faults)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True
    )
    ids, faults = done.stdout.splitlines()
    assert ids == "['outsider.mine']"
    assert "bad" in faults
    assert "AttributeError" in faults


# What can run a spec


def test_candidates_come_by_estimate_with_their_refusals() -> None:
    accepted, refusals = with_(Direct(), Quick(), Tuned(), Lowering()).candidates(SPEC, cpu(), FREE)
    assert accepted[0].implementation.name == "test.quick"
    assert {str(c.config) for c in accepted if c.implementation.name == "test.tuned"} == {"tile=2", "tile=4"}
    assert [c.estimate_s for c in accepted] == sorted(c.estimate_s for c in accepted)
    assert refusals == {
        "test.tuned[tile=8]": "needs a tile below 8, got 8",
        "test.lowering": "does dgrad, not fprop",
    }


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(exclude=("numpy",)), {"test.quick", "test.shaky"}),
        (Limits(exclude=("quick", "numpy.direct")), {"test.shaky"}),
        (Limits(require=("reference",)), {"numpy.direct"}),
        (Limits(require=("test",)), {"test.quick", "test.shaky"}),
        (Limits(deterministic=True), {"numpy.direct", "test.quick"}),
        (Limits(strict_nan=True), {"numpy.direct", "test.quick"}),
        (Limits(max_workspace=7), {"test.shaky"}),
    ],
)
def test_limits_leave_out(limits: Limits, names: set[str]) -> None:
    accepted, refusals = with_(Direct(), Quick(), Shaky()).candidates(SPEC, cpu(), limits)
    assert {c.implementation.name for c in accepted} == names
    assert set(refusals) == {"numpy.direct", "test.quick", "test.shaky"} - names
    assert all(" " in reason for reason in refusals.values())


@pytest.mark.parametrize(
    ("limits", "short"),
    [
        (FREE, [False, True]),
        (Limits(max_rel_error=1e-2), [False, True]),
        (Limits(max_rel_error=1e-4), [False]),
        (Limits(deterministic=True), [False]),
        (Limits(strict_nan=True), [False]),
        (Limits(exclude=("tf32",)), [False]),
        (Limits(exclude=("gemm",)), []),
        (Limits(require=("tf32",)), [True]),
        (Limits(require=("gemm",)), [False, True]),
        (Limits(require=("fft",)), []),
    ],
    ids=str,
)
def test_limits_look_at_each_config(limits: Limits, short: list[bool]) -> None:
    registry = Registry()
    registry.register(Coarse())
    accepted, refusals = registry.candidates(SPEC, cpu(), limits)
    assert sorted(bool(one.config["short"]) for one in accepted) == short
    assert len(accepted) + len(refusals) >= 1
    registry.check_words("require", ["tf32"])


def test_a_choice_made_ready_has_the_traits_of_its_config() -> None:
    registry = Registry()
    registry.register(Coarse())
    exact, short = (
        registry.build(SPEC, cpu(), Choice("test.coarse", 1, config)) for config in Coarse().configs(SPEC, cpu())
    )
    assert (exact.tags, exact.deterministic, exact.strict_nan) == (("gemm",), True, True)
    assert (short.tags, short.deterministic, short.strict_nan) == (("gemm", "tf32"), False, False)


def test_preference_orders_what_is_untuned() -> None:
    accepted, _ = with_(Direct(), Quick()).candidates(SPEC, cpu(), Limits(prefer=("reference",)))
    assert [c.implementation.name for c in accepted] == ["numpy.direct", "test.quick"]


def test_libraries_that_would_be_imported_wait_for_tuning() -> None:
    registry = with_(Tuned())
    accepted, refusals = registry.candidates(SPEC, cpu(), FREE, load_libraries=False)
    assert [str(c.config) for c in accepted] == ["tile=2"]
    assert "would import a_library_nobody_has" in refusals["test.tuned[tile=4]"]


def test_an_outsiders_bug_stops_nobody() -> None:
    accepted, refusals = with_(Direct(), Faulty()).candidates(SPEC, cpu(), FREE)
    assert [c.implementation.name for c in accepted] == ["numpy.direct"]
    assert refusals["test.faulty"] == "its own check failed: ZeroDivisionError: its author slipped"


# Building


def test_building_a_rewrite_joins_it_to_its_child() -> None:
    registry = with_(Shaky(), Lowering())
    backward = ConvSpec.parse("dgrad n1c2 6x6 k2 3x3")
    asked: list[ConvSpec] = []

    def child(spec: ConvSpec) -> Built:
        asked.append(spec)
        return registry.build(spec, cpu(), Choice("test.shaky", 1))

    built = registry.build(backward, cpu(), Choice("test.lowering", 1), child)
    assert asked == [SPEC]
    assert built.choice == Choice("test.lowering", 1, Config(), Choice("test.shaky", 1))
    assert (built.workspace_bytes, built.deterministic, built.strict_nan) == (1007, False, False)
    assert built.tags == ("shaky",)
    again = registry.build(backward, cpu(), built.choice)
    assert again.choice == built.choice, "a choice replays its child without asking"


def test_building_what_cannot_run() -> None:
    registry = with_(Direct(), Lowering())
    with pytest.raises(NoImplementation, match="does dgrad, not fprop") as caught:
        registry.build(SPEC, cpu(), Choice("test.lowering", 1))
    assert caught.value.refusals == {"test.lowering": "does dgrad, not fprop"}
    with pytest.raises(NoImplementation, match="needs a child"):
        registry.build(ConvSpec.parse("dgrad n1c2 6x6 k2 3x3"), cpu(), Choice("test.lowering", 1))


def test_endless_rewrites_are_stopped() -> None:
    class Circle(Lowering):
        name = "test.circle"
        ops = frozenset(Op)

        def child_spec(self, spec: ConvSpec) -> ConvSpec | None:
            return spec

    registry = with_(Circle())
    endless = Choice("test.circle", 1)
    for _ in range(12):
        endless = Choice("test.circle", 1, child=endless)
    with pytest.raises(NoImplementation, match="nest too deeply"):
        registry.build(SPEC, cpu(), endless)


def test_an_estimate_counts_the_calls_of_the_child() -> None:
    registry = with_(Quick(), Lowering())
    estimate = registry.estimate_s(Lowering(), ConvSpec.parse("dgrad n1c2 6x6 k2 3x3"), cpu(), Config())
    assert estimate == pytest.approx(1.0 + 3e-9)


def test_versions_of_the_whole_chain() -> None:
    registry = with_(Direct(), Lowering())
    found = registry.environment(Choice("test.lowering", 1, Config(), Choice("numpy.direct", 1)))
    assert "numpy" in found
