"""Imports point one way, and `import autoconv` loads next to nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoconv

ROOT = Path(autoconv.__file__).parent

ORDER = (
    "errors", "shapes", "spec", "cuda_driver", "device", "arrays", "workspace", "places", "separable", "evidence",
    "options", "planning", "captures", "implementation", "registry", "catalogue", "tuner", "dispatch", "calling",
    "convolving", "derived", "api",
)  # fmt: skip
"""Each may import what stands before it. What is not listed (report, cli, ...) stands on top."""

IMPLEMENTATIONS_END = "implementation"
CACHE_END = "planning"


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(("autoconv", *(part for part in parts if part != "__init__"))), path


def imports(name: str, path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(imported module, whether only for type checkers, whether inside a function) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, typing_only: bool, lazy: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, typing_only, lazy
            elif isinstance(child, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                source = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield f"{source}.{alias.name}", typing_only, lazy
            else:
                checking = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, typing_only or checking, lazy or inside)

    return walk(tree, False, False)


def part(module: str) -> str | None:
    """The first level below autoconv: `autoconv.impls.cpu.fft` is of `impls`."""
    names = module.split(".")
    return names[1] if names[0] == "autoconv" and len(names) > 1 else None


def known_parts() -> set[str]:
    return {found for name, _ in modules() if (found := part(name))}


EVERYTHING = [
    pytest.param(name, path, id=name.removeprefix("autoconv.") if name != "autoconv" else "(package)")
    for name, path in modules()
]


def below(end: str) -> set[str]:
    return set(ORDER[: ORDER.index(end) + 1])


@pytest.mark.parametrize(("name", "path"), EVERYTHING)
def test_imports_point_one_way(name: str, path: Path) -> None:
    own, parts = part(name), known_parts()
    used = {
        found: module
        for module, typing_only, _ in imports(name, path)
        if (found := part(module)) in parts and found != own and not typing_only
    }
    if own == "impls":
        allowed = below(IMPLEMENTATIONS_END)
    elif own == "cache":
        allowed = below(CACHE_END)
    elif own == "dispatch":
        allowed = below("tuner") | {"cache", "verbose"}  # the one place where store, tuner and registry meet
    elif own == "registry":
        allowed = below("implementation") | {"impls"}  # for the table, which imports nothing
    elif own in ORDER:
        allowed = below(own) | (
            parts - set(ORDER) - {"cli", "testing", "impls", "cache", "__main__"} if own == "api" else set()
        )
    else:
        return  # on top
    wrong = {module for found, module in used.items() if found not in allowed}
    assert not wrong, f"{name} imports {sorted(wrong)}, allowed are {sorted(allowed)}"


@pytest.mark.parametrize(("name", "path"), EVERYTHING)
def test_only_the_cache_knows_sqlalchemy(name: str, path: Path) -> None:
    known = {module.split(".")[0] for module, _, _ in imports(name, path)}
    if part(name) != "cache":
        assert not known & {"sqlalchemy", "sqlite3"}


@pytest.mark.parametrize(("name", "path"), EVERYTHING)
def test_nothing_but_the_top_imports_the_cli_or_the_suite(name: str, path: Path) -> None:
    used = {part(module) for module, _, _ in imports(name, path)}
    if part(name) not in ("cli", "__main__"):
        assert not used & {"cli", "__main__"}
    if part(name) != "testing":
        assert "testing" not in used


def test_the_table_imports_nothing() -> None:
    table = ROOT / "impls" / "__init__.py"
    assert [module for module, _, _ in imports("autoconv.impls", table)] == ["__future__.annotations"]


def test_modules_do_not_bear_the_names_of_functions() -> None:
    """`autoconv/plan.py` would replace `autoconv.plan` as soon as it was imported."""
    assert not known_parts() & set(autoconv.__all__)


OPTIONAL = (
    "sqlalchemy", "scipy", "rich", "click", "platformdirs", "torch", "onnxruntime", "threadpoolctl", "cupy", "jax",
    "ml_dtypes", "matplotlib", "hypothesis", "pytest", "importlib.metadata", "sqlite3", "multiprocessing", "difflib",
    "numpy.testing", "email", "tempfile", "distributed", "pandas", "numba",
)  # fmt: skip


def loaded(program: str, **environment: str) -> set[str]:
    """Modules that a fresh interpreter holds after `program`, beyond those of NumPy alone."""
    tail = "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    found = []
    for text in ("import numpy", textwrap.dedent(program)):
        done = subprocess.run(
            [sys.executable, "-c", text + tail],
            capture_output=True, text=True, check=True, env={**os.environ, **environment},
        )  # fmt: skip
        found.append(set(json.loads(done.stdout.splitlines()[-1])))
    return found[1] - found[0]


def test_importing_loads_nothing_optional() -> None:
    modules = loaded("import autoconv")
    assert not modules & set(OPTIONAL)
    assert "autoconv.api" in modules
    assert not {name for name in modules if name.startswith(("autoconv.impls.", "autoconv.tuner", "autoconv.cache"))}
    assert "autoconv.testing" not in modules
    assert "autoconv.cli" not in modules


def test_an_untuned_call_loads_no_framework() -> None:
    modules = loaded(
        """
        import autoconv, numpy as np
        with autoconv.settings(on_miss="heuristic", cache=None):
            autoconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)))
        """
    )
    assert not modules & {"scipy", "torch", "onnxruntime", "click", "rich", "autoconv.tuner.tuner"}


def test_a_remembered_call_loads_neither_sqlalchemy_nor_scipy(tmp_path: Path) -> None:
    """The first process tunes, the second finds what it needs with the standard library alone."""
    cache = {"AUTOCONV_CACHE": str(tmp_path / "shared.sqlite"), "AUTOCONV_EXCLUDE": "torch,onnxruntime"}
    program = """
        import autoconv, numpy as np
        {call}
        autoconv.conv2d(np.ones((1, 2, 6, 6)), np.ones((2, 2, 3, 3)))
        assert autoconv.plan("fprop n1c2 6x6 k2 3x3 f64").source == {source!r}
    """
    first = loaded(program.format(call="", source="tuned"), **cache)
    assert "sqlalchemy" in first
    call = "autoconv.settings.set_default(on_miss='error')"
    second = loaded(program.format(call=call, source="cache"), **cache)
    assert not second & {"sqlalchemy", "scipy", "torch", "onnxruntime", "rich", "click", "autoconv.tuner"}


def test_the_suite_needs_neither_pytest_nor_hypothesis() -> None:
    modules = loaded("import autoconv.testing; autoconv.testing.check_case")
    assert "autoconv.testing.conformance" in modules
    assert not modules & {"pytest", "hypothesis", "scipy", "sqlalchemy"}
