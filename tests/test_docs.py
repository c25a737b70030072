"""The documents tell the truth: generated pages are current, snippets and commands run, links lead somewhere."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import importlib.util
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from click.testing import CliRunner

import autoconv
from autoconv.cache import CacheWarning
from autoconv.cli import cli
from autoconv.device import cpu
from autoconv.impls import BUILTIN
from autoconv.registry import default_registry
from autoconv.workloads import networks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SNIPPET_BUDGET_S = "0.05"  # what the snippets show does not depend on how well they are tuned
TINY = "tiny.txt"  # stands for every network


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    about: str
    text: str
    line: int


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    text = read(page)
    for match in re.finditer(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 2)


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


# Generated pages ---------------------------------------------------------------------------------


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["api", "cache-schema", "cli", "errors", "implementations", "settings"])
def test_generated_page_is_current(name: str) -> None:
    page = f"docs/reference/{name}.md"
    assert read(page) == generator().pages()[page], f"{page} is out of date: run `make docs`"


def test_every_generated_page_is_tested() -> None:
    marked = {name for name in NAMES if generator().NOTE in read(name)}
    assert marked == set(generator().pages())


def test_generated_pages_name_no_machine() -> None:
    where = {str(ROOT), str(Path.home()), sys.executable, cpu().model}
    for page, text in generator().pages().items():
        assert not [word for word in where if word in text], page


# Nothing undocumented ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(cli.commands))
def test_command_is_documented(command: str) -> None:
    said = read("docs/reference/cli.md")
    assert f"## autoconv {command}\n" in said
    options = {name for parameter in cli.commands[command].params for name in parameter.opts if name.startswith("-")}
    assert not [name for name in options if f"`{name}`" not in said]
    assert f"autoconv {command}" in read("README.md")


@pytest.mark.parametrize("name", BUILTIN)
def test_implementation_is_documented(name: str) -> None:
    assert f"`{name}`" in read("docs/explanation/algorithms.md"), "write a paragraph about it"
    _, _, section = read("docs/reference/implementations.md").partition(f"\n## {name}\n")
    section = section.partition("\n## ")[0]
    for label in ("what", "source", "wins", "error", "cost", "memory"):
        said = re.search(rf"^\| {label} \| (.+) \|$", section, flags=re.MULTILINE)
        assert said, f"the reference does not say the {label} of {name}"


def test_settings_and_variables_are_documented() -> None:
    said = read("docs/reference/settings.md")
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "autoconv").rglob("*.py"))
    variables = set(re.findall(r"""["'](AUTOCONV_[A-Z_]*[A-Z])["']""", text))
    variables |= {f"AUTOCONV_{field.name.upper()}" for field in dataclasses.fields(autoconv.Settings)}
    assert "AUTOCONV_CACHE" in variables
    assert not [name for name in sorted(variables) if f"`{name}`" not in said]


def test_public_names_and_errors_are_documented() -> None:
    api, errors = read("docs/reference/api.md"), read("docs/reference/errors.md")
    assert not [name for name in autoconv.__all__ if f"## {name}\n" not in api and f"| `{name}` |" not in errors]


# Snippets ----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Short races that compile nothing, an empty directory to work in, and a registry that is put back."""
    monkeypatch.setenv("AUTOCONV_TUNE_BUDGET_S", SNIPPET_BUDGET_S)
    if any(name.startswith("native.") for name in BUILTIN):
        monkeypatch.setenv("AUTOCONV_EXCLUDE", "native")
    monkeypatch.chdir(tmp_path)
    before = set(default_registry().ids())
    yield
    for name in set(default_registry().ids()) - before:
        default_registry().unregister(name)


def python_pages() -> list[str]:
    return [name for name in NAMES if any(b.language == "python" and not b.about for b in blocks(name))]


@pytest.mark.parametrize("page", python_pages())
@pytest.mark.usefixtures("quick")
def test_python_snippets_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks of one page share a namespace, so that a page can be read from top to bottom."""
    namespace: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        if block.language == "python" and not block.about:
            code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
            exec(code, namespace)
    assert capsys.readouterr().err.count("Traceback") == 0


def console_lines(page: str) -> list[str]:
    found = [line for b in blocks(page) if b.language == "console" for line in b.text.splitlines() if line]
    assert all(line.startswith("$ ") for line in found), f"{page}: console blocks hold commands only"
    return [line.removeprefix("$ ") for line in found]


@pytest.mark.parametrize("page", [name for name in NAMES if console_lines(name)])
@pytest.mark.usefixtures("quick")
def test_commands_run(page: str) -> None:
    """Commands of a page run one after another on one cache; networks and budgets are cut down."""
    Path(TINY).write_text("body fprop n1c4 12x12 k4 3x3 p1 s1 d1 g1 conv nchw f32\n", encoding="utf-8")
    for block in blocks(page):  # files that the page shows: their first line names them
        name = re.match(r"# (\w+\.txt)\n", block.text)
        if name:
            Path(name[1]).write_text(block.text, encoding="utf-8")
    for line in console_lines(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", read("Makefile"), flags=re.MULTILINE), line
        elif words[0] == "autoconv":
            assert words[1] in cli.commands, line
            done = CliRunner().invoke(cli, cut(words[1:]))
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        else:
            assert words[:2] == ["pip", "install"], f"{page} shows a command that nothing checks: {line}"


def cut(words: list[str]) -> list[str]:
    """The command with budgets and batches of the size that a test can afford."""
    smaller = {"--budget": "0.2", "--batch": "1"}
    words = [smaller.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] in ("tune", "bench") and "--budget" not in words:
        words += ["--budget", smaller["--budget"]]
    return [TINY if word in networks() else word for word in words]


def documented_modules() -> list[str]:
    files = (ROOT / "autoconv").rglob("*.py")
    with_examples = [file for file in files if ">>> " in file.read_text(encoding="utf-8")]
    dotted = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in with_examples)
    return sorted(name.removesuffix(".__init__") for name in dotted)


@pytest.mark.parametrize("name", documented_modules())
@pytest.mark.usefixtures("quick")
def test_docstring_examples_run(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


# Links -------------------------------------------------------------------------------------------


def links(page: str) -> Iterator[tuple[str, str]]:
    """(file from the root, anchor) of every link inside the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            yield str(file.resolve().relative_to(ROOT)), anchor


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    for file, anchor in links(page):
        assert (ROOT / file).exists(), f"{page} links to {file}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page} links to {file}#{anchor}; there are {sorted(anchors(file))}"


def test_every_page_is_reachable() -> None:
    reached, waiting = set(), ["docs/index.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.endswith(".md") and page.startswith("docs/"):
            reached.add(page)
            waiting += [file for file, _ in links(page)]
    assert reached == {name for name in NAMES if name.startswith("docs/")}
    assert "docs/index.md" in {file for file, _ in links("README.md")}


# Measured tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "name", "script"),
    [("README.md", "table", "readme_table.py"), ("docs/explanation/accuracy.md", "accuracy", "accuracy.py")],
)
def test_measured_table_has_its_command(page: str, name: str, script: str) -> None:
    text = read(page)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    assert text.count(begin) == text.count(end) == 1
    assert f"python benchmarks/{script}" in text
    assert f'"{name}"' in read(f"benchmarks/{script}")


def test_decisions_are_dated_and_name_a_command() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(r"^\d{4}-\d\d-\d\d$", text, flags=re.MULTILINE), f"{page.name} has no date"
        for heading in ("## The choice", "## The road not taken", "## Measured"):
            assert heading in text, f"{page.name} has no {heading!r}"
        assert re.search(r"`python [^`]+`", text), f"{page.name} measures without a command"
